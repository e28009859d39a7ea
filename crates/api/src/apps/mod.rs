//! The `apps` API group: one file per kind.

mod deployment;
pub mod int_or_percent;
pub(crate) mod replica_set;
pub mod workload;
