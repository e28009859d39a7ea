//! What is computed once per scheduling attempt, before any node is looked at, and adjusted when a what-if adds or
//! removes a pod.

use crate::affinity::AffinityState;
use crate::filter::volumes::{self, PodVolumes};
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
    /// The pod's claims; None where it has none.
    pub volumes: Option<Arc<PodVolumes>>,
    /// Pods that use claims which this pod alone may use.
    pub exclusive_conflicts: usize,
}

impl Cycle {
    /// Looks at the whole snapshot once.
    #[must_use]
    pub fn new(
        snapshot: &Snapshot,
        pod: Arc<PodInfo>,
        defaults: &DefaultConstraints,
        volumes: Option<PodVolumes>,
    ) -> Self {
        let spread = SpreadState::new(snapshot, &pod, defaults);
        let affinity = AffinityState::new(snapshot, &pod);
        let exclusive_conflicts = volumes.as_ref().map_or(0, |v| volumes::conflicts(snapshot, &pod, &v.exclusive));
        Self { pod, spread, affinity, volumes: volumes.map(Arc::new), exclusive_conflicts }
    }

    /// As if `other` were on the node at `row` too.
    pub fn add(&mut self, snapshot: &Snapshot, row: Row, other: &PodInfo) {
        self.spread.adjust(snapshot, row, other, 1);
        self.affinity.adjust(snapshot, row, other, &self.pod, 1);
        self.exclusive_conflicts += usize::from(self.is_rival(other));
    }

    /// As if `other` were not on the node at `row`.
    pub fn remove(&mut self, snapshot: &Snapshot, row: Row, other: &PodInfo) {
        self.spread.adjust(snapshot, row, other, -1);
        self.affinity.adjust(snapshot, row, other, &self.pod, -1);
        self.exclusive_conflicts -= usize::from(self.is_rival(other));
    }

    /// Whether the other pod uses a claim that this one alone may use.
    fn is_rival(&self, other: &PodInfo) -> bool {
        self.volumes.as_ref().is_some_and(|v| volumes::uses(other, &v.exclusive))
    }
}
