//! Warnings about pods and pod templates: what is deprecated, ignored or probably not meant.

use crate::meta::field::Path;
use crate::meta::object::Meta;
use crate::meta::quantity::{ResourceList, amount_of};
use crate::meta::text;
use k8s_openapi::api::core::v1::{
    Container, ContainerPort, NodeSelectorTerm, Pod, PodAffinityTerm, PodSpec, PodTemplateSpec, Volume,
    WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

const NULL_SELECTOR: &str = "a null labelSelector results in matching no pod";
const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APPARMOR_CONTAINER: &str = super::validate::security::APPARMOR_CONTAINER;

/// Warnings for a pod, on create (`old` is None) and update.
#[must_use]
pub fn pod_warnings(pod: &Pod, _old: Option<&Pod>) -> Vec<String> {
    pod.spec.as_ref().map(|s| warnings(s, &pod.metadata, &Path::new(""), false)).unwrap_or_default()
}

/// Warnings for a pod template at `path` (e.g. `spec.template`), on create (`old` is None) and update.
#[must_use]
pub fn pod_template_warnings(template: &PodTemplateSpec, _old: Option<&PodTemplateSpec>, path: &Path) -> Vec<String> {
    let meta = template.metadata.clone().unwrap_or_default();
    template.spec.as_ref().map(|s| warnings(s, &meta, path, true)).unwrap_or_default()
}

/// What to say of a node label that has a newer name.
#[must_use]
pub fn deprecated_node_label(label: &str) -> Option<&'static str> {
    Some(match label {
        "beta.kubernetes.io/arch" => "deprecated since v1.14; use \"kubernetes.io/arch\" instead",
        "beta.kubernetes.io/os" => "deprecated since v1.14; use \"kubernetes.io/os\" instead",
        "failure-domain.beta.kubernetes.io/region" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead"
        }
        "failure-domain.beta.kubernetes.io/zone" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"
        }
        "beta.kubernetes.io/instance-type" => {
            "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"
        }
        _ => return None,
    })
}

