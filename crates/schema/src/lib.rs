//! What the Kubernetes API types look like, and everything that is decided by looking at it: strict decoding,
//! patches, server-side apply and the OpenAPI documents. No IO and no typed structs: all functions work on
//! [`serde_json::Value`] and a [`Schema`], so that built-in types and custom resources take the same way.
//!
//! | module | question it answers |
//! |---|---|
//! | [`schema`] | which fields does this type have, and how do its lists and maps merge? |
//! | [`strict`] | what does this request body say, and what is wrong with it? |
//! | [`patch`] | what does the object look like after this patch? |
//! | [`apply`] | who owns which field, and what does the object look like after this configuration is applied? |
//! | [`openapi`] | what do clients get to read about all this? |
//! | [`protobuf`] | what is this object in protobuf, and what does this protobuf say? |
//!
//! What a caller may rely on: no function panics on any input from outside (bodies, patches, stored ownership, schemas
//! of custom resources); errors carry the text upstream gives for the same mistake; values are nested at most
//! [`strict::DEPTH_MAX`] deep once they came through [`strict`], and all else recurses no deeper than that.
//!
//! A write, from the body to what is stored:
//!
//! ```
//! use gantry_schema::apply::{FieldManager, FieldSet, SingleVersion};
//! use gantry_schema::{Definitions, patch, strict};
//! use serde_json::json;
//!
//! let schema = Definitions::builtin().schema_for("apps", "v1", "Deployment").unwrap();
//! let status = FieldSet::from_paths(&[&["status"]]);
//! let owners = FieldManager {
//!     schema,
//!     api_version: "apps/v1",
//!     kind: "Deployment",
//!     subresource: "",
//!     reset_fields: Some(&status),
//!     versions: &SingleVersion,
//! };
//!
//! // kubectl create
//! let body = br#"{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": 3}}"#;
//! let decoded = strict::decode_json(body, Some(schema)).unwrap();
//! assert!(decoded.strict_errors.is_empty());
//! let live = owners.update(None, decoded.value, "kubectl-create", "2026-01-02T03:04:05Z");
//!
//! // kubectl patch
//! let patched = patch::strategic_merge_patch(&live, br#"{"spec": {"paused": true}}"#, schema).unwrap();
//! assert!(strict::check(&patched.value, schema).unwrap().is_empty());
//! let live = owners.update(Some(&live), patched.value, "kubectl-patch", "2026-01-02T03:04:06Z");
//!
//! // kubectl apply --server-side
//! let config = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": 5}});
//! let conflict = owners.apply(Some(live.clone()), &config, "kubectl", false, "2026-01-02T03:04:07Z").unwrap_err();
//! assert_eq!(
//!     conflict.to_string(),
//!     "Apply failed with 1 conflict: conflict with \"kubectl-create\" using apps/v1: .spec.replicas"
//! );
//! let live = owners.apply(Some(live.clone()), &config, "kubectl", true, "2026-01-02T03:04:07Z").unwrap().unwrap();
//! assert_eq!(live["spec"], json!({"replicas": 5, "paused": true}));
//! ```

pub mod apply;
mod go_text;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod schema;
pub mod strict;

pub use schema::{Definitions, Schema};
