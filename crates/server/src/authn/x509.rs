//! Client certificates: the common name is the user, each organization a group.

use super::{AUTHENTICATED, Authenticator, EXTRA_CREDENTIAL_ID, Peer, UserInfo, invalid_credentials};
use async_trait::async_trait;
use aws_lc_rs::digest::{SHA256, digest};
use gantry_api::clock::Clock;
use gantry_api::k8s_openapi::jiff::Timestamp;
use gantry_api::meta::status::ApiError;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use x509_parser::oid_registry::Oid;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Certificates whose users are remembered; reading one takes ten times as long as finding it again.
const REMEMBERED_MAX: usize = 1024;

/// Takes the user from the client certificate that the TLS layer verified.
pub struct ClientCertificate {
    clock: Clock,
    known: Mutex<HashMap<Vec<u8>, Option<Arc<Holder>>>>,
}

/// The user a certificate speaks for, and when it does (Unix seconds, inclusive).
#[derive(Debug)]
struct Holder {
    user: UserInfo,
    from: i64,
    until: i64,
}

impl ClientCertificate {
    /// Reads validity periods by `clock`.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { clock, known: Mutex::default() }
    }

    fn holder(&self, der: &[u8]) -> Result<Option<Arc<Holder>>, String> {
        if let Some(known) = self.known.lock().get(der) {
            return Ok(known.clone());
        }
        let holder = holder_of(der)?.map(Arc::new);
        let mut known = self.known.lock();
        if known.len() >= REMEMBERED_MAX {
            known.clear();
        }
        known.insert(der.to_vec(), holder.clone());
        Ok(holder)
    }
}

/// The attribute that carries a user's UID (`1.3.6.1.4.1.57683.2`).
const UID: &[u64] = &[1, 3, 6, 1, 4, 1, 57683, 2];

/// Reads a certificate; None where it has no common name.
///
/// # Errors
/// Where it cannot be parsed.
fn holder_of(der: &[u8]) -> Result<Option<Holder>, String> {
    let (_, cert) = X509Certificate::from_der(der).map_err(|e| format!("client certificate: {e}"))?;
    let subject = cert.subject();
    let Some(name) = subject.iter_common_name().next().and_then(|cn| cn.as_str().ok()).filter(|n| !n.is_empty()) else {
        return Ok(None);
    };
    let mut groups: Vec<String> =
        subject.iter_organization().filter_map(|o| o.as_str().ok()).map(ToOwned::to_owned).collect();
    groups.push(AUTHENTICATED.into());
    let uid_oid = Oid::from(UID).map_err(|_| "object identifier of the UID attribute".to_owned())?;
    let uid = subject.iter_by_oid(&uid_oid).next().and_then(|u| u.as_str().ok()).unwrap_or_default().to_owned();
    let fingerprint: String = digest(&SHA256, der).as_ref().iter().map(|b| format!("{b:02x}")).collect();
    let extra = [(EXTRA_CREDENTIAL_ID.to_owned(), vec![format!("X509SHA256={fingerprint}")])].into();
    let user = UserInfo { username: name.to_owned(), uid, groups, extra };
    let validity = cert.validity();
    Ok(Some(Holder { user, from: validity.not_before.timestamp(), until: validity.not_after.timestamp() }))
}

/// The user, if the certificate is within its validity period at `now`: TLS checked that when the connection began, which
/// may be long ago.
fn user_at(holder: &Holder, now: Timestamp) -> Result<UserInfo, String> {
    let problem = "x509: certificate has expired or is not yet valid";
    match now.as_second() {
        s if s > holder.until => Err(format!("{problem}: the client certificate has expired")),
        s if s < holder.from => Err(format!("{problem}: the client certificate is not yet valid")),
        _ => Ok(holder.user.clone()),
    }
}

#[async_trait]
impl Authenticator for ClientCertificate {
    async fn authenticate(&self, _parts: &http::request::Parts, peer: &Peer) -> Result<Option<UserInfo>, ApiError> {
        let Some(der) = peer.certificates.first() else {
            return Ok(None);
        };
        if !peer.is_client {
            return Err(invalid_credentials("x509: certificate signed by unknown authority"));
        }
        let Some(holder) = self.holder(der).map_err(invalid_credentials)? else { return Ok(None) };
        user_at(&holder, self.clock.now()).map(Some).map_err(invalid_credentials)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    fn certificate(cn: Option<&str>, organizations: &[&str]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(cn) = cn {
            params.distinguished_name.push(DnType::CommonName, cn);
        }
        for o in organizations {
            params.distinguished_name.push(DnType::OrganizationName, *o);
        }
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn names_and_groups_come_from_the_subject() {
        let now = "2025-01-01T00:00:00Z".parse().unwrap();
        let holder = holder_of(&certificate(Some("system:node:n1"), &["system:nodes"])).unwrap().unwrap();
        let user = user_at(&holder, now).unwrap();
        assert_eq!((user.username.as_str(), user.node_name()), ("system:node:n1", Some("n1")));
        assert_eq!(user.groups, ["system:nodes", "system:authenticated"]);
        assert!(user.extra_value(EXTRA_CREDENTIAL_ID).unwrap().starts_with("X509SHA256="));
        assert!(holder_of(&certificate(None, &["g"])).unwrap().is_none());
    }

    #[test]
    fn the_validity_period_counts_at_each_request() {
        let holder = holder_of(&certificate(Some("a"), &[])).unwrap().unwrap();
        for (now, fine) in
            [("2019-12-31T00:00:00Z", false), ("2029-12-31T00:00:00Z", true), ("2030-01-02T00:00:00Z", false)]
        {
            assert_eq!(user_at(&holder, now.parse().unwrap()).is_ok(), fine, "{now}");
        }
        assert!(holder_of(b"nonsense").is_err());
    }
}
