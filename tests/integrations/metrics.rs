//! What a recorder of the facade `metrics` is told.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    with_local_recorder,
};
use percpu_memcg::integrations::metrics::Collector;
use percpu_memcg::{Limit, PerCpu};

use super::open_metrics::Samples;
use super::{HOSTILE, tree};

/// Keeps everything, as a recorder for debugging does. It allocates and charges in between.
#[derive(Default)]
struct Recorded {
    values: Mutex<BTreeMap<String, (bool, Arc<AtomicU64>)>>,
    units: Mutex<BTreeMap<String, Option<Unit>>>,
}

impl Recorded {
    fn register(&self, key: &Key, is_counter: bool) -> Arc<AtomicU64> {
        let labels = key.labels().map(|label| format!("{}={:?}", label.key(), label.value()));
        let id = format!("{}{:?}", key.name(), labels.collect::<Vec<_>>());
        let mut values = self.values.lock().unwrap();
        let value = values.entry(id).or_insert_with(|| (is_counter, Arc::default()));
        Arc::clone(&value.1)
    }

    fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels.iter().map(|(name, value)| format!("{name}={value:?}"));
        let id = format!("{name}{:?}", labels.collect::<Vec<_>>());
        let (is_counter, value) = self.values.lock().unwrap().get(&id)?.clone();
        let value = value.load(Ordering::Relaxed);
        Some(if is_counter { value as f64 } else { f64::from_bits(value) })
    }
}

impl Recorder for Recorded {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, _: SharedString) {
        self.units.lock().unwrap().insert(key.as_str().into(), unit);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, _: SharedString) {
        self.units.lock().unwrap().insert(key.as_str().into(), unit);
    }

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {
        unreachable!("there is none");
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.register(key, true))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.register(key, false))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        unreachable!("there is none");
    }
}

#[test]
fn all_figures_are_written_and_gone_ones_are_reset() {
    let (pcpu, tenant) = tree();
    let hostile = tenant.create(HOSTILE).unwrap();
    hostile.create("too deep").unwrap().remove().unwrap();
    hostile.set_max(Limit::bytes(10_000)).unwrap();
    hostile.set_high(Limit::bytes(9_000)).unwrap();
    hostile.try_charge(20_000).unwrap_err();
    let held = hostile.charge(4000).unwrap().labelled("rows");
    let _area = PerCpu::<u64>::zeroed_for(&tenant).unwrap();
    let recorded = Recorded::default();
    let mut collector = Collector::new(&pcpu.root()).depth(2).allocator(&pcpu);
    with_local_recorder(&recorded, || {
        collector.describe();
        collector.collect();
    });
    let path = &*format!("/tenant/{HOSTILE}");
    let of = |name, labels: &[(&str, &str)]| recorded.get(name, labels);
    assert_eq!(of("memcg_current_bytes", &[("cgroup", path)]), Some(4000.0));
    assert_eq!(of("memcg_max_bytes", &[("cgroup", path)]), Some(10_000.0));
    assert_eq!(of("memcg_max_bytes", &[("cgroup", "/")]), None);
    let labelled = [("cgroup", path), ("label", "rows")];
    assert_eq!(of("memcg_labelled_bytes", &labelled), Some(4000.0));
    let max = [("cgroup", path), ("event", "max")];
    assert_eq!(of("memcg_events_total", &max), Some(1.0));
    assert_eq!(of("percpu_areas", &[]), Some(1.0));
    // The names are those of the text.
    let text = pcpu.root().snapshot().open_metrics().depth(2).allocator(&pcpu).to_string();
    let samples = Samples::read(&text);
    assert_eq!(
        recorded.values.lock().unwrap().len(),
        text.lines().filter(|it| !it.starts_with('#')).count()
    );
    let units = recorded.units.lock().unwrap().clone();
    assert_eq!(units.len(), 22);
    for (name, unit) in units {
        assert!(samples.count(&name) > 0, "{name}");
        assert_eq!(unit == Some(Unit::Bytes), name.ends_with("_bytes"), "{name}");
    }

    drop(held);
    hostile.remove().unwrap();
    let _held = tenant.charge(7).unwrap();
    with_local_recorder(&recorded, || collector.collect());
    assert_eq!(of("memcg_current_bytes", &[("cgroup", path)]), Some(0.0));
    assert_eq!(of("memcg_labelled_bytes", &labelled), Some(0.0));
    assert!(of("memcg_max_bytes", &[("cgroup", path)]).unwrap().is_nan());
    assert_eq!(of("memcg_events_total", &max), Some(1.0), "a counter stays");
    let current = of("memcg_current_bytes", &[("cgroup", "/tenant")]);
    assert_eq!(current, Some(tenant.current() as f64));
}
