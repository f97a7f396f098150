//! The metrics of `prometheus-client`, beside what the library says itself.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use percpu_memcg::counter::{DualModeCounter, PerCpuCounters};
use percpu_memcg::integrations::prometheus_client::{
    AllocatorCollector, AsCounter, AsGauge, AsHistogram, CountersBy, TreeCollector,
};
use percpu_memcg::{Limit, Local, PerCpu, PerCpuCounter, PerCpuHistogram};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};

use super::open_metrics::Samples;
use super::{HOSTILE, tree};

fn text(registry: &Registry) -> String {
    let mut text = String::new();
    encode(&mut text, registry).unwrap();
    text
}

#[test]
fn collectors_export_what_the_text_has() {
    let (pcpu, tenant) = tree();
    let hostile = tenant.create(HOSTILE).unwrap();
    hostile.create("too deep").unwrap();
    hostile.set_max(Limit::bytes(10_000)).unwrap();
    hostile.try_charge(20_000).unwrap_err();
    let label: &'static str = format!("{HOSTILE}\n").leak();
    let _held = hostile.charge(4000).unwrap().labelled(label);
    let mut registry = Registry::default();
    registry.register_collector(Box::new(TreeCollector::new(&pcpu.root()).depth(2)));
    registry.register_collector(Box::new(AllocatorCollector::new(&pcpu)));
    let encoded = text(&registry);
    let own = pcpu.root().snapshot().open_metrics().depth(2).allocator(&pcpu).to_string();
    let sorted = |text: &str| {
        let mut samples: Vec<_> =
            text.lines().filter(|line| !line.starts_with("# HELP")).map(str::to_owned).collect();
        samples.sort_unstable();
        samples
    };
    assert_eq!(sorted(&encoded), sorted(&own));
    let samples = Samples::read(&encoded);
    assert_eq!(samples.count("memcg_current_bytes"), 3);
    let path = format!("/tenant/{HOSTILE}");
    let labels = [("cgroup", &*path), ("label", label)];
    assert_eq!(samples.get("memcg_labelled_bytes", &labels), Some(4000.0));
}

#[test]
fn counters_while_threads_add() {
    let (_pcpu, tenant) = tree();
    let requests: Arc<PerCpu<Local<u64>>> = Arc::new(PerCpu::zeroed_for(&tenant).unwrap());
    let in_flight = Arc::new(PerCpuCounter::new_for(&tenant).unwrap());
    let spread = Arc::new(DualModeCounter::new());
    let by_class = Arc::new(PerCpuCounters::<6>::new_for(&tenant).unwrap());
    let mut registry = Registry::default();
    registry.register("requests", "Requests", AsCounter(Arc::clone(&requests)));
    registry.register("in_flight", "Requests that are served", AsGauge(Arc::clone(&in_flight)));
    registry.register_with_unit("sent", "Sent", Unit::Bytes, AsCounter(Arc::clone(&spread)));
    let metric = CountersBy::new(&by_class, "class", |class| format!("{class}xx"));
    registry.register("responses", "Responses", metric);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for nth in 0..10_000 {
                    requests.inc();
                    in_flight.add(if nth % 4 == 0 { 1 } else { -1 });
                    spread.add(3, &tenant);
                    by_class.inc(nth % 6);
                }
            });
        }
        for _ in 0..10 {
            Samples::read(&text(&registry));
        }
    });
    let samples = Samples::read(&text(&registry));
    assert_eq!(samples.get("requests_total", &[]), Some(40_000.0));
    assert_eq!(samples.get("in_flight", &[]), Some(-20_000.0));
    assert_eq!(samples.get("sent_bytes_total", &[]), Some(120_000.0));
    assert_eq!(samples.get("responses_total", &[("class", "5xx")]), Some(4.0 * 1666.0));
    assert_eq!(samples.count("responses_total"), 6);
    assert_eq!(format!("{:?}", AsGauge(in_flight)), "AsGauge(-20000)");
}

#[test]
fn buckets_are_added_up_once() {
    let (_pcpu, tenant) = tree();
    let sizes = Arc::new(PerCpuHistogram::new_for(&tenant, [64, 1024]).unwrap());
    let bounds = [1, 10, 100].map(Duration::from_millis);
    let latency = Arc::new(PerCpuHistogram::new_for(&tenant, bounds).unwrap());
    let mut registry = Registry::default();
    registry.register_with_unit("size", "Sizes", Unit::Bytes, AsHistogram(Arc::clone(&sizes)));
    let of_latency = AsHistogram(Arc::clone(&latency));
    registry.register_with_unit("latency", "Latencies", Unit::Seconds, of_latency);
    [1, 64, 65, 66, 5000].into_iter().for_each(|size| sizes.record(size));
    [500, 1_500, 2_500, 9_000_000].into_iter().for_each(|us| {
        latency.record(Duration::from_micros(us));
    });
    let samples = Samples::read(&text(&registry));
    assert_eq!(samples.buckets("size_bytes"), [(64.0, 2.0), (1024.0, 4.0), (f64::INFINITY, 5.0)]);
    assert_eq!(samples.get("size_bytes_count", &[]), Some(5.0));
    assert_eq!(samples.get("size_bytes_sum", &[]), Some(5196.0));
    let buckets = [(0.001, 1.0), (0.01, 3.0), (0.1, 3.0), (f64::INFINITY, 4.0)];
    assert_eq!(samples.buckets("latency_seconds"), buckets);
    assert_eq!(samples.get("latency_seconds_sum", &[]), Some(9.0045));
}

#[test]
fn metrics_fit_into_a_family() {
    let (_pcpu, tenant) = tree();
    let of = tenant.clone();
    let new = move || AsCounter(Arc::new(PerCpu::<Local<u64>>::zeroed_for(&of).unwrap()));
    type Labels = Vec<(&'static str, String)>;
    let by_path = Family::<Labels, AsCounter<PerCpu<Local<u64>>>, _>::new_with_constructor(new);
    let mut registry = Registry::default();
    registry.register("hits", "Hits", by_path.clone());
    by_path.get_or_create(&vec![("path", HOSTILE.into())]).0.add(3);
    let samples = Samples::read(&text(&registry));
    assert_eq!(samples.get("hits_total", &[("path", HOSTILE)]), Some(3.0));
}
