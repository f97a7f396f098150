#!/usr/bin/env bash
# What the README tells people to run, every test, and the package with dependencies of its own.
source "$(dirname "$0")/common.sh"

step cargo run --release --locked -p tenants
step cargo run --release --locked -p replay -- tests/data/placement/A-medium-1.csv.gz
step cargo run --release --locked -p replay -- \
    tests/data/workloads/bpf-maps.csv.gz --backed --cpus 64
step cargo bench --no-run --locked

if [ -d ../shared/data ]; then
    echo "recordings: the shipped set in tests/data and the full one in ../shared/data"
else
    echo "recordings: the shipped set in tests/data; skipped: the full one, there is no ../shared/data"
fi
# What these two ran, in their own words.
step cargo test --locked --test conformance --test packing -- --nocapture
step cargo test --workspace --locked

# Not in the workspace, because of the number of its dependencies.
datafusion=(--manifest-path examples/datafusion/Cargo.toml)
step cargo fmt --check "${datafusion[@]}"
for command in "clippy --all-targets" test run; do
    # shellcheck disable=SC2086
    CARGO_TARGET_DIR=target/datafusion step cargo $command --locked "${datafusion[@]}"
done
rm -rf target/datafusion

# Nor is this one, whose binaries have a global allocator each. Two launches: that they run is what counts.
heap_cost=(--manifest-path examples/heap-cost/Cargo.toml)
step cargo fmt --check "${heap_cost[@]}"
export CARGO_TARGET_DIR=target/heap-cost
step cargo clippy --all-targets --locked "${heap_cost[@]}" -- -D warnings
step cargo build --release --locked "${heap_cost[@]}"
step cargo run --release --locked "${heap_cost[@]}" -- 2
unset CARGO_TARGET_DIR
rm -rf target/heap-cost
