//! What programs written with kube-rs do, against a running cluster.
//!
//! Usage: `KUBECONFIG=FILE gantry-client-kube [PART-OF-A-NAME]`
//!
//! Every scenario has a namespace of its own; they run side by side. Prints a line for each, and exits 1 if one failed.

use anyhow::{Context, Result, bail, ensure};
use futures::{AsyncBufReadExt, FutureExt, StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event as CoreEvent, Namespace, Pod, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, AttachParams, DeleteParams, DynamicObject, EvictParams, ListParams, LogParams, Patch, PatchParams, PostParams,
    WatchEvent, WatchParams,
};
use kube::core::{GroupVersionKind, Status};
use kube::discovery::{self, Discovery, Scope};
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::finalizer::{Event as Finalizer, finalizer};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Client, CustomResource, CustomResourceExt, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fmt::Debug;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SHELL: &str = "test.local/busybox:1";
const IMAGE: &str = "gantry.local/self";
const PATIENCE: Duration = Duration::from_secs(90);

/// A kind whose definition comes out of this type.
#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, schemars::JsonSchema)]
#[kube(group = "orchard.example", version = "v1", kind = "Tree", namespaced, status = "TreeStatus")]
#[kube(shortname = "tr", scale(spec_replicas_path = ".spec.apples", status_replicas_path = ".status.apples"))]
struct TreeSpec {
    apples: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
}

/// What a tree is like.
#[derive(Clone, Debug, Default, Deserialize, Serialize, schemars::JsonSchema)]
struct TreeStatus {
    apples: i32,
}

struct Room {
    client: Client,
    namespace: String,
}

impl Room {
    async fn new(client: Client, name: &str) -> Result<Self> {
        let namespace = format!("rs-{}", name.replace('_', "-"));
        let all: Api<Namespace> = Api::all(client.clone());
        all.create(&PostParams::default(), &object(json!({"metadata": {"name": namespace}}))).await?;
        Ok(Self { client, namespace })
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn config_map(&self, name: &str, data: Value, labels: Value) -> Result<ConfigMap> {
        let map = object(json!({"metadata": {"name": name, "labels": labels}, "data": data}));
        Ok(self.api::<ConfigMap>().create(&PostParams::default(), &map).await?)
    }

    async fn pod(&self, name: &str, container: Value) -> Result<Pod> {
        await_condition(self.api::<ServiceAccount>(), "default", conditions::is_created()).await?;
        let mut main = container;
        main["name"] = "main".into();
        let pod = json!({"metadata": {"name": name, "labels": {"app": name}},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [main]}});
        self.api::<Pod>().create(&PostParams::default(), &object(pod)).await?;
        let ready = |pod: Option<&Pod>| {
            let conditions = pod.and_then(|p| p.status.as_ref()).and_then(|s| s.conditions.as_ref());
            conditions.is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
        };
        let pod = tokio::time::timeout(PATIENCE, await_condition(self.api::<Pod>(), name, ready)).await;
        pod.with_context(|| format!("pod {name} is not Ready"))??.context("the pod is gone")
    }
}

fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("an object of its kind")
}

#[track_caller]
fn same<T: PartialEq + Debug>(got: T, wanted: T) -> Result<()> {
    let at = std::panic::Location::caller();
    ensure!(got == wanted, "line {}:\n  got    {got:?}\n  wanted {wanted:?}", at.line());
    Ok(())
}

/// The status of a call that must fail in this way.
#[track_caller]
fn refused<T: Debug>(code: u16, reason: &str, result: kube::Result<T>) -> Result<Status> {
    let at = std::panic::Location::caller();
    match result {
        Err(kube::Error::Api(status)) => {
            ensure!(status.code == code && status.reason == reason, "line {}: {status:?}", at.line());
            Ok(*status)
        }
        other => bail!("line {}: {other:?}", at.line()),
    }
}

async fn eventually<T, F: Future<Output = Result<Option<T>>>>(what: &str, mut check: impl FnMut() -> F) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(value) = check().await? {
            return Ok(value);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("never: {what}")
}

fn data(map: &ConfigMap) -> Value {
    json!(map.data.clone().unwrap_or_default())
}

