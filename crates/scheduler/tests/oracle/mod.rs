//! kube-scheduler's default profile written down once more, as slowly and plainly as its documentation reads: every
//! question is answered by looking at every pod and node. Shares no code with the scheduler.

use gantry_api::k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodAffinityTerm, Taint, TopologySpreadConstraint,
};
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::collections::{BTreeMap, BTreeSet};

type Labels = BTreeMap<String, String>;

/// Nodes, namespaces, and pods with the names of their nodes.
#[derive(Default)]
pub struct World {
    pub nodes: Vec<Node>,
    pub namespaces: BTreeMap<String, Labels>,
    pub placed: Vec<(Pod, String)>,
}

pub fn name(node: &Node) -> &str {
    node.metadata.name.as_deref().unwrap()
}

fn node_labels(node: &Node) -> Labels {
    node.metadata.labels.clone().unwrap_or_default()
}

fn pod_labels(pod: &Pod) -> Labels {
    pod.metadata.labels.clone().unwrap_or_default()
}

fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap()
}

/// Thousandths for `m`, bytes for `Mi`, else as it is.
fn number(quantity: &str) -> i64 {
    if let Some(milli) = quantity.strip_suffix('m') {
        return milli.parse().unwrap();
    }
    match quantity.strip_suffix("Mi") {
        Some(mi) => mi.parse::<i64>().unwrap() << 20,
        None => quantity.parse().unwrap(),
    }
}

fn allocatable(node: &Node, resource: &str) -> i64 {
    let list = node.status.as_ref().unwrap().allocatable.as_ref().unwrap();
    list.get(resource).map_or(0, |q| number(&q.0))
}

fn requests(pod: &Pod, resource: &str) -> i64 {
    let of = |c: &gantry_api::k8s_openapi::api::core::v1::Container| {
        c.resources.as_ref()?.requests.as_ref()?.get(resource).map(|q| number(&q.0))
    };
    pod.spec.as_ref().unwrap().containers.iter().filter_map(of).sum()
}

/// As scores count: a container that names none counts a default.
fn score_requests(pod: &Pod, resource: &str, default: i64) -> i64 {
    let containers = &pod.spec.as_ref().unwrap().containers;
    let missing = |c: &&gantry_api::k8s_openapi::api::core::v1::Container| {
        c.resources.as_ref().and_then(|r| r.requests.as_ref()).is_none_or(|r| !r.contains_key(resource))
    };
    requests(pod, resource) + default * i64::try_from(containers.iter().filter(missing).count()).unwrap()
}

