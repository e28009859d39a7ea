//! What happens to the cluster: three nodes, a web service that is scaled, updated, hit by the death of a node, by failing
//! containers and by a drain; batch work that gives way to something urgent; a node that is gone for good.

use gantry_api::kind::Kind;
use gantry_client::{Api, DeleteParams, Error, ListParams, Patch, PatchParams, PostParams};
use gantry_sim::{ControlPlane, HollowNode, HollowSpec, Pace, Stuck, World, check};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::policy::v1::{Eviction, PodDisruptionBudget};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use serde_json::{Value, json};
use std::time::Duration;

const SPACE: &str = "shop";
/// No step takes longer than this in virtual time.
const LIMIT: Duration = Duration::from_secs(900);
const SLOW: Pace = Pace::millis((4000, 9000), (5000, 12000), (2000, 9000));

fn node(c: &ControlPlane, name: &str, number: u8) -> HollowNode {
    c.node(HollowSpec::new(name, number).in_zone(number), Pace::BRISK)
}

async fn patch<K: Kind>(c: &ControlPlane, namespace: &str, name: &str, value: Value) {
    let api = c.api::<K>(namespace);
    api.patch(name, &PatchParams::default(), &Patch::Strategic(value)).await.expect("the object is patched");
}

fn deployment(name: &str, replicas: i32, cpu: &str, priority: &str) -> Value {
    let tolerate = |key: &str| json!({"key": format!("node.kubernetes.io/{key}"), "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30});
    json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "priorityClassName": priority,
                    "tolerations": [tolerate("unreachable"), tolerate("not-ready")],
                    "containers": [{
                        "name": "c", "image": format!("{name}:1"), "ports": [{"containerPort": 8080}],
                        "resources": {"requests": {"cpu": cpu, "memory": "64Mi"}},
                    }],
                },
            },
        },
    })
}

fn image(version: u32) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": format!("web:{version}")}]}}}})
}

/// Whether all is as declared, nothing is left of before, and the Service leads to every ready pod.
fn settled(world: &World) -> bool {
    let web = check::pods_of(world, "shop/web").count();
    check::undeclared(world).is_empty()
        && check::orphans(world).is_empty()
        && check::outcome(world).contains(&format!("service shop/web endpoints={web}"))
}

async fn until(c: &ControlPlane, what: &str, holds: impl FnMut(&World) -> bool) -> Result<(), Stuck> {
    c.log.until(what, LIMIT, holds).await
}

