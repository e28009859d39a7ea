//! What a client that behaves badly costs one that behaves well.

use super::budgets::MB;
use super::gantry::{Gantry, PATIENCE};
use super::load::{self, Load, Until};
use super::statistics::percentile;
use super::workload::{self, CONFIG_MAPS, NAMESPACE, PODS};
use super::{Bench, Measurement, process};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::future::BoxFuture;
use gantry_client::Client;
use http::Method;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;
use tokio::sync::Notify;

/// Requests of the client that behaves well that are under way at once, each on a connection of its own.
const WELL_BEHAVED: usize = 8;
const PODS_THERE: u64 = 10_000;
const OTHER: &str = "/api/v1/namespaces/bench/secrets";

/// What the other client does.
#[derive(Clone, Copy)]
struct Hostile {
    id: &'static str,
    connections: usize,
    behave: fn(Vec<Client>, Arc<Notify>) -> BoxFuture<'static, Result<()>>,
    /// Whether it stops reading altogether once it has asked.
    stalls: bool,
}

const ALL: &[Hostile] = &[
    Hostile { id: "hostile_stalling", connections: 20, behave: |c, r| Box::pin(stall(c, r)), stalls: true },
    Hostile { id: "hostile_flooding", connections: 32, behave: |c, r| Box::pin(flood(c, r)), stalls: false },
    Hostile { id: "hostile_watching", connections: 50, behave: |c, r| Box::pin(watch(c, r)), stalls: false },
];

/// Rates of reads and writes of one user, alone and then beside another; both are users like all others, not the
/// administrator, whom flow control lets through. The other has a thread of its own, so that it does not share the tasks
/// of the well-behaved one; it does share the machine.
pub async fn run(bench: &Bench) -> Result<Vec<Measurement>> {
    let gantry = Gantry::server(bench).await?;
    let admin = gantry.client()?;
    workload::namespace(&admin).await?;
    let fillers = gantry.clients(workload::fillers()).await?;
    workload::fill(&fillers, PODS, PODS_THERE, |n| workload::unscheduled_pod(&format!("there-{n:05}"))).await?;
    workload::create(&admin, CONFIG_MAPS, &workload::config_map("read", 0)).await?;
    let good = token(&admin, "good").await?;
    let bad = token(&admin, "bad").await?;
    let clients = gantry.clients_of(&good, WELL_BEHAVED)?;
    let mut found = Vec::new();
    for hostile in ALL {
        gantry.settle().await?;
        let alone = behave(bench, &clients, hostile.id, "alone").await?;
        gantry.settle().await?;
        process::reset_peak(gantry.pid())?;
        let before = gantry.memory()?;
        let other = Other::start(*hostile, gantry.clients_of(&bad, hostile.connections)?)?;
        let beside = behave(bench, &clients, hostile.id, "beside").await?;
        let peak = process::peak(gantry.pid())?.saturating_sub(before);
        other.stop()?;
        let detail = json!({
            "alone": summary(&alone),
            "beside": summary(&beside),
            "server_grown_mb": peak as f64 / MB,
        });
        found.push(Measurement { id: hostile.id, value: alone.rate() / beside.rate(), detail });
    }
    Ok(found)
}

fn summary(load: &Load) -> Value {
    json!({
        "per_second": load.rate(),
        "p50_ms": percentile(&load.latencies, 0.5),
        "p99_ms": percentile(&load.latencies, 0.99),
    })
}

/// Three reads to each create.
async fn behave(bench: &Bench, clients: &[Client], id: &'static str, when: &'static str) -> Result<Load> {
    let time = Until::Elapsed(Duration::from_secs(bench.scaled(10, 3)));
    load::drive(clients, time, move |client, number| async move {
        if number % 4 == 0 {
            let object = workload::config_map(&format!("{}-{when}-{number}", id.replace('_', "-")), number);
            return workload::create(&client, CONFIG_MAPS, &object).await.map(drop);
        }
        client.call(Method::GET, &format!("{CONFIG_MAPS}/read"), None, Bytes::new()).await?;
        Ok(())
    })
    .await
    .with_context(|| format!("the well-behaved client, {when} ({id})"))
}

/// A service account that may do everything in the namespace, and its token.
async fn token(admin: &Client, name: &str) -> Result<String> {
    let accounts = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts");
    workload::create(admin, &accounts, &json!({ "metadata": { "name": name } })).await?;
    let binding = json!({
        "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin" },
        "subjects": [{ "kind": "ServiceAccount", "name": name, "namespace": NAMESPACE }],
    });
    let bindings = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/rolebindings");
    workload::create(admin, &bindings, &binding).await?;
    let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
    let answer = workload::create(admin, &format!("{accounts}/{name}/token"), &request).await?;
    let answer: Value = serde_json::from_slice(&answer)?;
    Ok(answer["status"]["token"].as_str().context("no token")?.to_owned())
}

