//! A plugin that lives in the test.

use super::*;
use serde_json::json;

/// A plugin with two devices, which are `Healthy` as long as it says so.
#[derive(Default)]
struct Fake {
    options: messages::Options,
    lists: Mutex<Vec<tokio::sync::mpsc::Sender<Bytes>>>,
    calls: Mutex<Vec<String>>,
}

fn list(health: &[(&str, &str)]) -> Bytes {
    let device = |(id, health): &(&str, &str)| messages::Device { id: (*id).into(), health: (*health).into() };
    messages::Devices { devices: health.iter().map(device).collect() }.encode_to_vec().into()
}

#[async_trait]
impl Service for Fake {
    async fn call(&self, method: &str, request: Bytes) -> Result<Answer, Status> {
        let note = |text: String| self.calls.lock().push(text);
        match method.strip_prefix("/v1beta1.DevicePlugin/").unwrap_or_default() {
            "GetDevicePluginOptions" => Ok(Answer::of(&self.options)),
            "ListAndWatch" => {
                let (sender, receiver) = tokio::sync::mpsc::channel(4);
                sender.try_send(list(&[("a", "Healthy"), ("b", "Healthy")])).unwrap();
                self.lists.lock().push(sender);
                Ok(Answer::Many(receiver))
            }
            "GetPreferredAllocation" => {
                let asked = messages::PreferredRequest::decode(request).unwrap().containers.remove(0);
                note(format!("prefer {} of {:?}", asked.size, asked.available));
                let ids = Ids { ids: vec!["b".into()] };
                Ok(Answer::of(&messages::PreferredResponse { containers: vec![ids] }))
            }
            "Allocate" => {
                let ids = AllocateRequest::decode(request).unwrap().containers.remove(0).ids;
                note(format!("allocate {}", ids.join(" ")));
                if self.calls.lock().iter().any(|c| c == "refuse") {
                    return Err(Status::new(Code::UNKNOWN, "no power"));
                }
                let given = ContainerResponse {
                    env: BTreeMap::from([("DEVICES".into(), ids.join(" "))]),
                    mounts: vec![messages::Mount {
                        container_path: "/m".into(),
                        host_path: "/h".into(),
                        read_only: true,
                    }],
                    nodes: vec![messages::Node {
                        container_path: "/dev/x".into(),
                        host_path: "/dev/null".into(),
                        permissions: "rw".into(),
                    }],
                    annotations: BTreeMap::new(),
                    cdi: vec![messages::CdiDevice { name: "e.com/x=a".into() }],
                };
                Ok(Answer::of(&AllocateResponse { containers: vec![given] }))
            }
            "PreStartContainer" => {
                note(format!("start {}", Ids::decode(request).unwrap().ids.join(" ")));
                Ok(Answer::of(&Empty {}))
            }
            _ => Err(Status::new(Code::UNIMPLEMENTED, method)),
        }
    }
}

struct Bench {
    directory: tempfile::TempDir,
    stop: CancellationToken,
}

impl Bench {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), stop: CancellationToken::new() }
    }

    fn open(&self) -> Arc<Classic> {
        let classic = Classic::open(self.directory.path()).unwrap();
        classic.listen(self.stop.clone()).unwrap();
        classic
    }

    fn serve(&self, plugin: &Arc<Fake>) -> CancellationToken {
        let stop = CancellationToken::new();
        let listener = UnixListener::bind(self.directory.path().join("device-plugins/x.sock")).unwrap();
        tokio::spawn(serve(listener, plugin.clone(), stop.clone()));
        stop
    }

    async fn register(&self, version: &str, resource: &str) -> Result<Empty, Status> {
        let kubelet = Plugin::channel(&self.directory.path().join("device-plugins/kubelet.sock"));
        let request =
            RegisterRequest { version: version.into(), endpoint: "x.sock".into(), resource_name: resource.into() };
        kubelet.unary("/v1beta1.Registration/Register", &request, Duration::from_secs(30)).await
    }
}

fn shown(classic: &Classic) -> (String, String) {
    let mut status = NodeStatus::default();
    classic.show(&mut status);
    let of = |list: Option<gantry_api::meta::quantity::ResourceList>| {
        list.and_then(|l| l.get("e.com/x").map(|q| q.0.clone())).unwrap_or_default()
    };
    (of(status.capacity), of(status.allocatable))
}

