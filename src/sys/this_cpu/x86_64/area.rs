//! Where a thread's rseq area is.
//!
//! The C library registers one for every thread (glibc since 2.35) and says at which offset from
//! the thread pointer it is. Where it does not, each thread registers an area of ours. That one
//! lies in static TLS: it is at the same offset in every thread, and holds -1 for a CPU id unless
//! it is registered.
//!
//! The memory of static TLS may end before the thread does: musl lets a detached thread unmap its
//! own stack, where the kernel must not look for an area any more. So a thread that ends
//! unregisters its area and never registers it again. glibc keeps the memory until the kernel has
//! said that the thread is gone, and needs none of this.

use std::arch::{asm, global_asm};
use std::ffi::c_long;
use std::sync::atomic::{AtomicU32, Ordering};

/// Offset of the CPU id in an area; -1 when nobody registered it, -2 when that failed.
pub(super) const CPU_ID: usize = 4;
/// Offset of the address of the descriptor of the sequence under way.
pub(super) const RSEQ_CS: usize = 8;
/// Offset of the concurrency id.
pub(super) const MM_CID: usize = 24;

/// What precedes every abort handler on x86.
const SIGNATURE: u32 = 0x5305_3053;

/// Keys of the auxiliary vector: bytes of an area that the kernel fills, and their alignment.
const AT_RSEQ_FEATURE_SIZE: u64 = 27;
const AT_RSEQ_ALIGN: u64 = 28;

/// The size of the first version of an area, always accepted; 20 bytes of it were used.
const ORIGINAL_SIZE: u32 = 32;
const ORIGINAL_FEATURES: u32 = 20;

/// The size and the alignment of our own area.
const OWN_SIZE: u32 = 128;
const OWN_ALIGN: u64 = 64;
/// Offset of a word of our own area that is not zero when its thread ends.
const IS_CLOSED: u32 = OWN_SIZE - 4;

// The name carries the version, because two versions of this crate may meet in one program.
macro_rules! own_area {
    () => {
        concat!(
            "__percpu_memcg_rseq_",
            env!("CARGO_PKG_VERSION_MAJOR"),
            "_",
            env!("CARGO_PKG_VERSION_MINOR"),
            "_",
            env!("CARGO_PKG_VERSION_PATCH")
        )
    };
}

global_asm!(
    ".pushsection .tdata, \"awT\", @progbits",
    ".balign 64",
    concat!(".globl ", own_area!()),
    concat!(".hidden ", own_area!()),
    concat!(".type ", own_area!(), ", @object"),
    concat!(".size ", own_area!(), ", 128"),
    concat!(own_area!(), ":"),
    ".long 0, -1",
    ".zero 120",
    ".popsection",
);

/// An area as the whole process sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RseqArea {
    /// From the thread pointer, in bytes.
    pub(super) offset: isize,
    /// Bytes that the kernel fills in.
    pub(super) features: u32,
}

impl RseqArea {
    /// The area that the C library registered, if it did.
    pub(super) fn of_libc() -> Option<Self> {
        let (offset, size): (*const isize, *const u32);
        // SAFETY: loads the addresses of two symbols, null where the C library lacks them.
        unsafe {
            asm!(
                ".weak __rseq_offset",
                ".weak __rseq_size",
                "mov {offset}, qword ptr [rip + __rseq_offset@GOTPCREL]",
                "mov {size}, qword ptr [rip + __rseq_size@GOTPCREL]",
                offset = out(reg) offset,
                size = out(reg) size,
                options(nostack, preserves_flags),
            );
        }
        if offset.is_null() || size.is_null() {
            return None;
        }
        // SAFETY: where they exist, they are constants of these types.
        let (offset, size) = (unsafe { offset.read() }, unsafe { size.read() });
        Some(RseqArea { offset, features: Kernel::own().features_of_libc(size)? })
    }

    /// Our own area, which threads have to [register](Self::register).
    pub(super) fn own() -> Self {
        let offset: isize;
        // SAFETY: loads the offset of the symbol above from the thread pointer.
        unsafe {
            asm!(
                concat!("mov {offset}, qword ptr [rip + ", own_area!(), "@GOTTPOFF]"),
                offset = out(reg) offset,
                options(nostack, preserves_flags),
            );
        }
        RseqArea { offset, features: Kernel::own().features_of_own() }
    }