fn meets(r: &NodeSelectorRequirement, value: Option<&String>) -> bool {
    let values = r.values.clone().unwrap_or_default();
    let int = |s: &String| s.parse::<i64>().ok();
    match r.operator.as_str() {
        "In" => value.is_some_and(|v| values.contains(v)),
        "NotIn" => value.is_none_or(|v| !values.contains(v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => value.and_then(int).is_some_and(|v| v > int(&values[0]).unwrap()),
        "Lt" => value.and_then(int).is_some_and(|v| v < int(&values[0]).unwrap()),
        other => panic!("operator {other}"),
    }
}

fn term_selects(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = node_labels(node);
    let (expressions, fields) =
        (term.match_expressions.clone().unwrap_or_default(), term.match_fields.clone().unwrap_or_default());
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|r| meets(r, labels.get(&r.key)))
        && fields.iter().all(|r| meets(r, Some(&name(node).to_owned())))
}

fn admits(pod: &Pod, node: &Node) -> bool {
    let spec = pod.spec.as_ref().unwrap();
    let labels = node_labels(node);
    if spec.node_selector.iter().flatten().any(|(k, v)| labels.get(k) != Some(v)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    match affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()) {
        Some(required) => required.node_selector_terms.iter().any(|t| term_selects(t, node)),
        None => true,
    }
}

fn tolerates(pod: &Pod, taint: &Taint) -> bool {
    let value = taint.value.clone().unwrap_or_default();
    pod.spec.as_ref().unwrap().tolerations.iter().flatten().any(|t| {
        let (key, effect) = (t.key.clone().unwrap_or_default(), t.effect.clone().unwrap_or_default());
        let operator = t.operator.clone().unwrap_or_default();
        (key.is_empty() || key == taint.key)
            && (effect.is_empty() || effect == taint.effect)
            && (operator == "Exists" || t.value.clone().unwrap_or_default() == value)
    })
}

fn taints(node: &Node) -> Vec<Taint> {
    node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default()
}

fn taints_allow(pod: &Pod, node: &Node) -> bool {
    taints(node).iter().all(|t| t.effect == "PreferNoSchedule" || tolerates(pod, t))
}

fn selects(selector: Option<&LabelSelector>, labels: &Labels) -> bool {
    let Some(selector) = selector else { return false };
    let equal = selector.match_labels.iter().flatten().all(|(k, v)| labels.get(k) == Some(v));
    equal
        && selector.match_expressions.iter().flatten().all(|r| {
            let (value, values) = (labels.get(&r.key), r.values.clone().unwrap_or_default());
            match r.operator.as_str() {
                "In" => value.is_some_and(|v| values.contains(v)),
                "NotIn" => value.is_none_or(|v| !values.contains(v)),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                other => panic!("operator {other}"),
            }
        })
}

fn ports(pod: &Pod) -> Vec<(i32, String)> {
    let containers = &pod.spec.as_ref().unwrap().containers;
    let all = containers.iter().flat_map(|c| c.ports.iter().flatten());
    all.filter_map(|p| Some((p.host_port?, p.protocol.clone().unwrap_or("TCP".into())))).collect()
}

type Required<'a> = (&'a [PodAffinityTerm], &'a [PodAffinityTerm]);

fn required(pod: &Pod) -> Required<'_> {
    let affinity = pod.spec.as_ref().unwrap().affinity.as_ref();
    let near = affinity.and_then(|a| a.pod_affinity.as_ref());
    let far = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
    (
        near.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref()).unwrap_or_default(),
        far.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref()).unwrap_or_default(),
    )
}

/// Preferred terms; those of anti-affinity with a negative weight.
fn preferred(pod: &Pod) -> Vec<(i64, PodAffinityTerm)> {
    let affinity = pod.spec.as_ref().unwrap().affinity.as_ref();
    let near = affinity.and_then(|a| a.pod_affinity.as_ref());
    let far = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
    let near = near.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.clone()).unwrap_or_default();
    let far = far.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.clone()).unwrap_or_default();
    let near = near.into_iter().map(|t| (i64::from(t.weight), t.pod_affinity_term));
    near.chain(far.into_iter().map(|t| (-i64::from(t.weight), t.pod_affinity_term))).collect()
}

impl World {
    fn node(&self, wanted: &str) -> Option<&Node> {
        self.nodes.iter().find(|n| name(n) == wanted)
    }

