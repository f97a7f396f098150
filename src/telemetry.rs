//! What a subscriber of `tracing` is told, with the feature of that name. Without it, these functions do
//! nothing.
//!
//! A subscriber is code of a user. So it is called where hooks and wakers may be: under no lock of the
//! library (L2). It may charge, allocate and free. What it does itself is not told, so that it is never
//! called from within itself. Its panics are contained, because what it is told of has happened.
//!
//! None of these functions is called by a charge or an allocation that finds what it needs on its CPU.
//!
//! The [guide](crate::guide#tracing) lists names, targets, levels and fields, which are stable. What a
//! tenant can cause as often as it likes has the level `DEBUG`.

#[cfg(feature = "tracing")]
use std::panic::{AssertUnwindSafe, catch_unwind};

#[cfg(feature = "tracing")]
use tracing::level_filters::LevelFilter;
#[cfg(feature = "tracing")]
use tracing::{Level, enabled, event};

#[cfg(feature = "tracing")]
use crate::sys::{locks, of_thread};

/// What happens to cgroups.
#[cfg(feature = "tracing")]
const CGROUP: &str = "percpu_memcg::cgroup";
/// What happens to chunks.
#[cfg(feature = "tracing")]
const CHUNK: &str = "percpu_memcg::chunk";

/// Calls a subscriber. Returns nothing where it must not be called, or panicked.
#[cfg(feature = "tracing")]
fn call<R>(tell: impl FnOnce() -> R) -> Option<R> {
    struct Told;
    impl Drop for Told {
        fn drop(&mut self) {
            of_thread(|thread| thread.is_telling.set(false));
        }
    }
    // The library holds a lock where the program's allocator charges what the library allocates.
    if locks::is_any_held() || of_thread(|thread| thread.is_telling.replace(true)) {
        return None;
    }
    let _told = Told;
    // Unwind safe: it runs under no lock, so it leaves nothing of ours half-changed.
    let result = catch_unwind(AssertUnwindSafe(tell));
    // Leaked, because its destructor is also code of a user and may panic in turn.
    result.map_err(std::mem::forget).ok()
}

/// As [`call`], as soon as this thread holds no lock.
#[cfg(feature = "tracing")]
fn call_outside(tell: impl FnOnce() + 'static) {
    // No code of a subscriber.
    if LevelFilter::current() >= LevelFilter::DEBUG && !of_thread(|thread| thread.is_telling.get())
    {
        locks::outside(|| {
            call(tell);
        });
    }
}

macro_rules! events {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $of:ty),* $(,)?) $tell:block)*) => {$(
        $(#[$meta])*
        #[cfg(feature = "tracing")]
        #[cold]
        pub(crate) fn $name($($arg: $of),*) {
            $tell
        }

        #[cfg(not(feature = "tracing"))]
        #[inline(always)]
        pub(crate) fn $name($(_: $of),*) {}
    )*};
}

events! {
    /// A limit refused a charge, for good.
    fn refused(cgroup: &str, charged: &str, requested: u64, usage: u64, max: Option<u64>) {
        call(|| event!(
            name: "cgroup.refused", target: CGROUP, Level::DEBUG,
            { cgroup, charged, requested, usage, max }, "a charge is refused"
        ));
    }

    /// A charge left a cgroup above `high`, or a thread is throttled there.
    fn high(path: impl Fn() -> String, usage: u64, high: Option<u64>) {
        call(|| if enabled!(target: CGROUP, Level::DEBUG) {
            let cgroup = path();
            event!(
                name: "cgroup.high", target: CGROUP, Level::DEBUG,
                { cgroup, usage, high }, "usage is above high"
            );
        });
    }

    /// Reclaim did not make enough room, and OOM callbacks were asked.
    fn oom(path: impl Fn() -> String, requested: u64, answer: &'static str) {
        call(|| if enabled!(target: CGROUP, Level::DEBUG) {
            let cgroup = path();
            event!(
                name: "cgroup.oom", target: CGROUP, Level::DEBUG,
                { cgroup, requested, answer }, "out of memory"
            );
        });
    }

    /// A victim of an OOM was recorded.
    fn oom_kill(path: impl Fn() -> String) {
        call(|| if enabled!(target: CGROUP, Level::WARN) {
            let cgroup = path();
            event!(
                name: "cgroup.oom_kill", target: CGROUP, Level::WARN,
                { cgroup }, "its work was ended to make room"
            );
        });
    }

    /// Hooks ran.
    fn reclaim(path: impl Fn() -> String, reason: &'static str, requested: u64, freed: u64, hooks: usize) {
        call(|| if enabled!(target: CGROUP, Level::DEBUG) {
            let cgroup = path();
            event!(
                name: "cgroup.reclaim", target: CGROUP, Level::DEBUG,
                { cgroup, reason, requested, freed, hooks }, "reclaim hooks ran"
            );
        });
    }

    /// A cgroup was removed, and left bytes to its parent.
    fn removed(left: Option<Left>) {
        if let Some(Left { cgroup, parent, percpu, charged }) = left {
            call(|| event!(
                name: "cgroup.removed", target: CGROUP, Level::DEBUG,
                { cgroup, parent, percpu, charged }, "a cgroup was removed"
            ));
        }
    }

    /// A chunk was created: which one, of what type, in which arena, and how many there are. Under locks.
    fn chunk_created(chunk: u64, kind: &'static str, arena: &'static str, chunks: u64) {
        call_outside(move || event!(
            name: "chunk.created", target: CHUNK, Level::DEBUG,
            { chunk, kind, arena, chunks }, "a chunk was created"
        ));
    }

    /// A chunk was destroyed. Under locks.
    fn chunk_destroyed(chunk: u64, kind: &'static str, arena: &'static str, chunks: u64) {
        call_outside(move || event!(
            name: "chunk.destroyed", target: CHUNK, Level::DEBUG,
            { chunk, kind, arena, chunks }, "a chunk was destroyed"
        ));
    }
}

/// What a removed cgroup left to its parent.
#[cfg_attr(not(feature = "tracing"), allow(dead_code))]
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) cgroup: String,
    pub(crate) parent: String,
    pub(crate) percpu: u64,
    pub(crate) charged: u64,
}

/// Whether a removal has to look what is left.
#[inline(always)]
pub(crate) fn is_removal_told() -> bool {
    #[cfg(feature = "tracing")]
    return call(|| enabled!(target: CGROUP, Level::DEBUG)).unwrap_or(false);
    #[cfg(not(feature = "tracing"))]
    false
}
