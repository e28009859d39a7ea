//! The sets that rules look addresses up in, kept up with pods and namespaces.

use crate::compile::{Endpoint, Labels, Scope, SetKey};
use gantry_network::Protocol;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// An element: an address, in sets of named ports with a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Member {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: Option<(Protocol, u16)>,
}

/// One set.
#[derive(Debug)]
pub(crate) struct SetState {
    /// Its number, which is in its name.
    pub number: u32,
    /// How many chains use it.
    users: usize,
    /// How many pods are behind each element: an address may be known from two sources for a moment.
    members: HashMap<Member, u32>,
    /// Elements that changed, and whether they were in before.
    touched: HashMap<Member, bool>,
    /// Namespaces in its scope, where that is a selection.
    namespaces: HashSet<Arc<str>>,
    /// Whether it is not in the kernel yet.
    new: bool,
}

/// Where pods and namespaces are known.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub namespaces: HashMap<Arc<str>, Labels>,
    endpoints: HashMap<Arc<str>, Endpoint>,
    by_namespace: HashMap<Arc<str>, HashSet<Arc<str>>>,
}

impl World {
    fn endpoints_in(&self, namespace: &str) -> impl Iterator<Item = &Endpoint> {
        self.by_namespace.get(namespace).into_iter().flatten().filter_map(|key| self.endpoints.get(key))
    }

    /// Puts a pod in or takes it out; answers the one before.
    fn put(&mut self, key: &Arc<str>, endpoint: Option<Endpoint>) -> Option<Endpoint> {
        let old = match endpoint {
            Some(endpoint) => {
                self.by_namespace.entry(endpoint.namespace.clone()).or_default().insert(key.clone());
                self.endpoints.insert(key.clone(), endpoint)
            }
            None => self.endpoints.remove(key),
        };
        if let Some(old) = old.as_ref().filter(|_| !self.endpoints.contains_key(key))
            && let Some(keys) = self.by_namespace.get_mut(&old.namespace)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.by_namespace.remove(&old.namespace);
            }
        }
        old
    }
}

/// What changed in the sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetChange {
    /// The set's name.
    pub name: String,
    /// Elements to remove.
    pub remove: Vec<Member>,
    /// Elements to add.
    pub add: Vec<Member>,
}

/// The name of a set.
fn name(key: &SetKey, number: u32) -> String {
    match key {
        SetKey::Pods { .. } => format!("pods-{number}"),
        SetKey::Ranges(_) => format!("blocks-{number}"),
        SetKey::Named { .. } => format!("ports-{number}"),
    }
}

impl SetState {
    fn count(&mut self, member: Member, more: bool) {
        let before = self.members.get(&member).copied().unwrap_or(0);
        let now = if more { before + 1 } else { before.saturating_sub(1) };
        if now == 0 {
            self.members.remove(&member);
        } else {
            self.members.insert(member, now);
        }
        if (before == 0) != (now == 0) {
            self.touched.entry(member).or_insert(before != 0);
        }
    }

    fn covers(&self, key: &SetKey, endpoint: &Endpoint) -> bool {
        match key {
            SetKey::Pods { scope, pods } => {
                let inside = match scope {
                    Scope::One(namespace) => *namespace == endpoint.namespace,
                    Scope::Selected(_) => self.namespaces.contains(&endpoint.namespace),
                };
                inside && pods.matches(&endpoint.labels)
            }
            SetKey::Named { .. } => true,
            SetKey::Ranges(_) => false,
        }
    }

    /// Counts a pod in or out.
    fn change(&mut self, key: &SetKey, endpoint: &Endpoint, more: bool) {
        if !self.covers(key, endpoint) {
            return;
        }
        for address in endpoint.addresses.iter().copied() {
            match key {
                SetKey::Pods { .. } => self.count(Member { address, port: None }, more),
                SetKey::Ranges(_) => {}
                SetKey::Named { name, protocol } => {
                    let own = endpoint.ports.iter().filter(|(n, p, _)| n == name && p == protocol);
                    for (_, protocol, number) in own {
                        self.count(Member { address, port: Some((*protocol, *number)) }, more);
                    }
                }
            }
        }
    }
}

/// All sets in use.
#[derive(Debug, Default)]
pub(crate) struct Sets {
    pub world: World,
    sets: HashMap<SetKey, SetState>,
    last_number: u32,
    /// Sets whose elements changed.
    touched: HashSet<SetKey>,
    /// Sets that nobody may be using any more.
    unused: HashSet<SetKey>,
}

