//! Certificates of pods in projected volumes: a key is made, a signer asked for a certificate by a PodCertificateRequest,
//! and both are renewed before they end. What was issued is not kept across restarts of the agent; it is asked for anew.

use crate::certificates::answer;
use gantry_api::ObjectMeta;
use gantry_api::certificates::pem::{self, CERTIFICATE};
use gantry_api::certificates::pod_certificate_request::end;
use gantry_api::clock::Clock;
use gantry_client::{Api, Client, PostParams};
use gantry_reconcile::EventRecorder;
use gantry_reconcile::backoff::Backoff;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{PodCertificateRequest, PodCertificateRequestSpec};
use k8s_openapi::api::core::v1::{Node, Pod, PodCertificateProjection, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, RsaKeySize};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Milliseconds that renewals are spread over, so that pods started together do not ask together.
const SPREAD: u64 = 5 * 60 * 1000;
/// How long after its time a renewal is overdue.
const OVERDUE: Duration = Duration::from_secs(600);

/// One source of one volume of one pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    /// The pod.
    pub pod_uid: String,
    /// The volume's name.
    pub volume: String,
    /// Which of its sources.
    pub source: usize,
}

/// A key and the certificates for it, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// PKCS#8.
    pub key: String,
    /// The certificate and those between it and its root.
    pub chain: String,
}

enum State {
    Pending,
    Ready(Credentials),
    /// The signer said no; why.
    Ended(String),
}

/// What a pod's worker and the task that asks share.
struct Shelf {
    state: Mutex<State>,
    wake: Mutex<Weak<Notify>>,
}

impl Shelf {
    fn put(&self, state: State) {
        *self.state.lock() = state;
        if let Some(wake) = self.wake.lock().upgrade() {
            wake.notify_one();
        }
    }
}

struct Held {
    shelf: Arc<Shelf>,
    task: JoinHandle<()>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Who asks, and how.
#[derive(Clone)]
struct Asker {
    client: Client,
    recorder: EventRecorder,
    clock: Clock,
    node_name: String,
}

/// The certificates of this node's pods.
pub(crate) struct PodCertificates {
    asker: Option<Asker>,
    held: Mutex<HashMap<Place, Held>>,
}

impl PodCertificates {
    /// Asks as the node.
    pub(crate) fn new(client: Client, recorder: EventRecorder, clock: Clock, node_name: &str) -> Self {
        let asker = Asker { client, recorder, clock, node_name: node_name.to_owned() };
        Self { asker: Some(asker), held: Mutex::default() }
    }

    /// Without an API server: every request fails.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self { asker: None, held: Mutex::default() }
    }

    /// Forgets the keys of a pod that is gone.
    pub(crate) fn forget(&self, pod_uid: &str) {
        self.held.lock().retain(|place, _| place.pod_uid != pod_uid);
    }

    /// The credentials of a source, which are asked for with the first call; `wake` is told when there are others.
    ///
    /// # Errors
    /// Where there are none yet, or will be none; the text is upstream's.
    pub(crate) fn get(
        &self,
        pod: &Pod,
        place: &Place,
        source: &PodCertificateProjection,
        wake: &Arc<Notify>,
    ) -> Result<Credentials, String> {
        let asker = self.asker.as_ref().ok_or("no API server")?;
        let mut held = self.held.lock();
        let held = held.entry(place.clone()).or_insert_with(|| {
            let shelf = Arc::new(Shelf { state: Mutex::new(State::Pending), wake: Mutex::default() });
            let asking = keep(asker.clone(), pod.clone(), source.clone(), shelf.clone());
            Held { shelf, task: tokio::spawn(asking) }
        });
        *held.shelf.wake.lock() = Arc::downgrade(wake);
        match &*held.shelf.state.lock() {
            State::Pending => Err("credential bundle is not issued yet".into()),
            State::Ready(credentials) => Ok(credentials.clone()),
            State::Ended(why) => Err(why.clone()),
        }
    }
}

/// What became of a request.
enum Outcome {
    Issued { chain: String, renew_at: Timestamp, ends_at: Timestamp },
    Denied { reason: String, message: String },
    Failed { reason: String, message: String },
}

