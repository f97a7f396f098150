//! Tests of the folders together.

#[cfg(not(any(percpu_loom, percpu_shuttle)))]
mod grants;
mod layers;
#[cfg(percpu_loom)]
mod loom;
#[cfg(not(any(percpu_loom, percpu_shuttle)))]
mod merging;
#[cfg(any(percpu_loom, percpu_shuttle))]
mod models;
#[cfg(not(any(percpu_loom, percpu_shuttle)))]
mod own_cpu;
#[cfg(percpu_shuttle)]
mod shuttle;
