//! What is charged ahead: never past a bound, and never so that others are disturbed.

use percpu_memcg::{Gfp, Limit, Memcg};

use crate::{stay, tenant};

const MOST: u64 = 1 << 20;

/// Two cgroups below one that once used much, so that its peak is in nobody's way. The first has
/// a stock, which anything that comes to a bound of the parent empties.
fn siblings() -> (percpu_memcg::PerCpuAllocator, Memcg, [Memcg; 2]) {
    stay();
    let (pcpu, top) = tenant();
    let both = ["idle", "busy"].map(|name| top.create(name).unwrap());
    for memcg in &both {
        drop(memcg.charge(MOST).unwrap());
    }
    top.drain();
    drop(both[0].charge(1000).unwrap());
    drop(both[0].charge(500).unwrap());
    assert!(both[0].cached() >= 1000, "a stock to lose");
    (pcpu, top, both)
}

/// Charges that leave usage within `high` do not come to it by what they take ahead.
#[test]
fn nothing_is_charged_ahead_past_high() {
    for step in [1, 48, 500, 1000, 3000] {
        let (_pcpu, top, [idle, busy]) = siblings();
        let cached = idle.cached();
        let high = top.current() + cached + 20_000;
        top.set_high(Limit::bytes(high)).unwrap();
        let held = busy.charge(0).unwrap();
        while held.bytes() + step <= 20_000 {
            held.grow(step).unwrap();
            assert!(top.current() + top.cached() <= high, "{} bytes held", held.bytes());
            // Above `high` all stocks would have been emptied.
            assert_eq!(idle.cached(), cached, "{} bytes held", held.bytes());
        }
        assert_eq!(top.events().high, 0);
    }
}

/// A charge that fits is not refused, nor told about, because of what others are ahead of it.
#[test]
fn nothing_is_charged_ahead_past_max() {
    for step in [1, 48, 500, 1000, 3000] {
        let (_pcpu, top, [idle, busy]) = siblings();
        let cached = idle.cached();
        let max = top.current() + cached + 20_000;
        top.set_max(Limit::bytes(max)).unwrap();
        let held = busy.charge(0).unwrap();
        while held.bytes() + step <= 20_000 {
            held.grow_with(step, Gfp::NOWAIT).unwrap();
            assert!(top.current() + top.cached() <= max, "{} bytes held", held.bytes());
            assert_eq!(idle.cached(), cached, "{} bytes held", held.bytes());
        }
        assert_eq!(top.events().max, 0);
    }
}

/// The peak is that of what was in use, to the byte, however it was charged.
#[test]
fn nothing_is_charged_ahead_past_the_peak() {
    stay();
    let (_pcpu, memcg) = tenant();
    let (held, mut most) = (memcg.charge(0).unwrap(), 0);
    for nth in 0..500_u64 {
        let bytes = (nth * 7919) % 5000;
        if nth % 3 == 2 {
            held.shrink(held.bytes() / 2).unwrap();
        } else {
            held.grow(bytes).unwrap();
        }
        most = most.max(held.bytes());
        assert_eq!(memcg.peak(), most, "step {nth}");
    }
}

/// Below all bounds, a charge is paid by a stock that an earlier one has filled.
#[test]
fn charges_are_ahead_where_there_is_room() {
    stay();
    let (_pcpu, memcg) = tenant();
    drop(memcg.charge(MOST).unwrap());
    memcg.drain();
    let held = memcg.charge(48).unwrap();
    let cached = memcg.cached();
    assert!(cached >= 256, "{cached}: a part of a grant");
    let more = memcg.charge(cached).unwrap();
    assert_eq!(memcg.cached(), 0, "all of it was used, and nothing else was charged");
    // Exactly as much as there is room for.
    memcg.drain();
    memcg.set_max(Limit::bytes(memcg.current() + 48 + cached)).unwrap();
    let third = memcg.charge(48).unwrap();
    assert_eq!(memcg.cached(), cached, "up to the limit itself");
    memcg.drain();
    memcg.set_max(Limit::bytes(memcg.current() + 48 + cached - 1)).unwrap();
    let fourth = memcg.charge(48).unwrap();
    assert_eq!(memcg.cached(), 0, "there is a byte less");
    drop((held, more, third, fourth));
}

