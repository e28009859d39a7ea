//! Allocation of cluster IPs and node ports to Services.
//!
//! A cluster IP is held by an IPAddress object. A node port has an owner, the Service's UID, so that a repeated write of
//! the same Service finds its own values taken by itself and a refused write gives back only what it took. The map of
//! ports is filled from the stored Services once and kept by the writes of this server, which is the only writer of
//! Services.

mod address;
mod families;
mod port;
#[cfg(test)]
mod tests;

use crate::cluster::Cluster;
use crate::config::ServerConfig;
use crate::registry::hooks::Hook;
pub use address::repair;
use async_trait::async_trait;
use gantry_api::core::service::{is_headless, needs_cluster_ip, needs_health_check_port, needs_node_port};
use gantry_api::k8s_openapi::api::core::v1::{Service, ServiceSpec};
use gantry_api::kind::{Object, downcast, downcast_mut};
use gantry_api::meta::field::{ErrorList, Path};
use gantry_api::meta::names::parse_ip;
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use gantry_api::networking::ip_address;
use port::PortPool;
use serde_json::json;
use std::net::IpAddr;
use tokio::sync::Mutex;

struct Pools {
    ports: PortPool,
    /// Whether the stored Services have been counted in.
    seeded: bool,
}

/// The allocators, as a step of every write of a Service.
pub struct ServiceAllocation {
    pools: Mutex<Pools>,
    /// The cluster's family: `IPv4` or `IPv6`.
    family: &'static str,
}

/// Whether the type may have node ports at all.
fn may_have_node_ports(spec: &ServiceSpec) -> bool {
    matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"))
}

fn ports_of(spec: &ServiceSpec) -> Vec<i32> {
    let mut out: Vec<i32> = spec.ports.iter().flatten().filter_map(|p| p.node_port).collect();
    out.extend(spec.health_check_node_port);
    out.retain(|p| *p != 0);
    out
}

/// The name under which a Service owns what is allocated to it.
fn owner_of(service: &Service) -> String {
    match service.metadata.uid() {
        "" => service.metadata.key(),
        uid => uid.to_owned(),
    }
}

impl ServiceAllocation {
    /// Allocators for the ranges of the configuration.
    #[must_use]
    pub fn new(config: &ServerConfig) -> Self {
        let pools = Pools { ports: PortPool::new(config.node_port_range), seeded: false };
        Self { pools: Mutex::new(pools), family: ip_address::family(config.service_cidr.addr()) }
    }

    async fn seed(pools: &mut Pools, cluster: &Cluster) -> Result<(), ApiError> {
        if pools.seeded {
            return Ok(());
        }
        for service in cluster.list::<Service>("").await? {
            let Some(spec) = &service.spec else { continue };
            let owner = owner_of(&service);
            for port in ports_of(spec) {
                pools.ports.mark(port, &owner);
            }
        }
        pools.seeded = true;
        Ok(())
    }

    async fn release(&self, of: &Service, except: Option<&Service>, cluster: &Cluster) {
        let kept = except.map(address::of).unwrap_or_default();
        for ip in address::of(of).into_iter().filter(|ip| !kept.contains(ip)) {
            address::give_back(ip, cluster).await;
        }
        let Some(spec) = &of.spec else { return };
        let kept = except.and_then(|e| e.spec.as_ref()).map(ports_of).unwrap_or_default();
        let owner = owner_of(of);
        let mut pools = self.pools.lock().await;
        for port in ports_of(spec).into_iter().filter(|p| !kept.contains(p)) {
            pools.ports.release(port, &owner);
        }
    }

