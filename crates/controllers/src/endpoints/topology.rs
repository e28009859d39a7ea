//! Hints of zones in proportion to their processors (`service.kubernetes.io/topology-mode: Auto`, KEP-2433): each zone gets
//! endpoints by its share of the cluster's CPU, those of its own first, and no zone so few that they carry more than a
//! fifth beyond their load.

use super::slice_plan::SlicePlan;
use gantry_api::meta::object::Meta;
use gantry_api::meta::quantity::amount_of;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, EndpointSlice, ForZone};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Label of a node that names its zone.
pub(super) const ZONE: &str = "topology.kubernetes.io/zone";
/// Nodes with one of these count for nothing.
const EXCLUDED: [&str; 2] = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];
const NO_NODE_INFO: &str = "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes";
const NO_ZONE: &str = "One or more endpoints do not have a zone specified";
const NOTHING_ALLOCATED: &str = "No hints allocated for zones";

/// How many endpoints each zone is given.
pub(super) type ByZone = BTreeMap<String, usize>;

/// Whether the Service asks for hints by the zones' processors. The elder annotation goes before the newer.
pub(super) fn is_auto(service: &Service) -> bool {
    let asked = |name| service.metadata.annotation(name);
    let mode =
        asked("service.kubernetes.io/topology-aware-hints").or_else(|| asked("service.kubernetes.io/topology-mode"));
    matches!(mode, Some("Auto" | "auto"))
}

/// What of a node decides on the shares: whether it counts, its zone and its processors.
pub(super) fn facts(node: &Node) -> Option<(&str, i64)> {
    let status = node.status.as_ref();
    let mut conditions = status.iter().flat_map(|s| s.conditions.iter().flatten());
    let ready = conditions.find(|c| c.type_ == "Ready").is_some_and(|c| c.status == "True");
    let counts = ready && EXCLUDED.iter().all(|l| node.metadata.label(l).is_none());
    let cpu = amount_of(status.and_then(|s| s.allocatable.as_ref()), "cpu").milli_value();
    counts.then(|| (node.metadata.label(ZONE).unwrap_or_default(), cpu))
}

/// The processors of each zone, in thousandths, and of all.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shares {
    total: i128,
    by_zone: BTreeMap<String, i128>,
}

/// What a zone is to have. Numbers that need not be whole are multiplied by the total of the shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Allocation {
    maximum: usize,
    desired: i128,
}

/// How many of `endpoints` a zone must have at least so that none of them carries more than 1.2 times its load.
fn minimum(endpoints: usize, cpu: i128, total: i128) -> i128 {
    (5 * cpu * as_wide(endpoints) + 6 * total - 1) / (6 * total)
}

fn as_wide(n: usize) -> i128 {
    i128::try_from(n).unwrap_or(i128::MAX)
}

impl Shares {
    /// None where a node does not say its zone or its processors, or where there are not two zones.
    pub(super) fn of<'a>(nodes: impl Iterator<Item = &'a Node>) -> Option<Self> {
        let mut by_zone: BTreeMap<String, i128> = BTreeMap::new();
        for (zone, cpu) in nodes.filter_map(facts) {
            if zone.is_empty() || cpu == 0 {
                return None;
            }
            *by_zone.entry(zone.to_owned()).or_default() += i128::from(cpu);
        }
        let total = by_zone.values().sum();
        (by_zone.len() > 1 && total > 0).then_some(Self { total, by_zone })
    }

    fn allocations(&self, endpoints: usize) -> Result<BTreeMap<&str, Allocation>, String> {
        let zones = self.by_zone.len();
        if zones > endpoints {
            return Err(format!("Insufficient number of endpoints ({endpoints} endpoints, {zones} zones)"));
        }
        let minima: i128 = self.by_zone.values().map(|cpu| minimum(endpoints, *cpu, self.total)).sum();
        let spare = as_wide(endpoints) - minima;
        if spare < 0 {
            return Err(format!(
                "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold \
                 ({endpoints} endpoints, {zones} zones)"
            ));
        }
        let mut out = BTreeMap::new();
        for (zone, cpu) in &self.by_zone {
            let least = minimum(endpoints, *cpu, self.total);
            let desired = (cpu * as_wide(endpoints)).max(least * self.total);
            let maximum = usize::try_from(least + spare).unwrap_or(usize::MAX);
            out.insert(zone.as_str(), Allocation { maximum, desired });
        }
        Ok(out)
    }
}

