//! Server-side apply: scenarios, and a slow independent model it must agree with.

mod reference;
mod scenarios;

use super::managed;
use super::{ApplyError, FieldManager};
use serde_json::Value;

impl FieldManager<'_> {
    /// As [`FieldManager::apply`], also where the result is the live object as it is: made anew then.
    fn apply_anew(
        &self,
        live: Option<Value>,
        config: &Value,
        manager: &str,
        force: bool,
        now: &str,
    ) -> Result<Value, ApplyError> {
        let (mut merged, owners, _) = self.applied(live, config, manager, force, now)?;
        managed::encode(&mut merged, owners);
        Ok(merged)
    }
}
