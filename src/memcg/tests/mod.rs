//! Tests of the folders together.

mod layers;
#[cfg(percpu_loom)]
mod loom;
#[cfg(any(percpu_loom, percpu_shuttle))]
mod models;
#[cfg(percpu_shuttle)]
mod shuttle;
