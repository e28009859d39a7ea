//! Fills Secrets of type `kubernetes.io/service-account-token` with the token of their ServiceAccount, the cluster's CA and
//! the namespace, as they are written.

use crate::authn::service_account::legacy::{ACCOUNT_NAME, ACCOUNT_UID, LegacyClaims, SECRET_TYPE};
use crate::authn::service_account::{KeyError, Keys};
use crate::cluster::Cluster;
use crate::config::ServerConfig;
use crate::registry::hooks::Hook;
use async_trait::async_trait;
use gantry_api::k8s_openapi::ByteString;
use gantry_api::k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use gantry_api::kind::{Object, downcast_mut};
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;

pub(super) struct TokenSecret {
    keys: Keys,
    ca_pem: String,
}

impl TokenSecret {
    pub(super) fn new(config: &ServerConfig) -> Result<Self, KeyError> {
        Ok(Self { keys: Keys::from_pem(&config.service_account_key_pem)?, ca_pem: config.cluster_ca_pem.clone() })
    }
}

#[async_trait]
impl Hook for TokenSecret {
    fn resource(&self) -> (&'static str, &'static str) {
        ("", "secrets")
    }

    async fn before_validate(
        &self,
        object: &mut dyn Object,
        _old: Option<&dyn Object>,
        _dry_run: bool,
        cluster: &Cluster,
    ) -> Result<(), ApiError> {
        let Some(secret) = downcast_mut::<Secret>(object) else { return Ok(()) };
        if secret.type_.as_deref() != Some(SECRET_TYPE) {
            return Ok(());
        }
        let Some(name) = secret.metadata.annotation(ACCOUNT_NAME).map(ToOwned::to_owned) else { return Ok(()) };
        let namespace = secret.metadata.namespace().to_owned();
        // Without its account the Secret stays empty; a token for nobody is no use.
        let Some(account) = cluster.get_latest::<ServiceAccount>(&namespace, &name).await? else { return Ok(()) };
        let uid = account.metadata.uid();
        let same_account = secret.metadata.annotation(ACCOUNT_UID).is_none_or(|u| u == uid);
        if !same_account {
            return Ok(());
        }
        let claims = LegacyClaims::new(&namespace, secret.metadata.name(), &name, uid);
        secret.metadata.annotations.get_or_insert_default().insert(ACCOUNT_UID.into(), uid.to_owned());
        let data = secret.data.get_or_insert_default();
        if data.get("token").is_none_or(|t| t.0.is_empty()) {
            let token =
                self.keys.sign(&claims).map_err(|e| ApiError::internal(format!("failed to generate token: {e}")))?;
            data.insert("token".into(), ByteString(token.into_bytes()));
        }
        data.insert("ca.crt".into(), ByteString(self.ca_pem.clone().into_bytes()));
        data.insert("namespace".into(), ByteString(namespace.into_bytes()));
        Ok(())
    }
}
