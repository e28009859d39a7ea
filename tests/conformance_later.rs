//! What upstream's conformance suite asks for since its release 1.29, as far as no other file has it: Jobs, lists in chunks,
//! aggregated discovery, nodes as objects, policies, tokens, the names of the server. Each behaviour stands above its
//! scenario by upstream's name; docs/conformance.md lists them all.

mod cluster;

use cluster::api::{Api, MERGE, condition, name, names};
use cluster::busybox::BUSYBOX;
use cluster::{Cluster, busybox, run};
use serde_json::{Value, json};
use std::collections::BTreeMap;

#[test]
fn since_1_29() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    let all = scenarios![
        lists_in_chunks,
        aggregated_discovery,
        the_names_of_the_server,
        the_life_of_a_node,
        tokens_are_made_and_reviewed,
        a_policy_with_variables,
        a_policy_changes_deployments,
        all_indexes_succeed,
        some_indexes_are_enough,
        a_count_of_indexes_is_enough,
        indexes_fail_by_themselves,
        indexes_that_are_given_up,
        too_many_failed_indexes,
        exit_codes_end_a_job,
        evicted_pods_do_not_count,
    ];
    cluster::api::scenarios(&Api::new(&cluster), all);
}

/// Makes so many PodTemplates in a namespace of their own; returns their path.
fn templates(api: &Api<'_>, namespace: &str, count: usize) -> String {
    let namespace = api.namespace(namespace);
    let items: Vec<Value> = (0..count)
        .map(|i| {
            json!({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": format!("template-{i:04}")},
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}})
        })
        .collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
    api.cluster.kubectl_with(&["create", "-n", &namespace, "-f", "-"], &list);
    format!("/api/v1/namespaces/{namespace}/podtemplates")
}

// Conformance: API Chunking, server should return chunks of results for list calls
fn lists_in_chunks(api: &Api<'_>) {
    let path = templates(api, "chunks", 40);
    let (mut next, mut found, mut version) = (String::new(), Vec::new(), None);
    loop {
        let page = api.get(&format!("{path}?limit=17{next}"));
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= 17);
        let at = version.get_or_insert_with(|| page["metadata"]["resourceVersion"].clone());
        assert_eq!(*at, page["metadata"]["resourceVersion"], "all pages are of one version");
        found.extend(names(items).into_iter().map(str::to_owned));
        let Some(token) = page["metadata"]["continue"].as_str().filter(|t| !t.is_empty()) else {
            assert_eq!(page["metadata"].get("remainingItemCount"), None);
            break;
        };
        assert_eq!(page["metadata"]["remainingItemCount"], json!(40 - found.len()));
        next = format!("&continue={token}");
    }
    assert_eq!(found, (0..40).map(|i| format!("template-{i:04}")).collect::<Vec<_>>());
    let all = api.get(&path);
    assert_eq!((all["items"].as_array().unwrap().len(), all["metadata"].get("continue")), (40, None));
}

// Conformance: API Chunking, server should support continue listing from the last key
#[test]
fn chunks_of_a_version_that_is_gone() {
    let mut cluster = Cluster::prepare_role("server", &[]);
    cluster.up();
    let api = Api::new(&cluster);
    let path = templates(&api, "old-chunks", 40);
    let first = api.get(&format!("{path}?limit=17"));
    let last = name(first["items"].as_array().unwrap().last().unwrap()).to_owned();
    let token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    // A server that starts anew keeps no version from before.
    api.create("/api/v1/namespaces/old-chunks/configmaps", &json!({"metadata": {"name": "later"}}));
    cluster.kill();
    cluster.up();
    let api = Api::new(&cluster);
    let expired = api.try_get(&format!("{path}?limit=17&continue={token}")).expect(410);
    assert_eq!((&expired["reason"], &expired["code"]), (&json!("Expired"), &json!(410)));
    assert!(expired["message"].as_str().unwrap().contains("inconsistent list"), "{expired}");
    let mut next = expired["metadata"]["continue"].as_str().unwrap().to_owned();
    let mut version = None;
    for (count, left) in [(17, json!(6)), (6, Value::Null)] {
        let page = api.get(&format!("{path}?limit=17&continue={next}"));
        let items = page["items"].as_array().unwrap();
        assert_eq!((items.len(), &page["metadata"]["remainingItemCount"]), (count, &left));
        assert!(names(items).iter().all(|n| *n > last.as_str()), "{page}");
        let at = version.get_or_insert_with(|| page["metadata"]["resourceVersion"].clone());
        assert_eq!(*at, page["metadata"]["resourceVersion"]);
        page["metadata"]["continue"].as_str().unwrap_or_default().clone_into(&mut next);
    }
}

