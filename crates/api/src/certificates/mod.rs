//! certificates.k8s.io: requests for certificates from the cluster's signers.

pub mod certificate_signing_request;
