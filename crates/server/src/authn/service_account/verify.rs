//! Recognises ServiceAccount tokens: signature, time, audience, and that everything the token is bound to still exists.

use super::legacy::{INVALID_SINCE, ISSUER, LAST_USED, LegacyClaims};
use super::{Claims, KeyError, Keys, NamedObject, groups, split_username};
use crate::authn::jwt::untrusted_issuer;
use crate::authn::{
    AUTHENTICATED, Authenticator, EXTRA_CREDENTIAL_ID, EXTRA_NODE_NAME, EXTRA_NODE_UID, EXTRA_POD_NAME, EXTRA_POD_UID,
    Peer, UserInfo, invalid_credentials,
};
use crate::cluster::{Cluster, resource_of};
use crate::config::ServerConfig;
use async_trait::async_trait;
use aws_lc_rs::digest::{SHA256, digest};
use gantry_api::k8s_openapi::api::core::v1::{Node, Pod, Secret, ServiceAccount};
use gantry_api::k8s_openapi::jiff::tz::TimeZone;
use gantry_api::kind::{Kind, Object};
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Verified signatures that are remembered; verifying one takes about a tenth of a millisecond.
const REMEMBERED_MAX: usize = 4096;
/// Seconds that an object marked for deletion still counts as there, so that a pod can use its token while it stops.
const DELETION_LEEWAY_SECONDS: i64 = 60;

/// What a token with our signature says.
#[derive(Debug, serde::Deserialize)]
#[serde(untagged)]
enum Opened {
    Bound(Box<Claims>),
    Secret(LegacyClaims),
}

impl Opened {
    fn issuer(&self) -> &str {
        match self {
            Opened::Bound(c) => &c.iss,
            Opened::Secret(c) => &c.iss,
        }
    }
}

/// Authenticates ServiceAccount tokens.
pub struct TokenAuthenticator {
    keys: Keys,
    issuer: String,
    api_audiences: Vec<String>,
    cluster: Cluster,
    opened: Mutex<HashMap<Vec<u8>, Arc<Opened>>>,
}

impl TokenAuthenticator {
    /// Verifies tokens with the configuration's key against the objects of `cluster`.
    ///
    /// # Errors
    /// Where the key cannot be read.
    pub fn new(config: &ServerConfig, cluster: Cluster) -> Result<Self, KeyError> {
        Ok(Self {
            keys: Keys::from_pem(&config.service_account_key_pem)?,
            issuer: config.service_account_issuer.clone(),
            api_audiences: config.api_audiences.clone(),
            cluster,
            opened: Mutex::default(),
        })
    }

    /// The claims, once the signature is known to be ours; None for a token of another issuer.
    fn open(&self, token: &str) -> Result<Option<Arc<Opened>>, ApiError> {
        let key = digest(&SHA256, token.as_bytes()).as_ref().to_vec();
        if let Some(known) = self.opened.lock().get(&key) {
            return Ok(Some(known.clone()));
        }
        // Anything else than three dotted parts is some other sort of token.
        if token.split('.').count() != 3 {
            return Ok(None);
        }
        // One that says it is of another issuer is for others to judge.
        if untrusted_issuer(token).is_some_and(|iss| iss != self.issuer && iss != ISSUER) {
            return Ok(None);
        }
        let claims: Opened =
            self.keys.open(token).map_err(|e| invalid_credentials(format!("invalid bearer token: {e}")))?;
        let ours = match &claims {
            Opened::Bound(_) => claims.issuer() == self.issuer,
            Opened::Secret(_) => claims.issuer() == ISSUER,
        };
        if !ours {
            return Ok(None);
        }
        let claims = Arc::new(claims);
        let mut opened = self.opened.lock();
        if opened.len() >= REMEMBERED_MAX {
            opened.clear();
        }
        opened.insert(key, claims.clone());
        Ok(Some(claims))
    }

    /// The object, looked for behind the cache where the cache does not have it under this UID.
    async fn find<K: Kind>(&self, namespace: &str, wanted: &NamedObject) -> Result<Option<K>, ApiError> {
        let right = |k: &K| wanted.uid.is_empty() || k.meta().uid.as_deref() == Some(wanted.uid.as_str());
        if let Some(found) = self.cluster.get::<K>(namespace, &wanted.name).await?.filter(right) {
            return Ok(Some(found));
        }
        Ok(self.cluster.get_latest::<K>(namespace, &wanted.name).await?.filter(right))
    }

    async fn still_there<K: Kind>(&self, namespace: &str, wanted: Option<&NamedObject>) -> Result<(), ApiError> {
        let Some(wanted) = wanted else { return Ok(()) };
        let Some(found) = self.find::<K>(namespace, wanted).await? else {
            let kind = K::INFO.kind;
            return Err(invalid_credentials(format!(
                "service account token has been invalidated: {kind} {namespace}/{} is gone",
                wanted.name
            )));
        };
        if let Some(deleted) = &found.meta().deletion_timestamp
            && self.cluster.clock.now().as_second() > deleted.0.as_second() + DELETION_LEEWAY_SECONDS
        {
            return Err(invalid_credentials("service account token has been invalidated: its bound object is deleted"));
        }
        Ok(())
    }

