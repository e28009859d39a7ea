//! PriorityLevelConfiguration: how many requests of a level run at once, and what the others do.

use super::{defaults, validate_conditions};
use crate::apps::workload::bump_generation;
use crate::kind::{Column, Context, Kind, ResourceInfo, STATUS};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::{Meta, reset_for_status, semantically_equal};
use crate::meta::table;
use k8s_openapi::api::flowcontrol::v1::{
    LimitResponse, LimitedPriorityLevelConfiguration, PriorityLevelConfiguration, PriorityLevelConfigurationSpec,
    QueuingConfiguration,
};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

const TYPES: &[&str] = &["Exempt", "Limited"];
const RESPONSES: &[&str] = &["Queue", "Reject"];
const QUEUES_MAX: i32 = 10_000_000;
/// Bits of the hash that deals hands of queues.
const HASH_BITS: f64 = 60.0;

fn positive(value: i32, path: &Path, errors: &mut ErrorList) -> bool {
    if value <= 0 {
        errors.invalid(path, value, "must be positive");
    }
    value > 0
}

fn validate_queuing(q: &QueuingConfiguration, path: &Path, errors: &mut ErrorList) {
    let (queues, hand) = (q.queues.unwrap_or(0), q.hand_size.unwrap_or(0));
    positive(q.queue_length_limit.unwrap_or(0), &path.child("queueLengthLimit"), errors);
    let at = path.child("queues");
    if positive(queues, &at, errors) && queues > QUEUES_MAX {
        errors.invalid(&at, queues, &format!("must not be greater than {QUEUES_MAX}"));
    }
    let at = path.child("handSize");
    if !positive(hand, &at, errors) {
        return;
    }
    if hand > queues {
        return errors.invalid(&at, hand, &format!("should not be greater than queues ({queues})"));
    }
    if (f64::from(queues).log2() * f64::from(hand)).ceil() > HASH_BITS {
        let detail = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS}"
        );
        errors.invalid(&at, hand, &detail);
    }
}

fn validate_response(r: &LimitResponse, path: &Path, errors: &mut ErrorList) {
    let at = path.child("queuing");
    match (r.type_.as_str(), &r.queuing) {
        ("Reject", Some(_)) => errors.forbidden(&at, "must be nil if limited.limitResponse.type is not Limited"),
        ("Reject", None) => {}
        ("Queue", None) => errors.required(&at, "must not be empty if limited.limitResponse.type is Limited"),
        ("Queue", Some(q)) => validate_queuing(q, &at, errors),
        (other, _) => errors.not_supported(&path.child("type"), other, RESPONSES),
    }
}

fn validate_shares(shares: Option<i32>, lendable: Option<i32>, path: &Path, errors: &mut ErrorList) {
    if let Some(n) = shares.filter(|n| *n < 0) {
        errors.invalid(&path.child("nominalConcurrencyShares"), n, "must be a non-negative integer");
    }
    if let Some(n) = lendable.filter(|n| !(0..=100).contains(n)) {
        errors.invalid(&path.child("lendablePercent"), n, "must be between 0 and 100, inclusive");
    }
}

fn validate_limited(l: &LimitedPriorityLevelConfiguration, path: &Path, errors: &mut ErrorList) {
    validate_shares(l.nominal_concurrency_shares, None, path, errors);
    validate_response(&l.limit_response, &path.child("limitResponse"), errors);
    validate_shares(None, l.lendable_percent, path, errors);
    if let Some(n) = l.borrowing_limit_percent.filter(|n| *n < 0) {
        let detail = "if specified, must be a non-negative integer";
        errors.invalid(&path.child("borrowingLimitPercent"), n, detail);
    }
}

