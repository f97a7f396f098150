//! A subscriber that charges, allocates, and changes the tree of which it is told.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;

use percpu_memcg::allocator::BalanceMode;
use percpu_memcg::cgroup::OomEvent;
use percpu_memcg::{Charge, Gfp, Limit, Memcg, PerCpu, PerCpuAllocator};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::HOSTILE;

/// An event: its name, and its fields as text.
#[derive(Clone, Debug, PartialEq)]
struct Told {
    name: &'static str,
    target: &'static str,
    level: Level,
    fields: BTreeMap<&'static str, String>,
}

impl Visit for Told {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name(), value.to_owned());
    }
}

impl Told {
    fn is_of(&self, cgroup: &str) -> bool {
        self.fields.get("cgroup").is_some_and(|of| of == cgroup)
    }

    /// The name, and the fields without the message, sorted.
    fn text(&self) -> String {
        let fields = self.fields.iter().filter(|(name, _)| **name != "message");
        let fields: Vec<_> = fields.map(|(name, value)| format!("{name}={value}")).collect();
        format!("{} {}", self.name, fields.join(" "))
    }
}

/// What the subscriber does with each event of a thread.
type Act = Arc<dyn Fn(&Told) + Send + Sync>;

#[derive(Default)]
struct Recorder {
    told: Mutex<Vec<Told>>,
}

thread_local! {
    static ACT: std::cell::RefCell<Option<Act>> = const { std::cell::RefCell::new(None) };
}

/// The program's subscriber. A scoped one would be guarded against itself by `tracing`.
fn recorder() -> &'static Recorder {
    static RECORDER: OnceLock<&'static Recorder> = OnceLock::new();
    RECORDER.get_or_init(|| {
        let recorder: &'static Recorder = Box::leak(Box::default());
        tracing::subscriber::set_global_default(Global(recorder)).unwrap();
        recorder
    })
}

