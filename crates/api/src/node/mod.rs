//! The `node.k8s.io` API group: one file per kind.

mod runtime_class;
