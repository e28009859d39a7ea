//! Five hundred CustomResourceDefinitions at once: memory, discovery, OpenAPI, and when each is served.

use super::budgets::MB;
use super::gantry::{Gantry, PATIENCE};
use super::statistics::{median, percentile};
use super::workload::{self, Events};
use super::{Bench, Measurement};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use gantry_client::Client;
use http::Method;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const COUNT: u64 = 500;
const KINDS_PER_GROUP: u64 = 10;
/// As kubectl and client-go ask for all groups in one answer.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// What the watch of the definitions tells.
#[derive(serde::Deserialize)]
struct Seen {
    object: SeenDefinition,
}

#[derive(serde::Deserialize)]
struct SeenDefinition {
    #[serde(default)]
    metadata: workload::SeenMetadata,
    #[serde(default)]
    status: SeenStatus,
}

#[derive(Default, serde::Deserialize)]
struct SeenStatus {
    #[serde(default)]
    conditions: Vec<SeenCondition>,
}

#[derive(serde::Deserialize)]
struct SeenCondition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

/// When each was created, by name.
type Created = Arc<Mutex<HashMap<String, Instant>>>;

/// Many clients create them all; one watch sees them become established, and each is listed at that moment.
pub async fn run(bench: &Bench) -> Result<Vec<Measurement>> {
    let gantry = Gantry::server(bench).await?;
    let clients = gantry.clients(workload::fillers()).await?;
    let client = &clients[0];
    // So that what the first document costs is not counted as the definitions'.
    documents(client).await?;
    gantry.settle().await?;
    let (empty, busy) = (gantry.memory()?, gantry.cpu()?);

    let version = workload::version(client, DEFINITIONS).await?;
    let events = Events::watch(client, DEFINITIONS, &version).await?;
    let created = Created::default();
    let following = tokio::spawn(follow(events, clients.clone(), created.clone()));
    let load = super::load::drive(&clients, super::load::Until::Requests(COUNT), move |client, number| {
        let created = created.clone();
        async move {
            let object = definition(number);
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            created.lock().unwrap_or_else(PoisonError::into_inner).insert(name, Instant::now());
            workload::create(&client, DEFINITIONS, &object).await.map(drop)
        }
    })
    .await?;
    let times = tokio::time::timeout(PATIENCE, following).await.context("not every definition is served")???;
    gantry.settle().await?;
    let cpu = gantry.cpu()? - busy;
    // Before anybody has asked for a document, and after.
    let grown = gantry.memory()?.saturating_sub(empty) as f64 / MB;
    let asked = documents(client).await?;
    gantry.settle().await?;
    let with_documents = gantry.memory()?.saturating_sub(empty) as f64 / MB;

    let of_serving = json!({
        "created_to_served_p50_s": percentile(&times.from_create, 0.5),
        "created_to_served_max_s": percentile(&times.from_create, 1.0),
        "established_to_served_p50_s": percentile(&times.from_established, 0.5),
        "created_in_s": load.elapsed.as_secs_f64(),
        "server_cpu_s": cpu.as_secs_f64(),
    });
    let of_memory = json!({ "before_documents_mb": grown, "definition_bytes": definition(0).to_string().len() });
    Ok(vec![
        Measurement { id: "resources_memory", value: with_documents, detail: of_memory },
        Measurement { id: "resources_served", value: percentile(&times.from_established, 1.0), detail: of_serving },
        Measurement { id: "resources_discovery", value: asked.discovery, detail: Value::Null },
        Measurement { id: "resources_openapi", value: asked.slowest, detail: asked.detail.into() },
    ])
}

/// Times of each definition, in seconds.
#[derive(Default)]
struct Times {
    from_create: Vec<f64>,
    from_established: Vec<f64>,
}

/// Lists the objects of each definition once a watch says that it is established, until they are listed.
async fn follow(mut events: Events, clients: Vec<Client>, created: Created) -> Result<Times> {
    let mut asking = tokio::task::JoinSet::new();
    let mut left = created_names();
    let seen = |line: &[u8]| {
        let event: Seen = serde_json::from_slice(line).context("no event of a definition")?;
        let name = event.object.metadata.name;
        let is_established = |c: &SeenCondition| c.kind == "Established" && c.status == "True";
        if event.object.status.conditions.iter().any(is_established)
            && let Some(number) = left.remove(&name)
        {
            let at = created.lock().unwrap_or_else(PoisonError::into_inner).get(&name).copied();
            let created = at.with_context(|| format!("{name} was never created"))?;
            let client = clients[usize::try_from(number)? % clients.len()].clone();
            asking.spawn(until_listed(client, number, created, Instant::now()));
        }
        Ok(left.is_empty())
    };
    events.each(seen).await?;
    let mut times = Times::default();
    while let Some(outcome) = asking.join_next().await {
        let (from_create, from_established) = outcome.context("a client panicked")??;
        times.from_create.push(from_create);
        times.from_established.push(from_established);
    }
    Ok(times)
}

