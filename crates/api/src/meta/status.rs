//! `metav1.Status` failures with upstream's codes, reasons and messages.

use crate::meta::field::ErrorList;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Status, StatusCause, StatusDetails};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// An API failure: the HTTP code and the `Status` body clients read. Also what the client crate reports.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable reason, e.g. `NotFound`.
    pub reason: &'static str,
    /// The sentence a person reads.
    pub message: String,
    /// Group, kind (or resource), name, causes, retry-after.
    pub details: Option<Box<StatusDetails>>,
    /// What there was to warn of before it failed: texts for `Warning` headers.
    pub warnings: Vec<String>,
}

/// Every reason upstream defines, so that parsed ones can be held as static text.
const REASONS: &[&str] = &[
    "Unauthorized",
    "Forbidden",
    "NotFound",
    "AlreadyExists",
    "Conflict",
    "Gone",
    "Invalid",
    "ServerTimeout",
    "StoreReadError",
    "Timeout",
    "TooManyRequests",
    "BadRequest",
    "MethodNotAllowed",
    "NotAcceptable",
    "RequestEntityTooLarge",
    "UnsupportedMediaType",
    "InternalError",
    "Expired",
    "ServiceUnavailable",
];

/// Most reasons of others (admission webhooks may give any) that are kept as static text; later ones are dropped.
const OTHER_REASONS_MAX: usize = 1024;
/// Longest such reason in bytes.
const OTHER_REASON_BYTES_MAX: usize = 1024;

/// The reason as static text.
fn static_reason(reason: &str) -> &'static str {
    static OTHERS: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    if let Some(known) = REASONS.iter().copied().find(|k| *k == reason) {
        return known;
    }
    let mut others = OTHERS.lock().unwrap_or_else(PoisonError::into_inner);
    match others.get(reason) {
        Some(known) => known,
        None if others.len() < OTHER_REASONS_MAX && reason.len() <= OTHER_REASON_BYTES_MAX => {
            let kept: &'static str = Box::leak(reason.to_owned().into_boxed_str());
            others.insert(kept);
            kept
        }
        None => "",
    }
}

