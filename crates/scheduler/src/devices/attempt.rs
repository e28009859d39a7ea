//! The claims of one pod in one attempt to place it: what each node says of them.

use super::allocate::{Allocator, Classes, Failure};
use super::extended::{self, Backed};
use super::pool::{Inventory, NodeFacts};
use super::selector::Selectors;
use super::taken::Taken;
use crate::filter::Rejection;
use crate::pod::{Amounts, PodInfo};
use crate::profile::DeviceLimits;
use crate::snapshot::{Row, Snapshot};
use gantry_api::core::placement::selects;
use gantry_api::entropy::Entropy;
use gantry_api::k8s_openapi::api::core::v1::ContainerExtendedResourceRequest;
use gantry_api::k8s_openapi::api::resource::v1::{AllocationResult, DeviceRequest, ResourceClaim};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use tokio::time::Instant;

/// The plugin, as upstream names it.
pub const PLUGIN: &str = "DynamicResources";
/// Most alternatives of a request; the first scores as much, the next one less.
const ALTERNATIVES_MAX: usize = 8;
/// Steps of the search between looks at the time.
const STEPS_PER_LOOK: u32 = 256;

/// A claim of the pod.
#[derive(Clone, Debug)]
pub(crate) struct Claimed {
    pub(crate) claim: Arc<ResourceClaim>,
    /// Its devices failed to be made ready, or were not in time.
    pub(crate) failed: bool,
}

impl Claimed {
    pub(crate) fn allocation(&self) -> Option<&AllocationResult> {
        self.claim.status.as_ref()?.allocation.as_ref()
    }
}

/// Extended resources of the pod that devices may stand for.
#[derive(Clone, Debug)]
pub(crate) enum Extended {
    /// A claim was made for them by an attempt that failed; it must go first.
    Stale(Arc<ResourceClaim>),
    /// A claim is made where the node has none of them.
    Wanted(Arc<Backed>),
}

/// How claims are met on a node.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeAllocation {
    /// The claims that get their devices by it, by their number among the pod's, with those.
    pub(crate) claims: Vec<(usize, AllocationResult)>,
    /// The claim that is made for extended resources.
    pub(crate) extended: Option<MadeClaim>,
}

/// A claim that does not exist yet.
#[derive(Clone, Debug)]
pub(crate) struct MadeClaim {
    pub(crate) claim: Arc<ResourceClaim>,
    pub(crate) allocation: AllocationResult,
    pub(crate) mappings: Vec<ContainerExtendedResourceRequest>,
}

type Verdict = Result<Arc<NodeAllocation>, Rejection>;

#[derive(Debug, Default)]
struct Found {
    by_node: HashMap<Row, Verdict>,
    /// Claims that are allocated, but not for some node.
    unavailable: BTreeSet<usize>,
    error: Option<String>,
}

/// What devices are taken from.
#[derive(Clone, Debug)]
pub(crate) struct Supply {
    pub(crate) inventory: Arc<Inventory>,
    pub(crate) taken: Arc<Taken>,
    pub(crate) classes: Arc<Classes>,
    pub(crate) selectors: Arc<Selectors>,
}

/// See the module.
#[derive(Debug)]
pub struct PodDevices {
    pub(crate) pod: Arc<PodInfo>,
    pub(crate) claims: Vec<Claimed>,
    pub(crate) extended: Option<Extended>,
    pub(crate) supply: Supply,
    entropy: Entropy,
    pub(crate) limits: DeviceLimits,
    found: Mutex<Found>,
}

/// What the pod is given on the node it was placed on.
#[derive(Clone, Debug)]
pub struct Reserved {
    pub(crate) devices: Arc<PodDevices>,
    pub(crate) allocation: Arc<NodeAllocation>,
}

impl PodDevices {
    pub(crate) fn new(
        pod: Arc<PodInfo>,
        claims: Vec<Claimed>,
        extended: Option<Extended>,
        supply: Supply,
        (entropy, limits): (Entropy, DeviceLimits),
    ) -> Self {
        Self { pod, claims, extended, supply, entropy, limits, found: Mutex::default() }
    }

    /// Whether the claims can be had on the node; the search is made once.
    ///
    /// # Errors
    /// The rejection.
    pub(crate) fn filter(&self, snapshot: &Snapshot, row: Row) -> Result<(), Rejection> {
        if let Some(known) = self.found.lock().by_node.get(&row) {
            return known.clone().map(drop);
        }
        let verdict = self.look(snapshot, row);
        self.found.lock().by_node.insert(row, verdict.clone());
        verdict.map(drop)
    }

    fn look(&self, snapshot: &Snapshot, row: Row) -> Verdict {
        let reject = |reason: &str| Rejection::one(PLUGIN, reason.to_owned(), true);
        let extended = self.on_node(&snapshot.allocatable[row]).map_err(reject)?;
        let (name, labels) = (snapshot.names[row].as_str(), &snapshot.labels[row]);
        let is_out = |c: &Claimed| {
            let selector = c.allocation().and_then(|a| a.node_selector.as_ref());
            c.failed || selector.is_some_and(|s| !selects(s, labels, name))
        };
        let out: Vec<usize> = (0..self.claims.len()).filter(|i| is_out(&self.claims[*i])).collect();
        let allocation = self.allocate(NodeFacts { name, labels }, extended)?;
        if !out.is_empty() {
            self.found.lock().unavailable.extend(out);
            return Err(reject("resourceclaim not available on the node"));
        }
        Ok(Arc::new(allocation))
    }

