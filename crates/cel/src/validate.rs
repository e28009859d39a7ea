//! Literals that are looked at when an expression is compiled, although only evaluating it would need them.

use crate::ast::{Expr, Kind};
use crate::checker::Checked;
use crate::issue::{Issues, Phase};
use crate::library::printf::{self, Clause, Piece, Style};
use crate::time::{Duration, Timestamp};
use crate::types::Type;
use crate::value::{EvalError, Value};

struct Validator<'a> {
    checked: &'a Checked,
    issues: &'a mut Issues,
}

/// Looks at durations, timestamps, regular expressions, formats, and at literals with elements of several types.
pub(crate) fn validate(checked: &Checked, issues: &mut Issues) {
    let mut validator = Validator { checked, issues };
    checked.root.walk(&mut |e| {
        if let Kind::Call { target, function, args } = &e.kind {
            validator.literal(function, args);
            if let (Some(target), "format", [list]) = (target, function.as_str(), args.as_slice()) {
                validator.format(e, target, list);
            }
        }
    });
    validator.homogeneous(&checked.root, false);
}

impl Validator<'_> {
    fn error(&mut self, e: &Expr, message: String) {
        let offset = self.checked.offsets.get(e.id as usize).copied();
        self.issues.report(Phase::Check, offset, message);
    }

    fn literal(&mut self, function: &str, args: &[Expr]) {
        let Some(Expr { kind: Kind::Literal(value), .. }) = args.first() else { return };
        let valid = match (function, value) {
            ("duration", Value::String(text)) => Duration::parse(text).is_some(),
            ("timestamp", Value::String(text)) => Timestamp::parse(text).is_some(),
            ("timestamp", Value::Int(seconds)) => Timestamp::new(*seconds, 0).is_ok(),
            ("matches", Value::String(pattern)) => gantry_api::meta::regex::compile(pattern).is_ok(),
            _ => true,
        };
        if !valid {
            self.error(&args[0], format!("invalid {function} argument"));
        }
    }

    fn format(&mut self, call: &Expr, target: &Expr, list: &Expr) {
        let (Kind::Literal(Value::String(format)), Kind::List { elements }) = (&target.kind, &list.kind) else {
            return;
        };
        let mut next = 0;
        let mut place = call;
        let result = printf::pieces(format, Style::Localized, |piece| {
            let Piece::Clause(clause) = piece else { return Ok(()) };
            let Some(element) = elements.get(next) else {
                return Err(EvalError::new(format!("index {next} out of range")));
            };
            next += 1;
            match self.misfit(clause, &element.value) {
                Some(wrong) => {
                    place = wrong;
                    let refusal = clause.refusal(self.checked.type_of(wrong.id).name());
                    Err(EvalError::new(format!("error during formatting: {refusal}")))
                }
                None => Ok(()),
            }
        });
        match result {
            Err(error) => self.error(place, error.to_string()),
            Ok(()) if elements.len() > next => {
                let given = elements.len();
                self.error(
                    call,
                    format!("too many arguments supplied to string.format (expected {next}, got {given})"),
                );
            }
            Ok(()) => {}
        }
    }

    /// The part of an argument that cannot fit a clause.
    fn misfit<'e>(&self, clause: Clause, e: &'e Expr) -> Option<&'e Expr> {
        if !clause.may_take(self.checked.type_of(e.id)) {
            return Some(e);
        }
        match (clause, &e.kind) {
            (Clause::String, Kind::List { .. } | Kind::Map { .. }) => {
                e.children().into_iter().find_map(|child| self.misfit(clause, child))
            }
            _ => None,
        }
    }

    /// Whether all elements of list and map literals have one type. Arguments of `format` may differ.
    fn homogeneous(&mut self, e: &Expr, exempt: bool) {
        let exempt = exempt || matches!(&e.kind, Kind::Call { function, .. } if function == "format");
        if !exempt {
            match &e.kind {
                Kind::List { elements } => {
                    let items = elements.iter().map(|element| (&element.value, element.optional)).collect();
                    self.same_types(items, true);
                }
                Kind::Map { entries } => {
                    self.same_types(entries.iter().map(|entry| (&entry.key, false)).collect(), false);
                    self.same_types(entries.iter().map(|entry| (&entry.value, entry.optional)).collect(), false);
                }
                _ => {}
            }
        }
        for child in e.children() {
            self.homogeneous(child, exempt);
        }
    }

    fn same_types(&mut self, items: Vec<(&Expr, bool)>, first_only: bool) {
        let mut expected: Option<Type> = None;
        for (e, optional) in items {
            let mut found = self.checked.type_of(e.id).clone();
            if let Some(inner) = found.optional_inner().filter(|_| optional) {
                found = inner.clone();
            }
            match &expected {
                None => expected = Some(found),
                Some(expected) if expected.equivalent(&found) => {}
                Some(expected) => {
                    self.error(e, format!("expected type '{expected}' but found '{found}'"));
                    if first_only {
                        return;
                    }
                }
            }
        }
    }
}
