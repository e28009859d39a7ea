//! An API server over a memory store with all controllers, and nodes that run pods in name only.

#![allow(dead_code, reason = "every test binary uses another part of this module")]

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use gantry_api::clock::Clock;
use gantry_api::entropy::Entropy;
use gantry_api::k8s_openapi::jiff::Timestamp;
use gantry_api::kind::Kind;
use gantry_api::meta::object::Meta;
use gantry_client::{
    Api, Body, Client, DeleteParams, ListParams, Patch, PatchParams, PostParams, Transport, TransportError,
};
use gantry_controllers::{ALL, ControllersConfig};
use gantry_reconcile::Informers;
use gantry_server::authn::UserInfo;
use gantry_server::config::ComponentRole;
use gantry_server::{Server, ServerConfig};
use gantry_store::MemoryStore;
use http::{Request, Response};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Binding, ConfigMap, Namespace, Node, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::PolicyRule;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

struct InProcess {
    server: Arc<Server>,
    user: UserInfo,
    /// Watches of whole objects whose path ends with this deliver nothing.
    stalled: Option<watch::Receiver<Option<&'static str>>>,
}

#[async_trait]
impl Transport for InProcess {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
        let is_partial = request.headers().get("accept").is_some_and(|a| a.to_str().unwrap().contains("PartialObject"));
        let is_watch = !is_partial && request.uri().query().is_some_and(|q| q.contains("watch=true"));
        let stalled = self.stalled.clone().filter(|_| is_watch);
        let path = request.uri().path().to_owned();
        let response = self.server.call(request, self.user.clone()).await;
        let error = |message| TransportError { context: "in-process request".into(), message };
        Ok(response.map(|body| {
            let body = body.map_err(move |e| error(e.to_string()));
            let Some(stalled) = stalled else { return body.boxed() };
            let frames = BodyStream::new(body).then(move |frame| {
                let (mut stalled, path) = (stalled.clone(), path.clone());
                async move {
                    let flows = |stalled: &Option<&str>| !stalled.is_some_and(|end| path.ends_with(end));
                    stalled.wait_for(flows).await.map_err(|e| error(e.to_string()))?;
                    frame
                }
            });
            BodyExt::boxed(StreamBody::new(frames))
        }))
    }
}

fn client(server: &Arc<Server>, user: &str, groups: &[&str], name: &str) -> Client {
    let transport = InProcess { server: server.clone(), user: UserInfo::new(user, groups), stalled: None };
    Client::new(Arc::new(transport), name)
}

/// The cluster. Everything in it ends with the test's runtime.
pub struct Cluster {
    /// A client that may do anything.
    pub admin: Client,
    /// Shared caches.
    pub informers: Informers,
    /// The shared cache of the resource whose path ends with this stands still.
    pub stall: watch::Sender<Option<&'static str>>,
}

fn server_config() -> ServerConfig {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = Issuer::new(ca, &ca_key);
    let key = KeyPair::generate().unwrap();
    let serving = CertificateParams::new(vec!["localhost".into()]).unwrap();
    let certificate = serving.signed_by(&key, &issuer).unwrap().pem();
    let signing_key = KeyPair::generate().unwrap().serialize_pem();
    ServerConfig {
        component_roles: ALL
            .iter()
            .map(|e| ComponentRole { name: e.name.to_owned(), rules: e.rules.iter().map(PolicyRule::from).collect() })
            .collect(),
        ..ServerConfig::in_process(&ca_pem, &certificate, &key.serialize_pem(), &signing_key)
    }
}

impl Cluster {
    /// A cluster with a namespace in which everything is that controllers put into each, and no nodes.
    pub async fn furnished() -> Self {
        let c = Self::start().await;
        c.namespace().await;
        c.until("the namespace is furnished", || async {
            let account = c.api::<ServiceAccount>().get("default").await.is_ok();
            account && c.api::<ConfigMap>().get("kube-root-ca.crt").await.is_ok()
        })
        .await;
        c
    }

    /// The same with a node that runs, in name only, every pod there is.
    pub async fn with_node() -> Self {
        let c = Self::furnished().await;
        c.node("node").await;
        c.heartbeat("node");
        c
    }

    /// Starts server and controllers.
    pub async fn start() -> Self {
        let clock = Clock::starting_at(Timestamp::from_second(1_800_000_000).unwrap());
        let entropy = Entropy::seeded(11);
        let server = Server::new(server_config(), Arc::new(MemoryStore::new()), clock, entropy.clone()).await.unwrap();
        let (stall, stalled) = watch::channel(None);
        let manager = InProcess {
            server: server.clone(),
            user: UserInfo::new("system:kube-controller-manager", &[]),
            stalled: Some(stalled),
        };
        let manager = Client::new(Arc::new(manager), "kube-controller-manager");
        let informers = Informers::new(manager);
        let factory = server.clone();
        let config = ControllersConfig::new(
            clock,
            entropy,
            Arc::new(move |name: &str| {
                let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system"];
                client(&factory, &format!("system:serviceaccount:kube-system:{name}"), &groups, name)
            }),
            "CA".into(),
        );
        let running = informers.clone();
        tokio::spawn(async move { gantry_controllers::run(&running, config, CancellationToken::new()).await });
        let admin = client(&server, "admin", &["system:masters"], "test");
        Self { admin, informers, stall }
    }

    /// All objects of a kind in namespace `n`.
    pub fn api<K: Kind>(&self) -> Api<K> {
        Api::namespaced(self.admin.clone(), "n")
    }

    /// Objects of a kind in namespace `n`.
    pub async fn list<K: Kind>(&self) -> Vec<K> {
        self.api::<K>().list(&ListParams::default()).await.unwrap().items
    }

