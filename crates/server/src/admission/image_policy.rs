//! ImagePolicyWebhook: a webhook is asked whether the images of a pod may run (`imagepolicy.k8s.io/v1alpha1` ImageReview).

use super::{Attributes, Operation, ValidatingPlugin};
use crate::audit;
use crate::cluster::Cluster;
use crate::review_hook::{HookEndpoint, Remembered, ReviewHook};
use async_trait::async_trait;
use gantry_api::k8s_openapi::api::core::v1::{Container, Pod};
use gantry_api::meta::status::ApiError;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

/// How long the webhook may take, with all attempts.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Answers that are remembered.
const REMEMBERED_MAX: usize = 1024;
/// Before the keys of what the webhook has to say to the audit log.
const AUDIT_PREFIX: &str = "imagepolicywebhook.image-policy.k8s.io/";
/// Marks pods that were let through because the webhook did not answer.
const FAILED_OPEN: &str = "alpha.image-policy.k8s.io/failed-open";
/// Only annotations whose key has this in it are shown to the webhook.
const SHOWN_ANNOTATIONS: &str = ".image-policy.k8s.io/";

/// Which webhook is asked, and what comes of its answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImagePolicy {
    /// Where it is.
    pub endpoint: HookEndpoint,
    /// How long consent is remembered.
    pub allow_for: Duration,
    /// How long refusals are remembered.
    pub deny_for: Duration,
    /// The first pause before it is asked again.
    pub retry_after: Duration,
    /// Whether pods may run where it does not answer.
    pub default_allow: bool,
}

/// The configuration as it is written: times are numbers, 0 for the default and -1 for none.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "imagePolicy", default)]
    image_policy: Fields,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct Fields {
    kube_config_file: String,
    #[serde(rename = "allowTTL")]
    allow_ttl: i64,
    #[serde(rename = "denyTTL")]
    deny_ttl: i64,
    retry_backoff: i64,
    default_allow: bool,
}

/// A range of times in milliseconds, and the default.
struct Range {
    least: i64,
    most: i64,
    default: i64,
    /// Least and most as Go writes them.
    shown: (&'static str, &'static str),
}

const TTL_MOST: i64 = 30 * 60 * 1000;
const ALLOW: Range = Range { least: 1000, most: TTL_MOST, default: 5 * 60 * 1000, shown: ("1s", "30m0s") };
const DENY: Range = Range { default: 30 * 1000, ..ALLOW };
/// Upstream's least is a nanosecond, which no number of milliseconds is below.
const BACKOFF: Range = Range { least: 1, most: 5 * 60 * 1000, default: 500, shown: ("1ns", "5m0s") };

impl Range {
    fn read(&self, value: i64, unit: i64) -> Result<Duration, String> {
        let millis = match value {
            -1 => return Ok(Duration::ZERO),
            0 => self.default,
            value => value.saturating_mul(unit),
        };
        match u64::try_from(millis) {
            Ok(found) if millis >= self.least && millis <= self.most => Ok(Duration::from_millis(found)),
            _ => {
                let (least, most) = self.shown;
                let sign = if millis < 0 { "-" } else { "" };
                let found = audit::go_duration(Duration::from_millis(millis.unsigned_abs()));
                Err(format!("valid value is between {least} and {most}, got {sign}{found}"))
            }
        }
    }
}

