//! The roles that people are given: `cluster-admin`, `admin`, `edit`, `view` and the parts they are summed from.

use super::{READ, READ_WRITE, WRITE, aggregate, on, part_of, paths, role};
use gantry_api::k8s_openapi::api::rbac::v1::ClusterRole;

/// Workload kinds of `apps` that users change.
const APPS: &str = "daemonsets deployments deployments/rollback deployments/scale replicasets replicasets/scale \
                    statefulsets statefulsets/scale";

pub(super) fn roles() -> Vec<ClusterRole> {
    vec![
        role("cluster-admin", vec![on(&["*"], "*", "*"), paths("*", "*")]),
        aggregate("admin", &[]),
        aggregate("edit", &["admin"]),
        aggregate("view", &["edit"]),
        part_of(
            "system:aggregate-to-admin",
            "admin",
            vec![
                on(&["authorization.k8s.io"], "localsubjectaccessreviews", "create"),
                on(&["rbac.authorization.k8s.io"], "rolebindings roles", READ_WRITE),
            ],
        ),
        part_of(
            "system:aggregate-to-edit",
            "edit",
            vec![
                on(&[""], "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy", READ),
                on(&[""], "serviceaccounts", "impersonate"),
                on(&[""], "pods pods/attach pods/exec pods/portforward pods/proxy", WRITE),
                on(&[""], "pods/eviction", "create"),
                on(
                    &[""],
                    "configmaps events persistentvolumeclaims replicationcontrollers replicationcontrollers/scale secrets \
                 serviceaccounts services services/proxy",
                    WRITE,
                ),
                on(&[""], "serviceaccounts/token", "create"),
                on(&["apps"], APPS, WRITE),
                on(&["autoscaling"], "horizontalpodautoscalers", WRITE),
                on(&["batch"], "cronjobs jobs", WRITE),
                on(&["policy"], "poddisruptionbudgets", WRITE),
                on(&["networking.k8s.io"], "ingresses networkpolicies", WRITE),
                on(&["coordination.k8s.io"], "leases", READ_WRITE),
                on(&["resource.k8s.io"], "resourceclaims resourceclaimtemplates", WRITE),
            ],
        ),
        part_of(
            "system:aggregate-to-view",
            "view",
            vec![
                on(
                    &[""],
                    "configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods replicationcontrollers \
                 replicationcontrollers/scale serviceaccounts services services/status",
                    READ,
                ),
                on(
                    &[""],
                    "bindings events limitranges namespaces/status pods/log pods/status replicationcontrollers/status \
                 resourcequotas resourcequotas/status",
                    READ,
                ),
                on(&[""], "namespaces", READ),
                on(&["discovery.k8s.io"], "endpointslices", READ),
                on(
                    &["apps"],
                    "controllerrevisions daemonsets daemonsets/status deployments deployments/scale deployments/status \
                 replicasets replicasets/scale replicasets/status statefulsets statefulsets/scale statefulsets/status",
                    READ,
                ),
                on(&["autoscaling"], "horizontalpodautoscalers horizontalpodautoscalers/status", READ),
                on(&["batch"], "cronjobs cronjobs/status jobs jobs/status", READ),
                on(&["policy"], "poddisruptionbudgets poddisruptionbudgets/status", READ),
                on(&["networking.k8s.io"], "ingresses ingresses/status networkpolicies", READ),
                on(&["resource.k8s.io"], "resourceclaims resourceclaims/status resourceclaimtemplates", READ),
            ],
        ),
        // What `kubectl top` asks for; the metrics API's own installation adds this upstream.
        part_of("system:aggregated-metrics-reader", "view", vec![on(&["metrics.k8s.io"], "nodes pods", READ)]),
    ]
}
