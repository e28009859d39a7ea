//! Validating webhooks: asked all at once about the object as it will be stored.

use super::review;
use super::{Source, is_exempt, timed_out};
use crate::admission::measured::{Answer, Measured, Step};
use crate::admission::{Attributes, ValidatingPlugin};
use crate::audit::{self, Part};
use crate::authz::Authorizer;
use crate::cluster::Cluster;
use crate::webhook_client::WebhookClient;
use async_trait::async_trait;
use futures::future::join_all;
use gantry_api::k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use gantry_api::meta::status::ApiError;
use std::sync::Arc;
use tokio::time::Instant;

/// The plugin.
pub struct ValidatingWebhooks {
    source: Source,
    client: WebhookClient,
    authorizer: Arc<dyn Authorizer>,
    measured: Arc<Measured>,
}

impl ValidatingWebhooks {
    /// The plugin; match conditions may ask `authorizer`.
    #[must_use]
    pub fn new(authorizer: Arc<dyn Authorizer>, measured: Arc<Measured>) -> Self {
        Self { source: Source::default(), client: WebhookClient::default(), authorizer, measured }
    }
}

#[async_trait]
impl ValidatingPlugin for ValidatingWebhooks {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionWebhook"
    }

    async fn validate(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        let hooks = self.source.hooks::<ValidatingWebhookConfiguration>(cluster).await?;
        if hooks.is_empty() || is_exempt(a) {
            return Ok(());
        }
        let mut wanted = Vec::new();
        for hook in hooks.iter() {
            if let Some((_, request)) = hook.wants(a, cluster, &self.authorizer).await? {
                wanted.push((hook, request));
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        if Instant::now() >= a.rounds.deadline {
            return Err(timed_out());
        }
        let seen: &Attributes<'_> = a;
        let calls = wanted.iter().map(|(hook, request)| async move {
            let began = Instant::now();
            (hook.ask(seen, request, false, &self.client, cluster).await, began.elapsed())
        });
        let answers = audit::timed(Part::ValidatingWebhooks, join_all(calls)).await;
        let mut first = Ok(());
        for (i, ((hook, _), (answer, took))) in wanted.iter().zip(answers).enumerate() {
            let outcome = match answer.map_err(|failure| (hook.answered(&failure), failure)) {
                Ok(answer) => {
                    a.warnings.extend(answer.warnings);
                    let refusal = (!answer.allowed).then(|| review::refusal(&hook.name, answer.status));
                    let answer = refusal.as_ref().map_or(Answer::Allowed, |e| Answer::Refused(e.code));
                    self.measured.webhook(&hook.name, Step::Validate, a, answer, took);
                    refusal.map_or(Ok(()), Err)
                }
                Err((answer, failure)) => {
                    self.measured.webhook(&hook.name, Step::Validate, a, answer, took);
                    let note = format!("failed-open.validating.webhook.admission.k8s.io/round_0_index_{i}");
                    hook.settle(a, failure, &note)
                }
            };
            // Upstream answers with the first one, too.
            first = first.and(outcome);
        }
        first
    }
}
