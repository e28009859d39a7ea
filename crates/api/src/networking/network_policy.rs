//! NetworkPolicy: which peers may talk with which pods.

use crate::apps::workload::bump_generation;
use crate::kind::{Column, Context, Kind, ResourceInfo};
use crate::meta::field::{ErrorList, Path};
use crate::meta::labels::{SelectorOptions, format_label_selector, validate_label_selector};
use crate::meta::object::{Meta, semantically_equal};
use crate::meta::{names, table};
use crate::networking::addresses;
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::net::IpAddr;

const PROTOCOLS: &[&str] = &["TCP", "UDP", "SCTP"];
const POLICY_TYPES: &[&str] = &["Ingress", "Egress"];

/// What a changed policy may keep of the stored one although it would be refused today.
#[derive(Clone, Copy, Default)]
struct Leniency<'a> {
    selector: SelectorOptions,
    /// Ranges of the stored policy.
    cidrs: &'a [&'a str],
}

fn validate_port(p: &NetworkPolicyPort, path: &Path, errors: &mut ErrorList) {
    if let Some(protocol) = p.protocol.as_deref().filter(|p| !PROTOCOLS.contains(p)) {
        errors.not_supported(&path.child("protocol"), protocol, PROTOCOLS);
    }
    let (port, end) = (path.child("port"), path.child("endPort"));
    let wrong = |n: i32, path: &Path, errors: &mut ErrorList| {
        for message in names::port_number(n) {
            errors.invalid(path, n, &message);
        }
    };
    match (&p.port, p.end_port) {
        (Some(IntOrString::Int(n)), last) => {
            wrong(*n, &port, errors);
            if let Some(last) = last {
                if last < *n {
                    errors.invalid(&end, last, "must be greater than or equal to `port`");
                }
                wrong(last, &end, errors);
            }
        }
        (Some(IntOrString::String(name)), last) => {
            if let Some(last) = last {
                errors.invalid(&end, last, "may not be specified when `port` is non-numeric");
            }
            names::push_invalid(errors, &port, name, &names::port_name(name));
        }
        (None, Some(last)) => errors.invalid(&end, last, "may not be specified when `port` is not specified"),
        (None, None) => {}
    }
}

/// Whether `inner` is a part of `outer` and not all of it.
fn is_strict_subset(inner: (IpAddr, u8), outer: (IpAddr, u8)) -> bool {
    let (Ok(inner_net), Ok(outer_net)) = (ipnet::IpNet::new(inner.0, inner.1), ipnet::IpNet::new(outer.0, outer.1))
    else {
        return false;
    };
    outer_net.contains(&inner_net.network()) && outer.1 < inner.1
}

fn validate_block(b: &IPBlock, lenient: Leniency<'_>, path: &Path, errors: &mut ErrorList) {
    let at = path.child("cidr");
    if b.cidr.is_empty() {
        return errors.required(&at, "");
    }
    let check = |value: &str, path: &Path, errors: &mut ErrorList| {
        if !lenient.cidrs.contains(&value) {
            names::push_invalid(errors, path, value, &names::cidr(value));
        }
        names::parse_cidr(value)
    };
    let Some(outer) = check(&b.cidr, &at, errors) else { return };
    for (i, except) in b.except.iter().flatten().enumerate() {
        let path = path.child("except").index(i);
        if let Some(inner) = check(except, &path, errors)
            && !is_strict_subset(inner, outer)
        {
            errors.invalid(&path, except.as_str(), "must be a strict subset of `cidr`");
        }
    }
}

fn validate_peer(p: &NetworkPolicyPeer, lenient: Leniency<'_>, path: &Path, errors: &mut ErrorList) {
    for (field, selector) in [("podSelector", &p.pod_selector), ("namespaceSelector", &p.namespace_selector)] {
        errors.extend(validate_label_selector(selector.as_ref(), lenient.selector, &path.child(field)));
    }
    if let Some(block) = &p.ip_block {
        validate_block(block, lenient, &path.child("ipBlock"), errors);
    }
    let selectors = p.pod_selector.is_some() || p.namespace_selector.is_some();
    match (&p.ip_block, selectors) {
        (None, false) => errors.required(path, "must specify a peer"),
        (Some(_), true) => errors.forbidden(path, "may not specify both ipBlock and another peer"),
        _ => {}
    }
}

type Rule<'a> = (Path, Option<&'a Vec<NetworkPolicyPort>>, Path, Option<&'a Vec<NetworkPolicyPeer>>);

