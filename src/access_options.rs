//! Flags that say who may ask, with kube-apiserver's names.

use crate::bootstrap::Pki;
use anyhow::{Context, Result, anyhow, bail};
use clap::{ArgAction, Args};
use gantry_client::{Credentials, Kubeconfig, TokenSource};
use gantry_server::access::{
    ALGORITHMS, AUTHORIZERS, Abac, AccessConfig, Anonymous, AuthenticationConfiguration, AuthorizationConfiguration,
    AuthorizerConfiguration, ClaimValidationRule, EndpointReader, HookEndpoint, Issuer, JwtAuthenticator,
    PrefixedClaim, RequestHeader, TokenWebhook, WebhookConfiguration, check_authentication, parse_authentication,
    parse_authorization, parse_duration,
};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What clusters authorize by unless told otherwise.
const DEFAULT_MODES: [&str; 2] = ["Node", "RBAC"];

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
    /// Accept Secrets of type bootstrap.kubernetes.io/token in kube-system as credentials of machines that join
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value_t = true, default_missing_value = "true")]
    pub enable_bootstrap_token_auth: bool,
    /// File with static bearer tokens: token,user,uid and optionally "group1,group2" in each line
    #[arg(long, value_name = "FILE")]
    pub token_auth_file: Option<PathBuf>,
    /// Let requests without credentials through, as system:anonymous [default: true]
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_missing_value = "true")]
    pub anonymous_auth: Option<bool>,
    /// File with an AuthenticationConfiguration: issuers of tokens, anonymous requests; read again when it changes
    #[arg(long, value_name = "FILE")]
    pub authentication_config: Option<PathBuf>,
    /// OpenID Connect
    #[command(flatten)]
    pub oidc: OidcOptions,
    /// Kubeconfig of a webhook that knows whose a token is
    #[arg(long, value_name = "FILE")]
    pub authentication_token_webhook_config_file: Option<PathBuf>,
    /// Version of the TokenReview it is sent
    #[arg(long, value_name = "VERSION", default_value = "v1beta1", value_parser = ["v1", "v1beta1"])]
    pub authentication_token_webhook_version: String,
    /// How long its answers are remembered
    #[arg(long, value_name = "DURATION", default_value = "2m0s", value_parser = duration)]
    pub authentication_token_webhook_cache_ttl: Duration,
    /// Authorizers in the order in which they are asked: Node, RBAC, ABAC, Webhook, AlwaysAllow, AlwaysDeny
    /// [default: Node,RBAC]
    #[arg(long, value_name = "MODES", value_delimiter = ',')]
    pub authorization_mode: Vec<String>,
    /// File with an AuthorizationConfiguration, instead of --authorization-mode; read again when it changes
    #[arg(long, value_name = "FILE")]
    pub authorization_config: Option<PathBuf>,
    /// Policies of the mode ABAC, one in each line
    #[arg(long, value_name = "FILE")]
    pub authorization_policy_file: Option<PathBuf>,
    /// Kubeconfig of the webhook of the mode Webhook
    #[arg(long, value_name = "FILE")]
    pub authorization_webhook_config_file: Option<PathBuf>,
    /// Version of the SubjectAccessReview it is sent
    #[arg(long, value_name = "VERSION", default_value = "v1beta1", value_parser = ["v1", "v1beta1"])]
    pub authorization_webhook_version: String,
    /// How long its answers that allow are remembered
    #[arg(long, value_name = "DURATION", default_value = "5m0s", value_parser = duration)]
    pub authorization_webhook_cache_authorized_ttl: Duration,
    /// How long its answers that do not allow are remembered
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub authorization_webhook_cache_unauthorized_ttl: Duration,
}

/// One OpenID Connect issuer; `--authentication-config` can say more.
#[derive(Args, Clone, Debug)]
pub struct OidcOptions {
    /// URL of the issuer of tokens
    #[arg(long, value_name = "URL")]
    pub oidc_issuer_url: Option<String>,
    /// The audience its tokens must be for
    #[arg(long, value_name = "ID")]
    pub oidc_client_id: Option<String>,
    /// Authorities of its certificate, PEM; the system's unless given
    #[arg(long, value_name = "FILE")]
    pub oidc_ca_file: Option<PathBuf>,
    /// Claim with the user's name [default: sub]
    #[arg(long, value_name = "CLAIM")]
    pub oidc_username_claim: Option<String>,
    /// Put before it; the issuer's URL and # unless given or the claim is email, nothing where it is -
    #[arg(long, value_name = "PREFIX", allow_hyphen_values = true)]
    pub oidc_username_prefix: Option<String>,
    /// Claim with the user's groups
    #[arg(long, value_name = "CLAIM")]
    pub oidc_groups_claim: Option<String>,
    /// Put before each of them
    #[arg(long, value_name = "PREFIX")]
    pub oidc_groups_prefix: Option<String>,
    /// CLAIM=VALUE that tokens must have; may be repeated
    #[arg(long, value_name = "CLAIM=VALUE", value_delimiter = ',')]
    pub oidc_required_claim: Vec<String>,
    /// Algorithms it may sign with [default: RS256]
    #[arg(long, value_name = "ALGORITHMS", value_delimiter = ',')]
    pub oidc_signing_algs: Vec<String>,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| format!("time: invalid duration {text:?}"))
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

