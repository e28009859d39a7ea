//! The search for devices that meet claims on one node. Pure: offers, what is taken, claims and a node go in, allocations
//! come out.
//!
//! Claims, their requests and the devices of each are tried in order, depth first, and the first solution is taken, as
//! upstream's allocator does. Devices of one request are chosen in rising order only, since another order would be the
//! same allocation. Where even the fewest devices of what remains are more than a claim may have, whole branches are left
//! out.

use super::capacity::{self, Amounts};
use super::constraint::Constraint;
use super::pool::{Inventory, NodeFacts, Offered, Pool, PoolState};
use super::selector::Selectors;
use super::taken::Taken;
use super::want::{Mode, Want};
use gantry_api::k8s_openapi::api::resource::v1::{AllocationResult, Counter, DeviceClass, ResourceClaim};
use gantry_api::meta::object::Meta;
use gantry_api::meta::quantity::Amount;
use gantry_api::resource::pod_claim::tolerates;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

/// Most devices that one claim may be allocated.
pub const RESULTS_MAX: usize = 32;

/// Device classes by name.
pub type Classes = BTreeMap<String, Arc<DeviceClass>>;

/// Why a search did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It took too long.
    Timeout,
    /// Something about the node's pools is wrong; other nodes may do.
    Node(String),
    /// Something about a claim or class is wrong; no node is worth a try.
    Claim(String),
}

/// What claims are allocated from.
#[derive(Clone, Copy, Debug)]
pub struct Allocator<'a> {
    /// What drivers offer.
    pub inventory: &'a Inventory,
    /// What others have of it.
    pub taken: &'a Taken,
    /// The classes that requests name.
    pub classes: &'a Classes,
    /// Compiled selectors.
    pub selectors: &'a Selectors,
}

/// A claim as messages name it.
#[must_use]
pub fn shown(claim: &ResourceClaim) -> String {
    format!("{}/{}", claim.metadata.namespace(), claim.metadata.name())
}

/// A device by its pool and its place in it.
pub(super) type Place = (usize, usize);

/// A request by its number in the claim, and that of the alternative (0 where there are none).
type Choice = (usize, usize);

/// A device that was chosen.
#[derive(Debug)]
pub(super) struct Pick {
    place: Place,
    choice: Choice,
    /// What the share takes of a shared device.
    share: Option<Amounts>,
    counts: bool,
}

/// One claim's part of a solution.
#[derive(Debug)]
pub(super) struct Solved<'s> {
    /// The devices, each with the request it is for and what a share takes.
    pub(super) devices: Vec<(&'s Offered, &'s Want<'s>, Option<&'s Amounts>)>,
    /// What was met of each request: itself, or one of its alternatives.
    pub(super) met: Vec<&'s Want<'s>>,
}

impl Allocator<'_> {
    /// Finds devices for all of the claims, or none (`None`). `stop` is asked often whether to give up; `share` makes the
    /// ids of shares.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn allocate(
        &self,
        node: NodeFacts<'_>,
        claims: &[Arc<ResourceClaim>],
        stop: &mut dyn FnMut() -> bool,
        share: &dyn Fn() -> String,
    ) -> Result<Option<Vec<AllocationResult>>, Failure> {
        let pools = self.inventory.pools(node);
        let mut search = Search {
            given: *self,
            node,
            pools: &pools,
            claims,
            wants: Vec::new(),
            constraints: Vec::new(),
            selected: HashMap::new(),
            marked: HashMap::new(),
            shares: HashMap::new(),
            counters: HashMap::new(),
            picks: claims.iter().map(|_| Vec::new()).collect(),
            alternative: HashMap::new(),
            stop,
        };
        search.prepare()?;
        let found = match search.go(Step::default(), false, (0, 0)) {
            Ok(found) => found,
            Err(Stop::TooMany) => return Ok(None),
            Err(Stop::Failed(failure)) => return Err(failure),
        };
        if !found {
            if pools.iter().any(|p| matches!(p.state, PoolState::Invalid(_))) {
                return Err(Failure::Node("invalid resource pools were encountered".to_owned()));
            }
            return Ok(None);
        }
        let mut out = Vec::new();
        for (index, claim) in claims.iter().enumerate() {
            let solved = search.solved(index);
            out.push(super::outcome::result(claim, &solved, node.name, share).map_err(Failure::Claim)?);
        }
        Ok(Some(out))
    }
}

