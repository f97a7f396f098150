//! Injected machines, and standing in for CPUs that a machine lacks.

use super::*;
use crate::sys::MapOp;

fn cpus(ids: impl IntoIterator<Item = u32>) -> impl Iterator<Item = CpuId> {
    ids.into_iter().map(CpuId::new)
}

#[test]
fn uniform_machines_up_to_the_limit() {
    for count in [1, 2, 64, 65, 1000, MAX_CPUS] {
        let machine = Machine::uniform(count).unwrap();
        assert_eq!((machine.nr_possible(), machine.cpu_id_limit()), (count, count));
        assert!(machine.possible().iter().copied().eq(cpus(0..count as u32)));
        assert!(!machine.is_possible(CpuId::new(count as u32)));
        assert!(!machine.is_possible(CpuId::new(u32::MAX)));
        assert!(machine.is_injected());
        assert_eq!(machine.nr_nodes(), 1);
    }
}

#[test]
fn descriptions_that_make_no_sense_are_refused() {
    let node = NodeId::new(0);
    let build = |ids: &[u32]| Machine::builder().node(node, cpus(ids.iter().copied())).build();

    assert!(matches!(Machine::uniform(0), Err(MachineError::NoCpus)));
    assert!(matches!(build(&[]), Err(MachineError::NoCpus)));
    assert!(Machine::uniform(MAX_CPUS + 1).unwrap_err().is_out_of_range());
    assert!(Machine::uniform(usize::MAX).unwrap_err().is_out_of_range());
    assert!(build(&[MAX_CPUS as u32 - 1]).is_ok());
    assert!(build(&[0, MAX_CPUS as u32]).unwrap_err().is_out_of_range());
    assert_eq!(build(&[3, 1, 3]).unwrap_err().to_string(), "CPU 3 was added twice");

    let two_nodes = Machine::builder().cpu(CpuId::new(5), node).cpu(CpuId::new(5), NodeId::new(1));
    assert!(matches!(two_nodes.build(), Err(MachineError::DuplicateCpu { .. })));

    let far_node = Machine::builder().cpu(CpuId::new(0), NodeId::new(MAX_NODES as u32));
    assert!(far_node.build().unwrap_err().is_out_of_range());

    let zero = Machine::builder().node(node, cpus([0])).distance(node, NodeId::new(1), 0);
    assert!(matches!(zero.build(), Err(MachineError::ZeroDistance { .. })));
}

#[test]
fn possible_is_ascending_in_whatever_order_cpus_are_added() {
    let machine = Machine::builder()
        .cpu(CpuId::new(9), NodeId::new(4))
        .node(NodeId::new(2), cpus([700, 0]))
        .cpu(CpuId::new(3), NodeId::new(4))
        .build()
        .unwrap();
    assert!(machine.possible().iter().copied().eq(cpus([0, 3, 9, 700])));
    assert_eq!(machine.cpu_id_limit(), 701);
    assert_eq!(machine.node_of(CpuId::new(9)), Some(NodeId::new(4)));
    assert_eq!(machine.node_of(CpuId::new(700)), Some(NodeId::new(2)));
    assert_eq!(machine.node_of(CpuId::new(4)), None, "a hole");
    assert_eq!(machine.node_of(CpuId::new(u32::MAX)), None);
}

#[test]
fn distances_default_and_the_way_back_follows_the_way_there() {
    let [a, b, c] = [0, 1, 5].map(NodeId::new);
    let machine = Machine::builder()
        .node(a, cpus([0]))
        .node(b, cpus([1]))
        .node(c, cpus([2]))
        .distance(a, b, 31)
        .distance(a, c, 40)
        .distance(c, a, 41)
        .build()
        .unwrap();
    let distance = |from, to| machine.distance(CpuId::new(from), CpuId::new(to));
    assert_eq!((distance(0, 1), distance(1, 0)), (31, 31));
    assert_eq!((distance(0, 2), distance(2, 0)), (40, 41));
    assert_eq!((distance(1, 2), distance(1, 1)), (20, 10));
}

#[test]
#[should_panic(expected = "CPU 2 is not possible")]
fn distance_to_a_cpu_that_is_not_possible_panics() {
    Machine::uniform(2).unwrap().distance(CpuId::new(0), CpuId::new(2));
}

#[test]
fn a_large_server_fits_on_any_machine() {
    let mut builder = Machine::builder();
    for node in 0..8 {
        builder = builder.node(NodeId::new(node), cpus((0..1024).filter(|id| id % 8 == node)));
    }
    let machine = builder.build().unwrap();
    assert_eq!((machine.nr_possible(), machine.nr_nodes()), (1024, 8));
    assert_eq!(machine.node_of(CpuId::new(1021)), Some(NodeId::new(5)));
}

#[test]
fn every_real_cpu_has_a_stand_in() {
    let machine = Machine::builder().node(NodeId::new(0), cpus([2, 5, 6])).build().unwrap();
    for (id, folded) in machine.inner.folded.iter().enumerate() {
        let is_itself = machine.possible().contains(&CpuId::new(id as u32));
        let expected = if is_itself { id } else { [2, 5, 6][id % 3] };
        assert_eq!(folded.index(), expected);
    }
    assert_eq!(fold(machine.possible(), 4000), CpuId::new(5));
}

#[test]
fn this_cpu_is_always_possible() {
    for machine in [
        Machine::uniform(1).unwrap(),
        Machine::uniform(MAX_CPUS).unwrap(),
        Machine::builder().node(NodeId::new(0), cpus([900, 1001])).build().unwrap(),
    ] {
        for _ in 0..100 {
            assert!(machine.is_possible(machine.this_cpu()));
        }
    }
}

#[test]
fn clones_share_their_faults_and_machines_do_not() {
    let machine = Machine::uniform(2).unwrap();
    let (clone, other) = (machine.clone(), Machine::uniform(2).unwrap());
    machine.faults().fail_all(None);
    assert!(clone.faults().admit(MapOp::Bind, 1).is_err());
    assert!(other.faults().admit(MapOp::Bind, 1).is_ok());
}

#[test]
fn debug_is_one_line() {
    let machine = Machine::uniform(2).unwrap();
    let expected =
        "Machine { nr_possible: 2, cpu_id_limit: 2, nodes: [node0], injected: true, .. }";
    assert_eq!(format!("{machine:?}"), expected);
}

/// What no thread writes need not be summed.
#[test]
fn threads_reach_the_cpus_that_stand_in_for_real_ones() {
    let real = Machine::detect().unwrap();
    assert_eq!(real.reachable(), real.possible());
    let limit = real.cpu_id_limit();
    for machine in [1, 3, MAX_CPUS].map(|cpus| Machine::uniform(cpus).unwrap()) {
        assert!(machine.reachable().is_sorted() && machine.reachable().len() <= limit);
        assert!(machine.reachable().contains(&machine.this_cpu()));
        let real = real.possible().iter().filter(|cpu| machine.is_possible(**cpu));
        real.for_each(|cpu| assert!(machine.reachable().contains(cpu), "{cpu}"));
    }
    // Real CPUs that are holes here.
    let far = Machine::builder().node(NodeId::new(0), [700, 900].map(CpuId::new)).build().unwrap();
    let folded: BTreeSet<CpuId> = (0..limit).map(|id| fold(far.possible(), id)).collect();
    assert!(far.reachable().iter().eq(&folded));
}
