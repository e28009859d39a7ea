//! Flags that say who may ask, with kube-apiserver's names.

use crate::bootstrap::Pki;
use anyhow::{Context, Result, bail};
use clap::{ArgAction, Args};
use gantry_server::access::{AccessConfig, RequestHeader};
use std::path::{Path, PathBuf};

/// Who may ask, and how the server proves itself to the servers it passes requests on to.
#[derive(Args, Clone, Debug)]
pub struct AccessOptions {
    /// Client certificate for aggregated API servers, PEM; one of the cluster's own front proxy authority unless given
    #[arg(long, value_name = "FILE", requires = "proxy_client_key_file")]
    pub proxy_client_cert_file: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "proxy_client_cert_file")]
    pub proxy_client_key_file: Option<PathBuf>,
    /// Authorities of the client certificates of proxies that are believed about users, PEM; the cluster's own front proxy
    /// authority unless given
    #[arg(long, value_name = "FILE")]
    pub requestheader_client_ca_file: Option<PathBuf>,
    /// Common names of the certificates of such proxies; any where empty
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub requestheader_allowed_names: Vec<String>,
    /// Headers with the name of the user
    #[arg(long, value_name = "HEADERS", value_delimiter = ',', default_value = "X-Remote-User")]
    pub requestheader_username_headers: Vec<String>,
    /// Headers with the UID of the user
    #[arg(long, value_name = "HEADERS", value_delimiter = ',', default_value = "X-Remote-Uid")]
    pub requestheader_uid_headers: Vec<String>,
    /// Headers with the groups of the user
    #[arg(long, value_name = "HEADERS", value_delimiter = ',', default_value = "X-Remote-Group")]
    pub requestheader_group_headers: Vec<String>,
    /// Prefixes of headers with extra attributes of the user
    #[arg(long, value_name = "PREFIXES", value_delimiter = ',', default_value = "X-Remote-Extra-")]
    pub requestheader_extra_headers_prefix: Vec<String>,
    /// Reach aggregated API servers at their endpoints instead of at the address of their Service
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value_t = false, default_missing_value = "true")]
    pub enable_aggregator_routing: bool,
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn trimmed(flag: &str, names: &[String]) -> Result<Vec<String>> {
    let trim = |name: &String| match name.trim() {
        "" => bail!("--{flag}: empty header {name:?}"),
        name => Ok(name.to_owned()),
    };
    names.iter().map(trim).collect()
}

impl AccessOptions {
    /// What the flags say; what they leave open comes from the cluster's own keys.
    ///
    /// # Errors
    /// Names the flag or the file.
    pub fn config(&self, pki: &Pki) -> Result<AccessConfig> {
        let (authority, own) = pki.front_proxy()?;
        let proxy_client = match (&self.proxy_client_cert_file, &self.proxy_client_key_file) {
            (Some(certificate), Some(key)) => (read(certificate)?, read(key)?),
            _ => (own.cert_pem, own.key_pem),
        };
        let (ca_pem, allowed_names) = match &self.requestheader_client_ca_file {
            Some(file) => (read(file)?, self.requestheader_allowed_names.clone()),
            None if self.requestheader_allowed_names.is_empty() => {
                (authority.cert_pem, vec!["front-proxy-client".to_owned()])
            }
            None => (authority.cert_pem, self.requestheader_allowed_names.clone()),
        };
        let request_header = RequestHeader {
            ca_pem,
            allowed_names,
            username_headers: trimmed("requestheader-username-headers", &self.requestheader_username_headers)?,
            uid_headers: trimmed("requestheader-uid-headers", &self.requestheader_uid_headers)?,
            group_headers: trimmed("requestheader-group-headers", &self.requestheader_group_headers)?,
            extra_header_prefixes: trimmed(
                "requestheader-extra-headers-prefix",
                &self.requestheader_extra_headers_prefix,
            )?,
        };
        Ok(AccessConfig {
            proxy_client: Some(proxy_client),
            request_header: Some(request_header),
            aggregator_routing: self.enable_aggregator_routing,
        })
    }
}
