//! Drivers that live in the test, asked over their sockets.

use super::*;
use async_trait::async_trait;
use bytes::Bytes;
use gantry_client::{Body, Transport, TransportError};
use gantry_grpc::{Answer, Code, Message, Service, Status, serve};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

/// An API server that has claims, and takes note of slices that are removed.
#[derive(Default)]
struct FakeApi {
    claims: Mutex<BTreeMap<String, Value>>,
    removed: Mutex<Vec<String>>,
}

#[async_trait]
impl Transport for FakeApi {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
        let name = request.uri().path().rsplit('/').next().unwrap_or_default();
        let (code, answer) = if request.method() == Method::DELETE {
            self.removed.lock().push(request.uri().query().unwrap_or_default().to_owned());
            (200, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
        } else if let Some(claim) = self.claims.lock().get(name) {
            (200, claim.clone())
        } else {
            let message = format!("resourceclaims.resource.k8s.io {name:?} not found");
            (404, json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": message}))
        };
        let body = Full::new(Bytes::from(answer.to_string())).map_err(|never| match never {}).boxed();
        Ok(Response::builder().status(code).body(body).unwrap())
    }
}

/// A plugin: its registration and its driver on one socket.
#[derive(Default)]
struct Plugin {
    /// `DRAPlugin` when empty.
    kind: String,
    versions: Vec<String>,
    calls: Mutex<Vec<String>>,
    told: Mutex<Vec<api::RegistrationStatus>>,
    /// What it says instead of preparing or giving back.
    refusal: Mutex<String>,
    lists: Mutex<Vec<tokio::sync::mpsc::Sender<Bytes>>>,
}

#[async_trait]
impl Service for Plugin {
    async fn call(&self, method: &str, request: Bytes) -> Result<Answer, Status> {
        let claims = || api::Claims::decode(request.clone()).unwrap().claims;
        let note = |what: &str| {
            let names: Vec<String> = claims().into_iter().map(|c| format!("{}/{}", c.namespace, c.name)).collect();
            self.calls.lock().push(format!("{what} {}", names.join(" ")));
        };
        let error = self.refusal.lock().clone();
        match method {
            "/pluginregistration.Registration/GetInfo" => Ok(Answer::of(&api::PluginInfo {
                kind: if self.kind.is_empty() { "DRAPlugin".into() } else { self.kind.clone() },
                name: if self.kind == "DevicePlugin" { "e.com/x".into() } else { "d.example.com".into() },
                endpoint: String::new(),
                supported_versions: self.versions.clone(),
            })),
            "/pluginregistration.Registration/NotifyRegistrationStatus" => {
                self.told.lock().push(api::RegistrationStatus::decode(request).unwrap());
                Ok(Answer::of(&api::Empty {}))
            }
            "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodePrepareResources" => {
                note("prepare");
                let device = |request: &str| api::Device {
                    request_names: vec![request.into()],
                    pool_name: "n1".into(),
                    device_name: request.into(),
                    cdi_device_ids: vec![format!("example.com/d={request}")],
                    share_id: None,
                };
                let prepared = api::Prepared { devices: vec![device("one"), device("two")], error };
                let of = claims().into_iter().map(|c| (c.uid, prepared.clone())).collect();
                Ok(Answer::of(&api::PrepareResponse { claims: of }))
            }
            "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodeUnprepareResources" => {
                note("unprepare");
                let of = claims().into_iter().map(|c| (c.uid, api::Unprepared { error: error.clone() })).collect();
                Ok(Answer::of(&api::UnprepareResponse { claims: of }))
            }
            "/v1beta1.DevicePlugin/GetDevicePluginOptions" => Ok(Answer::of(&api::Empty {})),
            "/v1beta1.DevicePlugin/ListAndWatch" => {
                let (sender, receiver) = tokio::sync::mpsc::channel(1);
                self.lists.lock().push(sender);
                Ok(Answer::Many(receiver))
            }
            _ => Err(Status::new(Code::UNIMPLEMENTED, method)),
        }
    }
}

struct Bench {
    directory: tempfile::TempDir,
    api: Arc<FakeApi>,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { directory: tempfile::tempdir().unwrap(), api: Arc::default() };
        bench.claim("c", &["uid-a", "uid-b"]);
        bench
    }

    /// A claim that is allocated and reserved for these pods.
    fn claim(&self, name: &str, pods: &[&str]) {
        let reserved: Vec<Value> =
            pods.iter().map(|uid| json!({"resource": "pods", "name": "x", "uid": uid})).collect();
        let result = json!({"request": "one", "driver": "d.example.com", "pool": "n1", "device": "one"});
        let claim = json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
            "spec": {},
            "status": {"reservedFor": reserved, "allocation": {"devices": {"results": [result]}}},
        });
        self.api.claims.lock().insert(name.to_owned(), claim);
    }

    /// A run of the agent.
    fn devices(&self) -> Arc<Devices> {
        let client = Client::new(self.api.clone(), "kubelet/test");
        Arc::new(Devices::open(client, "n1", self.directory.path()).unwrap())
    }

    fn plugins(&self) -> PathBuf {
        self.directory.path().join("plugins_registry")
    }

    fn start(&self, plugin: &Arc<Plugin>) -> CancellationToken {
        let stop = CancellationToken::new();
        let listener = UnixListener::bind(self.plugins().join("d-reg.sock")).unwrap();
        tokio::spawn(serve(listener, plugin.clone(), stop.clone()));
        stop
    }
}

