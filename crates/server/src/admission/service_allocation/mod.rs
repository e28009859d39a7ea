//! Allocation of cluster IPs and node ports to Services.
//!
//! Every allocation has an owner, the Service's UID, so that a repeated write of the same Service finds its own values
//! taken by itself and a refused write gives back only what it took. The maps are filled from the stored Services once and
//! kept by the writes of this server, which is the only writer of Services.

mod address;
mod families;
mod port;
#[cfg(test)]
mod tests;

use crate::cluster::Cluster;
use crate::config::ServerConfig;
use crate::registry::hooks::Hook;
use address::AddressPool;
use async_trait::async_trait;
use gantry_api::core::service::{is_headless, needs_cluster_ip, needs_health_check_port, needs_node_port};
use gantry_api::k8s_openapi::api::core::v1::{Service, ServiceSpec};
use gantry_api::kind::{Object, downcast, downcast_mut};
use gantry_api::meta::field::{ErrorList, Path};
use gantry_api::meta::names::parse_ip;
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use port::PortPool;
use serde_json::json;
use tokio::sync::Mutex;

struct Pools {
    addresses: AddressPool,
    ports: PortPool,
    /// Whether the stored Services have been counted in.
    seeded: bool,
}

/// The allocators, as a step of every write of a Service.
pub struct ServiceAllocation {
    pools: Mutex<Pools>,
}

/// Whether the type may have node ports at all.
fn may_have_node_ports(spec: &ServiceSpec) -> bool {
    matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"))
}

/// What of a Service comes from the allocators.
fn addresses_of(spec: &ServiceSpec) -> Vec<std::net::IpAddr> {
    let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let mut out: Vec<_> = all.filter_map(|ip| parse_ip(ip)).collect();
    out.dedup();
    out
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
        let pools = Pools {
            addresses: AddressPool::new(config.service_cidr),
            ports: PortPool::new(config.node_port_range),
            seeded: false,
        };
        Self { pools: Mutex::new(pools) }
    }

    async fn seed(pools: &mut Pools, cluster: &Cluster) -> Result<(), ApiError> {
        if pools.seeded {
            return Ok(());
        }
        for service in cluster.list::<Service>("").await? {
            let Some(spec) = &service.spec else { continue };
            let owner = owner_of(&service);
            for ip in addresses_of(spec) {
                pools.addresses.mark(ip, &owner);
            }
            for port in ports_of(spec) {
                pools.ports.mark(port, &owner);
            }
        }
        pools.seeded = true;
        Ok(())
    }

    async fn release(&self, of: &Service, except: Option<&Service>) {
        let Some(spec) = &of.spec else { return };
        let kept = except.and_then(|e| e.spec.as_ref());
        let (kept_ips, kept_ports) = kept.map(|s| (addresses_of(s), ports_of(s))).unwrap_or_default();
        let owner = owner_of(of);
        let mut pools = self.pools.lock().await;
        for ip in addresses_of(spec) {
            if !kept_ips.contains(&ip) {
                pools.addresses.release(ip, &owner);
            }
        }
        for port in ports_of(spec) {
            if !kept_ports.contains(&port) {
                pools.ports.release(port, &owner);
            }
        }
    }
}

fn allocate(service: &mut Service, pools: &mut Pools, cluster: &Cluster) -> Result<(), ApiError> {
    let owner = owner_of(service);
    let name = service.metadata.name().to_owned();
    let spec = service.spec.get_or_insert_default();
    let invalid = |errors: &ErrorList| ApiError::invalid("", "Service", &name, errors);
    if needs_cluster_ip(spec) {
        families::complete(spec, pools.addresses.family()).map_err(|e| invalid(&e))?;
        if !is_headless(spec) {
            let wanted = spec.cluster_ips.iter().flatten().next().cloned().unwrap_or_default();
            let got = if wanted.is_empty() {
                let found = pools.addresses.allocate_next(&owner, &cluster.entropy);
                found.map_err(|e| ApiError::internal(format!("failed to allocate a serviceIP: {e}")))?
            } else if let Some(ip) = parse_ip(&wanted) {
                pools.addresses.allocate(ip, &owner).map_err(|why| {
                    let mut e = ErrorList::default();
                    let detail = format!("failed to allocate IP {wanted}: {why}");
                    e.invalid(&Path::new("spec").child("clusterIPs"), json!(spec.cluster_ips), &detail);
                    invalid(&e)
                })?;
                ip
            } else {
                // Not an address: validation says so.
                return Ok(());
            };
            let text = if wanted.is_empty() { got.to_string() } else { wanted };
            spec.cluster_ip = Some(text.clone());
            match spec.cluster_ips.as_mut().filter(|l| !l.is_empty()) {
                Some(list) => list[0] = text,
                None => spec.cluster_ips = Some(vec![text]),
            }
        }
    }
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
        _old: Option<&dyn Object>,
        dry_run: bool,
        cluster: &Cluster,
    ) -> Result<(), ApiError> {
        // What the update leaves out was carried over from the old object before this step.
        let Some(service) = downcast_mut::<Service>(object) else { return Ok(()) };
        let mut pools = self.pools.lock().await;
        Self::seed(&mut pools, cluster).await?;
        let mark = (pools.addresses.mark_point(), pools.ports.mark_point());
        let result = allocate(service, &mut pools, cluster);
        if result.is_err() || dry_run {
            pools.addresses.undo_since(mark.0);
            pools.ports.undo_since(mark.1);
        }
        pools.addresses.settle();
        pools.ports.settle();
        result
    }

    async fn stored(&self, object: &dyn Object, old: Option<&dyn Object>, _cluster: &Cluster) {
        if let (Some(new), Some(old)) = (downcast::<Service>(object), old.and_then(downcast::<Service>)) {
            self.release(old, Some(new)).await;
        }
    }

    async fn abandoned(&self, object: &dyn Object, old: Option<&dyn Object>, _cluster: &Cluster) {
        if let Some(new) = downcast::<Service>(object) {
            self.release(new, old.and_then(downcast::<Service>)).await;
        }
    }

    async fn deleted(&self, object: &dyn Object, _cluster: &Cluster) {
        if let Some(gone) = downcast::<Service>(object) {
            self.release(gone, None).await;
        }
    }
}
