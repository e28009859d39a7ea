//! CertificateSigningRequests: approved where a node (or a machine that joins) asks for its own certificate; signed by the
//! cluster's authority once approved, by whomever, where the signer is one of the cluster's own; and cleaned up when old.

pub mod pod_request;
mod request;
mod sign;

pub use request::{Recognised, recognise, verify};
pub use sign::{SignError, sign};

use crate::config::Setup;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::kind::Kind;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, DeleteParams, PostParams};
use gantry_reconcile::store::key_of;
use gantry_reconcile::{Controller, Error, EventRecorder, Informer, Outcome, Queue, runner, wait_synced};
use k8s_openapi::ByteString;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::api::core::v1::Node;
use std::sync::Arc;
use std::time::Duration;

/// Signer of the certificates that nodes show to the API server.
pub const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signer of the certificates that nodes show to those who fetch logs from them.
pub const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
/// Signer of the certificates that anybody shows to the API server. Only people approve these.
pub const API_CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";
/// Signer without rules of its own, of clients that knew no signers.
pub const LEGACY_SIGNER: &str = "kubernetes.io/legacy-unknown";

/// How long a request is kept after it was approved, denied, failed, or left unanswered (upstream's cleaner).
const KEPT_ANSWERED: Duration = Duration::from_secs(3600);
const KEPT_PENDING: Duration = Duration::from_secs(24 * 3600);

/// What this controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&["certificates.k8s.io"], &["certificatesigningrequests"], &["delete", "get", "list", "watch"]),
    Rule::new(
        &["certificates.k8s.io"],
        &["certificatesigningrequests/approval", "certificatesigningrequests/status"],
        &["update"],
    ),
    // Beyond upstream's rule: a node's serving certificate is approved where it names the node's own addresses only.
    Rule {
        groups: &["certificates.k8s.io"],
        resources: &["signers"],
        verbs: &["approve"],
        names: &[CLIENT_SIGNER, SERVING_SIGNER],
    },
    Rule {
        groups: &["certificates.k8s.io"],
        resources: &["signers"],
        verbs: &["sign"],
        names: &[LEGACY_SIGNER, API_CLIENT_SIGNER, CLIENT_SIGNER, SERVING_SIGNER],
    },
    Rule::new(&["authorization.k8s.io"], &["subjectaccessreviews"], &["create"]),
    EVENTS,
];

struct Certificates {
    requests: Informer<CertificateSigningRequest>,
    nodes: Informer<Node>,
    setup: Setup,
    recorder: EventRecorder,
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let requests = setup.informers.get::<CertificateSigningRequest>();
    let nodes = setup.informers.get::<Node>();
    let queue = Queue::new(setup.name);
    let keys = queue.clone();
    requests.on_change(move |change| keys.add(key_of(change.object().as_ref())));
    // A serving request waits for the node to tell its addresses.
    let (keys, pending) = (queue.clone(), requests.clone());
    nodes.on_change(move |_| {
        for csr in pending.list().iter().filter(|c| answer(c).is_none() && c.spec.signer_name == SERVING_SIGNER) {
            keys.add(key_of(csr.as_ref()));
        }
    });
    if !wait_synced(&[&requests, &nodes], &setup.cancel).await {
        return;
    }
    let (recorder, cancel) = (setup.recorder("csrsigning"), setup.cancel.clone());
    runner::run(Arc::new(Certificates { requests, nodes, setup, recorder }), queue, 2, cancel).await;
}

/// `Approved`, `Denied` or `Failed`, where the request has been answered.
fn answer(csr: &CertificateSigningRequest) -> Option<&CertificateSigningRequestCondition> {
    let conditions = csr.status.as_ref()?.conditions.as_deref()?;
    conditions.iter().find(|c| matches!(c.type_.as_str(), "Approved" | "Denied" | "Failed"))
}

fn has(csr: &CertificateSigningRequest, r#type: &str) -> bool {
    let conditions = csr.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == r#type)
}

fn is_issued(csr: &CertificateSigningRequest) -> bool {
    csr.status.as_ref().and_then(|s| s.certificate.as_ref()).is_some_and(|c| !c.0.is_empty())
}

#[async_trait]
impl Controller for Certificates {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let Some(csr) = self.requests.store().by_key(key) else { return Ok(Outcome::done()) };
        if self.time_left(&csr).is_some_and(|left| left.is_zero()) {
            return self.remove(&csr).await;
        }
        if answer(&csr).is_none() {
            self.approve(&csr).await?;
        } else if has(&csr, "Approved") && !has(&csr, "Failed") && !is_issued(&csr) {
            self.issue(&csr).await?;
        }
        Ok(self.time_left(&csr).map_or_else(Outcome::done, Outcome::after))
    }
}

