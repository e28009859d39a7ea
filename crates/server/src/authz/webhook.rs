//! Asks a webhook whether somebody may do something (`plugin/pkg/authorizer/webhook`).

use super::config::WebhookConfiguration;
use super::{Attributes, Authorizer, Decision};
use crate::review_hook::{HookEndpoint, Remembered, ReviewHook};
use async_trait::async_trait;
use gantry_api::clock::Clock;
use gantry_api::meta::fields::FieldSelector;
use gantry_api::meta::labels::{Operator, Selector};
use gantry_cel::{Environment, EvalError, Expected, Limits, Program, Type, TypeProvider, Value, Variables};
use serde_json::{Value as Json, json};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// Answers that are remembered.
const REMEMBERED_MAX: usize = 8192;
/// What is asked about is remembered only where it is shorter, so that nobody can fill the memory.
const ATTRIBUTES_BYTES_MAX: usize = 10_000;

const SPEC: &str = "kubernetes.SubjectAccessReviewSpec";
const RESOURCE: &str = "kubernetes.ResourceAttributes";
const PATH: &str = "kubernetes.NonResourceAttributes";
const FIELDS: &str = "kubernetes.FieldSelectorAttributes";
const LABELS: &str = "kubernetes.LabelSelectorAttributes";
const REQUIREMENT: &str = "kubernetes.SelectorRequirement";

/// The types of `request`.
struct Types;

impl TypeProvider for Types {
    fn find_type(&self, name: &str) -> Option<Type> {
        [SPEC, RESOURCE, PATH, FIELDS, LABELS, REQUIREMENT].contains(&name).then(|| Type::object(name))
    }

    fn find_field(&self, type_name: &str, field: &str) -> Option<Type> {
        let strings = || Type::list(Type::String);
        Some(match (type_name, field) {
            (SPEC, "resourceAttributes") => Type::object(RESOURCE),
            (SPEC, "nonResourceAttributes") => Type::object(PATH),
            (SPEC, "groups") | (REQUIREMENT, "values") => strings(),
            (SPEC, "extra") => Type::map(Type::String, strings()),
            (RESOURCE, "fieldSelector") => Type::object(FIELDS),
            (RESOURCE, "labelSelector") => Type::object(LABELS),
            (FIELDS | LABELS, "requirements") => Type::list(Type::object(REQUIREMENT)),
            (SPEC, "user" | "uid")
            | (RESOURCE, "namespace" | "verb" | "group" | "version" | "resource" | "subresource" | "name")
            | (PATH, "path" | "verb")
            | (FIELDS | LABELS, "rawSelector")
            | (REQUIREMENT, "key" | "operator") => Type::String,
            _ => return None,
        })
    }
}

/// Compiles a match condition.
///
/// # Errors
/// What is wrong with it.
pub(super) fn compile(text: &str) -> Result<Program, String> {
    static ENVIRONMENT: LazyLock<Environment> = LazyLock::new(|| {
        Environment::kubernetes().provider(Arc::new(Types)).variable("request", Type::object(SPEC)).build()
    });
    let program = ENVIRONMENT.compile(text, Expected::Any).map_err(|issues| {
        let all: Vec<String> = issues.iter().map(ToString::to_string).collect();
        format!("compilation failed: {}", all.join("\n"))
    })?;
    match program.output_type() {
        Type::Bool => Ok(program),
        other => Err(format!("must evaluate to bool but got {other}")),
    }
}

struct Request(Value);

impl Variables for Request {
    fn resolve(&self, name: &str) -> Result<Option<Value>, EvalError> {
        Ok((name == "request").then(|| self.0.clone()))
    }
}

/// A webhook as an authorizer.
pub struct WebhookAuthorizer {
    name: String,
    hook: ReviewHook,
    config: WebhookConfiguration,
    conditions: Vec<(String, Program)>,
    remembered: Remembered<Decision>,
}

fn field_requirements(a: &Attributes) -> Vec<Json> {
    let selector = a.field_selector.as_deref().and_then(|s| FieldSelector::parse(s).ok());
    let terms = selector.map(|s| s.0).unwrap_or_default();
    terms
        .iter()
        .map(|t| {
            let operator = if t.equal { "In" } else { "NotIn" };
            json!({ "key": t.field, "operator": operator, "values": [t.value] })
        })
        .collect()
}

