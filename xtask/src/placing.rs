//! The scheduler's decisions alone: a snapshot, and the product's own decider. No API, no store, no queue.

use gantry_api::entropy::Entropy;
use gantry_scheduler::decide::{Decider, Request};
use gantry_scheduler::pod::{Occupant, PodInfo};
use gantry_scheduler::profile::Profile;
use gantry_scheduler::promises::Promises;
use gantry_scheduler::snapshot::Snapshot;
use gantry_scheduler::spread::DefaultConstraints;
use std::sync::Arc;

/// Decides on one pod after the other.
pub struct Placing {
    /// The nodes, and who is on them.
    pub snapshot: Snapshot,
    decider: Decider,
    entropy: Entropy,
    defaults: DefaultConstraints,
    promises: Promises,
}

/// Where a pod may go.
pub enum Found {
    /// To this node.
    Free(String),
    /// To this node, which these have left for it.
    Instead(String, Vec<Arc<Occupant>>),
    /// Nowhere.
    Nothing,
}

impl Placing {
    /// On these nodes, by this profile.
    pub fn new(snapshot: Snapshot, profile: Profile, seed: u64) -> Self {
        let (decider, entropy) = (Decider::new(profile), Entropy::seeded(seed));
        Self { snapshot, decider, entropy, defaults: DefaultConstraints::default(), promises: Promises::new() }
    }

    /// Finds a node for a pod, where it `preempts` also one from which others have to go, which they do at once. The pod is
    /// not placed yet.
    pub fn find(&mut self, pod: &Arc<PodInfo>, preempts: bool) -> Found {
        let request = Request {
            pod,
            defaults: &self.defaults,
            volumes: None,
            devices: None,
            promises: &self.promises,
            fellows: &[],
            domain: None,
            asked: None,
        };
        let (decider, snapshot, entropy) = (&mut self.decider, &mut self.snapshot, &self.entropy);
        let mut rejected = match decider.decide(snapshot, &request, &mut |n| entropy.below(n)) {
            Ok(row) => return Found::Free(snapshot.names[row].clone()),
            Err(_) if !preempts => return Found::Nothing,
            Err(rejected) => rejected,
        };
        let found = decider.evictions(snapshot, &mut rejected, &[], &self.promises, false).into_iter().next();
        let Some(found) = found else { return Found::Nothing };
        let name = snapshot.names[found.row].clone();
        for victim in &found.victims {
            snapshot.displace(&victim.uid);
        }
        Found::Instead(name, found.victims)
    }
}