async fn writing_and_reading(room: Room) -> Result<()> {
    let maps = room.api::<ConfigMap>();
    let made = room.config_map("settings", json!({"colour": "green"}), json!({"tier": "front"})).await?;
    same(&maps.get("settings").await?, &made)?;
    let mut changed = made.clone();
    changed.data.get_or_insert_default().insert("size".into(), "large".into());
    let replaced = maps.replace("settings", &PostParams::default(), &changed).await?;
    same(data(&replaced), json!({"colour": "green", "size": "large"}))?;
    let status = refused(409, "Conflict", maps.replace("settings", &PostParams::default(), &changed).await)?;
    ensure!(status.message.starts_with("Operation cannot be fulfilled on configmaps \"settings\": "), "{status:?}");
    let status = refused(
        409,
        "AlreadyExists",
        maps.create(&PostParams::default(), &object(json!({"metadata": {"name": "settings"}}))).await,
    )?;
    same(status.message.as_str(), "configmaps \"settings\" already exists")?;

    room.config_map("other", json!({}), json!({"tier": "back"})).await?;
    let list = maps.list(&ListParams::default().labels("tier in (front)")).await?;
    same(list.items.iter().map(ResourceExt::name_any).collect(), vec!["settings".to_owned()])?;
    let first = maps.list(&ListParams::default().labels("tier").limit(1)).await?;
    let token = first.metadata.continue_.clone().context("a second page")?;
    let second = maps.list(&ListParams::default().labels("tier").limit(1).continue_token(&token)).await?;
    same(second.items[0].name_any(), "settings".to_owned())?;
    let bare = maps.list_metadata(&ListParams::default().labels("tier")).await?;
    same(bare.items.len(), 2)?;
    same(maps.get_metadata("settings").await?.metadata.uid, made.metadata.uid.clone())?;
    same(maps.get_opt("absent").await?, None)?;

    // The entry API: make it or change it.
    let mut entry = maps
        .entry("settings")
        .await?
        .and_modify(|m| {
            m.data.get_or_insert_default().insert("shape".into(), "round".into());
        })
        .or_insert(ConfigMap::default);
    entry.commit(&PostParams::default()).await.context("commit")?;
    same(data(entry.get())["shape"].as_str(), Some("round"))?;

    let gone = maps.delete("settings", &DeleteParams::default()).await?;
    let status = gone.right().context("a status, since nothing delays the deletion")?;
    same(status.details.map(|d| (d.name, d.kind)), Some(("settings".to_owned(), "configmaps".to_owned())))?;
    let status = refused(404, "NotFound", maps.get("settings").await)?;
    same(status.message.as_str(), "configmaps \"settings\" not found")?;
    maps.delete_collection(&DeleteParams::default(), &ListParams::default().labels("tier")).await?;
    same(maps.list(&ListParams::default().labels("tier")).await?.items.len(), 0)
}

async fn applying(room: Room) -> Result<()> {
    let maps = room.api::<ConfigMap>();
    let of =
        |data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shared"}, "data": data});
    let one = PatchParams::apply("one");
    let made = maps.patch("shared", &one, &Patch::Apply(of(json!({"a": "1", "b": "1"})))).await?;
    same(made.managed_fields()[0].manager.as_deref(), Some("one"))?;
    let two = PatchParams::apply("two");
    let status = refused(409, "Conflict", maps.patch("shared", &two, &Patch::Apply(of(json!({"a": "2"})))).await)?;
    same(status.message.as_str(), "Apply failed with 1 conflict: conflict with \"one\": .data.a")?;
    let causes = status.details.context("details")?.causes;
    same((causes[0].reason.as_str(), causes[0].field.as_str()), ("FieldManagerConflict", ".data.a"))?;
    let forced = maps.patch("shared", &two.force(), &Patch::Apply(of(json!({"a": "2"})))).await?;
    same(data(&forced), json!({"a": "2", "b": "1"}))?;
    same(data(&maps.patch("shared", &one, &Patch::Apply(of(json!({})))).await?), json!({"a": "2"}))?;
    let merged =
        maps.patch("shared", &PatchParams::default(), &Patch::Merge(json!({"data": {"a": null, "c": "3"}}))).await?;
    same(data(&merged), json!({"c": "3"}))?;
    let strategic =
        maps.patch("shared", &PatchParams::default(), &Patch::Strategic(json!({"data": {"d": "4"}}))).await?;
    same(data(&strategic), json!({"c": "3", "d": "4"}))
}

