//! The Kubernetes API as facts and pure functions: for every kind its defaults, validation, update rules, selectable
//! fields and table columns. One file per kind; [`kinds::ALL`] is the one visible list of what is served.
//!
//! Does no IO. Types come from `k8s-openapi` (v1.37); this crate is the only one in which their serde code is
//! instantiated, through the non-generic methods of [`kind::Kind`].

pub mod admissionregistration;
pub mod apiextensions;
pub mod apiregistration;
pub mod apps;
pub mod authentication;
pub mod authorization;
pub mod autoscaling;
pub mod batch;
pub mod certificates;
pub mod clock;
pub mod coordination;
pub mod core;
pub mod discovery;
pub mod entropy;
pub mod events;
pub mod flowcontrol;
pub mod kind;
pub mod kinds;
pub mod meta;
pub mod networking;
pub mod node;
pub mod packed;
pub mod policy;
pub mod rbac;
pub mod resource;
pub mod scheduling;
pub mod served;
pub mod storage;
pub mod storagemigration;
pub mod versions;

pub use k8s_openapi;
pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
