//! ServiceAccount tokens: JSON Web Tokens signed with ES256, bound to a ServiceAccount and optionally to a pod, node or
//! secret, with an audience and an end.

mod claims;
mod keys;
pub mod legacy;
mod verify;

#[cfg(test)]
mod tests;

pub use claims::{Bound, Claims, NamedObject, PrivateClaims};
pub use keys::{KeyError, Keys};
pub use verify::TokenAuthenticator;

use crate::authn::UserInfo;

/// A token asked for with exactly this lifetime in seconds (the projected volume that every pod gets) is in fact good for
/// [`EXTENDED_SECONDS`], because old clients read the file only once; from this age on its use is logged.
pub const WARN_AFTER_SECONDS: i64 = 3607;
/// Lifetime of such a token: a year.
pub const EXTENDED_SECONDS: i64 = 365 * 24 * 3600;

/// `(namespace, name)` of a ServiceAccount's user name.
#[must_use]
pub fn split_username(username: &str) -> Option<(&str, &str)> {
    let (namespace, name) = username.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

/// The groups of every ServiceAccount of a namespace.
#[must_use]
pub fn groups(namespace: &str) -> Vec<String> {
    vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]
}