/// Which device is looked for next.
#[derive(Clone, Copy, Debug, Default)]
struct Step {
    claim: usize,
    request: usize,
    alternative: usize,
    device: usize,
}

/// Why a branch was left.
enum Stop {
    /// The claim would have too many devices.
    TooMany,
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Amounts by counter set and counter.
type Counters<'s> = BTreeMap<(&'s str, &'s str), Amount>;

struct Search<'s> {
    given: Allocator<'s>,
    node: NodeFacts<'s>,
    pools: &'s [Pool<'s>],
    claims: &'s [Arc<ResourceClaim>],
    /// By claim, request and alternative.
    wants: Vec<Vec<Vec<Rc<Want<'s>>>>>,
    /// By claim.
    constraints: Vec<Vec<Constraint>>,
    /// Whether selectors select devices, by claim, choice and device.
    selected: HashMap<(usize, Choice, Place), bool>,
    /// Devices chosen, with the claims that have them.
    marked: HashMap<Place, Vec<usize>>,
    /// Shares chosen: how many, and what they take.
    shares: HashMap<Place, (usize, Amounts)>,
    /// What is left of the counters of a pool.
    counters: HashMap<usize, Counters<'s>>,
    /// By claim.
    picks: Vec<Vec<Pick>>,
    /// The alternatives chosen, by claim and request.
    alternative: HashMap<(usize, usize), usize>,
    stop: &'s mut dyn FnMut() -> bool,
}

fn amount(counter: &Counter) -> Amount {
    Amount::parse(&counter.value.0).unwrap_or_default()
}

