//! Rules over a whole history: what may never happen, at no revision.

use crate::log::{Change, World};
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// One change, with the state after it.
pub struct Moment<'m> {
    /// Virtual time since the log began.
    pub at: Duration,
    /// The store's revision.
    pub revision: u64,
    /// `<group>/<plural>` of what changed.
    pub resource: &'m str,
    /// `<namespace>/<name>`, or `<name>`.
    pub path: &'m str,
    /// The object before; None where there was none.
    pub before: Option<&'m Value>,
    /// The object after; None where it is gone.
    pub after: Option<&'m Value>,
    /// Everything after the change.
    pub world: &'m World,
}

impl Moment<'_> {
    /// The namespace of what changed, empty for what has none.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.path.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// Whether an object came into being.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.before.is_none() && self.after.is_some()
    }

    /// Whether an object began to be deleted, or went without having begun.
    #[must_use]
    pub fn is_going(&self) -> bool {
        let going = |o: Option<&Value>| o.is_some_and(|o| !o["metadata"]["deletionTimestamp"].is_null());
        !going(self.before) && self.before.is_some() && (self.after.is_none() || going(self.after))
    }
}

/// Something that must hold all the time.
pub trait Rule {
    /// Looks at one change; adds a line for whatever is wrong.
    fn see(&mut self, moment: &Moment<'_>, wrong: &mut Vec<String>);
    /// At the end of the history.
    fn end(&mut self, world: &World, wrong: &mut Vec<String>) {
        let _ = (world, wrong);
    }
}

/// Goes through a history with rules; returns what is wrong, a line for each.
pub fn walk(changes: &[Change], rules: &mut [&mut dyn Rule]) -> Vec<String> {
    let (mut world, mut wrong) = (World::default(), Vec::new());
    for change in changes {
        let before: Option<Arc<Value>> = world.key(&change.key).cloned();
        world.apply(change);
        let after = world.key(&change.key).cloned();
        let Some(rest) = change.key.strip_prefix("/registry/") else { continue };
        let mut slashes = rest.match_indices('/').map(|(n, _)| n);
        let Some(split) = slashes.nth(1) else { continue };
        let (resource, path) = (&rest[..split], &rest[split + 1..]);
        let (before, after) = (before.as_deref(), after.as_deref());
        let (at, revision) = (change.at, change.revision);
        let moment = Moment { at, revision, resource, path, before, after, world: &world };
        for rule in &mut *rules {
            rule.see(&moment, &mut wrong);
        }
    }
    for rule in rules {
        rule.end(&world, &mut wrong);
    }
    wrong.dedup();
    wrong
}

/// The values something had in the recent past: who acts on a cache may act on any of them.
#[derive(Debug, Default)]
pub struct Recent(VecDeque<(Duration, i64)>);

/// No cache is further behind than this.
pub(crate) const BEHIND: Duration = Duration::from_secs(45);

impl Recent {
    /// It has this value from now on.
    pub fn set(&mut self, at: Duration, value: i64) {
        if self.0.back().is_none_or(|(_, last)| *last != value) {
            self.0.push_back((at, value));
        }
    }

    /// The values it had, with the one it had when the recent past began.
    pub fn values(&mut self, at: Duration) -> impl Iterator<Item = i64> + '_ {
        while self.0.get(1).is_some_and(|(next, _)| *next + BEHIND < at) {
            self.0.pop_front();
        }
        self.0.iter().map(|(_, value)| *value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[derive(Default)]
    struct Heard(Vec<String>);

    impl Rule for Heard {
        fn see(&mut self, m: &Moment<'_>, _: &mut Vec<String>) {
            let what = [(m.is_new(), "new"), (m.is_going(), "going"), (m.after.is_none(), "gone")];
            let what: Vec<&str> = what.iter().filter(|(is, _)| *is).map(|(_, what)| *what).collect();
            self.0.push(format!("{} {} {}", m.resource, m.path, what.join("+")));
        }
    }

    #[test]
    fn every_change_is_told_once_with_what_it_is() {
        let change = |revision: u64, key: &str, value: Option<Value>| Change {
            at: Duration::ZERO,
            revision,
            key: key.into(),
            value: value.map(|v| v.to_string().into()),
        };
        let going = json!({"metadata": {"deletionTimestamp": "t"}});
        let changes = [
            change(1, "/registry/core/pods/n/a", Some(json!({}))),
            change(2, "/registry/core/pods/n/a", Some(going)),
            change(3, "/registry/core/pods/n/a", None),
            change(4, "/registry/core/nodes/b", Some(json!({}))),
            change(5, "/registry/core/nodes/b", None),
        ];
        let mut heard = Heard::default();
        assert!(walk(&changes, &mut [&mut heard]).is_empty());
        let expected = [
            "core/pods n/a new",
            "core/pods n/a going",
            "core/pods n/a gone",
            "core/nodes b new",
            "core/nodes b going+gone",
        ];
        assert_eq!(heard.0, expected);
    }

    #[test]
    fn the_recent_past_begins_with_the_value_it_found() {
        let (mut recent, at) = (Recent::default(), Duration::from_secs);
        recent.set(at(0), 1);
        recent.set(at(10), 2);
        recent.set(at(100), 3);
        assert_eq!(recent.values(at(20)).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(recent.values(at(101)).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(recent.values(at(300)).collect::<Vec<_>>(), [3]);
    }
}
