//! What is allocated: the devices of all claims, and how much of those that are shared.

use super::capacity::{self, Amounts};
use super::pool::DeviceId;
use gantry_api::k8s_openapi::api::resource::v1::AllocationResult;
use gantry_api::meta::quantity::Amount;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Devices that are allocated.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    /// Allocated to one claim alone, with how many say so: more than one only where something went wrong.
    whole: HashMap<DeviceId, usize>,
    /// Shared: how many shares there are, and what they take together.
    shared: HashMap<DeviceId, (usize, Amounts)>,
}

impl Taken {
    /// Whether the device is somebody's alone.
    #[must_use]
    pub fn is_taken(&self, id: &DeviceId) -> bool {
        self.whole.contains_key(id)
    }

    /// Whether anybody has any of the device.
    #[must_use]
    pub fn is_used(&self, id: &DeviceId) -> bool {
        self.whole.contains_key(id) || self.shared.contains_key(id)
    }

    /// What the shares of the device take.
    #[must_use]
    pub fn amounts(&self, id: &DeviceId) -> Option<&Amounts> {
        self.shared.get(id).map(|(_, amounts)| amounts)
    }

    /// Devices that are somebody's alone, each with how many claims have it.
    pub fn whole(&self) -> impl Iterator<Item = (&DeviceId, usize)> {
        self.whole.iter().map(|(id, n)| (id, *n))
    }

    fn count(&mut self, held: &Held, away: bool) {
        match &held.share {
            None => {
                let n = self.whole.entry(held.id.clone()).or_default();
                *n = if away { n.saturating_sub(1) } else { *n + 1 };
                if *n == 0 {
                    self.whole.remove(&held.id);
                }
            }
            Some(amounts) => {
                let (n, sum) = self.shared.entry(held.id.clone()).or_default();
                *n = if away { n.saturating_sub(1) } else { *n + 1 };
                capacity::add(sum, amounts, away);
                if *n == 0 {
                    self.shared.remove(&held.id);
                }
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    id: DeviceId,
    /// What a share takes; `None` for the whole device.
    share: Option<Amounts>,
}

/// Devices that are looked at only may be others' at the same time, and do not count.
fn held(allocation: &AllocationResult) -> Vec<Held> {
    let results = allocation.devices.iter().flat_map(|d| d.results.iter().flatten());
    let counted = results.filter(|r| r.admin_access != Some(true));
    let one = |r: &gantry_api::k8s_openapi::api::resource::v1::DeviceRequestAllocationResult| {
        let amounts = r.consumed_capacity.iter().flatten();
        let parsed = amounts.map(|(name, q)| (name.clone(), Amount::parse(&q.0).unwrap_or_default()));
        let share = r.share_id.as_ref().map(|_| parsed.collect::<BTreeMap<_, _>>());
        Held { id: DeviceId::new(&r.driver, &r.pool, &r.device), share }
    };
    counted.map(one).collect()
}

/// Who has what, by the UID of the claim.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: HashMap<String, Vec<Held>>,
    taken: Arc<Taken>,
}

impl Ledger {
    /// Notes what a claim has.
    pub fn set(&mut self, uid: &str, allocation: Option<&AllocationResult>) {
        let new = allocation.map(held).unwrap_or_default();
        let old = self.entries.get(uid).map(Vec::as_slice).unwrap_or_default();
        if old == new {
            return;
        }
        let taken = Arc::make_mut(&mut self.taken);
        old.iter().for_each(|h| taken.count(h, true));
        new.iter().for_each(|h| taken.count(h, false));
        if new.is_empty() {
            self.entries.remove(uid);
        } else {
            self.entries.insert(uid.to_owned(), new);
        }
    }

    /// What is taken now. Later changes do not show in it.
    #[must_use]
    pub fn taken(&self) -> Arc<Taken> {
        self.taken.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn allocation(results: Value) -> AllocationResult {
        serde_json::from_value(json!({"devices": {"results": results}})).unwrap()
    }

    #[test]
    fn counts() {
        let result = |device: &str, more: Value| {
            let mut r = json!({"request": "r", "driver": "d", "pool": "p", "device": device});
            r.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            r
        };
        let share = |n: &str| result("s", json!({"shareID": "x", "consumedCapacity": {"m": n}}));
        let id = |name: &str| DeviceId::new("d", "p", name);
        let mut ledger = Ledger::default();
        ledger.set("1", Some(&allocation(json!([result("a", json!({})), share("2")]))));
        ledger.set("2", Some(&allocation(json!([result("b", json!({"adminAccess": true})), share("3")]))));
        let taken = ledger.taken();
        assert!(taken.is_taken(&id("a")) && !taken.is_used(&id("b")) && !taken.is_taken(&id("s")));
        assert_eq!(taken.amounts(&id("s")).unwrap()["m"].to_string(), "5");
        ledger.set("1", None);
        assert!(taken.is_taken(&id("a")) && !ledger.taken().is_used(&id("a")));
        assert_eq!(ledger.taken().amounts(&id("s")).unwrap()["m"].to_string(), "3");
        ledger.set("2", None);
        assert!(!ledger.taken().is_used(&id("s")));
    }
}
