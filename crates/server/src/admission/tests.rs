use super::memory_objects::MemoryObjects;
use super::rounds::Rounds;
use super::{AdmissionConfig, Attributes, Operation, chain};
use crate::authn::UserInfo;
use crate::authz::default_authorizer;
use crate::cluster::{Cluster, resource_of};
use gantry_api::k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use gantry_api::k8s_openapi::api::coordination::v1::Lease;
use gantry_api::k8s_openapi::api::core::v1::{
    ConfigMap, LimitRange, Namespace, Node, PersistentVolumeClaim, Pod, ResourceQuota, ServiceAccount,
};
use gantry_api::k8s_openapi::api::node::v1::RuntimeClass;
use gantry_api::k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use gantry_api::k8s_openapi::api::scheduling::v1::PriorityClass;
use gantry_api::k8s_openapi::api::storage::v1::StorageClass;
use gantry_api::kind::{Kind, Object};
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use serde_json::{Value, json};

struct Write<'a> {
    user: UserInfo,
    operation: Operation,
    subresource: &'a str,
    old: Option<Value>,
}

impl Default for Write<'_> {
    fn default() -> Self {
        Self { user: UserInfo::new("alice", &[]), operation: Operation::Create, subresource: "", old: None }
    }
}

async fn admit<K: Kind>(cluster: &Cluster, value: Value, write: Write<'_>) -> Result<K, ApiError> {
    admit_with(&AdmissionConfig::default(), cluster, value, write).await
}

async fn admit_with<K: Kind>(
    config: &AdmissionConfig,
    cluster: &Cluster,
    value: Value,
    write: Write<'_>,
) -> Result<K, ApiError> {
    let chain = chain(default_authorizer(cluster), config);
    let mut object = K::from_value(value).unwrap();
    object.set_defaults();
    let old = write.old.map(|o| K::from_value(o).unwrap());
    let (namespace, name) = (object.meta().namespace().to_owned(), object.meta().name().to_owned());
    let mut attributes = Attributes {
        operation: write.operation,
        resource: resource_of::<K>(),
        subresource: write.subresource,
        namespace: &namespace,
        name: &name,
        user: &write.user,
        dry_run: false,
        object: (write.operation != Operation::Delete).then_some(&mut object as &mut dyn Object),
        old_object: old.as_ref().map(|o| o as &dyn Object),
        options: Value::Null,
        warnings: Vec::new(),
        rounds: Rounds::default(),
        held: Vec::new(),
    };
    chain.run(&mut attributes, cluster).await.map(|()| object)
}

fn cluster() -> (Cluster, std::sync::Arc<MemoryObjects>) {
    let (cluster, objects) = MemoryObjects::cluster();
    objects.put::<Namespace>(json!({"metadata": {"name": "a"}}));
    objects.put::<Namespace>(json!({"metadata": {"name": "kube-node-lease"}}));
    objects.put::<Namespace>(json!({"metadata": {"name": "ending"}, "status": {"phase": "Terminating"}}));
    objects.put::<ServiceAccount>(json!({"metadata": {"name": "default", "namespace": "a"},
        "imagePullSecrets": [{"name": "pull"}]}));
    (cluster, objects)
}

fn pod(extra: Value) -> Value {
    let mut spec = json!({"containers": [{"name": "c", "image": "i"}]});
    for (k, v) in extra.as_object().unwrap() {
        spec[k] = v.clone();
    }
    json!({"metadata": {"name": "p", "namespace": "a"}, "spec": spec})
}

#[tokio::test]
async fn namespaces_come_first_and_last() {
    let (cluster, _) = cluster();
    let map = |ns: &str| json!({"metadata": {"name": "m", "namespace": ns}});
    assert!(admit::<ConfigMap>(&cluster, map("a"), Write::default()).await.is_ok());
    let e = admit::<ConfigMap>(&cluster, map("nowhere"), Write::default()).await.unwrap_err();
    assert_eq!((e.code, e.message.as_str()), (404, "namespaces \"nowhere\" not found"));
    let e = admit::<ConfigMap>(&cluster, map("ending"), Write::default()).await.unwrap_err();
    assert_eq!(
        e.message,
        "configmaps \"m\" is forbidden: unable to create new content in namespace ending because it is being terminated"
    );
    let cause = e.details.unwrap().causes.unwrap().remove(0);
    assert_eq!(
        (cause.reason.as_deref(), cause.field.as_deref()),
        (Some("NamespaceTerminating"), Some("metadata.namespace"))
    );
    let delete = || Write { operation: Operation::Delete, ..Write::default() };
    let e = admit::<Namespace>(&cluster, json!({"metadata": {"name": "default"}}), delete()).await.unwrap_err();
    assert_eq!(e.message, "namespaces \"default\" is forbidden: this namespace may not be deleted");
    assert!(admit::<Namespace>(&cluster, json!({"metadata": {"name": "a"}}), delete()).await.is_ok());
}

