//! How much of a device's capacity a request takes (KEP-5075).

use gantry_api::k8s_openapi::api::resource::v1::{CapacityRequestPolicy, CapacityRequirements, DeviceCapacity};
use gantry_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use gantry_api::meta::quantity::{Amount, Format};
use std::collections::BTreeMap;

const NANO: i128 = 1_000_000_000;

/// Amounts by the name of the capacity.
pub type Amounts = BTreeMap<String, Amount>;

/// What may be asked for at once.
#[derive(Clone, Debug)]
enum Valid {
    Anything,
    /// Rising.
    OneOf(Vec<Amount>),
    Range {
        min: Amount,
        max: Option<Amount>,
        step: Option<Amount>,
    },
}

/// A capacity of a device.
#[derive(Clone, Debug)]
pub struct Offer {
    /// All of it.
    pub value: Amount,
    /// What is taken by those who ask for no amount; all where `None`.
    default: Option<Amount>,
    valid: Valid,
}

/// Stored quantities are well-formed.
fn amount(quantity: &Quantity) -> Amount {
    Amount::parse(&quantity.0).unwrap_or_default()
}

/// The capacities of a device, parsed.
#[must_use]
pub fn offers(capacity: Option<&BTreeMap<String, DeviceCapacity>>) -> BTreeMap<String, Offer> {
    let valid = |policy: &CapacityRequestPolicy| match (&policy.valid_range, &policy.valid_values) {
        (Some(range), _) => Valid::Range {
            min: amount(&range.min),
            max: range.max.as_ref().map(amount),
            step: range.step.as_ref().map(amount),
        },
        (None, Some(values)) if !values.is_empty() => Valid::OneOf(values.iter().map(amount).collect()),
        _ => Valid::Anything,
    };
    let offer = |c: &DeviceCapacity| Offer {
        value: amount(&c.value),
        default: c.request_policy.as_ref().and_then(|p| p.default.as_ref()).map(amount),
        valid: c.request_policy.as_ref().map_or(Valid::Anything, valid),
    };
    capacity.into_iter().flatten().map(|(name, c)| (name.clone(), offer(c))).collect()
}

/// The amounts a request names.
#[must_use]
pub fn requested(capacity: Option<&CapacityRequirements>) -> Amounts {
    let requests = capacity.and_then(|c| c.requests.as_ref());
    requests.into_iter().flatten().map(|(name, q)| (name.clone(), amount(q))).collect()
}

/// An amount of billionths.
fn of_nano(nano: i128) -> Amount {
    match i64::try_from(nano / NANO) {
        Ok(units) if nano % NANO == 0 => Amount::from_units(units, Format::BinarySI),
        _ => Amount::parse(&format!("{nano}n")).unwrap_or_default(),
    }
}

impl Offer {
    /// What is taken where so much is asked for: at least that, rounded up to what may be had.
    fn taken(&self, wanted: Option<&Amount>) -> Amount {
        let Some(wanted) = wanted else { return self.default.unwrap_or(self.value) };
        match &self.valid {
            Valid::Anything => *wanted,
            Valid::OneOf(values) => values.iter().find(|v| *wanted <= **v).copied().unwrap_or(*wanted),
            Valid::Range { min, .. } if wanted < min => *min,
            Valid::Range { step: None, .. } => *wanted,
            Valid::Range { min, step: Some(step), .. } => {
                let (from, step) = (min.nano_value(), step.nano_value().max(1));
                let steps = (wanted.nano_value() - from + step - 1) / step;
                if (wanted.nano_value() - from) % step == 0 { *wanted } else { of_nano(from + step * steps) }
            }
        }
    }

    fn allows(&self, taken: &Amount) -> bool {
        if self.default.as_ref() == Some(taken) {
            return true;
        }
        match &self.valid {
            Valid::Anything => true,
            Valid::OneOf(values) => values.contains(taken),
            Valid::Range { min, max, step } => {
                let off = |step: &Amount| (taken.nano_value() - min.nano_value()) % step.nano_value().max(1) != 0;
                max.is_none_or(|max| *taken <= max) && !step.as_ref().is_some_and(off)
            }
        }
    }
}

/// What a request takes of a device, which may have been taken from before; `None` where it cannot have it.
#[must_use]
pub fn take(offers: &BTreeMap<String, Offer>, wanted: &Amounts, before: &[Option<&Amounts>]) -> Option<Amounts> {
    if wanted.keys().any(|name| !offers.contains_key(name)) {
        return None;
    }
    let mut out = Amounts::new();
    for (name, offer) in offers {
        let taken = offer.taken(wanted.get(name));
        let used = before.iter().flatten().filter_map(|amounts| amounts.get(name));
        let sum = used.fold(taken, |sum, a| sum.plus(a));
        if !offer.allows(&taken) || sum > offer.value {
            return None;
        }
        out.insert(name.clone(), taken);
    }
    Some(out)
}

/// Adds (or takes away again) what was taken.
pub fn add(to: &mut Amounts, taken: &Amounts, away: bool) {
    for (name, amount) in taken {
        let sum = to.entry(name.clone()).or_default();
        *sum = if away { sum.minus(amount) } else { sum.plus(amount) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn taken(policy: serde_json::Value, wanted: Option<&str>, before: Option<&str>) -> Option<String> {
        let capacity = json!({"memory": {"value": "10Gi", "requestPolicy": policy}});
        let offers = offers(Some(&serde_json::from_value(capacity).unwrap()));
        let one = |text: &str| Amounts::from([("memory".to_owned(), Amount::parse(text).unwrap())]);
        let before = before.map(one);
        let found = take(&offers, &wanted.map(one).unwrap_or_default(), &[None, before.as_ref()])?;
        Some(found["memory"].to_string())
    }

    #[test]
    fn amounts_are_rounded_up_to_what_may_be_had() {
        let some = |s: &str| Some(s.to_owned());
        assert_eq!(taken(json!(null), None, None), some("10Gi"));
        assert_eq!(taken(json!(null), None, Some("1")), None);
        assert_eq!(taken(json!(null), Some("3Gi"), Some("7Gi")), some("3Gi"));
        assert_eq!(taken(json!(null), Some("3Gi"), Some("8Gi")), None);
        let range = json!({"default": "1Gi", "validRange": {"min": "2Gi", "max": "8Gi", "step": "2Gi"}});
        assert_eq!(taken(range.clone(), None, None), some("1Gi"));
        assert_eq!(taken(range.clone(), Some("1"), None), some("2Gi"));
        assert_eq!(taken(range.clone(), Some("3Gi"), None), some("4Gi"));
        assert_eq!(taken(range.clone(), Some("4Gi"), None), some("4Gi"));
        assert_eq!(taken(range, Some("9Gi"), None), None);
        let values = json!({"default": "1Gi", "validValues": ["1Gi", "4Gi"]});
        assert_eq!(taken(values.clone(), Some("2Gi"), None), some("4Gi"));
        assert_eq!(taken(values, Some("5Gi"), None), None);
        let fine = json!({"validRange": {"min": "100m", "step": "50m"}});
        assert_eq!(taken(fine, Some("120m"), None), some("150m"));
    }

    #[test]
    fn what_is_not_there_cannot_be_had() {
        let wanted = Amounts::from([("memory".to_owned(), Amount::from_milli(1))]);
        assert_eq!(take(&BTreeMap::new(), &wanted, &[]), None);
        assert_eq!(take(&BTreeMap::new(), &Amounts::new(), &[]), Some(Amounts::new()));
    }
}
