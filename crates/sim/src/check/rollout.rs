//! What Deployments, ReplicaSets, StatefulSets and DaemonSets may never do, at no moment.
//!
//! Where pods are made and deleted by their controllers only (nobody evicts them, no node dies), caches may be as old
//! as they like: most bounds hold all the same. Where the answer to a create may be lost there may be one pod too many
//! for a while, as upstream; then only what holds regardless is looked at.

use super::object::{controlled, controller, is_active, is_going, is_true, number, scaled, serves, text, uid, within};
use super::rule::{Moment, Recent, Rule};
use serde_json::Value;
use std::collections::BTreeMap;

/// What a history has gone through, which decides how much must hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    /// Caches were behind.
    pub stale: bool,
    /// Writes were done whose answer was lost.
    pub unanswered: bool,
    /// Others than controllers took pods away, or containers failed.
    pub rough: bool,
    /// How often the control plane died and came back.
    pub deaths: u32,
}

const DEPLOYMENTS: &str = "apps/deployments";
const REPLICA_SETS: &str = "apps/replicasets";
const REPLICATION_CONTROLLERS: &str = "core/replicationcontrollers";
const STATEFUL_SETS: &str = "apps/statefulsets";
const DAEMON_SETS: &str = "apps/daemonsets";
const PODS: &str = "core/pods";

/// The object of this UID among those of a resource in a namespace, unless it or the namespace is being deleted.
fn staying<'w>(m: &Moment<'w>, resource: &str, of: &str) -> Option<&'w Value> {
    m.world.get("core/namespaces", m.namespace()).filter(|n| !is_going(n))?;
    within(m.world, resource, m.namespace()).map(|(_, o)| o).find(|o| uid(o) == of && !is_going(o))
}

fn tell(m: &Moment<'_>, wrong: &mut Vec<String>, what: &str) {
    wrong.push(format!("r{} at {:?}: {} {}: {what}", m.revision, m.at, m.resource, m.path));
}

/// Deployments stay within `maxSurge` and `maxUnavailable`; no ReplicaSet and no ReplicationController makes more pods
/// than it was to have.
#[derive(Default)]
pub struct Rollouts {
    weather: Weather,
    /// By UID of the Deployment: most replicas there may be, least that must be available.
    most: BTreeMap<String, Recent>,
    least: BTreeMap<String, Recent>,
    /// Replicas of a ReplicaSet or ReplicationController, by UID.
    wanted: BTreeMap<String, Recent>,
}

/// The most replicas a Deployment may have, and the least that must be available.
fn bounds(d: &Value) -> (i64, i64) {
    let replicas = number(d, "/spec/replicas");
    if text(d, "/spec/strategy/type") == "Recreate" {
        return (replicas, 0);
    }
    let rolling = &d["spec"]["strategy"]["rollingUpdate"];
    let surge = scaled(&rolling["maxSurge"], replicas, true);
    let unavailable = scaled(&rolling["maxUnavailable"], replicas, false);
    let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
    (replicas + surge, replicas - unavailable)
}

impl Rollouts {
    /// For a history in such weather.
    #[must_use]
    pub fn new(weather: Weather) -> Self {
        Self { weather, ..Self::default() }
    }

    /// A ReplicaSet grew: all of its Deployment's together are no more than there may be.
    fn grown(&mut self, m: &Moment<'_>, set: &Value, wrong: &mut Vec<String>) {
        let Some(most) = self.most.get_mut(controller(set)) else { return };
        let most = most.values(m.at).max().unwrap_or(i64::MAX);
        let sets = controlled(m.world, REPLICA_SETS, m.namespace(), controller(set));
        let all: i64 = sets.map(|rs| number(rs, "/spec/replicas")).sum();
        if all > most {
            tell(m, wrong, &format!("its Deployment comes to {all} replicas and may have {most}"));
        }
    }

