//! Who may take room that came to be on a node. A pod that was rejected everywhere for what pods on nodes hold, and for
//! nothing else that their going may change, is helped by a change on one node only where it fits there now, or would
//! once it evicts others: whoever else is tried again fails again. Pods that ask for the same are looked at once.

use crate::filter::{Usage, resources};
use crate::pod::{Occupant, PodInfo, Shape};
use crate::profile::{Filter, Profile};
use crate::promises::Promises;
use crate::queue::ClusterChange;
use crate::snapshot::{Row, Snapshot};
use gantry_api::core::placement::HostPort;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Plugins that reject a node for what the pods on it hold.
const PLUGINS: [&str; 2] = ["NodeResourcesFit", "NodePorts"];

/// Whether a plugin rejects a node for nothing but what the pods on it hold.
pub(crate) fn is_of_one_node(plugin: &str) -> bool {
    PLUGINS.contains(&plugin)
}

/// Whether the going of a pod helps a pod that these plugins rejected only on the node that it leaves.
pub(crate) fn lacks_only_room(rejected_by: &[&'static str]) -> bool {
    rejected_by.iter().any(|plugin| is_of_one_node(plugin))
        && rejected_by.iter().all(|plugin| is_of_one_node(plugin) || !ClusterChange::PodGone.may_help(plugin))
}

/// What a pod that waits for room asks for.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Want {
    shape: Arc<Shape>,
    scheduler: Box<str>,
    evicts: bool,
}

impl Want {
    fn of(pod: &PodInfo) -> Self {
        Self {
            shape: pod.shape().clone(),
            scheduler: pod.scheduler().into(),
            evicts: pod.spec().preemption_policy.as_deref() != Some("Never"),
        }
    }

    /// Whether what it asks of a node's room is free there, when only those of its pods count that `stays` tells, and
    /// those to whom it was promised.
    fn fits(
        &self,
        snapshot: &Snapshot,
        row: Row,
        profile: &Profile,
        promised: &[&Arc<PodInfo>],
        stays: impl Fn(&Occupant) -> bool,
    ) -> bool {
        let mut usage = Usage::of(snapshot, row);
        snapshot.pods[row].iter().filter(|pod| !stays(pod)).for_each(|pod| usage.remove(pod));
        promised.iter().for_each(|pod| usage.add(pod));
        let (have, want) = (&snapshot.allocatable[row], &self.shape.requests);
        let taken = |port: &HostPort| usage.ports.iter().any(|other| port.conflicts(other));
        let fits = || resources::has_room(have, &usage.requested, want, snapshot.backed(), profile);
        (!profile.filters(Filter::NodeResourcesFit) || fits())
            && (!profile.filters(Filter::NodePorts) || !self.shape.host_ports.iter().any(taken))
    }
}

/// Waiting pods that lack nothing but room, by what they ask for.
#[derive(Debug, Default)]
pub(crate) struct Wants {
    by: HashMap<Arc<Want>, BTreeSet<Arc<str>>>,
}

impl Wants {
    /// The pod waits from now on. What it asks for is held once for all that ask for the same.
    pub(crate) fn insert(&mut self, pod: &PodInfo) -> Arc<Want> {
        let want = Want::of(pod);
        let want = self.by.get_key_value(&want).map_or_else(|| Arc::new(want), |(known, _)| known.clone());
        self.by.entry(want.clone()).or_default().insert(pod.uid.clone());
        want
    }

    /// The pod waits no longer.
    pub(crate) fn remove(&mut self, want: &Arc<Want>, uid: &str) {
        if let Some(uids) = self.by.get_mut(want) {
            uids.remove(uid);
            if uids.is_empty() {
                self.by.remove(want);
            }
        }
    }

