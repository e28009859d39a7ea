//! Reading and writing kubeconfig files.

use crate::https::{ConfigError, Credentials, HttpsConfig, TokenSource};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A kubeconfig (`v1` `Config`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Kubeconfig {
    /// `v1`.
    #[serde(default, rename = "apiVersion")]
    pub api_version: String,
    /// `Config`.
    #[serde(default)]
    pub kind: String,
    /// Clusters by name.
    #[serde(default)]
    pub clusters: Vec<NamedCluster>,
    /// Users by name.
    #[serde(default)]
    pub users: Vec<NamedUser>,
    /// Pairs of cluster and user by name.
    #[serde(default)]
    pub contexts: Vec<NamedContext>,
    /// The context in use.
    #[serde(default)]
    pub current_context: String,
}

/// A cluster under its name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NamedCluster {
    /// Name.
    pub name: String,
    /// Cluster.
    pub cluster: Cluster,
}

/// How to reach an API server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cluster {
    /// `https://host:port`.
    pub server: String,
    /// CA bundle file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_authority: Option<String>,
    /// CA bundle, base64 PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_authority_data: Option<String>,
    /// Do not check the server's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub insecure_skip_tls_verify: Option<bool>,
    /// Name expected in the server's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
}

/// A user under its name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NamedUser {
    /// Name.
    pub name: String,
    /// User.
    #[serde(default)]
    pub user: User,
}

/// How to prove who one is.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct User {
    /// Client certificate file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<String>,
    /// Client certificate, base64 PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate_data: Option<String>,
    /// Client key file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_key: Option<String>,
    /// Client key, base64 PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_key_data: Option<String>,
    /// Bearer token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Bearer token file.
    #[serde(default, rename = "tokenFile", skip_serializing_if = "Option::is_none")]
    pub token_file: Option<String>,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys and tokens stay out of logs.
        f.debug_struct("User").field("client_certificate", &self.client_certificate).finish_non_exhaustive()
    }
}

/// A context under its name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NamedContext {
    /// Name.
    pub name: String,
    /// Context.
    pub context: Context,
}

/// A cluster, a user and a default namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Context {
    /// Name of the cluster.
    pub cluster: String,
    /// Name of the user.
    pub user: String,
    /// Default namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

impl Kubeconfig {
    /// A kubeconfig with one context `name` and everything inline.
    #[must_use]
    pub fn single(name: &str, user: &str, config: &HttpsConfig) -> Self {
        let mut u = User::default();
        match &config.credentials {
            Credentials::Anonymous => {}
            Credentials::Token(TokenSource::Fixed(t)) => u.token = Some(t.clone()),
            Credentials::Token(TokenSource::File(p)) => u.token_file = Some(p.display().to_string()),
            Credentials::Certificate { certificate_pem, key_pem } => {
                u.client_certificate_data = Some(STANDARD.encode(certificate_pem));
                u.client_key_data = Some(STANDARD.encode(key_pem));
            }
        }
        let cluster = Cluster {
            server: config.server.clone(),
            certificate_authority_data: (!config.ca_pem.is_empty()).then(|| STANDARD.encode(&config.ca_pem)),
            insecure_skip_tls_verify: config.insecure_skip_tls_verify.then_some(true),
            tls_server_name: config.tls_server_name.clone(),
            ..Default::default()
        };
        Self {
            api_version: "v1".into(),
            kind: "Config".into(),
            clusters: vec![NamedCluster { name: name.into(), cluster }],
            users: vec![NamedUser { name: user.into(), user: u }],
            contexts: vec![NamedContext {
                name: name.into(),
                context: Context { cluster: name.into(), user: user.into(), namespace: None },
            }],
            current_context: name.into(),
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// Where it cannot be read or is no kubeconfig.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|e| ConfigError::new(path.display().to_string(), e))?;
        Self::parse(&text).map_err(|e| ConfigError::new(path.display().to_string(), e.message))
    }

    /// Reads text.
    ///
    /// # Errors
    /// Where it is no kubeconfig.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        serde_saphyr::from_str(text).map_err(|e| ConfigError::new("kubeconfig", e))
    }

    /// The YAML text.
    ///
    /// # Errors
    /// Where a value cannot be written as YAML.
    pub fn to_yaml(&self) -> Result<String, ConfigError> {
        serde_saphyr::to_string(self).map_err(|e| ConfigError::new("kubeconfig", e))
    }

