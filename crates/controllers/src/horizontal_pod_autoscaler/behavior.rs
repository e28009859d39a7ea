//! How fast a workload may be scaled, and what recent recommendations hold it back, pure.

use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerBehavior};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

/// Without a rule of its own, a workload shrinks to the highest recommendation of this span
/// (`--horizontal-pod-autoscaler-downscale-stabilization`).
const STABILIZATION_SECONDS: i32 = 300;
/// Without rules, a workload grows at most to twice its size, or to this size.
const SCALE_UP_FACTOR: i32 = 2;
const SCALE_UP_MINIMUM: i32 = 4;

/// What happened lately to one autoscaler's target.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Recommendations and when they were made.
    recommendations: Vec<(Timestamp, i32)>,
    /// Replicas added and when.
    ups: Vec<(Timestamp, i32)>,
    /// Replicas removed and when.
    downs: Vec<(Timestamp, i32)>,
}

/// A condition as `reason`, `message` and whether it is `True`.
pub type Told = (bool, &'static str, &'static str);

/// The replicas to have, and what the conditions say of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Normalized {
    /// How many.
    pub replicas: i32,
    /// `AbleToScale`.
    pub able: Told,
    /// `ScalingLimited`.
    pub limited: Told,
}

/// What is to be normalized.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Replicas now.
    pub current: i32,
    /// Replicas that the measurements ask for.
    pub desired: i32,
    /// Fewest.
    pub min: i32,
    /// Most.
    pub max: i32,
    /// Now.
    pub now: Timestamp,
}

