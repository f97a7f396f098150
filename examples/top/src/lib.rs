//! The memory cgroups inside of a process, as `top` shows processes.

pub mod app;
pub mod client;
pub mod columns;
pub mod draw;
pub mod model;
pub mod size;
