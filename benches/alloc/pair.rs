//! One area is allocated and freed, and again, by its size.
//!
//! Group `pair`. Functions `CPUS_cpus/SUBJECT/SIZE` with the subjects of this crate and the padded
//! array; and with 8 bytes:
//!
//! | name | what |
//! |---|---|
//! | `CPUS_cpus/malloc/8`, `…/free_list/8`, `…/free_list_cleared/8` | see the table of subjects |
//! | `CPUS_cpus/bare_clearing/8` | a word in every copy of one area is cleared |
//! | `CPUS_cpus/bare_writing/8` | a word in every copy of one area is written with another value |

use std::hint::black_box;
use std::ptr::NonNull;

use criterion::Criterion;
use criterion::measurement::WallTime;

use super::CPUS;
use super::measure::{self, Load, bench};
use super::subjects::{FreeList, Malloc, Ours, PLAIN, PaddedArray, Subject, WAYS};

type Group<'a> = criterion::BenchmarkGroup<'a, WallTime>;

pub(crate) fn pair(criterion: &mut Criterion) {
    let mut group = measure::group(criterion, "pair");
    for cpus in CPUS {
        // The caches end at 1016 bytes.
        size::<8>(&mut group, cpus);
        size::<24>(&mut group, cpus);
        size::<72>(&mut group, cpus);
        size::<200>(&mut group, cpus);
        size::<1000>(&mut group, cpus);
        size::<1100>(&mut group, cpus);
        bench(&mut group, &format!("{cpus}_cpus/malloc/8"), Load::Pair, 1, || Malloc);
        for (name, clears) in [("free_list", false), ("free_list_cleared", true)] {
            let name = format!("{cpus}_cpus/{name}/8");
            bench(&mut group, &name, Load::Pair, 1, || FreeList::new(cpus, clears));
        }
        bare(&mut group, cpus);
    }
    group.finish();
}

fn size<const SIZE: usize>(group: &mut Group<'_>, cpus: usize) {
    for way in WAYS {
        let name = format!("{cpus}_cpus/{}/{SIZE}", way.name);
        bench(group, &name, Load::Pair, 1, || Ours::new(cpus, SIZE, way));
    }
    let name = format!("{cpus}_cpus/padded_array/{SIZE}");
    bench(group, &name, Load::Pair, 1, || PaddedArray::<SIZE> { cpus });
}

fn bare(group: &mut Group<'_>, cpus: usize) {
    let ours = Ours::new(cpus, 8, PLAIN);
    let area = ours.alloc();
    let words: Vec<NonNull<u64>> = ours.words(area).collect();
    for (name, value) in [("bare_clearing", 0), ("bare_writing", 1)] {
        group.bench_function(format!("{cpus}_cpus/{name}/8"), |bencher| {
            let value = black_box(value);
            bencher.iter(|| {
                for word in &words {
                    // SAFETY: an aligned word of a live area, which no other thread uses.
                    unsafe { word.write_volatile(value) };
                }
            });
        });
    }
}
