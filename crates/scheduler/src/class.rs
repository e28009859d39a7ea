//! Equivalence classes: pods that no filter and no score can tell apart, of which a controller makes many. What was
//! found for one of a class holds for the next, but for the nodes that changed in between.

use crate::filter::{self, Rejection};
use crate::pod::PodInfo;
use crate::profile::Profile;
use crate::reach::Reach;
use crate::score::{self, Images, Raw};
use crate::snapshot::{Event, Row, Snapshot};
use crate::spread::DefaultConstraints;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

/// Classes kept; those unused for longest make room.
const KEPT: usize = 256;
/// Rows kept over all classes; bounds the memory in large clusters.
const ROWS_KEPT: usize = 4 << 20;

/// Values by class.
#[derive(Debug)]
pub struct Kept<T> {
    classes: HashMap<Arc<str>, (u64, T)>,
    turn: u64,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { classes: HashMap::new(), turn: 0 }
    }
}

impl<T> Kept<T> {
    /// The value of a class, made where there is none or `refresh` says that it is of no use any more. `rows` is how
    /// many rows the snapshot has.
    pub fn get(
        &mut self,
        key: &str,
        rows: usize,
        refresh: impl FnOnce(&mut T) -> bool,
        make: impl FnOnce() -> T,
    ) -> &mut T {
        self.turn += 1;
        if !self.classes.contains_key(key) {
            self.make_room(rows);
            self.classes.insert(key.into(), (self.turn, make()));
        } else if let Some((used, value)) = self.classes.get_mut(key) {
            *used = self.turn;
            if !refresh(value) {
                *value = make();
            }
        }
        &mut self.classes.get_mut(key).expect("it was put in above").1
    }

    fn make_room(&mut self, rows: usize) {
        let most = KEPT.min(ROWS_KEPT / rows.max(1)).max(4);
        if self.classes.len() < most {
            return;
        }
        // A quarter at once, so that this is rare.
        let mut turns: Vec<u64> = self.classes.values().map(|(used, _)| *used).collect();
        turns.sort_unstable();
        let oldest = turns[turns.len() / 4];
        self.classes.retain(|_, (used, _)| *used > oldest);
    }
}

/// A key made of texts, such that no two lists of texts make the same.
struct Key(String);

impl Key {
    fn text(&mut self, text: &str) {
        // Writing to a string cannot fail.
        let _ = write!(self.0, "{}:{text}", text.len());
    }

    fn texts<'a>(&mut self, texts: impl Iterator<Item = &'a str>) {
        texts.for_each(|t| self.text(t));
        self.0.push('|');
    }

    fn json(&mut self, value: Option<&impl serde::Serialize>, pod: &PodInfo) {
        let json = value.map(serde_json::to_string).transpose();
        // What cannot be written is like nothing else.
        self.text(json.as_ref().map_or(Some(&pod.uid), Option::as_ref).map_or("", String::as_str));
    }
}

/// Everything that the filters and scores of a single node look at. Equal keys are equal pods to them.
#[must_use]
pub fn local_key(pod: &PodInfo) -> String {
    let spec = pod.spec();
    let mut key = Key(String::with_capacity(256));
    let r = &pod.requests;
    let numbers = (r.cpu_milli, r.memory, r.ephemeral, pod.score_cpu_milli, pod.score_memory);
    let _ = write!(key.0, "{numbers:?}{:?}{:?}", r.scalars, pod.host_ports);
    key.text(pod.node().unwrap_or_default());
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    key.texts(containers.map(|c| c.image.as_deref().unwrap_or_default()));
    key.texts(spec.node_selector.iter().flatten().flat_map(|(k, v)| [k.as_str(), v.as_str()]));
    let parts = spec.tolerations.iter().flatten().flat_map(|t| [&t.key, &t.operator, &t.value, &t.effect]);
    key.texts(parts.map(|part| part.as_deref().unwrap_or_default()));
    key.json(spec.affinity.as_ref(), pod);
    key.0
}

