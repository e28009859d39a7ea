//! What upstream's conformance suite asks of ResourceQuotas and LimitRanges. Each behaviour stands above its scenario by
//! upstream's name; docs/conformance.md lists them all.

mod cluster;

use cluster::Cluster;
use cluster::api::{Answer, Api, MERGE, condition, names};
use serde_json::{Value, json};

#[test]
fn quotas_and_limits() {
    let cluster = Cluster::start();
    let all = scenarios![
        a_status_is_there_at_once,
        the_life_of_counted_objects,
        the_life_of_a_service,
        the_life_of_a_pod,
        scopes_of_quality,
        scopes_of_deadlines,
        a_quota_changes,
        the_life_of_a_quota,
        a_quotas_status,
        a_controller_meets_a_quota,
        many_at_once,
        comings_and_goings,
        what_is_not_stored_is_not_charged,
        defaults_and_bounds,
        limit_ranges_by_collection,
    ];
    cluster::api::scenarios(&Api::new(&cluster), all);
}

fn in_namespace(namespace: &str, resource: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/{resource}")
}

/// A quota that has been counted for the first time; its path.
fn quota(api: &Api<'_>, namespace: &str, name: &str, spec: &Value) -> String {
    let path = in_namespace(namespace, "resourcequotas");
    api.create(&path, &json!({"metadata": {"name": name}, "spec": spec}));
    let path = format!("{path}/{name}");
    api.until(&path, "counted", |q| q["status"]["hard"] == spec["hard"]);
    path
}

fn uses(api: &Api<'_>, quota: &str, wanted: &Value) {
    api.until(quota, &format!("uses {wanted}"), |q| {
        wanted.as_object().unwrap().iter().all(|(k, v)| q["status"]["used"][k] == *v)
    });
}

/// A pod that is assigned to no node.
fn pod(name: &str, requests: &Value, limits: &Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"nodeSelector": {"no": "node"}, "containers": [
        {"name": "c", "image": "gantry.local/self", "resources": {"requests": requests, "limits": limits}}]}})
}

fn forbidden(answer: &Answer) -> String {
    answer.expect(403)["message"].as_str().unwrap().to_owned()
}

// Conformance: ResourceQuota, object count quota, resourcequotas
fn a_status_is_there_at_once(api: &Api<'_>) {
    let namespace = api.namespace("quota-status");
    let hard = json!({"resourcequotas": "1", "count/deployments.apps": "2", "count/gizmos.example.com": "1"});
    let path = quota(api, &namespace, "q", &json!({"hard": hard}));
    uses(api, &path, &json!({"resourcequotas": "1", "count/deployments.apps": "0"}));
    assert_eq!(api.get(&path)["status"]["used"]["count/gizmos.example.com"], Value::Null, "nobody can count it");
}

// Conformance: ResourceQuota, object count quota, configmap
// Conformance: ResourceQuota, object count quota, secret
// Conformance: ResourceQuota, object count quota, replicationController
// Conformance: ResourceQuota, object count quota, replicaSet
fn the_life_of_counted_objects(api: &Api<'_>) {
    let namespace = api.namespace("quota-counts");
    // Every namespace has one ConfigMap by itself.
    api.until(&in_namespace(&namespace, "configmaps/kube-root-ca.crt"), "made", |_| true);
    let hard = json!({"configmaps": "2", "secrets": "1", "replicationcontrollers": "1", "count/replicasets.apps": "1"});
    let path = quota(api, &namespace, "q", &json!({"hard": hard}));
    uses(api, &path, &json!({"configmaps": "1", "secrets": "0"}));
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let controller = json!({"replicas": 0, "selector": {"a": "b"}, "template": template});
    let set = json!({"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": template});
    let sets = format!("/apis/apps/v1/namespaces/{namespace}/replicasets");
    let cases = [
        (in_namespace(&namespace, "configmaps"), json!({"metadata": {"name": "o"}}), "configmaps", 1),
        (in_namespace(&namespace, "secrets"), json!({"metadata": {"name": "o"}}), "secrets", 0),
        (
            in_namespace(&namespace, "replicationcontrollers"),
            json!({"metadata": {"name": "o"}, "spec": controller}),
            "replicationcontrollers",
            0,
        ),
        (sets, json!({"metadata": {"name": "o"}, "spec": set}), "count/replicasets.apps", 0),
    ];
    for (collection, object, name, before) in cases {
        api.create(&collection, &object);
        uses(api, &path, &json!({name: (before + 1).to_string()}));
        let mut second = object.clone();
        second["metadata"]["name"] = "second".into();
        let told = forbidden(&api.send("POST", &collection, &second));
        let (asked, used) = (format!("requested: {name}=1"), format!("used: {name}={}", before + 1));
        assert!(told.contains("\"second\" is forbidden: exceeded quota: q, "), "{told}");
        assert!(told.contains(&asked) && told.contains(&used), "{told}");
        api.delete(&format!("{collection}/o"));
        uses(api, &path, &json!({name: before.to_string()}));
    }
}

