//! Above `high`, hooks are asked in batches.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use percpu_memcg::cgroup::Registration;
use percpu_memcg::{Charge, Gfp, Limit, Memcg, PerCpuAllocator};

use crate::{KIB, MIB};

const PIECE: u64 = 100;

fn memcg(high: u64) -> (PerCpuAllocator, Memcg) {
    let pcpu = PerCpuAllocator::new().unwrap();
    let memcg = pcpu.root().create("tenant").unwrap();
    memcg.set_high(Limit::bytes(high)).unwrap();
    (pcpu, memcg)
}

/// A cache with a hook that gives so much of what it is asked for, and counts the calls.
struct Cache {
    held: Arc<Mutex<Vec<Charge>>>,
    calls: Arc<AtomicU64>,
    _hook: Registration,
}

impl Cache {
    fn new(memcg: &Memcg, gives: fn(u64, u64) -> u64) -> Self {
        let held = Arc::new(Mutex::new(Vec::<Charge>::new()));
        let calls = Arc::new(AtomicU64::new(0));
        let (cached, count) = (Arc::clone(&held), Arc::clone(&calls));
        let _hook = memcg.on_reclaim(0, move |request| {
            count.fetch_add(1, Ordering::Relaxed);
            let above = request.memcg.current() - request.memcg.high().get().unwrap();
            let (wanted, mut freed) = (gives(request.bytes, above), 0);
            while freed < wanted {
                // Outside of the lock.
                let Some(charge) = cached.lock().pop() else { break };
                freed += charge.bytes();
            }
            freed
        });
        Cache { held, calls, _hook }
    }

    fn fill(&self, memcg: &Memcg, pieces: u64) {
        for _ in 0..pieces {
            let charge = memcg.charge(PIECE).unwrap();
            self.held.lock().push(charge);
        }
    }

    fn calls(&self) -> u64 {
        self.calls.swap(0, Ordering::Relaxed)
    }
}

/// From far below one page to far above 32, beside the constants of the code.
const HIGHS: [u64; 7] = [1000, 5000, 77_777, MIB, 3 * MIB + 1, 20 * MIB, 150 * MIB];

#[test]
fn hooks_that_give_nothing_are_asked_once_for_a_page_at_most() {
    for high in HIGHS {
        let (_pcpu, memcg) = memcg(high);
        let cache = Cache::new(&memcg, |_, _| 0);
        let _below = memcg.charge(high).unwrap();
        assert_eq!(cache.calls(), 0);
        let first = memcg.charge(1).unwrap();
        assert_eq!(cache.calls(), 1, "{high}: at once");
        cache.fill(&memcg, 10_000);
        let batch = (high / 32).clamp(4096, 32 * 4096);
        let (calls, most) = (cache.calls(), 10_000 * PIECE / batch);
        assert!(calls <= most && calls + 2 >= most, "{high}: {calls} calls, not {most}");
        assert!(memcg.events().high > 10_000, "each charge is an event");
        drop(first);
    }
}

#[test]
fn hooks_that_give_just_what_is_above_are_asked_once_for_batch() {
    for high in HIGHS {
        let (_pcpu, memcg) = memcg(high);
        let cache = Cache::new(&memcg, |_, above| above);
        cache.fill(&memcg, high / PIECE);
        cache.calls();
        cache.fill(&memcg, 10_000);
        let batch = (high / 32).clamp(4096, 32 * 4096);
        let (calls, most) = (cache.calls(), 10_000 * PIECE / batch + 1);
        assert!(calls <= most && calls > 0, "{high}: {calls} calls, not {most}");
        assert!(memcg.current() <= high + batch + PIECE, "{high}: {}", memcg.current());
    }
}

#[test]
fn hooks_that_give_what_they_are_asked_for_keep_usage_at_high() {
    for high in HIGHS.into_iter().filter(|high| *high >= 77_777) {
        let (_pcpu, memcg) = memcg(high);
        let cache = Cache::new(&memcg, |wanted, _| wanted);
        cache.fill(&memcg, high / PIECE);
        cache.calls();
        for _ in 0..100 {
            cache.fill(&memcg, 100);
            assert!(memcg.current() <= high, "{high}: {}", memcg.current());
        }
        let beyond = (high / 16).min(32 * 4096);
        let (calls, most) = (cache.calls(), 10_000 * PIECE / (beyond - beyond / 8) + 2);
        assert!(calls > 0 && calls <= most, "{high}: {calls} calls, not {most}");
    }
}

#[test]
fn a_new_high_is_asked_for_at_once() {
    let (_pcpu, memcg) = memcg(MIB);
    let cache = Cache::new(&memcg, |_, _| 0);
    let _above = memcg.charge(MIB + 1).unwrap();
    assert_eq!(cache.calls(), 1);
    let small = memcg.charge(PIECE).unwrap();
    assert_eq!(cache.calls(), 0);
    memcg.set_high(Limit::bytes(MIB / 2)).unwrap();
    assert!(cache.calls() > 0);
    // A `high` that is above usage asks nobody. The charge that passes it is not part of the last batch.
    memcg.set_high(Limit::bytes(MIB + 2 * PIECE)).unwrap();
    cache.calls();
    let _passes = memcg.charge(PIECE).unwrap();
    assert_eq!(cache.calls(), 1);
    drop(small);
}

/// Also where a batch is more than `high`.
#[test]
fn hooks_that_give_enough_are_asked_once_for_a_batch() {
    for high in [0, 1, 100, 300, 1000, 3200, 5000, 10_000, 100_000] {
        let (_pcpu, memcg) = memcg(high);
        let cache = Cache::new(&memcg, |wanted, _| wanted);
        cache.fill(&memcg, high / PIECE);
        cache.calls();
        cache.fill(&memcg, 2000);
        let most = 2000 * PIECE / 4096 + 2;
        let calls = cache.calls();
        assert!(calls > 0 && calls <= most, "{high}: {calls} calls, not {most}");
        assert!(memcg.current() <= high + 4096 + PIECE, "{high}: {}", memcg.current());
    }
}

/// What a hook charges itself raises no `high` event, and calls no callback.
#[test]
fn charges_of_a_hook_are_no_news() {
    let (_pcpu, memcg) = memcg(MIB);
    let called = Arc::new(AtomicU64::new(0));
    let (count, charges) = (Arc::clone(&called), memcg.clone());
    let _high = memcg.on_high(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let _hook = memcg.on_reclaim(0, move |_| {
        drop([(); 10].map(|()| charges.charge(PIECE).unwrap()));
        0
    });
    let _above = memcg.charge(MIB + 1).unwrap();
    assert_eq!((memcg.events().high, called.load(Ordering::Relaxed)), (1, 1));
}

/// A large charge is a batch by itself, and a caller that must not block asks nobody.
#[test]
fn large_charges_ask_each_time() {
    let (_pcpu, memcg) = memcg(MIB);
    let cache = Cache::new(&memcg, |_, _| 0);
    let _below = memcg.charge(MIB).unwrap();
    let mut held = Vec::new();
    for nth in 1..=5 {
        held.push(memcg.charge(256 * KIB).unwrap());
        assert_eq!(cache.calls(), 1, "{nth}");
        held.push(memcg.charge_with(256 * KIB, Gfp::NOWAIT).unwrap());
        assert_eq!(cache.calls(), 0, "{nth}");
    }
}
