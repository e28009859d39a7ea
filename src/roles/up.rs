//! `gantry up`: server and agent in one process.

use super::{agent, server};
use crate::bootstrap::DataDir;
use crate::cli::UpOptions;
use crate::ranges::family;
use anyhow::{Context, Result};
use futures::StreamExt;
use gantry_client::{Api, Client, ListParams};
use gantry_client::{Patch, PatchParams, WatchEvent, WatchParams};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Service};
use serde_json::json;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How long the node may take to become Ready before this is reported (it goes on trying).
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Runs until Ctrl-C or SIGTERM. Containers go on running; the next `up` finds them.
///
/// # Errors
/// Names what is in the way: root, a taken port, the data directory, a file.
pub async fn run(options: UpOptions) -> Result<()> {
    let started = Instant::now();
    super::require_root("gantry up")?;
    super::raise_file_limit();
    let data = DataDir::open(&options.data.data_dir)?;
    let node_name = options.agent.node_name()?;
    println!("gantry {}: starting in {}", env!("CARGO_PKG_VERSION"), data.path().display());

    let cancel = CancellationToken::new();
    options.cluster.check()?;
    let node_cidr = options.cluster.first_node_cidr()?;
    let range = ("--pod-cidr", &node_cidr);
    let (network, _trace) = agent::open_network(&data, &options.cluster, range, &options.agent, &node_name).await?;
    let node_ips = agent::node_ips(&options.agent, &node_cidr, &network)?;
    // The `kubernetes` Service is of the default family only, and so is what it leads to.
    let service_family = options.cluster.service_cidr.families().next();
    let gateway = network.gateways().into_iter().find(|gateway| Some(family(*gateway)) == service_family);
    let api = match server::start(&options.server, &options.cluster, &data, gateway, &node_ips, &cancel).await {
        Ok(api) => api,
        Err(error) => {
            // A start that failed leaves nothing behind; pods of an earlier one keep what they stand on.
            if network.addresses().await.is_empty() {
                network.teardown().await.context("cannot undo the pod network")?;
            }
            return Err(error);
        }
    };
    println!("  API server   {}  ({})", api.url, elapsed(started));
    println!("  kubeconfig   {}", options.server.kubeconfig.display());

    let identity = agent::Identity::issued(&api, &node_name, &node_ips)?;
    let mut node = tokio::spawn(agent::run_node(
        agent::Node {
            name: node_name.clone(),
            ips: node_ips,
            network,
            data_dir: data.path().to_owned(),
            instance: data.instance()?,
            options: options.agent.clone(),
            cluster: options.cluster.clone(),
            identity,
        },
        cancel.clone(),
    ));

    let admin = api.admin("gantry-up");
    let ready = async {
        let waiting = wait_until_ready(&admin, &node_name);
        if let Ok(result) = tokio::time::timeout(READY_WITHIN, waiting).await {
            result?;
            println!("  node         {node_name} is Ready  ({})", elapsed(started));
        } else {
            println!("  node         {node_name} is not Ready after {} s; see its conditions", READY_WITHIN.as_secs());
        }
        if options.demo {
            demo(&admin).await?;
        }
        println!("\nTry: kubectl --kubeconfig {} get nodes", options.server.kubeconfig.display());
        println!("Ctrl-C stops gantry and leaves containers running; `gantry down` stops everything.");
        anyhow::Ok(())
    };
    let mut outcome = tokio::select! {
        result = ready => result,
        result = &mut node => Some(result).map_or(Ok(()), flatten),
        () = until_signalled() => Ok(()),
    };
    if outcome.is_ok() && !cancel.is_cancelled() && !node.is_finished() {
        tokio::select! {
            () = until_signalled() => {}
            () = cancel.cancelled() => outcome = Err(anyhow::anyhow!("the API server ended; see the log above")),
            result = &mut node => outcome = flatten(result),
        }
    }
    println!("stopping");
    cancel.cancel();
    if !node.is_finished() {
        outcome = outcome.and(flatten(node.await));
    }
    api.server.stop();
    api.join().await;
    outcome
}

fn flatten(result: Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    result.context("the node agent panicked").and_then(|r| r.context("the node agent ended"))
}

fn elapsed(since: Instant) -> String {
    format!("after {:.2} s", since.elapsed().as_secs_f64())
}

/// Returns on SIGINT or SIGTERM.
pub async fn until_signalled() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "cannot listen for signals");
            std::future::pending::<()>().await;
        }
    }
}

async fn wait_until_ready(client: &Client, name: &str) -> Result<()> {
    let api = Api::<Node>::all(client.clone());
    let selector = format!("metadata.name={name}");
    let is_ready = |node: &Node| {
        let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
    };
    loop {
        let list = api
            .list(&ListParams { field_selector: Some(selector.clone()), ..Default::default() })
            .await
            .context("cannot list nodes")?;
        if list.items.iter().any(is_ready) {
            return Ok(());
        }
        let params = WatchParams {
            field_selector: Some(selector.clone()),
            resource_version: list.resource_version,
            ..Default::default()
        };
        let mut events = api.watch(&params).await.context("cannot watch nodes")?;
        while let Some(event) = events.next().await {
            match event {
                Ok(WatchEvent::Added(node) | WatchEvent::Modified(node)) if is_ready(&node) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.is_expired() => break,
                Err(error) => return Err(error).context("cannot watch nodes"),
            }
        }
    }
}

/// Three replicas of the built-in web server behind a Service.
async fn demo(client: &Client) -> Result<()> {
    let labels = json!({ "app": "hello" });
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": "hello", "namespace": "default", "labels": labels },
        "spec": {
            "replicas": 3,
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": { "containers": [{
                    "name": "web",
                    "image": "gantry.local/self",
                    "imagePullPolicy": "IfNotPresent",
                    "args": ["serve", "--port", "8080"],
                    "ports": [{ "name": "http", "containerPort": 8080 }],
                    "readinessProbe": { "httpGet": { "path": "/readyz", "port": "http" }, "periodSeconds": 2 },
                    "resources": { "requests": { "cpu": "10m", "memory": "16Mi" } },
                }]},
            },
        },
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "hello", "namespace": "default", "labels": labels },
        "spec": {
            "type": "NodePort",
            "selector": labels,
            "ports": [{ "name": "http", "port": 80, "targetPort": "http", "nodePort": 30080 }],
        },
    });
    let params = PatchParams { force: true, ..Default::default() };
    Api::<Deployment>::namespaced(client.clone(), "default")
        .patch("hello", &params, &Patch::Apply(deployment))
        .await
        .context("cannot deploy the demonstration")?;
    Api::<Service>::namespaced(client.clone(), "default")
        .patch("hello", &params, &Patch::Apply(service))
        .await
        .context("cannot expose the demonstration")?;
    println!("  demo         Deployment and Service hello in namespace default (node port 30080)");
    Ok(())
}
