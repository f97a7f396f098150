//! Entering a cgroup and leaving it, on one thread.
//!
//! Group `scope`. Functions:
//!
//! | name | what |
//! |---|---|
//! | `ours_enter` | `enter`, and the drop of its guard |
//! | `ours_enter_cold` | the same for a cgroup that was never charged, which has no stock to count references in |
//! | `ours_closure` | `scope` |
//! | `ours_poll` | a poll of a ready future within `in_memcg` |
//! | `ours_look` | `charge_current` of 0 bytes within a scope, and its end |
//! | `ours_labelled` | `charge`, `labelled`, and the end of that charge |
//! | `ours_enter_within` | as `ours_enter`, within another scope |
//! | `list_of_arcs` | a list in a thread-local variable, with an `Arc` for each scope |
//! | `bare_poll` | the poll without a scope |

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use criterion::Criterion;
use percpu_memcg::cgroup::InMemcg;
use percpu_memcg::{Memcg, PerCpuAllocator};

use super::BYTES;
use super::measure::{self, bench};

fn tenant() -> (PerCpuAllocator, Memcg) {
    let pcpu = PerCpuAllocator::new().expect("address space");
    let tenant = pcpu.root().create("tenant").expect("a new name");
    (pcpu, tenant)
}

/// One that was charged on this CPU before.
fn active() -> (PerCpuAllocator, Memcg) {
    let (pcpu, tenant) = tenant();
    (0..16).for_each(|_| drop(tenant.charge(BYTES).expect("room")));
    (pcpu, tenant)
}

pub(crate) fn scopes(criterion: &mut Criterion) {
    let mut group = measure::group(criterion, "scope");
    for (name, prepare) in [("enter", active as fn() -> _), ("enter_cold", tenant)] {
        bench(&mut group, &format!("ours_{name}"), 1, 1, || {
            let (pcpu, tenant) = prepare();
            move |_| {
                let _alive = &pcpu;
                drop(black_box(tenant.enter()));
            }
        });
    }
    bench(&mut group, "ours_closure", 1, 1, || {
        let (_pcpu, tenant) = active();
        move |turn| tenant.scope(|| _ = black_box(turn))
    });
    poll(&mut group, "ours_poll", true);
    poll(&mut group, "bare_poll", false);
    bench(&mut group, "ours_look", 1, 1, || {
        let (_pcpu, tenant) = active();
        let (root, inside) = (tenant.parent().expect("a root"), tenant.clone());
        std::mem::forget(inside.enter());
        move |_| drop(black_box(root.charge_current(0)))
    });
    bench(&mut group, "ours_labelled", 1, 1, || {
        let (_pcpu, tenant) = active();
        move |_| drop(black_box(tenant.charge(BYTES).expect("room").labelled("rows")))
    });
    bench(&mut group, "ours_enter_within", 1, 1, || {
        let (_pcpu, tenant) = active();
        std::mem::forget(tenant.enter());
        move |_| drop(black_box(tenant.enter()))
    });
    bench(&mut group, "list_of_arcs", 1, 1, || {
        thread_local! {
            static ENTERED: RefCell<Vec<(u64, Arc<u64>)>> = const { RefCell::new(Vec::new()) };
        }
        let node = Arc::new(1);
        move |turn| {
            ENTERED.with_borrow_mut(|list| list.push((turn as u64, Arc::clone(&node))));
            drop(black_box(ENTERED.with_borrow_mut(Vec::pop)));
        }
    });
    group.finish();
}

fn poll(
    group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>,
    name: &str,
    is_within: bool,
) {
    let (_pcpu, tenant) = active();
    let poll_once = |future: std::pin::Pin<&mut dyn Future<Output = ()>>| {
        let _pending = black_box(future.poll(&mut Context::from_waker(Waker::noop())));
    };
    let pending = || poll_fn(|_| black_box(Poll::<()>::Pending));
    group.bench_function(name, |bencher| match is_within {
        true => {
            let mut future = pin!(pending().in_memcg(&tenant));
            bencher.iter(|| poll_once(future.as_mut()));
        }
        false => {
            let mut future = pin!(pending());
            bencher.iter(|| poll_once(future.as_mut()));
        }
    });
}