impl Certificates {
    /// How much longer the request is kept.
    fn time_left(&self, csr: &CertificateSigningRequest) -> Option<Duration> {
        let (since, kept) = match answer(csr) {
            Some(condition) => (condition.last_update_time.as_ref()?, KEPT_ANSWERED),
            None => (csr.metadata.creation_timestamp.as_ref()?, KEPT_PENDING),
        };
        let age = self.setup.config.clock.now().as_second() - since.0.as_second();
        Some(kept.saturating_sub(Duration::from_secs(age.try_into().unwrap_or(0))))
    }

    fn api(&self) -> Api<CertificateSigningRequest> {
        Api::all(self.setup.client.clone())
    }

    async fn remove(&self, csr: &CertificateSigningRequest) -> Result<Outcome, Error> {
        let params = DeleteParams { precondition_uid: csr.metadata.uid.clone(), ..Default::default() };
        match self.api().delete(csr.metadata.name(), &params).await {
            Ok(_) => Ok(Outcome::done()),
            Err(e) if e.is("NotFound") || e.is("Conflict") => Ok(Outcome::done()),
            Err(e) => Err(Error::api(format!("delete certificate signing request {}", csr.metadata.name()), e)),
        }
    }

    async fn approve(&self, csr: &CertificateSigningRequest) -> Result<(), Error> {
        let message = match recognise(csr) {
            Some(Recognised::NodeClient { own }) => {
                let subresource = if own { "selfnodeclient" } else { "nodeclient" };
                if !self.may_request(csr, subresource).await? {
                    return Ok(());
                }
                if own {
                    "Auto approving self kubelet client certificate after SubjectAccessReview."
                } else {
                    "Auto approving kubelet client certificate after SubjectAccessReview."
                }
            }
            Some(Recognised::NodeServing { node, names }) => {
                let Some(found) = self.nodes.get("", &node) else { return Ok(()) };
                let addresses = found.status.as_ref().and_then(|s| s.addresses.as_deref()).unwrap_or_default();
                if !names.iter().all(|n| addresses.iter().any(|a| a.address == *n)) {
                    return Ok(());
                }
                "Auto approving kubelet serving certificate for the node's own addresses."
            }
            None => return Ok(()),
        };
        let mut approved = csr.clone();
        let now = self.setup.config.clock.time();
        approved.status.get_or_insert_default().conditions.get_or_insert_default().push(
            CertificateSigningRequestCondition {
                type_: "Approved".into(),
                status: "True".into(),
                reason: Some("AutoApproved".into()),
                message: Some(message.into()),
                last_update_time: Some(now.clone()),
                last_transition_time: Some(now),
            },
        );
        let name = csr.metadata.name();
        self.api()
            .update_subresource(name, "approval", &PostParams::default(), &approved)
            .await
            .map(|_| ())
            .map_err(|e| Error::api(format!("approve certificate signing request {name}"), e))
    }

    /// Asks the API server whether the requester may have node certificates.
    async fn may_request(&self, csr: &CertificateSigningRequest, subresource: &str) -> Result<bool, Error> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: csr.spec.username.clone(),
                uid: csr.spec.uid.clone(),
                groups: csr.spec.groups.clone(),
                extra: csr.spec.extra.clone(),
                resource_attributes: Some(ResourceAttributes {
                    group: Some("certificates.k8s.io".into()),
                    resource: Some("certificatesigningrequests".into()),
                    subresource: Some(subresource.to_owned()),
                    verb: Some("create".into()),
                    version: Some("*".into()),
                    ..Default::default()
                }),
                ..Default::default()
            },
            ..Default::default()
        };
        let answer = Api::<SubjectAccessReview>::all(self.setup.client.clone())
            .create(&PostParams::default(), &review)
            .await
            .map_err(|e| Error::api(format!("review who asks for {}", csr.metadata.name()), e))?;
        Ok(answer.status.is_some_and(|s| s.allowed))
    }

    async fn issue(&self, csr: &CertificateSigningRequest) -> Result<(), Error> {
        let config = &self.setup.config;
        let Some(ca_key) = config.ca_key_pem.as_deref() else { return Ok(()) };
        // Others have signers of their own.
        let Some(verified) = verify(csr) else { return Ok(()) };
        let mut signed = csr.clone();
        let status = signed.status.get_or_insert_default();
        let certificate = verified.and_then(|()| {
            let made = sign(csr, &config.ca_cert_pem, ca_key, config.clock.now(), config.certificate_duration);
            made.inspect_err(|e| self.recorder.warning(csr, "SigningError", &e.to_string())).map_err(|e| e.to_string())
        });
        match certificate {
            Ok(pem) => status.certificate = Some(ByteString(pem.into_bytes())),
            Err(error) => {
                let now = config.clock.time();
                status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
                    type_: "Failed".into(),
                    status: "True".into(),
                    reason: Some("SignerValidationFailure".into()),
                    message: Some(error),
                    last_update_time: Some(now.clone()),
                    last_transition_time: Some(now),
                });
            }
        }
        let name = csr.metadata.name();
        self.api()
            .update_status(&PostParams::default(), &signed)
            .await
            .map(|_| ())
            .map_err(|e| Error::api(format!("sign {} {name}", CertificateSigningRequest::INFO.kind), e))
    }
}
