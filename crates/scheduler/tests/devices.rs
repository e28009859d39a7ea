//! The search for devices against a plain and slow one that looks at every combination and shares no code with it: on
//! random offers and claims, through allocations and releases, one is found where there is one, what is found is right,
//! and no device is anybody's twice.

#![allow(missing_docs)]

mod dice;

use dice::Dice;
use gantry_api::entropy::Entropy;
use gantry_api::k8s_openapi::api::resource::v1::{
    AllocationResult, Device, DeviceClass, DeviceRequest, ResourceClaim, ResourceSlice,
};
use gantry_scheduler::devices::allocate::{Allocator, Classes, Failure};
use gantry_scheduler::devices::pool::{Inventory, NodeFacts};
use gantry_scheduler::devices::selector::Selectors;
use gantry_scheduler::devices::taken::Ledger;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const CLUSTERS: u64 = 200;
const STEPS: usize = 6;
const DRIVER: &str = "d.io";

impl Dice {
    fn device(&self, name: &str, counters: bool) -> Value {
        let mut d = json!({"name": name, "attributes": {"model": {"string": self.pick(&["a", "b"])}}});
        if !self.one_in(4) {
            d["attributes"]["numa"] = json!({"int": self.below(3)});
        }
        if self.one_in(5) {
            d["taints"] = json!([{"key": "t", "effect": self.pick(&["NoSchedule", "None"])}]);
        }
        if self.one_in(3) {
            d["capacity"] = json!({"memory": {"value": (2 + self.below(3)).to_string()}});
            if self.one_in(2) {
                d["allowMultipleAllocations"] = json!(true);
                d["capacity"]["memory"]["requestPolicy"] = json!({"default": "1", "validValues": ["1", "2"]});
            }
        }
        if counters && !self.one_in(3) {
            let used = (1 + self.below(2)).to_string();
            d["consumesCounters"] = json!([{"counterSet": "set", "counters": {"c": {"value": used}}}]);
        }
        d
    }

    /// The slices of one pool.
    fn pool(&self, name: &str, nodes: &Value) -> Vec<Value> {
        let counters = self.one_in(2);
        let pool = json!({"name": name, "generation": 1, "resourceSliceCount": 1 + u64::from(counters)});
        let devices: Vec<Value> =
            (0..1 + self.below(4)).map(|i| self.device(&format!("{name}-{i}"), counters)).collect();
        let slice = |suffix: &str, what: &str, list: Value| {
            let mut spec = json!({"driver": DRIVER, "pool": pool, what: list});
            spec.as_object_mut().unwrap().extend(nodes.as_object().unwrap().clone());
            json!({"metadata": {"name": format!("{name}{suffix}")}, "spec": spec})
        };
        let mut out = vec![slice("", "devices", json!(devices))];
        if counters {
            let value = (1 + self.below(4)).to_string();
            out.push(slice("-c", "sharedCounters", json!([{"name": "set", "counters": {"c": {"value": value}}}])));
        }
        out
    }

    fn wanted(&self) -> Value {
        let mut r = json!({"deviceClassName": "c", "count": 1 + self.below(2), "allocationMode": "ExactCount"});
        if self.one_in(3) {
            let model = self.pick(&["a", "b"]);
            r["selectors"] =
                json!([{"cel": {"expression": format!("device.attributes['{DRIVER}'].model == '{model}'")}}]);
        }
        if self.one_in(4) {
            r["tolerations"] = json!([{"operator": "Exists"}]);
        }
        if self.one_in(4) {
            r["capacity"] = json!({"requests": {"memory": (1 + self.below(2)).to_string()}});
        }
        r
    }

