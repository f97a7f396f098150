//! Trees that look like sysfs, from everyday to odd.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// A folder that goes away with the test.
struct Tree(PathBuf);

impl Tree {
    fn new(files: &[(&str, &str)]) -> Self {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("percpu-memcg-sysfs-{}-{serial}", std::process::id());
        let tree = Self(std::env::temp_dir().join(name));
        fs::create_dir_all(&tree.0).unwrap();
        for (file, text) in files {
            let path = tree.0.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        tree
    }

    fn detect(&self) -> Result<Machine, MachineError> {
        Machine::detect_at(&self.0)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn ids(machine: &Machine) -> Vec<u32> {
    machine.possible().iter().map(|cpu| cpu.get()).collect()
}

fn nodes(machine: &Machine) -> Vec<u32> {
    machine.possible().iter().map(|cpu| machine.node_of(*cpu).unwrap().get()).collect()
}

#[test]
fn lists_parse_as_the_kernel_prints_them() {
    let cases: [(&str, &[(u32, u32)]); 6] = [
        ("0\n", &[(0, 0)]),
        ("0-3\n", &[(0, 3)]),
        ("0-3,8,10-11\n", &[(0, 3), (8, 8), (10, 11)]),
        ("5-5", &[(5, 5)]),
        ("\n", &[]),
        ("", &[]),
    ];
    for (text, ranges) in cases {
        assert_eq!(parse_list(text).as_deref(), Some(ranges), "{text:?}");
    }
}

#[test]
fn what_is_no_list_is_refused() {
    for text in ["x", "0-", "-3", "3-1", "0,,1", "0,", "+1", "0 1", "0-1-2", "4294967296"] {
        assert_eq!(parse_list(text), None, "{text:?}");
    }
}

#[test]
fn possible_cpus_may_have_holes() {
    let machine = Tree::new(&[("cpu/possible", "0-3,8,10-11\n")]).detect().unwrap();
    assert_eq!(ids(&machine), [0, 1, 2, 3, 8, 10, 11]);
    assert_eq!((machine.nr_possible(), machine.cpu_id_limit()), (7, 12));
    assert!(machine.is_possible(CpuId::new(8)) && !machine.is_possible(CpuId::new(9)));
    assert!(!machine.is_injected());
}

#[test]
fn without_node_folders_there_is_one_node() {
    let machine = Tree::new(&[("cpu/possible", "0-1\n")]).detect().unwrap();
    assert_eq!((machine.nr_nodes(), nodes(&machine)), (1, vec![0, 0]));
    assert_eq!(machine.distance(CpuId::new(0), CpuId::new(1)), 10);
}

#[test]
fn distance_columns_are_the_online_nodes() {
    let tree = Tree::new(&[
        ("cpu/possible", "0-3\n"),
        ("node/online", "0,2\n"),
        ("node/node0/cpulist", "0-1\n"),
        ("node/node0/distance", "10 32\n"),
        ("node/node2/cpulist", "2-3\n"),
        ("node/node2/distance", "33 11\n"),
    ]);
    let machine = tree.detect().unwrap();
    let [near, far] = [0, 3].map(CpuId::new);
    assert_eq!((machine.nr_nodes(), nodes(&machine)), (2, vec![0, 0, 2, 2]));
    assert_eq!((machine.distance(near, far), machine.distance(far, near)), (32, 33));
    assert_eq!((machine.distance(near, near), machine.distance(far, far)), (10, 11));
}

#[test]
fn nodes_sort_by_number_not_by_name() {
    let tree = Tree::new(&[
        ("cpu/possible", "0-2\n"),
        ("node/node10/cpulist", "0\n"),
        ("node/node10/distance", "21 22 10\n"),
        ("node/node2/cpulist", "1\n"),
        ("node/node9/cpulist", "2\n"),
    ]);
    let machine = tree.detect().unwrap();
    let [on_10, on_2, on_9] = [0, 1, 2].map(CpuId::new);
    assert_eq!((machine.distance(on_10, on_2), machine.distance(on_10, on_9)), (21, 22));
}

#[test]
fn a_node_without_cpus_is_a_node() {
    let tree = Tree::new(&[
        ("cpu/possible", "0-1\n"),
        ("node/node0/cpulist", "0-1\n"),
        ("node/node0/distance", "10 17\n"),
        ("node/node1/cpulist", "\n"),
        ("node/node1/distance", "17 10\n"),
    ]);
    let machine = tree.detect().unwrap();
    assert_eq!((machine.nr_nodes(), nodes(&machine)), (2, vec![0, 0]));
}

#[test]
fn offline_cpus_land_on_lowest_node_and_impossible_ones_nowhere() {
    let tree = Tree::new(&[
        ("cpu/possible", "0-3\n"),
        ("node/node1/cpulist", "0\n"),
        ("node/node3/cpulist", "1,7\n"),
    ]);
    let machine = tree.detect().unwrap();
    assert_eq!(nodes(&machine), [1, 3, 1, 1]);
    assert_eq!(machine.node_of(CpuId::new(7)), None);
}

#[test]
fn a_distance_row_of_the_wrong_length_is_left_to_the_defaults() {
    let tree = Tree::new(&[
        ("cpu/possible", "0-1\n"),
        ("node/node0/cpulist", "0\n"),
        ("node/node0/distance", "10 40 50\n"),
        ("node/node1/cpulist", "1\n"),
    ]);
    let machine = tree.detect().unwrap();
    assert_eq!(machine.distance(CpuId::new(0), CpuId::new(1)), 20);
}

#[test]
fn without_a_possible_file_the_usable_cpus_are_counted() {
    let machine = Tree::new(&[]).detect().unwrap();
    assert_eq!(machine.nr_possible(), thread::available_parallelism().unwrap().get());
    assert!(!machine.is_injected());
}

#[test]
fn errors_name_the_file_and_its_content() {
    let error = Tree::new(&[("cpu/possible", "0-x\n")]).detect().unwrap_err();
    assert!(!error.is_invalid() && error.to_string().ends_with("cpu/possible: \"0-x\""), "{error}");

    let tree = Tree::new(&[("cpu/possible", "0\n"), ("node/node0/distance", "10 far\n")]);
    let error = tree.detect().unwrap_err();
    assert!(error.to_string().ends_with("node0/distance: \"10 far\""), "{error}");

    let error = Tree::new(&[("cpu/possible", "0\u{1b}[31m\u{202e}x\n")]).detect().unwrap_err();
    let text = error.to_string();
    assert!(text.ends_with("cpu/possible: \"0\\u{1b}[31m\\u{202e}x\""), "{text}");
}

/// Folders stand for files that must not be read: tests may run as root, which reads every file.
#[test]
fn what_is_empty_or_cannot_be_read_is_as_if_it_were_missing() {
    let usable = thread::available_parallelism().unwrap().get();
    let machine = Tree::new(&[("cpu/possible", "\n")]).detect().unwrap();
    assert_eq!((machine.nr_possible(), machine.nr_nodes()), (usable, 1));
    let tree = Tree::new(&[
        ("cpu/possible/oops", ""),
        ("node/node0/cpulist/oops", ""),
        ("node/node0/distance/oops", ""),
    ]);
    assert_eq!(tree.detect().unwrap().nr_possible(), usable);
    let machine = Tree::new(&[("cpu/possible", "0-1\n"), ("node", "no folder")]).detect().unwrap();
    assert_eq!((machine.nr_possible(), machine.nr_nodes()), (2, 1));
}

#[test]
fn cpus_beyond_the_limit_are_left_out_without_being_listed() {
    for possible in ["0-1024", "0-4294967295", "0-1023,1500"] {
        let tree = Tree::new(&[("cpu/possible", possible), ("node/node0/cpulist", possible)]);
        let machine = tree.detect().unwrap();
        assert_eq!((machine.nr_possible(), machine.cpu_id_limit()), (MAX_CPUS, MAX_CPUS));
        assert!(machine.is_possible(machine.this_cpu()));
    }
    let none_below = Tree::new(&[("cpu/possible", "1024-2047")]).detect().unwrap();
    assert_eq!(none_below.possible()[0], CpuId::new(0));
}

#[test]
fn this_machine_is_understood() {
    let machine = Machine::detect().unwrap();
    assert!(machine.is_possible(machine.this_cpu()));
    for cpu in machine.possible() {
        assert!(machine.node_of(*cpu).is_some());
        assert!(machine.distance(*cpu, *cpu) > 0);
    }
}
