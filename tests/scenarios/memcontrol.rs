//! `test_memcontrol.c`.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use percpu_memcg::error::TreeError;
use percpu_memcg::{Limit, Memcg, PerCpuAllocator};

use crate::memory::{Cache, Job};
use crate::{MIB, assert_close, cgroup};

#[test]
fn current_peak() {
    let (_pcpu, memcg) = cgroup("current_peak");
    let files = memcg.files();
    let number = |file: &str| files.read(file).unwrap().trim().parse::<u64>().unwrap();
    assert_eq!((number("memory.current"), number("memory.peak")), (0, 0));
    let job = Job::new(&memcg);
    job.alloc(50 * MIB).unwrap();
    assert_eq!((number("memory.current"), number("memory.peak")), (50 * MIB, 50 * MIB));
    job.end();

    let open = || files.open("memory.peak").unwrap();
    let [one, two, three] = [open(), open(), open()];
    for descriptor in [&one, &two, &three] {
        assert_eq!(descriptor.write("reset\n").unwrap(), 6);
    }
    assert_eq!(number("memory.peak"), 50 * MIB, "of a reader that resets nothing");
    drop(two);
    let four = open();
    four.write("reset\n").unwrap();
    let peak = |descriptor: &percpu_memcg::report::CgroupFile| {
        descriptor.read().unwrap().trim().parse::<u64>().unwrap()
    };
    assert_eq!(peak(&one), 0);

    let cache = Cache::new(&memcg);
    cache.read(50 * MIB).unwrap();
    assert_eq!((number("memory.current"), memcg.stat().charged), (50 * MIB, 50 * MIB));
    assert_eq!([number("memory.peak"), peak(&one), peak(&four)], [50 * MIB; 3]);
    drop((three, four));
}

/// A reader that was reset costs batches, as long as it is there.
#[test]
fn peaks_are_read_at_the_expense_of_batches() {
    let (_pcpu, memcg) = cgroup("memcg");
    drop(memcg.charge(MIB).unwrap());
    memcg.drain();
    let cached = || {
        memcg.drain();
        drop(memcg.charge(48).unwrap());
        memcg.cached()
    };
    let [one, two] = [memcg.peak_reader(), memcg.peak_reader()];
    assert!(cached() > 48, "a batch");
    [&one, &two].into_iter().for_each(percpu_memcg::cgroup::PeakReader::reset);
    drop(one);
    assert_eq!(cached(), 48);
    assert_eq!(two.read(), 48);
    drop(two);
    assert!(cached() > 48);
}

type SetProtection = fn(&Memcg, Limit) -> Result<(), TreeError>;

/// The tree of `min` and `low`: A limits, B protects 50 M of what its children C, D and E hold, F
/// claims much and has nothing, G is a neighbour that needs memory. Returns B to F, and G's last
/// charge.
fn protection(set: SetProtection, is_recursive: bool) -> ([Memcg; 5], bool) {
    let pcpu = PerCpuAllocator::builder().memory_recursiveprot(is_recursive).build().unwrap();
    let a = pcpu.root().create("a").unwrap();
    a.set_max(Limit::bytes(200 * MIB)).unwrap();
    let [b, g] = ["b", "g"].map(|name| a.create(name).unwrap());
    set(&b, Limit::bytes(50 * MIB)).unwrap();
    let children = ["c", "d", "e", "f"].map(|name| b.create(name).unwrap());
    for (child, protection) in children.iter().zip([75, 25, 0, 500]) {
        set(child, Limit::bytes(protection * MIB)).unwrap();
    }
    let caches = [0, 1, 2, 3].map(|child: usize| Cache::new(&children[child]));
    caches[..3].iter().for_each(|cache| cache.read(50 * MIB).unwrap());

    let job = Job::new(&g);
    job.alloc(148 * MIB).unwrap();
    assert_close(b.current(), 50 * MIB, 3);
    let usage = children.each_ref().map(Memcg::current);
    assert_close(usage[0], 29 * MIB, 15);
    assert_close(usage[1], 21 * MIB, 20);
    assert_eq!(usage[3], 0);
    job.end();

    let is_granted = job.alloc(170 * MIB).is_ok();
    let after = b.current();
    job.end();
    assert_close(after, if is_granted { 30 * MIB } else { 50 * MIB }, 3);

    // Its own protection does not keep memory from whoever reclaims from itself.
    let [c, d, e, f] = children;
    let excess = c.current() - 10 * MIB;
    c.files().write("memory.reclaim", &excess.to_string()).unwrap();
    assert_close(c.current(), 10 * MIB, 3);
    drop((pcpu, caches));
    ([b, c, d, e, f], is_granted)
}

