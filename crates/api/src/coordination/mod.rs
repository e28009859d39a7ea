//! `coordination.k8s.io`: leases.

mod lease;
