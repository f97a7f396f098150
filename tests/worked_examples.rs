//! Worked examples of charging, as tables, in bytes.
//!
//! A chain root, A, B, C on four CPUs; the thread is in C and stays on one CPU. There is nothing to
//! reclaim and nobody to kill. The kernel's numbers are in pages and count attempts; here a refused
//! call raises one `max` and at most one `oom`, peaks count what was granted, and callers that may
//! not block raise `max`, too. The stock is not in use: where the kernel charges 64 pages for the
//! first object, `current` is what the object costs.

use std::alloc::Layout;
use std::sync::Arc;

use parking_lot::Mutex;
use percpu_memcg::allocator::PcpuPtr;
use percpu_memcg::machine::{CpuId, NodeId};
use percpu_memcg::{Gfp, Limit, Machine, Memcg, PerCpuAllocator};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;

/// What is left in a stock that was filled or emptied: half of the kernel's 64 pages.
const HALF: u64 = 32 * PAGE;

/// So many CPUs, with the first that this process may use among them.
fn machine(cpus: usize) -> Machine {
    let this = core_affinity::get_core_ids().unwrap()[0];
    assert!(core_affinity::set_for_current(this));
    let this = this.id as u32;
    let all = (0..).filter(|cpu| *cpu != this).take(cpus - 1).chain([this]).map(CpuId::new);
    Machine::builder().node(NodeId::new(0), all).build().unwrap()
}

fn chain_on(cpus: usize) -> (PerCpuAllocator, [Memcg; 3]) {
    let pcpu = PerCpuAllocator::builder().machine(machine(cpus)).build().unwrap();
    let a = pcpu.root().create("a").unwrap();
    let b = a.create("b").unwrap();
    let c = b.create("c").unwrap();
    (pcpu, [a, b, c])
}

fn chain() -> (PerCpuAllocator, [Memcg; 3]) {
    chain_on(4)
}

/// So many objects are allocated or freed, or the stocks are drained; then C and its ancestors use
/// `.1` bytes, have `.2` in stocks and a peak of `.3`.
type Step = (Do, u64, u64, u64);

enum Do {
    Alloc(usize),
    Free(usize),
    Drain,
}

use Do::{Alloc, Drain, Free};

/// Takes the steps with objects of `size` bytes that cost `full`, after C used `before` bytes.
fn run(cpus: usize, before: u64, size: usize, full: u64, steps: &[Step]) {
    let (pcpu, [a, b, c]) = chain_on(cpus);
    let chain = [&a, &b, &c];
    drop(c.charge(before).unwrap());
    a.drain();
    // The statistics of B and C, which are charged to their parents.
    let own = chain.map(Memcg::current);
    let peaks_before = chain.map(Memcg::peak);
    c.attach_thread().unwrap();
    let mut live: Vec<PcpuPtr> = Vec::new();
    for (nth, (step, current, cached, peak)) in steps.iter().enumerate() {
        match *step {
            Alloc(count) => {
                let layout = Layout::from_size_align(size, 8).unwrap();
                let alloc = || pcpu.alloc(layout, Gfp::KERNEL_ACCOUNT).unwrap();
                live.extend(std::iter::repeat_with(alloc).take(count));
            }
            Free(count) => {
                // SAFETY: of this allocator, and no reference to them was ever made.
                live.drain(..count).for_each(|ptr| unsafe { pcpu.free(ptr).unwrap() });
            }
            Drain => drop(a.drain()),
        }
        let percpu = live.len() as u64 * full;
        for (level, memcg) in chain.into_iter().enumerate() {
            let path = memcg.path();
            assert_eq!(memcg.current(), own[level] + current, "step {nth}: {path}");
            assert_eq!(memcg.cached(), *cached, "step {nth}: {path}");
            let peak = peaks_before[level].max(own[level] + peak);
            assert_eq!(memcg.peak(), peak, "step {nth}: {path}");
            assert_eq!(memcg.stat().percpu, own[level] + percpu, "step {nth}: {path}");
        }
        assert_eq!(percpu, *current, "nothing is in use but objects");
    }
    pcpu.root().attach_thread().unwrap();
    assert!(live.is_empty(), "the last step frees the rest");
}