fn label_requirements(a: &Attributes) -> Vec<Json> {
    let selector = a.label_selector.as_deref().and_then(|s| Selector::parse(s).ok());
    let mut out = Vec::new();
    for r in selector.iter().flat_map(Selector::requirements) {
        let operator = match r.operator {
            Operator::Equals | Operator::DoubleEquals | Operator::In => "In",
            Operator::NotEquals | Operator::NotIn => "NotIn",
            Operator::Exists => "Exists",
            Operator::DoesNotExist => "DoesNotExist",
            Operator::GreaterThan | Operator::LessThan => continue,
        };
        let mut requirement = json!({ "key": r.key, "operator": operator });
        if !r.values.is_empty() {
            requirement["values"] = json!(r.values);
        }
        out.push(requirement);
    }
    out
}

/// The specification of a SubjectAccessReview that asks this; with every text where `whole`, for conditions.
fn spec(a: &Attributes, whole: bool) -> Json {
    let mut out = serde_json::Map::new();
    let put = |out: &mut serde_json::Map<String, Json>, key: &str, value: &str| {
        if whole || !value.is_empty() {
            out.insert(key.to_owned(), value.into());
        }
    };
    put(&mut out, "user", &a.user.username);
    put(&mut out, "uid", &a.user.uid);
    if whole || !a.user.groups.is_empty() {
        out.insert("groups".into(), json!(a.user.groups));
    }
    if whole || !a.user.extra.is_empty() {
        out.insert("extra".into(), json!(a.user.extra));
    }
    let mut inner = serde_json::Map::new();
    if !a.is_resource {
        put(&mut inner, "path", &a.path);
        put(&mut inner, "verb", &a.verb);
        out.insert("nonResourceAttributes".into(), inner.into());
        return out.into();
    }
    for (key, value) in [
        ("namespace", &a.namespace),
        ("verb", &a.verb),
        ("group", &a.group),
        ("version", &a.version),
        ("resource", &a.resource),
        ("subresource", &a.subresource),
        ("name", &a.name),
    ] {
        put(&mut inner, key, value);
    }
    for (key, requirements) in [("fieldSelector", field_requirements(a)), ("labelSelector", label_requirements(a))] {
        if !requirements.is_empty() {
            inner.insert(key.to_owned(), json!({ "requirements": requirements }));
        }
    }
    out.insert("resourceAttributes".into(), inner.into());
    out.into()
}

impl WebhookAuthorizer {
    /// Asks the webhook at `endpoint`, as `config` says, which has been checked.
    ///
    /// # Errors
    /// Where a certificate or condition cannot be used.
    pub fn new(name: &str, config: WebhookConfiguration, endpoint: HookEndpoint, clock: Clock) -> Result<Self, String> {
        let conditions = config.match_conditions.iter();
        let conditions = conditions.map(|c| Ok((c.expression.clone(), compile(&c.expression)?)));
        Ok(Self {
            name: name.to_owned(),
            hook: ReviewHook::new(endpoint)?,
            conditions: conditions.collect::<Result<_, String>>()?,
            remembered: Remembered::new(clock, REMEMBERED_MAX),
            config,
        })
    }

    /// Whether it is to be asked. One condition that does not hold decides, whatever becomes of the others.
    fn matches(&self, a: &Attributes) -> Result<bool, String> {
        if self.conditions.is_empty() {
            return Ok(true);
        }
        let request = Request(Value::from_json(Arc::new(spec(a, true))));
        let mut errors = Vec::new();
        for (text, program) in &self.conditions {
            match program.run(&request, Limits::PER_CALL).result {
                Ok(value) if value.as_bool() == Some(false) => return Ok(false),
                Ok(_) => {}
                Err(e) => errors.push(format!("cel evaluation error: expression '{text}' resulted in error: {e}")),
            }
        }
        match errors.len() {
            0 => Ok(true),
            1 => Err(errors.remove(0)),
            _ => Err(format!("[{}]", errors.join(", "))),
        }
    }

    fn failed(&self, why: String) -> Decision {
        tracing::error!(name = self.name, why, "Failed to make webhook authorizer request");
        Decision::Failed { denied: self.config.failure_policy == "Deny", why }
    }

    fn remember(&self, key: Vec<u8>, decision: &Decision, a: &Attributes) {
        let parts = [&a.namespace, &a.verb, &a.group, &a.version, &a.resource, &a.subresource, &a.name, &a.path];
        let size: usize = parts.iter().map(|p| p.len()).sum();
        let (wanted, ttl): (bool, Duration) = match decision {
            Decision::Allow(_) => (self.config.cache_authorized_requests, self.config.authorized_ttl),
            _ => (self.config.cache_unauthorized_requests, self.config.unauthorized_ttl),
        };
        if wanted && !ttl.is_zero() && size < ATTRIBUTES_BYTES_MAX {
            self.remembered.put(key, decision.clone(), ttl);
        }
    }
}

/// `groups` is `group` in the old version of the review.
fn in_version(mut spec: Json, version: &str) -> Json {
    if version == "v1beta1"
        && let Some(map) = spec.as_object_mut()
        && let Some(groups) = map.remove("groups")
    {
        map.insert("group".into(), groups);
    }
    spec
}

