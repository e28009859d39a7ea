//! ResourceQuotas: counts what there is. Admission charges a quota for what is created; this controller takes over a changed
//! quota's bounds, and counts anew whenever something it bounds went away or stopped counting.

use crate::config::Setup;
use crate::discovery::discover;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::core::pod::resources::{Amounts, amounts};
use gantry_api::core::quota::{concerns, count_name, in_scope, pod_counts, usage};
use gantry_api::core::quota_of_devices::{Classes, charged_with_pod, is_extended_name, pod_of};
use gantry_api::kind::{Kind, Object};
use gantry_api::meta::object::Meta;
use gantry_api::meta::quantity::{Amount, ResourceList};
use gantry_client::{Api, ListParams, MetadataApi, PartialObject, PostParams, ResourceRef};
use gantry_reconcile::store::key_of;
use gantry_reconcile::{Change, Controller, Error, Informer, Outcome, Queue, Synced, runner, wait_synced};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaStatus, Service};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim};
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const WORKERS: usize = 5;
/// Everything is counted anew this often, for what no event tells of (`--resource-quota-sync-period`).
const RESYNC: Duration = Duration::from_secs(300);
/// A count that found something is repeated after this long.
const AGAIN: Duration = Duration::from_secs(1);
/// Which resources there are is asked at most this often.
const REDISCOVER: Duration = Duration::from_secs(30);
/// Core kinds whose number has a name older than `count/`.
const ALIASES: &[&str] = &["configmaps", "resourcequotas", "replicationcontrollers", "secrets"];

/// What the controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&["*"], &["*"], &["list", "watch"]),
    // As it is now, and not as a cache has it.
    Rule::new(&[""], &["resourcequotas"], &["get"]),
    Rule::new(&[""], &["resourcequotas/status"], &["update"]),
    EVENTS,
];

/// The resources of which a quota bounds the number, and the watches on them.
#[derive(Default)]
struct Counted {
    /// By the name that quotas bound them under.
    served: BTreeMap<String, ResourceRef>,
    watched: BTreeSet<String>,
    discovered: Option<Instant>,
}

struct Quotas {
    concerned: Concerned,
    counted: Mutex<Counted>,
    pods: Informer<Pod>,
    setup: Setup,
}

/// Finds the quotas to count anew.
#[derive(Clone)]
struct Concerned {
    quotas: Informer<ResourceQuota>,
    queue: Queue,
}

