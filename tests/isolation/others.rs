//! One tenant's hook or callback does not return. Other tenants do not notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use percpu_memcg::{Gfp, Limit, Memcg, PerCpuAllocator};

use crate::{Door, KIB, MIB, OpenAtEnd, PATIENCE, SLACK, duration, tenants, within};

/// Longer than any operation of another tenant may take because of the hook.
const NOTICED: Duration = Duration::from_millis(10);

/// A tenant that is full, whose hook does not return, and a thread that is inside of that hook.
fn hang(pcpu: &PerCpuAllocator, door: &Arc<Door>) -> thread::JoinHandle<()> {
    let tenant = pcpu.root().create("hangs").unwrap();
    tenant.set_max(Limit::bytes(MIB)).unwrap();
    let at_door = Arc::clone(door);
    tenant
        .on_reclaim(0, move |_| {
            at_door.pass();
            0
        })
        .detach();
    let thread = thread::spawn(move || {
        let _all = tenant.charge(MIB).unwrap();
        assert!(tenant.charge(1).is_err());
    });
    door.wait_until_reached();
    thread
}

/// Everything that a tenant does, again and again. Returns how many operations were slow.
fn work(pcpu: &PerCpuAllocator, name: &str, is_over: &AtomicBool) -> (u32, u32, Duration) {
    let region = pcpu.root().create(name).unwrap();
    let tenant = region.create("tenant").unwrap();
    // Of no help, so that every refusal asks both.
    let _hook = tenant.on_reclaim(0, |_| 0);
    let _callback = region.on_oom(|_| false);
    let (mut slow, mut all, mut longest) = (0, 0, Duration::ZERO);
    let mut timed = |operation: &mut dyn FnMut()| {
        let begin = Instant::now();
        operation();
        let time = begin.elapsed();
        all += 1;
        slow += u32::from(time > NOTICED);
        longest = longest.max(time);
    };
    while !is_over.load(Ordering::Relaxed) {
        let mut held = Vec::new();
        timed(&mut || tenant.set_max(Limit::bytes(MIB)).unwrap());
        timed(&mut || held.push(tenant.charge(MIB - 100).unwrap()));
        timed(&mut || assert!(tenant.charge(200).is_err()));
        timed(&mut || assert!(tenant.try_charge(200).is_err()));
        timed(&mut || held.push(tenant.charge_with(200, Gfp::KERNEL | Gfp::NOFAIL).unwrap()));
        timed(&mut || tenant.set_max(Limit::bytes(KIB)).unwrap());
        timed(&mut || tenant.set_high(Limit::bytes(KIB)).unwrap());
        timed(&mut || assert!(tenant.reclaim(1).is_err()));
        timed(&mut || tenant.set_high(Limit::MAX).unwrap());
        timed(&mut || region.set_max(Limit::bytes(KIB)).unwrap());
        timed(&mut || assert!(region.create("too much").is_err()));
        timed(&mut || region.set_max(Limit::MAX).unwrap());
        held.clear();
        let mut child = None;
        timed(&mut || child = Some(region.create("child").unwrap()));
        timed(&mut || child.take().unwrap().remove().unwrap());
        timed(&mut || drop(tenant.snapshot()));
        timed(&mut || _ = pcpu.root().stat());
        timed(&mut || assert_eq!(tenant.throttle(), Duration::ZERO));
    }
    (slow, all, longest)
}

