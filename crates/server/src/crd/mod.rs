//! Custom resources: kinds the cluster learns from CustomResourceDefinitions while it runs.
//!
//! [`controller`] follows the definitions: it accepts names, serves versions through the registry, and takes instances
//! down with their definition. [`resource`] is a version as the registry sees it; the other modules say what happens to
//! its objects: [`shape`] prunes and defaults, [`validation`] and [`rules`] judge, [`conversion`] asks the webhook that
//! makes them those of another version.

mod controller;
mod conversion;
mod format;
mod json_path;
mod resource;
mod rules;
mod schema;
mod shape;
mod validation;
mod version;

pub use controller::{Controller, mark_for_deletion};
pub use conversion::Recalled;
pub use resource::{CustomResource, ScalePaths, custom, validate_defaults};
pub use rules::Scope;
pub use version::{VersionSchema, version_order};
