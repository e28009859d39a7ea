//! Functions beyond the operators: the standard library, the extensions of the language, and Kubernetes' own.

pub(crate) mod authorizer;
mod cidr;
mod convert;
mod encoders;
mod ext_lists;
mod format;
mod ip;
pub(crate) mod jsonpatch;
mod lists;
mod math;
mod optional;
pub(crate) mod printf;
pub(crate) mod quantity;
mod regex;
pub(crate) mod semver;
mod sets;
mod standard;
mod strings;
mod time;
mod url;

use std::sync::Arc;

use crate::decls::{Function, TypeProvider};
use crate::macros::{self, Macro};
use crate::types::Type;
use crate::value::{EvalError, Value};

pub(crate) use format::Format;
pub(crate) use standard::standard;

/// A set of functions that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// Optional values: `a.?b`, `optional.of`, `orValue`, `optMap`.
    Optional,
    /// `charAt`, `format`, `join`, `replace` and more on strings, in version 2 as Kubernetes has it.
    Strings,
    /// The same in the newest version: `reverse`, and `format` without a locale.
    StringsLatest,
    /// `sets.contains`, `sets.equivalent`, `sets.intersects`.
    Sets,
    /// `slice`, `flatten`, `sort`, `sortBy`, `distinct`, `reverse`, `lists.range`.
    ExtendedLists,
    /// Macros over keys and values: `transformMap` and the like.
    TwoVariableMacros,
    /// `cel.bind`.
    Bindings,
    /// `math.least`, `math.greatest`, rounding, bits.
    Math,
    /// `base64.encode`, `base64.decode`.
    Encoders,
    /// Kubernetes: `isSorted`, `sum`, `min`, `max`, `indexOf`, `lastIndexOf`, `includes`.
    Lists,
    /// Kubernetes: `find`, `findAll`.
    Regex,
    /// Kubernetes: `url`, `isURL` and the parts of URLs.
    Url,
    /// Kubernetes: `quantity`, `isQuantity` and arithmetic.
    Quantity,
    /// Kubernetes: `ip`, `isIP` and what an address is.
    Ip,
    /// Kubernetes: `cidr`, `isCIDR` and what a network contains.
    Cidr,
    /// Kubernetes: `semver`, `isSemver` and comparisons.
    Semver,
    /// Kubernetes: `format.named` and the formats themselves.
    Format,
    /// Kubernetes: checks through the `authorizer` variable.
    Authorizer,
    /// Kubernetes: `JSONPatch{}`, `Object{}` and `jsonpatch.escapeKey` for mutating policies.
    JsonPatch,
}

impl Library {
    /// The libraries of every expression in Kubernetes 1.37.
    pub const KUBERNETES: [Library; 14] = [
        Library::Url,
        Library::Regex,
        Library::Authorizer,
        Library::Optional,
        Library::Quantity,
        Library::Strings,
        Library::Sets,
        Library::Ip,
        Library::Cidr,
        Library::Format,
        Library::TwoVariableMacros,
        Library::Semver,
        Library::ExtendedLists,
        Library::Lists,
    ];

    pub(crate) fn functions(self) -> Vec<Function> {
        match self {
            Library::Optional => optional::functions(),
            Library::Strings => strings::functions(false),
            Library::StringsLatest => strings::functions(true),
            Library::Sets => sets::functions(),
            Library::ExtendedLists => ext_lists::functions(),
            Library::TwoVariableMacros => ext_lists::map_insert(),
            Library::Bindings => Vec::new(),
            Library::Math => math::functions(),
            Library::Encoders => encoders::functions(),
            Library::Lists => lists::functions(),
            Library::Regex => regex::functions(),
            Library::Url => url::functions(),
            Library::Quantity => quantity::functions(),
            Library::Ip => ip::functions(),
            Library::Cidr => cidr::functions(),
            Library::Semver => semver::functions(),
            Library::Format => format::functions(),
            Library::Authorizer => authorizer::functions(),
            Library::JsonPatch => jsonpatch::functions(),
        }
    }

    pub(crate) fn macros(self) -> &'static [Macro] {
        match self {
            Library::Optional => macros::OPTIONAL,
            Library::ExtendedLists => macros::LISTS,
            Library::TwoVariableMacros => macros::TWO_VARIABLES,
            Library::Bindings => macros::BINDINGS,
            Library::Math => macros::MATH,
            _ => &[],
        }
    }

    pub(crate) fn constants(self) -> Vec<(&'static str, Value)> {
        match self {
            Library::Optional => vec![("optional_type", Value::Type(Type::optional(Type::Dyn)))],
            Library::Ip => vec![("net.IP", Value::Type(ip::ip_type()))],
            Library::Cidr => vec![("net.CIDR", Value::Type(cidr::cidr_type()))],
            _ => Vec::new(),
        }
    }

    pub(crate) fn provider(self) -> Option<Arc<dyn TypeProvider>> {
        (self == Library::JsonPatch).then(|| Arc::new(jsonpatch::Provider) as Arc<dyn TypeProvider>)
    }
}

/// The failure of a function that got arguments it is not declared for.
pub(crate) fn mismatch<T>() -> Result<T, EvalError> {
    Err(EvalError::no_such_overload())
}

/// A length or an index as an integer of the language.
pub(crate) fn int(n: usize) -> Value {
    Value::Int(i64::try_from(n).unwrap_or(i64::MAX))
}

/// The longest text, in octets, that a function makes out of shorter ones. The reference has no bound and runs out of
/// memory; reading anything as long would exceed every limit that Kubernetes sets.
const MAX_TEXT: usize = 64 << 20;

/// Whether a text of a length may be made.
fn check_length(length: usize) -> Result<(), EvalError> {
    if length > MAX_TEXT { Err(EvalError::CostLimit) } else { Ok(()) }
}

/// A failure with this message.
pub(crate) fn fail<T>(message: impl Into<String>) -> Result<T, EvalError> {
    Err(EvalError::new(message))
}
