//! What a Kubernetes v1.37 API server serves by default in its stable versions: the yardstick for [`crate::kinds`].
//!
//! Every resource here is a kind of ours, with exactly these facts. Beta and alpha versions are off by default and not listed.

use crate::kind::{ALL_VERBS, Verb};

/// The facts of one resource in discovery.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    /// API group, empty for core.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// Plural path segment.
    pub plural: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Verbs of the resource itself, sorted.
    pub verbs: &'static [Verb],
    /// Subresources with their verbs, both sorted.
    pub subresources: &'static [(&'static str, &'static [Verb])],
    /// Short names.
    pub short_names: &'static [&'static str],
    /// Categories.
    pub categories: &'static [&'static str],
}

const READ_WRITE: &[Verb] = &[Verb::Get, Verb::Patch, Verb::Update];
const CREATE: &[Verb] = &[Verb::Create];
const GET_CREATE: &[Verb] = &[Verb::Create, Verb::Get];
const PROXY: &[Verb] = &[Verb::Create, Verb::Delete, Verb::Get, Verb::Patch, Verb::Update];
const NO_COLLECTION_DELETE: &[Verb] =
    &[Verb::Create, Verb::Delete, Verb::Get, Verb::List, Verb::Patch, Verb::Update, Verb::Watch];
const STATUS: &[(&str, &[Verb])] = &[("status", READ_WRITE)];
const SCALE_STATUS: &[(&str, &[Verb])] = &[("scale", READ_WRITE), ("status", READ_WRITE)];

const CORE: &str = "";
const ADMISSION: &str = "admissionregistration.k8s.io";
const APPS: &str = "apps";
const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";
const CERTIFICATES: &str = "certificates.k8s.io";
const FLOW: &str = "flowcontrol.apiserver.k8s.io";
const NETWORKING: &str = "networking.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";
const RESOURCE: &str = "resource.k8s.io";
const STORAGE: &str = "storage.k8s.io";

/// A resource in namespaces, with all verbs, in version `v1`.
const fn local(group: &'static str, plural: &'static str, kind: &'static str) -> Served {
    Served {
        group,
        version: "v1",
        plural,
        kind,
        namespaced: true,
        verbs: ALL_VERBS,
        subresources: &[],
        short_names: &[],
        categories: &[],
    }
}

/// A resource of the cluster, with all verbs, in version `v1`.
const fn global(group: &'static str, plural: &'static str, kind: &'static str) -> Served {
    Served { namespaced: false, ..local(group, plural, kind) }
}

impl Served {
    const fn short(self, short_names: &'static [&'static str]) -> Self {
        Self { short_names, ..self }
    }
    const fn verbs(self, verbs: &'static [Verb]) -> Self {
        Self { verbs, ..self }
    }
    const fn with(self, subresources: &'static [(&'static str, &'static [Verb])]) -> Self {
        Self { subresources, ..self }
    }
    const fn category(self, categories: &'static [&'static str]) -> Self {
        Self { categories, ..self }
    }
    const fn version(self, version: &'static str) -> Self {
        Self { version, ..self }
    }

    /// `group/version/plural`.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}/{}/{}", self.group, self.version, self.plural)
    }
}

const ALL: &[&str] = &["all"];
const EXTENSIONS: &[&str] = &["api-extensions"];