async fn watching(room: Room) -> Result<()> {
    let maps = room.api::<ConfigMap>();
    let start = maps.list(&ListParams::default()).await?.metadata.resource_version.context("a version")?;
    room.config_map("w", json!({"step": "0"}), json!({"watched": "yes"})).await?;
    maps.patch("w", &PatchParams::default(), &Patch::Merge(json!({"data": {"step": "1"}}))).await?;
    maps.delete("w", &DeleteParams::default()).await?;
    let mut events = pin!(maps.watch(&WatchParams::default().labels("watched").timeout(60), &start).await?);
    let mut seen = Vec::new();
    while let Some(event) = events.try_next().await? {
        match event {
            WatchEvent::Added(m) => seen.push(format!("added {}", data(&m)["step"])),
            WatchEvent::Modified(m) => seen.push(format!("modified {}", data(&m)["step"])),
            WatchEvent::Deleted(m) => {
                seen.push(format!("deleted {}", data(&m)["step"]));
                break;
            }
            WatchEvent::Bookmark(_) => {}
            WatchEvent::Error(e) => bail!("{e:?}"),
        }
    }
    same(seen, ["added \"0\"", "modified \"1\"", "deleted \"1\""].map(str::to_owned).to_vec())
}

/// A reflector follows, with either way to begin.
async fn reflecting(room: Room) -> Result<()> {
    room.config_map("a", json!({"value": "1"}), json!({"kept": "yes"})).await?;
    for (round, settings) in
        [watcher::Config::default(), watcher::Config::default().streaming_lists()].into_iter().enumerate()
    {
        let maps = room.api::<ConfigMap>();
        let (store, writer) = reflector::store::<ConfigMap>();
        let stream =
            reflector(writer, watcher(maps.clone(), settings.labels("kept"))).default_backoff().touched_objects();
        let task = tokio::spawn(async move {
            let mut stream = pin!(stream);
            while let Some(event) = stream.next().await {
                if let Err(e) = event {
                    return Err(e);
                }
            }
            Ok(())
        });
        tokio::time::timeout(PATIENCE, store.wait_until_ready()).await.context("never ready")??;
        same(store.state().iter().map(|m| m.name_any()).collect(), vec!["a".to_owned()])?;
        let name = format!("b{round}");
        room.config_map(&name, json!({"value": "1"}), json!({"kept": "yes"})).await?;
        maps.patch(&name, &PatchParams::default(), &Patch::Merge(json!({"data": {"value": "2"}}))).await?;
        let key = reflector::ObjectRef::new(&name).within(&room.namespace);
        eventually("the change in the store", || async { Ok(store.get(&key).filter(|m| data(m)["value"] == "2")) })
            .await?;
        maps.delete(&name, &DeleteParams::default()).await?;
        eventually("gone from the store", || async { Ok(store.get(&key).is_none().then_some(())) }).await?;
        ensure!(!task.is_finished(), "the watcher ended: {:?}", task.now_or_never());
        task.abort();
    }
    Ok(())
}

