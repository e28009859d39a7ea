//! Values: what expressions evaluate to, including lazy views of somebody else's data.

use std::any::Any;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::time::{Duration, Timestamp};
use crate::types::Type;

/// Why an evaluation has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EvalError {
    /// The expression failed; `||`, `&&` and the macros built on them may absorb it.
    Failed(String),
    /// The evaluation used up its budget. Nothing absorbs it.
    CostLimit,
}

impl EvalError {
    /// A failure with this message.
    pub fn new(message: impl Into<String>) -> EvalError {
        EvalError::Failed(message.into())
    }

    /// What a function answers to arguments it is not made for.
    #[must_use]
    pub fn no_such_overload() -> EvalError {
        EvalError::new("no such overload")
    }
}

impl fmt::Display for EvalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EvalError::Failed(message) => f.write_str(message),
            EvalError::CostLimit => f.write_str("operation cancelled: actual cost limit exceeded"),
        }
    }
}

impl std::error::Error for EvalError {}

/// A value of the language. Cheap to clone.
#[derive(Clone)]
pub enum Value {
    /// `null`.
    Null,
    /// `true` and `false`.
    Bool(bool),
    /// A signed integer.
    Int(i64),
    /// An unsigned integer.
    Uint(u64),
    /// A floating point number.
    Double(f64),
    /// Text.
    String(Arc<str>),
    /// Octets.
    Bytes(Arc<[u8]>),
    /// A point in time.
    Timestamp(Timestamp),
    /// A span of time.
    Duration(Duration),
    /// A list.
    List(List),
    /// A map, and an object whose fields come from JSON.
    Map(Map),
    /// An optional value.
    Optional(Option<Arc<Value>>),
    /// A type.
    Type(Type),
    /// A value of a library's or the embedder's own type.
    Object(Arc<dyn Object>),
}

/// A value of a type that the language itself does not know.
pub trait Object: Any + Send + Sync + fmt::Debug {
    /// The name of its type.
    fn type_name(&self) -> &str;

    /// Its type.
    fn cel_type(&self) -> Type {
        Type::object(self.type_name())
    }

    /// The field of this name, `None` when there is none or it is unset.
    ///
    /// # Errors
    /// When values of this type have no fields.
    fn get(&self, field: &str) -> Result<Option<Value>, EvalError> {
        let _ = field;
        Err(EvalError::no_such_overload())
    }

    /// Whether both are equal. Values of other types are never equal.
    fn equals(&self, other: &dyn Object) -> bool;

    /// What `size` and the cost of traversing it are counted with, where it has a size.
    fn size(&self) -> Option<u64> {
        None
    }

    /// Whether `optional.ofNonZeroValue` treats it as absent.
    fn is_zero(&self) -> bool {
        false
    }

    /// For downcasts.
    fn as_any(&self) -> &dyn Any;
}

/// A list that somebody else stores.
pub trait ListView: Send + Sync {
    /// How many elements there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element at an index below `len`.
    ///
    /// # Errors
    /// When the stored data do not fit the declared type.
    fn get(&self, index: usize) -> Result<Value, EvalError>;

    /// How the list compares and concatenates.
    fn kind(&self) -> ListKind {
        ListKind::Atomic
    }
}

/// The three ways in which Kubernetes merges lists; equality and `+` follow them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    /// Elements in order.
    Atomic,
    /// Order does not matter, no element occurs twice.
    Set,
    /// Elements are identified by these fields, order does not matter.
    Map(Arc<[String]>),
}

/// A map that somebody else stores.
pub trait MapView: Send + Sync {
    /// How many entries there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of a key.
    ///
    /// # Errors
    /// When the stored data do not fit the declared type, or computing the value fails.
    fn get(&self, key: &Key) -> Result<Option<Value>, EvalError>;

    /// All keys, in order.
    fn keys(&self) -> Vec<Key>;

    /// Whether there is such a key, without looking at its value.
    ///
    /// # Errors
    /// As `get`.
    fn contains(&self, key: &Key) -> Result<bool, EvalError> {
        Ok(self.get(key)?.is_some())
    }
}

