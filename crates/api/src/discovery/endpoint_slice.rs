//! EndpointSlice: some of the endpoints of a Service.

use crate::core::service::validate_non_special_ip;
use crate::kind::{Column, Context, Kind, ResourceInfo};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::{Meta, immutable};
use crate::meta::{labels, names, table, text};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, EndpointPort, EndpointSlice};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;
const MAX_TOPOLOGY: usize = 16;
const MAX_HINTS: usize = 8;
/// At most this many ports or addresses are shown in a row.
const SHOWN: usize = 3;

fn validate_endpoint(e: &Endpoint, kind: &str, path: &Path, errors: &mut ErrorList) {
    let addresses = path.child("addresses");
    if e.addresses.is_empty() {
        errors.required(&addresses, "must contain at least 1 address");
    } else if e.addresses.len() > MAX_ADDRESSES {
        errors.too_many(&addresses, e.addresses.len(), MAX_ADDRESSES);
    }
    for (i, address) in e.addresses.iter().enumerate() {
        let path = addresses.index(i);
        let ip = names::parse_ip(address);
        match kind {
            "IPv4" => {
                if !ip.is_some_and(|ip| ip.is_ipv4()) {
                    errors.invalid(&path, address.as_str(), "must be a valid IPv4 address");
                }
                validate_non_special_ip(address, &path, errors);
            }
            "IPv6" => {
                if !ip.is_some_and(|ip| ip.is_ipv6()) {
                    errors.invalid(&path, address.as_str(), "must be a valid IPv6 address");
                }
                validate_non_special_ip(address, &path, errors);
            }
            "FQDN" => errors.extend(names::fully_qualified_domain_name(&path, address)),
            "IP" => names::push_invalid(errors, &path, address, &names::ip_address(address)),
            _ => {}
        }
    }
    if let Some(node) = &e.node_name {
        names::push_invalid(errors, &path.child("nodeName"), node, &names::dns1123_subdomain(node, false));
    }
    let topology = path.child("deprecatedTopology");
    let count = e.deprecated_topology.as_ref().map_or(0, |t| t.len());
    if count > MAX_TOPOLOGY {
        errors.too_many(&topology, count, MAX_TOPOLOGY);
    }
    errors.extend(labels::validate_labels(e.deprecated_topology.as_ref(), &topology));
    if let Some(hostname) = &e.hostname {
        names::push_invalid(errors, &path.child("hostname"), hostname, &names::dns1123_label(hostname, false));
    }
    if let Some(hints) = &e.hints {
        validate_hints(hints, &path.child("hints"), errors);
    }
}

fn validate_hints(hints: &EndpointHints, path: &Path, errors: &mut ErrorList) {
    let zones: Vec<&str> = hints.for_zones.iter().flatten().map(|z| z.name.as_str()).collect();
    let nodes: Vec<&str> = hints.for_nodes.iter().flatten().map(|n| n.name.as_str()).collect();
    let zone_rule: fn(&str) -> Vec<String> = names::label_value;
    let node_rule: fn(&str) -> Vec<String> = |n| names::dns1123_subdomain(n, false);
    for (field, hinted, rule) in [("forZones", zones, zone_rule), ("forNodes", nodes, node_rule)] {
        let path = path.child(field);
        if hinted.len() > MAX_HINTS {
            errors.too_many(&path, hinted.len(), MAX_HINTS);
            continue;
        }
        let mut seen = BTreeSet::new();
        for (i, name) in hinted.into_iter().enumerate() {
            let path = path.index(i).child("name");
            if !seen.insert(name) {
                errors.duplicate(&path, name);
            }
            names::push_invalid(errors, &path, name, &rule(name));
        }
    }
}

fn validate_ports(ports: &[EndpointPort], errors: &mut ErrorList) {
    let path = Path::new("ports");
    if ports.len() > MAX_PORTS {
        return errors.too_many(&path, ports.len(), MAX_PORTS);
    }
    let mut seen = BTreeSet::new();
    for (i, p) in ports.iter().enumerate() {
        let path = path.index(i);
        let name = text(&p.name);
        if !name.is_empty() {
            names::push_invalid(errors, &path.child("name"), name, &names::dns1123_label(name, false));
        }
        if !seen.insert(name) {
            errors.duplicate(&path.child("name"), name);
        }
        match p.protocol.as_deref() {
            None => errors.required(&path.child("protocol"), ""),
            Some("TCP" | "UDP" | "SCTP") => {}
            Some(other) => errors.not_supported(&path.child("protocol"), other, &["SCTP", "TCP", "UDP"]),
        }
        if let Some(app) = &p.app_protocol {
            names::push_invalid(errors, &path.child("appProtocol"), app, &names::qualified_name(app));
        }
    }
}

