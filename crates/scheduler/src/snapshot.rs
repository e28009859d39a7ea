//! Nodes and the pods on them, in columns: one vector per fact, one row per node. Filters touch only the columns they
//! ask for.
//!
//! Rows of removed nodes are kept as holes and reused. Label values are interned per key, so that comparing topology
//! domains compares integers and a selector is a set of bits over values; taints are interned likewise. What changed is
//! kept in a short journal, so that what was computed from an earlier state can be brought up to date row by row.

use crate::bits::Bits;
use crate::pod::{Amounts, Occupant};
use gantry_api::k8s_openapi::api::core::v1::{Node, Taint};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

/// Changes the journal holds; who is further behind starts anew.
const JOURNAL: usize = 4096;

/// A row of the snapshot.
pub type Row = usize;

/// An interned label value; 0 is "label absent".
pub type ValueId = u32;

/// An interned label key.
pub type KeyId = usize;

/// An interned taint.
pub type TaintId = usize;

/// Values of one label key, a row each.
#[derive(Clone, Debug, Default)]
struct LabelColumn {
    values: Vec<ValueId>,
    ids: HashMap<String, ValueId>,
    /// Values by their number; the first stands for "absent".
    names: Vec<String>,
}

/// Something that happened to the snapshot.
#[derive(Clone, Debug)]
pub enum Event {
    /// A pod was put on a node.
    Placed(Row, Arc<Occupant>),
    /// A pod was taken off a node.
    Gone(Row, Arc<Occupant>),
    /// A node changed in what a filter or score looks at.
    Node {
        /// The node.
        row: Row,
        /// Whether it came or went, or its labels, taints or cordon changed.
        reach: bool,
    },
    /// A namespace came, went or changed its labels.
    Namespace,
    /// Devices stand for other extended resources than before.
    Devices,
}

/// The cluster as the next decision sees it.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    rows: HashMap<String, Row>,
    holes: Vec<Row>,
    /// Node names; empty in a hole.
    pub names: Vec<String>,
    /// Whether the row is a node; false for holes, and for nodes known only by pods bound to them.
    pub live: Vec<bool>,
    /// `spec.unschedulable`.
    pub unschedulable: Vec<bool>,
    /// Taints, in the node's order.
    pub taints: Vec<Vec<TaintId>>,
    /// The NoSchedule and NoExecute ones among them.
    pub hard_taints: Vec<Bits>,
    /// All labels, for selectors with operators.
    pub labels: Vec<BTreeMap<String, String>>,
    /// Allocatable.
    pub allocatable: Vec<Amounts>,
    /// Requested by the pods on the node.
    pub requested: Vec<Amounts>,
    /// CPU counted in scores.
    pub score_cpu_milli: Vec<i64>,
    /// Memory counted in scores.
    pub score_memory: Vec<i64>,
    /// Pods on the node.
    pub pods: Vec<Vec<Arc<Occupant>>>,
    /// Pods on the node that have required anti-affinity.
    pub anti_affine: Vec<u32>,
    /// Pods on the node that have any affinity.
    pub affine: Vec<u32>,
    /// Images on the node with their sizes in bytes.
    pub images: Vec<HashMap<String, i64>>,
    keys: HashMap<String, KeyId>,
    columns: Vec<LabelColumn>,
    known_taints: Vec<Taint>,
    /// Extended resources that devices stand for where a node has none itself.
    backed: BTreeSet<String>,
    /// Distinct label values and taints seen so far: where it has grown, sets of bits over them are out of date.
    vocabulary: usize,
    image_nodes: HashMap<String, usize>,
    namespaces: HashMap<String, BTreeMap<String, String>>,
    placed: HashMap<Arc<str>, Row>,
    node_count: usize,
    affine_pods: usize,
    journal: VecDeque<Event>,
    written: u64,
}

