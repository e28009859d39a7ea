//! Users told by an authenticating proxy in headers, believed because of its client certificate
//! (`k8s.io/apiserver/pkg/authentication/request/headerrequest`).

use super::{AUTHENTICATED, Authenticator, Peer, UserInfo, invalid_credentials};
use crate::access::RequestHeader;
use async_trait::async_trait;
use gantry_api::meta::status::ApiError;
use http::HeaderMap;
use std::collections::BTreeMap;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Takes the user from the headers of a proxy that may speak for others.
pub struct HeaderRequest {
    config: RequestHeader,
}

impl HeaderRequest {
    /// Believes the proxies of this configuration.
    #[must_use]
    pub fn new(config: RequestHeader) -> Self {
        Self { config }
    }

    fn is_allowed(&self, leaf: &[u8]) -> Result<(), String> {
        if self.config.allowed_names.is_empty() {
            return Ok(());
        }
        let (_, certificate) = X509Certificate::from_der(leaf).map_err(|e| format!("client certificate: {e}"))?;
        let name = certificate.subject().iter_common_name().next().and_then(|n| n.as_str().ok()).unwrap_or_default();
        if self.config.allowed_names.iter().any(|a| a == name) {
            return Ok(());
        }
        Err(format!("x509: subject with cn={name} is not in the allowed list"))
    }

    fn user(&self, headers: &HeaderMap) -> Option<UserInfo> {
        let values = |name: &String| -> Vec<String> {
            let all = headers.get_all(name.as_str()).iter().filter_map(|v| std::str::from_utf8(v.as_bytes()).ok());
            all.filter(|v| !v.is_empty()).map(str::to_owned).collect()
        };
        let first = |names: &[String]| names.iter().find_map(|n| values(n).into_iter().next());
        let username = first(&self.config.username_headers)?;
        let uid = first(&self.config.uid_headers).unwrap_or_default();
        let mut groups: Vec<String> = self.config.group_headers.iter().flat_map(values).collect();
        if !groups.iter().any(|g| g == AUTHENTICATED) {
            groups.push(AUTHENTICATED.into());
        }
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for prefix in &self.config.extra_header_prefixes {
            let prefix = prefix.to_ascii_lowercase();
            for (name, value) in headers {
                let Some(key) = name.as_str().strip_prefix(&prefix) else { continue };
                let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
                extra.entry(super::impersonation::unescape(key)).or_default().push(value);
            }
        }
        Some(UserInfo { username, uid, groups, extra })
    }

    /// Whether a request names a user in a header that this believes.
    #[must_use]
    pub fn is_told(&self, headers: &HeaderMap) -> bool {
        self.config.username_headers.iter().any(|n| headers.contains_key(n.as_str()))
    }
}

#[async_trait]
impl Authenticator for HeaderRequest {
    async fn authenticate(&self, parts: &http::request::Parts, peer: &Peer) -> Result<Option<UserInfo>, ApiError> {
        let Some(leaf) = peer.certificates.first() else { return Ok(None) };
        if !self.is_told(&parts.headers) {
            return Ok(None);
        }
        if !peer.is_proxy {
            return Err(invalid_credentials("x509: certificate signed by unknown authority"));
        }
        self.is_allowed(leaf).map_err(invalid_credentials)?;
        Ok(self.user(&parts.headers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(allowed: &[&str]) -> HeaderRequest {
        let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        HeaderRequest::new(RequestHeader {
            ca_pem: String::new(),
            allowed_names: list(allowed),
            username_headers: list(&["X-Remote-User"]),
            uid_headers: list(&["X-Remote-Uid"]),
            group_headers: list(&["X-Remote-Group"]),
            extra_header_prefixes: list(&["X-Remote-Extra-"]),
        })
    }

    fn leaf(name: &str) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[tokio::test]
    async fn headers_are_believed_from_proxies_only() {
        let request = http::Request::builder()
            .header("x-remote-user", "bob")
            .header("x-remote-uid", "7")
            .header("x-remote-group", "a")
            .header("x-remote-group", "b")
            .header("x-remote-extra-example.com%2fscopes", "read");
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let peer = Peer { certificates: vec![leaf("front-proxy-client")], is_proxy: true, ..Peer::default() };
        let user = proxy(&["front-proxy-client"]).authenticate(&parts, &peer).await.unwrap().unwrap();
        assert_eq!((user.username.as_str(), user.uid.as_str()), ("bob", "7"));
        assert_eq!(user.groups, ["a", "b", "system:authenticated"]);
        assert_eq!(user.extra["example.com/scopes"], ["read"]);
        let other = proxy(&["another"]).authenticate(&parts, &peer).await.unwrap_err();
        assert_eq!(other.message, "x509: subject with cn=front-proxy-client is not in the allowed list");
        let stranger = Peer { is_proxy: false, is_client: true, ..peer };
        assert!(proxy(&[]).authenticate(&parts, &stranger).await.is_err());
        assert!(proxy(&[]).authenticate(&parts, &Peer::default()).await.unwrap().is_none());
    }
}