/// Every resource, by group.
pub static SERVED: &[Served] = &[
    local(CORE, "bindings", "Binding").verbs(CREATE),
    global(CORE, "componentstatuses", "ComponentStatus").verbs(&[Verb::Get, Verb::List]).short(&["cs"]),
    local(CORE, "configmaps", "ConfigMap").short(&["cm"]),
    local(CORE, "endpoints", "Endpoints").short(&["ep"]),
    local(CORE, "events", "Event").short(&["ev"]),
    local(CORE, "limitranges", "LimitRange").short(&["limits"]),
    global(CORE, "namespaces", "Namespace")
        .verbs(NO_COLLECTION_DELETE)
        .with(&[("finalize", &[Verb::Update]), ("status", READ_WRITE)])
        .short(&["ns"]),
    global(CORE, "nodes", "Node").with(&[("proxy", PROXY), ("status", READ_WRITE)]).short(&["no"]),
    local(CORE, "persistentvolumeclaims", "PersistentVolumeClaim").with(STATUS).short(&["pvc"]),
    global(CORE, "persistentvolumes", "PersistentVolume").with(STATUS).short(&["pv"]),
    local(CORE, "pods", "Pod")
        .with(&[
            ("attach", GET_CREATE),
            ("binding", CREATE),
            ("ephemeralcontainers", READ_WRITE),
            ("eviction", CREATE),
            ("exec", GET_CREATE),
            ("log", &[Verb::Get]),
            ("portforward", GET_CREATE),
            ("proxy", PROXY),
            ("resize", READ_WRITE),
            ("status", READ_WRITE),
        ])
        .short(&["po"])
        .category(ALL),
    local(CORE, "podtemplates", "PodTemplate"),
    local(CORE, "replicationcontrollers", "ReplicationController").with(SCALE_STATUS).short(&["rc"]).category(ALL),
    local(CORE, "resourcequotas", "ResourceQuota").with(STATUS).short(&["quota"]),
    local(CORE, "secrets", "Secret"),
    local(CORE, "serviceaccounts", "ServiceAccount").with(&[("token", CREATE)]).short(&["sa"]),
    local(CORE, "services", "Service")
        .verbs(ALL_VERBS)
        .with(&[("proxy", PROXY), ("status", READ_WRITE)])
        .short(&["svc"])
        .category(ALL),
    global(ADMISSION, "mutatingadmissionpolicies", "MutatingAdmissionPolicy").category(EXTENSIONS),
    global(ADMISSION, "mutatingadmissionpolicybindings", "MutatingAdmissionPolicyBinding").category(EXTENSIONS),
    global(ADMISSION, "mutatingwebhookconfigurations", "MutatingWebhookConfiguration").category(EXTENSIONS),
    global(ADMISSION, "validatingadmissionpolicies", "ValidatingAdmissionPolicy").with(STATUS).category(EXTENSIONS),
    global(ADMISSION, "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding").category(EXTENSIONS),
    global(ADMISSION, "validatingwebhookconfigurations", "ValidatingWebhookConfiguration").category(EXTENSIONS),
    global("apiextensions.k8s.io", "customresourcedefinitions", "CustomResourceDefinition")
        .with(STATUS)
        .short(&["crd", "crds"])
        .category(EXTENSIONS),
    global("apiregistration.k8s.io", "apiservices", "APIService").with(STATUS).category(EXTENSIONS),
    local(APPS, "controllerrevisions", "ControllerRevision"),
    local(APPS, "daemonsets", "DaemonSet").with(STATUS).short(&["ds"]).category(ALL),
    local(APPS, "deployments", "Deployment").with(SCALE_STATUS).short(&["deploy"]).category(ALL),
    local(APPS, "replicasets", "ReplicaSet").with(SCALE_STATUS).short(&["rs"]).category(ALL),
    local(APPS, "statefulsets", "StatefulSet").with(SCALE_STATUS).short(&["sts"]).category(ALL),
    global(AUTHENTICATION, "selfsubjectreviews", "SelfSubjectReview").verbs(CREATE),
    global(AUTHENTICATION, "tokenreviews", "TokenReview").verbs(CREATE),
    local(AUTHORIZATION, "localsubjectaccessreviews", "LocalSubjectAccessReview").verbs(CREATE),
    global(AUTHORIZATION, "selfsubjectaccessreviews", "SelfSubjectAccessReview").verbs(CREATE),
    global(AUTHORIZATION, "selfsubjectrulesreviews", "SelfSubjectRulesReview").verbs(CREATE),
    global(AUTHORIZATION, "subjectaccessreviews", "SubjectAccessReview").verbs(CREATE),
    local("autoscaling", "horizontalpodautoscalers", "HorizontalPodAutoscaler")
        .with(STATUS)
        .short(&["hpa"])
        .category(ALL),
    local("autoscaling", "horizontalpodautoscalers", "HorizontalPodAutoscaler")
        .version("v2")
        .with(STATUS)
        .short(&["hpa"])
        .category(ALL),
    local("batch", "cronjobs", "CronJob").with(STATUS).short(&["cj"]).category(ALL),
    local("batch", "jobs", "Job").with(STATUS).category(ALL),
    global(CERTIFICATES, "certificatesigningrequests", "CertificateSigningRequest")
        .with(&[("approval", READ_WRITE), ("status", READ_WRITE)])
        .short(&["csr"]),
    global(CERTIFICATES, "clustertrustbundles", "ClusterTrustBundle"),
    local(CERTIFICATES, "podcertificaterequests", "PodCertificateRequest").with(STATUS),
    local("coordination.k8s.io", "leases", "Lease"),
    local("discovery.k8s.io", "endpointslices", "EndpointSlice"),
    local("events.k8s.io", "events", "Event").short(&["ev"]),
    global(FLOW, "flowschemas", "FlowSchema").with(STATUS),
    global(FLOW, "prioritylevelconfigurations", "PriorityLevelConfiguration").with(STATUS),
    global(NETWORKING, "ingressclasses", "IngressClass"),
    local(NETWORKING, "ingresses", "Ingress").with(STATUS).short(&["ing"]),
    global(NETWORKING, "ipaddresses", "IPAddress").short(&["ip"]),
    local(NETWORKING, "networkpolicies", "NetworkPolicy").short(&["netpol"]),
    global(NETWORKING, "servicecidrs", "ServiceCIDR").with(STATUS),
    global("node.k8s.io", "runtimeclasses", "RuntimeClass"),
    local("policy", "poddisruptionbudgets", "PodDisruptionBudget").with(STATUS).short(&["pdb"]),
    global(RBAC, "clusterrolebindings", "ClusterRoleBinding"),
    global(RBAC, "clusterroles", "ClusterRole"),
    local(RBAC, "rolebindings", "RoleBinding"),
    local(RBAC, "roles", "Role"),
    global(RESOURCE, "deviceclasses", "DeviceClass"),
    global(RESOURCE, "devicetaintrules", "DeviceTaintRule").with(STATUS),
    local(RESOURCE, "resourceclaims", "ResourceClaim").with(STATUS),
    local(RESOURCE, "resourceclaimtemplates", "ResourceClaimTemplate"),
    global(RESOURCE, "resourceslices", "ResourceSlice"),
    global("scheduling.k8s.io", "priorityclasses", "PriorityClass").short(&["pc"]),
    global(STORAGE, "csidrivers", "CSIDriver"),
    global(STORAGE, "csinodes", "CSINode"),
    local(STORAGE, "csistoragecapacities", "CSIStorageCapacity"),
    global(STORAGE, "storageclasses", "StorageClass").short(&["sc"]),
    global(STORAGE, "volumeattachments", "VolumeAttachment").with(STATUS),
    global(STORAGE, "volumeattributesclasses", "VolumeAttributesClass").short(&["vac"]),
    global("storagemigration.k8s.io", "storageversionmigrations", "StorageVersionMigration").with(STATUS),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Resource;
    use crate::kinds;
    use std::collections::BTreeSet;

    #[test]
    fn everything_is_served() {
        let id = |r: &&dyn Resource| format!("{}/{}/{}", r.info().group, r.info().version, r.info().plural);
        let ours: BTreeSet<String> = kinds::ALL.iter().map(id).collect();
        let missing: Vec<String> = SERVED.iter().map(Served::id).filter(|id| !ours.contains(id)).collect();
        assert!(missing.is_empty(), "no longer served: {missing:?}");
    }

    #[test]
    fn every_kind_has_the_facts_of_discovery() {
        let ids: BTreeSet<String> = SERVED.iter().map(Served::id).collect();
        assert_eq!(ids.len(), SERVED.len(), "a resource is listed twice");
        let mut wrong = Vec::new();
        for resource in kinds::ALL.iter() {
            let i = resource.info();
            let Some(s) = SERVED.iter().find(|s| (s.group, s.version, s.plural) == (i.group, i.version, i.plural))
            else {
                wrong.push(format!("{}/{}/{} is not served upstream", i.group, i.version, i.plural));
                continue;
            };
            let ours: Vec<(&str, &[Verb])> = i.subresources.iter().map(|s| (s.name, s.verbs)).collect();
            let facts = [
                ("kind", s.kind == i.kind),
                ("namespaced", s.namespaced == i.namespaced),
                ("verbs", s.verbs == i.verbs),
                ("subresources", s.subresources == ours),
                ("shortNames", s.short_names == i.short_names),
                ("categories", s.categories == i.categories),
            ];
            wrong.extend(facts.iter().filter(|f| !f.1).map(|f| format!("{}: {}: {i:?}", s.id(), f.0)));
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