/// The discovery of all groups in one document: resources by group and version.
fn aggregated(api: &Api<'_>, path: &str, accept: &str) -> BTreeMap<String, Vec<String>> {
    let answer = api.with_header(&format!("Accept: {accept}")).try_get(path);
    let kind = "content-type: application/json;g=apidiscovery.k8s.io;v=v2;as=apigroupdiscoverylist";
    assert!(answer.head.to_lowercase().contains(kind), "{}", answer.head);
    let list = answer.expect(200);
    assert_eq!(
        (&list["kind"], &list["apiVersion"]),
        (&json!("APIGroupDiscoveryList"), &json!("apidiscovery.k8s.io/v2"))
    );
    let mut found = BTreeMap::new();
    for group in list["items"].as_array().unwrap() {
        for version in group["versions"].as_array().unwrap() {
            let group = group["metadata"]["name"].as_str().unwrap_or_default();
            let of = format!("{group}/{}", version["version"].as_str().unwrap());
            let resources = version["resources"].as_array().unwrap();
            found.insert(of, resources.iter().map(|r| r["resource"].as_str().unwrap().to_owned()).collect());
        }
    }
    found
}

// Conformance: Aggregated Discovery Interface
// Conformance: Aggregated Discovery Interface CRDs
// Conformance: Aggregated Discovery Endpoint Accept Headers
// Conformance: Aggregated Discovery Endpoint Accept Headers CRDs
fn aggregated_discovery(api: &Api<'_>) {
    let v2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    // As clients of different ages ask.
    let accepts = [
        v2.to_owned(),
        format!("{v2},application/json"),
        format!("{v2},application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"),
    ];
    let group = "aggregated.example.com";
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    api.create(
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        &json!({"metadata": {"name": format!("widgets.{group}")}, "spec": {"group": group, "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}}),
    );
    for accept in &accepts {
        let core = aggregated(api, "/api", accept);
        assert!(core["/v1"].iter().any(|r| r == "pods"), "{core:?}");
        let found = api.cluster.wait_for("the definition in discovery", || {
            let found = aggregated(api, "/apis", accept);
            found.contains_key(&format!("{group}/v1")).then_some(found)
        });
        assert_eq!(found[&format!("{group}/v1")], ["widgets"]);
        for (of, resource) in [
            ("apps/v1", "deployments"),
            ("batch/v1", "jobs"),
            ("rbac.authorization.k8s.io/v1", "roles"),
            ("apiextensions.k8s.io/v1", "customresourcedefinitions"),
            ("apiregistration.k8s.io/v1", "apiservices"),
            ("admissionregistration.k8s.io/v1", "validatingadmissionpolicies"),
        ] {
            assert!(found[of].iter().any(|r| r == resource), "{resource} in {of}");
        }
    }
    // Who does not ask for it gets the documents of old.
    assert_eq!(api.get("/apis")["kind"], "APIGroupList");
}

// Conformance: kube-apiserver serving certificate, in-cluster SANs
fn the_names_of_the_server(api: &Api<'_>) {
    let ca = api.ca().to_string_lossy().into_owned();
    let domain = ["kubernetes.default.svc.cluster.local", "kubernetes.default.svc", "kubernetes.default", "kubernetes"];
    for host in domain {
        let to = format!("{host}:6443:127.0.0.1");
        let url = format!("https://{host}:6443/version");
        let answer = run(api.cluster.inside("curl").args(["-sS", "--cacert", &ca, "--resolve", &to, &url]));
        assert!(answer.contains("gitVersion"), "{host}: {answer}");
    }
}

// Conformance: Node, resource lifecycle
fn the_life_of_a_node(api: &Api<'_>) {
    let node =
        |name: &str| json!({"metadata": {"name": name, "labels": {"fake": "yes"}}, "spec": {"unschedulable": true}});
    api.create("/api/v1/nodes", &node("fake-1"));
    let one = "/api/v1/nodes/fake-1";
    assert_eq!(api.get(one)["metadata"]["name"], "fake-1");
    let patched = api.patch(one, MERGE, &json!({"metadata": {"labels": {"patched": "yes"}}}));
    assert_eq!(patched["metadata"]["labels"]["patched"], "yes");
    assert_eq!(names(&api.list("/api/v1/nodes?labelSelector=patched%3Dyes")), ["fake-1"]);
    let updated = api.edit(one, |n| n["metadata"]["labels"]["updated"] = json!("yes"));
    assert_eq!(updated["metadata"]["labels"]["updated"], "yes");
    api.delete(one);
    api.gone(one);
    api.create("/api/v1/nodes", &node("fake-2"));
    api.delete("/api/v1/nodes?labelSelector=fake%3Dyes");
    api.until("/api/v1/nodes?labelSelector=fake%3Dyes", "empty", |l| l["items"].as_array().unwrap().is_empty());
    assert_eq!(names(&api.list("/api/v1/nodes")), ["node-1"]);
}

// Conformance: ServiceAccount, create and review token
fn tokens_are_made_and_reviewed(api: &Api<'_>) {
    let namespace = api.namespace("reviewed");
    let accounts = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
    api.create(&accounts, &json!({"metadata": {"name": "someone"}}));
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let token = api.create(&format!("{accounts}/someone/token"), &request)["status"]["token"].clone();
    assert!(!token.as_str().unwrap().is_empty());
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let status = api.create("/apis/authentication.k8s.io/v1/tokenreviews", &review)["status"].clone();
    assert_eq!((&status["authenticated"], status.get("error")), (&json!(true), None));
    assert_eq!(status["user"]["username"], format!("system:serviceaccount:{namespace}:someone"));
}

const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1";

/// A policy over the Deployments of a namespace, with its binding.
fn policy(api: &Api<'_>, sort: &str, namespace: &str, spec: &Value) {
    let mut spec = spec.clone();
    spec["matchConstraints"] = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"],
            "resources": ["deployments"]}]});
    let name = format!("{sort}-{namespace}");
    api.create(&format!("{POLICIES}/{sort}admissionpolicies"), &json!({"metadata": {"name": name}, "spec": spec}));
    let mut binding = json!({"policyName": name});
    if sort == "validating" {
        binding["validationActions"] = json!(["Deny"]);
    }
    let binding = json!({"metadata": {"name": name}, "spec": binding});
    api.create(&format!("{POLICIES}/{sort}admissionpolicybindings"), &binding);
}