fn plugin() -> Arc<Plugin> {
    Arc::new(Plugin { versions: vec!["v1.DRAPlugin".into()], ..Plugin::default() })
}

fn pod(uid: &str, claims: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "default", "uid": uid},
        "spec": {"containers": [{"name": "c", "resources": {"claims": [{"name": "x", "request": "one"}]}}],
                 "resourceClaims": claims},
    }))
    .unwrap()
}

fn with_claim(uid: &str) -> Pod {
    pod(uid, json!([{"name": "x", "resourceClaimName": "c"}]))
}

/// Looks at the directory of plugins all the time: the kernel's news of it reach the runtime of one test only.
fn watch(devices: &Devices, bench: &Bench) -> tokio::task::JoinHandle<()> {
    let mut registration = devices.registration(bench.plugins()).unwrap();
    tokio::spawn(async move {
        loop {
            registration.look().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
}

async fn until(mut check: impl FnMut() -> bool) {
    while !check() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn claims_are_prepared_once_and_given_back_by_the_last_pod() {
    let bench = Bench::new();
    let devices = bench.devices();
    let (one, other) = (with_claim("uid-a"), with_claim("uid-b"));
    let head = "prepare dynamic resources: ";
    assert_eq!(devices.prepare(&one).await, Err(format!("{head}DRA driver d.example.com is not registered")));
    devices.unprepare("uid-a").await.unwrap();
    watch(&devices, &bench);
    let plugin = plugin();
    let stop = bench.start(&plugin);
    until(|| plugin.told.lock().len() == 1).await;
    assert_eq!(plugin.told.lock()[0], api::RegistrationStatus { plugin_registered: true, error: String::new() });

    *plugin.refusal.lock() = "no power".into();
    let error = devices.prepare(&one).await.unwrap_err();
    assert_eq!(error, format!("{head}NodePrepareResources failed for ResourceClaim c: no power"));
    plugin.refusal.lock().clear();
    devices.prepare(&one).await.unwrap();
    devices.prepare(&other).await.unwrap();
    assert_eq!(*plugin.calls.lock(), ["prepare default/c", "prepare default/c"], "the second pod finds it prepared");
    let container = &one.spec.as_ref().unwrap().containers[0];
    assert_eq!(devices.of_container(&one, container).unwrap(), ["example.com/d=one"]);

    devices.unprepare("uid-a").await.unwrap();
    assert_eq!(plugin.calls.lock().len(), 2, "another pod uses it");
    *plugin.refusal.lock() = "busy".into();
    let error = devices.unprepare("uid-b").await.unwrap_err();
    assert_eq!(error, "unprepare dynamic resources: NodeUnprepareResources failed for ResourceClaim c: busy");
    plugin.refusal.lock().clear();
    devices.unprepare("uid-b").await.unwrap();
    devices.unprepare("uid-b").await.unwrap();
    assert_eq!(plugin.calls.lock()[2..], ["unprepare default/c", "unprepare default/c"]);
    let error = devices.of_container(&one, container).unwrap_err();
    assert_eq!(error, "internal error: unable to get claim info for ResourceClaim c in namespace default");

    // Its socket is gone, and so is the driver.
    stop.cancel();
    std::fs::remove_file(bench.plugins().join("d-reg.sock")).unwrap();
    until(|| devices.drivers.get("d.example.com").is_err()).await;
    devices.stop();
}

#[tokio::test]
async fn a_later_run_gives_back_what_pods_left_that_are_gone() {
    let bench = Bench::new();
    let first = bench.devices();
    let watching = watch(&first, &bench);
    let plugin = plugin();
    let stop = bench.start(&plugin);
    until(|| plugin.told.lock().len() == 1).await;
    first.prepare(&with_claim("uid-a")).await.unwrap();
    first.prepare(&with_claim("uid-b")).await.unwrap();
    watching.abort();
    stop.cancel();
    std::fs::remove_file(bench.plugins().join("d-reg.sock")).unwrap();
    first.stop();

    let second = bench.devices();
    watch(&second, &bench);
    let (reconciling, active) = (second.clone(), Arc::new(Mutex::new(BTreeSet::from(["uid-b".to_owned()]))));
    let left = active.clone();
    tokio::spawn(async move { reconciling.reconcile(move || left.lock().clone()).await });
    until(|| second.claims.lock().users().len() == 1).await;
    assert_eq!(plugin.calls.lock().len(), 1, "the other pod still uses it");
    active.lock().clear();
    let stop = bench.start(&plugin);
    until(|| second.claims.lock().users().is_empty()).await;
    assert_eq!(plugin.calls.lock().last().unwrap(), "unprepare default/c");
    assert!(bench.devices().claims.lock().known.is_empty(), "and it is noted");
    stop.cancel();
    second.stop();
}

#[tokio::test]
async fn claims_that_a_pod_may_not_use_are_refused() {
    let bench = Bench::new();
    let devices = bench.devices();
    let failure = async |pod: Pod| {
        let error = devices.prepare(&pod).await.unwrap_err();
        error.strip_prefix("prepare dynamic resources: ").unwrap_or_default().to_owned()
    };
    devices.prepare(&pod("uid-a", json!([]))).await.unwrap();
    let error = failure(with_claim("uid-z")).await;
    assert_eq!(error, "pod p (uid-z) is not allowed to use ResourceClaim c (uid-c)");
    let missing = pod("uid-a", json!([{"name": "x", "resourceClaimName": "m"}]));
    let error = failure(missing).await;
    assert!(error.starts_with("fetch ResourceClaim m: ") && error.contains("not found"), "{error}");
    let mut templated = pod("uid-a", json!([{"name": "x", "resourceClaimTemplateName": "t"}]));
    assert_eq!(failure(templated.clone()).await, "pod \"default/p\": ResourceClaim not created yet");
    let statuses = |name: Value| serde_json::from_value(json!({"resourceClaimStatuses": [name]})).unwrap();
    templated.status = Some(statuses(json!({"name": "x", "resourceClaimName": "c"})));
    let error = failure(templated.clone()).await;
    assert_eq!(error, "ResourceClaim default/c was not created for Pod default/p (Pod is not owner)");
    templated.status = Some(statuses(json!({"name": "x"})));
    devices.prepare(&templated).await.unwrap();
    bench.api.claims.lock().get_mut("c").unwrap()["status"]["allocation"] = Value::Null;
    assert_eq!(failure(with_claim("uid-a")).await, "ResourceClaim c: not allocated");
    assert!(devices.claims.lock().known.is_empty(), "nothing is noted of what cannot be");
}

#[tokio::test]
async fn plugins_of_another_sort_are_told_so() {
    let bench = Bench::new();
    let devices = bench.devices();
    watch(&devices, &bench);
    let plugin = Arc::new(Plugin { versions: vec!["v7.DRAPlugin".into()], ..Plugin::default() });
    let stop = bench.start(&plugin);
    until(|| !plugin.told.lock().is_empty()).await;
    let told = plugin.told.lock()[0].clone();
    let wanted = "RegisterPlugin error -- plugin validation failed with err: invalid supported gRPC versions of DRA driver \
                  plugin d.example.com at endpoint ";
    assert!(!told.plugin_registered && told.error.starts_with(wanted), "{told:?}");
    stop.cancel();
}

#[tokio::test]
async fn the_older_sort_may_register_there_too() {
    let bench = Bench::new();
    let devices = bench.devices();
    watch(&devices, &bench);
    let of = |kind: &str| Arc::new(Plugin { kind: kind.into(), versions: vec!["v1beta1".into()], ..Plugin::default() });
    let plugin = of("DevicePlugin");
    let stop = bench.start(&plugin);
    until(|| !plugin.told.lock().is_empty()).await;
    assert!(plugin.told.lock()[0].plugin_registered);
    until(|| plugin.lists.lock().len() == 1).await;
    let counted = || {
        let mut status = k8s_openapi::api::core::v1::NodeStatus::default();
        devices.classic.show(&mut status);
        status.capacity.is_some_and(|c| c.contains_key("e.com/x"))
    };
    assert!(counted());
    stop.cancel();
    std::fs::remove_file(bench.plugins().join("d-reg.sock")).unwrap();

    let plugin = of("CSIPlugin");
    let stop = bench.start(&plugin);
    until(|| !plugin.told.lock().is_empty()).await;
    let told = plugin.told.lock()[0].error.clone();
    assert!(told.starts_with("RegisterPlugin error -- no handler registered for plugin type: CSIPlugin at socket "));
    stop.cancel();
    let error = classic::validate("e.com/x", &["v2".to_owned()]).unwrap_err();
    assert_eq!(error, "manager version, v1beta1, is not among plugin supported versions [v2]");
    devices.stop();
}

#[tokio::test(start_paused = true)]
async fn slices_of_a_driver_that_does_not_come_back_are_removed() {
    let bench = Bench::new();
    let devices = bench.devices();
    let endpoint = bench.directory.path().join("nobody.sock");
    devices.drivers.add("d.example.com", &endpoint, &["v1.DRAPlugin".to_owned()]).unwrap();
    let twice = devices.drivers.add("d.example.com", &endpoint, &["v1.DRAPlugin".to_owned()]).unwrap_err();
    assert!(twice.ends_with("already registered for DRA driver plugin d.example.com"), "{twice}");
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert!(bench.api.removed.lock().is_empty());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let removed = bench.api.removed.lock().clone();
    assert_eq!(removed.len(), 1, "{removed:?}");
    assert!(removed[0].contains("spec.nodeName%3Dn1%2Cspec.driver%3Dd.example.com"), "{removed:?}");
    devices.stop();
}