#[test]
fn examples_1_to_3_objects_of_48_bytes() {
    let steps = [
        (Alloc(1), 48, 0, 48),
        (Alloc(84), 4080, 0, 4080),
        (Alloc(1), 4128, 0, 4128),
        // What is freed goes into the stock. No page is kept for it, and none given back.
        (Free(1), 4080, 48, 4128),
        (Free(85), 0, 4128, 4128),
        (Alloc(2), 96, 4032, 4128),
        (Free(1), 48, 4080, 4128),
        (Drain, 48, 0, 4128),
        (Free(1), 0, 48, 4128),
        (Drain, 0, 0, 4128),
    ];
    run(4, 0, 8, 48, &steps);
}

/// Half of the grant is charged ahead where that makes no peak. The grant begins with 1 KiB and
/// doubles at the 12th, the 34th and the 77th object, when the stock is used up.
#[test]
fn examples_1_to_3_with_a_batch() {
    let steps = [
        (Alloc(1), 48, 512, 0),
        (Alloc(85), 4128, 4096 - 9 * 48, 0),
        (Free(86), 0, 4096 + 77 * 48, 0),
        (Alloc(1), 48, 4096 + 76 * 48, 0),
        (Free(1), 0, 4096 + 77 * 48, 0),
        (Drain, 0, 0, 0),
        // It begins again with 1 KiB.
        (Alloc(1), 48, 512, 0),
        (Free(1), 0, 560, 0),
    ];
    run(4, MIB, 8, 48, &steps);
}

#[test]
fn example_4_objects_larger_than_a_page() {
    let steps = [
        (Alloc(1), 6144, 0, 6144),
        (Alloc(3), 24576, 0, 24576),
        (Free(1), 18432, 6144, 24576),
        (Free(3), 0, 24576, 24576),
        (Alloc(4), 24576, 0, 24576),
        (Free(4), 0, 24576, 24576),
        (Drain, 0, 0, 24576),
    ];
    run(4, 0, 1024, 6144, &steps);
}

/// A stock never holds more than a batch, of whatever size what is freed is.
#[test]
fn example_4_frees_beyond_a_batch() {
    let steps = [
        (Alloc(80), 80 * 6144, 0, 80 * 6144),
        (Free(42), 38 * 6144, 42 * 6144, 80 * 6144),
        // 43 would be more than 64 pages: half of that stays.
        (Free(1), 37 * 6144, HALF, 80 * 6144),
        (Free(22), 15 * 6144, HALF, 80 * 6144),
        (Alloc(21), 36 * 6144, HALF - 21 * 6144, 80 * 6144),
        // It holds less than the object costs: half a batch is charged ahead, below the peak.
        (Alloc(1), 37 * 6144, HALF, 80 * 6144),
        (Free(37), 0, HALF + 15 * 6144, 80 * 6144),
    ];
    run(4, 0, 1024, 6144, &steps);
}

#[test]
fn example_4_an_object_larger_than_a_batch() {
    let steps = [(Alloc(1), 327_680, 0, 327_680), (Free(1), 0, 0, 327_680)];
    run(8, 0, 32768, 327_680, &steps);
    let steps = [(Alloc(1), 327_680, 0, 0), (Free(1), 0, 0, 0)];
    run(8, MIB, 32768, 327_680, &steps);
}

/// One more page where four of four are used: flags, pages asked for, granted, `max`, `oom`.
const NOTHING_HELPS: &[(Gfp, u64, bool, u64, u64)] = &[
    (Gfp::KERNEL, 1, false, 1, 1),
    (Gfp::KERNEL.union(Gfp::NORETRY), 1, false, 1, 0),
    (Gfp::KERNEL.union(Gfp::RETRY_MAYFAIL), 1, false, 1, 0),
    (Gfp::NOWAIT, 1, false, 1, 0),
    (Gfp::ATOMIC, 1, true, 1, 0),
    (Gfp::KERNEL.union(Gfp::NOFAIL), 1, true, 1, 1),
    (Gfp::KERNEL, 9, false, 1, 0), // too much for an OOM
];