/// Evicts every pod of the node, as `kubectl drain` does; returns how often the budget said no.
async fn drain(c: &ControlPlane, name: &str) -> Result<u32, Stuck> {
    patch::<Node>(c, "", name, json!({"spec": {"unschedulable": true}})).await;
    let pods = Api::<Pod>::all(c.admin());
    let on_node = ListParams { field_selector: Some(format!("spec.nodeName={name}")), ..Default::default() };
    let mut refused = 0;
    for pod in pods.list(&on_node).await.expect("pods are listed").items {
        let (space, name) = (pod.metadata.namespace.unwrap_or_default(), pod.metadata.name.unwrap_or_default());
        let eviction =
            Eviction::from_value(json!({"metadata": {"name": name, "namespace": space}})).expect("well formed");
        loop {
            let evict =
                c.api::<Pod>(&space).post_subresource(&name, "eviction", &PostParams::default(), &eviction).await;
            match evict {
                Ok(()) => break,
                Err(Error::Api(e)) if e.code == 404 => break,
                Err(Error::Api(e)) if e.code == 429 => refused += 1,
                Err(e) => panic!("cannot evict {name}: {e}"),
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }
    until(c, "the drained node is empty", |w| w.all("core/pods").all(|(_, p)| p["spec"]["nodeName"] != name)).await?;
    Ok(refused)
}

fn is_tainted(world: &World, node: &str, effect: &str) -> bool {
    let taints = world.get("core/nodes", node).and_then(|n| n["spec"]["taints"].as_array());
    taints.into_iter().flatten().any(|t| t["effect"] == effect)
}

/// Plays everything.
pub async fn play(c: &ControlPlane) -> Result<(), Stuck> {
    let mut nodes: Vec<HollowNode> = ["a", "b", "c"].iter().zip(1..).map(|(name, n)| node(c, name, n)).collect();
    for (name, value) in [("usual", 500), ("idle", 10), ("urgent", 1000)] {
        c.create::<PriorityClass>("", json!({"metadata": {"name": name}, "value": value})).await;
    }
    c.furnish(SPACE, nodes.len()).await?;

    c.create::<Service>(SPACE, json!({
        "metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }))
    .await;
    c.create::<PodDisruptionBudget>(
        SPACE,
        json!({
            "metadata": {"name": "web"}, "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "web"}}},
        }),
    )
    .await;
    c.create::<Deployment>(SPACE, deployment("web", 4, "500m", "usual")).await;
    until(c, "web is up", settled).await?;
    patch::<Deployment>(c, SPACE, "web", json!({"spec": {"replicas": 6}})).await;
    until(c, "web is scaled up", settled).await?;

    nodes[2].set_pace(SLOW);
    patch::<Deployment>(c, SPACE, "web", image(2)).await;
    until(c, "web is updated in spite of a slow node", settled).await?;
    nodes[2].set_pace(Pace::BRISK);

    nodes.remove(1).die();
    until(c, "the dead node's pods are evicted", |w| is_tainted(w, "b", "NoExecute")).await?;
    until(c, "web is whole without the dead node", |w| {
        let alive = check::pods_of(w, "shop/web").filter(|p| p["metadata"]["deletionTimestamp"].is_null());
        let (mut count, mut elsewhere) = (0, true);
        for pod in alive {
            count += 1;
            elsewhere &= pod["spec"]["nodeName"] != "b";
        }
        count == 6 && elsewhere && check::undeclared(w).is_empty()
    })
    .await?;
    nodes.insert(1, node(c, "b", 2));
    until(c, "the node is back and has let go of its pods", |w| settled(w) && !is_tainted(w, "b", "NoSchedule"))
        .await?;

    c.create::<Deployment>(SPACE, deployment("batch", 8, "1", "idle")).await;
    until(c, "the cluster is full", settled).await?;
    c.create::<Deployment>(SPACE, deployment("urgent", 2, "2", "urgent")).await;
    until(c, "the urgent has taken its place", |w| {
        check::pods_of(w, "shop/urgent").filter(|p| p["status"]["phase"] == "Running").count() == 2
            && check::pods_of(w, "shop/batch").any(|p| p["spec"]["nodeName"].is_null())
    })
    .await?;
    patch::<Deployment>(c, SPACE, "batch", json!({"spec": {"replicas": 3}})).await;
    until(c, "all that is left fits", settled).await?;

    nodes[0].set_failing(true);
    patch::<Deployment>(c, SPACE, "web", image(3)).await;
    tokio::time::sleep(Duration::from_secs(45)).await;
    nodes[0].set_failing(false);
    until(c, "web is updated in spite of failures", settled).await?;

    let background = DeleteParams { propagation_policy: Some("Background".into()), ..Default::default() };
    c.api::<Deployment>(SPACE).delete("batch", &background).await.expect("batch is deleted");
    until(c, "batch is collected", |w| settled(w) && w.all("core/pods").count() == 8).await?;
    let fullest = c.log.look(|w| {
        let on = |n: &str| check::pods_of(w, "shop/web").filter(|p| p["spec"]["nodeName"] == n).count();
        ["a", "b", "c"].into_iter().max_by_key(|n| on(n)).unwrap_or("a")
    });
    let refused = drain(c, fullest).await?;
    assert!(refused > 0, "the budget never held the drain back");
    until(c, "the drained pods run elsewhere", settled).await?;
    patch::<Node>(c, "", fullest, json!({"spec": {"unschedulable": null}})).await;

    patch::<Deployment>(c, SPACE, "web", json!({"spec": {"replicas": 7}})).await;
    until(c, "web has grown", settled).await?;
    nodes.remove(2).die();
    c.api::<Node>("").delete("c", &DeleteParams::default()).await.expect("the node is deleted");
    until(c, "nothing is left of the node", |w| w.get("core/nodes", "c").is_none() && settled(w)).await
}
