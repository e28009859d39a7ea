//! Allocation of cluster IPs and node ports to Services.
//!
//! A cluster IP is held by an IPAddress object; node ports are kept in memory, filled from the stored Services once and
//! kept by the writes of this server, which is the only writer of Services. What a Service has already is its own, anything
//! else a write must take for itself. A write that is stored gives back what its predecessor had beyond it, and one that is
//! not gives back what it took. That is not all it has beyond its predecessor: what may not change is not taken, and it may
//! name there what is another's.

mod address;
mod families;
mod node_ports;
#[cfg(test)]
mod tests;

use crate::cluster::Cluster;
use crate::config::ServerConfig;
use crate::registry::hooks::Hook;
pub use address::repair;
use async_trait::async_trait;
use gantry_api::core::service::{is_headless, needs_cluster_ip};
use gantry_api::k8s_openapi::api::core::v1::{Service, ServiceSpec};
use gantry_api::kind::{Object, downcast, downcast_mut};
use gantry_api::meta::field::{ErrorList, Path};
use gantry_api::meta::names::parse_ip;
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use gantry_api::networking::ip_address;
use node_ports::{PortPool, ports_of, taken_ports};
use serde_json::json;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::Range;
use tokio::sync::Mutex;

struct Pools {
    ports: PortPool,
    /// Whether the stored Services have been counted in.
    seeded: bool,
}

/// The allocators, as a step of every write of a Service.
pub struct ServiceAllocation {
    pools: Mutex<Pools>,
    /// The cluster's families, `IPv4` or `IPv6`, the default first.
    families: Vec<&'static str>,
}

/// Which of the Service's families get their address by this write.
fn unserved(spec: &ServiceSpec, old: Option<&ServiceSpec>) -> Range<usize> {
    let families = spec.ip_families.as_ref().map_or(0, Vec::len);
    match old.filter(|old| needs_cluster_ip(old)) {
        _ if !needs_cluster_ip(spec) || is_headless(spec) => 0..0,
        None => 0..families,
        Some(old) if is_headless(old) => 0..0,
        Some(old) => old.cluster_ips.as_ref().map_or(0, Vec::len)..families,
    }
}

/// Gives a family of the Service its address, the one that is written if there is one.
async fn take(
    service: &Service,
    index: usize,
    list: &[String],
    dry_run: bool,
    cluster: &Cluster,
) -> Result<(IpAddr, String), ApiError> {
    let family = service.spec.iter().flat_map(|s| s.ip_families.iter().flatten()).nth(index);
    let (family, wanted) = (family.map_or("", String::as_str), list[index].as_str());
    if wanted.is_empty() {
        let found = address::take_any(family, service, dry_run, cluster).await;
        let ip = found.map_err(|e| ApiError::internal(format!("failed to allocate a serviceIP: {e}")))?;
        return Ok((ip, ip.to_string()));
    }
    let unreadable = || ApiError::internal(format!("failed to parse service IP {wanted:?}"));
    let ip = parse_ip(wanted).ok_or_else(unreadable)?;
    address::take(ip, service, dry_run, cluster).await.map_err(|why| {
        let mut e = ErrorList::default();
        let detail = format!("failed to allocate IP {wanted}: {why}");
        e.invalid(&Path::new("spec").child("clusterIPs"), json!(list), &detail);
        ApiError::invalid("", "Service", service.metadata.name(), &e)
    })?;
    Ok((ip, wanted.to_owned()))
}

async fn give_back(taken: &[IpAddr], dry_run: bool, cluster: &Cluster) {
    for ip in taken.iter().filter(|_| !dry_run) {
        address::give_back(*ip, cluster).await;
    }
}

impl ServiceAllocation {
    /// Allocators for the ranges of the configuration.
    #[must_use]
    pub fn new(config: &ServerConfig) -> Self {
        let pools = Pools { ports: PortPool::new(config.node_port_range), seeded: false };
        let families = config.service_cidrs().map(|range| ip_address::family(range.addr())).collect();
        Self { pools: Mutex::new(pools), families }
    }

    async fn seed(pools: &mut Pools, cluster: &Cluster) -> Result<(), ApiError> {
        if !pools.seeded {
            for service in cluster.list::<Service>("").await? {
                ports_of(&service).into_iter().for_each(|port| pools.ports.mark(port, cluster.clock.now()));
            }
            pools.seeded = true;
        }
        Ok(())
    }