impl Concerned {
    /// Something of a namespace went away: the quotas that bound it are counted anew.
    fn replenish(&self, group: &str, plural: &str, namespace: &str) {
        for quota in self.quotas.store().list_in(namespace) {
            // Claims of devices count for extended resources, too.
            let claims = plural == ResourceClaim::INFO.plural && group == ResourceClaim::INFO.group;
            if bounds(&quota).any(|name| concerns(group, plural, name) || (claims && is_extended_name(name))) {
                self.queue.add(key_of(quota.as_ref()));
            }
        }
    }
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let quotas = setup.informers.get::<ResourceQuota>();
    let pods = setup.informers.get::<Pod>();
    let services = setup.informers.get::<Service>();
    let claims = setup.informers.get::<PersistentVolumeClaim>();
    let device_claims = setup.informers.get::<ResourceClaim>();
    let queue = Queue::new(setup.name);
    let keys = queue.clone();
    quotas.on_change(move |change| {
        // A changed status is admission's charge or our own count.
        let bounds = |q: &ResourceQuota| q.spec.as_ref().and_then(|s| s.hard.clone());
        let same = change.old().is_some_and(|old| bounds(old) == bounds(change.object()));
        if !same && !matches!(change, Change::Deleted(_)) {
            keys.add(key_of(change.object().as_ref()));
        }
    });
    let concerned = Concerned { quotas: quotas.clone(), queue: queue.clone() };
    let clock = setup.config.clock;
    let c = concerned.clone();
    pods.on_change(move |change| {
        let now = clock.now();
        let stopped = change.old().is_some_and(|old| {
            let resized = requests(old) != requests(change.object());
            pod_counts(old, now) && (!pod_counts(change.object(), now) || resized)
        });
        if stopped || matches!(change, Change::Deleted(_)) {
            c.replenish("", "pods", change.object().metadata.namespace());
        }
    });
    let c = concerned.clone();
    services.on_change(move |change| {
        let changed = change.old().is_some_and(|old| ports(old) != ports(change.object()));
        if changed || matches!(change, Change::Deleted(_)) {
            c.replenish("", "services", change.object().metadata.namespace());
        }
    });
    let c = concerned.clone();
    claims.on_change(move |change| {
        let allocated = |p: &PersistentVolumeClaim| p.status.as_ref().and_then(|s| s.allocated_resources.clone());
        let changed = change.old().is_some_and(|old| allocated(old) != allocated(change.object()));
        if changed || matches!(change, Change::Deleted(_)) {
            c.replenish("", "persistentvolumeclaims", change.object().metadata.namespace());
        }
    });
    let c = concerned.clone();
    device_claims.on_change(move |change| {
        if matches!(change, Change::Deleted(_)) {
            c.replenish(ResourceClaim::INFO.group, ResourceClaim::INFO.plural, change.object().metadata.namespace());
        }
    });
    if !wait_synced(&[&quotas, &pods, &services, &claims, &device_claims], &setup.cancel).await {
        return;
    }
    let cancel = setup.cancel.clone();
    let controller = Quotas { concerned, counted: Mutex::default(), pods, setup };
    runner::run(Arc::new(controller), queue, WORKERS, cancel).await;
}

fn requests(pod: &Pod) -> Vec<Option<&k8s_openapi::api::core::v1::ResourceRequirements>> {
    pod.spec.iter().flat_map(|s| &s.containers).map(|c| c.resources.as_ref()).collect()
}

/// What a service counts by.
fn ports(service: &Service) -> (Option<&str>, usize) {
    let spec = service.spec.as_ref();
    (spec.and_then(|s| s.type_.as_deref()), spec.and_then(|s| s.ports.as_ref()).map_or(0, Vec::len))
}

fn bounds(quota: &ResourceQuota) -> impl Iterator<Item = &String> {
    quota.spec.iter().flat_map(|s| s.hard.iter().flatten()).map(|(name, _)| name)
}

/// Adds what one object uses, where the quota's scopes include it.
fn count(sum: &mut Amounts, quota: &ResourceQuota, info: (&str, &str), object: &dyn Object, now: Timestamp) {
    if !in_scope(quota, object) {
        return;
    }
    add(sum, usage(info.0, info.1, object, now));
}

/// Adds what is used of what is bounded.
fn add(sum: &mut Amounts, used: Amounts) {
    for (name, amount) in used {
        if let Some(sum) = sum.get_mut(&name) {
            *sum = sum.plus(&amount);
        }
    }
}

/// The status of a quota of which so much is used now. What could not be counted keeps its last count.
#[must_use]
pub fn status(quota: &ResourceQuota, counted: &Amounts) -> ResourceQuotaStatus {
    let hard = quota.spec.as_ref().and_then(|s| s.hard.clone()).unwrap_or_default();
    let mut used = amounts(quota.status.as_ref().and_then(|s| s.used.as_ref()));
    used.extend(counted.iter().map(|(k, a)| (k.clone(), *a)));
    used.retain(|name, _| hard.contains_key(name));
    let used: ResourceList = used.iter().map(|(k, a)| (k.clone(), a.to_quantity())).collect();
    ResourceQuotaStatus { hard: Some(hard), used: Some(used) }
}

/// Whether two statuses say the same.
fn same(a: Option<&ResourceQuotaStatus>, b: &ResourceQuotaStatus) -> bool {
    let Some(a) = a else { return false };
    a.hard == b.hard && a.used.is_some() && amounts(a.used.as_ref()) == amounts(b.used.as_ref())
}

