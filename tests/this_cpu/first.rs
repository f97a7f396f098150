//! The first operation of a thread, where this crate registers the thread's area, and its last.
//!
//! Between finding that there is none and the system call that registers it, a signal may arrive,
//! and its handler may use an operation, which registers the area as well:
//!
//! ```text
//!   thread     no area yet ─────────┐          ┌── register: there is one already
//!   handler                         └─ register, operation ─┘
//! ```
//!
//! A filter makes that happen: instead of the system call the thread gets a signal, whose handler
//! uses an operation before it makes the call on behalf of the thread.
//!
//! A detached thread may end together with its memory, in which its area was. Destructors of its
//! thread-local variables come before that, in any order, and use operations too.

use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use percpu_memcg::PerCpu;
use percpu_memcg::this_cpu::{ByCpu, RegisteredBy, ThisCpu, Tier};

use crate::words::{Object, Words as _};
use crate::{KERNEL, real};

/// True in the tier where first operations register areas.
fn we_register() -> bool {
    ThisCpu::tier() == Tier::Rseq { registered_by: RegisteredBy::Us }
}

#[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
mod interrupted {
    use std::cell::Cell;
    use std::io;
    use std::mem;
    use std::ptr;
    use std::sync::LazyLock;
    use std::thread;

    use libc::{c_int, c_void, siginfo_t, ucontext_t};
    use percpu_memcg::PerCpu;
    use percpu_memcg::this_cpu::{ByConcurrency, ByCpu, CopyIndex};

    use crate::processes::{PASS, filter_rseq};
    use crate::words::{Object, Words as _};
    use crate::{KERNEL, real};

    thread_local! {
        /// What the handler does when it interrupts the thread, once.
        static OPERATION: Cell<Option<fn()>> = const { Cell::new(None) };
        /// System calls that were made for this thread.
        static CALLS: Cell<usize> = const { Cell::new(0) };
    }

    /// Gets here instead of into `rseq`.
    extern "C" fn make_call(_signal: c_int, _info: *mut siginfo_t, context: *mut c_void) {
        CALLS.set(CALLS.get() + 1);
        if let Some(operation) = OPERATION.take() {
            operation(); // comes here again
        }
        // SAFETY: the third argument of a handler with `SA_SIGINFO`.
        let context = unsafe { &mut *context.cast::<ucontext_t>() };
        let registers = &mut context.uc_mcontext.gregs;
        let [area, length, flags, signature] =
            [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX, libc::REG_R10]
                .map(|register| registers[register as usize]);
        // SAFETY: the call that the thread was about to make.
        let result = unsafe {
            libc::syscall(libc::SYS_rseq, area, length, flags, signature, u64::from(PASS))
        };
        let error = io::Error::last_os_error().raw_os_error().unwrap_or(0);
        registers[libc::REG_RAX as usize] = if result == 0 { 0 } else { -i64::from(error) };
    }

    fn install() {
        // SAFETY: zero bytes are a `sigaction`: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = make_call;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        // SAFETY: the handler uses what its thread prepared for it.
        let result = unsafe { libc::sigaction(libc::SIGSYS, &action, ptr::null_mut()) };
        assert_eq!(result, 0);
        filter_rseq(libc::SECCOMP_RET_TRAP).expect("a filter for this thread");
    }

    type Words<I> = LazyLock<Object<u16, I>>;

    static BY_CPU: Words<ByCpu> = LazyLock::new(zeroed);
    static BY_CONCURRENCY: Words<ByConcurrency> = LazyLock::new(zeroed);

    fn zeroed<I: CopyIndex>() -> Object<u16, I> {
        Object(PerCpu::zeroed_in(&real(), KERNEL).expect("room"))
    }

    /// In a thread of its own: it remains without system call.
    fn first_operation<I: CopyIndex>(words: &Words<I>, operation: fn()) {
        // By another thread: to allocate registers an area, too.
        thread::scope(|scope| _ = scope.spawn(|| LazyLock::force(words)).join());
        install();
        OPERATION.set(Some(operation));
        words.add(1);
        assert_eq!(CALLS.get(), 2, "the handler's call, and the thread's");
        words.add(10);
        assert_eq!((words.sum(), words.detached()), (1011, 0), "it has an area, and uses it");
        assert_eq!(CALLS.get(), 2, "it knows that it has one");
    }

    pub(super) fn by_cpu() {
        first_operation(&BY_CPU, || BY_CPU.add(1000));
    }

    pub(super) fn by_concurrency() {
        first_operation(&BY_CONCURRENCY, || BY_CONCURRENCY.add(1000));
    }
}

#[cfg(not(all(target_arch = "x86_64", target_pointer_width = "64")))]
mod interrupted {
    pub(super) fn by_cpu() {}
    pub(super) fn by_concurrency() {}
}

fn in_a_new_thread(work: fn()) {
    if we_register() {
        thread::spawn(work).join().expect("as asserted");
    } else {
        println!("nothing to register in tier {:?}", ThisCpu::tier());
    }
}

#[test]
fn a_handler_that_registers_first_takes_nothing_from_its_thread() {
    in_a_new_thread(interrupted::by_cpu);
}

#[test]
fn a_handler_that_registers_first_takes_nothing_by_concurrency() {
    in_a_new_thread(interrupted::by_concurrency);
}

static LAST: LazyLock<Object<u32, ByCpu>> =
    LazyLock::new(|| Object(PerCpu::zeroed_in(&real(), KERNEL).expect("room")));

/// Uses an operation when it is dropped.
struct Last;

impl Drop for Last {
    fn drop(&mut self) {
        LAST.add(1);
    }
}

thread_local! {
    static BEFORE: Last = const { Last };
    static AFTER: Last = const { Last };
}

#[test]
fn a_detached_thread_ends_with_its_memory() {
    const ROUNDS: u32 = 50;
    const AT_ONCE: u32 = 20;
    LazyLock::force(&LAST);
    let deadline = Instant::now() + Duration::from_secs(60);
    for round in 1..=ROUNDS {
        for _ in 0..AT_ONCE {
            // Not joined, which is what has it free its own memory.
            drop(thread::spawn(|| {
                BEFORE.with(|_| {});
                LAST.add(1);
                AFTER.with(|_| {});
            }));
        }
        while LAST.sum() != round * AT_ONCE * 3 {
            assert!(Instant::now() < deadline, "{} of {}", LAST.sum(), round * AT_ONCE * 3);
            thread::yield_now();
        }
    }
}
