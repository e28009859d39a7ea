//! Waiting pods that were promised a node, because others were evicted from it for them.

use crate::pod::PodInfo;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// Changes that are remembered; who is further behind starts anew.
const JOURNAL: usize = 4096;

/// See the module.
#[derive(Debug, Default)]
pub struct Promises {
    /// By node and UID.
    on: HashMap<String, BTreeMap<Arc<str>, Arc<PodInfo>>>,
    /// The node of each pod, by UID.
    of: HashMap<Arc<str>, String>,
    /// The nodes of pods whose status does not say so yet, by UID.
    ahead: HashMap<Arc<str>, String>,
    /// Nodes about which there is something else to know, the latest last.
    journal: VecDeque<String>,
    written: u64,
}

impl Promises {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in what the pod's status says, where that is not behind what was decided.
    pub(crate) fn put(&mut self, pod: &Arc<PodInfo>) {
        let said = pod.nominated_node();
        if self.ahead.get(&pod.uid).map(String::as_str) == said {
            self.ahead.remove(&pod.uid);
        }
        let node = self.ahead.get(&pod.uid).cloned().or_else(|| said.map(str::to_owned));
        if self.of(&pod.uid) != node.as_deref() {
            self.withdraw(&pod.uid);
        }
        let Some(node) = node else { return };
        self.of.insert(pod.uid.clone(), node.clone());
        if self.on.entry(node.clone()).or_default().insert(pod.uid.clone(), pod.clone()).is_none() {
            self.note(node);
        }
    }

    /// Takes in what was decided, before the pod's status says so: who is decided on next must not count on the same room.
    /// None where what its status says holds again.
    pub(crate) fn decided(&mut self, pod: &Arc<PodInfo>, node: Option<&str>) {
        match node {
            Some(node) => self.ahead.insert(pod.uid.clone(), node.to_owned()),
            None => self.ahead.remove(&pod.uid),
        };
        self.put(pod);
    }

    /// The pod waits no longer.
    pub(crate) fn remove(&mut self, uid: &str) {
        self.ahead.remove(uid);
        self.withdraw(uid);
    }

    fn withdraw(&mut self, uid: &str) {
        let Some(node) = self.of.remove(uid) else { return };
        if let Some(there) = self.on.get_mut(&node) {
            there.remove(uid);
            if there.is_empty() {
                self.on.remove(&node);
            }
        }
        self.note(node);
    }

    fn note(&mut self, node: String) {
        if self.journal.len() == JOURNAL {
            self.journal.pop_front();
        }
        self.journal.push_back(node);
        self.written += 1;
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// The node that a pod was promised.
    #[must_use]
    pub fn of(&self, uid: &str) -> Option<&str> {
        self.of.get(uid).map(String::as_str)
    }

    /// Who was promised the node, by UID.
    pub fn on(&self, node: &str) -> impl Iterator<Item = &Arc<PodInfo>> {
        self.on.get(node).into_iter().flat_map(BTreeMap::values)
    }

    /// Those of them that `pod` does not displace, `fellows` aside.
    #[must_use]
    pub fn rivals(&self, node: &str, pod: &PodInfo, fellows: &[Arc<PodInfo>]) -> Vec<Arc<PodInfo>> {
        let counts = |p: &&Arc<PodInfo>| {
            p.uid != pod.uid && p.priority >= pod.priority && !fellows.iter().any(|f| f.uid == p.uid)
        };
        self.on(node).filter(counts).cloned().collect()
    }

    /// How many changes there have been.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// The nodes of the changes since there had been `seen`; `None` where they are no longer all held.
    pub(crate) fn since(&self, seen: u64) -> Option<impl Iterator<Item = &str>> {
        let missed = usize::try_from(self.written - seen).ok().filter(|n| *n <= self.journal.len())?;
        Some(self.journal.range(self.journal.len() - missed..).map(String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};

    fn pod(uid: &str, priority: i32, node: Option<&str>) -> Arc<PodInfo> {
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.into());
        pod.spec = Some(PodSpec { priority: Some(priority), ..Default::default() });
        pod.status = Some(PodStatus { nominated_node_name: node.map(str::to_owned), ..Default::default() });
        Arc::new(PodInfo::new(Arc::new(pod)))
    }

    #[test]
    fn a_promise_follows_its_pod() {
        let mut promises = Promises::new();
        let uids = |promises: &Promises, node: &str| promises.on(node).map(|p| p.uid.to_string()).collect::<Vec<_>>();
        promises.put(&pod("b", 0, Some("n1")));
        promises.put(&pod("a", 5, Some("n1")));
        promises.put(&pod("c", 0, None));
        assert_eq!(uids(&promises, "n1"), ["a", "b"]);
        let seen = promises.written();
        promises.put(&pod("b", 0, Some("n1")));
        assert_eq!(promises.written(), seen, "that is known");
        promises.put(&pod("b", 0, Some("n2")));
        assert_eq!((uids(&promises, "n1"), uids(&promises, "n2")), (vec!["a".to_owned()], vec!["b".to_owned()]));
        assert_eq!(promises.since(seen).unwrap().collect::<Vec<_>>(), ["n1", "n2"]);
        promises.put(&pod("b", 0, None));
        promises.remove("a");
        assert!(promises.is_empty());
    }

    #[test]
    fn what_was_decided_holds_until_the_status_says_it() {
        let mut promises = Promises::new();
        let (silent, said) = (pod("a", 0, None), pod("a", 0, Some("n1")));
        promises.decided(&silent, Some("n1"));
        // Something else of the pod changed meanwhile.
        promises.put(&silent);
        assert_eq!((promises.of("a"), promises.on("n1").count()), (Some("n1"), 1));
        promises.put(&said);
        assert_eq!(promises.of("a"), Some("n1"));
        promises.put(&silent);
        assert!(promises.is_empty(), "from then on its status counts");
        promises.put(&said);
        promises.decided(&said, Some("n2"));
        assert_eq!((promises.of("a"), promises.on("n1").count()), (Some("n2"), 0));
        promises.decided(&said, None);
        assert_eq!(promises.of("a"), Some("n1"), "it could not be written");
        promises.decided(&said, Some("n2"));
        promises.remove("a");
        promises.put(&silent);
        assert!(promises.is_empty());
    }

    #[test]
    fn rivals_are_others_that_are_as_important() {
        let mut promises = Promises::new();
        for (uid, priority) in [("low", 1), ("same", 5), ("own", 5), ("fellow", 9)] {
            promises.put(&pod(uid, priority, Some("n")));
        }
        let rivals = promises.rivals("n", &pod("own", 5, Some("n")), &[pod("fellow", 9, None)]);
        assert_eq!(rivals.iter().map(|p| &*p.uid).collect::<Vec<_>>(), ["same"]);
    }
}
