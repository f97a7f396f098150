//! The same with many live objects of 8 bytes, every one of which is written by one CPU.
//!
//! Functions `CPUS_cpus/SUBJECT/COUNT`:
//!
//! | group | what |
//! |---|---|
//! | `batch` | COUNT objects are allocated and written, then all are freed |
//! | `replace` | COUNT objects live; one of them is freed, a new one is allocated and written |

use criterion::Criterion;

use super::CPUS;
use super::measure::{self, Load, bench};
use super::subjects::{FreeList, Malloc, Ours, PaddedArray, WAYS};

const COUNTS: [usize; 6] = [1, 10, 100, 1_000, 10_000, 100_000];

/// More is not measured of padded arrays.
const MOST_BYTES: usize = 400_000_000;

pub(crate) fn live(criterion: &mut Criterion) {
    for (group, load) in [("batch", Load::Batch as fn(usize) -> Load), ("replace", Load::Replace)] {
        let mut group = measure::group(criterion, group);
        for cpus in CPUS {
            for count in COUNTS {
                let load = load(count);
                let named = |subject: &str| format!("{cpus}_cpus/{subject}/{count}");
                for way in WAYS {
                    bench(&mut group, &named(way.name), load, 1, || Ours::new(cpus, 8, way));
                }
                if 128 * cpus * count <= MOST_BYTES {
                    let name = named("padded_array");
                    bench(&mut group, &name, load, 1, || PaddedArray::<8> { cpus });
                }
                bench(&mut group, &named("malloc"), load, 1, || Malloc);
                bench(&mut group, &named("free_list"), load, 1, || FreeList::new(cpus, false));
            }
        }
        group.finish();
    }
}
