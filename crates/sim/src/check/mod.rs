//! What must hold in every run. Each function returns what is wrong, a line for each, empty where all is well.

mod batch;
mod claims;
mod counted;
mod end;
mod gang;
pub(crate) mod object;
mod rollout;
mod rule;
mod scaled;
mod tolerated;
#[cfg(test)]
mod violations;

pub use batch::{OnSchedule, WithinBudget, WithinQuota};
pub use claims::Claims;
pub use counted::CountedOnce;
pub use end::unsettled;
pub use gang::Whole;
pub use rollout::{OnePerNode, Ordered, Rollouts, Weather};
pub use rule::{Moment, Recent, Rule, walk};
pub use scaled::WithinBounds;
pub use tolerated::Tolerated;

use crate::log::{Change, World};
use object::{amount, is_finished, is_ready, list, number, text};
use serde_json::Value;
use std::collections::BTreeMap;

/// The resources a node is checked for.
const RESOURCES: [&str; 2] = ["cpu", "memory"];
const PODS: &str = "/registry/core/pods/";
const NODES: &str = "/registry/core/nodes/";

/// What a pod takes of a node: the sum of its containers, or its greediest init container, and the overhead.
fn request(pod: &Value, resource: &str) -> i128 {
    let of = |c: &Value| amount(&c["resources"]["requests"][resource]).nano_value();
    let containers: i128 = list(pod, "/spec/containers").map(of).sum();
    let init = list(pod, "/spec/initContainers").map(of).max().unwrap_or(0);
    containers.max(init) + amount(&pod["spec"]["overhead"][resource]).nano_value()
}

/// Everything that must hold at every revision: see the single checks.
#[must_use]
pub fn history(changes: &[Change]) -> Vec<String> {
    let (mut world, mut wrong) = (World::default(), Vec::new());
    let (mut revision, mut bound) = (0, BTreeMap::new());
    for change in changes {
        if change.revision != revision && change.revision != revision + 1 {
            wrong.push(format!("revision {} follows {revision}", change.revision));
        }
        revision = change.revision;
        world.apply(change);
        let Some(object) = world.key(&change.key).cloned() else { continue };
        if change.key.starts_with(PODS) {
            bindings(change, &object, &mut bound, &mut wrong);
            let node = text(&object, "/spec/nodeName");
            if !node.is_empty() {
                allocatable(change.revision, &world, node, &mut wrong);
            }
        } else if change.key.starts_with(NODES) {
            allocatable(change.revision, &world, text(&object, "/metadata/name"), &mut wrong);
        }
    }
    wrong.dedup();
    wrong
}

/// A pod once bound is never bound to another node, nor unbound.
fn bindings(change: &Change, pod: &Value, bound: &mut BTreeMap<String, String>, wrong: &mut Vec<String>) {
    let (uid, node) = (text(pod, "/metadata/uid"), text(pod, "/spec/nodeName"));
    match bound.get(uid) {
        None if node.is_empty() => {}
        None => drop(bound.insert(uid.to_owned(), node.to_owned())),
        Some(before) if before == node => {}
        Some(before) => {
            wrong.push(format!("r{}: {} was bound to {before} and now to {node:?}", change.revision, change.key));
        }
    }
}

/// No node holds more than its allocatable, in resources and in number of pods. A pod counts until it has finished or is
/// gone.
fn allocatable(revision: u64, world: &World, node: &str, wrong: &mut Vec<String>) {
    let Some(object) = world.get("core/nodes", node) else { return };
    let held =
        || world.all("core/pods").map(|(_, p)| p).filter(|p| text(p, "/spec/nodeName") == node && !is_finished(p));
    let available = |resource: &str| amount(&object["status"]["allocatable"][resource]).nano_value();
    for resource in RESOURCES {
        let (taken, whole) = (held().map(|p| request(p, resource)).sum::<i128>(), available(resource));
        if taken > whole {
            wrong.push(format!("r{revision}: node {node} holds {taken} n of {resource} and has {whole} n"));
        }
    }
    let (count, most) = (held().count() as i128, available("pods") / 1_000_000_000);
    if count > most {
        wrong.push(format!("r{revision}: node {node} holds {count} pods and may hold {most}"));
    }
}

