//! Killing and freezing cgroups, by callbacks, with methods and with files.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use percpu_memcg::cgroup::Registration;
use percpu_memcg::error::TreeError;
use percpu_memcg::{Memcg, PerCpuAllocator};

type Log = Arc<Mutex<Vec<String>>>;

fn taken(log: &Log) -> Vec<String> {
    std::mem::take(&mut *log.lock().unwrap())
}

/// `/a`, `/a/b`, `/a/b/c`, `/a/d` and `/e`, each with callbacks that write down that they were called.
struct Tree {
    pcpu: PerCpuAllocator,
    cgroups: Vec<Memcg>,
    log: Log,
    _callbacks: Vec<Registration>,
}

impl Tree {
    fn new() -> Self {
        let pcpu = PerCpuAllocator::new().unwrap();
        let a = pcpu.root().create("a").unwrap();
        let b = a.create("b").unwrap();
        let cgroups = vec![
            a.clone(),
            b.clone(),
            b.create("c").unwrap(),
            a.create("d").unwrap(),
            pcpu.root().create("e").unwrap(),
        ];
        let log = Log::default();
        let mut callbacks = Vec::new();
        for memcg in &cgroups {
            let (killed, frozen) = (Arc::clone(&log), Arc::clone(&log));
            callbacks.push(memcg.on_kill(move |memcg| {
                killed.lock().unwrap().push(format!("kill {}", memcg.path()));
            }));
            callbacks.push(memcg.on_freeze(move |memcg| {
                let what = if memcg.is_frozen() { "freeze" } else { "thaw" };
                frozen.lock().unwrap().push(format!("{what} {}", memcg.path()));
            }));
        }
        Tree { pcpu, cgroups, log, _callbacks: callbacks }
    }

    fn frozen(&self) -> Vec<&str> {
        self.cgroups.iter().filter(|memcg| memcg.is_frozen()).map(Memcg::name).collect()
    }
}

#[test]
fn a_kill_calls_back_the_cgroup_and_all_below() {
    let tree = Tree::new();
    let [a, b, c, ..] = &tree.cgroups[..] else { unreachable!() };
    assert_eq!(a.kill().unwrap(), 4);
    assert_eq!(taken(&tree.log), ["kill /a", "kill /a/b", "kill /a/b/c", "kill /a/d"]);
    assert_eq!(b.files().write("cgroup.kill", "1\n"), Ok(2));
    assert_eq!(taken(&tree.log), ["kill /a/b", "kill /a/b/c"]);
    tree.pcpu.files().write("a/b/c/cgroup.kill", " 0x1 ").unwrap();
    assert_eq!(taken(&tree.log), ["kill /a/b/c"]);

    let quiet = c.create("quiet").unwrap();
    assert_eq!(quiet.kill().unwrap(), 0, "a cgroup without callbacks");
    quiet.remove().unwrap();
    assert!(quiet.kill().unwrap_err().is_removed());
    assert_eq!(tree.pcpu.root().kill(), Err(TreeError::IsRoot));
    assert_eq!(tree.pcpu.files().write("cgroup.kill", "1").unwrap_err().errno(), libc::ENOENT);
    assert_eq!(a.files().read("cgroup.kill").unwrap_err().errno(), libc::EACCES);
    assert!(taken(&tree.log).is_empty());
}

#[test]
fn a_cgroup_is_frozen_with_its_ancestors() {
    let tree = Tree::new();
    let [a, b, c, d, _e] = &tree.cgroups[..] else { unreachable!() };
    b.freeze().unwrap();
    assert_eq!(taken(&tree.log), ["freeze /a/b", "freeze /a/b/c"]);
    assert_eq!(tree.frozen(), ["b", "c"]);
    a.files().write("cgroup.freeze", "1").unwrap();
    assert_eq!(taken(&tree.log), ["freeze /a", "freeze /a/d"], "the others were frozen");
    assert_eq!(tree.frozen(), ["a", "b", "c", "d"]);
    let texts = |file| [a, b, c, d].map(|memcg| memcg.files().read(file).unwrap());
    assert_eq!(texts("cgroup.freeze"), ["1\n", "1\n", "0\n", "0\n"]);
    assert_eq!(texts("cgroup.events"), ["populated 0\nfrozen 1\n"; 4]);

    let born = d.create("born").unwrap();
    assert!(born.is_frozen() && !born.is_frozen_itself());
    for memcg in [a, b] {
        memcg.freeze().unwrap(); // once more
    }
    c.freeze().unwrap();
    c.thaw().unwrap();
    b.thaw().unwrap();
    assert!(taken(&tree.log).is_empty(), "an ancestor is frozen all the time");
    c.freeze().unwrap();
    a.files().write("cgroup.freeze", "0\n").unwrap();
    assert_eq!(taken(&tree.log), ["thaw /a", "thaw /a/b", "thaw /a/d"], "not c");
    assert_eq!(tree.frozen(), ["c"]);
    assert!(!born.is_frozen());
    c.thaw().unwrap();
    assert_eq!(taken(&tree.log), ["thaw /a/b/c"]);
    assert_eq!(texts("cgroup.events"), ["populated 0\nfrozen 0\n"; 4]);

    assert_eq!(tree.pcpu.root().freeze(), Err(TreeError::IsRoot));
    born.remove().unwrap();
    assert!(born.freeze().unwrap_err().is_removed() && born.thaw().unwrap_err().is_removed());
}

