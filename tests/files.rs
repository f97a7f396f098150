//! The interface files of cgroup v2: exact texts, error numbers, and what a write does.

use percpu_memcg::machine::{CpuId, NodeId};
use percpu_memcg::report::CgroupFiles;
use percpu_memcg::{Gfp, Machine, Memcg, PerCpuAllocator};
use proptest::prelude::*;

fn tenant() -> (PerCpuAllocator, Memcg, CgroupFiles) {
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let files = tenant.files();
    (pcpu, tenant, files)
}

/// Every file of a new cgroup.
const FRESH: &[(&str, &str)] = &[
    ("cgroup.controllers", "memory\n"),
    ("cgroup.events", "populated 0\nfrozen 0\n"),
    ("cgroup.freeze", "0\n"),
    ("cgroup.max.depth", "max\n"),
    ("cgroup.max.descendants", "max\n"),
    ("cgroup.procs", ""),
    (
        "cgroup.stat",
        "nr_descendants 0\nnr_subsys_memory 1\nnr_dying_descendants 0\nnr_dying_subsys_memory 0\n",
    ),
    ("cgroup.subtree_control", "memory\n"),
    ("cgroup.threads", ""),
    ("cgroup.type", "domain\n"),
    ("memory.current", "0\n"),
    ("memory.events", "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n"),
    ("memory.events.local", "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n"),
    ("memory.high", "max\n"),
    ("memory.low", "0\n"),
    ("memory.max", "max\n"),
    ("memory.min", "0\n"),
    ("memory.oom.group", "0\n"),
    ("memory.peak", "0\n"),
    ("memory.stat", "kernel 0\npercpu 0\ncharged 0\ncached 0\n"),
];

#[test]
fn a_new_cgroup_reads_as_the_kernel_writes_it() {
    let (_pcpu, _tenant, files) = tenant();
    for (file, text) in FRESH {
        assert_eq!(files.read(file).unwrap(), *text, "{file}");
    }
    let mut names: Vec<&str> = FRESH.iter().map(|(file, _)| *file).collect();
    names.extend(["cgroup.kill", "memory.numa_stat", "memory.reclaim"]);
    names.sort_unstable();
    assert_eq!(files.list("").unwrap(), names);
}

#[test]
fn the_root_has_no_limits_and_no_usage() {
    let (pcpu, ..) = tenant();
    let files = pcpu.files();
    let names = [
        "cgroup.controllers",
        "cgroup.max.depth",
        "cgroup.max.descendants",
        "cgroup.procs",
        "cgroup.stat",
        "cgroup.subtree_control",
        "cgroup.threads",
        "memory.numa_stat",
        "memory.reclaim",
        "memory.stat",
        "tenant",
    ];
    assert_eq!(files.list("/").unwrap(), names);
    assert_eq!(files.read("memory.max").unwrap_err().errno(), libc::ENOENT);
    assert_eq!(files.read("/tenant//memory.max").unwrap(), "max\n");
}

#[test]
fn what_was_written_reads_back() {
    let (_pcpu, tenant, files) = tenant();
    for (file, written, read) in [
        ("memory.max", "64M", "67108864\n"),
        ("memory.max", " 4095 \n", "4095\n"),
        ("memory.max", "max\n", "max\n"),
        ("memory.high", "0x1000", "4096\n"),
        ("memory.low", "010", "8\n"),
        ("memory.min", "1k", "1024\n"),
        ("memory.oom.group", "1\n", "1\n"),
        ("cgroup.max.depth", "2147483646", "2147483646\n"),
        ("cgroup.max.depth", "2147483647", "max\n"),
        ("cgroup.max.depth", "3", "3\n"),
        ("cgroup.max.descendants", "0", "0\n"),
    ] {
        assert_eq!(files.write(file, written), Ok(written.len()), "{file}");
        assert_eq!(files.read(file).unwrap(), read, "{file}");
    }
    assert_eq!(tenant.create("child").unwrap_err().errno(), libc::EAGAIN);
}