    /// Gives these back.
    async fn release(&self, ips: BTreeSet<IpAddr>, ports: BTreeSet<i32>, cluster: &Cluster) {
        for ip in ips {
            address::give_back(ip, cluster).await;
        }
        let mut pools = self.pools.lock().await;
        ports.into_iter().for_each(|port| pools.ports.release(port));
    }

    /// Gives the Service the cluster IPs it lacks; those that were taken for this write.
    async fn allocate_addresses(
        &self,
        service: &mut Service,
        old: Option<&Service>,
        dry_run: bool,
        cluster: &Cluster,
    ) -> Result<Vec<IpAddr>, ApiError> {
        let name = service.metadata.name().to_owned();
        let spec = service.spec.get_or_insert_default();
        let before = old.and_then(|old| old.spec.as_ref());
        families::complete(spec, before, &self.families).map_err(|e| ApiError::invalid("", "Service", &name, &e))?;
        let missing = unserved(spec, before);
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        let mut list = spec.cluster_ips.clone().unwrap_or_default();
        list.resize(list.len().max(missing.end), String::new());
        let mut taken = Vec::new();
        for index in missing {
            match take(service, index, &list, dry_run, cluster).await {
                Ok((ip, text)) => {
                    taken.push(ip);
                    list[index] = text;
                }
                Err(e) => {
                    give_back(&taken, dry_run, cluster).await;
                    return Err(e);
                }
            }
        }
        let spec = service.spec.get_or_insert_default();
        spec.cluster_ip = list.first().cloned();
        spec.cluster_ips = Some(list);
        Ok(taken)
    }

    async fn allocate_ports(
        &self,
        service: &mut Service,
        old: Option<&Service>,
        dry_run: bool,
        cluster: &Cluster,
    ) -> Result<(), ApiError> {
        let pools = &mut *self.pools.lock().await;
        let first = pools.ports.assign(service, old, dry_run, cluster);
        if first.is_ok() || !pools.ports.has_old(cluster.clock.now()) {
            return first;
        }
        // A write that was broken off may have left a port behind.
        let mut used = BTreeSet::new();
        for stored in cluster.list::<Service>("").await? {
            used.extend(ports_of(&stored));
        }
        if pools.ports.reclaim(&used, cluster.clock.now()) {
            return pools.ports.assign(service, old, dry_run, cluster);
        }
        first
    }
}

#[async_trait]
impl Hook for ServiceAllocation {
    fn resource(&self) -> (&'static str, &'static str) {
        ("", "services")
    }

    async fn before_validate(
        &self,
        object: &mut dyn Object,
        old: Option<&dyn Object>,
        dry_run: bool,
        cluster: &Cluster,
    ) -> Result<(), ApiError> {
        // What the update leaves out was carried over from the old object before this step.
        let Some(service) = downcast_mut::<Service>(object) else { return Ok(()) };
        if service.metadata.name().is_empty() {
            // What is allocated is allocated to a name. Validation says that there is none.
            return Ok(());
        }
        Self::seed(&mut *self.pools.lock().await, cluster).await?;
        let old = old.and_then(downcast::<Service>);
        let taken = self.allocate_addresses(service, old, dry_run, cluster).await?;
        let result = self.allocate_ports(service, old, dry_run, cluster).await;
        if result.is_err() {
            give_back(&taken, dry_run, cluster).await;
        }
        result
    }

    async fn stored(&self, object: &dyn Object, old: Option<&dyn Object>, cluster: &Cluster) {
        if let (Some(new), Some(old)) = (downcast::<Service>(object), old.and_then(downcast::<Service>)) {
            let ips = &address::of(old) - &address::of(new);
            self.release(ips, &ports_of(old) - &ports_of(new), cluster).await;
        }
    }

    async fn abandoned(&self, object: &dyn Object, old: Option<&dyn Object>, cluster: &Cluster) {
        if let Some(Service { spec: Some(new), .. }) = downcast::<Service>(object) {
            let old = old.and_then(downcast::<Service>).and_then(|old| old.spec.as_ref());
            let ips = new.cluster_ips.as_deref().unwrap_or_default();
            let taken = unserved(new, old).filter_map(|index| parse_ip(ips.get(index)?)).collect();
            self.release(taken, taken_ports(new, old), cluster).await;
        }
    }

    async fn deleted(&self, object: &dyn Object, cluster: &Cluster) {
        if let Some(gone) = downcast::<Service>(object) {
            self.release(address::of(gone), ports_of(gone), cluster).await;
        }
    }
}