    /// Gives the Service its cluster IP; the address where it was taken for this write.
    async fn allocate_address(
        &self,
        service: &mut Service,
        old: Option<&Service>,
        dry_run: bool,
        cluster: &Cluster,
    ) -> Result<Option<IpAddr>, ApiError> {
        let name = service.metadata.name().to_owned();
        let invalid = |errors: &ErrorList| ApiError::invalid("", "Service", &name, errors);
        let spec = service.spec.get_or_insert_default();
        if !needs_cluster_ip(spec) {
            return Ok(None);
        }
        families::complete(spec, self.family).map_err(|e| invalid(&e))?;
        if is_headless(spec) {
            return Ok(None);
        }
        let wanted = spec.cluster_ips.iter().flatten().next().cloned().unwrap_or_default();
        let shown = json!(spec.cluster_ips);
        let taken = if wanted.is_empty() {
            let found = address::take_any(self.family, service, dry_run, cluster).await;
            Some(found.map_err(|e| ApiError::internal(format!("failed to allocate a serviceIP: {e}")))?)
        } else if let Some(ip) = parse_ip(&wanted) {
            let is_own = old.is_some_and(|old| address::of(old).contains(&ip));
            if !is_own {
                address::take(ip, service, dry_run, cluster).await.map_err(|why| {
                    let mut e = ErrorList::default();
                    let detail = format!("failed to allocate IP {wanted}: {why}");
                    e.invalid(&Path::new("spec").child("clusterIPs"), shown, &detail);
                    invalid(&e)
                })?;
            }
            (!is_own).then_some(ip)
        } else {
            // Not an address: validation says so.
            return Ok(None);
        };
        let text = match taken {
            Some(ip) if wanted.is_empty() => ip.to_string(),
            _ => wanted,
        };
        let spec = service.spec.get_or_insert_default();
        spec.cluster_ip = Some(text.clone());
        match spec.cluster_ips.as_mut().filter(|l| !l.is_empty()) {
            Some(list) => list[0] = text,
            None => spec.cluster_ips = Some(vec![text]),
        }
        Ok(taken.filter(|_| !dry_run))
    }
}

fn allocate_ports(service: &mut Service, pools: &mut Pools, cluster: &Cluster) -> Result<(), ApiError> {
    let owner = owner_of(service);
    let name = service.metadata.name().to_owned();
    let spec = service.spec.get_or_insert_default();
    let invalid = |errors: &ErrorList| ApiError::invalid("", "Service", &name, errors);
    if may_have_node_ports(spec) {
        let wants_all = needs_node_port(spec);
        let mut by_port: Vec<(i32, String, i32)> = Vec::new();
        for (i, p) in spec.ports.iter_mut().flatten().enumerate() {
            let wanted = p.node_port.unwrap_or(0);
            let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".into());
            if wanted != 0 {
                pools.ports.allocate(wanted, &owner).map_err(|why| {
                    let mut e = ErrorList::default();
                    e.invalid(&Path::new("spec").child("ports").index(i).child("nodePort"), wanted, &why);
                    invalid(&e)
                })?;
                by_port.push((p.port, protocol, wanted));
                continue;
            }
            if !wants_all {
                continue;
            }
            // The same port over another protocol shares the node port.
            let shared = by_port.iter().find(|(port, other, _)| *port == p.port && *other != protocol);
            let got = match shared {
                Some((_, _, node_port)) => *node_port,
                None => pools
                    .ports
                    .allocate_next(&owner, &cluster.entropy)
                    .map_err(|e| ApiError::internal(format!("failed to allocate a nodePort: {e}")))?,
            };
            p.node_port = Some(got);
            by_port.push((p.port, protocol, got));
        }
    }
    if needs_health_check_port(spec) {
        let wanted = spec.health_check_node_port.unwrap_or(0);
        let got = if wanted == 0 {
            pools
                .ports
                .allocate_next(&owner, &cluster.entropy)
                .map_err(|e| ApiError::internal(format!("failed to allocate a HealthCheck NodePort: {e}")))?
        } else {
            pools.ports.allocate(wanted, &owner).map_err(|why| {
                ApiError::internal(format!("failed to allocate requested HealthCheck NodePort {wanted}: {why}"))
            })?;
            wanted
        };
        spec.health_check_node_port = Some(got);
    }
    Ok(())
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
        let taken = self.allocate_address(service, old.and_then(downcast), dry_run, cluster).await?;
        let result = {
            let mut pools = self.pools.lock().await;
            let mark = pools.ports.mark_point();
            let result = allocate_ports(service, &mut pools, cluster);
            if result.is_err() || dry_run {
                pools.ports.undo_since(mark);
            }
            pools.ports.settle();
            result
        };
        if let (Err(_), Some(ip)) = (&result, taken) {
            address::give_back(ip, cluster).await;
        }
        result
    }

    async fn stored(&self, object: &dyn Object, old: Option<&dyn Object>, cluster: &Cluster) {
        if let (Some(new), Some(old)) = (downcast::<Service>(object), old.and_then(downcast::<Service>)) {
            self.release(old, Some(new), cluster).await;
        }
    }

    async fn abandoned(&self, object: &dyn Object, old: Option<&dyn Object>, cluster: &Cluster) {
        if let Some(new) = downcast::<Service>(object) {
            self.release(new, old.and_then(downcast::<Service>), cluster).await;
        }
    }

    async fn deleted(&self, object: &dyn Object, cluster: &Cluster) {
        if let Some(gone) = downcast::<Service>(object) {
            self.release(gone, None, cluster).await;
        }
    }
}
