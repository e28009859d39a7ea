//! The `apiregistration.k8s.io` API group.

mod api_service;
