use super::*;
use gantry_api::Time;
use gantry_api::kind::Kind;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::collections::BTreeSet;

fn at(second: i64) -> Time {
    Time(Timestamp::from_second(1_000_000_000 + second).unwrap())
}

fn deployment(replicas: i32, image: &str) -> Deployment {
    let mut d = Deployment::from_value(json!({
        "metadata": {"name": "web", "namespace": "n", "uid": "d", "generation": 1, "annotations": {"note": "x"}},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"a": "b"}},
            "template": {
                "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": image}]},
            },
        },
    }))
    .unwrap();
    d.set_defaults();
    d
}

/// A small world in which ReplicaSets do at once what they are asked for, pods becoming available one call later.
struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    second: i64,
    log: Vec<String>,
}

impl World {
    fn new(deployment: Deployment) -> Self {
        Self { deployment, sets: Vec::new(), second: 0, log: Vec::new() }
    }

    fn step(&mut self) -> RolloutPlan {
        let inputs = Inputs {
            deployment: &self.deployment,
            sets: self.sets.clone(),
            with_pods: BTreeSet::new(),
            now: at(self.second),
        };
        let plan = plan(inputs);
        if let Some(set) = &plan.create {
            let mut set = set.clone();
            set.metadata.uid = Some(format!("u{}", self.sets.len()));
            set.metadata.creation_timestamp = Some(at(self.second));
            set.metadata.generation = Some(1);
            self.sets.push(set);
        }
        for changed in &plan.updates {
            let known = self.sets.iter_mut().find(|s| s.metadata.name == changed.metadata.name).unwrap();
            *known = changed.clone();
        }
        self.sets.retain(|s| !plan.deletes.iter().any(|d| d.metadata.name == s.metadata.name));
        if let Some(d) = &plan.status {
            self.deployment = d.clone();
        }
        self.log.extend(plan.scaled.iter().map(|(_, m)| m.clone()));
        self.second += 1;
        plan
    }

    /// The ReplicaSet controller and the nodes at work: all pods of all sets come up.
    fn settle(&mut self, ready: bool) {
        for set in &mut self.sets {
            let size = set.spec.replicas.unwrap();
            let status = set.status.get_or_insert_default();
            let up = if ready { size } else { status.available_replicas.unwrap_or(0).min(size) };
            status.replicas = size;
            status.ready_replicas = Some(up);
            status.available_replicas = Some(up);
            status.terminating_replicas = Some(0);
            status.observed_generation = set.metadata.generation;
        }
    }

    fn run(&mut self) {
        for _ in 0..50 {
            let plan = self.step();
            self.settle(true);
            if plan.create.is_none() && plan.updates.is_empty() && plan.status.is_none() && plan.deletes.is_empty() {
                return;
            }
        }
        panic!("does not come to rest: {:?}", self.log);
    }

    fn image(&mut self, image: &str) {
        self.deployment.spec.template.spec.as_mut().unwrap().containers[0].image = Some(image.into());
        self.deployment.metadata.generation = self.deployment.metadata.generation.map(|g| g + 1);
    }

    fn sizes(&self) -> Vec<i32> {
        self.sets.iter().map(|s| s.spec.replicas.unwrap()).collect()
    }