#[test]
fn bad_input_has_the_kernels_error_number_and_changes_nothing() {
    let (_pcpu, _tenant, files) = tenant();
    files.write("memory.max", "64M").unwrap();
    for (file, text, errno) in [
        ("cgroup.procs", "99999999999", libc::EINVAL),
        ("cgroup.procs", "2147483648", libc::EINVAL),
        ("cgroup.procs", "-2147483649", libc::EINVAL),
        ("cgroup.procs", "0x80000000", libc::EINVAL),
        ("cgroup.procs", "99999999999999999999", libc::EINVAL),
        ("cgroup.procs", "self", libc::EINVAL),
        ("cgroup.procs", "\n", libc::EINVAL),
        ("cgroup.procs", "1 2", libc::EINVAL),
        ("cgroup.threads", "99999999999", libc::EINVAL),
        ("cgroup.threads", "-1", libc::EINVAL),
        ("cgroup.threads", "1", libc::EOPNOTSUPP),
        ("cgroup.threads", "2147483647", libc::ESRCH),
        ("cgroup.max.depth", "99999999999", libc::ERANGE),
        ("cgroup.max.depth", "2147483648", libc::ERANGE),
        ("cgroup.max.depth", "one", libc::EINVAL),
        ("cgroup.max.descendants", "-1", libc::ERANGE),
        ("cgroup.max.descendants", "99999999999", libc::ERANGE),
        ("cgroup.max.descendants", "", 0),
        ("memory.oom.group", "99999999999", libc::ERANGE),
        ("memory.oom.group", "-1", libc::EINVAL),
        ("memory.oom.group", "yes", libc::EINVAL),
        ("memory.reclaim", "1K swappiness=99999999999", libc::EINVAL),
        ("memory.reclaim", "99999999999999999999", libc::ERANGE),
        ("memory.low", "99999999999999999999", libc::ERANGE),
        ("cgroup.freeze", "2", libc::ERANGE),
        ("cgroup.freeze", "-1", libc::ERANGE),
        ("cgroup.freeze", "99999999999", libc::ERANGE),
        ("cgroup.freeze", "on", libc::EINVAL),
        ("cgroup.freeze", "\n", libc::EINVAL),
        ("cgroup.kill", "0", libc::ERANGE),
        ("cgroup.kill", "2", libc::ERANGE),
        ("cgroup.kill", "99999999999", libc::ERANGE),
        ("cgroup.kill", "all", libc::EINVAL),
        ("cgroup.type", "threaded", libc::EOPNOTSUPP),
        ("cgroup.type", "threaded\n", libc::EOPNOTSUPP),
        ("cgroup.type", "domain", libc::EINVAL),
        ("cgroup.type", "domain threaded", libc::EINVAL),
        ("cgroup.type", "\n", libc::EINVAL),
        ("cgroup.subtree_control", "memory", libc::EINVAL),
        ("cgroup.subtree_control", "+cpu", libc::EINVAL),
        ("cgroup.subtree_control", "-io", libc::EINVAL),
        ("cgroup.subtree_control", "+memory +cpu", libc::EINVAL),
        ("cgroup.subtree_control", "+ memory", libc::EINVAL),
        ("cgroup.subtree_control", "+Memory", libc::EINVAL),
        ("cgroup.subtree_control", "-memory", libc::EOPNOTSUPP),
        ("cgroup.subtree_control", "+memory -memory", libc::EOPNOTSUPP),
        ("cgroup.controllers", "+memory", libc::EACCES),
        ("memory.numa_stat", "1", libc::EACCES),
        ("memory.swap.max", "1", libc::ENOENT),
        ("memory.pressure", "some 1 2", libc::ENOENT),
        ("memory.max", "1.5G", libc::EINVAL),
        ("memory.max", "10KB", libc::EINVAL),
        ("memory.max", "-1", libc::EINVAL),
        ("memory.max", "\n", libc::EINVAL),
        ("memory.max", "K", libc::EINVAL),
        ("memory.max", "16E", libc::ERANGE),
        ("memory.oom.group", "2", libc::EINVAL),
        ("cgroup.max.depth", "-1", libc::ERANGE),
        ("cgroup.procs", "-1", libc::EINVAL),
        ("cgroup.procs", "1", libc::EOPNOTSUPP),
        ("cgroup.procs", "2147483647", libc::ESRCH), // beyond the largest id that there can be
        ("memory.reclaim", "max", libc::EINVAL),
        ("memory.reclaim", "1M", libc::EAGAIN),
        ("memory.current", "1", libc::EACCES),
        ("nothing", "1", libc::ENOENT),
        ("", "1", libc::EISDIR),
        ("memory.max/more", "1", libc::ENOTDIR),
    ] {
        let errno_of = |error: percpu_memcg::error::FileError| {
            let names_it = error.to_string().contains(file.split('/').next().unwrap());
            assert!(names_it || matches!(error.errno(), libc::ESRCH | libc::EAGAIN) || text == "1");
            error.errno()
        };
        assert_eq!(files.write(file, text).map_or_else(errno_of, |_| 0), errno, "{file} {text:?}");
    }
    assert_eq!(files.read("memory.reclaim").unwrap_err().errno(), libc::EACCES);
    assert_eq!(files.read("memory.max").unwrap(), "67108864\n");
    assert_eq!(files.write("memory.max", ""), Ok(0), "an empty write does nothing");
}

