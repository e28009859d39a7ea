//! Node: a machine that runs pods.

use crate::core::pod::validate::placement::validate_taints;
use crate::core::pod::validate::resources::validate_quantity;
use crate::kind::{Column, Context, Kind, ResourceInfo, STATUS, Subresource, Verb};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::Meta;
use crate::meta::quantity::canonicalize_list;
use crate::meta::{names, table, text};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use serde::de::Error as _;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const PROXY: &[Verb] = &[Verb::Create, Verb::Delete, Verb::Get, Verb::Patch, Verb::Update];
const ROLE_PREFIX: &str = "node-role.kubernetes.io/";

fn canonical(mut node: Node) -> Result<Node, serde_json::Error> {
    if let Some(s) = &mut node.status {
        canonicalize_list(s.capacity.as_mut()).map_err(serde_json::Error::custom)?;
        canonicalize_list(s.allocatable.as_mut()).map_err(serde_json::Error::custom)?;
    }
    Ok(node)
}

/// The roles a node's labels name, sorted.
#[must_use]
pub fn roles(node: &Node) -> Vec<String> {
    let found: BTreeSet<&str> = node
        .metadata
        .labels_or_empty()
        .iter()
        .filter_map(|(k, v)| match k.strip_prefix(ROLE_PREFIX) {
            Some(role) => Some(role),
            None if k == "kubernetes.io/role" => Some(v.as_str()),
            None => None,
        })
        .filter(|r| !r.is_empty())
        .collect();
    found.into_iter().map(str::to_owned).collect()
}

