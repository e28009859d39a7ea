use super::claims::{claims_of, owners_to_be};
use super::*;
use gantry_api::Time;
use gantry_api::kind::Kind;
use gantry_reconcile::owner::controller_reference;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000_000 + second).unwrap()
}

fn set(replicas: i32, more: &Value) -> StatefulSet {
    let mut spec = json!({
        "replicas": replicas, "serviceName": "svc", "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "1"}]}},
    });
    for (k, v) in more.as_object().unwrap() {
        spec[k] = v.clone();
    }
    let mut set =
        StatefulSet::from_value(json!({"metadata": {"name": "web", "namespace": "n", "uid": "s", "generation": 1},
            "spec": spec}))
        .unwrap();
    set.set_defaults();
    set
}

/// A small world in which pods do what they are told at once, except where a test says otherwise.
struct World {
    set: StatefulSet,
    pods: BTreeMap<String, Pod>,
    claims: BTreeMap<String, Arc<PersistentVolumeClaim>>,
    current: Revision,
    update: Revision,
    second: i64,
    made: usize,
    /// What was done, like `+web-0` and `-web-0`.
    log: Vec<String>,
}

impl World {
    fn new(set: StatefulSet) -> Self {
        let first = Revision { name: "r1".into(), template: set.spec.template.clone() };
        Self {
            set,
            pods: BTreeMap::new(),
            claims: BTreeMap::new(),
            current: first.clone(),
            update: first,
            second: 0,
            made: 0,
            log: Vec::new(),
        }
    }

    fn plan(&self) -> SetPlan {
        let pods: Vec<_> = self.pods.values().cloned().map(Arc::new).collect();
        plan(&Inputs {
            set: &self.set,
            pods: &pods,
            claims: &|name| self.claims.get(name).cloned(),
            current: self.current.clone(),
            update: self.update.clone(),
            collisions: 0,
            now: at(self.second),
        })
    }

    /// Plans and does it; pods that are deleted go at once. What was done.
    fn step(&mut self) -> Vec<String> {
        let plan = self.plan();
        let mut done = Vec::new();
        for step in &plan.steps {
            match step {
                Step::Create(pod) => {
                    for claim in claims_of(&self.set, pod) {
                        self.claims.entry(claim.metadata.name().to_owned()).or_insert_with(|| Arc::new(claim));
                    }
                    let mut pod = (**pod).clone();
                    self.made += 1;
                    pod.metadata.uid = Some(format!("u{}", self.made));
                    pod.status.get_or_insert_default().phase = Some("Pending".into());
                    done.push(format!("+{}", pod.metadata.name()));
                    self.pods.insert(pod.metadata.name().to_owned(), pod);
                }
                Step::Delete(pod) | Step::Discard(pod) => {
                    self.pods.remove(pod.metadata.name());
                    let sign = if matches!(step, Step::Delete(_)) { '-' } else { '?' };
                    done.push(format!("{sign}{}", pod.metadata.name()));
                }
                Step::Restore(pod) => {
                    let mut changed = (**pod).clone();
                    identity::restore(&self.set, &mut changed);
                    self.own(pod);
                    self.pods.insert(pod.metadata.name().to_owned(), changed);
                    done.push(format!("~{}", pod.metadata.name()));
                }
                Step::Own(pod) | Step::Claim(pod) => {
                    self.own(pod);
                    done.push(format!("o{}", pod.metadata.name()));
                }
            }
        }
        self.current.name = plan.status.current_revision.clone().unwrap();
        if self.current.name == self.update.name {
            self.current = self.update.clone();
        }
        self.set.status = Some(plan.status);
        self.second += 1;
        self.log.extend(done.clone());
        done
    }

    fn own(&mut self, pod: &Pod) {
        for claim in claims_of(&self.set, pod) {
            let there = self.claims.get_mut(claim.metadata.name()).unwrap();
            if let Some(owners) = owners_to_be(there, &self.set, pod) {
                Arc::make_mut(there).metadata.owner_references = Some(owners);
            }
        }
    }

