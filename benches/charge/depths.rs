//! Charging 512 bytes and uncharging them, by the depth of the cgroup.
//!
//! Groups `charge_1t` and `charge_2t`; the time is for one charge and its end. Functions:
//!
//! | name | what |
//! |---|---|
//! | `depth_1`, `depth_8`, `depth_64` | a cgroup with so many ancestors but the root |
//! | `below_peak_depth_8`, `below_peak_depth_64` | the same, whose usage was higher once, after a drain |
//! | `grow_shrink_depth_8` | growing and shrinking a charge of each thread |
//! | `groups_1`, `groups_100k` | one cgroup; eight in turn, of 100 000 |
//! | `naive_atomic_depth_8` | one atomic counter for each level, compared with a limit |
//! | `flat_atomic_pool` | one counter, by compare and swap, as in DataFusion's `GreedyMemoryPool` |

use std::cell::RefCell;
use std::hint::black_box;

use criterion::Criterion;
use percpu_memcg::{Charge, Limit, Memcg, PerCpuAllocator};

use super::BYTES;
use super::measure::{self, bench};
use super::rivals::{Chain, Pool};

thread_local! {
    /// A charge that grows and shrinks.
    static HELD: RefCell<Option<Charge>> = const { RefCell::new(None) };
}

fn chain(pcpu: &PerCpuAllocator, depth: usize) -> Memcg {
    let mut memcg = pcpu.root();
    for level in 0..depth {
        memcg = memcg.create(&format!("depth-{depth}-{level}")).expect("a new name");
        memcg.set_max(Limit::bytes(1 << 40)).expect("not the root");
    }
    memcg
}

pub(crate) fn charge(criterion: &mut Criterion) {
    let pcpu = PerCpuAllocator::new().expect("the machine is readable");
    let depths = [1, 8, 64].map(|depth| (depth, chain(&pcpu, depth)));
    let many = pcpu.root().create("many").expect("a new name");
    let crowd: Vec<Memcg> =
        (0..100_000).map(|nth| many.create(&format!("{nth}")).expect("room")).collect();
    let active: [&Memcg; 8] = std::array::from_fn(|nth| &crowd[nth * 12_345]);
    for threads in measure::threads() {
        let mut group = measure::group(criterion, &format!("charge_{threads}t"));
        for (depth, memcg) in &depths {
            let pair = |_| drop(black_box(memcg.charge(BYTES).expect("room")));
            bench(&mut group, &format!("depth_{depth}"), threads, 1, || pair);
        }
        for (depth, memcg) in &depths[1..] {
            let pair = |_| drop(black_box(memcg.charge(BYTES).expect("room")));
            bench(&mut group, &format!("below_peak_depth_{depth}"), threads, 1, || {
                drop(memcg.charge(1 << 20).expect("room"));
                memcg.drain();
                pair
            });
        }
        let pair = |_| {
            HELD.with_borrow_mut(|held| {
                let held = held.get_or_insert_with(|| depths[1].1.charge_forced(0));
                held.grow(black_box(BYTES)).expect("room");
                held.shrink(black_box(BYTES)).expect("it grew by that");
            });
        };
        bench(&mut group, "grow_shrink_depth_8", threads, 1, || pair);
        HELD.take();
        let pair = |_| drop(black_box(crowd[7].charge(BYTES).expect("room")));
        bench(&mut group, "groups_1", threads, 1, || pair);
        let pair = |turn: usize| drop(black_box(active[turn].charge(BYTES).expect("room")));
        bench(&mut group, "groups_100k", threads, active.len(), || pair);
        let naive = Chain::new(8);
        let pair = |_| {
            assert!(naive.charge(black_box(BYTES)));
            naive.uncharge(black_box(BYTES));
        };
        bench(&mut group, "naive_atomic_depth_8", threads, 1, || pair);
        let pool = Pool::new(1 << 40);
        let pair = |_| {
            assert!(pool.charge(black_box(BYTES)));
            pool.uncharge(black_box(BYTES));
        };
        bench(&mut group, "flat_atomic_pool", threads, 1, || pair);
        group.finish();
    }
}
