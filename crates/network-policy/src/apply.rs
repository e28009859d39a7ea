//! Brings the kernel to what the model says, by what has changed.

use crate::compile::Direction;
use crate::model::{Difference, Model};
use crate::rules::{write_difference, write_table};
use gantry_network::IpNet;
use gantry_network::nft::{Batch, Element, Family, Nft, NftError, Table, Value};
use std::net::IpAddr;

/// The name of an instance's tables.
fn table_name(instance: &str) -> String {
    format!("gantry-policy-{instance}")
}

/// The table of one family.
pub struct Applier {
    nft: Nft,
    table: Table,
    pod_cidrs: Vec<IpNet>,
    /// Whether the table stands as the model says; otherwise it is built anew.
    in_kernel: bool,
}

impl Applier {
    /// For a family; `instance` tells the tables of several clusters on one machine apart, `pod_cidrs` are the ranges
    /// of this node's pods. Touches nothing yet.
    #[must_use]
    pub fn new(nft: Nft, family: Family, instance: &str, pod_cidrs: Vec<IpNet>) -> Applier {
        Applier { nft, table: Table { family, name: table_name(instance) }, pod_cidrs, in_kernel: false }
    }

    /// Closes this node's pods, unless an earlier run left a table: that holds for the pods it knew, and is closed to
    /// others.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn close(&self) -> Result<(), NftError> {
        if self.nft.tables_blocking(self.table.family)?.contains(&self.table.name) {
            return Ok(());
        }
        let mut batch = Batch::new();
        write_table(&mut batch, &self.table, &self.pod_cidrs);
        self.nft.commit(batch).await
    }

    /// Closes addresses that an earlier run may have left open for pods that had them before.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn forget(&self, addresses: &[IpAddr]) -> Result<(), NftError> {
        let mut batch = Batch::new();
        for direction in Direction::BOTH {
            let known = self.nft.elements(&self.table, direction.name()).await?;
            let is_one = |e: &&Element| addresses.iter().any(|a| Value::new().address(*a) == e.key);
            batch.delete_elements(&self.table, direction.name(), known.iter().filter(is_one));
        }
        self.nft.commit(batch).await
    }

    /// Applies changes in one transaction: packets meet either the old rules or the new ones. The first time (and after
    /// a failure) the whole table is replaced by what `model` says, likewise at once.
    ///
    /// # Errors
    /// When the kernel refuses; the next call replaces the whole table.
    pub async fn apply(&mut self, difference: &Difference, model: &Model) -> Result<(), NftError> {
        let mut batch = Batch::new();
        if self.in_kernel {
            write_difference(&mut batch, &self.table, difference);
        } else {
            batch.remove_table(&self.table);
            write_table(&mut batch, &self.table, &self.pod_cidrs);
            write_difference(&mut batch, &self.table, &model.everything());
        }
        self.in_kernel = false;
        self.nft.commit(batch).await?;
        self.in_kernel = true;
        Ok(())
    }
}

/// Removes the tables of an instance.
///
/// # Errors
/// When the kernel refuses.
pub(crate) async fn remove_tables(instance: &str) -> Result<(), NftError> {
    let nft = Nft::open()?;
    let mut batch = Batch::new();
    for family in [Family::Ipv4, Family::Ipv6] {
        batch.remove_table(&Table { family, name: table_name(instance) });
    }
    nft.commit(batch).await
}

#[cfg(test)]
mod tests;
