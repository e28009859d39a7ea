//! The `autoscaling` API group: one file per kind and version.

mod horizontal_pod_autoscaler;
mod horizontal_pod_autoscaler_v1;
mod legacy_metrics;
mod scale;
mod validate;

pub use horizontal_pod_autoscaler_v1::{from_v2, to_v2};
