//! A child process that carries out one operation again and again, and its tracer.
//!
//! ```text
//!     child                                     tracer
//!     ask to be traced
//!     ┌─► raise SIGSTOP ────── checkpoint ────► sets memory, CPU and breakpoints
//!     │   operation ◄───────────────────────── continues it
//!     │      │  int3 ────────── trap ─────────► looks, disturbs, steps
//!     └──────┘ ◄────────────────────────────── continues it
//! ```
//!
//! It is a copy of this process: its objects are at the same addresses, and its own.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::ptr;

use libc::{c_int, c_uint, pid_t, user_regs_struct};
use rustix::thread::{CpuSet, Pid, sched_setaffinity};

/// Status of a child that nobody may trace.
const NOT_TRACED: c_int = 77;
/// Status of a child whose operation panicked.
const PANICKED: c_int = 78;

/// A child that does not come back from an operation within so many seconds is stuck.
const PATIENCE: c_uint = 60;

const BREAKPOINT: u8 = 0xcc;

/// What C libraries take for a request of `ptrace`.
#[cfg(target_env = "musl")]
type Request = c_int;
#[cfg(not(target_env = "musl"))]
type Request = c_uint;

/// Memory of a process.
#[derive(Debug)]
pub(crate) struct Memory(File);

impl Memory {
    pub(crate) fn own() -> Self {
        Memory(File::open("/proc/self/mem").expect("a process may read its memory"))
    }

    fn of(pid: pid_t) -> io::Result<Self> {
        let path = format!("/proc/{pid}/mem");
        Ok(Memory(File::options().read(true).write(true).open(path)?))
    }

    /// So many bytes, or fewer if there are no more.
    pub(crate) fn read(&self, address: u64, len: usize) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; len];
        let read = self.0.read_at(&mut bytes, address);
        bytes.truncate(read.map_err(|error| format!("reading at {address:#x}: {error}"))?);
        Ok(bytes)
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), String> {
        let written = self.0.write_all_at(bytes, address);
        written.map_err(|error| format!("writing at {address:#x}: {error}"))
    }
}

/// Why a child is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Between two operations.
    Checkpoint,
    /// By a breakpoint or after a step; the next instruction is there.
    Trap(u64),
}

/// A child process. Ends with this value.
#[derive(Debug)]
struct Child {
    pid: pid_t,
    is_gone: Cell<bool>,
}

impl Child {
    /// Waits until it is stopped, and returns by which signal.
    fn wait(&self) -> Result<c_int, String> {
        let mut status = 0;
        let waited = loop {
            // SAFETY: a child that nobody else waits for, and a place for its status.
            let waited = unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL) };
            let error = io::Error::last_os_error();
            if waited != -1 || error.kind() != io::ErrorKind::Interrupted {
                break waited;
            }
        };
        if waited == self.pid && libc::WIFSTOPPED(status) {
            return Ok(libc::WSTOPSIG(status));
        }
        self.is_gone.set(true);
        Err(match libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)) {
            Some(NOT_TRACED) => "nobody may trace a child".into(),
            Some(PANICKED) => "the operation panicked".into(),
            Some(status) => format!("the child left with status {status}"),
            None => format!("the child was killed by signal {}", libc::WTERMSIG(status)),
        })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.is_gone.get() {
            // SAFETY: a child that nobody waited for, so that the id is still its own.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
            while self.wait().is_ok() {}
        }
    }
}

/// A traced child, stopped whenever none of these methods is under way. It ends with this value or
/// with the thread that made it, which is the only one that may use it.
#[derive(Debug)]
pub(crate) struct Tracee {
    child: Child,
    pub(crate) memory: Memory,
}

impl Tracee {
    /// A child at its first checkpoint.
    ///
    /// # Errors
    ///
    /// When there can be none.
    pub(crate) fn new(operation: &dyn Fn()) -> Result<Self, String> {
        // SAFETY: the child calls nothing but `be_traced`, which allocates nothing and takes no
        // lock, and never returns.
        let pid = match unsafe { libc::fork() } {
            -1 => return Err(format!("fork: {}", io::Error::last_os_error())),
            0 => be_traced(operation),
            pid => pid,
        };
        let child = Child { pid, is_gone: Cell::new(false) };
        match child.wait()? {
            libc::SIGSTOP => {}
            signal => return Err(format!("signal {signal} came first")),
        }
        let memory = Memory::of(pid).map_err(|error| format!("no access to memory: {error}"))?;
        let tracee = Tracee { child, memory };
        tracee.request(libc::PTRACE_SETOPTIONS, 0, libc::PTRACE_O_EXITKILL as u64)?;
        Ok(tracee)
    }

