//! From the claims of a token to a user, by claim names or by expressions
//! (`k8s.io/apiserver/pkg/authentication/cel`, `plugin/pkg/authenticator/token/oidc`).

use super::config::{ClaimMappings, JwtAuthenticator, PrefixedClaim};
use crate::authn::{AUTHENTICATED, EXTRA_CREDENTIAL_ID, UserInfo};
use gantry_cel::{Environment, EvalError, Expected, Limits, Program, Type, TypeProvider, Value, Variables};
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

const USER: &str = "kubernetes.UserInfo";

/// The type of `user`.
struct UserType;

impl TypeProvider for UserType {
    fn find_type(&self, name: &str) -> Option<Type> {
        (name == USER).then(|| Type::object(USER))
    }

    fn find_field(&self, type_name: &str, field: &str) -> Option<Type> {
        match (type_name, field) {
            (USER, "username" | "uid") => Some(Type::String),
            (USER, "groups") => Some(Type::list(Type::String)),
            (USER, "extra") => Some(Type::map(Type::String, Type::list(Type::String))),
            _ => None,
        }
    }
}

static CLAIMS: LazyLock<Environment> =
    LazyLock::new(|| Environment::kubernetes().variable("claims", Type::map(Type::String, Type::Dyn)).build());
static USERS: LazyLock<Environment> = LazyLock::new(|| {
    Environment::kubernetes().provider(Arc::new(UserType)).variable("user", Type::object(USER)).build()
});

/// A compiled expression with its text.
pub struct Expression {
    text: String,
    program: Program,
}

fn compile(environment: &Environment, text: &str, wanted: Option<&Type>) -> Result<Expression, String> {
    let program = environment.compile(text, Expected::Any).map_err(|issues| {
        let all: Vec<String> = issues.iter().map(ToString::to_string).collect();
        format!("compilation failed: {}", all.join("\n"))
    })?;
    match wanted {
        Some(t) if program.output_type() != t => Err(format!("must evaluate to {t}")),
        _ => Ok(Expression { text: text.to_owned(), program }),
    }
}

/// Compiles an expression over `claims`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn compile_claims(text: &str, wanted: Option<Type>) -> Result<Expression, String> {
    compile(&CLAIMS, text, wanted.as_ref())
}

/// Compiles a condition over `user`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn compile_user(text: &str) -> Result<Expression, String> {
    compile(&USERS, text, Some(&Type::Bool))
}

struct One<'a>(&'static str, &'a Value);

impl Variables for One<'_> {
    fn resolve(&self, name: &str) -> Result<Option<Value>, EvalError> {
        Ok((name == self.0).then(|| self.1.clone()))
    }
}

impl Expression {
    /// Whether it selects this field of `claims`.
    pub(super) fn looks_at(&self, field: &str) -> bool {
        self.program.selects("claims", field)
    }

    fn eval(&self, name: &'static str, value: &Value) -> Result<Value, String> {
        let outcome = self.program.run(&One(name, value), Limits::PER_CALL);
        outcome.result.map_err(|e| format!("expression '{}' resulted in error: {e}", self.text))
    }
}

/// Strings of a value that is a string, a list of strings, or null; empty ones are left out.
fn strings(value: &Value) -> Result<Vec<String>, String> {
    let wrong = || "expression must return a string or a list of strings".to_owned();
    let kept = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    match value {
        Value::Null => Ok(Vec::new()),
        Value::List(list) => {
            let mut out = Vec::new();
            for item in list.iter() {
                let item = item.map_err(|_| wrong())?;
                out.extend(kept(item.as_str().ok_or_else(wrong)?));
            }
            Ok(out)
        }
        other => Ok(kept(other.as_str().ok_or_else(wrong)?).into_iter().collect()),
    }
}

enum Source {
    Claim { claim: String, prefix: String },
    Expression(Box<Expression>),
}

fn source(mapping: &PrefixedClaim) -> Result<Option<Source>, String> {
    if !mapping.expression.is_empty() {
        return Ok(Some(Source::Expression(Box::new(compile_claims(&mapping.expression, None)?))));
    }
    let prefix = mapping.prefix.clone().unwrap_or_default();
    Ok((!mapping.claim.is_empty()).then(|| Source::Claim { claim: mapping.claim.clone(), prefix }))
}

/// What one issuer's claims mean.
pub(super) struct Mapping {
    username: Source,
    groups: Option<Source>,
    uid: Option<Source>,
    extra: Vec<(String, Expression)>,
    /// Claims that must have a value.
    required: Vec<(String, String)>,
    claim_rules: Vec<(Expression, String)>,
    user_rules: Vec<(Expression, String)>,
}

