#!/usr/bin/env bash
# Formatting, lints, documentation, the public interface, the package, and what dependencies bring.
source "$(dirname "$0")/common.sh"

step cargo fmt --all --check
step cargo clippy --workspace --all-targets --all-features --locked -- -D warnings
# The library by itself, as users get it. The lint `incompatible_msrv` compares it with `rust-version`.
step cargo clippy --lib --no-default-features --locked -- -D warnings
# Each feature by itself.
for feature in $(sed -n '/^\[features\]/,/^\[/s/^\([a-z0-9-]*\) = .*/\1/p' Cargo.toml); do
    step cargo clippy --lib --no-default-features --features "$feature" --locked -- -D warnings
done
export RUSTDOCFLAGS="-D warnings"
step cargo doc --no-deps --locked
step cargo doc --no-deps --locked --all-features
step ci/interface.sh

# Recordings do not belong in the package.
most=512000
step cargo package --quiet --no-verify --allow-dirty --locked 2> >(grep -v '^warning: ignoring' >&2)
for package in "${CARGO_TARGET_DIR:-target}"/package/percpu-memcg-*.crate; do
    size=$(wc -c <"$package")
    echo "package: $size bytes, at most $most"
    [ "$size" -le "$most" ]
done

msrv=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
if rustup run "$msrv" rustc --version >/dev/null 2>&1; then
    CARGO_TARGET_DIR=target/msrv step rustup run "$msrv" cargo check --lib --locked
    rm -rf target/msrv
else
    skipped "a build of the library with Rust $msrv, which is not installed; clippy's lint ran"
fi

if cargo deny --version >/dev/null 2>&1; then
    step cargo deny check bans licenses sources
    if cargo deny fetch db >/dev/null 2>&1; then
        step cargo deny check --disable-fetch advisories
    else
        skipped "advisories, whose database cannot be fetched"
    fi
else
    skipped "licences and advisories of dependencies; cargo-deny is not installed"
fi
