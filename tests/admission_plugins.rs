//! Admission plugins that are turned on and configured by flags and file, and Pod Security.

mod cluster;

use cluster::api::{Answer, Api};
use cluster::webhook::Webhook;
use cluster::{Cluster, GANTRY};
use serde_json::{Value, json};
use std::sync::Arc;

const CONFIGURATION: &str = "
apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
- name: PodSecurity
  configuration:
    apiVersion: pod-security.admission.config.k8s.io/v1
    kind: PodSecurityConfiguration
    defaults: {warn: baseline}
    exemptions:
      usernames: [exempt-user]
      namespaces: [exempt-namespace]
      runtimeClasses: [exempt-class]
- name: PodNodeSelector
  path: selectors.yaml
- name: ResourceQuota
  configuration:
    apiVersion: apiserver.config.k8s.io/v1
    kind: ResourceQuotaConfiguration
    limitedResources:
    - {resource: persistentvolumeclaims, matchContains: [gold.storageclass.storage.k8s.io/requests.storage]}
    - {resource: pods, matchScopes: [{scopeName: PriorityClass, operator: In, values: [precious]}]}
- name: PodTolerationRestriction
  configuration:
    apiVersion: podtolerationrestriction.admission.k8s.io/v1alpha1
    kind: Configuration
    default: [{key: house, operator: Exists}]
";
const SELECTORS: &str = "podNodeSelectorPluginConfig: {clusterDefaultNodeSelector: 'kubernetes.io/os=linux', listed: 'kubernetes.io/os=linux,zone=a'}";
const ENABLED: &str = "AlwaysPullImages,PodNodeSelector,PodTolerationRestriction,ExtendedResourceToleration,\
    DenyServiceExternalIPs,LimitPodHardAntiAffinityTopology,OwnerReferencesPermissionEnforcement,NamespaceAutoProvision,NamespaceExists";

#[test]
fn plugins() {
    let mut cluster = Cluster::prepare(&[]);
    let file = cluster.data_dir().join("admission.yaml");
    std::fs::write(&file, CONFIGURATION).unwrap();
    std::fs::write(cluster.data_dir().join("selectors.yaml"), SELECTORS).unwrap();
    let file = file.to_string_lossy().into_owned();
    mistakes_end_the_start(&cluster, &file);
    cluster.set_options(&[
        "--enable-admission-plugins",
        ENABLED,
        "--disable-admission-plugins",
        "DefaultTolerationSeconds,EventRateLimit",
        "--admission-control-config-file",
        &file,
    ]);
    cluster.up();
    let all = scenarios![
        what_is_put_into_pods,
        selectors_of_namespaces,
        tolerations_of_namespaces,
        what_is_refused,
        what_only_a_quota_allows,
        owners_are_given_by_those_who_may,
        namespaces_come_by_themselves,
        pod_security_in_three_modes,
        pod_security_exemptions,
        namespaces_are_warned,
    ];
    cluster::api::scenarios(&Api::new(&cluster), all);
}

fn mistakes_end_the_start(cluster: &Cluster, file: &str) {
    let told = |flags: &[&str]| {
        let data = cluster.data_dir().join("mistakes");
        let output = cluster
            .inside(GANTRY)
            .args(["up", "--node-name=node-1", "--data-dir"])
            .arg(&data)
            .arg(format!("--kubeconfig={}", data.join("kubeconfig").display()))
            .args(flags)
            .output()
            .unwrap();
        assert!(!output.status.success(), "{flags:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let error = told(&["--enable-admission-plugins", "Nonsense"]);
    assert!(error.contains("--enable-admission-plugins: plugin \"Nonsense\" is unknown"), "{error}");
    let error = told(&["--enable-admission-plugins", "ImagePolicyWebhook"]);
    assert!(error.contains("couldn't init admission plugin \"ImagePolicyWebhook\": no config specified"), "{error}");
    let error = told(&["--enable-admission-plugins", "EventRateLimit"]);
    let wanted = "couldn't init admission plugin \"EventRateLimit\": limits: Invalid value: null: must not be empty";
    assert!(error.contains(wanted), "{error}");
    std::fs::write(file, CONFIGURATION.replace("{warn: baseline}", "{warn: strict}")).unwrap();
    let error = told(&["--admission-control-config-file", file]);
    let wanted = "plugin \"PodSecurity\": defaults.warn: Invalid value: \"strict\": must be one of privileged, baseline, restricted";
    assert!(error.contains(file) && error.contains(wanted), "{error}");
    std::fs::write(file, CONFIGURATION).unwrap();
}

fn pods(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}})
}