    fn allocate(&self, node: NodeFacts<'_>, extended: Option<Made>) -> Result<NodeAllocation, Rejection> {
        let open: Vec<usize> = (0..self.claims.len()).filter(|i| self.claims[*i].allocation().is_none()).collect();
        let mut wanted: Vec<Arc<ResourceClaim>> = open.iter().map(|i| self.claims[*i].claim.clone()).collect();
        let made = extended.map(|(requests, mappings)| {
            let claim = Arc::new(extended::claim(&self.pod.pod, requests));
            wanted.push(claim.clone());
            (claim, mappings)
        });
        if wanted.is_empty() {
            return Ok(NodeAllocation::default());
        }
        let reject = |reason: &str| Rejection::one(PLUGIN, reason.to_owned(), true);
        let limit = self.limits.filter;
        let deadline = Instant::now() + limit;
        let mut steps = 0_u32;
        let mut stop = || {
            steps += 1;
            !limit.is_zero() && steps.is_multiple_of(STEPS_PER_LOOK) && Instant::now() > deadline
        };
        let found = self.allocator().allocate(node, &wanted, &mut stop, &|| self.entropy.uuid());
        let mut results = match found {
            Ok(Some(results)) => results,
            Ok(None) => return Err(reject("cannot allocate all claims")),
            Err(Failure::Timeout) => return Err(reject("timed out trying to allocate devices")),
            Err(Failure::Node(why)) => return Err(reject(&why)),
            Err(Failure::Claim(why)) => {
                self.found.lock().error.get_or_insert_with(|| why.clone());
                return Err(reject(&why));
            }
        };
        let extended =
            made.and_then(|(claim, mappings)| Some(MadeClaim { claim, allocation: results.pop()?, mappings }));
        Ok(NodeAllocation { claims: open.into_iter().zip(results).collect(), extended })
    }

    pub(crate) fn allocator(&self) -> Allocator<'_> {
        let Supply { inventory, taken, classes, selectors } = &self.supply;
        Allocator { inventory, taken, classes, selectors }
    }

    /// What of the pod's extended resources devices have to stand for on a node with this allocatable.
    fn on_node(&self, allocatable: &Amounts) -> Result<Option<Made>, &'static str> {
        let backed = match &self.extended {
            None => return Ok(None),
            Some(Extended::Stale(_)) => return Err("cannot schedule extended resource claim"),
            Some(Extended::Wanted(backed)) => backed,
        };
        let mut needed = Backed::new();
        for (resource, amount) in &self.pod.requests.scalars {
            if *amount == 0 || !extended::may_be_backed(resource) {
                continue;
            }
            let there = allocatable.scalars.get(resource);
            match backed.get(resource) {
                Some(class) if there.copied().unwrap_or(0) == 0 => {
                    needed.insert(resource.clone(), class.clone());
                }
                _ if there.is_none() => return Err("cannot fit resource"),
                _ => {}
            }
        }
        if needed.is_empty() {
            return Ok(None);
        }
        Ok(Some(extended::requests(&self.pod.pod, &needed)))
    }

    /// What is wrong with a claim or class, so that no node is worth a try.
    pub(crate) fn error(&self) -> Option<String> {
        self.found.lock().error.clone()
    }

    /// A claim that is allocated, but not for some node, and that nobody else uses.
    pub(crate) fn idle(&self) -> Option<Arc<ResourceClaim>> {
        let unavailable = self.found.lock().unavailable.clone();
        let is_idle = |claim: &&Arc<ResourceClaim>| {
            let users = claim.status.as_ref().and_then(|s| s.reserved_for.as_deref()).unwrap_or_default();
            users.iter().all(|u| *u.uid == *self.pod.uid)
        };
        unavailable.iter().map(|i| &self.claims[*i].claim).find(is_idle).cloned()
    }

    /// How much the pod likes what it would get on the node: the earlier alternatives are the better.
    pub(crate) fn score(&self, row: Row) -> i64 {
        let found = self.found.lock();
        let Some(Ok(allocation)) = found.by_node.get(&row) else { return 0 };
        let mut score = 0;
        for (index, result) in &allocation.claims {
            let results = result.devices.iter().flat_map(|d| d.results.iter().flatten());
            let chosen: BTreeSet<&str> = results.map(|r| r.request.as_str()).collect();
            let spec = self.claims[*index].claim.spec.as_ref();
            let requests = spec.and_then(|s| s.devices.as_ref()).and_then(|d| d.requests.as_ref());
            for request in requests.into_iter().flatten() {
                for (i, sub) in request.first_available.iter().flatten().enumerate() {
                    if chosen.contains(format!("{}/{}", request.name, sub.name).as_str()) {
                        score += ALTERNATIVES_MAX.saturating_sub(i);
                    }
                }
            }
        }
        i64::try_from(score).unwrap_or(i64::MAX)
    }

    /// Whether any claim leaves a choice that scores.
    pub(crate) fn scores(&self) -> bool {
        self.claims.iter().filter(|c| c.allocation().is_none()).any(|c| {
            let devices = c.claim.spec.as_ref().and_then(|s| s.devices.as_ref());
            devices.into_iter().flat_map(|d| d.requests.iter().flatten()).any(|r| r.first_available.is_some())
        })
    }

    /// What the pod gets on a node that passed.
    pub(crate) fn reserve(self: &Arc<Self>, row: Row) -> Option<Reserved> {
        let allocation = self.found.lock().by_node.get(&row)?.as_ref().ok()?.clone();
        Some(Reserved { devices: self.clone(), allocation })
    }
}

/// Requests made of a pod's extended resources, and which container each is for.
type Made = (Vec<DeviceRequest>, Vec<ContainerExtendedResourceRequest>);
