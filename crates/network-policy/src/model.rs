//! What policies mean for the pods of this node: chains, sets and elements, and what changes in them.

use crate::compile::{Allow, Direction, Endpoint, Labels, Policy, Ports, SetKey};
use crate::sets::{SetChange, Sets};
use gantry_network::Protocol;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// The number of a policy, which is in the names of its chains.
type PolicyNumber = u32;
/// The policies that select a pod in a direction.
type Group = (Direction, Arc<[PolicyNumber]>);

/// Names of kernel objects are kept below this; a policy's own is in them for people who look.
const LONGEST_NAME: usize = 200;

/// A rule of a policy's chain: lets through what fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The set the peer is in; `None` is everybody.
    pub peers: Option<String>,
    /// The destination port; `None` is any, of any protocol.
    pub ports: Option<LinePorts>,
}

/// The destination ports of a [`Line`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinePorts {
    /// All of a protocol.
    Protocol(Protocol),
    /// These, both ends included.
    Range(Protocol, u16, u16),
    /// Those in a set of addresses with ports.
    Set(String),
}

/// The chain of a policy in a direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyChain {
    /// Its name.
    pub name: String,
    /// The direction.
    pub direction: Direction,
    /// Its rules.
    pub lines: Vec<Line>,
}

/// What becomes of a pod's connections in a direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// They are let through.
    Open,
    /// A chain decides.
    Chain(String),
}

/// What has to change in a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// Sets to make.
    pub new_sets: Vec<(String, SetKey)>,
    /// Elements of sets.
    pub elements: Vec<SetChange>,
    /// Chains of policies to make.
    pub new_chains: Vec<PolicyChain>,
    /// Chains of policies to write anew.
    pub rewritten_chains: Vec<PolicyChain>,
    /// Chains to make that jump to these and then drop.
    pub new_groups: Vec<(String, Vec<String>)>,
    /// Addresses of this node's pods that are no longer, or otherwise, dealt with.
    pub remove: Vec<(Direction, IpAddr)>,
    /// Addresses of this node's pods with what becomes of their connections.
    pub add: Vec<(Direction, IpAddr, Fate)>,
    /// Chains to remove, those that jump to others first.
    pub gone_chains: Vec<String>,
    /// Sets to remove.
    pub gone_sets: Vec<String>,
}

impl Difference {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Difference::default()
    }
}

/// A pod of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its labels; `None` while they are not known.
    pub labels: Option<Labels>,
}

#[derive(Debug)]
struct LocalState {
    pod: Local,
    /// The policies that select it, by direction.
    selected: BTreeMap<Direction, BTreeSet<PolicyNumber>>,
    /// What is in the kernel for it.
    fates: HashMap<Direction, Decided>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Decided {
    Open,
    By(Group),
}

#[derive(Debug)]
struct PolicyState {
    key: Arc<str>,
    policy: Policy,
}

/// The chain of a policy in a direction.
#[derive(Debug, Default)]
struct ChainState {
    name: String,
    users: usize,
    /// The sets its lines use.
    sets: Vec<SetKey>,
    lines: Vec<Line>,
}

impl ChainState {
    fn written(&self, direction: Direction) -> PolicyChain {
        PolicyChain { name: self.name.clone(), direction, lines: self.lines.clone() }
    }
}

#[derive(Debug)]
struct GroupState {
    name: String,
    users: usize,
}

/// Everything that is wanted in the kernel.
#[derive(Debug, Default)]
pub struct Model {
    sets: Sets,
    numbers: HashMap<Arc<str>, PolicyNumber>,
    policies: HashMap<PolicyNumber, PolicyState>,
    by_namespace: HashMap<Arc<str>, BTreeSet<PolicyNumber>>,
    local: HashMap<Arc<str>, LocalState>,
    chains: HashMap<(Direction, PolicyNumber), ChainState>,
    groups: HashMap<Group, GroupState>,
    last_number: u32,
    /// Pods of this node whose fate may have changed.
    dirty: HashSet<Arc<str>>,
    /// Policies whose rules have changed.
    rewritten: BTreeSet<PolicyNumber>,
    /// Addresses of pods that are gone, with what is in the kernel for them.
    detached: Vec<(Direction, IpAddr)>,
    /// Chains that may no longer be used.
    released: Vec<Group>,
}

impl Model {
    /// Takes a namespace's labels over; `None` when it is gone.
    pub fn set_namespace(&mut self, namespace: &Arc<str>, labels: Option<Labels>) {
        self.sets.set_namespace(namespace, labels);
    }

