//! The `admissionregistration.k8s.io` API group: webhooks and policies that judge requests.

mod binding;
mod match_rules;
mod mutating_admission_policy;
mod policy;
mod validating_admission_policy;
mod webhook;