fn warnings(spec: &PodSpec, meta: &ObjectMeta, path: &Path, template: bool) -> Vec<String> {
    let mut found = Vec::new();
    let (out, spec_path) = (&mut found, path.child("spec"));
    let annotations = path.child("metadata").child("annotations");
    warn_placement(spec, &spec_path, out);
    let deprecated = [
        (
            "scheduler.alpha.kubernetes.io/critical-pod",
            "non-functional in v1.16+; use the \"priorityClassName\" field instead",
        ),
        ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
        ("security.alpha.kubernetes.io/unsafe-sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    ];
    for (key, message) in deprecated {
        if meta.annotation(key).is_some() {
            out.push(format!("{}: {message}", annotations.key(key)));
        }
    }
    for (i, v) in spec.volumes.iter().flatten().enumerate() {
        warn_volume(v, &spec_path.child("volumes").index(i), out);
    }
    warn_token_paths(spec, &spec_path.child("volumes"), out);
    warn_duplicates(spec, &spec_path, out);
    warn_fractions(spec.overhead.as_ref(), &spec_path.child("overhead"), out);
    let context = spec.security_context.as_ref();
    if context.is_none_or(|c| c.seccomp_profile.is_none()) && meta.annotation(SECCOMP_POD).is_some() {
        out.push(seccomp_message(&annotations.key(SECCOMP_POD)));
    }
    let pod_apparmor = context.is_some_and(|c| c.app_armor_profile.is_some());
    let containers = containers(spec, &spec_path);
    for (c, path) in &containers {
        let own = c.security_context.as_ref();
        let key = format!("{SECCOMP_CONTAINER}{}", c.name);
        if own.is_none_or(|c| c.seccomp_profile.is_none()) && meta.annotation(&key).is_some() {
            out.push(seccomp_message(&annotations.key(&key)));
        }
        let key = format!("{APPARMOR_CONTAINER}{}", c.name);
        let apparmor = pod_apparmor || own.is_some_and(|c| c.app_armor_profile.is_some());
        if template && !apparmor && meta.annotation(&key).is_some() {
            out.push(format!(
                "{}: deprecated since v1.30; use the \"appArmorProfile\" field instead",
                annotations.key(&key)
            ));
        }
        if let Some(r) = &c.resources {
            warn_fractions(r.limits.as_ref(), &path.child("resources").child("limits"), out);
            warn_fractions(r.requests.as_ref(), &path.child("resources").child("requests"), out);
        }
        warn_env(c, path, out);
    }
    let mut ports = BTreeMap::new();
    for (c, path) in &containers {
        warn_ports(c, path, &mut ports, out);
    }
    if spec.termination_grace_period_seconds.is_some_and(|s| s < 0) {
        let path = spec_path.child("terminationGracePeriodSeconds");
        out.push(format!("{path}: must be >= 0; negative values are invalid and will be treated as 1"));
    }
    warn_selectors(spec, &spec_path.child("affinity"), out);
    found
}

fn seccomp_message(path: &Path) -> String {
    format!("{path}: non-functional in v1.27+; use the \"seccompProfile\" field instead")
}

/// All containers with their paths; ephemeral ones as containers.
fn containers<'s>(spec: &'s PodSpec, path: &Path) -> Vec<(Cow<'s, Container>, Path)> {
    let of = |field: &'static str, i: usize| path.child(field).index(i);
    let init =
        spec.init_containers.iter().flatten().enumerate().map(|(i, c)| (Cow::Borrowed(c), of("initContainers", i)));
    let own = spec.containers.iter().enumerate().map(|(i, c)| (Cow::Borrowed(c), of("containers", i)));
    let ephemeral = spec.ephemeral_containers.iter().flatten().enumerate();
    let ephemeral =
        ephemeral.map(|(i, c)| (Cow::Owned(super::validate::container::as_container(c)), of("ephemeralContainers", i)));
    init.chain(own).chain(ephemeral).collect()
}

fn warn_placement(spec: &PodSpec, path: &Path, out: &mut Vec<String>) {
    for key in spec.node_selector.iter().flatten().map(|(k, _)| k) {
        if let Some(message) = deprecated_node_label(key) {
            out.push(format!("{}: {message}", path.child("nodeSelector").key(key)));
        }
    }
    if let Some(a) = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref()) {
        let path = path.child("affinity").child("nodeAffinity");
        let required =
            a.required_during_scheduling_ignored_during_execution.iter().flat_map(|s| &s.node_selector_terms);
        for (i, term) in required.enumerate() {
            warn_term(term, &path.child(REQUIRED).child("nodeSelectorTerms").index(i), out);
        }
        for (i, term) in a.preferred_during_scheduling_ignored_during_execution.iter().flatten().enumerate() {
            warn_term(&term.preference, &path.child(PREFERRED).index(i).child("preference"), out);
        }
    }
    for (i, c) in spec.topology_spread_constraints.iter().flatten().enumerate() {
        let path = path.child("topologySpreadConstraints").index(i);
        if let Some(message) = deprecated_node_label(&c.topology_key) {
            out.push(format!("{}: {} is {message}", path.child("topologyKey"), c.topology_key));
        }
        if c.label_selector.is_none() {
            out.push(format!("{}: {NULL_SELECTOR}", path.child("labelSelector")));
        }
    }
}

fn warn_term(term: &NodeSelectorTerm, path: &Path, out: &mut Vec<String>) {
    for (i, e) in term.match_expressions.iter().flatten().enumerate() {
        if let Some(message) = deprecated_node_label(&e.key) {
            out.push(format!("{}: {} is {message}", path.child("matchExpressions").index(i).child("key"), e.key));
        }
    }
}

fn warn_volume(v: &Volume, path: &Path, out: &mut Vec<String>) {
    let plugins = [
        ("photonPersistentDisk", v.photon_persistent_disk.is_some(), "deprecated in v1.11, non-functional in v1.16+"),
        ("gitRepo", v.git_repo.is_some(), "deprecated in v1.11, and disabled by default in v1.33+"),
        ("scaleIO", v.scale_io.is_some(), "deprecated in v1.16, non-functional in v1.22+"),
        ("flocker", v.flocker.is_some(), "deprecated in v1.22, non-functional in v1.25+"),
        ("storageOS", v.storageos.is_some(), "deprecated in v1.22, non-functional in v1.25+"),
        ("quobyte", v.quobyte.is_some(), "deprecated in v1.22, non-functional in v1.25+"),
        ("glusterfs", v.glusterfs.is_some(), "deprecated in v1.25, non-functional in v1.26+"),
        ("cephfs", v.cephfs.is_some(), "deprecated in v1.28, non-functional in v1.31+"),
        ("rbd", v.rbd.is_some(), "deprecated in v1.28, non-functional in v1.31+"),
    ];
    for (field, _, message) in plugins.iter().filter(|(_, used, _)| *used) {
        out.push(format!("{}: {message}", path.child(field)));
    }
}

