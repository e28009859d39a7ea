//! authentication.k8s.io: questions about who somebody is, and requests for tokens. Nothing here is stored.

mod self_subject_review;
mod token_request;
mod token_review;
