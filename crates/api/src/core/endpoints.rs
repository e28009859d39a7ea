//! Endpoints: addresses behind a Service, the older form of EndpointSlice.

use crate::core::service::{validate_non_special_ip, validate_protocol};
use crate::kind::{Column, Kind, ResourceInfo};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::Meta;
use crate::meta::{names, table, text};
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, Endpoints};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

/// At most this many addresses are shown in a row.
const SHOWN: usize = 3;

fn format_endpoints(endpoints: &Endpoints) -> String {
    let subsets = endpoints.subsets.as_deref().unwrap_or_default();
    if subsets.is_empty() {
        return "<none>".to_owned();
    }
    let mut all = Vec::new();
    for s in subsets {
        let addresses = s.addresses.as_deref().unwrap_or_default();
        let ports = s.ports.as_deref().unwrap_or_default();
        if ports.is_empty() {
            all.extend(addresses.iter().map(|a| a.ip.clone()));
        }
        for p in ports {
            let host = |ip: &str| if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
            all.extend(addresses.iter().map(|a| format!("{}:{}", host(&a.ip), p.port)));
        }
    }
    table::shortened(&all, SHOWN)
}

fn validate_address(a: &EndpointAddress, path: &Path, errors: &mut ErrorList) {
    names::push_invalid(errors, &path.child("ip"), &a.ip, &names::ip_address(&a.ip));
    let hostname = text(&a.hostname);
    if !hostname.is_empty() {
        names::push_invalid(errors, &path.child("hostname"), hostname, &names::dns1123_label(hostname, false));
    }
    if let Some(node) = &a.node_name {
        names::push_invalid(errors, &path.child("nodeName"), node, &names::dns1123_subdomain(node, false));
    }
    validate_non_special_ip(&a.ip, &path.child("ip"), errors);
}

fn validate_port(p: &EndpointPort, name_required: bool, path: &Path, errors: &mut ErrorList) {
    let name = text(&p.name);
    if !name.is_empty() {
        names::push_invalid(errors, &path.child("name"), name, &names::dns1123_label(name, false));
    } else if name_required {
        errors.required(&path.child("name"), "");
    }
    for message in names::port_number(p.port) {
        errors.invalid(&path.child("port"), p.port, &message);
    }
    validate_protocol(text(&p.protocol), &path.child("protocol"), errors);
    if let Some(app) = &p.app_protocol {
        names::push_invalid(errors, &path.child("appProtocol"), app, &names::qualified_name(app));
    }
}

impl Kind for Endpoints {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["ep"],
        create_on_update: true,
        deprecation: "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
        ..ResourceInfo::new("", "v1", "Endpoints", "endpoints", "endpoints", true)
    };
    const COLUMNS: &'static [Column] = &[
        table::NAME,
        table::text_column("Endpoints", "The addresses and ports of the endpoints that are ready.", 0),
        table::AGE,
    ];
    crate::kind_codec!();

    fn set_defaults(&mut self) {
        for p in self.subsets.iter_mut().flatten().flat_map(|s| s.ports.iter_mut().flatten()) {
            if text(&p.protocol).is_empty() {
                p.protocol = Some("TCP".to_owned());
            }
        }
    }
    fn validate(&self) -> ErrorList {
        let mut errors = ErrorList::default();
        for (i, s) in self.subsets.iter().flatten().enumerate() {
            let path = Path::new("subsets").index(i);
            let ready = s.addresses.as_deref().unwrap_or_default();
            let not_ready = s.not_ready_addresses.as_deref().unwrap_or_default();
            if ready.is_empty() && not_ready.is_empty() {
                errors.required(&path, "must specify `addresses` or `notReadyAddresses`");
            }
            for (field, addresses) in [("addresses", ready), ("notReadyAddresses", not_ready)] {
                for (j, a) in addresses.iter().enumerate() {
                    validate_address(a, &path.child(field).index(j), &mut errors);
                }
            }
            let ports = s.ports.as_deref().unwrap_or_default();
            for (j, p) in ports.iter().enumerate() {
                validate_port(p, ports.len() > 1, &path.child("ports").index(j), &mut errors);
            }
        }
        errors
    }
    fn cells(&self, now: Timestamp) -> Vec<Value> {
        vec![self.metadata.name().into(), format_endpoints(self).into(), table::age(&self.metadata, now).into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn endpoints(subsets: Value) -> Endpoints {
        let mut e = <Endpoints as Kind>::from_value(json!({"subsets": subsets})).unwrap();
        e.set_defaults();
        e
    }

    #[test]
    fn rows() {
        let ip = |n: u8| json!({"ip": format!("10.0.0.{n}")});
        let cases = [
            (json!([]), "<none>"),
            (json!([{"addresses": [ip(1)], "ports": [{"port": 80}]}]), "10.0.0.1:80"),
            (
                json!([{"addresses": [ip(1), ip(2)], "ports": [{"port": 80, "name": "a"}, {"port": 81, "name": "b"}]}]),
                "10.0.0.1:80,10.0.0.2:80,10.0.0.1:81 + 1 more...",
            ),
            (json!([{"addresses": [ip(1)]}]), "10.0.0.1"),
        ];
        for (subsets, want) in cases {
            assert_eq!(endpoints(subsets).cells(Timestamp::UNIX_EPOCH)[1], want);
        }
    }

    #[test]
    fn field_errors() {
        let e = endpoints(json!([{"ports": [{"port": 0}]}, {"addresses": [{"ip": "169.254.1.1"}]}]));
        let texts: Vec<String> = e.validate().0.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`",
                "subsets[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "subsets[1].addresses[0].ip: Invalid value: \"169.254.1.1\": may not be in the link-local range (169.254.0.0/16, fe80::/10)",
            ]
        );
    }
}