    /// Writes the file with mode 0600, replacing an old one atomically.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), ConfigError> {
        let named = |e: std::io::Error| ConfigError::new(path.display().to_string(), e);
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            std::fs::create_dir_all(dir).map_err(named)?;
        }
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".new");
        let temporary = PathBuf::from(temporary);
        if let Err(e) = std::fs::remove_file(&temporary)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            return Err(named(e));
        }
        let text = self.to_yaml()?;
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).map_err(named)?;
        file.write_all(text.as_bytes()).map_err(named)?;
        file.sync_all().map_err(named)?;
        std::fs::rename(&temporary, path).map_err(named)
    }

    /// How to reach the server of `context` (the current one where None). Relative file names are taken from `base`, the
    /// directory of the kubeconfig.
    ///
    /// # Errors
    /// Where a name leads nowhere, a file cannot be read or data is not base64.
    pub fn https(&self, context: Option<&str>, base: &Path) -> Result<HttpsConfig, ConfigError> {
        let name = context.unwrap_or(&self.current_context);
        let missing = |what: &str, name: &str| ConfigError::new(format!("{what} {name:?}"), "not in the kubeconfig");
        let cx = &self.contexts.iter().find(|c| c.name == name).ok_or_else(|| missing("context", name))?.context;
        let cluster = &self
            .clusters
            .iter()
            .find(|c| c.name == cx.cluster)
            .ok_or_else(|| missing("cluster", &cx.cluster))?
            .cluster;
        let anonymous = User::default();
        let user = match self.users.iter().find(|u| u.name == cx.user) {
            Some(u) => &u.user,
            None if cx.user.is_empty() => &anonymous,
            None => return Err(missing("user", &cx.user)),
        };
        let load = |what: &str, data: &Option<String>, file: &Option<String>| -> Result<Option<Vec<u8>>, ConfigError> {
            match (data, file) {
                (Some(d), _) => {
                    STANDARD.decode(d.trim()).map(Some).map_err(|e| ConfigError::new(format!("{what}-data"), e))
                }
                (None, Some(f)) => {
                    let path = base.join(f);
                    std::fs::read(&path)
                        .map(Some)
                        .map_err(|e| ConfigError::new(format!("{what} {}", path.display()), e))
                }
                (None, None) => Ok(None),
            }
        };
        let ca = load("certificate-authority", &cluster.certificate_authority_data, &cluster.certificate_authority)?;
        let cert = load("client-certificate", &user.client_certificate_data, &user.client_certificate)?;
        let key = load("client-key", &user.client_key_data, &user.client_key)?;
        let credentials = match (cert, key) {
            (Some(certificate_pem), Some(key_pem)) => Credentials::Certificate { certificate_pem, key_pem },
            (Some(_), None) => {
                return Err(ConfigError::new("client-key", "missing beside client-certificate"));
            }
            (None, Some(_)) => {
                return Err(ConfigError::new("client-certificate", "missing beside client-key"));
            }
            (None, None) => match (&user.token_file, &user.token) {
                (Some(f), _) => Credentials::Token(TokenSource::File(base.join(f))),
                (None, Some(t)) => Credentials::Token(TokenSource::Fixed(t.clone())),
                (None, None) => Credentials::Anonymous,
            },
        };
        Ok(HttpsConfig {
            server: cluster.server.clone(),
            ca_pem: ca.unwrap_or_default(),
            credentials,
            tls_server_name: cluster.tls_server_name.clone(),
            insecure_skip_tls_verify: cluster.insecure_skip_tls_verify.unwrap_or(false),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(credentials: Credentials) -> HttpsConfig {
        HttpsConfig {
            server: "https://127.0.0.1:6443".into(),
            ca_pem: b"CA".to_vec(),
            credentials,
            ..Default::default()
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        let credentials = Credentials::Certificate { certificate_pem: b"CERT\n".to_vec(), key_pem: b"KEY\n".to_vec() };
        let k = Kubeconfig::single("gantry", "admin", &config(credentials));
        let text = k.to_yaml().unwrap();
        assert!(text.contains("certificate-authority-data:") && text.contains("current-context: gantry"), "{text}");
        let back = Kubeconfig::parse(&text).unwrap();
        assert_eq!(back, k);
        let https = back.https(None, Path::new("/")).unwrap();
        assert_eq!(https.server, "https://127.0.0.1:6443");
        assert_eq!(https.ca_pem, b"CA");
        assert!(matches!(https.credentials, Credentials::Certificate { key_pem, .. } if key_pem == b"KEY\n"));
    }

    #[test]
    fn errors_name_what_is_missing() {
        let mut k = Kubeconfig::single("a", "u", &config(Credentials::Anonymous));
        assert_eq!(k.https(Some("b"), Path::new("/")).unwrap_err().to_string(), "context \"b\": not in the kubeconfig");
        k.users[0].user.client_certificate_data = Some(STANDARD.encode("x"));
        assert_eq!(
            k.https(None, Path::new("/")).unwrap_err().to_string(),
            "client-key: missing beside client-certificate"
        );
        k.users[0].user.client_certificate_data = Some("***".into());
        assert!(k.https(None, Path::new("/")).unwrap_err().to_string().starts_with("client-certificate-data"));
    }
}