impl Quotas {
    /// All objects of a kind in the quota's namespace, as the server has them now.
    async fn count_all<K: Kind>(&self, quota: &ResourceQuota, sum: &mut Amounts) -> Result<(), Error> {
        let (group, plural) = (K::INFO.group, K::INFO.plural);
        let names: Vec<String> = bounds(quota).filter(|n| concerns(group, plural, n)).cloned().collect();
        if names.is_empty() {
            return Ok(());
        }
        sum.extend(names.into_iter().map(|n| (n, Amount::ZERO)));
        let api = Api::<K>::namespaced(self.setup.client.clone(), quota.metadata.namespace());
        let list = api.list(&ListParams::default()).await.map_err(|e| Error::api(format!("list {plural}"), e))?;
        let now = self.setup.config.clock.now();
        for object in &list.items {
            count(sum, quota, (group, plural), object, now);
        }
        Ok(())
    }

    /// Claims of devices, which count for their classes and for the extended resources that these stand for.
    async fn count_device_claims(&self, quota: &ResourceQuota, sum: &mut Amounts) -> Result<(), Error> {
        let info = (ResourceClaim::INFO.group, ResourceClaim::INFO.plural);
        let params = ListParams::default();
        let mut classes = Classes::default();
        if bounds(quota).any(|n| is_extended_name(n)) {
            let api = Api::<DeviceClass>::all(self.setup.client.clone());
            let list = api.list(&params).await.map_err(|e| Error::api("list deviceclasses", e))?;
            classes = Classes::of(&list.items);
        }
        let names: Vec<&String> =
            bounds(quota).filter(|n| concerns(info.0, info.1, n) || classes.concerns(n)).collect();
        if names.is_empty() {
            return Ok(());
        }
        // Pods may have been counted under the same names.
        for name in names {
            sum.entry(name.clone()).or_insert(Amount::ZERO);
        }
        let namespace = quota.metadata.namespace();
        let api = Api::<ResourceClaim>::namespaced(self.setup.client.clone(), namespace);
        let list = api.list(&params).await.map_err(|e| Error::api("list resourceclaims", e))?;
        let now = self.setup.config.clock.now();
        for claim in list.items.iter().filter(|c| in_scope(quota, *c)) {
            let mut used = usage(info.0, info.1, claim, now);
            let pod = pod_of(claim).and_then(|(name, _)| self.pods.get(namespace, name));
            classes.add(&mut used, &charged_with_pod(claim, pod.as_deref(), &list.items, now));
            add(sum, used);
        }
        Ok(())
    }

    /// The resource whose objects are counted under this name; None where none is served.
    async fn counted(&self, name: &str) -> Result<Option<ResourceRef>, Error> {
        let known = {
            let c = self.counted.lock();
            let stale = c.discovered.is_none_or(|t| t.elapsed() > REDISCOVER);
            if !stale || c.served.contains_key(name) { Some(c.served.get(name).cloned()) } else { None }
        };
        if let Some(known) = known {
            return Ok(known);
        }
        let found = discover(&self.setup.client).await.map_err(|e| Error::api("discover resources", e))?;
        let mut c = self.counted.lock();
        c.discovered = Some(Instant::now());
        for d in found.resources.into_iter().filter(|d| d.resource.namespaced && d.answers(&["list", "watch"])) {
            c.served.entry(count_name(&d.resource.group, &d.resource.plural)).or_insert(d.resource);
        }
        Ok(c.served.get(name).cloned())
    }

    /// Watches a resource that a quota counts, from before it is counted.
    async fn watch(&self, resource: &ResourceRef) {
        let informer = self.setup.informers.metadata(resource);
        if self.counted.lock().watched.insert(resource.qualified()) {
            let (concerned, r) = (self.concerned.clone(), resource.clone());
            informer.on_change(move |change: &Change<PartialObject>| {
                if let Change::Deleted(gone) = change {
                    concerned.replenish(&r.group, &r.plural, gone.metadata.namespace());
                }
            });
        }
        informer.synced().await;
    }