#[test]
fn example_7_nothing_helps() {
    for &(gfp, pages, is_granted, max, oom) in NOTHING_HELPS {
        let (_pcpu, [a, b, c]) = chain();
        let own = b.current();
        b.set_max(Limit::bytes(own + 4 * PAGE)).unwrap();
        let held = c.charge(4 * PAGE).unwrap();
        let more = c.charge_with(pages * PAGE, gfp);
        assert_eq!(more.is_ok(), is_granted, "{gfp:?}");
        let used = if is_granted { 4 + pages } else { 4 };
        assert_eq!(c.current(), used * PAGE, "{gfp:?}");
        assert_eq!(c.peak(), used * PAGE, "nothing was ever charged ahead of a limit");
        for (events, counted) in [
            (b.events(), true),
            (b.events_local(), true),
            (a.events(), true),
            (a.events_local(), false),
            (c.events(), false),
        ] {
            let meant = if counted { (max, oom) } else { (0, 0) };
            assert_eq!((events.max, events.oom), meant, "{gfp:?}");
        }
        drop((held, more));
    }
}

#[test]
fn example_5_a_batch_that_does_not_fit_is_no_event_and_no_peak() {
    let (_pcpu, [a, b, c]) = chain();
    let (own_a, own_b) = (a.current(), b.current());
    a.set_max(Limit::bytes(own_a + 100 * PAGE)).unwrap();
    let charges = [c.charge(48).unwrap(), c.charge(48).unwrap()];
    assert_eq!((c.peak(), b.peak() - own_b, a.peak() - own_a), (96, 96, 96));
    assert_eq!(a.events().max, 0);
    drop(charges);
}

#[test]
fn example_6_a_drain_rescues() {
    let (_pcpu, [a, b, c]) = chain();
    let own = a.current();
    a.set_max(Limit::bytes(own + 65 * PAGE)).unwrap();
    drop(c.charge(64 * PAGE).unwrap());
    assert_eq!((a.current() - own, c.cached()), (0, 64 * PAGE), "in the stock");
    let other = b.create("other").unwrap();
    let charge = other.charge(60 * PAGE).unwrap();
    assert_eq!(a.events().max, 0, "no event when stocks are enough");
    let words = a.current() - own - 60 * PAGE;
    assert!(words > 0 && words < PAGE, "of the new cgroup");
    assert_eq!((other.current(), c.cached(), a.cached()), (60 * PAGE, 0, 0), "all was drained");
    // What C's stock held when the other cgroup was created counts in a peak of A.
    assert_eq!((a.peak(), c.peak()), (own + 64 * PAGE + words, 64 * PAGE));
    // Five pages are left, but for the words of the new cgroup.
    assert!(c.try_charge(5 * PAGE).is_err());
    drop(c.try_charge(5 * PAGE - words).unwrap());
    drop(charge);
}

#[test]
fn examples_9_and_10_objects_outlive_their_cgroup() {
    let (_pcpu, [a, b, c]) = chain();
    let (own_a, own_b) = (a.current(), b.current());
    let objects = [48, 48, 48].map(|bytes| c.charge(bytes).unwrap());
    c.remove().unwrap();
    drop(c);
    assert_eq!(b.nr_dying_descendants(), 0);
    // C's statistics went with it.
    assert_eq!((b.current(), a.current()), (144, own_a - own_b + 144));
    drop(objects);
    a.drain();
    assert_eq!((b.current(), a.current(), a.cached()), (0, own_a - own_b, 0));
}

/// `high` of C and what it holds, in pages; what it charges then, in bytes; the delay for that.
const ABOVE_HIGH: &[(u64, u64, u64, f64)] = &[
    // One object comes nowhere near: nothing is charged ahead for it.
    (32, 0, 48, 0.0),
    // 64 pages, as the kernel does for it: twice what it may, 1 s a page, of which 2 s at most.
    (32, 0, 64 * PAGE, 2.0),
    (25_600, 28_160 - 64, 64 * PAGE, 0.64),
];

