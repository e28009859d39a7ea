//! SelfSubjectRulesReview: all that I may do in a namespace (`kubectl auth can-i --list`).

use super::{Handler, Services, body};
use crate::request::{HandlerResult, RequestContext};
use async_trait::async_trait;
use bytes::Bytes;
use gantry_api::k8s_openapi::api::authorization::v1::{
    NonResourceRule, ResourceRule, SelfSubjectRulesReview, SubjectRulesReviewStatus,
};
use gantry_api::meta::status::ApiError;

pub(super) struct SelfSubjectRulesReviews;

#[async_trait]
impl Handler for SelfSubjectRulesReviews {
    fn target(&self) -> (&'static str, &'static str, &'static str, &'static str) {
        ("authorization.k8s.io", "v1", "selfsubjectrulesreviews", "")
    }

    async fn handle(&self, request: RequestContext, bytes: Bytes, services: &Services) -> HandlerResult {
        body::only_create(&request)?;
        let (mut review, warnings) = body::decode::<SelfSubjectRulesReview>(&request, &bytes)?;
        let namespace = review.spec.namespace.clone().unwrap_or_default();
        if namespace.is_empty() {
            return Err(ApiError::bad_request("no namespace on request"));
        }
        let found = services.authorizer.rules_for(&request.user, &namespace).await;
        let mut status = SubjectRulesReviewStatus {
            incomplete: found.incomplete,
            evaluation_error: (!found.errors.is_empty()).then(|| found.errors.join(", ")),
            resource_rules: Vec::new(),
            non_resource_rules: Vec::new(),
        };
        for rule in found.rules {
            if rule.resources.as_ref().is_some_and(|r| !r.is_empty()) {
                status.resource_rules.push(ResourceRule {
                    verbs: rule.verbs,
                    api_groups: rule.api_groups,
                    resources: rule.resources,
                    resource_names: rule.resource_names,
                });
            } else if rule.non_resource_urls.as_ref().is_some_and(|u| !u.is_empty()) {
                status
                    .non_resource_rules
                    .push(NonResourceRule { verbs: rule.verbs, non_resource_urls: rule.non_resource_urls });
            }
        }
        review.status = Some(status);
        body::created(&request, &review, &warnings)
    }
}
