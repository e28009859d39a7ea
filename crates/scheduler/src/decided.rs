//! On what bindings were decided. Where several schedulers place pods on the same nodes, two that each decide on what they
//! have seen may together put more on a node than it holds. So each binding tells who decided it and what that one had seen
//! of all pods, and the server compares those that may have missed another's.

use gantry_client::IfFits;
use std::collections::{HashMap, HashSet};

/// See the module.
#[derive(Debug)]
pub(crate) struct Decided {
    by: String,
    /// The version of all pods that the decision on each saw, by UID.
    seen: HashMap<String, u64>,
    /// UIDs of pods that a binding without a good answer may have bound all the same, wherever they are placed now.
    unanswered: HashSet<String>,
}

impl Decided {
    /// Nothing, by one of this name, which nobody else has.
    pub(crate) fn new(by: String) -> Self {
        Self { by, seen: HashMap::new(), unanswered: HashSet::new() }
    }

    /// A pod is to be bound, as was decided on this version of all pods.
    pub(crate) fn on(&mut self, uid: &str, seen: u64) {
        self.seen.insert(uid.to_owned(), seen);
    }

    /// What the binding of the pod tells.
    pub(crate) fn of(&self, uid: &str) -> IfFits {
        // Room that a binding of our own may have taken must not be given away, either.
        let known = self.unanswered.is_empty();
        let seen = self.seen.get(uid).copied().filter(|_| known).unwrap_or(0);
        IfFits { by: self.by.clone(), seen }
    }

    /// A binding was answered by a failure, or not at all.
    pub(crate) fn unanswered(&mut self, uid: &str) {
        self.unanswered.insert(uid.to_owned());
    }

    /// Nothing more is to be known of a pod: it is bound, or gone.
    pub(crate) fn forget(&mut self, uid: &str) {
        self.seen.remove(uid);
        self.unanswered.remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_compared_until_it_is_known_what_came_of_a_binding() {
        let mut decided = Decided::new("me".into());
        decided.on("a", 7);
        decided.on("b", 9);
        let seen = |decided: &Decided| ["a", "b", "c"].map(|uid| decided.of(uid).seen);
        assert_eq!((decided.of("a").by.as_str(), seen(&decided)), ("me", [7, 9, 0]));
        decided.unanswered("a");
        assert_eq!(seen(&decided), [0, 0, 0]);
        decided.forget("b");
        assert_eq!(seen(&decided), [0, 0, 0]);
        decided.forget("a");
        decided.on("c", 10);
        assert_eq!(seen(&decided), [0, 0, 10]);
    }
}