/// Status of a node as `kubectl get nodes` shows it.
#[must_use]
pub fn display_status(node: &Node) -> String {
    let ready = node.status.iter().flat_map(|s| s.conditions.iter().flatten()).find(|c| c.type_ == "Ready");
    let mut status = match ready {
        Some(c) if c.status == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if node.spec.as_ref().is_some_and(|s| s.unschedulable == Some(true)) {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn validate_resources(node: &Node, errors: &mut ErrorList) {
    let Some(status) = &node.status else { return };
    for (field, list) in [("capacity", &status.capacity), ("allocatable", &status.allocatable)] {
        for (name, quantity) in list.iter().flatten() {
            validate_quantity(name, quantity, &Path::new("status").child(field).child(name), errors);
        }
    }
}

fn is_v6(cidr: &str) -> bool {
    names::parse_cidr(cidr).is_some_and(|(ip, _)| ip.is_ipv6())
}

fn validate_pod_cidrs(cidrs: &[String], errors: &mut ErrorList) {
    let path = Path::new("spec").child("podCIDRs");
    for (i, cidr) in cidrs.iter().enumerate() {
        names::push_invalid(errors, &path.index(i), cidr, &names::cidr(cidr));
    }
    if cidrs.len() > 1 {
        let dual = cidrs.iter().any(|c| is_v6(c)) && cidrs.iter().any(|c| !is_v6(c));
        if !dual || cidrs.len() > 2 {
            errors.invalid(&path, json!(cidrs), "may specify no more than one CIDR for each IP family");
        }
        for (i, cidr) in cidrs.iter().enumerate().filter(|(i, c)| cidrs[..*i].contains(c)) {
            errors.duplicate(&path.index(i), cidr.as_str());
        }
    }
}

impl Kind for Node {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["no"],
        subresources: &[Subresource { name: "proxy", gvk: Some(("", "v1", "NodeProxyOptions")), verbs: PROXY }, STATUS],
        ..ResourceInfo::new("", "v1", "Node", "nodes", "node", false)
    };
    const COLUMNS: &'static [Column] = &[
        table::NAME,
        table::text_column("Status", "The status of the node", 0),
        table::text_column("Roles", "The roles of the node", 0),
        table::AGE,
        table::text_column("Version", "Version of the node agent.", 0),
        table::text_column("Internal-IP", "List of addresses reachable to the node.", 1),
        table::text_column("External-IP", "List of addresses reachable to the node.", 1),
        table::text_column("OS-Image", "Operating system of the node.", 1),
        table::text_column("Kernel-Version", "Kernel of the node.", 1),
        table::text_column("Container-Runtime", "Container runtime of the node and its version.", 1),
    ];

    fn meta(&self) -> &crate::ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut crate::ObjectMeta {
        &mut self.metadata
    }
    fn from_json(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        canonical(serde_json::from_slice(bytes)?)
    }
    fn from_value(value: Value) -> Result<Self, serde_json::Error> {
        canonical(serde_json::from_value(value)?)
    }
    fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("API types have string keys only")
    }
    fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("API types have string keys only")
    }

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        match (spec.pod_cidrs.as_ref().and_then(|c| c.first()), text(&spec.pod_cidr)) {
            (Some(first), _) => spec.pod_cidr = Some(first.clone()),
            (None, "") => {}
            (None, cidr) => spec.pod_cidrs = Some(vec![cidr.to_owned()]),
        }
        let status = self.status.get_or_insert_default();
        if status.allocatable.is_none() {
            status.allocatable = status.capacity.clone();
        }
    }
    fn validate(&self) -> ErrorList {
        let mut errors = ErrorList::default();
        if let Some(spec) = &self.spec {
            let taints = spec.taints.as_deref().unwrap_or_default();
            validate_taints(taints, &Path::new("metadata").child("taints"), &mut errors);
        }
        validate_resources(self, &mut errors);
        if let Some(spec) = &self.spec {
            validate_pod_cidrs(spec.pod_cidrs.as_deref().unwrap_or_default(), &mut errors);
        }
        errors
    }
    fn prepare_for_update(&mut self, old: &Self, _cx: &Context<'_>) {
        self.status = old.status.clone();
    }
    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut errors = ErrorList::default();
        let path = Path::new("spec");
        validate_resources(self, &mut errors);
        let spec = self.spec.clone().unwrap_or_default();
        let old = old.spec.clone().unwrap_or_default();
        let (cidrs, old_cidrs) = (spec.pod_cidrs.unwrap_or_default(), old.pod_cidrs.unwrap_or_default());
        if !old_cidrs.is_empty() && cidrs != old_cidrs {
            let detail = "node updates may not change podCIDR except from \"\" to valid";
            errors.forbidden(&path.child("podCIDRs"), detail);
        }
        if !text(&old.provider_id).is_empty() && text(&old.provider_id) != text(&spec.provider_id) {
            let detail = "node updates may not change providerID except from \"\" to valid";
            errors.forbidden(&path.child("providerID"), detail);
        }
        let taints = spec.taints.as_deref().unwrap_or_default();
        validate_taints(taints, &Path::new("metadata").child("taints"), &mut errors);
        if text(&spec.external_id) != text(&old.external_id) {
            errors.forbidden(&path.child("externalID"), "may not be updated");
        }
        errors
    }
    fn prepare_for_status_update(&mut self, old: &Self, _cx: &Context<'_>) {
        self.spec = old.spec.clone();
    }
    fn validate_status_update(&self, _old: &Self) -> ErrorList {
        let mut errors = ErrorList::default();
        validate_resources(self, &mut errors);
        let addresses = self.status.as_ref().and_then(|s| s.addresses.as_deref()).unwrap_or_default();
        for (i, a) in addresses.iter().enumerate().filter(|(i, a)| addresses[..*i].contains(a)) {
            errors.duplicate(&Path::new("status").child("addresses").index(i), json!(a));
        }
        errors
    }
    fn selectable_fields(&self) -> Vec<(&'static str, String)> {
        let unschedulable = self.spec.as_ref().is_some_and(|s| s.unschedulable == Some(true));
        vec![("spec.unschedulable", unschedulable.to_string())]
    }
    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let roles = roles(self).join(",");
        let address = |t: &str| {
            let found = self.status.iter().flat_map(|s| s.addresses.iter().flatten()).find(|a| a.type_ == t);
            found.map_or("<none>", |a| a.address.as_str())
        };
        let info = self.status.as_ref().and_then(|s| s.node_info.as_ref());
        let known =
            |value: Option<&String>| value.filter(|v| !v.is_empty()).map_or("<unknown>", String::as_str).to_owned();
        vec![
            self.metadata.name().into(),
            display_status(self).into(),
            if roles.is_empty() { "<none>".into() } else { roles.into() },
            table::age(&self.metadata, now).into(),
            info.map(|i| i.kubelet_version.clone()).unwrap_or_default().into(),
            address("InternalIP").into(),
            address("ExternalIP").into(),
            known(info.map(|i| &i.os_image)).into(),
            known(info.map(|i| &i.kernel_version)).into(),
            known(info.map(|i| &i.container_runtime_version)).into(),
        ]
    }
    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["spec"]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(value: Value) -> Node {
        <Node as Kind>::from_value(value).unwrap()
    }

    fn texts(errors: &ErrorList) -> Vec<String> {
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rows() {
        let n = node(
            json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "a"}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1.37.0"},
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}}),
        );
        assert_eq!(
            json!(n.cells(Timestamp::UNIX_EPOCH)),
            json!([
                "n",
                "Ready,SchedulingDisabled",
                "a,control-plane",
                "<unknown>",
                "v1.37.0",
                "10.0.0.1",
                "<none>",
                "<unknown>",
                "<unknown>",
                "<unknown>"
            ])
        );
        assert_eq!(display_status(&node(json!({}))), "Unknown");
    }

    #[test]
    fn taints_and_ranges() {
        let n = node(
            json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}, {"key": "k", "effect": "NoSchedule"},
            {"key": "k", "effect": "x"}], "podCIDRs": ["10.0.0.0/24", "10.0.1.0/24"]}, "status": {"capacity": {"cpu": "-1"}}}),
        );
        assert_eq!(
            texts(&n.validate()),
            [
                "metadata.taints[1]: Duplicate value: {\"Key\":\"k\",\"Value\":\"\",\"Effect\":\"NoSchedule\",\"TimeAdded\":null}: \
                 taints must be unique by key and effect pair",
                "metadata.taints[2].effect: Unsupported value: \"x\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
                "status.capacity.cpu: Invalid value: \"-1\": must be greater than or equal to 0",
                "spec.podCIDRs: Invalid value: [\"10.0.0.0/24\",\"10.0.1.0/24\"]: may specify no more than one CIDR for each IP family",
            ]
        );
    }

    #[test]
    fn ranges_and_provider_are_set_once() {
        let old = node(json!({"spec": {"podCIDRs": ["10.0.0.0/24"], "providerID": "p"}}));
        assert_eq!(
            texts(&node(json!({"spec": {}})).validate_update(&old)),
            [
                "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid",
                "spec.providerID: Forbidden: node updates may not change providerID except from \"\" to valid",
            ]
        );
    }
}