async fn inside_a_pod(room: Room) -> Result<()> {
    let pods = room.api::<Pod>();
    room.pod("shell", json!({"image": SHELL, "command": ["sh", "-c", "echo ready; echo two; exec sleep 3600"]}))
        .await?;
    let mut process =
        pods.exec("shell", ["sh", "-c", "echo out; echo err >&2; exit 7"], &AttachParams::default()).await?;
    let (mut out, mut err) = (String::new(), String::new());
    process.stdout().context("stdout")?.read_to_string(&mut out).await?;
    process.stderr().context("stderr")?.read_to_string(&mut err).await?;
    same((out.as_str(), err.as_str()), ("out\n", "err\n"))?;
    let status = process.take_status().context("a status")?.await.context("how it ended")?;
    same(status.reason.as_deref(), Some("NonZeroExitCode"))?;
    let causes = status.details.and_then(|d| d.causes).context("causes")?;
    same((causes[0].reason.as_deref(), causes[0].message.as_deref()), (Some("ExitCode"), Some("7")))?;
    process.join().await?;

    let mut process = pods.exec("shell", ["wc", "-c"], &AttachParams::default().stdin(true).stderr(false)).await?;
    let mut input = process.stdin().context("stdin")?;
    input.write_all(&vec![b'x'; 300_000]).await?;
    input.shutdown().await?;
    drop(input);
    let mut out = String::new();
    process.stdout().context("stdout")?.read_to_string(&mut out).await?;
    same(out.trim(), "300000")?;
    process.join().await?;

    room.pod(
        "talker",
        json!({"image": SHELL, "stdin": true, "command": ["sh", "-c", "while read line; do echo heard $line; done"]}),
    )
    .await?;
    let mut attached = pods.attach("talker", &AttachParams::default().stdin(true).stderr(false)).await?;
    attached.stdin().context("stdin")?.write_all(b"you\n").await?;
    let mut heard = [0; 10];
    attached.stdout().context("stdout")?.read_exact(&mut heard).await?;
    same(&heard, b"heard you\n")?;
    attached.abort();

    same(pods.logs("shell", &LogParams { tail_lines: Some(1), ..LogParams::default() }).await?.as_str(), "two\n")?;
    let follow = LogParams { follow: true, ..LogParams::default() };
    let mut lines = pods.log_stream("shell", &follow).await?.lines();
    same(lines.try_next().await?.as_deref(), Some("ready"))?;
    same(lines.try_next().await?.as_deref(), Some("two"))?;

    room.pod("web", json!({"image": IMAGE, "args": ["serve", "--port", "8080"]})).await?;
    // It runs before it listens.
    let mut lines = pods.log_stream("web", &follow).await?.lines();
    let serving = tokio::time::timeout(PATIENCE, lines.try_next()).await.context("no word of the web server")??;
    same(serving.as_deref(), Some("serving on port 8080"))?;
    let mut forward = pods.portforward("web", &[8080, 8081]).await?;
    let mut stream = forward.take_stream(8080).context("8080")?;
    stream.write_all(b"GET /hostname HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.1 200") && answer.contains("web"), "{answer}");
    let mut dead = forward.take_stream(8081).context("8081")?;
    dead.write_all(b"anything").await?;
    let error = forward.take_error(8081).context("8081")?;
    let error = tokio::time::timeout(PATIENCE, error).await.context("no error")?.context("an error")?;
    ensure!(error.contains("connection refused"), "{error}");
    drop(forward);

    let evicted = pods.evict("web", &EvictParams::default()).await?;
    ensure!(evicted.is_success(), "{evicted:?}");
    let gone = await_condition(pods.clone(), "web", |p: Option<&Pod>| p.is_none());
    tokio::time::timeout(PATIENCE, gone).await.context("the pod stays")??;
    Ok(())
}

/// A kind made from a type: its definition, writes and their refusals, scale, status, and a finalizer's life.
async fn custom_kind(room: Room) -> Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(room.client.clone());
    let name = "trees.orchard.example";
    definitions.patch(name, &PatchParams::apply("orchard"), &Patch::Apply(Tree::crd())).await?;
    let established = await_condition(definitions.clone(), name, conditions::is_crd_established());
    tokio::time::timeout(PATIENCE, established).await.context("never established")??;

    let trees = room.api::<Tree>();
    let tree = Tree::new("oak", TreeSpec { apples: 3, kind: None });
    let made = eventually("trees served", || async {
        match trees.create(&PostParams::default(), &tree).await {
            Ok(made) => Ok(Some(made)),
            Err(kube::Error::Api(s)) if s.code == 404 => Ok(None),
            Err(e) => Err(e.into()),
        }
    })
    .await?;
    same((made.spec.apples, made.metadata.generation), (3, Some(1)))?;
    let wrong = json!({"apiVersion": "orchard.example/v1", "kind": "Tree", "metadata": {"name": "elm"}, "spec": {"apples": "many"}});
    let kind = discovery::pinned_kind(&room.client, &GroupVersionKind::gvk("orchard.example", "v1", "Tree")).await?;
    same((kind.0.plural.as_str(), kind.1.scope), ("trees", Scope::Namespaced))?;
    let dynamic: Api<DynamicObject> = Api::namespaced_with(room.client.clone(), &room.namespace, &kind.0);
    let status = refused(422, "Invalid", dynamic.create(&PostParams::default(), &object(wrong)).await)?;
    same(
        status.message.as_str(),
        "Tree.orchard.example \"elm\" is invalid: [spec.apples: Invalid value: \"string\": spec.apples in body must be of \
        type integer: \"string\", .spec.apples: Invalid value: 0: .spec.apples accessor error: many is of the type string, \
        expected int64]",
    )?;
    let status = json!({"status": {"apples": 3}});
    let made = trees.patch_status("oak", &PatchParams::default(), &Patch::Merge(&status)).await?;
    same(made.status.map(|s| s.apples), Some(3))?;
    let scale = trees.get_scale("oak").await?;
    same(scale.spec.and_then(|s| s.replicas), Some(3))?;
    let scale =
        trees.patch_scale("oak", &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": 5}}))).await?;
    same(scale.spec.and_then(|s| s.replicas), Some(5))?;
    same(trees.get("oak").await?.spec.apples, 5)?;

    // The finalizer is set at the first sight, and taken off after the clean-up.
    let mark = "orchard.example/harvest";
    let step = |tree: Arc<Tree>| {
        let trees = trees.clone();
        async move {
            let mut did = "";
            let note = &mut did;
            finalizer(&trees, mark, tree, |event| async move {
                *note = match event {
                    Finalizer::Apply(_) => "applied",
                    Finalizer::Cleanup(_) => "cleaned up",
                };
                Ok::<_, std::io::Error>(Action::await_change())
            })
            .await?;
            Ok::<_, anyhow::Error>(did)
        }
    };
    same(step(trees.get("oak").await?.into()).await?, "")?;
    same(trees.get("oak").await?.finalizers(), [mark.to_owned()].as_slice())?;
    same(step(trees.get("oak").await?.into()).await?, "applied")?;
    let waiting = trees.delete("oak", &DeleteParams::default()).await?.left().context("the tree, waiting")?;
    ensure!(waiting.metadata.deletion_timestamp.is_some());
    same(step(trees.get("oak").await?.into()).await?, "cleaned up")?;
    same(trees.get_opt("oak").await?.map(|t| t.name_any()), None)?;

    definitions.delete(name, &DeleteParams::default()).await?;
    let gone = await_condition(definitions, name, |d: Option<&CustomResourceDefinition>| d.is_none());
    tokio::time::timeout(PATIENCE, gone).await.context("the definition stays")??;
    Ok(())
}