impl Sets {
    /// Notes one more user; answers the set's name.
    pub(crate) fn acquire(&mut self, key: &SetKey) -> String {
        if let Some(set) = self.sets.get_mut(key) {
            set.users += 1;
            return name(key, set.number);
        }
        self.last_number += 1;
        let mut set = SetState {
            number: self.last_number,
            users: 1,
            members: HashMap::new(),
            touched: HashMap::new(),
            namespaces: HashSet::new(),
            new: true,
        };
        match key {
            SetKey::Pods { scope: Scope::One(namespace), .. } => {
                self.world.endpoints_in(namespace).for_each(|e| set.change(key, e, true));
            }
            SetKey::Pods { scope: Scope::Selected(selector), .. } => {
                let inside = self.world.namespaces.iter().filter(|(_, labels)| selector.matches(labels));
                set.namespaces = inside.map(|(namespace, _)| namespace.clone()).collect();
                for namespace in set.namespaces.clone() {
                    self.world.endpoints_in(&namespace).for_each(|e| set.change(key, e, true));
                }
            }
            SetKey::Named { .. } => self.world.endpoints.values().for_each(|e| set.change(key, e, true)),
            SetKey::Ranges(_) => {}
        }
        let text = name(key, set.number);
        self.touched.insert(key.clone());
        self.sets.insert(key.clone(), set);
        text
    }

    /// Notes one user less.
    pub(crate) fn release(&mut self, key: &SetKey) {
        if let Some(set) = self.sets.get_mut(key) {
            set.users = set.users.saturating_sub(1);
            if set.users == 0 {
                self.unused.insert(key.clone());
            }
        }
    }

    /// Takes a pod's new state over.
    pub(crate) fn set_endpoint(&mut self, key: &Arc<str>, endpoint: Option<Endpoint>) {
        let new = endpoint.clone();
        let old = self.world.put(key, endpoint);
        if old == new {
            return;
        }
        for (key, set) in &mut self.sets {
            // In before out: what stays is not touched.
            if let Some(new) = &new {
                set.change(key, new, true);
            }
            if let Some(old) = &old {
                set.change(key, old, false);
            }
            if !set.touched.is_empty() {
                self.touched.insert(key.clone());
            }
        }
    }

    /// Takes a namespace's labels over.
    pub(crate) fn set_namespace(&mut self, namespace: &Arc<str>, labels: Option<Labels>) {
        for (key, set) in &mut self.sets {
            let SetKey::Pods { scope: Scope::Selected(selector), .. } = key else { continue };
            let inside = labels.as_ref().is_some_and(|l| selector.matches(l));
            if inside == set.namespaces.contains(namespace) {
                continue;
            }
            set.namespaces.insert(namespace.clone());
            self.world.endpoints_in(namespace).for_each(|e| set.change(key, e, inside));
            if !inside {
                set.namespaces.remove(namespace);
            }
            self.touched.insert(key.clone());
        }
        match labels {
            Some(labels) => self.world.namespaces.insert(namespace.clone(), labels),
            None => self.world.namespaces.remove(namespace),
        };
    }

    /// New sets, changed elements, and the names of sets to remove, since the last time.
    pub(crate) fn take(&mut self) -> (Vec<(String, SetKey)>, Vec<SetChange>, Vec<String>) {
        let (mut new, mut changes, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for key in self.unused.drain() {
            // It may have been taken up again since.
            if self.sets.get(&key).is_some_and(|set| set.users > 0) {
                continue;
            }
            self.touched.remove(&key);
            if let Some(set) = self.sets.remove(&key).filter(|set| !set.new) {
                gone.push(name(&key, set.number));
            }
        }
        for key in self.touched.drain() {
            let Some(set) = self.sets.get_mut(&key) else { continue };
            let mut change = SetChange { name: name(&key, set.number), ..SetChange::default() };
            for (member, before) in set.touched.drain() {
                match (before, set.members.contains_key(&member)) {
                    (false, true) => change.add.push(member),
                    (true, false) => change.remove.push(member),
                    _ => {}
                }
            }
            if std::mem::take(&mut set.new) {
                new.push((change.name.clone(), key));
            }
            if !change.add.is_empty() || !change.remove.is_empty() {
                changes.push(change);
            }
        }
        (new, changes, gone)
    }

    /// Every set and every element.
    pub(crate) fn everything(&self) -> (Vec<(String, SetKey)>, Vec<SetChange>) {
        let sets = self.sets.iter().map(|(key, set)| (name(key, set.number), key.clone())).collect();
        let changes = self.sets.iter().filter(|(_, set)| !set.members.is_empty()).map(|(key, set)| SetChange {
            name: name(key, set.number),
            remove: Vec::new(),
            add: set.members.keys().copied().collect(),
        });
        (sets, changes.collect())
    }

    /// How many sets there are.
    pub(crate) fn len(&self) -> usize {
        self.sets.len()
    }
}
