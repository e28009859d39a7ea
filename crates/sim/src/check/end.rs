//! What must have come about in a namespace once all is quiet.

use super::object::{
    amount, controlled, controller, is_active, is_going, is_over, is_ready, is_true, list, number, selects, serves,
    text, uid, within,
};
use super::rollout::made_for;
use crate::log::World;
use crate::measured::{load, share};
use serde_json::Value;
use std::collections::BTreeSet;

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// What of a namespace is found first not to be as declared, a line for each; empty where all is quiet. A namespace
/// that is gone holds nothing.
#[must_use]
pub fn unsettled(world: &World, namespace: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    match world.get("core/namespaces", namespace) {
        None => {
            wrong.extend(world.keys_within(namespace).map(|key| format!("{key} outlives its namespace")));
            return wrong;
        }
        Some(object) if is_going(object) => wrong.push(format!("namespace {namespace} is still going")),
        Some(_) => {}
    }
    let observed =
        ["apps/deployments", "apps/replicasets", "core/replicationcontrollers", "apps/statefulsets", "apps/daemonsets"];
    for resource in observed {
        for (name, o) in within(world, resource, namespace) {
            if number(o, "/metadata/generation") > number(o, "/status/observedGeneration") {
                wrong.push(format!("{resource} {name} was not seen in its present generation"));
            }
            if is_going(o) {
                wrong.push(format!("{resource} {name} is still going"));
            }
        }
    }
    let looks = [deployments, autoscalers, replicas, stateful_sets, daemon_sets, jobs, bounds, pods, claims];
    // This is asked again and again: what costs more comes last.
    for look in looks {
        look(world, namespace, &mut wrong);
        if !wrong.is_empty() {
            return wrong;
        }
    }
    wrong.extend(orphans(world, namespace));
    wrong
}

fn counts(what: &str, name: &str, o: &Value, fields: &[&str], wanted: i64, wrong: &mut Vec<String>) {
    for field in fields {
        let has = number(o, &format!("/status/{field}"));
        if has != wanted {
            wrong.push(format!("{what} {name} wants {wanted} and has {field} {has}"));
        }
    }
}

fn image(of: &Value) -> &Value {
    &of["spec"]["containers"][0]["image"]
}

fn deployments(world: &World, namespace: &str, wrong: &mut Vec<String>) {
    for (name, d) in within(world, "apps/deployments", namespace) {
        let wanted = number(d, "/spec/replicas");
        let sets = controlled(world, "apps/replicasets", namespace, uid(d));
        let pods: Vec<&Value> =
            sets.flat_map(|s| controlled(world, "core/pods", namespace, uid(s))).filter(|p| is_active(p)).collect();
        if d["spec"]["paused"] == true {
            counts("deployment", name, d, &["replicas", "readyReplicas"], wanted, wrong);
            continue;
        }
        counts(
            "deployment",
            name,
            d,
            &["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"],
            wanted,
            wrong,
        );
        let template = &d["spec"]["template"];
        let right = pods.iter().filter(|p| image(p) == image(template) && is_ready(p)).count();
        if count(right) != wanted || count(pods.len()) != wanted {
            wrong.push(format!("deployment {name} wants {wanted} and has {} pods, {right} as declared", pods.len()));
        }
    }
}

/// Autoscalers have come to the number of pods that their load asks for.
fn autoscalers(world: &World, namespace: &str, wrong: &mut Vec<String>) {
    for (name, scaler) in within(world, "autoscaling/horizontalpodautoscalers", namespace) {
        let target = format!("{namespace}/{}", text(scaler, "/spec/scaleTargetRef/name"));
        let Some(deployment) = world.get("apps/deployments", &target) else { continue };
        let template = "/spec/template";
        let has = number(deployment, "/spec/replicas");
        let app = text(deployment, &format!("{template}/metadata/labels/app"));
        let each = share(load(world, namespace, app), usize::try_from(has).unwrap_or(0));
        let request = amount(&deployment["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"]);
        let target = number(scaler, "/spec/metrics/0/resource/target/averageUtilization");
        let wanted = scaled_to(has, each * 100 / request.milli_value().max(1), target);
        let wanted = wanted.clamp(number(scaler, "/spec/minReplicas"), number(scaler, "/spec/maxReplicas"));
        if wanted != has {
            wrong.push(format!("autoscaler {name} has {has} pods with {each} m each, and should have {wanted}"));
        }
        counts("autoscaler", name, scaler, &["currentReplicas", "desiredReplicas"], has, wrong);
    }
}