    /// The CPU id in this thread's area: negative when it is not registered.
    #[inline(always)]
    pub(super) fn cpu_id(self) -> i32 {
        let id: i32;
        // SAFETY: a load from the area of this thread, which exists in every thread.
        unsafe {
            asm!(
                "mov {id:e}, dword ptr fs:[{offset} + {cpu_id}]",
                offset = in(reg) self.offset,
                id = out(reg) id,
                cpu_id = const CPU_ID,
                options(nostack, preserves_flags, readonly),
            );
        }
        id
    }

    /// Where this thread's area is.
    fn of_this_thread(self) -> *mut u8 {
        let thread: *mut u8;
        // SAFETY: the first word at the thread pointer is the thread pointer (x86-64 psABI).
        unsafe {
            asm!(
                "mov {thread}, qword ptr fs:[0]",
                thread = out(reg) thread,
                options(nostack, preserves_flags, readonly),
            );
        }
        thread.wrapping_byte_offset(self.offset)
    }

    /// Registers this thread's area, which is [our own](Self::own), unless that was tried before.
    /// Safe in signal handlers, and leaves `errno` as it is.
    pub(super) fn register(self) {
        const NOT_TRIED: i32 = -1;
        const FAILED: i32 = -2;
        if self.cpu_id() != NOT_TRIED || self.is_closed().load(Ordering::Relaxed) != 0 {
            return;
        }
        // Before the area is registered: there must be no area without an end.
        if !at_thread_exit::close_area() {
            return;
        }
        // SAFETY: the area is this thread's, of that size and alignment, and exists until the
        // thread closes it. The kernel writes to it, and to nothing else.
        let is_registered = unsafe { self.rseq(0) };
        // It also fails when a signal handler registered the area in between.
        if !is_registered && self.cpu_id() == NOT_TRIED {
            let cpu_id = self.of_this_thread().wrapping_byte_add(CPU_ID).cast::<i32>();
            // SAFETY: nobody registered the area, so it is memory of this thread alone.
            unsafe { cpu_id.write_volatile(FAILED) };
        }
    }

    /// Unregisters this thread's area, which is [our own](Self::own), for good.
    #[cfg(not(target_env = "gnu"))]
    fn close(self) {
        const UNREGISTER: i32 = 1;
        // Signal handlers that run from here on leave it alone.
        self.is_closed().store(1, Ordering::Relaxed);
        // SAFETY: unregisters what this thread registered, or fails. The CPU id becomes -1.
        unsafe { self.rseq(UNREGISTER) };
    }

    /// A word of this thread's area, which is [our own](Self::own).
    fn is_closed(&self) -> &AtomicU32 {
        let word = self.of_this_thread().wrapping_byte_add(IS_CLOSED as usize).cast();
        // SAFETY: aligned, part of the area for as long as the thread runs code, and accessed in no
        // other way; not among what the kernel writes.
        unsafe { AtomicU32::from_ptr(word) }
    }

    /// Registers or unregisters this thread's area.
    ///
    /// # Safety
    ///
    /// When registering, the area exists until it is unregistered or the thread is gone.
    unsafe fn rseq(self, flags: i32) -> bool {
        let area = self.of_this_thread();
        // SAFETY: no precondition.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: a variable of this thread, which is there as long as the thread.
        let before = unsafe { errno.read() };
        let [size, signature] = [Kernel::own().own_size(), SIGNATURE].map(c_long::from);
        // SAFETY: the caller's promise; without it, unregistering fails or does what was asked. The
        // call takes four arguments, each as wide as a register, as `syscall` reads them.
        let result =
            unsafe { libc::syscall(libc::SYS_rseq, area, size, c_long::from(flags), signature) };
        // SAFETY: as above.
        unsafe { errno.write(before) };
        result == 0
    }

    /// Writes the CPU id of an area of this thread that nobody registered.
    #[cfg(test)]
    pub(super) fn pretend(self, cpu_id: i32) {
        let place = self.of_this_thread().wrapping_byte_add(CPU_ID).cast::<i32>();
        // SAFETY: part of the area, which is memory of this thread alone.
        unsafe { place.write_volatile(cpu_id) };
    }

    pub(super) fn has_concurrency_ids(self) -> bool {
        self.features as usize >= MM_CID + size_of::<u32>()
    }
}

/// What the kernel says of the areas that it fills in.
#[derive(Clone, Copy, Debug)]
struct Kernel {
    /// Bytes that it fills in.
    features: u32,
    /// The alignment that it asks for beyond 32 bytes; 0 when it does not know longer ones.
    align: u64,
}