    fn reason(&self, r#type: &str) -> &str {
        let s = self.deployment.status.as_ref().unwrap();
        progress::condition(s, r#type).and_then(|c| c.reason.as_deref()).unwrap_or("")
    }
}

#[test]
fn a_first_rollout_makes_one_set_and_completes() {
    let mut w = World::new(deployment(3, "i1"));
    let plan = w.step();
    let set = plan.create.unwrap();
    let hash = template_hash(&w.deployment);
    assert_eq!(set.metadata.name(), format!("web-{hash}"));
    assert!(
        (1..=10).contains(&hash.len()) && hash.bytes().all(|b| b"bcdfghjklmnpqrstvwxz2456789".contains(&b)),
        "{hash}"
    );
    assert_eq!(set.metadata.label(POD_TEMPLATE_HASH), Some(hash.as_str()));
    assert_eq!(set.spec.selector.match_labels.as_ref().unwrap()[POD_TEMPLATE_HASH], hash);
    assert_eq!(set.metadata.annotation(REVISION), Some("1"));
    assert_eq!(set.metadata.annotation("note"), Some("x"));
    assert_eq!(set.metadata.annotation(revision::MAXIMUM), Some("4"));
    assert_eq!(w.log, [format!("Scaled up replica set web-{hash} from 0 to 3")]);
    assert_eq!(w.reason("Progressing"), "NewReplicaSetCreated");
    assert_eq!(w.reason("Available"), "MinimumReplicasUnavailable");
    assert_eq!(w.deployment.metadata.annotation(REVISION), Some("1"));
    w.settle(true);
    w.run();
    assert_eq!(w.reason("Progressing"), "NewReplicaSetAvailable");
    assert_eq!(w.reason("Available"), "MinimumReplicasAvailable");
    let s = w.deployment.status.clone().unwrap();
    assert_eq!((s.replicas, s.updated_replicas, s.unavailable_replicas), (Some(3), Some(3), None));
}

/// A rollout is taken back while its first set, which has given up its only pod, still tells of it.
#[test]
fn a_set_that_has_not_seen_its_size_is_not_counted_on() {
    let mut d = deployment(1, "i1");
    let rolling = d.spec.strategy.as_mut().unwrap().rolling_update.as_mut().unwrap();
    (rolling.max_surge, rolling.max_unavailable) = (Some(IntOrString::Int(1)), Some(IntOrString::Int(0)));
    let mut w = World::new(d);
    w.run();
    w.image("i2");
    w.run();
    assert_eq!(w.sizes(), [0, 1]);
    w.image("i1");
    w.step();
    assert_eq!(w.sizes(), [1, 1]);
    let first = &mut w.sets[0];
    first.metadata.generation = Some(3);
    first.status.as_mut().unwrap().available_replicas = Some(1);
    let plan = w.step();
    assert!(!plan.shrinks(&w.sets) && w.sizes() == [1, 1], "{:?}", w.log);
    w.sets[0].status.as_mut().unwrap().observed_generation = Some(3);
    let before = w.sets.clone();
    assert!(w.step().shrinks(&before));
    assert_eq!(w.sizes(), [1, 0]);
}

#[test]
fn a_rolling_update_keeps_within_surge_and_unavailability() {
    let mut w = World::new(deployment(4, "i1"));
    w.run();
    w.image("i2");
    w.log.clear();
    for _ in 0..40 {
        w.step();
        let (total, up): (i32, i32) = (w.sizes().iter().sum(), w.sets.iter().map(scale::available).sum());
        assert!(total <= 5, "surge: {:?}", w.sizes());
        assert!(up.min(total) >= 3 || w.sizes().len() < 2, "unavailable: {:?}", w.sizes());
        w.settle(true);
    }
    assert_eq!(w.sizes(), [0, 4]);
    assert_eq!(w.sets[1].metadata.annotation(REVISION), Some("2"));
    assert!(w.log[0].contains("from 0 to 1"), "{:?}", w.log);
}

#[test]
fn a_rollout_that_does_not_come_up_stops_and_times_out() {
    let mut w = World::new(deployment(4, "i1"));
    w.run();
    w.image("bad");
    for _ in 0..10 {
        w.step();
        w.settle(false);
    }
    assert_eq!(w.sizes(), [3, 2], "one surplus, one given up, then no further");
    let plan = w.step();
    let wait = plan.requeue_after.unwrap().as_secs();
    assert!((590..=601).contains(&wait), "{wait}");
    w.second += 700;
    w.step();
    assert_eq!(w.reason("Progressing"), "ProgressDeadlineExceeded");
    let s = w.deployment.status.as_ref().unwrap();
    let c = progress::condition(s, "Progressing").unwrap();
    assert_eq!(c.status.as_deref(), Some("False"));
    assert!(c.message.as_ref().unwrap().ends_with("has timed out progressing."));
}

#[test]
fn going_back_to_an_earlier_template_reuses_its_set_under_a_new_revision() {
    let mut w = World::new(deployment(2, "i1"));
    w.run();
    w.image("i2");
    w.run();
    w.image("i1");
    w.run();
    assert_eq!(w.sizes(), [2, 0]);
    assert_eq!(w.sets[0].metadata.annotation(REVISION), Some("3"));
    assert_eq!(w.sets[0].metadata.annotation(revision::HISTORY), Some("1"));
    assert_eq!(w.deployment.metadata.annotation(REVISION), Some("3"));
}

#[test]
fn recreate_ends_all_old_pods_first() {
    let mut d = deployment(3, "i1");
    let strategy = d.spec.strategy.as_mut().unwrap();
    strategy.type_ = Some("Recreate".into());
    strategy.rolling_update = None;
    let mut w = World::new(d);
    w.run();
    assert_eq!(w.sizes(), [3]);
    w.image("i2");
    w.step();
    assert_eq!(w.sizes(), [0]);
    w.step();
    assert_eq!(w.sizes(), [0], "old pods still run");
    w.settle(true);
    let sets = w.sets.clone();
    let lingering = Inputs {
        deployment: &w.deployment,
        with_pods: [sets[0].metadata.uid().to_owned()].into(),
        sets,
        now: at(w.second),
    };
    assert!(plan(lingering).create.is_none(), "a pod is still ending");
    w.run();
    assert_eq!(w.sizes(), [0, 3]);
}

#[test]
fn scaling_in_the_middle_of_a_rollout_is_proportional() {
    let mut w = World::new(deployment(10, "i1"));
    w.run();
    let rolling = w.deployment.spec.strategy.as_mut().unwrap().rolling_update.as_mut().unwrap();
    rolling.max_surge = Some(IntOrString::Int(3));
    rolling.max_unavailable = Some(IntOrString::Int(2));
    w.image("bad");
    for _ in 0..10 {
        w.step();
        w.settle(false);
    }
    assert_eq!(w.sizes(), [8, 5]);
    w.deployment.spec.replicas = Some(15);
    w.step();
    assert_eq!(w.sizes(), [11, 7]);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut w = World::new(deployment(2, "i1"));
    w.run();
    w.deployment.spec.paused = Some(true);
    w.image("i2");
    w.step();
    assert_eq!(w.reason("Progressing"), "DeploymentPaused");
    w.deployment.spec.replicas = Some(5);
    w.step();
    assert_eq!(w.sizes(), [5]);
    w.deployment.spec.paused = Some(false);
    w.settle(true);
    w.run();
    assert_eq!(w.sizes(), [0, 5]);
}

#[test]
fn history_is_kept_to_its_limit() {
    let mut w = World::new(deployment(1, "i0"));
    w.deployment.spec.revision_history_limit = Some(2);
    w.run();
    for i in 1..6 {
        w.image(&format!("i{i}"));
        w.run();
    }
    let mut revisions: Vec<_> = w.sets.iter().map(|s| s.metadata.annotation(REVISION).unwrap()).collect();
    revisions.sort_unstable();
    assert_eq!(revisions, ["4", "5", "6"]);
}

#[test]
fn failures_of_a_set_show_on_the_deployment_and_go_again() {
    let mut w = World::new(deployment(1, "i1"));
    w.step();
    let status = w.sets[0].status.get_or_insert_default();
    let failure = json!([{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "quota"}]);
    let like = ReplicaSet::from_value(json!({
        "spec": {"selector": {}}, "status": {"replicas": 0, "conditions": failure},
    }));
    status.conditions = like.unwrap().status.unwrap().conditions;
    w.step();
    assert_eq!(w.reason("ReplicaFailure"), "FailedCreate");
    w.sets[0].status.as_mut().unwrap().conditions = None;
    w.step();
    assert_eq!(w.reason("ReplicaFailure"), "");
}

#[test]
fn a_collision_gives_another_name() {
    let mut d = deployment(1, "i1");
    let before = template_hash(&d);
    d.status.get_or_insert_default().collision_count = Some(1);
    assert_ne!(template_hash(&d), before);
}
