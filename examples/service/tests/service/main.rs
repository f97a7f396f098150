//! The service as a process of its own, over its sockets.

mod server;

mod bodies;
mod files;
mod load;
mod metrics;
mod names;
mod page;
mod removal;
mod tenants;