#[tokio::test]
async fn pods_run_as_an_account() {
    let (cluster, objects) = cluster();
    let got = admit::<Pod>(&cluster, pod(json!({})), Write::default()).await.unwrap().spec.unwrap();
    assert_eq!(
        (got.service_account_name.as_deref(), got.service_account.as_deref()),
        (Some("default"), Some("default"))
    );
    assert_eq!(got.image_pull_secrets.unwrap()[0].name, "pull");
    let volume = &got.volumes.unwrap()[0];
    assert!(volume.name.starts_with("kube-api-access-") && volume.name.len() == 21, "{}", volume.name);
    let mount = &got.containers[0].volume_mounts.as_ref().unwrap()[0];
    assert_eq!((&mount.name, mount.read_only), (&volume.name, Some(true)));
    let projected = volume.projected.as_ref().unwrap();
    let token = projected.sources.as_ref().unwrap()[0].service_account_token.as_ref().unwrap();
    assert_eq!((projected.default_mode, token.expiration_seconds), (Some(0o644), Some(3607)));

    let without = pod(json!({"automountServiceAccountToken": false}));
    assert_eq!(admit::<Pod>(&cluster, without, Write::default()).await.unwrap().spec.unwrap().volumes, None);
    let e = admit::<Pod>(&cluster, pod(json!({"serviceAccountName": "x"})), Write::default()).await.unwrap_err();
    assert_eq!(
        e.message,
        "pods \"p\" is forbidden: error looking up service account a/x: serviceaccount \"x\" not found"
    );
    objects.put::<Namespace>(json!({"metadata": {"name": "new"}}));
    let mut elsewhere = pod(json!({}));
    elsewhere["metadata"]["namespace"] = "new".into();
    // The account comes a little later.
    let later = async {
        tokio::time::sleep(std::time::Duration::from_millis(120)).await;
        objects.put::<ServiceAccount>(json!({"metadata": {"name": "default", "namespace": "new"}}));
    };
    let (got, ()) = tokio::join!(admit::<Pod>(&cluster, elsewhere, Write::default()), later);
    assert!(got.is_ok());
}

#[tokio::test]
async fn priorities_are_resolved() {
    let (cluster, objects) = cluster();
    let class = |name: &str, value: i32, default: bool| json!({"metadata": {"name": name}, "value": value, "globalDefault": default, "preemptionPolicy": "Never"});
    let of = |p: Pod| {
        let s = p.spec.unwrap();
        (s.priority_class_name, s.priority, s.preemption_policy)
    };
    let plain = admit::<Pod>(&cluster, pod(json!({})), Write::default()).await.unwrap();
    assert_eq!(of(plain), (None, Some(0), Some("PreemptLowerPriority".into())));
    objects.put::<PriorityClass>(class("high", 1000, false));
    objects.put::<PriorityClass>(class("usual", 10, true));
    let usual = admit::<Pod>(&cluster, pod(json!({})), Write::default()).await.unwrap();
    assert_eq!(of(usual), (Some("usual".into()), Some(10), Some("Never".into())));
    let high = admit::<Pod>(&cluster, pod(json!({"priorityClassName": "high"})), Write::default()).await.unwrap();
    assert_eq!(of(high).1, Some(1000));
    for (spec, want) in [
        (json!({"priorityClassName": "x"}), "no PriorityClass with name x was found"),
        (
            json!({"priorityClassName": "high", "priority": 5}),
            "the integer value of priority (5) must not be provided in pod spec; priority admission controller computed \
             1000 from the given PriorityClass name",
        ),
    ] {
        let e = admit::<Pod>(&cluster, pod(spec), Write::default()).await.unwrap_err();
        assert_eq!(e.message, format!("pods \"p\" is forbidden: {want}"));
    }
    let e = admit::<PriorityClass>(&cluster, class("second", 1, true), Write::default()).await.unwrap_err();
    assert!(e.message.ends_with("PriorityClass usual is already marked as default. Only one default can exist"));
}