async fn until(mut check: impl FnMut() -> bool) {
    while !check() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn pod(uid: &str, init: usize, main: usize) -> Pod {
    let container = |name: &str, n: usize| json!({"name": name, "resources": {"limits": {"e.com/x": n.to_string()}}});
    serde_json::from_value(json!({
        "metadata": {"name": uid, "namespace": "default", "uid": uid},
        "spec": {"initContainers": [container("init", init)], "containers": [container("main", main)]},
    }))
    .unwrap()
}

#[tokio::test]
async fn devices_are_counted_chosen_given_and_kept() {
    let bench = Bench::new();
    let classic = bench.open();
    let plugin = Arc::new(Fake {
        options: messages::Options { pre_start_required: true, preferred_allocation_available: true },
        ..Fake::default()
    });
    let stop = bench.serve(&plugin);
    let error = bench.register("v1", "e.com/x").await.unwrap_err();
    let wanted = "requested API version \"v1\" is not supported by kubelet. Supported version is [\"v1beta1\"]";
    assert_eq!(error.message, wanted);
    let error = bench.register("v1beta1", "cpu").await.unwrap_err();
    assert_eq!(error.message, "the ResourceName \"cpu\" is invalid");
    bench.register("v1beta1", "e.com/x").await.unwrap();
    until(|| shown(&classic) == ("2".into(), "2".into())).await;

    let one = pod("one", 1, 1);
    classic.admit(&one).await.unwrap();
    let calls = ["prefer 1 of [\"a\", \"b\"]", "allocate b", "prefer 1 of [\"a\", \"b\"]", "allocate b"];
    assert_eq!(*plugin.calls.lock(), calls, "what the init container had goes on to the main one");
    let main = one.spec.as_ref().unwrap().containers[0].clone();
    let mut config = ContainerConfig { env: vec![("DEVICES".into(), "none".into())], ..ContainerConfig::default() };
    assert_eq!(classic.give(&one, &main, &mut config).await.unwrap(), ["e.com/x=a"]);
    assert_eq!(plugin.calls.lock().last().unwrap(), "start b");
    assert_eq!(config.env, [("DEVICES".to_owned(), "b".to_owned())]);
    assert_eq!(config.mounts, [Mount::bind("/h", "/m").read_only()]);
    assert_eq!(config.devices[0].container_path, Path::new("/dev/x"));
    let health = classic.health_of(&one, "main").remove(0);
    assert_eq!((health.name.as_str(), health.resources.unwrap()[0].health.as_deref()), ("e.com/x", Some("Healthy")));

    let refused = classic.admit(&pod("two", 0, 2)).await.unwrap_err();
    assert_eq!(refused.reason, "UnexpectedAdmissionError");
    let why = "Allocate failed due to requested number of devices unavailable for e.com/x. Requested: 2, Available: 1, which \
               is unexpected";
    assert_eq!(refused.message, why);

    // A device falls ill; the plugin goes; a later run knows who has what.
    let sender = plugin.lists.lock()[0].clone();
    sender.send(list(&[("a", "Unhealthy"), ("b", "Healthy")])).await.unwrap();
    until(|| shown(&classic) == ("2".into(), "1".into())).await;
    let mut limits = Amounts::new();
    classic.limit(&mut limits);
    assert_eq!(limits["e.com/x"].value(), 1);
    let refused = classic.admit(&pod("three", 0, 1)).await.unwrap_err();
    assert!(refused.message.contains("Requested: 1, Available: 0"), "{}", refused.message);
    stop.cancel();
    until(|| shown(&classic) == ("2".into(), "0".into())).await;
    let refused = classic.admit(&pod("four", 0, 1)).await.unwrap_err();
    assert!(refused.message.contains("no healthy devices present"), "{}", refused.message);
    let again = classic.give(&one, &main, &mut ContainerConfig::default()).await.unwrap();
    assert_eq!(again, ["e.com/x=a"], "a container that is started anew keeps what it had");
    classic.stop();
    bench.stop.cancel();

    let later = Classic::open(bench.directory.path()).unwrap();
    assert_eq!(shown(&later), ("0".into(), "0".into()), "until the plugin is back");
    assert_eq!(later.users(), ["one"]);
    later.keep(&BTreeSet::from(["one".to_owned()]));
    assert_eq!(later.users(), ["one"]);
    later.keep(&BTreeSet::new());
    assert!(Classic::open(bench.directory.path()).unwrap().users().is_empty());
}

#[tokio::test]
async fn what_the_plugin_refuses_stays_free() {
    let bench = Bench::new();
    let classic = bench.open();
    let plugin = Arc::new(Fake::default());
    plugin.calls.lock().push("refuse".into());
    let _stop = bench.serve(&plugin);
    bench.register("v1beta1", "e.com/x").await.unwrap();
    until(|| shown(&classic).0 == "2").await;
    let refused = classic.admit(&pod("one", 0, 2)).await.unwrap_err();
    let why = "Allocate failed due to rpc error: code = Unknown desc = no power, which is unexpected";
    assert_eq!(refused.message, why);
    plugin.calls.lock().clear();
    classic.admit(&pod("two", 0, 2)).await.unwrap();
    assert_eq!(*plugin.calls.lock(), ["allocate a b"]);
    classic.admit(&pod("none", 0, 0)).await.unwrap();
    classic.stop();
}
