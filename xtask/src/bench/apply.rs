//! CPU of the server for server-side apply of a Deployment.

use super::gantry::Gantry;
use super::load::{self, Load, Until};
use super::statistics::percentile;
use super::workload::{self, NAMESPACE};
use super::{Bench, Measurement};
use anyhow::Result;
use gantry_client::Client;
use http::Method;
use serde_json::{Value, json};
use std::time::Duration;

const APPLY_PATCH: &str = "application/apply-patch+yaml";
const CLIENTS: usize = 4;

/// Applies that create, that change one field, that change nothing. The Deployments are paused and have no replicas: what
/// their controller does, one write of the status after each change, counts as well. The details say what the same costs
/// as a dry run, where nobody reacts and nothing is written.
pub async fn run(bench: &Bench) -> Result<Vec<Measurement>> {
    let gantry = Gantry::server(bench).await?;
    let clients = gantry.clients(CLIENTS).await?;
    workload::namespace(&clients[0]).await?;
    let count = bench.scaled(5_000, 1_000);
    // What the first ones leave behind (caches, threads) belongs to none of the figures.
    drive(&clients, "warm", 200, 0, "").await?;
    let mut found = Vec::new();
    for (id, revision, query) in [("apply_create", 0, ""), ("apply_change", 1, ""), ("apply_noop", 1, "")] {
        let dry_revision = if id == "apply_noop" { revision } else { revision + 7 };
        let dry_name = if id == "apply_create" { "dry" } else { "applied" };
        let (dry, _) = measured(&gantry, &clients, dry_name, count, dry_revision, "&dryRun=All").await?;
        let (cpu, load) = measured(&gantry, &clients, "applied", count, revision, query).await?;
        let detail = json!({
            "applies": load.requests,
            "dry_run_us": dry,
            "p50_ms": percentile(&load.latencies, 0.5),
            "p99_ms": percentile(&load.latencies, 0.99),
        });
        found.push(Measurement { id, value: cpu, detail });
    }
    Ok(found)
}

/// Applies to `count` Deployments; returns the server's CPU for each in µs, once it is quiet again.
async fn measured(
    gantry: &Gantry,
    clients: &[Client],
    name: &'static str,
    count: u64,
    revision: u64,
    query: &'static str,
) -> Result<(f64, Load)> {
    gantry.settle().await?;
    let before = gantry.cpu()?;
    let load = drive(clients, name, count, revision, query).await?;
    // Controllers that have not got to it yet.
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(((gantry.cpu()? - before).as_secs_f64() * 1e6 / load.requests as f64, load))
}

async fn drive(clients: &[Client], name: &'static str, count: u64, revision: u64, query: &'static str) -> Result<Load> {
    load::drive(clients, Until::Requests(count), move |client, number| async move {
        let name = format!("{name}-{number}");
        let path =
            format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{name}?fieldManager=bench&force=true{query}");
        client.call(Method::PATCH, &path, Some(APPLY_PATCH), deployment(&name, revision).to_string().into()).await?;
        Ok(())
    })
    .await
}

/// What a chart of average ambition would apply.
fn deployment(name: &str, revision: u64) -> Value {
    let mut template = workload::pod(name, "10m");
    if let Some(fields) = template.as_object_mut() {
        fields.retain(|field, _| field == "metadata" || field == "spec");
    }
    if let Some(metadata) = template["metadata"].as_object_mut() {
        metadata.remove("name");
    }
    template["spec"]["containers"][0]["env"][0]["value"] = format!("revision-{revision}").into();
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": name, "labels": { "app": "bench" } },
        "spec": {
            "replicas": 0,
            "paused": true,
            "selector": { "matchLabels": { "app": "bench" } },
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
            "template": template,
        },
    })
}