#[test]
fn min() {
    for is_recursive in [false, true] {
        let ([_, c, ..], is_granted) = protection(Memcg::set_min, is_recursive);
        assert!(!is_granted, "what `min` protects is not given to anybody");
        let a = c.parent().and_then(|b| b.parent()).unwrap();
        assert_eq!(a.events().oom, 1, "where the kernel kills");
    }
}

#[test]
fn low() {
    for is_recursive in [false, true] {
        let ([_, c, d, e, f], is_granted) = protection(Memcg::set_low, is_recursive);
        assert!(is_granted, "`low` gives way when nothing else is left");
        let events = [&c, &d, &e, &f].map(Memcg::events);
        assert!(events[0].low > 0 && events[1].low > 0, "{events:?}");
        assert!(is_recursive || events[2].low == 0, "E has no effective protection");
        assert_eq!(events[3].low, 0, "F uses nothing");
        assert_eq!(events.map(|events| events.oom), [0; 4]);
    }
}

#[test]
fn high() {
    let (_pcpu, memcg) = cgroup("high");
    let files = memcg.files();
    assert_eq!(files.read("memory.high").unwrap(), "max\n");
    files.write("memory.high", "30M").unwrap();
    let job = Job::new(&memcg);
    job.alloc(31 * MIB).unwrap();
    assert_eq!(memcg.current(), 31 * MIB, "it refuses nothing");
    job.end();
    let cache = Cache::new(&memcg);
    cache.read(50 * MIB).unwrap();
    assert!(memcg.current() < 50 * MIB, "not all of it stays");
    assert_close(memcg.current(), 30 * MIB, 5);
    assert!(memcg.events().high > 0);
}

/// Somebody who allocates much at once is slowed down before he comes to `max`. The kernel has him
/// sleep when he returns to user space; here he calls `throttle` between pieces of work.
#[test]
fn high_sync() {
    let (_pcpu, memcg) = cgroup("high_sync");
    memcg.set_high(Limit::bytes(30 * MIB)).unwrap();
    memcg.set_max(Limit::bytes(140 * MIB)).unwrap();
    let mut watch = memcg.watch_events();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let hog = || {
            let job = Job::new(&memcg);
            for _ in 0..200 {
                job.alloc(MIB).unwrap();
                memcg.throttle();
                if is_over.load(Relaxed) {
                    break;
                }
            }
            job.bytes()
        };
        let hog = scope.spawn(hog);
        let events = watch.wait_timeout(Duration::from_secs(60)).expect("an event");
        is_over.store(true, Relaxed);
        assert!(events.high > 0);
        assert!(hog.join().unwrap() < 140 * MIB);
    });
    assert_eq!(memcg.events().max, 0);
}

#[test]
fn max() {
    let (_pcpu, memcg) = cgroup("max");
    let files = memcg.files();
    assert_eq!(files.read("memory.max").unwrap(), "max\n");
    files.write("memory.max", "30M").unwrap();
    let job = Job::new(&memcg);
    assert!(job.alloc(100 * MIB).is_err());
    assert_eq!((job.bytes(), memcg.current()), (30 * MIB, 30 * MIB));
    job.end();
    let cache = Cache::new(&memcg);
    cache.read(50 * MIB).unwrap();
    assert_close(memcg.current(), 30 * MIB, 5);
    assert!(memcg.current() > 0 && memcg.current() <= 30 * MIB);
    assert!(memcg.events().max > 0);
}

#[test]
fn reclaim() {
    let (_pcpu, memcg) = cgroup("reclaim");
    let cache = Cache::new(&memcg);
    cache.read(50 * MIB).unwrap();
    let job = Job::new(&memcg);
    job.alloc(5 * MIB).unwrap();
    let excess = memcg.current() - 30 * MIB;
    // The kernel's test tries again when it says EAGAIN; here hooks tell what they gave.
    memcg.files().write("memory.reclaim", &excess.to_string()).unwrap();
    assert!(memcg.current() <= 30 * MIB);
    assert_close(memcg.current(), 30 * MIB, 3);
    assert_eq!(job.bytes(), 5 * MIB);
    let too_much = memcg.files().write("memory.reclaim", "1G").unwrap_err();
    assert_eq!(too_much.errno(), libc::EAGAIN);
    assert_eq!((memcg.current(), cache.bytes()), (5 * MIB, 0));
}
