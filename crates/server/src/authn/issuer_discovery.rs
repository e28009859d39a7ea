//! The documents with which others verify ServiceAccount tokens: `/.well-known/openid-configuration` and `/openid/v1/jwks`.

use super::service_account::{KeyError, Keys};
use crate::config::ServerConfig;
use serde_json::json;

/// Path of the configuration document.
pub const CONFIGURATION_PATH: &str = "/.well-known/openid-configuration";
/// Path of the key set.
pub const KEYS_PATH: &str = "/openid/v1/jwks";
/// Media type of the key set.
pub const KEYS_MEDIA_TYPE: &str = "application/jwk-set+json";

/// Both documents as JSON text.
#[derive(Clone, Debug)]
pub struct Documents {
    /// Answer for [`CONFIGURATION_PATH`], `application/json`.
    pub configuration: Vec<u8>,
    /// Answer for [`KEYS_PATH`], [`KEYS_MEDIA_TYPE`].
    pub keys: Vec<u8>,
}

/// The documents of this configuration's issuer and key.
///
/// # Errors
/// Where the key cannot be read.
pub fn documents(config: &ServerConfig) -> Result<Documents, KeyError> {
    let keys = Keys::from_pem(&config.service_account_key_pem)?;
    let issuer = &config.service_account_issuer;
    // Keys are fetched from where clients reach this server, which the issuer URL need not be.
    let base = match config.advertise {
        Some((ip, port)) => format!("https://{}", std::net::SocketAddr::new(ip, port)),
        None => issuer.trim_end_matches('/').to_owned(),
    };
    let configuration = json!({
        "issuer": issuer,
        "jwks_uri": format!("{base}{KEYS_PATH}"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    });
    Ok(Documents {
        configuration: configuration.to_string().into_bytes(),
        keys: json!({"keys": [keys.jwk()]}).to_string().into_bytes(),
    })
}
