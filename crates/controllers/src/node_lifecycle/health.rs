//! A node's conditions.

use gantry_api::Time;
use k8s_openapi::api::core::v1::{Node, NodeCondition};

/// Conditions that become Unknown when a node falls silent.
pub const MONITORED: &[&str] = &["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

pub(super) fn condition<'a>(node: &'a Node, r#type: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == r#type)
}

pub(super) fn ready(node: &Node) -> Option<&NodeCondition> {
    condition(node, "Ready")
}

/// Whether the node says that it is ready.
pub(crate) fn is_ready(node: &Node) -> bool {
    ready(node).is_some_and(|c| c.status == "True")
}

/// Whether a change of a node can change a decision; renewed heartbeats alone do not.
pub(super) fn concerns(old: &Node, new: &Node) -> bool {
    let statuses = |n: &Node| -> Vec<(String, String)> {
        let conditions = n.status.iter().flat_map(|s| s.conditions.iter().flatten());
        conditions.map(|c| (c.type_.clone(), c.status.clone())).collect()
    };
    old.spec != new.spec || old.metadata.labels != new.metadata.labels || statuses(old) != statuses(new)
}

/// The node with its monitored conditions Unknown; None where they are so already.
#[must_use]
pub fn silenced(node: &Node, now: &Time) -> Option<Node> {
    let mut changed = node.clone();
    let created = node.metadata.creation_timestamp.clone();
    let conditions = changed.status.get_or_insert_default().conditions.get_or_insert_default();
    for r#type in MONITORED {
        match conditions.iter_mut().find(|c| c.type_ == *r#type) {
            None => conditions.push(NodeCondition {
                type_: (*r#type).to_owned(),
                status: "Unknown".into(),
                reason: Some("NodeStatusNeverUpdated".into()),
                message: Some("Kubelet never posted node status.".into()),
                last_heartbeat_time: created.clone(),
                last_transition_time: Some(now.clone()),
            }),
            Some(c) if c.status != "Unknown" => {
                c.status = "Unknown".into();
                c.reason = Some("NodeStatusUnknown".into());
                c.message = Some("Kubelet stopped posting node status.".into());
                c.last_transition_time = Some(now.clone());
            }
            Some(_) => {}
        }
    }
    (changed.status != node.status).then_some(changed)
}
