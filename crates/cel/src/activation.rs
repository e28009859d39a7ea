//! The values of variables.

use std::collections::HashMap;
use std::sync::Arc;

use crate::value::{EvalError, Value};

/// Gives variables their values. Expressions that nest deep are evaluated on a thread of their own.
pub trait Variables: Sync {
    /// The value of a variable, `None` when there is no such variable.
    ///
    /// # Errors
    /// When the value has to be computed and that fails.
    fn resolve(&self, name: &str) -> Result<Option<Value>, EvalError>;
}

/// Variables with values that are known beforehand.
#[derive(Clone, Default)]
pub struct Activation {
    values: HashMap<Arc<str>, Value>,
}

impl Activation {
    /// No variables.
    #[must_use]
    pub fn new() -> Activation {
        Activation::default()
    }

    /// With one more variable.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Activation {
        self.set(name, value);
        self
    }

    /// Gives a variable a value.
    pub fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.values.insert(name.into(), value.into());
    }
}

impl Variables for Activation {
    fn resolve(&self, name: &str) -> Result<Option<Value>, EvalError> {
        Ok(self.values.get(name).cloned())
    }
}
