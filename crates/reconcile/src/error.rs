//! Why a reconciliation failed.

use gantry_client::Error as ClientError;

/// A reconciliation's failure. The key goes back to the queue with back-off.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A request failed.
    #[error("{action}: {source}")]
    Api {
        /// What was being done, with the object's name.
        action: String,
        /// The failure.
        source: ClientError,
    },
    /// Anything else that trying again may cure.
    #[error("{0}")]
    Other(String),
    /// Several at once.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Many(Vec<Error>),
}

impl Error {
    /// A failed request.
    #[must_use]
    pub fn api(action: impl Into<String>, source: ClientError) -> Self {
        Self::Api { action: action.into(), source }
    }

    /// All failures as one; Ok where there are none.
    ///
    /// # Errors
    /// Where `errors` is not empty.
    pub fn collect(mut errors: Vec<Error>) -> Result<(), Error> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Error::Many(errors)),
        }
    }

    /// Whether the server's reason is `reason`.
    #[must_use]
    pub fn is(&self, reason: &str) -> bool {
        matches!(self, Error::Api { source, .. } if source.is(reason))
    }

    /// Whether this is ordinary business of several writers meeting (a conflict), not worth a warning.
    #[must_use]
    pub fn is_routine(&self) -> bool {
        match self {
            Error::Api { source, .. } => source.is("Conflict") || source.is("AlreadyExists"),
            Error::Other(_) => false,
            Error::Many(all) => all.iter().all(Error::is_routine),
        }
    }
}
