//! What a pod's spec says about a node's own labels, name, taints and cordon, compiled against the interned values of
//! the snapshot: asking it of a node tests bits.

use crate::bits::Bits;
use crate::profile::Profile;
use crate::snapshot::{KeyId, Row, Snapshot};
use gantry_api::core::placement::{NODE_NAME_FIELD, holds, tolerates};
use gantry_api::k8s_openapi::api::core::v1::{
    NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

/// One requirement on a node.
#[derive(Clone, Debug)]
enum Test {
    /// The label's value is one of these; the number 0 stands for "absent".
    Label(Option<KeyId>, Bits),
    /// The node's name meets the requirement.
    Name(NodeSelectorRequirement),
    /// Nothing meets it.
    Never,
}

impl Test {
    fn holds(&self, snapshot: &Snapshot, row: Row) -> bool {
        match self {
            Test::Label(key, accepted) => accepted.has(key.map_or(0, |k| snapshot.value(k, row) as usize)),
            Test::Name(requirement) => holds(requirement, Some(&snapshot.names[row])),
            Test::Never => false,
        }
    }
}

fn label_test(snapshot: &Snapshot, key: &str, wanted: impl Fn(Option<&str>) -> bool) -> Test {
    let id = snapshot.key(key);
    let values = id.map_or(&[][..], |id| snapshot.values(id));
    let of = |n: usize| wanted(values.get(n).filter(|_| n > 0).map(String::as_str));
    Test::Label(id, Bits::of(values.len().max(1), of))
}

/// A term without requirements selects nothing.
fn term(snapshot: &Snapshot, term: &NodeSelectorTerm) -> Vec<Test> {
    let (by_label, by_field) =
        (term.match_expressions.as_deref().unwrap_or_default(), term.match_fields.as_deref().unwrap_or_default());
    if by_label.is_empty() && by_field.is_empty() {
        return vec![Test::Never];
    }
    let labels = by_label.iter().map(|r| label_test(snapshot, &r.key, |value| holds(r, value)));
    let fields = by_field.iter().map(|r| if r.key == NODE_NAME_FIELD { Test::Name(r.clone()) } else { Test::Never });
    labels.chain(fields).collect()
}

fn terms(snapshot: &Snapshot, selector: &NodeSelector) -> Vec<Vec<Test>> {
    selector.node_selector_terms.iter().map(|t| term(snapshot, t)).collect()
}

fn all(tests: &[Test], snapshot: &Snapshot, row: Row) -> bool {
    tests.iter().all(|t| t.holds(snapshot, row))
}

/// Whether any of the alternatives holds, where there are any.
fn any(alternatives: Option<&[Vec<Test>]>, snapshot: &Snapshot, row: Row) -> bool {
    alternatives.is_none_or(|alternatives| alternatives.iter().any(|tests| all(tests, snapshot, row)))
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Reach {
    vocabulary: usize,
    cordon_tolerated: bool,
    tolerated: Bits,
    disliked: Bits,
    selector: Vec<Test>,
    /// Alternatives, each of which suffices.
    required: Option<Vec<Vec<Test>>>,
    /// The same, added by the profile.
    enforced: Option<Vec<Vec<Test>>>,
    preferred: Vec<(i64, Vec<Test>)>,
}

impl Reach {
    /// Compiles a spec, with the node affinity that the profile adds to every pod's.
    #[must_use]
    pub fn new(snapshot: &Snapshot, spec: &PodSpec, profile: &Profile) -> Self {
        let tolerations = spec.tolerations.as_deref().unwrap_or_default();
        let taints = snapshot.known_taints();
        let tolerated_by = |taint: &Taint, which: fn(&Toleration) -> bool| {
            tolerations.iter().filter(|t| which(t)).any(|t| tolerates(t, taint))
        };
        let for_scores = |t: &Toleration| matches!(t.effect.as_deref(), None | Some("" | "PreferNoSchedule"));
        let cordon =
            Taint { key: "node.kubernetes.io/unschedulable".into(), effect: "NoSchedule".into(), ..Default::default() };
        let own = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
        let required = |affinity: Option<&NodeAffinity>| {
            let selector = affinity?.required_during_scheduling_ignored_during_execution.as_ref()?;
            Some(terms(snapshot, selector))
        };
        let both = profile.added_affinity.iter().chain(own);
        let selector = spec.node_selector.iter().flatten();
        Self {
            vocabulary: snapshot.vocabulary(),
            cordon_tolerated: tolerated_by(&cordon, |_| true),
            tolerated: Bits::of(taints.len(), |n| tolerated_by(&taints[n], |_| true)),
            disliked: Bits::of(taints.len(), |n| {
                taints[n].effect == "PreferNoSchedule" && !tolerated_by(&taints[n], for_scores)
            }),
            selector: selector.map(|(k, v)| label_test(snapshot, k, |have| have == Some(v))).collect(),
            required: required(own),
            enforced: required(profile.added_affinity.as_ref()),
            preferred: both
                .flat_map(|a| a.preferred_during_scheduling_ignored_during_execution.iter().flatten())
                .map(|t| (i64::from(t.weight), term(snapshot, &t.preference)))
                .collect(),
        }
    }

    /// Whether the snapshot knows no value that this was not compiled with.
    #[must_use]
    pub fn is_current(&self, snapshot: &Snapshot) -> bool {
        self.vocabulary == snapshot.vocabulary()
    }

    /// Whether node selector and required node affinity admit the node.
    #[must_use]
    pub fn admits(&self, snapshot: &Snapshot, row: Row) -> bool {
        all(&self.selector, snapshot, row) && any(self.required.as_deref(), snapshot, row)
    }

    /// Whether the node affinity that the profile adds admits the node.
    #[must_use]
    pub fn is_allowed(&self, snapshot: &Snapshot, row: Row) -> bool {
        any(self.enforced.as_deref(), snapshot, row)
    }

    /// Whether the node is not cordoned, or the pod tolerates that.
    #[must_use]
    pub fn accepts_cordon(&self, snapshot: &Snapshot, row: Row) -> bool {
        !snapshot.unschedulable[row] || self.cordon_tolerated
    }

    /// Whether every NoSchedule and NoExecute taint of the node is tolerated.
    #[must_use]
    pub fn tolerates(&self, snapshot: &Snapshot, row: Row) -> bool {
        snapshot.hard_taints[row].within(&self.tolerated)
    }

    /// The taints of the node that keep the pod away.
    pub fn untolerated<'a>(&'a self, snapshot: &'a Snapshot, row: Row) -> impl Iterator<Item = &'a Taint> {
        let ids = snapshot.taints[row].iter();
        let ids = ids.filter(move |id| snapshot.hard_taints[row].has(**id) && !self.tolerated.has(**id));
        ids.map(|id| &snapshot.known_taints()[*id])
    }

    /// PreferNoSchedule taints of the node that the pod does not tolerate.
    #[must_use]
    pub fn disliked(&self, snapshot: &Snapshot, row: Row) -> i64 {
        let n = snapshot.taints[row].iter().filter(|id| self.disliked.has(**id)).count();
        i64::try_from(n).unwrap_or(i64::MAX)
    }

    /// Sum of the weights of the preferred terms that select the node.
    #[must_use]
    pub fn preference(&self, snapshot: &Snapshot, row: Row) -> i64 {
        self.preferred.iter().filter(|(_, t)| all(t, snapshot, row)).map(|(weight, _)| weight).sum()
    }

    /// Whether the pod prefers any nodes by their labels.
    #[must_use]
    pub fn has_preferences(&self) -> bool {
        !self.preferred.is_empty()
    }
}