/// Where the webhook of a kubeconfig is.
pub(crate) fn endpoint(path: &Path) -> Result<HookEndpoint> {
    let named = || format!("kubeconfig {}", path.display());
    let base = path.parent().unwrap_or(Path::new("."));
    let config = Kubeconfig::read(path).and_then(|k| k.https(None, base)).with_context(named)?;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).with_context(named);
    let mut found = HookEndpoint {
        url: config.server,
        ca_pem: config.ca_pem,
        insecure: config.insecure_skip_tls_verify,
        server_name: config.tls_server_name,
        ..HookEndpoint::default()
    };
    match config.credentials {
        Credentials::Anonymous => {}
        Credentials::Token(TokenSource::Fixed(token)) => found.token = Some(token),
        Credentials::Token(TokenSource::File(file)) => found.token = Some(read(&file)?.trim().to_owned()),
        Credentials::Certificate { certificate_pem, key_pem } => {
            found.client = Some((text(certificate_pem)?, text(key_pem)?));
        }
    }
    Ok(found)
}

/// The fields of a line of a CSV file (RFC 4180).
fn fields(line: &str) -> Result<Vec<String>> {
    let mut out = Vec::new();
    let mut rest = line.trim_end_matches('\r');
    loop {
        let field = rest.trim_start();
        if let Some(quoted) = field.strip_prefix('"') {
            let mut text = String::new();
            let mut chars = quoted.char_indices().peekable();
            let end = loop {
                match chars.next() {
                    Some((_, '"')) if chars.peek().is_some_and(|(_, c)| *c == '"') => {
                        text.push('"');
                        chars.next();
                    }
                    Some((i, '"')) => break i + 1,
                    Some((_, c)) => text.push(c),
                    None => bail!("extraneous or missing \" in quoted-field"),
                }
            };
            out.push(text);
            match quoted[end..].strip_prefix(',') {
                Some(more) => rest = more,
                None if quoted[end..].is_empty() => return Ok(out),
                None => bail!("extraneous or missing \" in quoted-field"),
            }
        } else {
            let (field, more) = rest.split_once(',').map_or((rest, None), |(f, m)| (f, Some(m)));
            if field.contains('"') {
                bail!("bare \" in non-quoted-field");
            }
            out.push(field.to_owned());
            match more {
                Some(more) => rest = more,
                None => return Ok(out),
            }
        }
    }
}

/// A static token: itself, user, uid, groups.
type StaticToken = (String, String, String, Vec<String>);

fn static_tokens(path: &str, text: &str) -> Result<Vec<StaticToken>> {
    let mut out = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let record = fields(line).with_context(|| format!("token file '{path}', line {}", i + 1))?;
        let [token, user, uid, rest @ ..] = record.as_slice() else {
            let found = record.len();
            bail!("token file '{path}' must have at least 3 columns (token, user name, user uid), found {found}");
        };
        if token.is_empty() {
            tracing::warn!(path, line = i + 1, "empty token has been found in token file");
            continue;
        }
        let groups = rest.first().map(|g| g.split(',').map(str::to_owned).collect()).unwrap_or_default();
        out.push((token.clone(), user.clone(), uid.clone(), groups));
    }
    Ok(out)
}

impl OidcOptions {
    fn is_given(&self) -> bool {
        let texts = [
            &self.oidc_issuer_url,
            &self.oidc_client_id,
            &self.oidc_username_claim,
            &self.oidc_username_prefix,
            &self.oidc_groups_claim,
            &self.oidc_groups_prefix,
        ];
        texts.iter().any(|t| t.is_some())
            || self.oidc_ca_file.is_some()
            || !self.oidc_required_claim.is_empty()
            || !self.oidc_signing_algs.is_empty()
    }

