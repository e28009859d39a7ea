//! What drivers offer: the devices of all slices, and for a node the pools it may take devices from.

use super::capacity::{Offer, offers};
use gantry_api::core::placement::selects;
use gantry_api::k8s_openapi::api::core::v1::NodeSelector;
use gantry_api::k8s_openapi::api::resource::v1::{CounterSet, Device, DeviceTaint, DeviceTaintRule, ResourceSlice};
use gantry_api::meta::object::Meta;
use gantry_api::resource::pod_claim::rule_matches;
use gantry_cel::Value;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, OnceLock};

/// What a device is told apart by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId {
    /// Driver.
    pub driver: Arc<str>,
    /// Pool of the driver.
    pub pool: Arc<str>,
    /// Name in the pool.
    pub device: Arc<str>,
}

impl DeviceId {
    /// From its parts.
    #[must_use]
    pub fn new(driver: &str, pool: &str, device: &str) -> Self {
        Self { driver: driver.into(), pool: pool.into(), device: device.into() }
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.driver, self.pool, self.device)
    }
}

/// A device of a slice.
pub struct Offered {
    /// Which.
    pub id: DeviceId,
    /// What can be had of its capacity.
    pub capacity: BTreeMap<String, Offer>,
    slice: Arc<ResourceSlice>,
    index: usize,
    /// Taints that rules add to its own.
    rule_taints: Vec<DeviceTaint>,
    /// As selectors see it; made when first asked for.
    pub(super) value: OnceLock<Result<Value, String>>,
}

impl fmt::Debug for Offered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.id)
    }
}

impl Offered {
    /// The device as its driver describes it.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.slice.spec.devices.as_deref().unwrap_or_default()[self.index]
    }

    /// The slice it is in.
    #[must_use]
    pub fn slice(&self) -> &ResourceSlice {
        &self.slice
    }

    /// Its taints, those of rules last.
    pub fn taints(&self) -> impl Iterator<Item = &DeviceTaint> {
        self.device().taints.iter().flatten().chain(&self.rule_taints)
    }

    /// Whether it may be had several times, as far as its capacity goes.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.device().allow_multiple_allocations == Some(true)
    }

    /// Whether the node may use the device, where the slice leaves that to its devices.
    #[must_use]
    pub fn is_on(&self, node: NodeFacts<'_>) -> bool {
        let device = self.device();
        self.slice.spec.per_device_node_selection != Some(true)
            || node.matches(device.node_name.as_deref(), device.all_nodes, device.node_selector.as_ref())
    }
}

/// What slices ask of nodes.
#[derive(Clone, Copy, Debug)]
pub struct NodeFacts<'a> {
    /// Name.
    pub name: &'a str,
    /// Labels.
    pub labels: &'a BTreeMap<String, String>,
}

impl NodeFacts<'_> {
    fn matches(self, name: Option<&str>, all: Option<bool>, selector: Option<&NodeSelector>) -> bool {
        match name.filter(|n| !n.is_empty()) {
            Some(name) => name == self.name,
            None if all == Some(true) => true,
            None => selector.is_some_and(|s| selects(s, self.labels, self.name)),
        }
    }
}

#[derive(Debug)]
struct Slice {
    object: Arc<ResourceSlice>,
    devices: Vec<Offered>,
}

impl Slice {
    fn name(&self) -> &str {
        self.object.metadata.name()
    }

    fn generation(&self) -> i64 {
        self.object.spec.pool.generation
    }

    fn counters(&self) -> &[CounterSet] {
        self.object.spec.shared_counters.as_deref().unwrap_or_default()
    }

    fn is_for(&self, node: NodeFacts<'_>) -> bool {
        let spec = &self.object.spec;
        if spec.per_device_node_selection == Some(true) {
            self.devices.iter().any(|d| d.is_on(node))
        } else {
            node.matches(spec.node_name.as_deref(), spec.all_nodes, spec.node_selector.as_ref())
        }
    }
}

