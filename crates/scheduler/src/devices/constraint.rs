//! What the devices of a claim must have in common, or must not.

use super::pool::Offered;
use gantry_api::k8s_openapi::api::resource::v1::{DeviceAttribute, DeviceConstraint};

/// A value that is compared. Versions are in their shortest form, so that equal ones are the same text.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scalar {
    String(String),
    Int(i64),
    Bool(bool),
    Version(String),
    /// A list, which nothing is equal to or different from.
    Other,
}

impl Scalar {
    fn of(a: &DeviceAttribute) -> Self {
        match a {
            DeviceAttribute { string: Some(s), .. } => Self::String(s.clone()),
            DeviceAttribute { int: Some(i), .. } => Self::Int(*i),
            DeviceAttribute { bool: Some(b), .. } => Self::Bool(*b),
            DeviceAttribute { version: Some(v), .. } => Self::Version(v.clone()),
            _ => Self::Other,
        }
    }
}

/// The attribute of this full name; the driver's own domain may be left out.
fn attribute<'a>(device: &'a Offered, name: &str) -> Option<&'a DeviceAttribute> {
    let attributes = device.device().attributes.as_ref()?;
    attributes.get(name).or_else(|| {
        let (domain, id) = name.split_once('/')?;
        attributes.get(id).filter(|_| domain == &*device.id.driver)
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Match,
    Distinct,
}

/// A constraint, and the values of the devices chosen so far.
#[derive(Clone, Debug)]
pub struct Constraint {
    sort: Sort,
    attribute: String,
    /// The requests it is about; all where empty.
    requests: Vec<String>,
    values: Vec<Scalar>,
}

impl Constraint {
    /// `None` for what is of no known sort.
    #[must_use]
    pub fn new(c: &DeviceConstraint) -> Option<Self> {
        let (sort, attribute) = match (&c.match_attribute, &c.distinct_attribute) {
            (Some(name), _) => (Sort::Match, name),
            (None, Some(name)) => (Sort::Distinct, name),
            (None, None) => return None,
        };
        let requests = c.requests.clone().unwrap_or_default();
        Some(Self { sort, attribute: attribute.clone(), requests, values: Vec::new() })
    }

    /// Whether it is about a request, or about this alternative of it.
    fn concerns(&self, request: &str, alternative: Option<&str>) -> bool {
        let whole = |name: &String| alternative.is_some_and(|a| name.split_once('/') == Some((request, a)));
        self.requests.is_empty() || self.requests.iter().any(|name| name == request || whole(name))
    }

    /// Chooses one more device, where that is allowed.
    pub fn add(&mut self, request: &str, alternative: Option<&str>, device: &Offered) -> bool {
        if !self.concerns(request, alternative) {
            return true;
        }
        let Some(value) = attribute(device, &self.attribute).map(Scalar::of) else { return false };
        let comparable = value != Scalar::Other;
        let allowed = match (self.sort, self.values.first()) {
            (_, None) => true,
            (Sort::Match, Some(first)) => comparable && *first == value,
            (Sort::Distinct, Some(_)) => comparable && !self.values.contains(&value),
        };
        if allowed {
            self.values.push(value);
        }
        allowed
    }

    /// Takes back the last device that was chosen for the request.
    pub fn remove(&mut self, request: &str, alternative: Option<&str>) {
        if self.concerns(request, alternative) {
            self.values.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pool::{Inventory, NodeFacts};
    use super::*;
    use serde_json::json;
    use std::collections::BTreeMap;
    use std::sync::Arc;

    #[test]
    fn same_and_different() {
        let slice = json!({"metadata": {"name": "s"}, "spec": {"driver": "d.io", "allNodes": true,
            "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}, "devices": [
                {"name": "a", "attributes": {"numa": {"int": 0}}},
                {"name": "b", "attributes": {"d.io/numa": {"int": 0}}},
                {"name": "c", "attributes": {"numa": {"int": 1}}},
                {"name": "d", "attributes": {"numa": {"string": "0"}}},
                {"name": "e"}]}});
        let inventory = Inventory::new(vec![Arc::new(serde_json::from_value(slice).unwrap())], &[]);
        let labels = BTreeMap::new();
        let pools = inventory.pools(NodeFacts { name: "n", labels: &labels });
        let [a, b, c, d, e] = pools[0].devices[..] else { panic!() };
        let of = |value| Constraint::new(&serde_json::from_value(value).unwrap());
        let mut same = of(json!({"matchAttribute": "d.io/numa", "requests": ["r"]})).unwrap();
        assert!(same.add("r", None, a) && same.add("r", Some("x"), b) && same.add("other", None, c));
        assert!(!same.add("r", None, c) && !same.add("r", None, d) && !same.add("r", None, e));
        same.remove("r", None);
        same.remove("r", None);
        assert!(same.add("r", None, c));
        let mut different = of(json!({"distinctAttribute": "d.io/numa", "requests": ["r/x"]})).unwrap();
        assert!(different.add("r", Some("x"), a) && different.add("r", Some("y"), a) && different.add("r", None, a));
        assert!(!different.add("r", Some("x"), b) && different.add("r", Some("x"), c));
        assert!(of(json!({})).is_none());
    }
}
