//! What the error stream says about how a command ended.

use serde_json::{Value, json};

/// How an exec or attach ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0, or an attach that ended.
    Success,
    /// Another exit code.
    Exit {
        /// The code.
        code: i32,
    },
    /// It could not be run; the sentence to show.
    Failed(String),
}

impl Outcome {
    /// The outcome of an exit code.
    #[must_use]
    pub fn of_exit(code: i32) -> Self {
        if code == 0 { Outcome::Success } else { Outcome::Exit { code } }
    }

    /// The `metav1.Status` of protocol `v4` and later.
    #[must_use]
    pub fn to_status(&self) -> Value {
        match self {
            Outcome::Success => json!({"metadata": {}, "status": "Success"}),
            Outcome::Exit { code } => json!({
                "metadata": {},
                "status": "Failure",
                "message": exit_message(*code),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Outcome::Failed(message) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {message}"),
                "reason": "InternalError",
                "details": {"causes": [{"message": message}]},
                "code": 500,
            }),
        }
    }

    /// The plain text of protocols before `v4`; nothing on success.
    #[must_use]
    pub fn to_text(&self) -> String {
        match self {
            Outcome::Success => String::new(),
            Outcome::Exit { code } => exit_message(*code),
            Outcome::Failed(message) => message.clone(),
        }
    }
}

fn exit_message(code: i32) -> String {
    format!("command terminated with non-zero exit code: exit code {code}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_travel_as_a_cause() {
        let status = Outcome::of_exit(3).to_status();
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
        assert_eq!(Outcome::of_exit(0).to_status()["status"], "Success");
        assert_eq!(Outcome::of_exit(0).to_text(), "");
        assert_eq!(Outcome::Failed("no".into()).to_status()["message"], "Internal error occurred: no");
    }
}
