//! What the search finds, and what it does not.

use super::*;
use gantry_api::k8s_openapi::api::resource::v1::ResourceSlice;
use serde_json::{Value, json};
use std::cell::Cell;

struct Fixture {
    inventory: Inventory,
    classes: Classes,
    taken: Taken,
}

fn slice(name: &str, more: Value) -> Value {
    let pool = json!({"name": name, "generation": 1, "resourceSliceCount": 1});
    let mut spec = json!({"driver": "d.io", "pool": pool, "nodeName": "n"});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"metadata": {"name": name}, "spec": spec})
}

fn fixture(slices: Value) -> Fixture {
    let slices: Vec<ResourceSlice> = serde_json::from_value(slices).unwrap();
    let class: DeviceClass = serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": {
        "selectors": [{"cel": {"expression": "device.driver == 'd.io'"}}],
        "config": [{"opaque": {"driver": "d.io", "parameters": {"of": "class"}}}]}}))
    .unwrap();
    Fixture {
        inventory: Inventory::new(slices.into_iter().map(Arc::new).collect(), &[]),
        classes: [("c".to_owned(), Arc::new(class))].into(),
        taken: Taken::default(),
    }
}

fn claim(name: &str, devices: Value) -> Arc<ResourceClaim> {
    let meta = json!({"name": name, "namespace": "ns", "uid": name});
    Arc::new(serde_json::from_value(json!({"metadata": meta, "spec": {"devices": devices}})).unwrap())
}

fn exactly(name: &str, more: Value) -> Value {
    let mut r = json!({"deviceClassName": "c"});
    r.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"name": name, "exactly": r})
}

fn cel(expression: &str) -> Value {
    json!([{"cel": {"expression": expression}}])
}

impl Fixture {
    fn run(&self, claims: &[Arc<ResourceClaim>]) -> Result<Option<Vec<AllocationResult>>, Failure> {
        let labels = BTreeMap::new();
        let selectors = Selectors::default();
        let Self { inventory, classes, taken } = self;
        let allocator = Allocator { inventory, taken, classes, selectors: &selectors };
        let node = NodeFacts { name: "n", labels: &labels };
        let steps = Cell::new(0);
        let mut stop = || {
            steps.set(steps.get() + 1);
            steps.get() > 10_000
        };
        allocator.allocate(node, claims, &mut stop, &|| "share".to_owned())
    }

    /// `request=device` of all claims.
    fn found(&self, claims: &[Arc<ResourceClaim>]) -> Option<Vec<String>> {
        let all = self.run(claims).unwrap()?;
        let results = all.iter().flat_map(|a| a.devices.iter().flat_map(|d| d.results.iter().flatten()));
        Some(results.map(|r| format!("{}={}", r.request, r.device)).collect())
    }

    fn take(&mut self, claims: &[Arc<ResourceClaim>]) {
        let mut ledger = super::super::taken::Ledger::default();
        for (i, allocation) in self.run(claims).unwrap().unwrap().iter().enumerate() {
            ledger.set(&i.to_string(), Some(allocation));
        }
        self.taken = (*ledger.taken()).clone();
    }
}

fn gpus() -> Value {
    let gpu = |name: &str, model: &str, numa: i64| json!({"name": name, "attributes": {"model": {"string": model}, "numa": {"int": numa}}});
    json!([slice(
        "gpus",
        json!({"devices": [gpu("g0", "a", 0), gpu("g1", "b", 0), gpu("g2", "a", 1), gpu("g3", "b", 1)]})
    )])
}

#[test]
fn counts_selectors_and_what_is_taken() {
    let mut f = fixture(gpus());
    let b = cel("device.attributes['d.io'].model == 'b'");
    let two =
        claim("two", json!({"requests": [exactly("x", json!({"count": 2})), exactly("y", json!({"selectors": b}))]}));
    assert_eq!(f.found(std::slice::from_ref(&two)).unwrap(), ["x=g0", "x=g1", "y=g3"]);
    // A later request makes an earlier one choose otherwise.
    let both = claim(
        "both",
        json!({"requests": [exactly("x", json!({"count": 2})),
        exactly("y", json!({"selectors": b, "count": 2}))]}),
    );
    assert_eq!(f.found(&[both]).unwrap(), ["x=g0", "x=g2", "y=g1", "y=g3"]);
    let all = claim("all", json!({"requests": [exactly("x", json!({"allocationMode": "All", "selectors": b}))]}));
    assert_eq!(f.found(std::slice::from_ref(&all)).unwrap(), ["x=g1", "x=g3"]);
    f.take(std::slice::from_ref(&two));
    assert_eq!(f.found(&[two]), None);
    assert_eq!(f.found(&[all]), None);
    let one = claim("one", json!({"requests": [exactly("x", json!({}))]}));
    assert_eq!(f.found(std::slice::from_ref(&one)).unwrap(), ["x=g2"]);
    assert_eq!(f.found(&[one.clone(), one]), None);
    let admin =
        claim("admin", json!({"requests": [exactly("x", json!({"allocationMode": "All", "adminAccess": true}))]}));
    assert_eq!(f.found(&[admin]).unwrap().len(), 4);
}

