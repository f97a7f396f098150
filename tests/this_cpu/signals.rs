//! Signals that interrupt workers.
//!
//! Three sources: another thread that sends; a timer of the worker's own, which fires while it
//! runs wherever it is; and the processor, after each instruction. What the handler does is up to the worker.

use std::cell::Cell;
use std::mem::{self, MaybeUninit};
use std::ptr;
use std::sync::Once;

use libc::{c_int, itimerspec, sigaction, sigevent, timer_t, timespec};
use rustix::thread::{Pid, gettid};

/// What [`send`] sends.
pub(crate) const SENT: c_int = libc::SIGUSR1;

/// What the signal handler of a thread does; it is given the signal.
///
/// Safe in signal handlers: it touches atomics and the words, and calls the system.
struct Handler<'a>(&'a dyn Fn(c_int));

thread_local! {
    /// That of this thread, or null. A plain word, so that the handler may read it.
    static HANDLER: Cell<*const Handler<'static>> = const { Cell::new(ptr::null()) };
}

/// Runs `work`; signals that this thread gets meanwhile are handled by `handler`.
pub(crate) fn handled_by<R>(handler: &dyn Fn(c_int), work: impl FnOnce() -> R) -> R {
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            HANDLER.set(ptr::null());
        }
    }
    install();
    let handler = Handler(handler);
    let _reset = Reset;
    HANDLER.set(ptr::from_ref(&handler).cast());
    work()
}

extern "C" fn handle(signal: c_int) {
    // SAFETY: null, or what a call of `handled_by` holds that this handler interrupted.
    let Some(handler) = (unsafe { HANDLER.get().as_ref() }) else { return };
    // SAFETY: gives the address of a variable of this thread.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above. The interrupted code may be about to read it.
    let before = unsafe { errno.read() };
    handler.0(signal);
    // SAFETY: as above.
    unsafe { errno.write(before) };
}

/// Makes the handler that of all signals this file sends.
fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for signal in [SENT, libc::SIGRTMIN(), libc::SIGTRAP] {
            // SAFETY: zero bytes are a `sigaction`: no flags, an empty mask.
            let mut action: sigaction = unsafe { mem::zeroed() };
            action.sa_sigaction = handle as extern "C" fn(c_int) as usize;
            // A handler may be trapped itself.
            let nested = if signal == libc::SIGTRAP { libc::SA_NODEFER } else { 0 };
            action.sa_flags = libc::SA_RESTART | nested;
            // SAFETY: the handler does what is safe in one.
            let result = unsafe { libc::sigaction(signal, &action, ptr::null_mut()) };
            assert_eq!(result, 0);
        }
    });
}

/// Sends a signal to a thread of this process, unless it has ended.
pub(crate) fn send(thread: Pid) {
    let (process, thread) = (std::process::id(), thread.as_raw_nonzero().get());
    // SAFETY: the signal has a handler, whichever thread of this process gets it.
    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, SENT) };
}

/// A timer that signals the thread which started it, until it is dropped.
pub(crate) struct Timer(timer_t);

/// Short, and no divisor of the scheduler's tick.
const INTERVAL_NS: i64 = 97_000;

impl Timer {
    pub(crate) fn start() -> Self {
        // SAFETY: zero bytes are a `sigevent`.
        let mut event: sigevent = unsafe { mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGRTMIN();
        event.sigev_notify_thread_id = gettid().as_raw_nonzero().get();
        let mut timer = MaybeUninit::uninit();
        // SAFETY: the event and the place for the timer are valid for the call.
        let result =
            unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, timer.as_mut_ptr()) };
        assert_eq!(result, 0, "a timer");
        // SAFETY: the call succeeded.
        let timer = unsafe { timer.assume_init() };
        let interval = timespec { tv_sec: 0, tv_nsec: INTERVAL_NS };
        let times = itimerspec { it_interval: interval, it_value: interval };
        // SAFETY: the timer exists, and nobody asks for the old times.
        let result = unsafe { libc::timer_settime(timer, 0, &times, ptr::null_mut()) };
        assert_eq!(result, 0, "a timer that runs");
        Timer(timer)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: created by `start`, and deleted once.
        unsafe { libc::timer_delete(self.0) };
    }
}