/// Files that would hide a projected token.
fn warn_token_paths(spec: &PodSpec, path: &Path, out: &mut Vec<String>) {
    let projected = || {
        let volumes = spec.volumes.iter().flatten().enumerate();
        volumes.filter_map(|(i, v)| Some((i, v.projected.as_ref()?.sources.as_deref().unwrap_or_default())))
    };
    let tokens: BTreeSet<&str> = projected()
        .flat_map(|(_, s)| s)
        .filter_map(|s| Some(s.service_account_token.as_ref()?.path.as_str()))
        .collect();
    for (i, sources) in projected() {
        let path = path.index(i).child("projected").child("sources");
        let mut warn = |path: &Path, file: &str| {
            if tokens.contains(file) {
                out.push(format!("{path}: has duplicated path with ServiceAccountToken {file:?}"));
            }
        };
        for s in sources {
            for (j, item) in s.config_map.iter().flat_map(|m| m.items.iter().flatten()).enumerate() {
                warn(&path.child("configMap").index(j), &item.path);
            }
            for (j, item) in s.secret.iter().flat_map(|m| m.items.iter().flatten()).enumerate() {
                warn(&path.child("secrets").index(j), &item.path);
            }
            for (j, item) in s.downward_api.iter().flat_map(|m| m.items.iter().flatten()).enumerate() {
                warn(&path.child("downwardAPI").index(j), &item.path);
            }
            if let Some(bundle) = &s.cluster_trust_bundle {
                warn(&path.child("ClusterTrustBundle"), &bundle.path);
            }
        }
    }
}

fn warn_duplicates(spec: &PodSpec, path: &Path, out: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for (i, alias) in spec.host_aliases.iter().flatten().enumerate() {
        if !seen.insert(alias.ip.as_str()) {
            out.push(format!("{}: duplicate ip {:?}", path.child("hostAliases").index(i).child("ip"), alias.ip));
        }
    }
    let secrets = spec.image_pull_secrets.as_deref().unwrap_or_default();
    let name_path = |i: usize| path.child("imagePullSecrets").index(i).child("name");
    seen.clear();
    for (i, secret) in secrets.iter().enumerate() {
        if !seen.insert(secret.name.as_str()) {
            out.push(format!("{}: duplicate name {:?}", name_path(i), secret.name));
        }
    }
    for (i, _) in secrets.iter().enumerate().filter(|(_, s)| s.name.is_empty()) {
        out.push(format!("{}: invalid empty name \"\"", name_path(i)));
    }
}

fn warn_fractions(list: Option<&ResourceList>, path: &Path, out: &mut Vec<String>) {
    for name in ["memory", "ephemeral-storage"] {
        let amount = amount_of(list, name);
        if amount.milli_value() % 1000 != 0 {
            out.push(format!("{}: fractional byte value \"{amount}\" is invalid, must be an integer", path.key(name)));
        }
    }
}

/// A variable may be defined twice only to build on its own previous value.
fn warn_env(c: &Container, path: &Path, out: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for (i, var) in c.env.iter().flatten().enumerate() {
        if seen.insert(var.name.as_str()) {
            continue;
        }
        let reference = format!("$({})", var.name);
        let value = text(&var.value);
        if var.value_from.is_some() || value == reference || !value.contains(&reference) {
            out.push(format!(
                "{}: hides previous definition of {:?}, which may be dropped when using apply",
                path.child("env").index(i),
                var.name
            ));
        }
    }
}

type PortsSeen<'c> = BTreeMap<(i32, &'c str), Vec<(Path, &'c ContainerPort)>>;

fn warn_ports<'c>(c: &'c Container, path: &Path, seen: &mut PortsSeen<'c>, out: &mut Vec<String>) {
    for (i, port) in c.ports.iter().flatten().enumerate() {
        let path = path.child("ports").index(i);
        let (ip, host_port) = (text(&port.host_ip), port.host_port.unwrap_or(0));
        if !ip.is_empty() && host_port == 0 {
            out.push(format!(
                "{path}: hostIP set without hostPort: {{Name:{} HostPort:0 ContainerPort:{} Protocol:{} HostIP:{ip}}}",
                text(&port.name),
                port.container_port,
                text(&port.protocol)
            ));
        }
        let others = seen.entry((port.container_port, text(&port.protocol))).or_default();
        for (other_path, other) in others.iter() {
            let (other_ip, other_host_port) = (text(&other.host_ip), other.host_port.unwrap_or(0));
            let what = if ip == other_ip && host_port == other_host_port {
                "duplicate"
            } else if host_port == 0 || other_host_port == 0 {
                "overlapping"
            } else if host_port == other_host_port && ip.is_empty() != other_ip.is_empty() {
                "dangerously ambiguous"
            } else {
                continue;
            };
            out.push(format!("{path}: {what} port definition with {other_path}"));
        }
        others.push((path, port));
    }
}

