//! The API over plain HTTPS, as a client without any of kubectl's opinions would use it: curl with the admin's certificate,
//! a token, or as somebody else. And scenarios, which share one cluster and run side by side.

use super::{Cluster, PATIENCE};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;

/// How many scenarios run at the same time: they mostly wait.
const SIDE_BY_SIDE: usize = 6;

/// Body types of PATCH.
pub const MERGE: &str = "application/merge-patch+json";
/// Strategic merge.
pub const STRATEGIC: &str = "application/strategic-merge-patch+json";
/// RFC 6902.
pub const JSON_PATCH: &str = "application/json-patch+json";
/// Server-side apply.
pub const APPLY: &str = "application/apply-patch+yaml";

/// A client of the cluster's API.
#[derive(Clone)]
pub struct Api<'a> {
    /// The cluster behind it.
    pub cluster: &'a Cluster,
    server: String,
    identity: Vec<String>,
}

/// An answer of the server.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub code: u16,
    /// Status line and headers.
    pub head: String,
    /// Body.
    pub text: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e} in {self:?}"))
    }

    /// The body of an answer that must have this code.
    #[track_caller]
    pub fn expect(&self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", self.text);
        self.json()
    }
}

impl<'a> Api<'a> {
    /// The admin.
    pub fn new(cluster: &'a Cluster) -> Self {
        let view = |path: &str| {
            let template = format!("go-template={{{{{path}}}}}");
            cluster.kubectl(&["config", "view", "--raw", "-o", &template])
        };
        let server = view("(index .clusters 0).cluster.server");
        let file = |name: &str, path: &str| {
            let file = cluster.data_dir().join(name);
            std::fs::write(&file, view(&format!("base64decode (index {path})"))).unwrap();
            file.to_string_lossy().into_owned()
        };
        let ca = file("test-ca.pem", "(index .clusters 0).cluster \"certificate-authority-data\"");
        let certificate = file("test-client.pem", "(index .users 0).user \"client-certificate-data\"");
        let key = file("test-client-key.pem", "(index .users 0).user \"client-key-data\"");
        let identity = ["--cacert", &ca, "--cert", &certificate, "--key", &key].map(str::to_owned).to_vec();
        Self { cluster, server, identity }
    }

    /// The same, impersonating a user and groups.
    pub fn impersonate(&self, user: &str, groups: &[&str]) -> Self {
        let mut other = self.clone();
        other.identity.extend(["-H".into(), format!("Impersonate-User: {user}")]);
        for group in groups {
            other.identity.extend(["-H".into(), format!("Impersonate-Group: {group}")]);
        }
        other
    }

    /// Somebody with a token and no certificate.
    pub fn with_token(&self, token: &str) -> Self {
        let mut identity = self.identity[..2].to_vec();
        identity.extend(["-H".into(), format!("Authorization: Bearer {token}")]);
        Self { cluster: self.cluster, server: self.server.clone(), identity }
    }

    /// The same over HTTP/2.
    pub fn over_http2(&self) -> Self {
        let mut other = self.clone();
        other.identity.push("--http2".into());
        other
    }

    /// The same with one more header.
    pub fn with_header(&self, header: &str) -> Self {
        let mut other = self.clone();
        other.identity.extend(["-H".into(), header.to_owned()]);
        other
    }

    /// File with the CA of the server.
    pub fn ca(&self) -> PathBuf {
        PathBuf::from(&self.identity[1])
    }

    /// One request; any answer is fine.
    pub fn request(&self, method: &str, path: &str, body: Option<(&str, &str)>) -> Answer {
        let mut curl = self.cluster.inside("curl");
        curl.args(["-sS", "-g", "-i", "--http1.1", "--max-time", "90", "-H", "Expect:"]).args(&self.identity);
        if method == "HEAD" {
            curl.arg("--head");
        } else {
            curl.args(["-X", method]);
        }
        if let Some((kind, _)) = body {
            curl.args(["-H", &format!("Content-Type: {kind}"), "--data-binary", "@-"]);
        }
        curl.arg(format!("{}{path}", self.server));
        let mut child = curl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        if let Some((_, text)) = body {
            stdin.write_all(text.as_bytes()).unwrap();
        }
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        let (head, text) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{method} {path}: {text}\n{error}"));
        let code = head.split(' ').nth(1).and_then(|c| c.parse().ok()).unwrap_or_else(|| panic!("{head}"));
        Answer { code, head: head.to_owned(), text: text.to_owned() }
    }

    /// A request with a JSON body.
    pub fn send(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.request(method, path, Some(("application/json", &body.to_string())))
    }