    /// Why no child can be traced here, if that is so.
    pub(crate) fn refusal() -> Option<String> {
        let probe = || {
            let tracee = Tracee::new(&|| {})?;
            tracee.proceed()
        };
        probe().err().map(|error: String| format!("no ptrace: {error}"))
    }

    fn request(&self, request: Request, address: u64, data: u64) -> Result<(), String> {
        // SAFETY: a tracee of this thread, which is stopped; the requests that this type makes
        // change that process, or write a register set to `data`.
        match unsafe { libc::ptrace(request, self.child.pid, address, data) } {
            -1 => Err(format!("ptrace request {request}: {}", io::Error::last_os_error())),
            _ => Ok(()),
        }
    }

    fn registers(&self) -> Result<user_regs_struct, String> {
        let mut registers = MaybeUninit::<user_regs_struct>::uninit();
        self.request(libc::PTRACE_GETREGS, 0, registers.as_mut_ptr() as u64)?;
        // SAFETY: the request succeeded, so they are all there.
        Ok(unsafe { registers.assume_init() })
    }

    fn resume(&self, request: Request) -> Result<Event, String> {
        self.request(request, 0, 0)?;
        match self.child.wait()? {
            libc::SIGSTOP => Ok(Event::Checkpoint),
            libc::SIGTRAP => Ok(Event::Trap(self.registers()?.rip)),
            libc::SIGALRM => Err("the operation does not come to an end".into()),
            signal => Err(format!("signal {signal} at {:#x}", self.registers()?.rip)),
        }
    }

    /// Continues the child until something stops it.
    pub(crate) fn proceed(&self) -> Result<Event, String> {
        self.resume(libc::PTRACE_CONT)
    }

    /// Lets the child execute one instruction.
    pub(crate) fn step(&self) -> Result<Event, String> {
        self.resume(libc::PTRACE_SINGLESTEP)
    }

    /// Sets where the child continues.
    pub(crate) fn jump(&self, address: u64) -> Result<(), String> {
        let registers = user_regs_struct { rip: address, ..self.registers()? };
        self.request(libc::PTRACE_SETREGS, 0, (&raw const registers) as u64)
    }

    /// Puts a breakpoint in place of an instruction, and returns what was there.
    pub(crate) fn plant(&self, address: u64) -> Result<u64, String> {
        let found = self.memory.read(address, size_of::<u64>())?;
        let found = u64::from_le_bytes(found.try_into().map_err(|_| "too near to the end")?);
        self.restore(address, found & !0xff | u64::from(BREAKPOINT))?;
        Ok(found)
    }

    /// Undoes [`plant`](Self::plant).
    pub(crate) fn restore(&self, address: u64, found: u64) -> Result<(), String> {
        self.request(libc::PTRACE_POKETEXT, address, found)
    }

    /// Moves the child to this CPU; it is there when it continues.
    pub(crate) fn move_to(&self, cpu: usize) -> Result<(), String> {
        let mut only = CpuSet::new();
        only.set(cpu);
        let moved = sched_setaffinity(Pid::from_raw(self.child.pid), &only);
        moved.map_err(|error| format!("moving to CPU {cpu}: {error}"))
    }
}

/// The child.
fn be_traced(operation: &dyn Fn()) -> ! {
    /// A panic must not unwind into the copy of the tracer.
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            leave(PANICKED);
        }
    }

    fn leave(status: c_int) -> ! {
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(status) }
    }

    let _bomb = Bomb;
    // SAFETY: asks for a signal when the thread ends that made this process.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // SAFETY: asks the parent to trace this process.
    if unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, ptr::null_mut::<u8>(), 0) } == -1 {
        leave(NOT_TRACED);
    }
    loop {
        // SAFETY: asks for a signal.
        unsafe { libc::alarm(PATIENCE) };
        // SAFETY: stops this process, which the tracer continues.
        unsafe { libc::raise(libc::SIGSTOP) };
        operation();
    }
}