    fn claim(&self, name: &str) -> Arc<ResourceClaim> {
        let mut requests = Vec::new();
        let constrained = self.one_in(2);
        for i in 0..1 + self.below(2) {
            let name = format!("r{i}");
            if self.one_in(3) {
                let alternative = |i: u64| {
                    let mut sub = self.wanted();
                    sub["name"] = json!(format!("s{i}"));
                    sub
                };
                let subs: Vec<Value> = (0..2).map(alternative).collect();
                requests.push(json!({"name": name, "firstAvailable": subs}));
                continue;
            }
            let mut exactly = self.wanted();
            if !constrained && self.one_in(5) {
                exactly["allocationMode"] = json!("All");
                exactly.as_object_mut().unwrap().remove("count");
            }
            if self.one_in(8) {
                exactly["adminAccess"] = json!(true);
            }
            requests.push(json!({"name": name, "exactly": exactly}));
        }
        let mut devices = json!({"requests": requests});
        if constrained {
            let sort = self.pick(&["matchAttribute", "distinctAttribute"]);
            let mut c = json!({sort: format!("{DRIVER}/numa")});
            if self.one_in(3) {
                c["requests"] = json!(["r0"]);
            }
            devices["constraints"] = json!([c]);
        }
        let meta = json!({"name": name, "namespace": "ns", "uid": name});
        Arc::new(serde_json::from_value(json!({"metadata": meta, "spec": {"devices": devices}})).unwrap())
    }
}

/// A request as the plain search sees it.
#[derive(Clone, Debug)]
struct Plain {
    name: String,
    whole: Value,
}

impl Plain {
    /// A request by its alternatives.
    fn of(request: &DeviceRequest) -> Vec<Self> {
        let named = |name: String, whole: Value| Self { name, whole };
        match &request.exactly {
            Some(r) => vec![named(request.name.clone(), json!(r))],
            None => {
                let subs = request.first_available.iter().flatten();
                subs.map(|s| named(format!("{}/{}", request.name, s.name), json!(s))).collect()
            }
        }
    }

    fn is_admin(&self) -> bool {
        self.whole["adminAccess"] == true
    }

    fn memory(&self) -> Option<i64> {
        self.whole["capacity"]["requests"]["memory"].as_str().map(number)
    }
}

fn number(text: &str) -> i64 {
    text.parse().unwrap()
}

/// One device given to one request.
#[derive(Clone, Debug)]
struct Given {
    claim: usize,
    request: Plain,
    device: String,
}

/// What there is, and what others have.
struct World<'a> {
    slices: &'a [ResourceSlice],
    held: &'a BTreeMap<String, AllocationResult>,
}

