//! Which bindings are compared. Each tells who decided it and up to which version of the pods that one had seen. Where
//! nobody else has bound a pod to the node since, the decision still stands; otherwise the node's room is compared, alone,
//! so that of two the second sees the first.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// Nodes of which bindings are remembered.
const NODES_MAX: usize = 32_768;

/// Bindings to one node by one who decides.
struct Party {
    by: String,
    /// Bindings that are being written.
    under_way: usize,
    /// Version of the last that was written.
    last: u64,
}

#[derive(Default)]
struct Known {
    /// By node.
    parties: HashMap<String, Vec<Party>>,
    /// Before this version there may have been bindings that are not known here; None where it is not known up to when.
    since: Option<u64>,
}

impl Known {
    /// Whether somebody else may have bound a pod to the node since.
    fn may_miss(&self, node: &str, by: &str, seen: u64) -> bool {
        let news = |p: &Party| p.by != by && (p.under_way > 0 || p.last > seen);
        self.since.is_none_or(|since| seen < since)
            || self.parties.get(node).is_some_and(|parties| parties.iter().any(news))
    }

    fn party(&mut self, node: &str, by: &str) -> &mut Party {
        if !self.parties.contains_key(node) {
            self.prune();
            self.parties.insert(node.to_owned(), Vec::new());
        }
        let parties = self.parties.entry(node.to_owned()).or_default();
        let at = parties.iter().position(|p| p.by == by).unwrap_or_else(|| {
            parties.push(Party { by: by.to_owned(), under_way: 0, last: 0 });
            parties.len() - 1
        });
        &mut parties[at]
    }

    /// Forgets what rests, where there is too much.
    fn prune(&mut self) {
        if self.parties.len() < NODES_MAX {
            return;
        }
        let mut forgotten = 0;
        self.parties.retain(|_, parties| {
            parties.retain(|p| {
                if p.under_way == 0 {
                    forgotten = forgotten.max(p.last);
                }
                p.under_way > 0
            });
            !parties.is_empty()
        });
        self.since = self.since.map(|since| since.max(forgotten));
    }
}

/// The bindings of one server. One that waits for caches whose store has failed waits for ever, and must not hold up the
/// bindings of the next server in the same process.
#[derive(Clone, Default)]
pub(crate) struct Commits {
    known: Arc<Mutex<Known>>,
    turn: Arc<RwLock<()>>,
}

