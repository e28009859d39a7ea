//! `AuthorizationConfiguration` (`apiserver.config.k8s.io`): the authorizers in their order, and what is wrong with such a
//! document (`k8s.io/apiserver/pkg/apis/apiserver/validation`).

use super::webhook::compile;
use gantry_api::meta::field::{ErrorList, Path};
use gantry_api::meta::names;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeSet;
use std::time::Duration;

/// Authorizers there are. Only webhooks can be there more than once.
pub const TYPES: [&str; 6] = ["ABAC", "AlwaysAllow", "AlwaysDeny", "Node", "RBAC", WEBHOOK];
const WEBHOOK: &str = "Webhook";
const API_VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];
const CONDITIONS_MAX: usize = 64;
const TIMEOUT_MAX: Duration = Duration::from_secs(30);

/// The document.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationConfiguration {
    /// `apiserver.config.k8s.io/v1`; nothing where it is made of flags.
    #[serde(default)]
    pub api_version: String,
    /// Kind; nothing where it is made of flags.
    #[serde(default)]
    pub kind: String,
    /// The authorizers, asked in this order.
    #[serde(default)]
    pub authorizers: Vec<AuthorizerConfiguration>,
}

impl AuthorizationConfiguration {
    /// These authorizers, none of which is a webhook.
    #[must_use]
    pub fn of_modes(modes: &[&str]) -> Self {
        let authorizers = modes.iter().map(|mode| AuthorizerConfiguration {
            kind: (*mode).to_owned(),
            name: mode.to_lowercase(),
            webhook: None,
        });
        Self { authorizers: authorizers.collect(), ..Self::default() }
    }
}

/// An authorizer.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizerConfiguration {
    /// One of [`TYPES`].
    #[serde(default, rename = "type")]
    pub kind: String,
    /// Name.
    #[serde(default)]
    pub name: String,
    /// Where it is a webhook.
    #[serde(default)]
    pub webhook: Option<WebhookConfiguration>,
}

/// A webhook that authorizes.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WebhookConfiguration {
    /// How long an answer that allows is remembered.
    #[serde(default = "authorized_ttl", rename = "authorizedTTL", deserialize_with = "duration")]
    pub authorized_ttl: Duration,
    /// Whether it is.
    #[serde(default = "yes")]
    pub cache_authorized_requests: bool,
    /// How long an answer that does not allow is remembered.
    #[serde(default = "unauthorized_ttl", rename = "unauthorizedTTL", deserialize_with = "duration")]
    pub unauthorized_ttl: Duration,
    /// Whether it is.
    #[serde(default = "yes")]
    pub cache_unauthorized_requests: bool,
    /// How long it may take.
    #[serde(default, deserialize_with = "duration")]
    pub timeout: Duration,
    /// `v1` or `v1beta1`.
    #[serde(default)]
    pub subject_access_review_version: String,
    /// `v1`, where there are conditions.
    #[serde(default)]
    pub match_condition_subject_access_review_version: String,
    /// `NoOpinion` or `Deny`.
    #[serde(default)]
    pub failure_policy: String,
    /// Where it is.
    #[serde(default)]
    pub connection_info: ConnectionInfo,
    /// What must be true for it to be asked.
    #[serde(default)]
    pub match_conditions: Vec<MatchCondition>,
}

/// Where a webhook is.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConnectionInfo {
    /// `KubeConfigFile`.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// Absolute path of a kubeconfig.
    #[serde(default)]
    pub kube_config_file: Option<String>,
}

/// A condition.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MatchCondition {
    /// CEL over `request`, the specification of a SubjectAccessReview.
    #[serde(default)]
    pub expression: String,
}

const fn yes() -> bool {
    true
}

const fn authorized_ttl() -> Duration {
    Duration::from_secs(300)
}

const fn unauthorized_ttl() -> Duration {
    Duration::from_secs(30)
}