impl ImagePolicy {
    /// Reads the plugin's configuration; `endpoint` reads the kubeconfig it names.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(
        mut document: Value,
        endpoint: &dyn Fn(&str) -> Result<HookEndpoint, String>,
    ) -> Result<Self, String> {
        if let Some(fields) = document.as_object_mut() {
            // The form without a type is older; both mean the same.
            let version = fields.remove("apiVersion").unwrap_or_default();
            let kind = fields.remove("kind").unwrap_or_default();
            let typed = (version.as_str(), kind.as_str());
            let known = (Some("imagepolicy.admission.k8s.io/v1alpha1"), Some("ImagePolicyWebhookConfiguration"));
            if typed != (None, None) && typed != known {
                return Err(format!("no kind {kind} is registered for version {version}"));
            }
        }
        let file: File = serde_json::from_value(document).map_err(|e| e.to_string())?;
        let fields = file.image_policy;
        let found = Self {
            retry_after: BACKOFF.read(fields.retry_backoff, 1)?,
            allow_for: ALLOW.read(fields.allow_ttl, 1000)?,
            deny_for: DENY.read(fields.deny_ttl, 1000)?,
            default_allow: fields.default_allow,
            endpoint: endpoint(&fields.kube_config_file)?,
        };
        ReviewHook::new(found.endpoint.clone())?;
        Ok(found)
    }
}

/// What the webhook answered.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ReviewStatus {
    allowed: bool,
    reason: String,
    audit_annotations: BTreeMap<String, String>,
}

/// The plugin.
pub(super) struct ImagePolicyWebhook {
    config: ImagePolicy,
    hook: Result<ReviewHook, String>,
    remembered: OnceLock<Remembered<ReviewStatus>>,
}

/// What is reviewed of a pod: all containers but ephemeral ones, which come by their own subresource.
fn spec(a: &Attributes<'_>, pod: &Pod) -> Value {
    let spec = pod.spec.clone().unwrap_or_default();
    let images: Vec<String> = if a.subresource.is_empty() {
        let image = |c: Container| c.image.unwrap_or_default();
        let init = spec.init_containers.into_iter().flatten();
        spec.containers.into_iter().chain(init).map(image).collect()
    } else {
        spec.ephemeral_containers.into_iter().flatten().map(|c| c.image.unwrap_or_default()).collect()
    };
    let containers: Vec<Value> =
        images.iter().map(|i| if i.is_empty() { json!({}) } else { json!({"image": i}) }).collect();
    let mut out = json!({ "containers": containers, "namespace": a.namespace });
    let annotations = pod.metadata.annotations.iter().flatten().filter(|(k, _)| k.contains(SHOWN_ANNOTATIONS));
    let annotations: BTreeMap<&String, &String> = annotations.collect();
    if !annotations.is_empty() {
        out["annotations"] = json!(annotations);
    }
    out
}

impl ImagePolicyWebhook {
    /// Where nobody says whom to ask, the plugin does not run.
    pub(super) fn new(config: Option<&ImagePolicy>) -> Self {
        let config = config.cloned().unwrap_or_default();
        let hook = ReviewHook::new(config.endpoint.clone()).map(|hook| hook.first_pause(config.retry_after));
        Self { config, hook, remembered: OnceLock::new() }
    }

    async fn ask(&self, spec: &Value) -> Result<ReviewStatus, String> {
        let review = json!({
            "kind": "ImageReview", "apiVersion": "imagepolicy.k8s.io/v1alpha1", "metadata": {},
            "spec": spec, "status": { "allowed": false },
        });
        let mut answer = self.hook.as_ref().map_err(Clone::clone)?.review(&review, ANSWER_WITHIN).await?;
        match answer.get_mut("status").map(Value::take) {
            None | Some(Value::Null) => Ok(ReviewStatus::default()),
            Some(status) => serde_json::from_value(status).map_err(|e| e.to_string()),
        }
    }

    /// The webhook did not answer.
    fn unanswered(&self, a: &mut Attributes<'_>, why: &str) -> Result<(), ApiError> {
        tracing::info!(why, "error contacting the image policy webhook");
        if !self.config.default_allow {
            return Err(a.forbidden(why));
        }
        audit::annotate(&format!("{AUDIT_PREFIX}failed-open"), "true");
        if let Some(pod) = a.object_as_mut::<Pod>() {
            pod.metadata.annotations.get_or_insert_default().insert(FAILED_OPEN.into(), "true".into());
        }
        Ok(())
    }
}