    /// A token in a Secret is good for the API server, as long as the Secret holds it and its account lives.
    async fn check_secret(
        &self,
        token: &str,
        claims: &LegacyClaims,
        audiences: &[String],
    ) -> Result<Vec<String>, ApiError> {
        let wanted = if audiences.is_empty() { &self.api_audiences } else { audiences };
        let good_for: Vec<String> = wanted.iter().filter(|a| self.api_audiences.contains(a)).cloned().collect();
        if good_for.is_empty() {
            return Err(invalid_credentials(format!("the token is not valid for the target audiences {wanted:?}")));
        }
        let account = NamedObject { name: claims.account.clone(), uid: claims.account_uid.clone() };
        self.still_there::<ServiceAccount>(&claims.namespace, Some(&account)).await?;
        let holder = NamedObject { name: claims.secret.clone(), uid: String::new() };
        let secret = self.find::<Secret>(&claims.namespace, &holder).await?;
        let holds = |s: &Secret| s.data.as_ref().and_then(|d| d.get("token")).is_some_and(|t| t.0 == token.as_bytes());
        let Some(secret) = secret.filter(holds) else {
            return Err(invalid_credentials("token has been invalidated: its secret does not hold it"));
        };
        self.note_use(&secret).await;
        if secret.metadata.label(INVALID_SINCE).is_some_and(|since| !since.is_empty()) {
            let LegacyClaims { namespace, secret, account, .. } = claims;
            return Err(invalid_credentials(format!(
                "the token in secret {namespace}/{secret} for service account {namespace}/{account} has been marked \
                 invalid. Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the \
                 '{INVALID_SINCE}' label from the secret to temporarily allow use of this token"
            )));
        }
        Ok(good_for)
    }

    /// Labels the Secret with the day its token is used, once a day.
    async fn note_use(&self, secret: &Secret) {
        let today = self.cluster.clock.now().to_zoned(TimeZone::UTC).date();
        let noted = secret.metadata.label(LAST_USED);
        // Another server's day may have begun already.
        let tomorrow = today.tomorrow().unwrap_or(today);
        if noted.is_some_and(|n| n == today.to_string() || n == tomorrow.to_string()) {
            return;
        }
        let (namespace, name) = (secret.metadata.namespace(), secret.metadata.name());
        let mut label = |object: &mut dyn Object| {
            object.meta_mut().labels.get_or_insert_default().insert(LAST_USED.to_owned(), today.to_string());
            Ok(())
        };
        let objects = &self.cluster.objects;
        if let Err(e) = objects.guaranteed_update(resource_of::<Secret>(), namespace, name, false, &mut label).await {
            tracing::warn!(namespace, name, error = %e.message, "the use of a token in a Secret could not be noted");
        }
    }

    async fn check(&self, claims: &Claims, audiences: &[String]) -> Result<Vec<String>, ApiError> {
        let now = self.cluster.clock.now().as_second();
        if now >= claims.exp {
            return Err(invalid_credentials("service account token has expired"));
        }
        // A small leeway for a clock that was set back.
        if now + 60 < claims.nbf {
            return Err(invalid_credentials("service account token is not valid yet"));
        }
        let wanted = if audiences.is_empty() { &self.api_audiences } else { audiences };
        let good_for: Vec<String> = wanted.iter().filter(|a| claims.audiences().contains(a)).cloned().collect();
        if good_for.is_empty() {
            return Err(invalid_credentials(format!(
                "token audiences {:?} is invalid for the target audiences {wanted:?}",
                claims.audiences()
            )));
        }
        let k = &claims.kubernetes;
        if split_username(&claims.sub) != Some((k.namespace.as_str(), k.serviceaccount.name.as_str())) {
            return Err(invalid_credentials("the token's subject and its service account differ"));
        }
        self.still_there::<ServiceAccount>(&k.namespace, Some(&k.serviceaccount)).await?;
        self.still_there::<Secret>(&k.namespace, k.secret.as_ref()).await?;
        self.still_there::<Pod>(&k.namespace, k.pod.as_ref()).await?;
        // The node beside a pod only informs; by itself it binds.
        if k.pod.is_none() {
            self.still_there::<Node>("", k.node.as_ref()).await?;
        }
        if k.warnafter.is_some_and(|w| now > w) {
            tracing::debug!(
                user = claims.sub,
                "use of a ServiceAccount token that should have been read again from its file"
            );
        }
        Ok(good_for)
    }
}

fn user_of(claims: &Claims) -> UserInfo {
    let k = &claims.kubernetes;
    let mut groups = groups(&k.namespace);
    groups.push(AUTHENTICATED.into());
    let mut extra = BTreeMap::new();
    let mut put = |key: &str, value: &str| {
        if !value.is_empty() {
            extra.insert(key.to_owned(), vec![value.to_owned()]);
        }
    };
    if !claims.jti.is_empty() {
        put(EXTRA_CREDENTIAL_ID, &format!("JTI={}", claims.jti));
    }
    if let Some(pod) = &k.pod {
        put(EXTRA_POD_NAME, &pod.name);
        put(EXTRA_POD_UID, &pod.uid);
    }
    if let Some(node) = &k.node {
        put(EXTRA_NODE_NAME, &node.name);
        put(EXTRA_NODE_UID, &node.uid);
    }
    UserInfo { username: claims.sub.clone(), uid: k.serviceaccount.uid.clone(), groups, extra }
}

#[async_trait]
impl Authenticator for TokenAuthenticator {
    async fn authenticate(&self, _parts: &http::request::Parts, _peer: &Peer) -> Result<Option<UserInfo>, ApiError> {
        // Tokens reach this authenticator through `BearerToken`.
        Ok(None)
    }

    async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<(UserInfo, Vec<String>)>, ApiError> {
        let Some(claims) = self.open(token)? else {
            return Ok(None);
        };
        match claims.as_ref() {
            Opened::Bound(claims) => {
                let good_for = self.check(claims, audiences).await?;
                Ok(Some((user_of(claims), good_for)))
            }
            Opened::Secret(claims) => {
                let good_for = self.check_secret(token, claims, audiences).await?;
                Ok(Some((claims.user(), good_for)))
            }
        }
    }
}
