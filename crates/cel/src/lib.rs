//! The Common Expression Language with Kubernetes' libraries: parser, type checker, evaluator, cost estimate and limit.
//!
//! An [`Environment`] says what expressions may refer to and compiles texts to [`Program`]s. A program is evaluated
//! with [`Variables`], whose values may be lazy views of JSON ([`JsonView`], typed by a [`Schema`]). The crate knows no
//! Kubernetes objects; the authorizer behind the `authorizer` variable comes in through a trait.
//!
//! Texts of errors and costs are those of cel-go and of Kubernetes' API server 1.37.

mod activation;
mod ast;
mod checker;
mod cost;
mod decls;
pub mod device;
mod env;
mod eval;
mod issue;
mod json;
mod lexer;
mod library;
mod macros;
mod number;
mod ops;
mod parser;
mod plan;
mod program;
mod schema;
mod stack;
mod time;
mod types;
mod unescape;
mod unify;
mod validate;
mod value;

pub use activation::{Activation, Variables};
pub use cost::{
    CostRange, Node, PER_CALL_LIMIT, RUNTIME_COST_BUDGET, STATIC_COST_LIMIT, STATIC_CRD_COST_LIMIT, SizeHints,
    SizeRange, Unhinted,
};
pub use decls::{Func, Function, Overload, TypeProvider};
pub use env::{Builder, Environment, Expected};
pub use issue::{Issue, Phase};
pub use json::JsonView;
pub use library::Library;
pub use library::authorizer::{Authorizer, Decision, Subject};
pub use library::jsonpatch::{Constructed, JsonPatch};
pub use program::{Limits, Outcome, Program};
pub use schema::{Schema, SchemaProvider, escape, unescape};
pub use time::{Duration, Timestamp};
pub use types::Type;
pub use value::{EvalError, Key, List, ListKind, ListView, Map, MapView, Object, Value};
