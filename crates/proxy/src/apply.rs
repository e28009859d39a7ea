//! Brings the kernel to the desired rules, element by element.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use gantry_network::{
    IpNet,
    nft::{Batch, Element, Family, Nft, NftError, Table},
};
use tracing::warn;

use crate::{
    compile::ServiceRules,
    lower::{Chain, Entry, FrontendKey, Leads, MAPS, Map, Numbers, lower},
    rules::{write_chain, write_table},
};

/// A service's rules to be, by the service's key; `None` when it is gone.
pub type Changes = BTreeMap<Arc<str>, Option<ServiceRules>>;

/// The proxy's table of one family, and what is in it.
pub struct Applier {
    nft: Nft,
    table: Table,
    cluster_cidrs: Vec<IpNet>,
    model: Model,
    /// Whether the table stands as the model says; otherwise it is built anew.
    in_kernel: bool,
}

impl Applier {
    /// For a family; `instance` tells the tables of several clusters on one machine apart. Touches nothing yet.
    pub fn new(nft: Nft, family: Family, instance: &str, cluster_cidrs: Vec<IpNet>) -> Applier {
        let table = Table { family, name: format!("gantry-proxy-{instance}") };
        Applier { nft, table, cluster_cidrs, model: Model::default(), in_kernel: false }
    }

    /// The table's family.
    pub fn family(&self) -> Family {
        self.table.family
    }

    /// Applies changes in one transaction: connections meet either the old rules or the new ones. The first time (and
    /// after a failure) the whole table is replaced by what is wanted, likewise at once.
    ///
    /// # Errors
    /// When the kernel refuses; the changes are kept, and the next call replaces the whole table.
    pub async fn apply(&mut self, changes: Changes) -> Result<(), NftError> {
        let difference = self.model.update(changes);
        let mut batch = Batch::new();
        if self.in_kernel {
            write_difference(&mut batch, &self.table, &difference);
        } else {
            batch.remove_table(&self.table);
            write_table(&mut batch, &self.table, &self.cluster_cidrs);
            write_difference(&mut batch, &self.table, &self.model.everything());
        }
        self.in_kernel = false;
        self.nft.commit(batch).await?;
        self.in_kernel = true;
        Ok(())
    }

    /// Removes the table.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove(&mut self) -> Result<(), NftError> {
        self.in_kernel = false;
        let mut batch = Batch::new();
        batch.remove_table(&self.table);
        self.nft.commit(batch).await
    }

    /// How many entries there are, over all maps.
    pub fn entries(&self) -> usize {
        self.model.entries.values().map(Vec::len).sum()
    }
}

/// What has to change in a table.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    pub chains_to_add: BTreeSet<Chain>,
    pub remove: Vec<Entry>,
    pub add: Vec<Entry>,
    pub chains_to_remove: BTreeSet<Chain>,
}

fn write_difference(batch: &mut Batch, table: &Table, difference: &Difference) {
    for chain in &difference.chains_to_add {
        write_chain(batch, table, chain);
    }
    let by_map = |entries: &[Entry]| {
        let mut sorted: BTreeMap<Map, Vec<Element>> = BTreeMap::new();
        for entry in entries {
            sorted.entry(entry.map).or_default().push(entry.element());
        }
        sorted
    };
    let (remove, add) = (by_map(&difference.remove), by_map(&difference.add));
    for map in MAPS {
        if let Some(elements) = remove.get(&map) {
            batch.delete_elements(table, map.name(), elements);
        }
        if let Some(elements) = add.get(&map) {
            batch.add_elements(table, map.name(), elements);
        }
    }
    for chain in &difference.chains_to_remove {
        let name = chain.to_string();
        batch.flush_chain(table, &name);
        batch.delete_chain(table, &name);
    }
}

/// Everything that is wanted in a table.
#[derive(Default)]
pub(crate) struct Model {
    entries: HashMap<Arc<str>, Vec<Entry>>,
    /// How many entries lead to each chain that is not fixed.
    chains: HashMap<Chain, usize>,
    /// Who has each frontend.
    owners: HashMap<FrontendKey, Arc<str>>,
    /// Services that want a frontend another has, with their rules.
    waiting: BTreeMap<Arc<str>, ServiceRules>,
    numbers: Numbers,
}

