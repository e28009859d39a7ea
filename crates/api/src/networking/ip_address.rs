//! IPAddress: an address of a Service, held by its name.

use crate::ObjectMeta;
use crate::apps::workload;
use crate::kind::{Column, Kind, ResourceInfo};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::{IMMUTABLE, Meta};
use crate::meta::{names, table, text};
use crate::networking::{addresses, validate_segment};
use k8s_openapi::api::networking::v1::{IPAddress, IPAddressSpec, ParentReference};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use std::net::IpAddr;

/// Label that tells the address's family.
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
/// Label that tells who gave the address away.
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
/// The allocator of cluster IPs.
const ALLOCATOR: &str = "ipallocator.k8s.io";

/// `IPv4` or `IPv6`.
#[must_use]
pub fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// The object by which a Service holds its cluster IP.
#[must_use]
pub fn of_service(ip: IpAddr, namespace: &str, name: &str) -> IPAddress {
    let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    IPAddress {
        metadata: ObjectMeta {
            name: Some(ip.to_string()),
            labels: Some([label(FAMILY, family(ip)), label(MANAGED_BY, ALLOCATOR)].into()),
            ..Default::default()
        },
        spec: IPAddressSpec {
            parent_ref: ParentReference {
                // The core group's name is written, though it is empty.
                group: Some(String::new()),
                resource: "services".to_owned(),
                namespace: Some(namespace.to_owned()),
                name: name.to_owned(),
            },
        },
    }
}

/// Whether the allocator of cluster IPs has given the address away.
#[must_use]
pub fn is_managed(address: &IPAddress) -> bool {
    address.metadata.label(MANAGED_BY) == Some(ALLOCATOR)
}

/// Whether the labels are as the allocator writes them.
#[must_use]
pub fn is_labelled(address: &IPAddress) -> bool {
    let right = names::parse_ip(address.metadata.name()).map(family);
    is_managed(address) && right.is_some() && address.metadata.label(FAMILY) == right
}

/// Namespace and name of the Service that holds the address; None where something else does.
#[must_use]
pub fn service_of(address: &IPAddress) -> Option<(&str, &str)> {
    let parent = &address.spec.parent_ref;
    let is_service = text(&parent.group).is_empty() && parent.resource == "services";
    is_service.then(|| (text(&parent.namespace), parent.name.as_str()))
}

/// Whose address it is: `services/default/web`.
fn shown(parent: &ParentReference) -> String {
    let group = text(&parent.group);
    let dot = if group.is_empty() { "" } else { "." };
    let namespace = parent.namespace.as_deref().filter(|n| !n.is_empty()).map(|n| format!("{n}/"));
    format!("{}{dot}{group}/{}{}", parent.resource, namespace.unwrap_or_default(), parent.name)
}

impl Kind for IPAddress {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["ip"],
        ..ResourceInfo::new("networking.k8s.io", "v1", "IPAddress", "ipaddresses", "ipaddress", false)
    };
    const COLUMNS: &'static [Column] = &[table::NAME, table::text_column("ParentRef", "Whose address it is.", 0)];
    crate::kind_codec!();

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        let parent = &self.spec.parent_ref;
        let path = Path::new("spec").child("parentRef");
        if *parent == ParentReference::default() {
            e.required(&path, "");
            return e;
        }
        let group = text(&parent.group);
        if !group.is_empty() {
            names::push_invalid(&mut e, &path.child("group"), group, &names::dns1123_subdomain(group, false));
        }
        validate_segment(&parent.resource, true, &path.child("resource"), &mut e);
        validate_segment(&parent.name, true, &path.child("name"), &mut e);
        validate_segment(text(&parent.namespace), false, &path.child("namespace"), &mut e);
        e
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut e = self.validate();
        let parent = &self.spec.parent_ref;
        if *parent != old.spec.parent_ref {
            let part = |value: Option<&String>| Value::from(value.map_or("", String::as_str));
            let shown = workload::shown_as(&[
                ("Group", part(parent.group.as_ref())),
                ("Resource", parent.resource.as_str().into()),
                ("Namespace", part(parent.namespace.as_ref())),
                ("Name", parent.name.as_str().into()),
            ]);
            workload::invalid_shown(&mut e, &Path::new("spec").child("parentRef"), &shown, IMMUTABLE);
        }
        e
    }

    fn validate_name(name: &str, _: bool) -> Vec<String> {
        addresses::strict_ip(name)
    }

    fn cells(&self, _: Timestamp) -> Vec<Value> {
        let parent = &self.spec.parent_ref;
        let parent = if *parent == ParentReference::default() { "<none>".to_owned() } else { shown(parent) };
        vec![self.metadata.name().into(), parent.into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn address(parent: Value) -> IPAddress {
        IPAddress::from_value(json!({"metadata": {"name": "10.0.0.1"}, "spec": {"parentRef": parent}})).unwrap()
    }

    fn texts(e: &ErrorList) -> Vec<String> {
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_parent_is_required_and_fixed() {
        assert_eq!(texts(&IPAddress::default().validate()), ["spec.parentRef: Required value"]);
        let bad = address(json!({"group": "A", "namespace": "a/b"}));
        let found = texts(&bad.validate());
        assert!(found[0].starts_with("spec.parentRef.group: Invalid value: \"A\""));
        assert_eq!(
            found[1..],
            [
                "spec.parentRef.resource: Required value",
                "spec.parentRef.name: Required value",
                "spec.parentRef.namespace: Invalid value: \"a/b\": may not contain '/'",
            ]
        );
        let old = address(json!({"resource": "services", "namespace": "default", "name": "web"}));
        let new = address(json!({"resource": "services", "namespace": "default", "name": "api"}));
        assert!(texts(&new.validate_update(&old))[0].ends_with("field is immutable"));
        assert_eq!(json!(old.cells(Timestamp::UNIX_EPOCH)), json!(["10.0.0.1", "services/default/web"]));
    }

    #[test]
    fn a_service_holds_its_address() {
        let held = of_service("10.0.0.1".parse().unwrap(), "default", "web");
        assert!(is_labelled(&held) && held.validate().is_empty());
        assert_eq!(service_of(&held), Some(("default", "web")));
        let other = address(json!({"group": "gateway.example.com", "resource": "services", "name": "web"}));
        assert!(service_of(&other).is_none() && !is_managed(&other));
    }

    #[test]
    fn the_name_is_an_address() {
        assert!(IPAddress::validate_name("10.0.0.1", false).is_empty());
        assert_eq!(IPAddress::validate_name("10.0.0.01", false), ["must not have leading 0s"]);
    }
}