impl Mapping {
    /// Compiles a configuration that has been checked.
    ///
    /// # Errors
    /// What is wrong with an expression.
    pub(super) fn new(config: &JwtAuthenticator) -> Result<Self, String> {
        let ClaimMappings { username, groups, uid, extra } = &config.claim_mappings;
        let uid = PrefixedClaim { claim: uid.claim.clone(), prefix: None, expression: uid.expression.clone() };
        let extra = extra.iter().map(|m| Ok((m.key.clone(), compile_claims(&m.value_expression, None)?)));
        let rules = config.claim_validation_rules.iter();
        let required = rules.clone().filter(|r| !r.claim.is_empty());
        let claim_rules = rules.filter(|r| r.claim.is_empty());
        let claim_rules =
            claim_rules.map(|r| Ok((compile_claims(&r.expression, Some(Type::Bool))?, r.message.clone())));
        let user_rules =
            config.user_validation_rules.iter().map(|r| Ok((compile_user(&r.expression)?, r.message.clone())));
        Ok(Self {
            username: source(username)?.ok_or("claimMappings.username: Required value")?,
            groups: source(groups)?,
            uid: source(&uid)?,
            extra: extra.collect::<Result<_, String>>()?,
            required: required.map(|r| (r.claim.clone(), r.required_value.clone())).collect(),
            claim_rules: claim_rules.collect::<Result<_, String>>()?,
            user_rules: user_rules.collect::<Result<_, String>>()?,
        })
    }

    /// The claim that groups are in, where it is a claim: it may be kept elsewhere.
    pub(super) fn groups_claim(&self) -> Option<&str> {
        match &self.groups {
            Some(Source::Claim { claim, .. }) => Some(claim),
            _ => None,
        }
    }

    /// The user these claims speak of.
    ///
    /// # Errors
    /// Why they speak of none.
    pub(super) fn user(&self, claims: &Map<String, Json>) -> Result<UserInfo, String> {
        let value = Value::from_json(Arc::new(Json::Object(claims.clone())));
        let username = self.username(claims, &value)?;
        let groups = self.groups(claims, &value)?;
        let uid = match &self.uid {
            None => String::new(),
            Some(Source::Claim { claim, .. }) => {
                text(claims, claim).map_err(|why| format!("oidc: parse uid claim {claim:?}: {why}"))?
            }
            Some(Source::Expression(e)) => {
                let failed = |why: String| format!("oidc: error evaluating uid claim expression: {why}");
                let value = e.eval("claims", &value).map_err(failed)?;
                let text = value.as_str().map(str::to_owned);
                text.ok_or_else(|| failed("uid claim expression must return a string".into()))?
            }
        };
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        if let Some(id) = claims.get("jti").and_then(Json::as_str).filter(|id| !id.is_empty()) {
            extra.insert(EXTRA_CREDENTIAL_ID.to_owned(), vec![format!("JTI={id}")]);
        }
        for (key, expression) in &self.extra {
            let found = strings(&expression.eval("claims", &value)?);
            let found = found
                .map_err(|why| format!("oidc: error evaluating extra claim expression: {}: {why}", expression.text))?;
            if !found.is_empty() {
                extra.insert(key.clone(), found);
            }
        }
        self.check_claims(claims, &value)?;
        let shown = json!({ "username": username, "uid": uid, "groups": groups, "extra": extra });
        check_rules(&self.user_rules, "user", &Value::from_json(Arc::new(shown)))
            .map_err(|why| format!("oidc: error evaluating user info validation rule: {why}"))?;
        let mut groups = groups;
        groups.push(AUTHENTICATED.to_owned());
        Ok(UserInfo { username, uid, groups, extra })
    }

    fn username(&self, claims: &Map<String, Json>, value: &Value) -> Result<String, String> {
        match &self.username {
            Source::Expression(e) => {
                let failed = |why: String| format!("oidc: error evaluating username claim expression: {why}");
                let found = e.eval("claims", value).map_err(failed)?;
                let wrong = || failed("username claim expression must return a string".into());
                match found.as_str().ok_or_else(wrong)? {
                    "" => Err("oidc: empty username via CEL expression is not allowed".into()),
                    name => Ok(name.to_owned()),
                }
            }
            Source::Claim { claim, prefix } => {
                let found = text(claims, claim);
                let found = found.map_err(|why| format!("oidc: parse username claims {claim:?}: {why}"))?;
                if claim == "email" {
                    match claims.get("email_verified") {
                        None | Some(Json::Bool(true)) => {}
                        Some(Json::Bool(false)) => return Err("oidc: email not verified".into()),
                        Some(_) => {
                            return Err(
                                "oidc: parse 'email_verified' claim: json: cannot unmarshal into Go value of type \
                                        bool"
                                    .into(),
                            );
                        }
                    }
                }
                Ok(format!("{prefix}{found}"))
            }
        }
    }

    fn groups(&self, claims: &Map<String, Json>, value: &Value) -> Result<Vec<String>, String> {
        match &self.groups {
            None => Ok(Vec::new()),
            Some(Source::Claim { claim, prefix }) => {
                let wrong = || {
                    format!("oidc: parse groups claim {claim:?}: json: cannot unmarshal into Go value of type string")
                };
                let found = match claims.get(claim) {
                    None => Vec::new(),
                    Some(Json::String(one)) => vec![one.clone()],
                    Some(Json::Array(many)) => {
                        let texts = many.iter().map(|g| g.as_str().map(str::to_owned).ok_or_else(wrong));
                        texts.collect::<Result<_, _>>()?
                    }
                    Some(_) => return Err(wrong()),
                };
                Ok(found.into_iter().map(|g| format!("{prefix}{g}")).collect())
            }
            Some(Source::Expression(e)) => {
                let found = e.eval("claims", value).and_then(|v| strings(&v));
                found.map_err(|why| format!("oidc: error evaluating group claim expression: {why}"))
            }
        }
    }