impl Snapshot {
    /// Number of nodes.
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.node_count
    }

    /// Number of pods on nodes.
    #[must_use]
    pub fn pod_count(&self) -> usize {
        self.placed.len()
    }

    /// Rows of nodes, in row order.
    pub fn node_rows(&self) -> impl Iterator<Item = Row> + '_ {
        (0..self.live.len()).filter(|r| self.live[*r])
    }

    /// Number of rows including holes.
    #[must_use]
    pub fn row_count(&self) -> usize {
        self.live.len()
    }

    /// The row of a node.
    #[must_use]
    pub fn row(&self, node: &str) -> Option<Row> {
        self.rows.get(node).copied().filter(|r| self.live[*r])
    }

    /// A placed pod.
    #[must_use]
    pub fn placed(&self, uid: &str) -> Option<&Arc<Occupant>> {
        self.pods[self.row_of_pod(uid)?].iter().find(|pod| &*pod.uid == uid)
    }

    /// The row a pod occupies.
    #[must_use]
    pub fn row_of_pod(&self, uid: &str) -> Option<Row> {
        self.placed.get(uid).copied()
    }

    /// A label key's number; `None` where no node ever had it.
    #[must_use]
    pub fn key(&self, name: &str) -> Option<KeyId> {
        self.keys.get(name).copied()
    }

    /// The value of a label at a row, 0 where absent.
    #[must_use]
    pub fn value(&self, key: KeyId, row: Row) -> ValueId {
        self.columns[key].values.get(row).copied().unwrap_or(0)
    }

    /// Every value a label key ever had, by number; that of 0 is empty and stands for "absent".
    #[must_use]
    pub fn values(&self, key: KeyId) -> &[String] {
        &self.columns[key].names
    }

    /// Every taint a node ever had, by number.
    #[must_use]
    pub fn known_taints(&self) -> &[Taint] {
        &self.known_taints
    }

    /// Grows with every label key, label value and taint that was not known before.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Placed pods that have any affinity or anti-affinity.
    #[must_use]
    pub fn affine_pods(&self) -> usize {
        self.affine_pods
    }

    /// Labels of namespaces, for namespace selectors.
    #[must_use]
    pub fn namespace_labels(&self, namespace: &str) -> Option<&BTreeMap<String, String>> {
        self.namespaces.get(namespace)
    }

    /// Notes a namespace's labels; true where it was known with others.
    pub fn set_namespace(&mut self, name: &str, labels: BTreeMap<String, String>) -> bool {
        let changed = self.namespaces.get(name).map(|old| *old != labels);
        if changed != Some(false) {
            self.namespaces.insert(name.to_owned(), labels);
            self.note(Event::Namespace);
        }
        changed == Some(true)
    }

    /// Forgets a namespace.
    pub fn remove_namespace(&mut self, name: &str) {
        if self.namespaces.remove(name).is_some() {
            self.note(Event::Namespace);
        }
    }

    /// Extended resources that devices stand for where a node has none itself.
    #[must_use]
    pub fn backed(&self) -> &BTreeSet<String> {
        &self.backed
    }

    /// Notes which these are.
    pub fn set_backed(&mut self, resources: BTreeSet<String>) {
        if self.backed != resources {
            self.backed = resources;
            // Whatever was found of any node may be otherwise now.
            self.vocabulary += 1;
            self.note(Event::Devices);
        }
    }

    /// How many events there have been.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// The events since there had been `seen`; `None` where they are no longer all held.
    #[must_use]
    pub fn since(&self, seen: u64) -> Option<impl Iterator<Item = &Event>> {
        let missed = usize::try_from(self.written - seen).ok().filter(|n| *n <= self.journal.len())?;
        Some(self.journal.range(self.journal.len() - missed..))
    }

    fn note(&mut self, event: Event) {
        if self.journal.len() == JOURNAL {
            self.journal.pop_front();
        }
        self.journal.push_back(event);
        self.written += 1;
    }

    /// Number of nodes that hold an image.
    #[must_use]
    pub fn nodes_with_image(&self, image: &str) -> usize {
        self.image_nodes.get(image).copied().unwrap_or(0)
    }

    /// Whether any node told which images it holds.
    #[must_use]
    pub fn has_images(&self) -> bool {
        !self.image_nodes.is_empty()
    }

    fn row_for(&mut self, name: &str) -> Row {
        if let Some(row) = self.rows.get(name) {
            return *row;
        }
        let row = self.holes.pop().unwrap_or_else(|| {
            self.names.push(String::new());
            self.live.push(false);
            self.unschedulable.push(false);
            self.taints.push(Vec::new());
            self.hard_taints.push(Bits::default());
            self.labels.push(BTreeMap::new());
            self.allocatable.push(Amounts::default());
            self.requested.push(Amounts::default());
            self.score_cpu_milli.push(0);
            self.score_memory.push(0);
            self.pods.push(Vec::new());
            self.anti_affine.push(0);
            self.affine.push(0);
            self.images.push(HashMap::new());
            self.names.len() - 1
        });
        name.clone_into(&mut self.names[row]);
        self.rows.insert(name.to_owned(), row);
        row
    }

    /// Adds or replaces a node; returns whether pods may fit that did not, or the other way round. Heartbeats change
    /// nothing.
    pub fn set_node(&mut self, node: &Node) -> bool {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let row = self.row_for(name);
        let mut reach = false;
        if !self.live[row] {
            self.live[row] = true;
            self.node_count += 1;
            reach = true;
        }
        let spec = node.spec.as_ref();
        let cordoned = spec.and_then(|s| s.unschedulable).unwrap_or(false);
        reach |= std::mem::replace(&mut self.unschedulable[row], cordoned) != cordoned;
        reach |= self.set_taints(row, spec.and_then(|s| s.taints.as_deref()).unwrap_or_default());
        reach |= self.set_labels(row, node.metadata.labels.clone().unwrap_or_default());
        let status = node.status.as_ref();
        let allocatable = Amounts::of_list(status.and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref())));
        let fits_others = reach || self.allocatable[row] != allocatable;
        self.allocatable[row] = allocatable;
        let images = status.and_then(|s| s.images.as_deref()).unwrap_or_default();
        let images = images
            .iter()
            .flat_map(|i| i.names.iter().flatten().map(|n| (n.clone(), i.size_bytes.unwrap_or(0))))
            .collect();
        if self.set_images(row, images) || fits_others {
            self.note(Event::Node { row, reach });
        }
        fits_others
    }

    /// Returns whether they are others than before; so do the next two.
    fn set_taints(&mut self, row: Row, taints: &[Taint]) -> bool {
        // When a taint was added matters to its eviction only.
        let same = |a: &Taint, b: &Taint| a.key == b.key && a.value == b.value && a.effect == b.effect;
        let mut ids = Vec::with_capacity(taints.len());
        let mut hard = Bits::default();
        for taint in taints {
            let id = self.known_taints.iter().position(|t| same(t, taint)).unwrap_or_else(|| {
                self.vocabulary += 1;
                self.known_taints.push(Taint { time_added: None, ..taint.clone() });
                self.known_taints.len() - 1
            });
            if taint.effect == "NoSchedule" || taint.effect == "NoExecute" {
                hard.set(id);
            }
            ids.push(id);
        }
        self.hard_taints[row] = hard;
        let changed = self.taints[row] != ids;
        self.taints[row] = ids;
        changed
    }

    /// Removes a node. Pods bound to it stay known until they are gone.
    pub fn remove_node(&mut self, name: &str) {
        let Some(row) = self.rows.get(name).copied() else {
            return;
        };
        if self.live[row] {
            self.live[row] = false;
            self.node_count -= 1;
        }
        self.set_labels(row, BTreeMap::new());
        self.set_taints(row, &[]);
        self.set_images(row, HashMap::new());
        self.note(Event::Node { row, reach: true });
        self.release(row);
    }

    fn release(&mut self, row: Row) {
        if !self.live[row] && self.pods[row].is_empty() && !self.names[row].is_empty() {
            let name = std::mem::take(&mut self.names[row]);
            self.rows.remove(&name);
            self.holes.push(row);
        }
    }

    fn set_labels(&mut self, row: Row, labels: BTreeMap<String, String>) -> bool {
        if self.labels[row] == labels {
            return false;
        }
        let old = std::mem::take(&mut self.labels[row]);
        for key in old.keys().filter(|k| !labels.contains_key(*k)) {
            if let Some(value) = self.keys.get(key).and_then(|k| self.columns[*k].values.get_mut(row)) {
                *value = 0;
            }
        }
        for (key, value) in &labels {
            if old.get(key) == Some(value) {
                continue;
            }
            let id = *self.keys.entry(key.clone()).or_insert_with(|| {
                self.columns.push(LabelColumn { names: vec![String::new()], ..LabelColumn::default() });
                self.vocabulary += 1;
                self.columns.len() - 1
            });
            let column = &mut self.columns[id];
            let id = *column.ids.entry(value.clone()).or_insert_with(|| {
                self.vocabulary += 1;
                column.names.push(value.clone());
                ValueId::try_from(column.names.len() - 1).unwrap_or(ValueId::MAX)
            });
            if column.values.len() <= row {
                column.values.resize(row + 1, 0);
            }
            column.values[row] = id;
        }
        self.labels[row] = labels;
        true
    }

    fn set_images(&mut self, row: Row, images: HashMap<String, i64>) -> bool {
        if self.images[row] == images {
            return false;
        }
        for image in std::mem::take(&mut self.images[row]).into_keys() {
            if let Some(n) = self.image_nodes.get_mut(&image) {
                *n -= 1;
                if *n == 0 {
                    self.image_nodes.remove(&image);
                }
            }
        }
        for image in images.keys() {
            *self.image_nodes.entry(image.clone()).or_default() += 1;
        }
        self.images[row] = images;
        true
    }

    /// Puts a pod on a node, replacing what is known of it. Where it is there already and nothing changed that a decision
    /// looks at (a report of its agent, mostly), that is no event.
    pub fn place(&mut self, pod: Arc<Occupant>, node: &str) {
        if let Some(row) = self.placed.get(&pod.uid).copied().filter(|row| self.names[*row] == node)
            && let Some(there) = self.pods[row].iter_mut().find(|there| there.uid == pod.uid)
            && there.weighs_as(&pod)
        {
            *there = pod;
            return;
        }
        self.displace(&pod.uid);
        let row = self.row_for(node);
        self.placed.insert(pod.uid.clone(), row);
        self.count(row, &pod, 1);
        self.note(Event::Placed(row, pod.clone()));
        self.pods[row].push(pod);
    }

    /// Takes a pod off its node.
    pub fn displace(&mut self, uid: &str) -> Option<Arc<Occupant>> {
        let row = self.placed.remove(uid)?;
        let at = self.pods[row].iter().position(|p| &*p.uid == uid)?;
        let pod = self.pods[row].swap_remove(at);
        self.count(row, &pod, -1);
        self.note(Event::Gone(row, pod.clone()));
        self.release(row);
        Some(pod)
    }

    fn count(&mut self, row: Row, pod: &Occupant, sign: i64) {
        self.requested[row].add(&pod.requests, sign);
        self.score_cpu_milli[row] += sign * pod.score_cpu_milli;
        self.score_memory[row] += sign * pod.score_memory;
        let step = |n: &mut u32| if sign > 0 { *n += 1 } else { *n -= 1 };
        if !pod.anti_affinity.is_empty() {
            step(&mut self.anti_affine[row]);
        }
        if !(pod.affinity.is_empty() && pod.anti_affinity.is_empty() && pod.preferred.is_empty()) {
            step(&mut self.affine[row]);
            if sign > 0 {
                self.affine_pods += 1;
            } else {
                self.affine_pods -= 1;
            }
        }
    }

    /// Every node is within its allocatable: `None`, or the name of one that is not. Checked by simulations.
    #[must_use]
    pub fn overcommitted(&self) -> Option<&str> {
        self.node_rows()
            .find(|r| {
                let (a, q) = (&self.allocatable[*r], &self.requested[*r]);
                q.cpu_milli > a.cpu_milli || q.memory > a.memory || q.ephemeral > a.ephemeral || q.pods > a.pods
            })
            .map(|r| self.names[r].as_str())
    }
}