    fn made(&mut self, m: &Moment<'_>, pod: &Value, wrong: &mut Vec<String>) {
        let Some(wanted) = self.wanted.get_mut(controller(pod)) else { return };
        let wanted = wanted.values(m.at).max().unwrap_or(i64::MAX);
        let pods = controlled(m.world, PODS, m.namespace(), controller(pod)).filter(|p| is_active(p)).count();
        if i64::try_from(pods).unwrap_or(i64::MAX) > wanted && !self.weather.unanswered {
            tell(m, wrong, &format!("its controller has now {pods} pods and wants {wanted}"));
        }
    }

    /// A pod that served is taken away: enough are left.
    fn taken(&mut self, m: &Moment<'_>, pod: &Value, wrong: &mut Vec<String>) {
        if is_disrupted(pod) || m.after.is_some_and(is_disrupted) {
            return;
        }
        let Some(set) = staying(m, REPLICA_SETS, controller(pod)) else { return };
        let Some(deployment) = staying(m, DEPLOYMENTS, controller(set)) else { return };
        let Some(least) = self.least.get_mut(uid(deployment)) else { return };
        let least = least.values(m.at).min().unwrap_or(0);
        let sets = controlled(m.world, REPLICA_SETS, m.namespace(), uid(deployment));
        let left: usize =
            sets.map(|s| controlled(m.world, PODS, m.namespace(), uid(s)).filter(|p| serves(p)).count()).sum();
        if i64::try_from(left).unwrap_or(i64::MAX) < least {
            tell(m, wrong, &format!("{left} pods of its Deployment are left that serve, of {least} there must be"));
        }
    }
}

/// Whether somebody else wants the pod away, or has it.
fn is_disrupted(pod: &Value) -> bool {
    is_true(pod, "DisruptionTarget")
}

impl Rule for Rollouts {
    fn see(&mut self, m: &Moment<'_>, wrong: &mut Vec<String>) {
        match (m.resource, m.before, m.after) {
            (DEPLOYMENTS, _, Some(d)) => {
                let (most, least) = bounds(d);
                self.most.entry(uid(d).to_owned()).or_default().set(m.at, most);
                self.least.entry(uid(d).to_owned()).or_default().set(m.at, least);
            }
            (REPLICA_SETS | REPLICATION_CONTROLLERS, before, Some(set)) => {
                let replicas = number(set, "/spec/replicas");
                self.wanted.entry(uid(set).to_owned()).or_default().set(m.at, replicas);
                // Who does not see a ReplicaSet that it has just made counts without it, as upstream.
                if replicas > before.map_or(0, |b| number(b, "/spec/replicas")) && !self.weather.stale {
                    self.grown(m, set, wrong);
                }
            }
            (PODS, None, Some(pod)) => self.made(m, pod, wrong),
            (PODS, Some(pod), _) if m.is_going() && serves(pod) && !self.weather.rough => self.taken(m, pod, wrong),
            _ => {}
        }
    }
}

/// StatefulSets keep their order, and never have more pods away than they may.
#[derive(Default)]
pub struct Ordered {
    weather: Weather,
    replicas: BTreeMap<String, Recent>,
    partition: BTreeMap<String, Recent>,
}

impl Ordered {
    /// For a history in such weather.
    #[must_use]
    pub fn new(weather: Weather) -> Self {
        Self { weather, ..Self::default() }
    }

    fn pods<'w>(m: &Moment<'w>, set: &'w Value) -> BTreeMap<i64, &'w Value> {
        let pods = controlled(m.world, PODS, m.namespace(), uid(set));
        pods.filter_map(|p| Some((ordinal(text(p, "/metadata/name"))?, p))).collect()
    }

    fn made(&self, m: &Moment<'_>, set: &Value, at: i64, wrong: &mut Vec<String>) {
        if text(set, "/spec/podManagementPolicy") == "Parallel" || self.weather.stale || self.weather.rough {
            return;
        }
        let pods = Self::pods(m, set);
        for before in number(set, "/spec/ordinals/start")..at {
            if !pods.get(&before).is_some_and(|p| serves(p)) {
                tell(m, wrong, &format!("was made before ordinal {before} served"));
            }
        }
    }

