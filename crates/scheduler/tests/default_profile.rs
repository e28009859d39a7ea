//! The scheduler's decisions against a plain and slow reading of kube-scheduler's documentation ([`oracle`]): on random
//! clusters, through random changes, the feasible nodes are the same and the chosen one is among the best.

#![allow(missing_docs)]

mod dice;
mod oracle;

use dice::Dice;
use gantry_api::entropy::Entropy;
use gantry_api::k8s_openapi::api::core::v1::{Node, Pod};
use gantry_scheduler::decide::{Decider, Request};
use gantry_scheduler::pod::PodInfo;
use gantry_scheduler::preempt::Candidate;
use gantry_scheduler::profile::Profile;
use gantry_scheduler::promises::Promises;
use gantry_scheduler::snapshot::Snapshot;
use gantry_scheduler::spread::DefaultConstraints;
use oracle::{World, name};
use serde_json::{Value, json};
use std::sync::Arc;

const CLUSTERS: u64 = 2_000;
const STEPS: usize = 6;

const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";

impl Dice {
    fn taints(&self) -> Value {
        let one = |_| {
            let effect = self.pick(&["NoSchedule", "PreferNoSchedule", "PreferNoSchedule", "NoExecute"]);
            json!({"key": self.pick(&["a", "b"]), "value": self.pick(&["1", "2"]), "effect": effect})
        };
        let count = if self.one_in(2) { 0 } else { self.below(3) };
        let mut taints: Vec<Value> = (0..count).map(one).collect();
        taints.dedup_by_key(|t| (t["key"].clone(), t["effect"].clone()));
        json!(taints)
    }

