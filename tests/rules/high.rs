//! What a charge above `high` causes, and what it does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use percpu_memcg::cgroup::Registration;
use percpu_memcg::{Charge, Gfp, Limit, Memcg};

use crate::{stay, tenant};

const HIGH: u64 = 32_768;

/// With usage an eighth above `high`, a page costs a 64th of a second.
const PAGE_AT_AN_EIGHTH: Duration = Duration::from_nanos(1_000_000_000 / 64);

/// Counts the calls of a hook that gives nothing.
fn count_hook(memcg: &Memcg) -> (Arc<AtomicU64>, Registration) {
    let calls = Arc::new(AtomicU64::new(0));
    let hook = memcg.on_reclaim(0, {
        let calls = Arc::clone(&calls);
        move |_| {
            calls.fetch_add(1, Relaxed);
            0
        }
    });
    (calls, hook)
}

#[test]
fn usage_that_equals_high_is_not_above_it() {
    let (_pcpu, memcg) = tenant();
    memcg.set_high(Limit::bytes(HIGH)).unwrap();
    let calls = Arc::new(AtomicU64::new(0));
    let _callback = memcg.on_high({
        let calls = Arc::clone(&calls);
        move |event| {
            assert_eq!((event.usage, event.high), (HIGH + 1, Limit::bytes(HIGH)));
            calls.fetch_add(1, Relaxed);
        }
    });
    let held = memcg.charge(HIGH).unwrap();
    assert_eq!((memcg.events().high, calls.load(Relaxed)), (0, 0));
    let more = memcg.charge(1).unwrap();
    assert_eq!((memcg.events().high, calls.load(Relaxed)), (1, 1));
    drop((held, more));
}

#[test]
fn every_level_above_high_is_told_whichever_was_charged() {
    let (_pcpu, top) = tenant();
    let middle = top.create("middle").unwrap();
    let leaf = middle.create("leaf").unwrap();
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let _callbacks = [&top, &middle, &leaf].map(|memcg| {
        let told = Arc::clone(&told);
        memcg.on_high(move |event| told.lock().push(event.memcg.path()))
    });
    top.set_high(Limit::bytes(HIGH)).unwrap();
    leaf.set_high(Limit::bytes(HIGH)).unwrap();
    let held = leaf.charge(2 * HIGH).unwrap();
    assert_eq!(*told.lock(), ["/tenant/middle/leaf", "/tenant"]);
    let local = [&leaf, &middle, &top].map(|memcg| memcg.events_local().high);
    assert_eq!(local, [1, 0, 1]);
    assert_eq!([&leaf, &middle, &top].map(|memcg| memcg.events().high), [1, 1, 2]);
    drop(held);
}

#[test]
fn only_a_charge_that_may_block_reclaims_above_high() {
    for (gfp, calls) in [
        (Gfp::KERNEL, 1),
        (Gfp::KERNEL | Gfp::NORETRY, 1),
        (Gfp::NOWAIT, 0),
        (Gfp::ATOMIC, 0),
        (Gfp::NOWAIT | Gfp::NOFAIL, 0),
    ] {
        let (_pcpu, memcg) = tenant();
        memcg.set_high(Limit::bytes(HIGH)).unwrap();
        let held = memcg.charge(HIGH).unwrap();
        let (hooks, _hook) = count_hook(&memcg);
        let more = memcg.charge_with(100, gfp).unwrap();
        assert_eq!((hooks.load(Relaxed), memcg.events().high), (calls, 1), "{gfp:?}");
        drop((held, more));
    }
}

#[test]
fn callbacks_end_when_usage_is_within_high_again() {
    let (_pcpu, memcg) = tenant();
    memcg.set_high(Limit::bytes(HIGH)).unwrap();
    let cache = Arc::new(Mutex::new(Some(memcg.charge(HIGH).unwrap())));
    let calls: Arc<Mutex<Vec<&str>>> = Arc::default();
    let frees = |name: &'static str| {
        let (cache, calls) = (Arc::clone(&cache), Arc::clone(&calls));
        memcg.on_high(move |_| {
            calls.lock().push(name);
            drop(cache.lock().take());
        })
    };
    let _callbacks = ["first", "second"].map(frees);
    let held = memcg.charge(100).unwrap();
    assert_eq!(*calls.lock(), ["first"]);
    drop(held);
}

