use super::{
    Bound, Claims, EXTENDED_SECONDS, Keys, NamedObject, TokenAuthenticator, WARN_AFTER_SECONDS, split_username,
};
use crate::admission::memory_objects::{MemoryObjects, config};
use crate::authn::{Authenticator, EXTRA_NODE_NAME, EXTRA_POD_NAME, UserInfo};
use crate::cluster::Cluster;
use gantry_api::clock::Clock;
use gantry_api::k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use gantry_api::k8s_openapi::jiff::SignedDuration;
use serde_json::json;

fn named(name: &str, uid: &str) -> NamedObject {
    NamedObject { name: name.into(), uid: uid.into() }
}

fn audiences() -> [&'static str; 1] {
    [&config().api_audiences[0]]
}

fn claims(cluster: &Cluster, bound: Bound, audiences: &[&str], seconds: i64, extend: bool) -> Claims {
    let audiences = audiences.iter().map(|a| (*a).to_owned()).collect();
    let issuer = &config().service_account_issuer;
    let now = cluster.clock.now();
    Claims::new(issuer, "a", named("app", "sa-uid"), bound, audiences, seconds, extend, now, &cluster.entropy)
}

fn setup() -> (Cluster, std::sync::Arc<MemoryObjects>, Keys, TokenAuthenticator) {
    let (cluster, objects) = MemoryObjects::cluster();
    objects.put::<ServiceAccount>(json!({"metadata": {"name": "app", "namespace": "a", "uid": "sa-uid"}}));
    let keys = Keys::from_pem(&config().service_account_key_pem).unwrap();
    let authenticator = TokenAuthenticator::new(config(), cluster.clone()).unwrap();
    (cluster, objects, keys, authenticator)
}

async fn ask(a: &TokenAuthenticator, token: &str, audiences: &[&str]) -> Result<Option<UserInfo>, String> {
    let audiences: Vec<String> = audiences.iter().map(|a| (*a).to_owned()).collect();
    let found = a.authenticate_token(token, &audiences).await;
    found.map(|f| f.map(|(user, _)| user)).map_err(|e| e.message)
}

#[tokio::test]
async fn a_bound_token_tells_who_and_where() {
    let (cluster, objects, keys, a) = setup();
    objects
        .put::<Pod>(json!({"metadata": {"name": "p", "namespace": "a", "uid": "pod-uid"}, "spec": {"containers": []}}));
    let bound = Bound { pod: Some(named("p", "pod-uid")), node: Some(named("n", "node-uid")), secret: None };
    let token = keys.sign(&claims(&cluster, bound, &audiences(), 3600, false)).unwrap();
    let user = ask(&a, &token, &[]).await.unwrap().unwrap();
    assert_eq!((user.username.as_str(), user.uid.as_str()), ("system:serviceaccount:a:app", "sa-uid"));
    assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:a", "system:authenticated"]);
    assert_eq!((user.extra_value(EXTRA_POD_NAME), user.extra_value(EXTRA_NODE_NAME)), (Some("p"), Some("n")));
    // The pod is made anew under its name: the token is not for that one.
    objects
        .put::<Pod>(json!({"metadata": {"name": "p", "namespace": "a", "uid": "other"}, "spec": {"containers": []}}));
    assert!(ask(&a, &token, &[]).await.unwrap_err().contains("invalidated"));
}

#[tokio::test]
async fn what_is_not_ours_is_refused() {
    let (cluster, objects, keys, a) = setup();
    let fine = keys.sign(&claims(&cluster, Bound::default(), &audiences(), 600, false)).unwrap();
    assert!(ask(&a, &fine, &[]).await.unwrap().is_some());
    let other_audience = keys.sign(&claims(&cluster, Bound::default(), &["vault"], 600, false)).unwrap();
    assert!(ask(&a, &other_audience, &[]).await.unwrap_err().contains("audiences"));
    assert!(ask(&a, &other_audience, &["vault"]).await.unwrap().is_some());
    let mut tampered = fine.clone().into_bytes();
    let at = fine.rfind('.').unwrap() - 5;
    tampered[at] = if tampered[at] == b'A' { b'B' } else { b'A' };
    assert!(ask(&a, &String::from_utf8(tampered).unwrap(), &[]).await.is_err());
    assert_eq!(ask(&a, "opaque", &[]).await, Ok(None), "another sort of token");
    let mut foreign = claims(&cluster, Bound::default(), &audiences(), 600, false);
    foreign.iss = "https://elsewhere".into();
    assert_eq!(ask(&a, &keys.sign(&foreign).unwrap(), &[]).await, Ok(None));
    let mut renamed = claims(&cluster, Bound::default(), &audiences(), 600, false);
    renamed.sub = "system:serviceaccount:a:admin".into();
    assert!(ask(&a, &keys.sign(&renamed).unwrap(), &[]).await.is_err());
    objects.put::<ServiceAccount>(json!({"metadata": {"name": "app", "namespace": "a", "uid": "new"}}));
    assert!(ask(&a, &fine, &[]).await.is_err(), "the account was made anew");
}

#[tokio::test]
async fn tokens_end() {
    let (mut cluster, _objects, keys, _) = setup();
    let audience = audiences();
    let short = keys.sign(&claims(&cluster, Bound::default(), &audience, 600, false)).unwrap();
    let extended = claims(&cluster, Bound::default(), &audience, WARN_AFTER_SECONDS, true);
    assert_eq!(extended.exp - extended.iat, EXTENDED_SECONDS);
    let extended = keys.sign(&extended).unwrap();
    let cases =
        [(-120, false, false), (0, true, true), (599, true, true), (601, false, true), (400 * 86400, false, false)];
    let start = cluster.clock.now();
    for (later, short_counts, extended_counts) in cases {
        cluster.clock = Clock::starting_at(start + SignedDuration::from_secs(later));
        let a = TokenAuthenticator::new(config(), cluster.clone()).unwrap();
        assert_eq!(ask(&a, &short, &[]).await.is_ok(), short_counts, "{later}");
        assert_eq!(ask(&a, &extended, &[]).await.is_ok(), extended_counts, "{later}");
    }
}

#[test]
fn user_names_split() {
    assert_eq!(split_username("system:serviceaccount:a:b"), Some(("a", "b")));
    for bad in ["system:serviceaccount:a", "system:serviceaccount::b", "system:serviceaccount:a:b:c", "bob"] {
        assert_eq!(split_username(bad), None, "{bad}");
    }
}
