//! Equivalence classes: pods that no filter and no score can tell apart, of which a controller makes many. What was
//! found for one of a class holds for the next, but for the nodes that changed in between.

use crate::diagnosis::Rejections;
use crate::filter::{self, Rejection};
use crate::order::Order;
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
    places: HashMap<Arc<str>, usize>,
    classes: Vec<(Arc<str>, u64, T)>,
    turn: u64,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { places: HashMap::new(), classes: Vec::new(), turn: 0 }
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
        let at = if let Some(at) = self.places.get(key).copied() {
            let (_, used, value) = &mut self.classes[at];
            *used = self.turn;
            if !refresh(value) {
                *value = make();
            }
            at
        } else {
            self.make_room(rows);
            let key: Arc<str> = key.into();
            self.places.insert(key.clone(), self.classes.len());
            self.classes.push((key, self.turn, make()));
            self.classes.len() - 1
        };
        &mut self.classes[at].2
    }

    fn make_room(&mut self, rows: usize) {
        let most = KEPT.min(ROWS_KEPT / rows.max(1)).max(4);
        if self.classes.len() < most {
            return;
        }
        // A quarter at once, so that this is rare.
        let mut turns: Vec<u64> = self.classes.iter().map(|(_, used, _)| *used).collect();
        turns.sort_unstable();
        let oldest = turns[turns.len() / 4];
        self.classes.retain(|(_, used, _)| *used > oldest);
        self.places = self.classes.iter().enumerate().map(|(at, (key, _, _))| (key.clone(), at)).collect();
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
        self.text(json.as_ref().map_or(&*pod.uid, |json| json.as_deref().unwrap_or_default()));
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
    key.text(pod.namespace());
    key.texts(pod.labels().iter().flat_map(|(k, v)| [k.as_str(), v.as_str()]));
    key.json(pod.spec().topology_spread_constraints.as_ref(), pod);
    if let Some(selector) = &defaults.selector {
        let _ = write!(key.0, "{selector:?}");
    }
    key.0
}

/// A node's verdict that is not known.
const UNKNOWN: u16 = 0;
/// The verdict of a node that passed.
const PASSED: u16 = 1;
/// The verdict of a row that is no node.
const ABSENT: u16 = 2;
/// The verdicts from here on count rejections.
const REJECTED: u16 = 3;

/// Nodes that a decision gets to know at least, until all are known: who decides among those that it happens to know
/// would never see the others.
pub(crate) const EXPLORED: usize = 32;

/// What is known of each node for pods of one class, as far as it depends on the node and its pods alone.
#[derive(Debug)]
pub struct Local {
    reach: Arc<Reach>,
    images: Images,
    verdicts: Vec<u16>,
    raws: Vec<Raw>,
    rejections: Vec<Arc<Rejection>>,
    /// Rows by verdict.
    counts: Vec<usize>,
    /// The nodes that passed, by score; from the second pod of the class on, as many pods are the only ones of theirs.
    order: Option<Order>,
    /// Rows that were known and have changed since; kept where there is an order.
    changed: Vec<Row>,
    /// Where the next unknown row is looked for.
    cursor: Row,
    uses: u64,
    seen: u64,
}

impl Local {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(snapshot: &Snapshot, pod: &PodInfo, profile: &Profile) -> Self {
        let rows = snapshot.row_count();
        Self {
            reach: Arc::new(Reach::new(snapshot, pod.spec(), profile)),
            images: Images::of(snapshot, pod),
            verdicts: vec![UNKNOWN; rows],
            raws: vec![Raw::default(); rows],
            rejections: Vec::new(),
            counts: vec![rows, 0, 0],
            order: None,
            changed: Vec::new(),
            cursor: 0,
            uses: 0,
            seen: snapshot.written(),
        }
    }

    /// Looks again at what has changed; false where everything has.
    pub fn catch_up(&mut self, snapshot: &Snapshot, pod: &PodInfo) -> bool {
        if self.seen == snapshot.written() {
            return true;
        }
        if !self.reach.is_current(snapshot) || self.images != Images::of(snapshot, pod) {
            return false;
        }
        let Some(events) = snapshot.since(self.seen) else { return false };
        let more = snapshot.row_count().saturating_sub(self.verdicts.len());
        self.verdicts.resize(self.verdicts.len() + more, UNKNOWN);
        self.raws.resize(self.verdicts.len(), Raw::default());
        self.counts[usize::from(UNKNOWN)] += more;
        for event in events {
            match event {
                Event::Placed(row, _) | Event::Gone(row, _) | Event::Node { row, .. } => self.set(*row, UNKNOWN),
                Event::Namespace | Event::Devices => {}
            }
        }
        if self.changed.len() > self.verdicts.len() {
            // Nobody has asked for the order for long.
            self.order = None;
            self.changed.clear();
        }
        self.seen = snapshot.written();
        true
    }