/// Ports and peers of every rule with their paths, in the order they are checked.
fn rules(spec: &NetworkPolicySpec) -> Vec<Rule<'_>> {
    let path = Path::new("spec");
    let ingress = spec.ingress.iter().flatten().enumerate().map(|(i, r)| {
        let path = path.child("ingress").index(i);
        (path.child("ports"), r.ports.as_ref(), path.child("from"), r.from.as_ref())
    });
    let egress = spec.egress.iter().flatten().enumerate().map(|(i, r)| {
        let path = path.child("egress").index(i);
        (path.child("ports"), r.ports.as_ref(), path.child("to"), r.to.as_ref())
    });
    ingress.chain(egress).collect()
}

/// The blocks of all peers with their paths.
fn blocks(spec: &NetworkPolicySpec) -> Vec<(Path, &IPBlock)> {
    let peers = rules(spec).into_iter().filter_map(|(_, _, path, peers)| Some((path, peers?)));
    peers
        .flat_map(|(path, peers)| {
            peers
                .iter()
                .enumerate()
                .filter_map(move |(i, p)| Some((path.index(i).child("ipBlock"), p.ip_block.as_ref()?)))
        })
        .collect()
}

fn validate_spec(spec: &NetworkPolicySpec, lenient: Leniency<'_>) -> ErrorList {
    let mut e = ErrorList::default();
    let path = Path::new("spec");
    let at = path.child("podSelector");
    e.extend(validate_label_selector(spec.pod_selector.as_ref(), lenient.selector, &at));
    for (ports_path, ports, peers_path, peers) in rules(spec) {
        for (i, p) in ports.into_iter().flatten().enumerate() {
            validate_port(p, &ports_path.index(i), &mut e);
        }
        for (i, p) in peers.into_iter().flatten().enumerate() {
            validate_peer(p, lenient, &peers_path.index(i), &mut e);
        }
    }
    let types = spec.policy_types.as_deref().unwrap_or_default();
    let at = path.child("policyTypes");
    if types.len() > POLICY_TYPES.len() {
        e.invalid(&at, json!(types), "may not specify more than two policyTypes");
        return e;
    }
    for (i, t) in types.iter().enumerate().filter(|(_, t)| !POLICY_TYPES.contains(&t.as_str())) {
        e.not_supported(&at.index(i), t, POLICY_TYPES);
    }
    e
}