    /// GET, whatever the answer.
    pub fn try_get(&self, path: &str) -> Answer {
        self.request("GET", path, None)
    }

    /// GET that must succeed.
    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        let answer = self.try_get(path);
        assert_eq!(answer.code, 200, "GET {path}: {}", answer.text);
        answer.json()
    }

    /// Items of a list that must succeed.
    #[track_caller]
    pub fn list(&self, path: &str) -> Vec<Value> {
        let list = self.get(path);
        list["items"].as_array().unwrap_or_else(|| panic!("{path}: {list}")).clone()
    }

    /// POST that must create.
    #[track_caller]
    pub fn create(&self, path: &str, object: &Value) -> Value {
        let answer = self.send("POST", path, object);
        assert_eq!(answer.code, 201, "POST {path}: {}\nof {object}", answer.text);
        answer.json()
    }

    /// PUT that must succeed.
    #[track_caller]
    pub fn update(&self, path: &str, object: &Value) -> Value {
        let answer = self.send("PUT", path, object);
        assert_eq!(answer.code, 200, "PUT {path}: {}\nof {object}", answer.text);
        answer.json()
    }

    /// Reads, changes and writes until nobody was faster.
    #[track_caller]
    pub fn edit(&self, path: &str, mut change: impl FnMut(&mut Value)) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut object = self.get(path);
            change(&mut object);
            let answer = self.send("PUT", path, &object);
            match answer.code {
                200 => return answer.json(),
                409 if Instant::now() < deadline => {}
                _ => panic!("PUT {path}: {}\nof {object}", answer.text),
            }
        }
    }

    /// PATCH that must succeed.
    #[track_caller]
    pub fn patch(&self, path: &str, kind: &str, patch: &Value) -> Value {
        let answer = self.request("PATCH", path, Some((kind, &patch.to_string())));
        assert_eq!(answer.code, 200, "PATCH {path}: {}\nwith {patch}", answer.text);
        answer.json()
    }

    /// DELETE of an object or a collection that must succeed.
    #[track_caller]
    pub fn delete(&self, path: &str) -> Value {
        self.delete_with(path, &json!({}))
    }

    /// The same with fields of `DeleteOptions`.
    #[track_caller]
    pub fn delete_with(&self, path: &str, options: &Value) -> Value {
        let mut body = json!({"kind": "DeleteOptions", "apiVersion": "v1"});
        for (key, value) in options.as_object().unwrap() {
            body[key] = value.clone();
        }
        let answer = self.send("DELETE", path, &body);
        assert!(matches!(answer.code, 200 | 202), "DELETE {path}: {} {}", answer.code, answer.text);
        answer.json()
    }

    /// Waits until there is nothing at a path.
    pub fn gone(&self, path: &str) {
        self.cluster.wait_for(&format!("{path} gone"), || (self.try_get(path).code == 404).then_some(()));
    }

    /// Waits until what is at a path is as wanted, and returns it.
    pub fn until(&self, path: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.cluster.wait_for(&format!("{path}: {what}"), || {
            let answer = self.try_get(path);
            (answer.code == 200).then(|| answer.json()).filter(&wanted)
        })
    }

    /// A new namespace, ready for pods.
    pub fn namespace(&self, name: &str) -> String {
        self.create("/api/v1/namespaces", &json!({"metadata": {"name": name, "labels": {"e2e": name}}}));
        let account = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
        self.until(&account, "made", |_| true);
        name.to_owned()
    }

    /// Waits until a pod is Ready, and returns it.
    pub fn ready(&self, namespace: &str, pod: &str) -> Value {
        self.until(&format!("/api/v1/namespaces/{namespace}/pods/{pod}"), "Ready", is_ready)
    }

    /// Runs a command in a pod's first container; `Err` with all it printed where it fails.
    pub fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> Result<String, String> {
        let all: Vec<&str> = ["exec", "-n", namespace, pod, "--"].iter().chain(command).copied().collect();
        let output = self.cluster.try_kubectl(&all);
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(text(&output.stdout) + &text(&output.stderr))
        }
    }

    /// Starts a watch. Its first answer has come when this returns, so nothing that happens from now on is missed.
    pub fn watch(&self, path: &str) -> Watch {
        let mark = if path.contains('?') { '&' } else { '?' };
        let mut curl = self.cluster.inside("curl");
        curl.args(["-sS", "-g", "-N", "-v", "--http1.1"]).args(&self.identity);
        curl.arg(format!("{}{path}{mark}watch=true", self.server));
        let mut child = curl.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut body = BufReader::new(child.stdout.take().unwrap());
        // curl tells the head there at once, and on standard output only with the first event.
        let mut told = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut head = Vec::new();
        loop {
            let line = told.next().unwrap_or_else(|| panic!("watch of {path}: {head:?}")).unwrap();
            if line.trim() == "<" {
                break;
            }
            head.push(line);
        }
        if !head.iter().any(|l| l.starts_with("< HTTP/1.1 200")) {
            let mut text = String::new();
            body.read_to_string(&mut text).unwrap();
            panic!("watch of {path}: {head:?} {text}");
        }
        std::thread::spawn(move || told.for_each(drop));
        let (sender, events) = channel();
        std::thread::spawn(move || {
            for line in body.lines().map_while(Result::ok) {
                if sender.send(serde_json::from_str(&line).unwrap()).is_err() {
                    return;
                }
            }
        });
        Watch { path: path.to_owned(), child, events }
    }
}