    /// What the pod asks of nodes themselves.
    #[must_use]
    pub fn reach(&self) -> &Arc<Reach> {
        &self.reach
    }

    /// Whether the node passes; and if not, why. The row is that of a node.
    ///
    /// # Errors
    /// The rejection.
    pub fn check(
        &mut self,
        snapshot: &Snapshot,
        row: Row,
        pod: &PodInfo,
        profile: &Profile,
    ) -> Result<(), &Arc<Rejection>> {
        if self.verdicts[row] == UNKNOWN {
            self.look(snapshot, row, pod, profile);
        }
        match self.verdicts[row].checked_sub(REJECTED) {
            None => Ok(()),
            Some(n) => Err(&self.rejections[usize::from(n)]),
        }
    }

    /// What the node scores by itself; after it passed.
    #[must_use]
    pub fn raw(&self, row: Row) -> &Raw {
        &self.raws[row]
    }

    /// The nodes that passed, the best first, where at least `enough` of them are known (or all nodes are); `None` for
    /// the first pod of the class.
    pub fn ordered(&mut self, snapshot: &Snapshot, pod: &PodInfo, profile: &Profile, enough: usize) -> Option<&Order> {
        self.uses += 1;
        if self.uses < 2 {
            return None;
        }
        if self.order.is_none() {
            let mut order = Order::new(profile.weights, self.verdicts.len());
            for row in (0..self.verdicts.len()).filter(|row| self.verdicts[*row] == PASSED) {
                order.insert(row, &self.raws[row]);
            }
            self.order = Some(order);
        }
        while let Some(row) = self.changed.pop() {
            if self.verdicts[row] == UNKNOWN {
                self.look(snapshot, row, pod, profile);
            }
        }
        let rows = self.verdicts.len();
        let mut looked_at = 0;
        while self.counts[usize::from(UNKNOWN)] > 0
            && (looked_at < EXPLORED || self.counts[usize::from(PASSED)] < enough)
        {
            self.cursor = if self.cursor + 1 < rows { self.cursor + 1 } else { 0 };
            if self.verdicts[self.cursor] == UNKNOWN {
                self.look(snapshot, self.cursor, pod, profile);
                looked_at += 1;
            }
        }
        if let Some(order) = &mut self.order {
            order.settle(&self.raws);
        }
        self.order.as_ref()
    }

    /// Whether all nodes were rejected, as far as it is known of all.
    #[must_use]
    pub fn is_hopeless(&self) -> bool {
        self.counts[usize::from(UNKNOWN)] + self.counts[usize::from(PASSED)] == 0
    }

    /// Of all nodes why they were rejected, where all were and it is known.
    #[must_use]
    pub fn all_rejected(&self) -> Option<Rejections> {
        let verdicts = || self.verdicts.iter().map(|v| v.saturating_sub(REJECTED - 1)).collect();
        let counts = || self.counts[usize::from(REJECTED)..].to_vec();
        self.is_hopeless().then(|| Rejections::counted(self.rejections.clone(), counts(), verdicts()))
    }

    fn set(&mut self, row: Row, verdict: u16) {
        let old = std::mem::replace(&mut self.verdicts[row], verdict);
        self.counts[usize::from(old)] -= 1;
        self.counts[usize::from(verdict)] += 1;
        if let Some(order) = &mut self.order {
            if old == PASSED {
                order.remove(row, &self.raws[row]);
            }
            if old != UNKNOWN && verdict == UNKNOWN {
                // Looked at again before anything else.
                self.changed.push(row);
            }
        }
    }

    fn look(&mut self, snapshot: &Snapshot, row: Row, pod: &PodInfo, profile: &Profile) {
        let verdict = if !snapshot.live[row] {
            ABSENT
        } else {
            match filter::local(snapshot, row, pod, &self.reach, profile, None) {
                Ok(()) => PASSED,
                Err(rejection) => self.number(rejection),
            }
        };
        self.set(row, verdict);
        if verdict == PASSED {
            self.raws[row] = score::raw(snapshot, row, pod, &self.reach, &self.images, profile);
            if let Some(order) = &mut self.order {
                order.insert(row, &self.raws[row]);
            }
        }
    }

    fn number(&mut self, rejection: Rejection) -> u16 {
        let at = self.rejections.iter().position(|r| **r == rejection).unwrap_or_else(|| {
            self.rejections.push(Arc::new(rejection));
            self.counts.push(0);
            self.rejections.len() - 1
        });
        // There are as many as combinations of resources that are short: few.
        REJECTED + u16::try_from(at).unwrap_or(u16::MAX - REJECTED)
    }
}
