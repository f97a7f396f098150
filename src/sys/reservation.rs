//! One stretch of address space, backed by memory only where it is touched.
//!
//! ```text
//!   mmap gives      ┌──────┬───────────────────────────────┬────────┐
//!                   │ head │            len                │  tail  │   head and tail are unmapped
//!                   └──────┴───────────────────────────────┴────────┘
//!                          ▲ base: a multiple of `align`
//!
//!   a byte range           ┊     ├───────────────────┤     ┊
//!   pages           ├──────┼──────┼──────┼──────┼──────┼──────┤
//!   prefault               ├───────────────────────────┤          outward: pages that cover it
//!   discard, bind                 ├─────────────┤                 inward: pages that lie inside it
//! ```
//!
//! Outward for prefault, because a byte is backed only with its whole page; inward for discard,
//! because the fringe belongs to neighbours. Ranges are clipped to the mapping.
//!
//! A process may ask the kernel to keep all of its future mappings in memory (`mlockall`). Then it would
//! back a writable mapping completely at once. So a reservation is mapped without permissions first. If it
//! turns out to be locked, what is locked from then on are the pages that were touched.
//!
//! Memory is private, anonymous, reads as zero until written, and is never backed by huge pages: one
//! touched byte would otherwise back the copies of CPUs that never ran. It survives `fork` like any
//! private mapping: the child gets a copy.
//!
//! # Invariants
//!
//! * B1: `[base, base + len)` is mapped readable and writable, by this value alone, from the end of
//!   [`Reservation::new`] until drop.
//! * B2: `base` and `len` are multiples of the page size.
//!
//! A [`Reservation`] has no lock and needs none: the kernel serialises changes to a mapping. Who may
//! discard what, and when, is the caller's business.

#![allow(
    clippy::disallowed_methods,
    reason = "the module that mapping calls are confined to, so that fault injection sees them all"
)]

use std::ffi::{c_int, c_long, c_ulong, c_void};
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fmt, io};

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MlockFlags, MprotectFlags, ProtFlags};

use super::cpu::MAX_NODES;
use super::{Machine, MapError, MapOp, NodeId};

/// The size of the pages that this kernel maps memory in.
pub(crate) fn page_size() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| {
        // SAFETY: sysconf has no precondition.
        let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(bytes).expect("every Linux has a page size")
    })
}

/// An anonymous private mapping that is unmapped on drop.
pub(crate) struct Reservation {
    base: NonNull<u8>,
    len: usize,
    machine: Machine,
}

// SAFETY: B1 makes the value the only owner of the mapping, and mappings belong to the process, not
// to the thread that made them. `Machine` is Send.
unsafe impl Send for Reservation {}

// SAFETY: `&self` gives out the address and page operations, and never touches the content itself.
// Page operations may run at the same time on any number of threads. The one that changes content,
// `discard`, is unsafe and makes its caller rule out conflicts. `Machine` is Sync.
unsafe impl Sync for Reservation {}

impl Reservation {
    /// Maps `bytes` at an address that is a multiple of `align`.
    ///
    /// No memory is committed. Several system calls, some microseconds.
    ///
    /// # Errors
    ///
    /// [`MapOp::Reserve`]: no address space, too many mappings, or an injected fault.
    ///
    /// # Panics
    ///
    /// When `bytes` is zero or no multiple of the page size, or `align` is not a power of two of at
    /// least the page size.
    pub(crate) fn new(machine: &Machine, bytes: usize, align: usize) -> Result<Self, MapError> {
        let page = page_size();
        assert!(bytes > 0 && bytes.is_multiple_of(page), "{bytes} bytes are not whole pages");
        assert!(align.is_power_of_two() && align >= page, "cannot align to {align} bytes");

        machine.faults().admit(MapOp::Reserve, bytes)?;
        let failed = |errno: Errno| MapError::new(MapOp::Reserve, bytes, errno.raw_os_error());
        // The kernel aligns to pages, so this much spare always holds an aligned stretch.
        let mapped = bytes.checked_add(align - page).ok_or(failed(Errno::NOMEM))?;
        let mut reservation = Self::map(machine, mapped).map_err(failed)?;
        reservation.trim(bytes, align).map_err(failed)?;
        let all = 0..bytes;
        reservation.forbid_huge_pages(&all).map_err(failed)?;
        reservation.stay_sparse(&all).map_err(failed)?;
        reservation.permit_access(&all).map_err(failed)?;
        debug_assert!(reservation.base.addr().get() % align == 0 && reservation.len == bytes);
        Ok(reservation)
    }

