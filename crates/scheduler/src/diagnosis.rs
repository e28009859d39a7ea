//! Why a pod did not fit: the reasons per node, and the sentence made of them.

use crate::devices::PodDevices;
use crate::filter::Rejection;
use crate::snapshot::Row;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Which nodes were rejected, and why. Nodes rejected alike share a rejection, so there are few.
#[derive(Clone, Debug, Default)]
pub struct Rejections {
    kinds: Vec<Arc<Rejection>>,
    /// Nodes by kind.
    counts: Vec<usize>,
    /// By row: one more than the number of the kind, 0 where the row was not rejected.
    verdicts: Vec<u16>,
}

impl Rejections {
    /// From what was counted already. `verdicts` holds, by row, one more than the number of the kind, or 0.
    #[must_use]
    pub fn counted(kinds: Vec<Arc<Rejection>>, counts: Vec<usize>, verdicts: Vec<u16>) -> Self {
        Self { kinds, counts, verdicts }
    }

    /// All these rows, rejected alike.
    #[must_use]
    pub fn alike(rows: impl Iterator<Item = Row>, rejection: Rejection) -> Self {
        let mut out = Self { kinds: vec![Arc::new(rejection)], counts: vec![0], verdicts: Vec::new() };
        rows.for_each(|row| out.count(row, 0));
        out
    }

    /// Notes a row that was not.
    pub fn note(&mut self, row: Row, rejection: &Rejection) {
        let at = self.kinds.iter().position(|kind| **kind == *rejection).unwrap_or_else(|| {
            self.kinds.push(Arc::new(rejection.clone()));
            self.counts.push(0);
            self.kinds.len() - 1
        });
        self.count(row, at);
    }

    fn count(&mut self, row: Row, kind: usize) {
        if self.verdicts.len() <= row {
            self.verdicts.resize(row + 1, 0);
        }
        self.verdicts[row] = u16::try_from(kind + 1).unwrap_or(u16::MAX);
        self.counts[kind] += 1;
    }

    /// Why a row was rejected; `None` where it was not.
    #[must_use]
    pub fn of(&self, row: Row) -> Option<&Arc<Rejection>> {
        self.kinds.get(usize::from(*self.verdicts.get(row)?).checked_sub(1)?)
    }

    /// The rows with their rejections.
    pub fn iter(&self) -> impl Iterator<Item = (Row, &Arc<Rejection>)> {
        (0..self.verdicts.len()).filter_map(|row| Some((row, self.of(row)?)))
    }

    /// The distinct rejections, with how many nodes each is of.
    pub fn kinds(&self) -> impl Iterator<Item = (&Arc<Rejection>, usize)> {
        self.kinds.iter().zip(self.counts.iter().copied()).filter(|(_, n)| *n > 0)
    }

    /// Whether no node was rejected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kinds().next().is_none()
    }
}

/// Outcome of filtering that left no node.
#[derive(Clone, Debug, Default)]
pub struct Diagnosis {
    /// Nodes in the cluster.
    pub nodes: usize,
    /// The rejection of each node.
    pub rejections: Rejections,
    /// Why no node was even looked at, where that is so; the rejections are then all alike.
    pub refusal: Option<String>,
    /// What is wrong with the pod's claims of devices, where no node was worth a try; nothing else matters then.
    pub error: Option<String>,
    /// The pod's claims of devices.
    pub devices: Option<Arc<PodDevices>>,
    /// What giving up devices came to, where preemption did not help either.
    pub deallocation: Option<String>,
    /// What preemption found, per reason.
    pub preemption: BTreeMap<String, usize>,
    /// Where the pod waits for others of its group: what is said before its own reasons, and after them.
    pub group: Option<(String, String)>,
}

impl Diagnosis {
    /// The plugins that rejected a node; an event that concerns none of them cannot help.
    #[must_use]
    pub fn plugins(&self) -> BTreeSet<&'static str> {
        self.rejections.kinds().map(|(r, _)| r.plugin).collect()
    }

    /// The sentence of the event and of the PodScheduled condition.
    #[must_use]
    pub fn message(&self) -> String {
        match &self.group {
            None => self.own_message(),
            // It would fit; what keeps it waiting are the others.
            Some((before, after)) if self.rejections.is_empty() && self.nodes > 0 => format!("{before}{after}"),
            Some((before, after)) => format!("{before}: {}{after}", self.own_message()),
        }
    }

    /// The same without what is said of the pod's group.
    fn own_message(&self) -> String {
        if let Some(error) = &self.error {
            return error.clone();
        }
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for (rejection, nodes) in self.rejections.kinds() {
            for reason in rejection.reasons.iter() {
                *counts.entry(reason.as_ref()).or_default() += nodes;
            }
        }
        let mut text = format!("0/{} nodes are available", self.nodes);
        if let Some(refusal) = &self.refusal {
            text.push_str(&format!(": {refusal}."));
        } else if !counts.is_empty() {
            text.push_str(": ");
            text.push_str(&histogram(counts.into_iter()));
            text.push('.');
        }
        let mut after: Vec<String> = self.deallocation.iter().cloned().collect();
        if !self.preemption.is_empty() {
            let found = histogram(self.preemption.iter().map(|(k, v)| (k.as_str(), *v)));
            after.push(format!("preemption: 0/{} nodes are available: {found}.", self.nodes));
        }
        if !after.is_empty() {
            text.push_str(&format!(" {}", after.join(", ")));
        }
        text
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
    use crate::filter::Reasons;

    #[test]
    fn sentence() {
        let rejection = |reasons: &[&str]| {
            let reasons = Reasons::Several(reasons.iter().map(|r| (*r).to_owned().into()).collect());
            Arc::new(Rejection { plugin: "NodeResourcesFit", reasons, unresolvable: false })
        };
        let mut rejections = Rejections::default();
        rejections.note(0, &rejection(&["Insufficient cpu", "Too many pods"]));
        rejections.note(1, &rejection(&["Insufficient cpu"]));
        let d = Diagnosis {
            nodes: 2,
            rejections,
            refusal: None,
            error: None,
            devices: None,
            deallocation: Some("no new claims to deallocate".to_owned()),
            group: None,
            preemption: [("No preemption victims found for incoming pod".to_owned(), 2)].into(),
        };
        assert_eq!(
            d.message(),
            "0/2 nodes are available: 1 Too many pods, 2 Insufficient cpu. \
             no new claims to deallocate, preemption: 0/2 nodes are available: \
             2 No preemption victims found for incoming pod."
        );
        let group = Some(("2 of 4 fit".to_owned(), " no preemption".to_owned()));
        let fits = Diagnosis { nodes: 2, group: group.clone(), ..Diagnosis::default() };
        assert_eq!(fits.message(), "2 of 4 fit no preemption");
        let rejections =
            Rejections::alike([0].into_iter(), Rejection::one("NodeResourcesFit", "Insufficient cpu", false));
        let not = Diagnosis { nodes: 2, rejections, group, ..Diagnosis::default() };
        assert_eq!(not.message(), "2 of 4 fit: 0/2 nodes are available: 1 Insufficient cpu. no preemption");
        assert_eq!(Diagnosis::default().message(), "no nodes available to schedule pods");
    }
}