/// Asks, and asks again when it is time.
async fn keep(asker: Asker, pod: Pod, source: PodCertificateProjection, shelf: Arc<Shelf>) {
    let mut due: Option<(Timestamp, Timestamp)> = None;
    loop {
        let (request, key, outcome) = tokio::select! {
            answered = asker.obtain(&pod, &source) => answered,
            () = asker.warn(&pod, due) => return,
        };
        let (what, reason, message) = match outcome {
            Outcome::Issued { chain, renew_at, ends_at } => {
                let spread = Duration::from_millis(RandomState::new().hash_one(&request) % SPREAD);
                let renew_at = renew_at.checked_add(spread).unwrap_or(renew_at);
                shelf.put(State::Ready(Credentials { key, chain }));
                due = Some((renew_at, ends_at));
                asker.sleep_until(renew_at).await;
                continue;
            }
            Outcome::Denied { reason, message } => ("Denied", reason, message),
            Outcome::Failed { reason, message } => ("Failed", reason, message),
        };
        let was = if what == "Denied" { "was denied" } else { "failed" };
        let told = format!("PodCertificateRequest {request} {was}, reason={reason:?}, message={message:?}");
        asker.recorder.warning(&pod, what, &told);
        let how = what.to_lowercase();
        let why = format!("PodCertificateRequest was permanently {how}: reason={reason:?} message={message:?}");
        return shelf.put(State::Ended(why));
    }
}

impl Asker {
    async fn sleep_until(&self, at: Timestamp) {
        let left = at.duration_since(self.clock.now());
        tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
    }

    /// Tells of a certificate whose renewal (the first time) is overdue, and of its end (the second). Never returns.
    async fn warn(&self, pod: &Pod, due: Option<(Timestamp, Timestamp)>) {
        if let Some((renew_at, ends_at)) = due {
            let overdue = renew_at.checked_add(OVERDUE).unwrap_or(ends_at);
            self.sleep_until(overdue).await;
            self.recorder.warning(pod, "CertificateOverdueForRefresh", "PodCertificate refresh overdue");
            self.sleep_until(ends_at).await;
            self.recorder.warning(pod, "CertificateExpired", "PodCertificate expired");
        }
        std::future::pending::<()>().await;
    }

    /// Namespace and name of an answered request, its key, and the answer. Tries until there is one.
    async fn obtain(&self, pod: &Pod, source: &PodCertificateProjection) -> (String, String, Outcome) {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));
        loop {
            match self.ask(pod, source).await {
                Ok(answered) => return answered,
                Err(error) => {
                    let pod = crate::pod::names::pod_description(pod);
                    tracing::warn!(%pod, signer = source.signer_name, %error, "no certificate for a pod yet");
                }
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    async fn ask(&self, pod: &Pod, source: &PodCertificateProjection) -> Result<(String, String, Outcome), String> {
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        let namespace = text(&pod.metadata.namespace);
        let account = pod.spec.as_ref().map(|s| text(&s.service_account_name)).unwrap_or_default();
        let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), &namespace);
        let found = accounts.get(&account).await.map_err(|e| format!("while fetching service account: {e}"))?;
        let node = Api::<Node>::all(self.client.clone()).get(&self.node_name).await;
        let node = node.map_err(|e| format!("while getting node object: {e}"))?;
        let kind = source.key_type.clone();
        // An RSA key takes a second to find.
        let made = tokio::task::spawn_blocking(move || key_and_request(&kind)).await;
        let (key, request) = made.map_err(|e| e.to_string())?.map_err(|e| format!("while generating keypair: {e}"))?;
        let (pod_name, pod_uid) = (text(&pod.metadata.name), text(&pod.metadata.uid));
        let object = PodCertificateRequest {
            metadata: ObjectMeta {
                namespace: Some(namespace.clone()),
                generate_name: Some("req-".into()),
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".into(),
                    kind: "Pod".into(),
                    name: pod_name.clone(),
                    uid: pod_uid.clone(),
                    ..OwnerReference::default()
                }]),
                ..ObjectMeta::default()
            },
            spec: PodCertificateRequestSpec {
                signer_name: source.signer_name.clone(),
                pod_name,
                pod_uid,
                service_account_name: account,
                service_account_uid: text(&found.metadata.uid),
                node_name: self.node_name.clone(),
                node_uid: text(&node.metadata.uid),
                max_expiration_seconds: source.max_expiration_seconds,
                stub_pkc_s10_request: ByteString(request),
                unverified_user_annotations: source.user_annotations.clone(),
            },
            status: None,
        };
        let api = Api::<PodCertificateRequest>::namespaced(self.client.clone(), &namespace);
        let made = api.create(&PostParams::default(), &object).await;
        let name = text(&made.map_err(|e| format!("while creating on API: {e}"))?.metadata.name);
        let selector = format!("metadata.name={name},spec.nodeName={}", self.node_name);
        let outcome = answer(&api, &name, &selector, |r| Ok(outcome_of(&r))).await;
        let outcome = outcome.map_err(|e| e.to_string())?;
        Ok((format!("{namespace}/{name}"), key, outcome))
    }
}