/// Why nothing is taken from a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolState {
    /// Nothing is in the way.
    Ready,
    /// Its driver is about to publish it.
    Incomplete,
    /// Its slices contradict each other.
    Invalid(String),
}

/// The devices of a pool, as a node sees it.
#[derive(Debug)]
pub struct Pool<'a> {
    /// Driver.
    pub driver: &'a str,
    /// Name.
    pub name: &'a str,
    /// Whether devices may be taken from it.
    pub state: PoolState,
    /// Devices for the node, in the order in which they are tried.
    pub devices: Vec<&'a Offered>,
    /// Devices of the pool for other nodes only; they may use counters up.
    pub elsewhere: Vec<&'a Offered>,
    /// Counters that devices share.
    pub counters: BTreeMap<&'a str, &'a CounterSet>,
}

impl fmt::Display for Pool<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.driver, self.name)
    }
}

/// All slices, with the taints of rules, found by what they are asked for.
#[derive(Debug, Default)]
pub struct Inventory {
    slices: Vec<Slice>,
    by_node: HashMap<String, Vec<usize>>,
    /// Slices that are not for one node alone.
    shared: Vec<usize>,
    by_pool: HashMap<(String, String), Vec<usize>>,
}

fn taints_of(rules: &[Arc<DeviceTaintRule>], slice: &ResourceSlice, device: &str) -> Vec<DeviceTaint> {
    let applies = |rule: &&Arc<DeviceTaintRule>| rule_matches(rule, &slice.spec.driver, &slice.spec.pool.name, device);
    rules.iter().filter(applies).map(|rule| rule.spec.taint.clone()).collect()
}

impl Inventory {
    /// Of these slices and rules.
    #[must_use]
    pub fn new(mut slices: Vec<Arc<ResourceSlice>>, rules: &[Arc<DeviceTaintRule>]) -> Self {
        // The names decide in which order devices are tried.
        slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        let mut out = Self::default();
        for object in slices {
            let spec = &object.spec;
            let at = out.slices.len();
            match spec.node_name.as_deref().filter(|n| !n.is_empty()) {
                Some(node) => out.by_node.entry(node.to_owned()).or_default().push(at),
                None => out.shared.push(at),
            }
            out.by_pool.entry((spec.driver.clone(), spec.pool.name.clone())).or_default().push(at);
            let (driver, pool): (Arc<str>, Arc<str>) = (spec.driver.as_str().into(), spec.pool.name.as_str().into());
            let one = |(index, device): (usize, &Device)| Offered {
                id: DeviceId { driver: driver.clone(), pool: pool.clone(), device: device.name.as_str().into() },
                capacity: offers(device.capacity.as_ref()),
                rule_taints: taints_of(rules, &object, &device.name),
                slice: object.clone(),
                index,
                value: OnceLock::new(),
            };
            let devices = spec.devices.iter().flatten().enumerate().map(one).collect();
            out.slices.push(Slice { object, devices });
        }
        out
    }

