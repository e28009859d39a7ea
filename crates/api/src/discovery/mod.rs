//! `discovery.k8s.io`: endpoint slices.

mod endpoint_slice;
