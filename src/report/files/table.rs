//! Every file: its name, where it is, what it reads as and what a write does.

use rustix::io::Errno;
use rustix::thread::{Pid, sched_getaffinity};

use super::numa::numa_stat;
use super::number::{integer, reclaim_bytes};
use super::{CgroupFile, FileError};
use crate::memcg::amount::strip;
use crate::memcg::{Limit, Memcg, NumberError, TreeError};

type Read = fn(&CgroupFile) -> String;
type Write = fn(&CgroupFile, &str) -> Result<(), FileError>;

#[derive(Debug)]
pub(super) struct File {
    pub(super) name: &'static str,
    /// The root has it, too.
    on_root: bool,
    /// What a write says when the cgroup was removed: `ENOENT` in place of `ENODEV`.
    pub(super) is_gone_with_cgroup: bool,
    pub(super) read: Option<Read>,
    pub(super) write: Option<Write>,
}

pub(super) static FILES: &[File] = &[
    file("cgroup.controllers", true, |_| "memory\n".into()),
    file("cgroup.events", false, cgroup_events),
    file("cgroup.freeze", false, |at| line(u8::from(at.memcg.is_frozen_itself())))
        .writes(freeze)
        .goes_with_cgroup(),
    File { read: None, ..file("cgroup.kill", false, |_| String::new()) }
        .writes(kill)
        .goes_with_cgroup(),
    file("cgroup.max.depth", true, |at| bound_text(at.memcg.max_depth()))
        .writes(|at, text| Ok(at.memcg.set_max_depth(bound(text)?)?))
        .goes_with_cgroup(),
    file("cgroup.max.descendants", true, |at| bound_text(at.memcg.max_descendants()))
        .writes(|at, text| Ok(at.memcg.set_max_descendants(bound(text)?)?))
        .goes_with_cgroup(),
    file("cgroup.procs", true, threads).writes(attach),
    file("cgroup.stat", true, cgroup_stat),
    file("cgroup.subtree_control", true, |_| "memory\n".into()).writes(control_subtree),
    file("cgroup.threads", true, threads).writes(attach),
    // No cgroup is threaded: each pays for itself, and threads may be in any.
    file("cgroup.type", false, |_| "domain\n".into()).writes(set_type).goes_with_cgroup(),
    file("memory.current", false, |at| line(at.memcg.current())),
    file("memory.events", false, |at| at.memcg.events().to_string()),
    file("memory.events.local", false, |at| at.memcg.events_local().to_string()),
    file("memory.high", false, |at| line(at.memcg.high()))
        .writes(|at, text| set(at, text, Memcg::set_high)),
    file("memory.low", false, |at| line(at.memcg.low()))
        .writes(|at, text| set(at, text, Memcg::set_low)),
    file("memory.max", false, |at| line(at.memcg.max()))
        .writes(|at, text| set(at, text, Memcg::set_max)),
    file("memory.min", false, |at| line(at.memcg.min()))
        .writes(|at, text| set(at, text, Memcg::set_min)),
    file("memory.numa_stat", true, |at| numa_stat(&at.memcg)),
    file("memory.oom.group", false, |at| line(u8::from(at.memcg.oom_group()))).writes(oom_group),
    file("memory.peak", false, |at| line(at.peak.read())).writes(|at, _| {
        at.peak.reset();
        Ok(())
    }),
    File { read: None, ..file("memory.reclaim", true, |_| String::new()) }.writes(reclaim),
    file("memory.stat", true, memory_stat),
];

const fn file(name: &'static str, on_root: bool, read: Read) -> File {
    File { name, on_root, is_gone_with_cgroup: false, read: Some(read), write: None }
}

impl File {
    const fn writes(self, write: Write) -> Self {
        File { write: Some(write), ..self }
    }

    const fn goes_with_cgroup(self) -> Self {
        File { is_gone_with_cgroup: true, ..self }
    }

    /// True when the cgroup has it.
    pub(super) fn is_in(&self, memcg: &Memcg) -> bool {
        self.on_root || !memcg.is_root()
    }
}

/// The file of that name, if the cgroup has it.
pub(super) fn find(name: &str, memcg: &Memcg) -> Option<&'static File> {
    FILES.iter().find(|file| file.name == name && file.is_in(memcg))
}

fn line(value: impl std::fmt::Display) -> String {
    format!("{value}\n")
}

fn set(
    at: &CgroupFile,
    text: &str,
    set: fn(&Memcg, Limit) -> Result<(), TreeError>,
) -> Result<(), FileError> {
    Ok(set(&at.memcg, text.parse()?)?)
}

const BOUND: &str = "a number below 2^31, or max";
const SWITCH: &str = "0 or 1";