    fn pods_on<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = &'a Pod> {
        self.placed.iter().filter(move |(_, n)| n == name(node)).map(|(p, _)| p)
    }

    /// Whether a term of `owner` is about `other`.
    fn about(&self, term: &PodAffinityTerm, owner: &Pod, other: &Pod) -> bool {
        let mut named: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if named.is_empty() && term.namespace_selector.is_none() {
            named.insert(namespace(owner).to_owned());
        }
        let labels = self.namespaces.get(namespace(other)).cloned().unwrap_or_default();
        let by_selector = term.namespace_selector.as_ref().is_some_and(|s| selects(Some(s), &labels));
        (named.contains(namespace(other)) || by_selector) && selects(term.label_selector.as_ref(), &pod_labels(other))
    }

    fn same_domain(&self, key: &str, a: &Node, b: &str) -> bool {
        let Some(b) = self.node(b) else { return false };
        let (a, b) = (node_labels(a), node_labels(b));
        a.contains_key(key) && a.get(key) == b.get(key)
    }

    fn in_domain(&self, key: &str, node: &Node) -> impl Iterator<Item = &Pod> {
        self.placed.iter().filter(move |(_, at)| self.same_domain(key, node, at)).map(|(p, _)| p)
    }

    pub fn feasible(&self, pod: &Pod, node: &Node) -> bool {
        let cordon =
            Taint { key: "node.kubernetes.io/unschedulable".into(), effect: "NoSchedule".into(), ..Default::default() };
        let cordoned = node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false);
        (!cordoned || tolerates(pod, &cordon))
            && taints_allow(pod, node)
            && admits(pod, node)
            && !ports(pod).iter().any(|p| self.pods_on(node).any(|other| ports(other).contains(p)))
            && self.has_room(pod, node)
            && self.spreads(pod, node)
            && self.befriends(pod, node)
    }

    fn has_room(&self, pod: &Pod, node: &Node) -> bool {
        let count = i64::try_from(self.pods_on(node).count()).unwrap();
        count < allocatable(node, "pods")
            && ["cpu", "memory", "example.com/gpu"].iter().all(|r| {
                let taken: i64 = self.pods_on(node).map(|p| requests(p, r)).sum();
                requests(pod, r) == 0 || taken + requests(pod, r) <= allocatable(node, r)
            })
    }

    fn constraints(pod: &Pod, when: &str) -> Vec<TopologySpreadConstraint> {
        let all = pod.spec.as_ref().unwrap().topology_spread_constraints.clone().unwrap_or_default();
        all.into_iter().filter(|c| c.when_unsatisfiable == when).collect()
    }

    fn counted(c: &TopologySpreadConstraint, pod: &Pod, node: &Node) -> bool {
        (c.node_affinity_policy.as_deref() == Some("Ignore") || admits(pod, node))
            && (c.node_taints_policy.as_deref() != Some("Honor") || taints_allow(pod, node))
    }

    fn matching(&self, c: &TopologySpreadConstraint, pod: &Pod, node: &Node) -> i64 {
        let matches = |p: &&Pod| {
            p.metadata.deletion_timestamp.is_none()
                && namespace(p) == namespace(pod)
                && selects(c.label_selector.as_ref(), &pod_labels(p))
        };
        i64::try_from(self.pods_on(node).filter(matches).count()).unwrap()
    }

    fn spreads(&self, pod: &Pod, node: &Node) -> bool {
        let hard = Self::constraints(pod, "DoNotSchedule");
        let has_all = |n: &Node| hard.iter().all(|c| node_labels(n).contains_key(&c.topology_key));
        hard.iter().all(|c| {
            let mut domains: BTreeMap<String, i64> = BTreeMap::new();
            for other in self.nodes.iter().filter(|n| has_all(n) && Self::counted(c, pod, n)) {
                *domains.entry(node_labels(other)[&c.topology_key].clone()).or_default() +=
                    self.matching(c, pod, other);
            }
            let enough = i64::try_from(domains.len()).unwrap() >= i64::from(c.min_domains.unwrap_or(1));
            let least = if enough { domains.values().min().copied().unwrap_or(0) } else { 0 };
            let own = i64::from(selects(c.label_selector.as_ref(), &pod_labels(pod)));
            let labels = node_labels(node);
            let here = labels.get(&c.topology_key).map(|d| domains.get(d).copied().unwrap_or(0));
            here.is_some_and(|here| here + own - least <= i64::from(c.max_skew))
        })
    }

    fn befriends(&self, pod: &Pod, node: &Node) -> bool {
        let (near, far) = required(pod);
        let all = |p: &Pod| near.iter().all(|t| self.about(t, pod, p));
        if !near.is_empty() {
            let labelled = near.iter().all(|t| node_labels(node).contains_key(&t.topology_key));
            let met = near.iter().all(|t| self.in_domain(&t.topology_key, node).any(all));
            let has_key = |at: &str, t: &PodAffinityTerm| {
                self.node(at).is_some_and(|n| node_labels(n).contains_key(&t.topology_key))
            };
            let any = self.placed.iter().any(|(p, at)| all(p) && near.iter().any(|t| has_key(at, t)));
            if !(labelled && (met || !any && all(pod))) {
                return false;
            }
        }
        let hurt = far.iter().any(|t| self.in_domain(&t.topology_key, node).any(|p| self.about(t, pod, p)));
        let hurts = self.placed.iter().any(|(other, at)| {
            let terms = required(other).1;
            terms.iter().any(|t| self.about(t, other, pod) && self.same_domain(&t.topology_key, node, at))
        });
        !hurt && !hurts
    }

    /// The total of each of the feasible nodes.
    pub fn scores(&self, pod: &Pod, feasible: &[&Node]) -> Vec<i64> {
        let disliked = feasible.iter().map(|n| {
            let hurts = |t: &&Taint| t.effect == "PreferNoSchedule" && !tolerates(pod, t);
            i64::try_from(taints(n).iter().filter(hurts).count()).unwrap()
        });
        let disliked: Vec<i64> = disliked.collect();
        let most = disliked.iter().copied().max().unwrap_or(0);
        let taint = disliked.iter().map(|n| if most == 0 { 100 } else { 100 - 100 * n / most });
        let wanted: Vec<i64> = feasible.iter().map(|n| Self::preference(pod, n)).collect();
        let most = wanted.iter().copied().max().unwrap_or(0);
        let affinity = wanted.iter().map(|n| if most == 0 { 0 } else { 100 * n / most });
        let (spread, friends) = (self.spread_scores(pod, feasible), self.friend_scores(pod, feasible));
        let single = feasible.iter().map(|n| self.least(pod, n) + self.balanced(pod, n) + self.images(pod, n));
        let all = taint.zip(affinity).zip(spread).zip(friends).zip(single);
        all.map(|((((t, a), s), f), rest)| 3 * t + 2 * a + 2 * s + 2 * f + rest).collect()
    }

    fn preference(pod: &Pod, node: &Node) -> i64 {
        let affinity = pod.spec.as_ref().unwrap().affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
        let terms = affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
        let selected = terms.into_iter().flatten().filter(|t| term_selects(&t.preference, node));
        selected.map(|t| i64::from(t.weight)).sum()
    }

    fn least(&self, pod: &Pod, node: &Node) -> i64 {
        let of = |resource: &str, default: i64| {
            let taken: i64 = self.pods_on(node).map(|p| score_requests(p, resource, default)).sum();
            let (taken, have) = (taken + score_requests(pod, resource, default), allocatable(node, resource));
            if have == 0 { None } else { Some(if taken > have { 0 } else { (have - taken) * 100 / have }) }
        };
        let parts: Vec<i64> = [of("cpu", 100), of("memory", 200 << 20)].into_iter().flatten().collect();
        if parts.is_empty() { 0 } else { parts.iter().sum::<i64>() / i64::try_from(parts.len()).unwrap() }
    }

    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
    fn balanced(&self, pod: &Pod, node: &Node) -> i64 {
        if requests(pod, "cpu") == 0 && requests(pod, "memory") == 0 {
            return 0;
        }
        let of = |resource: &str| {
            let taken: i64 = self.pods_on(node).map(|p| requests(p, resource)).sum();
            let have = allocatable(node, resource);
            (have > 0).then(|| ((taken + requests(pod, resource)) as f64 / have as f64).min(1.0))
        };
        let deviation = match (of("cpu"), of("memory")) {
            (Some(cpu), Some(memory)) => ((cpu - memory) / 2.0).abs(),
            _ => 0.0,
        };
        ((1.0 - deviation) * 100.0) as i64
    }

    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
    fn images(&self, pod: &Pod, node: &Node) -> i64 {
        let size = |n: &Node, image: &str| {
            let images = n.status.as_ref().unwrap().images.clone().unwrap_or_default();
            let found = images.iter().find(|i| i.names.iter().flatten().any(|name| name == image));
            found.map(|i| i.size_bytes.unwrap())
        };
        let containers = &pod.spec.as_ref().unwrap().containers;
        let sum: i64 = containers
            .iter()
            .filter_map(|c| {
                let image = c.image.as_deref().unwrap();
                let having = self.nodes.iter().filter(|n| size(n, image).is_some()).count();
                let share = having as f64 / self.nodes.len() as f64;
                Some((size(node, image)? as f64 * share) as i64)
            })
            .sum();
        let (min, max) = (23 << 20, (1000 << 20) * i64::try_from(containers.len()).unwrap());
        100 * (sum.clamp(min, max) - min) / (max - min)
    }

    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
    fn spread_scores(&self, pod: &Pod, feasible: &[&Node]) -> Vec<i64> {
        let soft = Self::constraints(pod, "ScheduleAnyway");
        if soft.is_empty() {
            return vec![0; feasible.len()];
        }
        let has_all = |n: &Node| soft.iter().all(|c| node_labels(n).contains_key(&c.topology_key));
        let kept: Vec<&Node> = feasible.iter().copied().filter(|n| has_all(n)).collect();
        let raw = |node: &Node| {
            let mut sum = 0.0;
            for c in &soft {
                let own = &node_labels(node)[&c.topology_key];
                let (count, size) = if c.topology_key == "kubernetes.io/hostname" {
                    (self.matching(c, pod, node), kept.len())
                } else {
                    let domains: BTreeSet<String> =
                        kept.iter().map(|n| node_labels(n)[&c.topology_key].clone()).collect();
                    let there = |n: &&Node| has_all(n) && &node_labels(n)[&c.topology_key] == own;
                    let nodes = self.nodes.iter().filter(|n| there(n) && Self::counted(c, pod, n));
                    (nodes.map(|n| self.matching(c, pod, n)).sum(), domains.len())
                };
                sum += count as f64 * ((size + 2) as f64).ln() + f64::from(c.max_skew - 1);
            }
            sum.round() as i64
        };
        let all: Vec<i64> = kept.iter().map(|n| raw(n)).collect();
        let (min, max) = (all.iter().min().copied().unwrap_or(0), all.iter().max().copied().unwrap_or(0));
        let scale = |n: &&Node| match (has_all(n), max) {
            (false, _) => 0,
            (true, 0) => 100,
            (true, _) => 100 * (max + min - raw(n)) / max,
        };
        feasible.iter().map(scale).collect()
    }

    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
    fn friend_scores(&self, pod: &Pod, feasible: &[&Node]) -> Vec<i64> {
        let raw = |node: &Node| {
            let mut sum = 0;
            for (other, at) in &self.placed {
                let here = |t: &PodAffinityTerm| self.same_domain(&t.topology_key, node, at);
                let own = preferred(pod).into_iter().filter(|(_, t)| here(t) && self.about(t, pod, other));
                sum += own.map(|(weight, _)| weight).sum::<i64>();
                let theirs = preferred(other).into_iter().filter(|(_, t)| here(t) && self.about(t, other, pod));
                sum += theirs.map(|(weight, _)| weight).sum::<i64>();
                let hard = required(other).0.iter().filter(|t| here(t) && self.about(t, other, pod)).count();
                sum += i64::try_from(hard).unwrap();
            }
            sum
        };
        let all: Vec<i64> = feasible.iter().map(|n| raw(n)).collect();
        let (min, max) = (*all.iter().min().unwrap(), *all.iter().max().unwrap());
        let scale = |s: &i64| if max == min { 0.0 } else { 100.0 * ((s - min) as f64 / (max - min) as f64) };
        all.iter().map(|s| scale(s) as i64).collect()
    }
}
