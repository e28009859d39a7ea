//! Pods leave nodes whose `NoExecute` taints they do not tolerate, or no longer; neither before their time nor long
//! after.

use super::object::{condition, is_active, is_going, list, text};
use super::rollout::Weather;
use super::rule::{BEHIND, Moment, Rule};
use crate::log::World;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

const NODES: &str = "core/nodes";
const PODS: &str = "core/pods";
/// A pod may leave this late, where nothing fails.
const LATE: Duration = Duration::from_secs(90);
/// Times are written in whole seconds.
const ROUNDING: Duration = Duration::from_secs(1);

/// A taint on a node: since when, and until when where it is gone.
struct Spell {
    key: String,
    since: Duration,
    until: Option<Duration>,
}

/// See the module.
#[derive(Default)]
pub struct Tolerated {
    weather: Weather,
    spells: BTreeMap<String, Vec<Spell>>,
    /// When each pod was bound, by UID.
    bound: BTreeMap<String, Duration>,
    now: Duration,
}

/// How long a pod bears a taint: None for ever.
fn bears(pod: &Value, key: &str) -> Option<Duration> {
    let matching = || {
        list(pod, "/spec/tolerations").filter(|t| {
            let (of, effect) = (text(t, "/key"), text(t, "/effect"));
            (of == key || of.is_empty()) && (effect.is_empty() || effect == "NoExecute")
        })
    };
    if matching().next().is_none() {
        return Some(Duration::ZERO);
    }
    let seconds = matching().filter_map(|t| t["tolerationSeconds"].as_i64()).min();
    seconds.map(|s| Duration::from_secs(u64::try_from(s).unwrap_or(0)))
}

impl Tolerated {
    /// For a history in such weather.
    #[must_use]
    pub fn new(weather: Weather) -> Self {
        Self { weather, ..Self::default() }
    }

    /// When a pod had to leave for the sake of a taint, at the earliest.
    fn due(&self, pod: &Value, spell: &Spell) -> Option<Duration> {
        let bound = self.bound.get(text(pod, "/metadata/uid")).copied().unwrap_or_default();
        Some(spell.since.max(bound) + bears(pod, &spell.key)?)
    }

    fn node(&mut self, m: &Moment<'_>, wrong: &mut Vec<String>) {
        let keys: Vec<&str> = m.after.map_or(Vec::new(), |node| {
            let taints = list(node, "/spec/taints").filter(|t| t["effect"] == "NoExecute");
            taints.map(|t| text(t, "/key")).collect()
        });
        let mut spells = self.spells.remove(m.path).unwrap_or_default();
        for spell in spells.iter_mut().filter(|s| s.until.is_none() && !keys.contains(&s.key.as_str())) {
            spell.until = Some(m.at);
            self.overdue(m.world, m.path, spell, m.at, wrong);
        }
        for key in keys {
            if !spells.iter().any(|s| s.key == key && s.until.is_none()) {
                spells.push(Spell { key: key.to_owned(), since: m.at, until: None });
            }
        }
        self.spells.insert(m.path.to_owned(), spells);
    }

    /// Pods that should have left long ago.
    fn overdue(&self, world: &World, node: &str, spell: &Spell, now: Duration, wrong: &mut Vec<String>) {
        for (name, pod) in world.all(PODS).filter(|(_, p)| text(p, "/spec/nodeName") == node && is_active(p)) {
            // Who is told anew of everything lets it be borne anew, where it does not say when it began; as upstream.
            let anew = bears(pod, &spell.key).unwrap_or_default() * self.weather.deaths;
            let late = if self.weather.stale || self.weather.deaths > 0 { LATE + BEHIND } else { LATE };
            if self.due(pod, spell).is_some_and(|due| due + anew + late < now) {
                wrong.push(format!(
                    "pod {name} is still on node {node} at {now:?} with {} since {:?}",
                    spell.key, spell.since
                ));
            }
        }
    }

    fn leaves(&self, m: &Moment<'_>, pod: &Value, wrong: &mut Vec<String>) {
        let because =
            |p: &Value| condition(p, "DisruptionTarget").is_some_and(|c| c["reason"] == "DeletionByTaintManager");
        if !because(pod) && !m.after.is_some_and(because) {
            return;
        }
        let spells = self.spells.get(text(pod, "/spec/nodeName")).map(Vec::as_slice).unwrap_or_default();
        let behind = if self.weather.stale { BEHIND } else { Duration::from_secs(5) };
        let due = spells.iter().any(|spell| {
            let until = spell.until.map_or(Duration::MAX, |until| until + behind);
            m.at <= until && self.due(pod, spell).is_some_and(|due| due <= m.at + ROUNDING)
        });
        if !due {
            wrong.push(format!("r{} at {:?}: pod {} leaves for a taint that it may bear", m.revision, m.at, m.path));
        }
    }
}

impl Rule for Tolerated {
    fn see(&mut self, m: &Moment<'_>, wrong: &mut Vec<String>) {
        self.now = m.at;
        match (m.resource, m.before, m.after) {
            (NODES, ..) => self.node(m, wrong),
            (PODS, before, Some(pod)) => {
                let is_bound = |p: &Value| !text(p, "/spec/nodeName").is_empty();
                if is_bound(pod) && !before.is_some_and(is_bound) {
                    self.bound.insert(text(pod, "/metadata/uid").to_owned(), m.at);
                }
                if m.is_going() && is_going(pod) {
                    self.leaves(m, before.unwrap_or(pod), wrong);
                }
            }
            _ => {}
        }
    }

    fn end(&mut self, world: &World, wrong: &mut Vec<String>) {
        for (node, spells) in &self.spells {
            for spell in spells.iter().filter(|s| s.until.is_none()) {
                self.overdue(world, node, spell, self.now, wrong);
            }
        }
    }
}
