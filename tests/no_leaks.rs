//! What is done again and again takes no more memory, whatever was left behind each time.
//!
//! The global allocator counts live bytes. Each story is told a few times first, so that pools and
//! tables have their size, and then many times more.

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Duration;

use percpu_memcg::{Charge, Gfp, Limit, Memcg, PerCpu, PerCpuAllocator};

struct Counting;

static LIVE: AtomicI64 = AtomicI64::new(0);

#[global_allocator]
static GLOBAL: Counting = Counting;

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() as i64, Relaxed);
        // SAFETY: the caller's obligations are those of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as i64, Relaxed);
        // SAFETY: the caller's obligations are those of `System`.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Told before anything is measured.
const FIRST: usize = 200;

/// Told while live bytes are measured. A token has more than 100 bytes.
const THEN: usize = 2000;

/// What tables may grow by, far less than a byte for each time.
const SLACK: i64 = 1000;

#[track_caller]
fn takes_no_more(what: &str, mut story: impl FnMut()) {
    (0..FIRST).for_each(|_| story());
    let before = LIVE.load(Relaxed);
    (0..THEN).for_each(|_| story());
    let more = LIVE.load(Relaxed) - before;
    assert!(more <= SLACK, "{what}: {more} bytes more after {THEN} times");
}

fn child(top: &Memcg) -> Memcg {
    top.create("child").expect("nothing limits it")
}

/// Many cgroups at once: what they leave to be used again is used again.
fn waves_of_cgroups_take_no_more_than_the_first() {
    const WAVE: usize = 4000;
    let pcpu = PerCpuAllocator::new().unwrap();
    let top = pcpu.root().create("top").unwrap();
    let wave = || {
        let create = |nth: usize| {
            let memcg = top.create(&format!("{nth}")).unwrap();
            drop(memcg.charge(512).unwrap());
            memcg
        };
        let cgroups: Vec<_> = (0..WAVE).map(create).collect();
        let live = LIVE.load(Relaxed);
        cgroups.iter().for_each(|memcg| memcg.remove().unwrap());
        live
    };
    let empty = LIVE.load(Relaxed);
    let full = wave() - empty;
    let left = LIVE.load(Relaxed) - empty;
    println!("a cgroup has {} bytes and leaves {}", full / WAVE as i64, left / WAVE as i64);
    (0..5).for_each(|_| _ = wave());
    let more = LIVE.load(Relaxed) - empty - left;
    assert!(more <= left / 10, "{more} bytes more than {left} after five more waves");
}

