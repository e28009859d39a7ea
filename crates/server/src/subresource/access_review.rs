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
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use gantry_api::kind::Kind;
use gantry_api::meta::labels::Selector;
use gantry_api::meta::status::ApiError;

pub(super) struct SubjectAccessReviews;
pub(super) struct LocalSubjectAccessReviews;
pub(super) struct SelfSubjectAccessReviews;

fn text(field: &Option<String>) -> String {
    field.clone().unwrap_or_default()
}

/// A field selector as a query string has it.
fn field_selector(s: &FieldSelectorAttributes) -> Option<String> {
    if let Some(raw) = s.raw_selector.clone().filter(|r| !r.is_empty()) {
        return Some(raw);
    }
    let terms: Vec<String> = s
        .requirements
        .iter()
        .flatten()
        .filter_map(|r| {
            // Field selectors know equality only; what else is asked for narrows nothing.
            let value = match r.values.as_deref() {
                Some([one]) => one.clone(),
                _ => return None,
            };
            match r.operator.as_str() {
                "In" => Some(format!("{}={value}", r.key)),
                "NotIn" => Some(format!("{}!={value}", r.key)),
                _ => None,
            }
        })
        .collect();
    (!terms.is_empty()).then(|| terms.join(","))
}

fn label_selector(s: &LabelSelectorAttributes) -> Option<String> {
    if let Some(raw) = s.raw_selector.clone().filter(|r| !r.is_empty()) {
        return Some(raw);
    }
    let selector = LabelSelector { match_expressions: s.requirements.clone(), match_labels: None };
    Selector::from_label_selector(Some(&selector)).ok().map(|s| s.to_string()).filter(|s| !s.is_empty())
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
        out.field_selector = r.field_selector.as_ref().and_then(field_selector);
        out.label_selector = r.label_selector.as_ref().and_then(label_selector);
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

async fn decide(question: &Attributes, services: &Services) -> SubjectAccessReviewStatus {
    let (allowed, denied, reason, error) = match services.authorizer.authorize(question).await {
        Decision::Allow(reason) => (true, false, reason, None),
        Decision::Deny(reason) => (false, true, reason, None),
        Decision::NoOpinion(reason) => (false, false, reason, None),
        Decision::Failed { denied, why } => (false, denied, String::new(), Some(why)),
    };
    SubjectAccessReviewStatus {
        allowed,
        denied: denied.then_some(true),
        reason: (!reason.is_empty()).then_some(reason),
        evaluation_error: error,
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
        review.status = Some(decide(&asked, services).await);
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
        review.status = Some(decide(&asked, services).await);
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
        review.status = Some(decide(&asked, services).await);
        body::created(&request, &review, &warnings)
    }
}