    async fn usage_of(&self, quota: &ResourceQuota) -> Result<Amounts, Error> {
        let mut sum = Amounts::new();
        self.count_all::<Pod>(quota, &mut sum).await?;
        self.count_all::<Service>(quota, &mut sum).await?;
        self.count_all::<PersistentVolumeClaim>(quota, &mut sum).await?;
        self.count_device_claims(quota, &mut sum).await?;
        // Nothing but pods and claims has scopes.
        let spec = quota.spec.as_ref();
        let scoped = spec.is_some_and(|s| {
            let selects =
                s.scope_selector.as_ref().is_some_and(|s| s.match_expressions.iter().flatten().next().is_some());
            selects || s.scopes.iter().flatten().next().is_some()
        });
        let mut of_resource: BTreeMap<ResourceRef, Vec<String>> = BTreeMap::new();
        for name in bounds(quota).filter(|n| !sum.contains_key(*n)) {
            let asked = if ALIASES.contains(&name.as_str()) { count_name("", name) } else { name.clone() };
            if asked.starts_with("count/")
                && let Some(resource) = self.counted(&asked).await?
            {
                of_resource.entry(resource).or_default().push(name.clone());
            }
        }
        for (resource, names) in of_resource {
            self.watch(&resource).await;
            let mut number = 0;
            if !scoped {
                let what = format!("list {}", resource.qualified());
                let api = MetadataApi::new(self.setup.client.clone(), resource);
                let list = api.list(quota.metadata.namespace(), &ListParams::default()).await;
                number = list.map_err(|e| Error::api(what, e))?.items.len();
            }
            let number = i64::try_from(number).unwrap_or(i64::MAX);
            let amount = Amount::from_units(number, gantry_api::meta::quantity::Format::DecimalSI);
            sum.extend(names.into_iter().map(|n| (n, amount)));
        }
        Ok(sum)
    }
}

#[async_trait]
impl Controller for Quotas {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let (namespace, name) = gantry_reconcile::store::split_key(key);
        let api = Api::<ResourceQuota>::namespaced(self.setup.client.clone(), namespace);
        // The quota before the objects: what is charged while they are counted makes the update of the status fail, and
        // then everything is counted again.
        let quota = match api.get(name).await {
            Ok(quota) => quota,
            Err(e) if e.is("NotFound") => return Ok(Outcome::done()),
            Err(e) => return Err(Error::api(format!("get resource quota {key}"), e)),
        };
        // Neither may what was charged before and is being stored now be missed: a dry run is answered when it is stored.
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        let asked = api.update_status(&dry_run, &quota).await;
        asked.map_err(|e| Error::api(format!("update status of resource quota {key}"), e))?;
        let status = status(&quota, &self.usage_of(&quota).await?);
        if !same(quota.status.as_ref(), &status) {
            let updated = ResourceQuota { status: Some(status), ..quota };
            api.update_status(&PostParams::default(), &updated)
                .await
                .map_err(|e| Error::api(format!("update status of resource quota {key}"), e))?;
            // What was written before admission knew of the quota was not charged, and may have been stored since.
            return Ok(Outcome::after(AGAIN));
        }
        Ok(Outcome::after(RESYNC))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_status_has_what_is_bounded() {
        let quota = <ResourceQuota as Kind>::from_value(json!({
            "metadata": {"name": "q"}, "spec": {"hard": {"pods": "3", "count/gone.example.com": "1"}},
            "status": {"hard": {"pods": "2", "secrets": "1"}, "used": {"pods": "1", "secrets": "1"}}}))
        .unwrap();
        let counted = Amounts::from([("pods".to_owned(), Amount::parse("2").unwrap())]);
        let s = status(&quota, &counted);
        assert_eq!(json!(s), json!({"hard": {"pods": "3", "count/gone.example.com": "1"}, "used": {"pods": "2"}}));
        assert!(same(Some(&s), &s) && !same(quota.status.as_ref(), &s) && !same(None, &s));
    }
}
