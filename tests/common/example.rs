//! Examples that a test looks at.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The file of an example, built beside this test and up to date.
pub(crate) fn built(example: &str, file: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a path of this test");
    let profile = test.parent().and_then(Path::parent).expect("target/<profile>/deps");
    let target = profile.parent().expect("target/<profile>");
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--example", example, "--target-dir"]).arg(target);
    build.current_dir(env!("CARGO_MANIFEST_DIR"));
    if profile.ends_with("release") {
        build.arg("--release");
    }
    assert!(build.status().expect("cargo runs").success(), "the example does not build");
    profile.join("examples").join(file)
}