    fn issuer(&self) -> Result<JwtAuthenticator> {
        let (Some(url), Some(client)) = (&self.oidc_issuer_url, &self.oidc_client_id) else {
            bail!("oidc-issuer-url and oidc-client-id must be specified together when any oidc-* flags are set");
        };
        let claim = self.oidc_username_claim.clone().unwrap_or_else(|| "sub".to_owned());
        let prefix = match self.oidc_username_prefix.as_deref().unwrap_or_default() {
            "" if claim == "email" => String::new(),
            // Names of an issuer's users must not be taken for those of others.
            "" => format!("{url}#"),
            "-" => String::new(),
            given => given.to_owned(),
        };
        let mut out = JwtAuthenticator {
            issuer: Issuer {
                url: url.clone(),
                audiences: vec![client.clone()],
                certificate_authority: self.oidc_ca_file.as_deref().map(read).transpose()?.unwrap_or_default(),
                ..Issuer::default()
            },
            ..JwtAuthenticator::default()
        };
        out.claim_mappings.username = PrefixedClaim { claim, prefix: Some(prefix), ..PrefixedClaim::default() };
        if let Some(claim) = self.oidc_groups_claim.clone() {
            let prefix = Some(self.oidc_groups_prefix.clone().unwrap_or_default());
            out.claim_mappings.groups = PrefixedClaim { claim, prefix, ..PrefixedClaim::default() };
        }
        for pair in &self.oidc_required_claim {
            let (claim, value) = pair
                .split_once('=')
                .ok_or_else(|| anyhow!("--oidc-required-claim: {pair} must be formatted as key=value"))?;
            let rule = ClaimValidationRule {
                claim: claim.into(),
                required_value: value.into(),
                ..ClaimValidationRule::default()
            };
            out.claim_validation_rules.push(rule);
        }
        Ok(out)
    }

    fn algorithms(&self) -> Result<Vec<String>> {
        if self.oidc_signing_algs.is_empty() {
            return Ok(vec!["RS256".to_owned()]);
        }
        if let Some(unknown) = self.oidc_signing_algs.iter().find(|a| !ALGORITHMS.contains(&a.as_str())) {
            bail!("oidc: unsupported signing alg: {unknown:?}");
        }
        Ok(self.oidc_signing_algs.clone())
    }
}

impl AccessOptions {
    /// What the flags say; what they leave open comes from the cluster's own keys. `own_issuer` is that of ServiceAccount
    /// tokens.
    ///
    /// # Errors
    /// Names the flag or the file.
    pub fn config(&self, pki: &Pki, own_issuer: &str) -> Result<AccessConfig> {
        let (authority, own) = pki.front_proxy()?;
        let proxy_client = match (&self.proxy_client_cert_file, &self.proxy_client_key_file) {
            (Some(certificate), Some(key)) => (read(certificate)?, read(key)?),
            _ => (own.cert_pem, own.key_pem),
        };
        let mut allowed_names = self.requestheader_allowed_names.clone();
        let ca_pem = match &self.requestheader_client_ca_file {
            Some(file) => read(file)?,
            None => {
                if allowed_names.is_empty() {
                    allowed_names.push("front-proxy-client".to_owned());
                }
                authority.cert_pem
            }
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
        let (authentication, signing_algorithms) = self.authentication(own_issuer)?;
        if authentication.anonymous.is_some() && self.anonymous_auth.is_some() {
            bail!(
                "--anonymous-auth flag cannot be set when anonymous field is configured in authentication configuration file"
            );
        }
        Ok(AccessConfig {
            proxy_client: Some(proxy_client),
            request_header: Some(request_header),
            aggregator_routing: self.enable_aggregator_routing,
            bootstrap_tokens: self.enable_bootstrap_token_auth,
            anonymous: Anonymous { enabled: self.anonymous_auth.unwrap_or(true), conditions: Vec::new() },
            authentication,
            signing_algorithms,
            token_webhook: self.token_webhook()?,
            authorization: self.authorization()?,
            abac: self.abac()?,
            endpoints: EndpointReader(Arc::new(|path| endpoint(Path::new(path)).map_err(|e| format!("{e:#}")))),
        })
    }

    /// The tokens of `--token-auth-file`.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn static_tokens(&self) -> Result<Vec<StaticToken>> {
        let Some(file) = &self.token_auth_file else { return Ok(Vec::new()) };
        static_tokens(&file.display().to_string(), &read(file)?)
    }

    fn authentication(&self, own_issuer: &str) -> Result<(AuthenticationConfiguration, Vec<String>)> {
        let all = || ALGORITHMS.map(str::to_owned).to_vec();
        match &self.authentication_config {
            Some(_) if self.oidc.is_given() => {
                bail!("authentication-config file and oidc-* flags are mutually exclusive")
            }
            Some(file) => {
                let parsed = parse_authentication(&read(file)?, own_issuer);
                let named = || format!("--authentication-config {}", file.display());
                Ok((parsed.map_err(anyhow::Error::msg).with_context(named)?, all()))
            }
            None if self.oidc.is_given() => {
                let config = AuthenticationConfiguration {
                    jwt: vec![self.oidc.issuer()?],
                    ..AuthenticationConfiguration::default()
                };
                check_authentication(&config, own_issuer).map_err(anyhow::Error::msg).context("--oidc flags")?;
                Ok((config, self.oidc.algorithms()?))
            }
            None => Ok((AuthenticationConfiguration::default(), all())),
        }
    }

