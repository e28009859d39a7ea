//! TokenRequest: the body of `serviceaccounts/token`.

use crate::kind::{Kind, ResourceInfo, Verb};
use crate::meta::field::{ErrorList, Path};
use k8s_openapi::api::authentication::v1::TokenRequest;

/// Shortest lifetime that may be asked for, in seconds.
const SECONDS_MIN: i64 = 600;
/// Longest lifetime that may be asked for, in seconds.
const SECONDS_MAX: i64 = 1 << 32;

impl Kind for TokenRequest {
    const INFO: ResourceInfo = ResourceInfo {
        verbs: &[Verb::Create],
        virtual_only: true,
        ..ResourceInfo::new("authentication.k8s.io", "v1", "TokenRequest", "tokenrequests", "tokenrequest", true)
    };
    crate::kind_codec!();

    fn set_defaults(&mut self) {
        self.spec.get_or_insert_default().expiration_seconds.get_or_insert(3600);
    }

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        let at = Path::new("spec").child("expirationSeconds");
        let seconds = self.spec.as_ref().and_then(|s| s.expiration_seconds).unwrap_or(3600);
        if seconds < SECONDS_MIN {
            e.invalid(&at, seconds, "may not specify a duration less than 10 minutes");
        }
        if seconds > SECONDS_MAX {
            e.invalid(&at, seconds, "may not specify a duration larger than 2^32 seconds");
        }
        e
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetime_has_bounds() {
        for (seconds, fine) in [(None, true), (Some(599), false), (Some(600), true), (Some((1 << 32) + 1), false)] {
            let mut r = TokenRequest::default();
            r.spec.get_or_insert_default().expiration_seconds = seconds;
            r.set_defaults();
            assert_eq!(r.validate().is_empty(), fine, "{seconds:?}");
        }
    }
}