    /// The pools that have devices for the node, in the order in which they are tried: by driver and name, those with
    /// devices that have to be made ready first come last. Slices of generations before the newest do not count.
    #[must_use]
    pub fn pools(&self, node: NodeFacts<'_>) -> Vec<Pool<'_>> {
        let mut found: BTreeMap<(&str, &str), Vec<&Slice>> = BTreeMap::new();
        for at in self.by_node.get(node.name).into_iter().flatten().chain(&self.shared) {
            let slice = &self.slices[*at];
            if !slice.is_for(node) {
                continue;
            }
            let spec = &slice.object.spec;
            let known = found.entry((spec.driver.as_str(), spec.pool.name.as_str())).or_default();
            match known.first().map(|first| slice.generation().cmp(&first.generation())) {
                Some(std::cmp::Ordering::Less) => {}
                Some(std::cmp::Ordering::Greater) => *known = vec![slice],
                _ => known.push(slice),
            }
        }
        let pools = found.into_iter().filter_map(|((driver, name), slices)| self.pool(driver, name, slices));
        let (plain, waiting): (Vec<Pool<'_>>, Vec<Pool<'_>>) = pools.partition(|pool| {
            !pool.devices.iter().any(|d| d.device().binding_conditions.as_ref().is_some_and(|c| !c.is_empty()))
        });
        plain.into_iter().chain(waiting).collect()
    }

    /// `None` where the node has slices of an old generation only.
    fn pool<'a>(&'a self, driver: &'a str, name: &'a str, mut here: Vec<&'a Slice>) -> Option<Pool<'a>> {
        let mut pool = Pool {
            driver,
            name,
            state: PoolState::Ready,
            devices: Vec::new(),
            elsewhere: Vec::new(),
            counters: BTreeMap::new(),
        };
        let (generation, wanted) = (here[0].generation(), here[0].object.spec.pool.resource_slice_count);
        let complete = |count: usize| i64::try_from(count) == Ok(wanted);
        let mut elsewhere: Vec<&Slice> = Vec::new();
        if !complete(here.len()) {
            let all = self.by_pool.get(&(driver.to_owned(), name.to_owned()));
            let all: Vec<&Slice> = all.into_iter().flatten().map(|at| &self.slices[*at]).collect();
            if all.iter().any(|s| s.generation() > generation) {
                return None;
            }
            let same: Vec<&Slice> = all.into_iter().filter(|s| s.generation() == generation).collect();
            if !complete(same.len()) {
                pool.state = PoolState::Incomplete;
                return Some(pool);
            }
            elsewhere = same.into_iter().filter(|s| !here.iter().any(|h| h.name() == s.name())).collect();
        }
        here.sort_by(|a, b| a.name().cmp(b.name()));
        if let Err(why) = fill(&mut pool, &here, &elsewhere) {
            pool.devices.clear();
            pool.state = PoolState::Invalid(why);
        }
        Some(pool)
    }
}

/// Slices with counters have no devices, and are for all nodes of the pool.
fn fill<'a>(pool: &mut Pool<'a>, here: &[&'a Slice], elsewhere: &[&'a Slice]) -> Result<(), String> {
    let mut names = HashSet::new();
    for slice in here.iter().filter(|s| s.counters().is_empty()) {
        for device in &slice.devices {
            if !names.insert(&device.id.device) {
                return Err(format!("duplicate device name {}", device.id.device));
            }
            pool.devices.push(device);
        }
    }
    pool.elsewhere.extend(elsewhere.iter().filter(|s| s.counters().is_empty()).flat_map(|s| &s.devices));
    for set in here.iter().chain(elsewhere).flat_map(|s| s.counters()) {
        if pool.counters.insert(&set.name, set).is_some() {
            return Err(format!("duplicate counter set name {}", set.name));
        }
    }
    for device in pool.devices.iter().chain(&pool.elsewhere) {
        for consumption in device.device().consumes_counters.iter().flatten() {
            let Some(set) = pool.counters.get(consumption.counter_set.as_str()) else {
                return Err(format!("counter set {} not found", consumption.counter_set));
            };
            if let Some(name) = consumption.counters.keys().find(|name| !set.counters.contains_key(*name)) {
                return Err(format!("counter {name} not found in counter set {}", set.name));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value as Json, json};

    fn inventory(slices: Json, rules: Json) -> Inventory {
        let slices: Vec<ResourceSlice> = serde_json::from_value(slices).unwrap();
        let rules: Vec<DeviceTaintRule> = serde_json::from_value(rules).unwrap();
        let rules: Vec<Arc<DeviceTaintRule>> = rules.into_iter().map(Arc::new).collect();
        Inventory::new(slices.into_iter().map(Arc::new).collect(), &rules)
    }

    fn slice(name: &str, pool: &Json, more: Json) -> Json {
        let mut spec = json!({"driver": "d", "pool": pool});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"metadata": {"name": name}, "spec": spec})
    }

    fn seen(inventory: &Inventory, node: &str, zone: &str) -> Vec<String> {
        let labels = BTreeMap::from([("zone".to_owned(), zone.to_owned())]);
        let pools = inventory.pools(NodeFacts { name: node, labels: &labels });
        let one = |p: &Pool<'_>| {
            let devices: Vec<&str> = p.devices.iter().map(|d| &*d.id.device).collect();
            format!("{p} {:?} {}", p.state, devices.join(","))
        };
        pools.iter().map(one).collect()
    }

    #[test]
    fn of_a_node() {
        let p = |name: &str, generation: i64, count: i64| json!({"name": name, "generation": generation, "resourceSliceCount": count});
        let zone = json!({"nodeSelectorTerms": [{"matchExpressions":
            [{"key": "zone", "operator": "In", "values": ["x"]}]}]});
        let found = inventory(
            json!([
                slice("b2", &p("b", 2, 2), json!({"nodeName": "n1", "devices": [{"name": "b-2"}]})),
                slice("b1", &p("b", 2, 2), json!({"nodeName": "n1", "devices": [{"name": "b-1"}]})),
                slice("b0", &p("b", 1, 1), json!({"nodeName": "n1", "devices": [{"name": "old"}]})),
                slice("c", &p("c", 1, 2), json!({"nodeName": "n1", "devices": [{"name": "c-1"}]})),
                slice(
                    "a",
                    &p("a", 1, 1),
                    json!({"nodeSelector": zone, "devices":
                    [{"name": "net", "bindingConditions": ["Ready"], "bindingFailureConditions": ["Failed"]}]})
                ),
                slice(
                    "e",
                    &p("e", 1, 1),
                    json!({"perDeviceNodeSelection": true, "devices":
                    [{"name": "here", "nodeName": "n1"}, {"name": "there", "nodeName": "n2"}]})
                ),
                slice("f", &p("f", 1, 1), json!({"allNodes": true, "devices": [{"name": "x"}, {"name": "x"}]})),
                // The newest generation has nothing for n1.
                slice("g1", &p("g", 1, 2), json!({"nodeName": "n1", "devices": [{"name": "gone"}]})),
                slice("g2", &p("g", 2, 1), json!({"nodeName": "n2", "devices": [{"name": "moved"}]})),
            ]),
            json!([{"metadata": {"name": "r"}, "spec": {"deviceSelector": {"driver": "d", "device": "b-1"},
                "taint": {"key": "broken", "effect": "NoSchedule"}}}]),
        );
        assert_eq!(
            seen(&found, "n1", "x"),
            [
                "d/b Ready b-1,b-2",
                "d/c Incomplete ",
                "d/e Ready here,there",
                "d/f Invalid(\"duplicate device name x\") ",
                "d/a Ready net",
            ]
        );
        assert_eq!(seen(&found, "n2", "y")[1], "d/f Invalid(\"duplicate device name x\") ");
        let labels = BTreeMap::new();
        let node = NodeFacts { name: "n1", labels: &labels };
        let pools = found.pools(node);
        let taints: Vec<usize> = pools[0].devices.iter().map(|d| d.taints().count()).collect();
        assert_eq!(taints, [1, 0]);
        assert_eq!(pools[2].devices.iter().map(|d| d.is_on(node)).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn counters_must_be_there() {
        let p = json!({"name": "p", "generation": 1, "resourceSliceCount": 2});
        let counters = |name: &str| {
            slice(
                "counters",
                &p,
                json!({"allNodes": true, "sharedCounters":
                [{"name": name, "counters": {"memory": {"value": "4"}}}]}),
            )
        };
        let devices = slice(
            "devices",
            &p,
            json!({"nodeName": "n", "devices": [{"name": "d", "consumesCounters":
            [{"counterSet": "c", "counters": {"memory": {"value": "2"}}}]}]}),
        );
        let found = inventory(json!([devices, counters("c")]), json!([]));
        assert_eq!(seen(&found, "n", ""), ["d/p Ready d"]);
        let found = inventory(json!([devices, counters("other")]), json!([]));
        assert_eq!(seen(&found, "n", ""), ["d/p Invalid(\"counter set c not found\") "]);
    }
}
