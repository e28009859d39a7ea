//! Which nodes a pod or a volume may be on: node selectors, node affinity, tolerations, host ports.

use crate::core::pod::resources::is_sidecar;
use crate::meta::text;
use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration};
use std::collections::BTreeMap;

/// The one field by which a node can be selected.
pub const NODE_NAME_FIELD: &str = "metadata.name";

/// Whether a requirement holds for a value that may be absent.
#[must_use]
pub fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = |v: &str| values.iter().any(|x| x == v);
    let numbers = || Some((value?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(have, bound)| have > bound),
        "Lt" => numbers().is_some_and(|(have, bound)| have < bound),
        _ => false,
    }
}

/// Whether one term selects the node with these labels and this name. A term without requirements selects nothing.
#[must_use]
pub fn term_selects(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let by_label = term.match_expressions.as_deref().unwrap_or_default();
    let by_field = term.match_fields.as_deref().unwrap_or_default();
    !(by_label.is_empty() && by_field.is_empty())
        && by_label.iter().all(|r| holds(r, labels.get(&r.key).map(String::as_str)))
        && by_field.iter().all(|r| r.key == NODE_NAME_FIELD && holds(r, Some(name)))
}

/// Whether any term of the selector selects the node.
#[must_use]
pub fn selects(selector: &NodeSelector, labels: &BTreeMap<String, String>, name: &str) -> bool {
    selector.node_selector_terms.iter().any(|t| term_selects(t, labels, name))
}

/// Whether a pod's node selector and required node affinity admit the node.
#[must_use]
pub fn admits(spec: &PodSpec, labels: &BTreeMap<String, String>, name: &str) -> bool {
    if !spec.node_selector.iter().flatten().all(|(k, v)| labels.get(k) == Some(v)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|selector| selects(selector, labels, name))
}

/// Whether a toleration tolerates a taint; `Gt` and `Lt` compare the taint's value, as a number, with the toleration's.
#[must_use]
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let (key, effect) = (text(&toleration.key), text(&toleration.effect));
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    let (want, have) = (text(&toleration.value), text(&taint.value));
    let numbers = || Some((have.parse::<i64>().ok()?, want.parse::<i64>().ok()?));
    match text(&toleration.operator) {
        "" | "Equal" => want == have,
        "Exists" => true,
        "Gt" => numbers().is_some_and(|(have, bound)| have > bound),
        "Lt" => numbers().is_some_and(|(have, bound)| have < bound),
        _ => false,
    }
}

/// A port of the node that a pod takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// Address, `0.0.0.0` for all.
    pub ip: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Port number.
    pub port: i32,
}

impl HostPort {
    /// Whether both cannot be on one node.
    #[must_use]
    pub fn conflicts(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == "0.0.0.0" || other.ip == "0.0.0.0")
    }
}

/// The ports of the node that a pod takes: those of its containers and sidecars.
#[must_use]
pub fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().flatten().filter(|c| is_sidecar(c));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    let or = |value: &Option<String>, default: &str| match text(value) {
        "" => default.to_owned(),
        value => value.to_owned(),
    };
    ports
        .filter_map(|p| {
            let port = p.host_port.filter(|n| *n > 0)?;
            Some(HostPort { ip: or(&p.host_ip, "0.0.0.0"), protocol: or(&p.protocol, "TCP"), port })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn labels() -> BTreeMap<String, String> {
        [("disk", "ssd"), ("cores", "8")].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
    }

    fn admitted(spec: &Value) -> bool {
        let mut full = json!({"containers": []});
        full.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        admits(&serde_json::from_value(full).unwrap(), &labels(), "n")
    }

    fn affinity(terms: &Value) -> Value {
        let required = json!({"nodeSelectorTerms": terms});
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}})
    }

    #[test]
    fn selectors_and_affinity() {
        assert!(admitted(&json!({})));
        assert!(admitted(&json!({"nodeSelector": {"disk": "ssd"}})));
        assert!(!admitted(&json!({"nodeSelector": {"disk": "hdd"}})));
        for (key, operator, values, want) in [
            ("disk", "In", &["hdd", "ssd"][..], true),
            ("disk", "NotIn", &["ssd"], false),
            ("gpu", "In", &["x"], false),
            ("gpu", "NotIn", &["x"], true),
            ("gpu", "Exists", &[], false),
            ("gpu", "DoesNotExist", &[], true),
            ("cores", "Gt", &["4"], true),
            ("cores", "Lt", &["4"], false),
            ("disk", "Gt", &["4"], false),
            ("disk", "Like", &["ssd"], false),
        ] {
            let expression = json!({"key": key, "operator": operator, "values": values});
            let terms = json!([{"matchExpressions": [expression]}]);
            assert_eq!(admitted(&affinity(&terms)), want, "{key} {operator}");
        }
        let named = |name: &str| json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]});
        assert!(admitted(&affinity(&json!([named("n")]))));
        assert!(admitted(&affinity(&json!([named("other"), named("n")]))), "any term will do");
        assert!(!admitted(&affinity(&json!([named("other")]))));
        assert!(!admitted(&affinity(&json!([{}]))), "a term that asks for nothing selects nothing");
    }

    #[test]
    fn tolerations() {
        let taint =
            Taint { key: "a".into(), value: Some("1".into()), effect: "NoSchedule".into(), ..Default::default() };
        for (key, operator, value, effect, want) in [
            ("a", "Equal", "1", "NoSchedule", true),
            ("a", "", "1", "", true),
            ("a", "Equal", "2", "NoSchedule", false),
            ("a", "Exists", "", "NoExecute", false),
            ("", "Exists", "", "", true),
            ("b", "Exists", "", "", false),
            ("a", "Lt", "5", "", true),
            ("a", "Gt", "5", "", false),
            ("a", "Gt", "x", "", false),
            ("a", "Like", "1", "", false),
        ] {
            let set = |s: &str| Some(s.to_owned());
            let toleration = Toleration {
                key: set(key),
                operator: set(operator),
                value: set(value),
                effect: set(effect),
                ..Default::default()
            };
            assert_eq!(tolerates(&toleration, &taint), want, "{toleration:?}");
        }
    }

    #[test]
    fn host_ports_conflict_on_the_same_address() {
        let spec = json!({
            "containers": [{"name": "a", "ports": [{"containerPort": 1, "hostPort": 80},
                {"containerPort": 2, "hostPort": 80, "hostIP": "127.0.0.1", "protocol": "UDP"}, {"containerPort": 3}]}],
            "initContainers": [
                {"name": "once", "ports": [{"containerPort": 1, "hostPort": 81}]},
                {"name": "side", "restartPolicy": "Always", "ports": [{"containerPort": 1, "hostPort": 82}]}],
        });
        let ports = host_ports(&serde_json::from_value(spec).unwrap());
        let port = |ip: &str, protocol: &str, port| HostPort { ip: ip.into(), protocol: protocol.into(), port };
        let (all, local) = (port("0.0.0.0", "TCP", 80), port("127.0.0.1", "UDP", 80));
        assert_eq!(ports, [all.clone(), local.clone(), port("0.0.0.0", "TCP", 82)]);
        assert!(all.conflicts(&port("10.0.0.1", "TCP", 80)) && !all.conflicts(&local));
        assert!(local.conflicts(&port("0.0.0.0", "UDP", 80)) && !local.conflicts(&port("10.0.0.1", "UDP", 80)));
    }
}