/// A running watch.
pub struct Watch {
    path: String,
    child: Child,
    events: Receiver<Value>,
}

impl Watch {
    /// The next event, whatever it is: type and object.
    pub fn next(&self) -> (String, Value) {
        match self.events.recv_timeout(PATIENCE) {
            Ok(mut event) => (event["type"].as_str().unwrap().to_owned(), event["object"].take()),
            Err(RecvTimeoutError::Timeout) => panic!("watch of {}: no event", self.path),
            Err(RecvTimeoutError::Disconnected) => panic!("watch of {}: ended", self.path),
        }
    }

    /// The next event, which must be of this type for an object of this name.
    #[track_caller]
    pub fn expect(&self, kind: &str, name: &str) -> Value {
        let (got, object) = self.next();
        assert_eq!((got.as_str(), object["metadata"]["name"].as_str().unwrap_or_default()), (kind, name), "{object}");
        object
    }

    /// The next event of this type with such an object; others are passed over.
    pub fn find(&self, kind: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        while Instant::now() < deadline {
            let Ok(mut event) = self.events.recv_timeout(deadline - Instant::now()) else { break };
            if event["type"] == kind && wanted(&event["object"]) {
                return event["object"].take();
            }
            seen.push(event.to_string());
        }
        panic!("watch of {}: no such {kind} among\n{}", self.path, seen.join("\n"));
    }

    /// What has come so far and was not taken.
    pub fn rest(&self) -> Vec<Value> {
        self.events.try_iter().collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The status of a condition; empty where there is none.
pub fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    let all = object["status"]["conditions"].as_array();
    let found = all.and_then(|c| c.iter().find(|c| c["type"] == kind));
    found.and_then(|c| c["status"].as_str()).unwrap_or_default()
}

/// Whether a pod is Ready.
pub fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready") == "True"
}

/// The object's name.
pub fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_else(|| panic!("no name: {object}"))
}

/// Names of objects, in order.
pub fn names(objects: &[Value]) -> Vec<&str> {
    let mut names: Vec<&str> = objects.iter().map(name).collect();
    names.sort_unstable();
    names
}

/// Data in base64, as the API wants bytes.
pub fn base64(data: &[u8]) -> String {
    let mut child = std::process::Command::new("base64");
    let mut child = child.arg("-w0").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(data).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

/// One scenario: its name and what it does.
pub type Scenario = (&'static str, fn(&Api<'_>));

/// Runs scenarios against one cluster, some at a time, and fails with the names of all that failed.
/// `GANTRY_ONLY` in the environment picks those whose name contains it.
pub fn scenarios(api: &Api<'_>, all: &[Scenario]) {
    let only = std::env::var("GANTRY_ONLY").unwrap_or_default();
    let chosen: Vec<&Scenario> = all.iter().filter(|(name, _)| name.contains(&only)).collect();
    assert!(!chosen.is_empty(), "no scenario has {only:?} in its name");
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE.min(chosen.len()) {
            scope.spawn(|| {
                while let Some((name, scenario)) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let from = Instant::now();
                    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| scenario(api)));
                    println!("{name}: {} in {:.1?}", if outcome.is_ok() { "ok" } else { "FAILED" }, from.elapsed());
                    if outcome.is_err() {
                        failed.lock().unwrap().push(*name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {} scenarios failed: {failed:?}", failed.len(), chosen.len());
}

/// The list of scenarios for [`scenarios`] out of the functions' names.
#[macro_export]
macro_rules! scenarios {
    ($($function:ident),* $(,)?) => { &[$((stringify!($function), $function as fn(&$crate::cluster::api::Api<'_>))),*] };
}