fn deployment(name: &str, replicas: i32) -> Value {
    json!({"metadata": {"name": name}, "spec": {"replicas": replicas, "selector": {"matchLabels": {"a": name}},
        "template": {"metadata": {"labels": {"a": name}}, "spec": {"nodeSelector": {"no-node": "has-this"},
            "containers": [{"name": "c", "image": "i"}]}}}})
}

// Conformance: ValidatingAdmissionPolicy
fn a_policy_with_variables(api: &Api<'_>) {
    let namespace = api.namespace("with-variables");
    let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments");
    let variables = json!([{"name": "replicas", "expression": "object.spec.replicas"},
        {"name": "odd", "expression": "variables.replicas % 2 == 1"}]);
    policy(
        api,
        "validating",
        &namespace,
        &json!({"variables": variables, "validations": [{"expression": "variables.replicas > 1"},
            {"expression": "variables.odd", "message": "an odd number, please"}]}),
    );
    let refused = |replicas: i32| {
        let answer = api.send("POST", &format!("{path}?dryRun=All"), &deployment("d", replicas));
        (answer.code == 422).then(|| answer.json()["message"].as_str().unwrap().to_owned())
    };
    let told = api.cluster.wait_for("the policy in force", || refused(1));
    assert!(told.ends_with("denied request: failed expression: variables.replicas > 1"), "{told}");
    assert!(refused(2).unwrap().ends_with("denied request: an odd number, please"));
    assert_eq!(refused(3), None);
}

// Conformance: MutatingAdmissionPolicy
fn a_policy_changes_deployments(api: &Api<'_>) {
    let namespace = api.namespace("annotated");
    let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments?dryRun=All");
    policy(
        api,
        "mutating",
        &namespace,
        &json!({"reinvocationPolicy": "Never", "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration":
            {"expression": "Object{metadata: Object.metadata{annotations: {'my-foo-annotation': 'myAnnotationValue'}}}"}}]}),
    );
    api.cluster.wait_for("the policy in force", || {
        let made = api.create(&path, &deployment("d", 1));
        (made["metadata"]["annotations"]["my-foo-annotation"] == "myAnnotationValue").then_some(())
    });
}

