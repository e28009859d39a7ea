//! Gantry: Kubernetes in one binary. This crate is the only place that knows all others: it makes certificates, wires
//! the roles together and carries the command line.

pub mod access_options;
pub mod admission_options;
pub mod audit_options;
pub mod bootstrap;
pub mod cli;
pub mod config;
pub mod controller_options;
pub mod debugging;
pub mod encryption_options;
pub mod in_process;
pub mod memory;
pub mod ranges;
pub mod reload;
pub mod roles;
pub mod sampling;
pub mod scheduler_options;
pub mod wire;
