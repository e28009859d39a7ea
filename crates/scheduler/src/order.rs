//! Nodes that pass a class's own filters, by what they score by themselves. Kept as nodes change, so that the best of
//! fifty thousand is found as quickly as that of a hundred.

use crate::profile::Weights;
use crate::score::{Greatest, Parts, Raw};
use crate::snapshot::Row;
use std::collections::BTreeMap;

/// No place.
const NOWHERE: u32 = u32::MAX;

/// See the module.
#[derive(Debug)]
pub struct Order {
    weights: Weights,
    /// Rows by score. Some scores are shares of the greatest there is, as it was when they were computed.
    buckets: BTreeMap<i64, Vec<Row>>,
    /// Each row's score and its place among those of the same.
    places: Vec<(i64, u32)>,
    greatest: Greatest,
    /// Rows by the values whose greatest counts.
    disliked: BTreeMap<u16, usize>,
    preferences: BTreeMap<i32, usize>,
}

/// One more of a value.
fn more<T: Ord>(counts: &mut BTreeMap<T, usize>, value: T) {
    *counts.entry(value).or_default() += 1;
}

/// One less.
fn less<T: Ord>(counts: &mut BTreeMap<T, usize>, value: &T) {
    if let Some(n) = counts.get_mut(value) {
        *n -= 1;
        if *n == 0 {
            counts.remove(value);
        }
    }
}

impl Order {
    /// Of no rows yet.
    #[must_use]
    pub fn new(weights: Weights, rows: usize) -> Self {
        Self {
            weights,
            buckets: BTreeMap::new(),
            places: vec![(0, NOWHERE); rows],
            greatest: Greatest::default(),
            disliked: BTreeMap::new(),
            preferences: BTreeMap::new(),
        }
    }

    /// Puts a row in that is not.
    pub fn insert(&mut self, row: Row, raw: &Raw) {
        more(&mut self.disliked, raw.disliked);
        more(&mut self.preferences, raw.preference);
        self.put(row, raw);
    }

    fn put(&mut self, row: Row, raw: &Raw) {
        let score = Parts::of(raw, self.greatest, &self.weights).total();
        let bucket = self.buckets.entry(score).or_default();
        if self.places.len() <= row {
            self.places.resize(row + 1, (0, NOWHERE));
        }
        self.places[row] = (score, u32::try_from(bucket.len()).unwrap_or(NOWHERE));
        bucket.push(row);
    }

    /// Takes a row out that was put in with these values.
    pub fn remove(&mut self, row: Row, raw: &Raw) {
        let Some(place) = self.places.get_mut(row) else { return };
        let (score, at) = std::mem::replace(place, (0, NOWHERE));
        let Some(bucket) = self.buckets.get_mut(&score).filter(|_| at != NOWHERE) else { return };
        bucket.swap_remove(at as usize);
        match bucket.get(at as usize) {
            Some(moved) => self.places[*moved].1 = at,
            None if bucket.is_empty() => drop(self.buckets.remove(&score)),
            None => {}
        }
        less(&mut self.disliked, &raw.disliked);
        less(&mut self.preferences, &raw.preference);
    }

    /// Sorts anew where the greatest values are others than those that scores were computed with.
    pub fn settle(&mut self, raws: &[Raw]) {
        let disliked = self.disliked.last_key_value().map_or(0, |(n, _)| *n);
        let preference = self.preferences.last_key_value().map_or(0, |(n, _)| *n);
        let greatest = Greatest::of(disliked, preference);
        if greatest == self.greatest {
            return;
        }
        self.greatest = greatest;
        for row in std::mem::take(&mut self.buckets).into_values().flatten() {
            self.put(row, &raws[row]);
        }
    }

    /// The best rows that `accepts` accepts: the first such group of equals, from which `draw` draws where it begins.
    /// `accepts` is asked of one row after the other until it accepts one.
    pub fn best(&self, draw: &mut dyn FnMut(u64) -> u64, mut accepts: impl FnMut(Row) -> bool) -> Option<Row> {
        self.buckets.values().rev().find_map(|equals| {
            let from = usize::try_from(draw(equals.len() as u64)).unwrap_or(0);
            let (before, after) = equals.split_at(from);
            after.iter().chain(before).copied().find(|row| accepts(*row))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Profile;
    use gantry_api::entropy::Entropy;

    fn raw(preference: i32, disliked: u16, fit: u8) -> Raw {
        Raw { preference, disliked, fit, ..Raw::default() }
    }

    #[test]
    fn the_best_is_that_of_a_look_at_all() {
        let weights = Profile::new("p").weights;
        let entropy = Entropy::seeded(5);
        let below = |n: u64| usize::try_from(entropy.below(n)).unwrap();
        let mut order = Order::new(weights, 20);
        let mut raws = vec![Raw::default(); 40];
        let mut rows: Vec<Row> = Vec::new();
        for _ in 0..2_000 {
            let row = below(40);
            if let Some(at) = rows.iter().position(|r| *r == row) {
                rows.swap_remove(at);
                order.remove(row, &raws[row]);
            } else {
                let preference = i32::try_from(below(3) * 10).unwrap();
                raws[row] = raw(preference, u16::try_from(below(3)).unwrap(), u8::try_from(below(4)).unwrap());
                rows.push(row);
                order.insert(row, &raws[row]);
            }
            order.settle(&raws);
            let mut greatest = Greatest::default();
            rows.iter().for_each(|r| greatest.note(&raws[*r]));
            let score = |r: &Row| Parts::of(&raws[*r], greatest, &weights).total();
            let odd = |r: &Row| r % 2 == 1;
            let best = order.best(&mut |n| entropy.below(n), |_| true);
            assert_eq!(best.map(|r| score(&r)), rows.iter().map(score).max());
            let best = order.best(&mut |n| entropy.below(n), |r| odd(&r));
            assert!(best.is_none_or(|r| odd(&r)));
            assert_eq!(best.map(|r| score(&r)), rows.iter().filter(|r| odd(r)).map(score).max());
        }
    }

    #[test]
    fn equals_are_drawn_from() {
        let mut order = Order::new(Profile::new("p").weights, 3);
        (0..3).for_each(|row| order.insert(row, &raw(0, 0, 50)));
        let mut drawn: Vec<Option<Row>> = (0..3).map(|n| order.best(&mut |_| n, |_| true)).collect();
        drawn.sort_unstable();
        assert_eq!(drawn, [Some(0), Some(1), Some(2)]);
        assert_eq!(order.best(&mut |_| 2, |row| row == 1), Some(1), "those before the drawn one come after it");
    }
}