// Conformance: ResourceQuota, object count quota, service
fn the_life_of_a_service(api: &Api<'_>) {
    let namespace = api.namespace("quota-services");
    let hard = json!({"services": "2", "services.nodeports": "1", "services.loadbalancers": "1"});
    let path = quota(api, &namespace, "q", &json!({"hard": hard}));
    let services = in_namespace(&namespace, "services");
    let service =
        |name: &str, kind: &str| json!({"metadata": {"name": name}, "spec": {"type": kind, "ports": [{"port": 80}]}});
    api.create(&services, &service("plain", "ClusterIP"));
    api.create(&services, &service("node", "NodePort"));
    uses(api, &path, &json!({"services": "2", "services.nodeports": "1", "services.loadbalancers": "0"}));
    let told = forbidden(&api.send("POST", &services, &service("third", "LoadBalancer")));
    assert_eq!(
        told,
        "services \"third\" is forbidden: exceeded quota: q, requested: services=1,services.nodeports=1, used: \
         services=2,services.nodeports=1, limited: services=2,services.nodeports=1"
    );
    // An update is charged for what it adds, and what it no longer uses is released.
    let mut grown = api.get(&format!("{services}/plain"));
    grown["spec"]["type"] = "NodePort".into();
    let told = forbidden(&api.send("PUT", &format!("{services}/plain"), &grown));
    assert!(told.contains("requested: services.nodeports=1, used: services.nodeports=1"), "{told}");
    api.edit(&format!("{services}/node"), |s| {
        s["spec"]["type"] = "ClusterIP".into();
        s["spec"]["ports"][0]["nodePort"] = Value::Null;
    });
    uses(api, &path, &json!({"services": "2", "services.nodeports": "0"}));
    api.delete(&format!("{services}/plain"));
    api.delete(&format!("{services}/node"));
    uses(api, &path, &json!({"services": "0", "services.nodeports": "0"}));
}

