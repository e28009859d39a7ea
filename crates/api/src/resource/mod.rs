//! The `resource.k8s.io` API group: devices, and claims of them.

mod capacity;
mod claim;
mod device;
mod device_class;
mod device_taint_rule;
mod gates;
mod parts;
pub mod pod_claim;
mod resource_claim;
mod resource_claim_template;
mod resource_slice;
