//! The interface files of cgroup v2, by path.
//!
//! ```text
//!   "tenant/query/memory.max"
//!     └── directory: a cgroup ┘└── file: a row of `table::FILES`
//! ```
//!
//! Names, texts and error numbers are the kernel's (Linux 6.18), so that what reads and writes
//! `/sys/fs/cgroup` can be pointed here, with these differences:
//!
//! * F1: amounts are in bytes and never rounded; see [`Limit`](crate::Limit) for their form.
//! * F2: members are threads of this process, and only the calling thread can be moved. A thread that
//!   is in no other cgroup is in the root, which lists no thread. Threads may be in any cgroup, also
//!   in one with children.
//! * F3: `memory.stat` is exact, and has the lines that this crate keeps: `kernel` (all that is in
//!   use), of it `percpu` and `charged` ([`Charge`](crate::Charge)s), and `cached`.
//!
//! A file is opened by path and works on its cgroup from then on, as a descriptor does: when the
//! cgroup is removed, reads and writes say `ENODEV`, even if another one took the path. Writes to
//! `cgroup.max.*`, `cgroup.type`, `cgroup.freeze` and `cgroup.kill` say `ENOENT`.
//!
//! [`CgroupFiles`] lists the files, and those of the kernel that are absent.

mod error;
mod numa;
mod number;
mod table;

use crate::memcg::{Memcg, PeakReader, TreeError};
use crate::percpu::PerCpuAllocator;
use crate::sys::own::own;
use crate::sys::text::kept_path;

use table::{FILES, File};

pub use error::FileError;

/// The interface files of a cgroup and of all cgroups below it.
///
/// Paths are relative to that cgroup; slashes before, behind and beside others do not count.
///
/// | file | reads as, takes |
/// |---|---|
/// | `cgroup.controllers` | `memory`, the one controller |
/// | `cgroup.subtree_control` | `memory`; takes `+memory`. `-memory` is `EOPNOTSUPP`: the controller is always on. Another name is `EINVAL` |
/// | `cgroup.type` | `domain`, because each cgroup pays for itself; `threaded` is `EOPNOTSUPP` |
/// | `cgroup.procs`, `cgroup.threads` | the attached threads; takes the calling thread's id, or 0 for it |
/// | `cgroup.events` | whether a thread is attached, here or below; [`Memcg::is_frozen`] |
/// | `cgroup.freeze`, `cgroup.kill` | [`Memcg::freeze`] and [`thaw`](Memcg::thaw), [`Memcg::kill`]: they call what was registered with [`Memcg::on_freeze`] and [`on_kill`](Memcg::on_kill) |
/// | `cgroup.max.depth`, `cgroup.max.descendants` | [`Memcg::max_depth`], [`Memcg::max_descendants`] |
/// | `cgroup.stat` | numbers of live and of removed descendants |
/// | `memory.current`, `memory.peak` | [`Memcg::current`], [`Memcg::peak_reader`] |
/// | `memory.min`, `memory.low`, `memory.high`, `memory.max` | [`Memcg::min`] and so on |
/// | `memory.events`, `memory.events.local` | [`Memcg::events`], [`Memcg::events_local`] |
/// | `memory.oom.group` | [`Memcg::oom_group`] |
/// | `memory.reclaim` | [`Memcg::reclaim`] |
/// | `memory.stat` | [`Memcg::stat`] |
/// | `memory.numa_stat` | `percpu` of `memory.stat` by NUMA node, in proportion to the possible CPUs of each. The other bytes, [`Charge`](crate::Charge)s, have no node |
///
/// The root has neither `memory.current` nor `memory.peak`, limits, protection and events, nor
/// `cgroup.type`, `cgroup.events`, `cgroup.freeze` and `cgroup.kill`, as in the kernel.
///
/// What a kernel without the feature in question does not have, is absent here, and reads as
/// `ENOENT`: `cgroup.pressure`, `cpu.pressure`, `io.pressure`, `irq.pressure`, `memory.pressure`
/// (no time is measured); `memory.swap.current`, `memory.swap.events`, `memory.swap.high`,
/// `memory.swap.max`, `memory.swap.peak`, `memory.zswap.current`, `memory.zswap.max`,
/// `memory.zswap.writeback` (nothing is swapped); `cgroup.stat.local`, `cpu.stat`, `cpu.stat.local`
/// (no CPU time is accounted). No cgroup can have one of these names; see [`Memcg::create`]. The files
/// of other controllers, such as `cpu.max`, are absent as well. Their names are free, as in a kernel
/// without these controllers.
///
/// # Examples
///
/// ```
/// use percpu_memcg::PerCpuAllocator;
///
/// let files = PerCpuAllocator::new()?.files();
/// files.create("tenant")?;
/// files.write("tenant/memory.max", "64M")?;
/// assert_eq!(files.read("tenant/memory.max")?, "67108864\n");
/// assert_eq!(files.write("tenant/memory.max", "lots").unwrap_err().errno(), libc::EINVAL);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupFiles {
    root: Memcg,
}