impl World<'_> {
    /// The devices of a node, with their pools.
    fn devices(&self, node: &str) -> Vec<(&str, &Device)> {
        let here = |s: &&ResourceSlice| s.spec.all_nodes == Some(true) || s.spec.node_name.as_deref() == Some(node);
        self.slices
            .iter()
            .filter(here)
            .flat_map(|s| s.spec.devices.iter().flatten().map(|d| (s.spec.pool.name.as_str(), d)))
            .collect()
    }

    fn device(&self, name: &str) -> (&str, &Device) {
        let mut all =
            self.slices.iter().flat_map(|s| s.spec.devices.iter().flatten().map(|d| (s.spec.pool.name.as_str(), d)));
        all.find(|(_, d)| d.name == name).unwrap()
    }

    /// Devices that others have, each with what a share of it takes.
    fn others(&self) -> Vec<(String, Option<i64>)> {
        let results = self.held.values().flat_map(|a| a.devices.iter().flat_map(|d| d.results.iter().flatten()));
        results
            .filter(|r| r.admin_access != Some(true))
            .map(|r| {
                let share = r.consumed_capacity.as_ref().map_or(0, |c| c.get("memory").map_or(0, |q| number(&q.0)));
                (r.device.clone(), r.share_id.as_ref().map(|_| share))
            })
            .collect()
    }

    /// What a request takes of the device's memory, where that may be asked for.
    fn memory(&self, request: &Plain, device: &Device) -> Option<i64> {
        let Some(capacity) = device.capacity.as_ref().map(|c| &c["memory"]) else {
            return request.memory().is_none().then_some(0);
        };
        let taken = match (request.memory(), &capacity.request_policy) {
            (Some(wanted), _) => wanted,
            (None, Some(_)) => 1,
            (None, None) => number(&capacity.value.0),
        };
        (taken <= number(&capacity.value.0)).then_some(taken)
    }

    fn is_selected(&self, request: &Plain, device: &Device) -> bool {
        let model = device.attributes.as_ref().unwrap()["model"].string.clone().unwrap();
        request.whole["selectors"][0]["cel"]["expression"]
            .as_str()
            .is_none_or(|e| e.ends_with(&format!("== '{model}'")))
    }

    /// Whether everything that was given may be given together, in this order.
    fn is_right(&self, claims: &[Arc<ResourceClaim>], given: &[Given]) -> bool {
        let others = self.others();
        for (i, g) in given.iter().enumerate() {
            let (_, device) = self.device(&g.device);
            let shared = device.allow_multiple_allocations == Some(true);
            let tainted = device.taints.iter().flatten().any(|t| t.effect == "NoSchedule");
            if !self.is_selected(&g.request, device) || (tainted && g.request.whole["tolerations"].is_null()) {
                return false;
            }
            let Some(memory) = self.memory(&g.request, device) else { return false };
            let before = || given[..i].iter().filter(|o| o.device == g.device);
            if shared {
                let mine: i64 = before().map(|o| self.memory(&o.request, device).unwrap()).sum();
                let theirs: i64 = others.iter().filter(|(d, _)| *d == g.device).filter_map(|(_, share)| *share).sum();
                let all = device.capacity.as_ref().map_or(i64::MAX, |c| number(&c["memory"].value.0));
                if mine + theirs + memory > all {
                    return false;
                }
                continue;
            }
            let blocked = if g.request.is_admin() {
                before().any(|o| o.claim == g.claim)
            } else {
                before().next().is_some() || others.iter().any(|(d, _)| *d == g.device)
            };
            if blocked {
                return false;
            }
        }
        self.counters_suffice(given, &others)
            && claims.iter().enumerate().all(|(i, c)| constraints_hold(self, i, c, given))
    }

    fn counters_suffice(&self, given: &[Given], others: &[(String, Option<i64>)]) -> bool {
        let uses = |name: &str| -> Option<(&str, i64)> {
            let (pool, device) = self.device(name);
            let used = device.consumes_counters.as_ref()?;
            Some((pool, number(&used[0].counters["c"].value.0)))
        };
        let theirs: BTreeSet<&str> = others.iter().map(|(d, _)| d.as_str()).collect();
        let mine = given.iter().filter(|g| uses(&g.device).is_some());
        let mut total: BTreeMap<&str, i64> = BTreeMap::new();
        for (pool, n) in theirs.iter().filter_map(|d| uses(d)) {
            *total.entry(pool).or_default() += n;
        }
        let mut shared_seen: BTreeSet<&str> = BTreeSet::new();
        let mut touched: BTreeSet<&str> = BTreeSet::new();
        for g in mine {
            let (pool, n) = uses(&g.device).unwrap();
            let shared = self.device(&g.device).1.allow_multiple_allocations == Some(true);
            if shared && (theirs.contains(g.device.as_str()) || !shared_seen.insert(&g.device)) {
                continue;
            }
            *total.entry(pool).or_default() += n;
            touched.insert(pool);
        }
        touched.iter().all(|pool| {
            let sets = self.slices.iter().filter(|s| s.spec.pool.name == **pool);
            let mut sets = sets.flat_map(|s| s.spec.shared_counters.iter().flatten());
            total[pool] <= number(&sets.next().unwrap().counters["c"].value.0)
        })
    }
}