impl ApiError {
    /// A failure without details.
    #[must_use]
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None, warnings: Vec::new() }
    }

    /// The same failure, with what there was to warn of before it.
    #[must_use]
    pub fn after_warnings(mut self, warnings: Vec<String>) -> Self {
        self.warnings = warnings;
        self
    }

    fn of(code: u16, reason: &'static str, group: &str, kind: &str, name: &str, message: String) -> Self {
        let some = |s: &str| (!s.is_empty()).then(|| s.to_owned());
        let details = StatusDetails { group: some(group), kind: some(kind), name: some(name), ..Default::default() };
        Self { code, reason, message, details: Some(Box::new(details)), warnings: Vec::new() }
    }

    fn qualified(group: &str, resource: &str) -> String {
        if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
    }

    /// 404: `pods "x" not found`.
    #[must_use]
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let m = format!("{} {name:?} not found", Self::qualified(group, resource));
        Self::of(404, "NotFound", group, resource, name, m)
    }

    /// 404 for a path nothing serves.
    #[must_use]
    pub fn no_such_path() -> Self {
        Self::of(404, "NotFound", "", "", "", "the server could not find the requested resource".into())
    }

    /// 409: `pods "x" already exists`.
    #[must_use]
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let m = format!("{} {name:?} already exists", Self::qualified(group, resource));
        Self::of(409, "AlreadyExists", group, resource, name, m)
    }

    /// 409: `Operation cannot be fulfilled on pods "x": why`.
    #[must_use]
    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let m = format!("Operation cannot be fulfilled on {} {name:?}: {why}", Self::qualified(group, resource));
        Self::of(409, "Conflict", group, resource, name, m)
    }

    /// 409 of an update whose resourceVersion is old.
    #[must_use]
    pub fn modified(group: &str, resource: &str, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(group, resource, name, why)
    }

    /// 403: `pods "x" is forbidden: why`.
    #[must_use]
    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let q = Self::qualified(group, resource);
        let m = match (resource.is_empty(), name.is_empty()) {
            (true, true) => format!("forbidden: {why}"),
            (true, false) => format!("forbidden: {name:?}: {why}"),
            (false, true) => format!("{q} is forbidden: {why}"),
            (false, false) => format!("{q} {name:?} is forbidden: {why}"),
        };
        Self::of(403, "Forbidden", group, resource, name, m)
    }

    /// 422: `Pod "x" is invalid: …` with a cause per field error. `kind` is the kind, not the resource.
    #[must_use]
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &ErrorList) -> Self {
        let q = Self::qualified(group, kind);
        let texts: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        let mut seen = Vec::new();
        for t in &texts {
            if !seen.contains(t) {
                seen.push(t.clone());
            }
        }
        let body = match seen.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let mut e = Self::of(422, "Invalid", group, kind, name, format!("{q} {name:?} is invalid: {body}"));
        if let Some(d) = &mut e.details {
            d.causes = Some(
                errors
                    .0
                    .iter()
                    .map(|e| StatusCause {
                        reason: Some(e.r#type.reason().to_owned()),
                        message: Some(e.body.clone()),
                        field: Some(e.field.clone()),
                    })
                    .collect(),
            );
        }
        e
    }

    /// 400.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401.
    #[must_use]
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 405 of a path that does not take the method.
    #[must_use]
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::of(405, "MethodNotAllowed", "", "", "", message.into())
    }

    /// 405 of a kind that does not know the action.
    #[must_use]
    pub fn method_not_supported(group: &str, resource: &str, action: &str) -> Self {
        let m = format!("{action} is not supported on resources of kind \"{}\"", Self::qualified(group, resource));
        Self::of(405, "MethodNotAllowed", group, resource, "", m)
    }

    /// 410: the resourceVersion asked for is no longer held.
    #[must_use]
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 500.
    #[must_use]
    pub fn internal(err: impl fmt::Display) -> Self {
        let mut e = Self::of(500, "InternalError", "", "", "", format!("Internal error occurred: {err}"));
        if let Some(d) = &mut e.details {
            d.causes = Some(vec![StatusCause { message: Some(err.to_string()), ..Default::default() }]);
        }
        e
    }

    /// 429 with seconds to wait.
    #[must_use]
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: i32) -> Self {
        let mut e = Self::of(429, "TooManyRequests", "", "", "", message.into());
        if let Some(d) = &mut e.details {
            d.retry_after_seconds = Some(retry_after_seconds);
        }
        e
    }

    /// 503.
    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// The body clients read.
    #[must_use]
    pub fn to_status(&self) -> Status {
        Status {
            code: Some(i32::from(self.code)),
            status: Some("Failure".into()),
            reason: (!self.reason.is_empty()).then(|| self.reason.to_owned()),
            message: Some(self.message.clone()),
            details: self.details.as_deref().cloned(),
            ..Default::default()
        }
    }

    /// The body as JSON text.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(&self.to_status()).expect("Status has string keys only")
    }

    /// Reads an answer that failed; a body that is no `Status` becomes the message.
    #[must_use]
    pub fn from_response(code: u16, body: &[u8]) -> Self {
        match serde_json::from_slice::<Status>(body) {
            Ok(s) if s.status.is_some() || s.reason.is_some() => Self::from_status(code, s),
            _ => Self::new(code, "", String::from_utf8_lossy(body).into_owned()),
        }
    }

    /// From a decoded `Status`, as watches carry in ERROR events.
    #[must_use]
    pub fn from_status(code: u16, s: Status) -> Self {
        let code = s.code.and_then(|c| u16::try_from(c).ok()).unwrap_or(code);
        let reason = s.reason.as_deref().map_or("", static_reason);
        let (message, details) = (s.message.unwrap_or_default(), s.details.map(Box::new));
        Self { code, reason, message, details, warnings: Vec::new() }
    }

    /// Whether the reason is `reason`.
    #[must_use]
    pub fn is(&self, reason: &str) -> bool {
        self.reason == reason
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}
