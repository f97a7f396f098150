//! A plugin that uses this crate and is unloaded.
//!
//! The kernel reads the descriptor of a thread's last sequence, and may send the thread to its abort
//! handler; the C library calls handlers at `fork` and at the end of a thread. All of that is in the
//! library. So it stays, whatever `dlclose` says. The host is this binary, run once more, because it
//! used to be killed.

#![cfg(all(target_os = "linux", not(target_env = "musl"), not(miri)))]

#[path = "common/example.rs"]
mod example;

use std::env;
use std::ffi::{CStr, CString, OsStr, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use object::read::elf::{FileHeader, ProgramHeader};

/// Set in a host: the path of the plugin.
const PLUGIN: &str = "PERCPU_MEMCG_TEST_PLUGIN";

/// The example, up to date.
fn plugin() -> PathBuf {
    example::built("plugin", "libplugin.so")
}

/// Runs a test of this binary as a host of the plugin.
fn host(test: &str, path: &Path, tier: &[(&str, &str)]) {
    let mut command = Command::new(env::current_exe().expect("a path of this test"));
    command.args([test, "--exact", "--ignored", "--nocapture"]).env(PLUGIN, path);
    command.env_remove("PERCPU_MEMCG_NO_RSEQ").env_remove("GLIBC_TUNABLES");
    command.envs(tier.iter().copied());
    let output = command.output().expect("this binary can be run");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{test} {tier:?}: {}\n{text}\n{errors}", output.status);
    assert!(text.contains("1 passed"), "{text}");
}

const TIERS: [&[(&str, &str)]; 3] =
    [&[], &[("GLIBC_TUNABLES", "glibc.pthread.rseq=0")], &[("PERCPU_MEMCG_NO_RSEQ", "1")]];

#[test]
fn a_host_survives_the_end_of_its_plugin() {
    let plugin = plugin();
    for tier in TIERS {
        host("unloads_and_goes_on", &plugin, tier);
        host("unloads_in_threads_that_end", &plugin, tier);
    }
    // By another name, and by one that says nothing of a directory.
    let link = plugin.with_file_name("libplugin-linked.so");
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(&plugin, &link).unwrap();
    host("unloads_and_goes_on", &link, &[]);
    let folder = plugin.parent().unwrap().to_str().unwrap();
    host("unloads_and_goes_on", Path::new("libplugin.so"), &[("LD_LIBRARY_PATH", folder)]);
    std::fs::remove_file(&link).unwrap();
}

type Count = extern "C" fn(u64) -> u64;

struct Loaded(*mut c_void);

impl Loaded {
    fn new() -> Self {
        let path = env::var_os(PLUGIN).expect("a host");
        let path = CString::new(OsStr::as_bytes(&path)).unwrap();
        // SAFETY: a string that ends in zero. The constructors of the plugin are those of Rust's
        // library.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        if handle.is_null() {
            // SAFETY: after an error, a string that ends in zero.
            let error = unsafe { libc::dlerror() };
            // SAFETY: an error has a text, which stays until the next call of this thread.
            let error = unsafe { CStr::from_ptr(error) };
            panic!("{error:?}");
        }
        Loaded(handle)
    }

    fn count(&self, n: u64) -> u64 {
        // SAFETY: the handle is open, and the name ends in zero.
        let symbol = unsafe { libc::dlsym(self.0, c"plugin_count".as_ptr()) };
        assert!(!symbol.is_null());
        // SAFETY: the function has this type.
        let count: Count = unsafe { std::mem::transmute(symbol) };
        count(n)
    }

    fn unload(self) {
        // SAFETY: no code of the plugin is under way, and this value was the only user of the handle.
        assert_eq!(unsafe { libc::dlclose(self.0) }, 0);
    }
}

/// Has this thread preempted many times.
fn be_preempted() {
    let end = Instant::now() + Duration::from_millis(100);
    while Instant::now() < end {
        thread::yield_now();
        // Moves to the only CPU it may run on, at times.
        std::hint::spin_loop();
    }
    thread::sleep(Duration::from_millis(1));
}

fn fork_and_wait() {
    // SAFETY: the child ends at once.
    match unsafe { libc::fork() } {
        -1 => panic!("no child"),
        // SAFETY: ends the process, and runs nothing at its end.
        0 => unsafe { libc::_exit(7) },
        child => {
            let mut status = 0;
            // SAFETY: the place for the status is valid for the call.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7, "{status}");
        }
    }
}

/// A host that other tests start.
#[test]
#[ignore = "kills the process where plugins are really unloaded"]
fn unloads_and_goes_on() {
    let mut expected = 0;
    for _ in 0..3 {
        let plugin = Loaded::new();
        expected += 1000;
        assert_eq!(plugin.count(1000), expected, "the library was here all the time");
        plugin.unload();
        be_preempted();
        fork_and_wait();
    }
}

/// As above, where the threads that used the plugin end after it was unloaded.
#[test]
#[ignore = "kills the process where plugins are really unloaded"]
fn unloads_in_threads_that_end() {
    let unloaded = Barrier::new(5);
    let used = Barrier::new(5);
    let plugin = Loaded::new();
    let address = plugin.0.addr();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                Loaded(std::ptr::with_exposed_provenance_mut(address)).count(500);
                used.wait();
                unloaded.wait();
                be_preempted();
            });
        }
        used.wait();
        plugin.unload();
        unloaded.wait();
        be_preempted();
        fork_and_wait();
    });
    let again = Loaded::new();
    assert_eq!(again.count(1), 2001);
    again.unload();
}

/// What `dlopen` must find room for in each thread's static TLS, beside what the Rust library takes.
#[test]
fn a_plugin_takes_few_bytes_of_thread_local_storage() {
    let bytes = std::fs::read(plugin()).unwrap();
    let header = object::elf::FileHeader64::<object::Endianness>::parse(&*bytes).unwrap();
    let endian = header.endian().unwrap();
    let segments = header.program_headers(endian, &*bytes).unwrap();
    let tls = segments.iter().find(|it| it.p_type(endian) == object::elf::PT_TLS);
    let tls = tls.map_or(0, |it| it.p_memsz(endian));
    println!("{tls} bytes of thread-local storage");
    assert!(tls <= 512, "{tls} bytes; glibc keeps 512 for libraries that are loaded later");
}
