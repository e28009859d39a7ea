//! Clients that stall, flood and open thousands of watches: the server's memory stays bounded, and others are served.

mod cluster;

use bytes::Bytes;
use cluster::Cluster;
use cluster::api::Api;
use gantry_client::{Body, Client, Credentials, Error, Https, HttpsConfig, Kubeconfig, TokenSource};
use http::Method;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

const CONFIG_MAPS: &str = "/api/v1/namespaces/hostile/configmaps";
const LARGE: usize = 300 * 1024;
const MB: u64 = 1 << 20;

#[test]
fn clients_that_behave_badly() {
    let mut cluster = Cluster::prepare_role("server", &[]);
    cluster.up();
    let api = Api::new(&cluster);
    api.namespace("hostile");
    let users = Users { cluster: &cluster, good: token(&api, "good"), bad: token(&api, "bad") };
    readers_that_stall(&users, &api);
    a_flood(&users);
    five_thousand_watches(&users, &api);
}

/// A service account that may do everything in the namespace, and its token: no user whom flow control lets through.
fn token(api: &Api<'_>, name: &str) -> String {
    let accounts = "/api/v1/namespaces/hostile/serviceaccounts";
    api.create(accounts, &json!({"metadata": {"name": name}}));
    api.create(
        "/apis/rbac.authorization.k8s.io/v1/namespaces/hostile/rolebindings",
        &json!({"metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "hostile"}]}),
    );
    let answer = api.send("POST", &format!("{accounts}/{name}/token"), &json!({"spec": {}})).expect(201);
    answer["status"]["token"].as_str().unwrap().to_owned()
}

/// Who asks: one who behaves, and one who does not.
struct Users<'a> {
    cluster: &'a Cluster,
    good: String,
    bad: String,
}

impl Users<'_> {
    fn config(&self, token: &str) -> HttpsConfig {
        let kubeconfig = Kubeconfig::read(&self.cluster.kubeconfig()).unwrap();
        let mut config = kubeconfig.https(None, self.cluster.data_dir()).unwrap();
        config.credentials = Credentials::Token(TokenSource::Fixed(token.to_owned()));
        config
    }

    /// Runs requests of a user on a thread inside the cluster's network, with a runtime of its own.
    fn visit<T: Send>(&self, token: &str, visit: impl FnOnce(&Runtime, &Connect<'_>) -> T + Send) -> T {
        let (network, config) = (self.cluster.network(), self.config(token));
        let work = move || {
            cluster::enter(&network);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            visit(&runtime, &|| Client::new(Arc::new(Https::new(&config).unwrap()), "test"))
        };
        std::thread::scope(|s| s.spawn(work).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// What the user who behaves asks; all of it is answered.
    fn behave(&self, what: &str, requests: usize) {
        self.visit(&self.good, |runtime, connect| {
            runtime.block_on(async {
                let client = connect();
                for n in 0..requests {
                    let name = format!("{what}-{n}");
                    write(&client, Method::POST, CONFIG_MAPS, &config_map(&name, n, 100)).await.unwrap();
                    let read = client.call(Method::GET, &format!("{CONFIG_MAPS}/{name}"), None, Bytes::new()).await;
                    assert_eq!(serde_json::from_slice::<Value>(&read.unwrap()).unwrap()["metadata"]["name"], *name);
                }
            });
        });
    }

    /// Resident memory of the server, in bytes.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.cluster.pid())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
    }
}

/// Makes a client with a connection of its own.
type Connect<'a> = dyn Fn() -> Client + 'a;

fn config_map(name: &str, sequence: usize, size: usize) -> Value {
    json!({"metadata": {"name": name}, "data": {"sequence": format!("number {sequence}."), "text": "x".repeat(size)}})
}

async fn write(client: &Client, method: Method, path: &str, object: &Value) -> Result<(), Error> {
    client.call(method, path, Some("application/json"), object.to_string().into()).await.map(drop)
}

async fn open(client: &Client, path: &str) -> Body {
    client.stream(Method::GET, path, None, Bytes::new()).await.unwrap()
}

/// How many watches of ConfigMaps run.
fn watches(api: &Api<'_>) -> u64 {
    let text = api.try_get("/metrics").text;
    let lines = text.lines().filter(|l| l.starts_with("apiserver_longrunning_requests{"));
    let of_config_maps = lines.filter(|l| l.contains("resource=\"configmaps\""));
    of_config_maps.map(|l| l.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
}

/// Twenty-four lists of 30 MB and thirty-six watches, of which nobody reads more than their windows take in.
fn readers_that_stall(users: &Users<'_>, api: &Api<'_>) {
    let update = |round: usize| {
        users.visit(&users.good, |runtime, connect| {
            runtime.block_on(async {
                let mut writers = JoinSet::new();
                for writer in 0..4 {
                    let client = connect();
                    writers.spawn(async move {
                        for n in (0..100).skip(writer).step_by(4) {
                            let object = config_map(&format!("large-{n}"), round, LARGE);
                            let (method, path) = match round {
                                0 => (Method::POST, CONFIG_MAPS.to_owned()),
                                _ => (Method::PUT, format!("{CONFIG_MAPS}/large-{n}")),
                            };
                            write(&client, method, &path, &object).await.unwrap();
                        }
                    });
                }
                while let Some(outcome) = writers.join_next().await {
                    outcome.unwrap();
                }
            });
        });
    };
    update(0);
    let (running, before) = (watches(api), users.memory());
    let ((stalled, is_stalled), (stop, stopped)) = (channel(), channel::<()>());
    std::thread::scope(move |scope| {
        scope.spawn(move || {
            users.visit(&users.bad, move |runtime, connect| {
                let open = runtime.block_on(async {
                    let watch = format!("{CONFIG_MAPS}?watch=true");
                    let mut bodies = Vec::new();
                    for _ in 0..12 {
                        let client = connect();
                        for path in [CONFIG_MAPS, CONFIG_MAPS, &watch, &watch, &watch] {
                            bodies.push(open(&client, path).await);
                        }
                    }
                    bodies
                });
                // From here on nothing of this runtime runs, so nobody reads the sockets.
                stalled.send(()).unwrap();
                stopped.recv().unwrap();
                drop(open);
            });
        });
        is_stalled.recv().unwrap();
        // Twice what a watch may lag behind.
        (1..=2).for_each(update);
        users.behave("beside-stalled", 20);
        let grown = users.memory().saturating_sub(before) / MB;
        stop.send(()).unwrap();
        assert!(grown < 400, "30 MB were listed 24 times, and the server grew by {grown} MB");
    });
    users.cluster.wait_for("the watches of a client that went away end", || (watches(api) <= running).then_some(()));
}

/// As many requests as go, a hundred and sixty of them at once, for as long as another user asks one after the other.
fn a_flood(users: &Users<'_>) {
    let before = users.memory();
    let over = Arc::new(AtomicBool::new(false));
    let (flooding, is_flooding) = channel();
    let answered = std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            users.visit(&users.bad, |runtime, connect| {
                runtime.block_on(async {
                    let mut requests = JoinSet::new();
                    for _ in 0..8 {
                        let client = connect();
                        for _ in 0..20 {
                            requests.spawn(ask_until(client.clone(), over.clone()));
                        }
                    }
                    flooding.send(()).unwrap();
                    let mut answered = 0;
                    while let Some(outcome) = requests.join_next().await {
                        answered += outcome.unwrap();
                    }
                    answered
                })
            })
        });
        is_flooding.recv().unwrap();
        let ends = Ends(&over);
        users.behave("beside-flood", 20);
        drop(ends);
        flood.join().unwrap()
    });
    let grown = users.memory().saturating_sub(before) / MB;
    assert!(answered >= 160, "each of the flood's clients was answered: {answered}");
    assert!(grown < 200, "the server grew by {grown} MB over {answered} requests");
}