/// How many pods there should be, by how much of their request is used and how much is to be, in hundredths. A tenth more
/// or less is left as it is.
fn scaled_to(has: i64, used: i64, target: i64) -> i64 {
    if (used - target).abs() * 10 <= target {
        return has;
    }
    (used * has + target - 1).div_euclid(target.max(1))
}

fn replicas(world: &World, namespace: &str, wrong: &mut Vec<String>) {
    for resource in ["apps/replicasets", "core/replicationcontrollers"] {
        for (name, set) in within(world, resource, namespace) {
            let wanted = number(set, "/spec/replicas");
            counts(resource, name, set, &["replicas", "readyReplicas", "availableReplicas"], wanted, wrong);
            let pods = controlled(world, "core/pods", namespace, uid(set)).filter(|p| is_active(p)).count();
            if count(pods) != wanted {
                wrong.push(format!("{resource} {name} wants {wanted} and has {pods} pods"));
            }
        }
    }
}

fn stateful_sets(world: &World, namespace: &str, wrong: &mut Vec<String>) {
    for (name, set) in within(world, "apps/statefulsets", namespace) {
        let (wanted, start) = (number(set, "/spec/replicas"), number(set, "/spec/ordinals/start"));
        counts("statefulset", name, set, &["replicas", "readyReplicas", "availableReplicas"], wanted, wrong);
        let has: BTreeSet<&str> = controlled(world, "core/pods", namespace, uid(set))
            .filter(|p| serves(p))
            .map(|p| text(p, "/metadata/name"))
            .collect();
        let names: Vec<String> = (start..start + wanted).map(|n| format!("{name}-{n}")).collect();
        if names.iter().map(String::as_str).collect::<BTreeSet<_>>() != has {
            wrong.push(format!("statefulset {name} wants {names:?} and has {has:?}"));
        }
        let templates = count(list(set, "/spec/volumeClaimTemplates").count());
        let claims = count(within(world, "core/persistentvolumeclaims", namespace).count());
        if text(set, "/spec/persistentVolumeClaimRetentionPolicy/whenScaled") == "Delete"
            && templates > 0
            && claims != wanted * templates
        {
            wrong.push(format!("statefulset {name} wants {wanted} and has {claims} claims"));
        }
        if text(set, "/spec/updateStrategy/type") == "OnDelete" {
            continue;
        }
        let partition = number(set, "/spec/updateStrategy/rollingUpdate/partition");
        for pod in controlled(world, "core/pods", namespace, uid(set)) {
            let at: i64 = text(pod, "/metadata/labels/apps.kubernetes.io~1pod-index").parse().unwrap_or(0);
            let revision = text(pod, "/metadata/labels/controller-revision-hash");
            // The partition counts from the first ordinal there is.
            if at >= start + partition && revision != text(set, "/status/updateRevision") {
                wrong.push(format!("pod {} is of revision {revision}", text(pod, "/metadata/name")));
            }
        }
    }
}

/// Whether a node takes the pods of a DaemonSet that tolerates nothing in particular.
fn takes_daemons(node: &Value) -> bool {
    is_ready(node) && !is_going(node) && list(node, "/spec/taints").all(|t| t["effect"] == "PreferNoSchedule")
}

fn daemon_sets(world: &World, namespace: &str, wrong: &mut Vec<String>) {
    for (name, set) in within(world, "apps/daemonsets", namespace) {
        let all = text(set, "/spec/template/spec/tolerations/0/operator") == "Exists";
        let nodes = || world.all("core/nodes").filter(|(_, n)| all || takes_daemons(n));
        let wanted = count(nodes().count());
        let fields = ["desiredNumberScheduled", "currentNumberScheduled", "numberReady", "numberAvailable"];
        counts("daemonset", name, set, &fields, wanted, wrong);
        if text(set, "/spec/updateStrategy/type") != "OnDelete" {
            counts("daemonset", name, set, &["updatedNumberScheduled"], wanted, wrong);
        }
        for (node, _) in nodes() {
            let pods =
                controlled(world, "core/pods", namespace, uid(set)).filter(|p| is_active(p) && made_for(p) == node);
            let pods = pods.count();
            if pods != 1 {
                wrong.push(format!("daemonset {name} has {pods} pods on node {node}"));
            }
        }
    }
}

