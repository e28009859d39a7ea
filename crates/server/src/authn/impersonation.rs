//! Impersonation: a user with the `impersonate` verb acts as another (`Impersonate-User`, `-Group`, `-Uid`, `-Extra-*`).

use super::service_account;
use super::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED, UserInfo};
use crate::authz::{Attributes, Authorizer, Decision};
use gantry_api::meta::status::ApiError;
use http::HeaderMap;
use std::collections::BTreeMap;

const AUTHENTICATION_GROUP: &str = "authentication.k8s.io";
const EXTRA_PREFIX: &str = "impersonate-extra-";

/// What the headers ask for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wish {
    user: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
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
        return Err(ApiError::internal("requested groups, uid or extra without impersonating a user"));
    }
    Ok(Some(wish))
}

/// The checks upstream makes for a wish, as authorization questions.
fn questions(wish: &Wish, user: &UserInfo) -> Vec<Attributes> {
    let ask = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| Attributes {
        user: user.clone(),
        verb: "impersonate".into(),
        group: group.into(),
        version: "v1".into(),
        resource: resource.into(),
        subresource: subresource.into(),
        namespace: namespace.into(),
        name: name.into(),
        is_resource: true,
        ..Default::default()
    };
    let mut out = vec![match service_account::split_username(&wish.user) {
        Some((namespace, name)) => ask("", "serviceaccounts", "", namespace, name),
        None => ask("", "users", "", "", &wish.user),
    }];
    out.extend(wish.groups.iter().map(|g| ask("", "groups", "", "", g)));
    for (key, values) in &wish.extra {
        out.extend(values.iter().map(|v| ask(AUTHENTICATION_GROUP, "userextras", key, "", v)));
    }
    if !wish.uid.is_empty() {
        out.push(ask(AUTHENTICATION_GROUP, "uids", "", "", &wish.uid));
    }
    out
}

/// The user to act as; None where the headers ask for no impersonation.
///
/// # Errors
/// 403 where `user` may not impersonate; 500 (as upstream) where groups and the like come without a user.
pub async fn impersonate(
    user: &UserInfo,
    headers: &HeaderMap,
    authorizer: &dyn Authorizer,
) -> Result<Option<UserInfo>, ApiError> {
    let Some(wish) = wish_of(headers)? else {
        return Ok(None);
    };
    for question in questions(&wish, user) {
        match authorizer.authorize(&question).await {
            Decision::Allow(_) => {}
            Decision::Deny(reason) | Decision::NoOpinion(reason) | Decision::Failed { why: reason, .. } => {
                return Err(question.forbidden(&reason));
            }
        }
    }
    let mut groups = wish.groups;
    if let Some((namespace, _)) = service_account::split_username(&wish.user)
        && groups.is_empty()
    {
        groups = service_account::groups(namespace);
    }
    let implied = if wish.user == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED };
    let anonymous_group = groups.iter().any(|g| g == UNAUTHENTICATED);
    if !groups.iter().any(|g| g == implied) && !anonymous_group {
        groups.push(implied.to_owned());
    }
    Ok(Some(UserInfo { username: wish.user, uid: wish.uid, groups, extra: wish.extra }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::Rules;

    /// Lets `alice` impersonate what is listed.
    struct Lists(&'static [(&'static str, &'static str)]);

    #[async_trait::async_trait]
    impl Authorizer for Lists {
        async fn authorize(&self, a: &Attributes) -> Decision {
            let resource =
                if a.subresource.is_empty() { a.resource.clone() } else { format!("{}/{}", a.resource, a.subresource) };
            match self.0.contains(&(resource.as_str(), a.name.as_str())) {
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

    async fn act(
        allowed: &'static [(&'static str, &'static str)],
        pairs: &[(&str, &str)],
    ) -> Result<Option<UserInfo>, ApiError> {
        impersonate(&UserInfo::new("alice", &[]), &headers(pairs), &Lists(allowed)).await
    }

    #[tokio::test]
    async fn one_acts_as_another() {
        assert_eq!(act(&[], &[]).await.unwrap(), None);
        let user = act(
            &[("users", "bob"), ("groups", "devs"), ("userextras/a/b", "1")],
            &[("Impersonate-User", "bob"), ("Impersonate-Group", "devs"), ("Impersonate-Extra-a%2fb", "1")],
        );
        let user = user.await.unwrap().unwrap();
        assert_eq!(
            (user.username.as_str(), user.groups),
            ("bob", vec!["devs".to_owned(), "system:authenticated".to_owned()])
        );
        assert_eq!(user.extra["a/b"], ["1"]);
        let account = act(&[("serviceaccounts", "app")], &[("Impersonate-User", "system:serviceaccount:ns:app")]);
        assert!(account.await.unwrap().unwrap().in_group("system:serviceaccounts:ns"));
        let nobody = act(&[("users", "system:anonymous")], &[("Impersonate-User", "system:anonymous")]).await;
        assert_eq!(nobody.unwrap().unwrap().groups, ["system:unauthenticated"]);
    }

    #[tokio::test]
    async fn each_part_must_be_allowed() {
        let refused = act(&[("users", "bob")], &[("Impersonate-User", "bob"), ("Impersonate-Group", "system:masters")]);
        assert_eq!(
            refused.await.unwrap_err().message,
            r#"groups "system:masters" is forbidden: User "alice" cannot impersonate resource "groups" in API group "" at the cluster scope"#
        );
        assert_eq!(act(&[], &[("Impersonate-Group", "g")]).await.unwrap_err().code, 500);
    }
}
