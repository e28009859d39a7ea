//! The controllers: each watches some kinds and brings the world nearer to what they ask for. [`list::ALL`] is the one
//! visible list; every entry says next to its code what it may do ([`rules::Rule`]), and acts under its own identity.

pub mod bootstrap_token;
pub mod certificate;
pub mod claiming;
pub mod cluster_dns;
pub mod cluster_role_aggregation;
pub mod config;
pub mod cronjob;
pub mod daemonset;
pub mod deployment;
pub mod device_taint_eviction;
pub mod discovery;
pub mod disruption;
pub mod endpoints;
pub mod garbage;
pub mod history;
pub mod horizontal_pod_autoscaler;
pub mod job;
pub mod list;
pub mod measured;
pub mod namespace;
pub mod node_ipam;
pub mod node_lifecycle;
pub mod pod_gc;
pub mod pod_group_protection;
pub mod pod_state;
pub mod replicas;
pub mod resource_claim;
pub mod resource_quota;
pub mod root_ca;
pub mod rules;
pub mod service_account;
pub mod service_account_token;
pub mod service_cidr;
pub mod statefulset;
pub mod storage_version_migration;
pub mod taint_eviction;
pub mod trust_bundle;
pub mod ttl;
pub mod ttl_after_finished;
pub mod volume;

pub use config::{ControllersConfig, Setup};
pub use list::{ALL, Entry, run};
pub use measured::Measured;
pub use rules::Rule;
