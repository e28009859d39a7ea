//! Mutating webhooks: asked one after the other, each sees what the ones before it made of the object.

use super::call::Failure;
use super::review::{self, Patch};
use super::{Hook, Source, is_exempt};
use crate::admission::measured::{Answer, Measured, Step};
use crate::admission::request::{Request, take_back};
use crate::admission::{Attributes, MutatingPlugin};
use crate::audit::{self, Part, policy::Level};
use crate::authz::Authorizer;
use crate::cluster::Cluster;
use crate::webhook_client::WebhookClient;
use async_trait::async_trait;
use gantry_api::k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use gantry_api::kind::{Object, Resource};
use gantry_api::meta::status::ApiError;
use gantry_schema::patch::{self, PatchError};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::time::Instant;

/// The plugin.
pub struct MutatingWebhooks {
    source: Source,
    client: WebhookClient,
    authorizer: Arc<dyn Authorizer>,
    measured: Arc<Measured>,
}

impl MutatingWebhooks {
    /// The plugin; match conditions may ask `authorizer`.
    #[must_use]
    pub fn new(authorizer: Arc<dyn Authorizer>, measured: Arc<Measured>) -> Self {
        Self { source: Source::default(), client: WebhookClient::default(), authorizer, measured }
    }

    /// Asks one webhook and applies its patch. Whether that changed the object.
    async fn call(
        &self,
        hook: &Hook,
        a: &mut Attributes<'_>,
        equivalent: Option<&'static dyn Resource>,
        request: &Request,
        place: &str,
        cluster: &Cluster,
    ) -> Result<bool, Failure> {
        let answer = hook.ask(a, request, true, &self.client, cluster).await?;
        a.warnings.extend(answer.warnings);
        if !answer.allowed {
            return Err(review::refusal(&hook.name, answer.status).into());
        }
        let Some(patch) = answer.patch else { return Ok(false) };
        let Some(changed) = patched(hook, a, request, &patch)? else { return Ok(false) };
        let note = json!({"configuration": hook.configuration, "webhook": hook.name,
            "patch": serde_json::from_slice::<Value>(&patch.bytes).unwrap_or_default(), "patchType": "JSONPatch"});
        let annotation = format!("patch.webhook.admission.k8s.io/{place}");
        audit::annotate_at(Level::Request, &annotation, &note.to_string());
        Ok(take_back(a, equivalent, changed, cluster).await?)
    }
}

/// The object after the patch; None where the patch does nothing.
fn patched(hook: &Hook, a: &Attributes<'_>, request: &Request, patch: &Patch) -> Result<Option<Value>, Failure> {
    let failed = |why: String| Failure::Call(format!("failed calling webhook {:?}: {why}", hook.name));
    let operations: Value = serde_json::from_slice(&patch.bytes)
        .map_err(|e| failed(format!("received undecodable patch in webhook response: {e}")))?;
    let Some(operations) = operations.as_array() else {
        let why = "json: cannot unmarshal object into Go value of type jsonpatch.Patch";
        return Err(failed(format!("received undecodable patch in webhook response: {why}")));
    };
    if operations.is_empty() {
        return Ok(None);
    }
    if a.object.is_none() {
        let why = "attempted to modify the object, which is not supported for this operation";
        return Err(ApiError::internal(format!("admission webhook {:?} {why}", hook.name)).into());
    }
    if patch.kind != "JSONPatch" {
        return Err(failed(format!("unsupported patch type {:?}", patch.kind)));
    }
    match patch::json_patch(&request.object, &patch.bytes) {
        Ok(patched) => Ok(Some(patched.value)),
        Err(PatchError::Rejected { why }) => Err(ApiError::internal(why).into()),
        Err(e) => Err(ApiError::internal(e).into()),
    }
}

#[async_trait]
impl MutatingPlugin for MutatingWebhooks {
    fn name(&self) -> &'static str {
        "MutatingAdmissionWebhook"
    }

    async fn admit(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        let hooks = self.source.hooks::<MutatingWebhookConfiguration>(cluster).await?;
        if hooks.is_empty() || is_exempt(a) {
            return Ok(());
        }
        let object = |a: &Attributes<'_>| a.object.as_deref().map(Object::to_value).unwrap_or_default();
        if a.rounds.again {
            let now = object(a);
            a.rounds.webhooks.begin_again(&now);
        }
        for (i, hook) in hooks.iter().enumerate() {
            // One that was not called in the first round is not called in the second.
            if a.rounds.again && !a.rounds.webhooks.is_due(&hook.id) {
                continue;
            }
            let Some((matched, request)) = hook.wants(a, cluster, &self.authorizer).await? else { continue };
            let place = format!("round_{}_index_{i}", u8::from(a.rounds.again));
            let call = self.call(hook, a, matched.equivalent, &request, &place, cluster);
            let began = Instant::now();
            let outcome = audit::timed(Part::MutatingWebhooks, call).await;
            let answer = outcome.as_ref().err().map_or(Answer::Allowed, |failure| hook.answered(failure));
            self.measured.webhook(&hook.name, Step::Admit, a, answer, began.elapsed());
            let mutated = matches!(outcome, Ok(true));
            let note = json!({"configuration": hook.configuration, "webhook": hook.name, "mutated": mutated});
            audit::annotate(&format!("mutation.webhook.admission.k8s.io/{place}"), &note.to_string());
            if mutated {
                a.rounds.webhooks.changed();
                a.rounds.wanted = true;
            }
            if hook.again_if_needed {
                a.rounds.webhooks.called(&hook.id);
            }
            if let Err(failure) = outcome {
                hook.settle(a, failure, &format!("failed-open.mutation.webhook.admission.k8s.io/{place}"))?;
            }
        }
        let now = object(a);
        a.rounds.webhooks.end(now);
        Ok(())
    }
}