/// The same for the filters and scores that look at pods on other nodes.
#[must_use]
pub fn cross_key(local: &str, pod: &PodInfo, defaults: &DefaultConstraints) -> String {
    let mut key = Key(String::with_capacity(local.len() + 256));
    key.text(local);
    key.text(&pod.namespace);
    key.texts(pod.labels().iter().flat_map(|(k, v)| [k.as_str(), v.as_str()]));
    key.json(pod.spec().topology_spread_constraints.as_ref(), pod);
    if let Some(selector) = &defaults.selector {
        let _ = write!(key.0, "{selector:?}");
    }
    key.0
}

/// A node's verdict that is not known.
const UNKNOWN: u16 = 0;
/// The verdict of a node that passed; greater ones count rejections.
const PASSED: u16 = 1;

#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    verdict: u16,
    raw: Raw,
}

/// What is known of each node for pods of one class, as far as it depends on the node and its pods alone.
#[derive(Debug)]
pub struct Local {
    reach: Arc<Reach>,
    images: Images,
    cells: Vec<Cell>,
    rejections: Vec<Arc<Rejection>>,
    seen: u64,
}

impl Local {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(snapshot: &Snapshot, pod: &PodInfo, profile: &Profile) -> Self {
        Self {
            reach: Arc::new(Reach::new(snapshot, pod.spec(), profile)),
            images: Images::of(snapshot, pod),
            cells: vec![Cell::default(); snapshot.row_count()],
            rejections: Vec::new(),
            seen: snapshot.written(),
        }
    }

    /// Forgets what has changed; false where everything has.
    pub fn catch_up(&mut self, snapshot: &Snapshot, pod: &PodInfo) -> bool {
        if self.seen == snapshot.written() {
            return true;
        }
        if !self.reach.is_current(snapshot) || self.images != Images::of(snapshot, pod) {
            return false;
        }
        let Some(events) = snapshot.since(self.seen) else { return false };
        self.cells.resize(snapshot.row_count(), Cell::default());
        for event in events {
            match event {
                Event::Placed(row, _) | Event::Gone(row, _) | Event::Node { row, .. } => {
                    self.cells[*row].verdict = UNKNOWN;
                }
                Event::Namespace | Event::Devices => {}
            }
        }
        self.seen = snapshot.written();
        true
    }

    /// What the pod asks of nodes themselves.
    #[must_use]
    pub fn reach(&self) -> &Arc<Reach> {
        &self.reach
    }

    /// Whether the node passes; and if not, why.
    ///
    /// # Errors
    /// The rejection.
    pub fn check(
        &mut self,
        snapshot: &Snapshot,
        row: Row,
        pod: &PodInfo,
        profile: &Profile,
    ) -> Result<(), Arc<Rejection>> {
        if self.cells[row].verdict == UNKNOWN {
            self.cells[row] = self.look(snapshot, row, pod, profile);
        }
        match self.cells[row].verdict {
            PASSED => Ok(()),
            n => Err(self.rejections[usize::from(n - PASSED - 1)].clone()),
        }
    }

    /// What the node scores by itself; after it passed.
    #[must_use]
    pub fn raw(&self, row: Row) -> &Raw {
        &self.cells[row].raw
    }

    fn look(&mut self, snapshot: &Snapshot, row: Row, pod: &PodInfo, profile: &Profile) -> Cell {
        match filter::local(snapshot, row, pod, &self.reach, profile, None) {
            Ok(()) => {
                let raw = score::raw(snapshot, row, pod, &self.reach, &self.images, profile);
                Cell { verdict: PASSED, raw }
            }
            Err(rejection) => {
                let at = self.rejections.iter().position(|r| **r == rejection).unwrap_or_else(|| {
                    self.rejections.push(Arc::new(rejection));
                    self.rejections.len() - 1
                });
                // There are as many as combinations of resources that are short: few.
                Cell { verdict: PASSED + 1 + u16::try_from(at).unwrap_or(u16::MAX - 2), raw: Raw::default() }
            }
        }
    }
}