struct Global(&'static Recorder);

impl Subscriber for Global {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("percpu_memcg::")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        unreachable!("the library has no spans")
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let (name, target, level) = (metadata.name(), metadata.target(), *metadata.level());
        let mut told = Told { name, target, level, fields: BTreeMap::new() };
        event.record(&mut told);
        self.0.told.lock().unwrap().push(told.clone());
        if let Some(act) = ACT.with_borrow(Clone::clone) {
            act(&told);
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Calls `run`, while `act` is what the subscriber does on this thread.
fn acting<R>(act: &Act, run: impl FnOnce() -> R) -> R {
    recorder();
    ACT.set(Some(Arc::clone(act)));
    let result = run();
    ACT.set(None);
    result
}

/// The events of a cgroup.
fn told_of(cgroup: &str) -> Vec<Told> {
    let told = recorder().told.lock().unwrap();
    told.iter().filter(|told| told.is_of(cgroup)).cloned().collect()
}

fn texts_of(cgroup: &str) -> Vec<String> {
    told_of(cgroup).iter().map(Told::text).collect()
}

/// A cgroup at the top of a tree of its own.
fn tenant(name: &str) -> (PerCpuAllocator, Memcg) {
    recorder();
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create(name).unwrap();
    (pcpu, tenant)
}

#[test]
fn each_event_has_its_fields() {
    let (_pcpu, tenant) = tenant("fields");
    let query = tenant.create("query").unwrap();
    tenant.set_max(Limit::bytes(100_000)).unwrap();
    let base = tenant.current();
    query.try_charge(200_000).unwrap_err();
    let refused = format!(
        "cgroup.refused cgroup=/fields charged=/fields/query max=100000 requested=200000 usage={base}"
    );
    assert_eq!(texts_of("/fields"), [refused]);

    let cache: Arc<Mutex<Vec<Charge>>> = Arc::default();
    cache.lock().unwrap().push(query.charge(60_000).unwrap());
    let cached = Arc::clone(&cache);
    let hook = tenant.on_reclaim(0, move |_| {
        let dropped = std::mem::take(&mut *cached.lock().unwrap());
        dropped.iter().map(Charge::bytes).sum()
    });
    drop(query.charge(50_000).unwrap());
    let reclaim = "cgroup.reclaim cgroup=/fields freed=60000 hooks=1 reason=max requested=50000";
    assert_eq!(texts_of("/fields")[1..], [reclaim]);
    drop(hook);

    let victim = query.clone();
    let callback = tenant.on_oom(move |event: &OomEvent| {
        event.record_kill(&victim);
        false
    });
    let _held = query.charge(90_000).unwrap();
    query.charge(20_000).unwrap_err();
    let oom = "cgroup.oom answer=refuse cgroup=/fields requested=20000";
    assert_eq!(texts_of("/fields")[2], oom);
    assert_eq!(told_of("/fields")[3].name, "cgroup.refused");
    assert_eq!(texts_of("/fields/query"), ["cgroup.oom_kill cgroup=/fields/query"]);
    drop(callback);

    query.set_high(Limit::bytes(80_000)).unwrap();
    let more = query.charge(1_000).unwrap();
    assert_eq!(
        texts_of("/fields/query")[1],
        "cgroup.high cgroup=/fields/query high=80000 usage=91000"
    );
    drop(more);

    let _area = PerCpu::<u64>::zeroed_for(&query).unwrap();
    let (percpu, charged) = (query.stat().percpu, query.stat().charged);
    query.remove().unwrap();
    let removed = texts_of("/fields/query").pop().unwrap();
    let left = format!("charged={charged} parent=/fields percpu={percpu}");
    assert_eq!(removed, format!("cgroup.removed cgroup=/fields/query {left}"));
    let (base, report) = (told_of("/fields").len(), tenant.remove_with_report().unwrap());
    assert_eq!(told_of("/fields").len(), base + 1);
    let left = format!("charged={} parent=/ percpu={}", report.charged, report.percpu);
    assert_eq!(texts_of("/fields").pop().unwrap(), format!("cgroup.removed cgroup=/fields {left}"));

    for Told { name, target, level, .. } in
        told_of("/fields").iter().chain(&told_of("/fields/query"))
    {
        let is_kill = *name == "cgroup.oom_kill";
        assert_eq!(*target, "percpu_memcg::cgroup");
        assert_eq!(*level, if is_kill { Level::WARN } else { Level::DEBUG });
    }
}

#[test]
fn chunks_are_told_under_no_lock() {
    let pcpu = PerCpuAllocator::builder().balance(BalanceMode::Inline).build().unwrap();
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let (own, texts) = (pcpu.clone(), Arc::clone(&seen));
    let act: Act = Arc::new(move |told| {
        texts.lock().unwrap().push(told.text());
        // Takes every lock of the allocator, and of the tree.
        drop(PerCpu::<[u64; 64]>::zeroed_in(&own, Gfp::KERNEL).unwrap());
        own.trim();
        own.root().create("within").unwrap().remove().unwrap();
        own.root().snapshot();
        own.verify().unwrap();
    });
    acting(&act, || {
        let areas: Vec<_> = (0..40)
            .map(|_| PerCpu::<[u64; 4000]>::zeroed_in(&pcpu, Gfp::KERNEL).unwrap())
            .collect();
        let chunks = pcpu.stats().nr_chunks;
        assert!(chunks > 1);
        let created = seen.lock().unwrap().clone();
        let expected: Vec<_> = (1..chunks)
            .map(|nth| {
                format!("chunk.created arena=areas chunk={nth} chunks={} kind=plain", nth + 1)
            })
            .collect();
        assert_eq!(created, expected);
        drop(areas);
        pcpu.trim();
        let destroyed = seen.lock().unwrap()[created.len()..].to_vec();
        assert_eq!(destroyed.len() as u64, chunks - pcpu.stats().nr_chunks);
        assert!(destroyed[0].starts_with("chunk.destroyed arena=areas chunk="));
    });
}

#[test]
fn cgroups_words_have_chunks_of_their_own() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let (own, texts) = (pcpu.root(), Arc::clone(&seen));
    let act: Act = Arc::new(move |told| {
        texts.lock().unwrap().push(told.text());
        // The chunk was created with the topology locked.
        own.create(&format!("within {}", told.fields["chunk"])).unwrap();
    });
    let all: Vec<Memcg> = acting(&act, || {
        (0..20_000).map(|nth| pcpu.root().create(&nth.to_string()).unwrap()).collect()
    });
    let seen = seen.lock().unwrap();
    assert_eq!(seen[0], "chunk.created arena=cgroups chunk=1 chunks=2 kind=plain");
    assert_eq!(pcpu.root().nr_descendants(), all.len() + seen.len());
}

#[test]
fn a_subscriber_that_is_refused_is_not_told_of_it() {
    let (pcpu, tenant) = tenant("again");
    tenant.set_max(Limit::bytes(1000)).unwrap();
    tenant.set_high(Limit::bytes(500)).unwrap();
    let count = Arc::new(AtomicU64::new(0));
    let (own, counted) = (tenant.clone(), Arc::clone(&count));
    let act: Act = Arc::new(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        own.try_charge(5000).unwrap_err();
        drop(own.charge(800).unwrap());
        own.create("within").unwrap().remove().unwrap();
        drop(PerCpu::<u64>::zeroed_for(&own));
    });
    acting(&act, || {
        tenant.try_charge(2000).unwrap_err();
        assert_eq!(count.swap(0, Ordering::Relaxed), 1);
        drop(tenant.charge(600).unwrap());
        assert_eq!(count.swap(0, Ordering::Relaxed), 1);
    });
    assert_eq!(told_of("/again").len(), 2);
    assert!(told_of("/again/within").is_empty());
    drop(pcpu);
}

#[test]
fn threads_are_told_of_each_refusal_once() {
    const THREADS: u64 = 4;
    let (pcpu, tenant) = tenant("threads");
    let path = format!("/threads/{HOSTILE}");
    let busy = tenant.create(HOSTILE).unwrap();
    let base = tenant.current();
    busy.set_max(Limit::bytes(20_000)).unwrap();
    // The subscriber has a tree of its own, and uses the tenant's as well.
    let (log_pcpu, log) = self::tenant("log");
    log.set_max(Limit::bytes(100_000)).unwrap();
    let (own, at) = (tenant.clone(), log.clone());
    let act: Act = Arc::new(move |told| {
        let _line = at.charge_forced(told.text().len() as u64);
        let _area = PerCpu::<u64>::zeroed_for(&at);
        let id = format!("{:?}", thread::current().id());
        let within = own.create(&id).unwrap();
        drop(within.charge(10).unwrap());
        within.remove().unwrap();
        own.snapshot();
    });
    let refused = AtomicU64::new(0);
    let removed = AtomicU64::new(0);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (busy, act, refused, removed) = (&busy, &act, &refused, &removed);
            scope.spawn(move || {
                acting(act, || {
                    let mut held = Vec::new();
                    for nth in 0..2_000_u64 {
                        match busy.charge(1 + (nth * 7919 + thread) % 9_000) {
                            Ok(charge) => held.push(charge),
                            Err(_) => {
                                refused.fetch_add(1, Ordering::Relaxed);
                                held.clear();
                            }
                        }
                        if nth % 50 == 0 {
                            let name = format!("{thread}-{nth}");
                            let query = busy.create(&name);
                            removed.fetch_add(query.is_ok().into(), Ordering::Relaxed);
                            query.into_iter().for_each(|query| query.remove().unwrap());
                        }
                    }
                });
            });
        }
    });
    let told = told_of(&path);
    let count = |name| told.iter().filter(|told| told.name == name).count() as u64;
    // A refused creation is a refused charge as well.
    let refused_creations = THREADS * 40 - removed.load(Ordering::Relaxed);
    assert!(refused.load(Ordering::Relaxed) > 100);
    assert_eq!(count("cgroup.refused"), refused.load(Ordering::Relaxed) + refused_creations);
    assert_eq!(count("cgroup.oom"), busy.events().oom);
    let all = recorder().told.lock().unwrap();
    let removals =
        all.iter().filter(|told| told.name == "cgroup.removed" && told.fields["parent"] == path);
    assert_eq!(removals.count() as u64, removed.load(Ordering::Relaxed));
    drop(all);
    assert_eq!(tenant.current(), base);
    assert_eq!(log.current(), 0);
    pcpu.verify().unwrap();
    log_pcpu.verify().unwrap();
}

#[test]
fn a_subscriber_may_panic() {
    let (_pcpu, tenant) = tenant("panics");
    tenant.set_max(Limit::bytes(1000)).unwrap();
    let act: Act = Arc::new(|_| panic!("a fault of the subscriber"));
    acting(&act, || {
        for _ in 0..2 {
            tenant.try_charge(2000).unwrap_err();
        }
        // A removal in a drop, while another panic unwinds.
        let scoped = tenant.create_scoped("scoped").unwrap();
        let unwound = catch_unwind(AssertUnwindSafe(|| {
            let _scoped = scoped;
            panic!("another");
        }));
        unwound.unwrap_err();
    });
    assert_eq!(told_of("/panics").len(), 2, "it is told again after a panic");
    assert_eq!(told_of("/panics/scoped").len(), 1);
    assert_eq!(tenant.current(), 0);
}