    /// Creates an object in namespace `n` (or in none).
    pub async fn create<K: Kind>(&self, value: Value) -> K {
        let object = K::from_value(value).unwrap();
        self.api::<K>().create(&PostParams::default(), &object).await.unwrap()
    }

    /// Merge-patches an object.
    pub async fn patch<K: Kind>(&self, name: &str, patch: Value) -> K {
        self.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap()
    }

    /// Makes namespace `n` and waits until pods can be created in it.
    pub async fn namespace(&self) {
        let ns = Namespace::from_value(json!({"metadata": {"name": "n"}})).unwrap();
        Api::<Namespace>::all(self.admin.clone()).create(&PostParams::default(), &ns).await.unwrap();
    }

    /// Lets the node show that it lives, by renewing its Lease.
    pub fn heartbeat(&self, name: &'static str) {
        let api = Api::<Lease>::namespaced(self.admin.clone(), "kube-node-lease");
        tokio::spawn(async move {
            let lease = Lease::from_value(json!({"metadata": {"name": name}, "spec": {"holderIdentity": name}}));
            api.create(&PostParams::default(), &lease.unwrap()).await.unwrap();
            for beat in 0.. {
                let renewed = Patch::Merge(json!({"spec": {"leaseTransitions": beat}}));
                api.patch(name, &PatchParams::default(), &renewed).await.unwrap();
                tokio::time::sleep(Duration::from_secs(10)).await;
            }
        });
    }

    /// Makes a ready node and runs, in name only, every pod there is on it.
    pub async fn node(&self, name: &'static str) {
        let node = Node::from_value(json!({"metadata": {"name": name}})).unwrap();
        let api = Api::<Node>::all(self.admin.clone());
        api.create(&PostParams::default(), &node).await.unwrap();
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]}});
        api.patch_status(name, &PatchParams::default(), &Patch::Strategic(ready)).await.unwrap();
        let (pods, admin) = (self.informers.get::<Pod>(), self.admin.clone());
        let mut changes = pods.changes();
        tokio::spawn(async move {
            let mut address = 0;
            loop {
                for pod in pods.list() {
                    run_in_name_only(&admin, &pod, name, &mut address).await;
                }
                changes.changed().await.unwrap();
            }
        });
    }

    /// Waits until `what` holds, for ten minutes of the paused clock at most.
    pub async fn until<F: Future<Output = bool>>(&self, what: &str, mut holds: impl FnMut() -> F) {
        for _ in 0..1200 {
            if holds().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let mut state = Vec::new();
        for path in [
            "/apis/apps/v1/namespaces/n/deployments",
            "/apis/apps/v1/namespaces/n/replicasets",
            "/apis/batch/v1/namespaces/n/cronjobs",
            "/apis/batch/v1/namespaces/n/jobs",
            "/api/v1/namespaces/n/pods",
        ] {
            let answer = self.admin.call(http::Method::GET, path, None, Bytes::new()).await.unwrap();
            let mut list: Value = serde_json::from_slice(&answer).unwrap();
            for item in list["items"].as_array_mut().into_iter().flatten() {
                item["metadata"]["managedFields"].take();
                item["spec"]["template"].take();
                state.push(format!("{path}: {} {} {}", item["metadata"], item["spec"]["replicas"], item["status"]));
            }
        }
        panic!("never came true: {what}\n{}", state.join("\n"));
    }
}

/// The status of a pod whose container ended with this code.
fn ended(code: i32) -> Patch {
    let terminated = json!({"exitCode": code});
    let container = json!({"name": "c", "image": "i", "imageID": "i", "ready": false, "restartCount": 0,
        "state": {"terminated": terminated}});
    Patch::Strategic(json!({"status": {
        "phase": if code == 0 { "Succeeded" } else { "Failed" }, "containerStatuses": [container],
        "conditions": [{"type": "Ready", "status": "False"}],
    }}))
}

/// Runs a pod: one whose image is `exit-N` ends with that code, one whose image is `broken` never runs, all others do.
async fn run_in_name_only(admin: &Client, pod: &Pod, node: &str, address: &mut u32) {
    let api = Api::<Pod>::namespaced(admin.clone(), pod.metadata.namespace());
    let name = pod.metadata.name();
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    if pod.metadata.deletion_timestamp.is_some() {
        if !matches!(phase, "Succeeded" | "Failed") {
            drop(api.patch_status(name, &PatchParams::default(), &ended(137)).await);
        } else if pod.metadata.deletion_grace_period_seconds == Some(0) {
            // Nothing is left of it but a finalizer.
            return;
        }
        let now = DeleteParams { grace_period_seconds: Some(0), ..Default::default() };
        drop(api.delete(name, &now).await);
        return;
    }
    let spec = pod.spec.as_ref().unwrap();
    if spec.node_name.is_none() {
        let binding = json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": node}});
        let binding = Binding::from_value(binding).unwrap();
        drop(api.post_subresource(name, "binding", &PostParams::default(), &binding).await);
    }
    let image = spec.containers[0].image.as_deref().unwrap_or_default();
    if let Some(code) = image.strip_prefix("exit-")
        && phase != "Succeeded"
        && phase != "Failed"
    {
        drop(api.patch_status(name, &PatchParams::default(), &ended(code.parse().unwrap())).await);
        return;
    }
    let broken = image == "broken" || matches!(phase, "Succeeded" | "Failed");
    if phase != "Running" && !broken {
        *address += 1;
        let ip = format!("10.1.{}.{}", *address / 250, *address % 250 + 1);
        let status = json!({"status": {
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }});
        drop(api.patch_status(name, &PatchParams::default(), &Patch::Strategic(status)).await);
    }
}
