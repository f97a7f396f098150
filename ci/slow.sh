#!/usr/bin/env bash
# What takes long: the stress for half an hour, more random cases, and every test in each tier.
# `.ci/run` does not call it.
source "$(dirname "$0")/common.sh"

PERCPU_MEMCG_FULL=1 step cargo test --locked \
    --test isolation --test stocks --test stress --test this_cpu
PROPTEST_CASES=10000 step cargo test --locked --test model --test charges
PERCPU_MEMCG_NO_RSEQ=1 step cargo test --workspace --locked
GLIBC_TUNABLES=glibc.pthread.rseq=0 step cargo test --workspace --locked
