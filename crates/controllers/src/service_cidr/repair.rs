//! IPAddresses and Services: each cluster IP is held by one IPAddress that names its Service, and no IPAddress of the
//! allocator is left without its Service. What somebody took apart is put together again and told by events.

use crate::config::Setup;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::meta::names::parse_ip;
use gantry_api::meta::object::Meta;
use gantry_api::networking::{ip_address, service_cidr};
use gantry_client::{Api, DeleteParams, PostParams};
use gantry_reconcile::store::{key, key_of, split_key};
use gantry_reconcile::{Change, Controller, Error, EventRecorder, Informer, Outcome, Queue, runner, wait_synced};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::jiff::SignedDuration;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

const WORKERS: usize = 5;
/// A Service that is being created has its address before it is there itself.
const GRACE: Duration = Duration::from_secs(60);
/// Keys of addresses; those of Services have a namespace instead.
const ADDRESS: &str = "address:";
/// Who tells of it.
const COMPONENT: &str = "ipallocator-repair-controller";

/// What the controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&[""], &["services"], &["get", "list", "watch"]),
    Rule::new(&["networking.k8s.io"], &["servicecidrs"], &["get", "list", "watch"]),
    Rule::new(&["networking.k8s.io"], &["ipaddresses"], &["create", "delete", "get", "list", "watch"]),
    EVENTS,
];

struct Repair {
    services: Informer<Service>,
    ranges: Informer<ServiceCIDR>,
    addresses: Informer<IPAddress>,
    recorder: EventRecorder,
    setup: Setup,
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let services = setup.informers.get::<Service>();
    let ranges = setup.informers.get::<ServiceCIDR>();
    let addresses = setup.informers.get::<IPAddress>();
    let queue = Queue::new(setup.name);
    let keys = queue.clone();
    services.on_change(move |change| {
        let same = change.old().is_some_and(|old| cluster_ips(old) == cluster_ips(change.object()));
        if !same && !matches!(change, Change::Deleted(_)) {
            keys.add(key_of(change.object().as_ref()));
        }
    });
    let keys = queue.clone();
    addresses.on_change(move |change| {
        let address = change.object();
        if !matches!(change, Change::Deleted(_)) {
            keys.add(format!("{ADDRESS}{}", address.metadata.name()));
        }
        if let Some((namespace, name)) = ip_address::service_of(address) {
            keys.add(key(namespace, name));
        }
    });
    if !wait_synced(&[&services, &ranges, &addresses], &setup.cancel).await {
        return;
    }
    let (recorder, cancel) = (setup.recorder(COMPONENT), setup.cancel.clone());
    let controller = Repair { services, ranges, addresses, recorder, setup };
    runner::run(Arc::new(controller), queue, WORKERS, cancel).await;
}

fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let texts = service.spec.iter().flat_map(|s| s.cluster_ips.iter().flatten());
    texts.filter_map(|text| parse_ip(text)).collect()
}

impl Repair {
    fn api(&self) -> Api<IPAddress> {
        Api::all(self.setup.client.clone())
    }

    async fn delete(&self, name: &str) -> Result<(), Error> {
        match self.api().delete(name, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(e) if e.is("NotFound") => Ok(()),
            Err(e) => Err(Error::api(format!("delete IP address {name}"), e)),
        }
    }

    async fn create(&self, ip: IpAddr, of: &Service) -> Result<(), Error> {
        let object = ip_address::of_service(ip, of.metadata.namespace(), of.metadata.name());
        match self.api().create(&PostParams::default(), &object).await {
            Ok(_) => Ok(()),
            Err(e) => Err(Error::api(format!("create IP address {ip}"), e)),
        }
    }

    async fn service(&self, of: &Service) -> Result<(), Error> {
        for ip in cluster_ips(of) {
            self.held(ip, of).await?;
        }
        Ok(())
    }