    fn check_claims(&self, claims: &Map<String, Json>, value: &Value) -> Result<(), String> {
        for (claim, wanted) in &self.required {
            if !claims.contains_key(claim) {
                return Err(format!("oidc: required claim {claim} not present in ID token"));
            }
            let found = text(claims, claim).map_err(|why| format!("oidc: parse claim {claim}: {why}"))?;
            if found != *wanted {
                return Err(format!(
                    "oidc: required claim {claim} value does not match. Got = {found}, want = {wanted}"
                ));
            }
        }
        check_rules(&self.claim_rules, "claims", value)
            .map_err(|why| format!("oidc: error evaluating claim validation expression: {why}"))
    }
}

fn text(claims: &Map<String, Json>, claim: &str) -> Result<String, String> {
    match claims.get(claim) {
        None => Err("claim not present".into()),
        Some(Json::String(text)) => Ok(text.clone()),
        Some(other) => {
            let kind = match other {
                Json::Null => return Ok(String::new()),
                Json::Bool(_) => "bool",
                Json::Number(_) => "number",
                Json::Array(_) => "array",
                _ => "object",
            };
            Err(format!("json: cannot unmarshal {kind} into Go value of type string"))
        }
    }
}

fn check_rules(rules: &[(Expression, String)], name: &'static str, value: &Value) -> Result<(), String> {
    for (rule, message) in rules {
        match rule.eval(name, value)?.as_bool() {
            None => return Err("validation expression must return a boolean".into()),
            Some(true) => {}
            Some(false) => return Err(format!("validation expression '{}' failed: {message}", rule.text)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(config: Json) -> Mapping {
        Mapping::new(&serde_json::from_value(config).unwrap()).unwrap()
    }

    fn user(config: &Mapping, claims: Json) -> Result<UserInfo, String> {
        config.user(claims.as_object().unwrap())
    }

    #[test]
    fn claims_become_a_user() {
        let config = mapping(json!({"claimMappings": {"username": {"claim": "sub", "prefix": "oidc:"},
            "groups": {"claim": "groups", "prefix": "g:"}, "uid": {"claim": "oid"}}}));
        let found = user(&config, json!({"sub": "bob", "groups": ["a", "b"], "oid": "7", "jti": "x"})).unwrap();
        assert_eq!((found.username.as_str(), found.uid.as_str()), ("oidc:bob", "7"));
        assert_eq!(found.groups, ["g:a", "g:b", "system:authenticated"]);
        assert_eq!(found.extra[EXTRA_CREDENTIAL_ID], ["JTI=x"]);
        assert_eq!(
            user(&config, json!({"oid": "7"})).unwrap_err(),
            "oidc: parse username claims \"sub\": claim not present"
        );
        let address = mapping(json!({"claimMappings": {"username": {"claim": "email", "prefix": ""}}}));
        assert!(user(&address, json!({"email": "a@b"})).is_ok());
        assert_eq!(
            user(&address, json!({"email": "a@b", "email_verified": false})).unwrap_err(),
            "oidc: email not verified"
        );
    }

    #[test]
    fn expressions_make_and_judge_users() {
        let config = mapping(json!({
            "claimMappings": {"username": {"expression": "claims.username + ':x'"},
                "groups": {"expression": "claims.roles.split(',')"},
                "extra": [{"key": "example.org/t", "valueExpression": "has(claims.t) ? claims.t : ''"}]},
            "claimValidationRules": [{"claim": "hd", "requiredValue": "example.com"},
                {"expression": "claims.exp - claims.nbf <= 86400", "message": "too long"}],
            "userValidationRules": [{"expression": "!user.username.startsWith('system:')", "message": "reserved"}]}));
        let claims = |name: &str, exp: i64| json!({"username": name, "roles": "a,,b", "t": "1", "hd": "example.com", "exp": exp, "nbf": 0});
        let found = user(&config, claims("bob", 100)).unwrap();
        assert_eq!((found.username.as_str(), &found.groups[..2]), ("bob:x", &["a".to_owned(), "b".to_owned()][..]));
        assert_eq!(found.extra["example.org/t"], ["1"]);
        assert_eq!(
            user(&config, claims("bob", 100_000)).unwrap_err(),
            "oidc: error evaluating claim validation expression: validation expression 'claims.exp - claims.nbf <= 86400' \
             failed: too long"
        );
        assert_eq!(
            user(&config, claims("system:bob", 1)).unwrap_err(),
            "oidc: error evaluating user info validation rule: validation expression \
             '!user.username.startsWith('system:')' failed: reserved"
        );
        let mut wrong = claims("bob", 1);
        wrong["hd"] = "other".into();
        assert_eq!(
            user(&config, wrong).unwrap_err(),
            "oidc: required claim hd value does not match. Got = other, want = example.com"
        );
    }
}