fn constraints_hold(world: &World<'_>, index: usize, claim: &ResourceClaim, given: &[Given]) -> bool {
    let devices = claim.spec.as_ref().unwrap().devices.as_ref().unwrap();
    devices.constraints.iter().flatten().all(|c| {
        let about = |g: &&Given| {
            let base = g.request.name.split('/').next().unwrap();
            g.claim == index && c.requests.as_ref().is_none_or(|r| r.iter().any(|name| name == base))
        };
        let value = |g: &Given| world.device(&g.device).1.attributes.as_ref().unwrap().get("numa").and_then(|a| a.int);
        let values: Vec<Option<i64>> = given.iter().filter(about).map(value).collect();
        let distinct: BTreeSet<Option<i64>> = values.iter().copied().collect();
        !values.contains(&None)
            && if c.match_attribute.is_some() { distinct.len() <= 1 } else { distinct.len() == values.len() }
    })
}

/// All ways to take `count` of the names, in order.
fn combinations(names: &[String], count: usize) -> Vec<Vec<String>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let mut out = Vec::new();
    for (i, name) in names.iter().enumerate() {
        for mut rest in combinations(&names[i + 1..], count - 1) {
            rest.insert(0, name.clone());
            out.push(rest);
        }
    }
    out
}

/// Whether there is any way to give the claims what they ask for.
fn exists(world: &World<'_>, claims: &[Arc<ResourceClaim>], node: &str) -> bool {
    let mut wants: Vec<(usize, Vec<Plain>)> = Vec::new();
    for (i, claim) in claims.iter().enumerate() {
        let requests = claim.spec.as_ref().unwrap().devices.as_ref().unwrap().requests.as_ref().unwrap();
        wants.extend(requests.iter().map(|r| (i, Plain::of(r))));
    }
    let names: Vec<String> = world.devices(node).iter().map(|(_, d)| d.name.clone()).collect();
    let mut given = Vec::new();
    go(world, claims, &names, &wants, &mut given)
}

fn go(
    world: &World<'_>,
    claims: &[Arc<ResourceClaim>],
    names: &[String],
    wants: &[(usize, Vec<Plain>)],
    given: &mut Vec<Given>,
) -> bool {
    let Some(((claim, alternatives), rest)) = wants.split_first() else { return true };
    for request in alternatives {
        let choices = if request.whole["allocationMode"] == "All" {
            let all: Vec<String> = names
                .iter()
                .filter(|n| {
                    let device = world.device(n).1;
                    let theirs: i64 =
                        world.others().iter().filter(|(d, _)| d == *n).filter_map(|(_, share)| *share).sum();
                    let all = device.capacity.as_ref().map_or(i64::MAX, |c| number(&c["memory"].value.0));
                    world.is_selected(request, device)
                        && world.memory(request, device).is_some_and(|m| m + theirs <= all)
                })
                .cloned()
                .collect();
            if all.is_empty() { Vec::new() } else { vec![all] }
        } else {
            combinations(names, usize::try_from(request.whole["count"].as_u64().unwrap()).unwrap())
        };
        for choice in choices {
            let before = given.len();
            given.extend(choice.into_iter().map(|device| Given { claim: *claim, request: request.clone(), device }));
            // What is wrong already does not become right with more.
            if world.is_right(claims, given) && go(world, claims, names, rest, given) {
                return true;
            }
            given.truncate(before);
        }
    }
    false
}

/// What the search found, as the plain one has it.
fn given(claims: &[Arc<ResourceClaim>], found: &[AllocationResult]) -> Vec<Given> {
    let mut out = Vec::new();
    for (claim, allocation) in found.iter().enumerate() {
        let requests = claims[claim].spec.as_ref().unwrap().devices.as_ref().unwrap().requests.as_ref().unwrap();
        let plain: Vec<Plain> = requests.iter().flat_map(Plain::of).collect();
        for r in allocation.devices.as_ref().unwrap().results.iter().flatten() {
            let request = plain.iter().find(|p| p.name == r.request).unwrap().clone();
            out.push(Given { claim, request, device: r.device.clone() });
        }
    }
    out
}

