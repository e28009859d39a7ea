//! The audit policy (`audit.k8s.io/v1` `Policy`): which requests are recorded, how much of them, and at which stages.

use crate::authz::Attributes;
use gantry_api::meta::field::{ErrorList, Path};
use gantry_api::meta::names;
use gantry_schema::strict;
use serde_json::{Map, Value};

/// How much of a request is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    None,
    /// Who asked for what, and how it ended.
    Metadata,
    /// Also what was sent.
    Request,
    /// Also what was answered.
    RequestResponse,
}

const LEVELS: [(&str, Level); 4] = [
    ("None", Level::None),
    ("Metadata", Level::Metadata),
    ("Request", Level::Request),
    ("RequestResponse", Level::RequestResponse),
];

impl Level {
    /// All of them, the least first.
    pub const ALL: [Level; 4] = [Level::None, Level::Metadata, Level::Request, Level::RequestResponse];

    /// As policies and events name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        LEVELS.iter().find(|(_, level)| *level == self).map_or("", |(name, _)| name)
    }
}

/// A moment of a request at which an event is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It arrived, and is about to be handled.
    RequestReceived,
    /// The head of the answer is out; only of requests that last as long as their client likes.
    ResponseStarted,
    /// The answer is whole.
    ResponseComplete,
    /// It was not answered because the server failed at it.
    Panic,
}

const STAGES: [(&str, Stage); 4] = [
    ("RequestReceived", Stage::RequestReceived),
    ("ResponseStarted", Stage::ResponseStarted),
    ("ResponseComplete", Stage::ResponseComplete),
    ("Panic", Stage::Panic),
];

impl Stage {
    /// As policies and events name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        STAGES.iter().find(|(_, stage)| *stage == self).map_or("", |(name, _)| name)
    }
}

/// What the policy says of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// How much of it is recorded.
    pub level: Level,
    /// Stages without an event.
    pub omit_stages: Vec<Stage>,
    /// Whether managed fields are left out of recorded objects.
    pub omit_managed_fields: bool,
}

#[derive(Debug, Default)]
struct GroupResources {
    group: String,
    resources: Vec<String>,
    names: Vec<String>,
}

#[derive(Debug)]
struct Rule {
    level: Level,
    users: Vec<String>,
    groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<GroupResources>,
    namespaces: Vec<String>,
    urls: Vec<String>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

/// A policy.
#[derive(Debug)]
pub struct Policy {
    rules: Vec<Rule>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: bool,
}

fn has(list: &[String], value: &str) -> bool {
    list.iter().any(|v| v == value)
}

impl Rule {
    fn matches(&self, a: &Attributes) -> bool {
        if !self.users.is_empty() && !has(&self.users, &a.user.username)
            || !self.groups.is_empty() && !a.user.groups.iter().any(|g| has(&self.groups, g))
            || !self.verbs.is_empty() && !has(&self.verbs, &a.verb)
        {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return a.is_resource && self.matches_resource(a);
        }
        self.urls.is_empty() || !a.is_resource && self.urls.iter().any(|url| path_matches(&a.path, url))
    }

    fn matches_resource(&self, a: &Attributes) -> bool {
        if !self.namespaces.is_empty() && !has(&self.namespaces, &a.namespace) {
            return false;
        }
        self.resources.is_empty() || self.resources.iter().any(|r| r.matches(a))
    }
}

impl GroupResources {
    fn matches(&self, a: &Attributes) -> bool {
        if self.group != a.group && self.group != "*" {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        if !self.names.is_empty() && !has(&self.names, &a.name) {
            return false;
        }
        self.resources.iter().any(|wanted| match wanted.split_once('/') {
            None => wanted == "*" || a.subresource.is_empty() && *wanted == a.resource,
            // `pods/*` is of pods themselves, too.
            Some((resource, "*")) => resource == a.resource,
            Some(("*", subresource)) => !a.subresource.is_empty() && subresource == a.subresource,
            Some((resource, subresource)) => resource == a.resource && subresource == a.subresource,
        })
    }
}

fn path_matches(path: &str, wanted: &str) -> bool {
    wanted == "*" || wanted == path || wanted.ends_with('*') && path.starts_with(wanted.trim_end_matches('*'))
}

impl Policy {
    /// Reads a policy. Fields that policies do not have are passed over with a warning in the log, as upstream.
    ///
    /// # Errors
    /// Names the field that is wrong, and how.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let decoded = strict::decode_yaml(text, None).map_err(|e| format!("failed decoding: {e}"))?;
        let value = decoded.value;
        let of = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
        let (api_version, kind) = (of("apiVersion"), of("kind"));
        if (api_version, kind) != ("audit.k8s.io/v1", "Policy") {
            return Err(format!("unknown group version field {api_version}, Kind={kind} in policy"));
        }
        let mut reader = Reader::default();
        for strange in decoded.strict_errors {
            reader.unknown.push(strange);
        }
        let policy = reader.policy(&value)?;
        if !reader.unknown.is_empty() {
            let what = reader.unknown.join(", ");
            tracing::warn!("Audit policy contains errors, falling back to lenient decoding: {what}");
        }
        let mut errors: Vec<String> = reader.errors.0.iter().map(ToString::to_string).collect();
        match errors.len() {
            0 if policy.rules.is_empty() => Err("loaded illegal policy with 0 rules".to_owned()),
            0 => Ok(policy),
            1 => Err(errors.remove(0)),
            _ => Err(format!("[{}]", errors.join(", "))),
        }
    }