/// A length of time as Go writes it: `1h2m3.5s`, `300ms`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut seconds = 0.0_f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (unit, length) =
            [("ms", 1e-3), ("us", 1e-6), ("µs", 1e-6), ("ns", 1e-9), ("h", 3600.0), ("m", 60.0), ("s", 1.0)]
                .into_iter()
                .find(|(unit, _)| rest.starts_with(unit))?;
        seconds += number * length;
        rest = &rest[unit.len()..];
    }
    Duration::try_from_secs_f64(seconds).ok()
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).ok_or_else(|| serde::de::Error::custom(format!("time: invalid duration {text:?}")))
}

/// Reads and checks a document.
///
/// # Errors
/// What of it is wrong, all together.
pub fn parse(text: &str) -> Result<AuthorizationConfiguration, String> {
    let config: AuthorizationConfiguration =
        serde_saphyr::from_str(text).map_err(|e| format!("strict decoding error: {e}"))?;
    let version = config.api_version.strip_prefix("apiserver.config.k8s.io/").unwrap_or_default();
    if !API_VERSIONS.contains(&version) || config.kind != "AuthorizationConfiguration" {
        return Err(format!(
            "no kind {:?} is registered for version {:?}: expected AuthorizationConfiguration of apiserver.config.k8s.io/v1",
            config.kind, config.api_version
        ));
    }
    let errors = validate(&config);
    if errors.is_empty() {
        return Ok(config);
    }
    let all: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
    Err(if all.len() == 1 { all[0].clone() } else { format!("[{}]", all.join(", ")) })
}

fn validate(config: &AuthorizationConfiguration) -> ErrorList {
    let mut e = ErrorList::default();
    let root = Path::new("authorizers");
    if config.authorizers.is_empty() {
        e.required(&root, "at least one authorization mode must be defined");
    }
    let (mut kinds, mut all_names) = (BTreeSet::new(), BTreeSet::new());
    for (i, a) in config.authorizers.iter().enumerate() {
        let path = root.index(i);
        let kind = a.kind.as_str();
        let at = path.child("type");
        if kind.is_empty() {
            e.required(&at, "");
            continue;
        }
        if !TYPES.contains(&kind) {
            e.not_supported(&at, kind, &TYPES);
            continue;
        }
        if !kinds.insert(kind) && kind != WEBHOOK {
            e.duplicate(&at, kind);
            continue;
        }
        let at = path.child("name");
        if a.name.is_empty() {
            e.required(&at, "");
        } else if all_names.contains(a.name.as_str()) {
            e.duplicate(&at, a.name.as_str());
        } else {
            let wrong = names::dns1123_subdomain(&a.name, false);
            if !wrong.is_empty() {
                e.invalid(&at, a.name.as_str(), &format!("authorizer name is invalid: {}", wrong.join(", ")));
            }
        }
        all_names.insert(a.name.as_str());
        match (&a.webhook, kind) {
            (None, WEBHOOK) => e.required(&path.child("webhook"), "required when type=Webhook"),
            (Some(webhook), WEBHOOK) => validate_webhook(webhook, &path, &mut e),
            (Some(_), _) => {
                e.invalid(&path.child("webhook"), "non-null", "may only be specified when type=Webhook");
            }
            (None, _) => {}
        }
    }
    e
}