#[tokio::test]
async fn nodes_keep_to_themselves() {
    let (cluster, objects) = cluster();
    let node = || UserInfo::new("system:node:n1", &["system:nodes"]);
    let by_node = || Write { user: node(), ..Write::default() };
    let new = admit::<Node>(&cluster, json!({"metadata": {"name": "n1"}}), by_node()).await.unwrap();
    assert_eq!(new.spec.unwrap().taints.unwrap()[0].key, "node.kubernetes.io/not-ready");
    let e = admit::<Node>(&cluster, json!({"metadata": {"name": "n2"}}), by_node()).await.unwrap_err();
    assert!(e.message.ends_with("node \"n1\" is not allowed to modify node \"n2\""), "{}", e.message);
    let taints = |t: Value| json!({"metadata": {"name": "n1"}, "spec": {"taints": t}});
    let update = Write {
        operation: Operation::Update,
        old: Some(taints(json!([{"key": "k", "effect": "NoSchedule"}]))),
        ..by_node()
    };
    let e = admit::<Node>(&cluster, taints(json!([])), update).await.unwrap_err();
    assert!(e.message.ends_with("node \"n1\" is not allowed to modify taints"));
    let lease = |name: &str| json!({"metadata": {"name": name, "namespace": "kube-node-lease"}});
    assert!(admit::<Lease>(&cluster, lease("n1"), by_node()).await.is_ok());
    assert!(admit::<Lease>(&cluster, lease("n2"), by_node()).await.is_err());
    let e = admit::<Pod>(&cluster, pod(json!({"nodeName": "n1"})), by_node()).await.unwrap_err();
    assert!(e.message.contains("can only create mirror pods"), "{}", e.message);
    for (on, fine) in [("n1", true), ("n2", false)] {
        objects.put::<Pod>(pod(json!({"nodeName": on})));
        let delete = Write { operation: Operation::Delete, ..by_node() };
        assert_eq!(admit::<Pod>(&cluster, pod(json!({})), delete).await.is_ok(), fine);
        let stored = pod(json!({"nodeName": on}));
        let status =
            Write { operation: Operation::Update, subresource: "status", old: Some(stored.clone()), ..by_node() };
        assert_eq!(admit::<Pod>(&cluster, stored, status).await.is_ok(), fine);
    }
}

