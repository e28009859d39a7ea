//! SelfSubjectReview: who does the server take me for? (`kubectl auth whoami`)

use super::{Handler, Services, body};
use crate::request::{HandlerResult, RequestContext};
use async_trait::async_trait;
use bytes::Bytes;
use gantry_api::k8s_openapi::api::authentication::v1::{SelfSubjectReview, SelfSubjectReviewStatus};

pub(super) struct SelfSubjectReviews;

#[async_trait]
impl Handler for SelfSubjectReviews {
    fn target(&self) -> (&'static str, &'static str, &'static str, &'static str) {
        ("authentication.k8s.io", "v1", "selfsubjectreviews", "")
    }

    async fn handle(&self, request: RequestContext, bytes: Bytes, services: &Services) -> HandlerResult {
        body::only_create(&request)?;
        let (mut review, warnings) = body::decode::<SelfSubjectReview>(&request, &bytes)?;
        review.metadata.creation_timestamp = Some(services.cluster.clock.time());
        review.status = Some(SelfSubjectReviewStatus { user_info: Some(request.user.to_review()) });
        body::created(&request, &review, &warnings)
    }
}
