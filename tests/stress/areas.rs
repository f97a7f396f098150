//! Steps with per-CPU memory: objects, areas without a type, futures, attached threads.

use std::alloc::Layout;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use percpu_memcg::cgroup::InMemcg;
use percpu_memcg::error::TreeError;
use percpu_memcg::{AllocError, Gfp, Memcg, PerCpu, PerCpuAllocator};

use crate::Choices;
use crate::held::{Item, Raw, What};
use crate::steps::Hand;
use crate::world::count;

/// What an area of `size` bytes costs.
fn cost(pcpu: &PerCpuAllocator, size: usize) -> u64 {
    let granules = size.div_ceil(4);
    (4 * granules * pcpu.machine().nr_possible() + 8 * granules) as u64
}

/// The child of the root that is at or above a cgroup; `None` for the root.
fn top_of(memcg: &Memcg) -> Option<Memcg> {
    let way = std::iter::successors(Some(memcg.clone()), Memcg::parent);
    way.take_while(|memcg| !memcg.is_root()).last()
}

/// Allocates an area in the scope of `memcg`. The root pays for none that is allocated for it, but
/// for those that it inherits. Which of both it is when the child of the root is removed at that
/// moment is not known, and the area is given back.
fn allocate(
    pcpu: &PerCpuAllocator,
    memcg: &Memcg,
    size: usize,
    make: impl FnOnce() -> Result<What, AllocError>,
) -> Result<Option<Item>, AllocError> {
    let top = top_of(memcg);
    let what = make()?;
    let bytes = match top {
        None => 0,
        Some(top) if top.is_removed() => return Ok(None),
        Some(_) => cost(pcpu, size),
    };
    Ok(Some(Item { what, payer: memcg.path(), bytes }))
}

/// An area of some size, for the cgroup whose scope the thread is in.
fn raw(pcpu: &PerCpuAllocator, memcg: &Memcg, choices: &mut Choices, gfp: Gfp) -> Allocated {
    let size = 1 + choices.of(&[8, 100, 900, 5000]);
    let align = choices.of(&[4, 8, 64, 512]);
    let layout = Layout::from_size_align(size, align).expect("a power of two");
    let make = || {
        let ptr = pcpu.alloc(layout, gfp | Gfp::ACCOUNT)?;
        Ok(What::Raw(Raw { ptr, size, pcpu: pcpu.clone() }))
    };
    allocate(pcpu, memcg, size, make)
}

/// The thread is in a scope of the cgroup. Of a removed one, that is a scope of its nearest ancestor.
#[track_caller]
fn assert_is_current(memcg: &Memcg) {
    assert!(memcg.of_this_thread() == *memcg || memcg.is_removed());
}

type Allocated = Result<Option<Item>, AllocError>;

impl Hand {
    fn keep_area(&mut self, allocated: Allocated, gfp: Gfp) {
        count(&self.world.done.areas);
        match allocated {
            Ok(item) => self.items.extend(item),
            Err(AllocError::Limit(error)) => {
                assert!(!gfp.may_exceed(), "{gfp:?}: {error}");
                self.note_refusal(&error);
            }
            Err(error) => assert!(error.is_no_room() && !gfp.may_block(), "{gfp:?}: {error}"),
        }
    }

    pub(crate) fn raw_area(&mut self) {
        let (memcg, gfp) = (self.cgroup(), self.gfp());
        let allocated = {
            let _in = memcg.enter();
            assert_is_current(&memcg);
            raw(&self.world.pcpu, &memcg, &mut self.choices, gfp)
        };
        if let Ok(Some(Item { what: What::Raw(raw), .. })) = &allocated {
            let place = self.world.pcpu.place_of(raw.ptr).expect("a live area");
            assert_eq!(place.size, raw.size.next_multiple_of(4));
        }
        self.keep_area(allocated, gfp);
    }

