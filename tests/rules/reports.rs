//! Numbers in texts.

use std::alloc::Layout;

use percpu_memcg::{Gfp, Memcg};

use crate::{stay, tenant};

fn number(memcg: &Memcg, file: &str, name: &str) -> u64 {
    let text = memcg.files().read(file).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap()
}

/// What is in stocks is shown, and counted nowhere else.
#[test]
fn memory_stat_counts_stocks_as_cached_only() {
    stay();
    let (pcpu, memcg) = tenant();
    let child = memcg.create("child").unwrap();
    drop(child.charge(100_000).unwrap());
    let held = child.charge(500).unwrap();
    let _in = child.enter();
    let area = pcpu.alloc(Layout::new::<u64>(), Gfp::KERNEL_ACCOUNT).unwrap();
    for memcg in [&memcg, &child] {
        let stat = memcg.stat();
        assert!(stat.cached > 0 && stat.percpu > 0);
        assert_eq!((stat.charged, stat.percpu + 500), (500, memcg.current()));
        let shown = ["kernel", "percpu", "charged", "cached"];
        let expected = [memcg.current(), stat.percpu, 500, stat.cached];
        assert_eq!(shown.map(|name| number(memcg, "memory.stat", name)), expected);
        let snapshot = &memcg.snapshot().cgroups[0];
        let figures = [snapshot.current, snapshot.percpu, snapshot.charged, snapshot.cached];
        assert_eq!(figures, expected);
    }
    // SAFETY: the area is not used.
    unsafe { pcpu.free(area) }.unwrap();
    drop(held);
}

#[test]
fn populated_is_said_of_every_ancestor_of_a_thread() {
    let (_pcpu, top) = tenant();
    let middle = top.create("middle").unwrap();
    let leaf = middle.create("leaf").unwrap();
    let beside = top.create("beside").unwrap();
    let all = [&top, &middle, &leaf, &beside];
    let populated = || all.map(|memcg| number(memcg, "cgroup.events", "populated"));
    assert_eq!(populated(), [0, 0, 0, 0]);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            leaf.attach_thread().unwrap();
            assert_eq!(populated(), [1, 1, 1, 0]);
        });
        // Waits for its thread-local values, too.
        thread.join().unwrap();
    });
    assert_eq!(populated(), [0, 0, 0, 0]);
}

#[test]
fn each_file_writes_its_own_setting() {
    let (_pcpu, memcg) = tenant();
    let files = ["memory.min", "memory.low", "memory.high", "memory.max"];
    for (nth, file) in files.iter().enumerate() {
        memcg.files().write(file, &format!("{}", 1000 + nth)).unwrap();
    }
    let set = [memcg.min(), memcg.low(), memcg.high(), memcg.max()];
    assert_eq!(set.map(|limit| limit.get().unwrap()), [1000, 1001, 1002, 1003]);
    for (nth, file) in files.iter().enumerate() {
        assert_eq!(memcg.files().read(file).unwrap(), format!("{}\n", 1000 + nth));
    }
    let bounds = ["cgroup.max.depth", "cgroup.max.descendants"];
    for (file, bound) in bounds.iter().zip([7, 8]) {
        memcg.files().write(file, &format!("{bound}")).unwrap();
    }
    assert_eq!((memcg.max_depth(), memcg.max_descendants()), (Some(7), Some(8)));
    assert_eq!(bounds.map(|file| memcg.files().read(file).unwrap()), ["7\n", "8\n"]);
    // The largest number is how the kernel stores `max`, and the one below it is a bound.
    for (text, bound) in [("2147483646", Some(i32::MAX as u32 - 1)), ("2147483647", None)] {
        memcg.files().write(bounds[0], text).unwrap();
        assert_eq!(memcg.max_depth(), bound);
    }
}

#[test]
fn local_events_are_those_of_the_cgroup_itself() {
    let (_pcpu, top) = tenant();
    let child = top.create("child").unwrap();
    child.files().write("memory.max", "0").unwrap();
    assert!(child.try_charge(1).is_err());
    let events = ["memory.events", "memory.events.local"];
    assert_eq!(events.map(|file| number(&child, file, "max")), [1, 1]);
    assert_eq!(events.map(|file| number(&top, file, "max")), [1, 0]);
}

#[test]
fn a_tree_is_shown_the_largest_first_and_the_rest_is_summed_up() {
    let (_pcpu, top) = tenant();
    let sizes = [200, 500, 100, 400];
    let held: Vec<_> = sizes
        .iter()
        .enumerate()
        .map(|(nth, size)| top.create(&format!("{nth}")).unwrap().charge(*size).unwrap())
        .collect();
    let text = top.snapshot().tree().top(2).to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
    let starts = |line: usize, first: &[&str]| {
        lines[line].split_whitespace().take(first.len()).eq(first.iter().copied())
    };
    assert!(starts(2, &["1", "500"]) && starts(3, &["3", "400"]), "{text}");
    assert!(starts(4, &["…", "2", "more", "300"]) && lines.len() == 5, "{text}");
    drop(held);
}