/// Whether a zone has fewer endpoints than it needs, now that the shares are these.
pub(super) fn is_overloaded(shares: Option<&Shares>, given: &ByZone) -> bool {
    let Some(shares) = shares else { return !given.is_empty() };
    let total: usize = given.values().sum();
    !given.is_empty()
        && shares
            .by_zone
            .iter()
            .any(|(zone, cpu)| given.get(zone).is_none_or(|n| as_wide(*n) < minimum(total, *cpu, shares.total)))
}

fn is_ready(e: &Endpoint) -> bool {
    e.conditions.as_ref().and_then(|c| c.ready) == Some(true)
}

fn ready(slice: &EndpointSlice) -> impl Iterator<Item = &Endpoint> {
    slice.endpoints.iter().flatten().filter(|e| is_ready(e))
}

fn hint(zone: &str) -> Option<EndpointHints> {
    Some(EndpointHints { for_zones: Some(vec![ForZone { name: zone.to_owned() }]), for_nodes: None })
}

/// Puts hints into the slices of `plan`, and into as few of those that need no other change (`unchanged`) as possible; how many
/// endpoints each zone got.
///
/// # Errors
/// Why there can be no hints, as upstream's events say it; the slices then have none.
pub(super) fn spread(
    shares: Option<&Shares>,
    plan: &mut SlicePlan,
    mut unchanged: Vec<Arc<EndpointSlice>>,
) -> Result<ByZone, String> {
    let planned = plan.create.iter().chain(&plan.update);
    let all: usize = planned.chain(unchanged.iter().map(AsRef::as_ref)).map(|s| ready(s).count()).sum();
    let outcome = shares
        .ok_or_else(|| NO_NODE_INFO.to_owned())
        .and_then(|s| Ok((s.total, s.allocations(all)?)))
        .and_then(|(total, allocations)| assign(total, &allocations, plan, &mut unchanged));
    if outcome.is_err() {
        let has_hints = |s: &Arc<EndpointSlice>| s.endpoints.iter().flatten().any(|e| e.hints.is_some());
        plan.update.extend(unchanged.iter().filter(|s| has_hints(s)).map(|s| (**s).clone()));
        let slices = plan.create.iter_mut().chain(&mut plan.update);
        slices.flat_map(|s| s.endpoints.iter_mut().flatten()).for_each(|e| e.hints = None);
    }
    outcome
}

fn assign(
    total: i128,
    allocations: &BTreeMap<&str, Allocation>,
    plan: &mut SlicePlan,
    unchanged: &mut Vec<Arc<EndpointSlice>>,
) -> Result<ByZone, String> {
    let mut given = ByZone::new();
    unchanged.retain(|slice| match standing(slice, &given, allocations) {
        Some(hints) => {
            hints.into_iter().for_each(|(zone, n)| *given.entry(zone).or_default() += n);
            true
        }
        None => {
            plan.update.push((**slice).clone());
            false
        }
    });
    // All endpoints of slices that are written serve their own zone first.
    let written = plan.create.iter_mut().chain(&mut plan.update);
    for e in written.flat_map(|s| s.endpoints.iter_mut().flatten()) {
        e.hints = None;
        if is_ready(e) {
            let zone = e.zone.as_deref().filter(|z| !z.is_empty()).ok_or(NO_ZONE)?;
            e.hints = hint(zone);
            *given.entry(zone.to_owned()).or_default() += 1;
        }
    }
    let (mut giving, mut receiving) = moves(total, allocations, &given);
    let written = plan.create.iter_mut().chain(&mut plan.update);
    for e in written.flat_map(|s| s.endpoints.iter_mut().flatten()).filter(|e| is_ready(e)) {
        let Some(from) = e.zone.clone().filter(|z| giving.contains_key(z)) else { continue };
        let Some(to) = receiving.keys().next().cloned() else { break };
        e.hints = hint(&to);
        take_one(&mut giving, &from);
        take_one(&mut receiving, &to);
        take_one(&mut given, &from);
        *given.entry(to).or_default() += 1;
    }
    if given.is_empty() { Err(NOTHING_ALLOCATED.to_owned()) } else { Ok(given) }
}