/// Whether a taint keeps the device from the request.
pub(super) fn taint_against<'a>(device: &'a Offered, want: &Want<'_>) -> Option<&'a str> {
    let hard = device.taints().filter(|t| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute"));
    hard.into_iter()
        .find(|t| !want.tolerations.iter().any(|toleration| tolerates(toleration, t)))
        .map(|t| t.key.as_str())
}

impl<'s> Search<'s> {
    fn offered(&self, (pool, device): Place) -> &'s Offered {
        self.pools[pool].devices[device]
    }

    /// Looks the claims over: how many devices they need at least, and which they need all of.
    fn prepare(&mut self) -> Result<(), Failure> {
        let claims = self.claims;
        for (index, claim) in claims.iter().enumerate() {
            let devices = claim.spec.as_ref().and_then(|s| s.devices.as_ref());
            let mut wants = Vec::new();
            let mut least = 0;
            for (number, request) in devices.into_iter().flat_map(|d| d.requests.iter().flatten()).enumerate() {
                let mut alternatives = Vec::new();
                for (which, mut want) in Want::of(claim, request)?.into_iter().enumerate() {
                    want.class = Some(self.given.class_of(claim, &want)?);
                    if want.mode == Mode::All {
                        want.all = self.all(index, (number, which), &want)?;
                        want.count = want.all.len();
                    }
                    alternatives.push(Rc::new(want));
                }
                least += alternatives.iter().map(|w| w.count).min().unwrap_or(0);
                wants.push(alternatives);
            }
            if least > RESULTS_MAX {
                let claim = shown(claim);
                return Err(Failure::Claim(format!(
                    "claim {claim}: number of requested devices {least} exceeds the claim limit of {RESULTS_MAX}"
                )));
            }
            let mut constraints = Vec::new();
            for (i, c) in devices.into_iter().flat_map(|d| d.constraints.iter().flatten()).enumerate() {
                constraints.push(Constraint::new(c).ok_or_else(|| {
                    let claim = shown(claim);
                    let why = "empty constraint (unsupported constraint type?)";
                    Failure::Claim(format!("claim {claim}, constraint #{i}: {why}"))
                })?);
            }
            self.wants.push(wants);
            self.constraints.push(constraints);
        }
        Ok(())
    }

    /// The devices that a request for all of them is for.
    fn all(&mut self, claim: usize, choice: Choice, want: &Want<'s>) -> Result<Vec<Place>, Failure> {
        let pools = self.pools;
        let mut out = Vec::new();
        for (p, pool) in pools.iter().enumerate() {
            let state = match pool.state {
                PoolState::Ready => None,
                PoolState::Incomplete => Some("being updated"),
                PoolState::Invalid(_) => Some("invalid"),
            };
            if let Some(state) = state {
                let (claim, request) = (shown(&self.claims[claim]), want.name);
                return Err(Failure::Claim(format!(
                    "claim {claim}, request {request}: asks for all devices, but resource pool {pool} is currently \
                     {state}"
                )));
            }
            for d in 0..pool.devices.len() {
                if self.selects(claim, choice, want, (p, d))? && self.share((p, d), want).is_some() {
                    out.push((p, d));
                }
            }
        }
        Ok(out)
    }

    /// Whether the class and the request select the device, and the node may use it.
    fn selects(&mut self, claim: usize, choice: Choice, want: &Want<'s>, place: Place) -> Result<bool, Failure> {
        if let Some(known) = self.selected.get(&(claim, choice, place)) {
            return Ok(*known);
        }
        let device = self.offered(place);
        let found = device.is_on(self.node) && self.given.selected(&self.claims[claim], want, device)?.is_none();
        self.selected.insert((claim, choice, place), found);
        Ok(found)
    }

    /// What the request takes of the device's capacity besides others; `None` where there is too little.
    fn share(&self, place: Place, want: &Want<'_>) -> Option<Amounts> {
        let device = self.offered(place);
        let chosen = self.shares.get(&place).map(|(_, amounts)| amounts);
        capacity::take(&device.capacity, &want.capacity, &[self.given.taken.amounts(&device.id), chosen])
    }

    /// Whether the device is out of the question for now, seen without its selectors.
    fn is_blocked(&self, claim: usize, want: &Want<'_>, place: Place) -> bool {
        let marked = self.marked.get(&place);
        if want.admin {
            return marked.is_some_and(|claims| claims.contains(&claim));
        }
        self.given.taken.is_taken(&self.offered(place).id) || marked.is_some_and(|claims| !claims.is_empty())
    }

    /// Goes on from here until everything is allocated (true) or no branch is left (false).
    fn go(&mut self, at: Step, chosen: bool, from: Place) -> Result<bool, Stop> {
        if (self.stop)() {
            return Err(Failure::Timeout.into());
        }
        if at.claim == self.claims.len() {
            return Ok(true);
        }
        if at.request == self.wants[at.claim].len() {
            // Another choice for an earlier claim leaves this one as many devices as now, but perhaps other ones.
            return match self.go(Step { claim: at.claim + 1, ..Step::default() }, false, (0, 0)) {
                Err(Stop::TooMany) => Ok(false),
                other => other,
            };
        }
        if !chosen && self.wants[at.claim][at.request][0].parent.is_some() {
            return self.alternatives(at);
        }
        let want = self.wants[at.claim][at.request][at.alternative].clone();
        if want.mode == Mode::All && want.all.is_empty() {
            return Ok(false);
        }
        if at.device >= want.count {
            return self.go(Step { claim: at.claim, request: at.request + 1, ..Step::default() }, false, (0, 0));
        }
        if self.picks[at.claim].len() + want.count - at.device > RESULTS_MAX {
            return Err(Stop::TooMany);
        }
        let next = Step { device: at.device + 1, ..at };
        if want.mode == Mode::All {
            // The order does not matter: where this one cannot be had, not all can.
            let place = want.all[at.device];
            return if self.choose(at, &want, place)? { self.beyond(at, next, chosen, (0, 0)) } else { Ok(false) };
        }
        let pools = self.pools;
        for (p, pool) in pools.iter().enumerate().skip(from.0) {
            let first = if p == from.0 { from.1 } else { 0 };
            for d in first..pool.devices.len() {
                let place = (p, d);
                if self.is_blocked(at.claim, &want, place)
                    || !self.selects(at.claim, (at.request, at.alternative), &want, place)?
                    || !self.choose(at, &want, place)?
                {
                    continue;
                }
                if self.beyond(at, next, chosen, (p, d + 1))? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Goes on with a device chosen, and takes the choice back where that leads nowhere.
    fn beyond(&mut self, at: Step, next: Step, chosen: bool, from: Place) -> Result<bool, Stop> {
        let found = self.go(next, chosen, from);
        if !matches!(found, Ok(true)) {
            self.take_back(at);
        }
        found
    }

    /// Tries the alternatives of a request in order.
    fn alternatives(&mut self, at: Step) -> Result<bool, Stop> {
        // Where every one of them leads to too many devices, so does any other choice before.
        let mut all_too_many = true;
        for alternative in 0..self.wants[at.claim][at.request].len() {
            match self.go(Step { alternative, ..at }, true, (0, 0)) {
                Err(Stop::TooMany) => continue,
                Err(failed) => return Err(failed),
                Ok(true) => {
                    self.alternative.insert((at.claim, at.request), alternative);
                    return Ok(true);
                }
                Ok(false) => all_too_many = false,
            }
        }
        if all_too_many { Err(Stop::TooMany) } else { Ok(false) }
    }

    /// Takes a device that is selected, where nothing stands against it.
    fn choose(&mut self, at: Step, want: &Want<'s>, place: Place) -> Result<bool, Stop> {
        let device = self.offered(place);
        let shared = device.is_shared();
        if self.is_blocked(at.claim, want, place) || taint_against(device, want).is_some() {
            return Ok(false);
        }
        let Some(amounts) = self.share(place, want) else { return Ok(false) };
        // Whoever shares a device first uses the counters up for all.
        let in_use = self.given.taken.amounts(&device.id).is_some() || self.shares.contains_key(&place);
        let counts = device.device().consumes_counters.is_some() && !(shared && in_use);
        if counts && !self.count(place) {
            return Ok(false);
        }
        let (request, alternative) = want.names();
        let constraints = &mut self.constraints[at.claim];
        let held = constraints.iter_mut().position(|c| !c.add(request, alternative, device));
        if let Some(held) = held {
            constraints[..held].iter_mut().for_each(|c| c.remove(request, alternative));
            if counts {
                self.uncount(place);
            }
            if want.mode == Mode::All {
                let claim = shown(&self.claims[at.claim]);
                return Err(Failure::Claim(format!(
                    "claim {claim}, request {}: cannot add device {} because a claim constraint would not be satisfied",
                    want.name, device.id
                ))
                .into());
            }
            return Ok(false);
        }
        if shared {
            let (n, sum) = self.shares.entry(place).or_default();
            *n += 1;
            capacity::add(sum, &amounts, false);
        } else {
            self.marked.entry(place).or_default().push(at.claim);
        }
        let choice = (at.request, at.alternative);
        self.picks[at.claim].push(Pick { place, choice, share: shared.then_some(amounts), counts });
        Ok(true)
    }

    fn take_back(&mut self, at: Step) {
        let Some(pick) = self.picks[at.claim].pop() else { return };
        let (request, alternative) = self.wants[at.claim][pick.choice.0][pick.choice.1].names();
        self.constraints[at.claim].iter_mut().for_each(|c| c.remove(request, alternative));
        if pick.counts {
            self.uncount(pick.place);
        }
        match &pick.share {
            Some(amounts) => {
                let (n, sum) = self.shares.entry(pick.place).or_default();
                *n -= 1;
                capacity::add(sum, amounts, true);
                if *n == 0 {
                    self.shares.remove(&pick.place);
                }
            }
            None => {
                if let Some(claims) = self.marked.get_mut(&pick.place) {
                    claims.retain(|c| *c != at.claim);
                }
            }
        }
    }

    /// Uses the device's counters up, where enough is left of them.
    fn count(&mut self, place: Place) -> bool {
        let pool = &self.pools[place.0];
        let taken = self.given.taken;
        let left = self.counters.entry(place.0).or_insert_with(|| counters_left(pool, taken));
        for (key, wanted) in consumption(pool.devices[place.1]) {
            if let Some(amount) = left.get_mut(&key) {
                *amount = amount.minus(&wanted);
            }
        }
        // Any counter that is overdrawn keeps all devices with counters of the pool back.
        let enough = left.values().all(|amount| amount.sign() >= 0);
        if !enough {
            self.uncount(place);
        }
        enough
    }

    fn uncount(&mut self, place: Place) {
        let pool = &self.pools[place.0];
        let Some(left) = self.counters.get_mut(&place.0) else { return };
        for (key, wanted) in consumption(pool.devices[place.1]) {
            if let Some(amount) = left.get_mut(&key) {
                *amount = amount.plus(&wanted);
            }
        }
    }

    fn solved(&self, claim: usize) -> Solved<'_> {
        let wants = &self.wants[claim];
        let devices = self.picks[claim].iter().map(|pick| {
            let (request, alternative) = pick.choice;
            (self.offered(pick.place), &*wants[request][alternative], pick.share.as_ref())
        });
        let met = wants.iter().enumerate().map(|(request, alternatives)| {
            &*alternatives[self.alternative.get(&(claim, request)).copied().unwrap_or(0)]
        });
        Solved { devices: devices.collect(), met: met.collect() }
    }
}

/// What is left of a pool's counters besides the devices that are allocated, wherever they are.
pub(super) fn counters_left<'s>(pool: &Pool<'s>, taken: &Taken) -> Counters<'s> {
    let mut left = Counters::new();
    for (name, set) in &pool.counters {
        left.extend(set.counters.iter().map(|(counter, c)| ((*name, counter.as_str()), amount(c))));
    }
    for device in pool.devices.iter().chain(&pool.elsewhere).filter(|d| taken.is_used(&d.id)) {
        for (key, used) in consumption(device) {
            if let Some(amount) = left.get_mut(&key) {
                *amount = amount.minus(&used);
            }
        }
    }
    left
}