/// As far as the peak and not a byte further; likewise for `high`.
#[test]
fn charges_are_ahead_up_to_the_bound_itself() {
    stay();
    for by_high in [false, true] {
        for missing in [0, 1] {
            let (_pcpu, memcg) = tenant();
            drop(memcg.charge(MOST).unwrap());
            memcg.drain();
            let ahead = {
                let _held = memcg.charge(48).unwrap();
                memcg.cached()
            };
            memcg.drain();
            let room = 48 + ahead - missing;
            let held = memcg.charge(MOST - room).unwrap();
            memcg.drain();
            if by_high {
                drop(memcg.charge_forced(room + 1000));
                memcg.drain();
                memcg.set_high(Limit::bytes(MOST)).unwrap();
            }
            let (peak, highs) = (memcg.peak(), memcg.events().high);
            let more = memcg.charge(48).unwrap();
            let expected = if missing == 0 { ahead } else { 0 };
            assert_eq!(memcg.cached(), expected, "by high: {by_high}, {missing} missing");
            assert_eq!((memcg.peak(), memcg.events().high), (peak, highs));
            drop((held, more));
        }
    }
}

/// Above `max` and `high` there is nothing ahead, nothing is kept, and what others had is empty.
#[test]
fn no_stock_holds_anything_above_a_bound() {
    for set in [Memcg::set_max, Memcg::set_high] {
        let (_pcpu, top, [idle, busy]) = siblings();
        set(&top, Limit::bytes(top.current() + 10_000)).unwrap();
        let held = busy.charge_with(10_001, Gfp::ATOMIC).unwrap();
        assert_eq!((top.cached(), idle.cached()), (0, 0), "what others had");
        for payer in [&busy, &idle, &top] {
            for bytes in [0, 1, 1000, 100_000] {
                drop(payer.charge_with(bytes, Gfp::ATOMIC).unwrap());
                assert_eq!(top.cached(), 0, "{bytes} bytes of {payer:?}");
            }
        }
        // A bound that is lowered below usage empties them as well.
        set(&top, Limit::MAX).unwrap();
        drop(idle.charge(1000).unwrap());
        assert!(top.cached() > 0);
        set(&top, Limit::bytes(top.current() - 1)).unwrap();
        assert_eq!(top.cached(), 0);
        drop(held);
    }
}

/// What is uncharged above a bound does not stay ahead, however it was charged.
#[test]
fn what_is_uncharged_above_a_bound_is_kept_nowhere() {
    for set in [Memcg::set_max, Memcg::set_high] {
        let (_pcpu, top, [_idle, busy]) = siblings();
        let held = busy.charge(200_000).unwrap();
        drop(busy.charge(5000).unwrap());
        set(&top, Limit::bytes(1)).unwrap();
        for bytes in [1, 1000, 30_000] {
            held.shrink(bytes).unwrap();
            assert_eq!(top.cached(), 0, "{bytes} bytes");
        }
    }
}

/// A forced charge may exceed limits above the one that it met first.
#[test]
fn forced_charges_empty_the_stocks_below_limits_they_exceed() {
    let (_pcpu, top, [idle, busy]) = siblings();
    top.set_max(Limit::bytes(top.current() + idle.cached() + 1000)).unwrap();
    busy.set_max(Limit::bytes(0)).unwrap();
    assert!(idle.cached() > 0);
    let held = busy.charge_forced(2000 + idle.cached());
    assert_eq!((top.cached(), idle.cached()), (0, 0));
    drop(held);
}
