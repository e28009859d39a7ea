//! The core (legacy, unnamed) API group: one file per kind.

mod binding;
mod config_map;
mod endpoints;
pub mod event;
pub mod namespace;
pub mod node;
pub mod persistent_volume_claim;
pub mod pod;
pub mod replication_controller;
pub mod secret;
pub mod service;
mod service_account;
