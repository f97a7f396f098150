//! The cgroups that the groups `in_turn_…`, `other_sizes`, `held`, `refusal` and `drain_leaf` use.
//!
//! ```text
//!   root ── parent ─┬─ 0
//!         (1 TiB)   ├─ 1      each with a limit of 1 TiB,
//!                   ┆         which nothing comes near
//!                   └─ n − 1
//! ```
//!
//! Each tree has an allocator of its own, so that no other cgroup's bytes are in its stocks. It has
//! as many leaves as are used. The leaves are in the order in which they were created.

use std::fmt;

use percpu_memcg::{Limit, Machine, Memcg, PerCpuAllocator};

/// The machine that a tree is for.
#[derive(Clone, Copy)]
pub(crate) enum On {
    /// The one this runs on.
    This,
    /// An injected one with so many CPUs. The threads still run on the CPUs there are.
    Cpus(usize),
}

impl On {
    /// Both machines that most functions are measured on.
    pub(crate) const BOTH: [On; 2] = [On::This, On::Cpus(256)];

    fn allocator(self) -> PerCpuAllocator {
        match self {
            On::This => PerCpuAllocator::new().expect("the machine is readable"),
            On::Cpus(cpus) => {
                let machine = Machine::uniform(cpus).expect("a legal number of CPUs");
                PerCpuAllocator::builder().machine(machine).build().expect("address space")
            }
        }
    }
}

/// What a function on this machine is called.
impl fmt::Display for On {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            On::This => f.write_str("ours"),
            On::Cpus(cpus) => write!(f, "ours_{cpus}cpus"),
        }
    }
}

/// A parent and its children.
pub(crate) struct Crowd {
    pub(crate) parent: Memcg,
    pub(crate) leaves: Vec<Memcg>,
}

impl Crowd {
    pub(crate) fn new(on: On, leaves: usize) -> Self {
        let far = Limit::bytes(1 << 40);
        let below = |memcg: &Memcg, name: &str| {
            let child = memcg.create(name).expect("room, and a new name");
            child.set_max(far).expect("not the root");
            child
        };
        let parent = below(&on.allocator().root(), "parent");
        let leaves = (0..leaves).map(|nth| below(&parent, &nth.to_string())).collect();
        Crowd { parent, leaves }
    }
}