impl Model {
    /// Takes changes over and answers what follows from them.
    pub(crate) fn update(&mut self, mut changes: Changes) -> Difference {
        // First let go of what is no longer wanted, so that a frontend may change hands within one set of changes.
        let mut freed = BTreeSet::new();
        let wanted: HashMap<&Arc<str>, BTreeSet<FrontendKey>> =
            changes.iter().map(|(service, rules)| (service, rules.iter().flat_map(frontends).collect())).collect();
        self.owners.retain(|frontend, owner| {
            let keep = wanted.get(owner).is_none_or(|wanted| wanted.contains(frontend));
            if !keep {
                freed.insert(*frontend);
            }
            keep
        });
        drop(wanted);
        for (service, rules) in &self.waiting {
            if !changes.contains_key(service) && frontends(rules).any(|f| freed.contains(&f)) {
                changes.insert(service.clone(), Some(rules.clone()));
            }
        }

        let mut difference = Difference::default();
        let mut counts: BTreeMap<Chain, (usize, usize)> = BTreeMap::new();
        for (service, rules) in changes {
            let new = self.entries_of(&service, rules);
            let old = self.entries.remove(&service).unwrap_or_default();
            for entry in &old {
                if new.binary_search(entry).is_err() {
                    difference.remove.push(entry.clone());
                }
            }
            for entry in &new {
                if old.binary_search(entry).is_err() {
                    difference.add.push(entry.clone());
                }
            }
            for (entries, is_new) in [(&old, false), (&new, true)] {
                for chain in entries.iter().filter_map(chain_of) {
                    let before = self.chains.get(chain).copied().unwrap_or(0);
                    let (_, now) = counts.entry(chain.clone()).or_insert((before, before));
                    // Old entries are among those counted before, so this never goes below zero.
                    *now = if is_new { *now + 1 } else { now.saturating_sub(1) };
                }
            }
            if !new.is_empty() {
                self.entries.insert(service, new);
            }
        }
        for (chain, (before, now)) in counts {
            match (before, now) {
                (0, 0) => {}
                (0, _) => drop(difference.chains_to_add.insert(chain.clone())),
                (_, 0) => drop(difference.chains_to_remove.insert(chain.clone())),
                _ => {}
            }
            match now {
                0 => self.chains.remove(&chain),
                _ => self.chains.insert(chain, now),
            };
        }
        difference
    }

    /// All of it, as a difference to an empty table.
    pub(crate) fn everything(&self) -> Difference {
        Difference {
            chains_to_add: self.chains.keys().cloned().collect(),
            add: self.entries.values().flatten().cloned().collect(),
            ..Difference::default()
        }
    }

    fn entries_of(&mut self, service: &Arc<str>, rules: Option<ServiceRules>) -> Vec<Entry> {
        let was_waiting = self.waiting.remove(service).is_some();
        let rules = rules.unwrap_or_default();
        if !self.numbers.is_empty() {
            self.numbers.retain(service, &rules);
        }
        let mut contested = false;
        for frontend in frontends(&rules) {
            let owner = self.owners.entry(frontend).or_insert_with(|| service.clone());
            if owner != service {
                contested = true;
                if !was_waiting {
                    warn!(service = %service, %frontend, %owner, "another service has this address and port already");
                }
            }
        }
        let owners = &self.owners;
        let entries = lower(service, &rules, &mut self.numbers, |frontend| owners.get(frontend) == Some(service));
        if contested {
            self.waiting.insert(service.clone(), rules);
        }
        entries
    }
}

fn frontends(rules: &ServiceRules) -> impl Iterator<Item = FrontendKey> {
    rules.ports.iter().flat_map(|port| port.frontends.iter().map(|f| FrontendKey::new(port, f)))
}

fn chain_of(entry: &Entry) -> Option<&Chain> {
    match &entry.leads {
        Leads::Through(chain @ (Chain::Spread { .. } | Chain::Guard(_))) => Some(chain),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests;