async fn discovering(room: Room) -> Result<()> {
    for found in
        [Discovery::new(room.client.clone()).run().await?, Discovery::new(room.client.clone()).run_aggregated().await?]
    {
        let (deployment, capabilities) =
            found.resolve_gvk(&GroupVersionKind::gvk("apps", "v1", "Deployment")).context("deployments")?;
        same((deployment.plural.as_str(), capabilities.scope.clone()), ("deployments", Scope::Namespaced))?;
        ensure!(capabilities.supports_operation("watch"), "{capabilities:?}");
        let (node, capabilities) = found.resolve_gvk(&GroupVersionKind::gvk("", "v1", "Node")).context("nodes")?;
        same((node.api_version.as_str(), capabilities.scope), ("v1", Scope::Cluster))?;
        ensure!(found.has_group("coordination.k8s.io"));
        let mut listed = 0;
        for (resource, capabilities) in found.groups().flat_map(|g| g.recommended_resources()) {
            if capabilities.supports_operation("list") {
                let all: Api<DynamicObject> = Api::all_with(room.client.clone(), &resource);
                // Aggregated kinds may have nobody behind them, and custom ones come and go beside this.
                match all.list(&ListParams::default().limit(5)).await {
                    Ok(_) => listed += 1,
                    Err(kube::Error::Api(s)) if matches!(s.code, 404 | 503) => {}
                    Err(e) => bail!("{resource:?}: {e}"),
                }
            }
        }
        ensure!(listed > 30, "only {listed} kinds can be listed");
    }
    let version = room.client.apiserver_version().await?;
    same(version.minor.trim_end_matches('+'), "37")
}

/// Leader election by hand, as there is none in the client: who writes the version it has read wins.
async fn leases(room: Room) -> Result<()> {
    let leases = room.api::<Lease>();
    let held = json!({"metadata": {"name": "leader"}, "spec": {"holderIdentity": "one", "leaseDurationSeconds": 1,
        "acquireTime": "2026-01-01T00:00:00.000001Z", "renewTime": "2026-01-01T00:00:00.000001Z"}});
    let lease = leases.create(&PostParams::default(), &object(held)).await?;
    same(serde_json::to_value(&lease)?["spec"]["renewTime"].as_str(), Some("2026-01-01T00:00:00.000001Z"))?;
    let mut bids = [lease.clone(), lease];
    for (bid, who) in bids.iter_mut().zip(["two", "three"]) {
        let spec = bid.spec.get_or_insert_default();
        spec.holder_identity = Some(who.into());
        spec.lease_transitions = Some(1);
    }
    leases.replace("leader", &PostParams::default(), &bids[0]).await?;
    refused(409, "Conflict", leases.replace("leader", &PostParams::default(), &bids[1]).await)?;
    let spec = leases.get("leader").await?.spec.context("a spec")?;
    same((spec.holder_identity.as_deref(), spec.lease_transitions), (Some("two"), Some(1)))
}

