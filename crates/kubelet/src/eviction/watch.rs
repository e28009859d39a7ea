//! Which thresholds are met, since when, and which conditions of the node follow.

use super::threshold::{EvictionConfig, Resource, Signal};
use crate::node::object::Pressure;
use gantry_api::meta::quantity::Amount;
use std::collections::{BTreeMap, HashMap};
use tokio::time::Instant;

/// What is left of something, and how much there is in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Observation {
    pub available: Amount,
    pub capacity: Amount,
}

/// What was seen of each signal; one that cannot be read is missing.
pub(crate) type Observations = BTreeMap<Signal, Observation>;

/// Indices into the thresholds of the configuration.
pub(crate) type Met = Vec<usize>;

/// The thresholds met, whether with their minimum reclaim or without.
pub(crate) fn met(cfg: &EvictionConfig, seen: &Observations, with_reclaim: bool) -> Met {
    let is_met = |i: &usize| {
        let t = &cfg.thresholds[*i];
        let Some(now) = seen.get(&t.signal) else { return false };
        let mut wanted = t.value.of(now.capacity);
        if let (true, Some(reclaim)) = (with_reclaim, t.minimum_reclaim) {
            wanted = wanted.plus(&reclaim.of(now.capacity));
        }
        wanted > now.available
    };
    (0..cfg.thresholds.len()).filter(is_met).collect()
}

/// What has been observed so far.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    since: HashMap<usize, Instant>,
    /// When memory, disk and process pressure were last seen.
    pressed: [Option<Instant>; 3],
    due: Met,
}

impl Watch {
    /// Takes note of an observation. Returns the node's conditions and the thresholds to act upon, memory first.
    pub(crate) fn observe(&mut self, cfg: &EvictionConfig, seen: &Observations, now: Instant) -> (Pressure, Met) {
        let mut current = met(cfg, seen, false);
        // What was acted upon lasts until its minimum reclaim is reached.
        let unresolved = met(cfg, seen, true).into_iter().filter(|i| self.due.contains(i));
        current.extend(unresolved.filter(|i| !current.contains(i)).collect::<Vec<_>>());
        self.since.retain(|i, _| current.contains(i));
        for i in &current {
            self.since.entry(*i).or_insert(now);
            let slot = match cfg.thresholds[*i].signal.resource() {
                Resource::Memory => 0,
                Resource::EphemeralStorage | Resource::Inodes => 1,
                Resource::Pids => 2,
            };
            self.pressed[slot] = Some(now);
        }
        let holds = |at: Option<Instant>| at.is_some_and(|at| now - at < cfg.pressure_transition || at == now);
        let [memory, disk, pids] = self.pressed.map(holds);
        current.retain(|i| now - self.since[i] >= cfg.thresholds[*i].grace);
        self.due.clone_from(&current);
        current.sort_by_key(|i| cfg.thresholds[*i].signal != Signal::MemoryAvailable);
        (Pressure { memory, disk, pids }, current)
    }
}

#[cfg(test)]
mod tests {
    use super::super::threshold::thresholds;
    use super::*;
    use std::time::Duration;

    fn seen(memory: i64, disk: i64) -> Observations {
        let of = |n| Observation { available: Amount::from_bytes(n), capacity: Amount::from_bytes(1000) };
        Observations::from([(Signal::MemoryAvailable, of(memory)), (Signal::NodeFsAvailable, of(disk))])
    }

    fn config(soft: &str, grace: &str, reclaim: &str) -> EvictionConfig {
        EvictionConfig {
            thresholds: thresholds("nodefs.available<10%,memory.available<100", soft, grace, reclaim).unwrap(),
            pressure_transition: Duration::from_secs(300),
            max_pod_grace: Duration::ZERO,
        }
    }

    #[test]
    fn conditions_outlast_their_cause_and_memory_comes_first() {
        let cfg = config("", "", "");
        let (mut watch, t0) = (Watch::default(), Instant::now());
        assert_eq!(watch.observe(&cfg, &seen(100, 101), t0), (Pressure::default(), vec![]));
        let (pressure, due) = watch.observe(&cfg, &seen(99, 50), t0);
        assert!(pressure.memory && pressure.disk && !pressure.pids);
        let signals: Vec<_> = due.iter().map(|i| cfg.thresholds[*i].signal).collect();
        assert_eq!(signals, [Signal::MemoryAvailable, Signal::NodeFsAvailable]);
        let (pressure, due) = watch.observe(&cfg, &seen(500, 500), t0 + Duration::from_secs(299));
        assert!(pressure.memory && due.is_empty());
        let (pressure, _) = watch.observe(&cfg, &seen(500, 500), t0 + Duration::from_secs(300));
        assert_eq!(pressure, Pressure::default());
        assert_eq!(watch.observe(&cfg, &Observations::new(), t0).1, Met::new(), "nothing seen is no shortage");
    }

    #[test]
    fn soft_thresholds_wait_and_reclaim_goes_beyond() {
        let cfg = config("memory.available<200", "memory.available=30s", "memory.available=50");
        let (mut watch, t0) = (Watch::default(), Instant::now());
        let (pressure, due) = watch.observe(&cfg, &seen(150, 500), t0);
        assert!(pressure.memory && due.is_empty(), "the condition comes at once, the eviction later");
        assert_eq!(watch.observe(&cfg, &seen(150, 500), t0 + Duration::from_secs(30)).1.len(), 1);
        assert_eq!(watch.observe(&cfg, &seen(249, 500), t0 + Duration::from_secs(31)).1.len(), 1, "50 more are wanted");
        assert!(watch.observe(&cfg, &seen(250, 500), t0 + Duration::from_secs(32)).1.is_empty());
        // Met anew: the grace period begins anew.
        assert!(watch.observe(&cfg, &seen(150, 500), t0 + Duration::from_secs(33)).1.is_empty());
    }
}
