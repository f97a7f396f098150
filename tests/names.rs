//! No cgroup has the name of an interface file.

use percpu_memcg::error::TreeError;
use percpu_memcg::{Memcg, PerCpuAllocator};

/// Files that are here, and files that kernels have.
const NAMES: &[&str] = &[
    "cgroup.controllers",
    "cgroup.events",
    "cgroup.freeze",
    "cgroup.kill",
    "cgroup.max.depth",
    "cgroup.max.descendants",
    "cgroup.pressure",
    "cgroup.procs",
    "cgroup.stat",
    "cgroup.stat.local",
    "cgroup.subtree_control",
    "cgroup.threads",
    "cgroup.type",
    "cpu.pressure",
    "cpu.stat",
    "cpu.stat.local",
    "io.pressure",
    "irq.pressure",
    "memory.current",
    "memory.events",
    "memory.events.local",
    "memory.high",
    "memory.low",
    "memory.max",
    "memory.min",
    "memory.numa_stat",
    "memory.oom.group",
    "memory.peak",
    "memory.pressure",
    "memory.reclaim",
    "memory.stat",
    "memory.swap.current",
    "memory.swap.events",
    "memory.swap.high",
    "memory.swap.max",
    "memory.swap.peak",
    "memory.zswap.current",
    "memory.zswap.max",
    "memory.zswap.writeback",
];

#[track_caller]
fn refused(error: TreeError, name: &str) {
    assert_eq!(error.errno(), libc::EEXIST, "{name}: {error}");
    assert!(error.is_exists() && error.to_string().contains(name), "{error}");
    assert!(error.to_string().contains("interface file"), "{error}");
}

fn names(memcg: &Memcg) -> Vec<String> {
    memcg.files().list("").unwrap()
}

#[test]
fn every_way_of_creating_refuses_names_of_interface_files() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    for parent in [pcpu.root(), tenant] {
        let before = names(&parent);
        for name in NAMES {
            refused(parent.create(name).unwrap_err(), name);
            refused(parent.create_scoped(name).map(drop).unwrap_err(), name);
            let error = parent.files().create(name).unwrap_err();
            assert_eq!(error.errno(), libc::EEXIST, "{name}: {error}");
            assert_eq!(
                parent.files().create(&format!("/{name}//")).unwrap_err().errno(),
                libc::EEXIST
            );
            assert!(parent.find(name).unwrap_err().is_not_found());
        }
        assert_eq!(names(&parent), before);
        let files = before.iter().filter(|name| parent.find(name).is_err());
        for file in files {
            assert!(NAMES.contains(&file.as_str()), "{file} is a file, but no reserved name");
        }
    }
}

#[test]
fn no_cgroup_is_hidden_or_listed_twice() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let names_like_files = [
        "memory",
        "cgroup",
        "memory_max",
        "Memory.max",
        "my.memory.max",
        " memory.max",
        "cgroups.x",
    ];
    for name in names_like_files {
        tenant.files().create(name).unwrap();
        assert!(tenant.files().read(name).unwrap_err().errno() == libc::EISDIR);
        assert_eq!(tenant.files().list(name).unwrap(), names(&tenant.find(name).unwrap()));
    }
    let mut all = names(&tenant);
    let listed = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), listed);
    assert!(names_like_files.iter().all(|name| all.iter().any(|listed| listed == name)));
}

#[test]
fn files_of_later_kernels_have_their_names_kept_free() {
    let pcpu = PerCpuAllocator::new().unwrap();
    for name in ["memory.", "memory.later", "cgroup.later.max"] {
        refused(pcpu.root().create(name).unwrap_err(), name);
    }
}