#[test]
fn example_8_high() {
    for &(high, held, bytes, seconds) in ABOVE_HIGH {
        let (_pcpu, [a, b, c]) = chain();
        let held = c.charge(held * PAGE).unwrap();
        c.set_high(Limit::bytes(high * PAGE)).unwrap();
        let events_before = c.events().high;
        let delays = Arc::new(Mutex::new(Vec::new()));
        let callback = c.on_high({
            let delays = Arc::clone(&delays);
            move |over| delays.lock().push(over.delay.as_secs_f64())
        });
        let charge = c.charge(bytes).unwrap();
        let is_above = seconds > 0.0;
        let delays = std::mem::take(&mut *delays.lock());
        assert_eq!(delays.len(), usize::from(is_above));
        assert!(delays.iter().all(|delay| (delay - seconds).abs() < 1e-4), "{delays:?}");
        // The kernel counts 17 attempts.
        assert_eq!(c.events().high - events_before, u64::from(is_above));
        assert_eq!(c.events(), c.events_local());
        for above in [&b, &a] {
            assert_eq!((above.events().high, above.events_local().high), (c.events().high, 0));
        }
        assert_eq!(c.events().max, 0, "it refuses nothing");
        drop((callback, charge, held));
    }
}

/// Cgroups that use this CPU in turn. A CPU has 2 MiB for grants, of which the smallest are 1 KiB; B
/// has some of it for what its children's words cost.
const IN_TURN: &[usize] = &[1, 7, 8, 9, 20, 1000, 1500, 2047, 2048, 2049, 3000];

#[test]
fn example_11_more_cgroups_than_a_cpu_has_grants() {
    for &cgroups in IN_TURN {
        let (_pcpu, [a, b, _c]) = chain();
        let members: Vec<Memcg> =
            (0..cgroups).map(|nth| b.create(&format!("m{nth}")).unwrap()).collect();
        b.drain();
        let own = b.current();
        for _round in 0..2 {
            members.iter().for_each(|memcg| drop(memcg.charge(48).unwrap()));
            for (nth, memcg) in members.iter().enumerate() {
                assert_eq!(memcg.current(), 0, "{nth} of {cgroups}");
                assert!(memcg.cached() <= 2 * 48, "{nth} of {cgroups}");
            }
            let (least, most) = (cgroups.min(1500) as u64 * 48, cgroups as u64 * 2 * 48);
            assert!((least..=most).contains(&b.cached()), "{} by {cgroups}", b.cached());
            assert_eq!((b.current(), a.cached()), (own, b.cached()), "{cgroups}");
            assert!(b.peak() <= own + (2 << 20) * 4, "what was in stocks");
        }
    }
}

/// Children of B: `min` and usage in MiB, and what a hook there is asked for at first.
const PROTECTED: &[(&str, u64, u64, Option<u64>)] = &[
    ("c", 75, 50, Some(50 * MIB - 34_952_533)), // 33.3 MiB are protected
    ("d", 25, 50, Some(50 * MIB - 17_476_266)), // 16.7 MiB
    ("e", 0, 50, Some(50 * MIB)),
    ("f", 500, 0, None), // has nothing
];

#[test]
fn example_12_protection_is_shared() {
    let (_pcpu, [a, b, c]) = chain();
    c.remove().unwrap();
    b.set_min(Limit::bytes(50 * MIB)).unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let children: Vec<_> = PROTECTED
        .iter()
        .map(|&(name, min, usage, _)| {
            let child = b.create(name).unwrap();
            child.set_min(Limit::bytes(min * MIB)).unwrap();
            let hook = child.on_reclaim(0, {
                let asked = Arc::clone(&asked);
                move |request| {
                    asked.lock().push((request.memcg.name().to_owned(), request.bytes));
                    0
                }
            });
            (child.charge(usage * MIB).unwrap(), hook)
        })
        .collect();
    assert!(a.reclaim(1 << 40).is_err(), "they gave nothing");
    let expected = PROTECTED.iter().filter_map(|&(name, _, _, asked)| Some((name.into(), asked?)));
    assert_eq!(*asked.lock(), expected.collect::<Vec<(String, u64)>>());
    drop(children);
}
