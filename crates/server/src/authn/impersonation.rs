//! Impersonation: a user acts as another (`Impersonate-User`, `-Group`, `-Uid`, `-Extra-*`), who may do so for certain requests
//! alone (KEP-5284: verbs `impersonate:MODE` and `impersonate-on:MODE:VERB`) or, with the verb `impersonate`, for all.

use super::service_account;
use super::{ANONYMOUS, AUTHENTICATED, EXTRA_NODE_NAME, UNAUTHENTICATED, UserInfo};
use crate::authz::{Attributes, Authorizer, Decision};
use gantry_api::meta::field::Path;
use gantry_api::meta::names::{dns1123_subdomain, domain_prefixed_path};
use gantry_api::meta::status::ApiError;
use http::HeaderMap;
use std::collections::BTreeMap;

const AUTHENTICATION_GROUP: &str = "authentication.k8s.io";
const EXTRA_PREFIX: &str = "impersonate-extra-";
const MASTERS: &str = "system:masters";
/// From so many groups or attributes on it is asked first whether all are allowed.
const MANY: usize = 4;

/// What the headers ask for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wish {
    user: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

impl Wish {
    /// As Go shows it.
    fn in_go(&self) -> String {
        let list = |values: &[String]| {
            let quoted: Vec<String> = values.iter().map(|v| format!("{v:?}")).collect();
            if quoted.is_empty() { "[]string(nil)".to_owned() } else { format!("[]string{{{}}}", quoted.join(", ")) }
        };
        let extra: Vec<String> = self.extra.iter().map(|(k, v)| format!("{k:?}:{}", list(v))).collect();
        let extra = match extra.is_empty() {
            true => "map[string][]string(nil)".to_owned(),
            false => format!("map[string][]string{{{}}}", extra.join(", ")),
        };
        let (name, uid, groups) = (&self.user, &self.uid, list(&self.groups));
        format!("&user.DefaultInfo{{Name:{name:?}, UID:{uid:?}, Groups:{groups}, Extra:{extra}}}")
    }
}

/// The key of an extra attribute from its header's name.
pub(super) fn unescape(key: &str) -> String {
    let mut out = Vec::with_capacity(key.len());
    let bytes = key.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        let hex = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let pair = (bytes[i] == b'%').then(|| Some(hex(*bytes.get(i + 1)?)? << 4 | hex(*bytes.get(i + 2)?)?)).flatten();
        match pair {
            Some(b) => {
                out.push(b);
                i += 3;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| key.to_owned())
}

fn wish_of(headers: &HeaderMap) -> Result<Option<Wish>, ApiError> {
    let text = |v: &http::HeaderValue| v.to_str().unwrap_or_default().to_owned();
    let one = |name: &str| headers.get(name).map(text).unwrap_or_default();
    let mut wish = Wish {
        user: one("impersonate-user"),
        uid: one("impersonate-uid"),
        groups: headers.get_all("impersonate-group").iter().map(text).collect(),
        extra: BTreeMap::new(),
    };
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix(EXTRA_PREFIX) {
            wish.extra.entry(unescape(key)).or_default().push(text(value));
        }
    }
    if wish == Wish::default() {
        return Ok(None);
    }
    if wish.user.is_empty() {
        return Err(ApiError::bad_request(format!("requested {} without impersonating a user name", wish.in_go())));
    }
    Ok(Some(wish))
}

/// A way in which one may be allowed to act as another, the most confined first (KEP-5284). In all but the last both are
/// asked: who may be acted as, and what may be done meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// A ServiceAccount as the node that its pod runs on.
    AssociatedNode,
    /// As a node.
    ArbitraryNode,
    /// As a ServiceAccount.
    ServiceAccount,
    /// As anybody else.
    UserInfo,
    /// As anybody, to do anything.
    Legacy,
}

impl Mode {
    const ALL: [Mode; 5] =
        [Mode::AssociatedNode, Mode::ArbitraryNode, Mode::ServiceAccount, Mode::UserInfo, Mode::Legacy];

