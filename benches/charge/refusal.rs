//! A charge of 512 bytes that the parent's limit refuses, by the number of its children.
//!
//! Group `refusal`; the time is for one refused call with its error, on one thread. The parent's
//! limit is what its children's statistics take, so that it has no byte left. Every child has
//! charged and uncharged 512 bytes once, on one CPU, before the limit was set. There are no hooks
//! and no OOM callbacks. The first refusal empties the children's stocks. What is measured is finding
//! that no bytes are left, and creating the error. The children that use most are looked for when the
//! error is displayed, which is not measured. Functions:
//!
//! | name | what |
//! |---|---|
//! | `kernel_2cpus_<n>`, `kernel_64cpus_<n>` | `charge`, which asks hooks and OOM callbacks |
//! | `nowait_2cpus_<n>`, `nowait_64cpus_<n>` | `try_charge`, which empties stocks at most |
//!
//! The machines are injected. n children are 1, 100, 10 000 and 100 000.

use std::hint::black_box;

use criterion::Criterion;
use percpu_memcg::{Gfp, Limit};

use super::BYTES;
use super::crowd::{Crowd, On};
use super::measure::{self, bench};

/// A parent that is full, whose children have all charged once.
fn full(cpus: usize, children: usize) -> Crowd {
    let crowd = Crowd::new(On::Cpus(cpus), children);
    for leaf in &crowd.leaves {
        drop(leaf.charge(BYTES).expect("room"));
    }
    let used = Limit::bytes(crowd.parent.current());
    crowd.parent.set_max(used).expect("not the root");
    crowd
}

pub(crate) fn refusal(criterion: &mut Criterion) {
    let mut group = measure::short_group(criterion, "refusal");
    for (name, gfp) in [("kernel", Gfp::KERNEL), ("nowait", Gfp::NOWAIT)] {
        for cpus in [2, 64] {
            for children in [1, 100, 10_000, 100_000] {
                let name = format!("{name}_{cpus}cpus_{children}");
                bench(&mut group, &name, 1, 1, || {
                    let crowd = full(cpus, children);
                    move |_| {
                        let refused = crowd.leaves[0].charge_with(black_box(BYTES), gfp);
                        drop(black_box(refused.expect_err("the parent is full")));
                    }
                });
            }
        }
    }
    group.finish();
}