fn warn_selectors(spec: &PodSpec, path: &Path, out: &mut Vec<String>) {
    let Some(affinity) = &spec.affinity else { return };
    let mut warn =
        |field: &str, required: &Option<Vec<PodAffinityTerm>>, preferred: &Option<Vec<WeightedPodAffinityTerm>>| {
            let path = path.child(field);
            for (i, _) in required.iter().flatten().enumerate().filter(|(_, t)| t.label_selector.is_none()) {
                out.push(format!("{}: {NULL_SELECTOR}", path.child(REQUIRED).index(i).child("labelSelector")));
            }
            let preferred = preferred.iter().flatten().enumerate();
            for (i, _) in preferred.filter(|(_, t)| t.pod_affinity_term.label_selector.is_none()) {
                let path = path.child(PREFERRED).index(i).child("podAffinityTerm").child("labelSelector");
                out.push(format!("{path}: {NULL_SELECTOR}"));
            }
        };
    if let Some(a) = &affinity.pod_affinity {
        let (required, preferred) = (
            &a.required_during_scheduling_ignored_during_execution,
            &a.preferred_during_scheduling_ignored_during_execution,
        );
        warn("podAffinity", required, preferred);
    }
    if let Some(a) = &affinity.pod_anti_affinity {
        let (required, preferred) = (
            &a.required_during_scheduling_ignored_during_execution,
            &a.preferred_during_scheduling_ignored_during_execution,
        );
        warn("podAntiAffinity", required, preferred);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;
    use serde_json::{Value, json};

    fn of(spec: Value) -> Vec<String> {
        pod_warnings(&<Pod as Kind>::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap(), None)
    }

    #[test]
    fn each_warning() {
        let c = |fields: Value| {
            let mut c = json!({"name": "c"});
            for (k, v) in fields.as_object().unwrap() {
                c[k] = v.clone();
            }
            json!({"containers": [c]})
        };
        let cases = [
            (
                json!({"containers": [], "nodeSelector": {"beta.kubernetes.io/os": "linux"}}),
                vec![
                    "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
                ],
            ),
            (
                json!({"containers": [], "terminationGracePeriodSeconds": -1}),
                vec![
                    "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1",
                ],
            ),
            (
                json!({"containers": [], "imagePullSecrets": [{"name": "a"}, {"name": "a"}, {"name": ""}]}),
                vec![
                    "spec.imagePullSecrets[1].name: duplicate name \"a\"",
                    "spec.imagePullSecrets[2].name: invalid empty name \"\"",
                ],
            ),
            (
                c(json!({"resources": {"limits": {"memory": "100m"}}})),
                vec![
                    "spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, must be an integer",
                ],
            ),
            (
                c(
                    json!({"env": [{"name": "a", "value": "1"}, {"name": "a", "value": "$(a)2"}, {"name": "a", "value": "3"}]}),
                ),
                vec![
                    "spec.containers[0].env[2]: hides previous definition of \"a\", which may be dropped when using apply",
                ],
            ),
            (
                c(
                    json!({"ports": [{"containerPort": 80}, {"containerPort": 80}, {"containerPort": 80, "hostPort": 80}]}),
                ),
                vec![
                    "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
                    "spec.containers[0].ports[2]: overlapping port definition with spec.containers[0].ports[0]",
                    "spec.containers[0].ports[2]: overlapping port definition with spec.containers[0].ports[1]",
                ],
            ),
            (
                json!({"containers": [], "affinity": {"podAntiAffinity": {REQUIRED: [{"topologyKey": "z"}]}}}),
                vec![
                    "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].labelSelector: a null labelSelector \
                 results in matching no pod",
                ],
            ),
            (
                json!({"containers": [], "volumes": [{"name": "g", "gitRepo": {"repository": "x"}}]}),
                vec!["spec.volumes[0].gitRepo: deprecated in v1.11, and disabled by default in v1.33+"],
            ),
            (c(json!({})), vec![]),
        ];
        for (spec, want) in cases {
            assert_eq!(of(spec.clone()), want, "{spec}");
        }
    }

    #[test]
    fn templates_say_where_they_are() {
        let t: PodTemplateSpec = serde_json::from_value(json!({"metadata": {"annotations": {
            "container.apparmor.security.beta.kubernetes.io/c": "unconfined"}}, "spec": {"containers": [{"name": "c"}]}})).unwrap();
        assert_eq!(
            pod_template_warnings(&t, None, &Path::new("spec").child("template")),
            [
                "spec.template.metadata.annotations[container.apparmor.security.beta.kubernetes.io/c]: deprecated since v1.30; use the \
             \"appArmorProfile\" field instead"
            ]
        );
    }
}
