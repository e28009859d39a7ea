//! What is computed once per scheduling attempt, before any node is looked at, and adjusted when a what-if adds or
//! removes a pod.

use crate::affinity::AffinityState;
use crate::pod::PodInfo;
use crate::snapshot::{Row, Snapshot};
use crate::spread::{DefaultConstraints, SpreadState};
use std::sync::Arc;

/// State of one attempt to place one pod.
#[derive(Clone, Debug)]
pub struct Cycle {
    /// The pod.
    pub pod: Arc<PodInfo>,
    /// Topology spread counts.
    pub spread: SpreadState,
    /// Inter-pod affinity counts.
    pub affinity: AffinityState,
}

impl Cycle {
    /// Looks at the whole snapshot once.
    #[must_use]
    pub fn new(snapshot: &Snapshot, pod: Arc<PodInfo>, defaults: &DefaultConstraints) -> Self {
        let spread = SpreadState::new(snapshot, &pod, defaults);
        let affinity = AffinityState::new(snapshot, &pod);
        Self { pod, spread, affinity }
    }

    /// As if `other` were on the node at `row` too.
    pub fn add(&mut self, snapshot: &Snapshot, row: Row, other: &PodInfo) {
        self.spread.adjust(snapshot, row, other, 1);
        self.affinity.adjust(snapshot, row, other, &self.pod, 1);
    }

    /// As if `other` were not on the node at `row`.
    pub fn remove(&mut self, snapshot: &Snapshot, row: Row, other: &PodInfo) {
        self.spread.adjust(snapshot, row, other, -1);
        self.affinity.adjust(snapshot, row, other, &self.pod, -1);
    }
}