// Conformance: ResourceQuota, object count quota, pod
fn the_life_of_a_pod(api: &Api<'_>) {
    let namespace = api.namespace("quota-pods");
    let hard = json!({"pods": "5", "cpu": "1", "memory": "500Mi", "ephemeral-storage": "1Gi",
        "requests.example.com/dongle": "3"});
    let path = quota(api, &namespace, "q", &json!({"hard": hard}));
    let pods = in_namespace(&namespace, "pods");
    let asks = json!({"cpu": "500m", "memory": "252Mi", "ephemeral-storage": "30Mi", "example.com/dongle": "2"});
    let dongles = json!({"example.com/dongle": "2"});
    api.create(&pods, &pod("p", &asks, &dongles));
    let used = json!({"pods": "1", "cpu": "500m", "memory": "252Mi", "ephemeral-storage": "30Mi",
        "requests.example.com/dongle": "2"});
    uses(api, &path, &used);
    let told = forbidden(&api.send("POST", &pods, &pod("q", &json!({"cpu": "600m", "memory": "1Mi"}), &json!({}))));
    assert_eq!(told, "pods \"q\" is forbidden: exceeded quota: q, requested: cpu=600m, used: cpu=500m, limited: cpu=1");
    let more = json!({"cpu": "1m", "memory": "1Mi", "example.com/dongle": "2"});
    let told = forbidden(&api.send("POST", &pods, &pod("q", &more, &dongles)));
    assert!(told.contains("requested: requests.example.com/dongle=2, used: requests.example.com/dongle=2"), "{told}");
    let told = forbidden(&api.send("POST", &pods, &pod("q", &json!({"memory": "1Mi"}), &json!({}))));
    assert_eq!(told, "pods \"q\" is forbidden: failed quota: q: must specify cpu for: c");
    let mut changed = api.get(&format!("{pods}/p"));
    changed["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "100m".into();
    api.send("PUT", &format!("{pods}/p"), &changed).expect(422);
    uses(api, &path, &used);
    api.delete_with(&format!("{pods}/p"), &json!({"gracePeriodSeconds": 0}));
    let none =
        json!({"pods": "0", "cpu": "0", "memory": "0", "ephemeral-storage": "0", "requests.example.com/dongle": "0"});
    uses(api, &path, &none);
}

// Conformance: ResourceQuota, quota scope, BestEffort and NotBestEffort scope
fn scopes_of_quality(api: &Api<'_>) {
    let namespace = api.namespace("quota-quality");
    let spec = |scope: &str| json!({"hard": {"pods": "5"}, "scopes": [scope]});
    let best = quota(api, &namespace, "best", &spec("BestEffort"));
    let not_best = quota(api, &namespace, "not-best", &spec("NotBestEffort"));
    let pods = in_namespace(&namespace, "pods");
    for (requests, [in_best, in_not_best]) in [(json!({}), ["1", "0"]), (json!({"cpu": "100m"}), ["0", "1"])] {
        api.create(&pods, &pod("p", &requests, &json!({})));
        uses(api, &best, &json!({"pods": in_best}));
        uses(api, &not_best, &json!({"pods": in_not_best}));
        api.delete_with(&format!("{pods}/p"), &json!({"gracePeriodSeconds": 0}));
        uses(api, &best, &json!({"pods": "0"}));
        uses(api, &not_best, &json!({"pods": "0"}));
    }
}

// Conformance: ResourceQuota, quota scope, Terminating and NotTerminating scope
fn scopes_of_deadlines(api: &Api<'_>) {
    let namespace = api.namespace("quota-deadlines");
    let spec = |scope: &str| {
        json!({"hard": {"pods": "1", "requests.cpu": "1", "requests.memory": "500Mi", "limits.cpu": "2", "limits.memory": "1Gi"},
            "scopes": [scope]})
    };
    let ending = quota(api, &namespace, "terminating", &spec("Terminating"));
    let lasting = quota(api, &namespace, "not-terminating", &spec("NotTerminating"));
    let pods = in_namespace(&namespace, "pods");
    let full = json!({"pods": "1", "requests.cpu": "500m", "requests.memory": "200Mi", "limits.cpu": "1", "limits.memory": "400Mi"});
    let none =
        json!({"pods": "0", "requests.cpu": "0", "requests.memory": "0", "limits.cpu": "0", "limits.memory": "0"});
    let (requests, limits) = (json!({"cpu": "500m", "memory": "200Mi"}), json!({"cpu": "1", "memory": "400Mi"}));
    for (deadline, charged, other) in [(Value::Null, &lasting, &ending), (json!(3600), &ending, &lasting)] {
        let mut p = pod("p", &requests, &limits);
        p["spec"]["activeDeadlineSeconds"] = deadline;
        api.create(&pods, &p);
        uses(api, charged, &full);
        uses(api, other, &none);
        api.delete_with(&format!("{pods}/p"), &json!({"gracePeriodSeconds": 0}));
        uses(api, charged, &none);
    }
}

// Conformance: ResourceQuota, update and delete
fn a_quota_changes(api: &Api<'_>) {
    let namespace = api.namespace("quota-update");
    let path = quota(api, &namespace, "q", &json!({"hard": {"cpu": "1", "memory": "500Mi"}}));
    let hard = json!({"cpu": "2", "memory": "1Gi"});
    let changed = api.edit(&path, |q| q["spec"]["hard"] = hard.clone());
    assert_eq!(changed["spec"]["hard"], hard);
    api.until(&path, "taken over", |q| q["status"]["hard"] == hard);
    api.delete(&path);
    api.gone(&path);
}

// Conformance: ResourceQuota, manage lifecycle of a ResourceQuota
fn the_life_of_a_quota(api: &Api<'_>) {
    let namespace = api.namespace("quota-life");
    let collection = in_namespace(&namespace, "resourcequotas");
    let quota = json!({"metadata": {"name": "q", "labels": {"life": "quota"}}, "spec": {"hard": {"cpu": "500m", "memory": "500Mi"}}});
    api.create(&collection, &quota);
    let everywhere = "/api/v1/resourcequotas?labelSelector=life%3Dquota";
    assert_eq!(names(&api.list(everywhere)), ["q"]);
    let hard = json!({"cpu": "750m", "memory": "750Mi"});
    let patch = json!({"metadata": {"labels": {"q": "patched"}}, "spec": {"hard": hard}});
    let patched = api.patch(&format!("{collection}/q"), MERGE, &patch);
    assert_eq!((&patched["spec"]["hard"], &patched["metadata"]["labels"]["q"]), (&hard, &json!("patched")));
    api.delete(&format!("{collection}?labelSelector=q%3Dpatched"));
    api.until(everywhere, "none left", |list| list["items"].as_array().unwrap().is_empty());
}

// Conformance: ResourceQuota, apply changes to a ResourceQuota status
fn a_quotas_status(api: &Api<'_>) {
    let namespace = api.namespace("quota-status-changes");
    let path = quota(api, &namespace, "q", &json!({"hard": {"cpu": "500m", "memory": "500Mi"}}));
    let spec = api.get(&path)["spec"].clone();
    let status = format!("{path}/status");
    let hard = json!({"cpu": "1", "memory": "1Gi"});
    let updated = api.edit(&status, |q| {
        q["status"]["hard"] = hard.clone();
        q["spec"]["hard"]["cpu"] = "9".into();
    });
    assert_eq!((&updated["status"]["hard"], &updated["spec"]), (&hard, &spec));
    let more = json!({"cpu": "2", "memory": "2Gi"});
    api.patch(&path, MERGE, &json!({"spec": {"hard": more}}));
    api.until(&path, "the new bounds", |q| q["status"]["hard"] == more);
    let third = json!({"cpu": "3", "memory": "3Gi"});
    let patched = api.patch(&status, MERGE, &json!({"status": {"hard": third}}));
    assert_eq!((&patched["status"]["hard"], &patched["spec"]["hard"]), (&third, &more));
    assert_eq!(api.get(&status)["spec"]["hard"], more);
}

// Conformance: Replication Controller, check for issues like exceeding allocated quota
fn a_controller_meets_a_quota(api: &Api<'_>) {
    let namespace = api.namespace("quota-controller");
    quota(api, &namespace, "condition-test", &json!({"hard": {"pods": "2"}}));
    let controllers = in_namespace(&namespace, "replicationcontrollers");
    let template = json!({"metadata": {"labels": {"name": "rc"}}, "spec": {"nodeSelector": {"no": "node"},
        "containers": [{"name": "c", "image": "gantry.local/self"}]}});
    let spec = json!({"replicas": 3, "selector": {"name": "rc"}, "template": template});
    api.create(&controllers, &json!({"metadata": {"name": "rc"}, "spec": spec}));
    let path = format!("{controllers}/rc");
    let failed = api.until(&path, "a failure", |c| condition(c, "ReplicaFailure") == "True");
    let told = failed["status"]["conditions"][0].clone();
    assert_eq!(told["reason"], "FailedCreate");
    assert!(told["message"].as_str().unwrap().contains("exceeded quota: condition-test, requested: pods=1"), "{told}");
    api.edit(&path, |c| c["spec"]["replicas"] = 2.into());
    api.until(&path, "no failure", |c| condition(c, "ReplicaFailure").is_empty());
}

/// Of more objects than there is room for exactly as many are made as there is room for, however many come at once.
fn many_at_once(api: &Api<'_>) {
    let namespace = api.namespace("quota-race");
    let path = quota(api, &namespace, "q", &json!({"hard": {"secrets": "5"}}));
    let secrets = in_namespace(&namespace, "secrets");
    let codes: Vec<u16> = std::thread::scope(|scope| {
        let send = |i: usize| {
            let (api, secrets) = (api.clone(), secrets.clone());
            scope.spawn(move || api.send("POST", &secrets, &json!({"metadata": {"name": format!("s{i}")}})).code)
        };
        let all: Vec<_> = (0..12).map(send).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(codes.iter().filter(|c| **c == 201).count(), 5, "{codes:?}");
    assert_eq!(codes.iter().filter(|c| **c == 403).count(), 7, "{codes:?}");
    assert_eq!(api.list(&secrets).len(), 5);
    uses(api, &path, &json!({"secrets": "5"}));
}

/// However objects come and go, there are never more than there is room for: what is counted anew after a deletion has not
/// lost what was being stored meanwhile.
fn comings_and_goings(api: &Api<'_>) {
    let namespace = api.namespace("quota-churn");
    let path = quota(api, &namespace, "q", &json!({"hard": {"secrets": "3"}}));
    let secrets = in_namespace(&namespace, "secrets");
    let there = std::sync::Mutex::new(0);
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let (api, secrets, there) = (api.clone(), secrets.clone(), &there);
            scope.spawn(move || {
                for i in 0..10 {
                    let name = format!("s{thread}-{i}");
                    let answer = api.send("POST", &secrets, &json!({"metadata": {"name": name}}));
                    if answer.code != 201 {
                        forbidden(&answer);
                        continue;
                    }
                    let mut count = there.lock().unwrap();
                    *count += 1;
                    assert!(*count <= 3, "{count} at once");
                    drop(count);
                    // It is there for a while.
                    api.get(&format!("{secrets}/{name}"));
                    // Counted out before it goes, so that the count is never more than there are.
                    *there.lock().unwrap() -= 1;
                    api.delete(&format!("{secrets}/{name}"));
                }
            });
        }
    });
    uses(api, &path, &json!({"secrets": "0"}));
}

