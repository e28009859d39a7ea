//! A driver of dynamic resource allocation on the node: it registers, makes devices ready before their pods start,
//! describes them to containers, and takes them back when the pods have ended, also those that end while the agent is
//! away. And a plugin of the older sort, whose devices the node counts.

mod cluster;

use cluster::Cluster;
use cluster::api::Api;
use cluster::busybox;
use cluster::pods::pod;
use cluster::socket::Socket;
use gantry_grpc::{Answer, Channel, Code, Message, Service, Status, Target};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

#[derive(Clone, PartialEq, prost::Message)]
struct PluginInfo {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    endpoint: String,
    #[prost(string, repeated, tag = "4")]
    versions: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RegistrationStatus {
    #[prost(bool, tag = "1")]
    registered: bool,
    #[prost(string, tag = "2")]
    error: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Claim {
    #[prost(string, tag = "1")]
    namespace: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Claims {
    #[prost(message, repeated, tag = "1")]
    claims: Vec<Claim>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Device {
    #[prost(string, repeated, tag = "1")]
    requests: Vec<String>,
    #[prost(string, tag = "2")]
    pool: String,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(string, repeated, tag = "4")]
    cdi: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Prepared {
    #[prost(message, repeated, tag = "1")]
    devices: Vec<Device>,
    #[prost(string, tag = "2")]
    error: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AllPrepared {
    #[prost(btree_map = "string, message", tag = "1")]
    claims: BTreeMap<String, Prepared>,
}

/// An answer to a claim that is given back: an error, or nothing.
#[derive(Clone, PartialEq, prost::Message)]
struct Unprepared {
    #[prost(string, tag = "1")]
    error: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AllUnprepared {
    #[prost(btree_map = "string, message", tag = "1")]
    claims: BTreeMap<String, Unprepared>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DeviceId {
    #[prost(string, tag = "1")]
    pool: String,
    #[prost(string, tag = "2")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DeviceHealth {
    #[prost(message, optional, tag = "1")]
    device: Option<DeviceId>,
    #[prost(int32, tag = "2")]
    health: i32,
    #[prost(int64, tag = "4")]
    believed: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Health {
    #[prost(message, repeated, tag = "1")]
    devices: Vec<DeviceHealth>,
}

/// A driver with one device, `/dev/null` by another name.
struct Driver {
    name: String,
    /// `prepare NAME`, `unprepare NAME`.
    calls: Mutex<Vec<String>>,
    told: Mutex<Vec<RegistrationStatus>>,
    /// Streams of the devices' health.
    health: Mutex<Vec<tokio::sync::mpsc::Sender<bytes::Bytes>>>,
}

impl Driver {
    fn called(&self, call: &str) -> usize {
        self.calls.lock().unwrap().iter().filter(|c| *c == call).count()
    }
}

#[async_trait::async_trait]
impl Service for Driver {
    async fn call(&self, method: &str, request: bytes::Bytes) -> Result<Answer, Status> {
        let note = |what: &str, claim: &Claim| self.calls.lock().unwrap().push(format!("{what} {}", claim.name));
        match method {
            "/pluginregistration.Registration/GetInfo" => Ok(Answer::of(&PluginInfo {
                kind: "DRAPlugin".into(),
                name: self.name.clone(),
                endpoint: String::new(),
                versions: vec!["v1beta1.DRAPlugin".into(), "v1.DRAPlugin".into(), "v1.DRAResourceHealth".into()],
            })),
            "/v1.DRAResourceHealth/NodeWatchResources" => {
                let (sender, receiver) = tokio::sync::mpsc::channel(1);
                let device = DeviceHealth {
                    device: Some(DeviceId { pool: "node-1".into(), name: "gpu0".into() }),
                    health: 1,
                    believed: 3600,
                };
                sender.try_send(Health { devices: vec![device] }.encode_to_vec().into()).unwrap();
                self.health.lock().unwrap().push(sender);
                Ok(Answer::Many(receiver))
            }
            "/pluginregistration.Registration/NotifyRegistrationStatus" => {
                self.told.lock().unwrap().push(RegistrationStatus::decode(request).unwrap());
                Ok(Answer::of(&RegistrationStatus::default()))
            }
            "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodePrepareResources" => {
                let mut out = AllPrepared::default();
                for claim in Claims::decode(request).unwrap().claims {
                    note("prepare", &claim);
                    let device = Device {
                        requests: vec!["gpu".into()],
                        pool: "node-1".into(),
                        name: "gpu0".into(),
                        cdi: vec![format!("{}/gpu=gpu0", self.name)],
                    };
                    out.claims.insert(claim.uid, Prepared { devices: vec![device], error: String::new() });
                }
                Ok(Answer::of(&out))
            }
            "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodeUnprepareResources" => {
                let mut out = AllUnprepared::default();
                for claim in Claims::decode(request).unwrap().claims {
                    note("unprepare", &claim);
                    out.claims.insert(claim.uid, Unprepared::default());
                }
                Ok(Answer::of(&out))
            }
            _ => Err(Status::new(Code::UNIMPLEMENTED, method)),
        }
    }
}

/// A file in the directory that all machines share; gone with the test.
struct Described(PathBuf);

impl Described {
    fn write(driver: &str, shared: &std::path::Path) -> Self {
        let directory = PathBuf::from("/var/run/cdi");
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join(format!("{driver}.json"));
        let edits = json!({
            "env": ["GPU=zero"],
            "deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/null"}],
            "mounts": [{"hostPath": shared, "containerPath": "/gpu", "options": ["ro", "rbind"]}],
        });
        let device = json!({"name": "gpu0", "containerEdits": edits});
        let text = json!({"cdiVersion": "0.6.0", "kind": format!("{driver}/gpu"), "devices": [device]}).to_string();
        std::fs::write(&file, text).unwrap();
        Self(file)
    }
}

impl Drop for Described {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

const CLAIMS: &str = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims";

/// A claim, and a pod of this node that has it. What the scheduler would write is written by hand.
fn pod_with_claim(api: &Api<'_>, driver: &str, name: &str, script: &str) {
    let request = json!({"name": "gpu", "exactly": {"deviceClassName": "gpu"}});
    api.create(CLAIMS, &json!({"metadata": {"name": name}, "spec": {"devices": {"requests": [request]}}}));
    let container = json!({
        "command": ["sh", "-c", script],
        "resources": {"claims": [{"name": "device"}]},
    });
    let restarts = if name == "ends" { "Never" } else { "Always" };
    let claims = json!([{"name": "device", "resourceClaimName": name}]);
    let spec = json!({"nodeName": "node-1", "restartPolicy": restarts, "resourceClaims": claims});
    let made = api.create("/api/v1/namespaces/default/pods", &pod(name, &container, &spec));
    let result = json!({"request": "gpu", "driver": driver, "pool": "node-1", "device": "gpu0"});
    let reserved = json!([{"resource": "pods", "name": name, "uid": made["metadata"]["uid"]}]);
    api.edit(&format!("{CLAIMS}/{name}/status"), |claim| {
        claim["status"] = json!({"allocation": {"devices": {"results": [result]}}, "reservedFor": reserved});
    });
}

fn events(cluster: &Cluster, pod: &str) -> String {
    let selector = format!("involvedObject.name={pod}");
    cluster.jsonpath(&["events", "--field-selector", &selector], "{range .items[*]}{.reason}: {.message}{\"\\n\"}{end}")
}

fn slice(driver: &str) -> Value {
    let pool = json!({"name": "node-1", "generation": 1, "resourceSliceCount": 1});
    json!({
        "metadata": {"name": format!("node-1-{driver}")},
        "spec": {"driver": driver, "nodeName": "node-1", "pool": pool, "devices": [{"name": "gpu0"}]},
    })
}

#[test]
fn devices_are_prepared_given_and_taken_back() {
    let mut cluster = Cluster::start();
    busybox::import(&cluster);
    let name = format!("gpu-{}.example.com", std::process::id());
    let shared = cluster.data_dir().join("shared");
    std::fs::create_dir_all(&shared).unwrap();
    std::fs::write(shared.join("firmware"), "seven").unwrap();
    let described = Described::write(&name, &shared);
    let driver = Arc::new(Driver {
        name: name.clone(),
        calls: Mutex::default(),
        told: Mutex::default(),
        health: Mutex::default(),
    });
    let socket = cluster.data_dir().join(format!("node/kubelet/plugins_registry/{name}-reg.sock"));
    let api = Api::new(&cluster);
    let class = json!({"metadata": {"name": "gpu"}, "spec": {}});
    api.create("/apis/resource.k8s.io/v1/deviceclasses", &class);

    // Without its driver the pod waits, and says for what.
    let script = "echo $GPU $(cat /gpu/firmware); test -c /dev/gpu0 && echo x > /dev/gpu0 && echo device; \
                  touch /gpu/x 2>/dev/null || echo read-only; sleep 1000000";
    pod_with_claim(&api, &name, "stays", script);
    let wanted = format!(
        "FailedPrepareDynamicResources: Failed to prepare dynamic resources: prepare dynamic resources: DRA driver {name} is \
         not registered"
    );
    cluster.wait_for("what the pod waits for", || events(&cluster, "stays").contains(&wanted).then_some(()));
    let plugin = Socket::listen(&socket, driver.clone());
    cluster.ready("stays");
    assert_eq!(driver.called("prepare stays"), 1);
    let told = driver.told.lock().unwrap().clone();
    assert_eq!(told, [RegistrationStatus { registered: true, error: String::new() }]);
    let log = cluster.wait_for("the container's words", || {
        let log = cluster.kubectl(&["logs", "stays"]);
        log.contains("read-only").then_some(log)
    });
    assert_eq!(log, "zero seven\ndevice\nread-only\n");

    let wanted = json!([{"name": "claim:device", "resources": [{"resourceID": format!("{name}/gpu=gpu0"), "health": "Healthy"}]}]);
    api.until("/api/v1/namespaces/default/pods/stays", "with the health of its device", |pod| {
        pod["status"]["containerStatuses"][0]["allocatedResourcesStatus"] == wanted
    });

    // A pod that ends by itself gives its device back.
    pod_with_claim(&api, &name, "ends", "echo $GPU");
    cluster.wait_for("the device of a pod that ended to be given back", || {
        (driver.called("unprepare ends") == 1).then_some(())
    });
    assert_eq!((driver.called("prepare ends"), driver.called("unprepare stays")), (1, 0));

    // The driver is away while a pod is deleted for good, and the agent ends before it is back: the next one gives the
    // device back. Slices are removed at its start; drivers publish them anew.
    pod_with_claim(&api, &name, "goes", "sleep 1000000");
    cluster.ready("goes");
    api.create("/apis/resource.k8s.io/v1/resourceslices", &slice(&name));
    drop(plugin);
    cluster.kubectl(&["delete", "pod", "goes", "--force", "--grace-period=0", "--wait=false"]);
    cluster.kill();
    cluster.up();
    assert_eq!(driver.called("unprepare goes"), 0);
    let plugin = Socket::listen(&socket, driver.clone());
    cluster.wait_for("the device of the pod that is gone to be given back", || {
        (driver.called("unprepare goes") == 1).then_some(())
    });
    let api = Api::new(&cluster);
    api.gone(&format!("/apis/resource.k8s.io/v1/resourceslices/node-1-{name}"));
    assert_eq!((driver.called("prepare stays"), driver.called("unprepare stays")), (1, 0), "its container runs on");
    cluster.kubectl(&["delete", "pod", "stays"]);
    assert_eq!(driver.called("unprepare stays"), 1, "before the pod is gone");

    // A device nobody describes.
    drop(described);
    pod_with_claim(&api, &name, "bare", "true");
    let missing = format!("CDI device injection failed: unresolvable CDI devices {name}/gpu=gpu0");
    cluster.wait_for("the reason of the container that cannot be made", || {
        let waiting =
            api.get("/api/v1/namespaces/default/pods/bare")["status"]["containerStatuses"][0]["state"]["waiting"]
                .clone();
        (waiting["reason"] == "CreateContainerError" && waiting["message"] == missing.as_str()).then_some(())
    });
    cluster.kubectl(&["delete", "pod", "bare"]);
    assert_eq!(driver.called("unprepare bare"), 1);
    drop(plugin);
    counted_devices(&cluster, &api);
}

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
struct RegisterRequest {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    endpoint: String,
    #[prost(string, tag = "3")]
    resource: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Widget {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    health: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AllWidgets {
    #[prost(message, repeated, tag = "1")]
    devices: Vec<Widget>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Ids {
    #[prost(string, repeated, tag = "1")]
    ids: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Allocate {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<Ids>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Given {
    #[prost(btree_map = "string, string", tag = "1")]
    env: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AllGiven {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<Given>,
}

/// A plugin of the older sort, with two devices.
#[derive(Default)]
struct Widgets {
    lists: Mutex<Vec<tokio::sync::mpsc::Sender<bytes::Bytes>>>,
}

#[async_trait::async_trait]
impl Service for Widgets {
    async fn call(&self, method: &str, request: bytes::Bytes) -> Result<Answer, Status> {
        match method {
            "/v1beta1.DevicePlugin/GetDevicePluginOptions" => Ok(Answer::of(&Empty {})),
            "/v1beta1.DevicePlugin/ListAndWatch" => {
                let (sender, receiver) = tokio::sync::mpsc::channel(1);
                let device = |id: &str| Widget { id: id.into(), health: "Healthy".into() };
                sender.try_send(AllWidgets { devices: vec![device("a"), device("b")] }.encode_to_vec().into()).unwrap();
                self.lists.lock().unwrap().push(sender);
                Ok(Answer::Many(receiver))
            }
            "/v1beta1.DevicePlugin/Allocate" => {
                let given = |ids: Ids| Given { env: BTreeMap::from([("WIDGETS".into(), ids.ids.join(" "))]) };
                let containers = Allocate::decode(request).unwrap().containers.into_iter().map(given).collect();
                Ok(Answer::of(&AllGiven { containers }))
            }
            _ => Err(Status::new(Code::UNIMPLEMENTED, method)),
        }
    }
}

const WIDGET: &str = "example.com/widget";

fn counted_devices(cluster: &Cluster, api: &Api<'_>) {
    let directory = cluster.data_dir().join("node/kubelet/device-plugins");
    let plugin = Socket::listen(&directory.join("widget.sock"), Arc::new(Widgets::default()));
    let kubelet = Channel::new(Target::Unix(directory.join("kubelet.sock")));
    let request =
        RegisterRequest { version: "v1beta1".into(), endpoint: "widget.sock".into(), resource: WIDGET.into() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let registering = kubelet.unary::<_, Empty>("/v1beta1.Registration/Register", &request, cluster::PATIENCE);
    runtime.block_on(registering).unwrap();
    let counted = |capacity: &'static str, allocatable: &'static str| {
        api.until("/api/v1/nodes/node-1", "with the plugin's devices", |node| {
            node["status"]["capacity"][WIDGET] == capacity && node["status"]["allocatable"][WIDGET] == allocatable
        });
    };
    counted("2", "2");
    let asking = |name: &str, n: &str| {
        let container =
            json!({"command": ["sh", "-c", "echo $WIDGETS; sleep 1000000"], "resources": {"limits": {WIDGET: n}}});
        api.create("/api/v1/namespaces/default/pods", &pod(name, &container, &json!({})));
    };
    asking("two", "2");
    cluster.ready("two");
    cluster.wait_for("the container's words", || (cluster.kubectl(&["logs", "two"]) == "a b\n").then_some(()));
    asking("more", "1");
    cluster.wait_for("the reason of the pod that finds none", || {
        events(cluster, "more").contains("Insufficient example.com/widget").then_some(())
    });
    cluster.kubectl(&["delete", "pod", "two"]);
    cluster.ready("more");
    let status = api.get("/api/v1/namespaces/default/pods/more")["status"]["containerStatuses"][0].clone();
    let wanted = json!([{"name": WIDGET, "resources": [{"resourceID": "a", "health": "Healthy"}]}]);
    assert_eq!(status["allocatedResourcesStatus"], wanted);
    drop(plugin);
    counted("2", "0");
}
