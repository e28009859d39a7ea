//! ResourceQuota: what an object asks for is charged to the quotas of its namespace before it is stored, and refused
//! where one of them would be exceeded.
//!
//! A quota is charged by an update of its status that compares revisions, so that of two writes racing for the last of
//! something one sees the other's charge. What was charged for a write that then did not happen is given back. What an
//! object no longer uses is released by the controller, which counts anew.
//!
//! The controller must not count while something is charged and not stored yet: it would lower the charge. So every write
//! that is charged holds its namespace's lock for reading until it is over, and an update of a quota's status takes the
//! lock for writing once: a dry run of it is answered when all that was charged before is stored.

use super::{Attributes, Operation, ValidatingPlugin};
use crate::cluster::{Cluster, resource_of};
use async_trait::async_trait;
use gantry_api::core::pod::resources::{Amounts, amounts};
use gantry_api::core::quota;
use gantry_api::core::quota_of_devices::{Classes, charged_with_pod, pod_of};
use gantry_api::k8s_openapi::api::core::v1::{Pod, ResourceQuota, ScopedResourceSelectorRequirement};
use gantry_api::k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim};
use gantry_api::k8s_openapi::jiff::Timestamp;
use gantry_api::kind::{Object, downcast_mut};
use gantry_api::meta::object::Meta;
use gantry_api::meta::quantity::{Amount, ResourceList};
use gantry_api::meta::status::ApiError;
use parking_lot::Mutex;
use serde::Deserialize;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use tokio::sync::RwLock;

/// What may be used only where a quota bounds it (`limitedResources` of a ResourceQuotaConfiguration).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Limited {
    /// Group of the resource.
    #[serde(default)]
    pub api_group: String,
    /// Plural name of the resource.
    #[serde(default)]
    pub resource: String,
    /// Parts of the names under which quotas bound what is used.
    #[serde(default)]
    pub match_contains: Vec<String>,
    /// Scopes that a quota must have that an object is in.
    #[serde(default)]
    pub match_scopes: Vec<ScopedResourceSelectorRequirement>,
}

pub(super) struct Quota {
    /// What is limited even where no quota is.
    limited: Vec<Limited>,
    /// By namespace what charged writes hold.
    under_way: Mutex<HashMap<String, Weak<RwLock<()>>>>,
}

/// What a write asks of one quota.
struct Charge {
    quota: String,
    delta: Amounts,
}

/// Whether the write can change what is used.
fn is_counted(a: &Attributes<'_>) -> bool {
    let info = a.resource.info();
    let resize = a.is("", "pods", "resize");
    if a.namespace.is_empty() || info.virtual_only || !(a.subresource.is_empty() || resize) {
        return false;
    }
    match (info.group, info.plural, a.operation) {
        // Events tell of what happens; they are not asked for.
        ("" | "events.k8s.io", "events", _) => false,
        ("", "pods", Operation::Update) => {
            let ends = |p: Option<&Pod>| p.is_some_and(quota::is_terminating);
            resize || ends(a.object_as()) != ends(a.old_as())
        }
        ("", "services" | "persistentvolumeclaims", Operation::Update) | (_, _, Operation::Create) => true,
        _ => false,
    }
}

/// What a claim of devices is charged by: the classes there are, and what its pod is charged for already.
struct Devices {
    classes: Classes,
    of_pod: Amounts,
}

/// None where the write is of something else than a claim of devices.
async fn devices(a: &Attributes<'_>, cluster: &Cluster) -> Result<Option<Devices>, ApiError> {
    let Some(claim) = a.object_as::<ResourceClaim>().cloned() else { return Ok(None) };
    let classes = Classes::of(&cluster.list::<DeviceClass>("").await?);
    let of_pod = match pod_of(&claim) {
        Some((name, _)) => {
            let pod = cluster.get::<Pod>(a.namespace, name).await?;
            let claims = cluster.list::<ResourceClaim>(a.namespace).await?;
            charged_with_pod(&claim, pod.as_ref(), &claims, cluster.clock.now())
        }
        None => Amounts::new(),
    };
    Ok(Some(Devices { classes, of_pod }))
}

fn names(list: Option<&ResourceList>) -> impl Iterator<Item = &String> {
    list.into_iter().flat_map(|l| l.keys())
}

fn join<'a>(names: impl Iterator<Item = &'a String>) -> String {
    names.map(String::as_str).collect::<Vec<_>>().join(",")
}

