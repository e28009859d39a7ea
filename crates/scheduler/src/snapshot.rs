//! Nodes and the pods on them, in columns: one vector per fact, one row per node. Filters touch only the columns they
//! ask for.
//!
//! Rows of removed nodes are kept as holes and reused. Label values are interned per key, so that comparing topology
//! domains compares integers.

use crate::pod::{Amounts, PodInfo};
use gantry_api::k8s_openapi::api::core::v1::{Node, Taint};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A row of the snapshot.
pub type Row = usize;

/// An interned label value; 0 is "label absent".
pub type ValueId = u32;

/// Values of one label key, a row each.
#[derive(Clone, Debug, Default)]
struct LabelColumn {
    values: Vec<ValueId>,
    ids: HashMap<String, ValueId>,
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
    /// Taints.
    pub taints: Vec<Vec<Taint>>,
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
    pub pods: Vec<Vec<Arc<PodInfo>>>,
    /// Pods on the node that have required anti-affinity.
    pub anti_affine: Vec<u32>,
    /// Pods on the node that have any affinity.
    pub affine: Vec<u32>,
    /// Images on the node with their sizes in bytes.
    pub images: Vec<HashMap<String, i64>>,
    columns: HashMap<String, LabelColumn>,
    image_nodes: HashMap<String, usize>,
    /// Labels of namespaces, for namespace selectors.
    pub namespaces: HashMap<String, BTreeMap<String, String>>,
    placed: HashMap<String, Row>,
    node_count: usize,
}

impl Snapshot {
    /// Number of nodes.
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.node_count
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

    /// The row a pod occupies.
    #[must_use]
    pub fn row_of_pod(&self, uid: &str) -> Option<Row> {
        self.placed.get(uid).copied()
    }

    /// The value of a label at a row, 0 where absent.
    #[must_use]
    pub fn label_value(&self, key: &str, row: Row) -> ValueId {
        self.columns.get(key).and_then(|c| c.values.get(row).copied()).unwrap_or(0)
    }

    /// Number of nodes that hold an image.
    #[must_use]
    pub fn nodes_with_image(&self, image: &str) -> usize {
        self.image_nodes.get(image).copied().unwrap_or(0)
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

    /// Adds or replaces a node.
    pub fn set_node(&mut self, node: &Node) {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let row = self.row_for(name);
        if !self.live[row] {
            self.live[row] = true;
            self.node_count += 1;
        }
        let spec = node.spec.as_ref();
        self.unschedulable[row] = spec.and_then(|s| s.unschedulable).unwrap_or(false);
        self.taints[row] = spec.and_then(|s| s.taints.clone()).unwrap_or_default();
        let status = node.status.as_ref();
        self.allocatable[row] = Amounts::of_list(status.and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref())));
        self.set_labels(row, node.metadata.labels.clone().unwrap_or_default());
        let images = status.and_then(|s| s.images.as_deref()).unwrap_or_default();
        let images = images
            .iter()
            .flat_map(|i| i.names.iter().flatten().map(|n| (n.clone(), i.size_bytes.unwrap_or(0))))
            .collect();
        self.set_images(row, images);
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
        self.set_images(row, HashMap::new());
        self.release(row);
    }

    fn release(&mut self, row: Row) {
        if !self.live[row] && self.pods[row].is_empty() && !self.names[row].is_empty() {
            let name = std::mem::take(&mut self.names[row]);
            self.rows.remove(&name);
            self.holes.push(row);
        }
    }

    fn set_labels(&mut self, row: Row, labels: BTreeMap<String, String>) {
        let old = std::mem::take(&mut self.labels[row]);
        for key in old.keys().filter(|k| !labels.contains_key(*k)) {
            if let Some(value) = self.columns.get_mut(key).and_then(|c| c.values.get_mut(row)) {
                *value = 0;
            }
        }
        for (key, value) in &labels {
            let column = self.columns.entry(key.clone()).or_default();
            let next = ValueId::try_from(column.ids.len() + 1).unwrap_or(ValueId::MAX);
            let id = *column.ids.entry(value.clone()).or_insert(next);
            if column.values.len() <= row {
                column.values.resize(row + 1, 0);
            }
            column.values[row] = id;
        }
        self.labels[row] = labels;
    }

    fn set_images(&mut self, row: Row, images: HashMap<String, i64>) {
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
    }

    /// Puts a pod on a node, replacing what is known of it.
    pub fn place(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.displace(&pod.uid);
        let row = self.row_for(node);
        self.placed.insert(pod.uid.clone(), row);
        self.count(row, &pod, 1);
        self.pods[row].push(pod);
    }

    /// Takes a pod off its node.
    pub fn displace(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let row = self.placed.remove(uid)?;
        let at = self.pods[row].iter().position(|p| p.uid == uid)?;
        let pod = self.pods[row].swap_remove(at);
        self.count(row, &pod, -1);
        self.release(row);
        Some(pod)
    }

    fn count(&mut self, row: Row, pod: &PodInfo, sign: i64) {
        self.requested[row].add(&pod.requests, sign);
        self.score_cpu_milli[row] += sign * pod.score_cpu_milli;
        self.score_memory[row] += sign * pod.score_memory;
        let step = |n: &mut u32| if sign > 0 { *n += 1 } else { *n -= 1 };
        if !pod.anti_affinity.is_empty() {
            step(&mut self.anti_affine[row]);
        }
        if !(pod.affinity.is_empty() && pod.anti_affinity.is_empty() && pod.preferred.is_empty()) {
            step(&mut self.affine[row]);
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