    const fn name(self) -> &'static str {
        match self {
            Mode::AssociatedNode => "associated-node",
            Mode::ArbitraryNode => "arbitrary-node",
            Mode::ServiceAccount => "serviceaccount",
            Mode::UserInfo => "user-info",
            Mode::Legacy => "legacy",
        }
    }

    fn is_confined(self) -> bool {
        self != Mode::Legacy
    }

    /// The verb that allows to act as another in this way.
    fn verb(self) -> String {
        if self.is_confined() { format!("impersonate:{}", self.name()) } else { "impersonate".to_owned() }
    }

    /// Whether the wish can be granted in this way at all.
    fn covers(self, wish: &Wish, user: &UserInfo) -> bool {
        let name_alone = wish.uid.is_empty() && wish.groups.is_empty() && wish.extra.is_empty();
        let (node, account) = (node_of(&wish.user), service_account::split_username(&wish.user));
        match self {
            Mode::AssociatedNode => {
                let own =
                    service_account::split_username(&user.username).and_then(|_| user.extra_value(EXTRA_NODE_NAME));
                name_alone && node.is_some() && own == node
            }
            Mode::ArbitraryNode => name_alone && node.is_some(),
            Mode::ServiceAccount => name_alone && account.is_some(),
            Mode::UserInfo => node.is_none() && account.is_none(),
            Mode::Legacy => true,
        }
    }

    /// The user as the authorizer is to see it. Which node a ServiceAccount is on says nothing of what it may do there.
    fn asking(self, user: &UserInfo) -> UserInfo {
        let mut asking = user.clone();
        if self == Mode::AssociatedNode {
            let keys = std::mem::take(&mut asking.extra).into_keys().collect();
            asking.extra.insert("authentication.kubernetes.io/associated-node-keys".to_owned(), keys);
        }
        asking
    }
}

/// The node that a user name is of.
fn node_of(username: &str) -> Option<&str> {
    username.strip_prefix("system:node:").filter(|name| dns1123_subdomain(name, false).is_empty())
}

/// The questions of who may be acted as, and the groups that follow from the answer.
struct Questions<'a> {
    mode: Mode,
    user: UserInfo,
    authorizer: &'a dyn Authorizer,
}

async fn ask(authorizer: &dyn Authorizer, question: &Attributes) -> Result<(), ApiError> {
    match authorizer.authorize(question).await {
        Decision::Allow(_) => Ok(()),
        Decision::Deny(reason) | Decision::NoOpinion(reason) | Decision::Failed { why: reason, .. } => {
            Err(question.forbidden(&reason))
        }
    }
}

impl Questions<'_> {
    fn about(&self, resource: &str, name: &str) -> Attributes {
        // What was always there is asked for where it always was.
        let old = matches!(resource, "users" | "groups" | "serviceaccounts") && !self.mode.is_confined();
        Attributes {
            user: self.user.clone(),
            verb: self.mode.verb(),
            group: if old { "" } else { AUTHENTICATION_GROUP }.to_owned(),
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            name: name.to_owned(),
            is_resource: true,
            ..Attributes::default()
        }
    }

    async fn user(&self, wish: &Wish) -> Result<Vec<String>, ApiError> {
        let node = node_of(&wish.user).filter(|_| self.mode.is_confined());
        let (question, groups) = match (service_account::split_username(&wish.user), node) {
            (Some((namespace, name)), _) => {
                let question = Attributes { namespace: namespace.to_owned(), ..self.about("serviceaccounts", name) };
                let known =
                    if wish.groups.is_empty() { service_account::groups(namespace) } else { wish.groups.clone() };
                (question, known)
            }
            (None, Some(node)) => {
                let name = if self.mode == Mode::AssociatedNode { "*" } else { node };
                (self.about("nodes", name), vec!["system:nodes".to_owned()])
            }
            (None, None) => (self.about("users", &wish.user), wish.groups.clone()),
        };
        ask(self.authorizer, &question).await?;
        Ok(groups)
    }

    async fn uid(&self, uid: &str) -> Result<(), ApiError> {
        if uid.is_empty() { Ok(()) } else { ask(self.authorizer, &self.about("uids", uid)).await }
    }

    async fn groups(&self, groups: &[String]) -> Result<(), ApiError> {
        if self.mode.is_confined() {
            if groups.iter().any(String::is_empty) {
                let why = "impersonating the empty string group is not allowed";
                return Err(self.about("groups", "").forbidden(why));
            }
            if groups.iter().any(|g| g == MASTERS) {
                let why = "impersonating the system:masters group is not allowed";
                return Err(self.about("groups", MASTERS).forbidden(why));
            }
            if groups.len() >= MANY && ask(self.authorizer, &self.about("groups", "*")).await.is_ok() {
                return Ok(());
            }
        }
        for group in groups {
            ask(self.authorizer, &self.about("groups", group)).await?;
        }
        Ok(())
    }

    async fn extra(&self, extra: &BTreeMap<String, Vec<String>>) -> Result<(), ApiError> {
        let about =
            |key: &str, value: &str| Attributes { subresource: key.to_owned(), ..self.about("userextras", value) };
        if self.mode.is_confined() && !extra.is_empty() {
            if let Some(why) = extra.iter().find_map(|(key, values)| wrong_extra(key, values)) {
                return Err(about("", "").forbidden(&why));
            }
            let many = extra.values().map(Vec::len).sum::<usize>() >= MANY;
            if many && ask(self.authorizer, &about("*", "*")).await.is_ok() {
                return Ok(());
            }
        }
        for (key, values) in extra {
            for value in values {
                ask(self.authorizer, &about(key, value)).await?;
            }
        }
        Ok(())
    }
}