#[test]
fn alternatives_and_constraints() {
    let f = fixture(gpus());
    let sub = |name: &str, count: i64, model: &str| {
        let selectors = cel(&format!("device.attributes['d.io'].model == '{model}'"));
        json!({"name": name, "deviceClassName": "c", "count": count, "selectors": selectors})
    };
    let first = json!({"name": "r", "firstAvailable": [sub("many", 3, "a"), sub("some", 2, "b"), sub("one", 1, "a")]});
    let either = claim(
        "either",
        json!({"requests": [first, exactly("x", json!({}))], "config": [
        {"requests": ["r/some"], "opaque": {"driver": "d.io", "parameters": {"of": "claim"}}},
        {"requests": ["r/one"], "opaque": {"driver": "d.io", "parameters": {"of": "other"}}}]}),
    );
    assert_eq!(f.found(std::slice::from_ref(&either)).unwrap(), ["r/some=g1", "r/some=g3", "x=g0"]);
    let found = f.run(&[either]).unwrap().unwrap();
    assert_eq!(
        json!(found[0].devices.as_ref().unwrap().config),
        json!([{"source": "FromClass", "opaque": {"driver": "d.io", "parameters": {"of": "class"}}},
            {"source": "FromClaim", "requests": ["r/some"],
                "opaque": {"driver": "d.io", "parameters": {"of": "claim"}}}])
    );
    assert_eq!(
        json!(found[0].node_selector),
        json!({"nodeSelectorTerms": [{"matchFields":
            [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}]})
    );
    let constrained = |constraint: Value, count: i64| {
        claim("k", json!({"requests": [exactly("x", json!({"count": count}))], "constraints": [constraint]}))
    };
    assert_eq!(f.found(&[constrained(json!({"matchAttribute": "d.io/model"}), 2)]).unwrap(), ["x=g0", "x=g2"]);
    assert_eq!(f.found(&[constrained(json!({"distinctAttribute": "d.io/numa"}), 2)]).unwrap(), ["x=g0", "x=g2"]);
    assert_eq!(f.found(&[constrained(json!({"matchAttribute": "d.io/numa"}), 3)]), None);
    let all = claim(
        "all",
        json!({"requests": [exactly("x", json!({"allocationMode": "All"}))],
        "constraints": [{"matchAttribute": "d.io/model"}]}),
    );
    let why =
        "claim ns/all, request x: cannot add device d.io/gpus/g1 because a claim constraint would not be satisfied";
    assert_eq!(f.run(&[all]), Err(Failure::Claim(why.to_owned())));
}

#[test]
fn taints_shares_and_counters() {
    let partition = |name: &str, memory: &str| json!({"name": name, "consumesCounters": [{"counterSet": "c", "counters": {"memory": {"value": memory}}}]});
    let counters = {
        let mut s = slice(
            "p-counters",
            json!({"sharedCounters":
            [{"name": "c", "counters": {"memory": {"value": "4Gi"}}}]}),
        );
        s["spec"]["pool"] = json!({"name": "p", "generation": 1, "resourceSliceCount": 2});
        s
    };
    let mut parts = slice(
        "p",
        json!({"devices": [partition("whole", "4Gi"), partition("half-0", "2Gi"),
        partition("half-1", "2Gi")]}),
    );
    parts["spec"]["pool"]["resourceSliceCount"] = json!(2);
    let shared = slice(
        "s",
        json!({"devices": [{"name": "nic", "allowMultipleAllocations": true, "capacity":
        {"bandwidth": {"value": "10", "requestPolicy": {"default": "1", "validRange": {"min": "1", "step": "2"}}}}}]}),
    );
    let tainted = slice(
        "t",
        json!({"devices": [{"name": "bad", "taints": [{"key": "k", "effect": "NoSchedule"}]},
        {"name": "odd", "taints": [{"key": "k", "effect": "None"}]}]}),
    );
    let mut f = fixture(json!([counters, parts, shared, tainted]));
    let named = |pattern: &str, more: Value| {
        let mut r = exactly("x", more);
        r["exactly"]["selectors"] = cel(pattern);
        r
    };
    let of = |name: &str, request: Value| claim(name, json!({"requests": [request]}));
    let plain = "device.capacity.size() == 0 || !device.allowMultipleAllocations";
    let halves = of("halves", named(plain, json!({"count": 2})));
    // The whole device is tried first, and leaves nothing of the counters for another partition.
    assert_eq!(f.found(std::slice::from_ref(&halves)).unwrap(), ["x=whole", "x=odd"]);
    let three = of("three", named(plain, json!({"count": 3})));
    assert_eq!(f.found(&[three]).unwrap(), ["x=half-0", "x=half-1", "x=odd"]);
    let tolerant = of("tolerant", named(plain, json!({"count": 3, "tolerations": [{"operator": "Exists"}]})));
    assert_eq!(f.found(&[tolerant]).unwrap(), ["x=whole", "x=bad", "x=odd"]);
    f.take(&[of("one", named(plain, json!({})))]);
    assert_eq!(f.found(&[halves]), None);

    let share = |name: &str, amount: &str| {
        of(name, named("device.allowMultipleAllocations", json!({"capacity": {"requests": {"bandwidth": amount}}})))
    };
    let found = f.run(&[share("a", "4"), share("b", "1")]).unwrap().unwrap();
    let result = &found[0].devices.as_ref().unwrap().results.as_ref().unwrap()[0];
    assert_eq!(
        json!(result),
        json!({"request": "x", "driver": "d.io", "pool": "s", "device": "nic", "shareID": "share",
            "consumedCapacity": {"bandwidth": "5"}})
    );
    assert_eq!(f.found(&[share("a", "4"), share("b", "5")]).unwrap(), ["x=nic", "x=nic"]);
    assert_eq!(f.found(&[share("a", "4"), share("b", "6")]), None);
    f.take(&[share("a", "7")]);
    assert_eq!(f.found(&[share("b", "3")]).unwrap(), ["x=nic"]);
    assert_eq!(f.found(&[share("b", "4")]), None);
}

#[test]
fn failures() {
    let f = fixture(gpus());
    let of = |request: Value| claim("k", json!({"requests": [request]}));
    let broken = of(exactly("x", json!({"selectors": cel("device.attributes['o'].x")})));
    let Err(Failure::Claim(why)) = f.run(&[broken]) else { panic!() };
    assert!(
        why.starts_with("claim ns/k: selector #0 on device d.io/gpus/g0: CEL runtime error: no such key: x"),
        "{why}"
    );
    let many = of(exactly("x", json!({"count": 33})));
    let why = "claim ns/k: number of requested devices 33 exceeds the claim limit of 32";
    assert_eq!(f.run(&[many]), Err(Failure::Claim(why.to_owned())));
    let mut slices = gpus();
    slices[0]["spec"]["pool"]["resourceSliceCount"] = json!(2);
    let all = of(exactly("x", json!({"allocationMode": "All"})));
    let why = "claim ns/k, request x: asks for all devices, but resource pool d.io/gpus is currently being updated";
    assert_eq!(fixture(slices.clone()).run(&[all]), Err(Failure::Claim(why.to_owned())));
    assert_eq!(fixture(slices.clone()).found(&[of(exactly("x", json!({})))]), None);
    slices[0]["spec"]["pool"]["resourceSliceCount"] = json!(1);
    slices[0]["spec"]["devices"][1]["name"] = json!("g0");
    let why = "invalid resource pools were encountered";
    assert_eq!(fixture(slices).run(&[of(exactly("x", json!({})))]), Err(Failure::Node(why.to_owned())));
    // Thirty-two equal devices and a constraint that none meets: the search gives up when it is told to.
    let devices: Vec<Value> =
        (0..32).map(|i| json!({"name": format!("e{i}"), "attributes": {"n": {"int": i % 8}}})).collect();
    let equal = fixture(json!([slice("e", json!({"devices": devices}))]));
    let hard = claim(
        "k",
        json!({"requests": [exactly("x", json!({"count": 12}))],
        "constraints": [{"distinctAttribute": "d.io/n"}]}),
    );
    assert_eq!(equal.run(&[hard]), Err(Failure::Timeout));
}