    fn node(&self, number: u64) -> Node {
        let name = format!("n{number}");
        let mut labels = json!({HOST: name, "cores": (self.below(4) * 2).to_string()});
        if !self.one_in(8) {
            labels[ZONE] = json!(self.pick(&["x", "y", "z"]));
        }
        if self.one_in(2) {
            labels["disk"] = json!(self.pick(&["ssd", "hdd"]));
        }
        let mut allocatable = json!({"cpu": self.pick(&["1000m", "2000m", "4000m"]), "memory": "4096Mi", "pods": "8"});
        if self.one_in(3) {
            allocatable["example.com/gpu"] = json!("2");
        }
        let image = json!({"names": ["big:1"], "sizeBytes": (100 + self.below(900)) << 20});
        let images = if self.one_in(3) { json!([image]) } else { json!([]) };
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": labels},
            "spec": {"unschedulable": self.one_in(10), "taints": self.taints()},
            "status": {"allocatable": allocatable, "images": images},
        }))
        .unwrap()
    }

    fn selector(&self) -> Value {
        match self.below(3) {
            0 => json!({"matchLabels": {"app": self.pick(&["web", "db"])}}),
            1 => json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["web", "db"]}]}),
            _ => json!({"matchExpressions": [{"key": "tier", "operator": self.pick(&["Exists", "DoesNotExist"])}]}),
        }
    }

    fn node_term(&self) -> Value {
        let (key, operator, values) = match self.below(5) {
            0 => ("disk", "In", json!(["ssd"])),
            1 => ("disk", "NotIn", json!(["hdd"])),
            2 => ("cores", "Gt", json!(["2"])),
            3 => ("cores", "Lt", json!(["6"])),
            _ => (ZONE, "Exists", json!(null)),
        };
        let mut term = json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        if self.one_in(6) {
            term["matchFields"] = json!([{"key": "metadata.name", "operator": "NotIn", "values": ["n1"]}]);
        }
        term
    }

    fn pod_term(&self) -> Value {
        let mut term = json!({"labelSelector": self.selector(), "topologyKey": self.pick(&[ZONE, ZONE, HOST, "disk"])});
        match self.below(6) {
            0 => term["namespaces"] = json!(["other"]),
            1 => term["namespaceSelector"] = json!({"matchLabels": {"team": "a"}}),
            2 => term["namespaceSelector"] = json!({}),
            _ => {}
        }
        term
    }

    fn weighted(&self, what: &str, term: &dyn Fn() -> Value) -> Value {
        let one = |_| json!({"weight": 1 + self.below(100), what: term()});
        json!((0..=self.below(2)).map(one).collect::<Vec<_>>())
    }

    fn affinity(&self) -> Value {
        let (required, preferred) =
            ("requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution");
        let mut affinity = json!({});
        if self.one_in(4) {
            let terms: Vec<Value> = (0..=self.below(2)).map(|_| self.node_term()).collect();
            affinity["nodeAffinity"][required] = json!({"nodeSelectorTerms": terms});
        }
        if self.one_in(4) {
            affinity["nodeAffinity"][preferred] = self.weighted("preference", &|| self.node_term());
        }
        for (kind, odds) in [("podAffinity", 6), ("podAntiAffinity", 5)] {
            if self.one_in(odds) {
                affinity[kind][required] = json!((0..=self.below(2)).map(|_| self.pod_term()).collect::<Vec<_>>());
            }
            if self.one_in(odds) {
                affinity[kind][preferred] = self.weighted("podAffinityTerm", &|| self.pod_term());
            }
        }
        affinity
    }

    fn constraint(&self, key: &str) -> Value {
        let mut c = json!({
            "topologyKey": key,
            "maxSkew": 1 + self.below(2),
            "whenUnsatisfiable": self.pick(&["DoNotSchedule", "ScheduleAnyway"]),
            "labelSelector": self.selector(),
        });
        if self.one_in(3) {
            c["nodeAffinityPolicy"] = json!("Ignore");
        }
        if self.one_in(3) {
            c["nodeTaintsPolicy"] = json!("Honor");
        }
        if c["whenUnsatisfiable"] == "DoNotSchedule" && self.one_in(4) {
            c["minDomains"] = json!(3);
        }
        c
    }

    /// What pods are made of; some are made of the same.
    fn template(&self) -> Value {
        let mut requests = json!({});
        if !self.one_in(4) {
            requests["cpu"] = json!(self.pick(&["100m", "250m", "700m"]));
        }
        if !self.one_in(4) {
            requests["memory"] = json!(self.pick(&["64Mi", "512Mi", "1024Mi"]));
        }
        if self.one_in(8) {
            requests["example.com/gpu"] = json!("1");
        }
        let mut container = json!({
            "name": "c", "image": self.pick(&["big:1", "small:1"]), "resources": {"requests": requests},
        });
        if self.one_in(8) {
            container["ports"] = json!([{"containerPort": 80, "hostPort": 80 + self.below(2), "protocol": "TCP"}]);
        }
        let mut spec = json!({"containers": [container], "affinity": self.affinity()});
        if self.one_in(6) {
            spec["nodeSelector"] = json!({"disk": "ssd"});
        }
        if self.one_in(3) {
            let toleration = |_| match self.below(3) {
                0 => json!({"operator": "Exists"}),
                1 => json!({"key": "a", "operator": "Equal", "value": "1"}),
                _ => {
                    let effect = self.pick(&["NoSchedule", "PreferNoSchedule"]);
                    json!({"key": "b", "operator": "Exists", "effect": effect})
                }
            };
            spec["tolerations"] = json!((0..=self.below(2)).map(toleration).collect::<Vec<_>>());
        }
        if self.one_in(3) {
            let keys = if self.one_in(3) { &[ZONE, HOST][..] } else { &[ZONE][..] };
            let keys = if self.one_in(4) { &[HOST][..] } else { keys };
            spec["topologySpreadConstraints"] = json!(keys.iter().map(|k| self.constraint(k)).collect::<Vec<_>>());
        }
        let mut labels = json!({"app": self.pick(&["web", "db", "batch"])});
        if self.one_in(3) {
            labels["tier"] = json!("front");
        }
        json!({"namespace": self.pick(&["default", "default", "other"]), "labels": labels, "spec": spec})
    }

    fn pod(&self, number: usize, template: &Value) -> Pod {
        let mut pod = json!({
            "metadata": {
                "name": format!("p{number}"), "uid": format!("u{number}"),
                "namespace": template["namespace"], "labels": template["labels"],
            },
            "spec": template["spec"],
        });
        pod["spec"]["priority"] = json!(self.below(3) * 10);
        if self.one_in(10) {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        serde_json::from_value(pod).unwrap()
    }
}

