//! Creating a cgroup with its statistics and removing it, on a machine of 64 CPUs.
//!
//! Group `cgroup`; the time is for one cgroup. Functions:
//!
//! | name | what |
//! |---|---|
//! | `create_remove_64_cpus` | nothing is charged in between |
//! | `create_charge_remove_64_cpus` | 512 bytes are charged and uncharged in between |

use criterion::Criterion;
use percpu_memcg::{Machine, PerCpuAllocator};

use super::{BYTES, measure};

pub(crate) fn create_and_remove(criterion: &mut Criterion) {
    let machine = Machine::uniform(64).expect("a legal number of CPUs");
    let pcpu = PerCpuAllocator::builder().machine(machine).build().expect("address space");
    let parent = pcpu.root().create("parent").expect("a new name");
    let mut group = measure::group(criterion, "cgroup");
    group.bench_function("create_remove_64_cpus", |bencher| {
        bencher.iter(|| parent.create("child").expect("room").remove().expect("nobody is there"));
    });
    group.bench_function("create_charge_remove_64_cpus", |bencher| {
        bencher.iter(|| {
            let child = parent.create("child").expect("room");
            drop(child.charge(BYTES).expect("room"));
            child.remove().expect("nobody is there");
        });
    });
    group.finish();
}
