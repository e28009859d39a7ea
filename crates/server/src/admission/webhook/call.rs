//! One call of a webhook, and what its failures mean.

use super::Hook;
use super::review::{self, Answer, Malformed, Version};
use crate::admission::Attributes;
use crate::admission::measured;
use crate::admission::request::Request;
use crate::audit;
use crate::cluster::Cluster;
use crate::webhook_client::{Destination, WebhookClient};
use gantry_api::meta::status::ApiError;
use tokio::time::Instant;

/// Why a webhook gave no answer that counts.
pub(super) enum Failure {
    /// The webhook could not be asked, or answered nonsense: its failure policy decides.
    Call(String),
    /// The request is refused whatever the policy.
    Refused(Box<ApiError>),
}

impl From<ApiError> for Failure {
    fn from(e: ApiError) -> Self {
        Failure::Refused(Box::new(e))
    }
}

impl Hook {
    /// Asks the webhook.
    pub(super) async fn ask(
        &self,
        a: &Attributes<'_>,
        request: &Request,
        mutating: bool,
        client: &WebhookClient,
        cluster: &Cluster,
    ) -> Result<Answer, Failure> {
        if a.dry_run && !matches!(self.side_effects.as_str(), "None" | "NoneOnDryRun") {
            let why = format!("admission webhook {:?} does not support dry run", self.name);
            return Err(ApiError::bad_request(why).into());
        }
        let failed = |why: String| Failure::Call(format!("failed calling webhook {:?}: {why}", self.name));
        let version = Version::common(&self.review_versions).ok_or_else(|| {
            let why = "webhook does not accept known AdmissionReview versions (v1, v1beta1)";
            failed(format!("could not create admission objects: {why}"))
        })?;
        let service = self.client.service.as_ref().map(|s| Destination::Service {
            namespace: &s.namespace,
            name: &s.name,
            path: s.path.as_deref().unwrap_or_default(),
            port: s.port.unwrap_or(443),
        });
        let to = service.or_else(|| self.client.url.as_deref().map(Destination::Url)).ok_or_else(|| {
            failed("could not get REST client: webhook configuration must have either service or URL".into())
        })?;
        let ca = self.client.ca_bundle.as_ref().map(|b| b.0.as_slice()).unwrap_or_default();
        let uid = cluster.entropy.uuid();
        let body = review::body(version, &uid, request);
        let left = a.rounds.deadline.saturating_duration_since(Instant::now());
        let body = client
            .post(cluster, to, ca, body.into(), self.timeout.min(left))
            .await
            .map_err(|e| failed(format!("failed to call webhook: {e}")))?;
        let answer = review::answer(version, &uid, mutating, &body).map_err(|e| match e {
            Malformed::Undecodable(why) => failed(format!("failed to call webhook: {why}")),
            Malformed::Invalid(why) => failed(format!("received invalid webhook response: {why}")),
        })?;
        for (key, value) in &answer.audit_annotations {
            audit::annotate(&format!("{}/{key}", self.name), value);
        }
        Ok(answer)
    }

    /// What a failure counts as.
    pub(super) fn answered(&self, failure: &Failure) -> measured::Answer {
        match failure {
            Failure::Call(_) => measured::Answer::Failed { open: self.ignore_failures },
            Failure::Refused(e) if e.reason == "InternalError" => measured::Answer::Unusable,
            Failure::Refused(e) => measured::Answer::Refused(e.code),
        }
    }

    /// What a failed call comes to: consent, or the failure the client is told. Consent is noted in the audit log under
    /// `annotation`.
    pub(super) fn settle(&self, a: &Attributes<'_>, failure: Failure, annotation: &str) -> Result<(), ApiError> {
        match failure {
            Failure::Refused(e) => Err(*e),
            Failure::Call(why) if self.ignore_failures => {
                tracing::warn!(configuration = self.configuration, why, "failing open");
                audit::annotate(annotation, &self.name);
                if Instant::now() >= a.rounds.deadline { Err(super::timed_out()) } else { Ok(()) }
            }
            Failure::Call(why) => {
                tracing::warn!(configuration = self.configuration, why, "failing closed");
                Err(ApiError::internal(why))
            }
        }
    }
}
