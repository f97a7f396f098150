//! Which names a cgroup may have.
//!
//! A cgroup and its interface files lie in one directory. The kernel refuses a name that a file of
//! the directory has. It leaves a cgroup alone that has the name of a file which a later version
//! adds, and documents that the prefixes of files are to be avoided. Here the prefixes are refused as
//! a whole, in every directory. So no cgroup is hidden by a file, whichever files are added later.

use crate::memcg::error::{MAX_NAME_BYTES, TreeError};
use crate::sys::text::kept;

/// Files of the core, and of the memory controller.
const PREFIXES: [&str; 2] = ["cgroup.", "memory."];

/// The files that a kernel adds to every cgroup under the names of other controllers.
const OTHERS: [&str; 5] =
    ["cpu.pressure", "cpu.stat", "cpu.stat.local", "io.pressure", "irq.pressure"];

/// Checks whether a cgroup may have this name.
pub(super) fn check(name: &str) -> Result<(), TreeError> {
    let forbidden = |byte| matches!(byte, b'/' | b'\n' | 0);
    if name.is_empty()
        || name.len() > MAX_NAME_BYTES
        || name == "."
        || name == ".."
        || name.bytes().any(forbidden)
    {
        return Err(TreeError::InvalidName { name: kept(name) });
    }
    if PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || OTHERS.contains(&name) {
        return Err(TreeError::Reserved { name: kept(name) });
    }
    Ok(())
}
