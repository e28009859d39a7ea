//! The `AdmissionReview` a webhook is sent, and what it answers (`admission.k8s.io`, versions v1 and v1beta1).

use crate::admission::request::Request;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use gantry_api::meta::object::split_api_version;
use gantry_api::meta::status::ApiError;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A version of the review.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    /// The same on the wire, but answers are not looked at as closely.
    V1Beta1,
}

impl Version {
    /// The first version that both sides know.
    pub(super) fn common(accepted: &[String]) -> Option<Self> {
        accepted.iter().find_map(|v| match v.as_str() {
            "v1" => Some(Self::V1),
            "v1beta1" => Some(Self::V1Beta1),
            _ => None,
        })
    }

    fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "admission.k8s.io/v1",
            Self::V1Beta1 => "admission.k8s.io/v1beta1",
        }
    }
}

/// The body of the call.
pub(super) fn body(version: Version, uid: &str, request: &Request) -> Vec<u8> {
    let mut whole = request.head.clone();
    whole["uid"] = uid.into();
    whole["object"] = request.object.clone();
    whole["oldObject"] = request.old_object.clone();
    let review = json!({"kind": "AdmissionReview", "apiVersion": version.api_version(), "request": whole});
    review.to_string().into_bytes()
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Review {
    #[serde(rename = "apiVersion")]
    api_version: Option<String>,
    kind: Option<String>,
    response: Option<Response>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Response {
    uid: Option<String>,
    allowed: Option<bool>,
    status: Option<Status>,
    patch: Option<String>,
    patch_type: Option<String>,
    audit_annotations: Option<BTreeMap<String, String>>,
    warnings: Option<Vec<String>>,
}

/// What a webhook said.
#[derive(Debug)]
pub(super) struct Answer {
    pub allowed: bool,
    /// Why not.
    pub status: Option<Status>,
    /// A JSON patch of the object; only of mutating webhooks.
    pub patch: Option<Patch>,
    pub audit_annotations: BTreeMap<String, String>,
    pub warnings: Vec<String>,
}

/// A patch and what sort of one it is said to be.
#[derive(Debug)]
pub(super) struct Patch {
    pub kind: String,
    pub bytes: Vec<u8>,
}

/// Why an answer is none.
#[derive(Debug)]
pub(super) enum Malformed {
    /// It cannot be read at all.
    Undecodable(String),
    /// It says what an answer may not say.
    Invalid(String),
}

/// Reads the answer to the review `uid`.
pub(super) fn answer(version: Version, uid: &str, mutating: bool, body: &[u8]) -> Result<Answer, Malformed> {
    let undecodable = |e: &dyn std::fmt::Display| Malformed::Undecodable(e.to_string());
    let value: Value = serde_json::from_slice(body)
        .map_err(|e| undecodable(&format!("couldn't get version/kind; json parse error: {e}")))?;
    let review: Review = serde_json::from_value(value).map_err(|e| undecodable(&e))?;
    let r = review.response.ok_or_else(|| Malformed::Invalid("webhook response was absent".into()))?;
    let bytes = match r.patch.as_deref() {
        None | Some("") => Vec::new(),
        Some(text) => STANDARD.decode(text).map_err(|e| undecodable(&format!("illegal base64 data: {e}")))?,
    };
    let mut patch_type = r.patch_type;
    if version == Version::V1 {
        let given = r.uid.unwrap_or_default();
        if given != uid {
            return Err(Malformed::Invalid(format!("expected response.uid={uid:?}, got {given:?}")));
        }
        let api_version = review.api_version.unwrap_or_default();
        let kind = review.kind.unwrap_or_default();
        if (api_version.as_str(), kind.as_str()) != (version.api_version(), "AdmissionReview") {
            let (group, v) = split_api_version(&api_version);
            return Err(Malformed::Invalid(format!(
                "expected webhook response of {}, Kind=AdmissionReview, got {group}/{v}, Kind={kind}",
                version.api_version()
            )));
        }
        let wrong = match (mutating, bytes.is_empty(), patch_type.as_deref()) {
            (true, false, None) => Some("webhook returned response.patch but not response.patchType"),
            (true, true, Some(_)) => Some("webhook returned response.patchType but not response.patch"),
            (true, _, Some("")) => Some("webhook returned invalid response.patchType of \"\""),
            (false, false, _) => Some("validating webhook may not return response.patch"),
            (false, true, Some(_)) => Some("validating webhook may not return response.patchType"),
            _ => None,
        };
        if let Some(wrong) = wrong {
            return Err(Malformed::Invalid(wrong.into()));
        }
    } else {
        patch_type = Some("JSONPatch".into());
    }
    let patch = (mutating && !bytes.is_empty()).then(|| Patch { kind: patch_type.unwrap_or_default(), bytes });
    Ok(Answer {
        allowed: r.allowed.unwrap_or_default(),
        status: r.status,
        patch,
        audit_annotations: r.audit_annotations.unwrap_or_default(),
        warnings: r.warnings.unwrap_or_default(),
    })
}

/// What the client is told of a refusal: the webhook's own status, with a message that says who refused.
pub(super) fn refusal(webhook: &str, status: Option<Status>) -> ApiError {
    let mut status = status.unwrap_or_default();
    let denied = format!("admission webhook {webhook:?} denied the request");
    let said = |s: &Option<String>| s.clone().filter(|s| !s.is_empty());
    status.message = Some(match said(&status.message).or_else(|| said(&status.reason)) {
        Some(why) => format!("{denied}: {why}"),
        None => format!("{denied} without explanation"),
    });
    // A refusal is a failure whatever the webhook calls it.
    status.code = Some(status.code.unwrap_or_default().max(400));
    ApiError::from_status(400, status)
}
