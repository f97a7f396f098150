//! The rules of placement one by one, written down from their description.
//!
//! Recordings (`tests/conformance`) hold the rules in place as far as they happened to need them.
//! Here are the rules themselves:
//!
//! | module | what |
//! |---|---|
//! | `worked` | twelve sequences worked through step by step |
//! | `unpinned_hints`, `unpinned_engine` | rules that no recording depends on |
//! | `requests`, `frees` | what callers may not ask for, and that it changes nothing |
//! | `habits` | where the default profile differs from Linux |
//! | `random` | any operations at all, beside a map with one bit a granule |
#![allow(unreachable_pub, reason = "in a program, `pub` is what modules show to each other")]

mod frees;
mod habits;
mod random;
mod requests;
mod script;
mod unpinned_engine;
mod unpinned_hints;
mod worked;