    /// The first byte; a multiple of the requested alignment.
    #[inline]
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// The length in bytes; exactly what was requested.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Backs the pages that cover `range` with memory now, keeping what they hold.
    ///
    /// May run while other threads use the range. Costs a page fault per page not yet backed.
    ///
    /// # Errors
    ///
    /// [`MapOp::Prefault`]: no memory, an injected fault, or a kernel before 5.14, which cannot do
    /// it (`EINVAL`). Part of the range may be backed.
    pub(crate) fn prefault(&self, range: Range<usize>) -> Result<(), MapError> {
        let pages = self.pages_covering(range);
        if pages.is_empty() {
            return Ok(());
        }
        self.machine.faults().admit(MapOp::Prefault, pages.len())?;
        // SAFETY: `pages_covering` gives whole pages of this mapping. This advice keeps content.
        unsafe { self.advise(&pages, Advice::LinuxPopulateWrite) }
            .map_err(|errno| MapError::new(MapOp::Prefault, pages.len(), errno.raw_os_error()))
    }

    /// Gives the memory of the whole pages inside each of `ranges` back. Returns whether all of it is
    /// given back, and not all is when an injected fault or the kernel refuses.
    ///
    /// Those pages read as zero from now on and are backed again when touched. Bytes outside them keep
    /// their value. A range without a whole page needs no system call. The others take one call together
    /// where the kernel has that (Linux 6.14).
    ///
    /// # Safety
    ///
    /// For each of `ranges`:
    /// * No reference into it is live, on any thread.
    /// * No thread reads or writes it during the call.
    /// * Nobody relies on what it holds: afterwards all zero bytes must be valid for whatever is read
    ///   there.
    pub(crate) unsafe fn discard(&self, ranges: impl Iterator<Item = Range<usize>>) -> bool {
        let mut complete = true;
        let mut batch = Batch::new();
        for pages in ranges.map(|range| self.pages_inside(range)) {
            if pages.is_empty() {
                continue;
            }
            if self.machine.faults().admit(MapOp::Discard, pages.len()).is_err() {
                complete = false;
                continue;
            }
            if batch.is_full() {
                // SAFETY: the batch holds whole pages of this mapping, inside ranges for which the caller
                // keeps the obligations of `discard`.
                complete &= unsafe { self.discard_batch(&mut batch) };
            }
            batch.push(pages);
        }
        // SAFETY: as above.
        complete & unsafe { self.discard_batch(&mut batch) }
    }

    /// Empties a batch. False when the kernel refuses.
    ///
    /// # Safety
    ///
    /// As for [`Self::discard`], with whole pages of this mapping.
    unsafe fn discard_batch(&self, batch: &mut Batch) -> bool {
        let pages = batch.take();
        // SAFETY: the caller's promise.
        let done = unsafe { self.discard_at_once(pages) };
        pages[done..].iter().fold(true, |complete, pages| {
            // SAFETY: the caller's promise.
            let result = match unsafe { self.advise(pages, Advice::LinuxDontNeed) } {
                // Locked memory is only given back by those who say that they mean it.
                // SAFETY: the caller's promise.
                Err(Errno::INVAL) => unsafe { self.discard_locked(pages) },
                other => other,
            };
            complete & result.is_ok()
        })
    }

