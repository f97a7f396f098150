//! Every text of cgroups that a person reads, with hostile names in all of them.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::time::Duration;

use insta::assert_snapshot;
use percpu_memcg::allocator::PerCpuAllocatorBuilder;
use percpu_memcg::cgroup::InMemcg;
use percpu_memcg::error::{BuildError, TreeError};
use percpu_memcg::machine::{CpuId, MAX_CPUS, MachineBuilder, NodeId};
use percpu_memcg::placement::Regions;
use percpu_memcg::{
    AllocError, Gfp, Limit, Machine, Memcg, PerCpu, PerCpuAllocator, PerCpuHistogram,
};

/// Control codes, a change of direction, blanks that are none, and what quotes and escapes are made of.
const HOSTILE: &str = "a\tb\u{1b}[31m\u{202e}c\u{a0}\\\"'é";

fn tree() -> (PerCpuAllocator, Memcg) {
    let builder = PerCpuAllocator::builder().machine(Machine::uniform(2).unwrap());
    let pcpu = builder.build().unwrap();
    let tenant = pcpu.root().create(HOSTILE).unwrap();
    (pcpu, tenant)
}

/// The messages, and the kinds of the `io::Error`s that they become.
fn lines<E>(errors: impl IntoIterator<Item = E>) -> String
where
    E: Error + Into<io::Error>,
{
    let line = |error: E| {
        let text = error.to_string();
        let error: io::Error = error.into();
        assert_eq!(error.to_string(), text);
        format!("{text} ({})\n", error.kind())
    };
    errors.into_iter().map(line).collect()
}