/// Where the Jobs of a namespace of their own are, and their pods.
fn jobs(api: &Api<'_>, namespace: &str) -> (String, String) {
    let namespace = api.namespace(namespace);
    (format!("/apis/batch/v1/namespaces/{namespace}/jobs"), format!("/api/v1/namespaces/{namespace}/pods"))
}

/// An indexed Job whose pods run a script.
fn indexed(name: &str, script: &str, spec: &Value) -> Value {
    let mut all = json!({"completionMode": "Indexed", "parallelism": 2, "template": {"spec": {"restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": BUSYBOX, "command": ["sh", "-c", script]}]}}});
    for (key, value) in spec.as_object().unwrap() {
        all[key] = value.clone();
    }
    json!({"metadata": {"name": name}, "spec": all})
}

/// Waits until a Job has succeeded by its policy. Returns its status.
fn succeeded_by_policy(api: &Api<'_>, path: &str) -> Value {
    let done = api.until(path, "complete", |j| condition(j, "Complete") == "True");
    for kind in ["SuccessCriteriaMet", "Complete"] {
        let all = done["status"]["conditions"].as_array().unwrap();
        let found = all.iter().find(|c| c["type"] == kind).unwrap_or_else(|| panic!("{kind} in {all:?}"));
        assert_eq!((&found["status"], &found["reason"]), (&json!("True"), &json!("SuccessPolicy")));
    }
    let status = done["status"].clone();
    for none in ["active", "ready", "terminating"] {
        assert_eq!(status[none].as_i64().unwrap_or(0), 0, "{none} in {status}");
    }
    status
}

/// Even indexes succeed; odd ones go on for ever, so that only the policy can end the Job.
const EVEN: &str = "[ $((JOB_COMPLETION_INDEX % 2)) = 0 ] || sleep 1000000";
/// Even indexes succeed, odd ones fail.
const ODD_FAIL: &str = "exit $((JOB_COMPLETION_INDEX % 2))";

// Conformance: Ensure that job with successPolicy succeeded when all indexes succeeded
fn all_indexes_succeed(api: &Api<'_>) {
    let (path, _) = jobs(api, "all-indexes");
    let spec = json!({"completions": 2, "successPolicy": {"rules": [{"succeededCount": 2}]}});
    api.create(&path, &indexed("all", "true", &spec));
    let status = succeeded_by_policy(api, &format!("{path}/all"));
    assert_eq!((&status["completedIndexes"], status["failed"].as_i64()), (&json!("0,1"), None));
}

// Conformance: Ensure that job with successPolicy succeededIndexes rule succeeded even when some indexes remain pending
fn some_indexes_are_enough(api: &Api<'_>) {
    let (path, pods) = jobs(api, "some-indexes");
    let spec = json!({"completions": 5, "successPolicy": {"rules": [{"succeededIndexes": "0"}]}});
    api.create(&path, &indexed("some", EVEN, &spec));
    let status = succeeded_by_policy(api, &format!("{path}/some"));
    assert!(status["completedIndexes"].as_str().unwrap().starts_with('0'), "{status}");
    api.until(&pods, "without one that runs", |l| {
        l["items"].as_array().unwrap().iter().all(|p| p["status"]["phase"] == "Succeeded")
    });
}

// Conformance: Ensure that job with successPolicy succeededCount rule succeeded even when some indexes remain pending
fn a_count_of_indexes_is_enough(api: &Api<'_>) {
    let (path, _) = jobs(api, "count-of-indexes");
    let spec = json!({"completions": 5, "successPolicy": {"rules": [{"succeededCount": 1}]}});
    api.create(&path, &indexed("count", EVEN, &spec));
    let status = succeeded_by_policy(api, &format!("{path}/count"));
    assert!(status["succeeded"].as_i64().unwrap() >= 1, "{status}");
}

/// Waits until a Job has failed, and returns its status.
fn failed(api: &Api<'_>, path: &str, reason: &str) -> Value {
    let done = api.until(path, "failed", |j| condition(j, "Failed") == "True");
    let all = done["status"]["conditions"].as_array().unwrap();
    let found = all.iter().find(|c| c["type"] == "Failed").unwrap();
    assert_eq!(found["reason"], reason, "{found}");
    done["status"].clone()
}