fn forbidden(answer: &Answer) -> String {
    answer.expect(403)["message"].as_str().unwrap().to_owned()
}

/// Texts of `Warning` headers.
fn warnings(answer: &Answer) -> Vec<String> {
    let values =
        answer.head.lines().filter_map(|l| l.split_once(": ").filter(|(k, _)| k.eq_ignore_ascii_case("warning")));
    let texts = values.filter_map(|(_, v)| v.trim_end().strip_prefix("299 - \"")?.strip_suffix('"'));
    texts.map(|text| text.replace("\\\"", "\"")).collect()
}

fn what_is_put_into_pods(api: &Api<'_>) {
    let namespace = api.namespace("put-in");
    let mut asked = pod("p");
    asked["spec"]["containers"][0]["imagePullPolicy"] = json!("Never");
    asked["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1m"}});
    asked["spec"]["initContainers"] = json!([{"name": "i", "image": "i:1", "resources":
        {"requests": {"example.com/dongle": "1"}, "limits": {"example.com/dongle": "1"}}}]);
    let made = api.create(&pods(&namespace), &asked);
    assert_eq!(made["spec"]["containers"][0]["imagePullPolicy"], "Always");
    assert_eq!(made["spec"]["initContainers"][0]["imagePullPolicy"], "Always");
    assert_eq!(made["spec"]["nodeSelector"], json!({"kubernetes.io/os": "linux"}));
    let tolerations = made["spec"]["tolerations"].as_array().unwrap();
    let has = |t: Value| assert!(tolerations.contains(&t), "{t} in {tolerations:?}");
    has(json!({"key": "example.com/dongle", "operator": "Exists", "effect": "NoSchedule"}));
    has(json!({"key": "house", "operator": "Exists"}));
    has(json!({"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule"}));
    // DefaultTolerationSeconds is off.
    assert_eq!(tolerations.len(), 3, "{tolerations:?}");
}

fn selectors_of_namespaces(api: &Api<'_>) {
    let annotated = json!({"metadata": {"name": "annotated", "annotations":
        {"scheduler.alpha.kubernetes.io/node-selector": "disk=fast"}}});
    api.create("/api/v1/namespaces", &annotated);
    api.until("/api/v1/namespaces/annotated/serviceaccounts/default", "made", |_| true);
    assert_eq!(api.create(&pods("annotated"), &pod("p"))["spec"]["nodeSelector"], json!({"disk": "fast"}));
    let mut other = pod("q");
    other["spec"]["nodeSelector"] = json!({"disk": "slow"});
    assert_eq!(
        forbidden(&api.send("POST", &pods("annotated"), &other)),
        "pods \"q\" is forbidden: pod node label selector conflicts with its namespace node label selector"
    );
    let listed = api.namespace("listed");
    let mut fine = pod("p");
    fine["spec"]["nodeSelector"] = json!({"zone": "a"});
    api.create(&pods(&listed), &fine);
    other["spec"]["nodeSelector"] = json!({"zone": "b"});
    assert_eq!(
        forbidden(&api.send("POST", &pods(&listed), &other)),
        "pods \"q\" is forbidden: pod node label selector labels conflict with its namespace whitelist"
    );
}

fn tolerations_of_namespaces(api: &Api<'_>) {
    let annotations = json!({"scheduler.alpha.kubernetes.io/defaultTolerations": "[{\"key\": \"own\", \"operator\": \"Exists\"}]",
        "scheduler.alpha.kubernetes.io/tolerationsWhitelist": "[{\"key\": \"own\", \"operator\": \"Exists\"}]"});
    api.create("/api/v1/namespaces", &json!({"metadata": {"name": "tolerant", "annotations": annotations}}));
    api.until("/api/v1/namespaces/tolerant/serviceaccounts/default", "made", |_| true);
    let made = api.create(&pods("tolerant"), &pod("p"));
    assert_eq!(made["spec"]["tolerations"], json!([{"key": "own", "operator": "Exists"}]));
    let mut other = pod("q");
    other["spec"]["tolerations"] = json!([{"key": "foreign", "operator": "Exists"}]);
    let told = api.send("POST", &pods("tolerant"), &other).expect(500)["message"].clone();
    let wanted =
        "pod tolerations (possibly merged with namespace default tolerations) conflict with its namespace whitelist";
    assert_eq!(told, wanted);
}