#[test]
fn a_callback_that_charges_is_not_called_by_itself() {
    let (_pcpu, memcg) = tenant();
    memcg.set_high(Limit::bytes(HIGH)).unwrap();
    let calls = Arc::new(AtomicU64::new(0));
    let _callback = memcg.on_high({
        let (memcg, calls) = (memcg.clone(), Arc::clone(&calls));
        move |_| {
            if calls.fetch_add(1, Relaxed) < 5 {
                drop(memcg.charge(1000).unwrap());
            }
        }
    });
    let held = memcg.charge(HIGH + 1).unwrap();
    assert_eq!(calls.load(Relaxed), 1);
    drop(held);
}

/// Bytes in stocks are drained before anybody hears of `high`.
#[test]
fn what_stocks_hold_is_not_above_high() {
    stay();
    let (_pcpu, top) = tenant();
    let [idle, busy] = ["idle", "busy"].map(|name| top.create(name).unwrap());
    drop(idle.charge(HIGH).unwrap());
    let cached = idle.cached();
    assert!(cached > 1000, "the end of a charge fills a stock");
    let (hooks, _hook) = count_hook(&busy);
    top.set_high(Limit::bytes(top.current() + cached)).unwrap();
    let held = busy.charge(cached).unwrap();
    assert_eq!((top.events().high, hooks.load(Relaxed)), (0, 0));
    assert_eq!(top.current(), top.high().get().unwrap());
    drop(held);
}

/// The last charge left each level an eighth or less above `high`.
fn an_eighth_above(levels: &[&Memcg]) -> [Charge; 2] {
    let leaf = levels[0];
    let held = leaf.charge(HIGH).unwrap();
    leaf.set_high(Limit::bytes(HIGH)).unwrap();
    for level in &levels[1..] {
        level.set_high(Limit::bytes(level.current())).unwrap();
    }
    [held, leaf.charge(4096).unwrap()]
}

#[test]
fn a_throttling_waits_for_what_was_charged_above_high_once() {
    let (_pcpu, top) = tenant();
    let middle = top.create("middle").unwrap();
    let leaf = middle.create("leaf").unwrap();
    // What children cost is charged above the leaf, where the excess is smaller by that.
    let held = an_eighth_above(&[&leaf, &middle, &top]);
    let before = [&leaf, &middle, &top].map(|memcg| memcg.events_local().high);
    assert_eq!(leaf.throttle(), PAGE_AT_AN_EIGHTH);
    let after = [&leaf, &middle, &top].map(|memcg| memcg.events_local().high);
    assert_eq!(after, before.map(|events| events + 1), "one event for a throttling and a level");
    assert_eq!(leaf.throttle(), Duration::ZERO, "it is served");
    assert_eq!([&middle, &top].map(Memcg::throttle), [Duration::ZERO; 2], "noted at the leaf");
    drop(held);
}

/// Two pages, one after the other.
#[test]
fn what_several_charges_added_above_high_is_waited_for_together() {
    let (_pcpu, memcg) = tenant();
    let held = an_eighth_above(&[&memcg]);
    let other = memcg.charge(4096).unwrap();
    drop(other);
    // Within an eighth again; both pages were charged above.
    assert_eq!(memcg.throttle(), 2 * PAGE_AT_AN_EIGHTH);
    drop(held);
}

