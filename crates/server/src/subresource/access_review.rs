//! SubjectAccessReview, LocalSubjectAccessReview and SelfSubjectAccessReview: may somebody do this?

use super::{Handler, Services, body};
use crate::authn::UserInfo;
use crate::authz::{Attributes, Decision};
use crate::request::{HandlerResult, RequestContext};
use async_trait::async_trait;
use bytes::Bytes;
use gantry_api::k8s_openapi::api::authorization::v1::{
    FieldSelectorAttributes, LabelSelectorAttributes, LocalSubjectAccessReview, NonResourceAttributes,
    ResourceAttributes, SelfSubjectAccessReview, SubjectAccessReview, SubjectAccessReviewSpec,
    SubjectAccessReviewStatus,
};
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    FieldSelectorRequirement, LabelSelector, LabelSelectorRequirement,
};
use gantry_api::kind::Kind;
use gantry_api::meta::fields::FieldSelector;
use gantry_api::meta::labels::Selector;
use gantry_api::meta::status::ApiError;

pub(super) struct SubjectAccessReviews;
pub(super) struct LocalSubjectAccessReviews;
pub(super) struct SelfSubjectAccessReviews;

fn text(field: &Option<String>) -> String {
    field.clone().unwrap_or_default()
}

/// A selector as a query string has it, and whether there was more to it that nobody here can read. What is left out
/// narrows nothing.
struct Read {
    text: Option<String>,
    unread: bool,
}

impl Read {
    fn new(terms: &[String], all: usize) -> Read {
        Read { text: (!terms.is_empty()).then(|| terms.join(",")), unread: terms.len() < all }
    }

    fn raw(text: &str, readable: bool) -> Read {
        Read { text: readable.then(|| text.to_owned()).filter(|text| !text.is_empty()), unread: !readable }
    }

    /// What the answer says of it.
    fn complaint(&self, field: &str) -> Option<String> {
        let how_much = if self.text.is_some() { "partially ignored" } else { "ignored" };
        self.unread.then(|| format!("spec.resourceAttributes.{field} {how_much} due to parse error"))
    }
}

fn field_selector(s: &FieldSelectorAttributes) -> Read {
    if let Some(raw) = s.raw_selector.as_deref().filter(|r| !r.is_empty()) {
        return Read::raw(raw, FieldSelector::parse(raw).is_ok());
    }
    let all = s.requirements.as_deref().unwrap_or_default();
    // Field selectors know equality only.
    let term = |r: &FieldSelectorRequirement| match (r.operator.as_str(), r.values.as_deref()) {
        ("In", Some([value])) => Some(format!("{}={value}", r.key)),
        ("NotIn", Some([value])) => Some(format!("{}!={value}", r.key)),
        _ => None,
    };
    let terms: Vec<String> = all.iter().filter_map(term).collect();
    Read::new(&terms, all.len())
}

fn label_selector(s: &LabelSelectorAttributes) -> Read {
    if let Some(raw) = s.raw_selector.as_deref().filter(|r| !r.is_empty()) {
        return Read::raw(raw, Selector::parse(raw).is_ok());
    }
    let all = s.requirements.as_deref().unwrap_or_default();
    let term = |r: &LabelSelectorRequirement| {
        let selector = LabelSelector { match_expressions: Some(vec![r.clone()]), match_labels: None };
        Selector::from_label_selector(Some(&selector)).ok().map(|s| s.to_string())
    };
    let terms: Vec<String> = all.iter().filter_map(term).collect();
    Read::new(&terms, all.len())
}

fn question(user: UserInfo, resource: Option<&ResourceAttributes>, path: Option<&NonResourceAttributes>) -> Attributes {
    let mut out = Attributes { user, ..Default::default() };
    if let Some(r) = resource {
        out.is_resource = true;
        out.verb = text(&r.verb);
        out.namespace = text(&r.namespace);
        out.group = text(&r.group);
        out.version = text(&r.version);
        out.resource = text(&r.resource);
        out.subresource = text(&r.subresource);
        out.name = text(&r.name);
        out.field_selector = r.field_selector.as_ref().and_then(|s| field_selector(s).text);
        out.label_selector = r.label_selector.as_ref().and_then(|s| label_selector(s).text);
    }
    if let Some(p) = path {
        out.verb = text(&p.verb);
        out.path = text(&p.path);
    }
    out
}