/// Neither a dry run nor a write that is refused after the charge uses anything.
fn what_is_not_stored_is_not_charged(api: &Api<'_>) {
    let namespace = api.namespace("quota-unstored");
    let path = quota(api, &namespace, "q", &json!({"hard": {"secrets": "2"}}));
    let secrets = in_namespace(&namespace, "secrets");
    let secret = json!({"metadata": {"name": "s"}});
    api.send("POST", &format!("{secrets}?dryRun=All"), &secret).expect(201);
    api.create(&secrets, &secret);
    assert_eq!(api.send("POST", &secrets, &secret).code, 409);
    assert_eq!(api.get(&path)["status"]["used"]["secrets"], "1");
    let other = json!({"metadata": {"name": "t"}});
    api.create(&secrets, &other);
    let told = forbidden(&api.send("POST", &format!("{secrets}?dryRun=All"), &json!({"metadata": {"name": "u"}})));
    assert!(told.contains("exceeded quota"), "{told}");
}

// Conformance: LimitRange, resources
fn defaults_and_bounds(api: &Api<'_>) {
    let namespace = api.namespace("limits");
    let ranges = in_namespace(&namespace, "limitranges");
    let list =
        |cpu: &str, memory: &str, storage: &str| json!({"cpu": cpu, "memory": memory, "ephemeral-storage": storage});
    let item = json!({"type": "Container", "min": list("50m", "100Mi", "100Gi"), "max": list("500m", "500Mi", "500Gi"),
        "default": list("500m", "500Mi", "500Gi"), "defaultRequest": list("100m", "200Mi", "200Gi")});
    api.create(&ranges, &json!({"metadata": {"name": "l"}, "spec": {"limits": [item]}}));
    let pods = in_namespace(&namespace, "pods");
    let plain = api.create(&pods, &pod("plain", &json!({}), &json!({})));
    let resources = |p: &Value| p["spec"]["containers"][0]["resources"].clone();
    assert_eq!(
        resources(&plain),
        json!({"requests": list("100m", "200Mi", "200Gi"), "limits": list("500m", "500Mi", "500Gi")})
    );
    assert_eq!(
        plain["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu, ephemeral-storage, memory request for container c; cpu, ephemeral-storage, memory \
         limit for container c"
    );
    let part = api.create(&pods, &pod("part", &json!({"cpu": "300m", "memory": "150Mi"}), &json!({"cpu": "300m"})));
    assert_eq!(
        resources(&part),
        json!({"requests": list("300m", "150Mi", "200Gi"), "limits": list("300m", "500Mi", "500Gi")})
    );
    let small = pod("small", &json!({"cpu": "10m"}), &json!({"cpu": "10m"}));
    let told = forbidden(&api.send("POST", &pods, &small));
    assert_eq!(told, "pods \"small\" is forbidden: minimum cpu usage per Container is 50m, but request is 10m");
    let big = pod("big", &json!({}), &json!({"cpu": "600m"}));
    let told = forbidden(&api.send("POST", &pods, &big));
    assert_eq!(told, "pods \"big\" is forbidden: maximum cpu usage per Container is 500m, but limit is 600m");
    // A changed range is for pods to come.
    api.edit(&format!("{ranges}/l"), |l| l["spec"]["limits"][0]["min"]["cpu"] = "9m".into());
    api.create(&pods, &small);
    api.delete(&format!("{ranges}/l"));
    api.gone(&format!("{ranges}/l"));
    let free = api.create(&pods, &pod("free", &json!({}), &json!({"cpu": "600m"})));
    assert_eq!(resources(&free), json!({"requests": {"cpu": "600m"}, "limits": {"cpu": "600m"}}));
}

// Conformance: LimitRange, list, patch and delete a LimitRange by collection
fn limit_ranges_by_collection(api: &Api<'_>) {
    let (first, second) = (api.namespace("ranges-a"), api.namespace("ranges-b"));
    let range = json!({"metadata": {"name": "l", "labels": {"ranges": "both"}}, "spec": {"limits": [
        {"type": "Container", "max": {"cpu": "1"}}]}});
    for namespace in [&first, &second] {
        api.create(&in_namespace(namespace, "limitranges"), &range);
    }
    let everywhere = "/api/v1/limitranges?labelSelector=ranges%3Dboth";
    assert_eq!(api.list(everywhere).len(), 2);
    let path = in_namespace(&first, "limitranges/l");
    let patch = json!({"metadata": {"labels": {"l": "patched"}}, "spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}}]}});
    let patched = api.patch(&path, MERGE, &patch);
    assert_eq!(
        (&patched["metadata"]["labels"]["l"], &patched["spec"]["limits"][0]["max"]["cpu"]),
        (&json!("patched"), &json!("2"))
    );
    api.delete(&format!("{}?labelSelector=l%3Dpatched", in_namespace(&first, "limitranges")));
    api.gone(&path);
    assert_eq!(api.list(everywhere).len(), 1);
}
