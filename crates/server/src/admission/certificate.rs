//! CertificateApproval, CertificateSigning, CertificateSubjectRestriction and ClusterTrustBundleAttest: who may approve,
//! sign and vouch for which signer, and what the client signer may not be asked for.

use super::{Attributes, MutatingPlugin, Operation, ValidatingPlugin};
use crate::authn::{MASTERS, UserInfo};
use crate::authz::{self, Authorizer, Decision};
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::certificates::certificate_signing_request::{SIGNER_CLIENT, parse_request};
use gantry_api::certificates::pod_certificate_request::begins_elsewhere;
use gantry_api::k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, ClusterTrustBundle, PodCertificateRequest,
};
use gantry_api::meta::field::{ErrorList, Path};
use gantry_api::meta::object::{Meta, semantically_equal};
use gantry_api::meta::status::ApiError;
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509CertificationRequest};

const GROUP: &str = "certificates.k8s.io";
const RESOURCE: &str = "certificatesigningrequests";

/// Whether the user may do `verb` for this signer, by its name or by `domain/*`.
async fn for_signer(authorizer: &dyn Authorizer, user: &UserInfo, verb: &str, signer: &str) -> bool {
    let domain = signer.split_once('/').map_or(signer, |(d, _)| d);
    for name in [signer.to_owned(), format!("{domain}/*")] {
        let question = authz::Attributes {
            user: user.clone(),
            verb: verb.into(),
            group: GROUP.into(),
            version: "*".into(),
            resource: "signers".into(),
            name,
            is_resource: true,
            ..Default::default()
        };
        if matches!(authorizer.authorize(&question).await, Decision::Allow(_)) {
            return true;
        }
    }
    false
}

/// Records who asks; only the server can vouch for that.
pub(super) struct Requestor;

#[async_trait]
impl MutatingPlugin for Requestor {
    fn name(&self) -> &'static str {
        "CertificateRequestor"
    }

    async fn admit(&self, a: &mut Attributes<'_>, _cluster: &Cluster) -> Result<(), ApiError> {
        if a.operation != Operation::Create || !a.is(GROUP, RESOURCE, "") {
            return Ok(());
        }
        let user = a.user.to_review();
        if let Some(csr) = a.object_as_mut::<CertificateSigningRequest>() {
            csr.spec.username = user.username;
            csr.spec.uid = user.uid;
            csr.spec.groups = user.groups;
            csr.spec.extra = user.extra;
        }
        Ok(())
    }
}

/// Who may approve.
pub(super) struct Approval(pub(super) Arc<dyn Authorizer>);

#[async_trait]
impl ValidatingPlugin for Approval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    async fn validate(&self, a: &mut Attributes<'_>, _cluster: &Cluster) -> Result<(), ApiError> {
        if a.operation != Operation::Update || !a.is(GROUP, RESOURCE, "approval") {
            return Ok(());
        }
        // The signer as stored: the update cannot change it.
        let Some(csr) = a.old_as::<CertificateSigningRequest>() else { return Ok(()) };
        let signer = &csr.spec.signer_name;
        if for_signer(self.0.as_ref(), a.user, "approve", signer).await {
            return Ok(());
        }
        Err(a.forbidden(&format!("user not permitted to approve requests with signerName {signer:?}")))
    }
}

/// Who may sign.
pub(super) struct Signing(pub(super) Arc<dyn Authorizer>);

#[async_trait]
impl ValidatingPlugin for Signing {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    async fn validate(&self, a: &mut Attributes<'_>, _cluster: &Cluster) -> Result<(), ApiError> {
        if a.operation != Operation::Update || !a.is(GROUP, RESOURCE, "status") {
            return Ok(());
        }
        let (Some(new), Some(old)) =
            (a.object_as::<CertificateSigningRequest>(), a.old_as::<CertificateSigningRequest>())
        else {
            return Ok(());
        };
        let signed = |c: &CertificateSigningRequest| c.status.as_ref().and_then(|s| s.certificate.clone());
        let conditions = |c: &CertificateSigningRequest| c.status.as_ref().and_then(|s| s.conditions.clone());
        if signed(new) == signed(old) && conditions(new) == conditions(old) {
            return Ok(());
        }
        let signer = &old.spec.signer_name;
        if for_signer(self.0.as_ref(), a.user, "sign", signer).await {
            return Ok(());
        }
        Err(a.forbidden(&format!("user not permitted to sign requests with signerName {signer:?}")))
    }
}

