//! Selectors and quantities.

use gantry_api::meta::fields::FieldSelector;
use gantry_api::meta::labels::Selector;
use gantry_api::meta::quantity::Amount;
use std::collections::BTreeMap;

pub(crate) const SELECTORS: &[&str] = &[
    "=",
    "==",
    "!=",
    "!",
    ",",
    " in ",
    " notin ",
    "(",
    ")",
    "in",
    "notin",
    ">",
    "<",
    "a",
    "a/b",
    "example.com/x",
    " ",
    "\\",
    "\\,",
    "metadata.name",
    "spec.nodeName",
    "é",
    "",
];
pub(crate) const QUANTITIES: &[&str] = &[
    "0",
    "1",
    "9",
    ".",
    "-",
    "+",
    "e",
    "E",
    "n",
    "u",
    "m",
    "k",
    "M",
    "G",
    "T",
    "P",
    "Ki",
    "Mi",
    "Gi",
    "Ti",
    "Pi",
    "Ei",
    "e3",
    "E-3",
    "e+10",
    "9223372036854775807",
    "000",
    "0.1",
    "i",
    "é",
    " ",
];

fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

/// A label selector; what it selects does not change when it is written and read again.
pub(crate) fn label_selector(data: &[u8]) {
    let Some(selector) = text(data).and_then(|t| Selector::parse(t).ok()) else { return };
    let written = selector.to_string();
    let again = Selector::parse(&written).unwrap_or_else(|e| panic!("{e}: {written:?}"));
    assert_eq!(again.to_string(), written);
    let labels: [BTreeMap<String, String>; 3] = [
        BTreeMap::new(),
        BTreeMap::from([("a".into(), "a".into())]),
        BTreeMap::from([("app".into(), "web".into()), ("tier".into(), "front".into()), ("n".into(), "5".into())]),
    ];
    for labels in &labels {
        assert_eq!(selector.matches(labels), again.matches(labels), "{written:?} {labels:?}");
    }
}

/// A field selector.
pub(crate) fn field_selector(data: &[u8]) {
    let Some(selector) = text(data).and_then(|t| FieldSelector::parse(t).ok()) else { return };
    let _ = selector.requires_exact_match("metadata.name");
    assert!(!selector.is_empty() || selector.matches(&[("metadata.name", "x")]), "an empty selector selects all");
}

/// A quantity; its canonical form has the same value and is its own canonical form.
pub(crate) fn quantity(data: &[u8]) {
    let Some(amount) = text(data).and_then(|t| Amount::parse(t).ok()) else { return };
    let written = amount.to_string();
    let again = Amount::parse(&written).unwrap_or_else(|e| panic!("{e}: {written:?}"));
    assert_eq!(again.nano_value(), amount.nano_value(), "{written:?}");
    assert_eq!(again.to_string(), written);
    let _ = (amount.value(), amount.milli_value(), amount.as_f64(), amount.sign());
    assert!(amount.minus(&amount).is_zero());
    let _ = amount.plus(&amount);
}

pub(crate) fn label_selector_seeds() -> Vec<Vec<u8>> {
    ["app=web,tier in (front, back),!old,n>3", "a!=b,c notin (d),e", "x==y, n<10", ""].map(|s| s.into()).into()
}

pub(crate) fn field_selector_seeds() -> Vec<Vec<u8>> {
    ["metadata.name=web,spec.nodeName!=a", "status.phase==Running", "a=b\\,c\\=d\\\\", ""].map(|s| s.into()).into()
}

pub(crate) fn quantity_seeds() -> Vec<Vec<u8>> {
    ["100m", "1.5Gi", "-12e6", "0.000000001", "9223372036854775807", "+5k", "1E", "3e-2", ".5Ki"]
        .map(|s| s.into())
        .into()
}
