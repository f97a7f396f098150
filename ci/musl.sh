#!/usr/bin/env bash
# Another C library, which registers no rseq areas, so that this crate does.
source "$(dirname "$0")/common.sh"

musl=x86_64-unknown-linux-musl
if rustc --print target-libdir --target $musl | xargs test -d; then
    CC_x86_64_unknown_linux_musl=${CC:-gcc} \
        step cargo test --locked --target $musl --test this_cpu --test aborts
else
    skipped "$musl, which is not installed"
fi
