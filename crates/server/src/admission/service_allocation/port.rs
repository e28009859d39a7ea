//! The pool of node ports.

use gantry_api::entropy::Entropy;
use std::collections::HashMap;

/// Ports of one range with their owners.
pub(super) struct PortPool {
    range: (u16, u16),
    owners: HashMap<i32, String>,
    recent: Vec<i32>,
}

impl PortPool {
    pub(super) fn new(range: (u16, u16)) -> Self {
        Self { range, owners: HashMap::new(), recent: Vec::new() }
    }

    /// Counts in a port of a stored Service.
    pub(super) fn mark(&mut self, port: i32, owner: &str) {
        self.owners.entry(port).or_insert_with(|| owner.to_owned());
    }

    /// Takes this port.
    pub(super) fn allocate(&mut self, port: i32, owner: &str) -> Result<(), String> {
        match self.owners.get(&port) {
            Some(have) if have == owner => return Ok(()),
            Some(_) => return Err("provided port is already allocated".into()),
            None => {}
        }
        let (low, high) = self.range;
        if !(i32::from(low)..=i32::from(high)).contains(&port) {
            return Err(format!("provided port is not in the valid range. The range of valid ports is {low}-{high}"));
        }
        self.take(port, owner);
        Ok(())
    }

    fn take(&mut self, port: i32, owner: &str) {
        self.owners.insert(port, owner.to_owned());
        self.recent.push(port);
    }

    /// Takes any free port.
    pub(super) fn allocate_next(&mut self, owner: &str, entropy: &Entropy) -> Result<i32, String> {
        let (low, high) = (i32::from(self.range.0), i32::from(self.range.1));
        let length = high - low + 1;
        let start = i32::try_from(entropy.below(u64::try_from(length).unwrap_or(1))).unwrap_or(0);
        for i in 0..length {
            let port = low + (start + i) % length;
            if !self.owners.contains_key(&port) {
                self.take(port, owner);
                return Ok(port);
            }
        }
        Err("range is full".into())
    }

    /// Gives a port back, if it is the owner's.
    pub(super) fn release(&mut self, port: i32, owner: &str) {
        if self.owners.get(&port).is_some_and(|o| o == owner) {
            self.owners.remove(&port);
        }
    }

    /// A point to return to with [`Self::undo_since`].
    pub(super) fn mark_point(&self) -> usize {
        self.recent.len()
    }

    pub(super) fn undo_since(&mut self, point: usize) {
        for port in self.recent.split_off(point) {
            self.owners.remove(&port);
        }
    }

    /// Forgets the points.
    pub(super) fn settle(&mut self) {
        self.recent.clear();
    }
}
