//! The scheduler by itself and end to end, for pods that ask for much.

use super::deciding::{Shape, cost};
use super::{Bench, Measurement, binding};
use anyhow::{Context, Result};
use serde_json::{Map, json};

/// Sizes of clusters for the curve of what a decision costs.
const SIZES: [u64; 6] = [100, 500, 1_000, 5_000, 20_000, 50_000];
/// The size the figures are of.
const SIZE: u64 = 5_000;

/// Deciding alone, then whole clusters.
pub async fn run(bench: &Bench) -> Result<Vec<Measurement>> {
    let mut found = Vec::new();
    for (id, shape) in [
        ("decide_plain", Shape::Plain),
        ("decide_constrained", Shape::Constrained),
        ("decide_anti_affine", Shape::AntiAffine),
        ("decide_preempting", Shape::Preempting),
    ] {
        let quick = bench.quick;
        let decided = tokio::task::spawn_blocking(move || decide(id, shape, quick));
        found.push(decided.await.context("the scheduler panicked")?);
    }
    for (id, nodes, shape) in [
        ("bound_constrained_1000", 1_000, Shape::Constrained),
        ("bound_anti_affine_1000", 1_000, Shape::AntiAffine),
        ("bound_preempting_1000", 1_000, Shape::Preempting),
        ("bound_constrained_5000", 5_000, Shape::Constrained),
        ("bound_anti_affine_5000", 5_000, Shape::AntiAffine),
        ("bound_preempting_5000", 5_000, Shape::Preempting),
    ] {
        if nodes == 1_000 || !bench.quick {
            found.push(binding::bound(bench, id, nodes, shape).await?);
        }
    }
    Ok(found)
}

fn decide(id: &'static str, shape: Shape, quick: bool) -> Measurement {
    let mut curve = Map::new();
    let mut value = 0.0;
    for nodes in SIZES.into_iter().filter(|n| *n <= SIZE || !quick) {
        // Enough for the first pod of a class to weigh little, and no more than fit.
        let decisions = match shape {
            Shape::Preempting => 200,
            _ => usize::try_from(nodes).unwrap_or(0).saturating_mul(20).min(10_000),
        };
        let us = cost(nodes, shape, decisions).as_secs_f64() * 1e6;
        curve.insert(nodes.to_string(), json!(us));
        if nodes == SIZE {
            value = us;
        }
    }
    Measurement { id, value, detail: json!({ "shape": shape.name(), "us_by_nodes": curve }) }
}