    /// An object for a cgroup, by a scope or for the cgroup that the thread is attached to.
    pub(crate) fn object(&mut self) {
        let (memcg, other, gfp) = (self.cgroup(), self.cgroup(), self.gfp());
        let pcpu = &self.world.pcpu;
        let account = gfp | Gfp::ACCOUNT;
        let allocated = match self.choices.below(3) {
            0 => {
                // A thread stays attached, so that the cgroup cannot be removed.
                let attached = match pcpu.root().of_this_thread() {
                    attached if attached.is_root() => return,
                    attached => attached,
                };
                assert!(!attached.is_removed());
                let make = || Ok(What::Large(PerCpu::zeroed_in(pcpu, account)?));
                allocate(pcpu, &attached, 2400, make)
            }
            1 => {
                let _in = memcg.enter();
                allocate(pcpu, &memcg, 2400, || Ok(What::Large(PerCpu::zeroed_in(pcpu, account)?)))
            }
            _ => {
                // The innermost scope counts; they may be left in any order.
                let outer = other.enter();
                let inner = memcg.enter();
                let value = self.choices.below(1000) as u64;
                let make = || {
                    let object = PerCpu::new_in(pcpu, account, |_cpu| AtomicU64::new(value))?;
                    Ok(What::Small(object, value))
                };
                let allocated = allocate(pcpu, &memcg, 8, make);
                drop(outer);
                assert_is_current(&memcg);
                drop(inner);
                allocated
            }
        };
        self.keep_area(allocated, gfp);
    }

    /// Attaches this thread to a cgroup, or to the root.
    pub(crate) fn attach(&mut self) {
        let memcg = match self.choices.once_in(2) {
            true => self.world.pcpu.root(),
            false => self.cgroup(),
        };
        match memcg.attach_thread() {
            Ok(()) => assert_eq!(memcg.of_this_thread(), memcg),
            Err(error) => assert!(matches!(error, TreeError::Removed { .. }), "{error}"),
        }
    }

    pub(crate) fn start_future(&mut self) {
        let memcg = self.cgroup();
        let inside: Arc<Mutex<Vec<Item>>> = Arc::default();
        let work = Work {
            pcpu: self.world.pcpu.clone(),
            memcg: memcg.clone(),
            inside: Arc::clone(&inside),
            choices: Choices(self.choices.below(1 << 30) as u64),
            polls: 1 + self.choices.below(5),
        };
        let what = What::Future(Box::pin(work.in_memcg(&memcg)), inside);
        self.items.push(Item { what, payer: memcg.path(), bytes: 0 });
    }

    /// Polls a future; other threads have polled it before.
    pub(crate) fn poll_future(&mut self) {
        let is_future = |item: &Item| matches!(item.what, What::Future(..));
        let Some(nth) = self.items.iter().position(is_future) else { return };
        let mut item = self.items.swap_remove(nth);
        let What::Future(future, _) = &mut item.what else { return };
        let before = self.world.pcpu.root().of_this_thread();
        let polled = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(self.world.pcpu.root().of_this_thread(), before, "the scope was left");
        if polled.is_pending() {
            self.items.push(item);
        }
    }
}

/// Allocates and frees at every poll, and once more when it is dropped.
struct Work {
    pcpu: PerCpuAllocator,
    memcg: Memcg,
    inside: Arc<Mutex<Vec<Item>>>,
    choices: Choices,
    polls: usize,
}

impl Work {
    fn allocate(&mut self) {
        assert_is_current(&self.memcg);
        let gfp = Gfp::KERNEL | Gfp::NORETRY;
        let allocated = raw(&self.pcpu, &self.memcg, &mut self.choices, gfp);
        if let Ok(Some(item)) = allocated {
            self.inside.lock().push(item);
        }
    }
}

impl Future for Work {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<()> {
        self.allocate();
        if self.choices.once_in(3) {
            let freed = self.inside.lock().pop();
            drop(freed);
        }
        self.polls -= 1;
        if self.polls == 0 { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        assert_is_current(&self.memcg);
        let gfp = Gfp::NOWAIT;
        // A callback may panic.
        let allocate = || raw(&self.pcpu, &self.memcg, &mut self.choices, gfp);
        drop(catch_unwind(AssertUnwindSafe(allocate)));
    }
}