impl Kernel {
    fn own() -> Self {
        // SAFETY: getauxval has no precondition; it returns 0 for what it does not know.
        let features = unsafe { libc::getauxval(AT_RSEQ_FEATURE_SIZE) };
        // SAFETY: as above.
        let align = unsafe { libc::getauxval(AT_RSEQ_ALIGN) };
        Kernel::new(features, align)
    }

    fn new(features: u64, align: u64) -> Self {
        let features = u32::try_from(features).unwrap_or(0).max(ORIGINAL_FEATURES);
        Kernel { features, align }
    }

    /// What is filled in of the C library's area, of which it says this size; `None` when it
    /// registers none.
    fn features_of_libc(self, size: u32) -> Option<u32> {
        match size {
            0 => None,
            // Both are said of the first version, behind which there is room for 32 bytes: the
            // kernel fills what it knows.
            ORIGINAL_FEATURES | ORIGINAL_SIZE => Some(self.features.min(ORIGINAL_SIZE)),
            _ => Some(size),
        }
    }

    /// The length to register our own area with: all that the kernel fills in, if it fits.
    fn own_size(self) -> u32 {
        let size = self.features.max(ORIGINAL_SIZE);
        if size <= IS_CLOSED && self.align <= OWN_ALIGN { size } else { ORIGINAL_SIZE }
    }

    /// What is filled in of our own area.
    fn features_of_own(self) -> u32 {
        self.features.min(self.own_size())
    }
}

/// Has threads close their own areas when they end: glibc needs that not.
#[cfg(target_env = "gnu")]
pub(super) mod at_thread_exit {
    pub(in super::super) fn prepare() {}

    pub(super) fn close_area() -> bool {
        true
    }
}

/// Has threads close their own areas when they end, after destructors of `thread_local!`s that
/// come first; to those that come later, the thread has no area.
#[cfg(not(target_env = "gnu"))]
pub(super) mod at_thread_exit {
    use std::ffi::c_void;
    use std::ptr;
    use std::sync::OnceLock;

    use super::RseqArea;

    static KEY: OnceLock<Option<libc::pthread_key_t>> = OnceLock::new();

    /// Before the first thread registers an area.
    pub(in super::super) fn prepare() {
        KEY.get_or_init(|| {
            let mut key = 0;
            // SAFETY: writes to `key`; the function fits, and is never unloaded (see `sys::loaded`).
            let result = unsafe { libc::pthread_key_create(&raw mut key, Some(close)) };
            (result == 0).then_some(key)
        });
    }

    /// Once for each thread; safe in signal handlers. Returns whether it will happen.
    pub(super) fn close_area() -> bool {
        let Some(&Some(key)) = KEY.get() else { return false };
        // Any value that is not null: it has the destructor called.
        let value = ptr::without_provenance(1);
        // SAFETY: the key is valid. These C libraries store into the thread's own array.
        unsafe { libc::pthread_setspecific(key, value) == 0 }
    }

    extern "C" fn close(_: *mut c_void) {
        RseqArea::own().close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kernels before 6.3, of 6.3 to 6.18, and of 7.0; one whose area is too long for ours, and
    /// one that wants it aligned more.
    const KERNELS: [(u64, u64); 5] = [(0, 0), (28, 32), (33, 64), (200, 64), (33, 128)];

    /// What the C library may say, and how much of its area is filled in then.
    #[test]
    fn features_of_the_c_librarys_area() {
        let features = |size| KERNELS.map(|(f, a)| Kernel::new(f, a).features_of_libc(size));
        assert_eq!(features(0), [None; 5], "it registers none");
        for of_the_first_version in [20, 32] {
            let expected = [20, 28, 32, 32, 32].map(Some);
            assert_eq!(features(of_the_first_version), expected);
        }
        assert_eq!(features(28), [Some(28); 5], "2.41 says what the kernel told it");
        assert_eq!(features(33), [Some(33); 5]);
    }

    #[test]
    fn size_of_our_own_area() {
        let kernels = KERNELS.map(|(features, align)| Kernel::new(features, align));
        assert_eq!(kernels.map(Kernel::own_size), [32, 32, 33, 32, 32]);
        assert_eq!(kernels.map(Kernel::features_of_own), [20, 28, 33, 32, 32]);
    }

    #[test]
    fn concurrency_ids_need_28_bytes() {
        let has_ids = |features| RseqArea { offset: 0, features }.has_concurrency_ids();
        assert_eq!([20, 27, 28, 33].map(has_ids), [false, false, true, true]);
    }
}
