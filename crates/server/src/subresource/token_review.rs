//! TokenReview: whose token is this?

use super::{Handler, Services, body};
use crate::request::{HandlerResult, RequestContext};
use async_trait::async_trait;
use bytes::Bytes;
use gantry_api::k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewStatus};
use gantry_api::meta::status::ApiError;

pub(super) struct TokenReviews;

#[async_trait]
impl Handler for TokenReviews {
    fn target(&self) -> (&'static str, &'static str, &'static str, &'static str) {
        ("authentication.k8s.io", "v1", "tokenreviews", "")
    }

    async fn handle(&self, request: RequestContext, bytes: Bytes, services: &Services) -> HandlerResult {
        body::only_create(&request)?;
        let (mut review, warnings) = body::decode::<TokenReview>(&request, &bytes)?;
        if review.spec.token.is_empty() {
            return Err(ApiError::bad_request("token is required for TokenReview in authentication"));
        }
        let audiences = match review.spec.audiences.as_deref().unwrap_or_default() {
            [] => services.config.api_audiences.clone(),
            given => given.to_vec(),
        };
        let answer = services.authenticator.authenticate_token(&review.spec.token, &audiences).await;
        review.status = Some(match answer {
            Ok(Some((user, good_for))) => TokenReviewStatus {
                authenticated: Some(true),
                user: Some(user.to_review()),
                audiences: (!good_for.is_empty()).then_some(good_for),
                error: None,
            },
            Ok(None) => TokenReviewStatus::default(),
            Err(e) => TokenReviewStatus { error: Some(e.message), ..Default::default() },
        });
        body::created(&request, &review, &warnings)
    }
}
