//! ServiceCIDR: a range of addresses for Services.

use crate::apps::workload;
use crate::kind::{Column, Context, Kind, ResourceInfo, STATUS};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::{IMMUTABLE, Meta, reset_for_status};
use crate::meta::{names, table};
use crate::networking::addresses;
use ipnet::IpNet;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::net::IpAddr;

/// The range that a cluster starts with.
pub const DEFAULT: &str = "kubernetes";
/// Holds a range whose addresses are in use.
pub const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// Condition: addresses are given out of the range.
pub const READY: &str = "Ready";

/// Whether addresses may be given out of the range: it is not going, and nobody says that it is not ready.
#[must_use]
pub fn is_ready(c: &ServiceCIDR) -> bool {
    let conditions = c.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let ready = conditions.into_iter().find(|c| c.type_ == READY).is_none_or(|c| c.status == "True");
    ready && !c.metadata.is_deleting()
}

/// The ranges, those that can be read.
pub fn ranges(c: &ServiceCIDR) -> impl Iterator<Item = IpNet> {
    cidrs(c).iter().filter_map(|text| text.parse().ok())
}

/// Whether the address can be given out of the range: the network's own cannot, nor IPv4's broadcast address.
#[must_use]
pub fn gives(range: &IpNet, ip: IpAddr) -> bool {
    range.contains(&ip) && ip != range.network() && (ip.is_ipv6() || ip != range.broadcast())
}

/// The ranges as written.
#[must_use]
pub fn cidrs(c: &ServiceCIDR) -> &[String] {
    c.spec.as_ref().and_then(|s| s.cidrs.as_deref()).unwrap_or_default()
}

fn path() -> Path {
    Path::new("spec").child("cidrs")
}

/// The spec as field errors show it.
fn shown(cidrs: &[String]) -> String {
    workload::shown_as(&[("CIDRs", json!(cidrs))])
}

impl Kind for ServiceCIDR {
    const INFO: ResourceInfo = ResourceInfo {
        subresources: &[STATUS],
        ..ResourceInfo::new("networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs", "servicecidr", false)
    };
    const COLUMNS: &'static [Column] =
        &[table::NAME, table::text_column("CIDRs", "The ranges, at most one of each address family.", 0), table::AGE];
    crate::kind_codec!();

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        let list = cidrs(self);
        if list.is_empty() {
            e.required(&path(), "at least one CIDR required");
            return e;
        }
        if list.len() > 2 {
            workload::invalid_shown(&mut e, &path(), &shown(list), "may only hold up to 2 values");
            return e;
        }
        for (i, cidr) in list.iter().enumerate() {
            names::push_invalid(&mut e, &path().index(i), cidr, &addresses::strict_cidr(cidr));
        }
        let v6 = |c: &String| names::parse_cidr(c).map(|(ip, _)| ip.is_ipv6());
        if let [a, b] = list
            && v6(a) == v6(b)
            && v6(a).is_some()
        {
            let detail = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
            workload::invalid_shown(&mut e, &path(), &shown(list), detail);
        }
        e
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut e = ErrorList::default();
        let (new, old) = (cidrs(self), cidrs(old));
        let changed = |i: usize, e: &mut ErrorList| {
            if new[i] != old[i] {
                e.invalid(&path().index(i), new[i].as_str(), IMMUTABLE);
            }
        };
        match (old.len(), new.len()) {
            (a, b) if a == b => (0..a).for_each(|i| changed(i, &mut e)),
            // A single-stack range may get its second family.
            (1, 2) => {
                changed(0, &mut e);
                e.extend(self.validate());
            }
            _ => e.invalid(&path(), json!(new), IMMUTABLE),
        }
        e
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context<'_>) {
        self.spec.clone_from(&old.spec);
        reset_for_status(&mut self.metadata, &old.metadata);
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        vec![self.metadata.name().into(), cidrs(self).join(",").into(), table::age(&self.metadata, now).into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(list: &[&str]) -> ServiceCIDR {
        ServiceCIDR::from_value(json!({"metadata": {"name": "r"}, "spec": {"cidrs": list}})).unwrap()
    }

    fn texts(e: &ErrorList) -> Vec<String> {
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn field_errors_and_row() {
        assert_eq!(texts(&range(&[]).validate()), ["spec.cidrs: Required value: at least one CIDR required"]);
        assert!(texts(&range(&["a", "b", "c"]).validate())[0].ends_with("may only hold up to 2 values"));
        assert_eq!(
            texts(&range(&["10.0.0.1/8", "11.0.0.0/8"]).validate()),
            [
                "spec.cidrs[0]: Invalid value: \"10.0.0.1/8\": must not have bits set beyond the prefix length",
                "spec.cidrs: Invalid value: {\"CIDRs\":[\"10.0.0.1/8\",\"11.0.0.0/8\"]}: may specify no more than one \
                 IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
            ]
        );
        let both = range(&["10.0.0.0/8", "fd00::/64"]);
        assert!(both.validate().is_empty());
        assert_eq!(json!(both.cells(Timestamp::UNIX_EPOCH)), json!(["r", "10.0.0.0/8,fd00::/64", "<unknown>"]));
    }

    #[test]
    fn what_a_range_gives() {
        let net: IpNet = "10.0.0.0/30".parse().unwrap();
        let given: Vec<bool> = (0..5).map(|n| gives(&net, IpAddr::from([10, 0, 0, n]))).collect();
        assert_eq!(given, [false, true, true, false, false]);
        let mut c = range(&["10.0.0.0/8", "fd00::/64"]);
        assert_eq!((ranges(&c).count(), is_ready(&c)), (2, true));
        let status = json!({"conditions": [{"type": "Ready", "status": "False", "reason": "Terminating",
            "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        c.status = serde_json::from_value(status).unwrap();
        assert!(!is_ready(&c));
    }

    #[test]
    fn a_range_only_gains_its_other_family() {
        let old = range(&["10.0.0.0/8"]);
        assert!(range(&["10.0.0.0/8", "fd00::/64"]).validate_update(&old).is_empty());
        assert_eq!(
            texts(&range(&["11.0.0.0/8"]).validate_update(&old)),
            ["spec.cidrs[0]: Invalid value: \"11.0.0.0/8\": field is immutable"]
        );
        assert_eq!(texts(&range(&[]).validate_update(&old)), ["spec.cidrs: Invalid value: []: field is immutable"]);
    }
}