fn what_is_refused(api: &Api<'_>) {
    let namespace = api.namespace("refusals");
    let services = format!("/api/v1/namespaces/{namespace}/services");
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}], "externalIPs": ["192.0.2.1"]}});
    assert_eq!(
        forbidden(&api.send("POST", &services, &service)),
        "services \"s\" is forbidden: Use of external IPs is denied by admission control"
    );
    let mut apart = pod("apart");
    apart["spec"]["affinity"] = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "zone", "labelSelector": {"matchLabels": {"a": "b"}}}]}});
    assert_eq!(
        forbidden(&api.send("POST", &pods(&namespace), &apart)),
        "pods \"apart\" is forbidden: affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey zone but only \
         key kubernetes.io/hostname is allowed"
    );
}

fn what_only_a_quota_allows(api: &Api<'_>) {
    let namespace = api.namespace("limited");
    let claims = format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims");
    let claim = json!({"metadata": {"name": "c"}, "spec": {"storageClassName": "gold", "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    assert_eq!(
        forbidden(&api.send("POST", &claims, &claim)),
        "persistentvolumeclaims \"c\" is forbidden: insufficient quota to consume: \
         gold.storageclass.storage.k8s.io/requests.storage"
    );
    let class = json!({"metadata": {"name": "precious"}, "value": 5});
    api.create("/apis/scheduling.k8s.io/v1/priorityclasses", &class);
    let mut precious = pod("p");
    precious["spec"]["priorityClassName"] = json!("precious");
    let told = api.send("POST", &pods(&namespace), &precious).expect(500)["message"].clone();
    assert_eq!(told, "insufficient quota to match these scopes: [{PriorityClass In [precious]}]");
    let quotas = format!("/api/v1/namespaces/{namespace}/resourcequotas");
    let selector =
        json!({"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["precious"]}]});
    for (name, spec) in [
        ("gold", json!({"hard": {"gold.storageclass.storage.k8s.io/requests.storage": "5Gi"}})),
        ("precious", json!({"hard": {"pods": "1"}, "scopeSelector": selector})),
    ] {
        api.create(&quotas, &json!({"metadata": {"name": name}, "spec": spec}));
        api.until(&format!("{quotas}/{name}"), "counted", |q| q["status"]["hard"] == spec["hard"]);
    }
    api.create(&claims, &claim);
    api.create(&pods(&namespace), &precious);
}

fn owners_are_given_by_those_who_may(api: &Api<'_>) {
    let namespace = api.namespace("owners");
    let maps = format!("/api/v1/namespaces/{namespace}/configmaps");
    let owner = api.create(&maps, &json!({"metadata": {"name": "owner"}}));
    let roles = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}");
    let role = |name: &str, verbs: &[&str]| {
        let rules = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": verbs}]);
        api.create(&format!("{roles}/roles"), &json!({"metadata": {"name": name}, "rules": rules}));
        let subject = json!({"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": name});
        let to = json!({"kind": "Role", "apiGroup": "rbac.authorization.k8s.io", "name": name});
        api.create(
            &format!("{roles}/rolebindings"),
            &json!({"metadata": {"name": name}, "subjects": [subject], "roleRef": to}),
        );
        api.impersonate(name, &[])
    };
    let owned = |name: &str, blocks: bool| {
        let reference = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"],
            "blockOwnerDeletion": blocks});
        json!({"metadata": {"name": name, "ownerReferences": [reference]}})
    };
    let (creator, deleter) = (role("creator", &["create"]), role("deleter", &["create", "delete"]));
    // The authorizer hears of new roles through its cache.
    let told = api.cluster.wait_for("the creator's refusal", || {
        let answer = creator.send("POST", &maps, &owned("one", false));
        let text = answer.json()["message"].as_str().unwrap_or_default().to_owned();
        text.contains("ownerRef").then_some(text)
    });
    assert!(
        told.starts_with("configmaps \"one\" is forbidden: cannot set an ownerRef on a resource you can't delete: "),
        "{told}"
    );
    api.cluster.wait_for("the deleter's success", || {
        (deleter.send("POST", &maps, &owned("one", false)).code == 201).then_some(())
    });
    let told = forbidden(&deleter.send("POST", &maps, &owned("two", true)));
    let wanted =
        "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: ";
    assert!(told.contains(wanted), "{told}");
    api.create(&maps, &owned("two", true));
}

fn namespaces_come_by_themselves(api: &Api<'_>) {
    let maps = "/api/v1/namespaces/by-itself/configmaps";
    api.send("POST", &format!("{maps}?dryRun=All"), &json!({"metadata": {"name": "m"}})).expect(404);
    api.create(maps, &json!({"metadata": {"name": "m"}}));
    assert_eq!(api.get("/api/v1/namespaces/by-itself")["status"]["phase"], "Active");
}

fn secured(api: &Api<'_>, name: &str, labels: &Value) -> Answer {
    let answer = api.send("POST", "/api/v1/namespaces", &json!({"metadata": {"name": name, "labels": labels}}));
    if answer.code == 201 {
        api.until(&format!("/api/v1/namespaces/{name}/serviceaccounts/default"), "made", |_| true);
    }
    answer
}

fn pod_security_in_three_modes(api: &Api<'_>) {
    secured(
        api,
        "secured",
        &json!({"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/enforce-version": "v1.30",
        "pod-security.kubernetes.io/warn": "restricted"}),
    );
    let mut privileged = pod("privileged");
    privileged["spec"]["hostNetwork"] = json!(true);
    privileged["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    assert_eq!(
        forbidden(&api.send("POST", &pods("secured"), &privileged)),
        "pods \"privileged\" is forbidden: violates PodSecurity \"baseline:v1.30\": host namespaces (hostNetwork=true), \
         privileged (container \"c\" must not set securityContext.privileged=true)"
    );
    let plain = api.send("POST", &pods("secured"), &pod("plain"));
    plain.expect(201);
    let warned = warnings(&plain);
    let wanted = "would violate PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false (container \"c\" must set \
        securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"c\" must set \
        securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"c\" must set \
        securityContext.runAsNonRoot=true), seccompProfile (pod or container \"c\" must set \
        securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")";
    assert_eq!(warned, [wanted]);
    // Workloads are made, but their authors are warned of what their pods will meet.
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": privileged["spec"]});
    let deployment =
        json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    let made = api.send("POST", "/apis/apps/v1/namespaces/secured/deployments", &deployment);
    made.expect(201);
    assert!(
        warnings(&made)[0].starts_with("would violate PodSecurity \"restricted:latest\": host namespaces"),
        "{}",
        made.head
    );
    // The controllers may own what they make.
    let sets = "/apis/apps/v1/namespaces/secured/replicasets";
    api.until(sets, "the Deployment's", |l| !l["items"].as_array().unwrap().is_empty());
    // A namespace without labels has the file's defaults.
    let unlabelled = api.namespace("unlabelled");
    let made = api.send("POST", &pods(&unlabelled), &privileged);
    made.expect(201);
    assert!(warnings(&made)[0].starts_with("would violate PodSecurity \"baseline:latest\": "), "{}", made.head);
}