    async fn held(&self, ip: IpAddr, of: &Service) -> Result<(), Error> {
        let (namespace, name, family) = (of.metadata.namespace(), of.metadata.name(), ip_address::family(ip));
        let warn = |reason: &str, message: String| self.recorder.warning(of, reason, &message);
        let in_range = |c: &Arc<ServiceCIDR>| service_cidr::ranges(c).any(|r| service_cidr::gives(&r, ip));
        if !self.ranges.list().iter().any(in_range) {
            let message = format!(
                "Cluster IP [{family}]: {ip} is not within any configured Service CIDR; please recreate service"
            );
            warn("ClusterIPOutOfRange", message);
            return Ok(());
        }
        let Some(address) = self.addresses.store().by_key(&ip.to_string()) else {
            // The cache may not have heard of a Service's end, and it may be behind with the address.
            let live = Api::<Service>::namespaced(self.setup.client.clone(), namespace).get_opt(name).await;
            let live = live.map_err(|e| Error::api(format!("get service {namespace}/{name}"), e))?;
            let there = self.api().get_opt(&ip.to_string()).await;
            let there = there.map_err(|e| Error::api(format!("get IP address {ip}"), e))?;
            if there.is_some() || live.is_none_or(|l| !cluster_ips(&l).contains(&ip)) {
                return Ok(());
            }
            warn("ClusterIPNotAllocated", format!("Cluster IP [{family}]: {ip} is not allocated; repairing"));
            return self.create(ip, of).await;
        };
        let wrong = || {
            let message = format!(
                "the ClusterIP [{family}]: {ip} for Service {namespace}/{name} has a wrong reference; repairing"
            );
            warn("ClusterIPNotAllocated", message);
        };
        let is_right = match ip_address::service_of(&address) {
            None => {
                wrong();
                false
            }
            Some(holder) if holder != (namespace, name) => {
                match self.services.store().by_key(&key(holder.0, holder.1)) {
                    None => {
                        wrong();
                        false
                    }
                    Some(other) if cluster_ips(&other).contains(&ip) => {
                        let message = format!(
                            "Cluster IP [{family}]:{ip} was assigned to multiple services; please recreate service"
                        );
                        warn("ClusterIPAlreadyAllocated", message);
                        true
                    }
                    Some(_) => true,
                }
            }
            Some(_) => ip_address::is_labelled(&address),
        };
        if is_right {
            return Ok(());
        }
        self.delete(&ip.to_string()).await?;
        self.create(ip, of).await
    }

    async fn address(&self, of: &IPAddress) -> Result<Outcome, Error> {
        if !ip_address::is_managed(of) || of.metadata.is_deleting() {
            return Ok(Outcome::done());
        }
        let ip = of.metadata.name();
        let warn = |reason: &str, message: String| self.recorder.warning(of, reason, &message);
        let Some((namespace, name)) = ip_address::service_of(of) else {
            let message =
                format!("IPAddress {ip} appears to have been modified, not referencing a Service: cleaning up");
            warn("IPAddressNotAllocated", message);
            self.delete(ip).await?;
            return Ok(Outcome::done());
        };
        // A Service being created, or one whose end has not been heard of.
        let age = of.metadata.creation_timestamp.as_ref().map(|t| self.setup.config.clock.now().duration_since(t.0));
        let left = SignedDuration::try_from(GRACE).unwrap_or_default() - age.unwrap_or(SignedDuration::MAX);
        let found = self.services.store().by_key(&key(namespace, name));
        let held = |s: &Service| cluster_ips(s).iter().any(|held| held.to_string() == ip);
        match found {
            Some(service) if held(&service) => return Ok(Outcome::done()),
            _ if left.is_positive() => return Ok(Outcome::after(left.unsigned_abs())),
            Some(_) => {
                let message =
                    format!("IPAddress: {ip} for Service {namespace}/{name} has a wrong reference; cleaning up");
                warn("IPAddressWrongReference", message);
            }
            None => {
                let message =
                    format!("IPAddress: {ip} for Service {namespace}/{name} appears to have leaked: cleaning up");
                warn("IPAddressNotAllocated", message);
            }
        }
        self.delete(ip).await?;
        Ok(Outcome::done())
    }
}

#[async_trait]
impl Controller for Repair {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        if let Some(name) = key.strip_prefix(ADDRESS) {
            return match self.addresses.store().by_key(name) {
                Some(address) => self.address(&address).await,
                None => Ok(Outcome::done()),
            };
        }
        let (namespace, name) = split_key(key);
        if let Some(service) = self.services.store().get(namespace, name).filter(|s| !s.metadata.is_deleting()) {
            self.service(&service).await?;
        }
        Ok(Outcome::done())
    }
}