/// A list.
#[derive(Clone)]
pub enum List {
    /// Elements in memory.
    Items(Arc<Vec<Value>>),
    /// Somebody else's.
    View(Arc<dyn ListView>),
}

/// A map.
#[derive(Clone)]
pub enum Map {
    /// Entries in memory.
    Entries(Arc<BTreeMap<Key, Value>>),
    /// Somebody else's.
    View(Arc<dyn MapView>),
}

/// The key of a map. Integers are equal across signedness, as in the language.
#[derive(Clone, Debug)]
pub enum Key {
    /// A truth value.
    Bool(bool),
    /// A signed integer.
    Int(i64),
    /// An unsigned integer.
    Uint(u64),
    /// Text.
    String(Arc<str>),
}

impl Key {
    /// The key that equals this value, `None` when no key can.
    #[must_use]
    pub fn from_value(value: &Value) -> Option<Key> {
        match value {
            Value::Bool(b) => Some(Key::Bool(*b)),
            Value::Int(i) => Some(Key::Int(*i)),
            Value::Uint(u) => Some(Key::Uint(*u)),
            Value::String(s) => Some(Key::String(s.clone())),
            Value::Double(d) => lossless_int(*d).map(Key::Int).or_else(|| lossless_uint(*d).map(Key::Uint)),
            _ => None,
        }
    }

    /// The key as a value.
    #[must_use]
    pub fn to_value(&self) -> Value {
        match self {
            Key::Bool(b) => Value::Bool(*b),
            Key::Int(i) => Value::Int(*i),
            Key::Uint(u) => Value::Uint(*u),
            Key::String(s) => Value::String(s.clone()),
        }
    }