fn validate_spec(spec: &PriorityLevelConfigurationSpec, name: &str, path: &Path, errors: &mut ErrorList) {
    let kind = spec.type_.as_str();
    if (name == defaults::EXEMPT) != (kind == "Exempt") {
        errors.invalid(&path.child("type"), kind, "type must be 'Exempt' if and only if name is 'exempt'");
    }
    let (at_limited, at_exempt) = (path.child("limited"), path.child("exempt"));
    match kind {
        "Exempt" => {
            if spec.limited.is_some() {
                errors.forbidden(&at_limited, "must be nil if the type is not Limited");
            }
            if let Some(x) = &spec.exempt {
                validate_shares(x.nominal_concurrency_shares, x.lendable_percent, &at_exempt, errors);
            }
        }
        "Limited" => {
            if spec.exempt.is_some() {
                errors.forbidden(&at_exempt, "must be nil if the type is Limited");
            }
            match &spec.limited {
                None => errors.required(&at_limited, "must not be empty when type is Limited"),
                Some(l) => validate_limited(l, &at_limited, errors),
            }
        }
        other => errors.not_supported(&path.child("type"), other, TYPES),
    }
}

fn validate_mandatory(p: &PriorityLevelConfiguration, path: &Path, errors: &mut ErrorList) {
    let name = p.metadata.name();
    let levels = defaults::mandatory_priority_levels();
    let Some(fixed) = levels.into_iter().find(|m| m.metadata.name() == name) else { return };
    // What the exempt level lends is the administrator's to say.
    let exempt = name == defaults::EXEMPT;
    let of = |s: &PriorityLevelConfigurationSpec| PriorityLevelConfigurationSpec {
        exempt: s.exempt.clone().filter(|_| !exempt),
        ..s.clone()
    };
    if !semantically_equal(&of(&fixed.spec), &of(&p.spec)) {
        let except = if exempt { " except the 'spec.exempt' field" } else { "" };
        errors.invalid(path, json!(p.spec), &format!("spec of '{name}'{except} must equal the fixed value"));
    }
}

