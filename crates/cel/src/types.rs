//! The static types of the language, and what the checker prints for them.

use std::fmt;
use std::sync::Arc;

use crate::value::Value;

/// A type as the checker knows it. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// Anything; checked at evaluation only.
    Dyn,
    /// `google.protobuf.Any`.
    Any,
    /// The type of an expression that was already reported.
    Error,
    /// The type of `null`.
    Null,
    /// `bool`.
    Bool,
    /// 64-bit signed integer.
    Int,
    /// 64-bit unsigned integer.
    Uint,
    /// 64-bit IEEE 754 number.
    Double,
    /// Unicode text.
    String,
    /// Octets.
    Bytes,
    /// A point in time with nanoseconds.
    Timestamp,
    /// A span of time with nanoseconds.
    Duration,
    /// `list(T)`.
    List(Arc<Type>),
    /// `map(K, V)`.
    Map(Arc<Type>, Arc<Type>),
    /// A nullable primitive, `wrapper(T)`.
    Wrapper(Arc<Type>),
    /// The type of a type.
    Type(Option<Arc<Type>>),
    /// A type parameter of an overload, or a variable of the checker.
    Param(Arc<str>),
    /// A message with fields that a provider knows.
    Object(Arc<str>),
    /// An abstract type with parameters, such as `optional_type(T)`.
    Opaque(Arc<str>, Arc<[Type]>),
}

/// The name of the abstract type behind optional values.
pub(crate) const OPTIONAL: &str = "optional_type";

impl Type {
    /// `list(element)`.
    #[must_use]
    pub fn list(element: Type) -> Type {
        Type::List(Arc::new(element))
    }

    /// `map(key, value)`.
    #[must_use]
    pub fn map(key: Type, value: Type) -> Type {
        Type::Map(Arc::new(key), Arc::new(value))
    }

    /// `wrapper(inner)`: the primitive or null.
    #[must_use]
    pub fn wrapper(inner: Type) -> Type {
        Type::Wrapper(Arc::new(inner))
    }

    /// `optional_type(inner)`.
    #[must_use]
    pub fn optional(inner: Type) -> Type {
        Type::Opaque(OPTIONAL.into(), Arc::from([inner]))
    }

    /// A message type by its full name.
    #[must_use]
    pub fn object(name: &str) -> Type {
        Type::Object(name.into())
    }

    /// An abstract type without parameters.
    #[must_use]
    pub fn opaque(name: &str) -> Type {
        Type::Opaque(name.into(), Arc::from([]))
    }

    /// A type parameter.
    #[must_use]
    pub fn param(name: &str) -> Type {
        Type::Param(name.into())
    }

    /// The type whose values are `inner`.
    #[must_use]
    pub fn type_of(inner: Type) -> Type {
        Type::Type(Some(Arc::new(inner)))
    }

    /// The type arguments, in order.
    pub(crate) fn parameters(&self) -> Vec<Type> {
        match self {
            Type::List(element) => vec![(**element).clone()],
            Type::Map(key, value) => vec![(**key).clone(), (**value).clone()],
            Type::Type(Some(inner)) => vec![(**inner).clone()],
            Type::Opaque(_, parameters) => parameters.to_vec(),
            _ => Vec::new(),
        }
    }

