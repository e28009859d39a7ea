//! The `system:` ClusterRoles of components.

use super::{READ, events, named, on, paths, role};
use gantry_api::k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};

const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";
const CERTIFICATES: &str = "certificates.k8s.io";
const COORDINATION: &str = "coordination.k8s.io";
const RESOURCE: &str = "resource.k8s.io";
const STORAGE: &str = "storage.k8s.io";

/// What a node may do besides what the Node authorizer decides from its pods.
pub(super) fn node_rules() -> Vec<PolicyRule> {
    vec![
        on(&[AUTHENTICATION], "tokenreviews", "create"),
        on(&[AUTHORIZATION], "localsubjectaccessreviews subjectaccessreviews", "create"),
        on(&[""], "services", READ),
        on(&[""], "nodes", "create get list watch"),
        on(&[""], "nodes/status", "patch update"),
        on(&[""], "nodes", "patch update"),
        on(&["", "events.k8s.io"], "events", "create patch update"),
        on(&[""], "pods", READ),
        on(&[""], "pods", "create delete"),
        on(&[""], "pods/status", "patch update"),
        on(&[""], "pods/eviction", "create"),
        on(&[""], "configmaps secrets", READ),
        on(&[""], "persistentvolumeclaims persistentvolumes", "get"),
        on(&[""], "endpoints", "get"),
        on(&[CERTIFICATES], "certificatesigningrequests", "create get list watch"),
        on(&[CERTIFICATES], "clustertrustbundles", READ),
        on(&[CERTIFICATES], "podcertificaterequests", "create get list watch"),
        on(&[""], "serviceaccounts", "get"),
        on(&[COORDINATION], "leases", "create delete get patch update"),
        on(&[STORAGE], "volumeattachments", "get"),
        on(&[""], "serviceaccounts/token", "create"),
        on(&[""], "persistentvolumeclaims/status", "get patch update"),
        on(&[STORAGE], "csidrivers", READ),
        on(&[STORAGE], "csinodes", "create delete get patch update"),
        on(&["node.k8s.io"], "runtimeclasses", READ),
        on(&[RESOURCE], "resourceclaims", "get"),
        on(&[RESOURCE], "resourceslices", "create delete deletecollection get list patch update watch"),
    ]
}

fn approver(signer: &str) -> ClusterRole {
    role(
        &format!("system:{CERTIFICATES}:{signer}-approver"),
        vec![named(CERTIFICATES, "signers", &format!("kubernetes.io/{signer}"), "approve")],
    )
}

