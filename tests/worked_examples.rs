//! A table of limits, flags and what they must come to: worked examples of charging, in bytes.
//!
//! The kernel's numbers are in pages and count attempts; here a refused call raises one `max` and at
//! most one `oom`, peaks count what was granted, and callers that may not block raise `max`, too.

use percpu_memcg::{Gfp, Limit, Memcg, PerCpuAllocator};

const PAGE: u64 = 4096;

fn chain() -> (PerCpuAllocator, [Memcg; 3]) {
    let pcpu = PerCpuAllocator::new().unwrap();
    let a = pcpu.root().create("a").unwrap();
    let b = a.create("b").unwrap();
    let c = b.create("c").unwrap();
    (pcpu, [a, b, c])
}

/// One more page where four of four are used: flags, pages asked for, granted, `max`, `oom`.
const NOTHING_HELPS: &[(Gfp, u64, bool, u64, u64)] = &[
    (Gfp::KERNEL, 1, false, 1, 1),
    (Gfp::KERNEL.union(Gfp::NORETRY), 1, false, 1, 0),
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
    drop(c.charge(64 * PAGE).unwrap()); // into the stock
    let other = b.create("other").map(|other| other.charge(60 * PAGE).unwrap()).unwrap();
    assert_eq!(a.events().max, 0, "no event when stocks are enough");
    drop(other);
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