fn jobs(world: &World, namespace: &str, wrong: &mut Vec<String>) {
    for (name, job) in within(world, "batch/jobs", namespace) {
        let running = controlled(world, "core/pods", namespace, uid(job)).filter(|p| is_active(p)).count();
        if job["spec"]["suspend"] == true {
            if running > 0 || number(job, "/status/active") > 0 {
                wrong.push(format!("job {name} is suspended and {running} pods run"));
            }
            continue;
        }
        // Those of a CronJob come and go.
        let of_cron = !controller(job).is_empty();
        if !is_over(job) && !of_cron {
            wrong.push(format!("job {name} is not over: {}", job["status"]));
        }
        if is_over(job) && (running > 0 || number(job, "/status/active") > 0) {
            wrong.push(format!("job {name} is over and {running} of its pods run"));
        }
        if is_true(job, "Complete") && text(job, "/spec/completionMode") == "NonIndexed" {
            counts("job", name, job, &["succeeded"], number(job, "/spec/completions"), wrong);
        }
        if is_over(job) && !job["spec"]["ttlSecondsAfterFinished"].is_null() {
            wrong.push(format!("job {name} outlives its time"));
        }
    }
}

/// Budgets and quotas know what there is.
fn bounds(world: &World, namespace: &str, wrong: &mut Vec<String>) {
    for (name, budget) in within(world, "policy/poddisruptionbudgets", namespace) {
        let pods = within(world, "core/pods", namespace).map(|(_, p)| p);
        let healthy = pods.filter(|p| selects(&budget["spec"]["selector"], p) && serves(p)).count();
        if number(budget, "/status/currentHealthy") != count(healthy) {
            wrong.push(format!("budget {name} has {healthy} healthy pods and says {}", budget["status"]));
        }
    }
    for (name, quota) in within(world, "core/resourcequotas", namespace) {
        let pods = within(world, "core/pods", namespace).filter(|(_, p)| !super::object::is_finished(p)).count();
        let used = text(quota, "/status/used/pods");
        if !quota["spec"]["hard"]["pods"].is_null() && used != pods.to_string() {
            wrong.push(format!("quota {name} says {used} pods and there are {pods}"));
        }
    }
}

fn pods(world: &World, namespace: &str, wrong: &mut Vec<String>) {
    for (name, pod) in within(world, "core/pods", namespace) {
        let node = text(pod, "/spec/nodeName");
        let of_cron =
            within(world, "batch/jobs", namespace).any(|(_, j)| uid(j) == controller(pod) && !controller(j).is_empty());
        if of_cron {
            continue;
        }
        if is_going(pod) {
            wrong.push(format!("pod {name} is still on its way out"));
        } else if node.is_empty() {
            wrong.push(format!("pod {name} was never bound"));
        } else if world.get("core/nodes", node).is_none() {
            wrong.push(format!("pod {name} is on node {node}, which is gone"));
        }
        for volume in list(pod, "/spec/volumes") {
            let claim = text(volume, "/persistentVolumeClaim/claimName");
            let bound = || world.get("core/persistentvolumeclaims", &format!("{namespace}/{claim}"));
            if !claim.is_empty() && bound().is_none_or(|c| text(c, "/status/phase") != "Bound") {
                wrong.push(format!("claim {claim} of pod {name} is not bound"));
            }
        }
    }
}

fn claims(world: &World, namespace: &str, wrong: &mut Vec<String>) {
    for (name, claim) in within(world, "core/persistentvolumeclaims", namespace) {
        if is_going(claim) {
            wrong.push(format!("claim {name} is still on its way out"));
        }
    }
}

/// Objects all of whose owners are gone.
fn orphans(world: &World, namespace: &str) -> Vec<String> {
    let mut uids: BTreeSet<&str> = world.objects().map(|(_, o)| uid(o)).collect();
    uids.remove("");
    let mut wrong = Vec::new();
    for (key, object) in world.objects_within(namespace) {
        let mut owners = list(object, "/metadata/ownerReferences").peekable();
        if owners.peek().is_some() && owners.all(|o| !uids.contains(text(o, "/uid"))) {
            wrong.push(format!("{key} outlives its owners"));
        }
    }
    wrong
}