/// What hostile values do, for each kind of file: the error number, or 0.
#[test]
fn every_hostile_value_is_taken_or_refused_as_documented() {
    use libc::{EAGAIN, EINVAL, EOPNOTSUPP, ERANGE, ESRCH};
    let columns = ["memory.max", "cgroup.max.depth", "memory.oom.group", "cgroup.freeze"];
    let more = ["cgroup.kill", "cgroup.type", "cgroup.subtree_control", "memory.reclaim"];
    let files = columns.into_iter().chain(more).chain(["cgroup.procs"]);
    let long = "9".repeat(5000);
    let zeros = format!("{}1", "0".repeat(5000)); // octal, as one with fewer zeros
    #[rustfmt::skip]
    let table: &[(&str, [i32; 9])] = &[
        ("", [0; 9]),
        (" ", [EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, 0, EINVAL, EINVAL]),
        ("\t", [EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, 0, EINVAL, EINVAL]),
        ("\n", [EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, 0, EINVAL, EINVAL]),
        ("\0", [EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, 0, EINVAL, EINVAL]),
        ("\0max", [EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, 0, EINVAL, EINVAL]),
        ("max", [0, 0, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL]),
        ("max\0", [0, 0, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL]),
        ("max\0junk", [0, 0, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL]),
        ("\x0b max\r\n", [0, 0, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL]),
        ("MAX", [EINVAL; 9]),
        ("max max", [EINVAL; 9]),
        ("\u{a0}max", [EINVAL; 9]),
        ("\u{ff15}", [EINVAL; 9]), // a digit, but not one of C
        ("-1", [EINVAL, ERANGE, EINVAL, ERANGE, ERANGE, EINVAL, EINVAL, EINVAL, EINVAL]),
        ("-0", [EINVAL, 0, 0, 0, ERANGE, EINVAL, EINVAL, EINVAL, 0]),
        ("+1", [EINVAL, 0, 0, 0, 0, EINVAL, EINVAL, EINVAL, EOPNOTSUPP]),
        ("0x1", [0, 0, 0, 0, 0, EINVAL, EINVAL, EAGAIN, EOPNOTSUPP]),
        ("0X", [EINVAL; 9]),
        ("08", [EINVAL; 9]),
        ("0b1", [EINVAL; 9]),
        ("1_000", [EINVAL; 9]),
        ("1 2", [EINVAL; 9]),
        ("1\n2", [EINVAL; 9]),
        ("1.5G", [EINVAL; 9]),
        ("1e3", [EINVAL; 9]),
        ("1K", [0, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EAGAIN, EINVAL]),
        ("1e", [0, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EAGAIN, EINVAL]),
        ("K", [EINVAL; 9]),
        ("2147483647", [0, 0, EINVAL, ERANGE, ERANGE, EINVAL, EINVAL, EAGAIN, ESRCH]),
        ("2147483648", [0, ERANGE, ERANGE, ERANGE, ERANGE, EINVAL, EINVAL, EAGAIN, EINVAL]),
        ("18446744073709551615", [0, ERANGE, ERANGE, ERANGE, ERANGE, EINVAL, EINVAL, EAGAIN, EINVAL]),
        ("18446744073709551616", [ERANGE, ERANGE, ERANGE, ERANGE, ERANGE, EINVAL, EINVAL, ERANGE, EINVAL]),
        ("16E", [ERANGE, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, ERANGE, EINVAL]),
        (&long, [ERANGE, ERANGE, ERANGE, ERANGE, ERANGE, EINVAL, EINVAL, ERANGE, EINVAL]),
        (&zeros, [0, 0, 0, 0, 0, EINVAL, EINVAL, EAGAIN, EOPNOTSUPP]),
        ("threaded", [EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EOPNOTSUPP, EINVAL, EINVAL, EINVAL]),
        ("+memory", [EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, 0, EINVAL, EINVAL]),
        ("+memory\0 +cpu", [EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, 0, EINVAL, EINVAL]),
        ("+memory\n+memory", [EINVAL; 9]),
        ("+memory\n +memory", [EINVAL; 9]), // the line feed is within, and so part of a name
        ("+memory -memory +memory", [EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, 0, EINVAL, EINVAL]),
        ("-memory", [EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EOPNOTSUPP, EINVAL, EINVAL]),
        ("+memory,+memory", [EINVAL; 9]),
        ("1 swappiness=201", [EINVAL; 9]),
        ("1 swappiness=60", [EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EAGAIN, EINVAL]),
    ];
    let (pcpu, _tenant, _) = tenant();
    for (column, file) in files.enumerate() {
        for (text, errnos) in table {
            let files = pcpu.root().create("fresh").unwrap().files();
            let written = files.write(file, text);
            let errno = written.as_ref().map_or_else(|error| error.errno(), |_| 0);
            assert_eq!(errno, errnos[column], "{file} {text:.20?}: {written:?}");
            assert!(written.is_err() || written == Ok(text.len()));
            pcpu.root().attach_thread().unwrap();
            pcpu.files().remove("fresh").unwrap();
        }
    }
    for same in ["memory.high", "memory.low", "memory.min"] {
        for (text, errnos) in table {
            let files = pcpu.root().create("fresh").unwrap().files();
            let errno = files.write(same, text).map_or_else(|error| error.errno(), |_| 0);
            assert_eq!(errno, errnos[0], "{same} {text:.20?}");
            pcpu.files().remove("fresh").unwrap();
        }
    }
}

