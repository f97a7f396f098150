//! Other processes: this binary once more. Their end when they hang. A filter for `membarrier`.

use std::env;
use std::io;
use std::mem::offset_of;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use libc::{c_int, c_ulong, seccomp_data, sock_filter, sock_fprog};

use crate::lives::THREADS;
use crate::steps::STEPS;

/// What each thread is doing, for the message of a process that hangs.
pub(crate) static DOING: [AtomicUsize; THREADS] = [const { AtomicUsize::new(0) }; THREADS];

/// What a process that hangs says first.
static HANGS: OnceLock<String> = OnceLock::new();

/// This binary, to run one test.
pub(crate) fn this_binary(test: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("the binary has a path"));
    command.args([test, "--exact", "--nocapture"]);
    command
}

/// So many seconds after the last comparison, or the start, a process hangs.
const PATIENCE: libc::c_uint = 90;

/// Ends this process with a message when it hangs.
pub(crate) fn end_when_it_hangs(seed: u64) {
    HANGS.get_or_init(|| {
        format!("\nPERCPU_MEMCG_STRESS_SEED={seed}: hangs for {PATIENCE} s; threads are in:")
    });
    let handler: extern "C" fn(c_int) = end;
    // SAFETY: the handler reads atomic numbers and statics, writes, and ends the process.
    let before = unsafe { libc::signal(libc::SIGALRM, handler as libc::sighandler_t) };
    assert_ne!(before, libc::SIG_ERR);
    do_not_end_yet();
}

/// The process does not hang.
pub(crate) fn do_not_end_yet() {
    // SAFETY: takes a number.
    unsafe { libc::alarm(PATIENCE) };
}

extern "C" fn end(_signal: c_int) {
    let say = |text: &str| {
        // SAFETY: the text is valid for the call.
        let _written =
            unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    };
    say(HANGS.get().map_or("", |text| text));
    for thread in &DOING {
        say(" ");
        say(STEPS.get(thread.load(Relaxed)).map_or("wait", |step| step.name));
    }
    say("\n");
    // SAFETY: ends the process, and runs nothing at its end.
    unsafe { libc::_exit(99) }
}

/// A panic of any thread ends this process, because the other threads would wait for it.
pub(crate) fn end_at_a_panic(seed: u64) {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        let doing: Vec<&str> = DOING
            .iter()
            .map(|thread| STEPS.get(thread.load(Relaxed)).map_or("wait", |step| step.name))
            .collect();
        eprintln!("PERCPU_MEMCG_STRESS_SEED={seed}; threads are in: {}", doing.join(" "));
        // SAFETY: ends the process, and runs nothing at its end.
        unsafe { libc::_exit(98) }
    }));
}

/// The kernel refuses `membarrier` to all threads of this process from now on.
pub(crate) fn refuse_fences() -> io::Result<()> {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let give = |k| sock_filter { code: RETURN, jt: 0, jf: 0, k };
    let number = offset_of!(seccomp_data, nr) as u32;
    let mut program = [
        sock_filter { code: LOAD_WORD, jt: 0, jf: 0, k: number },
        sock_filter { code: JUMP_IF_EQUAL, jt: 0, jf: 1, k: libc::SYS_membarrier as u32 },
        give(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
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
    // SAFETY: the kernel copies the filter, which is valid for the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            c_ulong::from(libc::SECCOMP_SET_MODE_FILTER),
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const filter,
        )
    };
    match result {
        0 => {}
        -1 => return Err(io::Error::last_os_error()),
        thread => return Err(io::Error::other(format!("thread {thread} has another filter"))),
    }
    // SAFETY: takes numbers only.
    let refused = unsafe { libc::syscall(libc::SYS_membarrier, 0, 0, 0) };
    assert_eq!(refused, -1, "the filter works");
    Ok(())
}