impl Kind for NetworkPolicy {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["netpol"],
        ..ResourceInfo::new("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", "networkpolicy", true)
    };
    const COLUMNS: &'static [Column] =
        &[table::NAME, table::text_column("Pod-Selector", "The pods the policy is for.", 0), table::AGE];
    crate::kind_codec!();

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        spec.pod_selector.get_or_insert_default();
        let ingress = spec.ingress.iter_mut().flatten().filter_map(|r| r.ports.as_mut());
        let egress = spec.egress.iter_mut().flatten().filter_map(|r| r.ports.as_mut());
        for p in ingress.chain(egress).flatten() {
            p.protocol.get_or_insert_with(|| "TCP".to_owned());
        }
        let types = spec.policy_types.get_or_insert_default();
        if types.is_empty() {
            types.push("Ingress".to_owned());
            if spec.egress.as_ref().is_some_and(|e| !e.is_empty()) {
                types.push("Egress".to_owned());
            }
        }
    }

    fn prepare_for_create(&mut self, _: &Context<'_>) {
        self.metadata.generation = Some(1);
    }

    fn validate(&self) -> ErrorList {
        validate_spec(&self.spec.clone().unwrap_or_default(), Leniency::default())
    }

    fn warnings(&self, _: Option<&Self>) -> Vec<String> {
        let Some(spec) = &self.spec else { return Vec::new() };
        let mut out = Vec::new();
        for (path, block) in blocks(spec) {
            out.extend(addresses::cidr_warnings(&path.child("cidr"), &block.cidr));
            for (i, except) in block.except.iter().flatten().enumerate() {
                out.extend(addresses::cidr_warnings(&path.child("except").index(i), except));
            }
        }
        out
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        let changed = !semantically_equal(&self.spec, &old.spec);
        bump_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let before = old.spec.clone().unwrap_or_default();
        let kept: Vec<&str> = blocks(&before)
            .into_iter()
            .flat_map(|(_, b)| std::iter::once(&b.cidr).chain(b.except.iter().flatten()))
            .map(String::as_str)
            .collect();
        let selector: Option<&LabelSelector> = before.pod_selector.as_ref();
        let was_bad = !validate_label_selector(selector, SelectorOptions::default(), &Path::new("")).is_empty();
        let selector = SelectorOptions { allow_invalid_values: was_bad };
        validate_spec(&self.spec.clone().unwrap_or_default(), Leniency { selector, cidrs: &kept })
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let selector = self.spec.as_ref().and_then(|s| s.pod_selector.as_ref());
        let empty = LabelSelector::default();
        vec![
            self.metadata.name().into(),
            format_label_selector(Some(selector.unwrap_or(&empty))).into(),
            table::age(&self.metadata, now).into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(spec: Value) -> NetworkPolicy {
        let mut p = NetworkPolicy::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
        p.set_defaults();
        p
    }

    fn texts(e: &ErrorList) -> Vec<String> {
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_and_row() {
        let p = policy(json!({"podSelector": {"matchLabels": {"a": "b"}}, "egress": [{"ports": [{"port": 80}]}]}));
        assert_eq!(
            json!(p.spec),
            json!({"podSelector": {"matchLabels": {"a": "b"}}, "policyTypes": ["Ingress", "Egress"],
                "egress": [{"ports": [{"port": 80, "protocol": "TCP"}]}]})
        );
        assert_eq!(json!(p.cells(Timestamp::UNIX_EPOCH)), json!(["p", "a=b", "<unknown>"]));
        let empty = policy(json!({}));
        assert!(empty.validate().is_empty());
        assert_eq!(empty.cells(Timestamp::UNIX_EPOCH)[1], "<none>");
    }

    #[test]
    fn field_errors() {
        let p = policy(json!({"policyTypes": ["X"], "ingress": [{
            "ports": [{"protocol": "tcp", "port": 0}, {"port": 80, "endPort": 79}, {"port": "web", "endPort": 1},
                {"endPort": 1}],
            "from": [{}, {"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}, {"ipBlock": {"cidr": ""}},
                {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["x", "11.0.0.0/16", "10.0.0.0/8", "10.1.0.0/16"]}}]}]}));
        assert_eq!(
            texts(&p.validate()),
            [
                "spec.ingress[0].ports[0].protocol: Unsupported value: \"tcp\": supported values: \"TCP\", \"UDP\", \
                 \"SCTP\"",
                "spec.ingress[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.ingress[0].ports[1].endPort: Invalid value: 79: must be greater than or equal to `port`",
                "spec.ingress[0].ports[2].endPort: Invalid value: 1: may not be specified when `port` is non-numeric",
                "spec.ingress[0].ports[3].endPort: Invalid value: 1: may not be specified when `port` is not specified",
                "spec.ingress[0].from[0]: Required value: must specify a peer",
                "spec.ingress[0].from[1]: Forbidden: may not specify both ipBlock and another peer",
                "spec.ingress[0].from[2].ipBlock.cidr: Required value",
                "spec.ingress[0].from[3].ipBlock.except[0]: Invalid value: \"x\": must be a valid CIDR value, (e.g. \
                 10.9.8.0/24 or 2001:db8::/64)",
                "spec.ingress[0].from[3].ipBlock.except[1]: Invalid value: \"11.0.0.0/16\": must be a strict subset of \
                 `cidr`",
                "spec.ingress[0].from[3].ipBlock.except[2]: Invalid value: \"10.0.0.0/8\": must be a strict subset \
                 of `cidr`",
                "spec.policyTypes[0]: Unsupported value: \"X\": supported values: \"Ingress\", \"Egress\"",
            ]
        );
    }

    #[test]
    fn stored_faults_may_stay_and_changes_count() {
        let cx = Context { now: Timestamp::UNIX_EPOCH, username: "" };
        let mut old = policy(json!({"ingress": [{"from": [{"ipBlock": {"cidr": "bad"}}]}]}));
        old.prepare_for_create(&cx);
        let mut new = old.clone();
        assert!(!new.validate().is_empty());
        assert!(new.validate_update(&old).is_empty());
        new.spec.as_mut().unwrap().ingress = None;
        new.prepare_for_update(&old, &cx);
        assert_eq!(new.metadata.generation, Some(2));
    }

    #[test]
    fn ambiguous_ranges_are_warned_of() {
        let p = policy(json!({"egress": [{"to": [{"ipBlock": {"cidr": "10.1.0.0/8"}}]}]}));
        assert_eq!(
            p.warnings(None),
            ["spec.egress[0].to[0].ipBlock.cidr: CIDR value \"10.1.0.0/8\" is ambiguous in this context (should be \
              \"10.0.0.0/8\" or \"10.1.0.0/32\"?)"]
        );
    }
}
