//! The `apps` API group: one file per kind.

mod controller_revision;
pub mod daemon_set;
mod deployment;
pub mod int_or_percent;
pub(crate) mod replica_set;
mod stateful_set;
pub mod workload;