#[async_trait]
impl Authorizer for WebhookAuthorizer {
    async fn authorize(&self, a: &Attributes) -> Decision {
        match self.matches(a) {
            Ok(true) => {}
            Ok(false) => return Decision::NoOpinion(String::new()),
            Err(why) => return self.failed(why),
        }
        let spec = spec(a, false);
        let key = spec.to_string().into_bytes();
        if let Some(known) = self.remembered.get(&key) {
            return known;
        }
        let version = self.config.subject_access_review_version.as_str();
        let review = json!({
            "kind": "SubjectAccessReview", "apiVersion": format!("authorization.k8s.io/{version}"),
            "metadata": {}, "spec": in_version(spec, version),
            "status": { "allowed": false },
        });
        let answer = match self.hook.review(&review, self.config.timeout).await {
            Ok(answer) => answer,
            Err(why) => return self.failed(why),
        };
        let status = &answer["status"];
        let reason = status["reason"].as_str().unwrap_or_default().to_owned();
        let decision = match (status["denied"] == true, status["allowed"] == true) {
            (true, true) => {
                let why = "webhook subject access review returned both allow and deny response";
                tracing::error!(name = self.name, why);
                Decision::Deny(reason)
            }
            (true, false) => Decision::Deny(reason),
            (false, true) => Decision::Allow(reason),
            (false, false) => Decision::NoOpinion(reason),
        };
        self.remember(key, &decision, a);
        decision
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::UserInfo;
    use gantry_api::k8s_openapi::jiff::Timestamp;

    fn authorizer(policy: &str, conditions: &[&str]) -> WebhookAuthorizer {
        let conditions: Vec<Json> = conditions.iter().map(|c| json!({ "expression": c })).collect();
        let config = json!({"timeout": "1s", "subjectAccessReviewVersion": "v1", "failurePolicy": policy,
            "matchConditions": conditions});
        // Nothing listens on the port of a socket that has been closed.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let endpoint = HookEndpoint { url: format!("http://127.0.0.1:{port}/"), ..HookEndpoint::default() };
        let clock = Clock::starting_at(Timestamp::UNIX_EPOCH);
        WebhookAuthorizer::new("w", serde_json::from_value(config).unwrap(), endpoint, clock).unwrap()
    }

    fn pods(user: &str) -> Attributes {
        Attributes {
            user: UserInfo::new(user, &["devs"]),
            verb: "list".into(),
            resource: "pods".into(),
            namespace: "ns".into(),
            is_resource: true,
            label_selector: Some("a in (x,y),!b".into()),
            field_selector: Some("spec.nodeName=n".into()),
            ..Attributes::default()
        }
    }

    #[test]
    fn questions_are_written_as_upstream() {
        assert_eq!(
            spec(&pods("bob"), false),
            json!({"user": "bob", "groups": ["devs", "system:authenticated"], "resourceAttributes": {"namespace": "ns",
                "verb": "list", "resource": "pods",
                "fieldSelector": {"requirements": [{"key": "spec.nodeName", "operator": "In", "values": ["n"]}]},
                "labelSelector": {"requirements": [{"key": "a", "operator": "In", "values": ["x", "y"]},
                    {"key": "b", "operator": "DoesNotExist"}]}}})
        );
        assert!(in_version(spec(&pods("bob"), false), "v1beta1")["group"].is_array());
        assert_eq!(spec(&pods("bob"), true)["resourceAttributes"]["name"], "");
    }

    #[tokio::test]
    async fn conditions_come_first_and_failures_follow_their_policy() {
        let only_devs = ["has(request.resourceAttributes)", "'devs' in request.groups && request.user != 'carol'"];
        let deny = authorizer("Deny", &only_devs);
        assert_eq!(deny.authorize(&pods("carol")).await, Decision::NoOpinion(String::new()));
        let refused = deny.authorize(&pods("bob")).await;
        let fits = matches!(&refused, Decision::Failed { denied: true, why } if why.contains("connection refused"));
        assert!(fits, "{refused:?}");
        let lenient = authorizer("NoOpinion", &[]).authorize(&pods("bob")).await;
        let fits = matches!(&lenient, Decision::Failed { denied: false, why } if why.starts_with("Post "));
        assert!(fits, "{lenient:?}");
        let broken = authorizer("Deny", &["request.extra['x'][0] == 'y'"]).authorize(&pods("bob")).await;
        let fits =
            matches!(&broken, Decision::Failed { denied: true, why } if why.starts_with("cel evaluation error: "));
        assert!(fits, "{broken:?}");
    }
}
