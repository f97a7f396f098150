//! What happens at a limit.

use std::alloc::System;
use std::cell::Cell;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::task::{Context, Waker};

use percpu_memcg::heap::{Answer, AtLimit, ChargedAlloc, OverLimit};
use percpu_memcg::{Limit, Memcg};

use crate::{Block, HEAP, cost, layout, pcpu, tenant, unreported};

/// A cgroup with a limit.
fn limited(name: &str, max: u64) -> Memcg {
    let tenant = tenant(name);
    tenant.set_max(Limit::bytes(max)).unwrap();
    tenant
}

#[test]
fn growth_is_refused_at_the_limit() {
    let tenant = limited("refused", 100_000);
    let refused = HEAP.stats().refused;
    let mut rows: Vec<u64> = Vec::new();
    let mut grown = 0;
    tenant.scope(|| {
        while rows.try_reserve_exact(rows.len() + 100).is_ok() {
            rows.resize(rows.capacity(), 1);
            grown += 1;
        }
    });
    assert!(grown > 2 && rows.len() > 3000);
    assert_eq!(tenant.current(), 8 * rows.capacity() as u64 + 8);
    assert!(tenant.peak() <= 100_000);
    assert_eq!(tenant.events().max, 1);
    assert!(HEAP.stats().refused > refused);
    drop(rows);
    assert_eq!(tenant.current(), 0);
}

#[test]
fn limit_of_an_ancestor_is_one() {
    let region = limited("region", 10_000);
    let tenant = region.create("tenant").unwrap();
    let mut rows: Vec<u8> = Vec::new();
    tenant.scope(|| {
        assert!(rows.try_reserve_exact(9_000).is_ok());
        assert!(Vec::<u8>::new().try_reserve_exact(2_000).is_err());
    });
    assert_eq!(region.events_local().max, 1);
    drop(rows);
    assert_eq!(region.current(), tenant_words(&region));
}

/// What the words of its one child cost it.
fn tenant_words(region: &Memcg) -> u64 {
    region.stat().percpu
}

#[test]
fn to_the_byte() {
    let tenant = limited("to-the-byte", 1008);
    tenant.scope(|| {
        let block = Block::new(&HEAP, layout(1000, 8)).unwrap();
        assert!(Block::new(&HEAP, layout(1, 1)).is_none());
        drop(block);
        assert!(Block::new(&HEAP, layout(1001, 8)).is_none());
        let mut block = Block::new(&HEAP, layout(900, 8)).unwrap();
        assert!(!block.resize(1001));
        assert!(block.resize(1000));
    });
    assert_eq!(tenant.current(), 0);
}

#[test]
fn exceeding_blocks_are_charged_and_counted() {
    static EXCEEDING: ChargedAlloc<System> = ChargedAlloc::new(System).at_limit(AtLimit::Exceed);
    EXCEEDING.charge_to(&pcpu().root());
    let tenant = limited("exceeded", 1000);
    let mut blocks = tenant.scope(|| {
        let block = || Block::new(&EXCEEDING, layout(600, 8)).unwrap();
        [block(), block(), block()]
    });
    assert_eq!(tenant.current(), 3 * 608);
    let stats = EXCEEDING.stats();
    assert_eq!((stats.exceeded, stats.refused), (2, 0));
    assert!(blocks[0].resize(2000), "of whatever thread");
    assert_eq!(EXCEEDING.stats().exceeded, 3);
    assert_eq!(tenant.events().max, 3);
    drop(blocks);
    assert_eq!(tenant.current(), 0);
}

#[test]
fn a_thread_that_panics_is_not_refused() {
    let tenant = limited("panicking", 20_000);
    let work = || {
        let _full = Block::new(&HEAP, layout(19_990, 1)).unwrap();
        assert!(Block::new(&HEAP, layout(100, 1)).is_none());
        struct Late;
        impl Drop for Late {
            fn drop(&mut self) {
                let late = format!("{} {}", "x".repeat(10_000), std::thread::panicking());
                assert!(late.ends_with("true"));
            }
        }
        let panicked = catch_unwind(|| {
            let _late = Late;
            std::panic::panic_any(1_u8);
        });
        assert!(panicked.is_err());
        drop(panicked);
    };
    unreported(|| tenant.scope(work));
    assert_eq!(tenant.current(), 0);
    assert!(tenant.peak() > 20_000);
}

#[test]
fn no_hook_no_callback_and_no_waker_runs_and_events_are_counted() {
    let tenant = limited("hooks", 50_000);
    tenant.set_high(Limit::bytes(10_000)).unwrap();
    let calls = Arc::new(AtomicU64::new(0));
    let call = || {
        let calls = Arc::clone(&calls);
        move || _ = calls.fetch_add(1, SeqCst)
    };
    let (reclaim, oom, high) = (call(), call(), call());
    let reclaim = tenant.on_reclaim(0, move |_| {
        reclaim();
        0
    });
    let oom = tenant.on_oom(move |_| {
        oom();
        false
    });
    let high = tenant.on_high(move |_| high());
    struct Wakes(Arc<AtomicU64>);
    impl std::task::Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }
    let waker = Waker::from(Arc::new(Wakes(Arc::clone(&calls))));
    let mut watch = tenant.watch_events();
    assert!(watch.poll_changed(&mut Context::from_waker(&waker)).is_pending());
    tenant.scope(|| {
        let above_high = Block::new(&HEAP, layout(20_000, 8)).unwrap();
        assert!(Block::new(&HEAP, layout(60_000, 8)).is_none());
        drop(above_high);
    });
    assert_eq!(calls.load(SeqCst), 0);
    let seen = watch.poll_changed(&mut Context::from_waker(&waker));
    assert!(matches!(seen, std::task::Poll::Ready(events) if (events.high, events.max) == (1, 1)));
    drop((reclaim, oom, high));
    assert_eq!(tenant.current(), 0);
}