/// The other client, on its own thread.
struct Other {
    thread: std::thread::JoinHandle<Result<()>>,
    stop: mpsc::Sender<()>,
    ended: Arc<Notify>,
}

impl Other {
    /// Returns once it does what it is to do.
    fn start(hostile: Hostile, clients: Vec<Client>) -> Result<Self> {
        let (stop, stopped) = mpsc::channel::<()>();
        let (ready, is_ready) = mpsc::channel();
        let ended = Arc::new(Notify::new());
        let end = ended.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let begun = Arc::new(Notify::new());
            let mut behaving = runtime.spawn((hostile.behave)(clients, begun.clone()));
            runtime.block_on(async {
                tokio::select! {
                    () = begun.notified() => Ok(()),
                    outcome = &mut behaving => outcome.context("the hostile client panicked")?.context("it did not begin"),
                    () = tokio::time::sleep(PATIENCE) => bail!("the hostile client could not begin"),
                }
            })?;
            ready.send(())?;
            if hostile.stalls {
                // The runtime stands still, and nobody reads its sockets. An error means that the sender is gone: stop, too.
                let _ = stopped.recv();
            } else {
                runtime.block_on(end.notified());
            }
            behaving.abort();
            Ok(())
        });
        match is_ready.recv() {
            Ok(()) => Ok(Self { thread, stop, ended }),
            Err(_) => match thread.join() {
                Ok(Err(error)) => Err(error),
                _ => bail!("the hostile client ended early"),
            },
        }
    }

    fn stop(self) -> Result<()> {
        self.ended.notify_one();
        // Where the other end is gone, it has stopped already.
        let _ = self.stop.send(());
        self.thread.join().map_err(|_| anyhow::anyhow!("the hostile client panicked"))?
    }
}

/// Lists of ten thousand pods, and watches of what the other client writes; nothing of either is read to its end.
async fn stall(clients: Vec<Client>, begun: Arc<Notify>) -> Result<()> {
    let mut open = Vec::new();
    for client in &clients {
        for path in [PODS.to_owned(), PODS.to_owned(), format!("{CONFIG_MAPS}?watch=true")] {
            match client.stream(Method::GET, &path, None, Bytes::new()).await {
                Ok(body) => open.push(body),
                // Its lists that nobody reads may take all the seats there are for it.
                Err(gantry_client::Error::Api(e)) if e.code == 429 => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    begun.notify_one();
    std::future::pending::<()>().await;
    drop(open);
    Ok(())
}

/// As many reads as go, thirty-two at once on each connection.
async fn flood(clients: Vec<Client>, begun: Arc<Notify>) -> Result<()> {
    let mut requests = tokio::task::JoinSet::new();
    for client in clients {
        for _ in 0..32 {
            let client = client.clone();
            requests.spawn(async move {
                let path = format!("{CONFIG_MAPS}/read");
                loop {
                    match client.call(Method::GET, &path, None, Bytes::new()).await {
                        // 429 says that it is one of too many; it does not care.
                        Ok(_) | Err(gantry_client::Error::Api(_)) => {}
                        Err(error) => return anyhow::Error::from(error),
                    }
                }
            });
        }
    }
    begun.notify_one();
    match requests.join_next().await {
        Some(outcome) => Err(outcome.context("a request panicked")?.context("the flood ended")),
        None => Ok(()),
    }
}

/// Five thousand watches, which are read, of Secrets, of which one changes ten times a second.
async fn watch(clients: Vec<Client>, begun: Arc<Notify>) -> Result<()> {
    let mut open = tokio::task::JoinSet::new();
    let secret = |n: u64| json!({ "metadata": { "name": "changing" }, "stringData": { "n": n.to_string() } });
    workload::create(&clients[0], OTHER, &secret(0)).await?;
    for client in &clients {
        for _ in 0..100 {
            let body = client.stream(Method::GET, &format!("{OTHER}?watch=true"), None, Bytes::new()).await?;
            open.spawn(workload::drain(body));
        }
    }
    begun.notify_one();
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for number in 1.. {
        ticks.tick().await;
        let body = secret(number).to_string().into();
        clients[0].call(Method::PUT, &format!("{OTHER}/changing"), Some("application/json"), body).await?;
    }
    Ok(())
}