fn check(seed: u64) {
    let dice = Dice(Entropy::seeded(seed));
    let mut world = World::default();
    let mut snapshot = Snapshot::default();
    for (name, labels) in [("default", json!({"team": "a"})), ("other", json!({"team": dice.pick(&["a", "b"])}))] {
        let labels: std::collections::BTreeMap<String, String> = serde_json::from_value(labels).unwrap();
        world.namespaces.insert(name.to_owned(), labels.clone());
        snapshot.set_namespace(name, labels);
    }
    for number in 0..=dice.below(12) {
        world.nodes.push(dice.node(number));
        snapshot.set_node(world.nodes.last().unwrap());
    }
    let templates: Vec<Value> = (0..3).map(|_| dice.template()).collect();
    let mut number = 0;
    let mut next = || {
        number += 1;
        dice.pod(number, &templates[usize::try_from(dice.below(3)).unwrap()])
    };
    for _ in 0..dice.below(25) {
        let (pod, node) = (next(), dice.below(world.nodes.len() as u64));
        place(&mut world, &mut snapshot, pod, &format!("n{node}"));
    }
    let mut decider = Decider::new(Profile::new("default-scheduler"));
    // As if the cluster were large: nodes in order, evictions kept.
    let mut orderly = Decider::new(Profile::new("default-scheduler")).sampling_up_to(0);
    let (defaults, promises) = (DefaultConstraints::default(), Promises::new());
    for step in 0..STEPS {
        let pod = next();
        let info = Arc::new(PodInfo::new(Arc::new(pod.clone())));
        let request = Request {
            pod: &info,
            defaults: &defaults,
            volumes: None,
            devices: None,
            promises: &promises,
            fellows: &[],
            domain: None,
            asked: None,
        };
        let outcome = decider.decide(&snapshot, &request, &mut |n| dice.below(n));
        let feasible: Vec<&Node> = world.nodes.iter().filter(|n| world.feasible(&pod, n)).collect();
        let mut want: Vec<&str> = feasible.iter().map(|n| name(n)).collect();
        let mut got: Vec<&str> = decider.feasible().iter().map(|row| snapshot.names[*row].as_str()).collect();
        want.sort_unstable();
        got.sort_unstable();
        assert_eq!(got, want, "feasible nodes; seed {seed}, step {step}, pod {}", json!(pod));
        let orderly_outcome = orderly.decide(&snapshot, &request, &mut |n| dice.below(n));
        let Ok(row) = outcome else {
            assert!(want.is_empty(), "seed {seed}, step {step}");
            let at = format!("seed {seed}, step {step}");
            let (mut rejected, mut orderly_rejected) = (outcome.unwrap_err(), orderly_outcome.unwrap_err());
            let (message, orderly_message) = (rejected.diagnosis.message(), orderly_rejected.diagnosis.message());
            assert_eq!(message, orderly_message, "{at}");
            let found = decider.evictions(&snapshot, &mut rejected, &[], &promises, false);
            preempts(&world, &snapshot, found.first(), &pod, &at);
            let best = orderly.evictions(&snapshot, &mut orderly_rejected, &[], &promises, false);
            let shown = |c: &Candidate| (c.row, c.victims.iter().map(|v| v.uid.clone()).collect::<Vec<_>>());
            assert_eq!(best.first().map(shown), found.first().map(shown), "{at}");
            assert_eq!(rejected.diagnosis.message(), orderly_rejected.diagnosis.message(), "{at}");
            change(&dice, &mut world, &mut snapshot);
            continue;
        };
        let scores = world.scores(&pod, &feasible);
        let best = scores.iter().max().unwrap();
        let chosen = snapshot.names[row].clone();
        let at = feasible.iter().position(|n| name(n) == chosen).unwrap();
        let all = || {
            let named = feasible.iter().zip(&scores).map(|(n, s)| (name(n).to_owned(), *s)).collect::<Vec<_>>();
            let ours = decider.ranked().iter().map(|r| (snapshot.names[r.row].clone(), r.parts)).collect::<Vec<_>>();
            format!("{named:?} against {ours:#?}")
        };
        assert_eq!(scores[at], *best, "{chosen} of {}; seed {seed}, step {step}, pod {}", all(), json!(pod));
        let orderly_chosen = &snapshot.names[orderly_outcome.unwrap()];
        let orderly_at = feasible.iter().position(|n| name(n) == orderly_chosen).unwrap();
        assert_eq!(scores[orderly_at], *best, "in order; seed {seed}, step {step}, pod {}", json!(pod));
        for ranked in decider.ranked() {
            let at = feasible.iter().position(|n| name(n) == snapshot.names[ranked.row]).unwrap();
            assert_eq!(ranked.parts.total(), scores[at], "{}; seed {seed}, step {step}, pod {}", all(), json!(pod));
        }
        place(&mut world, &mut snapshot, pod, &chosen);
        change(&dice, &mut world, &mut snapshot);
    }
}

fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().unwrap().priority.unwrap()
}

/// Preemption finds a node where and only where one would be feasible without its pods of lower priority; who is evicted
/// is of those, and enough.
fn preempts(world: &World, snapshot: &Snapshot, found: Option<&Candidate>, pod: &Pod, at: &str) {
    let without = |node: &str, gone: &dyn Fn(&Pod) -> bool| {
        let stays = |(p, on): &&(Pod, String)| on != node || !gone(p);
        let placed = world.placed.iter().filter(stays).cloned().collect();
        World { nodes: world.nodes.clone(), namespaces: world.namespaces.clone(), placed }
    };
    let Some(found) = found else {
        for node in &world.nodes {
            let rest = without(name(node), &|p| priority(p) < priority(pod));
            let emptier = rest.placed.len() < world.placed.len();
            assert!(!(emptier && rest.feasible(pod, node)), "{} would do; {at}, pod {}", name(node), json!(pod));
        }
        return;
    };
    let node = &snapshot.names[found.row];
    let victims: Vec<&str> = found.victims.iter().map(|v| &*v.uid).collect();
    assert!(found.victims.iter().all(|v| v.priority < priority(pod)), "{victims:?}; {at}");
    let rest = without(node, &|p| victims.contains(&p.metadata.uid.as_deref().unwrap()));
    assert_eq!(rest.placed.len() + victims.len(), world.placed.len(), "{victims:?} on {node}; {at}");
    let node = world.nodes.iter().find(|n| name(n) == node).unwrap();
    assert!(rest.feasible(pod, node), "{victims:?} on {}; {at}, pod {}", name(node), json!(pod));
}

fn place(world: &mut World, snapshot: &mut Snapshot, pod: Pod, node: &str) {
    snapshot.place(PodInfo::new(Arc::new(pod.clone())).occupant, node);
    world.placed.push((pod, node.to_owned()));
}

/// Something happens to the cluster, or nothing.
fn change(dice: &Dice, world: &mut World, snapshot: &mut Snapshot) {
    match dice.below(8) {
        0 if !world.placed.is_empty() => {
            let at = usize::try_from(dice.below(world.placed.len() as u64)).unwrap();
            let (pod, _) = world.placed.swap_remove(at);
            snapshot.displace(pod.metadata.uid.as_deref().unwrap());
        }
        1 => {
            let number = dice.below(world.nodes.len() as u64);
            let at = usize::try_from(number).unwrap();
            world.nodes[at] = dice.node(number);
            snapshot.set_node(&world.nodes[at]);
        }
        2 if world.nodes.len() > 1 => {
            // The pods of a node that is gone count for nothing until they are gone too.
            let node = world.nodes.pop().unwrap();
            snapshot.remove_node(name(&node));
        }
        3 => {
            let team = dice.pick(&["a", "b"]).to_owned();
            let labels: std::collections::BTreeMap<_, _> = [("team".to_owned(), team)].into();
            world.namespaces.insert("other".into(), labels.clone());
            snapshot.set_namespace("other", labels);
        }
        _ => {}
    }
}

#[test]
fn decisions_are_those_of_the_default_profile() {
    for seed in 0..CLUSTERS {
        check(seed);
    }
}