/// The same work goes on in a tree without that hook. What is slow there is slow because of the
/// machine.
#[test]
fn a_hook_that_does_not_return_is_not_noticed_by_other_tenants() {
    let (door, pcpu, quiet) = (
        Arc::new(Door::default()),
        PerCpuAllocator::new().unwrap(),
        PerCpuAllocator::new().unwrap(),
    );
    let _open = OpenAtEnd(&door);
    let hanging = hang(&pcpu, &door);
    let is_over = AtomicBool::new(false);
    let (beside, alone) = thread::scope(|scope| {
        let run = |pcpu, name| {
            scope.spawn({
                let is_over = &is_over;
                move || work(pcpu, name, is_over)
            })
        };
        let threads = [run(&pcpu, "a"), run(&quiet, "a"), run(&pcpu, "b"), run(&quiet, "b")];
        thread::sleep(duration(Duration::from_secs(3), Duration::from_secs(30)));
        is_over.store(true, Ordering::Relaxed);
        let [a, quiet_a, b, quiet_b] = threads.map(|thread| thread.join().unwrap());
        ([a, b], [quiet_a, quiet_b])
    });
    let sum = |of: [(u32, u32, Duration); 2]| {
        (of[0].0 + of[1].0, of[0].1 + of[1].1, of[0].2.max(of[1].2))
    };
    let ((slow, all, longest), (slow_alone, all_alone, longest_alone)) = (sum(beside), sum(alone));
    println!("beside the hook: {slow} of {all} above {NOTICED:?}, the longest {longest:?}");
    println!("without it: {slow_alone} of {all_alone}, the longest {longest_alone:?}");
    assert!(all > 1000, "{all} operations");
    assert!(longest < Duration::from_secs(1).max(2 * longest_alone), "{longest:?}");
    assert!(slow <= 2 * slow_alone + 5, "{slow} of {all}, {slow_alone} of {all_alone} without it");
    door.open();
    hanging.join().unwrap();
}

#[test]
fn an_oom_callback_that_does_not_return_is_not_noticed_either() {
    let (pcpu, [hangs, other]) = tenants(["hangs", "other"]);
    let door = Arc::new(Door::default());
    let _open = OpenAtEnd(&door);
    let at_door = Arc::clone(&door);
    let _callback = hangs.on_oom(move |_| {
        at_door.pass();
        false
    });
    let calls = Arc::new(AtomicBool::new(false));
    let was_called = Arc::clone(&calls);
    let _other_callback = other.on_oom(move |_| {
        was_called.store(true, Ordering::Relaxed);
        false
    });
    let hanging = thread::spawn(move || {
        let _all = hangs.charge(MIB).unwrap();
        assert!(hangs.charge(1).is_err());
    });
    door.wait_until_reached();
    let begin = Instant::now();
    let all = other.charge(MIB).unwrap();
    assert!(other.charge(1).is_err());
    assert!(calls.load(Ordering::Relaxed), "its own callback is called");
    other.set_max(Limit::bytes(KIB)).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    drop(all);
    assert_eq!(other.remove(), Ok(()));
    door.open();
    hanging.join().unwrap();
    drop(pcpu);
}

/// A tenant below the one that hangs, and one beside it below the same parent.
#[test]
fn relatives_do_not_wait_for_a_hook_unless_they_need_its_memory() {
    let (_pcpu, [region]) = tenants(["region"]);
    let [hangs, below, beside] =
        [("hangs", MIB / 2), ("hangs/below", 1000), ("beside", 1000)].map(|(path, max)| {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            let memcg = region.find(parent).unwrap().create(name).unwrap();
            memcg.set_max(Limit::bytes(max)).unwrap();
            memcg
        });
    let door = Arc::new(Door::default());
    let _open = OpenAtEnd(&door);
    let at_door = Arc::clone(&door);
    let _hook = hangs.on_reclaim(0, move |_| {
        at_door.pass();
        0
    });
    let given = Arc::new(AtomicBool::new(false));
    let gives = Arc::clone(&given);
    let _own_hook = beside.on_reclaim(0, move |_| {
        gives.store(true, Ordering::Relaxed);
        0
    });
    let hanging = thread::spawn({
        let hangs = hangs.clone();
        move || {
            let _most = hangs.charge(MIB / 4).unwrap();
            assert!(hangs.charge(MIB / 2).is_err());
        }
    });
    door.wait_until_reached();
    let begin = Instant::now();
    assert!(below.charge(1001).is_err());
    let held = beside.charge(1000).unwrap();
    assert!(beside.charge(1).is_err());
    assert!(given.load(Ordering::Relaxed));
    below.set_max(Limit::bytes(10)).unwrap();
    beside.set_high(Limit::bytes(10)).unwrap();
    drop(held);
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    door.open();
    hanging.join().unwrap();
}

