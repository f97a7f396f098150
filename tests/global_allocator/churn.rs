//! Everything that the library does, by eight threads at once.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::thread;
use std::time::Duration;

use percpu_memcg::cgroup::PeakReader;
use percpu_memcg::report::History;
use percpu_memcg::{
    Charge, Gfp, Limit, Local, Memcg, PerCpu, PerCpuAllocator, PerCpuCounter, PerCpuPool,
};

const THREADS: usize = 8;
const ROUNDS: usize = 40;

pub(crate) fn work(pcpu: &PerCpuAllocator) {
    let shared = pcpu.root().create("shared").unwrap();
    shared.set_max(Limit::bytes(1 << 20)).unwrap();
    thread::scope(|scope| {
        let start = |nth| {
            let shared = &shared;
            scope.spawn(move || (0..ROUNDS).for_each(|round| lifetime(pcpu, shared, nth, round)))
        };
        let threads: Vec<_> = (0..THREADS).map(start).collect();
        // To the end of their thread-local values, which the scope does not wait for.
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    shared.remove().unwrap();
}

pub(crate) fn alone(pcpu: &PerCpuAllocator) {
    let shared = pcpu.root().create("shared").unwrap();
    (0..ROUNDS).for_each(|round| lifetime(pcpu, &shared, 0, round));
    shared.remove().unwrap();
}

/// What hooks and callbacks own.
///
/// An allocation may call hooks, so that none is made under a lock that hooks wait for.
struct Cache {
    held: Mutex<Vec<Charge>>,
    texts: Mutex<Vec<String>>,
    calls: AtomicU64,
    /// Hooks look from now on.
    looks: AtomicBool,
    history: Arc<History>,
    reader: PeakReader,
    pool: PerCpuPool<Local<u64>>,
}

impl Cache {
    fn new(pcpu: &PerCpuAllocator, memcg: &Memcg) -> Self {
        let held = Mutex::new(Vec::with_capacity(16));
        let history = Arc::new(History::of(memcg).length(NonZeroUsize::new(3).unwrap()));
        let pool = PerCpuPool::new_for(&pcpu.root(), |_cpu| Local::new(0), |_| ()).unwrap();
        let (texts, calls) = (Mutex::default(), AtomicU64::new(0));
        let looks = AtomicBool::new(false);
        Cache { held, texts, calls, looks, history, reader: memcg.peak_reader(), pool }
    }

    /// What a hook may do while an allocation of the library called it.
    fn look(&self) {
        self.reader.reset();
        self.history.sample();
        assert!(!self.history.samples().is_empty());
        self.pool.shrink(1);
    }

    fn note(&self, text: String) {
        if let Ok(mut texts) = self.texts.try_lock() {
            texts.push(text);
        }
    }

    fn give(&self) -> u64 {
        self.calls.fetch_add(1, Relaxed);
        let given = self.held.try_lock().ok().and_then(|mut held| held.pop());
        given.map_or(0, |charge| charge.bytes())
    }
}

/// A tenant from its creation to its removal.
fn lifetime(pcpu: &PerCpuAllocator, shared: &Memcg, nth: usize, round: usize) {
    let tenant = shared.create(&format!("tenant-{nth}-{round}")).unwrap();
    let children: Vec<Memcg> =
        (0..20).map(|child| tenant.create(&format!("child-{child}")).unwrap()).collect();
    let cache = Arc::new(Cache::new(pcpu, shared));
    register(&tenant, &cache);

    let scopes: Vec<_> = (0..40).map(|scope| children[scope % 20].enter()).collect();
    let areas: Vec<PerCpu<Local<u64>>> =
        (0..10).filter_map(|_| PerCpu::zeroed_in(pcpu, Gfp::KERNEL_ACCOUNT).ok()).collect();
    areas.iter().for_each(PerCpu::inc);
    let objects = PerCpu::new_in(pcpu, Gfp::KERNEL, |_| Mutex::new(vec![format!("{round}")]));
    objects.unwrap().iter().for_each(|(_, texts)| texts.lock().unwrap().push("more".into()));
    drop(scopes);

    children[0].attach_thread().unwrap();
    let _texts: Vec<String> = (0..50).map(|text| format!("text {text}")).collect();
    children[1].attach_thread().unwrap();
    let reader = tenant.peak_reader();
    reader.reset();
    let mut tree_watch = shared.watch_tree(Duration::ZERO);
    let mut watch = children[1].watch_events();
    assert!(watch.poll_changed(&mut Context::from_waker(Waker::noop())).is_pending());

    // Refusals, hooks and callbacks.
    let before = tenant.current();
    let held = tenant.try_charge(4096);
    let _refused = tenant.set_max(Limit::bytes(tenant.current() + 1000));
    cache.held.lock().unwrap().extend(held);
    cache.looks.store(true, Relaxed);
    cache.look();
    let objects = [(); 3].map(|()| cache.pool.take(&children[3]));
    let sampler = History::start(&cache.history, Duration::from_micros(100));
    assert!(!format!("{:?}", cache.history).is_empty());
    drop((objects, sampler));
    let refused = tenant.charge(1 << 19);
    if let Err(error) = &refused {
        assert!(error.to_string().contains("tenant"), "{error}");
    }
    let _refused = children[2].charge(30_000);
    let _reclaimed = tenant.reclaim(100);
    tenant.set_max(Limit::MAX).unwrap();
    let _above = tenant.set_high(Limit::bytes(before.saturating_add(100)));
    let above = children[3].charge_forced(10_000);
    drop(above);
    tenant.set_high(Limit::MAX).unwrap();
    let _seen = watch.poll_changed(&mut Context::from_waker(Waker::noop()));
    let _batch = tree_watch.poll_changed(&mut Context::from_waker(Waker::noop()));

    let mut rows = children[4].account(Vec::<u64>::new());
    if rows.reserve(100).is_ok() {
        rows.edit().extend(0..100);
    }
    let counter = PerCpuCounter::new_in(pcpu, Gfp::KERNEL).unwrap();
    counter.add(3);

    // Looks.
    let snapshot = shared.snapshot();
    assert!(!snapshot.tree().to_string().is_empty());
    assert!(pcpu.files().read("shared/memory.events").unwrap().contains("oom"));
    assert!(pcpu.files().list("shared").unwrap().len() > 5);
    let _peak = reader.read();
    let _usage = (tenant.stat(), shared.cached(), shared.drain());

    // Another thread of the cgroup, which ends attached.
    let member = children[5].clone();
    thread::spawn(move || {
        member.attach_thread().unwrap();
        let _scope = member.enter();
        vec![format!("{}", member.path()); 10].len()
    })
    .join()
    .unwrap();

    // The end: charges outlive their cgroups.
    let late: Vec<Charge> =
        children.iter().filter_map(|child| child.try_charge(100).ok()).collect();
    pcpu.root().attach_thread().unwrap();
    drop(rows);
    for child in &children {
        child.remove().unwrap();
    }
    drop(children);
    let report = tenant.remove_with_report().unwrap();
    let _text = format!("{report:?}");
    drop(late);
    drop(areas);
    cache.held.lock().unwrap().clear();
}

fn register(tenant: &Memcg, cache: &Arc<Cache>) {
    // Hooks and callbacks allocate, and own what allocates and charges when it is dropped.
    for order in 0..4 {
        let (cache, owned) = (Arc::clone(cache), format!("hook {order}"));
        let charge = tenant.try_charge(10).ok();
        let hook = move |request: &percpu_memcg::cgroup::ReclaimRequest| {
            let _owned = &charge;
            cache.note(format!("{owned} {}", request.bytes));
            if cache.looks.load(Relaxed) {
                cache.look();
            }
            cache.give()
        };
        tenant.on_reclaim(order, hook).detach();
    }
    let oom = Arc::clone(cache);
    tenant
        .on_oom(move |event| {
            oom.note(format!("{event:?}"));
            if oom.looks.load(Relaxed) {
                oom.look();
            }
            oom.give() > 0
        })
        .detach();
    let high = Arc::clone(cache);
    let registered = tenant.on_high(move |event| high.note(format!("{event:?}")));
    drop(registered);
    let texts = Arc::clone(cache);
    tenant.on_high(move |event| texts.note(format!("{event:?}"))).detach();
}

/// Each allocation of the library finds no room, so that it may call a hook, which uses the same objects.
pub(crate) fn within_allocations(pcpu: &PerCpuAllocator) {
    let tenant = pcpu.root().create("tenant").unwrap();
    let cache = Arc::new(Cache::new(pcpu, &tenant));
    register(&tenant, &cache);
    let watch = tenant.watch_tree(Duration::ZERO);
    tenant.set_max(Limit::bytes(0)).unwrap();
    tenant.scope(|| {
        cache.looks.store(true, Relaxed);
        for _ in 0..3 {
            cache.look();
            assert!(!format!("{:?} {:?} {pcpu:?}", cache.history, cache.reader).is_empty());
            assert!(!cache.history.report().to_string().is_empty());
            let objects = [(); 3].map(|()| cache.pool.take(&pcpu.root()).unwrap());
            drop(objects);
            assert!(!tenant.snapshot().tree().to_string().is_empty());
            let reader = tenant.peak_reader();
            reader.reset();
            drop(reader);
            assert!(tenant.charge(100).unwrap_err().to_string().contains("/tenant"));
            let _seen = tenant.watch_events().wait_timeout(Duration::from_millis(1));
        }
    });
    drop((watch, cache));
    tenant.remove().unwrap();
}
