//! What may be done in the scope of a cgroup without room: all that gives the caller no object on the heap.
//!
//! What the library allocates for itself is charged to nobody. Each place where it allocates has to say so
//! (`sys::own`), which is easily forgotten. So every operation runs here in the scope of a full cgroup, and no
//! limit may be asked.

use std::alloc::Layout;
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::fmt::{self, Write};
use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Waker};
use std::time::Duration;

use percpu_memcg::allocator::{BalanceMode, PcpuPtr};
use percpu_memcg::cgroup::{
    Accounted, EventWatch, PeakReader, Registration, ScopedMemcg, TreeWatch,
};
use percpu_memcg::counter::{DualModeCounter, PerCpuCounters};
use percpu_memcg::heap::{Answer, OverLimit};
use percpu_memcg::report::{ChunkMap, History, Snapshot};
use percpu_memcg::{
    Charge, Gfp, InMemcg, Limit, Local, Memcg, PerCpu, PerCpuAllocator, PerCpuCounter,
    PerCpuHistogram, PerCpuPool,
};

use crate::{pcpu, tenant};

thread_local! {
    /// The first allocation that a limit stood against, while operations are watched.
    static ASKED: Cell<Option<Option<String>>> = const { Cell::new(None) };
}

/// The answer of the program's heap at a limit.
pub(crate) fn answer(asked: &OverLimit) -> Answer {
    let Some(first) = ASKED.take() else { return Answer::Refuse };
    let text =
        || format!("{} bytes of {}\n{}", asked.bytes, asked.cgroup, Backtrace::force_capture());
    ASKED.set(Some(first.or_else(|| Some(text()))));
    Answer::Exceed
}

/// Does `work`, and returns where it first asked for memory beyond a limit.
fn asked(work: impl FnOnce()) -> Option<String> {
    ASKED.set(Some(None));
    work();
    ASKED.take().flatten()
}

/// A text that takes no memory.
struct Nowhere;

impl Write for Nowhere {
    fn write_str(&mut self, _: &str) -> fmt::Result {
        Ok(())
    }
}

fn show(what: &dyn fmt::Display) {
    write!(Nowhere, "{what} {what:#}").unwrap();
}