#[test]
fn the_one_controller_is_always_on() {
    let (pcpu, _tenant, files) = tenant();
    for files in [&files, &pcpu.files()] {
        for text in ["+memory", "+memory\n", " +memory  +memory ", "-memory +memory", "\n", ""] {
            assert_eq!(files.write("cgroup.subtree_control", text), Ok(text.len()), "{text:?}");
        }
        assert_eq!(files.read("cgroup.subtree_control").unwrap(), "memory\n");
    }
    for file in ["cgroup.type", "cgroup.freeze", "cgroup.kill", "cgroup.events"] {
        assert_eq!(pcpu.files().read(file).unwrap_err().errno(), libc::ENOENT, "not on the root");
    }
}

#[test]
fn files_of_features_that_are_absent_do_not_exist() {
    let (pcpu, _tenant, files) = tenant();
    for file in [
        "cgroup.pressure",
        "cgroup.stat.local",
        "cpu.pressure",
        "cpu.stat",
        "io.pressure",
        "irq.pressure",
        "memory.pressure",
        "memory.swap.current",
        "memory.swap.events",
        "memory.swap.high",
        "memory.swap.max",
        "memory.swap.peak",
        "memory.zswap.current",
        "memory.zswap.max",
        "memory.zswap.writeback",
    ] {
        for files in [&files, &pcpu.files()] {
            assert!(files.read(file).unwrap_err().is_not_found(), "{file}");
            assert!(files.write(file, "1").unwrap_err().is_not_found(), "{file}");
        }
    }
}

