//! Pods that are placed together.

use super::object::text;
use super::rollout::Weather;
use super::rule::{Moment, Rule};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

const PODS: &str = "core/pods";
/// The bindings of a gang are single requests; its pods have all reached their nodes after so long.
const BINDING: Duration = Duration::from_secs(2);
/// Where requests fail or who makes them dies, what is not bound is tried again, and that takes its back-off.
const TRYING: Duration = Duration::from_secs(240);

/// A gang has nodes for none of its pods or for its minimum, but for the time that its bindings take. Pods that have
/// ended count: they were placed.
#[derive(Default)]
pub struct Whole {
    weather: Weather,
    /// Since when a gang has had a part of what it needs.
    since: BTreeMap<String, Duration>,
}

/// A pod's gang, and how many pods of it are to be placed at once.
fn gang_of(pod: &Value) -> Option<(&str, usize)> {
    let annotations = &pod["metadata"]["annotations"];
    let least = annotations["gantry.io/pod-group-min-count"].as_str()?.parse().ok()?;
    Some((annotations["gantry.io/pod-group"].as_str()?, least))
}

impl Whole {
    /// For a history in such weather.
    #[must_use]
    pub fn new(weather: Weather) -> Self {
        Self { weather, ..Self::default() }
    }
}

impl Rule for Whole {
    fn see(&mut self, m: &Moment<'_>, wrong: &mut Vec<String>) {
        // Also who stands by notices that time has passed, but there is enough going on.
        if m.resource != PODS {
            return;
        }
        let mut bound: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for (path, pod) in m.world.all(PODS) {
            let Some((gang, least)) = gang_of(pod) else { continue };
            let namespace = path.split_once('/').map_or("", |(n, _)| n);
            let entry = bound.entry(format!("{namespace}/{gang}")).or_insert((0, least));
            entry.0 += usize::from(!text(pod, "/spec/nodeName").is_empty());
        }
        let rough = self.weather.stale || self.weather.unanswered || self.weather.deaths > 0;
        let may = if rough { TRYING } else { BINDING };
        self.since.retain(|gang, _| bound.get(gang).is_some_and(|(placed, least)| *placed > 0 && placed < least));
        for (gang, (placed, least)) in bound {
            if placed == 0 || placed >= least {
                continue;
            }
            let began = *self.since.entry(gang.clone()).or_insert(m.at);
            if m.at.saturating_sub(began) > may {
                wrong.push(format!("r{}: gang {gang} has {placed} of {least} since {began:?}", m.revision));
                self.since.insert(gang, m.at);
            }
        }
    }
}
