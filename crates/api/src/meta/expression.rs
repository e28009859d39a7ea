//! CEL expressions in objects, as data. This crate says where they are and what they may see; whoever has a compiler
//! compiles them and adds what it finds to the object's field errors.

use crate::meta::field::Path;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;

/// Identifiers that CEL keeps for later versions of the language.
pub const RESERVED_IDENTIFIERS: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// Whether CEL keeps a word for itself: no variable and no field may be called so.
#[must_use]
pub fn is_reserved(word: &str) -> bool {
    matches!(word, "true" | "false" | "null" | "in") || RESERVED_IDENTIFIERS.contains(&word)
}

/// What an expression is for, which decides its variables and the type it must have.
#[derive(Clone, Debug, PartialEq)]
pub enum Role {
    /// Whether a webhook or policy looks at a request at all; a boolean.
    MatchCondition,
    /// A variable of a policy, visible as `variables.NAME` to the expressions after it; any type.
    Variable(String),
    /// Whether a request passes; a boolean.
    Validation,
    /// The message of a failed validation; a string.
    Message,
    /// The value of an audit annotation; a string or null.
    AuditAnnotation,
    /// What a mutation applies; an `Object`.
    ApplyConfiguration,
    /// What a mutation patches; a list of `JSONPatch`.
    JsonPatch,
    /// Whether a device fits; a boolean over `device`.
    DeviceSelector,
    /// A rule of a schema (`x-kubernetes-validations`); a boolean over `self`. Compiled only where the object has no
    /// other
    /// faults, because a malformed schema makes no types.
    SchemaRule(SchemaRule),
    /// The message of such a rule; a string over the same variables.
    SchemaMessage(SchemaRule),
}

/// The place of a schema's rule.
#[derive(Clone, Debug, PartialEq)]
pub struct SchemaRule {
    /// The schema the rule is about; its type is that of `self`.
    pub schema: Box<JSONSchemaProps>,
    /// Which of the schema's rules it is.
    pub rule: usize,
    /// The nearest list or map around it whose elements have no identity between two revisions: below it `oldSelf` may
    /// not
    /// be used.
    pub uncorrelatable: Option<Path>,
}

/// An expression in an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Expression {
    /// Where it is; errors are reported there.
    pub path: Path,
    /// The text to compile.
    pub text: String,
    /// What it is for.
    pub role: Role,
    /// Whether `params` is declared.
    pub params: bool,
    /// Whether `authorizer` is declared.
    pub authorizer: bool,
    /// The stored object has this text already: it is compiled with what older releases knew, too.
    pub stored: bool,
}