fn outcome_of(request: &PodCertificateRequest) -> Option<Outcome> {
    let condition = end(request)?;
    let (reason, message) = (condition.reason.clone(), condition.message.clone());
    match condition.type_.as_str() {
        "Denied" => Some(Outcome::Denied { reason, message }),
        "Failed" => Some(Outcome::Failed { reason, message }),
        _ => {
            let status = request.status.as_ref()?;
            let chain = pem::blocks(status.certificate_chain.as_deref().unwrap_or_default());
            let chain = chain.iter().map(|b| pem::encode(CERTIFICATE, &b.der)).collect();
            let (renew_at, ends_at) = (status.begin_refresh_at.as_ref()?.0, status.not_after.as_ref()?.0);
            Some(Outcome::Issued { chain, renew_at, ends_at })
        }
    }
}

/// A new key in PEM, and the request signed with it, which names nobody, in DER.
fn key_and_request(kind: &str) -> Result<(String, Vec<u8>), String> {
    let made = match kind {
        "RSA3072" => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_3072),
        "RSA4096" => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_4096),
        "ECDSAP256" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
        "ECDSAP384" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
        "ECDSAP521" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512),
        "ED25519" => KeyPair::generate_for(&rcgen::PKCS_ED25519),
        other => return Err(format!("unknown key type {other:?}")),
    };
    let key = made.map_err(|e| e.to_string())?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key).map_err(|e| e.to_string())?;
    Ok((pem::encode("PRIVATE KEY", key.serialized_der()), request.der().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use bytes::Bytes;
    use gantry_api::kind::Kind;
    use gantry_client::{Body, Transport, TransportError};
    use http::{Method, Request, Response};
    use http_body_util::{BodyExt, Full};
    use serde_json::{Value, json};

    /// A server whose signer answers so many requests and no more.
    struct Signer {
        clock: Clock,
        answers: usize,
        asked: Mutex<Vec<Value>>,
        events: Mutex<Vec<String>>,
    }

    impl Signer {
        /// The last request as it is answered; None where it is not.
        fn answer(&self) -> Option<Value> {
            let asked = self.asked.lock();
            let mut request = asked.last().filter(|_| asked.len() <= self.answers)?.clone();
            let after = |minutes| self.clock.now() + k8s_openapi::jiff::SignedDuration::from_mins(minutes);
            let condition = json!({"type": "Issued", "status": "True", "reason": "R", "message": "",
                "lastTransitionTime": after(0)});
            request["status"] = json!({"conditions": [condition], "beginRefreshAt": after(30), "notAfter": after(60),
                "certificateChain": pem::encode(CERTIFICATE, b"x")});
            Some(request)
        }
    }

    #[async_trait]
    impl Transport for Signer {
        async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
            let kind = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            let mut body: Value = serde_json::from_slice(request.body()).unwrap_or_default();
            let answer = match (request.method(), kind.as_str()) {
                (&Method::POST, "podcertificaterequests") => {
                    let mut asked = self.asked.lock();
                    body["metadata"]["name"] = format!("req-{}", asked.len()).into();
                    asked.push(body.clone());
                    body
                }
                (&Method::POST, "events") => {
                    self.events.lock().push(body["reason"].as_str().unwrap().to_owned());
                    body
                }
                (&Method::GET, "podcertificaterequests") => match self.answer() {
                    Some(request) => json!({"type": "ADDED", "object": request}),
                    None => std::future::pending().await,
                },
                _ => json!({"metadata": {"name": kind, "uid": "u"}}),
            };
            let body = Full::new(Bytes::from(format!("{answer}\n"))).map_err(|never| match never {}).boxed();
            Ok(Response::new(body))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn asked_for_renewed_and_at_last_overdue() {
        let clock = Clock::starting_at(Timestamp::UNIX_EPOCH);
        let (asked, events) = (Mutex::default(), Mutex::default());
        let signer = Arc::new(Signer { clock, answers: 2, asked, events });
        let client = Client::new(signer.clone(), "kubelet/test");
        let recorder = EventRecorder::new(client.clone(), clock, "kubelet", "n");
        let all = PodCertificates::new(client, recorder, clock, "n");
        let pod = Pod::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "1"},
            "spec": {"serviceAccountName": "default", "containers": []}}))
        .unwrap();
        let source = serde_json::from_value(json!({"signerName": "a.b/c", "keyType": "ECDSAP256"})).unwrap();
        let place = Place { pod_uid: "1".into(), volume: "v".into(), source: 0 };
        let wake = Arc::new(Notify::new());
        let get = || all.get(&pod, &place, &source, &wake);
        assert_eq!(get().unwrap_err(), "credential bundle is not issued yet");
        wake.notified().await;
        let first = get().unwrap();
        assert_eq!(first.chain, pem::encode(CERTIFICATE, b"x"));
        let spec = signer.asked.lock()[0]["spec"].clone();
        assert_eq!(
            (&spec["podUID"], &spec["nodeUID"], &spec["serviceAccountName"]),
            (&json!("1"), &json!("u"), &json!("default"))
        );
        let from = clock.now();
        wake.notified().await;
        let second = get().unwrap();
        assert_ne!(first.key, second.key);
        let minutes = clock.now().duration_since(from).as_mins();
        assert!((30..=36).contains(&minutes), "{minutes}");
        while signer.events.lock().len() < 2 {
            tokio::time::sleep(OVERDUE).await;
        }
        assert_eq!(*signer.events.lock(), ["CertificateOverdueForRefresh", "CertificateExpired"]);
        assert_eq!(get(), Ok(second), "what has ended stays until there is another");
        all.forget("1");
        assert!(all.held.lock().is_empty());
    }

    #[test]
    fn every_kind_of_key_makes_a_request_the_server_accepts() {
        for kind in ["RSA3072", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"] {
            let (key, request) = key_and_request(kind).unwrap();
            let [block] = <[pem::Block; 1]>::try_from(pem::blocks(&key)).unwrap();
            assert_eq!(block.label, "PRIVATE KEY");
            let spec = json!({"signerName": "a.b/c", "podName": "p", "podUID": "1", "serviceAccountName": "s",
                "serviceAccountUID": "2", "nodeName": "n", "nodeUID": "3", "maxExpirationSeconds": 3600,
                "stubPKCS10Request": ByteString(request)});
            let object = PodCertificateRequest::from_value(json!({"metadata": {"name": "r"}, "spec": spec})).unwrap();
            assert!(Kind::validate(&object).is_empty(), "{kind}: {:?}", Kind::validate(&object));
        }
        assert_eq!(key_and_request("DSA").unwrap_err(), "unknown key type \"DSA\"");
    }

    #[test]
    fn what_the_conditions_tell() {
        let told = |status: Value| {
            let status = Some(serde_json::from_value(status).unwrap());
            outcome_of(&PodCertificateRequest { status, ..Default::default() })
        };
        let condition = |t: &str| {
            json!([{"type": t, "status": "True", "reason": "R", "message": "m",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}])
        };
        assert!(told(json!({})).is_none());
        assert!(
            matches!(told(json!({"conditions": condition("Denied")})), Some(Outcome::Denied { reason, .. }) if reason == "R")
        );
        assert!(matches!(told(json!({"conditions": condition("Failed")})), Some(Outcome::Failed { .. })));
        let chain = format!("about\n{}", pem::encode(CERTIFICATE, b"x"));
        let issued = told(json!({"conditions": condition("Issued"), "certificateChain": chain,
            "beginRefreshAt": "2026-01-01T00:10:00Z", "notAfter": "2026-01-01T01:00:00Z"}));
        let Some(Outcome::Issued { chain, .. }) = issued else { panic!("not issued") };
        assert_eq!(chain, pem::encode(CERTIFICATE, b"x"), "what is not PEM is dropped");
    }
}