fn validate_slice(slice: &EndpointSlice, kinds: &[&str]) -> ErrorList {
    let mut errors = ErrorList::default();
    let kind = slice.address_type.as_str();
    if kind.is_empty() {
        errors.required(&Path::new("addressType"), "");
    } else if !kinds.contains(&kind) {
        errors.not_supported(&Path::new("addressType"), kind, kinds);
    }
    let endpoints = slice.endpoints.as_deref().unwrap_or_default();
    let path = Path::new("endpoints");
    if endpoints.len() > MAX_ENDPOINTS {
        errors.too_many(&path, endpoints.len(), MAX_ENDPOINTS);
    } else {
        for (i, e) in endpoints.iter().enumerate() {
            validate_endpoint(e, kind, &path.index(i), &mut errors);
        }
    }
    validate_ports(slice.ports.as_deref().unwrap_or_default(), &mut errors);
    errors
}

impl Kind for EndpointSlice {
    const INFO: ResourceInfo =
        ResourceInfo::new("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", "endpointslice", true);
    const COLUMNS: &'static [Column] = &[
        table::NAME,
        table::text_column("AddressType", "The kind of address all endpoints of the slice have.", 0),
        table::text_column("Ports", "The ports every endpoint of the slice has.", 0),
        table::text_column("Endpoints", "Addresses of the endpoints.", 0),
        table::AGE,
    ];
    crate::kind_codec!();

    fn set_defaults(&mut self) {
        for p in self.ports.iter_mut().flatten() {
            p.name.get_or_insert_default();
            p.protocol.get_or_insert_with(|| "TCP".to_owned());
        }
    }
    fn prepare_for_create(&mut self, _cx: &Context<'_>) {
        self.metadata.generation = Some(1);
    }
    fn validate(&self) -> ErrorList {
        validate_slice(self, &["FQDN", "IPv4", "IPv6"])
    }
    fn prepare_for_update(&mut self, old: &Self, _cx: &Context<'_>) {
        let before = old.metadata.generation.unwrap_or(0);
        let changed = self.endpoints != old.endpoints
            || self.ports != old.ports
            || self.address_type != old.address_type
            || self.metadata.labels != old.metadata.labels
            || self.metadata.annotations != old.metadata.annotations;
        self.metadata.generation = Some(before + i64::from(changed));
    }
    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut errors = validate_slice(self, &["FQDN", "IP", "IPv4", "IPv6"]);
        immutable(&mut errors, &Path::new("addressType"), &json!(self.address_type), &json!(old.address_type));
        errors
    }
    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let ports: Vec<String> = self
            .ports
            .iter()
            .flatten()
            .map(|p| match p.port {
                Some(n) => n.to_string(),
                None if text(&p.name).is_empty() => "*".to_owned(),
                None => text(&p.name).to_owned(),
            })
            .collect();
        let addresses: Vec<String> =
            self.endpoints.iter().flatten().flat_map(|e| e.addresses.iter().cloned()).collect();
        let shown =
            |list: &[String]| if list.is_empty() { "<unset>".to_owned() } else { table::shortened(list, SHOWN) };
        vec![
            self.metadata.name().into(),
            self.address_type.as_str().into(),
            shown(&ports).into(),
            shown(&addresses).into(),
            table::age(&self.metadata, now).into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(value: Value) -> EndpointSlice {
        let mut s = <EndpointSlice as Kind>::from_value(value).unwrap();
        s.set_defaults();
        s
    }

    fn texts(errors: &ErrorList) -> Vec<String> {
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn field_errors() {
        let s = slice(json!({"addressType": "IPv4", "endpoints": [{"addresses": []}, {"addresses": ["::1"]}],
            "ports": [{"port": 1}, {"port": 2, "protocol": "X"}]}));
        assert_eq!(
            texts(&s.validate()),
            [
                "endpoints[0].addresses: Required value: must contain at least 1 address",
                "endpoints[1].addresses[0]: Invalid value: \"::1\": must be a valid IPv4 address",
                "endpoints[1].addresses[0]: Invalid value: \"::1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
                "ports[1].name: Duplicate value: \"\"",
                "ports[1].protocol: Unsupported value: \"X\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            ]
        );
        let v6 = slice(json!({"addressType": "IPv6", "endpoints": []}));
        assert_eq!(
            texts(&v6.validate_update(&slice(json!({"addressType": "IPv4", "endpoints": []})))),
            ["addressType: Invalid value: \"IPv6\": field is immutable"]
        );
    }

    #[test]
    fn generation_and_row() {
        let cx = Context { now: Timestamp::UNIX_EPOCH, username: "" };
        let mut old = slice(json!({"metadata": {"name": "s"}, "addressType": "IPv4", "ports": [{"port": 80}],
            "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}, {"addresses": ["10.0.0.3"]}, {"addresses": ["10.0.0.4"]}]}));
        old.prepare_for_create(&cx);
        let mut same = old.clone();
        same.prepare_for_update(&old, &cx);
        assert_eq!(same.metadata.generation, Some(1));
        same.endpoints = None;
        same.prepare_for_update(&old, &cx);
        assert_eq!(same.metadata.generation, Some(2));
        assert_eq!(
            json!(old.cells(cx.now)),
            json!(["s", "IPv4", "80", "10.0.0.1,10.0.0.2,10.0.0.3 + 1 more...", "<unknown>"])
        );
        assert_eq!(json!(same.cells(cx.now))[3], "<unset>");
    }
}
