//! `AuthenticationConfiguration` (`apiserver.config.k8s.io`): what it may say, and what of it is wrong
//! (`k8s.io/apiserver/pkg/apis/apiserver/validation`).

use super::mapping::{Expression, compile_claims, compile_user};
use gantry_api::meta::field::{ErrorList, Path};
use gantry_api::meta::names;
use gantry_cel::Type;
use serde::Deserialize;
use std::collections::BTreeSet;

/// Most issuers.
const ISSUERS_MAX: usize = 64;
const API_VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];

/// The document.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthenticationConfiguration {
    /// `apiserver.config.k8s.io/v1`; nothing where it is made of flags.
    #[serde(default)]
    pub api_version: String,
    /// Kind; nothing where it is made of flags.
    #[serde(default)]
    pub kind: String,
    /// Issuers whose tokens are accepted.
    #[serde(default)]
    pub jwt: Vec<JwtAuthenticator>,
    /// Whether requests without credentials are let through, and which.
    #[serde(default)]
    pub anonymous: Option<Anonymous>,
}

/// Requests without credentials.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Anonymous {
    /// Whether they are let through.
    pub enabled: bool,
    /// Only these, where there are any.
    #[serde(default)]
    pub conditions: Vec<AnonymousCondition>,
}

/// A path that is open to everybody.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AnonymousCondition {
    /// The whole path.
    pub path: String,
}

impl Default for Anonymous {
    fn default() -> Self {
        Self { enabled: true, conditions: Vec::new() }
    }
}

impl Anonymous {
    /// Whether a request to `path` may come without credentials.
    #[must_use]
    pub fn allows(&self, path: &str) -> bool {
        self.enabled && (self.conditions.is_empty() || self.conditions.iter().any(|c| c.path == path))
    }
}

/// An issuer and what its tokens say.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JwtAuthenticator {
    /// The issuer.
    #[serde(default)]
    pub issuer: Issuer,
    /// What claims must be.
    #[serde(default)]
    pub claim_validation_rules: Vec<ClaimValidationRule>,
    /// From claims to a user.
    #[serde(default)]
    pub claim_mappings: ClaimMappings,
    /// What users must be.
    #[serde(default)]
    pub user_validation_rules: Vec<UserValidationRule>,
}

/// Who signs tokens, and for whom.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Issuer {
    /// The `iss` claim.
    #[serde(default)]
    pub url: String,
    /// Where its discovery document is, if not below `url`.
    #[serde(default, rename = "discoveryURL")]
    pub discovery_url: Option<String>,
    /// Authorities of its certificate, PEM; the system's where empty.
    #[serde(default)]
    pub certificate_authority: String,
    /// One of them must be in the `aud` claim.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// `MatchAny`, or nothing where there is one audience.
    #[serde(default)]
    pub audience_match_policy: String,
    /// Not supported: there is no egress selection.
    #[serde(default)]
    pub egress_selector_type: String,
}

/// A rule over claims.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimValidationRule {
    /// A claim that must be there.
    #[serde(default)]
    pub claim: String,
    /// Its value.
    #[serde(default)]
    pub required_value: String,
    /// Instead: what must be true.
    #[serde(default)]
    pub expression: String,
    /// What is said where it is not.
    #[serde(default)]
    pub message: String,
}

/// From claims to a user.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimMappings {
    /// The name.
    #[serde(default)]
    pub username: PrefixedClaim,
    /// The groups.
    #[serde(default)]
    pub groups: PrefixedClaim,
    /// The UID.
    #[serde(default)]
    pub uid: Claim,
    /// Extra attributes.
    #[serde(default)]
    pub extra: Vec<ExtraMapping>,
}

/// A claim with what is put before it, or an expression.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PrefixedClaim {
    /// The claim.
    #[serde(default)]
    pub claim: String,
    /// Put before its value.
    #[serde(default)]
    pub prefix: Option<String>,
    /// Instead of both.
    #[serde(default)]
    pub expression: String,
}

/// A claim or an expression.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Claim {
    /// The claim.
    #[serde(default)]
    pub claim: String,
    /// Instead of it.
    #[serde(default)]
    pub expression: String,
}

/// An extra attribute.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExtraMapping {
    /// Its key.
    #[serde(default)]
    pub key: String,
    /// Its values.
    #[serde(default)]
    pub value_expression: String,
}

/// A rule over users.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UserValidationRule {
    /// What must be true.
    #[serde(default)]
    pub expression: String,
    /// What is said where it is not.
    #[serde(default)]
    pub message: String,
}

