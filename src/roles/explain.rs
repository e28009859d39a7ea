//! `gantry explain`: why a pod is on its node, or on none, in words.

use crate::cli::{ExplainCommand, ExplainFormat};
use anyhow::{Context, Result};
use bytes::Bytes;
use gantry_client::{Client, Https, Kubeconfig, resource_path};
use http::Method;
use serde_json::Value;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Asks the server and prints what it says.
///
/// # Errors
/// Where there is no server to be reached, or no such pod.
pub async fn run(command: ExplainCommand) -> Result<()> {
    let ExplainCommand::Pod { name, namespace, kubeconfig, output } = command;
    let path = kubeconfig.unwrap_or_else(default_kubeconfig);
    let base = path.parent().unwrap_or(Path::new("."));
    let config = Kubeconfig::read(&path).and_then(|k| k.https(None, base));
    let config = config.with_context(|| format!("--kubeconfig {}", path.display()))?;
    let client = Client::new(Arc::new(Https::new(&config)?), "gantry-explain");
    let pod = resource_path("", "v1", "pods", Some(&namespace), Some(&name), Some("explain"));
    let answer = client.call(Method::GET, &pod, None, Bytes::new()).await?;
    let found: Value = serde_json::from_slice(&answer).context("the server's answer is no JSON")?;
    match output {
        ExplainFormat::Json => println!("{found:#}"),
        ExplainFormat::Text => print!("{}", text(&found)),
    }
    Ok(())
}

/// Where kubectl looks.
fn default_kubeconfig() -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    home.join(".kube/config")
}

fn word<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn each<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn state(found: &Value) -> String {
    let mut out = match found["node"].as_str() {
        Some(node) => format!("{} on {node}", word(found, "state")),
        None => word(found, "state").to_owned(),
    };
    let queue = &found["queue"];
    if let (Some(ahead), Some(attempts)) = (queue["ahead"].as_u64(), queue["attempts"].as_u64()) {
        let times = if attempts == 1 { "once".to_owned() } else { format!("{attempts} times") };
        let pods = if ahead == 1 { "pod" } else { "pods" };
        let _ = write!(out, "; tried {times}, {ahead} {pods} ahead");
    }
    if let Some(seconds) = queue["retryAfterSeconds"].as_f64() {
        let _ = write!(out, ", again within {seconds} s");
    }
    if let Some(node) = found["nominatedNode"].as_str() {
        let _ = write!(out, "; {node} is promised to it");
    }
    out
}

fn node(node: &Value) -> String {
    if node["feasible"] != true {
        let problem = |p: &Value| match word(p, "detail") {
            "" => word(p, "reason").to_owned(),
            detail => format!("{}: {detail}", word(p, "reason")),
        };
        return each(node, "problems").map(problem).collect::<Vec<_>>().join("; ");
    }
    let scores = node["scores"].as_object().into_iter().flatten();
    let scores: Vec<String> = scores.filter(|(_, s)| **s != 0).map(|(plugin, s)| format!("{plugin} {s}")).collect();
    if scores.is_empty() { "the only node it fits".to_owned() } else { scores.join(", ") }
}

/// What there is of a pod's group, and what it waits for.
fn group_line(group: &Value) -> String {
    let of = group["minCount"].as_u64().map(|min| format!(", {min} needed at once")).unwrap_or_default();
    let mut out = format!("{}: {} placed, {} waiting{of}", word(group, "name"), group["placed"], group["waiting"]);
    if let Some(message) = group["message"].as_str() {
        let _ = write!(out, "; {message}");
    }
    out
}

fn text(found: &Value) -> String {
    let metadata = &found["metadata"];
    let mut out = format!("Pod:      {}/{}\n", word(metadata, "namespace"), word(metadata, "name"));
    let mut line = |label: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{label:<9} {value}");
    };
    line("State:", &state(found));
    if let Some(message) = found["message"].as_str() {
        line("Message:", message);
    }
    let group = &found["group"];
    if group.is_object() {
        line("Group:", &group_line(group));
    }
    for thing in each(found, "inTheWay") {
        line("Waits:", &format!("{}: {}", word(thing, "kind"), word(thing, "message")));
    }
    let disrupted = &found["disrupted"];
    if disrupted["reason"].is_string() {
        line("Has to go:", &format!("{}: {}", word(disrupted, "reason"), word(disrupted, "message")));
    }
    for event in each(disrupted, "events") {
        line("Was told:", &format!("{}: {}", word(event, "reason"), word(event, "message")));
    }
    let width = each(found, "nodes").map(|n| word(n, "name").len()).max().unwrap_or(0).max(4);
    if found["nodes"].as_array().is_some_and(|n| !n.is_empty()) {
        let _ = writeln!(out, "\n{:width$}  SCORE  WHY", "NODE");
    }
    for n in each(found, "nodes") {
        let score = n["score"].as_i64().map_or_else(|| "-".to_owned(), |s| s.to_string());
        let _ = writeln!(out, "{:width$}  {score:>5}  {}", word(n, "name"), node(n));
    }
    for (index, remedy) in each(found, "remedies").enumerate() {
        if index == 0 {
            out.push_str("\nAny one of these would let it in:\n");
        }
        let _ = writeln!(out, "- {}", word(remedy, "message"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn words() {
        let found = json!({
            "metadata": {"namespace": "d", "name": "p"},
            "state": "Unschedulable",
            "queue": {"ahead": 2, "waiting": 3, "attempts": 1, "retryAfterSeconds": 9.0},
            "message": "0/1 nodes are available: 1 Insufficient cpu.",
            "disrupted": {"reason": "PreemptionByScheduler", "message": "why", "events": [
                {"reason": "Preempted", "message": "by pod u on node n"}]},
            "group": {"name": "g", "placed": 0, "waiting": 2, "gated": 0, "minCount": 2, "message": "1 fits"},
            "nodes": [{"name": "n", "feasible": false, "problems": [
                {"plugin": "NodeResourcesFit", "reason": "Insufficient cpu", "detail": "wants 2, 1 of 1 free, 1 short"},
            ]}],
            "remedies": [{"kind": "Evict", "message": "evict d/q from n"}],
        });
        let want = "Pod:      d/p\n\
            State:    Unschedulable; tried once, 2 pods ahead, again within 9 s\n\
            Message:  0/1 nodes are available: 1 Insufficient cpu.\n\
            Group:    g: 0 placed, 2 waiting, 2 needed at once; 1 fits\n\
            Has to go: PreemptionByScheduler: why\n\
            Was told: Preempted: by pod u on node n\n\
            \n\
            NODE  SCORE  WHY\n\
            n         -  Insufficient cpu: wants 2, 1 of 1 free, 1 short\n\
            \n\
            Any one of these would let it in:\n\
            - evict d/q from n\n";
        assert_eq!(text(&found), want);
    }
}