    /// What the first rule that covers the request says; nothing is recorded where none does.
    #[must_use]
    pub fn judge(&self, request: &Attributes) -> Verdict {
        let Some(rule) = self.rules.iter().find(|r| r.matches(request)) else {
            return Verdict {
                level: Level::None,
                omit_stages: self.omit_stages.clone(),
                omit_managed_fields: self.omit_managed_fields,
            };
        };
        Verdict {
            level: rule.level,
            omit_stages: [&self.omit_stages[..], &rule.omit_stages[..]].concat(),
            omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
        }
    }
}

/// Reads fields, and collects what is wrong with their values. A value of the wrong type ends the reading at once.
#[derive(Default)]
struct Reader {
    errors: ErrorList,
    unknown: Vec<String>,
}

impl Reader {
    fn policy(&mut self, value: &Value) -> Result<Policy, String> {
        let root = Path::new("");
        let fields = ["apiVersion", "kind", "metadata", "rules", "omitStages", "omitManagedFields"];
        let policy = self.object(value, &root, &fields)?;
        let omit_stages = self.stages(policy, &root)?;
        let omit_managed_fields = boolean(policy, &root, "omitManagedFields")?.unwrap_or(false);
        let mut rules = Vec::new();
        for (i, rule) in list(policy, &root, "rules")?.iter().enumerate() {
            rules.push(self.rule(rule, &Path::new("rules").index(i))?);
        }
        Ok(Policy { rules, omit_stages, omit_managed_fields })
    }

    fn rule(&mut self, value: &Value, path: &Path) -> Result<Rule, String> {
        let fields = [
            "level",
            "users",
            "userGroups",
            "verbs",
            "resources",
            "namespaces",
            "nonResourceURLs",
            "omitStages",
            "omitManagedFields",
        ];
        let rule = self.object(value, path, &fields)?;
        let wanted = string(rule, path, "level")?;
        let level = LEVELS.iter().find(|(name, _)| *name == wanted).map(|(_, level)| *level);
        match level {
            Some(_) => {}
            None if wanted.is_empty() => self.errors.required(&path.child("level"), ""),
            None => self.errors.not_supported(&path.child("level"), &wanted, &LEVELS.map(|(name, _)| name)),
        }
        let urls = strings(rule, path, "nonResourceURLs")?;
        self.check_urls(&urls, &path.child("nonResourceURLs"));
        let mut resources = Vec::new();
        for (i, one) in list(rule, path, "resources")?.iter().enumerate() {
            resources.push(self.resources(one, path, i)?);
        }
        let omit_stages = self.stages(rule, path)?;
        let namespaces = strings(rule, path, "namespaces")?;
        if !urls.is_empty() && (!resources.is_empty() || !namespaces.is_empty()) {
            let why = "rules cannot apply to both regular resources and non-resource URLs";
            self.errors.invalid(&path.child("nonResourceURLs"), urls.clone(), why);
        }
        Ok(Rule {
            level: level.unwrap_or(Level::None),
            users: strings(rule, path, "users")?,
            groups: strings(rule, path, "userGroups")?,
            verbs: strings(rule, path, "verbs")?,
            resources,
            namespaces,
            urls,
            omit_stages,
            omit_managed_fields: boolean(rule, path, "omitManagedFields")?,
        })
    }

    fn check_urls(&mut self, urls: &[String], path: &Path) {
        for (i, url) in urls.iter().enumerate().filter(|(_, url)| *url != "*") {
            if !url.starts_with('/') {
                let why = "non-resource URL rules must begin with a '/' character";
                self.errors.invalid(&path.index(i), url.as_str(), why);
            }
            if url.char_indices().any(|(at, c)| c == '*' && at + 1 < url.len()) {
                let why = "non-resource URL wildcards '*' must be the final character of the rule";
                self.errors.invalid(&path.index(i), url.as_str(), why);
            }
        }
    }

