//! The two rounds of mutating admission. Where a webhook changed the object, all mutating plugins run a second time: those
//! in the tree see what was added, and webhooks that asked for it see what came after them.

use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;

/// Time that all admission of one request may take (upstream's `requestTimeoutUpperBound`).
const ADMISSION_TIME_MAX: Duration = Duration::from_secs(34);

/// What plugins know of the rounds of their request.
pub struct Rounds {
    /// Whether this is the second round.
    pub again: bool,
    /// Set by a plugin whose change calls for a second round.
    pub wanted: bool,
    /// When the request has to be decided.
    pub deadline: Instant,
    /// Mutating webhooks.
    pub webhooks: Memory,
}

impl Default for Rounds {
    fn default() -> Self {
        Self::until(Instant::now() + ADMISSION_TIME_MAX)
    }
}

impl Rounds {
    /// The first round of a request that has to be decided by `deadline`.
    #[must_use]
    pub fn until(deadline: Instant) -> Self {
        Self { again: false, wanted: false, deadline, webhooks: Memory::default() }
    }
}

/// Which of a sort of mutators have been called, and which are to be called again.
#[derive(Default)]
pub struct Memory {
    last_output: Option<Value>,
    called: BTreeSet<String>,
    again: BTreeSet<String>,
}

impl Memory {
    /// Called at the beginning of the second round: where others changed the object since, all are called again that
    /// asked for it.
    pub fn begin_again(&mut self, object: &Value) {
        if self.last_output.as_ref() != Some(object) {
            self.changed();
        }
    }

    /// Called at the end of a round.
    pub fn end(&mut self, object: Value) {
        self.last_output = Some(object);
    }

    /// A mutator changed the object: those called before it are to be called again.
    pub fn changed(&mut self) {
        self.again.append(&mut self.called);
    }

    /// A mutator that asks to be called again was called.
    pub fn called(&mut self, id: &str) {
        self.called.insert(id.to_owned());
    }

    /// Whether a mutator is to be called in the second round.
    #[must_use]
    pub fn is_due(&self, id: &str) -> bool {
        self.again.contains(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn those_before_a_change_come_again() {
        let mut m = Memory::default();
        m.called("a");
        m.changed();
        m.called("b");
        m.end(json!(1));
        m.begin_again(&json!(1));
        assert!(m.is_due("a") && !m.is_due("b"));
        m.begin_again(&json!(2));
        assert!(m.is_due("b"));
    }
}
