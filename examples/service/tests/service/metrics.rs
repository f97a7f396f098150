//! Figures.

use std::collections::BTreeMap;
use std::thread;

use openmetrics_parser::openmetrics::parse_openmetrics;

use crate::server::Server;

#[test]
fn totals_on_metrics_are_those_that_clients_counted() {
    let server = Server::with_tenants(&["a", "b"]);
    let work = |tenant: &'static str, seed: usize| {
        let mut counts = BTreeMap::new();
        for nth in 0..200 {
            let path = format!("/tenants/{tenant}/documents/{}", (seed * 7 + nth * 13) % 40);
            let answer = match (seed + nth) % 5 {
                0 | 1 => server.put(&path, &vec![1; 1 << (8 + nth % 8)]),
                2 => server.delete(&path),
                3 => server.post(&format!("/tenants/{tenant}/summary"), b"[1, 2"),
                _ => server.get(&path),
            };
            *counts.entry((tenant.to_owned(), answer.status.to_string())).or_insert(0) += 1;
        }
        counts
    };
    let mut counted: BTreeMap<(String, String), u64> = BTreeMap::new();
    thread::scope(|scope| {
        let workers: Vec<_> = [("a", 0), ("b", 1), ("a", 2), ("b", 3)]
            .map(|(tenant, seed)| scope.spawn(move || work(tenant, seed)))
            .into();
        for worker in workers {
            worker
                .join()
                .unwrap()
                .into_iter()
                .for_each(|(key, n)| *counted.entry(key).or_default() += n);
        }
    });

    let text = server.get("/metrics").text();
    let told = text.lines().filter_map(|line| {
        let line = line.strip_prefix("tenant_requests_total{tenant=\"")?;
        let (tenant, line) = line.split_once("\",status=\"")?;
        let (status, count) = line.split_once("\"} ")?;
        Some(((tenant.to_owned(), status.to_owned()), count.parse().unwrap()))
    });
    let told: BTreeMap<_, u64> = told.filter(|(_, count)| *count > 0).collect();
    assert_eq!(told, counted);

    // As many latencies as answers.
    let latencies = text.lines().filter(|line| line.starts_with("tenant_latency_seconds_count"));
    let latencies = latencies.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap());
    assert_eq!(latencies.sum::<u64>(), 800);
}

#[test]
fn metrics_are_open_metrics() {
    let server = Server::with_tenants(&["a"]);
    let hostile = "\"}\\ 1\u{1b}[31m<b>";
    let path = format!("/tenants/{}?max=1M", crate::server::encoded(hostile));
    assert_eq!(server.put(&path, b"").status, 201);
    assert_eq!(server.put("/tenants/a/documents/x", b"x").status, 201);
    let answer = server.get("/metrics");
    assert!(answer.headers["content-type"].starts_with("application/openmetrics-text"));
    // The parser knows of no histograms with units, which the standard allows.
    let text = answer.text();
    let is_known = |line: &&str| !line.starts_with("# UNIT tenant_latency_seconds ");
    let text: String = text.lines().filter(is_known).map(|line| format!("{line}\n")).collect();
    let families = parse_openmetrics(&text).unwrap().families;
    for name in [
        "tenant_requests",
        "tenant_latency_seconds",
        "tenant_documents",
        "memcg_current_bytes",
        "memcg_max_bytes",
        "memcg_events",
        "percpu_chunks",
    ] {
        assert!(families.contains_key(name), "{name} is missing among {:?}", families.keys());
    }
}

#[test]
fn the_snapshot_has_tenants_by_the_paths_of_their_cgroups() {
    let server = Server::with_tenants(&["a"]);
    assert_eq!(server.put("/tenants/a/documents/x", &[0; 5000]).status, 201);
    let snapshot = server.json("/snapshot.json");
    let cgroups = snapshot["cgroups"].as_array().unwrap();
    let paths: Vec<_> = cgroups.iter().map(|cgroup| cgroup["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["/", "/service", "/tenants", "/tenants/a"]);
    assert!(cgroups[3]["current"].as_u64().unwrap() >= 5000);
    assert_eq!(snapshot["tenants"]["/tenants/a"]["answers"]["201"], 1);
    let counts = snapshot["tenants"]["/tenants/a"]["latency"]["counts"].as_array().unwrap();
    assert_eq!(counts.iter().map(|count| count.as_u64().unwrap()).sum::<u64>(), 1);
    server.until("a sample was taken", |server| {
        !server.json("/history.json").as_array().unwrap().is_empty()
    });
    assert!(server.get("/chunks.svg").text().starts_with("<svg "));
}