    /// Takes a pod over as a peer of others; `None` when it is gone or has no addresses.
    pub fn set_endpoint(&mut self, key: &Arc<str>, endpoint: Option<Endpoint>) {
        self.sets.set_endpoint(key, endpoint);
    }

    /// Takes a policy over; `None` when it is gone.
    pub fn set_policy(&mut self, key: &Arc<str>, policy: Option<Policy>) {
        let number = match (self.numbers.get(key), &policy) {
            (Some(number), _) => *number,
            (None, None) => return,
            (None, Some(_)) => {
                self.last_number += 1;
                self.numbers.insert(key.clone(), self.last_number);
                self.last_number
            }
        };
        let old = self.policies.get(&number).map(|p| &p.policy);
        if old.is_some() && old == policy.as_ref() {
            return;
        }
        let namespace = policy.as_ref().or(old).map(|p| p.namespace.clone()).unwrap_or_default();
        for (key, local) in self.local.iter_mut().filter(|(_, l)| l.pod.namespace == namespace) {
            let mut changed = local.pod.labels.is_none();
            for direction in Direction::BOTH {
                changed |= select(local, number, policy.as_ref(), direction);
            }
            if changed {
                self.dirty.insert(key.clone());
            }
        }
        let of_namespace = self.by_namespace.entry(namespace.clone()).or_default();
        match policy {
            Some(policy) => {
                of_namespace.insert(number);
                self.policies.insert(number, PolicyState { key: key.clone(), policy });
                self.rewritten.insert(number);
            }
            None => {
                of_namespace.remove(&number);
                if of_namespace.is_empty() {
                    self.by_namespace.remove(&namespace);
                }
                self.policies.remove(&number);
                self.numbers.remove(key);
            }
        }
    }

    /// Takes over that a pod of this node has these addresses. A pod that has others is one that came in its place.
    pub fn attach(&mut self, key: &Arc<str>, pod: Local) {
        if let Some(known) = self.local.get_mut(key)
            && known.pod.addresses == pod.addresses
        {
            let labels = pod.labels.or(known.pod.labels.take());
            known.pod.labels = None;
            return self.set_labels(key, labels);
        }
        self.detach(key);
        let labels = pod.labels.clone();
        let state = LocalState { pod: Local { labels: None, ..pod }, selected: BTreeMap::new(), fates: HashMap::new() };
        self.local.insert(key.clone(), state);
        self.dirty.insert(key.clone());
        self.set_labels(key, labels);
    }

    /// Takes the labels of a pod of this node over.
    pub fn set_labels(&mut self, key: &Arc<str>, labels: Option<Labels>) {
        let Some(local) = self.local.get_mut(key) else { return };
        if local.pod.labels == labels {
            return;
        }
        local.pod.labels = labels;
        for number in self.by_namespace.get(&local.pod.namespace).into_iter().flatten() {
            let policy = self.policies.get(number).map(|p| &p.policy);
            for direction in Direction::BOTH {
                select(local, *number, policy, direction);
            }
        }
        self.dirty.insert(key.clone());
    }

    /// Takes over that a pod of this node has no network any more.
    pub fn detach(&mut self, key: &Arc<str>) {
        let Some(local) = self.local.remove(key) else { return };
        self.dirty.remove(key);
        for (direction, fate) in local.fates {
            self.detached.extend(local.pod.addresses.iter().map(|address| (direction, *address)));
            if let Decided::By(group) = fate {
                self.leave(group);
            }
        }
    }

    /// The addresses of a pod of this node.
    #[must_use]
    pub fn addresses_of(&self, key: &str) -> Option<&[IpAddr]> {
        self.local.get(key).map(|l| l.pod.addresses.as_slice())
    }

    /// How many policies and sets there are.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.policies.len(), self.sets.len())
    }