const READY: Told = (true, "ReadyForNewScale", "recommended size matches current size");
const DOWN_STABILIZED: Told = (
    true,
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const UP_STABILIZED: Told = (
    true,
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const WITHIN: Told = (false, "DesiredWithinRange", "the desired count is within the acceptable range");
const TOO_FEW: Told = (true, "TooFewReplicas", "the desired replica count is less than the minimum replica count");
const TOO_MANY: Told = (true, "TooManyReplicas", "the desired replica count is more than the maximum replica count");
const UP_LIMIT: Told =
    (true, "ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const DOWN_LIMIT: Told =
    (true, "ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");

fn before(now: Timestamp, seconds: i32) -> Timestamp {
    now.saturating_sub(SignedDuration::from_secs(i64::from(seconds))).unwrap_or(Timestamp::MIN)
}

fn window(rules: Option<&HPAScalingRules>, default: i32) -> i32 {
    rules.and_then(|r| r.stabilization_window_seconds).unwrap_or(default)
}

fn longest_period(rules: Option<&HPAScalingRules>) -> i32 {
    rules.iter().flat_map(|r| r.policies.iter().flatten()).map(|p| p.period_seconds).max().unwrap_or(0)
}

fn changed_since(events: &[(Timestamp, i32)], start: Timestamp) -> i32 {
    events.iter().filter(|(at, _)| *at > start).map(|(_, n)| n).sum()
}

impl History {
    /// The size found first counts as a recommendation.
    pub fn begin(&mut self, replicas: i32, now: Timestamp) {
        if self.recommendations.is_empty() {
            self.recommendations.push((now, replicas));
        }
    }

    /// Notes a change of size, where rules may ask for it.
    pub fn scaled(&mut self, behavior: Option<&HorizontalPodAutoscalerBehavior>, from: i32, to: i32, now: Timestamp) {
        let Some(behavior) = behavior else { return };
        let (events, rules) = if to > from {
            (&mut self.ups, behavior.scale_up.as_ref())
        } else {
            (&mut self.downs, behavior.scale_down.as_ref())
        };
        // Both rules look at both lists.
        let kept = longest_period(rules)
            .max(longest_period(behavior.scale_up.as_ref()))
            .max(longest_period(behavior.scale_down.as_ref()));
        events.retain(|(at, _)| *at >= before(now, kept));
        events.push((now, (to - from).abs()));
    }

    fn note(&mut self, replicas: i32, now: Timestamp, kept_seconds: i32) {
        self.recommendations.retain(|(at, _)| *at >= before(now, kept_seconds));
        self.recommendations.push((now, replicas));
    }

    /// The size to have, with what recent recommendations, bounds and rules make of the desired one.
    pub fn normalize(&mut self, wanted: &Wanted, behavior: Option<&HorizontalPodAutoscalerBehavior>) -> Normalized {
        match behavior {
            None => self.by_default(wanted),
            Some(behavior) => self.by_rules(wanted, behavior),
        }
    }

    fn by_default(&mut self, w: &Wanted) -> Normalized {
        let cutoff = before(w.now, STABILIZATION_SECONDS);
        let recent = self.recommendations.iter().filter(|(at, _)| *at >= cutoff).map(|(_, n)| *n);
        let stabilized = recent.max().map_or(w.desired, |n| n.max(w.desired));
        self.note(w.desired, w.now, STABILIZATION_SECONDS);
        let able = if stabilized == w.desired { READY } else { DOWN_STABILIZED };
        let rate = w.current.saturating_mul(SCALE_UP_FACTOR).max(SCALE_UP_MINIMUM);
        let (most, why) = if w.max > rate { (rate, UP_LIMIT) } else { (w.max, TOO_MANY) };
        let (replicas, limited) = if stabilized < w.min {
            (w.min, TOO_FEW)
        } else if stabilized > most {
            (most, why)
        } else {
            (stabilized, WITHIN)
        };
        Normalized { replicas, able, limited }
    }

    fn by_rules(&mut self, w: &Wanted, behavior: &HorizontalPodAutoscalerBehavior) -> Normalized {
        let (up, down) = (behavior.scale_up.as_ref(), behavior.scale_down.as_ref());
        let (up_window, down_window) = (window(up, 0), window(down, STABILIZATION_SECONDS));
        let recent = |seconds: i32| {
            let start = before(w.now, seconds);
            self.recommendations.iter().filter(move |(at, _)| *at > start).map(|(_, n)| *n)
        };
        let lowest = recent(up_window).min().map_or(w.desired, |n| n.min(w.desired));
        let highest = recent(down_window).max().map_or(w.desired, |n| n.max(w.desired));
        let stabilized = w.current.max(lowest).min(highest);
        self.note(w.desired, w.now, up_window.max(down_window));
        let able = match stabilized {
            n if n == w.desired => READY,
            _ if w.desired >= w.current => UP_STABILIZED,
            _ => DOWN_STABILIZED,
        };
        let (replicas, limited) = self.at_rate(&Wanted { desired: stabilized, ..*w }, up, down);
        Normalized { replicas, able, limited }
    }

    fn at_rate(&self, w: &Wanted, up: Option<&HPAScalingRules>, down: Option<&HPAScalingRules>) -> (i32, Told) {
        if w.desired > w.current {
            let rate = self.limit(w, up, true).max(w.current);
            let (most, why) = if w.max > rate { (rate, UP_LIMIT) } else { (w.max, TOO_MANY) };
            if w.desired > most {
                return (most, why);
            }
        } else if w.desired < w.current {
            let rate = self.limit(w, down, false).min(w.current);
            let (fewest, why) = if w.min < rate { (rate, DOWN_LIMIT) } else { (w.min, TOO_FEW) };
            if w.desired < fewest {
                return (fewest, why);
            }
        }
        (w.desired, WITHIN)
    }

    /// The size that the policies allow by now, growing or shrinking.
    #[allow(clippy::cast_possible_truncation)]
    fn limit(&self, w: &Wanted, rules: Option<&HPAScalingRules>, grow: bool) -> i32 {
        let Some(rules) = rules else { return if grow { i32::MAX } else { i32::MIN } };
        let select = rules.select_policy.as_deref().unwrap_or("Max");
        if select == "Disabled" {
            return w.current;
        }
        let allowed = rules.policies.iter().flatten().map(|p| {
            let start = before(w.now, p.period_seconds);
            let at_start = w.current - changed_since(&self.ups, start) + changed_since(&self.downs, start);
            match (p.type_.as_str(), grow) {
                ("Percent", true) => (f64::from(at_start) * (1.0 + f64::from(p.value) / 100.0)).ceil() as i32,
                ("Percent", false) => (f64::from(at_start) * (1.0 - f64::from(p.value) / 100.0)) as i32,
                (_, true) => at_start.saturating_add(p.value),
                (_, false) => at_start.saturating_sub(p.value),
            }
        });
        // The greatest change is the largest size when growing and the smallest when shrinking.
        if (select == "Min") == grow { allowed.min() } else { allowed.max() }.unwrap_or(w.current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn wanted(current: i32, desired: i32, seconds: i64) -> Wanted {
        Wanted { current, desired, min: 1, max: 100, now: at(seconds) }
    }

    fn rules(up: Value, down: Value) -> HorizontalPodAutoscalerBehavior {
        serde_json::from_value(json!({"scaleUp": up, "scaleDown": down})).unwrap()
    }

    #[test]
    fn without_rules() {
        let mut h = History::default();
        h.begin(3, at(0));
        let n = h.normalize(&wanted(3, 50, 15), None);
        assert_eq!((n.replicas, n.limited.1, n.able.1), (6, "ScaleUpLimit", "ReadyForNewScale"));
        // Five minutes long the highest recommendation counts.
        let n = h.normalize(&wanted(6, 1, 30), None);
        assert_eq!((n.replicas, n.able.1), (12, "ScaleDownStabilized"));
        let n = h.normalize(&wanted(6, 1, 314), None);
        assert_eq!(n.able.1, "ScaleDownStabilized");
        let n = h.normalize(&wanted(6, 1, 316), None);
        assert_eq!((n.replicas, n.able.1, n.limited), (1, "ReadyForNewScale", WITHIN));
        let n = History::default().normalize(&Wanted { min: 2, ..wanted(3, 1, 0) }, None);
        assert_eq!((n.replicas, n.limited.1), (2, "TooFewReplicas"));
        let n = History::default().normalize(&Wanted { max: 5, ..wanted(3, 9, 0) }, None);
        assert_eq!((n.replicas, n.limited.1), (5, "TooManyReplicas"));
    }

    #[test]
    fn policies_limit_the_rate() {
        let up = json!({"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [
            {"type": "Pods", "value": 4, "periodSeconds": 60}, {"type": "Percent", "value": 50, "periodSeconds": 60}]});
        let down = json!({"stabilizationWindowSeconds": 0, "selectPolicy": "Min", "policies": [
            {"type": "Pods", "value": 1, "periodSeconds": 60}, {"type": "Percent", "value": 50, "periodSeconds": 60}]});
        let behavior = rules(up.clone(), down);
        let mut h = History::default();
        let n = h.normalize(&wanted(2, 50, 0), Some(&behavior));
        assert_eq!((n.replicas, n.limited.1), (6, "ScaleUpLimit"));
        h.scaled(Some(&behavior), 2, 6, at(0));
        // Within the period nothing more may come.
        assert_eq!(h.normalize(&wanted(6, 50, 30), Some(&behavior)).replicas, 6);
        assert_eq!(h.normalize(&wanted(6, 50, 61), Some(&behavior)).replicas, 10);
        let n = h.normalize(&wanted(10, 1, 300), Some(&behavior));
        assert_eq!((n.replicas, n.limited.1), (9, "ScaleDownLimit"));
        let never = rules(up, json!({"selectPolicy": "Disabled", "stabilizationWindowSeconds": 0}));
        assert_eq!(h.normalize(&wanted(10, 1, 600), Some(&never)).replicas, 10);
    }

    #[test]
    fn windows_hold_back_both_ways() {
        let policy = json!([{"type": "Percent", "value": 1000, "periodSeconds": 15}]);
        let up = json!({"stabilizationWindowSeconds": 60, "selectPolicy": "Max", "policies": policy});
        let down = json!({"stabilizationWindowSeconds": 60, "selectPolicy": "Max", "policies":
            [{"type": "Percent", "value": 100, "periodSeconds": 15}]});
        let behavior = rules(up, down);
        let mut h = History::default();
        h.begin(5, at(0));
        let n = h.normalize(&wanted(5, 20, 10), Some(&behavior));
        assert_eq!((n.replicas, n.able.1), (5, "ScaleUpStabilized"));
        let n = h.normalize(&wanted(5, 20, 61), Some(&behavior));
        assert_eq!((n.replicas, n.able.1), (20, "ReadyForNewScale"));
        let n = h.normalize(&wanted(20, 2, 70), Some(&behavior));
        assert_eq!((n.replicas, n.able.1), (20, "ScaleDownStabilized"));
        assert_eq!(h.normalize(&wanted(20, 2, 140), Some(&behavior)).replicas, 2);
    }
}
