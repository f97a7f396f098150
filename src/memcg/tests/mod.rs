//! Tests of the folders together.

mod layers;
#[cfg(percpu_loom)]
mod loom;
#[cfg(percpu_shuttle)]
mod shuttle;