    /// What has changed since the last time.
    pub fn take(&mut self) -> Difference {
        let mut difference = Difference { remove: std::mem::take(&mut self.detached), ..Difference::default() };
        let rewritten = std::mem::take(&mut self.rewritten);
        let mut dirty: Vec<Arc<str>> = self.dirty.drain().collect();
        dirty.sort_unstable();
        for key in dirty {
            for direction in Direction::BOTH {
                self.decide_anew(&key, direction, &mut difference);
            }
        }
        let made: HashSet<String> = difference.new_chains.iter().map(|c| c.name.clone()).collect();
        for number in rewritten {
            for direction in Direction::BOTH {
                self.rewrite(direction, number, &made, &mut difference);
            }
        }
        self.sweep(&mut difference);
        let (new_sets, elements, gone_sets) = self.sets.take();
        Difference { new_sets, elements, gone_sets, ..difference }
    }

    /// All of it, as a difference to an empty table. Only of use after [`take`](Self::take).
    #[must_use]
    pub fn everything(&self) -> Difference {
        let (new_sets, elements) = self.sets.everything();
        let fates = self.local.values().flat_map(|local| {
            local.fates.iter().flat_map(|(direction, decided)| {
                local.pod.addresses.iter().map(|a| (*direction, *a, self.fate(decided)))
            })
        });
        Difference {
            new_sets,
            elements,
            new_chains: self.chains.iter().map(|((direction, _), chain)| chain.written(*direction)).collect(),
            new_groups: self.groups.iter().map(|(group, state)| (state.name.clone(), self.jumps(group))).collect(),
            add: fates.collect(),
            ..Difference::default()
        }
    }

    fn fate(&self, decided: &Decided) -> Fate {
        match decided {
            Decided::Open => Fate::Open,
            Decided::By(group) => Fate::Chain(self.groups.get(group).map(|g| g.name.clone()).unwrap_or_default()),
        }
    }

    fn jumps(&self, (direction, policies): &Group) -> Vec<String> {
        policies.iter().filter_map(|number| self.chains.get(&(*direction, *number))).map(|c| c.name.clone()).collect()
    }

    /// What is wanted for a pod; `None` is closed: it is not known whether a policy selects it.
    fn decision(&self, local: &LocalState, direction: Direction) -> Option<Decided> {
        let selected = local.selected.get(&direction).filter(|s| !s.is_empty());
        if let Some(numbers) = selected {
            return Some(Decided::By((direction, numbers.iter().copied().collect())));
        }
        let policies = self.by_namespace.get(&local.pod.namespace).into_iter().flatten();
        let mut speaking =
            policies.filter(|n| self.policies.get(n).is_some_and(|p| p.policy.allows(direction).is_some()));
        (local.pod.labels.is_some() || speaking.next().is_none()).then_some(Decided::Open)
    }

    fn decide_anew(&mut self, key: &Arc<str>, direction: Direction, difference: &mut Difference) {
        let Some(local) = self.local.get(key) else { return };
        let wanted = self.decision(local, direction);
        let had = local.fates.get(&direction).cloned();
        if had == wanted {
            return;
        }
        let addresses = local.pod.addresses.clone();
        if had.is_some() {
            difference.remove.extend(addresses.iter().map(|a| (direction, *a)));
        }
        if let Some(wanted) = &wanted {
            if let Decided::By(group) = wanted {
                self.join(group, difference);
            }
            let fate = self.fate(wanted);
            difference.add.extend(addresses.iter().map(|a| (direction, *a, fate.clone())));
        }
        if let Some(local) = self.local.get_mut(key) {
            match wanted {
                Some(wanted) => local.fates.insert(direction, wanted),
                None => local.fates.remove(&direction),
            };
        }
        if let Some(Decided::By(group)) = had {
            self.leave(group);
        }
    }

    /// Notes that one more pod is in a group.
    fn join(&mut self, group: &Group, difference: &mut Difference) {
        if let Some(state) = self.groups.get_mut(group) {
            state.users += 1;
            return;
        }
        let (direction, policies) = group;
        for number in policies.iter() {
            match self.chains.get_mut(&(*direction, *number)) {
                Some(chain) => chain.users += 1,
                None => {
                    let mut chain = self.chain(*direction, *number);
                    chain.users = 1;
                    difference.new_chains.push(chain.written(*direction));
                    self.chains.insert((*direction, *number), chain);
                }
            }
        }
        self.last_number += 1;
        let name = format!("pods-{}-{}", direction.name(), self.last_number);
        difference.new_groups.push((name.clone(), self.jumps(group)));
        self.groups.insert(group.clone(), GroupState { name, users: 1 });
    }

    /// Notes that one pod less is in a group.
    fn leave(&mut self, group: Group) {
        if let Some(state) = self.groups.get_mut(&group) {
            state.users = state.users.saturating_sub(1);
            if state.users == 0 {
                self.released.push(group);
            }
        }
    }