#[test]
fn a_removed_cgroup_is_out_of_the_way_of_those_that_follow() {
    let tree = Tree::new();
    let [a, _b, _c, d, _e] = &tree.cgroups[..] else { unreachable!() };
    d.freeze().unwrap();
    d.remove().unwrap();
    let again = a.create("d").unwrap();
    assert!(!again.is_frozen(), "another cgroup, with settings of its own");
    taken(&tree.log);
    a.freeze().unwrap();
    assert_eq!(taken(&tree.log), ["freeze /a", "freeze /a/b", "freeze /a/b/c"]);
}

#[test]
fn callbacks_run_under_no_lock() {
    let tree = Tree::new();
    let [a, b, _c, d, e] = tree.cgroups.clone().try_into().unwrap();
    let (root, below) = (tree.pcpu.root(), a.clone());
    let _kill = b.on_kill(move |memcg| {
        let held = memcg.charge(1000).unwrap();
        d.remove().unwrap();
        root.create("made").unwrap().create_scoped("below").unwrap().freeze().unwrap();
        e.kill().unwrap();
        memcg.on_kill(|_| {}).detach();
        drop((held, below.snapshot()));
    });
    let root = tree.pcpu.root();
    let _freeze = a.on_freeze(move |memcg| {
        memcg.find("b").unwrap().freeze().unwrap();
        drop(root.create_scoped("during").unwrap());
    });
    a.kill().unwrap();
    a.freeze().unwrap();
    let log = taken(&tree.log);
    assert!(log.contains(&"kill /e".into()) && log.contains(&"freeze /a".into()), "{log:?}");
    assert!(tree.pcpu.root().find("a/d").is_err());
}

#[test]
fn a_callback_that_panics_keeps_no_other_from_its_turn() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("the payload's destructor");
        }
    }
    let tree = Tree::new();
    let [a, b, c, ..] = &tree.cgroups[..] else { unreachable!() };
    let _first = a.on_kill(|_| panic!("first"));
    let _second = b.on_kill(|_| std::panic::panic_any(Bomb));
    let _third = b.on_freeze(|_| panic!("third"));
    let panic = catch_unwind(AssertUnwindSafe(|| a.kill())).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"first"));
    assert_eq!(taken(&tree.log).len(), 4);
    let panic = catch_unwind(AssertUnwindSafe(|| a.files().write("cgroup.freeze", "1")));
    assert_eq!(panic.unwrap_err().downcast_ref::<&str>(), Some(&"third"));
    assert_eq!(taken(&tree.log).len(), 4);
    assert!(c.is_frozen());
}

#[test]
fn a_registration_ends_with_its_value_and_keeps_no_tree() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let captured = Arc::new(());
    let kept = Arc::clone(&captured);
    let callback = tenant.on_kill(move |_| drop(Arc::clone(&kept)));
    assert_eq!(tenant.kill().unwrap(), 1);
    drop(callback);
    assert_eq!((tenant.kill().unwrap(), Arc::strong_count(&captured)), (0, 1));

    let kept = Arc::clone(&captured);
    let callback = tenant.on_freeze(move |_| drop(Arc::clone(&kept)));
    drop((tenant, pcpu));
    assert_eq!(Arc::strong_count(&captured), 1, "the callback went with the tree");
    drop(callback);
}

