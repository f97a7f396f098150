//! Charging 512 bytes and uncharging them, in turn over n cgroups.
//!
//! Groups `in_turn_1t` and `in_turn_2t`; the time is for one charge and its end. With two threads
//! both go over the same n cgroups, half of them apart. The second thread runs as long as the first
//! is measured. Functions:
//!
//! | name | what |
//! |---|---|
//! | `ours_<n>` | cgroups at depth 2, on the machine this runs on |
//! | `ours_256cpus_<n>` | the same on an injected machine of 256 CPUs |
//! | `naive_3_levels_<n>` | one atomic counter for each leaf, for their parent and for the root |
//! | `budget_context_<n>` | reservations of the crate `budget-context`, up to n = 10 000 |
//!
//! n goes from one cgroup, whose bytes stay on its CPU, up to more than any cache has lines for.

use std::hint::black_box;

use criterion::BenchmarkGroup;
use criterion::Criterion;
use criterion::measurement::WallTime;

use super::BYTES;
use super::crowd::{Crowd, On};
use super::measure::{self, bench};
use super::rivals::{Budgets, Levels};

const CGROUPS: [usize; 9] = [1, 4, 8, 9, 16, 64, 1_000, 10_000, 100_000];

/// The largest n of `budget-context`, whose trees take long to build.
const BUDGETS: usize = 10_000;

/// A number of cgroups and an amount, with the end of the functions' names.
pub(crate) struct Case {
    pub(crate) cgroups: usize,
    pub(crate) bytes: u64,
    pub(crate) suffix: String,
}

pub(crate) fn in_turn(criterion: &mut Criterion) {
    for threads in measure::threads() {
        let mut group = measure::short_group(criterion, &format!("in_turn_{threads}t"));
        for cgroups in CGROUPS {
            let case = Case { cgroups, bytes: BYTES, suffix: cgroups.to_string() };
            all(&mut group, threads, &case);
        }
        group.finish();
    }
}

/// Measures one case on both machines, and its rivals.
pub(crate) fn all(group: &mut BenchmarkGroup<'_, WallTime>, threads: usize, case: &Case) {
    let Case { cgroups, bytes, ref suffix } = *case;
    for on in On::BOTH {
        bench(group, &format!("{on}_{suffix}"), threads, cgroups, || {
            let crowd = Crowd::new(on, cgroups);
            move |turn| drop(black_box(crowd.leaves[turn].charge(black_box(bytes)).expect("room")))
        });
    }
    bench(group, &format!("naive_3_levels_{suffix}"), threads, cgroups, || {
        let levels = Levels::new(cgroups);
        move |turn| {
            assert!(levels.charge(turn, black_box(bytes)));
            levels.uncharge(turn, black_box(bytes));
        }
    });
    if cgroups <= BUDGETS {
        bench(group, &format!("budget_context_{suffix}"), threads, cgroups, || {
            let budgets = Budgets::new(cgroups);
            move |turn| drop(black_box(budgets.reserve(turn, black_box(bytes))))
        });
    }
}