/// Threads that need memory of the very cgroup whose hook hangs wait, but not for ever.
#[test]
fn the_tenant_itself_is_refused_in_the_end() {
    let (_pcpu, [tenant]) = tenants(["tenant"]);
    let door = Arc::new(Door::default());
    let _open = OpenAtEnd(&door);
    let at_door = Arc::clone(&door);
    let hook = tenant.on_reclaim(0, move |_| {
        at_door.pass();
        0
    });
    let all = tenant.charge(MIB).unwrap();
    let hanging = thread::spawn({
        let tenant = tenant.clone();
        move || tenant.charge(1).is_err()
    });
    door.wait_until_reached();
    let operations: [fn(&Memcg) -> bool; 4] = [
        |tenant| tenant.charge(1).is_err(),
        |tenant| tenant.set_max(Limit::bytes(KIB)).is_ok(),
        |tenant| tenant.set_high(Limit::bytes(KIB)).is_ok(),
        |tenant| tenant.reclaim(1).is_err(),
    ];
    let threads = operations.map(|operation| {
        let tenant = tenant.clone();
        thread::spawn(move || within(PATIENCE + SLACK, move || operation(&tenant)))
    });
    assert!(tenant.try_charge(1).is_err(), "one that must not block does not wait at all");
    for thread in threads {
        assert!(thread.join().unwrap());
    }
    door.open();
    assert!(hanging.join().unwrap());
    drop((hook, all));
}

/// A hook that hangs in a thread of the tenant, which the tenant's other threads wait for.
fn hangs(tenant: &Memcg, door: &Arc<Door>) -> percpu_memcg::cgroup::Registration {
    let hook = {
        let door = Arc::clone(door);
        tenant.on_reclaim(0, move |_| {
            door.pass();
            0
        })
    };
    let memcg = tenant.clone();
    thread::spawn(move || memcg.reclaim(1).is_ok());
    door.wait_until_reached();
    hook
}

fn took<R>(work: impl FnOnce() -> R) -> Duration {
    let begin = Instant::now();
    work();
    begin.elapsed()
}

/// All waits of a call together are bounded, not each of them.
#[test]
fn a_call_waits_for_other_threads_no_longer_than_once() {
    let (_pcpu, [tenant]) = tenants(["tenant"]);
    let door = Arc::new(Door::default());
    let _open = OpenAtEnd(&door);
    let _all = tenant.charge(MIB).unwrap();
    let _hook = hangs(&tenant, &door);
    let _oom = tenant.on_oom(|_| false);
    let charge = took(|| assert!(tenant.charge(2000).is_err()));
    assert!(charge < PATIENCE + SLACK, "{charge:?}");
    let limit = took(|| tenant.set_max(Limit::bytes(MIB / 2)));
    assert!(limit < PATIENCE + SLACK, "{limit:?}");
}

/// A charge that no limit refuses waits for nobody.
#[test]
fn a_charge_above_high_does_not_wait_for_other_threads_hooks() {
    let (_pcpu, [tenant]) = tenants(["tenant"]);
    let door = Arc::new(Door::default());
    let _open = OpenAtEnd(&door);
    tenant.set_high(Limit::bytes(1000)).unwrap();
    let _used = tenant.charge(1000).unwrap();
    let _hook = hangs(&tenant, &door);
    let charges = took(|| drop([(); 20].map(|()| tenant.charge(5000).unwrap())));
    assert!(charges < Duration::from_secs(1), "{charges:?}");
}

/// A hook in which another thread is stuck is left out, also by a relative that needs memory above it.
#[test]
fn a_hook_in_which_a_thread_is_stuck_is_left_out() {
    let (pcpu, [org]) = tenants(["org"]);
    let [a, b] = ["a", "b"].map(|name| org.create(name).unwrap());
    let door = Arc::new(Door::default());
    let _open = OpenAtEnd(&door);
    let _used = a.charge(100 * KIB).unwrap();
    let _hook = hangs(&a, &door);
    thread::sleep(PATIENCE + Duration::from_millis(100));
    let other = b.charge(900 * KIB).unwrap();
    let bounded = within(SLACK, move || took(|| assert!(b.charge(500 * KIB).is_err())));
    assert!(bounded < SLACK, "{bounded:?}");
    drop((other, pcpu));
}

