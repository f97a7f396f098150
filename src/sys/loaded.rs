//! Keeping the code of this crate where it is.
//!
//! A program may load a shared library that contains this crate, and unload it (`dlclose`). But the
//! kernel keeps the address of a thread's last sequence, and reads its descriptor when it next takes the
//! CPU from the thread. The C library keeps functions of this crate that it calls at `fork` and when a
//! thread ends, and a thread of [`BalanceMode::Background`](crate::allocator::BalanceMode::Background) runs code
//! of it. None of these can be told to let go. So the library stays until the process ends: `dlclose`
//! succeeds, and a later `dlopen` finds the library with all that it had.

/// Has the shared library that contains this crate stay for good. Does nothing in an executable.
///
/// Opens the library once more, with a flag that says so (`RTLD_NODELETE`). It is open already, and is
/// found by the name that it was loaded by.
#[cfg(not(any(target_feature = "crt-static", miri)))]
pub(super) fn stay_loaded() {
    use std::ffi::c_void;
    use std::mem::MaybeUninit;

    /// What the dynamic linker says of the object that contains the address.
    fn object_of(address: *const c_void) -> Option<libc::Dl_info> {
        let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
        // SAFETY: only compares the address. Writes to `info`.
        let found = unsafe { libc::dladdr(address, info.as_mut_ptr()) } != 0;
        // SAFETY: all zero is a `Dl_info`, pointers and addresses, and so is what was written.
        found.then(|| unsafe { info.assume_init() })
    }

    let Some(this) = object_of(stay_loaded as fn() as *const c_void) else { return };
    // SAFETY: getauxval has no precondition.
    let program = object_of(unsafe { libc::getauxval(libc::AT_PHDR) } as *const c_void);
    if this.dli_fname.is_null() || program.is_some_and(|it| it.dli_fbase == this.dli_fbase) {
        return;
    }
    let flags = libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
    // SAFETY: the linker's own name of the library, which ends in zero and stays while its code runs.
    // Nothing is loaded, so that no code of another library runs.
    let handle = unsafe { libc::dlopen(this.dli_fname, flags) };
    if !handle.is_null() {
        // SAFETY: the handle was opened above. The flag is the library's, and outlives the handle.
        unsafe { libc::dlclose(handle) };
    }
}

/// Code that is linked statically is never unloaded.
#[cfg(any(target_feature = "crt-static", miri))]
pub(super) fn stay_loaded() {}