/// Reads and checks a document.
///
/// # Errors
/// What of it is wrong, all together. `own_issuer` is that of ServiceAccount tokens, which no other may use.
pub fn parse(text: &str, own_issuer: &str) -> Result<AuthenticationConfiguration, String> {
    let config: AuthenticationConfiguration =
        serde_saphyr::from_str(text).map_err(|e| format!("strict decoding error: {e}"))?;
    let version = config.api_version.strip_prefix("apiserver.config.k8s.io/").unwrap_or_default();
    if !API_VERSIONS.contains(&version) || config.kind != "AuthenticationConfiguration" {
        return Err(format!(
            "no kind {:?} is registered for version {:?}: expected AuthenticationConfiguration of apiserver.config.k8s.io/v1",
            config.kind, config.api_version
        ));
    }
    check(&config, own_issuer)?;
    Ok(config)
}

/// Checks a configuration made of flags.
///
/// # Errors
/// What of it is wrong, all together.
pub fn check(config: &AuthenticationConfiguration, own_issuer: &str) -> Result<(), String> {
    let errors = validate(config, own_issuer);
    if errors.is_empty() {
        return Ok(());
    }
    let all: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
    Err(if all.len() == 1 { all[0].clone() } else { format!("[{}]", all.join(", ")) })
}

fn validate(config: &AuthenticationConfiguration, own_issuer: &str) -> ErrorList {
    let mut e = ErrorList::default();
    let root = Path::new("jwt");
    if config.jwt.len() > ISSUERS_MAX {
        e.too_many(&root, config.jwt.len(), ISSUERS_MAX);
        return e;
    }
    let (mut urls, mut discovery) = (BTreeSet::new(), BTreeSet::new());
    for (i, jwt) in config.jwt.iter().enumerate() {
        let path = root.index(i);
        let mut check = Check { e: &mut e, email: false, verified: false };
        check.issuer(&jwt.issuer, own_issuer, &path.child("issuer"));
        check.claim_rules(&jwt.claim_validation_rules, &path.child("claimValidationRules"));
        check.mappings(&jwt.claim_mappings, &path.child("claimMappings"));
        check.user_rules(&jwt.user_validation_rules, &path.child("userValidationRules"));
        if !urls.insert(&jwt.issuer.url) {
            e.duplicate(&path.child("issuer").child("url"), jwt.issuer.url.as_str());
        }
        if let Some(url) = jwt.issuer.discovery_url.as_ref().filter(|u| !u.is_empty())
            && !discovery.insert(url)
        {
            e.duplicate(&path.child("issuer").child("discoveryURL"), url.as_str());
        }
    }
    if let Some(anonymous) = config.anonymous.as_ref().filter(|a| !a.enabled && !a.conditions.is_empty()) {
        let shown: Vec<serde_json::Value> =
            anonymous.conditions.iter().map(|c| serde_json::json!({ "Path": c.path })).collect();
        let path = Path::new("anonymous").child("conditions");
        e.invalid(&path, shown, "enabled should be set to true when conditions are defined");
    }
    e
}

struct Check<'a> {
    e: &'a mut ErrorList,
    /// Whether the user's name is made of `claims.email`, and whether anything looks at `claims.email_verified`.
    email: bool,
    verified: bool,
}