/// A thread that does not return from a hook keeps the hook, and not what other hooks have.
#[test]
fn a_hook_that_does_not_return_keeps_no_other_hook_of_the_same_cgroup() {
    let (pcpu, [org]) = tenants(["org"]);
    let [a, b] = ["a", "b"].map(|name| org.create(name).unwrap());
    let door = Arc::new(Door::default());
    let _open = OpenAtEnd(&door);
    let _used = a.charge(100 * KIB).unwrap();
    let at_door = Arc::clone(&door);
    let _hangs = a.on_reclaim(-1, move |_| {
        at_door.pass();
        0
    });
    let cache = Arc::new(Mutex::new(None));
    let cached = Arc::clone(&cache);
    let _frees = b.on_reclaim(0, move |_| {
        let entry: Option<percpu_memcg::Charge> = cached.lock().take();
        entry.map_or(0, |entry| entry.bytes())
    });
    let hanging = thread::spawn({
        let org = org.clone();
        move || org.reclaim(1).is_ok()
    });
    door.wait_until_reached();
    thread::sleep(PATIENCE + Duration::from_millis(300));
    for _ in 0..3 {
        let entry = b.charge(800 * KIB).unwrap();
        *cache.lock() = Some(entry);
        let b = b.clone();
        let bounded = within(PATIENCE + SLACK, move || took(|| drop(b.charge(500 * KIB).unwrap())));
        assert!(bounded < Duration::from_secs(1), "{bounded:?}");
    }
    // With nothing to free, the callback is asked. It is not asked twice at a time by those that go on.
    let asked = Arc::new(AtomicUsize::new(0));
    let calls = Arc::clone(&asked);
    let _oom = org.on_oom(move |_| {
        calls.fetch_add(1, Ordering::SeqCst);
        false
    });
    let bounded = took(|| assert!(b.charge(MIB - KIB).is_err() && b.charge(20 * KIB).is_ok()));
    assert!(bounded < Duration::from_secs(1), "{bounded:?}");
    let _rest = b.charge(800 * KIB).unwrap();
    let bounded = took(|| {
        let mut held = Vec::new();
        while let Ok(charge) = b.charge(20 * KIB) {
            held.push(charge);
        }
    });
    assert!(bounded < Duration::from_secs(1), "{bounded:?}");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    let bounded = took(|| org.set_max(Limit::bytes(MIB / 2)).unwrap());
    assert!(bounded < Duration::from_secs(1), "{bounded:?}");
    door.open();
    hanging.join().unwrap();
    drop(pcpu);
}

/// Threads that go on without the one that is stuck ask the same hooks in turns.
#[test]
fn a_hook_that_does_not_return_has_no_other_tenant_refused() {
    let (pcpu, [org]) = tenants(["org"]);
    let [x, a] = ["x", "a"].map(|name| org.create(name).unwrap());
    let door = Arc::new(Door::default());
    let _open = OpenAtEnd(&door);
    let _used = x.charge(100 * KIB).unwrap();
    let _hook = hangs(&x, &door);
    let cache = Arc::new(Mutex::new(Vec::new()));
    let cached = Arc::clone(&cache);
    let _frees = a.on_reclaim(0, move |_| {
        let entries: Vec<percpu_memcg::Charge> = std::mem::take(&mut *cached.lock());
        thread::sleep(Duration::from_micros(200));
        entries.iter().map(|entry| entry.bytes()).sum()
    });
    let reclaiming = {
        let org = org.clone();
        thread::spawn(move || org.reclaim(MIB).is_ok())
    };
    thread::sleep(PATIENCE + Duration::from_millis(300));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let entry = a.charge(100 * KIB).unwrap();
                    cache.lock().push(entry);
                }
            });
        }
    });
    cache.lock().clear();
    door.open();
    reclaiming.join().unwrap();
    drop(pcpu);
}
