//! Rules for how objects are converted between the versions of a custom resource.

use crate::meta::field::{ErrorList, Path};
use crate::meta::{names, webhook};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceConversion;
use serde_json::json;

const STRATEGIES: &[&str] = &["None", "Webhook"];
const REVIEW_VERSIONS: &[&str] = &["v1", "v1beta1"];

/// Whether a known version is among those a webhook reads, or none is named.
pub(super) fn knows_review_version(c: Option<&CustomResourceConversion>) -> bool {
    let versions = c.and_then(|c| c.webhook.as_ref()).map(|w| w.conversion_review_versions.as_slice());
    versions.is_none_or(|v| v.is_empty() || v.iter().any(|v| REVIEW_VERSIONS.contains(&v.as_str())))
}

fn validate_review_versions(versions: &[String], known: bool, path: &Path, errors: &mut ErrorList) {
    if versions.is_empty() {
        return errors.required(path, "");
    }
    for (i, v) in versions.iter().enumerate() {
        let path = path.index(i);
        if versions[..i].contains(v) {
            errors.invalid(&path, v.as_str(), "duplicate version");
            continue;
        }
        names::push_invalid(errors, &path, v, &names::dns1035_label(v, false));
    }
    if known && !versions.iter().any(|v| REVIEW_VERSIONS.contains(&v.as_str())) {
        let detail = format!("must include at least one of {}", REVIEW_VERSIONS.join(", "));
        errors.invalid(path, json!(versions), &detail);
    }
}

/// Adds the errors of a conversion; `known` asks for a review version this server speaks.
pub(super) fn validate_conversion(c: &CustomResourceConversion, known: bool, path: &Path, errors: &mut ErrorList) {
    let at = path.child("strategy");
    if c.strategy.is_empty() {
        errors.required(&at, "");
    } else if !STRATEGIES.contains(&c.strategy.as_str()) {
        errors.not_supported(&at, &c.strategy, STRATEGIES);
    }
    let client = c.webhook.as_ref().and_then(|w| w.client_config.as_ref());
    let versions = c.webhook.as_ref().map(|w| w.conversion_review_versions.as_slice()).unwrap_or_default();
    let (at_client, at_versions) = (path.child("webhookClientConfig"), path.child("conversionReviewVersions"));
    if c.strategy != "Webhook" {
        let detail = "should not be set when strategy is not set to Webhook";
        if client.is_some() {
            errors.forbidden(&at_client, detail);
        }
        if !versions.is_empty() {
            errors.forbidden(&at_versions, detail);
        }
        return;
    }
    match client.map(|c| (&c.url, &c.service)) {
        None => errors.required(&at_client, "required when strategy is set to Webhook"),
        Some((Some(url), None)) => webhook::validate_url(url, &at_client.child("url"), errors),
        Some((None, Some(s))) => {
            let (path, port) = (at_client.child("service"), s.port.unwrap_or(443));
            webhook::validate_service(&s.name, &s.namespace, s.path.as_deref(), port, &path, errors);
        }
        Some(_) => errors.required(&at_client, "exactly one of url or service is required"),
    }
    validate_review_versions(versions, known, &at_versions, errors);
}
