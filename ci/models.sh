#!/usr/bin/env bash
# The way of a charge under model checkers. Their flags differ, so each has a target directory.
source "$(dirname "$0")/common.sh"

for checker in loom shuttle; do
    CARGO_TARGET_DIR=target/$checker RUSTFLAGS="--cfg percpu_$checker" \
        step cargo test --release --locked --lib models
    rm -rf target/$checker
done