fn pod_security_exemptions(api: &Api<'_>) {
    let enforce = json!({"pod-security.kubernetes.io/enforce": "restricted"});
    let answer = secured(api, "exempt-namespace", &enforce);
    assert_eq!(
        warnings(&answer),
        [
            "namespace \"exempt-namespace\" is exempt from Pod Security, and the policy (enforce=restricted:latest) will be ignored"
        ]
    );
    api.create(&pods("exempt-namespace"), &pod("p"));
    secured(api, "others", &enforce);
    assert!(
        forbidden(&api.send("POST", &pods("others"), &pod("p"))).contains("violates PodSecurity \"restricted:latest\"")
    );
    api.impersonate("exempt-user", &["system:masters"]).create(&pods("others"), &pod("p"));
    api.create(
        "/apis/node.k8s.io/v1/runtimeclasses",
        &json!({"metadata": {"name": "exempt-class"}, "handler": "gantry"}),
    );
    let mut of_class = pod("q");
    of_class["spec"]["runtimeClassName"] = json!("exempt-class");
    api.create(&pods("others"), &of_class);
}

fn namespaces_are_warned(api: &Api<'_>) {
    let namespace = api.namespace("tightened");
    for name in ["b", "a"] {
        let mut host = pod(name);
        host["spec"]["hostNetwork"] = json!(true);
        api.create(&pods(&namespace), &host);
    }
    let path = format!("/api/v1/namespaces/{namespace}");
    let patch = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}});
    let answer = api.request("PATCH", &path, Some((cluster::api::MERGE, &patch.to_string())));
    answer.expect(200);
    assert_eq!(
        warnings(&answer),
        [
            "existing pods in namespace \"tightened\" violate the new PodSecurity enforce level \"baseline:latest\"",
            "a (and 1 other pod): host namespaces"
        ]
    );
    let bad = json!({"metadata": {"labels": {"pod-security.kubernetes.io/warn": "strict"}}});
    let told =
        api.request("PATCH", &path, Some((cluster::api::MERGE, &bad.to_string()))).expect(422)["message"].clone();
    assert_eq!(
        told,
        "Namespace \"tightened\" is invalid: metadata.labels[pod-security.kubernetes.io/warn]: Invalid value: \"strict\": must \
         be one of privileged, baseline, restricted"
    );
}