fn debug(what: &dyn fmt::Debug) {
    write!(Nowhere, "{what:?}").unwrap();
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// What operations are tried with. It is created outside of the scope.
struct World {
    /// It has no room.
    full: Memcg,
    /// Its children.
    child: Memcg,
    empty: Option<ScopedMemcg>,
    /// Room for everything.
    other: Memcg,
    own: PerCpuAllocator,
    charge: Charge,
    of_other: Charge,
    rows: Accounted<Vec<u64>>,
    words: PerCpu<Local<u64>>,
    many: Vec<PerCpu<AtomicU64>>,
    areas: Vec<PcpuPtr>,
    counter: PerCpuCounter,
    group: PerCpuCounters<3, usize>,
    histogram: PerCpuHistogram<3>,
    dual: DualModeCounter,
    pool: Option<PerCpuPool<Local<u64>>>,
    watch: EventWatch,
    of_tree: TreeWatch,
    peak: Option<PeakReader>,
    hooks: Vec<Registration>,
}

impl World {
    fn new(nth: usize) -> Self {
        let full = tenant(&format!("full-{nth}"));
        let other = tenant(&format!("other-{nth}"));
        let [child, _] = ["child", "empty-parent"].map(|name| full.create(name).unwrap());
        let pool = PerCpuPool::new_for(&other, |_cpu| Local::new(0), |_| ()).unwrap();
        let idle = [(); 5].map(|()| pool.take(&other).unwrap());
        drop(idle);
        let hooks = vec![
            child.on_reclaim(0, |_| 0),
            child.on_oom(|_| false),
            child.on_high(|_| ()),
            full.on_kill(|_| ()),
            full.on_freeze(|_| ()),
        ];
        World {
            empty: Some(full.create_scoped("empty").unwrap()),
            own: PerCpuAllocator::new().unwrap(),
            charge: child.charge(1000).unwrap(),
            of_other: other.charge(1000).unwrap(),
            rows: other.account(vec![1; 10]),
            words: PerCpu::zeroed_for(&other).unwrap(),
            many: PerCpu::zeroed_many_for(&other, 50).unwrap(),
            areas: pcpu().alloc_many(Layout::new::<u64>(), 50, Gfp::KERNEL).unwrap(),
            counter: PerCpuCounter::new_for(&other).unwrap(),
            group: PerCpuCounters::new_for(&other).unwrap(),
            histogram: PerCpuHistogram::new_for(&other, [1, 2, 3]).unwrap(),
            dual: DualModeCounter::new(),
            pool: Some(pool),
            watch: full.watch_events(),
            of_tree: full.watch_tree(Duration::ZERO),
            peak: Some(full.peak_reader()),
            hooks,
            full,
            child,
            other,
        }
    }
}

type Operation = (&'static str, fn(&mut World));

const OPERATIONS: &[Operation] = &[
    // Charges.
    ("charge, refused", |it| {
        let refused = it.child.charge(1).unwrap_err();
        assert!(refused.is_limit());
        show(&refused);
        debug(&refused);
    }),
    ("try_charge, refused", |it| show(&it.full.try_charge(1).unwrap_err())),
    ("charge_with, refused", |it| show(&it.child.charge_with(1, Gfp::NOWAIT).unwrap_err())),
    ("charge_forced", |it| drop(it.child.charge_forced(1 << 20))),
    ("charge, of another", |it| drop(it.other.charge(1 << 20).unwrap())),
    ("charge, of a new cgroup", |it| drop(it.empty.as_ref().unwrap().charge(0).unwrap())),
    ("charge_current, refused", |it| drop(it.other.charge_current(100).unwrap_err())),
    ("grow and shrink", |it| {
        assert!(it.charge.grow(1).is_err() && it.charge.try_grow(1).is_err());
        it.charge.grow_forced(100);
        it.charge.shrink(1000).unwrap();
        assert!(it.charge.shrink(1000).is_err());
        it.of_other.grow(1 << 20).unwrap();
    }),
    ("split and merge", |it| {
        let part = it.charge.split(10).unwrap();
        it.charge.merge(part).unwrap();
        let part = it.of_other.split(10).unwrap();
        let error = it.charge.merge(part).unwrap_err();
        show(&error);
    }),
    ("transfer_to", |it| {
        assert!(it.of_other.transfer_to(&it.child).is_err());
        it.charge.transfer_to(&it.full).unwrap();
        it.charge.transfer_to(&it.other).unwrap();
    }),
    ("labelled", |it| {
        let part = it.of_other.split(10).unwrap().labelled("rows");
        assert_eq!(part.label(), Some("rows"));
        debug(&part);
    }),
    ("Accounted", |it| {
        it.rows.shrink_to_fit();
        it.rows.edit().clear();
        it.rows.transfer_to(&it.full).unwrap_err();
        debug(&it.rows);
    }),
    // Settings and figures.
    ("limits", |it| {
        let current = it.full.current();
        it.full.set_max(Limit::bytes(current - 1)).unwrap();
        it.full.set_max(Limit::bytes(current)).unwrap();
        it.full.set_high(Limit::bytes(10)).unwrap();
        it.child.set_low(Limit::bytes(10)).unwrap();
        it.child.set_min(Limit::bytes(10)).unwrap();
        it.full.set_oom_group(true).unwrap();
        it.full.set_max_depth(Some(3)).unwrap();
        it.full.set_max_descendants(Some(3)).unwrap();
        let limits = (it.full.max(), it.full.high(), it.child.low(), it.child.min());
        debug(&limits);
    }),
    ("figures", |it| {
        debug(&(it.full.current(), it.full.peak(), it.full.cached(), it.full.drain()));
        debug(&(it.full.stat(), it.full.events(), it.full.events_local()));
        debug(&(it.full.nr_descendants(), it.full.nr_dying_descendants(), it.full.nr_threads()));
        debug(&(it.full.name(), it.full.is_root(), it.full.is_removed(), it.full.is_frozen()));
    }),
    ("Debug and Display of handles", |it| {
        debug(&it.full);
        show(&it.full);
        debug(&(&it.words, &it.counter, &it.group, &it.histogram, &it.dual, &it.pool));
        debug(&(&it.watch, &it.of_tree, &it.peak, &it.hooks, pcpu()));
    }),
    ("handles", |it| {
        drop((it.full.clone(), it.child.parent(), it.full.of_this_thread(), pcpu().root()));
        drop(it.full.find("child").unwrap());
        drop(pcpu().clone());
    }),
    // Reclaim and events.
    ("reclaim", |it| show(&it.full.reclaim(1 << 20).unwrap_err())),
    ("throttle", |it| {
        it.full.set_high(Limit::bytes(1)).unwrap();
        drop(it.child.charge_forced(1));
        it.full.throttle();
    }),
    ("kill, freeze, thaw", |it| {
        it.full.kill().unwrap();
        it.full.freeze().unwrap();
        it.full.thaw().unwrap();
    }),
    ("unregister", |it| {
        it.hooks.pop();
        it.hooks.drain(..).for_each(Registration::detach);
    }),
    ("EventWatch", |it| {
        debug(&it.watch.poll_changed(&mut context()));
        assert!(it.child.try_charge(1).is_err());
        debug(&it.watch.wait_timeout(Duration::ZERO));
        debug(&it.watch.wait_timeout(Duration::from_millis(1)));
        debug(&it.watch.current());
        let mut changed = pin!(it.watch.changed());
        debug(&changed.as_mut().poll(&mut context()));
    }),
    ("TreeWatch", |it| drop(it.of_tree.poll_changed(&mut context()))),
    ("TreeWatch, dropped", |it| {
        drop(it.child.try_charge(1));
        it.of_tree = it.other.watch_tree(Duration::ZERO);
    }),
    ("PeakReader", |it| {
        let peak = it.peak.take().unwrap();
        peak.reset();
        debug(&(peak.read(), it.full.peak_reader().read()));
    }),
    // Scopes and threads.
    ("enter, scope, attach", |it| {
        let deep = [(); 20].map(|()| it.child.enter());
        it.other.scope(|| it.child.scope(|| ()));
        it.child.attach_thread().unwrap();
        it.other.attach_thread().unwrap();
        drop(deep);
        pcpu().root().attach_thread().unwrap();
    }),
    ("in_memcg", |it| {
        let mut future = pin!(async {}.in_memcg(&it.child));
        assert!(future.as_mut().poll(&mut context()).is_ready());
    }),
    // Removal.
    ("remove", |it| {
        show(&it.full.remove().unwrap_err());
        it.full.find("empty-parent").unwrap().remove().unwrap();
    }),
    ("a scoped cgroup, dropped", |it| drop(it.empty.take())),
    ("create, refused", |it| show(&it.full.create("more").unwrap_err())),
    ("create, of a bad name", |it| show(&it.other.create("memory.max").unwrap_err())),
    ("create and remove, of another", |it| {
        it.other.create("more").unwrap().remove().unwrap();
    }),
    // Areas.
    ("areas, refused", |it| {
        show(&PerCpu::<u64>::zeroed_for(&it.full).unwrap_err());
        show(&PerCpu::<u64>::zeroed_in(pcpu(), Gfp::KERNEL_ACCOUNT).unwrap_err());
    }),
    ("areas, not charged or of another", |it| {
        drop(PerCpu::new_in(pcpu(), Gfp::KERNEL, |cpu| cpu).unwrap());
        drop(PerCpu::<[u64; 100]>::zeroed_in(pcpu(), Gfp::NOWAIT));
        drop(PerCpu::<[u64; 4000]>::zeroed_for(&it.other).unwrap());
        drop(PerCpu::new_for(&it.other, |_| 1_u64).unwrap());
    }),
    ("many areas, freed", |it| it.many.clear()),
    ("areas, freed at once", |it| {
        // SAFETY: nobody uses them.
        unsafe { pcpu().free_many(&it.areas) }.unwrap();
        // SAFETY: they are not live.
        let error = unsafe { pcpu().free_many(&it.areas) }.unwrap_err();
        show(&error);
        it.areas.clear();
    }),
    ("operations on this CPU's copy", |it| {
        it.words.inc();
        debug(&(it.words.sum(), it.words.iter().count()));
    }),
    ("trim and balance", |_| {
        pcpu().trim();
        pcpu().balance();
        debug(&(pcpu().stats(), pcpu().is_balance_pending()));
        pcpu().verify().unwrap();
    }),
    // Objects.
    ("PerCpuCounter", |it| {
        (0..1000).for_each(|nth| it.counter.add(nth));
        it.counter.set(7);
        debug(&(it.counter.sum(), it.counter.take(), it.counter.settle()));
        drop(PerCpuCounter::new_for(&it.other).unwrap());
    }),
    ("PerCpuCounters", |it| it.group.inc(1)),
    ("PerCpuHistogram", |it| {
        it.histogram.record(2);
        debug(&it.histogram.snapshot());
        drop(PerCpuHistogram::new_for(&it.other, [1_u64, 5, 9]).unwrap());
    }),
    ("DualModeCounter", |it| it.dual.inc(&it.other)),
    ("PerCpuPool", |it| {
        let pool = it.pool.as_ref().unwrap();
        show(&pool.take(&it.full).unwrap_err());
        let objects: [_; 10] = std::array::from_fn(|_| pool.take(&it.other).unwrap());
        drop(objects);
        assert!(pool.shrink(3) == 3 && pool.idle() > 0);
    }),
    ("PerCpuPool, dropped", |it| {
        it.pool = it.pool.take().map(|pool| pool.with_max_idle(2));
        drop(it.pool.take());
    }),
    // Files.
    ("files, written", |it| {
        let files = it.full.files();
        show(&files.write("memory.nothing", "1").unwrap_err());
        show(&files.write("memory.high", "many").unwrap_err());
        assert_eq!(files.write("memory.high", "max").unwrap(), 3);
        assert_eq!(files.write("cgroup.freeze", "1").unwrap(), 1);
        assert_eq!(files.write("memory.max", "1M").unwrap(), 2);
    }),
    ("another allocator, dropped", |it| {
        it.own = pcpu().clone();
    }),
];

#[test]
fn no_operation_asks_a_cgroup_without_room() {
    let mut faults = String::new();
    for (nth, (name, operation)) in OPERATIONS.iter().enumerate() {
        let mut world = World::new(nth);
        let full = world.full.clone();
        full.drain();
        full.set_max(Limit::bytes(0)).unwrap();
        let asked = full.scope(|| asked(|| operation(&mut world)));
        if let Some(asked) = asked {
            writeln!(faults, "\n{name}: {asked}").unwrap();
        }
        full.set_max(Limit::MAX).unwrap();
        // SAFETY: nobody uses them.
        unsafe { pcpu().free_many(&world.areas) }.unwrap();
    }
    assert!(faults.is_empty(), "{faults}");
}

#[test]
fn drops_ask_no_cgroup_without_room() {
    let background = PerCpuAllocator::builder().balance(BalanceMode::Background).build().unwrap();
    let history = Arc::new(History::of(&pcpu().root()).length(NonZeroUsize::new(3).unwrap()));
    let sampler = History::start(&history, Duration::from_millis(1)).unwrap();
    let world = World::new(1000);
    let full = world.full.clone();
    let reserve = pcpu().reserve(Some(&world.other), Layout::new::<u64>(), 9, Gfp::KERNEL).unwrap();
    let held = (
        (full.snapshot(), full.figures(), full.children(), pcpu().chunks(), pcpu().files()),
        (Snapshot::take(pcpu()), ChunkMap::take(pcpu()), history.samples(), history.report()),
        (full.remove().unwrap_err(), background, reserve, sampler, history),
    );
    full.drain();
    full.set_max(Limit::bytes(0)).unwrap();
    let asked = full.scope(|| {
        asked(|| {
            drop(held);
            // SAFETY: nobody uses them.
            unsafe { pcpu().free_many(&world.areas) }.unwrap();
            drop(world);
        })
    });
    assert_eq!(asked, None);
}