/// What the quota is to be charged for the write: nothing where it is not concerned.
fn charge_of(
    a: &Attributes<'_>,
    of: &ResourceQuota,
    devices: Option<&Devices>,
    now: Timestamp,
) -> Result<Option<Charge>, ApiError> {
    let info = a.resource.info();
    let Some(object) = a.object.as_deref() else { return Ok(None) };
    let status = of.status.clone().unwrap_or_default();
    let concerns =
        |n: &str| quota::concerns(info.group, info.plural, n) || devices.is_some_and(|d| d.classes.concerns(n));
    let bounded = || names(status.hard.as_ref()).filter(|n| concerns(n));
    if bounded().next().is_none() || !quota::in_scope(of, object) {
        return Ok(None);
    }
    let name = of.metadata.name();
    if let Err(e) = quota::constraints(bounded(), object) {
        return Err(a.forbidden(&format!("failed quota: {name}: {e}")));
    }
    let used = status.used.unwrap_or_default();
    if bounded().any(|n| !used.contains_key(n)) {
        return Err(a.forbidden(&format!("status unknown for quota: {name}, resources: {}", join(bounded()))));
    }
    let mut delta = quota::usage(info.group, info.plural, object, now);
    if let Some(d) = devices {
        d.classes.add(&mut delta, &d.of_pod);
    }
    let negative: Vec<&String> = delta.iter().filter(|(_, a)| a.sign() < 0).map(|(n, _)| n).collect();
    if !negative.is_empty() {
        let names = join(negative.into_iter());
        return Err(a.forbidden(&format!("quota usage is negative for resource(s): {names}")));
    }
    if a.operation == Operation::Update
        && let Some(old) = a.old_object
        && quota::in_scope(of, old)
    {
        for (name, before) in quota::usage(info.group, info.plural, old, now) {
            if let Some(amount) = delta.get_mut(&name) {
                *amount = amount.minus(&before);
            }
        }
    }
    delta.retain(|n, amount| amount.sign() > 0 && bounded().any(|b| b == n));
    Ok((!delta.is_empty()).then(|| Charge { quota: name.to_owned(), delta }))
}

/// The used amounts with the charge; the reason where they would exceed what the quota allows.
fn charged(of: &ResourceQuota, delta: &Amounts) -> Result<Amounts, String> {
    let status = of.status.as_ref();
    let hard = amounts(status.and_then(|s| s.hard.as_ref()));
    let mut used = amounts(status.and_then(|s| s.used.as_ref()));
    let before = used.clone();
    let mut exceeded = Vec::new();
    for (name, amount) in delta {
        let sum = used.get(name).copied().unwrap_or_default().plus(amount);
        if hard.get(name).is_some_and(|h| sum > *h) {
            exceeded.push(name);
        }
        used.insert(name.clone(), sum);
    }
    if exceeded.is_empty() {
        return Ok(used);
    }
    let shown = |of: &Amounts| {
        let texts = exceeded.iter().filter_map(|n| Some(format!("{n}={}", of.get(*n)?)));
        texts.collect::<Vec<_>>().join(",")
    };
    Err(format!(
        "exceeded quota: {}, requested: {}, used: {}, limited: {}",
        of.metadata.name(),
        shown(delta),
        shown(&before),
        shown(&hard)
    ))
}

fn set_used(of: &mut ResourceQuota, used: &Amounts) {
    let list: ResourceList = used.iter().map(|(n, a)| (n.clone(), a.to_quantity())).collect();
    of.status.get_or_insert_default().used = Some(list);
}

/// Charges one quota. One that has gone away in between bounds nothing any more.
async fn charge(a: &Attributes<'_>, charge: &Charge, cluster: &Cluster) -> Result<(), ApiError> {
    let mut change = |object: &mut dyn Object| {
        let of = downcast_mut::<ResourceQuota>(object).ok_or_else(|| ApiError::internal("not a quota"))?;
        let used = charged(of, &charge.delta).map_err(|why| a.forbidden(&why))?;
        set_used(of, &used);
        Ok(())
    };
    let resource = resource_of::<ResourceQuota>();
    match cluster.objects.guaranteed_update(resource, a.namespace, &charge.quota, a.dry_run, &mut change).await {
        Err(e) if e.is("NotFound") => Ok(()),
        other => other.map(drop),
    }
}

/// Takes a charge back.
async fn give_back(namespace: &str, charge: &Charge, cluster: &Cluster) {
    let mut change = |object: &mut dyn Object| {
        let of = downcast_mut::<ResourceQuota>(object).ok_or_else(|| ApiError::internal("not a quota"))?;
        let mut used = amounts(of.status.as_ref().and_then(|s| s.used.as_ref()));
        for (name, amount) in &charge.delta {
            if let Some(sum) = used.get_mut(name) {
                *sum = sum.minus(amount).max(Amount::ZERO);
            }
        }
        set_used(of, &used);
        Ok(())
    };
    let resource = resource_of::<ResourceQuota>();
    let result = cluster.objects.guaranteed_update(resource, namespace, &charge.quota, false, &mut change).await;
    if let Err(e) = result
        && !e.is("NotFound")
    {
        tracing::warn!(namespace, quota = charge.quota, error = %e, "a charge is not taken back until the quota is counted anew");
    }
}

