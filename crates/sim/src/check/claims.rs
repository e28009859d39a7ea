//! What may never happen to claims and volumes.

use super::object::{controller, is_finished, is_going, list, number, text, uid, within};
use super::rule::{Moment, Recent, Rule};
use crate::log::World;
use serde_json::Value;
use std::collections::BTreeMap;

const CLAIMS: &str = "core/persistentvolumeclaims";
const STATEFUL_SETS: &str = "apps/statefulsets";
const PODS: &str = "core/pods";

/// A claim has one volume for all its life and a volume one claim at a time; no claim goes that a pod uses; a
/// StatefulSet's claims outlive its pods unless it says otherwise.
#[derive(Default)]
pub struct Claims {
    /// Replicas of each StatefulSet, by UID.
    replicas: BTreeMap<String, Recent>,
}

fn uses(pod: &Value, claim: &str) -> bool {
    list(pod, "/spec/volumes").any(|v| text(v, "/persistentVolumeClaim/claimName") == claim)
}

/// The StatefulSet of which a claim is that of a pod, with the pod's ordinal.
fn set_of<'m>(m: &Moment<'m>, claim: &str) -> Option<(&'m Value, i64)> {
    let (rest, ordinal) = claim.rsplit_once('-')?;
    let ordinal = ordinal.parse().ok()?;
    let mut sets = within(m.world, STATEFUL_SETS, m.namespace());
    let of = |(name, set): &(&str, &Value)| {
        let name = name.rsplit('/').next().unwrap_or_default();
        list(set, "/spec/volumeClaimTemplates").any(|t| rest == format!("{}-{name}", text(t, "/metadata/name")))
    };
    sets.find(of).map(|(_, set)| (set, ordinal))
}

fn gone(m: &Moment<'_>, wrong: &mut Vec<String>) {
    let name = m.path.rsplit('/').next().unwrap_or_default();
    let mut users = within(m.world, PODS, m.namespace()).filter(|(_, p)| uses(p, name) && !is_finished(p));
    if let Some((pod, _)) = users.next() {
        wrong.push(format!("r{} at {:?}: claim {} is gone, and pod {pod} uses it", m.revision, m.at, m.path));
    }
}

impl Claims {
    fn going(&mut self, m: &Moment<'_>, wrong: &mut Vec<String>) {
        if m.world.get("core/namespaces", m.namespace()).is_none_or(|n| is_going(n)) {
            return;
        }
        let name = m.path.rsplit('/').next().unwrap_or_default();
        let Some((set, ordinal)) = set_of(m, name).filter(|(set, _)| !is_going(set)) else { return };
        let scaled = text(set, "/spec/persistentVolumeClaimRetentionPolicy/whenScaled") == "Delete";
        let least = self.replicas.get_mut(uid(set)).and_then(|r| r.values(m.at).min()).unwrap_or(0);
        if !scaled || ordinal < number(set, "/spec/ordinals/start") + least {
            wrong.push(format!("r{} at {:?}: claim {} is deleted, and its set keeps it", m.revision, m.at, m.path));
        }
    }
}

impl Rule for Claims {
    fn see(&mut self, m: &Moment<'_>, wrong: &mut Vec<String>) {
        match (m.resource, m.before, m.after) {
            (STATEFUL_SETS, _, Some(set)) => {
                self.replicas.entry(uid(set).to_owned()).or_default().set(m.at, number(set, "/spec/replicas"));
            }
            (CLAIMS, Some(before), after) => {
                let (had, has) = (text(before, "/spec/volumeName"), after.map(|a| text(a, "/spec/volumeName")));
                let same = after.is_some_and(|a| uid(a) == uid(before));
                if same && !had.is_empty() && has.is_some_and(|h| h != had) {
                    wrong.push(format!("r{}: claim {} had volume {had} and has {has:?}", m.revision, m.path));
                }
                if m.is_going() {
                    self.going(m, wrong);
                }
                if after.is_none() {
                    gone(m, wrong);
                }
            }
            _ => {}
        }
        let volume = |c: &Value| text(c, "/spec/volumeName").to_owned();
        if let (CLAIMS, Some(claim)) = (m.resource, m.after)
            && !volume(claim).is_empty()
            && m.before.is_none_or(|b| volume(b).is_empty())
        {
            let others = m.world.all(CLAIMS).filter(|(_, c)| volume(c) == volume(claim)).count();
            if others > 1 {
                wrong.push(format!("r{}: volume {} has {others} claims", m.revision, volume(claim)));
            }
        }
    }

    fn end(&mut self, world: &World, wrong: &mut Vec<String>) {
        for (name, pod) in world.all(PODS) {
            let namespace = name.split_once('/').map_or("", |(n, _)| n);
            let mut sets = within(world, STATEFUL_SETS, namespace).map(|(_, set)| set);
            let Some(set) = sets.find(|s| uid(s) == controller(pod)) else { continue };
            // Each pod has the claims of its own name.
            for template in list(set, "/spec/volumeClaimTemplates") {
                let claim = format!("{}-{}", text(template, "/metadata/name"), text(pod, "/metadata/name"));
                if !uses(pod, &claim) {
                    wrong.push(format!("pod {name} does not use claim {claim}"));
                }
            }
        }
    }
}