/// The client signer makes no superusers.
pub(super) struct SubjectRestriction;

#[async_trait]
impl ValidatingPlugin for SubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    async fn validate(&self, a: &mut Attributes<'_>, _cluster: &Cluster) -> Result<(), ApiError> {
        if a.operation != Operation::Create || !a.is(GROUP, RESOURCE, "") {
            return Ok(());
        }
        let Some(csr) = a.object_as::<CertificateSigningRequest>() else { return Ok(()) };
        if csr.spec.signer_name != SIGNER_CLIENT {
            return Ok(());
        }
        let der = parse_request(&csr.spec.request.0).map_err(|e| a.forbidden(&format!("unable to parse CSR: {e}")))?;
        let (_, request) =
            X509CertificationRequest::from_der(&der).map_err(|e| a.forbidden(&format!("unable to parse CSR: {e}")))?;
        let subject = &request.certification_request_info.subject;
        if subject.iter_organization().any(|o| o.as_str() == Ok(MASTERS)) {
            return Err(a.forbidden(&format!("use of {SIGNER_CLIENT} signer with {MASTERS} group is not allowed")));
        }
        Ok(())
    }
}

/// Who may vouch for a signer.
pub(super) struct TrustBundleAttest(pub(super) Arc<dyn Authorizer>);

#[async_trait]
impl ValidatingPlugin for TrustBundleAttest {
    fn name(&self) -> &'static str {
        "ClusterTrustBundleAttest"
    }

    async fn validate(&self, a: &mut Attributes<'_>, _cluster: &Cluster) -> Result<(), ApiError> {
        let written = matches!(a.operation, Operation::Create | Operation::Update);
        if !written || !a.is(GROUP, "clustertrustbundles", "") {
            return Ok(());
        }
        let Some(bundle) = a.object_as::<ClusterTrustBundle>() else { return Ok(()) };
        // An update cannot change the signer.
        let signer = bundle.spec.signer_name.as_deref().unwrap_or_default();
        if signer.is_empty() || a.old_as::<ClusterTrustBundle>().is_some_and(|old| means_the_same(bundle, old)) {
            return Ok(());
        }
        if for_signer(self.0.as_ref(), a.user, "attest", signer).await {
            return Ok(());
        }
        Err(a.forbidden(&format!("user not permitted to attest for signerName {signer:?}")))
    }
}

/// Whether the bundles differ at most in what the garbage collector and migrations of the storage change.
fn means_the_same(new: &ClusterTrustBundle, old: &ClusterTrustBundle) -> bool {
    let mut new = new.clone();
    new.metadata.owner_references.clone_from(&old.metadata.owner_references);
    new.metadata.finalizers.clone_from(&old.metadata.finalizers);
    new.metadata.managed_fields.clone_from(&old.metadata.managed_fields);
    new.metadata.resource_version.clone_from(&old.metadata.resource_version);
    semantically_equal(&new, old)
}

/// Who may answer a pod's request for a certificate, and with one of what time. Upstream has this in its registry, which is
/// why it cannot be turned off and answers as validation does.
pub(super) struct PodCertificateSigning(pub(super) Arc<dyn Authorizer>);

#[async_trait]
impl ValidatingPlugin for PodCertificateSigning {
    fn name(&self) -> &'static str {
        "PodCertificateSigning"
    }

    async fn validate(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        if a.operation != Operation::Update || !a.is(GROUP, "podcertificaterequests", "status") {
            return Ok(());
        }
        let (Some(new), Some(old)) = (a.object_as::<PodCertificateRequest>(), a.old_as::<PodCertificateRequest>())
        else {
            return Ok(());
        };
        let invalid =
            |errors: &ErrorList| ApiError::invalid(GROUP, "PodCertificateRequest", new.metadata.name(), errors);
        if let Some(errors) = begins_elsewhere(new, old, cluster.clock.now()) {
            return Err(invalid(&errors));
        }
        let signer = &old.spec.signer_name;
        if semantically_equal(&new.status, &old.status) || for_signer(self.0.as_ref(), a.user, "sign", signer).await {
            return Ok(());
        }
        let mut errors = ErrorList::default();
        let told = format!("User {:?} is not permitted to \"sign\" for signer {signer:?}", a.user.username);
        errors.forbidden(&Path::new("spec").child("signerName"), &told);
        Err(invalid(&errors))
    }
}