#[test]
fn numa_stat_divides_percpu_by_the_cpus_of_the_nodes() {
    let machine = Machine::builder()
        .node(NodeId::new(0), [0, 1, 2].map(CpuId::new))
        .node(NodeId::new(2), [5, 6].map(CpuId::new))
        .node(NodeId::new(7), [9].map(CpuId::new))
        .build()
        .unwrap();
    let pcpu = PerCpuAllocator::builder().machine(machine).build().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    assert_eq!(tenant.files().read("memory.numa_stat").unwrap(), "percpu N0=0 N2=0 N7=0\n");
    let _in = tenant.enter();
    let mut held = Vec::new();
    for size in [4, 12, 52, 1000] {
        let layout = std::alloc::Layout::from_size_align(size, 4).unwrap();
        held.push((pcpu.alloc(layout, Gfp::KERNEL_ACCOUNT).unwrap(), tenant.charge(77).unwrap()));
        let percpu = tenant.stat().percpu;
        for files in [tenant.files(), pcpu.files()] {
            let text = files.read("memory.numa_stat").unwrap();
            let shares: Vec<u64> = text
                .strip_prefix("percpu ")
                .unwrap()
                .split_whitespace()
                .map(|share| share.split_once('=').unwrap().1.parse().unwrap())
                .collect();
            let stat = files.read("memory.stat").unwrap();
            let total = shares.iter().sum::<u64>();
            assert!(stat.contains(&format!("\npercpu {total}\n")), "{text}{stat}");
            for (share, cpus) in shares.into_iter().zip([3, 2, 1]) {
                assert!(share.abs_diff(total * cpus / 6) <= 1, "{text}");
            }
        }
        assert!(percpu > 0);
    }
}

#[test]
fn a_refused_charge_is_seen_in_events_and_usage() {
    let (_pcpu, tenant, files) = tenant();
    files.write("memory.max", "1000").unwrap();
    let held = tenant.charge(600).unwrap();
    tenant.try_charge(600).unwrap_err();
    assert_eq!(files.read("memory.current").unwrap(), "600\n");
    assert!(files.read("memory.events").unwrap().contains("\nmax 1\n"));
    let stat = files.read("memory.stat").unwrap();
    assert!(stat.starts_with("kernel 600\npercpu 0\ncharged 600\n"), "{stat}");
    drop(held);
    let (one, other) = (files.open("memory.peak").unwrap(), files.open("memory.peak").unwrap());
    one.write("reset").unwrap();
    assert_eq!((one.read().unwrap(), other.read().unwrap()), ("0\n".into(), "600\n".into()));
}

#[test]
fn reclaim_asks_hooks() {
    let (_pcpu, tenant, files) = tenant();
    let held = std::sync::Mutex::new(Some(tenant.charge(5000).unwrap()));
    let _hook = tenant
        .on_reclaim(0, move |_| held.lock().unwrap().take().map_or(0, |charge| charge.bytes()));
    assert_eq!(files.write("memory.reclaim", "4K swappiness=0"), Ok(15));
    assert_eq!(files.read("memory.current").unwrap(), "0\n");
}

