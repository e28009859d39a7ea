//! Several schedulers on the same nodes, from several seeds: each decides on what it has seen, which is seconds old where
//! caches are behind, the server compares bindings that may have missed another's, and no node ever holds more than it has.

use gantry::in_process;
use gantry_api::kind::Kind;
use gantry_client::{Api, Client, Error, IfFits, PostParams};
use gantry_reconcile::Informers;
use gantry_scheduler::config::Configuration;
use gantry_scheduler::profile::Profile;
use gantry_scheduler::{Explainer, SchedulerConfig};
use gantry_server::authn::UserInfo;
use gantry_sim::hollow::ENDS_AFTER;
use gantry_sim::{Change, ControlPlane, Faults, HollowNode, HollowSpec, Pace, Plan, World, check};
use k8s_openapi::api::core::v1::{Binding, ConfigMap, Node, Pod};
use serde_json::{Value, json};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const SPACE: &str = "lab";
const LIMIT: Duration = Duration::from_secs(1800);
/// The control plane's own, and two beside it.
const SCHEDULERS: [&str; 3] = ["default-scheduler", "second", "third"];
const PODS: usize = 60;

/// Starts a scheduler of its own, with caches of its own, as another process would.
fn start(c: &ControlPlane, name: &str, cancel: &CancellationToken) {
    let client = c.component("system:kube-scheduler", &[], name);
    let informers = Informers::new(client.clone());
    let config = SchedulerConfig {
        configuration: Configuration { profiles: vec![Profile::new(name)], ..Configuration::default() },
        clock: c.clock,
        entropy: c.entropy.clone(),
        pod_groups: false,
        explainer: Explainer::default(),
    };
    let cancel = cancel.clone();
    tokio::spawn(async move { gantry_scheduler::run(client, &informers, config, cancel).await });
}

/// A pod that nearly fills half a node, so that a few decisions on old news are one too many.
fn pod(n: usize) -> Value {
    json!({
        "metadata": {"name": format!("pod-{n}"), "annotations": {ENDS_AFTER: "4000"}},
        "spec": {
            "schedulerName": SCHEDULERS[n % SCHEDULERS.len()], "restartPolicy": "Never",
            "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1900m"}}}],
        },
    })
}

/// Plays the story; how often a binding was refused because another scheduler had been quicker.
async fn share(plan: Plan) -> usize {
    let name = format!("seed {}, {:?}, deaths {:?}", plan.seed, plan.faults, plan.deaths);
    let c = ControlPlane::start_with(plan).await.expect("the control plane starts");
    let cancel = CancellationToken::new();
    let nodes: Vec<HollowNode> = (1..=3).map(|n| c.node(HollowSpec::numbered(n), Pace::BRISK)).collect();
    c.furnish(SPACE, nodes.len()).await.expect("it starts");
    SCHEDULERS[1..].iter().for_each(|name| start(&c, name, &cancel));
    for n in 0..PODS {
        let pod = Pod::from_value(pod(n)).expect("the pod is well formed");
        // While the server is down nobody answers.
        while let Err(e) = c.api::<Pod>(SPACE).create(&PostParams::default(), &pod).await {
            if e.is("AlreadyExists") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
    }
    let ended = |w: &World| w.all("core/pods").filter(|(_, p)| p["status"]["phase"] == "Succeeded").count() == PODS;
    let outcome = c.log.until("all pods have run", LIMIT, ended).await;
    let changes = c.log.changes();
    cancel.cancel();
    c.stop();
    drop(nodes);
    if let Err(stuck) = outcome {
        panic!("{name}: {stuck}");
    }
    let wrong = check::history(&changes);
    assert!(wrong.is_empty(), "{name}: {wrong:#?}");
    let tells = |c: &&Change| {
        let text = c.value.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        c.key.starts_with("/registry/core/events/") && text.contains("has not enough cpu left")
    };
    changes.iter().filter(tells).count()
}

#[test]
fn schedulers_that_share_nodes_never_fill_one_beyond_what_it_has() {
    let mut refused = 0;
    for seed in 1..7 {
        let faults = match seed % 3 {
            0 => Faults::default(),
            // Each sees seconds late, or never yet, that there are others.
            1 => Faults::stale(LIMIT),
            _ => Faults::many(LIMIT),
        };
        let deaths = if seed > 3 { vec![380 + seed * 20, 60] } else { Vec::new() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        refused += runtime.block_on(share(Plan { faults, deaths, ..Plan::calm(seed) }));
    }
    // Had they not come in each other's way, nothing would have been shown.
    assert!(refused > 0, "no binding was ever refused");
}

async fn bind_if_fits(client: Client, pod: &str) -> Result<(), Error> {
    let value = json!({"metadata": {"name": pod, "namespace": SPACE}, "target": {"kind": "Node", "name": "node-1"}});
    let binding = Binding::from_value(value).expect("the binding is well formed");
    let params = PostParams { if_fits: Some(IfFits::default()), ..PostParams::default() };
    Api::<Pod>::namespaced(client, SPACE).post_subresource(pod, "binding", &params, &binding).await
}

/// What a server cannot finish because its store has failed is no concern of the next one in the same process.
#[test]
fn a_dead_server_refuses_bindings_and_holds_up_no_other() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let c = ControlPlane::start_with(Plan { deaths: vec![400], ..Plan::calm(1) }).await.expect("it starts");
        let first = c.server().expect("it lives");
        c.furnish(SPACE, 0).await.expect("it comes about");
        let allocatable = json!({"cpu": "4", "memory": "8Gi", "pods": "30"});
        c.create::<Node>("", json!({"metadata": {"name": "node-1"}, "status": {"allocatable": allocatable}})).await;
        for name in ["one", "two"] {
            let spec = json!({"schedulerName": "nobody", "containers": [{"name": "c", "image": "i"}]});
            c.create::<Pod>(SPACE, json!({"metadata": {"name": name}, "spec": spec})).await;
        }
        for n in 0.. {
            let map = ConfigMap::from_value(json!({"metadata": {"name": format!("map-{n}")}})).expect("well formed");
            // It dies with one of these.
            let _ = c.api::<ConfigMap>(SPACE).create(&PostParams::default(), &map).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            if c.lives() > 1 && c.server().is_some() {
                break;
            }
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        let masters = UserInfo::new("kubernetes-admin", &["system:masters"]);
        let late = bind_if_fits(in_process::client(&first, masters, "late"), "one");
        let late = tokio::time::timeout(Duration::from_secs(60), late).await.expect("there is an answer");
        let refused = late.expect_err("its caches do not see what was written since").to_string();
        assert!(refused.contains("watch caches do not follow the store any more"), "{refused}");
        let answer = tokio::time::timeout(Duration::from_secs(60), bind_if_fits(c.admin(), "two")).await;
        answer.expect("there is an answer").expect("it is bound");
        c.stop();
    });
}
