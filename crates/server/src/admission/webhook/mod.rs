//! Admission webhooks: who outside the tree changes or refuses requests, as `MutatingWebhookConfiguration`s and
//! `ValidatingWebhookConfiguration`s say (`k8s.io/apiserver/pkg/admission/plugin/webhook`).

mod call;
mod mutating;
mod review;
#[cfg(test)]
mod tests;
mod validating;

pub use mutating::MutatingWebhooks;
pub use validating::ValidatingWebhooks;

use super::Attributes;
use super::expression::{Conditions, Input};
use super::matching::{Criteria, Matched};
use super::request::Request;
use crate::authz::Authorizer;
use crate::cluster::{Cluster, resource_of};
use gantry_api::k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use gantry_api::kind::Kind;
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Time a webhook has that does not say.
const TIMEOUT_SECONDS: i32 = 10;

/// A webhook of either sort, ready to be asked.
pub struct Hook {
    name: String,
    configuration: String,
    /// Tells it from all others of its sort.
    id: String,
    criteria: Criteria,
    conditions: Conditions,
    /// Whether a failed call counts as consent.
    ignore_failures: bool,
    side_effects: String,
    review_versions: Vec<String>,
    client: WebhookClientConfig,
    timeout: Duration,
    /// Whether it wants to see what came after it.
    again_if_needed: bool,
}

/// Configurations of one sort.
trait Configuration: Kind {
    fn hooks(&self) -> Vec<Hook>;
}

macro_rules! hooks {
    ($configuration:expr, $again:expr) => {{
        let mut seen = HashMap::<&str, usize>::new();
        let configuration = $configuration.metadata.name();
        $configuration
            .webhooks
            .iter()
            .flatten()
            .map(|h| {
                let nth = seen.entry(&h.name).or_default();
                let id = format!("{configuration}/{}/{nth}", h.name);
                *nth += 1;
                let seconds = h.timeout_seconds.unwrap_or(TIMEOUT_SECONDS);
                Hook {
                    name: h.name.clone(),
                    configuration: configuration.to_owned(),
                    id,
                    criteria: Criteria::of_webhook(
                        h.rules.as_ref(),
                        h.match_policy.as_deref(),
                        h.namespace_selector.as_ref(),
                        h.object_selector.as_ref(),
                    ),
                    conditions: Conditions::compile(h.match_conditions.as_deref().unwrap_or_default(), false),
                    ignore_failures: h.failure_policy.as_deref() == Some("Ignore"),
                    side_effects: h.side_effects.clone(),
                    review_versions: h.admission_review_versions.clone(),
                    client: h.client_config.clone(),
                    timeout: Duration::from_secs(u64::try_from(seconds).unwrap_or_default()),
                    again_if_needed: $again(h),
                }
            })
            .collect()
    }};
}

impl Configuration for MutatingWebhookConfiguration {
    fn hooks(&self) -> Vec<Hook> {
        hooks!(self, |h: &gantry_api::k8s_openapi::api::admissionregistration::v1::MutatingWebhook| h
            .reinvocation_policy
            .as_deref()
            == Some("IfNeeded"))
    }
}

impl Configuration for ValidatingWebhookConfiguration {
    fn hooks(&self) -> Vec<Hook> {
        hooks!(self, |_| false)
    }
}

/// The webhooks of all configurations of a sort by the configurations' names, read anew when one of those changes.
#[derive(Default)]
struct Source(Mutex<Option<(u64, Arc<Vec<Hook>>)>>);

impl Source {
    async fn hooks<C: Configuration>(&self, cluster: &Cluster) -> Result<Arc<Vec<Hook>>, ApiError> {
        let generation = cluster.objects.generation(resource_of::<C>());
        if let Some((at, hooks)) = self.0.lock().as_ref().filter(|(at, _)| *at == generation) {
            tracing::trace!(generation = at, "webhooks are known");
            return Ok(hooks.clone());
        }
        let mut all: Vec<C> = cluster.list("").await?;
        all.sort_by(|a, b| Kind::meta(a).name().cmp(Kind::meta(b).name()));
        let hooks: Arc<Vec<Hook>> = Arc::new(all.iter().flat_map(Configuration::hooks).collect());
        *self.0.lock() = Some((generation, hooks.clone()));
        Ok(hooks)
    }
}

/// Whether a request is of the objects that configure admission. Those are never reviewed, or a broken webhook could
/// not be repaired.
#[must_use]
pub fn is_exempt(a: &Attributes<'_>) -> bool {
    let info = a.resource.info();
    info.group == "admissionregistration.k8s.io"
        && matches!(
            info.kind,
            "ValidatingWebhookConfiguration"
                | "MutatingWebhookConfiguration"
                | "ValidatingAdmissionPolicy"
                | "ValidatingAdmissionPolicyBinding"
                | "MutatingAdmissionPolicy"
                | "MutatingAdmissionPolicyBinding"
        )
}

impl Hook {
    /// Whether the webhook is to be asked, and about what.
    async fn wants(
        &self,
        a: &Attributes<'_>,
        cluster: &Cluster,
        authorizer: &Arc<dyn Authorizer>,
    ) -> Result<Option<(Matched, Request)>, ApiError> {
        let Some(matched) = self.criteria.matches(a, cluster).await? else { return Ok(None) };
        let request = Request::of(a, matched.equivalent, cluster).await?;
        if !self.conditions.is_empty() {
            let input = Input::new(&request).with_authorizer(a, authorizer);
            match self.conditions.hold(&input, self.ignore_failures) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(why) => {
                    let info = a.resource.info();
                    return Err(ApiError::forbidden(info.group, info.plural, a.name, &why));
                }
            }
        }
        Ok(Some((matched, request)))
    }
}

fn timed_out() -> ApiError {
    ApiError::new(504, "Timeout", "Timeout: request did not complete within requested timeout")
}