    fn resources(&mut self, value: &Value, rule: &Path, i: usize) -> Result<GroupResources, String> {
        // Upstream's refusals do not say which of the list is meant; failures of decoding do.
        let (path, place) = (rule.child("resources"), rule.child("resources").index(i));
        let fields = self.object(value, &place, &["group", "resources", "resourceNames"])?;
        let found = GroupResources {
            group: string(fields, &place, "group")?,
            resources: strings(fields, &place, "resources")?,
            names: strings(fields, &place, "resourceNames")?,
        };
        if !matches!(found.group.as_str(), "" | "*") {
            let wrong = names::dns1123_subdomain(&found.group, false);
            if !wrong.is_empty() {
                self.errors.invalid(&path.child("group"), found.group.as_str(), &wrong.join(","));
            }
        }
        if !found.names.is_empty() && found.resources.is_empty() {
            let why = "using resourceNames requires at least one resource";
            self.errors.invalid(&path.child("resourceNames"), found.names.clone(), why);
        }
        Ok(found)
    }

    fn stages(&mut self, object: &Map<String, Value>, path: &Path) -> Result<Vec<Stage>, String> {
        let mut stages = Vec::new();
        for (i, name) in strings(object, path, "omitStages")?.iter().enumerate() {
            match STAGES.iter().find(|(known, _)| known == name) {
                Some((_, stage)) => stages.push(*stage),
                None => {
                    let why = format!("allowed stages are {}", STAGES.map(|(name, _)| name).join(","));
                    self.errors.invalid(&path.child("omitStages").index(i), name.as_str(), &why);
                }
            }
        }
        Ok(stages)
    }

    fn object<'v>(&mut self, value: &'v Value, path: &Path, known: &[&str]) -> Result<&'v Map<String, Value>, String> {
        let object = value.as_object().ok_or_else(|| wrong_type(path, value, "an object"))?;
        for field in object.keys().filter(|k| !known.contains(&k.as_str())) {
            self.unknown.push(format!("unknown field {:?}", path.child(field).as_str()));
        }
        Ok(object)
    }
}

fn wrong_type(path: &Path, value: &Value, wanted: &str) -> String {
    let what = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    let place = if path.as_str().is_empty() { "the policy" } else { path.as_str() };
    format!("failed decoding: {place}: expected {wanted}, got {what}")
}

fn field<'v>(object: &'v Map<String, Value>, name: &str) -> Option<&'v Value> {
    object.get(name).filter(|v| !v.is_null())
}

fn list<'v>(object: &'v Map<String, Value>, path: &Path, name: &str) -> Result<&'v [Value], String> {
    match field(object, name) {
        None => Ok(&[]),
        Some(Value::Array(items)) => Ok(items),
        Some(other) => Err(wrong_type(&path.child(name), other, "a list")),
    }
}

fn string(object: &Map<String, Value>, path: &Path, name: &str) -> Result<String, String> {
    match field(object, name) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(wrong_type(&path.child(name), other, "a string")),
    }
}

fn strings(object: &Map<String, Value>, path: &Path, name: &str) -> Result<Vec<String>, String> {
    let one = |(i, item): (usize, &Value)| match item {
        Value::String(text) => Ok(text.clone()),
        other => Err(wrong_type(&path.child(name).index(i), other, "a string")),
    };
    list(object, path, name)?.iter().enumerate().map(one).collect()
}

