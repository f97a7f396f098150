//! Other processes: this binary once more, and forked children. Filters that refuse `membarrier`.

use std::any;
use std::env;
use std::io;
use std::mem::offset_of;
use std::os::unix::process::CommandExt;
use std::process::Command;

use libc::{c_ulong, seccomp_data, sock_filter, sock_fprog};

/// Set in processes that are started here. They start no others.
const CHILD: &str = "PERCPU_MEMCG_TEST_CHILD";

/// After so many seconds a process that hangs is ended.
const PATIENCE: libc::c_uint = 600;

pub(crate) fn is_child() -> bool {
    env::var_os(CHILD).is_some()
}

/// The test that has a closure of type `F`, as the test harness calls it.
fn test_of<F>() -> &'static str {
    let closure = any::type_name::<F>();
    let (_crate, path) = closure.split_once("::").expect("a closure is in a module");
    path.split("::{{").next().expect("split gives one part at least")
}

/// This binary, to run the test that has a closure of type `F`.
pub(crate) fn this_test<F>() -> Command {
    let mut command = Command::new(env::current_exe().expect("the binary has a path"));
    command.args([test_of::<F>(), "--exact", "--nocapture"]).env(CHILD, "1");
    command.env_remove("PERCPU_MEMCG_NO_RSEQ");
    command
}

/// Runs it and prints what it prints. Panics unless its test passed.
pub(crate) fn run(mut command: Command) {
    // The program that the process becomes keeps the alarm.
    let end_in_time = || {
        // SAFETY: takes a number.
        unsafe { libc::alarm(PATIENCE) };
        Ok(())
    };
    // SAFETY: between fork and exec there is one system call, and no memory is allocated.
    unsafe { command.pre_exec(end_in_time) };
    let output = command.output().expect("this binary can be run");
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
    assert!(text.contains("test result: ok. 1 passed"), "{command:?} ran another test:\n{text}");
}

/// The kernel refuses `membarrier` in the command's process from its start.
pub(crate) fn refuse_fences_from_the_start(command: &mut Command) {
    // SAFETY: between fork and exec there are two system calls, and no memory is allocated.
    unsafe { command.pre_exec(|| refuse_fences(libc::EPERM, Threads::This)) };
}

/// For which threads the kernel refuses something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Threads {
    /// All of this process.
    All,
    /// This one, and those that it starts.
    This,
}

/// The kernel refuses `membarrier` with `errno` from now on.
pub(crate) fn refuse_fences(errno: i32, threads: Threads) -> io::Result<()> {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let give = |k| sock_filter { code: RETURN, jt: 0, jf: 0, k };
    let number = offset_of!(seccomp_data, nr) as u32;
    let mut program = [
        sock_filter { code: LOAD_WORD, jt: 0, jf: 0, k: number },
        sock_filter { code: JUMP_IF_EQUAL, jt: 0, jf: 1, k: libc::SYS_membarrier as u32 },
        give(libc::SECCOMP_RET_ERRNO | errno as u32),
        give(libc::SECCOMP_RET_ALLOW),
    ];
    let filter = sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    let zero: c_ulong = 0;
    // SAFETY: takes numbers only.
    let promised =
        unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1 as c_ulong, zero, zero, zero) };
    if promised != 0 {
        return Err(io::Error::last_os_error());
    }
    let flags = match threads {
        Threads::All => libc::SECCOMP_FILTER_FLAG_TSYNC,
        Threads::This => 0,
    };
    // SAFETY: the kernel copies the filter, which is valid for the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            c_ulong::from(libc::SECCOMP_SET_MODE_FILTER),
            flags,
            &raw const filter,
        )
    };
    match result {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        thread => Err(io::Error::other(format!("thread {thread} has another filter"))),
    }
}

/// Runs `work` in a forked child, which has this thread only. Returns whether it ended well and
/// `work` returned true.
pub(crate) fn in_forked_child(work: impl FnOnce() -> bool) -> bool {
    // SAFETY: the caller's other threads wait, so that no lock is held at the fork.
    match unsafe { libc::fork() } {
        -1 => panic!("no child: {}", io::Error::last_os_error()),
        0 => {
            let is_well = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            // SAFETY: ends the process, and runs nothing at its end.
            unsafe { libc::_exit(if is_well.unwrap_or(false) { 0 } else { 1 }) }
        }
        child => {
            let mut status = -1;
            // SAFETY: the place for the status is valid for the call.
            let waited = unsafe { libc::waitpid(child, &mut status, 0) };
            assert_eq!(waited, child, "{}", io::Error::last_os_error());
            libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
        }
    }
}