fn take_one(from: &mut ByZone, zone: &str) {
    if let Some(n) = from.get_mut(zone) {
        *n -= 1;
        if *n == 0 {
            from.remove(zone);
        }
    }
}

/// The hints of a slice that may stay as it is; None where it must be written: an endpoint has no hint, or one for a zone
/// that wants none, or a zone would have too many.
fn standing(slice: &EndpointSlice, given: &ByZone, allocations: &BTreeMap<&str, Allocation>) -> Option<ByZone> {
    let mut hints = ByZone::new();
    for e in ready(slice) {
        let zones = e.hints.as_ref()?.for_zones.as_ref().filter(|z| !z.is_empty())?;
        for zone in zones {
            *hints.entry(zone.name.clone()).or_default() += 1;
        }
    }
    let fits = |(zone, n): (&String, &usize)| {
        allocations.get(zone.as_str()).is_some_and(|a| n + given.get(zone).unwrap_or(&0) <= a.maximum)
    };
    hints.iter().all(fits).then_some(hints)
}

/// How many endpoints zones give away, and how many others get: as long as a whole one is left on one side and half a one on
/// the other.
fn moves(total: i128, allocations: &BTreeMap<&str, Allocation>, given: &ByZone) -> (ByZone, ByZone) {
    let surplus = |zone: &str, a: &Allocation| as_wide(given.get(zone).copied().unwrap_or(0)) * total - a.desired;
    let mut over: BTreeMap<&str, i128> = allocations.iter().map(|(z, a)| (*z, surplus(z, a))).collect();
    let (mut giving, mut receiving) = (ByZone::new(), ByZone::new());
    loop {
        let most = over.iter().max_by_key(|(_, n)| **n).map(|(z, n)| (*z, *n));
        let least = over.iter().min_by_key(|(_, n)| **n).map(|(z, n)| (*z, -*n));
        let (Some((from, gives)), Some((to, gets))) = (most, least) else { break };
        if (gives < total && gets < total) || 2 * gives < total || 2 * gets < total {
            break;
        }
        *over.entry(from).or_default() -= total;
        *over.entry(to).or_default() += total;
        *giving.entry(from.to_owned()).or_default() += 1;
        *receiving.entry(to.to_owned()).or_default() += 1;
    }
    (giving, receiving)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::json;

    fn node(zone: &str, cpu: &str, more: &[(&str, &str)]) -> Node {
        let mut labels: BTreeMap<&str, &str> = more.iter().copied().collect();
        if !zone.is_empty() {
            labels.insert(ZONE, zone);
        }
        Node::from_value(json!({"metadata": {"name": "n", "labels": labels}, "status": {
            "allocatable": {"cpu": cpu}, "conditions": [{"type": "Ready", "status": "True"}]}}))
        .unwrap()
    }

    fn shares(nodes: &[Node]) -> Option<Shares> {
        Shares::of(nodes.iter())
    }

    fn slice(name: &str, zones: &[&str]) -> EndpointSlice {
        let endpoints: Vec<_> = zones
            .iter()
            .map(|z| json!({"addresses": ["10.0.0.1"], "zone": z, "conditions": {"ready": true}}))
            .collect();
        let value = json!({"metadata": {"name": name}, "addressType": "IPv4", "endpoints": endpoints});
        EndpointSlice::from_value(value).unwrap()
    }

    fn hints(slice: &EndpointSlice) -> Vec<&str> {
        ready(slice).map(|e| e.hints.as_ref().unwrap().for_zones.as_ref().unwrap()[0].name.as_str()).collect()
    }

    fn by_zone(pairs: &[(&str, usize)]) -> ByZone {
        pairs.iter().map(|(z, n)| ((*z).to_owned(), *n)).collect()
    }

    #[test]
    fn shares_need_two_zones_and_every_ready_node_to_tell() {
        let (a, b) = (node("a", "1", &[]), node("b", "3", &[]));
        assert_eq!(
            shares(&[a.clone(), b.clone()]).unwrap().by_zone.values().copied().collect::<Vec<_>>(),
            [1000, 3000]
        );
        let control = node("", "8", &[("node-role.kubernetes.io/control-plane", "")]);
        assert_eq!(
            shares(&[a.clone(), b.clone(), control]).unwrap().total,
            4000,
            "the control plane counts for nothing"
        );
        let mut gone = node("", "8", &[]);
        gone.status.as_mut().unwrap().conditions.as_mut().unwrap()[0].status = "Unknown".into();
        assert!(shares(&[a.clone(), b.clone(), gone]).is_some(), "nor does a node that is away");
        assert_eq!(shares(&[a.clone(), a.clone()]), None);
        assert_eq!(shares(&[a.clone(), b.clone(), node("", "1", &[])]), None);
        assert_eq!(shares(&[a, b, node("c", "0", &[])]), None);
    }

    #[test]
    fn endpoints_go_by_processors_and_stay_in_their_zone_where_they_can() {
        let shares = shares(&[node("a", "2", &[]), node("b", "1", &[]), node("c", "1", &[])]);
        let mut plan =
            SlicePlan { create: vec![slice("x", &["a", "b", "b", "b", "c", "c", "c", "c"])], ..Default::default() };
        let given = spread(shares.as_ref(), &mut plan, Vec::new()).unwrap();
        assert_eq!(given, by_zone(&[("a", 4), ("b", 2), ("c", 2)]));
        let told = hints(&plan.create[0]);
        assert_eq!(told.iter().filter(|z| **z == "a").count(), 4);
        assert_eq!(told[0], "a", "its own zone first");
        assert!(!is_overloaded(shares.as_ref(), &given));
    }

    #[test]
    fn a_slice_that_still_fits_is_left_alone() {
        let shares = shares(&[node("a", "1", &[]), node("b", "1", &[])]);
        let mut first = SlicePlan { create: vec![slice("x", &["a", "a", "b", "b"])], ..Default::default() };
        spread(shares.as_ref(), &mut first, Vec::new()).unwrap();
        let there: Vec<_> = first.create.iter().cloned().map(Arc::new).collect();
        let mut second = SlicePlan::default();
        spread(shares.as_ref(), &mut second, there.clone()).unwrap();
        assert_eq!(second, SlicePlan::default());
        let mut bare = (*there[0]).clone();
        bare.endpoints.as_mut().unwrap()[1].hints = None;
        let mut third = SlicePlan::default();
        spread(shares.as_ref(), &mut third, vec![Arc::new(bare)]).unwrap();
        assert_eq!(hints(&third.update[0]), ["a", "a", "b", "b"]);
    }

    #[test]
    fn why_there_are_no_hints() {
        let two = shares(&[node("a", "1", &[]), node("b", "1", &[])]);
        let told = |shares: Option<&Shares>, zones: &[&str]| {
            let mut plan = SlicePlan { create: vec![slice("x", zones)], ..Default::default() };
            let outcome = spread(shares, &mut plan, Vec::new());
            assert!(outcome.is_ok() || plan.create[0].endpoints.iter().flatten().all(|e| e.hints.is_none()));
            outcome.err()
        };
        assert_eq!(told(two.as_ref(), &["a", "b"]), None);
        assert_eq!(told(None, &["a", "b"]).as_deref(), Some(NO_NODE_INFO));
        assert_eq!(told(two.as_ref(), &["a", ""]).as_deref(), Some(NO_ZONE));
        assert_eq!(
            told(two.as_ref(), &["a"]).as_deref(),
            Some("Insufficient number of endpoints (1 endpoints, 2 zones)")
        );
        let steep = shares(&[node("a", "9", &[]), node("b", "1", &[])]);
        assert!(told(steep.as_ref(), &["a", "b"]).unwrap().starts_with("Unable to allocate minimum required"));
    }

    #[test]
    fn hints_that_became_wrong_are_taken_away_and_overload_is_seen() {
        let shares = shares(&[node("a", "1", &[]), node("b", "1", &[])]);
        let mut plan = SlicePlan { create: vec![slice("x", &["a", "b"])], ..Default::default() };
        let given = spread(shares.as_ref(), &mut plan, Vec::new()).unwrap();
        let there = vec![Arc::new(plan.create[0].clone())];
        let mut next = SlicePlan::default();
        assert!(spread(None, &mut next, there).is_err());
        assert!(next.update[0].endpoints.iter().flatten().all(|e| e.hints.is_none()));
        assert!(is_overloaded(None, &given) && !is_overloaded(None, &ByZone::new()));
        let steep = self::shares(&[node("a", "9", &[]), node("b", "1", &[])]);
        assert!(is_overloaded(steep.as_ref(), &given));
    }
}
