//! Why a pod is where it is, or why it is nowhere: worked out when somebody asks, from the scheduler's own state.

use crate::affinity::Conflict;
use crate::cycle::Cycle;
use crate::decide::{Decider, Request};
use crate::devices::PodDevices;
use crate::devices::pool::NodeFacts;
use crate::filter::volumes::PodVolumes;
use crate::filter::{self, Usage};
use crate::pod::{AffinityTerm, Occupant, PodInfo};
use crate::preempt::{self, Budget};
use crate::profile::{Filter, Profile};
use crate::queue::Standing;
use crate::run::{Scheduler, State};
use crate::score::Parts;
use crate::snapshot::{Row, Snapshot};
use gantry_api::k8s_openapi::api::core::v1::Taint;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::time::Instant;

/// Remedies told of each kind; there may be one per node.
const REMEDIES_PER_KIND: usize = 3;

/// One thing that keeps a pod off a node.
#[derive(Debug)]
struct Problem {
    plugin: &'static str,
    /// As events word it.
    reason: String,
    /// By how much, or through what.
    detail: String,
    /// The one change that would do away with it, and its kind.
    remedy: Option<(&'static str, String)>,
}

impl Problem {
    fn new(plugin: &'static str, reason: &str, detail: String) -> Self {
        Self { plugin, reason: reason.to_owned(), detail, remedy: None }
    }

