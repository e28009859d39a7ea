//! Evictions are slow where much fails at once, and stop where everything does.

use super::health::is_ready;
use gantry_api::meta::object::Meta;
use gantry_reconcile::{Index, Queue, Store};
use k8s_openapi::api::core::v1::Node;
use std::collections::{BTreeMap, BTreeSet};
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

/// In which zone each node is, and whether it is ready: an index of the cache of nodes, so that nobody has to count them.
pub(super) struct Tally {
    nodes: Store<Node>,
    places: Index<Node>,
}

impl Tally {
    const READY: &str = "ready";
    const DOWN: &str = "down";

    pub(super) fn new(nodes: &Store<Node>) -> Self {
        let places = nodes.index("zone and readiness", |node| {
            let zone = zone_of(node);
            if is_ready(node) {
                vec![Self::READY.to_owned(), format!("{} {zone}", Self::READY)]
            } else {
                vec![format!("{} {zone}", Self::DOWN)]
            }
        });
        Self { nodes: nodes.clone(), places }
    }

    /// How many nodes of a zone are ready, and how many are not.
    pub(super) fn counts(&self, zone: &str) -> (usize, usize) {
        let count = |state: &str| self.places.count(&format!("{state} {zone}"));
        (count(Self::READY), count(Self::DOWN))
    }

    /// Whether every zone is wholly disrupted: there are nodes, and none is ready.
    pub(super) fn all_disrupted(&self) -> bool {
        self.places.count(Self::READY) == 0 && !self.nodes.is_empty()
    }
}

/// The nodes of a zone that are to be evicted, and when the first of them may be.
#[derive(Default)]
struct Line {
    due: Option<Instant>,
    waiting: BTreeSet<(u64, String)>,
}

/// Whose turn it is to be evicted: in each zone those who wait stand in a line, and only the first of it is looked at again.
pub(super) struct Limits {
    disrupted: bool,
    lines: BTreeMap<String, Line>,
    /// Who stands where: the zone, and the place in its line.
    places: BTreeMap<String, (String, u64)>,
    arrivals: u64,
    queue: Queue,
}

/// What a node is told that is to be evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It is its turn, which is taken thereby.
    Now,
    /// It is to ask again after a while.
    After(Duration),
    /// Others are first. It is queued when they have gone.
    Behind,
}

impl Limits {
    /// `queue` is where nodes are put whose turn may have come.
    pub(super) fn new(queue: Queue) -> Self {
        Self { disrupted: false, lines: BTreeMap::new(), places: BTreeMap::new(), arrivals: 0, queue }
    }

    /// Sets whether everything is disrupted; whether that is new.
    pub(super) fn set_disrupted(&mut self, disrupted: bool) -> bool {
        std::mem::replace(&mut self.disrupted, disrupted) != disrupted
    }

    pub(super) fn is_disrupted(&self) -> bool {
        self.disrupted
    }

    /// Whether a node may be evicted now, of whose zone so many are ready and so many are not.
    pub(super) fn turn(&mut self, node: &str, zone: &str, (ready, not_ready): (usize, usize)) -> Turn {
        let interval = match zone_state(ready, not_ready) {
            // A zone that is wholly gone while others live is evicted at the usual rate.
            ZoneState::Normal | ZoneState::Full => NORMAL,
            ZoneState::Partial if ready + not_ready > LARGE => SLOW,
            // A small zone of which much is down is left alone.
            ZoneState::Partial => {
                self.leave(node);
                return Turn::After(NORMAL);
            }
        };
        self.enter(node, zone);
        let line = self.lines.entry(zone.to_owned()).or_default();
        if line.waiting.first().is_some_and(|(_, first)| first != node) {
            return Turn::Behind;
        }
        let now = Instant::now();
        if let Some(due) = line.due.filter(|due| *due > now) {
            return Turn::After(due - now);
        }
        line.due = Some(now + interval);
        self.leave(node);
        Turn::Now
    }

    fn enter(&mut self, node: &str, zone: &str) {
        if self.places.get(node).is_some_and(|(in_line, _)| in_line == zone) {
            return;
        }
        self.leave(node);
        self.arrivals += 1;
        self.places.insert(node.to_owned(), (zone.to_owned(), self.arrivals));
        self.lines.entry(zone.to_owned()).or_default().waiting.insert((self.arrivals, node.to_owned()));
    }

    /// A node is not to be evicted any more, or is.
    pub(super) fn leave(&mut self, node: &str) {
        let Some((zone, place)) = self.places.remove(node) else { return };
        let Some(line) = self.lines.get_mut(&zone) else { return };
        let was_first = line.waiting.first().is_some_and(|(first, _)| *first == place);
        line.waiting.remove(&(place, node.to_owned()));
        if was_first && let Some((_, next)) = line.waiting.first() {
            let wait = line.due.map_or(Duration::ZERO, |due| due.saturating_duration_since(Instant::now()));
            self.queue.add_after(next.clone(), wait);
        }
    }
}
