//! What evaluating costs: estimated when an expression is written, counted when it is evaluated.
//!
//! A unit is about the work of reading a variable. The numbers are those of cel-go and of Kubernetes' libraries.

mod calls;
pub(crate) mod estimate;
pub(crate) mod runtime;

use crate::types::Type;

/// The most a single evaluation may cost in Kubernetes.
pub const PER_CALL_LIMIT: u64 = 1_000_000;
/// The most all evaluations of one request may cost together.
pub const RUNTIME_COST_BUDGET: u64 = 10_000_000;
/// The most an expression of a custom resource's rule may be estimated to cost.
pub const STATIC_COST_LIMIT: u64 = 10_000_000;
/// The most all rules of a custom resource definition may be estimated to cost together.
pub const STATIC_CRD_COST_LIMIT: u64 = 100_000_000;

/// Going over a character of a string.
pub(crate) const TRAVERSAL: f64 = 0.1;
/// A character of a regular expression, per character it is tried on.
pub(crate) const REGEX_CHAR: f64 = 0.25;
/// A check by the authorizer.
pub(crate) const AUTHORIZER_CHECK: u64 = 350_000;
/// Making a list and a message, per requirement of a selector.
const PER_REQUIREMENT: f64 = 50.0;

/// A cost between two bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CostRange {
    /// At least.
    pub min: u64,
    /// At most; `u64::MAX` when there is no bound.
    pub max: u64,
}

/// A size between two bounds: code points, octets, elements or entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeRange {
    /// At least.
    pub min: u64,
    /// At most; `u64::MAX` when there is no bound.
    pub max: u64,
}

/// A part of an expression whose size is asked for.
pub struct Node<'a> {
    /// How to get there from a variable: its name, then fields, `@items`, `@keys`, `@values` or `@indices`.
    /// Empty when it is no part of a variable.
    pub path: &'a [String],
    /// Its type.
    pub of: &'a Type,
}

/// Knows how large parts of variables can be.
pub trait SizeHints: Sync {
    /// The size of a node, `None` when nothing is known.
    fn size(&self, node: &Node<'_>) -> Option<SizeRange>;
}

/// Knows nothing.
pub struct Unhinted;

impl SizeHints for Unhinted {
    fn size(&self, _: &Node<'_>) -> Option<SizeRange> {
        None
    }
}

/// `x * factor`, rounded up and without overflow.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the reference calculates in floating point, and the conversion saturates"
)]
pub(crate) fn scale(x: u64, factor: f64) -> u64 {
    (x as f64 * factor).ceil() as u64
}

macro_rules! range {
    ($name:ident) => {
        impl $name {
            /// Exactly this.
            #[must_use]
            pub fn exactly(value: u64) -> $name {
                $name { min: value, max: value }
            }

            /// Both together.
            #[must_use]
            pub fn plus(self, other: $name) -> $name {
                $name { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
            }

            /// This as often as the other says.
            #[must_use]
            pub fn times(self, other: $name) -> $name {
                $name { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
            }

            /// Whichever of both.
            #[must_use]
            pub fn union(self, other: $name) -> $name {
                $name { min: self.min.min(other.min), max: self.max.max(other.max) }
            }

            /// As a cost, with so much per unit.
            #[must_use]
            pub fn scaled(self, factor: f64) -> CostRange {
                CostRange { min: scale(self.min, factor), max: scale(self.max, factor) }
            }
        }
    };
}

range!(CostRange);
range!(SizeRange);

impl SizeRange {
    /// Anything.
    pub const UNKNOWN: SizeRange = SizeRange { min: 0, max: u64::MAX };

    /// The cost of doing something with each unit.
    pub(crate) fn each(self, cost: CostRange) -> CostRange {
        CostRange { min: self.min, max: self.max }.times(cost)
    }
}

/// The cost of reading a selector of a length: half of it may be requirements.
pub(crate) fn selector(length: SizeRange) -> CostRange {
    let requirements = length.scaled(0.5).scaled(PER_REQUIREMENT);
    CostRange::exactly(10).plus(length.scaled(TRAVERSAL)).plus(requirements)
}
