//! Which pods stand behind a Service: EndpointSlices, the elder Endpoints, and slices that mirror Endpoints written by hand.

mod legacy;
mod legacy_plan;
mod mirror;
mod pods;
mod slice_plan;
mod slices;
mod topology;
mod tracker;

pub use legacy::{RULES as LEGACY_RULES, run as run_legacy};
pub use legacy_plan::{Wanted, subsets};
pub use mirror::{RULES as MIRROR_RULES, run as run_mirror};
pub use slice_plan::{MAX_PER_SLICE, SlicePlan, plan};
pub use slices::{RULES as SLICE_RULES, run as run_slices};

/// Label that names a slice's Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label that names who manages a slice.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Label of what belongs to a headless Service.
pub const HEADLESS: &str = "service.kubernetes.io/headless";
/// Annotation with the time of the change that led to the last update.
pub const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

#[cfg(test)]
mod tests;