async fn until_listed(client: Client, number: u64, created: Instant, established: Instant) -> Result<(f64, f64)> {
    let (group, plural) = (group(number), plural(number));
    let path = format!("/apis/{group}/v1/{plural}");
    loop {
        match client.call(Method::GET, &path, None, Bytes::new()).await {
            Ok(_) => return Ok((created.elapsed().as_secs_f64(), established.elapsed().as_secs_f64())),
            Err(error) if !error.is("NotFound") || established.elapsed() > PATIENCE => {
                return Err(error).with_context(|| format!("{path} is not served"));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Times of the documents that say what is served.
struct Documents {
    discovery: f64,
    slowest: f64,
    detail: Map<String, Value>,
}

/// Asks for each several times; in milliseconds, the first time apart.
async fn documents(client: &Client) -> Result<Documents> {
    let discovery = asked(client, "/apis", Some(AGGREGATED)).await?;
    let of_group = format!("/openapi/v3/apis/{}/v1", group(0));
    let mut detail = Map::new();
    let mut slowest: f64 = 0.0;
    for path in ["/openapi/v2", "/openapi/v3", &of_group] {
        let (first, again, bytes) = asked(client, path, None).await?;
        slowest = slowest.max(first);
        detail.insert(path.to_owned(), json!({ "first_ms": first, "again_ms": again, "bytes": bytes }));
    }
    let (first, again, bytes) = discovery;
    detail.insert("/apis".to_owned(), json!({ "first_ms": first, "again_ms": again, "bytes": bytes }));
    Ok(Documents { discovery: first, slowest, detail })
}

/// How long the first answer takes, and others after it, and how long it is. A path that is not served is answered, too.
async fn asked(client: &Client, path: &str, accept: Option<&str>) -> Result<(f64, f64, u64)> {
    let mut times = Vec::new();
    let mut bytes = 0;
    for _ in 0..10 {
        let began = Instant::now();
        let response = client.send(Method::GET, path, None, accept, Bytes::new()).await?;
        if response.status().is_server_error() {
            bail!("{path} is answered with {}", response.status());
        }
        bytes = workload::drain(response.into_body()).await.with_context(|| format!("cannot read {path}"))?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok((times[0], median(&times[1..]), bytes))
}

fn group(number: u64) -> String {
    format!("g{:02}.bench.example.com", number / KINDS_PER_GROUP)
}

fn plural(number: u64) -> String {
    format!("things{number}")
}

fn created_names() -> HashMap<String, u64> {
    (0..COUNT).map(|n| (format!("{}.{}", plural(n), group(n)), n)).collect()
}

/// A definition as operators have them: a schema of three levels with some forty fields, a status, columns.
fn definition(number: u64) -> Value {
    let field = |i: u64| {
        let text = format!("What setting {i} is for, in a sentence of the length that people write into schemas.");
        match i % 4 {
            0 => json!({ "type": "string", "description": text, "maxLength": 253 }),
            1 => json!({ "type": "integer", "format": "int32", "minimum": 0, "description": text }),
            2 => json!({ "type": "array", "items": { "type": "string" }, "description": text }),
            _ => json!({ "type": "object", "additionalProperties": { "type": "string" }, "description": text }),
        }
    };
    let fields = |count: u64| -> Map<String, Value> { (0..count).map(|i| (format!("setting{i}"), field(i))).collect() };
    let mut spec = fields(20);
    spec.insert("nested".into(), json!({ "type": "object", "properties": fields(12) }));
    let (group, plural) = (group(number), plural(number));
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.{group}") },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": { "plural": plural, "singular": format!("thing{number}"), "kind": format!("Thing{number}") },
            "versions": [{
                "name": "v1",
                "served": true,
                "storage": true,
                "subresources": { "status": {} },
                "additionalPrinterColumns": [{ "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" }],
                "schema": { "openAPIV3Schema": {
                    "type": "object",
                    "properties": {
                        "spec": { "type": "object", "properties": spec },
                        "status": { "type": "object", "properties": fields(8) },
                    },
                } },
            }],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_named_after_what_they_define() {
        let names = created_names();
        assert_eq!(names.len() as u64, COUNT);
        for number in [0, 9, 10, COUNT - 1] {
            let object = definition(number);
            assert_eq!(names.get(object["metadata"]["name"].as_str().unwrap()), Some(&number));
        }
    }
}
