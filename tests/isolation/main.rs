//! User code in one cgroup does not stop the others, nor itself for ever, whatever it answers.
//!
//! | file | what |
//! |---|---|
//! | `others` | hooks and callbacks that do not return, and what other cgroups do at that time |
//! | `lies` | answers that are not true, in everything that asks again and again |
//! | `workers` | threads that work for a hook; hooks of several trees |
//! | `drops` | where captured values are dropped |
//! | `batches` | how often hooks are asked above `high` |
//! | `reenter` | code of users that calls everything |
//! | `cancelled` | throttling that is cut short |
//! | `wakers` | wakers that panic or do not return |

mod batches;
mod cancelled;
mod drops;
mod lies;
mod others;
mod reenter;
mod wakers;
mod workers;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{env, thread};

use parking_lot::{Condvar, Mutex};
use percpu_memcg::{Limit, Memcg, PerCpuAllocator};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The longest wait that is documented, and what a busy machine adds to it.
const PATIENCE: Duration = Duration::from_secs(5);
const SLACK: Duration = Duration::from_secs(3);

/// An allocator and cgroups below its root, each limited to 1 MiB.
fn tenants<const N: usize>(names: [&str; N]) -> (PerCpuAllocator, [Memcg; N]) {
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenants = names.map(|name| {
        let tenant = pcpu.root().create(name).unwrap();
        tenant.set_max(Limit::bytes(MIB)).unwrap();
        tenant
    });
    (pcpu, tenants)
}

/// A door that is closed until it is opened: what a hook does that does not return.
#[derive(Default)]
struct Door {
    is_open: Mutex<bool>,
    opened: Condvar,
    was_reached: AtomicBool,
}

impl Door {
    fn pass(&self) {
        self.was_reached.store(true, Ordering::SeqCst);
        let mut is_open = self.is_open.lock();
        self.opened.wait_while(&mut is_open, |is_open| !*is_open);
    }

    fn open(&self) {
        *self.is_open.lock() = true;
        self.opened.notify_all();
    }

    fn wait_until_reached(&self) {
        let begin = Instant::now();
        while !self.was_reached.load(Ordering::SeqCst) {
            assert!(begin.elapsed() < Duration::from_secs(20), "nobody came");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Opens a door at the end of a test, also of one that fails.
struct OpenAtEnd<'a>(&'a Door);

impl Drop for OpenAtEnd<'_> {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// Runs it in another thread, and fails when it takes longer. A thread that hangs is left behind.
#[track_caller]
fn within<T: Send + 'static>(time: Duration, run: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = mpsc::channel();
    thread::spawn(move || done.send(run()));
    match result.recv_timeout(time) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("not within {time:?}"),
        Err(mpsc::RecvTimeoutError::Disconnected) => panic!("it panicked"),
    }
}

/// How long tests that measure go on: `PERCPU_MEMCG_FULL=1` is for the long form.
fn duration(short: Duration, full: Duration) -> Duration {
    if env::var_os("PERCPU_MEMCG_FULL").is_some() { full } else { short }
}