    fn taken(&mut self, m: &Moment<'_>, set: &Value, at: i64, wrong: &mut Vec<String>) {
        let start = number(set, "/spec/ordinals/start");
        let parallel = text(set, "/spec/podManagementPolicy") == "Parallel";
        let replicas = number(set, "/spec/replicas");
        let recent = self.replicas.entry(uid(set).to_owned()).or_default();
        let (least, most) =
            (recent.values(m.at).min().unwrap_or(replicas), recent.values(m.at).max().unwrap_or(replicas));
        let pods = Self::pods(m, set);
        if at >= start + least {
            // It may be one too many; then those above went before it.
            let above = pods.keys().any(|o| *o > at && *o >= start + most);
            if above && !parallel {
                tell(m, wrong, "is taken before the one above it is gone");
            }
            return;
        }
        let partition = self.partition.entry(uid(set).to_owned()).or_default().values(m.at).min().unwrap_or(0);
        // The partition counts from the first ordinal there is.
        if at < start + partition {
            tell(m, wrong, &format!("is taken though it is below the partition {partition}"));
        }
        let may = scaled(&set["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"], replicas, true).max(1);
        let serving = pods.range(start..start + least).filter(|(_, p)| serves(p)).count();
        let away = least - i64::try_from(serving).unwrap_or(0);
        if away > may {
            tell(m, wrong, &format!("is taken and {away} are away now, of {may} that may be"));
        }
    }
}

fn ordinal(name: &str) -> Option<i64> {
    name.rsplit_once('-')?.1.parse().ok()
}

impl Rule for Ordered {
    fn see(&mut self, m: &Moment<'_>, wrong: &mut Vec<String>) {
        if m.resource == STATEFUL_SETS
            && let Some(set) = m.after
        {
            let partition = number(set, "/spec/updateStrategy/rollingUpdate/partition");
            self.replicas.entry(uid(set).to_owned()).or_default().set(m.at, number(set, "/spec/replicas"));
            self.partition.entry(uid(set).to_owned()).or_default().set(m.at, partition);
        }
        if m.resource != PODS {
            return;
        }
        let Some(pod) = m.after.or(m.before) else { return };
        let Some(set) = staying(m, STATEFUL_SETS, controller(pod)) else { return };
        let Some(at) = ordinal(text(pod, "/metadata/name")) else { return };
        if m.is_new() {
            self.made(m, set, at, wrong);
        } else if m.is_going() && !self.weather.rough && m.before.is_some_and(serves) {
            self.taken(m, set, at, wrong);
        }
    }
}

/// A DaemonSet has one pod on a node, or two of which one is to take over.
#[derive(Default)]
pub struct OnePerNode {
    weather: Weather,
}

impl OnePerNode {
    /// For a history in such weather.
    #[must_use]
    pub fn new(weather: Weather) -> Self {
        Self { weather }
    }
}

/// The node a DaemonSet made its pod for.
pub(crate) fn made_for(pod: &Value) -> &str {
    let node = text(pod, "/spec/nodeName");
    let required = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let field = format!("{required}/0/matchFields/0/values/0");
    if node.is_empty() { text(pod, &field) } else { node }
}

impl Rule for OnePerNode {
    fn see(&mut self, m: &Moment<'_>, wrong: &mut Vec<String>) {
        let (PODS, true, Some(pod), false) = (m.resource, m.is_new(), m.after, self.weather.unanswered) else { return };
        let Some(set) = staying(m, DAEMON_SETS, controller(pod)) else { return };
        let surge = set["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"].clone();
        let surges = scaled(&surge, 100, true) > 0;
        let node = made_for(pod);
        let pods = controlled(m.world, PODS, m.namespace(), uid(set)).filter(|p| is_active(p) && made_for(p) == node);
        let (count, most) = (pods.count(), 1 + usize::from(surges));
        if count > most {
            tell(m, wrong, &format!("is number {count} of its DaemonSet on node {node}"));
        }
    }
}