fn rustix_thread_id() -> String {
    rustix::thread::gettid().as_raw_nonzero().to_string()
}

#[test]
fn the_calling_thread_can_be_attached() {
    let (pcpu, tenant, files) = tenant();
    files.write("cgroup.threads", "0\n").unwrap();
    assert_eq!(tenant.of_this_thread(), tenant);
    let this = rustix_thread_id();
    pcpu.files().write("cgroup.threads", &this).unwrap();
    assert!(tenant.of_this_thread().is_root());
    files.write("cgroup.procs", "0\n").unwrap();
    assert_eq!(tenant.of_this_thread(), tenant);
    assert_eq!(files.read("cgroup.threads").unwrap(), format!("{this}\n"));
    assert_eq!(files.read("cgroup.procs").unwrap(), format!("{}\n", tenant.threads()[0]));
    assert_eq!(files.read("cgroup.events").unwrap(), "populated 1\nfrozen 0\n");
    assert_eq!(pcpu.files().remove("tenant").unwrap_err().errno(), libc::EBUSY);
    pcpu.files().write("cgroup.procs", "0").unwrap();
    pcpu.files().remove("tenant").unwrap();
}

#[test]
fn directories_are_cgroups() {
    let (pcpu, tenant, _) = tenant();
    let files = pcpu.files();
    let child = files.create("tenant/child/").unwrap();
    assert_eq!(child.path(), "/tenant/child");
    let errno = |path| files.create(path).unwrap_err().errno();
    assert_eq!(errno("tenant/child"), libc::EEXIST);
    assert_eq!(errno("tenant/memory.max"), libc::EEXIST);
    assert_eq!(errno("nobody/child"), libc::ENOENT);
    assert_eq!(errno("tenant/memory.max/child"), libc::ENOTDIR);
    assert_eq!(files.remove("tenant").unwrap_err().errno(), libc::EBUSY);
    let [open, depth, control, freeze, kill, kind] = [
        "memory.max",
        "cgroup.max.depth",
        "cgroup.subtree_control",
        "cgroup.freeze",
        "cgroup.kill",
        "cgroup.type",
    ]
    .map(|file| files.open(&format!("tenant/child/{file}")).unwrap());
    files.remove("tenant/child").unwrap();
    files.create("tenant/child").unwrap();
    assert_eq!(open.write("1").unwrap_err().errno(), libc::ENODEV);
    assert_eq!(control.write("+memory").unwrap_err().errno(), libc::ENODEV);
    for gone in [&depth, &freeze, &kill, &kind] {
        assert_eq!(gone.write("1").unwrap_err().errno(), libc::ENOENT, "{gone:?}");
    }
    assert_eq!(depth.read().unwrap_err().errno(), libc::ENODEV);
    assert_eq!(child.files().list("").unwrap_err().errno(), libc::ENODEV);
    assert_eq!(tenant.files().read("child/memory.max").unwrap(), "max\n");
}

proptest! {
    #[test]
    fn whatever_is_written_is_taken_or_changes_nothing(path in "[a-z./]{0,20}", text in "\\PC{0,12}") {
        let (pcpu, _tenant, files) = tenant();
        let all = || FRESH.iter().map(|(file, _)| files.read(file)).collect::<Vec<_>>();
        let before = all();
        let _ = pcpu.files().write(&path, &text);
        let attaches = ["cgroup.procs", "cgroup.threads"];
        for (file, _) in FRESH.iter().filter(|(file, _)| !attaches.contains(file)) {
            match files.write(file, &text) {
                Ok(written) => prop_assert_eq!(written, text.len()),
                Err(_) => prop_assert_eq!(files.read(file), before[FRESH.iter().position(|(name, _)| name == file).unwrap()].clone()),
            }
        }
    }
}