#[test]
fn a_thread_in_a_reclaim_hook_is_not_refused() {
    let tenant = limited("in-hook", 10_000);
    let seen = Arc::new(AtomicU64::new(0));
    let noted = Arc::clone(&seen);
    let inner = tenant.clone();
    let hook = tenant.on_reclaim(0, move |_| {
        let list: Vec<u64> = inner.scope(|| (0..5000).collect());
        noted.fetch_add(list.iter().sum::<u64>(), SeqCst);
        0
    });
    assert!(tenant.charge(20_000).is_err() && tenant.charge(9_000).is_ok());
    let held = tenant.charge(9_000).unwrap();
    assert!(tenant.charge(9_000).is_err());
    assert!(seen.load(SeqCst) > 0, "the hook has run");
    drop((hook, held));
    assert_eq!(tenant.current(), 0);
}

// What the callback of this thread does.
thread_local! {
    static DOES: Cell<fn(&OverLimit) -> Answer> = const { Cell::new(|_| Answer::Refuse) };
    static CALLS: Cell<u32> = const { Cell::new(0) };
    static KEPT: Cell<Option<Block<System>>> = const { Cell::new(None) };
}

static ASKING: ChargedAlloc<System> = ChargedAlloc::new(System).at_limit(AtLimit::Ask(|asked| {
    CALLS.set(CALLS.get() + 1);
    DOES.get()(asked)
}));

/// The blocks that a thread of a tenant gets whose limit is 1000, and the calls of the callback.
fn asked(name: &str, does: fn(&OverLimit) -> Answer) -> (Memcg, Option<Block<System>>, u32) {
    pcpu();
    ASKING.charge_to(&pcpu().root());
    let tenant = limited(name, 1000);
    DOES.set(does);
    CALLS.set(0);
    let block = tenant.scope(|| {
        KEPT.set(Block::new(&ASKING, layout(600, 8)));
        Block::new(&ASKING, layout(700, 8))
    });
    (tenant, block, CALLS.get())
}

#[test]
fn a_callback_may_refuse_and_is_told_what() {
    let (tenant, block, calls) = asked("ask-refuse", |asked| {
        assert_eq!((asked.bytes, asked.usage, asked.max), (708, 608, Limit::bytes(1000)));
        assert_eq!((asked.cgroup.path(), &asked.charged), ("/ask-refuse".into(), &asked.cgroup));
        Answer::Refuse
    });
    assert!(block.is_none() && calls == 1);
    assert_eq!(tenant.current(), 608);
    drop(KEPT.take());
    assert_eq!(tenant.current(), 0);
}

#[test]
fn a_callback_may_let_it_exceed() {
    let (tenant, block, calls) = asked("ask-exceed", |_| Answer::Exceed);
    assert!(block.is_some() && calls == 1);
    assert_eq!(tenant.current(), 608 + 708);
    drop((block, KEPT.take()));
    assert_eq!(tenant.current(), 0);
}

#[test]
fn a_callback_may_free_and_have_it_tried_again() {
    let (tenant, block, calls) = asked("ask-retry", |_| {
        drop(KEPT.take());
        Answer::Retry
    });
    assert!(block.is_some() && calls == 1);
    assert_eq!(tenant.current(), 708);
    drop(block);
    assert_eq!(tenant.current(), 0);
}

#[test]
fn a_callback_that_makes_no_room_is_not_asked_for_ever() {
    let (tenant, block, calls) = asked("ask-in-vain", |_| Answer::Retry);
    assert!(block.is_none() && calls == 16);
    drop(KEPT.take());
    assert_eq!(tenant.current(), 0);
}

#[test]
fn a_callback_may_allocate_and_is_not_called_for_that() {
    let (tenant, block, calls) = asked("ask-nested", |asked| {
        let nested = Block::new(&ASKING, layout(100_000, 64)).unwrap();
        let text = format!("{} {}", asked.cgroup.path(), "x".repeat(100_000));
        // Charged to nobody, also when it is freed.
        assert_eq!(asked.cgroup.current(), 608);
        drop((nested, text));
        asked.cgroup.set_max(Limit::bytes(2000)).unwrap();
        Answer::Retry
    });
    assert!(block.is_some() && calls == 1);
    assert_eq!(tenant.current(), 608 + 708);
    drop((block, KEPT.take()));
    assert_eq!(tenant.current(), 0);
}

#[test]
fn growth_asks_as_well() {
    let (tenant, block, _) = asked("ask-growth", |_| Answer::Refuse);
    assert!(block.is_none());
    let mut kept = KEPT.take().unwrap();
    DOES.set(|asked| {
        assert_eq!(asked.bytes, 1000);
        Answer::Exceed
    });
    assert!(kept.resize(1600));
    assert_eq!(tenant.current(), cost(kept.layout));
    assert_eq!(CALLS.get(), 2);
    drop(kept);
    assert_eq!(tenant.current(), 0);
}