/// At the end nothing is left behind: no object whose controller is gone, no pod on a node that is gone, none that is still
/// on its way out, none that nobody bound.
#[must_use]
pub fn orphans(world: &World) -> Vec<String> {
    let mut wrong = Vec::new();
    let kinds = ["apps/deployments", "apps/replicasets", "core/replicationcontrollers"];
    let uids: Vec<String> = kinds
        .iter()
        .flat_map(|r| world.all(r).map(|(_, o)| text(o, "/metadata/uid").to_owned()).collect::<Vec<_>>())
        .collect();
    for resource in ["apps/replicasets", "core/pods"] {
        for (name, object) in world.all(resource) {
            let mut owners = list(object, "/metadata/ownerReferences");
            if let Some(gone) = owners.find(|o| !uids.iter().any(|u| o["uid"] == u.as_str())) {
                wrong.push(format!("{resource} {name} outlives its owner {}", gone["name"]));
            }
        }
    }
    for (name, pod) in world.all("core/pods") {
        let node = text(pod, "/spec/nodeName");
        if node.is_empty() {
            wrong.push(format!("pod {name} was never bound"));
        } else if world.get("core/nodes", node).is_none() {
            wrong.push(format!("pod {name} is on node {node}, which is gone"));
        }
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            wrong.push(format!("pod {name} is still on its way out"));
        }
    }
    wrong
}

/// Whether every Deployment is what it asks to be, by its own status and by the pods there are.
#[must_use]
pub fn undeclared(world: &World) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, d) in world.all("apps/deployments") {
        let wanted = number(d, "/spec/replicas");
        for count in ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"] {
            let has = number(d, &format!("/status/{count}"));
            if has != wanted {
                wrong.push(format!("deployment {name} wants {wanted} and has {count} {has}"));
            }
        }
        if number(d, "/metadata/generation") != number(d, "/status/observedGeneration") {
            wrong.push(format!("deployment {name} was not seen in its present generation"));
        }
        let image = &d["spec"]["template"]["spec"]["containers"][0]["image"];
        let runs =
            pods_of(world, name).filter(|p| p["spec"]["containers"][0]["image"] == *image && is_ready(p)).count();
        if i64::try_from(runs) != Ok(wanted) {
            wrong.push(format!("deployment {name} wants {wanted} of {image} and {runs} pods run it"));
        }
    }
    wrong
}

/// The pods of a Deployment (`<namespace>/<name>`), through its ReplicaSets.
pub fn pods_of<'w>(world: &'w World, deployment: &str) -> impl Iterator<Item = &'w Value> + use<'w> {
    let uid = world.get("apps/deployments", deployment).map(|d| text(d, "/metadata/uid").to_owned());
    let owned = move |o: &Value, by: &[String]| {
        list(o, "/metadata/ownerReferences").any(|r| by.iter().any(|u| r["uid"] == u.as_str()))
    };
    let by: Vec<String> = uid.into_iter().collect();
    let sets: Vec<String> = world
        .all("apps/replicasets")
        .filter(|(_, rs)| owned(rs, &by))
        .map(|(_, rs)| text(rs, "/metadata/uid").to_owned())
        .collect();
    world.all("core/pods").map(|(_, p)| &**p).filter(move |p| owned(p, &sets))
}

