//! `scheduling.k8s.io`: priority classes.

pub mod priority_class;