impl Check<'_> {
    fn url(&mut self, url: &str, path: &Path) {
        let parsed: Result<http::Uri, _> = url.split('#').next().unwrap_or_default().parse();
        let Ok(uri) = parsed else {
            return self.e.invalid(path, url, &format!("parse {url:?}: invalid URI for request"));
        };
        if uri.scheme_str() != Some("https") {
            self.e.invalid(path, url, "URL scheme must be https");
        }
        if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
            self.e.invalid(path, url, "URL must not contain a username or password");
        }
        if uri.query().is_some_and(|q| !q.is_empty()) {
            self.e.invalid(path, url, "URL must not contain a query");
        }
        if url.split_once('#').is_some_and(|(_, f)| !f.is_empty()) {
            self.e.invalid(path, url, "URL must not contain a fragment");
        }
    }

    fn issuer(&mut self, issuer: &Issuer, own: &str, path: &Path) {
        let at = path.child("url");
        if issuer.url.is_empty() {
            self.e.required(&at, "");
        } else {
            if issuer.url == own {
                let why = format!("URL must not overlap with disallowed issuers: [{own}]");
                self.e.invalid(&at, issuer.url.as_str(), &why);
            }
            self.url(&issuer.url, &at);
        }
        if let Some(url) = issuer.discovery_url.as_ref().filter(|u| !u.is_empty()) {
            let at = path.child("discoveryURL");
            if !issuer.url.is_empty() && url.trim_end_matches('/') == issuer.url.trim_end_matches('/') {
                self.e.invalid(&at, url.as_str(), "discoveryURL must be different from URL");
            }
            self.url(url, &at);
        }
        self.audiences(issuer, path);
        if !issuer.certificate_authority.is_empty()
            && let Err(why) = crate::webhook_client::root_store(issuer.certificate_authority.as_bytes())
        {
            self.e.invalid(&path.child("certificateAuthority"), "<omitted>", &why);
        }
        if !issuer.egress_selector_type.is_empty() {
            let why = "egress selector is not supported: there is no egress selector configuration";
            self.e.invalid(&path.child("egressSelectorType"), issuer.egress_selector_type.as_str(), why);
        }
    }

    fn audiences(&mut self, issuer: &Issuer, path: &Path) {
        let (at, policy_at) = (path.child("audiences"), path.child("audienceMatchPolicy"));
        if issuer.audiences.is_empty() {
            return self.e.required(&at, &format!("at least one {} is required", at.as_str()));
        }
        let mut seen = BTreeSet::new();
        for (i, audience) in issuer.audiences.iter().enumerate() {
            if audience.is_empty() {
                self.e.required(&at.index(i), "");
            }
            if !seen.insert(audience) {
                self.e.duplicate(&at.index(i), audience.as_str());
            }
        }
        let policy = issuer.audience_match_policy.as_str();
        if issuer.audiences.len() > 1 && policy != "MatchAny" {
            self.e.invalid(&policy_at, policy, "audienceMatchPolicy must be MatchAny for multiple audiences");
        }
        if issuer.audiences.len() == 1 && !matches!(policy, "" | "MatchAny") {
            self.e.invalid(&policy_at, policy, "audienceMatchPolicy must be empty or MatchAny for single audience");
        }
    }

    /// Compiles an expression over claims; whether it looks at the verification of the address is remembered.
    fn claims(&mut self, text: &str, boolean: bool, path: &Path) -> Option<Expression> {
        match compile_claims(text, boolean.then_some(Type::Bool)) {
            Ok(expression) => Some(expression),
            Err(why) => {
                self.e.invalid(path, text, &why);
                None
            }
        }
    }

    fn claim_rules(&mut self, rules: &[ClaimValidationRule], path: &Path) {
        let (mut claims, mut expressions) = (BTreeSet::new(), BTreeSet::new());
        for (i, rule) in rules.iter().enumerate() {
            let path = path.index(i);
            match (rule.claim.as_str(), rule.expression.as_str()) {
                ("", "") => self.e.required(&path, "claim or expression is required"),
                (claim, "") => {
                    if !rule.message.is_empty() {
                        let why = "may not be specified when claim is set";
                        self.e.invalid(&path.child("message"), rule.message.as_str(), why);
                    }
                    if !claims.insert(claim) {
                        self.e.duplicate(&path.child("claim"), claim);
                    }
                }
                ("", expression) => {
                    let at = path.child("expression");
                    if !rule.required_value.is_empty() {
                        let why = "may not be specified when expression is set";
                        self.e.invalid(&path.child("requiredValue"), rule.required_value.as_str(), why);
                    }
                    if !expressions.insert(expression) {
                        self.e.duplicate(&at, expression);
                    } else if let Some(compiled) = self.claims(expression, true, &at) {
                        self.verified |= compiled.looks_at("email_verified");
                    }
                }
                (claim, _) => self.e.invalid(&path, claim, "claim and expression can't both be set"),
            }
        }
    }

    fn prefixed(&mut self, mapping: &PrefixedClaim, required: bool, path: &Path) -> Option<Expression> {
        match (mapping.claim.as_str(), mapping.expression.as_str()) {
            ("", "") => {
                if required {
                    self.e.required(path, "claim or expression is required");
                }
                None
            }
            ("", expression) => {
                if let Some(prefix) = &mapping.prefix {
                    let why = "may not be specified when expression is set";
                    self.e.invalid(&path.child("prefix"), prefix.as_str(), why);
                }
                self.claims(expression, false, &path.child("expression"))
            }
            (_, "") => {
                if mapping.prefix.is_none() {
                    let why =
                        "prefix is required when claim is set. It can be set to an empty string to disable prefixing";
                    self.e.required(&path.child("prefix"), why);
                }
                None
            }
            _ => {
                self.e.invalid(path, "", "claim and expression can't both be set");
                None
            }
        }
    }

    fn mappings(&mut self, mappings: &ClaimMappings, path: &Path) {
        if let Some(compiled) = self.prefixed(&mappings.username, true, &path.child("username")) {
            self.email |= compiled.looks_at("email");
            self.verified |= compiled.looks_at("email_verified");
        }
        self.prefixed(&mappings.groups, false, &path.child("groups"));
        match (mappings.uid.claim.as_str(), mappings.uid.expression.as_str()) {
            (_, "") => {}
            ("", expression) => drop(self.claims(expression, false, &path.child("uid").child("expression"))),
            _ => self.e.invalid(&path.child("uid"), "", "claim and expression can't both be set"),
        }
        let mut keys = BTreeSet::new();
        for (i, mapping) in mappings.extra.iter().enumerate() {
            let path = path.child("extra").index(i);
            let (at, key) = (path.child("key"), mapping.key.as_str());
            self.domain_prefixed(key, &at);
            if key != key.to_lowercase() {
                self.e.invalid(&at, key, "must be lowercase");
            }
            let domain = key.split_once('/').map_or("", |(d, _)| d);
            let is_own = |d: &str| domain == d || domain.ends_with(&format!(".{d}"));
            if is_own("kubernetes.io") || is_own("k8s.io") {
                let why = "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use";
                self.e.invalid(&at, key, why);
            }
            if !keys.insert(key) {
                self.e.duplicate(&at, key);
                continue;
            }
            let at = path.child("valueExpression");
            if mapping.value_expression.is_empty() {
                self.e.required(&at, "");
            } else if let Some(compiled) = self.claims(&mapping.value_expression, false, &at) {
                self.verified |= compiled.looks_at("email_verified");
            }
        }
        if self.email && !self.verified {
            let why = "claims.email_verified must be used in claimMappings.username.expression or \
                       claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is \
                       used in claimMappings.username.expression";
            let at = path.child("username").child("expression");
            self.e.invalid(&at, mappings.username.expression.as_str(), why);
        }
    }

    /// `DOMAIN/PATH`, as keys of extra attributes are.
    fn domain_prefixed(&mut self, key: &str, path: &Path) {
        if key.is_empty() {
            return self.e.required(path, "");
        }
        let Some((domain, rest)) = key.split_once('/').filter(|(d, r)| !d.is_empty() && !r.is_empty()) else {
            let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            return self.e.invalid(path, key, why);
        };
        for why in names::dns1123_subdomain(domain, false) {
            self.e.invalid(path, domain, &why);
        }
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:@".contains(&b);
        if !rest.bytes().all(legal) {
            self.e.invalid(
                path,
                rest,
                "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')",
            );
        }
    }

    fn user_rules(&mut self, rules: &[UserValidationRule], path: &Path) {
        let mut seen = BTreeSet::new();
        for (i, rule) in rules.iter().enumerate() {
            let at = path.index(i).child("expression");
            if rule.expression.is_empty() {
                self.e.required(&at, "");
            } else if !seen.insert(&rule.expression) {
                self.e.duplicate(&at, rule.expression.as_str());
            } else if let Err(why) = compile_user(&rule.expression) {
                self.e.invalid(&at, rule.expression.as_str(), &why);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(jwt: &str) -> String {
        let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n";
        parse(&format!("{head}{jwt}"), "https://own").err().unwrap_or_default()
    }

    #[test]
    fn documents_are_checked() {
        let fine = "jwt:\n- issuer: {url: 'https://a', audiences: [x]}\n  claimMappings: {username: {claim: sub, prefix: ''}}\n";
        assert_eq!(wrong(fine), "");
        assert_eq!(wrong("anonymous: {enabled: true, conditions: [{path: /livez}]}"), "");
        assert!(wrong("jwtx: []").starts_with("strict decoding error: "), "{}", wrong("jwtx: []"));
        let bad = "jwt:\n- issuer: {url: 'http://a?b', audiences: [x, y]}\n  claimMappings: {username: {claim: sub}}\n";
        assert_eq!(
            wrong(bad),
            "[jwt[0].issuer.url: Invalid value: \"http://a?b\": URL scheme must be https, jwt[0].issuer.url: Invalid value: \
             \"http://a?b\": URL must not contain a query, jwt[0].issuer.audienceMatchPolicy: Invalid value: \"\": \
             audienceMatchPolicy must be MatchAny for multiple audiences, jwt[0].claimMappings.username.prefix: Required \
             value: prefix is required when claim is set. It can be set to an empty string to disable prefixing]"
        );
        let own = fine.replace("https://a", "https://own");
        assert!(wrong(&own).contains("URL must not overlap with disallowed issuers: [https://own]"));
    }

    #[test]
    fn addresses_must_be_verified() {
        let with = |extra: &str| {
            wrong(&format!(
                "jwt:\n- issuer: {{url: 'https://a', audiences: [x]}}\n  claimMappings: {{username: {{expression: \
                 claims.email}}}}\n{extra}"
            ))
        };
        assert!(with("").contains("claims.email_verified must be used"), "{}", with(""));
        let rule = "  claimValidationRules: [{expression: 'claims.?email_verified.orValue(true) == true'}]\n";
        assert_eq!(with(rule), "");
        assert!(with("  userValidationRules: [{expression: user.name}]").contains("compilation failed: "));
        assert!(with("  claimValidationRules: [{expression: claims.x}]").contains("must evaluate to bool"));
    }
}