impl Kind for PriorityLevelConfiguration {
    const INFO: ResourceInfo = ResourceInfo {
        subresources: &[STATUS],
        ..ResourceInfo::new(
            "flowcontrol.apiserver.k8s.io",
            "v1",
            "PriorityLevelConfiguration",
            "prioritylevelconfigurations",
            "prioritylevelconfiguration",
            false,
        )
    };
    const COLUMNS: &'static [Column] = &[
        table::NAME,
        table::text_column("Type", "Whether requests of the level are limited.", 0),
        table::text_column("NominalConcurrencyShares", "The level's share of what runs at once.", 0),
        table::text_column("Queues", "How many queues the level has.", 0),
        table::text_column("HandSize", "From how many queues a flow chooses.", 0),
        table::text_column("QueueLengthLimit", "How many requests wait in a queue.", 0),
        table::AGE,
    ];
    crate::kind_codec!();

    fn set_defaults(&mut self) {
        if let Some(x) = &mut self.spec.exempt {
            x.nominal_concurrency_shares.get_or_insert(0);
            x.lendable_percent.get_or_insert(0);
        }
        if let Some(l) = &mut self.spec.limited {
            l.nominal_concurrency_shares.get_or_insert(30);
            l.lendable_percent.get_or_insert(0);
            if let Some(q) = &mut l.limit_response.queuing {
                for (field, value) in [(&mut q.hand_size, 8), (&mut q.queues, 64), (&mut q.queue_length_limit, 50)] {
                    let n = field.get_or_insert(0);
                    if *n == 0 {
                        *n = value;
                    }
                }
            }
        }
    }

    fn prepare_for_create(&mut self, _: &Context<'_>) {
        self.status = Some(Default::default());
        self.metadata.generation = Some(1);
    }

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        let path = Path::new("spec");
        validate_spec(&self.spec, self.metadata.name(), &path, &mut e);
        validate_mandatory(self, &path, &mut e);
        e.extend(self.validate_status_update(self));
        e
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        self.status.clone_from(&old.status);
        let changed = !semantically_equal(&self.spec, &old.spec);
        bump_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context<'_>) {
        self.spec.clone_from(&old.spec);
        reset_for_status(&mut self.metadata, &old.metadata);
    }

    fn validate_status_update(&self, _: &Self) -> ErrorList {
        let mut e = ErrorList::default();
        let conditions = self.status.iter().flat_map(|s| s.conditions.iter().flatten());
        validate_conditions(conditions.map(|c| c.type_.as_str()), &mut e);
        e
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let limited = self.spec.limited.as_ref();
        let queuing = limited.and_then(|l| l.limit_response.queuing.as_ref());
        let shown = |n: Option<i32>| n.map_or_else(|| Value::from("<none>"), Value::from);
        vec![
            self.metadata.name().into(),
            self.spec.type_.as_str().into(),
            shown(limited.map(|l| l.nominal_concurrency_shares.unwrap_or(0))),
            shown(queuing.map(|q| q.queues.unwrap_or(0))),
            shown(queuing.map(|q| q.hand_size.unwrap_or(0))),
            shown(queuing.map(|q| q.queue_length_limit.unwrap_or(0))),
            table::age(&self.metadata, now).into(),
        ]
    }

    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["metadata"], &["spec"]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(name: &str, spec: Value) -> PriorityLevelConfiguration {
        let value = json!({"metadata": {"name": name}, "spec": spec});
        let mut p = PriorityLevelConfiguration::from_value(value).unwrap();
        p.set_defaults();
        p
    }

    fn texts(e: &ErrorList) -> Vec<String> {
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_and_row() {
        let p = level("p", json!({"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": {}}}}));
        assert!(p.validate().is_empty());
        assert_eq!(json!(p.cells(Timestamp::UNIX_EPOCH)), json!(["p", "Limited", 30, 64, 8, 50, "<unknown>"]));
        let exempt = defaults::mandatory_priority_levels().remove(1);
        assert_eq!(
            exempt.cells(Timestamp::UNIX_EPOCH)[2..],
            ["<none>", "<none>", "<none>", "<none>", "<unknown>"].map(Value::from)
        );
    }

    #[test]
    fn field_errors() {
        assert_eq!(
            texts(
                &level(
                    "p",
                    json!({"type": "Exempt", "limited": {"limitResponse": {"type": "Reject"}},
                "exempt": {"nominalConcurrencyShares": -1, "lendablePercent": 101}})
                )
                .validate()
            ),
            [
                "spec.type: Invalid value: \"Exempt\": type must be 'Exempt' if and only if name is 'exempt'",
                "spec.limited: Forbidden: must be nil if the type is not Limited",
                "spec.exempt.nominalConcurrencyShares: Invalid value: -1: must be a non-negative integer",
                "spec.exempt.lendablePercent: Invalid value: 101: must be between 0 and 100, inclusive",
            ]
        );
        let queuing = |q: Value| {
            let limited = json!({"borrowingLimitPercent": -1, "limitResponse": {"type": "Queue", "queuing": q}});
            texts(&level("p", json!({"type": "Limited", "limited": limited})).validate())
        };
        let borrowing =
            "spec.limited.borrowingLimitPercent: Invalid value: -1: if specified, must be a non-negative integer";
        assert_eq!(
            queuing(json!({"queues": 2, "handSize": 3, "queueLengthLimit": -1})),
            [
                "spec.limited.limitResponse.queuing.queueLengthLimit: Invalid value: -1: must be positive",
                "spec.limited.limitResponse.queuing.handSize: Invalid value: 3: should not be greater than queues (2)",
                borrowing,
            ]
        );
        assert_eq!(
            queuing(json!({"queues": 512, "handSize": 8})),
            [
                "spec.limited.limitResponse.queuing.handSize: Invalid value: 8: required entropy bits of deckSize \
                 512 and \
                 handSize 8 should not be greater than 60",
                borrowing,
            ]
        );
        assert_eq!(
            texts(&level("p", json!({"type": "x"})).validate()),
            ["spec.type: Unsupported value: \"x\": supported values: \"Exempt\", \"Limited\""]
        );
    }

    #[test]
    fn mandatory_ones_are_fixed() {
        let [catch_all, exempt] = <[_; 2]>::try_from(defaults::mandatory_priority_levels()).unwrap();
        let mut lending = exempt.clone();
        lending.spec.exempt.as_mut().unwrap().lendable_percent = Some(50);
        assert!(lending.validate_update(&exempt).is_empty());
        let mut changed = catch_all.clone();
        changed.spec.limited.as_mut().unwrap().nominal_concurrency_shares = Some(6);
        let found = texts(&changed.validate_update(&catch_all));
        assert!(found[0].ends_with("spec of 'catch-all' must equal the fixed value"), "{found:?}");
    }
}
