//! Each folder of `memcg` uses only those before it.

use std::fs;
use std::path::{Path, PathBuf};

/// Folders and files, each of which may use those before it. Those of one row do not use each
/// other, but for files of one folder.
const ORDER: &[&[&str]] = &[
    &["sync", "gfp", "once_arc"],
    &["counter"],
    &["error"],
    &["stock"],
    &["notify"],
    &["node"],
    &["charge"],
    &["tree"],
    &["handle"],
    &["tests"],
];

/// The order of the files within each folder: each may use those before it.
const FILES: &[(&str, &[&str])] = &[
    ("counter", &["amount", "cost", "protection", "peak", "delay", "mod"]),
    ("stock", &["word", "cpu_set", "objcg", "grants", "mod"]),
    (
        "notify",
        &[
            "counts",
            "watch",
            "timer",
            "tree_watch",
            "inside",
            "registration",
            "running",
            "callbacks",
            "mod",
        ],
    ),
    (
        "node",
        &["account", "listed", "shared", "turn", "mod", "labels", "walk", "stocks", "reparent"],
    ),
    (
        "charge",
        &["uncommitted", "attempts", "reclaim", "oom", "high", "lowered", "try_charge", "mod"],
    ),
    ("tree", &["current", "name", "mod", "area"]),
    (
        "handle",
        &[
            "memcg",
            "scope",
            "charge",
            "charging",
            "block",
            "moving",
            "limits",
            "bounds",
            "events",
            "hooks",
            "lifecycle",
            "throttle",
            "peak_reader",
            "snapshot",
            "removal_report",
            "scoped",
            "spawn",
            "in_memcg",
            "accounted",
            "unwind",
            "mod",
        ],
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/memcg")
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => sources(&path, found),
            false => found.extend(path.extension().is_some_and(|it| it == "rs").then_some(path)),
        }
    }
}

fn rank(part: &str) -> usize {
    let rank = ORDER.iter().position(|row| row.contains(&part));
    rank.unwrap_or_else(|| panic!("{part} is in no row of the order"))
}

/// The paths below `crate::memcg` that a source names.
fn used(source: &str) -> Vec<String> {
    let word = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
    let mut used = Vec::new();
    for (at, prefix) in source.match_indices("crate::memcg::") {
        let rest = &source[at + prefix.len()..];
        let path: String = rest.chars().take_while(word).collect();
        match rest[path.len()..].strip_prefix('{') {
            None => used.push(path),
            Some(list) => {
                let list = list.split('}').next().unwrap();
                used.extend(list.split(',').map(|name| format!("{path}{}", name.trim())));
            }
        }
    }
    used
}

#[test]
fn folders_use_only_those_before_them() {
    let (mut files, mut faults) = (Vec::new(), Vec::new());
    sources(&root(), &mut files);
    assert!(files.len() > 30);
    for file in files {
        let within = file.strip_prefix(root()).unwrap().to_str().unwrap().replace(".rs", "");
        if matches!(&*within, "mod" | "tests/layers") {
            continue;
        }
        let source = fs::read_to_string(&file).unwrap();
        let code = || source.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code().filter(|_| !is_test(&within)) {
            // Names come from their own files, not through others; tests in a file use that file.
            let is_foreign = line.contains("super::") && !line.contains("use super::*");
            let is_root = line.contains("crate::{") || line.contains("use crate::memcg::{");
            if is_foreign || is_root {
                faults.push(format!("{within}: {line}"));
            }
        }
        let own = within.split('/').next().unwrap();
        for path in used(&source) {
            let mut parts = path.split("::");
            let (part, file) = (parts.next().unwrap(), parts.next().unwrap_or_default());
            if part != own && rank(part) >= rank(own) {
                faults.push(format!("{within} uses {path}"));
            }
            if part == own {
                faults.extend(upward(&within, own, file));
            }
        }
        if source.lines().any(|line| line.starts_with("impl Node")) && own != "node" {
            faults.push(format!("{within} has methods of Node"));
        }
        if source.lines().any(|line| line.starts_with("impl Memcg")) && own != "handle" {
            faults.push(format!("{within} has methods of Memcg"));
        }
    }
    assert_eq!(faults, Vec::<String>::new());
}

fn is_test(file: &str) -> bool {
    file.starts_with("tests/") || file.ends_with("_tests") || file.starts_with("sync/")
}

/// Whether a file uses one of its folder that does not come before it. A name that is no file is in
/// `mod`.
fn upward(file: &str, folder: &str, used: &str) -> Option<String> {
    let (_, order) = FILES.iter().find(|(name, _)| *name == folder)?;
    let position = |name: &str| order.iter().position(|it| *it == name);
    let used = if position(used).is_some() { used } else { "mod" };
    let name = file.split('/').nth(1)?;
    if matches!(name, "models" | "observed") || name.ends_with("_tests") {
        return None;
    }
    let own = position(name).unwrap_or_else(|| panic!("{file} has no place in its folder's order"));
    (position(used) >= Some(own)).then(|| format!("{file} uses {used}, which comes after it"))
}