impl Quota {
    /// With what may be used only where a quota bounds it.
    pub(super) fn new(limited: Vec<Limited>) -> Self {
        Self { limited, under_way: Mutex::default() }
    }

    fn lock_of(&self, namespace: &str) -> Arc<RwLock<()>> {
        let mut all = self.under_way.lock();
        if let Some(lock) = all.get(namespace).and_then(Weak::upgrade) {
            return lock;
        }
        all.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(RwLock::new(()));
        all.insert(namespace.to_owned(), Arc::downgrade(&lock));
        lock
    }

    async fn charges(&self, a: &Attributes<'_>, cluster: &Cluster) -> Result<Vec<Charge>, ApiError> {
        let (mut charges, now) = (Vec::new(), cluster.clock.now());
        let quotas = cluster.list::<ResourceQuota>(a.namespace).await?;
        let devices = if quotas.is_empty() { None } else { devices(a, cluster).await? };
        for of in &quotas {
            charges.extend(charge_of(a, of, devices.as_ref(), now)?);
        }
        self.check_limited(a, &quotas, now)?;
        Ok(charges)
    }

    /// Refuses what is limited and bounded by no quota.
    fn check_limited(&self, a: &Attributes<'_>, quotas: &[ResourceQuota], now: Timestamp) -> Result<(), ApiError> {
        let info = a.resource.info();
        let Some(object) = a.object.as_deref().filter(|_| !self.limited.is_empty()) else { return Ok(()) };
        let used = quota::usage(info.group, info.plural, object, now);
        let before = a.old_object.map(|old| quota::usage(info.group, info.plural, old, now)).unwrap_or_default();
        if used.iter().all(|(name, amount)| before.get(name).is_some_and(|b| amount <= b)) {
            return Ok(());
        }
        let bounds = |name: &String| {
            let has = |q: &ResourceQuota| {
                q.status.as_ref().and_then(|s| s.hard.as_ref()).is_some_and(|h| h.contains_key(name))
            };
            quotas.iter().any(|q| has(q) && quota::in_scope(q, object))
        };
        let of_resource = self.limited.iter().filter(|l| l.api_group == info.group && l.resource == info.plural);
        let parts: Vec<&String> = of_resource.flat_map(|l| &l.match_contains).collect();
        let limited = used.iter().filter(|(name, amount)| amount.sign() > 0 && parts.iter().any(|p| name.contains(*p)));
        let unbounded: Vec<&String> = limited.map(|(name, _)| name).filter(|name| !bounds(name)).collect();
        if !unbounded.is_empty() {
            return Err(a.forbidden(&format!("insufficient quota to consume: {}", join(unbounded.into_iter()))));
        }
        let scopes = self.limited.iter().flat_map(|l| &l.match_scopes).filter(|s| quota::selects(s, object));
        let covers = |scope: &ScopedResourceSelectorRequirement| {
            let mut selectors = quotas.iter().flat_map(quota::selectors);
            selectors.any(|s| s.scope_name == scope.scope_name && quota::selects(&s, object))
        };
        let uncovered: Vec<String> = scopes.filter(|s| !covers(s)).map(shown).collect();
        if uncovered.is_empty() {
            return Ok(());
        }
        // Upstream's refusal has neither a code of its own nor a reason.
        let why = format!("insufficient quota to match these scopes: [{}]", uncovered.join(" "));
        Err(ApiError::new(500, "", why))
    }
}

/// A scope as Go prints it.
fn shown(scope: &ScopedResourceSelectorRequirement) -> String {
    let values = scope.values.as_deref().unwrap_or_default().join(" ");
    format!("{{{} {} [{values}]}}", scope.scope_name, scope.operator)
}

#[async_trait]
impl ValidatingPlugin for Quota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    async fn validate(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        if a.is("", "resourcequotas", "status") {
            drop(self.lock_of(a.namespace).write_owned().await);
            return Ok(());
        }
        if !is_counted(a) {
            return Ok(());
        }
        let charges = self.charges(a, cluster).await?;
        if !charges.is_empty() && !a.dry_run {
            a.held.push(Box::new(self.lock_of(a.namespace).read_owned().await));
        }
        for (i, one) in charges.iter().enumerate() {
            if let Err(e) = charge(a, one, cluster).await {
                if !a.dry_run {
                    for earlier in &charges[..i] {
                        give_back(a.namespace, earlier, cluster).await;
                    }
                }
                return Err(e);
            }
        }
        Ok(())
    }

    async fn abandoned(&self, a: &Attributes<'_>, cluster: &Cluster) {
        if a.dry_run || !is_counted(a) {
            return;
        }
        match self.charges(a, cluster).await {
            Ok(charges) => {
                for one in &charges {
                    give_back(a.namespace, one, cluster).await;
                }
            }
            Err(e) => tracing::debug!(error = %e, "nothing to give back"),
        }
    }
}
