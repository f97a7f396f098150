//! Other processes: this binary once more, forked children, and filters that forbid the system
//! call.

use std::env;
use std::io;
use std::mem::offset_of;
use std::os::unix::process::CommandExt;
use std::process::Command;

use libc::{c_ulong, seccomp_data, sock_filter, sock_fprog};

use crate::conditions::pin;

/// Set in processes that were started here: they start no others.
const CHILD: &str = "PERCPU_MEMCG_TEST_CHILD";

/// The tier that a child must be in, as `Debug` prints it.
pub(crate) const EXPECTED_TIER: &str = "PERCPU_MEMCG_TEST_TIER";

pub(crate) fn is_child() -> bool {
    env::var_os(CHILD).is_some()
}

/// This binary, to run the tests that `arguments` select, without the settings that this process
/// was started with.
pub(crate) fn this_binary(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::current_exe().expect("the binary has a path"));
    command.args(arguments).arg("--nocapture").env(CHILD, "1");
    command.env_remove("PERCPU_MEMCG_NO_RSEQ").env_remove("GLIBC_TUNABLES");
    command
}

/// Runs it, prints what it prints, and returns that. Panics unless all tests passed.
pub(crate) fn run(mut command: Command) -> String {
    let output = command.output().expect("this binary can be run");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    print!("{text}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{text}\n{errors}", output.status);
    assert!(text.contains("test result: ok.") && !text.contains("running 0 tests"), "{text}");
    text
}

/// The command's process runs on one CPU from its start.
pub(crate) fn confine(command: &mut Command, cpu: usize) {
    let confine = move || {
        pin(None, &[cpu]);
        Ok(())
    };
    // SAFETY: between fork and exec there is one system call, and no memory is allocated.
    unsafe { command.pre_exec(confine) };
}

/// Has valgrind run the command, and fail when it finds an error.
pub(crate) fn under_valgrind(command: &mut Command) {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--quiet", "--error-exitcode=99", "--fair-sched=yes"]);
    if cfg!(target_env = "musl") {
        // An allocator that is linked statically is not known as one, and looks at memory that it
        // has not written.
        valgrind.arg("--tool=none");
    }
    valgrind.arg(command.get_program()).args(command.get_args());
    for (variable, value) in command.get_envs() {
        match value {
            Some(value) => valgrind.env(variable, value),
            None => valgrind.env_remove(variable),
        };
    }
    *command = valgrind;
}

/// The kernel refuses `rseq` in the command's process with `errno`, from its start; with 0 it
/// pretends to do it.
pub(crate) fn forbid_rseq(command: &mut Command, errno: i32) {
    // SAFETY: between fork and exec there are two system calls, and no memory is allocated.
    unsafe { command.pre_exec(move || deny_rseq(errno)) };
}

/// The kernel refuses `rseq` with `errno` from now on: in this thread, those that it starts, and
/// the program that it becomes.
pub(crate) fn deny_rseq(errno: i32) -> io::Result<()> {
    filter_rseq(libc::SECCOMP_RET_ERRNO | errno as u32)
}

/// A fifth argument of `rseq`, which takes four, with which it passes every filter.
pub(crate) const PASS: u32 = 0x5A55;

/// The kernel does `action` instead of `rseq`, for whom [`deny_rseq`] says.
pub(crate) fn filter_rseq(action: u32) -> io::Result<()> {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let load = |offset: usize| sock_filter { code: LOAD_WORD, jt: 0, jf: 0, k: offset as u32 };
    let skip_unless = |k, jf| sock_filter { code: JUMP_IF_EQUAL, jt: 0, jf, k };
    let give = |k| sock_filter { code: RETURN, jt: 0, jf: 0, k };
    let fifth = offset_of!(seccomp_data, args) + 4 * size_of::<u64>();
    let mut program = [
        load(offset_of!(seccomp_data, nr)),
        skip_unless(libc::SYS_rseq as u32, 2),
        load(fifth), // the low half, where that comes first
        skip_unless(PASS, 1),
        give(libc::SECCOMP_RET_ALLOW),
        give(action),
    ];
    let filter = sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    let zero: c_ulong = 0;
    // SAFETY: takes numbers only.
    let promised =
        unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1 as c_ulong, zero, zero, zero) };
    if promised != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel copies the filter, which is valid for the call.
    let result = unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER as c_ulong, &raw const filter)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs `work` in a forked child and returns whether it ended well and `work` said so.
///
/// Other threads may be anywhere: `work` must not allocate, print or panic.
pub(crate) fn in_forked_child(work: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child does what is allowed in a signal handler, and ends.
    in_child(unsafe { libc::fork() }, work)
}

/// As [`in_forked_child`], past the C library.
#[cfg(target_arch = "x86_64")]
pub(crate) fn in_raw_child(work: impl FnOnce() -> bool) -> bool {
    // SAFETY: as above.
    in_child(unsafe { libc::syscall(libc::SYS_fork) } as libc::pid_t, work)
}

fn in_child(forked: libc::pid_t, work: impl FnOnce() -> bool) -> bool {
    match forked {
        -1 => panic!("no child: {}", io::Error::last_os_error()),
        0 => {
            let code = if work() { 0 } else { 1 };
            // SAFETY: ends the process, and runs nothing at its end.
            unsafe { libc::_exit(code) }
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
