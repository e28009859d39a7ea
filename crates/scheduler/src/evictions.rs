//! What each node would have to evict for a pod of one class and priority: kept from one such pod to the next, and
//! looked at again where a node, its pods or the promises about it changed. The least bad comes first.

use crate::class::EXPLORED;
use crate::cycle::Cycle;
use crate::diagnosis::Diagnosis;
use crate::preempt::{self, Badness, Candidate};
use crate::promises::Promises;
use crate::snapshot::{Event, Row, Snapshot};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// See the module. Knows nothing in the beginning.
#[derive(Debug, Default)]
pub struct Evictions {
    unknown: Unknown,
    /// What it would cost, for the nodes where it would help.
    costs: HashMap<Row, Badness>,
    order: BTreeSet<(Badness, Row)>,
    /// How much had happened to the snapshot and to the promises when this was of use last.
    seen: Option<(u64, u64)>,
}

/// The rows that are to be looked at: those that changed, and a few of those that nobody looked at yet.
#[derive(Debug, Default)]
struct Unknown {
    known: Vec<bool>,
    changed: Vec<Row>,
    /// The first row that was never looked at.
    fresh: Row,
    /// How many such were looked at for this pod.
    explored: usize,
}

impl Unknown {
    /// Begins anew with so many rows.
    fn begin(&mut self, rows: usize) {
        self.known.resize(rows, false);
        self.explored = 0;
    }

    /// A row that is not known any more.
    fn note(&mut self, row: Row) {
        if let Some(known) = self.known.get_mut(row).filter(|known| **known) {
            *known = false;
            self.changed.push(row);
        }
    }

    /// The next row to look at; `wanting`: as long as there is any.
    fn next(&mut self, wanting: bool) -> Option<Row> {
        let row = self.changed.pop().or_else(|| {
            let explores = self.fresh < self.known.len() && (wanting || self.explored < EXPLORED);
            explores.then(|| {
                self.fresh += 1;
                self.explored += 1;
                self.fresh - 1
            })
        })?;
        self.known[row] = true;
        Some(row)
    }
}

impl Evictions {
    /// Takes in what happened; false where that is not known any more.
    #[must_use]
    pub fn catch_up(&mut self, snapshot: &Snapshot, promises: &Promises) -> bool {
        let Some((seen, promises_seen)) = self.seen else { return false };
        let (Some(events), Some(nodes)) = (snapshot.since(seen), promises.since(promises_seen)) else { return false };
        for event in events {
            match event {
                Event::Placed(row, _) | Event::Gone(row, _) | Event::Node { row, .. } => self.forget(*row),
                Event::Namespace => {}
                Event::Devices => return false,
            }
        }
        nodes.filter_map(|node| snapshot.row(node)).for_each(|row| self.forget(row));
        true
    }

    fn forget(&mut self, row: Row) {
        self.unknown.note(row);
        if let Some(cost) = self.costs.remove(&row) {
            self.order.remove(&(cost, row));
        }
    }

    /// The least bad evictions of enough, for a pod that all nodes rejected; where there are none, fills in why.
    pub fn best(
        &mut self,
        snapshot: &Snapshot,
        cycle: &mut Cycle,
        diagnosis: &mut Diagnosis,
        promises: &Promises,
    ) -> Option<Candidate> {
        self.seen = Some((snapshot.written(), promises.written()));
        self.unknown.begin(snapshot.row_count());
        let enough = (diagnosis.nodes * cycle.profile.candidates_percentage / 100).max(cycle.profile.candidates_min);
        while let Some(row) = self.unknown.next(self.order.len() < enough) {
            self.look(snapshot, row, cycle, diagnosis, promises);
        }
        diagnosis.preemption = BTreeMap::new();
        let Some((_, row)) = self.order.first() else {
            diagnosis.preemption = preempt::hopeless(diagnosis);
            return None;
        };
        let rivals = promises.rivals(&snapshot.names[*row], &cycle.pod, &[]);
        preempt::victims_on(snapshot, *row, cycle, &[], &rivals)
    }

    fn look(&mut self, snapshot: &Snapshot, row: Row, cycle: &mut Cycle, diagnosis: &Diagnosis, promises: &Promises) {
        if diagnosis.rejections.of(row).is_none_or(|rejection| rejection.unresolvable) {
            return;
        }
        let rivals = promises.rivals(&snapshot.names[row], &cycle.pod, &[]);
        if let Some(candidate) = preempt::victims_on(snapshot, row, cycle, &[], &rivals) {
            let cost = preempt::badness(&candidate);
            self.costs.insert(row, cost);
            self.order.insert((cost, row));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_looked_at_once_until_they_change() {
        let mut unknown = Unknown::default();
        let all = |unknown: &mut Unknown, wanting| std::iter::from_fn(|| unknown.next(wanting)).collect::<Vec<_>>();
        unknown.begin(EXPLORED + 2);
        unknown.note(1);
        unknown.note(EXPLORED + 9);
        assert_eq!(all(&mut unknown, false), (0..EXPLORED).collect::<Vec<_>>(), "no more than a few");
        unknown.note(3);
        unknown.note(3);
        unknown.note(EXPLORED + 1);
        assert_eq!(all(&mut unknown, true), [3, EXPLORED, EXPLORED + 1]);
        unknown.begin(EXPLORED + 3);
        assert_eq!(all(&mut unknown, false), [EXPLORED + 2]);
    }
}
