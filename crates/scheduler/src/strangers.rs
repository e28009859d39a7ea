//! Whether others place pods on the nodes, too. Where they do, two that each decide on what they have seen may together
//! put more on a node than it holds, so the server compares with each binding; that costs, and is not asked for where
//! this scheduler is alone.

use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::time::Instant;

/// After so long without a sign of another scheduler there is none. Longer than any binding takes, claims included.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(15 * 60);

/// What is known of other schedulers.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    /// Pods that another scheduler is to place, by UID.
    waiting: HashSet<String>,
    /// When another scheduler was last seen to have placed a pod, or to have one to place.
    last_seen: Option<Instant>,
    /// Nodes that bindings without a good answer named, by the pod's UID: each may have been done all the same.
    unanswered: HashMap<String, Vec<String>>,
}

impl Strangers {
    /// Whether bindings have to be compared.
    pub(crate) fn are_about(&self, now: Instant) -> bool {
        // Room that a binding of ours may have taken all the same must not be given away, either.
        !self.waiting.is_empty()
            || !self.unanswered.is_empty()
            || self.last_seen.is_some_and(|seen| now.duration_since(seen) < FORGOTTEN_AFTER)
    }

    /// A pod of another scheduler waits for its node.
    pub(crate) fn waits(&mut self, uid: &str, now: Instant) {
        self.last_seen = Some(now);
        if !self.waiting.contains(uid) {
            self.waiting.insert(uid.to_owned());
        }
    }

    /// A binding of ours was answered by a failure, or not at all.
    pub(crate) fn unanswered(&mut self, uid: &str, node: &str) {
        let nodes = self.unanswered.entry(uid.to_owned()).or_default();
        if !nodes.iter().any(|n| n == node) {
            nodes.push(node.to_owned());
        }
    }

    /// A pod that waited for this scheduler, and that it does not hold to be placed, was bound to a node.
    pub(crate) fn bound(&mut self, uid: &str, node: &str, now: Instant) {
        let ours = self.unanswered.get(uid).is_some_and(|nodes| nodes.iter().any(|n| n == node));
        if !ours {
            self.last_seen = Some(now);
        }
    }

    /// Nothing more is to be known of a pod: it is bound, or gone.
    pub(crate) fn forget(&mut self, uid: &str) {
        self.waiting.remove(uid);
        self.unanswered.remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn strangers_are_about_while_their_pods_wait_and_for_a_while_after() {
        let mut strangers = Strangers::default();
        assert!(!strangers.are_about(Instant::now()));
        strangers.waits("a", Instant::now());
        tokio::time::advance(FORGOTTEN_AFTER * 2).await;
        assert!(strangers.are_about(Instant::now()), "one of theirs still waits");
        strangers.forget("a");
        assert!(!strangers.are_about(Instant::now()));
        strangers.waits("b", Instant::now());
        strangers.forget("b");
        tokio::time::advance(FORGOTTEN_AFTER / 2).await;
        assert!(strangers.are_about(Instant::now()));
        tokio::time::advance(FORGOTTEN_AFTER).await;
        assert!(!strangers.are_about(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_binding_whose_answer_was_lost_is_no_strangers() {
        let (mut strangers, now) = (Strangers::default(), Instant::now());
        strangers.unanswered("a", "one");
        strangers.unanswered("a", "two");
        assert!(strangers.are_about(now), "what came of them is not known");
        strangers.bound("a", "one", now);
        strangers.bound("a", "two", now);
        strangers.forget("a");
        assert!(!strangers.are_about(now));
        strangers.unanswered("a", "one");
        strangers.bound("a", "three", now);
        strangers.forget("a");
        assert!(strangers.are_about(now), "no binding of ours named that node");
        let mut strangers = Strangers::default();
        strangers.unanswered("b", "one");
        strangers.forget("b");
        strangers.bound("b", "one", now);
        assert!(strangers.are_about(now), "what was forgotten is not ours any more");
    }
}