    /// Discards pages by one system call, and returns how many of the ranges it has done.
    ///
    /// # Safety
    ///
    /// As for [`Self::discard`], with whole pages of this mapping.
    unsafe fn discard_at_once(&self, pages: &[Range<usize>]) -> usize {
        /// Names the process of the calling thread (`PIDFD_SELF_THREAD`): also in a forked child.
        const OWN_PROCESS: c_int = -10_000;
        /// The kernel knows the call, or was not asked yet.
        static IS_KNOWN: AtomicBool = AtomicBool::new(true);
        // Relaxed: a wrong answer costs a system call.
        if pages.len() < 2 || !IS_KNOWN.load(Ordering::Relaxed) {
            return 0;
        }
        let mut vectors = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; Batch::MOST];
        for (vector, pages) in vectors.iter_mut().zip(pages) {
            vector.iov_base = self.at(pages.start).as_ptr().cast();
            vector.iov_len = pages.len();
        }
        // SAFETY: the kernel reads so many of the vectors, which name pages that this value maps (B1); the
        // caller answers for their content. A descriptor that it does not know is an error. Each
        // argument is as wide as a register.
        let done = unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                c_long::from(OWN_PROCESS),
                vectors.as_ptr(),
                pages.len(),
                c_long::from(libc::MADV_DONTNEED),
                0 as c_ulong,
            )
        };
        let Ok(mut done) = usize::try_from(done) else {
            IS_KNOWN.store(false, Ordering::Relaxed);
            return 0;
        };
        let is_done = |pages: &&Range<usize>| {
            let is_done = pages.len() <= done;
            done = done.saturating_sub(pages.len());
            is_done
        };
        pages.iter().take_while(is_done).count()
    }

    /// Discards pages of locked memory, which needs Linux 5.18.
    ///
    /// # Safety
    ///
    /// As for [`Self::discard`], with whole pages of this mapping.
    unsafe fn discard_locked(&self, pages: &Range<usize>) -> Result<(), Errno> {
        let start = self.at(pages.start).as_ptr().cast::<c_void>();
        // SAFETY: the pages are mapped by this value (B1); the caller answers for their content.
        let result = unsafe { libc::madvise(start, pages.len(), libc::MADV_DONTNEED_LOCKED) };
        if result == 0 { Ok(()) } else { Err(last_errno()) }
    }

    /// Gives the memory of the whole pages inside `range` back together with their page tables. They read as
    /// zero from now on. False when the system refuses, and nothing is changed.
    ///
    /// # Safety
    ///
    /// No thread accesses the range during the call, and nobody relies on what it holds.
    pub(crate) unsafe fn remap(&self, range: Range<usize>) -> bool {
        let pages = self.pages_inside(range);
        if self.machine.faults().admit(MapOp::Discard, pages.len()).is_err() {
            return false;
        }
        let start = self.at(pages.start).as_ptr().cast();
        let flags = Self::FLAGS | MapFlags::FIXED;
        // SAFETY: pages of this mapping (B1), which the kernel replaces at once. The caller answers for their
        // content, and for the threads.
        let replaced =
            unsafe { rustix::mm::mmap_anonymous(start, pages.len(), ProtFlags::empty(), flags) };
        if replaced.is_ok() {
            let prepared = self.forbid_huge_pages(&pages).and_then(|()| self.stay_sparse(&pages));
            let result = prepared.and(self.permit_access(&pages));
            assert!(result.is_ok(), "access to what was just mapped: {result:?}");
        }
        replaced.is_ok()
    }

    /// Prefers memory of `node` for the whole pages inside `range` that are not yet backed.
    ///
    /// A hint, and nobody hears when it is of no use: other nodes serve when that one is full, does not
    /// exist, as on most injected machines, or when the kernel refuses.
    pub(crate) fn bind(&self, range: Range<usize>, node: NodeId) {
        let pages = self.pages_inside(range);
        if !pages.is_empty() && self.machine.faults().admit(MapOp::Bind, pages.len()).is_ok() {
            let _ = self.prefer(&pages, node);
        }
    }

    const FLAGS: MapFlags = MapFlags::PRIVATE.union(MapFlags::NORESERVE);

    fn map(machine: &Machine, len: usize) -> Result<Self, Errno> {
        // SAFETY: without MAP_FIXED the kernel picks addresses that nothing else uses.
        let base = unsafe {
            rustix::mm::mmap_anonymous(ptr::null_mut(), len, ProtFlags::empty(), Self::FLAGS)
        }?;
        let base = NonNull::new(base.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { base, len, machine: machine.clone() })
    }

    /// Unmaps what surrounds the aligned stretch; on an error, drop unmaps what is left.
    fn trim(&mut self, bytes: usize, align: usize) -> Result<(), Errno> {
        let address = self.base.addr().get();
        let head = address.next_multiple_of(align) - address;
        if head > 0 {
            // SAFETY: the head was mapped by `map`, and no pointer into it was given out.
            unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), head) }?;
            // SAFETY: head < align - page + 1 <= len, so this stays inside the mapping.
            self.base = unsafe { self.base.add(head) };
            self.len -= head;
        }
        let tail = self.len - bytes;
        if tail > 0 {
            let start = self.at(bytes);
            // SAFETY: the tail was mapped by `map`, and no pointer into it was given out.
            unsafe { rustix::mm::munmap(start.as_ptr().cast(), tail) }?;
            self.len = bytes;
        }
        Ok(())
    }

    fn forbid_huge_pages(&self, pages: &Range<usize>) -> Result<(), Errno> {
        // SAFETY: pages of this mapping. This advice keeps content.
        match unsafe { self.advise(pages, Advice::LinuxNoHugepage) } {
            Err(Errno::INVAL) => Ok(()), // a kernel built without huge pages
            other => other,
        }
    }

    /// Has the kernel back what is touched only, if it locks what is mapped. Nothing was touched yet.
    fn stay_sparse(&self, pages: &Range<usize>) -> Result<(), Errno> {
        // SAFETY: pages of this mapping, which hold nothing.
        match unsafe { self.advise(pages, Advice::LinuxDontNeed) } {
            Err(Errno::INVAL) => {}
            other => return other,
        }
        let start = self.at(pages.start).as_ptr().cast::<c_void>();
        // SAFETY: the mapping is this value's own (B1). Locking changes no content.
        let locked = unsafe { rustix::mm::mlock_with(start, pages.len(), MlockFlags::ONFAULT) };
        match locked {
            Ok(()) => Ok(()),
            // SAFETY: as above.
            Err(_) => unsafe { rustix::mm::munlock(start, pages.len()) },
        }
    }

    fn permit_access(&self, pages: &Range<usize>) -> Result<(), Errno> {
        let access = MprotectFlags::READ | MprotectFlags::WRITE;
        let start = self.at(pages.start).as_ptr().cast();
        // SAFETY: the mapping is this value's own (B1).
        unsafe { rustix::mm::mprotect(start, pages.len(), access) }
    }

    /// Gives `advice` on `pages`.
    ///
    /// # Safety
    ///
    /// `pages` are whole pages of this mapping. With an advice that changes content, the caller owes
    /// what [`Self::discard`] asks for.
    unsafe fn advise(&self, pages: &Range<usize>, advice: Advice) -> Result<(), Errno> {
        let start = self.at(pages.start).as_ptr().cast::<c_void>();
        // SAFETY: the pages are mapped by this value (B1); the caller answers for their content.
        unsafe { rustix::mm::madvise(start, pages.len(), advice) }
    }

    fn prefer(&self, pages: &Range<usize>, node: NodeId) -> Result<(), Errno> {
        const BITS: usize = c_ulong::BITS as usize;
        let mut mask = [0 as c_ulong; MAX_NODES / BITS];
        let word = mask.get_mut(node.index() / BITS).ok_or(Errno::INVAL)?;
        *word |= 1 << (node.index() % BITS);
        let start = self.at(pages.start).as_ptr();
        // SAFETY: mbind reads MAX_NODES bits of `mask` (it takes the count plus one) and sets a
        // policy on pages that this value maps (B1); it does not change their content. It takes six
        // arguments, each of which is as wide as a register, as `syscall` reads them.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                start,
                pages.len(),
                c_long::from(libc::MPOL_PREFERRED),
                mask.as_ptr(),
                (MAX_NODES + 1) as c_ulong,
                0 as c_ulong,
            )
        };
        if result == 0 { Ok(()) } else { Err(last_errno()) }
    }

    /// The address of a byte, or of the end.
    fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset <= self.len);
        // SAFETY: at most one past the end of one mapping (B1), as was just checked.
        unsafe { self.base.add(offset) }
    }

    fn pages_covering(&self, range: Range<usize>) -> Range<usize> {
        if range.is_empty() {
            return 0..0;
        }
        let page = page_size();
        // Clipped before rounding up, so that it cannot overflow; `len` is whole pages (B2).
        range.start / page * page..range.end.min(self.len).next_multiple_of(page)
    }

    fn pages_inside(&self, range: Range<usize>) -> Range<usize> {
        let page = page_size();
        range.start.min(self.len).next_multiple_of(page)..range.end.min(self.len) / page * page
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.len == 0 {
            return;
        }
        // SAFETY: the mapping is this value's own (B1), which is being dropped. Code that gave out
        // pointers from `base` keeps the reservation for as long as they are used.
        let result = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(result.is_ok(), "munmap of {self:?}: {result:?}");
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation")
            .field("base", &self.base)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// Page ranges that are discarded together.
struct Batch {
    pages: [Range<usize>; Self::MOST],
    len: usize,
}

impl Batch {
    const MOST: usize = 64;

    fn new() -> Self {
        Batch { pages: [const { 0..0 }; Self::MOST], len: 0 }
    }

    fn is_full(&self) -> bool {
        self.len == Self::MOST
    }

    fn push(&mut self, pages: Range<usize>) {
        self.pages[self.len] = pages;
        self.len += 1;
    }

    fn take(&mut self) -> &[Range<usize>] {
        &self.pages[..std::mem::take(&mut self.len)]
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

#[cfg(test)]
mod tests;