/// An open interface file.
///
/// Only `memory.peak` remembers anything: once something was written, it reads as the peak since
/// then, for this file alone.
///
/// # Examples
///
/// ```
/// use percpu_memcg::PerCpuAllocator;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// drop(tenant.charge(1000)?);
/// let peak = tenant.files().open("memory.peak")?;
/// assert_eq!(peak.read()?, "1000\n");
/// peak.write("reset")?;
/// assert_eq!(peak.read()?, "0\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct CgroupFile {
    memcg: Memcg,
    file: &'static File,
    peak: PeakReader,
}

impl PerCpuAllocator {
    /// The interface files of all cgroups, as below `/sys/fs/cgroup`.
    pub fn files(&self) -> CgroupFiles {
        self.root().files()
    }
}

impl Memcg {
    /// The interface files of this cgroup and those below it.
    pub fn files(&self) -> CgroupFiles {
        CgroupFiles { root: self.clone() }
    }
}

impl CgroupFiles {
    /// Opens a file.
    ///
    /// # Errors
    ///
    /// [`FileError`]: `ENOENT`, `EISDIR`, `ENOTDIR`; `ENODEV` when the cgroup that this belongs to
    /// was removed.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let files = pcpu.files();
    /// assert_eq!(files.open("tenant/memory.max")?.read()?, "max\n");
    /// assert_eq!(files.open("tenant").unwrap_err().errno(), libc::EISDIR);
    /// let open = files.open("tenant/memory.high")?;
    /// tenant.remove()?;
    /// assert!(open.read().unwrap_err().is_removed());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn open(&self, path: &str) -> Result<CgroupFile, FileError> {
        let (directory, name) = split(path);
        let memcg = self.directory(directory)?;
        match table::find(name, &memcg) {
            Some(file) => Ok(CgroupFile { peak: memcg.peak_reader(), memcg, file }),
            None if name.is_empty() || memcg.find(name).is_ok() => {
                Err(FileError::IsDirectory { path: kept_path(path) })
            }
            None => Err(FileError::NotFound { path: kept_path(path) }),
        }
    }

    /// Reads a file. Figures of one file are of the same moment only when nothing changes.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open); `EACCES` when it can only be written.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// assert_eq!(pcpu.files().read("tenant/memory.high")?, "max\n");
    /// assert_eq!(tenant.files().read("memory.high")?, "max\n"); // paths begin at the cgroup
    /// assert_eq!(tenant.files().read("memory.reclaim").unwrap_err().errno(), libc::EACCES);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn read(&self, path: &str) -> Result<String, FileError> {
        self.open(path)?.read()
    }

    /// Writes a file; returns the number of bytes that were written, which is all of them.
    ///
    /// Blocks as long as the typed method does: writing `memory.max` calls hooks.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open); `EACCES` when it can only be read; what the text or the cgroup is at
    /// fault with: `EINVAL`, `ERANGE`, `EAGAIN` for `memory.reclaim`, `EOPNOTSUPP` for a thread other
    /// than the calling one and for what this crate does not have. Nothing is changed then, but for
    /// what was reclaimed.
    ///
    /// # Panics
    ///
    /// As the typed method does: a panic of a callback is passed on.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let files = tenant.files();
    /// assert_eq!(files.write("memory.max", "1G\n")?, 3); // all that was given
    /// assert_eq!(files.read("memory.max")?, "1073741824\n");
    /// assert_eq!(files.write("memory.current", "0").unwrap_err().errno(), libc::EACCES);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write(&self, path: &str, text: &str) -> Result<usize, FileError> {
        self.open(path)?.write(text)
    }

    /// What is in a directory: its files, and then its cgroups by name.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.create("query")?;
    /// let names = pcpu.files().list("tenant")?;
    /// assert!(names.iter().any(|name| name == "memory.max"));
    /// assert_eq!(names.last().map(String::as_str), Some("query"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn list(&self, path: &str) -> Result<Vec<String>, FileError> {
        let memcg = self.directory(path)?;
        let files = FILES.iter().filter(|file| file.is_in(&memcg)).map(|file| file.name.into());
        let children = memcg.children();
        Ok(files.chain(children.iter().map(|child| child.name().into())).collect())
    }

    /// Creates a cgroup; its parent exists already. The kernel's `mkdir`.
    ///
    /// # Errors
    ///
    /// As [`Memcg::create`], with `EEXIST` for the name of a file; `ENOENT`, `ENOTDIR` when there is no
    /// such parent.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let files = PerCpuAllocator::new()?.files();
    /// assert!(files.create("tenant/query").unwrap_err().is_not_found()); // the parent comes first
    /// files.create("tenant")?;
    /// let query = files.create("tenant/query")?;
    /// assert_eq!(query.path(), "/tenant/query");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn create(&self, path: &str) -> Result<Memcg, FileError> {
        let (directory, name) = split(path);
        let parent = self.directory(directory)?;
        if name.is_empty() {
            return Err(FileError::Tree(TreeError::Exists { path: kept_path(path) }));
        }
        Ok(parent.create(name)?)
    }

    /// Removes a cgroup. The kernel's `rmdir`.
    ///
    /// # Errors
    ///
    /// As [`Memcg::remove`], and as [`list`](Self::list).
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let files = PerCpuAllocator::new()?.files();
    /// files.create("tenant")?;
    /// files.create("tenant/query")?;
    /// assert_eq!(files.remove("tenant").unwrap_err().errno(), libc::EBUSY); // its children come first
    /// files.remove("tenant/query")?;
    /// files.remove("tenant")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn remove(&self, path: &str) -> Result<(), FileError> {
        Ok(self.directory(path)?.remove()?)
    }

    fn directory(&self, path: &str) -> Result<Memcg, FileError> {
        if self.root.is_removed() {
            return Err(FileError::Removed { path: kept_path(self.root.path()) });
        }
        self.root.find(path).map_err(|error| match self.has_file_in_the_way(path) {
            true => FileError::NotDirectory { path: kept_path(path) },
            false => error.into(),
        })
    }

    /// True when a component of the path is a file.
    fn has_file_in_the_way(&self, path: &str) -> bool {
        let mut memcg = self.root.clone();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            match memcg.find(name) {
                Ok(child) => memcg = child,
                Err(_) => return table::find(name, &memcg).is_some(),
            }
        }
        false
    }
}

