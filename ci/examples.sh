#!/usr/bin/env bash
# Builds and runs every example and every package below examples/. Whatever runs has a time limit.
source "$(dirname "$0")/common.sh"

# What is built first takes as long as it takes.
limited() { step timeout --kill-after=10 "${LIMIT:-120}" "$@"; }

# Examples of the library.
for file in examples/*.rs; do
    name=$(basename "$file" .rs)
    if [ "$name" = plugin ]; then
        step cargo build --locked --example plugin
        step cargo test --no-run --locked --test unload
        limited cargo test --locked --test unload # loads it
    else
        step cargo build --release --locked --example "$name"
        limited cargo run --release --locked --example "$name"
    fi
done

# Packages of the workspace. `ci/test.sh` runs their tests.
step cargo build --release --locked -p tenants -p replay
limited cargo run --release --locked -p tenants
limited cargo run --release --locked -p replay -- tests/data/placement/A-medium-1.csv.gz

# Packages with a lock file, because of their dependencies: built in one folder, which is removed.
rust=$(rustc --version | cut -d ' ' -f 2)
at_least() { printf '%s\n' "$1" "$rust" | sort --version-sort --check=quiet; }
own=${CARGO_TARGET_DIR:-target}/examples
trap 'rm -rf "$own"' EXIT
for lock in examples/*/Cargo.lock; do
    folder=$(dirname "$lock")
    msrv=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$folder/Cargo.toml")
    if ! at_least "$msrv"; then
        skipped "$folder, which needs Rust $msrv; this is $rust"
        continue
    fi
    package=(--locked --manifest-path "$folder/Cargo.toml")
    export CARGO_TARGET_DIR=$own
    step cargo fmt --check --manifest-path "$folder/Cargo.toml"
    step cargo clippy --all-targets "${package[@]}" -- -D warnings
    step cargo test --no-run "${package[@]}"
    limited cargo test "${package[@]}"
    case $(basename "$folder") in
        service) skipped "the program of $folder, which serves until it is stopped; its tests ran" ;;
        top) skipped "the program of $folder, which needs a terminal; its tests ran" ;;
        # Two launches: that it runs is what counts.
        heap-cost)
            step cargo build --release "${package[@]}"
            limited cargo run --release "${package[@]}" -- 2
            ;;
        *) limited cargo run "${package[@]}" ;;
    esac
done