/// What a device uses up of its pool's counters.
pub(super) fn consumption(device: &Offered) -> impl Iterator<Item = ((&str, &str), Amount)> {
    let consumptions = device.device().consumes_counters.iter().flatten();
    consumptions.flat_map(|c| {
        c.counters.iter().map(|(name, counter)| ((c.counter_set.as_str(), name.as_str()), amount(counter)))
    })
}

impl Allocator<'_> {
    fn class_of(&self, claim: &ResourceClaim, want: &Want<'_>) -> Result<Arc<DeviceClass>, Failure> {
        self.classes.get(want.class_name).cloned().ok_or_else(|| {
            let (claim, request, class) = (shown(claim), want.name, want.class_name);
            Failure::Claim(format!(
                "claim {claim}, request {request}: could not retrieve device class {class}: \
                 deviceclass.resource.k8s.io {class:?} not found"
            ))
        })
    }

    /// The selector that does not select the device, where there is one: those of the class come first.
    pub(super) fn selected(
        &self,
        claim: &ResourceClaim,
        want: &Want<'_>,
        device: &Offered,
    ) -> Result<Option<String>, Failure> {
        let class = want.class.as_deref();
        let of_class = class.and_then(|c| c.spec.as_ref()).and_then(|s| s.selectors.as_deref()).unwrap_or_default();
        let by_class = of_class.iter().enumerate().map(|s| (true, s));
        for (of_class, (i, selector)) in by_class.chain(want.selectors.iter().enumerate().map(|s| (false, s))) {
            let Some(cel) = &selector.cel else { continue };
            let found = self.selectors.matches(&cel.expression, device).map_err(|why| {
                let whose = match class.filter(|_| of_class) {
                    Some(class) => format!("class {}", class.metadata.name()),
                    None => format!("claim {}", shown(claim)),
                };
                Failure::Claim(format!("{whose}: selector #{i}{why}"))
            })?;
            if !found {
                return Ok(Some(cel.expression.clone()));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
#[path = "allocate_tests.rs"]
mod tests;
