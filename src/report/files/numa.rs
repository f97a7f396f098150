//! `memory.numa_stat`: what is in use, by NUMA node.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::memcg::Memcg;

/// Each node's share of `percpu` in `memory.stat`, in proportion to its possible CPUs, whose copies
/// are what the bytes stand for. Owner slots are shared alike. The shares add up to `percpu`.
pub(super) fn numa_stat(memcg: &Memcg) -> String {
    let machine = memcg.tree().arena().machine();
    let mut cpus_of_node: BTreeMap<u32, u128> = BTreeMap::new();
    for cpu in machine.possible() {
        let node = machine.node_of(*cpu).map_or(0, |node| node.get());
        *cpus_of_node.entry(node).or_default() += 1;
    }
    let (all, total) = (u128::from(memcg.stat().percpu), machine.nr_possible() as u128);
    let mut text = "percpu".to_owned();
    let mut cpus_before = 0;
    for (node, cpus) in cpus_of_node {
        // Rounded together with what comes before, so that nothing is lost.
        let up_to = |cpus: u128| all * cpus / total;
        let bytes = up_to(cpus_before + cpus) - up_to(cpus_before);
        cpus_before += cpus;
        let _fits = write!(text, " N{node}={bytes}");
    }
    text + "\n"
}
