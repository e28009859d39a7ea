//! authorization.k8s.io: questions about what somebody may do. Nothing here is stored.

mod access_review;
mod rules_review;