fn boolean(object: &Map<String, Value>, path: &Path, name: &str) -> Result<Option<bool>, String> {
    match field(object, name) {
        None => Ok(None),
        Some(Value::Bool(b)) => Ok(Some(*b)),
        Some(other) => Err(wrong_type(&path.child(name), other, "a boolean")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::UserInfo;

    const HEAD: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\n";

    fn policy(rules: &str) -> Policy {
        Policy::parse(format!("{HEAD}{rules}").as_bytes()).unwrap()
    }

    fn failure(rest: &str) -> String {
        Policy::parse(format!("{HEAD}{rest}").as_bytes()).unwrap_err()
    }

    fn request(verb: &str, resource: &str, subresource: &str, namespace: &str, name: &str) -> Attributes {
        Attributes {
            user: UserInfo::new("jane", &["devs"]),
            verb: verb.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            name: name.into(),
            is_resource: true,
            ..Attributes::default()
        }
    }

    #[test]
    fn the_first_rule_that_covers_a_request_counts() {
        let policy = policy(
            "omitStages: [RequestReceived]\nomitManagedFields: true\nrules:\n\
             - {level: None, users: [joe]}\n\
             - {level: None, nonResourceURLs: [/healthz*, /version]}\n\
             - {level: Request, verbs: [create], resources: [{group: '', resources: [secrets], resourceNames: [s]}]}\n\
             - {level: RequestResponse, resources: [{group: '', resources: [pods/log, '*/scale', 'nodes/*']}],\n   \
                omitStages: [ResponseStarted], omitManagedFields: false}\n\
             - {level: Metadata, namespaces: [a, '']}\n\
             - {level: Request, userGroups: [devs], resources: [{group: apps}]}\n",
        );
        let level = |r: &Attributes| policy.judge(r).level;
        let joe = Attributes { user: UserInfo::new("joe", &[]), ..request("create", "secrets", "", "a", "s") };
        assert_eq!(level(&joe), Level::None);
        assert_eq!(level(&request("create", "secrets", "", "a", "s")), Level::Request);
        assert_eq!(level(&request("create", "secrets", "", "a", "t")), Level::Metadata);
        assert_eq!(level(&request("get", "pods", "log", "b", "p")), Level::RequestResponse);
        assert_eq!(level(&request("get", "pods", "", "b", "p")), Level::None);
        assert_eq!(level(&request("get", "deployments", "scale", "b", "p")), Level::RequestResponse);
        assert_eq!(level(&request("get", "nodes", "", "b", "n")), Level::RequestResponse);
        assert_eq!(level(&request("get", "persistentvolumes", "", "", "n")), Level::Metadata);
        let apps = Attributes { group: "apps".into(), ..request("get", "deployments", "", "b", "d") };
        assert_eq!(level(&apps), Level::Request);
        let path = |p: &str| Attributes { path: p.into(), is_resource: false, ..request("get", "", "", "", "") };
        assert_eq!(level(&path("/healthz/etcd")), Level::None);
        let told = policy.judge(&request("get", "pods", "log", "b", "p"));
        assert_eq!(told.omit_stages, [Stage::RequestReceived, Stage::ResponseStarted]);
        assert!(!told.omit_managed_fields);
        let told = policy.judge(&path("/apis"));
        assert_eq!((told.level, told.omit_managed_fields), (Level::None, true));
    }

    #[test]
    fn failures_name_the_field() {
        assert_eq!(failure(""), "loaded illegal policy with 0 rules");
        assert_eq!(failure("rules:\n- {}\n"), "rules[0].level: Required value");
        assert_eq!(
            failure("rules:\n- {level: Some}\n"),
            "rules[0].level: Unsupported value: \"Some\": supported values: \"None\", \"Metadata\", \"Request\", \
             \"RequestResponse\""
        );
        assert_eq!(
            failure("omitStages: [Never]\nrules:\n- {level: None, nonResourceURLs: [x]}\n"),
            "[omitStages[0]: Invalid value: \"Never\": allowed stages are RequestReceived,ResponseStarted,\
             ResponseComplete,Panic, rules[0].nonResourceURLs[0]: Invalid value: \"x\": non-resource URL rules must \
             begin with a '/' character]"
        );
        assert!(failure("rules:\n- {level: None, nonResourceURLs: [/a*b]}\n").ends_with("final character of the rule"));
        assert_eq!(
            failure("rules:\n- {level: None, resources: [{resourceNames: [a]}]}\n"),
            "rules[0].resources.resourceNames: Invalid value: [\"a\"]: using resourceNames requires at least one resource"
        );
        assert!(
            failure("rules:\n- {level: None, resources: [{group: a/b}]}\n").starts_with("rules[0].resources.group: ")
        );
        assert!(
            failure("rules:\n- {level: None, namespaces: [a], nonResourceURLs: [/]}\n")
                .contains("cannot apply to both")
        );
        assert_eq!(
            failure("rules:\n- {level: None, users: joe}\n"),
            "failed decoding: rules[0].users: expected a list, got a string"
        );
        let other = Policy::parse(b"apiVersion: audit.k8s.io/v1beta1\nkind: Policy\n").unwrap_err();
        assert!(other.starts_with("unknown group version field"), "{other}");
        assert!(Policy::parse(b"rules: [\n").unwrap_err().starts_with("failed decoding: "));
    }

    #[test]
    fn unknown_fields_are_passed_over() {
        assert_eq!(policy("rules:\n- {level: Metadata, colour: red}\n").rules.len(), 1);
    }
}