    /// Removes what is no longer used.
    fn sweep(&mut self, difference: &mut Difference) {
        let (mut groups, mut chains) = (Vec::new(), Vec::new());
        for group in std::mem::take(&mut self.released) {
            // It may have been joined again since.
            if self.groups.get(&group).is_none_or(|state| state.users > 0) {
                continue;
            }
            groups.extend(self.groups.remove(&group).map(|state| state.name));
            let (direction, policies) = group;
            for number in policies.iter() {
                let Some(chain) = self.chains.get_mut(&(direction, *number)) else { continue };
                chain.users = chain.users.saturating_sub(1);
                if chain.users > 0 {
                    continue;
                }
                if let Some(chain) = self.chains.remove(&(direction, *number)) {
                    chain.sets.iter().for_each(|set| self.sets.release(set));
                    chains.push(chain.name);
                }
            }
        }
        // A chain that was written anew and is then not used needs no rules.
        let gone: HashSet<&String> = chains.iter().collect();
        difference.rewritten_chains.retain(|chain| !gone.contains(&chain.name));
        difference.gone_chains.extend(groups.into_iter().chain(chains));
    }

    /// The chain of a policy as it now is; its sets are acquired.
    fn chain(&mut self, direction: Direction, number: PolicyNumber) -> ChainState {
        let Some(PolicyState { key, policy }) = self.policies.get(&number) else { return ChainState::default() };
        let mut name = format!("{}-{number}-{key}", direction.name());
        name.truncate(LONGEST_NAME);
        let mut chain = ChainState { name, ..ChainState::default() };
        for allow in policy.allows(direction).unwrap_or_default() {
            lines(&mut self.sets, allow, &mut chain);
        }
        chain
    }

    /// Brings a policy's chain up to date, unless it was `made` just now.
    fn rewrite(
        &mut self,
        direction: Direction,
        number: PolicyNumber,
        made: &HashSet<String>,
        difference: &mut Difference,
    ) {
        let Some(old) = self.chains.get(&(direction, number)).map(|c| (c.name.clone(), c.users)) else { return };
        let (name, users) = old;
        if !self.policies.contains_key(&number) || made.contains(&name) {
            return;
        }
        let mut new = self.chain(direction, number);
        new.users = users;
        if let Some(old) = self.chains.get(&(direction, number)) {
            if old.lines != new.lines {
                difference.rewritten_chains.push(new.written(direction));
            }
            old.sets.iter().for_each(|set| self.sets.release(set));
        }
        self.chains.insert((direction, number), new);
    }
}

/// Notes whether a policy selects a pod; answers whether that is new.
fn select(local: &mut LocalState, number: PolicyNumber, policy: Option<&Policy>, direction: Direction) -> bool {
    let selects = policy.is_some_and(|p| {
        p.allows(direction).is_some() && local.pod.labels.as_ref().is_some_and(|l| p.selector.matches(l))
    });
    let numbers = local.selected.entry(direction).or_default();
    if selects { numbers.insert(number) } else { numbers.remove(&number) }
}

/// Appends the lines of one rule: each kind of peer with each kind of port.
fn lines(sets: &mut Sets, allow: &Allow, chain: &mut ChainState) {
    let mut acquire = |key: SetKey| {
        let name = sets.acquire(&key);
        chain.sets.push(key);
        name
    };
    let peers: Vec<Option<String>> = match &allow.peers {
        None => vec![None],
        Some(peers) => peers.iter().map(|key| Some(acquire(key.clone()))).collect(),
    };
    let ports: Vec<Option<LinePorts>> = match &allow.ports {
        None => vec![None],
        Some(ports) => ports
            .iter()
            .map(|port| {
                Some(match port {
                    Ports::Protocol(protocol) => LinePorts::Protocol(*protocol),
                    Ports::Range(protocol, first, last) => LinePorts::Range(*protocol, *first, *last),
                    Ports::Named(protocol, name) => {
                        LinePorts::Set(acquire(SetKey::Named { name: name.clone(), protocol: *protocol }))
                    }
                })
            })
            .collect(),
    };
    for peers in &peers {
        chain.lines.extend(ports.iter().map(|ports| Line { peers: peers.clone(), ports: ports.clone() }));
    }
}

#[cfg(test)]
pub(crate) mod tests;