    fn remedied(mut self, kind: &'static str, how: String) -> Self {
        self.remedy = Some((kind, how));
        self
    }
}

fn taint_text(taint: &Taint) -> String {
    match taint.value.as_deref().filter(|v| !v.is_empty()) {
        Some(value) => format!("{}={value}:{}", taint.key, taint.effect),
        None => format!("{}:{}", taint.key, taint.effect),
    }
}

/// An amount as people write it: cpu in cores or thousandths, bytes in the unit that divides them.
fn amount(resource: &str, n: i64) -> String {
    match resource {
        "cpu" if n % 1000 == 0 => (n / 1000).to_string(),
        "cpu" => format!("{n}m"),
        "memory" | "ephemeral-storage" => {
            let units = [("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
            match units.iter().find(|(_, size)| n != 0 && n % size == 0) {
                Some((unit, size)) => format!("{}{unit}", n / size),
                None => n.to_string(),
            }
        }
        _ => n.to_string(),
    }
}

/// What the pod asks for beside what is free, by resource: name, wanted, allocatable, taken.
fn room(snapshot: &Snapshot, row: Row, pod: &PodInfo) -> Vec<(String, i64, i64, i64)> {
    let (have, taken, want) = (&snapshot.allocatable[row], &snapshot.requested[row], &pod.requests);
    // Where the node has none, devices may stand for it.
    let by_devices = |name: &String| snapshot.backed().contains(name) && !have.scalars.contains_key(name);
    let mut out = vec![
        ("cpu".to_owned(), want.cpu_milli, have.cpu_milli, taken.cpu_milli),
        ("memory".to_owned(), want.memory, have.memory, taken.memory),
        ("ephemeral-storage".to_owned(), want.ephemeral, have.ephemeral, taken.ephemeral),
    ];
    for (name, want) in want.scalars.iter().filter(|(name, _)| !by_devices(name)) {
        let of = |amounts: &crate::pod::Amounts| amounts.scalars.get(name).copied().unwrap_or(0);
        out.push((name.clone(), *want, of(have), of(taken)));
    }
    out.retain(|(_, want, have, taken)| *want > 0 && *want > have - taken);
    out
}

fn resources(snapshot: &Snapshot, row: Row, pod: &PodInfo) -> Vec<Problem> {
    let mut out = Vec::new();
    let (most, there) = (snapshot.allocatable[row].pods, snapshot.requested[row].pods);
    if there + 1 > most {
        out.push(Problem::new("NodeResourcesFit", "Too many pods", format!("{there} of {most} pods")));
    }
    for (name, want, have, taken) in room(snapshot, row, pod) {
        let show = |n: i64| amount(&name, n);
        let (free, node) = (have - taken, &snapshot.names[row]);
        let detail =
            format!("wants {}, {} of {} free, {} short", show(want), show(free), show(have), show(want - free));
        let problem = Problem::new("NodeResourcesFit", &format!("Insufficient {name}"), detail);
        out.push(if want > have {
            problem.remedied("Request", format!("request at most {} of {name} to fit on {node}", show(have)))
        } else {
            problem.remedied("Free", format!("free {} of {name} on {node}", show(want - free)))
        });
    }
    out
}

fn reach(snapshot: &Snapshot, row: Row, cycle: &Cycle) -> Vec<Problem> {
    let (pod, node, mut out) = (&cycle.pod, &snapshot.names[row], Vec::new());
    let enabled = |f: Filter| cycle.profile.filters(f);
    if enabled(Filter::NodeUnschedulable) && !cycle.reach.accepts_cordon(snapshot, row) {
        let problem = Problem::new("NodeUnschedulable", "node(s) were unschedulable", "the node is cordoned".into());
        out.push(problem.remedied("Uncordon", format!("uncordon {node}")));
    }
    if enabled(Filter::NodeName)
        && let Some(wanted) = pod.node().filter(|n| n != node)
    {
        let reason = "node(s) didn't match the requested node name";
        out.push(Problem::new("NodeName", reason, format!("wants {wanted}")));
    }
    // A cordoned node has a taint for it, which goes when the node is uncordoned.
    let of_cordon = |t: &&Taint| snapshot.unschedulable[row] && t.key == "node.kubernetes.io/unschedulable";
    let taints = cycle.reach.untolerated(snapshot, row).filter(|t| !of_cordon(t));
    let taints: Vec<String> = taints.map(taint_text).collect();
    if enabled(Filter::TaintToleration) && !taints.is_empty() {
        let all = taints.join(", ");
        let problem = Problem::new("TaintToleration", "node(s) had untolerated taint(s)", all.clone());
        let noun = if taints.len() == 1 { "taint" } else { "taints" };
        out.push(problem.remedied("Taint", format!("remove the {noun} {all} from {node}, or tolerate it")));
    }
    if enabled(Filter::NodeAffinity) && !cycle.reach.is_allowed(snapshot, row) {
        let reason = "node(s) didn't match scheduler-enforced node affinity";
        let detail = format!("the profile {} admits other nodes only", cycle.profile.name);
        out.push(Problem::new("NodeAffinity", reason, detail));
    }
    if enabled(Filter::NodeAffinity) && !cycle.reach.admits(snapshot, row) {
        let labels = &snapshot.labels[row];
        let selector = pod.spec().node_selector.iter().flatten();
        let lacking: Vec<String> =
            selector.filter(|(k, v)| labels.get(*k) != Some(v)).map(|(k, v)| format!("{k}={v}")).collect();
        let reason = "node(s) didn't match Pod's node affinity/selector";
        out.push(if lacking.is_empty() {
            let detail = "no term of the required node affinity selects the node".to_owned();
            Problem::new("NodeAffinity", reason, detail)
                .remedied("Affinity", format!("relax the required node affinity to admit {node}"))
        } else {
            let lacking = lacking.join(", ");
            Problem::new("NodeAffinity", reason, format!("the node lacks {lacking}"))
                .remedied("Label", format!("label {node} with {lacking}, or relax the node selector"))
        });
    }
    out
}

fn ports(snapshot: &Snapshot, row: Row, pod: &PodInfo) -> Option<Problem> {
    let holds = |p: &&Arc<Occupant>| p.host_ports.iter().any(|q| pod.host_ports.iter().any(|port| port.conflicts(q)));
    let holders: Vec<&str> = snapshot.pods[row].iter().filter(holds).map(|p| &*p.key).collect();
    let reason = "node(s) didn't have free ports for the requested pod ports";
    let holders = (!holders.is_empty()).then(|| holders.join(", "))?;
    let problem = Problem::new("NodePorts", reason, format!("taken by {holders}"));
    Some(problem.remedied("Ports", format!("move {holders} off {}", snapshot.names[row])))
}

fn about(term: &AffinityTerm) -> String {
    format!("{} in the same {}", term.selector, term.topology_key)
}

fn across(snapshot: &Snapshot, row: Row, cycle: &Cycle) -> Vec<Problem> {
    let (node, mut out) = (&snapshot.names[row], Vec::new());
    if cycle.profile.filters(Filter::PodTopologySpread) {
        for key in cycle.spread.missing_keys(snapshot, row) {
            let reason = "node(s) didn't match pod topology spread constraints (missing required label)";
            let problem = Problem::new("PodTopologySpread", reason, format!("the node lacks {key}"));
            out.push(problem.remedied("Label", format!("label {node} with {key}")));
        }
        for e in cycle.spread.excesses(snapshot, row) {
            let detail = format!("over {} the skew would be {}, {} allowed", e.key, e.skew, e.max_skew);
            let reason = "node(s) didn't match pod topology spread constraints";
            let how = format!("raise maxSkew over {} to {}, or let it be ScheduleAnyway", e.key, e.skew);
            out.push(Problem::new("PodTopologySpread", reason, detail).remedied("Spread", how));
        }
    }
    if cycle.profile.filters(Filter::InterPodAffinity) {
        for conflict in cycle.affinity.conflicts(snapshot, row, &cycle.pod) {
            let (reason, detail, how) = match conflict {
                Conflict::Affinity(term) => (
                    "node(s) didn't match pod affinity rules",
                    format!("there is no pod {}", about(term)),
                    "relax the required pod affinity".to_owned(),
                ),
                Conflict::AntiAffinity(term) => (
                    "node(s) didn't match pod anti-affinity rules",
                    format!("there are pods {}", about(term)),
                    "relax the required pod anti-affinity".to_owned(),
                ),
                Conflict::Existing => (
                    "node(s) didn't satisfy existing pods anti-affinity rules",
                    "pods there keep it away by their anti-affinity".to_owned(),
                    format!("move the pods of {node} that keep it away"),
                ),
            };
            out.push(Problem::new("InterPodAffinity", reason, detail).remedied("PodAffinity", how));
        }
    }
    out
}

/// Everything that keeps the pod off a node, where filtering stops at the first.
fn problems(snapshot: &Snapshot, row: Row, cycle: &Cycle) -> Vec<Problem> {
    let (pod, profile) = (&cycle.pod, &cycle.profile);
    let mut out = reach(snapshot, row, cycle);
    if profile.filters(Filter::NodePorts) {
        out.extend(ports(snapshot, row, pod));
    }
    if profile.filters(Filter::NodeResourcesFit) {
        out.extend(resources(snapshot, row, pod));
    }
    if let Some(claims) = &cycle.volumes
        && let Err(r) = filter::volumes::filter(snapshot, row, claims, cycle.exclusive_conflicts, profile)
    {
        out.push(Problem::new(r.plugin, &r.reasons.join(", "), String::new()));
    }
    out.extend(across(snapshot, row, cycle));
    if let Some(pod_devices) = cycle.devices.as_ref().filter(|_| profile.filters(Filter::DynamicResources)) {
        out.extend(devices(snapshot, row, pod_devices));
    }
    out
}

/// Which devices of the node were refused, and why.
fn devices(snapshot: &Snapshot, row: Row, devices: &PodDevices) -> Option<Problem> {
    let rejection = devices.filter(snapshot, row).err()?;
    let node = NodeFacts { name: &snapshot.names[row], labels: &snapshot.labels[row] };
    let detail = devices.refusals(node).join(". ");
    Some(Problem::new(rejection.plugin, &rejection.reasons.join(", "), detail))
}

/// What stands in the way of the pod wherever it goes, and the claims it has.
fn in_the_way(
    scheduler: &Scheduler,
    pod: &Arc<PodInfo>,
    profile: &Profile,
) -> (Vec<Value>, Option<Arc<PodVolumes>>, Option<Arc<PodDevices>>) {
    let gates = pod.spec().scheduling_gates.iter().flatten();
    let mut out: Vec<Value> = gates.map(|g| json!({ "kind": "SchedulingGate", "message": g.name })).collect();
    let volumes = scheduler.volumes.of_pod(pod).unwrap_or_else(|(plugin, why)| {
        out.push(json!({ "kind": "PersistentVolumeClaim", "plugin": plugin, "message": why }));
        None
    });
    let devices = scheduler.devices.of_pod(pod, profile.devices).unwrap_or_else(|(plugin, why)| {
        out.push(json!({ "kind": "ResourceClaim", "plugin": plugin, "message": why }));
        None
    });
    let devices = devices.filter(|_| profile.filters(Filter::DynamicResources));
    (out, volumes.map(Arc::new), devices.map(Arc::new))
}

/// The changes that suffice by themselves, those of the fewest pods first.
struct Remedies(Vec<(usize, &'static str, Value)>);

impl Remedies {
    fn add(&mut self, rank: usize, kind: &'static str, node: &str, text: String, pods: &[Arc<Occupant>]) {
        if self.0.iter().any(|(_, _, known)| known["message"] == text.as_str()) {
            return;
        }
        let mut remedy = json!({ "kind": kind, "node": node, "message": text });
        if !pods.is_empty() {
            remedy["pods"] = pods.iter().map(|p| &*p.key).collect();
        }
        self.0.push((rank, kind, remedy));
    }

    fn finish(mut self) -> Vec<Value> {
        self.0.sort_by_key(|(rank, _, _)| *rank);
        let mut told: Vec<&'static str> = Vec::new();
        self.0.retain(|(_, kind, _)| {
            told.push(kind);
            told.iter().filter(|k| *k == kind).count() <= REMEDIES_PER_KIND
        });
        self.0.into_iter().map(|(_, _, remedy)| remedy).collect()
    }
}

impl Scheduler {
    /// Explains a pod that is known; `None` for others.
    pub(crate) fn explain(&self, namespace: &str, name: &str) -> Option<Value> {
        let pod = self.pods.get(namespace, name)?;
        let mut state = self.state.lock();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let pod = state.assumed.get(uid.as_str()).cloned().unwrap_or_else(|| Arc::new(PodInfo::new(pod)));
        let mut out = json!({
            "apiVersion": "gantry/v1",
            "kind": "PodExplanation",
            "metadata": { "namespace": namespace, "name": name, "uid": uid },
            "scheduler": pod.scheduler(),
        });
        if pod.is_finished() {
            out["state"] = json!("Finished");
            return Some(out);
        }
        let state = &mut *state;
        let placed = state.snapshot.row_of_pod(&uid).map(|row| state.snapshot.names[row].clone());
        let now = Instant::now();
        let of_group = pod.group.as_ref().and_then(|g| state.queue.standing(&g.id, now)).filter(|_| placed.is_none());
        let standing = of_group.or_else(|| state.queue.standing(&uid, now));
        if let Some(group) = pod.group.as_ref().and_then(|g| state.groups.explain(&g.id)) {
            out["group"] = group;
        }
        out["state"] = json!(match (&placed, &standing) {
            (Some(_), _) => "Placed",
            (None, Some(s)) => s.place,
            (None, None) => "NotOurs",
        });
        let Some(profile) = state.deciders.get(pod.scheduler()).map(|d| d.profile().clone()) else { return Some(out) };
        if let Some(node) = &placed {
            out["node"] = json!(node);
            // As if it were still to be placed, among the pods that are there now.
            let counted = state.snapshot.displace(&uid);
            self.explain_nodes(state, &pod.unbound(), &profile, &mut out);
            if let Some(pod) = counted {
                state.snapshot.place(pod, node);
            }
            return Some(out);
        }
        if let Some(Standing { ahead, waiting, attempts, retry_after, rejected_by, .. }) = standing {
            out["queue"] = json!({ "ahead": ahead, "waiting": waiting, "attempts": attempts });
            if let Some(after) = retry_after {
                out["queue"]["retryAfterSeconds"] = json!(after.as_secs_f64().ceil());
            }
            if !rejected_by.is_empty() {
                out["queue"]["rejectedBy"] = json!(rejected_by);
            }
        }
        if let Some(node) = pod.nominated_node() {
            out["nominatedNode"] = json!(node);
        }
        self.explain_nodes(state, &pod, &profile, &mut out);
        Some(out)
    }

    fn explain_nodes(&self, state: &State, pod: &Arc<PodInfo>, profile: &Arc<Profile>, out: &mut Value) {
        let snapshot = &state.snapshot;
        let (in_the_way, volumes, devices) = in_the_way(self, pod, profile);
        if !in_the_way.is_empty() {
            out["inTheWay"] = json!(in_the_way);
        }
        let defaults = self.owners.constraints(pod, profile);
        let cycle = Cycle::new(snapshot, pod.clone(), &defaults, profile);
        let mut cycle = cycle.with(snapshot, pod.clone(), volumes.clone(), devices.clone());
        let decider = Decider::new(Profile { percentage: 100, ..(**profile).clone() });
        let mut decider = decider.sampling_up_to(usize::MAX);
        let request = Request {
            pod,
            defaults: &defaults,
            volumes: volumes.as_ref(),
            devices: devices.as_ref(),
            promises: state.queue.promises(),
            fellows: &[],
            domain: None,
            asked: None,
        };
        let outcome = decider.decide(snapshot, &request, &mut |_| 0);
        let possible = outcome.is_ok();
        if let Err(mut rejected) = outcome {
            rejected.diagnosis.devices = devices;
            let failure = self.failure(snapshot, &state.queue, &state.groups, &mut decider, *rejected);
            out["message"] = json!(failure.diagnosis.message());
        }
        let budgets: Vec<Budget> = self.budgets.list().iter().filter_map(|b| Budget::new(b)).collect();
        let mut remedies = Remedies(Vec::new());
        let mut nodes: Vec<Value> = Vec::new();
        let feasible: HashSet<Row> = decider.feasible().iter().copied().collect();
        let scores: HashMap<Row, Parts> = decider.ranked().iter().map(|r| (r.row, r.parts)).collect();
        for row in snapshot.node_rows() {
            let name = snapshot.names[row].as_str();
            let mut node = json!({ "name": name });
            let feasible = feasible.contains(&row);
            node["feasible"] = json!(feasible);
            if let Some(p) = scores.get(&row) {
                node["score"] = json!(p.total());
                node["scores"] = json!({
                    "TaintToleration": p.taints, "NodeAffinity": p.node_affinity, "PodTopologySpread": p.spread,
                    "InterPodAffinity": p.pod_affinity, "NodeResourcesFit": p.fit,
                    "NodeResourcesBalancedAllocation": p.balanced, "ImageLocality": p.images,
                    "DynamicResources": p.devices,
                });
            }
            if !feasible {
                let others = state.queue.promises().on(name).filter(|p| p.uid != pod.uid);
                let rivals: Vec<Arc<PodInfo>> = others.cloned().collect();
                let found = problems(snapshot, row, &cycle);
                let shown = |p: &Problem| json!({ "plugin": p.plugin, "reason": p.reason, "detail": p.detail });
                node["problems"] = found.iter().map(shown).collect();
                if found.is_empty() && !rivals.is_empty() {
                    let keys: Vec<&str> = rivals.iter().map(|p| &*p.key).collect();
                    node["problems"] = json!([{
                        "plugin": "NominatedNode", "reason": "the room is promised to others", "detail": keys.join(", "),
                    }]);
                }
                remedy(snapshot, row, &mut cycle, &found, &budgets, &rivals, &mut remedies);
            }
            nodes.push(node);
        }
        nodes.sort_by_key(|n| std::cmp::Reverse(n["score"].as_i64()));
        out["nodes"] = json!(nodes);
        if !possible && in_the_way.is_empty() {
            out["remedies"] = json!(remedies.finish());
        }
    }
}

/// What alone would open the node.
fn remedy(
    snapshot: &Snapshot,
    row: Row,
    cycle: &mut Cycle,
    found: &[Problem],
    budgets: &[Budget],
    rivals: &[Arc<PodInfo>],
    out: &mut Remedies,
) {
    let node = snapshot.names[row].as_str();
    if let Some(candidate) = preempt::victims_on(snapshot, row, cycle, budgets, rivals) {
        let victims = &candidate.victims;
        let keys: Vec<&str> = victims.iter().map(|p| &*p.key).collect();
        out.add(victims.len(), "Evict", node, format!("evict {} from {node}", keys.join(", ")), victims);
    } else if let Some(others) = bystanders(snapshot, row, cycle) {
        let keys: Vec<&str> = others.iter().map(|p| &*p.key).collect();
        let text = format!("move {} off {node}; preemption does not, for its priority is no lower", keys.join(", "));
        out.add(100 + others.len(), "Move", node, text, &others);
    }
    if let [only] = found
        && let Some((kind, how)) = &only.remedy
    {
        out.add(10, kind, node, how.clone(), &[]);
    }
}

/// The one pod of no lower priority without which the pod would fit; the smallest there is.
fn bystanders(snapshot: &Snapshot, row: Row, cycle: &mut Cycle) -> Option<Vec<Arc<Occupant>>> {
    let mut others = snapshot.pods[row].clone();
    others.retain(|p| p.priority >= cycle.pod.priority);
    others.sort_by_key(|p| (p.requests.cpu_milli, p.requests.memory));
    for other in others {
        let mut usage = Usage::of(snapshot, row);
        usage.remove(&other);
        cycle.remove(snapshot, row, &other);
        let fits = filter::run(snapshot, row, cycle, Some(&usage)).is_ok();
        cycle.add(snapshot, row, &other);
        if fits {
            return Some(vec![other]);
        }
    }
    None
}
