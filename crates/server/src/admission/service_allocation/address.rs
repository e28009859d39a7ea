//! Cluster IPs. They are given out of the ranges of the ServiceCIDRs that are ready, and an IPAddress object of the
//! address's name holds each for its Service: that two objects cannot have one name is what makes addresses unique.

use crate::cluster::{Cluster, resource_of};
use gantry_api::entropy::Entropy;
use gantry_api::k8s_openapi::api::core::v1::Service;
use gantry_api::k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use gantry_api::meta::names::parse_ip;
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use gantry_api::networking::{ip_address, service_cidr};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Most addresses of a range that are given out by themselves.
const SIZE_MAX: u128 = 1 << 20;

const ALLOCATED: &str = "provided IP is already allocated";
const MISMATCHED: &str = "the provided network does not match the current range";
const FULL: &str = "range is full";

/// The addresses of a range that can be given.
struct Range {
    first: u128,
    count: u128,
    is_ipv4: bool,
}

fn to_number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

impl Range {
    fn new(range: &IpNet) -> Self {
        let is_ipv4 = range.addr().is_ipv4();
        let size = 1u128 << (range.max_prefix_len() - range.prefix_len()).min(127);
        // The network address is never used; of IPv4 ranges neither is the broadcast address.
        let unusable = if is_ipv4 { 2 } else { 1 };
        Self { first: to_number(range.network()) + 1, count: size.saturating_sub(unusable).min(SIZE_MAX), is_ipv4 }
    }

    fn at(&self, offset: u128) -> IpAddr {
        let n = self.first + offset;
        if self.is_ipv4 {
            IpAddr::V4(Ipv4Addr::from(u32::try_from(n).unwrap_or(u32::MAX)))
        } else {
            IpAddr::V6(Ipv6Addr::from(n))
        }
    }

    /// Every address once, from a random one on: those of the upper part first, so that the lower is free for those that
    /// people choose.
    fn candidates(&self, entropy: &Entropy) -> impl Iterator<Item = IpAddr> {
        let lower = (self.count / 16).clamp(16, 256);
        let lower = if self.count > lower { lower } else { 0 };
        let part = |from: u128, to: u128| {
            let length = to - from;
            let start = u128::from(entropy.below(u64::try_from(length.max(1)).unwrap_or(u64::MAX)));
            (0..length).map(move |i| self.at(from + (start + i) % length))
        };
        part(lower, self.count).chain(part(0, lower))
    }
}

/// The ranges of this family out of which addresses are given now.
async fn ranges(family: &str, cluster: &Cluster) -> Result<Vec<IpNet>, ApiError> {
    let mut found = Vec::new();
    for c in cluster.list::<ServiceCIDR>("").await?.iter().filter(|c| service_cidr::is_ready(c)) {
        found.extend(service_cidr::ranges(c).filter(|r| ip_address::family(r.addr()) == family));
    }
    Ok(found)
}

/// Holds the address for the Service; false where something holds it already.
async fn hold(ip: IpAddr, of: &Service, cluster: &Cluster) -> Result<bool, ApiError> {
    let object = ip_address::of_service(ip, of.metadata.namespace(), of.metadata.name());
    match cluster.objects.create(resource_of::<IPAddress>(), Box::new(object)).await {
        Ok(_) => Ok(true),
        Err(e) if e.is("AlreadyExists") => Ok(false),
        Err(e) => Err(e),
    }
}

async fn is_held(ip: IpAddr, cluster: &Cluster) -> Result<bool, ApiError> {
    let name = ip.to_string();
    Ok(cluster.objects.get(resource_of::<IPAddress>(), "", &name, false).await?.is_some())
}

/// Takes this address for the Service; with `dry_run` only tells whether it could be had.
///
/// # Errors
/// Why it cannot be had, as upstream says it.
pub(super) async fn take(ip: IpAddr, of: &Service, dry_run: bool, cluster: &Cluster) -> Result<(), String> {
    let told = |e: ApiError| e.message;
    let ranges = ranges(ip_address::family(ip), cluster).await.map_err(told)?;
    if !ranges.iter().any(|r| service_cidr::gives(r, ip)) {
        return Err(MISMATCHED.into());
    }
    let free = match dry_run {
        true => !is_held(ip, cluster).await.map_err(told)?,
        false => hold(ip, of, cluster).await.map_err(told)?,
    };
    if free { Ok(()) } else { Err(ALLOCATED.into()) }
}

/// Takes any free address of the family.
///
/// # Errors
/// Where there is none.
pub(super) async fn take_any(family: &str, of: &Service, dry_run: bool, cluster: &Cluster) -> Result<IpAddr, String> {
    for range in ranges(family, cluster).await.map_err(|e| e.message)? {
        for ip in Range::new(&range).candidates(&cluster.entropy) {
            // The cache may lag behind what is stored, but what it has is not free.
            if is_held(ip, cluster).await.map_err(|e| e.message)? {
                continue;
            }
            if dry_run || hold(ip, of, cluster).await.map_err(|e| e.message)? {
                return Ok(ip);
            }
        }
    }
    Err(FULL.into())
}

/// Gives an address back.
pub(super) async fn give_back(ip: IpAddr, cluster: &Cluster) {
    let (resource, name) = (resource_of::<IPAddress>(), ip.to_string());
    match cluster.objects.delete(resource, "", &name, &DeleteOptions::default(), false).await {
        Err(e) if !e.is("NotFound") => tracing::warn!(%ip, error = %e, "a cluster IP is not free again"),
        _ => {}
    }
}

/// The cluster IPs of a Service, each once: what is given back a second time may be another's by then.
pub(super) fn of(service: &Service) -> BTreeSet<IpAddr> {
    let named = service.spec.iter().flat_map(|spec| spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip));
    named.filter_map(|ip| parse_ip(ip)).collect()
}

/// Brings IPAddresses and Services together before anything is allocated: Services stored by a version without IPAddresses
/// get theirs, and those that a crash left without their Service go.
///
/// # Errors
/// Where the store refuses.
pub async fn repair(cluster: &Cluster) -> Result<(), ApiError> {
    let mut held: BTreeMap<String, IPAddress> = BTreeMap::new();
    for address in cluster.list::<IPAddress>("").await? {
        held.insert(address.metadata.name().to_owned(), address);
    }
    let mut used = Vec::new();
    for service in cluster.list::<Service>("").await? {
        for ip in of(&service) {
            if !held.contains_key(&ip.to_string()) && !hold(ip, &service, cluster).await? {
                tracing::warn!(%ip, service = service.metadata.key(), "two Services have one cluster IP");
            }
            used.push((ip.to_string(), service.metadata.namespace().to_owned(), service.metadata.name().to_owned()));
        }
    }
    for (name, address) in held.iter().filter(|(_, a)| ip_address::is_managed(a)) {
        let is_used = ip_address::service_of(address)
            .is_some_and(|(ns, n)| used.iter().any(|u| (u.0.as_str(), u.1.as_str(), u.2.as_str()) == (name, ns, n)));
        if !is_used && let Some(ip) = parse_ip(name) {
            give_back(ip, cluster).await;
        }
    }
    Ok(())
}