    fn token_webhook(&self) -> Result<Option<TokenWebhook>> {
        let Some(file) = &self.authentication_token_webhook_config_file else { return Ok(None) };
        Ok(Some(TokenWebhook {
            endpoint: endpoint(file)?,
            version: self.authentication_token_webhook_version.clone(),
            remember_for: self.authentication_token_webhook_cache_ttl,
        }))
    }

    fn authorization(&self) -> Result<AuthorizationConfiguration> {
        if let Some(file) = &self.authorization_config {
            if !self.authorization_mode.is_empty() || self.authorization_webhook_config_file.is_some() {
                bail!(
                    "--authorization-config can not be specified when --authorization-mode or --authorization-webhook-* \
                     flags are defined"
                );
            }
            let named = || format!("--authorization-config {}", file.display());
            let parsed = parse_authorization(&read(file)?).map_err(anyhow::Error::msg).with_context(named)?;
            self.check_policy_file(parsed.authorizers.iter().any(|a| a.kind == "ABAC"))?;
            return Ok(parsed);
        }
        let modes: Vec<&str> = match self.authorization_mode.as_slice() {
            [] => DEFAULT_MODES.to_vec(),
            given => given.iter().map(|m| m.trim()).collect(),
        };
        for (i, mode) in modes.iter().enumerate() {
            if !AUTHORIZERS.contains(mode) {
                bail!("authorization-mode {mode:?} is not a valid mode");
            }
            if modes[..i].contains(mode) {
                bail!("authorization-mode {mode:?} has mode specified more than once");
            }
        }
        self.check_policy_file(modes.contains(&"ABAC"))?;
        let mut config = AuthorizationConfiguration::of_modes(&modes);
        match (&self.authorization_webhook_config_file, config.authorizers.iter_mut().find(|a| a.kind == "Webhook")) {
            (None, None) => {}
            (None, Some(_)) => bail!("authorization-mode Webhook's authorization config file not passed"),
            (Some(_), None) => bail!("cannot specify --authorization-webhook-config-file without mode Webhook"),
            (Some(file), Some(authorizer)) => self.webhook(file, authorizer)?,
        }
        Ok(config)
    }

    /// The webhook that flags name: one that fails has no opinion.
    fn webhook(&self, file: &Path, authorizer: &mut AuthorizerConfiguration) -> Result<()> {
        endpoint(file)?;
        let config = json!({
            "timeout": "30s", "failurePolicy": "NoOpinion", "subjectAccessReviewVersion": self.authorization_webhook_version,
            "connectionInfo": { "type": "KubeConfigFile", "kubeConfigFile": file.display().to_string() },
        });
        let mut config: WebhookConfiguration = serde_json::from_value(config)?;
        config.authorized_ttl = self.authorization_webhook_cache_authorized_ttl;
        config.unauthorized_ttl = self.authorization_webhook_cache_unauthorized_ttl;
        "default".clone_into(&mut authorizer.name);
        authorizer.webhook = Some(config);
        Ok(())
    }

    fn check_policy_file(&self, abac: bool) -> Result<()> {
        match (abac, &self.authorization_policy_file) {
            (true, None) => bail!("authorization-mode ABAC's authorization policy file not passed"),
            (false, Some(_)) => bail!("cannot specify --authorization-policy-file without mode ABAC"),
            _ => Ok(()),
        }
    }

    fn abac(&self) -> Result<Abac> {
        let Some(file) = &self.authorization_policy_file else { return Ok(Abac::default()) };
        Abac::parse(&file.display().to_string(), &read(file)?).map_err(anyhow::Error::msg)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_files_are_csv() {
        let found = static_tokens("f", "t1,alice,1,\"a,b\"\n\nt2,bob,2\r\n\"t\"\"3\",carol,3,c\n").unwrap();
        let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert_eq!(found[0], ("t1".into(), "alice".into(), "1".into(), list(&["a", "b"])));
        assert_eq!(found[1], ("t2".into(), "bob".into(), "2".into(), list(&[])));
        assert_eq!(found[2].0, "t\"3");
        assert_eq!(
            static_tokens("f", "a,b").unwrap_err().to_string(),
            "token file 'f' must have at least 3 columns (token, user name, user uid), found 2"
        );
        assert!(static_tokens("f", "a,\"b,c").is_err());
    }
}
