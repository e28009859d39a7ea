//! What is computed once per scheduling attempt, before any node is looked at, and adjusted as pods come and go, in
//! earnest or in a what-if.

use crate::affinity::AffinityState;
use crate::devices::PodDevices;
use crate::filter::volumes::{self, PodVolumes};
use crate::pod::{Occupant, PodInfo};
use crate::profile::Profile;
use crate::reach::Reach;
use crate::snapshot::{Event, Row, Snapshot};
use crate::spread::{DefaultConstraints, SpreadState};
use std::sync::Arc;

/// State of one attempt to place one pod.
#[derive(Clone, Debug)]
pub struct Cycle {
    /// The pod.
    pub pod: Arc<PodInfo>,
    /// The profile that places it.
    pub profile: Arc<Profile>,
    /// What it asks of a node itself.
    pub reach: Arc<Reach>,
    /// Topology spread counts.
    pub spread: SpreadState,
    /// Inter-pod affinity counts.
    pub affinity: AffinityState,
    /// The pod's claims; None where it has none.
    pub volumes: Option<Arc<PodVolumes>>,
    /// The pod's devices; None where it has none.
    pub devices: Option<Arc<PodDevices>>,
    /// Pods that use claims which this pod alone may use.
    pub exclusive_conflicts: usize,
    seen: u64,
}

impl Cycle {
    /// Looks at the whole snapshot once.
    #[must_use]
    pub fn new(snapshot: &Snapshot, pod: Arc<PodInfo>, defaults: &DefaultConstraints, profile: &Arc<Profile>) -> Self {
        let reach = Arc::new(Reach::new(snapshot, pod.spec(), profile));
        Self {
            spread: SpreadState::new(snapshot, &pod, defaults, &reach),
            affinity: AffinityState::new(snapshot, &pod, profile),
            pod,
            profile: profile.clone(),
            reach,
            volumes: None,
            devices: None,
            exclusive_conflicts: 0,
            seen: snapshot.written(),
        }
    }

    /// For a pod of the same class, with its claims.
    #[must_use]
    pub fn with(
        mut self,
        snapshot: &Snapshot,
        pod: Arc<PodInfo>,
        volumes: Option<Arc<PodVolumes>>,
        devices: Option<Arc<PodDevices>>,
    ) -> Self {
        self.exclusive_conflicts = volumes.as_ref().map_or(0, |v| volumes::conflicts(snapshot, &pod, &v.exclusive));
        self.pod = pod;
        self.volumes = volumes;
        self.devices = devices;
        self
    }

    /// Takes in what happened since it was made or last caught up; false where it has to be made anew.
    #[must_use]
    pub fn catch_up(&mut self, snapshot: &Snapshot) -> bool {
        let seen = std::mem::replace(&mut self.seen, snapshot.written());
        let Some(events) = snapshot.since(seen) else { return false };
        for event in events {
            match event {
                Event::Placed(row, pod) if snapshot.live[*row] => self.add(snapshot, *row, pod),
                Event::Gone(row, pod) if snapshot.live[*row] => self.remove(snapshot, *row, pod),
                Event::Node { reach: true, .. } | Event::Namespace => return false,
                _ => {}
            }
        }
        true
    }

    /// As if `other` were on the node at `row` too.
    pub fn add(&mut self, snapshot: &Snapshot, row: Row, other: &Occupant) {
        self.spread.adjust(snapshot, row, other, 1, &self.reach);
        self.affinity.adjust(snapshot, row, other, &self.pod, 1);
        self.exclusive_conflicts += usize::from(self.is_rival(other));
    }

    /// As if `other` were not on the node at `row`.
    pub fn remove(&mut self, snapshot: &Snapshot, row: Row, other: &Occupant) {
        self.spread.adjust(snapshot, row, other, -1, &self.reach);
        self.affinity.adjust(snapshot, row, other, &self.pod, -1);
        self.exclusive_conflicts -= usize::from(self.is_rival(other));
    }

    /// Whether the other pod uses a claim that this one alone may use.
    fn is_rival(&self, other: &Occupant) -> bool {
        self.volumes.as_ref().is_some_and(|v| volumes::uses(other, &v.exclusive))
    }
}
