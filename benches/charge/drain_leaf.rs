//! A drain of one cgroup, by how many others have bytes in stocks.
//!
//! Group `drain_leaf`; the time is for one `drain`, on one thread. Before every drain the cgroup
//! charges 512 bytes and uncharges them, so that it has bytes in a stock of this CPU. That is not
//! measured, but reading the clock is: about 20 ns. The others are siblings. Each of them has
//! charged 512 bytes and uncharged them once, on the same CPU; as many of them have bytes in stocks
//! as stocks have room for. Functions:
//!
//! | name | what |
//! |---|---|
//! | `ours_<others>` | on the machine this runs on |
//! | `ours_256cpus_<others>` | on an injected machine of 256 CPUs |
//!
//! The others are 0, 100 and 10 000.

use std::cell::LazyCell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::Criterion;
use percpu_memcg::Memcg;

use super::BYTES;
use super::crowd::{Crowd, On};
use super::measure;

pub(crate) fn drain_leaf(criterion: &mut Criterion) {
    let mut group = measure::short_group(criterion, "drain_leaf");
    for on in On::BOTH {
        for others in [0, 100, 10_000] {
            let crowd = LazyCell::new(|| {
                measure::pin(0);
                let crowd = Crowd::new(on, others + 1);
                crowd.leaves.iter().for_each(charge_once);
                crowd
            });
            group.bench_function(format!("{on}_{others}"), |bencher| {
                let leaf = &crowd.leaves[others];
                bencher.iter_custom(|iterations| (0..iterations).map(|_| drain(leaf)).sum());
            });
        }
    }
    group.finish();
}

fn charge_once(memcg: &Memcg) {
    drop(memcg.charge(BYTES).expect("room"));
}

/// How long the drain takes.
fn drain(leaf: &Memcg) -> Duration {
    charge_once(leaf);
    let start = Instant::now();
    black_box(leaf.drain());
    start.elapsed()
}
