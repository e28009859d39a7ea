//! Each rule finds what breaks it, and nothing in the same history without the break.

use super::*;
use gantry_api::k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::time::Duration;

/// A history under construction: what is written when.
#[derive(Default)]
struct Story(Vec<Change>);

impl Story {
    fn put(mut self, seconds: u64, resource: &str, name: &str, value: Value) -> Self {
        let mut value = value;
        value["metadata"]["name"] = json!(name);
        if value["metadata"]["uid"].is_null() {
            value["metadata"]["uid"] = json!(name);
        }
        let path = if resource == "core/namespaces" { name.to_owned() } else { format!("n/{name}") };
        self.0.push(Change {
            at: Duration::from_secs(seconds),
            revision: self.0.len() as u64 + 1,
            key: format!("/registry/{resource}/{path}"),
            value: Some(value.to_string().into()),
        });
        self
    }

    fn gone(mut self, seconds: u64, resource: &str, name: &str) -> Self {
        self = self.put(seconds, resource, name, json!({}));
        self.0.last_mut().unwrap().value = None;
        self
    }

    fn breaks(&self, rule: &mut dyn Rule) -> String {
        walk(&self.0, &mut [rule]).join("\n")
    }
}

fn begun() -> Story {
    Story::default().put(0, "core/namespaces", "n", json!({}))
}

fn owned(by: &str, more: Value) -> Value {
    let mut value = more;
    value["metadata"]["ownerReferences"] = json!([{"uid": by, "controller": true}]);
    value
}

fn serving() -> Value {
    json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}})
}

fn going(mut pod: Value) -> Value {
    pod["metadata"]["deletionTimestamp"] = json!("2027-01-15T08:00:00Z");
    pod
}

#[test]
fn rollouts_within_their_bounds() {
    let deployment = json!({"spec": {"replicas": 2, "strategy": {"type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": "50%", "maxUnavailable": 0}}}});
    let set = |replicas: i64| owned("d", json!({"spec": {"replicas": replicas}}));
    let story = || {
        let pod = || owned("a", serving());
        begun()
            .put(1, "apps/deployments", "d", deployment.clone())
            .put(2, "apps/replicasets", "a", set(2))
            .put(3, "core/pods", "a-1", pod())
            .put(3, "core/pods", "a-2", pod())
            .put(4, "apps/replicasets", "b", set(1))
    };
    let rule = || Rollouts::new(Weather::default());
    assert_eq!(story().breaks(&mut rule()), "");
    assert!(
        story()
            .put(5, "apps/replicasets", "b", set(2))
            .breaks(&mut rule())
            .contains("comes to 4 replicas and may have 3")
    );
    let taken = || story().put(5, "core/pods", "a-1", going(owned("a", serving())));
    assert!(taken().breaks(&mut rule()).contains("1 pods of its Deployment are left that serve, of 2"));
    let rough = Weather { rough: true, ..Weather::default() };
    assert_eq!(taken().breaks(&mut Rollouts::new(rough)), "", "somebody else may have taken it");
    let stale = Weather { stale: true, ..Weather::default() };
    assert!(taken().breaks(&mut Rollouts::new(stale)).contains("1 pods of its Deployment are left that serve, of 2"));
    let third = || story().put(5, "core/pods", "a-3", owned("a", serving()));
    assert!(third().breaks(&mut rule()).contains("has now 3 pods and wants 2"));
    let unanswered = Weather { unanswered: true, ..Weather::default() };
    assert_eq!(third().breaks(&mut Rollouts::new(unanswered)), "");
}