    /// Those that may be placed now that there is more room on a node.
    pub(crate) fn helped<'p>(
        &self,
        node: &str,
        snapshot: &Snapshot,
        promises: &Promises,
        profile: &dyn Fn(&str) -> Option<&'p Profile>,
    ) -> BTreeSet<Arc<str>> {
        let mut helped = BTreeSet::new();
        let Some(row) = snapshot.row(node) else { return helped };
        for (want, uids) in &self.by {
            let Some(profile) = profile(&want.scheduler) else {
                helped.extend(uids.iter().cloned());
                continue;
            };
            let priority = want.shape.priority;
            let promised: Vec<_> = promises.on(node).filter(|pod| pod.priority >= priority).collect();
            if want.fits(snapshot, row, profile, &promised, |_| true) {
                helped.extend(uids.iter().cloned());
            } else if want.evicts
                && profile.preempts
                && want.fits(snapshot, row, profile, &promised, |pod| pod.priority >= priority)
            {
                // Who was promised a node does not evict from another while it waits for that.
                helped.extend(uids.iter().filter(|uid| promises.of(uid).is_none()).cloned());
            }
        }
        helped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::k8s_openapi::api::core::v1::{Node, Pod};
    use serde_json::json;

    fn pod(uid: &str, priority: i32, cpu: &str, more: &serde_json::Value) -> Arc<PodInfo> {
        let mut spec = json!({ "priority": priority, "containers": [{
            "name": "c", "resources": { "requests": { "cpu": cpu } },
        }] });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let pod: Pod =
            serde_json::from_value(json!({ "metadata": { "name": uid, "uid": uid }, "spec": spec })).unwrap();
        Arc::new(PodInfo::new(Arc::new(pod)))
    }

    fn snapshot(nodes: &[&str]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for name in nodes {
            let node: Node = serde_json::from_value(json!({
                "metadata": { "name": name }, "status": { "allocatable": { "cpu": "8", "pods": "10" } },
            }))
            .unwrap();
            snapshot.set_node(&node);
        }
        snapshot
    }

    fn helped(wants: &Wants, snapshot: &Snapshot, promises: &Promises) -> Vec<String> {
        let profile = Profile::new("default-scheduler");
        let uids = wants.helped("n", snapshot, promises, &|_| Some(&profile));
        uids.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn room_helps_whom_it_suffices() {
        let (mut snapshot, mut wants, mut promises) = (snapshot(&["n", "other"]), Wants::default(), Promises::new());
        let none = json!({});
        for (uid, cpu) in [("small", "2"), ("same", "2"), ("great", "6")] {
            wants.insert(&pod(uid, 5, cpu, &none));
        }
        assert_eq!(wants.by.len(), 2, "what is the same is held once");
        snapshot.place(pod("there", 5, "5", &none).occupant.clone(), "n");
        assert_eq!(helped(&wants, &snapshot, &promises), ["same", "small"]);
        snapshot.place(pod("another", 5, "2", &none).occupant.clone(), "n");
        assert!(helped(&wants, &snapshot, &promises).is_empty());
        snapshot.displace("there");
        assert_eq!(helped(&wants, &snapshot, &promises), ["great", "same", "small"]);
        promises.decided(&pod("less", 4, "6", &none), Some("n"));
        assert_eq!(helped(&wants, &snapshot, &promises).len(), 3, "promises to less important pods do not count");
        promises.decided(&pod("more", 5, "4", &none), Some("n"));
        assert_eq!(helped(&wants, &snapshot, &promises), ["same", "small"]);
        let want = wants.insert(&pod("small", 5, "2", &none));
        wants.remove(&want, "small");
        wants.remove(&want, "same");
        assert!(helped(&wants, &snapshot, &promises).is_empty());
        assert_eq!(wants.by.len(), 1);
    }

    #[test]
    fn who_evicts_counts_on_the_room_of_others() {
        let (mut snapshot, mut wants, mut promises) = (snapshot(&["n"]), Wants::default(), Promises::new());
        let none = json!({});
        wants.insert(&pod("evicts", 5, "6", &none));
        wants.insert(&pod("peaceful", 5, "6", &json!({ "preemptionPolicy": "Never" })));
        wants.insert(&pod("humble", 0, "6", &none));
        snapshot.place(pod("low", 1, "4", &none).occupant.clone(), "n");
        assert_eq!(helped(&wants, &snapshot, &promises), ["evicts"]);
        promises.decided(&pod("evicts", 5, "6", &none), Some("elsewhere"));
        assert!(helped(&wants, &snapshot, &promises).is_empty(), "it waits for what it was promised");
        snapshot.displace("low");
        assert_eq!(helped(&wants, &snapshot, &promises), ["evicts", "humble", "peaceful"]);
        assert!(wants.helped("gone", &snapshot, &promises, &|_| None).is_empty());
    }

    #[test]
    fn ports_are_room_too() {
        let (mut snapshot, mut wants, promises) = (snapshot(&["n"]), Wants::default(), Promises::new());
        let with =
            |port: u16| json!({ "containers": [{ "name": "c", "ports": [{ "hostPort": port, "containerPort": 1 }] }] });
        wants.insert(&pod("waits", 0, "1", &with(80)));
        snapshot.place(pod("other", 0, "1", &with(81)).occupant.clone(), "n");
        assert_eq!(helped(&wants, &snapshot, &promises), ["waits"]);
        snapshot.place(pod("same", 0, "1", &with(80)).occupant.clone(), "n");
        assert!(helped(&wants, &snapshot, &promises).is_empty());
    }

    #[test]
    fn what_depends_on_other_nodes_is_not_for_one_to_tell() {
        assert!(lacks_only_room(&["NodeResourcesFit"]) && lacks_only_room(&["NodePorts", "TaintToleration"]));
        assert!(!lacks_only_room(&["InterPodAffinity", "NodeResourcesFit"]));
        assert!(!lacks_only_room(&["NodeResourcesFit", "PodTopologySpread"]));
        assert!(!lacks_only_room(&["TaintToleration"]) && !lacks_only_room(&[]));
    }
}