/// What is wrong with an extra attribute that nobody may act with.
fn wrong_extra(key: &str, values: &[String]) -> Option<String> {
    if key.is_empty() {
        return Some("impersonating the empty string key in extra is not allowed".to_owned());
    }
    let errors = domain_prefixed_path(&Path::new("extra").child("key"), key);
    if !errors.is_empty() {
        let all: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        let all = if let [one] = all.as_slice() { one.clone() } else { format!("[{}]", all.join(", ")) };
        return Some(format!("impersonating an invalid key in extra is not allowed: {all}"));
    }
    if key != key.to_lowercase() {
        return Some(format!("impersonating a non-lowercase key in extra is not allowed: {key:?}"));
    }
    if values.is_empty() {
        return Some("impersonating empty values in extra is not allowed".to_owned());
    }
    let empty = values.iter().any(String::is_empty);
    empty.then(|| "impersonating the empty string value in extra is not allowed".to_owned())
}

/// As whom a request is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Impersonated {
    /// The user.
    pub user: UserInfo,
    /// The verb that allowed it; empty where anything may be done as that user.
    pub constraint: String,
}

async fn granted(
    mode: Mode,
    wish: &Wish,
    request: &Attributes,
    authorizer: &dyn Authorizer,
) -> Result<Impersonated, ApiError> {
    let user = mode.asking(&request.user);
    if mode.is_confined() {
        let verb = format!("impersonate-on:{}:{}", mode.name(), request.verb);
        ask(authorizer, &Attributes { user: user.clone(), verb, ..request.clone() }).await?;
    }
    let questions = Questions { mode, user, authorizer };
    let mut groups = questions.user(wish).await?;
    questions.uid(&wish.uid).await?;
    questions.groups(&wish.groups).await?;
    questions.extra(&wish.extra).await?;
    let implied = if wish.user == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED };
    let anonymous_group = groups.iter().any(|g| g == UNAUTHENTICATED);
    if !groups.iter().any(|g| g == implied) && !anonymous_group {
        groups.push(implied.to_owned());
    }
    let user = UserInfo { username: wish.user.clone(), uid: wish.uid.clone(), groups, extra: wish.extra.clone() };
    let constraint = if mode.is_confined() { mode.verb() } else { String::new() };
    Ok(Impersonated { user, constraint })
}

/// Whether the headers ask for anything of it.
#[must_use]
pub fn is_wished(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with("impersonate-"))
}