fn validate_webhook(c: &WebhookConfiguration, path: &Path, e: &mut ErrorList) {
    if c.timeout.is_zero() {
        e.required(&path.child("timeout"), "");
    } else if c.timeout > TIMEOUT_MAX {
        e.invalid(&path.child("timeout"), format!("{}s", c.timeout.as_secs()), "must be > 0s and <= 30s");
    }
    for (field, ttl) in [("authorizedTTL", c.authorized_ttl), ("unauthorizedTTL", c.unauthorized_ttl)] {
        if ttl.is_zero() {
            e.required(&path.child(field), "");
        }
    }
    let mut one_of = |field: &str, value: &str, supported: &[&str]| match value {
        "" => e.required(&path.child(field), ""),
        value if supported.contains(&value) => {}
        value => e.not_supported(&path.child(field), value, supported),
    };
    one_of("subjectAccessReviewVersion", &c.subject_access_review_version, &["v1", "v1beta1"]);
    one_of("failurePolicy", &c.failure_policy, &["NoOpinion", "Deny"]);
    let field = "matchConditionSubjectAccessReviewVersion";
    match c.match_condition_subject_access_review_version.as_str() {
        "" if c.match_conditions.is_empty() => {}
        "" => e.required(&path.child(field), "required if match conditions are specified"),
        "v1" => {}
        other => e.not_supported(&path.child(field), other, &["v1"]),
    }
    let info = path.child("connectionInfo");
    match c.connection_info.kind.as_str() {
        "" => e.required(&info.child("type"), ""),
        "KubeConfigFile" => {
            let at = info.child("kubeConfigFile");
            match c.connection_info.kube_config_file.as_deref() {
                None | Some("") => e.required(&at, ""),
                Some(file) if !file.starts_with('/') => e.invalid(&at, file, "must be an absolute path"),
                Some(_) => {}
            }
        }
        // The server would ask itself.
        other => e.not_supported(&info.child("type"), other, &["KubeConfigFile"]),
    }
    if c.match_conditions.len() > CONDITIONS_MAX {
        return e.too_many(&path.child("matchConditions"), c.match_conditions.len(), CONDITIONS_MAX);
    }
    let mut seen = BTreeSet::new();
    for (i, condition) in c.match_conditions.iter().enumerate() {
        let at = path.child("matchConditions").index(i).child("expression");
        let text = condition.expression.as_str();
        if text.trim().is_empty() {
            e.required(&at, "");
        } else if !seen.insert(text) {
            e.duplicate(&at, text);
        } else if let Err(why) = compile(text) {
            e.invalid(&at, text, &why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEBHOOK: &str = "{timeout: 3s, subjectAccessReviewVersion: v1, matchConditionSubjectAccessReviewVersion: v1, \
        failurePolicy: Deny, connectionInfo: {type: KubeConfigFile, kubeConfigFile: /k}, matchConditions: [{expression: \
        \"request.user == 'x'\"}]}";

    fn read(authorizers: &str) -> Result<AuthorizationConfiguration, String> {
        parse(&format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers: {authorizers}\n"
        ))
    }

    #[test]
    fn documents_are_checked() {
        let fine =
            read(&format!("[{{type: Node, name: node}}, {{type: Webhook, name: a, webhook: {WEBHOOK}}}]")).unwrap();
        let webhook = fine.authorizers[1].webhook.as_ref().unwrap();
        assert_eq!(webhook.timeout, Duration::from_secs(3));
        assert_eq!((webhook.authorized_ttl.as_secs(), webhook.unauthorized_ttl.as_secs()), (300, 30));
        assert_eq!(
            read("[]").unwrap_err(),
            "authorizers: Required value: at least one authorization mode must be defined"
        );
        assert_eq!(
            read("[{type: RBAC, name: a}, {type: RBAC, name: b}, {type: X, name: c}, {type: Webhook, name: a}]")
                .unwrap_err(),
            "[authorizers[1].type: Duplicate value: \"RBAC\", authorizers[2].type: Unsupported value: \"X\": supported \
             values: \"ABAC\", \"AlwaysAllow\", \"AlwaysDeny\", \"Node\", \"RBAC\", \"Webhook\", authorizers[3].name: \
             Duplicate value: \"a\", authorizers[3].webhook: Required value: required when type=Webhook]"
        );
        let wrong = WEBHOOK.replace("request.user == 'x'", "request.nobody == 'x'").replace("3s", "31s");
        let why = read(&format!("[{{type: Webhook, name: a, webhook: {wrong}}}]")).unwrap_err();
        assert!(why.contains("authorizers[0].timeout: Invalid value: \"31s\": must be > 0s and <= 30s"), "{why}");
        assert!(why.contains("authorizers[0].matchConditions[0].expression: Invalid value: "), "{why}");
    }

    #[test]
    fn durations_are_those_of_go() {
        for (text, want) in [
            ("5m0s", Some(300_000)),
            ("1h1.5s", Some(3_601_500)),
            ("300ms", Some(300)),
            ("0", Some(0)),
            ("", None),
            ("5", None),
        ] {
            assert_eq!(parse_duration(text), want.map(Duration::from_millis), "{text}");
        }
    }
}