    fn ready(&mut self, name: &str, ready: bool) {
        let status = self.pods.get_mut(name).unwrap().status.get_or_insert_default();
        status.phase = Some("Running".into());
        let condition = json!([{"type": "Ready", "status": if ready { "True" } else { "False" },
            "lastTransitionTime": Time(at(self.second))}]);
        status.conditions = serde_json::from_value(condition).unwrap();
    }

    fn all_ready(&mut self) {
        let waiting: Vec<_> =
            self.pods.iter().filter(|(_, p)| !pod_state::is_ready(p)).map(|(n, _)| n.clone()).collect();
        for name in waiting {
            self.ready(&name, true);
        }
    }

    /// Until nothing is left to do, all pods getting ready.
    fn run(&mut self) {
        for _ in 0..60 {
            let done = self.step();
            self.all_ready();
            if done.is_empty() && self.plan().steps.is_empty() {
                self.step();
                return;
            }
        }
        panic!("does not come to rest: {:?}", self.log);
    }

    fn image(&mut self, image: &str) {
        self.set.spec.template.spec.as_mut().unwrap().containers[0].image = Some(image.into());
        self.update = Revision { name: format!("r{image}"), template: self.set.spec.template.clone() };
        self.log.clear();
    }

    fn revisions(&self) -> Vec<&str> {
        self.pods.values().map(identity::revision).collect()
    }

    fn status(&self) -> StatefulSetStatus {
        self.set.status.clone().unwrap()
    }
}

#[test]
fn pods_start_in_order_each_when_its_predecessor_is_ready() {
    let mut w = World::new(set(3, &json!({})));
    assert_eq!(w.step(), ["+web-0"]);
    assert!(w.step().is_empty());
    w.ready("web-0", true);
    assert_eq!(w.step(), ["+web-1"]);
    w.ready("web-1", true);
    w.ready("web-0", false);
    assert!(w.step().is_empty(), "all that come before must be ready");
    w.run();
    let pod = &w.pods["web-2"];
    assert_eq!(pod.metadata.label(POD_NAME), Some("web-2"));
    assert_eq!(pod.metadata.label(POD_INDEX), Some("2"));
    let spec = pod.spec.as_ref().unwrap();
    assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("web-2"), Some("svc")));
    let s = w.status();
    assert_eq!((s.replicas, s.ready_replicas, s.available_replicas), (3, Some(3), Some(3)));
    assert_eq!((s.current_replicas, s.updated_replicas, s.collision_count), (Some(3), Some(3), Some(0)));
    assert_eq!(s.current_revision.as_deref(), Some("r1"));
}

#[test]
fn scaling_down_goes_backwards_and_halts_at_an_unready_pod() {
    let mut w = World::new(set(4, &json!({})));
    w.run();
    w.set.spec.replicas = Some(1);
    w.ready("web-0", false);
    assert!(w.step().is_empty());
    w.ready("web-0", true);
    assert_eq!(w.step(), ["-web-3"]);
    w.ready("web-1", false);
    w.ready("web-2", false);
    assert!(w.step().is_empty(), "web-2 is not the first that is unhealthy");
    w.ready("web-1", true);
    assert_eq!(w.step(), ["-web-2"], "an unhealthy one goes itself");
    assert_eq!(w.step(), ["-web-1"]);
    assert!(w.step().is_empty());
    w.set.metadata.deletion_timestamp = Some(Time(at(0)));
    w.set.spec.replicas = Some(9);
    assert!(w.step().is_empty(), "a set that is being deleted does nothing");
}

#[test]
fn parallel_sets_do_all_at_once() {
    let mut w = World::new(set(3, &json!({"podManagementPolicy": "Parallel"})));
    assert_eq!(w.step(), ["+web-0", "+web-1", "+web-2"]);
    w.set.spec.replicas = Some(1);
    assert_eq!(w.step(), ["-web-2", "-web-1"]);
}

