//! From `gantry up` on an empty data directory to a pod that runs and whose name resolves.

use super::gantry::{Gantry, PATIENCE};
use super::statistics::median;
use super::workload::{self, Events, pod_event};
use super::{Bench, Measurement};
use anyhow::{Context, Result, bail};
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use serde_json::json;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

const DNS: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 96, 0, 10), 53);
const PODS: &str = "/api/v1/namespaces/default/pods";

/// Creates a pod and a headless Service for it as soon as the API answers; the Service's name resolves to the pod's address
/// only once the pod is Ready.
pub async fn run(bench: &Bench) -> Result<Vec<Measurement>> {
    let (mut resolvable, mut created, mut running) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.scaled(5, 2) {
        let mut gantry = Gantry::spawn_up(bench)?;
        let since = gantry.spawned();
        let elapsed = || since.elapsed().as_secs_f64();
        gantry.said("API server").await?;
        let client = gantry.client()?;
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": "first" },
            "spec": { "clusterIP": "None", "selector": { "app": "bench" } },
        });
        workload::create(&client, "/api/v1/namespaces/default/services", &service).await?;
        let version = workload::version(&client, PODS).await?;
        let mut events = Events::watch(&client, PODS, &version).await?;
        workload::service_account(&client, "default").await?;
        workload::create(&client, PODS, &workload::pod("first", "10m")).await?;
        created.push(elapsed());
        let mut address = String::new();
        let seen = events.each(|line| {
            let event = pod_event(line)?;
            address = event.object.status.pod_ip;
            Ok(event.object.status.phase == "Running" && !address.is_empty())
        });
        tokio::time::timeout(PATIENCE, seen).await.context("the pod does not run")??;
        running.push(elapsed());
        resolve("first.default.svc.cluster.local.", address.parse()?).await?;
        resolvable.push(elapsed());
    }
    let detail = json!({
        "runs_s": resolvable,
        "created_median_s": median(&created),
        "running_median_s": median(&running),
    });
    Ok(vec![Measurement { id: "start_to_first_pod", value: median(&resolvable), detail }])
}

/// Asks the cluster's DNS service until it answers with `expected`.
async fn resolve(name: &str, expected: Ipv4Addr) -> Result<()> {
    let socket = tokio::net::UdpSocket::bind("0.0.0.0:0").await?;
    socket.connect(DNS).await.context("no route to the DNS service")?;
    let mut question = Message::query();
    question.add_query(Query::query(Name::from_ascii(name)?, RecordType::A));
    let question = question.to_vec()?;
    let deadline = Instant::now() + PATIENCE;
    let mut last = String::from("no answer");
    while Instant::now() < deadline {
        match ask(&socket, &question).await {
            Ok(answer) => {
                if answer.answers.iter().any(|r| matches!(&r.data, RData::A(a) if a.0 == expected)) {
                    return Ok(());
                }
                last = format!("{:?} {:?}", answer.metadata.response_code, answer.answers);
            }
            Err(error) => last = format!("{error:#}"),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    bail!("{name} does not resolve to {expected}; the last answer: {last}")
}

async fn ask(socket: &tokio::net::UdpSocket, question: &[u8]) -> Result<Message> {
    socket.send(question).await?;
    let mut buffer = [0; 4096];
    let length = tokio::time::timeout(Duration::from_millis(100), socket.recv(&mut buffer)).await??;
    Ok(Message::from_vec(&buffer[..length])?)
}
