//! PodTolerationRestriction: namespaces say by annotation what their pods tolerate and what they may tolerate.

use super::configuration::Tolerations;
use super::{Attributes, MutatingPlugin, Operation, ValidatingPlugin, tolerations};
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::core::pod::qos::qos_class;
use gantry_api::k8s_openapi::api::core::v1::{Namespace, Pod, Toleration};
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;

const DEFAULT: &str = "scheduler.alpha.kubernetes.io/defaultTolerations";
const ALLOWED: &str = "scheduler.alpha.kubernetes.io/tolerationsWhitelist";

/// With what holds where a namespace says nothing.
pub(super) struct PodTolerationRestriction(pub(super) Tolerations);

fn is_concerned(a: &Attributes<'_>) -> bool {
    matches!(a.operation, Operation::Create | Operation::Update) && a.is("", "pods", "")
}

/// What the namespace's annotation says; None where it has none.
async fn annotated(a: &Attributes<'_>, key: &str, cluster: &Cluster) -> Result<Option<Vec<Toleration>>, ApiError> {
    let found = cluster.shared::<Namespace>("", a.namespace).await?;
    let namespace = found.ok_or_else(|| ApiError::not_found("", "namespaces", a.namespace))?;
    match namespace.metadata.annotation(key) {
        None => Ok(None),
        Some("") => Ok(Some(Vec::new())),
        Some(text) => serde_json::from_str(text).map(Some).map_err(|e| ApiError::new(500, "", e.to_string())),
    }
}

#[async_trait]
impl MutatingPlugin for PodTolerationRestriction {
    fn name(&self) -> &'static str {
        "PodTolerationRestriction"
    }

    async fn admit(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        if !is_concerned(a) {
            return Ok(());
        }
        let mut more = Vec::new();
        if a.operation == Operation::Create {
            more = annotated(a, DEFAULT, cluster).await?.unwrap_or_else(|| self.0.default.clone());
        }
        let Some(spec) = a.object_as_mut::<Pod>().and_then(|p| p.spec.as_mut()) else { return Ok(()) };
        if qos_class(spec) != "BestEffort" {
            more.push(Toleration {
                key: Some("node.kubernetes.io/memory-pressure".into()),
                operator: Some("Exists".into()),
                effect: Some("NoSchedule".into()),
                ..Default::default()
            });
        }
        if !more.is_empty() {
            spec.tolerations = Some(tolerations::merge(spec.tolerations.take().unwrap_or_default(), more));
        }
        ValidatingPlugin::validate(self, a, cluster).await
    }
}

#[async_trait]
impl ValidatingPlugin for PodTolerationRestriction {
    fn name(&self) -> &'static str {
        "PodTolerationRestriction"
    }

    async fn validate(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        let own = a.object_as::<Pod>().and_then(|p| p.spec.as_ref()).and_then(|s| s.tolerations.clone());
        let own = own.unwrap_or_default();
        if !is_concerned(a) || own.is_empty() {
            return Ok(());
        }
        let allowed = annotated(a, ALLOWED, cluster).await?.unwrap_or_else(|| self.0.allowed.clone());
        if allowed.is_empty() || own.iter().all(|t| allowed.iter().any(|w| tolerations::includes(w, t))) {
            return Ok(());
        }
        // Upstream's refusal has neither a code of its own nor a reason.
        let why = "pod tolerations (possibly merged with namespace default tolerations) conflict with its namespace whitelist";
        Err(ApiError::new(500, "", why))
    }
}