#[test]
fn a_rolling_update_goes_backwards_one_by_one() {
    let mut w = World::new(set(3, &json!({})));
    w.run();
    w.image("2");
    assert_eq!(w.step(), ["-web-2"]);
    let s = w.status();
    assert_eq!((s.current_replicas, s.update_revision.as_deref()), (Some(2), Some("r2")));
    assert_eq!(w.step(), ["+web-2"]);
    assert!(w.step().is_empty(), "waits for it");
    w.run();
    assert_eq!(w.log, ["-web-2", "+web-2", "-web-1", "+web-1", "-web-0", "+web-0"]);
    assert_eq!(w.status().current_revision.as_deref(), Some("r2"));
    assert_eq!(w.status().current_replicas, Some(3));
}

#[test]
fn a_partition_keeps_the_pods_below_it_even_when_they_are_lost() {
    let rolling = json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}});
    let mut w = World::new(set(3, &rolling));
    w.run();
    w.image("2");
    w.run();
    assert_eq!(w.revisions(), ["r1", "r1", "r2"]);
    assert_eq!(w.status().current_revision.as_deref(), Some("r1"));
    w.pods.remove("web-0");
    w.pods.remove("web-2");
    w.run();
    assert_eq!(w.revisions(), ["r1", "r1", "r2"]);
    let partition = w.set.spec.update_strategy.as_mut().unwrap().rolling_update.as_mut().unwrap();
    partition.partition = Some(0);
    w.run();
    assert_eq!(w.revisions(), ["r2"; 3]);
}

#[test]
fn as_many_as_may_be_unavailable_are_updated_together() {
    let rolling =
        json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 1, "maxUnavailable": 2}}});
    let mut w = World::new(set(5, &rolling));
    w.run();
    w.image("2");
    assert_eq!(w.step(), ["-web-4", "-web-3"]);
    w.run();
    assert_eq!(w.revisions(), ["r1", "r2", "r2", "r2", "r2"]);
    let percent = w.set.spec.update_strategy.as_mut().unwrap().rolling_update.as_mut().unwrap();
    percent.max_unavailable = Some(IntOrString::String("10%".into()));
    w.image("3");
    assert_eq!(w.step(), ["-web-4"], "never less than one");
}

#[test]
fn parallel_sets_replace_broken_pods_first_and_ordered_ones_wait_for_them() {
    let mut parallel = World::new(set(3, &json!({"podManagementPolicy": "Parallel"})));
    parallel.run();
    parallel.ready("web-0", false);
    parallel.image("2");
    assert_eq!(parallel.step(), ["?web-0"], "where it serves after all it stays");
    let mut ordered = World::new(set(3, &json!({})));
    ordered.run();
    ordered.ready("web-0", false);
    ordered.image("2");
    assert!(ordered.step().is_empty());
}

#[test]
fn on_delete_waits_for_somebody_to_delete() {
    let mut w = World::new(set(2, &json!({"updateStrategy": {"type": "OnDelete"}})));
    w.run();
    w.image("2");
    assert!(w.step().is_empty());
    w.pods.remove("web-1");
    w.run();
    assert_eq!(w.revisions(), ["r1", "r2"]);
}

#[test]
fn ended_pods_are_replaced_once_they_are_gone() {
    let mut w = World::new(set(2, &json!({})));
    w.run();
    for phase in ["Failed", "Succeeded"] {
        w.log.clear();
        w.pods.get_mut("web-0").unwrap().status.as_mut().unwrap().phase = Some(phase.into());
        w.run();
        assert_eq!(w.log, ["-web-0", "+web-0"]);
    }
    let pod = w.pods.get_mut("web-0").unwrap();
    pod.status.as_mut().unwrap().phase = Some("Failed".into());
    pod.metadata.deletion_timestamp = Some(Time(at(0)));
    assert!(w.step().is_empty(), "it is going already");
}

#[test]
fn ordinals_may_start_anywhere() {
    let mut w = World::new(set(2, &json!({"ordinals": {"start": 5}})));
    w.run();
    assert_eq!(w.log, ["+web-5", "+web-6"]);
    w.set.spec.ordinals.as_mut().unwrap().start = Some(6);
    w.run();
    assert_eq!(w.pods.keys().collect::<Vec<_>>(), ["web-6", "web-7"]);
    assert_eq!(parent_and_ordinal("a-b-12"), Some(("a-b", 12)));
    assert_eq!(parent_and_ordinal("a-b"), None);
    assert_eq!(parent_and_ordinal("a-+1"), None);
}