#[test]
fn threads_that_freeze_and_thaw_agree_in_the_end() {
    let tree = Tree::new();
    let [a, b, c, ..] = &tree.cgroups[..] else { unreachable!() };
    let state = Arc::new(Mutex::new(false));
    let paused = Arc::clone(&state);
    let _callback = c.on_freeze(move |memcg| {
        let mut paused = paused.lock().unwrap();
        *paused = memcg.is_frozen();
    });
    for _ in 0..200 {
        std::thread::scope(|scope| {
            for memcg in [a, b, c] {
                scope.spawn(|| {
                    for _ in 0..5 {
                        memcg.freeze().unwrap();
                        memcg.thaw().unwrap();
                    }
                });
            }
        });
        assert!(!*state.lock().unwrap() && !c.is_frozen());
        b.freeze().unwrap();
        assert!(*state.lock().unwrap());
        b.thaw().unwrap();
        taken(&tree.log);
    }
}

/// Whatever callbacks do, a call ends: no callback is called by what it does itself.
#[test]
fn callbacks_that_do_it_again_are_called_once() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let a = pcpu.root().create("a").unwrap();
    let b = a.create("b").unwrap();
    let log = Log::default();
    let note = |what: &'static str| {
        let log = Arc::clone(&log);
        move || log.lock().unwrap().push(what.into())
    };
    let (own, above, other) = (note("own"), note("above"), note("other"));
    let _own = a.on_kill(move |memcg| {
        own();
        memcg.kill().unwrap();
    });
    let above_b = a.clone();
    let _above = b.on_kill(move |_| {
        above();
        above_b.kill().unwrap();
    });
    let _other = b.on_kill(move |_| other());
    assert_eq!(b.kill().unwrap(), 2);
    assert_eq!(taken(&log), ["above", "other", "own"], "the kill of /a comes after that of /a/b");
    a.kill().unwrap();
    assert_eq!(taken(&log), ["own", "above", "other"]);

    let toggled = note("toggled");
    let _toggle = a.on_freeze(move |memcg| {
        toggled();
        match memcg.is_frozen() {
            true => memcg.thaw().unwrap(),
            false => memcg.freeze().unwrap(),
        }
    });
    a.freeze().unwrap();
    assert_eq!(taken(&log), ["toggled"; 4]);
    assert!(a.is_frozen(), "it was thawed and frozen twice");
    // Another call is told again.
    std::thread::scope(|scope| scope.spawn(|| a.thaw().unwrap()).join().unwrap());
    assert_eq!(taken(&log), ["toggled"; 4]);
}

/// Callbacks of siblings that all end their parent, and toggle it.
#[test]
fn calls_grow_with_the_callbacks_and_no_faster() {
    for children in [1, 2, 5, 12, 100] {
        let pcpu = PerCpuAllocator::new().unwrap();
        let tenant = pcpu.root().create("tenant").unwrap();
        let calls = Arc::new(Mutex::new(0));
        for child in 0..children {
            let child = tenant.create(&child.to_string()).unwrap();
            let count = [&calls; 2].map(Arc::clone);
            let [killed, frozen] = count;
            child
                .on_kill(move |child| {
                    *killed.lock().unwrap() += 1;
                    child.parent().unwrap().kill().unwrap();
                })
                .detach();
            child
                .on_freeze(move |child| {
                    *frozen.lock().unwrap() += 1;
                    let parent = child.parent().unwrap();
                    let toggled = if parent.is_frozen() { parent.thaw() } else { parent.freeze() };
                    toggled.unwrap();
                })
                .detach();
        }
        let taken = || std::mem::take(&mut *calls.lock().unwrap());
        assert_eq!((tenant.kill().unwrap(), taken()), (children, children));
        tenant.freeze().unwrap();
        assert!(taken() <= 4 * children);
    }
}

/// A thread that ends calls back as well, while its thread-local values are dropped, and recurses no more than
/// others.
#[test]
fn a_thread_that_ends_does_not_recurse() {
    struct FreezesAtEnd(Memcg);
    impl Drop for FreezesAtEnd {
        fn drop(&mut self) {
            self.0.thaw().unwrap();
            self.0.freeze().unwrap();
        }
    }
    thread_local! {
        static AT_END: std::cell::RefCell<Option<FreezesAtEnd>> = const { std::cell::RefCell::new(None) };
    }
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let calls = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&calls);
    let _callback = tenant.on_freeze(move |tenant| {
        let count = {
            let mut calls = counted.lock().unwrap();
            *calls += 1;
            *calls
        };
        if count < 1000 {
            tenant.thaw().unwrap();
            tenant.freeze().unwrap();
        }
    });
    let (memcg, count) = (tenant.clone(), Arc::clone(&calls));
    // A scope does not wait for thread-local values.
    let thread = std::thread::spawn(move || {
        // Dropped after the library's own, which is first used below.
        AT_END.set(Some(FreezesAtEnd(memcg.clone())));
        memcg.freeze().unwrap();
        memcg.thaw().unwrap();
        *count.lock().unwrap() = 0;
    });
    thread.join().unwrap();
    assert_eq!(*calls.lock().unwrap(), 4, "as in other threads");
}

