//! Why a pod did not fit: the reasons per node, and the sentence made of them.

use crate::filter::Rejection;
use crate::snapshot::{Row, Snapshot};
use std::collections::{BTreeMap, BTreeSet};

/// Outcome of filtering that left no node.
#[derive(Clone, Debug, Default)]
pub struct Diagnosis {
    /// Nodes in the cluster.
    pub nodes: usize,
    /// The rejection of each node.
    pub rejections: Vec<(Row, Rejection)>,
    /// Why no node was even looked at, where that is so; the rejections are then all alike.
    pub refusal: Option<String>,
    /// What preemption found, per reason.
    pub preemption: BTreeMap<String, usize>,
}

impl Diagnosis {
    /// The plugins that rejected a node; an event that concerns none of them cannot help.
    #[must_use]
    pub fn plugins(&self) -> BTreeSet<&'static str> {
        self.rejections.iter().map(|(_, r)| r.plugin).collect()
    }

    /// The sentence of the event and of the PodScheduled condition.
    #[must_use]
    pub fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for reason in self.rejections.iter().flat_map(|(_, r)| &r.reasons) {
            *counts.entry(reason).or_default() += 1;
        }
        let mut text = format!("0/{} nodes are available", self.nodes);
        if let Some(refusal) = &self.refusal {
            text.push_str(&format!(": {refusal}."));
        } else if !counts.is_empty() {
            text.push_str(": ");
            text.push_str(&histogram(counts.into_iter()));
            text.push('.');
        }
        if !self.preemption.is_empty() {
            let found = histogram(self.preemption.iter().map(|(k, v)| (k.as_str(), *v)));
            text.push_str(&format!(" preemption: 0/{} nodes are available: {found}.", self.nodes));
        }
        text
    }

    /// Name, plugin and reasons per node.
    pub fn per_node<'a>(&'a self, snapshot: &'a Snapshot) -> impl Iterator<Item = (&'a str, &'a Rejection)> {
        self.rejections.iter().map(|(row, r)| (snapshot.names[*row].as_str(), r))
    }
}

fn histogram<'a>(counts: impl Iterator<Item = (&'a str, usize)>) -> String {
    let mut parts: Vec<String> = counts.map(|(reason, n)| format!("{n} {reason}")).collect();
    parts.sort();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentence() {
        let rejection = |reasons: &[&str]| Rejection {
            plugin: "NodeResourcesFit",
            reasons: reasons.iter().map(|r| (*r).to_owned()).collect(),
            unresolvable: false,
        };
        let d = Diagnosis {
            nodes: 2,
            rejections: vec![
                (0, rejection(&["Insufficient cpu", "Too many pods"])),
                (1, rejection(&["Insufficient cpu"])),
            ],
            refusal: None,
            preemption: [("No preemption victims found for incoming pod".to_owned(), 2)].into(),
        };
        assert_eq!(
            d.message(),
            "0/2 nodes are available: 1 Too many pods, 2 Insufficient cpu. \
             preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod."
        );
        assert_eq!(Diagnosis::default().message(), "no nodes available to schedule pods");
    }
}