    /// The name that values of this type report at run time: `string(type(x))`.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Type::Dyn => "dyn",
            Type::Any => "google.protobuf.Any",
            Type::Error => "error",
            Type::Null => "null_type",
            Type::Bool => "bool",
            Type::Int => "int",
            Type::Uint => "uint",
            Type::Double => "double",
            Type::String => "string",
            Type::Bytes => "bytes",
            Type::Timestamp => "google.protobuf.Timestamp",
            Type::Duration => "google.protobuf.Duration",
            Type::List(_) => "list",
            Type::Map(..) => "map",
            Type::Wrapper(inner) => inner.name(),
            Type::Type(_) => "type",
            Type::Param(name) | Type::Object(name) | Type::Opaque(name, _) => name,
        }
    }

    pub(crate) fn is_dyn(&self) -> bool {
        matches!(self, Type::Dyn | Type::Any)
    }

    pub(crate) fn is_dyn_or_error(&self) -> bool {
        self.is_dyn() || *self == Type::Error
    }

    /// The type inside an optional, or `None` when this is no optional.
    #[must_use]
    pub fn optional_inner(&self) -> Option<&Type> {
        match self {
            Type::Opaque(name, parameters) if &**name == OPTIONAL => parameters.first(),
            _ => None,
        }
    }

    /// Whether both are the same type when the names of type parameters do not matter.
    pub(crate) fn equivalent(&self, other: &Type) -> bool {
        match (self, other) {
            (Type::Param(_), Type::Param(_)) => true,
            (Type::List(a), Type::List(b)) => a.equivalent(b),
            (Type::Map(a, b), Type::Map(c, d)) => a.equivalent(c) && b.equivalent(d),
            (Type::Type(Some(a)), Type::Type(Some(b))) => a.equivalent(b),
            (Type::Opaque(a, p), Type::Opaque(b, q)) => {
                a == b && p.len() == q.len() && p.iter().zip(q.iter()).all(|(x, y)| x.equivalent(y))
            }
            _ => self == other,
        }
    }

    /// Whether a value may stand where this type is declared. Of aggregates only the first element is looked at.
    pub(crate) fn accepts(&self, value: &Value) -> bool {
        match (self, value) {
            (Type::Dyn | Type::Any | Type::Param(_) | Type::Error, _) => true,
            (Type::Null, Value::Null)
            | (Type::Wrapper(_), Value::Null)
            | (Type::Bool, Value::Bool(_))
            | (Type::Int, Value::Int(_))
            | (Type::Uint, Value::Uint(_))
            | (Type::Double, Value::Double(_))
            | (Type::String, Value::String(_))
            | (Type::Bytes, Value::Bytes(_))
            | (Type::Timestamp, Value::Timestamp(_))
            | (Type::Duration, Value::Duration(_))
            | (Type::Type(_), Value::Type(_)) => true,
            (Type::Wrapper(inner), _) => inner.accepts(value),
            (Type::List(element), Value::List(list)) => list.first().is_none_or(|first| element.accepts(&first)),
            (Type::Map(key, element), Value::Map(map)) => {
                map.first().is_none_or(|(k, v)| key.accepts(&k) && element.accepts(&v))
            }
            // Objects that come out of JSON are maps to the evaluator.
            (Type::Object(_), Value::Map(_)) => true,
            (Type::Object(name), Value::Object(object)) => &**name == object.type_name(),
            (Type::Opaque(name, parameters), Value::Optional(inner)) => {
                &**name == OPTIONAL
                    && inner.as_ref().is_none_or(|inner| parameters.first().is_none_or(|p| p.accepts(inner)))
            }
            (Type::Opaque(name, _), Value::Object(object)) => &**name == object.type_name(),
            _ => false,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Any => f.write_str("any"),
            Type::Error => f.write_str("!error!"),
            Type::Null => f.write_str("null"),
            Type::Timestamp => f.write_str("timestamp"),
            Type::Duration => f.write_str("duration"),
            Type::List(element) => write!(f, "list({element})"),
            Type::Map(key, value) => write!(f, "map({key}, {value})"),
            Type::Wrapper(inner) => write!(f, "wrapper({inner})"),
            Type::Type(Some(inner)) => write!(f, "type({inner})"),
            Type::Opaque(name, parameters) if !parameters.is_empty() => {
                write!(f, "{name}(")?;
                for (i, parameter) in parameters.iter().enumerate() {
                    if i > 0 {
                        f.write_str(", ")?;
                    }
                    write!(f, "{parameter}")?;
                }
                f.write_str(")")
            }
            _ => f.write_str(self.name()),
        }
    }
}