/// Whether each request has as many devices as it asks for.
fn is_complete(claims: &[Arc<ResourceClaim>], given: &[Given]) -> bool {
    claims.iter().enumerate().all(|(i, claim)| {
        let requests = claim.spec.as_ref().unwrap().devices.as_ref().unwrap().requests.as_ref().unwrap();
        requests.iter().all(|r| {
            let counts: Vec<(usize, Option<u64>)> = Plain::of(r)
                .iter()
                .map(|p| {
                    let n = given.iter().filter(|g| g.claim == i && g.request.name == p.name).count();
                    let all = p.whole["allocationMode"] == "All";
                    (n, if all { None } else { p.whole["count"].as_u64() })
                })
                .collect();
            let met = |(n, wanted): &&(usize, Option<u64>)| match wanted {
                Some(wanted) => *n as u64 == *wanted,
                None => *n > 0,
            };
            counts.iter().filter(met).count() == 1 && counts.iter().filter(|(n, _)| *n > 0).count() == 1
        })
    })
}

#[test]
fn finds_what_there_is_and_gives_nothing_twice() {
    let class: DeviceClass = serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": {
        "selectors": [{"cel": {"expression": format!("device.driver == '{DRIVER}'")}}]}}))
    .unwrap();
    let classes: Classes = [("c".to_owned(), Arc::new(class))].into();
    let selectors = Selectors::default();
    let (mut solved, mut unsolved) = (0, 0);
    for seed in 0..CLUSTERS {
        let dice = Dice(Entropy::seeded(seed));
        let mut slices = dice.pool("p", &json!({"nodeName": "n1"}));
        slices.extend(dice.pool("q", &json!({"nodeName": "n2"})));
        if dice.one_in(2) {
            slices.extend(dice.pool("s", &json!({"allNodes": true})));
        }
        let slices: Vec<ResourceSlice> = serde_json::from_value(json!(slices)).unwrap();
        let inventory = Inventory::new(slices.iter().cloned().map(Arc::new).collect(), &[]);
        let mut ledger = Ledger::default();
        let mut held: BTreeMap<String, AllocationResult> = BTreeMap::new();
        for step in 0..STEPS {
            if dice.one_in(3)
                && let Some(gone) = held.keys().next().cloned()
            {
                held.remove(&gone);
                ledger.set(&gone, None);
            }
            let claims: Vec<Arc<ResourceClaim>> =
                (0..1 + dice.below(2)).map(|i| dice.claim(&format!("{step}-{i}"))).collect();
            let node = dice.pick(&["n1", "n2"]);
            let labels = BTreeMap::new();
            let taken = ledger.taken();
            let allocator =
                Allocator { inventory: &inventory, taken: &taken, classes: &classes, selectors: &selectors };
            let found = allocator
                .allocate(NodeFacts { name: node, labels: &labels }, &claims, &mut || false, &|| dice.0.uuid());
            let found = found.unwrap_or_else(|failure: Failure| panic!("{seed}/{step}: {failure:?}"));
            let world = World { slices: &slices, held: &held };
            let shown = || {
                format!(
                    "{seed}/{step} on {node}: {} of {}",
                    json!(claims.iter().map(|c| &**c).collect::<Vec<_>>()),
                    json!(slices)
                )
            };
            assert_eq!(found.is_some(), exists(&world, &claims, node), "{}", shown());
            let Some(found) = found else {
                unsolved += 1;
                continue;
            };
            solved += 1;
            let given = given(&claims, &found);
            assert!(is_complete(&claims, &given) && world.is_right(&claims, &given), "{found:?} {}", shown());
            for (claim, allocation) in claims.iter().zip(found) {
                let uid = claim.metadata.uid.clone().unwrap();
                ledger.set(&uid, Some(&allocation));
                held.insert(uid, allocation);
            }
            assert!(ledger.taken().whole().all(|(_, n)| n == 1), "{}", shown());
        }
    }
    assert!(solved > 150 && unsolved > 150, "{solved} {unsolved}");
}
