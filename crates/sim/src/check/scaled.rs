//! What HorizontalPodAutoscalers may never do.

use super::object::{list, number, text, within};
use super::rollout::Weather;
use super::rule::{Moment, Recent, Rule};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

const AUTOSCALERS: &str = "autoscaling/horizontalpodautoscalers";
const DEPLOYMENTS: &str = "apps/deployments";
/// Between two looks of the controller and their writes.
const LEEWAY: Duration = Duration::from_secs(3);

/// A Deployment that is scaled automatically stays within its bounds, and grows no faster than its policy says.
#[derive(Default)]
pub struct WithinBounds {
    weather: Weather,
    /// Fewest and most replicas of a Deployment, by its path.
    least: BTreeMap<String, Recent>,
    most: BTreeMap<String, Recent>,
    /// Its replicas, oldest first.
    replicas: BTreeMap<String, Vec<(Duration, i64)>>,
}

impl WithinBounds {
    /// For a history in such weather.
    #[must_use]
    pub fn new(weather: Weather) -> Self {
        Self { weather, ..Self::default() }
    }

    fn scaled(&mut self, m: &Moment<'_>, before: i64, now: i64, wrong: &mut Vec<String>) {
        let (Some(least), Some(most)) = (self.least.get_mut(m.path), self.most.get_mut(m.path)) else { return };
        let least = least.values(m.at).min().unwrap_or(0);
        let most = most.values(m.at).max().unwrap_or(i64::MAX);
        let mut tell = |what: String| wrong.push(format!("r{} at {:?}: {} {what}", m.revision, m.at, m.path));
        if now < least || now > most {
            tell(format!("is scaled to {now} replicas and may have {least} to {most}"));
        }
        // What was done before a death or before an answer was lost is not known to count, as upstream.
        if now < before || now <= least || self.weather.deaths > 0 || self.weather.unanswered {
            return;
        }
        let Some(policy) = policy(m) else { return };
        let (value, period) = (number(policy, "/value"), number(policy, "/periodSeconds"));
        let period = Duration::from_secs(period.unsigned_abs());
        let past = self.replicas.get(m.path).map(Vec::as_slice).unwrap_or_default();
        let began = m.at.saturating_sub(period);
        let (early, late) = (began.saturating_sub(LEEWAY), began + LEEWAY);
        let earlier = past.iter().rev().find(|(at, _)| *at <= early).or(past.first()).map(|(_, n)| *n);
        let then = past.iter().filter(|(at, _)| *at > early && *at <= late).map(|(_, n)| *n).chain(earlier);
        let limit = then.max().unwrap_or(before).saturating_add(value);
        if now > limit {
            tell(format!("is scaled to {now} replicas, and {limit} are what its policy allows by now"));
        }
    }
}

/// The one policy by which the Deployment that changed may grow.
fn policy<'m>(m: &Moment<'m>) -> Option<&'m Value> {
    let name = m.path.rsplit('/').next().unwrap_or_default();
    let mut all = within(m.world, AUTOSCALERS, m.namespace());
    let scaler = all.find(|(_, s)| text(s, "/spec/scaleTargetRef/name") == name)?.1;
    let policy = list(scaler, "/spec/behavior/scaleUp/policies").next();
    policy.filter(|p| p["type"] == "Pods")
}

impl Rule for WithinBounds {
    fn see(&mut self, m: &Moment<'_>, wrong: &mut Vec<String>) {
        match (m.resource, m.before, m.after) {
            (AUTOSCALERS, _, Some(scaler)) => {
                let target = format!("{}/{}", m.namespace(), text(scaler, "/spec/scaleTargetRef/name"));
                self.least.entry(target.clone()).or_default().set(m.at, number(scaler, "/spec/minReplicas"));
                self.most.entry(target).or_default().set(m.at, number(scaler, "/spec/maxReplicas"));
            }
            (DEPLOYMENTS, before, Some(deployment)) => {
                let now = number(deployment, "/spec/replicas");
                let had = before.map(|b| number(b, "/spec/replicas"));
                if had == Some(now) {
                    return;
                }
                if let Some(had) = had {
                    self.scaled(m, had, now, wrong);
                }
                self.replicas.entry(m.path.to_owned()).or_default().push((m.at, now));
            }
            _ => {}
        }
    }
}
