//! The core (legacy, unnamed) API group: one file per kind.

mod binding;
pub mod component_status;
mod config_map;
mod endpoints;
pub mod event;
mod limit_range;
pub mod namespace;
pub mod node;
pub mod persistent_volume;
pub mod persistent_volume_claim;
pub mod placement;
pub mod pod;
mod pod_template;
pub mod quota;
pub mod quota_of_devices;
pub mod replication_controller;
pub mod resource_quota;
pub mod secret;
pub mod service;
mod service_account;
