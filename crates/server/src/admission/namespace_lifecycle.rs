//! NamespaceLifecycle: nothing is created in a namespace that does not exist or is being deleted, and the namespaces the
//! system lives in cannot be deleted.

use super::{Attributes, MutatingPlugin, Operation};
use crate::cluster::{Cluster, resource_of};
use async_trait::async_trait;
use gantry_api::k8s_openapi::api::core::v1::Namespace;
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusCause;
use gantry_api::meta::status::ApiError;
use parking_lot::Mutex;
use std::collections::HashSet;

/// Namespaces that may not be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-public", "kube-system"];

#[derive(Default)]
pub(super) struct NamespaceLifecycle {
    /// Namespaces seen to be there and not ending, as of a generation of the namespaces: nearly every write asks.
    active: Mutex<(u64, HashSet<String>)>,
}

impl NamespaceLifecycle {
    fn is_known_active(&self, name: &str, generation: u64) -> bool {
        let active = self.active.lock();
        active.0 == generation && active.1.contains(name)
    }

    fn remember_active(&self, name: &str, generation: u64) {
        let mut active = self.active.lock();
        if active.0 != generation {
            *active = (generation, HashSet::new());
        }
        active.1.insert(name.to_owned());
    }
}

#[async_trait]
impl MutatingPlugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    async fn admit(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        let info = a.resource.info();
        if info.group.is_empty() && info.plural == "namespaces" {
            if a.operation == Operation::Delete && IMMORTAL.contains(&a.name) {
                return Err(a.forbidden("this namespace may not be deleted"));
            }
            return Ok(());
        }
        // What is there may always go, and questions may always be asked.
        if a.namespace.is_empty() || a.operation == Operation::Delete || info.plural == "localsubjectaccessreviews" {
            return Ok(());
        }
        let generation = cluster.objects.generation(resource_of::<Namespace>());
        if self.is_known_active(a.namespace, generation) {
            return Ok(());
        }
        let mut found = cluster.get::<Namespace>("", a.namespace).await?;
        if found.is_none() {
            found = cluster.get_latest::<Namespace>("", a.namespace).await?;
        }
        let Some(namespace) = found else { return Err(ApiError::not_found("", "namespaces", a.namespace)) };
        let phase = namespace.status.as_ref().and_then(|s| s.phase.as_deref());
        let terminating = phase == Some("Terminating") || namespace.metadata.deletion_timestamp.is_some();
        if !terminating {
            self.remember_active(a.namespace, generation);
        }
        if a.operation != Operation::Create || !terminating {
            return Ok(());
        }
        let ns = a.namespace;
        let mut e =
            a.forbidden(&format!("unable to create new content in namespace {ns} because it is being terminated"));
        if let Some(details) = &mut e.details {
            details.causes.get_or_insert_default().push(StatusCause {
                reason: Some("NamespaceTerminating".into()),
                message: Some(format!("namespace {ns} is being terminated")),
                field: Some("metadata.namespace".into()),
            });
        }
        Err(e)
    }
}