// Conformance: Ensure that all indexes are executed for an indexed job with backoffLimitPerIndex despite some failing
fn indexes_fail_by_themselves(api: &Api<'_>) {
    let (path, _) = jobs(api, "by-themselves");
    api.create(&path, &indexed("each", ODD_FAIL, &json!({"completions": 4, "backoffLimitPerIndex": 1})));
    let status = failed(api, &format!("{path}/each"), "FailedIndexes");
    assert_eq!((&status["failedIndexes"], &status["completedIndexes"]), (&json!("1,3"), &json!("0,2")));
    assert_eq!((&status["failed"], &status["succeeded"]), (&json!(4), &json!(2)));
}

// Conformance: Mark indexes as failed when the FailIndex action is matched in podFailurePolicy
fn indexes_that_are_given_up(api: &Api<'_>) {
    let (path, _) = jobs(api, "given-up");
    let rule = json!({"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [1]}});
    let spec = json!({"completions": 2, "backoffLimitPerIndex": 1, "podFailurePolicy": {"rules": [rule]}});
    api.create(&path, &indexed("given-up", "exit $((1 - JOB_COMPLETION_INDEX))", &spec));
    let status = failed(api, &format!("{path}/given-up"), "FailedIndexes");
    assert_eq!((&status["failedIndexes"], &status["completedIndexes"]), (&json!("0"), &json!("1")));
    assert_eq!((&status["failed"], &status["succeeded"]), (&json!(1), &json!(1)), "there was no second attempt");
}

// Conformance: Terminate job execution when the maxFailedIndexes is exceeded
fn too_many_failed_indexes(api: &Api<'_>) {
    let (path, _) = jobs(api, "too-many");
    let spec = json!({"completions": 4, "parallelism": 1, "backoffLimitPerIndex": 0, "maxFailedIndexes": 0});
    api.create(&path, &indexed("too-many", "exit 1", &spec));
    let status = failed(api, &format!("{path}/too-many"), "MaxFailedIndexesExceeded");
    assert_eq!((&status["failedIndexes"], &status["failed"]), (&json!("0"), &json!(1)));
}

// Conformance: Verify Pod Failure policy allows to fail job early on exit code.
fn exit_codes_end_a_job(api: &Api<'_>) {
    let (path, _) = jobs(api, "exit-codes");
    let rule = json!({"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1]}});
    // One pod at a time: what runs beside the one that fails is ended with the Job, and may count as failed.
    let spec = json!({"completions": 4, "parallelism": 1, "backoffLimit": 6, "podFailurePolicy": {"rules": [rule]}});
    api.create(&path, &indexed("ends", ODD_FAIL, &spec));
    let status = failed(api, &format!("{path}/ends"), "PodFailurePolicy");
    assert_eq!(status["failed"], 1);
}

// Conformance: Ensure pod failure policy allows to ignore failure matching on the DisruptionTarget condition
fn evicted_pods_do_not_count(api: &Api<'_>) {
    let (path, pods) = jobs(api, "evicted");
    let condition = json!({"type": "DisruptionTarget", "status": "True"});
    let rule = json!({"action": "Ignore", "onPodConditions": [condition]});
    let count = 2;
    let spec = json!({"completions": count, "backoffLimit": 0, "podFailurePolicy": {"rules": [rule]}});
    // A pod goes on for ever unless it finds the mark in a map, which is made once the first ones have been evicted.
    let mut job = indexed("evicted", "[ -e /mark/done ] || sleep 1000000", &spec);
    job["spec"]["template"]["spec"]["volumes"] =
        json!([{"name": "mark", "configMap": {"name": "mark", "optional": true}}]);
    job["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "mark", "mountPath": "/mark"}]);
    api.create(&path, &job);
    let running = api.until(&pods, "running", |l| {
        let items = l["items"].as_array().unwrap();
        items.iter().filter(|p| p["status"]["phase"] == "Running").count() == count
    });
    let maps = pods.replace("/pods", "/configmaps");
    api.create(&maps, &json!({"metadata": {"name": "mark"}, "data": {"done": ""}}));
    for pod in running["items"].as_array().unwrap() {
        let one = format!("{pods}/{}", name(pod));
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name(pod)}});
        api.create(&format!("{one}/eviction"), &eviction);
    }
    let done = api.until(&format!("{path}/evicted"), "complete", |j| cluster::api::condition(j, "Complete") == "True");
    assert_eq!((&done["status"]["succeeded"], &done["status"]["completedIndexes"]), (&json!(count), &json!("0,1")));
}