#[tokio::test]
async fn nobody_grants_more_than_he_has() {
    let (cluster, objects) = cluster();
    let rules = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]);
    objects.put::<ClusterRole>(json!({"metadata": {"name": "readers"}, "rules": rules}));
    objects.put::<ClusterRoleBinding>(
        json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "readers"},
        "subjects": [{"kind": "User", "name": "alice"}]}),
    );
    objects.put::<ClusterRole>(json!({"metadata": {"name": "strong"},
        "rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]}));
    let role = |verbs: Value| {
        json!({"metadata": {"name": "r", "namespace": "a"},
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": verbs}]})
    };
    assert!(admit::<Role>(&cluster, role(json!(["get"])), Write::default()).await.is_ok());
    let e = admit::<Role>(&cluster, role(json!(["get", "delete"])), Write::default()).await.unwrap_err();
    assert_eq!(
        e.message,
        "roles.rbac.authorization.k8s.io \"r\" is forbidden: user \"alice\" (groups=[\"system:authenticated\"]) is \
         attempting to grant RBAC permissions not currently held:\n\
         {APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}"
    );
    let unchanged =
        Write { operation: Operation::Update, old: Some(role(json!(["get", "delete"]))), ..Write::default() };
    assert!(admit::<Role>(&cluster, role(json!(["get", "delete"])), unchanged).await.is_ok());
    let masters = Write { user: UserInfo::new("root", &["system:masters"]), ..Write::default() };
    assert!(admit::<Role>(&cluster, role(json!(["*"])), masters).await.is_ok());
    let binding = |name: &str| {
        json!({"metadata": {"name": "x", "namespace": "a"}, "roleRef": {"kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "User", "name": "eve"}]})
    };
    assert!(admit::<RoleBinding>(&cluster, binding("readers"), Write::default()).await.is_ok());
    assert!(admit::<RoleBinding>(&cluster, binding("strong"), Write::default()).await.is_err());
    assert_eq!(admit::<RoleBinding>(&cluster, binding("gone"), Write::default()).await.unwrap_err().code, 404);
    // With `bind` on the role one may hand on what one does not have.
    objects.put::<Role>(
        json!({"metadata": {"name": "binder", "namespace": "a"}, "rules": [{"apiGroups": ["rbac.authorization.k8s.io"],
        "resources": ["clusterroles"], "resourceNames": ["strong"], "verbs": ["bind"]}]}),
    );
    objects.put::<RoleBinding>(
        json!({"metadata": {"name": "binder", "namespace": "a"}, "roleRef": {"kind": "Role", "name": "binder"},
        "subjects": [{"kind": "User", "name": "alice"}]}),
    );
    assert!(admit::<RoleBinding>(&cluster, binding("strong"), Write::default()).await.is_ok());
}

#[tokio::test]
async fn certificate_requests_name_their_author() {
    let (cluster, objects) = cluster();
    let request = |organization: &str| {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, organization);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        let bytes = gantry_api::k8s_openapi::ByteString(pem.into_bytes());
        json!({"metadata": {"name": "c"}, "spec": {"request": bytes, "signerName": "kubernetes.io/kube-apiserver-client",
            "usages": ["client auth"], "username": "root"}})
    };
    let got = admit::<CertificateSigningRequest>(&cluster, request("devs"), Write::default()).await.unwrap();
    assert!(got.validate().is_empty(), "{:?}", got.validate());
    assert_eq!(
        (got.spec.username.as_deref(), got.spec.groups),
        (Some("alice"), Some(vec!["system:authenticated".into()]))
    );
    let e =
        admit::<CertificateSigningRequest>(&cluster, request("system:masters"), Write::default()).await.unwrap_err();
    assert!(
        e.message
            .ends_with("use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed")
    );
    let approve = || Write {
        operation: Operation::Update,
        subresource: "approval",
        old: Some(request("devs")),
        ..Write::default()
    };
    let e = admit::<CertificateSigningRequest>(&cluster, request("devs"), approve()).await.unwrap_err();
    assert!(
        e.message.ends_with(
            "user not permitted to approve requests with signerName \"kubernetes.io/kube-apiserver-client\""
        )
    );
    objects
        .put::<ClusterRole>(json!({"metadata": {"name": "approver"}, "rules": [{"apiGroups": ["certificates.k8s.io"],
        "resources": ["signers"], "resourceNames": ["kubernetes.io/*"], "verbs": ["approve"]}]}));
    objects.put::<ClusterRoleBinding>(
        json!({"metadata": {"name": "approver"}, "roleRef": {"kind": "ClusterRole", "name": "approver"},
        "subjects": [{"kind": "User", "name": "alice"}]}),
    );
    assert!(admit::<CertificateSigningRequest>(&cluster, request("devs"), approve()).await.is_ok());
}

#[tokio::test]
async fn quotas_are_charged_and_not_exceeded() {
    let (cluster, objects) = cluster();
    objects.put::<ResourceQuota>(json!({"metadata": {"name": "q", "namespace": "a"},
        "spec": {"hard": {"cpu": "1", "pods": "2"}},
        "status": {"hard": {"cpu": "1", "pods": "2"}, "used": {"cpu": "0", "pods": "0"}}}));
    let asks = |cpu: &str| {
        let resources = json!({"requests": {"cpu": cpu}});
        pod(json!({"containers": [{"name": "c", "image": "i", "resources": resources}]}))
    };
    let used = || async {
        let q = cluster.get::<ResourceQuota>("a", "q").await.unwrap().unwrap();
        json!(q.status.unwrap().used)
    };
    admit::<Pod>(&cluster, asks("600m"), Write::default()).await.unwrap();
    assert_eq!(used().await, json!({"cpu": "600m", "pods": "1"}));
    let e = admit::<Pod>(&cluster, asks("500m"), Write::default()).await.unwrap_err();
    assert_eq!(
        (e.code, e.message.as_str()),
        (403, "pods \"p\" is forbidden: exceeded quota: q, requested: cpu=500m, used: cpu=600m, limited: cpu=1")
    );
    let e = admit::<Pod>(&cluster, pod(json!({})), Write::default()).await.unwrap_err();
    assert!(e.message.ends_with("failed quota: q: must specify cpu for: c"), "{}", e.message);
    assert_eq!(used().await, json!({"cpu": "600m", "pods": "1"}));
    // What is not there yet when a second quota refuses is given back to the first.
    objects.put::<ResourceQuota>(json!({"metadata": {"name": "r", "namespace": "a"}, "spec": {"hard": {"pods": "0"}},
        "status": {"hard": {"pods": "0"}, "used": {"pods": "0"}}}));
    let e = admit::<Pod>(&cluster, asks("100m"), Write::default()).await.unwrap_err();
    assert!(e.message.contains("exceeded quota: r"), "{}", e.message);
    assert_eq!(used().await, json!({"cpu": "600m", "pods": "1"}));
}

#[tokio::test]
async fn limit_ranges_default_and_bound() {
    let (cluster, objects) = cluster();
    objects.put::<LimitRange>(json!({"metadata": {"name": "l", "namespace": "a"}, "spec": {"limits": [
        {"type": "Container", "max": {"cpu": "1"}, "min": {"memory": "1Mi"}, "defaultRequest": {"cpu": "100m"}},
        {"type": "Pod", "maxLimitRequestRatio": {"cpu": "4"}}]}}));
    let of = |resources: Value| pod(json!({"containers": [{"name": "c", "image": "i", "resources": resources}]}));
    let e = admit::<Pod>(&cluster, of(json!({})), Write::default()).await.unwrap_err();
    assert!(
        e.message.ends_with("cpu max limit to request ratio per Pod is 4, but provided ratio is 10.000000"),
        "{}",
        e.message
    );
    let got = admit::<Pod>(&cluster, of(json!({"requests": {"cpu": "500m"}})), Write::default()).await.unwrap();
    assert_eq!(
        json!(got.spec.unwrap().containers[0].resources),
        json!({"requests": {"cpu": "500m", "memory": "1Mi"}, "limits": {"cpu": "1"}})
    );
    let greedy = json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2", "memory": "1Ki"}});
    let e = admit::<Pod>(&cluster, of(greedy), Write::default()).await.unwrap_err();
    assert!(
        e.message.ends_with(
            "[minimum memory usage per Container is 1Mi, but request is 1Ki, maximum cpu usage per Container is 1, but \
             limit is 2]"
        ),
        "{}",
        e.message
    );
}

#[tokio::test]
async fn namespaces_ask_for_secure_pods() {
    let (cluster, objects) = cluster();
    let labels =
        json!({"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted"});
    objects.put::<Namespace>(json!({"metadata": {"name": "a", "labels": labels}}));
    let e = admit::<Pod>(&cluster, pod(json!({"hostPID": true})), Write::default()).await.unwrap_err();
    assert_eq!(
        e.message,
        "pods \"p\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostPID=true)"
    );
    assert!(admit::<Pod>(&cluster, pod(json!({})), Write::default()).await.is_ok());
    let bad = json!({"metadata": {"name": "b", "labels": {"pod-security.kubernetes.io/enforce": "x"}}});
    assert_eq!(admit::<Namespace>(&cluster, bad, Write::default()).await.unwrap_err().code, 422);
}

#[tokio::test]
async fn classes_complete_what_names_them() {
    let (cluster, objects) = cluster();
    objects.put::<RuntimeClass>(json!({"metadata": {"name": "vm"}, "handler": "vm",
        "overhead": {"podFixed": {"memory": "64Mi"}}, "scheduling": {"nodeSelector": {"vm": "yes"}}}));
    let got = admit::<Pod>(&cluster, pod(json!({"runtimeClassName": "vm"})), Write::default()).await.unwrap();
    let spec = got.spec.unwrap();
    assert_eq!((json!(spec.overhead), json!(spec.node_selector)), (json!({"memory": "64Mi"}), json!({"vm": "yes"})));
    let e = admit::<Pod>(&cluster, pod(json!({"runtimeClassName": "no"})), Write::default()).await.unwrap_err();
    assert!(e.message.ends_with("pod rejected: RuntimeClass \"no\" not found"), "{}", e.message);
    let e = admit::<Pod>(&cluster, pod(json!({"overhead": {"cpu": "1"}})), Write::default()).await.unwrap_err();
    assert!(e.message.ends_with("without corresponding RuntimeClass defined Overhead"), "{}", e.message);
    objects.put::<StorageClass>(json!({"metadata": {"name": "s",
        "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "x"}));
    let claim = |extra: Value| json!({"metadata": {"name": "c", "namespace": "a"}, "spec": extra});
    let got = admit::<PersistentVolumeClaim>(&cluster, claim(json!({})), Write::default()).await.unwrap();
    assert_eq!(got.spec.unwrap().storage_class_name.as_deref(), Some("s"));
    let none = claim(json!({"storageClassName": ""}));
    let got = admit::<PersistentVolumeClaim>(&cluster, none, Write::default()).await.unwrap();
    assert_eq!(got.spec.unwrap().storage_class_name.as_deref(), Some(""));
}
