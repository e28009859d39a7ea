//! The range of pod addresses that the cluster gives a node (`--allocate-node-cidrs` of the server), for an agent that
//! brings none.

use super::agent::Identity;
use super::join::patiently;
use crate::ranges::Ranges;
use anyhow::{Context, Result, anyhow};
use futures::StreamExt;
use gantry_client::https::Https;
use gantry_client::{Api, Client, PostParams, WatchEvent, WatchParams};
use k8s_openapi::api::core::v1::Node;
use std::path::Path;
use std::sync::Arc;

/// File of the data directory that the range is kept in: the node starts with it while the server is away.
const KEPT: &str = "node-cidr";

/// The node's range: the one it was given before, or the one it is given once the cluster knows of it.
///
/// # Errors
/// Where the server refuses, or what it gives is no range.
pub async fn range(identity: &Identity, node: &str, data_dir: &Path) -> Result<Ranges> {
    let file = data_dir.join(KEPT);
    match std::fs::read_to_string(&file) {
        Ok(text) => return parse(text.trim()).with_context(|| format!("{}", file.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
    let client = Client::new(Arc::new(Https::new(&identity.https())?), "gantry-agent");
    let api = Api::<Node>::all(client);
    let mut own = Node::default();
    own.metadata.name = Some(node.to_owned());
    let (server, params) = (identity.server_url.as_str(), PostParams::default());
    // Who gives ranges has to know whom to. Not ready, as all new nodes are, it gets no pods yet.
    match patiently(server, || api.create(&params, &own)).await {
        Ok(_) => {}
        Err(error) if error.is("AlreadyExists") => {}
        Err(error) => return Err(error).with_context(|| format!("cannot register the node {node}")),
    }
    println!("  waiting for a range of pod addresses; give one with --node-cidr where the server gives none");
    let text = given(&api, server, node).await?;
    let range = parse(&text)?;
    std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(range)
}

fn parse(text: &str) -> Result<Ranges> {
    text.parse().map_err(|e| anyhow!("{text:?} is no range of pod addresses: {e}"))
}

/// What the Node says once it says something.
async fn given(api: &Api<Node>, server: &str, node: &str) -> Result<String> {
    let field_selector = Some(format!("metadata.name={node}"));
    let params = WatchParams { field_selector, ..WatchParams::default() };
    loop {
        // Without a version to start after, a watch begins with the object as it is.
        let mut events = patiently(server, || api.watch(&params)).await.context("cannot watch the own Node")?;
        while let Some(Ok(event)) = events.next().await {
            if let WatchEvent::Added(node) | WatchEvent::Modified(node) = event
                && let Some(ranges) = node.spec.and_then(|s| s.pod_cidrs).filter(|r| !r.is_empty())
            {
                return Ok(ranges.join(","));
            }
        }
    }
}