fn in_one_tree(pcpu: &PerCpuAllocator, top: &Memcg) {
    // Ten times as often: the cgroups' own words come in chunks for thousands.
    takes_no_more("ten cgroups", || (0..10).for_each(|_| child(top).remove().unwrap()));
    takes_no_more("two cgroups", || {
        let parent = child(top);
        let inner = child(&parent);
        inner.remove().unwrap();
        parent.remove().unwrap();
    });
    takes_no_more("a cgroup that is removed before its handle is dropped", || {
        let parent = child(top);
        let inner = child(&parent);
        drop((parent.charge(100).unwrap(), inner.charge(10_000).unwrap()));
        inner.remove().unwrap();
        parent.remove().unwrap();
        drop(parent);
        drop(inner);
    });
    takes_no_more("a cgroup with a stock", || {
        let child = child(top);
        drop(child.charge(5000).unwrap());
        drop(child.charge(100).unwrap());
        child.remove().unwrap();
    });
    let mut left: Option<Charge> = None;
    takes_no_more("charges that outlive their cgroup", || {
        let child = child(top);
        let mut charge = child.charge(100).unwrap();
        let split = charge.split(50).unwrap();
        child.remove().unwrap();
        charge.merge(split).unwrap();
        charge.grow(10).unwrap();
        left = Some(charge);
    });
    let mut labelled: Option<Charge> = None;
    takes_no_more("labels that outlive their cgroup", || {
        let child = child(top);
        let charge = child.charge(100).unwrap().labelled("rows");
        drop(child.charge(10).unwrap().labelled("cache"));
        child.remove().unwrap();
        labelled = Some(charge.labelled("rows"));
    });
    takes_no_more("scopes that end in another order", || {
        let child = child(top);
        let scopes = [(); 3].map(|()| child.enter());
        child.remove().unwrap();
        drop(child);
        scopes.into_iter().for_each(drop);
    });
    let mut areas: Option<PerCpu<u64>> = None;
    takes_no_more("areas that outlive their cgroup", || {
        let child = child(top);
        let _in = child.enter();
        areas = Some(PerCpu::zeroed_in(pcpu, Gfp::KERNEL_ACCOUNT).unwrap());
        child.remove().unwrap();
    });
    takes_no_more("a charge that moves", || {
        let [from, to] = ["from", "to"].map(|name| top.create(name).unwrap());
        let mut charge = from.charge(100).unwrap();
        charge.transfer_to(&to).unwrap();
        from.remove().unwrap();
        to.remove().unwrap();
    });
    takes_no_more("charges and children that are refused", || {
        let child = child(top);
        child.set_max(Limit::bytes(1)).unwrap();
        assert!(child.charge(100).is_err() && child.try_charge(100).is_err());
        drop(child.charge_forced(100));
        assert!(child.create("no room").is_err());
        let _in = child.enter();
        assert!(PerCpu::<u64>::zeroed_in(pcpu, Gfp::KERNEL_ACCOUNT).is_err());
        child.remove().unwrap();
    });
    takes_no_more("areas for which there is no room", || {
        let child = child(top);
        let _in = child.enter();
        let large = Layout::new::<[u64; 4096]>();
        // Nothing that is populated has room for it.
        let refused = pcpu.alloc(large, Gfp::NOWAIT | Gfp::ACCOUNT).unwrap_err();
        assert!(refused.is_no_room() && child.current() == 0, "{refused}");
        child.remove().unwrap();
    });
    takes_no_more("a callback that panics", || {
        let child = child(top);
        child.set_high(Limit::bytes(0)).unwrap();
        let callback = child.on_high(|_| resume_unwind(Box::new(())));
        assert!(catch_unwind(AssertUnwindSafe(|| drop(child.charge(100)))).is_err());
        drop(callback);
        child.remove().unwrap();
    });
    takes_no_more("values of areas that panic", || {
        let child = child(top);
        {
            let _in = child.enter();
            let init = || {
                PerCpu::new_in(pcpu, Gfp::KERNEL_ACCOUNT, |_| -> u64 {
                    resume_unwind(Box::new(()))
                })
            };
            assert!(catch_unwind(AssertUnwindSafe(|| drop(init()))).is_err());
        }
        child.remove().unwrap();
    });
    takes_no_more("hooks, watches and readers", || {
        let child = child(top);
        let hooks = [0, 1].map(|order| child.on_reclaim(order, |_| 0));
        child.on_oom(|_| false).detach();
        let reader = child.peak_reader();
        reader.reset();
        let watch = (child.watch_events(), child.watch_tree(Duration::ZERO));
        let _held = child.charge(10).unwrap();
        assert!(child.reclaim(1).is_err());
        drop((hooks, reader, watch));
        child.remove().unwrap();
    });
    takes_no_more("a thread that comes and goes", {
        let mut times = 0;
        move || {
            times += 1;
            if times % 100 != 0 {
                return; // a thread is slow
            }
            let child = child(top);
            let attached = child.clone();
            std::thread::spawn(move || attached.attach_thread().unwrap()).join().unwrap();
            child.remove().unwrap();
        }
    });
    drop((left, labelled, areas));
}

/// In one test, so that nothing else allocates.
#[test]
fn what_is_done_again_takes_no_more_memory() {
    waves_of_cgroups_take_no_more_than_the_first();
    // Each CPU has a table of its own, once it is used.
    let cores = core_affinity::get_core_ids().expect("the thread may run somewhere");
    assert!(core_affinity::set_for_current(cores[0]));
    let pcpu = PerCpuAllocator::new().unwrap();
    let top = pcpu.root().create("top").unwrap();
    in_one_tree(&pcpu, &top);
    assert_eq!((top.current(), top.nr_dying_descendants()), (0, 0));
    drop((top, pcpu));

    let mut times = 0;
    takes_no_more("a tree that is dropped with all that is in it", || {
        times += 1;
        if times % 20 != 0 {
            return; // a tree is slow
        }
        let pcpu = PerCpuAllocator::new().unwrap();
        let parent = pcpu.root().create("parent").unwrap();
        let [one, two] = ["one", "two"].map(|name| parent.create(name).unwrap());
        let charge = one.charge(1000).unwrap();
        drop(two.charge(1000).unwrap());
        let labelled = one.charge(10).unwrap().labelled("rows");
        let area: PerCpu<u64> = {
            let _in = one.enter();
            PerCpu::zeroed_in(&pcpu, Gfp::KERNEL_ACCOUNT).unwrap()
        };
        // The thread stays attached until it is attached to another one.
        one.attach_thread().unwrap();
        let inherited = two.charge(10).unwrap();
        two.remove().unwrap();
        drop((pcpu, parent, one, two, area));
        charge.grow(10).unwrap();
        drop((charge, inherited, labelled));
    });
}
