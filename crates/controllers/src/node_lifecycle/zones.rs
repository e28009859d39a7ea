//! Evictions are slow where much fails at once, and stop where everything does.

use super::health::is_ready;
use gantry_api::meta::object::Meta;
use k8s_openapi::api::core::v1::Node;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// One node per zone begins to be evicted in this time (`--node-eviction-rate` 0.1).
const NORMAL: Duration = Duration::from_secs(10);
/// The same in a large zone of which much is down (`--secondary-node-eviction-rate` 0.01).
const SLOW: Duration = Duration::from_secs(100);
/// A zone is partly disrupted from this share of nodes on (`--unhealthy-zone-threshold`)…
const THRESHOLD: f64 = 0.55;
/// …and large from this many nodes on (`--large-cluster-size-threshold`).
const LARGE: usize = 50;

/// How a zone fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneState {
    /// Most nodes are ready.
    Normal,
    /// Many are not.
    Partial,
    /// None is.
    Full,
}

/// The zone of a node: region and zone, empty where it has neither.
#[must_use]
pub fn zone_of(node: &Node) -> String {
    let label = |k: &str| node.metadata.label(k).unwrap_or_default().to_owned();
    let (region, zone) = (label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"));
    if region.is_empty() && zone.is_empty() { String::new() } else { format!("{region}:\u{0}:{zone}") }
}

/// How a zone with these nodes fares.
#[must_use]
pub fn zone_state(ready: usize, not_ready: usize) -> ZoneState {
    #[allow(clippy::cast_precision_loss)]
    let share = not_ready as f64 / (ready + not_ready).max(1) as f64;
    match (ready, not_ready) {
        (0, n) if n > 0 => ZoneState::Full,
        (_, n) if n > 2 && share >= THRESHOLD => ZoneState::Partial,
        _ => ZoneState::Normal,
    }
}

fn counts(nodes: &[Arc<Node>]) -> BTreeMap<String, (usize, usize)> {
    let mut zones: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for node in nodes {
        let (ready, not_ready) = zones.entry(zone_of(node)).or_default();
        if is_ready(node) {
            *ready += 1;
        } else {
            *not_ready += 1;
        }
    }
    zones
}

/// Whether every zone is wholly disrupted: there are nodes, and none is ready.
#[must_use]
pub fn all_disrupted(nodes: &[Arc<Node>]) -> bool {
    !nodes.is_empty() && !nodes.iter().any(|n| is_ready(n))
}

/// Whose turn it is to be evicted.
#[derive(Default)]
pub(super) struct Limits {
    disrupted: bool,
    next: BTreeMap<String, Instant>,
}

impl Limits {
    /// Sets whether everything is disrupted; whether that is new.
    pub(super) fn set_disrupted(&mut self, disrupted: bool) -> bool {
        std::mem::replace(&mut self.disrupted, disrupted) != disrupted
    }

    pub(super) fn is_disrupted(&self) -> bool {
        self.disrupted
    }

    /// None where a node of `zone` may be evicted now, which takes the turn; else how long to wait.
    pub(super) fn wait_turn(&mut self, zone: &str, nodes: &[Arc<Node>]) -> Option<Duration> {
        let (ready, not_ready) = counts(nodes).remove(zone).unwrap_or_default();
        let interval = match zone_state(ready, not_ready) {
            // A zone that is wholly gone while others live is evicted at the usual rate.
            ZoneState::Normal | ZoneState::Full => NORMAL,
            ZoneState::Partial if ready + not_ready > LARGE => SLOW,
            // A small zone of which much is down is left alone.
            ZoneState::Partial => return Some(NORMAL),
        };
        let now = Instant::now();
        let due = self.next.get(zone).copied().unwrap_or(now);
        if due > now {
            return Some(due - now);
        }
        self.next.insert(zone.to_owned(), now + interval);
        None
    }
}