/// The directory and the last component of a path.
fn split(path: &str) -> (&str, &str) {
    let path = path.trim_end_matches('/');
    path.rsplit_once('/').unwrap_or(("", path))
}

impl CgroupFile {
    /// Reads it.
    ///
    /// # Errors
    ///
    /// `EACCES` when it can only be written, `ENODEV` when the cgroup was removed.
    pub fn read(&self) -> Result<String, FileError> {
        let read = self.file.read.ok_or_else(|| FileError::NotReadable { path: self.path() })?;
        self.check_lives()?;
        Ok(read(self))
    }

    /// Writes it; see [`CgroupFiles::write`].
    ///
    /// # Errors
    ///
    /// As there, and `ENODEV` or `ENOENT` when the cgroup was removed.
    pub fn write(&self, text: &str) -> Result<usize, FileError> {
        let write = self.file.write.ok_or_else(|| FileError::NotWritable { path: self.path() })?;
        if self.file.is_gone_with_cgroup && self.memcg.is_removed() {
            return Err(FileError::NotFound { path: self.path() });
        }
        self.check_lives()?;
        if !text.is_empty() {
            // As far as C would see it.
            let meant = text.split('\0').next().unwrap_or_default();
            write(self, meant).map_err(|error| error.in_file(|| self.path()))?;
        }
        Ok(text.len())
    }

    fn check_lives(&self) -> Result<(), FileError> {
        match self.memcg.is_removed() {
            true => Err(FileError::Removed { path: self.path() }),
            false => Ok(()),
        }
    }

    fn path(&self) -> String {
        let path = || format!("{}/{}", self.memcg.path().trim_end_matches('/'), self.file.name);
        kept_path(own(path))
    }
}