#[async_trait]
impl ValidatingPlugin for ImagePolicyWebhook {
    fn name(&self) -> &'static str {
        "ImagePolicyWebhook"
    }

    async fn validate(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        let of_pods = a.is("", "pods", "") || a.is("", "pods", "ephemeralcontainers");
        if !of_pods || !matches!(a.operation, Operation::Create | Operation::Update) {
            return Ok(());
        }
        let Some(pod) = a.object_as::<Pod>() else {
            let why = "Resource was marked with kind Pod but was unable to be converted";
            return Err(ApiError::bad_request(why));
        };
        let spec = spec(a, pod);
        let remembered = self.remembered.get_or_init(|| Remembered::new(cluster.clock, REMEMBERED_MAX));
        let key = spec.to_string().into_bytes();
        let status = match remembered.get(&key) {
            Some(known) => known,
            None => match self.ask(&spec).await {
                Ok(status) => {
                    let time = if status.allowed { self.config.allow_for } else { self.config.deny_for };
                    if !time.is_zero() {
                        remembered.put(key, status.clone(), time);
                    }
                    status
                }
                Err(why) => return self.unanswered(a, &why),
            },
        };
        for (key, value) in &status.audit_annotations {
            audit::annotate(&format!("{AUDIT_PREFIX}{key}"), value);
        }
        match (status.allowed, status.reason.as_str()) {
            (true, _) => Ok(()),
            (false, "") => Err(a.forbidden("one or more images rejected by webhook backend")),
            (false, reason) => {
                Err(a.forbidden(&format!("image policy webhook backend denied one or more images: {reason}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ImagePolicy, String> {
        let endpoint = |path: &str| match path {
            "hook.kubeconfig" => Ok(HookEndpoint { url: "https://127.0.0.1:1/".into(), ..HookEndpoint::default() }),
            other => Err(format!("{other:?} is not there")),
        };
        ImagePolicy::read(serde_saphyr::from_str(text).unwrap(), &endpoint)
    }

    #[test]
    fn times_have_units_defaults_and_bounds() {
        let of = |fields: &str| read(&format!("imagePolicy: {{kubeConfigFile: hook.kubeconfig{fields}}}"));
        let seconds = Duration::from_secs;
        let found = of("").unwrap();
        assert_eq!((found.allow_for, found.deny_for, found.default_allow), (seconds(300), seconds(30), false));
        assert_eq!(found.retry_after, Duration::from_millis(500));
        let found = of(", allowTTL: 50, denyTTL: -1, retryBackoff: 250, defaultAllow: true").unwrap();
        assert_eq!((found.allow_for, found.deny_for, found.default_allow), (seconds(50), Duration::ZERO, true));
        assert_eq!(found.retry_after, Duration::from_millis(250));
        let cases = [
            (", allowTTL: 1801", "valid value is between 1s and 30m0s, got 30m1s"),
            (", denyTTL: -2", "valid value is between 1s and 30m0s, got -2s"),
            (", retryBackoff: 300001", "valid value is between 1ns and 5m0s, got 5m0.001s"),
            (", other: 1", "unknown field `other`"),
        ];
        for (fields, want) in cases {
            let told = of(fields).unwrap_err();
            assert!(told.contains(want), "{told}");
        }
    }

    #[test]
    fn with_a_type_and_without() {
        let typed = "apiVersion: imagepolicy.admission.k8s.io/v1alpha1\nkind: ImagePolicyWebhookConfiguration\n";
        assert!(read(&format!("{typed}imagePolicy: {{kubeConfigFile: hook.kubeconfig}}")).is_ok());
        assert!(read("apiVersion: v1\nkind: Pod\nimagePolicy: {}").unwrap_err().contains("\"Pod\""));
        assert_eq!(read("imagePolicy: {}").unwrap_err(), "\"\" is not there");
    }
}