/// Ends a flood, also where what it runs beside fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Asks again and again; each time there is an answer, if only that these are too many.
async fn ask_until(client: Client, over: Arc<AtomicBool>) -> usize {
    let mut answered = 0;
    loop {
        match client.call(Method::GET, &format!("{CONFIG_MAPS}/beside-stalled-0"), None, Bytes::new()).await {
            Ok(_) => {}
            Err(Error::Api(e)) if e.code == 429 => {}
            Err(e) => panic!("{e}"),
        }
        answered += 1;
        if over.load(Ordering::Acquire) {
            return answered;
        }
    }
}

/// Five thousand watches over ten connections: each sees a change, others are served meanwhile, and nothing is left of them.
fn five_thousand_watches(users: &Users<'_>, api: &Api<'_>) {
    let (running, before) = (watches(api), users.memory());
    let saw = users.visit(&users.bad, |runtime, connect| {
        runtime.block_on(async {
            let path = format!("{CONFIG_MAPS}?watch=true&fieldSelector=metadata.name%3Dwatched");
            let mut watchers = JoinSet::new();
            for _ in 0..10 {
                let client = connect();
                for _ in 0..500 {
                    watchers.spawn(sees(open(&client, &path).await, "number 2."));
                }
            }
            assert_eq!(watches(api), running + 5000);
            let client = connect();
            for n in 1..=2 {
                let (method, path) = match n {
                    1 => (Method::POST, CONFIG_MAPS.to_owned()),
                    _ => (Method::PUT, format!("{CONFIG_MAPS}/watched")),
                };
                write(&client, method, &path, &config_map("watched", n, 100)).await.unwrap();
            }
            users.behave("beside-watches", 20);
            let grown = users.memory().saturating_sub(before) / MB;
            assert!(grown < 300, "the server grew by {grown} MB");
            watchers.join_all().await.len()
        })
    });
    assert_eq!(saw, 5000);
    users.cluster.wait_for("the watches of a client that went away end", || (watches(api) <= running).then_some(()));
}

/// Reads a watch until an event holds `text`.
async fn sees(mut body: Body, text: &str) {
    let mut seen = Vec::new();
    while !seen.windows(text.len()).any(|w| w == text.as_bytes()) {
        let frame = body.frame().await.expect("the watch goes on").unwrap();
        seen.extend_from_slice(&frame.into_data().unwrap_or_default());
    }
}