/// What was declared and is so, without anything that chance decides (generated names, addresses, who runs where): equal
/// for all seeds.
#[must_use]
pub fn outcome(world: &World) -> String {
    let mut lines = Vec::new();
    for (name, n) in world.all("core/nodes") {
        lines.push(format!("node {name} ready={} taints={}", is_ready(n), n["spec"]["taints"]));
    }
    for (name, d) in world.all("apps/deployments") {
        let image = &d["spec"]["template"]["spec"]["containers"][0]["image"];
        let ready = pods_of(world, name).filter(|p| is_ready(p)).count();
        lines.push(format!("deployment {name} {image} {} ready={ready}", d["spec"]["replicas"]));
    }
    for (name, b) in world.all("policy/poddisruptionbudgets") {
        let s = &b["status"];
        lines.push(format!("budget {name} healthy={} allowed={}", s["currentHealthy"], s["disruptionsAllowed"]));
    }
    for (name, s) in world.all("core/services") {
        let mine =
            |slice: &&Value| slice["metadata"]["labels"]["kubernetes.io/service-name"] == text(s, "/metadata/name");
        let slices = world.all("discovery.k8s.io/endpointslices").map(|(_, e)| &**e).filter(mine);
        let ready = slices.flat_map(|e| list(e, "/endpoints")).filter(|e| e["conditions"]["ready"] == true).count();
        lines.push(format!("service {name} endpoints={ready}"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    fn put(revision: u64, key: &str, value: Value) -> Change {
        Change { at: Duration::ZERO, revision, key: key.into(), value: Some(value.to_string().into()) }
    }

    fn node(revision: u64, cpu: &str, pods: &str) -> Change {
        let resources = json!({"cpu": cpu, "memory": "1Gi", "pods": pods});
        put(
            revision,
            "/registry/core/nodes/a",
            json!({"metadata": {"name": "a"}, "status": {"allocatable": resources}}),
        )
    }

    fn pod(revision: u64, name: &str, on: &str, cpu: &str, phase: &str) -> Change {
        let container = json!({"resources": {"requests": {"cpu": cpu}}});
        let value = json!({
            "metadata": {"uid": name}, "spec": {"nodeName": on, "containers": [container]}, "status": {"phase": phase},
        });
        put(revision, &format!("/registry/core/pods/n/{name}"), value)
    }

    #[test]
    fn every_wrong_is_found() {
        let cases: [(&[Change], &str); 6] = [
            (&[node(1, "2", "9"), pod(2, "x", "a", "1500m", "Running"), pod(3, "y", "a", "500m", "")], ""),
            (&[node(1, "2", "9"), pod(2, "x", "a", "1500m", "Running"), pod(3, "y", "a", "501m", "")], "of cpu"),
            (&[node(1, "2", "9"), pod(2, "x", "a", "2", "Failed"), pod(3, "y", "a", "2", "")], ""),
            (&[node(1, "2", "1"), pod(2, "x", "a", "1m", ""), pod(3, "y", "a", "1m", "")], "holds 2 pods"),
            (&[pod(1, "x", "", "1", ""), pod(2, "x", "a", "1", ""), pod(3, "x", "b", "1", "")], "now to \"b\""),
            (&[node(1, "2", "9"), pod(3, "x", "a", "1", "")], "revision 3 follows 1"),
        ];
        for (changes, expected) in cases {
            let wrong = history(changes);
            let as_expected = if expected.is_empty() { wrong.is_empty() } else { wrong.concat().contains(expected) };
            assert!(as_expected, "{expected}: {wrong:?}");
        }
    }

    #[test]
    fn what_is_left_behind_and_what_is_not_as_declared_is_found() {
        let world = |changes: &[Change]| {
            let mut world = World::default();
            changes.iter().for_each(|c| world.apply(c));
            world
        };
        let template = json!({"spec": {"containers": [{"image": "i"}]}});
        let status = json!({
            "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1, "observedGeneration": 1,
        });
        let d = json!({
            "metadata": {"uid": "d", "generation": 1}, "spec": {"replicas": 1, "template": template}, "status": status,
        });
        let owned = |uid: &str, by: &str| json!({"uid": uid, "ownerReferences": [{"uid": by, "name": by}]});
        let rs = json!({"metadata": owned("rs", "d")});
        let ready = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        let p = |by: &str| {
            let spec = json!({"nodeName": "a", "containers": [{"image": "i"}]});
            json!({"metadata": owned("p", by), "spec": spec, "status": ready})
        };
        let (dk, rk, pk) =
            ("/registry/apps/deployments/n/d", "/registry/apps/replicasets/n/rs", "/registry/core/pods/n/p");
        let good = world(&[node(1, "1", "1"), put(2, dk, d.clone()), put(3, rk, rs.clone()), put(4, pk, p("rs"))]);
        assert_eq!((orphans(&good), undeclared(&good)), (vec![], vec![]));
        assert!(outcome(&good).contains("deployment n/d \"i\" 1 ready=1"));
        let bad = world(&[put(2, dk, d), put(3, rk, rs), put(4, pk, p("gone"))]);
        assert!(
            orphans(&bad).concat().contains("outlives its owner") && orphans(&bad).concat().contains("which is gone")
        );
        assert!(undeclared(&bad).concat().contains("0 pods run it"));
    }
}