/// A kill by a destructor of a thread-local value, whose callback thaws.
#[test]
fn a_thread_that_ends_tells_what_its_callbacks_do() {
    struct KillsAtEnd(Memcg);
    impl Drop for KillsAtEnd {
        fn drop(&mut self) {
            self.0.kill().unwrap();
        }
    }
    thread_local! {
        static AT_END: std::cell::RefCell<Option<KillsAtEnd>> = const { std::cell::RefCell::new(None) };
    }
    let tree = Tree::new();
    let [a, _b, _c, d, e] = tree.cgroups.clone().try_into().unwrap();
    let _toggles =
        d.on_kill(move |_| if e.is_frozen() { e.thaw().unwrap() } else { e.freeze().unwrap() });
    // A scope does not wait for thread-local values.
    let thread = std::thread::spawn(move || {
        AT_END.set(Some(KillsAtEnd(d)));
        a.kill().unwrap();
    });
    thread.join().unwrap();
    assert!(!tree.cgroups[4].is_frozen());
    assert_eq!(taken(&tree.log)[4..], ["freeze /e", "kill /a/d", "thaw /e"]);
}

/// A callback is left out where a callback of the same call has registered it, and nowhere else.
#[test]
fn callbacks_of_other_threads_are_told_of_what_callbacks_do() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let [query, other] = ["query", "other"].map(|name| pcpu.root().create(name).unwrap());
    let log = Log::default();
    let register = move |what: &'static str, log: &Log| {
        let log = Arc::clone(log);
        other.on_freeze(move |_| log.lock().unwrap().push(what.into())).detach();
        other.clone()
    };
    let noted = Arc::clone(&log);
    let _callback = query.on_kill(move |_| {
        std::thread::scope(|scope| {
            scope.spawn(|| register("of another thread", &noted)).join().unwrap();
        });
        let other = register("of this call", &noted);
        if other.is_frozen() { other.thaw().unwrap() } else { other.freeze().unwrap() }
    });
    query.kill().unwrap();
    assert_eq!(taken(&log), ["of another thread"]);
    query.kill().unwrap();
    assert_eq!(taken(&log), ["of another thread", "of this call", "of another thread"]);
}

/// A callback that has another thread register others is no endless loop either.
#[test]
fn callbacks_that_have_others_register_callbacks_end() {
    const ENDLESS: u32 = 10_000;
    fn on_freeze(memcg: &Memcg, calls: &Arc<Mutex<u32>>) {
        let calls = Arc::clone(calls);
        let callback = move |memcg: &Memcg| {
            *calls.lock().unwrap() += 1;
            if *calls.lock().unwrap() > ENDLESS {
                return;
            }
            std::thread::scope(|scope| {
                scope.spawn(|| on_freeze(memcg, &calls)).join().unwrap();
            });
            let toggled = if memcg.is_frozen() { memcg.thaw() } else { memcg.freeze() };
            toggled.unwrap();
        };
        memcg.on_freeze(callback).detach();
    }
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let calls = Arc::default();
    on_freeze(&tenant, &calls);
    tenant.freeze().unwrap();
    assert!((1024..ENDLESS).contains(&*calls.lock().unwrap()), "{calls:?}");
}