/// `max` or an integer that is not negative.
fn bound(text: &str) -> Result<Option<u32>, NumberError> {
    match strip(text) {
        "max" => Ok(None),
        number => {
            let bound = integer(number, BOUND)?;
            // The largest number is how the kernel stores `max`.
            let bound = (bound < i32::MAX).then_some(bound).map(u32::try_from).transpose();
            bound.map_err(|_| NumberError::out_of_range(number, BOUND))
        }
    }
}

fn bound_text(bound: Option<u32>) -> String {
    bound.map_or("max\n".into(), line)
}

/// 1 if the cgroup or one below has a thread.
fn populated(memcg: &Memcg) -> u8 {
    let mut cgroups = vec![memcg.clone()];
    while let Some(memcg) = cgroups.pop() {
        if memcg.nr_threads() > 0 {
            return 1;
        }
        cgroups.extend(memcg.children());
    }
    0
}

fn threads(at: &CgroupFile) -> String {
    at.memcg.threads().into_iter().map(line).collect()
}

fn attach(at: &CgroupFile, text: &str) -> Result<(), FileError> {
    let text = strip(text);
    // As the kernel, which does not tell a number that is too large from one that is none.
    const THREAD: &str = "the id of the calling thread, or 0";
    let thread = integer(text, THREAD).ok().filter(|thread| *thread >= 0);
    let thread = thread.ok_or_else(|| NumberError::malformed(text, THREAD))?;
    let this = rustix::thread::gettid().as_raw_nonzero().get();
    if thread != 0 && thread != this {
        let is_there = |thread| sched_getaffinity(Some(thread)) != Err(Errno::SRCH);
        return Err(match Pid::from_raw(thread).is_some_and(is_there) {
            true => FileError::OtherThread { thread },
            false => FileError::NoThread { thread },
        });
    }
    Ok(at.memcg.attach_thread()?)
}

/// Tokens `+memory`, with spaces between them; the last one counts.
fn control_subtree(_at: &CgroupFile, text: &str) -> Result<(), FileError> {
    let tokens = || strip(text).split(' ').filter(|token| !token.is_empty());
    if let Some(unknown) = tokens().find(|token| !matches!(*token, "+memory" | "-memory")) {
        return Err(FileError::malformed(unknown));
    }
    match tokens().next_back() {
        Some("-memory") => Err(FileError::not_supported("-memory")),
        _ => Ok(()),
    }
}

fn set_type(_at: &CgroupFile, text: &str) -> Result<(), FileError> {
    match strip(text) {
        "threaded" => Err(FileError::not_supported("threaded")),
        text => Err(FileError::malformed(text)),
    }
}

fn cgroup_events(at: &CgroupFile) -> String {
    let frozen = u8::from(at.memcg.is_frozen());
    format!("populated {}\nfrozen {frozen}\n", populated(&at.memcg))
}

/// 0 or 1; any other number is out of range.
fn switch(text: &str) -> Result<bool, NumberError> {
    let text = strip(text);
    match integer(text, SWITCH)? {
        value @ (0 | 1) => Ok(value == 1),
        _ => Err(NumberError::out_of_range(text, SWITCH)),
    }
}

fn freeze(at: &CgroupFile, text: &str) -> Result<(), FileError> {
    match switch(text)? {
        true => at.memcg.freeze()?,
        false => at.memcg.thaw()?,
    }
    Ok(())
}

fn kill(at: &CgroupFile, text: &str) -> Result<(), FileError> {
    match switch(text)? {
        true => at.memcg.kill()?,
        false => return Err(NumberError::out_of_range(strip(text), "1").into()),
    };
    Ok(())
}

fn cgroup_stat(at: &CgroupFile) -> String {
    let (live, dying) = (at.memcg.nr_descendants(), at.memcg.nr_dying_descendants());
    // The cgroup itself has the controller as well.
    let with_memory = live + 1;
    format!(
        "nr_descendants {live}\nnr_subsys_memory {with_memory}\n\
         nr_dying_descendants {dying}\nnr_dying_subsys_memory {dying}\n"
    )
}

fn memory_stat(at: &CgroupFile) -> String {
    let stat = at.memcg.stat();
    let kernel = stat.percpu + stat.charged;
    format!(
        "kernel {kernel}\npercpu {}\ncharged {}\ncached {}\n",
        stat.percpu, stat.charged, stat.cached
    )
}

fn oom_group(at: &CgroupFile, text: &str) -> Result<(), FileError> {
    let text = strip(text);
    match integer(text, SWITCH)? {
        value @ (0 | 1) => Ok(at.memcg.set_oom_group(value == 1)?),
        _ => Err(NumberError::malformed(text, SWITCH).into()),
    }
}

fn reclaim(at: &CgroupFile, text: &str) -> Result<(), FileError> {
    at.memcg.reclaim(reclaim_bytes(text)?)?;
    Ok(())
}
