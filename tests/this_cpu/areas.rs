//! Threads without rseq area, among threads that have one.
//!
//! A thread loses the C library's area by unregistering it, and never gets one of ours when a
//! filter of its own refuses the system call. Either way it uses the detached copies from then on.

use std::io;

use percpu_memcg::PerCpu;
use percpu_memcg::machine::CpuId;
use percpu_memcg::this_cpu::{ByCpu, RegisteredBy, ThisCpu, Tier};

use crate::conditions::{Detached, Trial, on_cpu, two_cpus};
use crate::operations::every_operation;
use crate::processes::{EXPECTED_TIER, deny_rseq};
use crate::words::{Object, Words};
use crate::{KERNEL, THREADS, is_set, real};

/// Whether sequences were implemented for this architecture.
const HAS_SEQUENCES: bool = cfg!(all(target_arch = "x86_64", target_pointer_width = "64"));

/// The C library's word on the areas that it registers: offset from the thread pointer, and size.
#[derive(Clone, Copy, Debug)]
struct LibcArea {
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "no sequences there"))]
    offset: isize,
    size: u32,
}

impl LibcArea {
    fn find() -> Option<Self> {
        // SAFETY: looks up a symbol by a name that ends in a zero.
        let offset = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()) };
        // SAFETY: as above.
        let size = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_size".as_ptr()) };
        if offset.is_null() || size.is_null() {
            return None;
        }
        // SAFETY: where these exist, the first is a constant `ptrdiff_t`.
        let offset = unsafe { offset.cast::<isize>().read() };
        // SAFETY: and the second a constant `unsigned int`.
        let size = unsafe { size.cast::<u32>().read() };
        (size > 0).then_some(LibcArea { offset, size })
    }

    /// Unregisters this thread's area.
    #[cfg(target_arch = "x86_64")]
    fn unregister(self) {
        const UNREGISTER: libc::c_int = 1;
        const SIGNATURE: u32 = 0x5305_3053;
        let thread: *mut u8;
        // SAFETY: the first word at the thread pointer is the thread pointer.
        unsafe { std::arch::asm!("mov {}, fs:0", out(reg) thread, options(nostack, readonly)) };
        let area = thread.wrapping_byte_offset(self.offset);
        let registered = self.size.max(32); // 20 is said of areas of 32 bytes
        // SAFETY: the kernel stops writing to the area, which remains.
        let result =
            unsafe { libc::syscall(libc::SYS_rseq, area, registered, UNREGISTER, SIGNATURE) };
        assert_eq!(result, 0, "unregistering {self:?}: {}", io::Error::last_os_error());
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn unregister(self) {}
}

/// True when the kernel knows the system call and no filter refuses it.
fn kernel_has_rseq() -> bool {
    let nowhere = std::ptr::null_mut::<u8>();
    // SAFETY: an area of no bytes is refused.
    let result = unsafe { libc::syscall(libc::SYS_rseq, nowhere, 0, 0, 0) };
    result != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL)
}

/// From now on this thread has no rseq area. It must not have used an operation yet.
pub(crate) fn give_up() {
    match ThisCpu::tier() {
        Tier::Rseq { registered_by: RegisteredBy::Libc } => {
            LibcArea::find().expect("it registered this thread").unregister();
        }
        Tier::Rseq { .. } => deny_rseq(libc::EPERM).expect("a filter for this thread"),
        _ => {}
    }
}

#[test]
fn the_tier_is_what_kernel_and_c_library_allow() {
    let (libc_area, kernel) = (LibcArea::find(), kernel_has_rseq());
    let expected = if is_set("PERCPU_MEMCG_NO_RSEQ") || !HAS_SEQUENCES || !kernel {
        Tier::GetCpu
    } else if libc_area.is_some() {
        Tier::Rseq { registered_by: RegisteredBy::Libc }
    } else {
        Tier::Rseq { registered_by: RegisteredBy::Us }
    };
    let tier = ThisCpu::tier();
    println!("{tier:?}; the C library's area: {libc_area:?}, system call: {kernel}");
    assert_eq!(tier, expected);
    if let Ok(expected) = std::env::var(EXPECTED_TIER) {
        assert_eq!(format!("{tier:?}"), expected);
    }
    if tier == Tier::GetCpu {
        assert!(!ThisCpu::has_concurrency_ids());
    }
}

#[test]
fn a_thread_that_gives_up_its_area_goes_on_in_the_detached_copy() {
    let pcpu = real();
    let words = &Object::<u32, ByCpu>(PerCpu::zeroed_in(&pcpu, KERNEL).unwrap());
    let add = |times: u32| (0..times).for_each(|_| words.add(3));
    let libc = Tier::Rseq { registered_by: RegisteredBy::Libc };
    on_cpu(two_cpus()[0], || {
        // Only the C library's area can be given up that is in use already.
        if ThisCpu::tier() == libc {
            add(1000);
            assert_eq!((words.detached(), words.sum()), (0, 3000));
        }
        give_up();
        let before = words.sum();
        add(500);
        assert_eq!(words.sum(), before + 1500);
        let detached = if ThisCpu::tier() == Tier::GetCpu { 0 } else { 1500 };
        assert_eq!(words.detached(), detached);
        let own = if detached > 0 { words.detached() } else { words.copies().max().unwrap() };
        assert_eq!(words.read(), own, "the copy that it works on");
        assert_eq!(CpuId::current().index(), two_cpus()[0], "it still runs on a CPU");
    });
}

#[test]
fn every_operation_works_without_an_area() {
    let pcpu = real();
    let mut trials = every_operation::<ByCpu>(&pcpu);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let trials = &trials;
            scope.spawn(move || {
                give_up();
                trials.iter().for_each(|trial| trial.work(thread, 300));
            });
        }
    });
    let detached = Detached::without_area(THREADS);
    trials.iter_mut().for_each(|trial: &mut Box<dyn Trial>| trial.check(detached));
}
