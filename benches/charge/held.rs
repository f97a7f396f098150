//! Charging 512 bytes eight times and then uncharging all of it, in turn over n cgroups.
//!
//! Group `held`; the time is for *eight* charges and their ends, on one thread. A cgroup makes its
//! eight charges before the first of them is dropped, and all are dropped before it is the next
//! one's turn. n is 64 and 1 000. Functions:
//!
//! | name | what |
//! |---|---|
//! | `ours_<n>` | cgroups at depth 2, on the machine this runs on |
//! | `ours_256cpus_<n>` | the same on an injected machine of 256 CPUs |
//! | `naive_3_levels_<n>` | one atomic counter for each leaf, for their parent and for the root |
//! | `budget_context_<n>` | reservations of the crate `budget-context` |

use std::hint::black_box;

use criterion::Criterion;

use super::BYTES;
use super::crowd::{Crowd, On};
use super::measure::{self, bench};
use super::rivals::{Budgets, Levels};

/// How many charges a cgroup holds.
const HELD: usize = 8;

pub(crate) fn held(criterion: &mut Criterion) {
    let mut group = measure::short_group(criterion, "held");
    for cgroups in [64, 1_000] {
        for on in On::BOTH {
            bench(&mut group, &format!("{on}_{cgroups}"), 1, cgroups, || {
                let crowd = Crowd::new(on, cgroups);
                move |turn| {
                    let leaf = &crowd.leaves[turn];
                    let held: [_; HELD] =
                        std::array::from_fn(|_| leaf.charge(BYTES).expect("room"));
                    drop(black_box(held));
                }
            });
        }
        bench(&mut group, &format!("naive_3_levels_{cgroups}"), 1, cgroups, || {
            let levels = Levels::new(cgroups);
            move |turn| {
                (0..HELD).for_each(|_| assert!(levels.charge(turn, black_box(BYTES))));
                (0..HELD).for_each(|_| levels.uncharge(turn, black_box(BYTES)));
            }
        });
        bench(&mut group, &format!("budget_context_{cgroups}"), 1, cgroups, || {
            let budgets = Budgets::new(cgroups);
            move |turn| {
                let held: [_; HELD] = std::array::from_fn(|_| budgets.reserve(turn, BYTES));
                drop(black_box(held));
            }
        });
    }
    group.finish();
}