/// Lets others in with it, or not.
enum Turn {
    Shared(#[allow(dead_code, reason = "held for its end")] OwnedRwLockReadGuard<()>),
    Alone(#[allow(dead_code, reason = "held for its end")] OwnedRwLockWriteGuard<()>),
}

/// A binding that is being written.
pub(super) struct Commit {
    known: Arc<Mutex<Known>>,
    turn: Turn,
    node: String,
    by: String,
    /// Whether it is known what came of it.
    over: bool,
}

impl Commits {
    /// A binding begins: by whom, and decided on which version where that was told. Who tells none is not compared.
    pub(super) async fn begin(&self, node: &str, by: &str, seen: Option<u64>) -> Commit {
        let shared = self.turn.clone().read_owned().await;
        if self.enter(node, by, seen) {
            return self.commit(node, by, Turn::Shared(shared));
        }
        drop(shared);
        let alone = self.turn.clone().write_owned().await;
        self.enter(node, by, None);
        self.commit(node, by, Turn::Alone(alone))
    }

    /// Counts a binding as under way; not where its decision may have missed another.
    fn enter(&self, node: &str, by: &str, seen: Option<u64>) -> bool {
        let mut known = self.known.lock();
        if seen.is_some_and(|seen| known.may_miss(node, by, seen)) {
            return false;
        }
        known.party(node, by).under_way += 1;
        true
    }

    fn commit(&self, node: &str, by: &str, turn: Turn) -> Commit {
        Commit { known: self.known.clone(), turn, node: node.to_owned(), by: by.to_owned(), over: false }
    }
}

impl Commit {
    /// Whether the node's room has to be compared; no other binding is written meanwhile.
    pub(super) fn compares(&self) -> bool {
        matches!(self.turn, Turn::Alone(_))
    }

    /// It was written, with this version.
    pub(super) fn written(mut self, version: u64) {
        self.over = true;
        let mut known = self.known.lock();
        // Whoever has seen this has seen everything before it, too.
        known.since.get_or_insert(version);
        let party = known.party(&self.node, &self.by);
        party.last = party.last.max(version);
    }

    /// Nothing was written.
    pub(super) fn refused(mut self) {
        self.over = true;
    }
}

impl Drop for Commit {
    fn drop(&mut self) {
        let mut known = self.known.lock();
        known.party(&self.node, &self.by).under_way -= 1;
        if !self.over {
            // It may have been written, or be so yet.
            known.since = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    async fn compares(commits: &Commits, by: &str, seen: u64) -> bool {
        let commit = commits.begin("n", by, Some(seen)).await;
        let compares = commit.compares();
        commit.refused();
        compares
    }

    #[tokio::test]
    async fn what_somebody_else_bound_since_is_compared() {
        let commits = Commits::default();
        assert!(compares(&commits, "a", 7).await, "nothing is known of what was before");
        commits.begin("n", "a", Some(7)).await.written(10);
        assert!(compares(&commits, "a", 9).await, "another may have been here before");
        assert!(!compares(&commits, "a", 10).await && !compares(&commits, "b", 10).await);
        commits.begin("n", "a", Some(10)).await.written(12);
        assert!(!compares(&commits, "a", 10).await, "it knows of its own");
        assert!(compares(&commits, "b", 11).await && !compares(&commits, "b", 12).await);
        commits.begin("n", "", None).await.written(13);
        assert!(compares(&commits, "a", 12).await, "somebody bound who tells nothing");
        assert!(!commits.begin("other", "b", Some(10)).await.compares(), "to another node");
        assert!(compares(&commits, "a", 0).await, "it asks for it");
    }

    #[tokio::test]
    async fn who_compares_waits_for_those_under_way_and_they_for_it() {
        let commits = Commits::default();
        commits.begin("n", "a", None).await.written(1);
        let one = commits.begin("n", "a", Some(1)).await;
        let two = commits.begin("n", "a", Some(1)).await;
        assert!(!one.compares() && !two.compares());
        let mut late = std::pin::pin!(commits.begin("n", "b", Some(1)));
        assert!((&mut late).now_or_never().is_none(), "the others are not written");
        one.written(2);
        two.refused();
        let late = late.now_or_never().expect("all are written");
        assert!(late.compares());
        let mut next = std::pin::pin!(commits.begin("other", "a", Some(2)));
        assert!((&mut next).now_or_never().is_none());
        late.written(3);
        assert!(!next.now_or_never().expect("it is its turn").compares());
    }

    #[tokio::test]
    async fn what_was_given_up_may_have_been_written() {
        let commits = Commits::default();
        commits.begin("n", "a", None).await.written(1);
        drop(commits.begin("n", "a", Some(1)).await);
        assert!(compares(&commits, "b", 1).await);
        commits.begin("n", "b", Some(1)).await.written(3);
        assert!(compares(&commits, "a", 2).await && !compares(&commits, "a", 3).await);
    }

    #[tokio::test]
    async fn what_is_forgotten_is_compared() {
        let commits = Commits::default();
        commits.begin("first", "a", None).await.written(1);
        let held = commits.begin("held", "a", Some(1)).await;
        for n in 0..NODES_MAX {
            commits.begin(&n.to_string(), "a", Some(2)).await.written(2);
        }
        assert!(commits.known.lock().parties.len() < NODES_MAX);
        let one = commits.begin("first", "a", Some(2)).await;
        assert!(!one.compares());
        one.refused();
        held.refused();
        assert!(commits.begin("first", "b", Some(1)).await.compares());
    }
}