#[test]
fn a_cgroup() {
    let (_pcpu, tenant) = tree();
    tenant.set_max(Limit::bytes(3 << 20)).unwrap();
    let held = tenant.create("query").unwrap().charge(100_000).unwrap();
    assert_snapshot!(tenant, @r#"/a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é"#);
    assert_snapshot!(format!("{tenant:?}"), @r#"Memcg("/a\tb\u{1b}[31m\u{202e}c\u{a0}\\\"'é")"#);
    assert_snapshot!(tenant.figures(), @r#"/a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é: 100064 of 3145728, peak 100064, percpu 64, charged 100000"#);
    assert_snapshot!(format!("{:#}", tenant.figures()), @r#"/a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é: 97.7 KiB of 3 MiB, peak 97.7 KiB, percpu 64 B, charged 97.7 KiB"#);
    assert_snapshot!(format!("{:?}", tenant.figures().path_label().to_string()), @r#""/a\tb\u{1b}[31m\u{202e}c\u{a0}\\\\\\\"'é""#);
    assert_snapshot!(format!("{held:?}"), @r#"Charge { cgroup: "/a\tb\u{1b}[31m\u{202e}c\u{a0}\\\"'é/query", bytes: 100000 }"#);
    assert_snapshot!(format!("{:?}", std::future::ready(1).in_memcg(&tenant)), @r#"InMemcgFuture { cgroup: "/a\tb\u{1b}[31m\u{202e}c\u{a0}\\\"'é", .. }"#);
    let labelled = [(HOSTILE, 2000), ("rows", 10)]
        .map(|(label, bytes)| tenant.charge(bytes).unwrap().labelled(label));
    assert_snapshot!(tenant.figures(), @r#"/a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é: 102074 of 3145728, peak 102074, percpu 64, charged 102010 (a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é 2000, rows 10)"#);
    assert_snapshot!(format!("{:#}", tenant.figures()), @r#"/a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é: 99.7 KiB of 3 MiB, peak 99.7 KiB, percpu 64 B, charged 99.6 KiB (a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é 2.0 KiB, rows 10 B)"#);
    assert_snapshot!(format!("{:?}", labelled[0]), @r#"Charge { cgroup: "/a\tb\u{1b}[31m\u{202e}c\u{a0}\\\"'é", label: "a\tb\u{1b}[31m\u{202e}c\u{a0}\\\"'é", bytes: 2000 }"#);
    assert_snapshot!(format!("{:?}", tenant.enter()), @"EnterGuard { .. }");
    assert_snapshot!(tenant.events(), @"
    low 0
    high 0
    max 0
    oom 0
    oom_kill 0
    oom_group_kill 0
    ");
}

#[test]
fn a_tree() {
    let (pcpu, tenant) = tree();
    tenant.set_max(Limit::bytes(3 << 20)).unwrap();
    let long = tenant.create(&"long name ".repeat(5)).unwrap();
    let other = pcpu.root().create("b").unwrap();
    other.set_max(Limit::from(5 << 30)).unwrap();
    let _held = [(&tenant, 1500), (&long, 2_000_000), (&other, 7)]
        .map(|(cgroup, bytes)| cgroup.charge(bytes).unwrap());
    let snapshot = pcpu.root().snapshot();
    assert_snapshot!(snapshot.tree(), @r#"
    cgroup                                    current         max     peak  percpu  charged  cached
    /                                         2001571         max  2001571      64  2001507       0
      a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é      2001564     3145728  2001564      64  2001500       0
        long name long name long name long name long name   2000000         max  2000000       0  2000000       0
      b                                             7  5368709120        7       0        7       0
    "#);
    assert_snapshot!(format!("{:#}", snapshot.tree()), @r#"
    cgroup                                    current    max     peak  percpu  charged  cached
    /                                         1.9 MiB    max  1.9 MiB    64 B  1.9 MiB     0 B
      a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é      1.9 MiB  3 MiB  1.9 MiB    64 B  1.9 MiB     0 B
        long name long name long name long name long name   1.9 MiB    max  1.9 MiB     0 B  1.9 MiB     0 B
      b                                           7 B  5 GiB      7 B     0 B      7 B     0 B
    "#);
    assert_snapshot!(format!("{:#}", snapshot.tree().top(1)), @r#"
    cgroup                                    current    max     peak  percpu  charged  cached
    /                                         1.9 MiB    max  1.9 MiB    64 B  1.9 MiB     0 B
      a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é      1.9 MiB  3 MiB  1.9 MiB    64 B  1.9 MiB     0 B
        long name long name long name long name long name   1.9 MiB    max  1.9 MiB     0 B  1.9 MiB     0 B
      … 1 more                                    7 B
    "#);
    assert_snapshot!(snapshot.tree().depth(1), @r#"
    cgroup                                current         max     peak  percpu  charged  cached
    /                                     2001571         max  2001571      64  2001507       0
      a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é  2001564     3145728  2001564      64  2001500       0  … 1 below
      b                                         7  5368709120        7       0        7       0
    "#);
}

#[test]
fn metrics_and_folded_stacks() {
    let (_pcpu, tenant) = tree();
    let _held = tenant.create("query").unwrap().charge(1000).unwrap().labelled(HOSTILE);
    let metrics = tenant.snapshot().open_metrics().depth(0).to_string();
    // Labels of Prometheus have three escapes, so the rest is shown here as Rust escapes it.
    let lines: Vec<String> = metrics.lines().map(|line| line.escape_debug().to_string()).collect();
    assert_snapshot!(lines.join("\n").replace("\\\"", "\""), @r#"
    # TYPE memcg_current_bytes gauge
    # UNIT memcg_current_bytes bytes
    # HELP memcg_current_bytes Bytes in use.
    memcg_current_bytes{cgroup="/a\tb\u{1b}[31m\u{202e}c\u{a0}\\\\\\"\'é"} 1064
    # TYPE memcg_peak_bytes gauge
    # UNIT memcg_peak_bytes bytes
    # HELP memcg_peak_bytes The most bytes that were ever in use.
    memcg_peak_bytes{cgroup="/a\tb\u{1b}[31m\u{202e}c\u{a0}\\\\\\"\'é"} 1064
    # TYPE memcg_percpu_bytes gauge
    # UNIT memcg_percpu_bytes bytes
    # HELP memcg_percpu_bytes Bytes in use by per-CPU areas.
    memcg_percpu_bytes{cgroup="/a\tb\u{1b}[31m\u{202e}c\u{a0}\\\\\\"\'é"} 64
    # TYPE memcg_charged_bytes gauge
    # UNIT memcg_charged_bytes bytes
    # HELP memcg_charged_bytes Bytes in use by charges.
    memcg_charged_bytes{cgroup="/a\tb\u{1b}[31m\u{202e}c\u{a0}\\\\\\"\'é"} 1000
    # TYPE memcg_labelled_bytes gauge
    # UNIT memcg_labelled_bytes bytes
    # HELP memcg_labelled_bytes Bytes in use by charges that have a label.
    memcg_labelled_bytes{cgroup="/a\tb\u{1b}[31m\u{202e}c\u{a0}\\\\\\"\'é",label="a\tb\u{1b}[31m\u{202e}c\u{a0}\\\\\\"\'é"} 1000
    # TYPE memcg_cached_bytes gauge
    # UNIT memcg_cached_bytes bytes
    # HELP memcg_cached_bytes Bytes in stocks, which are not in use.
    memcg_cached_bytes{cgroup="/a\tb\u{1b}[31m\u{202e}c\u{a0}\\\\\\"\'é"} 0
    # TYPE memcg_min_bytes gauge
    # UNIT memcg_min_bytes bytes
    # HELP memcg_min_bytes Protection that always holds.
    memcg_min_bytes{cgroup="/a\tb\u{1b}[31m\u{202e}c\u{a0}\\\\\\"\'é"} 0
    # TYPE memcg_low_bytes gauge
    # UNIT memcg_low_bytes bytes
    # HELP memcg_low_bytes Protection that yields when nothing else is left.
    memcg_low_bytes{cgroup="/a\tb\u{1b}[31m\u{202e}c\u{a0}\\\\\\"\'é"} 0
    # TYPE memcg_events counter
    # HELP memcg_events Events by kind.
    memcg_events_total{cgroup="/a\tb\u{1b}[31m\u{202e}c\u{a0}\\\\\\"\'é",event="low"} 0
    memcg_events_total{cgroup="/a\tb\u{1b}[31m\u{202e}c\u{a0}\\\\\\"\'é",event="high"} 0
    memcg_events_total{cgroup="/a\tb\u{1b}[31m\u{202e}c\u{a0}\\\\\\"\'é",event="max"} 0
    memcg_events_total{cgroup="/a\tb\u{1b}[31m\u{202e}c\u{a0}\\\\\\"\'é",event="oom"} 0
    memcg_events_total{cgroup="/a\tb\u{1b}[31m\u{202e}c\u{a0}\\\\\\"\'é",event="oom_kill"} 0
    memcg_events_total{cgroup="/a\tb\u{1b}[31m\u{202e}c\u{a0}\\\\\\"\'é",event="oom_group_kill"} 0
    # TYPE memcg_threads gauge
    # HELP memcg_threads Threads attached to the cgroup itself.
    memcg_threads{cgroup="/a\tb\u{1b}[31m\u{202e}c\u{a0}\\\\\\"\'é"} 0
    # TYPE memcg_dying_descendants gauge
    # HELP memcg_dying_descendants Removed descendants to which a handle still refers.
    memcg_dying_descendants{cgroup="/a\tb\u{1b}[31m\u{202e}c\u{a0}\\\\\\"\'é"} 0
    # EOF
    "#);
    assert_snapshot!(tenant.snapshot().folded(), @r#"
    a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é;[percpu] 64
    a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é;query;[charged];a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é 1000
    "#);
}

#[test]
fn refusals() {
    let (pcpu, tenant) = tree();
    let query = tenant.create("query").unwrap();
    let _held = query.charge(9_000).unwrap();
    tenant.set_max(Limit::bytes(10_000)).unwrap();
    let by_itself = tenant.charge(2_000).unwrap_err();
    let by_parent = query.charge(3 << 20).unwrap_err();
    assert_snapshot!(by_parent.report(), @r#"cgroup /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é refuses 3145728 bytes to /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é/query: 9064 of 10000 bytes are in use; most by /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é/query 9000"#);
    assert_snapshot!(format!("{:#}", by_parent.report()), @r#"cgroup /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é refuses 3 MiB to /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é/query: 8.9 KiB of 9.8 KiB are in use; most by /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é/query 8.8 KiB"#);
    assert_snapshot!(format!("{:#}", *by_parent), @r#"cgroup /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é refuses 3 MiB to /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é/query: 8.9 KiB of 9.8 KiB are in use"#);
    assert_snapshot!(lines([by_itself, by_parent]), @r#"
    cgroup /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é refuses 2000 bytes: 9064 of 10000 bytes are in use (out of memory)
    cgroup /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é refuses 3145728 bytes to /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é/query: 9064 of 10000 bytes are in use (out of memory)
    "#);
    tenant.set_max(Limit::bytes(0)).unwrap();
    let area = |of: &Memcg| PerCpu::<u64>::zeroed_for(of).unwrap_err();
    let too_large = PerCpu::<[u64; 1 << 20]>::zeroed_in(&pcpu, Gfp::KERNEL).unwrap_err();
    let no_room = PerCpu::<[u64; 4000]>::zeroed_in(&pcpu, Gfp::NOWAIT).unwrap_err();
    assert_snapshot!(lines([area(&query), too_large, no_room, AllocError::OtherTree]), @r#"
    cgroup /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é refuses 32 bytes to /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é/query: 9064 of 0 bytes are in use (out of memory)
    an area of 8388608 bytes was asked for, the largest is 32768 (invalid input parameter)
    no room for 32000 bytes, in populated memory or in the reserved region (out of memory)
    the cgroup to charge belongs to another allocator (invalid input parameter)
    "#);
    let mut rows = tenant.account(Vec::<u64>::new());
    let by_limit = rows.reserve(10).unwrap_err();
    tenant.set_max(Limit::unlimited()).unwrap();
    let by_heap = rows.reserve(usize::MAX).unwrap_err();
    assert_snapshot!(lines([by_limit, by_heap]), @r#"
    cgroup /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é refuses 80 bytes: 9064 of 0 bytes are in use (out of memory)
    memory allocation failed because the computed capacity exceeded the collection's maximum (out of memory)
    "#);
}

#[test]
fn charges() {
    let (pcpu, tenant) = tree();
    let mut charge = tenant.charge(100).unwrap();
    assert_snapshot!(lines([charge.shrink(200).unwrap_err()]), @"a charge of 100 bytes cannot shrink by 200 (invalid input parameter)");
    assert_snapshot!(lines([charge.merge(pcpu.root().charge(1).unwrap()).unwrap_err()]), @"the charges belong to different cgroups or have different labels (cross-device link or rename)");
    assert_snapshot!(lines([tenant.reclaim(1000).unwrap_err()]), @"0 of 1000 bytes could be reclaimed (operation would block)");
}

#[test]
fn the_tree_of_cgroups() {
    let (pcpu, tenant) = tree();
    let root = pcpu.root();
    let of_parent = |set: &dyn Fn(), undo: &dyn Fn()| {
        set();
        let error = tenant.create(HOSTILE).unwrap_err();
        undo();
        error
    };
    let query = tenant.create("query").unwrap();
    let mut errors = vec![
        root.find("no\n\u{202e}body").unwrap_err(),
        root.create(HOSTILE).unwrap_err(),
        root.create("a\nb/\u{1b}").unwrap_err(),
        root.create("memory.\u{7}max").unwrap_err(),
        tenant.remove().unwrap_err(),
        root.remove().unwrap_err(),
        of_parent(&|| tenant.set_max_depth(Some(0)).unwrap(), &|| {
            tenant.set_max_depth(None).unwrap();
        }),
        of_parent(&|| tenant.set_max_descendants(Some(1)).unwrap(), &|| {
            tenant.set_max_descendants(None).unwrap();
        }),
        of_parent(&|| tenant.set_max(Limit::bytes(0)).unwrap(), &|| {
            tenant.set_max(Limit::MAX).unwrap();
        }),
    ];
    query.remove().unwrap();
    errors.extend([query.create("sort").unwrap_err(), TreeError::ThreadEnding]);
    assert_snapshot!(lines(errors), @r#"
    there is no cgroup no\n\u{202e}body (entity not found)
    cgroup /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é exists already (entity already exists)
    "a\nb/\u{1b}" is no cgroup name: 1 to 255 bytes, no slash, newline or zero, not "." or ".." (invalid input parameter)
    a cgroup cannot be named memory.\u{7}max, which is the name of an interface file (entity already exists)
    cgroup /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é is busy: 1 children, 0 threads (resource busy)
    the root cgroup can be neither removed nor limited, killed or frozen (resource busy)
    cgroup /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é/a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é would be too deep: /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é allows a depth of 0 (operation would block)
    cgroup /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é/a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é would be one too many: /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é allows 1 descendants (operation would block)
    no memory for the statistics of cgroup /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é/a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é: cgroup /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é refuses 64 bytes: 64 of 0 bytes are in use (out of memory)
    cgroup /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é/query was removed (uncategorized error)
    the thread is about to end (uncategorized error)
    "#);
}

#[test]
fn what_cannot_be_built() {
    let (cpu, node) = (CpuId::new, NodeId::new);
    let machine = |builder: MachineBuilder| builder.build().unwrap_err();
    assert_snapshot!(lines([
        machine(Machine::builder()),
        machine(Machine::builder().cpu(cpu(MAX_CPUS as u32), node(0))),
        machine(Machine::builder().cpu(cpu(0), node(u32::MAX))),
        machine(Machine::builder().cpu(cpu(3), node(0)).cpu(cpu(3), node(1))),
        machine(Machine::builder().cpu(cpu(0), node(0)).distance(node(0), node(0), 0)),
    ]), @r#"
    a machine needs at least one CPU (invalid input parameter)
    CPU 1024 is out of range: ids must be below 1024 (invalid input parameter)
    NUMA node 4294967295 is out of range: ids must be below 1024 (invalid input parameter)
    CPU 3 was added twice (entity already exists)
    the distance from NUMA node 0 to 0 must not be zero (invalid input parameter)
    "#);

    let with = |change: fn(PerCpuAllocatorBuilder) -> PerCpuAllocatorBuilder| {
        let builder = PerCpuAllocator::builder().machine(Machine::uniform(2).unwrap());
        change(builder).build().map(drop).unwrap_err()
    };
    let full = Machine::uniform(2).unwrap();
    full.faults().fail_all(None);
    let no_memory = PerCpuAllocator::builder().machine(full).build().map(drop).unwrap_err();
    let BuildError::Memory(mapping) = no_memory else { panic!("{no_memory}") };
    assert_snapshot!(lines([
        with(|builder| builder.unit_size(12_345)),
        with(|builder| builder.unit_size(4 << 20)),
        with(|builder| builder.regions(Regions { static_size: 1 << 20, ..Regions::DEFAULT })),
        with(|builder| builder.regions(Regions { reserved_size: 3, ..Regions::DEFAULT })),
        with(|builder| builder.regions(Regions { dyn_size: 0, ..Regions::DEFAULT })),
    ]), @r#"
    a unit must be a multiple of 4096 bytes, 32768 at least, not 12345 (invalid input parameter)
    a unit of 4194304 bytes is above 2 MiB (invalid input parameter)
    regions of 1077248 bytes do not fit into a unit of 262144 (invalid input parameter)
    a reserved region of 3 bytes is no multiple of 4 (invalid input parameter)
    the first chunk has no dynamic region (invalid input parameter)
    "#);
    // The text of the C library follows.
    assert!(mapping.to_string().starts_with("cannot reserve "), "{mapping}");

    let histogram = PerCpuHistogram::new_for(&tree().1, [1, 5, 5]).unwrap_err();
    assert_snapshot!(lines([histogram]), @"bound 2 is 5, not above the one before it (invalid input parameter)");
}

#[test]
fn what_a_removed_cgroup_left() {
    let (pcpu, tenant) = tree();
    let query = tenant.create("query\u{85}").unwrap();
    assert_snapshot!(query.remove_with_report().unwrap(), @r#"/a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é/query\u{85} left nothing to /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é"#);
    let areas: BTreeMap<u32, _> = (0..3).map(|n| (n, PerCpu::<u64>::zeroed_for(&tenant))).collect();
    let _held = tenant.charge(1 << 21).unwrap();
    let _labelled = tenant.charge(3000).unwrap().labelled(HOSTILE);
    let report = tenant.remove_with_report().unwrap();
    assert_snapshot!(report, @r#"/a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é left to /: 96 bytes of areas (3 of 8), 2100152 bytes of charges (a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é 3000)"#);
    assert_snapshot!(format!("{report:#}"), @r#"/a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é left to /: 96 B of areas (3 of 8), 2.0 MiB of charges (a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é 2.9 KiB)"#);
    drop((areas, pcpu));
}

#[test]
fn files() {
    let (_pcpu, tenant) = tree();
    let files = tenant.parent().unwrap().files();
    let at = |file: &str| format!("{HOSTILE}/{file}");
    let write = |file: &str, text: &str| files.write(&at(file), text).unwrap_err();
    let errors = [
        files.read(&at("no\nbody")).unwrap_err(),
        files.read(HOSTILE).unwrap_err(),
        files.create(&at("memory.max/b")).unwrap_err(),
        files.read(&at("memory.reclaim")).unwrap_err(),
        write("memory.current", "1"),
        write("memory.max", "64 \u{1b}M"),
        write("memory.max", "16E"),
        write("memory.reclaim", "1M swap=1"),
        write("memory.reclaim", "1M"),
        write("memory.oom.group", "2"),
        write("cgroup.freeze", "2"),
        write("cgroup.kill", "0"),
        write("cgroup.max.depth", "-1"),
        write("cgroup.max.depth", "deep\u{2066}"),
        write("cgroup.procs", "me"),
        write("cgroup.procs", "2147483646"),
        write("cgroup.type", "threaded"),
        write("cgroup.type", "\u{202e}domain"),
        files.create(HOSTILE).unwrap_err(),
    ];
    assert_snapshot!(lines(errors), @r#"
    there is no a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é/no\nbody (entity not found)
    a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é is a cgroup, not a file (is a directory)
    a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é/memory.max leads through a file (not a directory)
    /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é/memory.reclaim can only be written (permission denied)
    /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é/memory.current can only be read (permission denied)
    /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é/memory.max: "64 \u{1b}M" is malformed: expected a number of bytes below 2^64, such as 4096, 0x1000 or 64M, or max (invalid input parameter)
    /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é/memory.max: "16E" is out of range: expected a number of bytes below 2^64, such as 4096, 0x1000 or 64M, or max (uncategorized error)
    /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é/memory.reclaim: "1M swap=1" is malformed: expected a number of bytes such as 4096 or 64M, perhaps with swappiness=0 to 200 or max (invalid input parameter)
    0 of 1048576 bytes could be reclaimed (operation would block)
    /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é/memory.oom.group: "2" is malformed: expected 0 or 1 (invalid input parameter)
    /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é/cgroup.freeze: "2" is out of range: expected 0 or 1 (uncategorized error)
    /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é/cgroup.kill: "0" is out of range: expected 1 (uncategorized error)
    /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é/cgroup.max.depth: "-1" is out of range: expected a number below 2^31, or max (uncategorized error)
    /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é/cgroup.max.depth: "deep\u{2066}" is malformed: expected a number below 2^31, or max (invalid input parameter)
    /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é/cgroup.procs: "me" is malformed: expected the id of the calling thread, or 0 (invalid input parameter)
    there is no thread 2147483646 (uncategorized error)
    /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é/cgroup.type: "threaded" is not supported (unsupported)
    /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é/cgroup.type: "\u{202e}domain" is nothing that can be written (invalid input parameter)
    cgroup /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é exists already (entity already exists)
    "#);
    let _held = tenant.charge(1000).unwrap();
    let listed: String = files
        .list(HOSTILE)
        .unwrap()
        .iter()
        .filter_map(|file| Some(format!("{file}: {:?}\n", files.read(&at(file)).ok()?)))
        .collect();
    assert_snapshot!(listed, @r#"
    cgroup.controllers: "memory\n"
    cgroup.events: "populated 0\nfrozen 0\n"
    cgroup.freeze: "0\n"
    cgroup.max.depth: "max\n"
    cgroup.max.descendants: "max\n"
    cgroup.procs: ""
    cgroup.stat: "nr_descendants 0\nnr_subsys_memory 1\nnr_dying_descendants 0\nnr_dying_subsys_memory 0\n"
    cgroup.subtree_control: "memory\n"
    cgroup.threads: ""
    cgroup.type: "domain\n"
    memory.current: "1000\n"
    memory.events: "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n"
    memory.events.local: "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n"
    memory.high: "max\n"
    memory.low: "0\n"
    memory.max: "max\n"
    memory.min: "0\n"
    memory.numa_stat: "percpu N0=0\n"
    memory.oom.group: "0\n"
    memory.peak: "1000\n"
    memory.stat: "kernel 1000\npercpu 0\ncharged 1000\ncached 0\n"
    "#);
}

#[test]
fn a_batch_of_events() {
    let (pcpu, tenant) = tree();
    let mut watch = pcpu.root().watch_tree(Duration::ZERO);
    tenant.set_max(Limit::from(0)).unwrap();
    assert!(tenant.charge(1).is_err());
    assert_snapshot!(watch.wait_timeout(Duration::ZERO).unwrap(), @r#"
    /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é: max 1
    /a\tb\u{1b}[31m\u{202e}c\u{a0}\\"'é: oom 1
    "#);
    assert_snapshot!(format!("{watch:?}"), @"TreeWatch { interval: 0ns, .. }");
}

#[test]
fn the_allocator() {
    let (pcpu, tenant) = tree();
    let _area = PerCpu::<u64>::zeroed_for(&tenant).unwrap();
    let text = percpu_memcg::report::Snapshot::take(&pcpu).to_string();
    assert_snapshot!(text.lines().take(12).collect::<Vec<_>>().join("\n"), @"
    Percpu Memory Statistics
    Allocation Info:
    ----------------------------------------
      unit_size           :       262144
      static_size         :            0
      reserved_size       :            0
      dyn_size            :        28672
      atom_size           :         4096
      alloc_size          :       262144

    Global Stats:
    ----------------------------------------
    ");
    let area = pcpu.alloc(std::alloc::Layout::new::<u64>(), Gfp::KERNEL).unwrap();
    // SAFETY: the area is not used; the second call is refused.
    let [first, again] = [(); 2].map(|()| unsafe { pcpu.free(area) });
    first.unwrap();
    let again = again.unwrap_err();
    let address = format!("{:#x}", area.as_ptr().addr());
    assert_snapshot!(lines([again]).replace(&address, "ADDRESS"), @"no live area starts at address ADDRESS (invalid input parameter)");
}