pub(super) fn roles() -> Vec<ClusterRole> {
    let delegator =
        || [on(&[AUTHENTICATION], "tokenreviews", "create"), on(&[AUTHORIZATION], "subjectaccessreviews", "create")];
    let leader =
        |name: &str| [on(&[COORDINATION], "leases", "create"), named(COORDINATION, "leases", name, "get update")];
    let mut scheduler = vec![events()];
    scheduler.extend(leader("kube-scheduler"));
    scheduler.extend([
        on(&[""], "nodes", READ),
        on(&[""], "pods", "delete get list watch"),
        on(&[""], "bindings pods/binding", "create"),
        on(&[""], "pods/status", "patch update"),
        on(&[""], "replicationcontrollers services", READ),
        on(&["apps"], "replicasets statefulsets", READ),
        on(&["policy"], "poddisruptionbudgets", READ),
        on(&["scheduling.k8s.io"], "priorityclasses", READ),
        on(&[""], "persistentvolumeclaims persistentvolumes", READ),
    ]);
    scheduler.extend(delegator());
    scheduler.extend([on(&[STORAGE], "csinodes csidrivers csistoragecapacities", READ), on(&[""], "namespaces", READ)]);
    scheduler.extend([
        on(&[RESOURCE], "deviceclasses", READ),
        on(&[RESOURCE], "resourceclaims", "get list patch update watch"),
        on(&[RESOURCE], "resourceclaims/status", "get list patch update watch"),
        on(&[RESOURCE], "resourceclaims/binding", "patch update"),
        // What drivers told of devices goes with the allocation.
        on(&[RESOURCE], "resourceclaims/driver", "arbitrary-node:patch arbitrary-node:update"),
        on(&[RESOURCE], "resourceslices", READ),
        on(&[RESOURCE], "devicetaintrules", READ),
        // Claims for extended resources that devices stand for.
        on(&[RESOURCE], "resourceclaims", "create delete"),
    ]);
    let mut manager = vec![events()];
    manager.extend(leader("kube-controller-manager"));
    manager.extend([
        on(&[""], "secrets serviceaccounts", "create"),
        on(&[""], "secrets", "delete"),
        on(&[""], "configmaps namespaces secrets serviceaccounts", "get"),
        on(&[""], "secrets serviceaccounts", "update"),
    ]);
    manager.extend(delegator());
    manager.extend([on(&["*"], "*", "list watch"), on(&[""], "serviceaccounts/token", "create")]);
    vec![
        role(
            "system:discovery",
            vec![paths(
                "/api /api/* /apis /apis/* /healthz /livez /openapi /openapi/* /readyz /version /version/",
                "get",
            )],
        ),
        role("system:public-info-viewer", vec![paths("/healthz /livez /readyz /version /version/", "get")]),
        role(
            "system:basic-user",
            vec![
                on(&[AUTHORIZATION], "selfsubjectaccessreviews selfsubjectrulesreviews", "create"),
                on(&[AUTHENTICATION], "selfsubjectreviews", "create"),
            ],
        ),
        role(
            "system:monitoring",
            vec![
                paths("/healthz /healthz/* /livez /livez/* /metrics /metrics/slis /readyz /readyz/*", "get"),
                paths("/flagz", "get"),
                paths("/statusz", "get"),
            ],
        ),
        role(
            "system:service-account-issuer-discovery",
            vec![paths("/.well-known/openid-configuration /openid/v1/jwks", "get")],
        ),
        role("system:auth-delegator", delegator().to_vec()),
        role("system:kube-aggregator", vec![on(&[""], "endpoints services", READ)]),
        role("system:kube-scheduler", scheduler),
        role("system:kube-controller-manager", manager),
        role(
            "system:kube-dns",
            vec![
                on(&[""], "endpoints services", "list watch"),
                on(&["discovery.k8s.io"], "endpointslices", "list watch"),
            ],
        ),
        role(
            "system:heapster",
            vec![on(&[""], "events namespaces nodes pods", READ), on(&["extensions"], "deployments", READ)],
        ),
        role(
            "system:kubelet-api-admin",
            vec![
                on(&[""], "nodes", READ),
                on(&[""], "nodes", "proxy"),
                on(
                    &[""],
                    "nodes/configz nodes/healthz nodes/log nodes/metrics nodes/pods nodes/proxy nodes/stats",
                    "*",
                ),
            ],
        ),
        role("system:node", node_rules()),
        role(
            "system:node-problem-detector",
            vec![on(&[""], "nodes", "get"), on(&[""], "nodes/status", "patch"), events()],
        ),
        role(
            "system:node-proxier",
            vec![
                on(&[""], "endpoints services", "list watch"),
                on(&[""], "nodes", READ),
                events(),
                on(&["discovery.k8s.io"], "endpointslices", "list watch"),
            ],
        ),
        role(
            "system:node-bootstrapper",
            vec![on(&[CERTIFICATES], "certificatesigningrequests", "create get list watch")],
        ),
        role(
            &format!("system:{CERTIFICATES}:certificatesigningrequests:nodeclient"),
            vec![on(&[CERTIFICATES], "certificatesigningrequests/nodeclient", "create")],
        ),
        role(
            &format!("system:{CERTIFICATES}:certificatesigningrequests:selfnodeclient"),
            vec![on(&[CERTIFICATES], "certificatesigningrequests/selfnodeclient", "create")],
        ),
        approver("kube-apiserver-client"),
        approver("kube-apiserver-client-kubelet"),
        approver("kubelet-serving"),
        approver("legacy-unknown"),
        role("system:cluster-trust-bundle-discovery", vec![on(&[CERTIFICATES], "clustertrustbundles", READ)]),
        role(
            "system:persistent-volume-provisioner",
            vec![
                on(&[""], "persistentvolumes", "create delete get list watch"),
                on(&[""], "persistentvolumeclaims", "get list update watch"),
                on(&[STORAGE], "storageclasses", READ),
                on(&[""], "events", "watch"),
                events(),
            ],
        ),
        role(
            "system:volume-scheduler",
            vec![
                on(&[""], "persistentvolumes", "get list patch update watch"),
                on(&[STORAGE], "storageclasses", READ),
                on(&[""], "persistentvolumeclaims", "get list patch update watch"),
            ],
        ),
        role("kubeadm:get-nodes", vec![on(&[""], "nodes", "get")]),
        // What the service proxy, the DNS server and the network policies in a node's agent watch beyond what the
        // kubelet needs. Policies name their peers by labels, so pods of all nodes are among it.
        role(
            "gantry:node-agent",
            vec![
                on(&[""], "endpoints namespaces nodes pods services", READ),
                on(&["discovery.k8s.io"], "endpointslices", READ),
                on(&["networking.k8s.io"], "networkpolicies", READ),
            ],
        ),
    ]
}