fn subject(spec: &SubjectAccessReviewSpec) -> UserInfo {
    UserInfo {
        username: text(&spec.user),
        uid: text(&spec.uid),
        groups: spec.groups.clone().unwrap_or_default(),
        extra: spec.extra.clone().unwrap_or_default(),
    }
}

async fn decide(
    question: &Attributes,
    resource: Option<&ResourceAttributes>,
    services: &Services,
) -> SubjectAccessReviewStatus {
    let (allowed, denied, reason, error) = match services.authorizer.authorize(question).await {
        Decision::Allow(reason) => (true, false, reason, None),
        Decision::Deny(reason) => (false, true, reason, None),
        Decision::NoOpinion(reason) => (false, false, reason, None),
        Decision::Failed { denied, why } => (false, denied, String::new(), Some(why)),
    };
    let fields = resource.and_then(|r| field_selector(r.field_selector.as_ref()?).complaint("fieldSelector"));
    let labels = resource.and_then(|r| label_selector(r.label_selector.as_ref()?).complaint("labelSelector"));
    let errors: Vec<String> = error.into_iter().chain(fields).chain(labels).collect();
    SubjectAccessReviewStatus {
        allowed,
        denied: denied.then_some(true),
        reason: (!reason.is_empty()).then_some(reason),
        evaluation_error: (!errors.is_empty()).then(|| errors.join("; ")),
    }
}

fn valid<K: Kind>(review: &K) -> Result<(), ApiError> {
    let errors = review.validate();
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(K::INFO.group, K::INFO.kind, "", &errors))
}

#[async_trait]
impl Handler for SubjectAccessReviews {
    fn target(&self) -> (&'static str, &'static str, &'static str, &'static str) {
        ("authorization.k8s.io", "v1", "subjectaccessreviews", "")
    }

    async fn handle(&self, request: RequestContext, bytes: Bytes, services: &Services) -> HandlerResult {
        body::only_create(&request)?;
        let (mut review, warnings) = body::decode::<SubjectAccessReview>(&request, &bytes)?;
        valid(&review)?;
        let s = &review.spec;
        let asked = question(subject(s), s.resource_attributes.as_ref(), s.non_resource_attributes.as_ref());
        review.status = Some(decide(&asked, s.resource_attributes.as_ref(), services).await);
        body::created(&request, &review, &warnings)
    }
}

#[async_trait]
impl Handler for LocalSubjectAccessReviews {
    fn target(&self) -> (&'static str, &'static str, &'static str, &'static str) {
        ("authorization.k8s.io", "v1", "localsubjectaccessreviews", "")
    }

    async fn handle(&self, request: RequestContext, bytes: Bytes, services: &Services) -> HandlerResult {
        body::only_create(&request)?;
        let (mut review, warnings) = body::decode::<LocalSubjectAccessReview>(&request, &bytes)?;
        review.metadata.namespace.get_or_insert_with(|| request.info.namespace.clone());
        valid(&review)?;
        let s = &review.spec;
        let asked = question(subject(s), s.resource_attributes.as_ref(), None);
        if asked.namespace != request.info.namespace {
            return Err(ApiError::bad_request(format!(
                "spec.resourceAttributes.namespace must match namespace: {}",
                request.info.namespace
            )));
        }
        review.status = Some(decide(&asked, s.resource_attributes.as_ref(), services).await);
        body::created(&request, &review, &warnings)
    }
}

#[async_trait]
impl Handler for SelfSubjectAccessReviews {
    fn target(&self) -> (&'static str, &'static str, &'static str, &'static str) {
        ("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "")
    }

    async fn handle(&self, request: RequestContext, bytes: Bytes, services: &Services) -> HandlerResult {
        body::only_create(&request)?;
        let (mut review, warnings) = body::decode::<SelfSubjectAccessReview>(&request, &bytes)?;
        valid(&review)?;
        let s = &review.spec;
        let asked = question(request.user.clone(), s.resource_attributes.as_ref(), s.non_resource_attributes.as_ref());
        review.status = Some(decide(&asked, s.resource_attributes.as_ref(), services).await);
        body::created(&request, &review, &warnings)
    }
}
