//! The choice between sequences and atomic instructions.

use std::sync::OnceLock;

use super::platform;
use crate::sys::loaded::stay_loaded;

/// How operations on this CPU's copy are carried out in this process.
///
/// # Examples
///
/// ```
/// use percpu_memcg::this_cpu::{ThisCpu, Tier};
///
/// let tier: Tier = ThisCpu::tier();
/// if tier == Tier::GetCpu {
///     eprintln!("no restartable sequences: counters take atomic instructions");
/// }
/// assert_eq!(tier, ThisCpu::tier()); // for the life of the process
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Tier {
    /// By restartable sequences, without atomic instructions.
    ///
    /// A thread that has no registered rseq area uses the *detached* copy with atomic
    /// instructions.
    Rseq {
        /// What registers the threads' rseq areas with the kernel.
        registered_by: RegisteredBy,
    },
    /// By atomic instructions on the copy of the CPU that `sched_getcpu` names: no kernel support,
    /// a filter that forbids `rseq`, an emulator, an architecture other than x86-64, or switched
    /// off.
    GetCpu,
}

/// What registers rseq areas.
///
/// # Examples
///
/// ```
/// use percpu_memcg::this_cpu::{RegisteredBy, ThisCpu, Tier};
///
/// let cost = match ThisCpu::tier() {
///     Tier::Rseq { registered_by: RegisteredBy::Libc } => "none",
///     Tier::Rseq { registered_by: RegisteredBy::Us } => "a system call for each thread",
///     _ => "an atomic instruction for each operation",
/// };
/// println!("beyond the operation itself: {cost}");
/// assert_eq!(cost.contains("atomic"), ThisCpu::tier() == Tier::GetCpu);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum RegisteredBy {
    /// The C library, for every thread it starts: glibc since 2.35.
    Libc,
    /// This crate, for a thread's first operation.
    Us,
}

/// What "this CPU" means in this process.
///
/// # Examples
///
/// ```
/// use percpu_memcg::this_cpu::{ThisCpu, Tier};
///
/// let tier = ThisCpu::tier(); // at the start of a program, as the first call takes longest
/// println!("{tier:?}, concurrency ids: {}", ThisCpu::has_concurrency_ids());
/// assert!(tier != Tier::GetCpu || !ThisCpu::has_concurrency_ids());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ThisCpu(());

impl ThisCpu {
    /// How operations on this CPU's copy are carried out. Chosen at the first call, or when the
    /// first allocator is built, once per process; with `PERCPU_MEMCG_NO_RSEQ=1` in the
    /// environment it is always [`Tier::GetCpu`].
    ///
    /// The choice includes a self test, which takes some 100 µs and starts a thread for that long.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::this_cpu::{ThisCpu, Tier};
    ///
    /// match ThisCpu::tier() {
    ///     Tier::Rseq { registered_by } => println!("rseq, registered by {registered_by:?}"),
    ///     tier => println!("atomic instructions: {tier:?}"),
    /// }
    /// ```
    pub fn tier() -> Tier {
        choice().tier
    }

    /// True when words that are indexed [by concurrency](crate::this_cpu::ByConcurrency) are indexed by the
    /// kernel's concurrency ids, false when by CPU: before Linux 6.3, or without sequences.
    pub fn has_concurrency_ids() -> bool {
        choice().has_concurrency_ids
    }
}

/// What [`ThisCpu`] tells, and where threads' areas are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    pub(super) tier: Tier,
    /// From the thread pointer, in bytes; without sequences, an area that nobody registers.
    pub(super) area: isize,
    pub(super) has_concurrency_ids: bool,
    /// Sequences that are under way can be stopped.
    pub(super) has_fence: bool,
}

impl Choice {
    /// Without sequences.
    pub(super) fn atomic() -> Self {
        Choice {
            tier: Tier::GetCpu,
            area: platform::unregistered_area(),
            has_concurrency_ids: false,
            has_fence: false,
        }
    }
}

static CHOICE: OnceLock<Choice> = OnceLock::new();

fn is_switched_off() -> bool {
    std::env::var_os("PERCPU_MEMCG_NO_RSEQ").is_some_and(|value| !value.is_empty() && value != "0")
}

#[inline]
pub(super) fn choice() -> Choice {
    *CHOICE.get_or_init(|| {
        // Before the kernel or the C library can get to know any of our code.
        stay_loaded();
        if is_switched_off() { Choice::atomic() } else { platform::choose() }
    })
}

/// What to do after a sequence found no usable index. Safe in signal handlers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Miss {
    /// The thread has registered its area, maybe just now: worth another try.
    Registered,
    /// The thread has no area of ours, or runs on a CPU without copy.
    Detached,
    /// Nobody uses sequences.
    NoSequences,
}

pub(super) fn after_miss() -> Miss {
    // There is a choice: a `CopyLocator` exists (S1).
    match choice().tier {
        Tier::GetCpu => Miss::NoSequences,
        Tier::Rseq { registered_by: RegisteredBy::Libc } => Miss::Detached,
        Tier::Rseq { registered_by: RegisteredBy::Us } => match platform::register() {
            true => Miss::Registered,
            false => Miss::Detached,
        },
    }
}

/// The id of the CPU that runs this thread, if it has an area.
#[inline]
pub(super) fn registered_cpu() -> Option<usize> {
    let choice = CHOICE.get().filter(|choice| choice.tier != Tier::GetCpu)?;
    platform::cpu_id(choice.area)
}
