#!/usr/bin/env bash
# What the README tells people to run, and every test.
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
# Features are off by default, and have tests and examples of their own.
step cargo test --locked --all-features --test integrations --test global_allocator
step cargo test --locked --all-features --doc integrations
