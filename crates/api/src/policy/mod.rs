//! The `policy` API group: one file per kind.

mod eviction;
mod pod_disruption_budget;
