//! `scheduling.k8s.io`: priority classes, and groups of pods.

mod group;
pub mod pod_group;
pub mod priority_class;
pub mod workload;
