//! Who asks: tokens of issuers, of files, of Secrets and of a webhook, proxies that speak for users, anonymous requests.

mod cluster;

use cluster::api::{Api, base64};
use cluster::https::Https;
use cluster::{Cluster, run};
use serde_json::{Value, json};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

/// An issuer of tokens: its key, kept in files for openssl.
struct Signer {
    files: tempfile::TempDir,
    kid: &'static str,
}

fn url_safe(data: &[u8]) -> String {
    base64(data).replace('+', "-").replace('/', "_").replace('=', "")
}

impl Signer {
    fn new(kid: &'static str) -> Self {
        let files = tempfile::tempdir().unwrap();
        run(Command::new("openssl").args(["genrsa", "-out"]).arg(files.path().join("key.pem")).arg("2048"));
        Self { files, kid }
    }

    /// Its public key, as a key set has it.
    fn jwk(&self) -> Value {
        let key = self.files.path().join("key.pem");
        let modulus = run(Command::new("openssl").args(["rsa", "-noout", "-modulus", "-in"]).arg(key));
        let hex = modulus.trim().trim_start_matches("Modulus=");
        let digits = |i: usize| u8::from_str_radix(&hex[i..i + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(digits).collect();
        json!({"kty": "RSA", "use": "sig", "alg": "RS256", "kid": self.kid, "n": url_safe(&bytes), "e": "AQAB"})
    }

    /// A token with these claims, signed with RS256.
    fn token(&self, claims: &Value) -> String {
        let header = json!({"alg": "RS256", "typ": "JWT", "kid": self.kid}).to_string();
        let signed = format!("{}.{}", url_safe(header.as_bytes()), url_safe(claims.to_string().as_bytes()));
        let input = self.files.path().join("input");
        std::fs::write(&input, &signed).unwrap();
        let mut sign = Command::new("openssl");
        sign.args(["dgst", "-sha256", "-sign"]).arg(self.files.path().join("key.pem")).arg(input);
        let output = sign.stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        format!("{signed}.{}", url_safe(&output.stdout))
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

fn claims(issuer: &str, changes: Value) -> Value {
    let mut claims = json!({"iss": issuer, "aud": "kubernetes", "sub": "alice", "exp": now() + 3600,
        "groups": ["devs"], "hd": "example.com", "jti": "id-1"});
    for (key, value) in changes.as_object().unwrap() {
        claims[key] = value.clone();
    }
    claims
}

/// Whom the server takes the holder of a token for; None where it is nobody.
fn whoami(api: &Api<'_>, token: &str) -> Option<Value> {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let answer = api.with_token(token).send("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", &review);
    match answer.code {
        201 => Some(answer.json()["status"]["userInfo"].clone()),
        401 => None,
        _ => panic!("{answer:?}"),
    }
}

/// What a TokenReview says of a token.
fn review(api: &Api<'_>, token: &str) -> Value {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    api.create("/apis/authentication.k8s.io/v1/tokenreviews", &review)["status"].take()
}

fn configuration(issuer: &Https, prefix: &str, anonymous: &str) -> String {
    let ca: String = issuer.ca_pem.lines().map(|l| format!("      {l}\n")).collect();
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\nanonymous: {anonymous}\njwt:\n- \
         issuer:\n    url: '{}'\n    audiences: [kubernetes, other]\n    audienceMatchPolicy: MatchAny\n    \
         certificateAuthority: |\n{ca}  claimMappings:\n    username: {{claim: sub, prefix: '{prefix}'}}\n    groups: \
         {{expression: \"claims.groups.map(g, 'oidc:' + g)\"}}\n    extra: [{{key: example.com/hd, valueExpression: \
         claims.hd}}]\n  claimValidationRules:\n  - {{claim: hd, requiredValue: example.com}}\n  userValidationRules:\n  - \
         {{expression: \"!user.username.startsWith('system:')\", message: reserved}}\n",
        issuer.url("")
    )
}

const TOKENS: &str = "file-token,filip,42,\"readers,writers\"\n";

#[test]
fn tokens_of_every_sort() {
    let mut cluster = Cluster::prepare(&[]);
    let signers = Arc::new(Mutex::new(vec![Signer::new("one")]));
    let published = signers.clone();
    let issuer = Https::start(&cluster, |port| {
        let url = format!("https://127.0.0.1:{port}");
        Arc::new(move |path: &str, _: &Value| match path {
            "/.well-known/openid-configuration" => json!({"issuer": url, "jwks_uri": format!("{url}/keys")}),
            "/keys" => json!({"keys": published.lock().unwrap().iter().map(Signer::jwk).collect::<Vec<_>>()}),
            _ => Value::Null,
        })
    });
    let asked = Arc::new(Mutex::new(Vec::<Value>::new()));
    let seen = asked.clone();
    let webhook = Https::start(&cluster, |_| {
        Arc::new(move |_: &str, review: &Value| {
            seen.lock().unwrap().push(review.clone());
            let user = json!({"username": "wendy", "uid": "9", "groups": ["hooked"], "extra": {"k": ["v"]}});
            let status = match review["spec"]["token"].as_str() {
                Some("hook-token") => json!({"authenticated": true, "user": user}),
                _ => json!({"authenticated": false, "error": "who is this?"}),
            };
            json!({"apiVersion": review["apiVersion"], "kind": "TokenReview", "status": status})
        })
    });
    let file = |name: &str, text: &str| {
        let path = cluster.data_dir().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let everywhere = "{enabled: true}";
    let config = file("authentication.yaml", &configuration(&issuer, "oidc:", everywhere));
    let tokens = file("tokens.csv", TOKENS);
    let hook = webhook.kubeconfig(&cluster, "hook.kubeconfig", "/authenticate");
    let options = ["--authentication-config", &config, "--token-auth-file", &tokens].into_iter().chain([
        "--authentication-token-webhook-config-file",
        &hook,
        "--authentication-token-webhook-version",
        "v1",
    ]);
    cluster.add_options(&options.collect::<Vec<_>>());
    cluster.up();
    let api = Api::new(&cluster);

    of_an_issuer(&api, &issuer, &signers);
    of_a_file_and_of_a_webhook(&api, &asked);
    bootstrap_tokens(&api);
    in_secrets(&api);
    by_request(&api);
    proxies(&api);

    // Another configuration holds without a restart; one that is wrong is not taken over.
    std::fs::write(&config, "jwt: 7\n").unwrap();
    cluster.wait_for("the wrong configuration is told", || cluster.log().contains("not taken over").then_some(()));
    let token = signers.lock().unwrap()[0].token(&claims(&issuer.url(""), json!({})));
    assert_eq!(whoami(&api, &token).unwrap()["username"], "oidc:alice");
    let only = "{enabled: true, conditions: [{path: /livez}]}";
    std::fs::write(&config, configuration(&issuer, "new:", only)).unwrap();
    cluster.wait_for("the new prefix", || whoami(&api, &token).filter(|u| u["username"] == "new:alice"));
    let nobody = |path: &str| {
        let server = cluster.kubectl(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"]);
        let url = format!("{server}{path}");
        run(cluster.inside("curl").args(["-sS", "-k", "-o", "/dev/null", "-w", "%{http_code}", &url]))
    };
    assert_eq!((nobody("/livez").as_str(), nobody("/readyz").as_str()), ("200", "401"));
}

fn of_an_issuer(api: &Api<'_>, issuer: &Https, signers: &Mutex<Vec<Signer>>) {
    let url = issuer.url("");
    let token = |changes: Value| signers.lock().unwrap()[0].token(&claims(&url, changes));
    // The issuer is asked once the server runs.
    let alice = token(json!({}));
    let user = api.cluster.wait_for("the issuer is known", || whoami(api, &alice));
    assert_eq!(user["username"], "oidc:alice");
    assert_eq!(user["groups"], json!(["oidc:devs", "system:authenticated"]));
    assert_eq!(user["extra"]["example.com/hd"], json!(["example.com"]));
    assert_eq!(user["extra"]["authentication.kubernetes.io/credential-id"], json!(["JTI=id-1"]));
    for (changes, why) in [
        (json!({"aud": "somebody-else"}), "oidc: verify token: oidc: expected audience in"),
        (json!({"exp": 1}), "oidc: verify token: oidc: token is expired"),
        (json!({"hd": "evil.com"}), "oidc: required claim hd value does not match. Got = evil.com, want = example.com"),
    ] {
        let token = token(changes.clone());
        assert_eq!(whoami(api, &token), None, "{changes}");
        let status = review(api, &token);
        assert!(status["error"].as_str().unwrap_or_default().contains(why), "{changes}: {status}");
    }
    // Signed by somebody else, under the same name.
    let forged = Signer::new("one").token(&claims(&url, json!({})));
    assert_eq!(whoami(api, &forged), None);
    // A new key is fetched when a token needs it.
    signers.lock().unwrap().push(Signer::new("two"));
    let second = signers.lock().unwrap()[1].token(&claims(&url, json!({"sub": "bob"})));
    assert_eq!(whoami(api, &second).unwrap()["username"], "oidc:bob");
    let metrics = api.request("GET", "/metrics", None).text;
    let of = |name: &str| {
        let name = format!("apiserver_authentication_jwt_authenticator_{name}");
        metrics.lines().filter(|line| line.starts_with(&name)).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(of("jwks_fetch_last_key_set_info{").len(), 1, "of the last key set alone");
    assert!(of("jwks_fetch_last_timestamp_seconds{result=\"success\",").len() == 1, "{metrics}");
    assert_eq!(of("latency_seconds_count{").len(), 2, "of tokens accepted, and of others");
}

fn of_a_file_and_of_a_webhook(api: &Api<'_>, asked: &Mutex<Vec<Value>>) {
    let user = whoami(api, "file-token").unwrap();
    assert_eq!(
        user,
        json!({"username": "filip", "uid": "42", "groups": ["readers", "writers", "system:authenticated"]})
    );
    for _ in 0..2 {
        let user = whoami(api, "hook-token").unwrap();
        assert_eq!(
            (&user["username"], &user["uid"], &user["extra"]["k"]),
            (&json!("wendy"), &json!("9"), &json!(["v"]))
        );
        assert_eq!(user["groups"], json!(["hooked", "system:authenticated"]));
    }
    let about = |token: &str| asked.lock().unwrap().iter().filter(|r| r["spec"]["token"] == token).count();
    assert_eq!(about("hook-token"), 1, "an answer is remembered");
    assert_eq!(about("file-token"), 0);
    assert_eq!(asked.lock().unwrap()[0]["apiVersion"], "authentication.k8s.io/v1");
    assert_eq!(whoami(api, "nonsense"), None);
    assert_eq!(review(api, "nonsense")["error"], "who is this?");
}

fn bootstrap_tokens(api: &Api<'_>) {
    let info = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
    let secrets = "/api/v1/namespaces/kube-system/secrets";
    let token = "abcdef.0123456789abcdef";
    assert_eq!(whoami(api, token), None);
    let secret = |expiration: &str| {
        json!({"metadata": {"name": "bootstrap-token-abcdef"}, "type": "bootstrap.kubernetes.io/token", "stringData": {
            "token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
            "usage-bootstrap-signing": "true", "expiration": expiration,
            "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token"}})
    };
    api.create(secrets, &secret("2100-01-01T00:00:00Z"));
    let user = api.cluster.wait_for("the token is good", || whoami(api, token));
    assert_eq!(user["username"], "system:bootstrap:abcdef");
    assert_eq!(
        user["groups"],
        json!(["system:bootstrappers", "system:bootstrappers:kubeadm:default-node-token", "system:authenticated"])
    );
    // It may do what a machine that joins does, and no more.
    assert_eq!(api.with_token(token).try_get("/api/v1/nodes/node-1").code, 200);
    assert_eq!(api.with_token(token).try_get("/api/v1/namespaces").code, 403);
    let signed = api.until(info, "signed", |m| m["data"]["jws-kubeconfig-abcdef"].is_string());
    let signature = signed["data"]["jws-kubeconfig-abcdef"].as_str().unwrap();
    assert!(signature.starts_with("eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9.."), "{signature}");
    api.delete(&format!("{secrets}/bootstrap-token-abcdef"));
    api.until(info, "no longer signed", |m| m["data"]["jws-kubeconfig-abcdef"].is_null());
    api.cluster.wait_for("the token is gone", || whoami(api, token).is_none().then_some(()));
    // One that has expired is no good, and is cleaned away.
    api.create(secrets, &secret("2020-01-01T00:00:00Z"));
    api.gone(&format!("{secrets}/bootstrap-token-abcdef"));
    assert_eq!(whoami(api, token), None);
}

fn decoded(api: &Api<'_>, what: &[&str], template: &str) -> String {
    let output = format!("go-template={template}");
    let arguments: Vec<&str> = ["get"].into_iter().chain(what.iter().copied()).chain(["-o", &output]).collect();
    api.cluster.kubectl(&arguments)
}

/// A token in a Secret is good while the Secret holds it and is not marked invalid; that it was used is noted.
fn in_secrets(api: &Api<'_>) {
    let secrets = "/api/v1/namespaces/default/secrets";
    let account = json!({"kubernetes.io/service-account.name": "default"});
    let secret = json!({"metadata": {"name": "lasting", "annotations": account},
        "type": "kubernetes.io/service-account-token"});
    let path = format!("{secrets}/lasting");
    api.create(secrets, &secret);
    let token = decoded(api, &["secret", "lasting"], "{{.data.token | base64decode}}");
    assert_eq!(whoami(api, &token).unwrap()["username"], "system:serviceaccount:default:default");
    let used = "kubernetes.io/legacy-token-last-used";
    api.until(&path, "its use is noted", |s| s["metadata"]["labels"][used].as_str().is_some_and(|d| d.len() == 10));
    let mark = |since: Value| json!({"metadata": {"labels": {"kubernetes.io/legacy-token-invalid-since": since}}});
    api.patch(&path, "application/merge-patch+json", &mark(json!("2026-01-01")));
    api.cluster.wait_for("the token is refused", || whoami(api, &token).is_none().then_some(()));
    api.patch(&path, "application/merge-patch+json", &mark(Value::Null));
    api.cluster.wait_for("the token is good again", || whoami(api, &token));
    api.delete(&path);
    api.cluster.wait_for("the token went with its Secret", || whoami(api, &token).is_none().then_some(()));
}

/// A certificate that somebody asks for and an administrator approves is good for the API server; the signer refuses what
/// is no client's.
fn by_request(api: &Api<'_>) {
    let cluster = api.cluster;
    let place = tempfile::tempdir().unwrap();
    let file = |name: &str| place.path().join(name).display().to_string();
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
    run(openssl.args(["-subj", "/O=crew/CN=carol", "-keyout", &file("key"), "-out", &file("csr")]));
    let request = base64(&std::fs::read(file("csr")).unwrap());
    let all = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let ask = |name: &str, usages: Value| {
        let spec = json!({"request": request, "signerName": "kubernetes.io/kube-apiserver-client", "usages": usages});
        api.create(all, &json!({"metadata": {"name": name}, "spec": spec}));
        cluster.kubectl(&["certificate", "approve", name]);
    };
    ask("carol", json!(["client auth"]));
    api.until(&format!("{all}/carol"), "issued", |c| c["status"]["certificate"].is_string());
    std::fs::write(file("crt"), decoded(api, &["csr", "carol"], "{{.status.certificate | base64decode}}")).unwrap();
    let server = cluster.kubectl(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"]);
    let authority = cluster.data_dir().join("pki/ca.crt").display().to_string();
    let mut curl = cluster.inside("curl");
    curl.args(["-sS", "--cacert", &authority, "--cert", &file("crt"), "--key", &file("key")]);
    let review = r#"{"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}"#;
    curl.args(["-H", "Content-Type: application/json", "-d", review]);
    let me = run(curl.arg(format!("{server}/apis/authentication.k8s.io/v1/selfsubjectreviews")));
    let me: Value = serde_json::from_str(&me).unwrap();
    let user = &me["status"]["userInfo"];
    assert_eq!((&user["username"], &user["groups"]), (&json!("carol"), &json!(["crew", "system:authenticated"])));
    ask("server", json!(["server auth"]));
    let why = "invalid usage for client certificate: server auth";
    api.until(&format!("{all}/server"), "failed", |c| {
        let all = c["status"]["conditions"].as_array().into_iter().flatten();
        all.into_iter()
            .any(|c| c["type"] == "Failed" && c["reason"] == "SignerValidationFailure" && c["message"] == why)
    });
}

/// The front proxy's certificate speaks for users; that of a user does not.
fn proxies(api: &Api<'_>) {
    let cluster = api.cluster;
    let pki = |file: &str| cluster.data_dir().join("pki").join(file).display().to_string();
    let server = cluster.kubectl(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"]);
    let url = format!("{server}/apis/authentication.k8s.io/v1/selfsubjectreviews");
    let ask = |name: &str| {
        let body = r#"{"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}"#;
        let mut curl = cluster.inside("curl");
        curl.args(["-sS", "--cacert", &pki("ca.crt")]);
        curl.args(["--cert", &pki(&format!("{name}.crt")), "--key", &pki(&format!("{name}.key"))]);
        curl.args(["-H", "X-Remote-User: peter", "-H", "X-Remote-Group: parkers", "-H", "X-Remote-Extra-Scopes: a"]);
        curl.args(["-H", "Content-Type: application/json", "-d", body, &url]);
        serde_json::from_str::<Value>(&run(&mut curl)).unwrap()
    };
    let user = ask("front-proxy-client")["status"]["userInfo"].clone();
    assert_eq!(
        user,
        json!({"username": "peter", "groups": ["parkers", "system:authenticated"], "extra": {"scopes": ["a"]}})
    );
    let own = ask("admin")["status"]["userInfo"]["username"].clone();
    assert_eq!(own, "kubernetes-admin");
}
