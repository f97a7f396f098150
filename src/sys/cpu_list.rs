//! Lists of CPUs as the kernel writes them.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

/// Where Linux shows CPUs and nodes.
pub(super) const ROOT: &str = "/sys/devices/system";

/// The ids of the real CPUs are below this, whatever machine is injected; `None` when that is not known.
///
/// The kernel fixes the possible CPUs when it starts. A container may show others: those that the process
/// may run on are asked for as well.
pub(super) fn real_cpu_id_limit() -> Option<usize> {
    static LIMIT: OnceLock<Option<usize>> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        if cfg!(miri) {
            // It ends a program that opens a file.
            return None;
        }
        let text = fs::read_to_string(Path::new(ROOT).join("cpu/possible")).ok()?;
        let highest = parse_list(&text)?.into_iter().map(|(_, last)| last as usize).max()?;
        let usable = rustix::thread::sched_getaffinity(None).ok()?;
        let is_usable = |cpu: &usize| usable.is_set(*cpu);
        let highest_usable = (0..rustix::thread::CpuSet::MAX_CPU).rev().find(is_usable)?;
        (highest_usable <= highest).then_some(highest + 1)
    })
}

/// Parses the kernel's list format, `0-3,8,10-11`, into inclusive ranges; blank text is no range.
pub(super) fn parse_list(text: &str) -> Option<Vec<(u32, u32)>> {
    let text = text.trim();
    if text.is_empty() {
        return Some(Vec::new());
    }
    text.split(',').map(parse_range).collect()
}

fn parse_range(text: &str) -> Option<(u32, u32)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (parse_number(first)?, parse_number(last)?);
    (first <= last).then_some((first, last))
}

/// Digits only: `u32::from_str` would also take a sign.
pub(super) fn parse_number(text: &str) -> Option<u32> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}
