//! The `autoscaling` API group: one file per kind.

pub mod scale;