/// Of a cgroup and its ancestors, the one that is furthest above counts, wherever it is.
#[test]
fn the_largest_excess_counts() {
    for top_is_worse in [false, true] {
        let (_pcpu, top) = tenant();
        let leaf = top.create("leaf").unwrap();
        let held = leaf.charge(9 * 4096).unwrap();
        let high = |memcg: &Memcg, eighths: u64| {
            // So that usage is that many eighths above.
            let high = memcg.current() * 8 / (8 + eighths);
            memcg.set_high(Limit::bytes(high)).unwrap();
        };
        let own = top.current() - leaf.current();
        high(&leaf, if top_is_worse { 1 } else { 3 });
        high(&top, if top_is_worse { 3 } else { 1 });
        let more = leaf.charge(4096).unwrap();
        let excess = |memcg: &Memcg| {
            let high = memcg.high().get().unwrap() as f64;
            (memcg.current() as f64 - high) / high
        };
        let largest = excess(&leaf).max(excess(&top));
        let expected = largest * largest;
        let found = leaf.throttle().as_secs_f64();
        assert!(
            (found - expected).abs() < expected / 100.0,
            "{found} {expected}, {own} of its own"
        );
        drop((held, more));
    }
}

/// The delay that a callback is told is that of the charge.
#[test]
fn a_callback_is_told_the_delay_of_this_charge() {
    let (_pcpu, memcg) = tenant();
    let delays: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let _callback = memcg.on_high({
        let delays = Arc::clone(&delays);
        move |event| delays.lock().push(event.delay)
    });
    let held = an_eighth_above(&[&memcg]);
    assert_eq!(*delays.lock(), [PAGE_AT_AN_EIGHTH]);
    drop(held);
}

#[test]
fn lowering_high_empties_stocks_and_reclaims_what_is_above() {
    stay();
    let (_pcpu, memcg) = tenant();
    let cache = Arc::new(Mutex::new(memcg.charge(HIGH).unwrap()));
    drop(memcg.charge(HIGH).unwrap());
    assert!(memcg.cached() > 0);
    let asked: Arc<Mutex<Vec<u64>>> = Arc::default();
    let _hook = memcg.on_reclaim(0, {
        let (cache, asked) = (Arc::clone(&cache), Arc::clone(&asked));
        move |request| {
            asked.lock().push(request.bytes);
            // A part of it, so that it has to be asked again.
            let bytes = request.bytes.div_ceil(2);
            cache.lock().shrink(bytes).map_or(0, |()| bytes)
        }
    });
    memcg.set_high(Limit::bytes(HIGH)).unwrap();
    assert!(asked.lock().is_empty(), "only stocks were above");
    memcg.set_high(Limit::bytes(HIGH - 100)).unwrap();
    assert_eq!(memcg.cached(), 0);
    assert!(memcg.current() <= HIGH - 100, "{}", memcg.current());
    assert!(!asked.lock().is_empty());
}

/// A transfer is a charge where it goes to.
#[test]
fn a_transfer_above_high_is_told_where_usage_grew() {
    let (_pcpu, top) = tenant();
    let [from, to] = ["from", "to"].map(|name| top.create(name).unwrap());
    let mut charge = from.charge(HIGH + 1).unwrap();
    top.set_high(Limit::bytes(HIGH)).unwrap();
    to.set_high(Limit::bytes(HIGH)).unwrap();
    let before = top.events_local().high;
    charge.transfer_to(&to).unwrap();
    assert_eq!(to.events_local().high, 1);
    assert_eq!(top.events_local().high, before, "where nothing grew");
    assert_eq!(from.events().high, 0);
}

/// A hook may say that it freed something, and the excess stay as it was.
#[test]
fn a_throttling_raises_one_event_however_often_hooks_are_asked() {
    let (_pcpu, memcg) = tenant();
    let held = an_eighth_above(&[&memcg]);
    let calls = Arc::new(AtomicU64::new(0));
    let _hook = memcg.on_reclaim(0, {
        let calls = Arc::clone(&calls);
        move |_| calls.fetch_add(1, Relaxed) + 1
    });
    let before = memcg.events().high;
    assert_eq!(memcg.throttle(), PAGE_AT_AN_EIGHTH);
    assert!(calls.load(Relaxed) > 1);
    assert_eq!(memcg.events().high, before + 1);
    drop(held);
}
