//! Which types fit where, and what that says about type variables.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::types::Type;

/// What is known about type variables.
#[derive(Clone, Default)]
pub(crate) struct Mapping {
    known: BTreeMap<Arc<str>, Type>,
}

impl Mapping {
    fn find(&self, t: &Type) -> Option<&Type> {
        match t {
            Type::Param(name) => self.known.get(name),
            _ => None,
        }
    }

    pub(crate) fn add(&mut self, from: &Type, to: Type) {
        if let Type::Param(name) = from {
            self.known.insert(name.clone(), to);
        }
    }

    /// Whether `t2` may stand where `t1` is expected. What this says about type variables is kept when it may.
    pub(crate) fn assignable(&mut self, t1: &Type, t2: &Type) -> bool {
        self.assignable_all(std::slice::from_ref(t1), std::slice::from_ref(t2))
    }

    /// `assignable` of each pair; nothing is learned unless all are.
    pub(crate) fn assignable_all(&mut self, l1: &[Type], l2: &[Type]) -> bool {
        let mut trial = self.clone();
        let fits = trial.pairs(l1, l2);
        if fits {
            *self = trial;
        }
        fits
    }

    fn pairs(&mut self, l1: &[Type], l2: &[Type]) -> bool {
        l1.len() == l2.len() && l1.iter().zip(l2).all(|(a, b)| self.fits(a, b))
    }

    fn fits(&mut self, t1: &Type, t2: &Type) -> bool {
        if matches!(t2, Type::Param(_)) {
            let (valid, known) = self.substitution(t1, t2);
            if valid || known {
                return valid;
            }
        }
        if matches!(t1, Type::Param(_)) {
            return self.substitution(t2, t1).0;
        }
        if t1.is_dyn_or_error() || t2.is_dyn_or_error() {
            return true;
        }
        if *t1 == Type::Null {
            return nullable(t2);
        }
        if *t2 == Type::Null {
            return nullable(t1);
        }
        match (unwrapped(t1), unwrapped(t2)) {
            (Type::Type(_), Type::Type(_)) => true,
            (Type::List(a), Type::List(b)) => self.fits(a, b),
            (Type::Map(ak, av), Type::Map(bk, bv)) => self.fits(ak, bk) && self.fits(av, bv),
            (Type::Opaque(a, p), Type::Opaque(b, q)) => a == b && self.pairs(p, q),
            (a, b) => a == b,
        }
    }

    /// Whether the variable `t2` may be `t1`, and whether something was known about it.
    fn substitution(&mut self, t1: &Type, t2: &Type) -> (bool, bool) {
        if t1 == t2 {
            return (true, true);
        }
        if let Some(known) = self.find(t2).cloned() {
            if *t1 == known {
                return (true, true);
            }
            if self.fits(t1, &known) {
                let general = most_general(t1, &known).clone();
                if self.not_within(t2, &general) {
                    self.add(t2, general);
                }
                return (true, true);
            }
            return (false, true);
        }
        if self.not_within(t2, t1) {
            self.add(t2, t1.clone());
            return (true, false);
        }
        (false, false)
    }

    /// Whether the variable `t` does not occur in `within`, so that no type contains itself.
    fn not_within(&self, t: &Type, within: &Type) -> bool {
        if t == within {
            return false;
        }
        match within {
            Type::Param(_) => self.find(within).is_none_or(|known| self.not_within(t, known)),
            _ => within.parameters().iter().all(|parameter| self.not_within(t, parameter)),
        }
    }

    /// The type with everything that is known filled in; with `to_dyn` the rest becomes `dyn`.
    pub(crate) fn substitute(&self, t: &Type, to_dyn: bool) -> Type {
        if let Some(known) = self.find(t) {
            return self.substitute(known, to_dyn);
        }
        match t {
            Type::Param(_) if to_dyn => Type::Dyn,
            Type::List(element) => Type::list(self.substitute(element, to_dyn)),
            Type::Map(key, value) => Type::map(self.substitute(key, to_dyn), self.substitute(value, to_dyn)),
            Type::Type(Some(inner)) => Type::type_of(self.substitute(inner, to_dyn)),
            Type::Opaque(name, parameters) => {
                Type::Opaque(name.clone(), parameters.iter().map(|p| self.substitute(p, to_dyn)).collect())
            }
            _ => t.clone(),
        }
    }
}

/// Wrappers and what they wrap fit both ways.
fn unwrapped(t: &Type) -> &Type {
    match t {
        Type::Wrapper(inner) => inner,
        _ => t,
    }
}

fn nullable(t: &Type) -> bool {
    matches!(
        t,
        Type::Null
            | Type::Dyn
            | Type::Any
            | Type::Wrapper(_)
            | Type::Opaque(..)
            | Type::Object(_)
            | Type::Duration
            | Type::Timestamp
    )
}

/// The more general one of two types that fit each other.
pub(crate) fn most_general<'a>(t1: &'a Type, t2: &'a Type) -> &'a Type {
    if no_more_specific(t1, t2) { t1 } else { t2 }
}

fn no_more_specific(t1: &Type, t2: &Type) -> bool {
    if t1.is_dyn() || matches!(t1, Type::Param(_)) {
        return true;
    }
    if t2.is_dyn() || matches!(t2, Type::Param(_)) {
        return false;
    }
    match (t1, t2) {
        (Type::List(a), Type::List(b)) => no_more_specific(a, b),
        (Type::Map(ak, av), Type::Map(bk, bv)) => no_more_specific(ak, bk) && no_more_specific(av, bv),
        (Type::Opaque(a, p), Type::Opaque(b, q)) => {
            a == b && p.len() == q.len() && p.iter().zip(q.iter()).all(|(x, y)| no_more_specific(x, y))
        }
        (Type::Type(_), Type::Type(_)) => true,
        _ => unwrapped(t1) == unwrapped(t2),
    }
}