#[test]
fn stateful_sets_in_order() {
    let set = |replicas: i64, partition: i64| {
        json!({"spec": {"replicas": replicas, "podManagementPolicy": "OrderedReady",
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": partition}}}})
    };
    let sets = "apps/statefulsets";
    let pod = || owned("s", serving());
    let rule = || Ordered::new(Weather::default());
    let two = |partition: i64| {
        let begun = begun().put(1, sets, "s", set(2, partition));
        begun.put(2, "core/pods", "s-0", pod()).put(3, "core/pods", "s-1", pod())
    };
    assert_eq!(two(0).put(4, "core/pods", "s-1", going(pod())).breaks(&mut rule()), "");
    let early = begun().put(1, sets, "s", set(2, 0)).put(2, "core/pods", "s-1", pod());
    assert!(early.breaks(&mut rule()).contains("before ordinal 0 served"));
    assert!(two(1).put(4, "core/pods", "s-0", going(pod())).breaks(&mut rule()).contains("below the partition 1"));
    let both = two(0).put(4, "core/pods", "s-1", going(pod())).put(5, "core/pods", "s-0", going(pod()));
    assert!(both.breaks(&mut rule()).contains("2 are away now, of 1"));
    let shrunk = two(0).put(60, sets, "s", set(0, 0)).put(200, "core/pods", "s-0", going(pod()));
    assert!(shrunk.breaks(&mut rule()).contains("before the one above it is gone"));
}

#[test]
fn one_daemon_for_a_node() {
    let set = |surge: i64| json!({"spec": {"updateStrategy": {"rollingUpdate": {"maxSurge": surge}}}});
    let pod = || owned("d", json!({"spec": {"nodeName": "x"}, "status": {"phase": "Running"}}));
    let two = |surge: i64| {
        let begun = begun().put(1, "apps/daemonsets", "d", set(surge));
        begun.put(2, "core/pods", "d-1", pod()).put(3, "core/pods", "d-2", pod())
    };
    let rule = || OnePerNode::new(Weather::default());
    assert!(two(0).breaks(&mut rule()).contains("is number 2 of its DaemonSet on node x"));
    assert_eq!(two(1).breaks(&mut rule()), "");
}

#[test]
fn jobs_that_count_once() {
    let job = |succeeded: i64, failed: i64| {
        json!({"spec": {"parallelism": 1, "completions": 1}, "status": {"succeeded": succeeded, "failed": failed,
            "conditions": [{"type": "Complete", "status": if succeeded > 0 { "True" } else { "False" }}]}})
    };
    let pod = |phase: &str| {
        let mut pod = owned("j", json!({"status": {"phase": phase}}));
        pod["metadata"]["finalizers"] = json!(["batch.kubernetes.io/job-tracking"]);
        pod
    };
    let free = |phase: &str| owned("j", json!({"status": {"phase": phase}}));
    let story = || {
        begun().put(1, "batch/jobs", "j", job(0, 0)).put(2, "core/pods", "j-1", pod("Running")).put(
            3,
            "core/pods",
            "j-1",
            pod("Succeeded"),
        )
    };
    let rule = || CountedOnce::new(Weather::default());
    let over = || story().put(4, "core/pods", "j-1", free("Succeeded"));
    assert_eq!(over().put(5, "batch/jobs", "j", job(1, 0)).breaks(&mut rule()), "");
    assert!(over().put(5, "batch/jobs", "j", job(2, 0)).breaks(&mut rule()).contains("1 pods ended so"));
    assert!(
        over()
            .put(5, "batch/jobs", "j", job(1, 0))
            .put(6, "batch/jobs", "j", job(0, 0))
            .breaks(&mut rule())
            .contains("from 1 to 0")
    );
    assert!(
        story()
            .put(5, "batch/jobs", "j", job(1, 0))
            .breaks(&mut rule())
            .contains("still tracked though its job is over")
    );
    let second = begun().put(1, "batch/jobs", "j", job(0, 0)).put(2, "core/pods", "a", pod("")).put(
        3,
        "core/pods",
        "b",
        pod(""),
    );
    assert!(second.breaks(&mut rule()).contains("2 pods of its Job run, of 1"));
    let missed = over().put(5, "core/pods", "j-2", pod("Failed")).put(6, "core/pods", "j-2", free("Failed"));
    assert!(
        missed
            .put(7, "batch/jobs", "j", job(1, 0))
            .breaks(&mut rule())
            .contains("job n/j counted 0 as failed, and 1 to 1 of its pods are so")
    );
    let released = over().put(5, "core/pods", "j-2", pod("Running")).put(6, "core/pods", "j-2", free("Running"));
    let released = released.put(7, "core/pods", "j-2", free("Failed")).put(8, "batch/jobs", "j", job(1, 0));
    assert_eq!(released.breaks(&mut rule()), "", "who was let go counts for nothing");

    let listing = |how: &str, count: i64| {
        let mut job = job(0, 0);
        job["status"][how] = json!(count);
        job["status"]["uncountedTerminatedPods"] = json!({how: ["j-1"]});
        job
    };
    let listed =
        || story().put(4, "batch/jobs", "j", listing("succeeded", 0)).put(5, "core/pods", "j-1", free("Succeeded"));
    let counted = || listed().put(6, "batch/jobs", "j", job(1, 0));
    assert_eq!(counted().breaks(&mut rule()), "");
    let again = counted().put(7, "batch/jobs", "j", listing("succeeded", 1));
    assert!(again.breaks(&mut rule()).contains("pod j-1 is to be counted as succeeded and was so before"));
    let bad = story().put(4, "batch/jobs", "j", listing("failed", 0));
    assert!(bad.breaks(&mut rule()).contains("pod j-1 is to be counted as failed and did not end so"));
}

/// As upstream: who is deleted counts as failed, whatever it comes to after; and of those that are too many it is not
/// known what they have come to of late.
#[test]
fn jobs_that_do_not_know_how_their_pods_end() {
    let job = |failed: i64, uncounted: Value, over: bool| {
        let conditions = json!([{"type": "Complete", "status": if over { "True" } else { "False" }}]);
        json!({"spec": {"parallelism": 1}, "status": {"failed": failed, "succeeded": 0, "conditions": conditions,
            "uncountedTerminatedPods": uncounted}})
    };
    let pod = |phase: &str, finalizers: Value| {
        let mut pod = owned("j", json!({"status": {"phase": phase}}));
        pod["metadata"]["finalizers"] = finalizers;
        pod
    };
    let tracked = || json!(["batch.kubernetes.io/job-tracking"]);
    let stale = || CountedOnce::new(Weather { stale: true, ..Weather::default() });
    let runs = || {
        begun().put(1, "batch/jobs", "j", job(0, json!({}), false)).put(2, "core/pods", "p", pod("Running", tracked()))
    };
    let left = runs()
        .put(3, "core/pods", "p", going(pod("Running", tracked())))
        .put(4, "batch/jobs", "j", job(0, json!({"failed": ["p"]}), false))
        .put(5, "core/pods", "p", going(pod("Running", json!([]))))
        .put(6, "core/pods", "p", going(pod("Succeeded", json!([]))))
        .put(7, "batch/jobs", "j", job(1, json!({}), true));
    assert_eq!(left.breaks(&mut CountedOnce::new(Weather::default())), "");
    let let_go = |until: u64| {
        let ended = runs().put(3, "core/pods", "p", pod("Succeeded", tracked()));
        ended.put(until, "core/pods", "p", pod("Succeeded", json!([])))
    };
    let over = |story: Story| story.put(90, "batch/jobs", "j", job(0, json!({}), true));
    let deleted = |story: Story| story.put(89, "core/pods", "p", going(pod("Succeeded", json!([]))));
    assert_eq!(over(deleted(let_go(4))).breaks(&mut stale()), "");
    let strict = over(deleted(let_go(4))).breaks(&mut CountedOnce::new(Weather::default()));
    assert!(strict.contains("counted 0 as succeeded, and 1 to 1"), "{strict}");
    assert!(over(let_go(4)).breaks(&mut stale()).contains("was neither counted nor deleted"));
    assert!(over(deleted(let_go(80))).breaks(&mut stale()).contains("counted 0 as succeeded"), "no cache is so old");
    // The same of one that is deleted because a success policy is met.
    let met = |at: u64| {
        let mut met = job(0, json!({}), false);
        met["status"]["conditions"] = json!([{"type": "SuccessCriteriaMet", "status": "True"}]);
        let ended = runs().put(3, "core/pods", "p", pod("Succeeded", tracked()));
        let ended = ended.put(at, "core/pods", "p", going(pod("Succeeded", tracked())));
        over(ended.put(at, "batch/jobs", "j", met).gone(at, "core/pods", "p"))
    };
    assert_eq!(met(4).breaks(&mut stale()), "");
    assert!(met(4).breaks(&mut CountedOnce::new(Weather::default())).contains("counted 0 as succeeded"));
    assert!(met(80).breaks(&mut stale()).contains("counted 0 as succeeded"), "no cache is so old");
}

#[test]
fn schedules_without_gaps_and_doubles() {
    let begin: Timestamp = "2027-01-15T08:00:00Z".parse().unwrap();
    let cron = |policy: &str| {
        json!({"metadata": {"creationTimestamp": "2027-01-15T08:00:10Z"},
            "spec": {"schedule": "*/1 * * * *", "concurrencyPolicy": policy}})
    };
    let job = |at: &str| {
        let mut job = owned("c", json!({}));
        job["metadata"]["annotations"] = json!({"batch.kubernetes.io/cronjob-scheduled-timestamp": at});
        job
    };
    let story = |policy: &str| {
        let begun = begun().put(10, "batch/cronjobs", "c", cron(policy));
        begun.put(60, "batch/jobs", "c-1", job("2027-01-15T09:01:00+01:00"))
    };
    let rule = || OnSchedule::new(Weather::default(), begin);
    let second = || job("2027-01-15T08:02:00Z");
    assert_eq!(story("Allow").put(125, "batch/jobs", "c-2", second()).breaks(&mut rule()), "");
    assert!(
        story("Allow")
            .put(170, "core/pods", "x", json!({}))
            .breaks(&mut rule())
            .contains("has missed 2027-01-15T08:02:00Z")
    );
    let twice = story("Allow").put(61, "batch/jobs", "c-3", job("2027-01-15T08:01:00Z"));
    assert!(twice.breaks(&mut rule()).contains("is a second Job for"));
    assert!(story("Forbid").put(120, "batch/jobs", "c-2", second()).breaks(&mut rule()).contains("2 Jobs run at once"));
}

#[test]
fn quotas_and_budgets() {
    let quota = json!({"status": {"hard": {"pods": "1", "requests.cpu": "500m"}}});
    let pod = |cpu: &str| {
        let mut pod = serving();
        pod["metadata"]["labels"] = json!({"app": "w"});
        pod["spec"] = json!({"containers": [{"resources": {"requests": {"cpu": cpu}}}]});
        pod
    };
    let one = |cpu: &str| begun().put(1, "core/resourcequotas", "q", quota.clone()).put(2, "core/pods", "a", pod(cpu));
    let begin: Timestamp = "2027-01-15T08:00:00Z".parse().unwrap();
    let rule = || WithinQuota::new(begin);
    assert_eq!(one("500m").breaks(&mut rule()), "");
    assert!(one("501m").breaks(&mut rule()).contains("of requests.cpu are used"));
    let two = |story: Story, at: u64| story.put(at, "core/pods", "b", pod("1m")).breaks(&mut rule());
    assert!(two(one("1m"), 3).contains("2000 m of pods"));
    // Who was to be gone by the beginning, and was given five seconds to end.
    let mut left = going(pod("1m"));
    left["metadata"]["deletionGracePeriodSeconds"] = json!(5);
    let leaving = || one("1m").put(3, "core/pods", "a", left.clone());
    assert!(two(leaving(), 5).contains("2000 m of pods"));
    assert_eq!(two(leaving(), 6), "");

    let budget = json!({"spec": {"selector": {"matchLabels": {"app": "w"}}}, "status": {"desiredHealthy": 1}});
    let evicted = || {
        let mut pod = going(pod("1m"));
        let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"});
        pod["status"]["conditions"].as_array_mut().unwrap().push(condition);
        pod
    };
    let two = || {
        let begun = begun().put(1, "policy/poddisruptionbudgets", "b", budget.clone());
        begun.put(2, "core/pods", "a", pod("1m")).put(2, "core/pods", "b", pod("1m")).put(
            3,
            "core/pods",
            "a",
            evicted(),
        )
    };
    let rule = || WithinBudget::new(Weather::default());
    assert_eq!(two().breaks(&mut rule()), "");
    assert!(two().put(4, "core/pods", "b", evicted()).breaks(&mut rule()).contains("has 0 healthy pods of 1"));
}

#[test]
fn autoscalers_within_their_bounds_and_policies() {
    let scaler = json!({"spec": {"scaleTargetRef": {"name": "d"}, "minReplicas": 1, "maxReplicas": 5, "behavior": {
        "scaleUp": {"policies": [{"type": "Pods", "value": 2, "periodSeconds": 30}]}}}});
    let deployment = |replicas: i64| json!({"spec": {"replicas": replicas}});
    let story = || {
        let begun = begun().put(1, "apps/deployments", "d", deployment(1));
        begun.put(2, "autoscaling/horizontalpodautoscalers", "h", scaler.clone())
    };
    let scaled = |story: Story, at: u64, to: i64| story.put(at, "apps/deployments", "d", deployment(to));
    let rule = || WithinBounds::new(Weather::default());
    let grown = || scaled(story(), 60, 3);
    assert_eq!(grown().breaks(&mut rule()), "");
    assert_eq!(scaled(grown(), 95, 5).breaks(&mut rule()), "");
    assert!(scaled(grown(), 80, 5).breaks(&mut rule()).contains("3 are what its policy allows by now"));
    assert!(scaled(story(), 60, 0).breaks(&mut rule()).contains("is scaled to 0 replicas and may have 1 to 5"));
    assert!(scaled(scaled(grown(), 95, 5), 140, 6).breaks(&mut rule()).contains("may have 1 to 5"));
    let mortal = Weather { deaths: 1, ..Weather::default() };
    assert_eq!(scaled(grown(), 80, 5).breaks(&mut WithinBounds::new(mortal)), "", "what was done before is forgotten");
}

/// A node with or without a taint; nodes have no namespace.
fn node(story: Story, at: u64, key: &str) -> Story {
    let taints = if key.is_empty() { json!([]) } else { json!([{"key": key, "effect": "NoExecute"}]) };
    let mut story = story.put(at, "core/nodes", "x", json!({"spec": {"taints": taints}}));
    if let Some(change) = story.0.last_mut() {
        change.key = "/registry/core/nodes/x".into();
    }
    story
}

#[test]
fn pods_that_leave_for_taints_in_their_time() {
    let pod = || {
        let bears = json!([{"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 20}]);
        json!({"spec": {"nodeName": "x", "tolerations": bears}, "status": {"phase": "Running"}})
    };
    let leaves = || {
        let mut pod = going(pod());
        pod["status"]["conditions"] = json!([{"type": "DisruptionTarget", "reason": "DeletionByTaintManager"}]);
        pod
    };
    let tainted = |key: &str| node(node(begun(), 1, "").put(2, "core/pods", "p", pod()), 10, key);
    let rule = || Tolerated::new(Weather::default());
    assert_eq!(tainted("k").put(30, "core/pods", "p", leaves()).breaks(&mut rule()), "");
    assert_eq!(tainted("other").put(11, "core/pods", "p", leaves()).breaks(&mut rule()), "");
    let early = tainted("k").put(25, "core/pods", "p", leaves()).breaks(&mut rule());
    assert!(early.contains("leaves for a taint that it may bear"), "{early}");
    let free = node(tainted("k"), 20, "").put(60, "core/pods", "p", leaves()).breaks(&mut rule());
    assert!(free.contains("leaves for a taint that it may bear"), "{free}");
    assert_eq!(node(tainted("k"), 100, "").breaks(&mut rule()), "", "a little late");
    assert!(node(tainted("k"), 400, "").breaks(&mut rule()).contains("is still on node x"));
    let came = |left: u64| {
        let both = tainted("k").put(30, "core/pods", "p", leaves()).put(50, "core/pods", "q", pod());
        both.put(left, "core/pods", "q", leaves())
    };
    assert_eq!(came(70).breaks(&mut rule()), "");
    assert!(came(60).breaks(&mut rule()).contains("leaves for a taint"), "it came after the taint");
}

#[test]
fn claims_that_are_kept_and_not_shared() {
    let claims = "core/persistentvolumeclaims";
    let set = |scaled: &str| {
        json!({"spec": {"replicas": 1, "volumeClaimTemplates": [{"metadata": {"name": "v"}}],
            "persistentVolumeClaimRetentionPolicy": {"whenScaled": scaled}}})
    };
    let claim = |volume: &str| json!({"spec": {"volumeName": volume}});
    let pod = || {
        let volume = json!({"name": "v", "persistentVolumeClaim": {"claimName": "v-s-0"}});
        owned("s", json!({"spec": {"volumes": [volume]}, "status": {"phase": "Running"}}))
    };
    let story = |scaled: &str| {
        let begun = begun().put(1, "apps/statefulsets", "s", set(scaled)).put(2, claims, "v-s-0", claim("a"));
        begun.put(3, "core/pods", "s-0", pod())
    };
    let rule = Claims::default;
    assert_eq!(story("Delete").breaks(&mut rule()), "");
    assert!(story("Delete").put(4, claims, "v-s-0", claim("b")).breaks(&mut rule()).contains("had volume a and has"));
    assert!(story("Retain").put(4, claims, "w", claim("a")).breaks(&mut rule()).contains("volume a has 2 claims"));
    let kept = story("Retain").put(4, claims, "v-s-0", going(claim("a")));
    assert!(kept.breaks(&mut rule()).contains("is deleted, and its set keeps it"));
    let wanted = story("Delete").put(4, claims, "v-s-0", going(claim("a")));
    assert!(wanted.breaks(&mut rule()).contains("is deleted, and its set keeps it"), "its pod is wanted");
    let mut gone = story("Delete");
    let key = format!("/registry/{claims}/n/v-s-0");
    gone.0.push(Change { at: Duration::from_secs(5), revision: 9, key, value: None });
    assert!(gone.breaks(&mut rule()).contains("is gone, and pod s-0 uses it"));
    let other = owned("s", json!({"spec": {"volumes": []}}));
    assert!(story("Retain").put(4, "core/pods", "s-1", other).breaks(&mut rule()).contains("does not use claim v-s-1"));
}

#[test]
fn gangs_that_hold_no_part_for_long() {
    let pod = |node: &str| {
        let gang = json!({"gantry.io/pod-group": "g", "gantry.io/pod-group-min-count": "2"});
        json!({"metadata": {"annotations": gang}, "spec": {"nodeName": node}})
    };
    let half = || begun().put(1, "core/pods", "a", pod("x")).put(1, "core/pods", "b", pod(""));
    let rule = || Whole::new(Weather::default());
    assert_eq!(half().put(2, "core/pods", "b", pod("y")).breaks(&mut rule()), "");
    let torn = half().put(9, "core/pods", "c", json!({})).breaks(&mut rule());
    assert!(torn.contains("gang n/g has 1 of 2 since 1s"), "{torn}");
}