/// The drop of what a callback has captured panics while a call is under way: the others are called, and the
/// next call is as any other.
#[test]
fn values_that_panic_keep_no_callback_from_its_turn() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("captured");
        }
    }
    let tree = Tree::new();
    let [a, b, ..] = &tree.cgroups[..] else { unreachable!() };
    for panics_itself in [false, true] {
        for memcg in [a, b] {
            let own = Arc::new(Mutex::new(None::<Registration>));
            let (bomb, registration) = (Bomb, Arc::clone(&own));
            *own.lock().unwrap() = Some(memcg.on_kill(move |memcg| {
                let _owned = &bomb;
                let below = memcg.create("below").unwrap();
                let bomb = Bomb;
                below
                    .on_kill(move |_| {
                        let _owned = &bomb;
                    })
                    .detach();
                let registration = registration.lock().unwrap().take();
                drop(registration);
                let removed = catch_unwind(AssertUnwindSafe(|| below.remove())).unwrap_err();
                assert_eq!(removed.downcast_ref::<&str>(), Some(&"captured"));
                assert!(!panics_itself, "called");
            }));
        }
        let panic = catch_unwind(AssertUnwindSafe(|| a.kill())).unwrap_err();
        let first = if panics_itself { "called" } else { "captured" };
        assert_eq!(panic.downcast_ref::<&str>(), Some(&first));
        assert_eq!(taken(&tree.log), ["kill /a", "kill /a/b", "kill /a/b/c", "kill /a/d"]);
        for memcg in [a, b] {
            assert!(memcg.find("below").is_err());
        }
        a.kill().unwrap();
        assert_eq!(taken(&tree.log).len(), 4);
    }
}

/// A callback that registers others, and does it again, is no endless loop.
#[test]
fn callbacks_that_register_callbacks_end() {
    const ENDLESS: u32 = 200;
    fn on_freeze(memcg: &Memcg, calls: &Arc<Mutex<u32>>) {
        let calls = Arc::clone(calls);
        let callback = move |memcg: &Memcg| {
            *calls.lock().unwrap() += 1;
            if *calls.lock().unwrap() > ENDLESS {
                return;
            }
            on_freeze(memcg, &calls);
            memcg.thaw().unwrap();
            memcg.freeze().unwrap();
        };
        memcg.on_freeze(callback).detach();
    }
    fn on_kill(memcg: &Memcg, calls: &Arc<Mutex<u32>>) {
        let calls = Arc::clone(calls);
        let callback = move |memcg: &Memcg| {
            *calls.lock().unwrap() += 1;
            if *calls.lock().unwrap() > ENDLESS {
                return;
            }
            // Of a new cgroup, so that it is not the same callback.
            let parent = memcg.parent().unwrap();
            let sibling = parent.create(&calls.lock().unwrap().to_string()).unwrap();
            on_kill(&sibling, &calls);
            sibling.kill().unwrap();
        };
        memcg.on_kill(callback).detach();
    }
    let pcpu = PerCpuAllocator::new().unwrap();
    let [tenant, other] = ["tenant", "other"].map(|name| pcpu.root().create(name).unwrap());
    for _ in 0..3 {
        let calls = Arc::default();
        on_freeze(&tenant, &calls);
        tenant.freeze().unwrap();
        tenant.thaw().unwrap();
        assert!((2..=50).contains(&*calls.lock().unwrap()), "{calls:?}");
    }
    let calls = Arc::default();
    on_kill(&other, &calls);
    other.kill().unwrap();
    assert_eq!(*calls.lock().unwrap(), 1);
    drop(pcpu);
}

/// A removed cgroup asks its callbacks no more. So what they have captured goes, and may be a handle.
#[test]
fn a_removed_cgroup_drops_its_callbacks() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let held = Arc::new(());
    let register = || {
        let captured = || {
            let captured = (Arc::clone(&held), tenant.clone());
            move || drop(captured.clone())
        };
        let [reclaim, high, oom, kill, freeze] = [(); 5].map(|()| captured());
        let answers = move || {
            reclaim();
            0
        };
        tenant.on_reclaim(0, move |_| answers()).detach();
        tenant.on_high(move |_| high()).detach();
        tenant
            .on_oom(move |_| {
                oom();
                false
            })
            .detach();
        tenant.on_kill(move |_| kill()).detach();
        tenant.on_freeze(move |_| freeze()).detach();
    };
    register();
    assert_eq!(Arc::strong_count(&held), 6);
    tenant.remove().unwrap();
    assert_eq!(Arc::strong_count(&held), 1);
    register();
    assert_eq!(Arc::strong_count(&held), 1, "nor does it keep those that come later");
    // One that removes its own cgroup, and captures a handle.
    let own = pcpu.root().create("own").unwrap();
    let (captured, memcg) = (Arc::clone(&held), own.clone());
    own.on_kill(move |_| {
        memcg.remove().unwrap();
        assert_eq!(Arc::strong_count(&captured), 2, "it still runs");
    })
    .detach();
    assert_eq!(own.kill().unwrap(), 1);
    assert_eq!(Arc::strong_count(&held), 1);
}
