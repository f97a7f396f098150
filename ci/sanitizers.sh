#!/usr/bin/env bash
# The heap under AddressSanitizer, which the stable compiler has too: recordings with and without
# caches, every profile, threads, removal. It does not see sequences, which are assembly, nor the
# bounds of areas, which lie in mappings: `replay --backed` checks their content itself.
source "$(dirname "$0")/common.sh"

target=x86_64-unknown-linux-gnu
if [ "$(rustc --print host-tuple)" = $target ]; then
    export RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=target/asan
    step cargo test --locked --target $target -p replay
    step cargo run --locked --target $target -p tenants
    rm -rf target/asan
else
    skipped "AddressSanitizer, on a machine that is not $target"
fi
# The standard library has to be instrumented too, which needs more than the stable compiler: else the
# end of `thread::scope` is reported as a race.
skipped "ThreadSanitizer; ci/models.sh looks for data races"