/// An `AdmissionConfiguration` of limits on events and of the webhook at `port` that judges images.
fn limits_and_images(cluster: &Cluster, port: u16, ca: &str, fields: &str) -> String {
    let write = |name: &str, text: &str| {
        let file = cluster.data_dir().join(name);
        std::fs::write(&file, text).unwrap();
        file.to_string_lossy().into_owned()
    };
    let kubeconfig = write(
        "images.kubeconfig",
        &format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: x\ncontexts: [{{name: x, context: {{cluster: c, user: ''}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:{port}/images', certificate-authority-data: {ca}}}}}]\n"
        ),
    );
    let limits = "apiVersion: eventratelimit.admission.k8s.io/v1alpha1\nkind: Configuration\n\
        limits: [{type: Namespace, qps: 1, burst: 1, cacheSize: 100}, {type: SourceAndObject, qps: 1, burst: 1}]\n";
    write("limits.yaml", limits);
    write(
        "admission.yaml",
        &format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\nplugins:\n\
             - {{name: EventRateLimit, path: limits.yaml}}\n\
             - {{name: ImagePolicyWebhook, configuration: {{imagePolicy: {{kubeConfigFile: {kubeconfig}{fields}}}}}}}\n"
        ),
    )
}

#[test]
fn events_and_images() {
    let mut cluster = Cluster::prepare_role("server", &[]);
    let answer = |_: &str, review: &Value| {
        let image = review["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
        let status = match image {
            "bad:1" => json!({"allowed": false, "reason": "bad is not good"}),
            "mute:1" => json!({"allowed": false}),
            "confused:1" => json!("what?"),
            _ => json!({"allowed": true}),
        };
        json!({"kind": "ImageReview", "apiVersion": "imagepolicy.k8s.io/v1alpha1", "status": status})
    };
    let webhook = Webhook::start(&cluster, &[], Arc::new(answer));
    let file = limits_and_images(&cluster, webhook.port(), &webhook.ca, ", allowTTL: 600, denyTTL: -1");
    let enabled = ["--enable-admission-plugins", "EventRateLimit,ImagePolicyWebhook"];
    cluster.add_options(&enabled);
    cluster.add_options(&["--admission-control-config-file", &file]);
    cluster.up();
    let api = Api::new(&cluster);
    too_many_events(&api);
    images_are_judged(&api, &webhook);
}

fn too_many_events(api: &Api<'_>) {
    let namespace = api.namespace("limited");
    let path = format!("/api/v1/namespaces/{namespace}/events");
    let event = |name: &str, object: &str| {
        json!({"metadata": {"generateName": name}, "reason": "Tested", "message": "m", "type": "Normal",
            "source": {"component": "tester", "host": "h"}, "involvedObject": {"kind": "Pod", "namespace": namespace,
            "name": object, "uid": "u1", "apiVersion": "v1"}})
    };
    // The last limit that refuses is told.
    let refusal = api.cluster.wait_for("too many events about an object", || {
        let answer = api.send("POST", &path, &event("same-", "p"));
        (answer.code == 429).then(|| answer.json()).filter(|s| s["message"].to_string().contains("SourceAndObject"))
    });
    let message = "Too many requests: limit reached on type SourceAndObject for key testerhPodlimitedpu1v1";
    let wanted = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": "TooManyRequests", "code": 429});
    assert_eq!(refusal, wanted);
    let mut count = 0;
    let refusal = api.cluster.wait_for("too many events in a namespace", || {
        count += 1;
        let answer = api.send("POST", &path, &event("other-", &format!("p-{count}")));
        (answer.code == 429).then(|| answer.json()["message"].clone())
    });
    assert_eq!(refusal, "Too many requests: limit reached on type Namespace for key limited");
    let newer = json!({"metadata": {"generateName": "new-"}, "eventTime": "2026-01-01T00:00:00.000000Z", "action": "Test",
        "reason": "Tested", "type": "Normal", "reportingController": "example.com/tester", "reportingInstance": "t",
        "regarding": {"kind": "Pod", "namespace": namespace, "name": "p"}});
    for _ in 0..5 {
        api.create(&format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"), &newer);
    }
}

fn images_are_judged(api: &Api<'_>, webhook: &Webhook) {
    let namespace = api.namespace("judged");
    let of = |name: &str, image: &str| {
        let mut pod = pod(name);
        pod["spec"]["containers"][0]["image"] = json!(image);
        pod["metadata"]["annotations"] = json!({"hint.image-policy.k8s.io/ticket": "7", "other": "x"});
        pod
    };
    let told = |name: &str, image: &str| forbidden(&api.send("POST", &pods(&namespace), &of(name, image)));
    let asked = || webhook.seen("/images").len();
    api.create(&pods(&namespace), &of("a", "good:1"));
    let review = webhook.seen("/images").pop().unwrap();
    assert_eq!(
        (&review["kind"], &review["apiVersion"]),
        (&json!("ImageReview"), &json!("imagepolicy.k8s.io/v1alpha1"))
    );
    assert_eq!(
        review["spec"],
        json!({"containers": [{"image": "good:1"}], "namespace": namespace,
            "annotations": {"hint.image-policy.k8s.io/ticket": "7"}})
    );
    assert_eq!(asked(), 1);
    api.create(&pods(&namespace), &of("b", "good:1"));
    assert_eq!(asked(), 1, "consent is remembered");
    let refused = "image policy webhook backend denied one or more images: bad is not good";
    for attempt in 2..4 {
        assert_eq!(told("c", "bad:1"), format!("pods \"c\" is forbidden: {refused}"));
        assert_eq!(asked(), attempt, "refusals are not");
    }
    assert_eq!(told("d", "mute:1"), "pods \"d\" is forbidden: one or more images rejected by webhook backend");
    let confused = told("e", "confused:1");
    assert!(confused.starts_with("pods \"e\" is forbidden: "), "{confused}");
    // Ephemeral containers come later, by themselves.
    let container = json!({"name": "late", "image": "bad:1"});
    let patch = json!({"spec": {"ephemeralContainers": [container]}}).to_string();
    let path = format!("{}/a/ephemeralcontainers", pods(&namespace));
    let answer = api.request("PATCH", &path, Some((cluster::api::STRATEGIC, &patch)));
    assert_eq!(forbidden(&answer), format!("pods \"a\" is forbidden: {refused}"));
}

#[test]
fn images_where_nobody_judges() {
    let mut cluster = Cluster::prepare_role("server", &[]);
    let webhook = Webhook::start(&cluster, &[], Arc::new(|_: &str, _: &Value| json!({})));
    let file = limits_and_images(&cluster, 1, &webhook.ca, ", defaultAllow: true, retryBackoff: 1");
    cluster.add_options(&[
        "--enable-admission-plugins",
        "ImagePolicyWebhook",
        "--admission-control-config-file",
        &file,
    ]);
    cluster.up();
    let api = Api::new(&cluster);
    let namespace = api.namespace("unjudged");
    api.create(&pods(&namespace), &pod("p"));
    let stored = api.get(&format!("{}/p", pods(&namespace)));
    assert_eq!(stored["metadata"]["annotations"]["alpha.image-policy.k8s.io/failed-open"], "true");
}