    /// The text of a string key.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Key::String(s) => Some(s),
            _ => None,
        }
    }

    fn rank(&self) -> (u8, i128) {
        match self {
            Key::Bool(b) => (0, i128::from(*b)),
            Key::Int(i) => (1, i128::from(*i)),
            Key::Uint(u) => (1, i128::from(*u)),
            Key::String(_) => (2, 0),
        }
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Key::String(a), Key::String(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Key {}

/// 2^63, the first number above all signed integers.
const TWO_63: f64 = 9_223_372_036_854_775_808.0;

pub(crate) fn lossless_int(d: f64) -> Option<i64> {
    #[allow(clippy::cast_possible_truncation, reason = "the range was checked")]
    (d.fract() == 0.0 && (-TWO_63..TWO_63).contains(&d)).then_some(d as i64)
}

pub(crate) fn lossless_uint(d: f64) -> Option<u64> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was checked")]
    (d.fract() == 0.0 && (0.0..TWO_63 * 2.0).contains(&d)).then_some(d as u64)
}

impl List {
    /// How many elements there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            List::Items(items) => items.len(),
            List::View(view) => view.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element at an index below `len`.
    ///
    /// # Errors
    /// When the stored data do not fit the declared type.
    pub fn get(&self, index: usize) -> Result<Value, EvalError> {
        match self {
            List::Items(items) => {
                items.get(index).cloned().ok_or_else(|| EvalError::new(format!("index out of bounds: {index}")))
            }
            List::View(view) => view.get(index),
        }
    }

    /// The elements, in order.
    pub fn iter(&self) -> impl Iterator<Item = Result<Value, EvalError>> + '_ {
        (0..self.len()).map(|i| self.get(i))
    }

    pub(crate) fn first(&self) -> Option<Value> {
        if self.is_empty() { None } else { self.get(0).ok() }
    }

    /// How the list compares and concatenates.
    #[must_use]
    pub fn kind(&self) -> ListKind {
        match self {
            List::Items(_) => ListKind::Atomic,
            List::View(view) => view.kind(),
        }
    }

    /// All elements.
    ///
    /// # Errors
    /// When the stored data do not fit the declared type.
    pub fn to_vec(&self) -> Result<Vec<Value>, EvalError> {
        self.iter().collect()
    }

    /// Whether an element equals `value`.
    ///
    /// # Errors
    /// When the stored data do not fit the declared type.
    pub fn contains(&self, value: &Value) -> Result<bool, EvalError> {
        for item in self.iter() {
            if item?.equals(value)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn equals(&self, other: &List) -> Result<bool, EvalError> {
        if self.len() != other.len() {
            return Ok(false);
        }
        match self.kind() {
            ListKind::Atomic => {
                for i in 0..self.len() {
                    if !self.get(i)?.equals(&other.get(i)?)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            ListKind::Set => {
                let (mine, theirs) = (self.to_vec()?, other.to_vec()?);
                Ok(covers(&mine, &theirs)? && covers(&theirs, &mine)?)
            }
            ListKind::Map(keys) => {
                let mine = self.to_vec()?;
                for theirs in other.iter() {
                    let theirs = theirs?;
                    let mut found = false;
                    for own in &mine {
                        if same_keys(own, &theirs, &keys)? {
                            found = own.equals(&theirs)?;
                            break;
                        }
                    }
                    if !found {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
        }
    }
}

/// Whether every one of `others` occurs in `items`.
fn covers(items: &[Value], others: &[Value]) -> Result<bool, EvalError> {
    for other in others {
        if !occurs(items, other)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether one of `items` equals `value`.
pub(crate) fn occurs(items: &[Value], value: &Value) -> Result<bool, EvalError> {
    for item in items {
        if item.equals(value)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether two elements of a list of type map are the same entry.
pub(crate) fn same_keys(a: &Value, b: &Value, keys: &[String]) -> Result<bool, EvalError> {
    let (Value::Map(a), Value::Map(b)) = (a, b) else { return Ok(false) };
    for key in keys {
        let key = Key::String(key.as_str().into());
        let same = match (a.get(&key)?, b.get(&key)?) {
            (Some(x), Some(y)) => x.equals(&y)?,
            (None, None) => true,
            _ => false,
        };
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Map {
    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Map::Entries(entries) => entries.len(),
            Map::View(view) => view.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of a key.
    ///
    /// # Errors
    /// When the stored data do not fit the declared type, or computing the value fails.
    pub fn get(&self, key: &Key) -> Result<Option<Value>, EvalError> {
        match self {
            Map::Entries(entries) => Ok(entries.get(key).cloned()),
            Map::View(view) => view.get(key),
        }
    }

    /// The value that a value selects.
    ///
    /// # Errors
    /// As `get`.
    pub fn find(&self, key: &Value) -> Result<Option<Value>, EvalError> {
        match Key::from_value(key) {
            Some(key) => self.get(&key),
            None => Ok(None),
        }
    }

    /// Whether there is such a key.
    ///
    /// # Errors
    /// As `get`.
    pub fn contains(&self, key: &Value) -> Result<bool, EvalError> {
        match (self, Key::from_value(key)) {
            (_, None) => Ok(false),
            (Map::Entries(entries), Some(key)) => Ok(entries.contains_key(&key)),
            (Map::View(view), Some(key)) => view.contains(&key),
        }
    }

    /// All keys, in order.
    #[must_use]
    pub fn keys(&self) -> Vec<Key> {
        match self {
            Map::Entries(entries) => entries.keys().cloned().collect(),
            Map::View(view) => view.keys(),
        }
    }

    pub(crate) fn first(&self) -> Option<(Value, Value)> {
        let key = self.keys().into_iter().next()?;
        let value = self.get(&key).ok()??;
        Some((key.to_value(), value))
    }

    fn equals(&self, other: &Map) -> Result<bool, EvalError> {
        if self.len() != other.len() {
            return Ok(false);
        }
        for key in self.keys() {
            let same = match (self.get(&key)?, other.get(&key)?) {
                (Some(a), Some(b)) => a.equals(&b)?,
                _ => false,
            };
            if !same {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Value {
    /// A list of these elements.
    #[must_use]
    pub fn list(items: Vec<Value>) -> Value {
        Value::List(List::Items(Arc::new(items)))
    }

    /// A map of these entries.
    #[must_use]
    pub fn map(entries: BTreeMap<Key, Value>) -> Value {
        Value::Map(Map::Entries(Arc::new(entries)))
    }

    /// A list of strings.
    pub fn strings<S: Into<Arc<str>>>(items: impl IntoIterator<Item = S>) -> Value {
        Value::list(items.into_iter().map(|s| Value::String(s.into())).collect())
    }

    /// An optional that holds `value`.
    #[must_use]
    pub fn some(value: Value) -> Value {
        Value::Optional(Some(Arc::new(value)))
    }

    /// A quantity, as `quantity(text)` makes it.
    ///
    /// # Errors
    /// Why the text is none.
    pub fn quantity(text: &str) -> Result<Value, String> {
        crate::library::quantity::value(text)
    }

    /// A semantic version, as `semver(text)` makes it.
    ///
    /// # Errors
    /// Why the text is none.
    pub fn semver(text: &str) -> Result<Value, String> {
        crate::library::semver::value(text)
    }

    /// Wraps an object.
    pub fn object(object: impl Object) -> Value {
        Value::Object(Arc::new(object))
    }

    /// The object behind the value when it is of type `T`.
    #[must_use]
    pub fn downcast<T: 'static>(&self) -> Option<&T> {
        match self {
            Value::Object(object) => object.as_any().downcast_ref(),
            _ => None,
        }
    }

    /// The text of a string.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(s) => Some(s),
            _ => None,
        }
    }

    /// The truth of a boolean.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(b) => Some(*b),
            _ => None,
        }
    }

    /// The type of the value, with parameters only as far as the language shows them.
    #[must_use]
    pub fn type_of(&self) -> Type {
        match self {
            Value::Null => Type::Null,
            Value::Bool(_) => Type::Bool,
            Value::Int(_) => Type::Int,
            Value::Uint(_) => Type::Uint,
            Value::Double(_) => Type::Double,
            Value::String(_) => Type::String,
            Value::Bytes(_) => Type::Bytes,
            Value::Timestamp(_) => Type::Timestamp,
            Value::Duration(_) => Type::Duration,
            Value::List(_) => Type::list(Type::Dyn),
            Value::Map(_) => Type::map(Type::Dyn, Type::Dyn),
            Value::Optional(_) => Type::optional(Type::Dyn),
            Value::Type(_) => Type::Type(None),
            Value::Object(object) => object.cel_type(),
        }
    }

    /// The name of the type.
    #[must_use]
    pub fn type_name(&self) -> String {
        self.type_of().name().to_owned()
    }

    /// `==` of the language: values of different types differ, numbers compare by value.
    ///
    /// # Errors
    /// When lazily viewed data do not fit their declared type.
    pub fn equals(&self, other: &Value) -> Result<bool, EvalError> {
        Ok(match (self, other) {
            (Value::Null, Value::Null) => true,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::Int(_) | Value::Uint(_) | Value::Double(_), Value::Int(_) | Value::Uint(_) | Value::Double(_)) => {
                compare_numbers(self, other) == Some(Ordering::Equal)
            }
            (Value::String(a), Value::String(b)) => a == b,
            (Value::Bytes(a), Value::Bytes(b)) => a == b,
            (Value::Timestamp(a), Value::Timestamp(b)) => a == b,
            (Value::Duration(a), Value::Duration(b)) => a == b,
            (Value::List(a), Value::List(b)) => a.equals(b)?,
            (Value::Map(a), Value::Map(b)) => a.equals(b)?,
            (Value::Optional(None), Value::Optional(None)) => true,
            (Value::Optional(Some(a)), Value::Optional(Some(b))) => a.equals(b)?,
            (Value::Type(a), Value::Type(b)) => a.name() == b.name(),
            (Value::Object(a), Value::Object(b)) => a.equals(&**b),
            _ => false,
        })
    }

    /// Whether `optional.ofNonZeroValue` treats it as absent.
    pub(crate) fn is_zero(&self) -> bool {
        match self {
            Value::Null => true,
            Value::Bool(b) => !b,
            Value::Int(i) => *i == 0,
            Value::Uint(u) => *u == 0,
            Value::Double(d) => *d == 0.0,
            Value::String(s) => s.is_empty(),
            Value::Bytes(b) => b.is_empty(),
            Value::Timestamp(t) => t.is_zero(),
            Value::Duration(d) => d.nanos() == 0,
            Value::List(list) => list.is_empty(),
            Value::Map(map) => map.is_empty(),
            Value::Optional(inner) => inner.is_none(),
            Value::Type(_) => false,
            Value::Object(object) => object.is_zero(),
        }
    }
}

/// The order of two numbers of any kinds, `None` with NaN.
pub(crate) fn compare_numbers(a: &Value, b: &Value) -> Option<Ordering> {
    #[allow(clippy::cast_precision_loss, reason = "the language compares in floating point")]
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Uint(a), Value::Uint(b)) => Some(a.cmp(b)),
        (Value::Int(a), Value::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Value::Uint(a), Value::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
        (Value::Double(a), Value::Int(b)) => a.partial_cmp(&(*b as f64)),
        (Value::Int(a), Value::Double(b)) => (*a as f64).partial_cmp(b),
        (Value::Double(a), Value::Uint(b)) => a.partial_cmp(&(*b as f64)),
        (Value::Uint(a), Value::Double(b)) => (*a as f64).partial_cmp(b),
        _ => None,
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::String(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::String(text.into())
    }
}

impl From<bool> for Value {
    fn from(b: bool) -> Value {
        Value::Bool(b)
    }
}

impl From<i64> for Value {
    fn from(i: i64) -> Value {
        Value::Int(i)
    }
}

/// As the language writes it; error messages quote values this way.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => f.write_str("null"),
            Value::Bool(b) => write!(f, "{b}"),
            Value::Int(i) => write!(f, "{i}"),
            Value::Uint(u) => write!(f, "{u}"),
            Value::Double(d) => f.write_str(&crate::number::shortest(*d)),
            Value::String(s) => f.write_str(s),
            Value::Bytes(b) => f.write_str(&String::from_utf8_lossy(b)),
            Value::Timestamp(t) => write!(f, "{t}"),
            Value::Duration(d) => write!(f, "{d}"),
            Value::List(list) => {
                f.write_str("[")?;
                for (i, item) in list.iter().enumerate() {
                    if i > 0 {
                        f.write_str(", ")?;
                    }
                    match item {
                        Ok(item) => write!(f, "{item}")?,
                        Err(error) => write!(f, "{error}")?,
                    }
                }
                f.write_str("]")
            }
            Value::Map(map) => {
                f.write_str("{")?;
                for (i, key) in map.keys().into_iter().enumerate() {
                    if i > 0 {
                        f.write_str(", ")?;
                    }
                    write!(f, "{}: ", key.to_value())?;
                    match map.get(&key) {
                        Ok(Some(value)) => write!(f, "{value}")?,
                        Ok(None) => {}
                        Err(error) => write!(f, "{error}")?,
                    }
                }
                f.write_str("}")
            }
            Value::Optional(None) => f.write_str("optional.none()"),
            Value::Optional(Some(inner)) => write!(f, "optional({inner})"),
            Value::Type(t) => f.write_str(t.name()),
            Value::Object(object) => write!(f, "{object:?}"),
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Uint(u) => write!(f, "{u}u"),
            Value::Double(d) => write!(f, "{d:?}"),
            Value::String(s) => write!(f, "{s:?}"),
            Value::Bytes(b) => write!(f, "b\"{}\"", b.escape_ascii()),
            Value::Timestamp(t) => write!(f, "timestamp({t})"),
            Value::Duration(d) => write!(f, "duration({d})"),
            Value::List(list) => f.debug_list().entries(list.iter()).finish(),
            Value::Map(map) => f.debug_map().entries(map.keys().into_iter().map(|k| (k.clone(), map.get(&k)))).finish(),
            Value::Type(t) => write!(f, "type({t})"),
            _ => write!(f, "{self}"),
        }
    }
}