/// The user to act as; None where the headers ask for no impersonation. `request` is what is asked for, and by whom.
///
/// # Errors
/// 403 where the user may not impersonate, in the words of the first way that could have been; 400 where groups and the like
/// come without a user.
pub async fn impersonate(
    headers: &HeaderMap,
    request: &Attributes,
    authorizer: &dyn Authorizer,
) -> Result<Option<Impersonated>, ApiError> {
    let Some(wish) = wish_of(headers)? else {
        return Ok(None);
    };
    let mut first = None;
    for mode in Mode::ALL {
        if !mode.covers(&wish, &request.user) {
            continue;
        }
        match granted(mode, &wish, request, authorizer).await {
            Ok(impersonated) => return Ok(Some(impersonated)),
            Err(refused) => first = first.or(Some(refused)),
        }
    }
    Err(first.unwrap_or_else(|| ApiError::internal("all impersonation modes failed")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::Rules;

    /// Allows what is listed: verb, resource with its subresource, name.
    struct Lists(&'static [(&'static str, &'static str, &'static str)]);

    #[async_trait::async_trait]
    impl Authorizer for Lists {
        async fn authorize(&self, a: &Attributes) -> Decision {
            let resource =
                if a.subresource.is_empty() { a.resource.clone() } else { format!("{}/{}", a.resource, a.subresource) };
            match self.0.contains(&(a.verb.as_str(), resource.as_str(), a.name.as_str())) {
                true => Decision::Allow(String::new()),
                false => Decision::NoOpinion(String::new()),
            }
        }
        async fn rules_for(&self, _: &UserInfo, _: &str) -> Rules {
            Rules::default()
        }
    }

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (k.parse::<http::HeaderName>().unwrap(), v.parse().unwrap())).collect()
    }

    /// Whoever lists the pods of a namespace.
    fn lists_pods(user: UserInfo) -> Attributes {
        Attributes {
            user,
            verb: "list".into(),
            resource: "pods".into(),
            namespace: "ns".into(),
            is_resource: true,
            ..Attributes::default()
        }
    }

    async fn act(
        allowed: &'static [(&'static str, &'static str, &'static str)],
        pairs: &[(&str, &str)],
    ) -> Result<Option<Impersonated>, ApiError> {
        impersonate(&headers(pairs), &lists_pods(UserInfo::new("alice", &[])), &Lists(allowed)).await
    }

    const OLD: &str = "impersonate";

    #[tokio::test]
    async fn one_acts_as_another() {
        assert_eq!(act(&[], &[]).await.unwrap(), None);
        let wished = |name| is_wished(&headers(&[(name, "x")]));
        assert!(wished("Impersonate-User") && wished("Impersonate-Extra-a") && !wished("Accept"));
        let acting = act(
            &[(OLD, "users", "bob"), (OLD, "groups", "devs"), (OLD, "userextras/a/b", "1")],
            &[("Impersonate-User", "bob"), ("Impersonate-Group", "devs"), ("Impersonate-Extra-a%2fb", "1")],
        );
        let Impersonated { user, constraint } = acting.await.unwrap().unwrap();
        let groups = vec!["devs".to_owned(), "system:authenticated".to_owned()];
        assert_eq!((user.username.as_str(), user.groups, constraint.as_str()), ("bob", groups, ""));
        assert_eq!(user.extra["a/b"], ["1"]);
        let account = act(&[(OLD, "serviceaccounts", "app")], &[("Impersonate-User", "system:serviceaccount:ns:app")]);
        assert!(account.await.unwrap().unwrap().user.in_group("system:serviceaccounts:ns"));
        let nobody = act(&[(OLD, "users", "system:anonymous")], &[("Impersonate-User", "system:anonymous")]).await;
        assert_eq!(nobody.unwrap().unwrap().user.groups, ["system:unauthenticated"]);
    }

    #[tokio::test]
    async fn one_acts_as_another_for_this_alone() {
        let allowed = &[
            ("impersonate-on:user-info:list", "pods", ""),
            ("impersonate:user-info", "users", "bob"),
            ("impersonate:user-info", "groups", "*"),
        ];
        let bob = ("Impersonate-User", "bob");
        let found = act(allowed, &[bob]).await.unwrap().unwrap();
        assert_eq!((found.user.username.as_str(), found.constraint.as_str()), ("bob", "impersonate:user-info"));
        let group = |name: &'static str| ("Impersonate-Group", name);
        let many = [bob, group("a"), group("b"), group("c"), group("d")];
        assert_eq!(act(allowed, &many).await.unwrap().unwrap().user.groups.len(), 5);
        assert_eq!(
            act(allowed, &many[..4]).await.unwrap_err().message,
            r#"groups.authentication.k8s.io "a" is forbidden: User "alice" cannot impersonate:user-info resource "groups" in API group "authentication.k8s.io" at the cluster scope"#
        );
        let refused = act(allowed, &[bob, group("system:masters")]).await.unwrap_err().message;
        assert!(refused.ends_with(": impersonating the system:masters group is not allowed"), "{refused}");
        let refused = act(allowed, &[bob, ("Impersonate-Extra-a", "1")]).await.unwrap_err().message;
        assert!(refused.contains(": impersonating an invalid key in extra is not allowed: extra.key: "), "{refused}");
        // Not to do anything else.
        let mut other = lists_pods(UserInfo::new("alice", &[]));
        other.verb = "delete".into();
        assert!(impersonate(&headers(&[bob]), &other, &Lists(allowed)).await.is_err());
    }

    #[tokio::test]
    async fn a_pod_acts_as_its_node() {
        let node = [("Impersonate-User", "system:node:n1")];
        let mut pod = UserInfo::new("system:serviceaccount:ns:agent", &[]);
        pod.extra.insert(EXTRA_NODE_NAME.to_owned(), vec!["n1".to_owned()]);
        let own = Lists(&[
            ("impersonate-on:associated-node:list", "pods", ""),
            ("impersonate:associated-node", "nodes", "*"),
        ]);
        let found = impersonate(&headers(&node), &lists_pods(pod.clone()), &own).await.unwrap().unwrap();
        assert_eq!(found.user.groups, ["system:nodes", "system:authenticated"]);
        assert_eq!(found.constraint, "impersonate:associated-node");
        pod.extra.insert(EXTRA_NODE_NAME.to_owned(), vec!["n2".to_owned()]);
        let refused = impersonate(&headers(&node), &lists_pods(pod), &own).await.unwrap_err();
        assert_eq!(
            refused.message,
            r#"pods is forbidden: User "system:serviceaccount:ns:agent" cannot impersonate-on:arbitrary-node:list resource "pods" in API group "" in the namespace "ns""#
        );
        let any = &[("impersonate-on:arbitrary-node:list", "pods", ""), ("impersonate:arbitrary-node", "nodes", "n1")];
        assert_eq!(act(any, &node).await.unwrap().unwrap().constraint, "impersonate:arbitrary-node");
        let account = [("Impersonate-User", "system:serviceaccount:ns:app")];
        let as_account = &[
            ("impersonate-on:serviceaccount:list", "pods", ""),
            ("impersonate:serviceaccount", "serviceaccounts", "app"),
        ];
        assert_eq!(act(as_account, &account).await.unwrap().unwrap().constraint, "impersonate:serviceaccount");
    }

    #[tokio::test]
    async fn each_part_must_be_allowed() {
        let pairs = [("Impersonate-User", "bob"), ("Impersonate-Group", "system:masters")];
        assert_eq!(
            act(&[(OLD, "users", "bob")], &pairs).await.unwrap_err().message,
            r#"pods is forbidden: User "alice" cannot impersonate-on:user-info:list resource "pods" in API group "" in the namespace "ns""#
        );
        assert!(act(&[(OLD, "users", "bob"), (OLD, "groups", "system:masters")], &pairs).await.is_ok());
        let nameless = act(&[], &[("Impersonate-Group", "g")]).await.unwrap_err();
        let told = "requested &user.DefaultInfo{Name:\"\", UID:\"\", Groups:[]string{\"g\"}, \
                    Extra:map[string][]string(nil)} without impersonating a user name";
        assert_eq!((nameless.code, nameless.message.as_str()), (400, told));
    }
}