async fn workloads(room: Room) -> Result<()> {
    let deployments = room.api::<Deployment>();
    await_condition(room.api::<ServiceAccount>(), "default", conditions::is_created()).await?;
    let template = json!({"metadata": {"labels": {"app": "d"}}, "spec": {"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": IMAGE, "args": ["serve", "--port", "8080"]}]}});
    let made: Deployment = object(json!({"metadata": {"name": "d"}, "spec": {"replicas": 1,
        "selector": {"matchLabels": {"app": "d"}}, "template": template}}));
    let made = deployments.create(&PostParams::default(), &made).await?;
    let done = await_condition(deployments.clone(), "d", conditions::is_deployment_completed());
    tokio::time::timeout(PATIENCE, done).await.context("never completed")??;
    deployments.restart("d").await?;
    let annotations = deployments.get("d").await?.spec.template.metadata.context("metadata")?.annotations;
    ensure!(annotations.is_some_and(|a| a.contains_key("kube.kubernetes.io/restartedAt")));

    // An event that is told again is one event with a series.
    let recorder =
        Recorder::new(room.client.clone(), Reporter { controller: "orchard".into(), instance: Some("one".into()) });
    let event = Event {
        type_: EventType::Normal,
        reason: "Watered".into(),
        note: Some("by hand".into()),
        action: "Watering".into(),
        secondary: None,
    };
    for _ in 0..2 {
        recorder.publish(&event, &made.object_ref(&())).await?;
    }
    let told = room.api::<CoreEvent>().list(&ListParams::default().fields("reason=Watered")).await?;
    same(told.items.len(), 1)?;
    same(told.items[0].message.as_deref(), Some("by hand"))?;
    same(told.items[0].series.as_ref().and_then(|s| s.count), Some(2))?;

    let options = DeleteParams::foreground();
    deployments.delete("d", &options).await?;
    let uid = made.uid().context("a uid")?;
    let gone = await_condition(deployments, "d", conditions::is_deleted(&uid));
    tokio::time::timeout(PATIENCE, gone).await.context("the deployment stays")??;
    Ok(())
}

type Run = fn(Room) -> Pin<Box<dyn Future<Output = Result<()>> + Send>>;
type Scenario = (&'static str, Run);

macro_rules! scenarios {
    ($($function:ident),* $(,)?) => { [$((stringify!($function), (|room| Box::pin($function(room))) as Run)),*] };
}

#[tokio::main]
async fn main() -> Result<()> {
    let all: [Scenario; 9] = scenarios![
        writing_and_reading,
        applying,
        watching,
        reflecting,
        inside_a_pod,
        custom_kind,
        discovering,
        leases,
        workloads,
    ];
    let wanted = std::env::args().nth(1).unwrap_or_default();
    let client = Client::try_default().await?;
    let chosen: Vec<Scenario> = all.into_iter().filter(|(name, _)| name.contains(&wanted)).collect();
    ensure!(!chosen.is_empty(), "no scenario has {wanted:?} in its name");
    let runs = chosen.into_iter().map(|(name, scenario)| {
        let client = client.clone();
        async move {
            let begin = Instant::now();
            let run = async { scenario(Room::new(client, name).await?).await };
            let run = tokio::time::timeout(2 * PATIENCE, run).map(|r| r.unwrap_or_else(|_| bail!("hangs")));
            let outcome = AssertUnwindSafe(run).catch_unwind().await.unwrap_or_else(|_| bail!("panicked"));
            match &outcome {
                Ok(()) => println!("{name}: ok in {:.1?}", begin.elapsed()),
                Err(e) => println!("{name}: FAILED\n{e:?}"),
            }
            outcome.is_ok()
        }
    });
    let good = futures::future::join_all(runs).await;
    std::process::exit(i32::from(!good.into_iter().all(|g| g)))
}
