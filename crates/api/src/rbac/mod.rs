//! rbac.authorization.k8s.io: roles, bindings, and the algebra of their rules.

mod cluster_role;
mod cluster_role_binding;
mod role;
mod role_binding;
pub mod rules;
mod subjects;

pub use subjects::{GROUP, service_account_username};
