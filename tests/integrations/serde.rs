//! Values as JSON, and back.

use std::fmt::Debug;
use std::time::Duration;

use insta::assert_snapshot;
use percpu_memcg::cgroup::{
    MemcgEvents, MemcgSnapshot, MemcgUsage, RemovalReport, TopConsumer, TreeEvents,
};
use percpu_memcg::counter::{HistogramSnapshot, linear_bounds};
use percpu_memcg::placement::ChunkName;
use percpu_memcg::report::Snapshot;
use percpu_memcg::this_cpu::ThisCpu;
use percpu_memcg::{ChargeError, Limit, PerCpu, PerCpuHistogram};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::cpu::on_cpu;
use super::{HOSTILE, tree};

/// The JSON text of a value, after a check that it is the same value when it is read back.
fn json<T: Serialize + DeserializeOwned + Debug + PartialEq>(value: &T) -> String {
    let text = serde_json::to_string(value).unwrap();
    let read: T = serde_json::from_str(&text).unwrap();
    assert_eq!(read, *value, "{text}");
    text
}

#[test]
fn a_snapshot_of_a_tree() {
    let (pcpu, tenant) = tree();
    tenant.set_max(Limit::bytes(1 << 20)).unwrap();
    let _rows = tenant.charge(500).unwrap().labelled("rows");
    let _area = PerCpu::<u64>::zeroed_for(&tenant).unwrap();
    let _hostile = pcpu.root().create(HOSTILE).unwrap().charge(1).unwrap().labelled(HOSTILE);
    let snapshot = pcpu.root().snapshot();
    let text = json(&snapshot);
    let read: MemcgSnapshot = serde_json::from_str(&text).unwrap();
    assert_eq!(read.tree().to_string(), snapshot.tree().to_string());
    assert_snapshot!(serde_json::to_string_pretty(&snapshot.cgroups[2]).unwrap(), @r#"
    {
      "path": "/tenant",
      "depth": 1,
      "current": 532,
      "peak": 532,
      "percpu": 32,
      "charged": 500,
      "labels": {
        "rows": 500
      },
      "cached": 0,
      "min": 0,
      "low": 0,
      "high": null,
      "max": 1048576,
      "events": {
        "low": 0,
        "high": 0,
        "max": 0,
        "oom": 0,
        "oom_kill": 0,
        "oom_group_kill": 0,
        "removed": false
      },
      "nr_threads": 0,
      "nr_dying_descendants": 0
    }
    "#);
    assert_snapshot!(json(&tenant.stat()), @r#"{"percpu":32,"charged":500,"cached":0}"#);
    let _: MemcgUsage = tenant.stat();
    assert_snapshot!(json(&tenant.events()), @r#"{"low":0,"high":0,"max":0,"oom":0,"oom_kill":0,"oom_group_kill":0,"removed":false}"#);
    let _: MemcgEvents = tenant.events();
}

#[test]
fn limits_are_numbers_or_null() {
    assert_eq!(json(&Limit::bytes(0)), "0");
    assert_eq!(json(&Limit::bytes((1 << 53) + 1)), "9007199254740993");
    assert_eq!(json(&Limit::MAX), "null");
    assert_eq!(serde_json::from_str::<Limit>("18446744073709551615").unwrap(), Limit::MAX);
    for wrong in ["-1", "1.5", "\"max\"", "18446744073709551616"] {
        serde_json::from_str::<Limit>(wrong).unwrap_err();
    }
}

#[test]
fn refusals() {
    let (_pcpu, tenant) = tree();
    let query = tenant.create("query").unwrap();
    let _held = query.charge(900).unwrap();
    tenant.set_max(Limit::bytes(1000)).unwrap();
    let refused: ChargeError = query.try_charge(100).unwrap_err();
    assert_snapshot!(json(&refused), @r#"{"cgroup":"/tenant","charged":"/tenant/query","requested":100,"usage":964,"max":1000,"cached":0}"#);
    assert_eq!(json(&*refused), json(&refused));
    let top = refused.top();
    assert_eq!(top.len(), 1);
    assert_snapshot!(json(&top), @r#"[{"cgroup":"/tenant/query","usage":900}]"#);
    let _: Vec<TopConsumer> = top;
    let read: ChargeError = serde_json::from_str(&json(&refused)).unwrap();
    assert_eq!(read.to_string(), refused.to_string());
    assert!(read.top().is_empty(), "there is no cgroup behind it");
    assert!(!json(&refused).contains("900"), "nothing of other cgroups but the usage of one");
}

#[test]
fn what_is_left_and_what_happened() {
    let (pcpu, tenant) = tree();
    let mut watch = pcpu.root().watch_tree(Duration::ZERO);
    tenant.set_max(Limit::bytes(1000)).unwrap();
    tenant.try_charge(2000).unwrap_err();
    let events: TreeEvents = watch.wait_timeout(Duration::from_secs(5)).unwrap();
    assert_snapshot!(json(&events), @r#"{"events":[{"cgroup":"/tenant","kind":"max","count":1}],"omitted":0,"ended":false}"#);
    let _held = (tenant.charge(100).unwrap().labelled("rows"), PerCpu::<u64>::zeroed_for(&tenant));
    let report: RemovalReport = tenant.remove_with_report().unwrap();
    assert_snapshot!(json(&report), @r#"{"cgroup":"/tenant","parent":"/","areas":{"8":1},"percpu":32,"charged":100,"labels":{"rows":100}}"#);
}

#[test]
fn histograms() {
    let (_pcpu, tenant) = tree();
    let sizes = PerCpuHistogram::new_for(&tenant, [64, 1024]).unwrap();
    [1, 64, 65, 5000].into_iter().for_each(|size| sizes.record(size));
    assert_snapshot!(json(&sizes.snapshot()), @r#"{"bounds":[64,1024],"counts":[2,1],"over":1,"sum":5130}"#);
    let latency = PerCpuHistogram::new_for(&tenant, [1, 10].map(Duration::from_millis)).unwrap();
    latency.record(Duration::from_micros(2_500));
    let text = json(&latency.snapshot());
    assert_snapshot!(text, @r#"{"bounds":[1000000,10000000],"counts":[0,1],"over":0,"sum":2500000}"#);
    // More bounds than there are arrays of that `serde` knows.
    let bounds: [u64; 100] = linear_bounds(1, 1);
    json(&PerCpuHistogram::new_for(&tenant, bounds).unwrap().snapshot());
    let other = serde_json::from_str::<HistogramSnapshot<3>>(&text).unwrap_err();
    assert!(other.to_string().contains("expected 3 buckets"), "{other}");
}

#[test]
fn the_allocator() {
    let (pcpu, tenant) = tree();
    // What is placed beside it is kept by the CPU on which it is placed.
    let _area = on_cpu(0, || PerCpu::<u64>::zeroed_for(&tenant).unwrap());
    assert_snapshot!(json(&pcpu.stats()), @r#"{"nr_alloc":1,"nr_dealloc":0,"nr_cur_alloc":1,"nr_max_alloc":32,"nr_chunks":2,"nr_max_chunks":2,"min_alloc_size":8,"max_alloc_size":8,"empty_pop_pages":7,"nr_populated":8,"live_bytes":8,"balance_pending":false,"nr_cached":31,"cached_bytes":248}"#);
    let snapshot = Snapshot::take(&pcpu);
    let text = serde_json::to_string(&snapshot).unwrap();
    let read: Snapshot = serde_json::from_str(&text).unwrap();
    assert_eq!(read.to_string(), snapshot.to_string());
    assert_eq!(serde_json::to_string(&read).unwrap(), text);
    let sizes = [ChunkName::Reserved, ChunkName::Numbered(3)];
    assert_snapshot!(json(&sizes), @r#"["reserved",{"numbered":3}]"#);
    json(&ThisCpu::tier());
}