#[test]
fn a_pod_counts_as_available_after_min_ready_seconds() {
    let mut w = World::new(set(2, &json!({"minReadySeconds": 30})));
    w.step();
    w.ready("web-0", true);
    let plan = w.plan();
    assert!(plan.steps.is_empty());
    assert_eq!(plan.requeue_after, Some(Duration::from_secs(30)));
    assert_eq!((plan.status.ready_replicas, plan.status.available_replicas), (Some(1), Some(0)));
    w.second += 30;
    assert_eq!(w.step(), ["+web-1"]);
}

fn with_claims(when_deleted: &str, when_scaled: &str) -> World {
    World::new(set(
        2,
        &json!({
            "volumeClaimTemplates": [{"metadata": {"name": "www", "labels": {"x": "y"}}, "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}],
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": when_deleted, "whenScaled": when_scaled},
        }),
    ))
}

fn owners(w: &World, claim: &str) -> Vec<String> {
    w.claims[claim].metadata.owner_references.iter().flatten().map(|r| r.name.clone()).collect()
}

#[test]
fn claims_are_made_once_and_mounted() {
    let mut w = with_claims("Retain", "Retain");
    w.run();
    let claim = &w.claims["www-web-1"];
    assert_eq!((claim.metadata.label("x"), claim.metadata.label("a")), (Some("y"), Some("b")));
    let volume = &w.pods["web-1"].spec.as_ref().unwrap().volumes.as_ref().unwrap()[0];
    assert_eq!(volume.name, "www");
    assert_eq!(volume.persistent_volume_claim.as_ref().unwrap().claim_name, "www-web-1");
    assert!(owners(&w, "www-web-0").is_empty());
    w.claims.remove("www-web-0");
    w.pods.get_mut("web-0").unwrap().status.as_mut().unwrap().phase = Some("Pending".into());
    assert!(matches!(w.plan().steps[..], [Step::Claim(_)]), "a pending pod's lost claim is made anew");
    w.pods.get_mut("web-1").unwrap().metadata.labels.as_mut().unwrap().remove(POD_NAME);
    w.ready("web-0", true);
    assert_eq!(w.step(), ["~web-1"]);
    assert!(identity::identity_matches(&w.pods["web-1"]));
}

#[test]
fn claims_have_the_owners_their_policy_asks_for() {
    let mut w = with_claims("Delete", "Retain");
    w.run();
    assert_eq!(owners(&w, "www-web-0"), ["web"]);
    let policy = w.set.spec.persistent_volume_claim_retention_policy.as_mut().unwrap();
    policy.when_scaled = Some("Delete".into());
    w.set.spec.replicas = Some(1);
    assert_eq!(w.step(), ["oweb-1", "-web-1"]);
    assert_eq!(owners(&w, "www-web-1"), ["web-1"]);
    assert_eq!(owners(&w, "www-web-0"), ["web"]);
    w.set.spec.replicas = Some(2);
    assert!(w.step().is_empty(), "the claim of the pod that is gone will go, too");
    w.claims.remove("www-web-1");
    assert_eq!(w.step(), ["+web-1"]);
    let policy = w.set.spec.persistent_volume_claim_retention_policy.as_mut().unwrap();
    policy.when_deleted = Some("Retain".into());
    w.run();
    assert!(owners(&w, "www-web-0").is_empty() && owners(&w, "www-web-1").is_empty());
}

#[test]
fn claims_with_another_controller_are_left_to_it() {
    let mut w = with_claims("Delete", "Delete");
    w.run();
    let other = StatefulSet::from_value(json!({"metadata": {"name": "o", "uid": "o"}, "spec": {"selector": {},
        "template": {}}}))
    .unwrap();
    let claim = Arc::make_mut(w.claims.get_mut("www-web-0").unwrap());
    claim.metadata.owner_references = Some(vec![controller_reference(&other)]);
    assert!(w.step().is_empty());
}
