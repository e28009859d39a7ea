//! certificates.k8s.io: requests for certificates from the cluster's signers and those of pods, and the certificates
//! that vouch for signers.

pub mod certificate_signing_request;
pub mod cluster_trust_bundle;
pub mod pem;
pub mod pod_certificate_request;
mod stub_request;
