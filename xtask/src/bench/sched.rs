//! The scheduler end to end, for pods that ask for much.

use super::deciding::Shape;
use super::{Bench, Measurement, binding};
use anyhow::{Context, Result};
use std::time::Duration;

/// How long one cluster may take, from its start to its last binding, before it counts as broken.
const PART_WITHIN: Duration = Duration::from_secs(900);

/// A cluster of a thousand nodes, and one of five thousand.
async fn both(bench: &Bench, shape: Shape, ids: [&'static str; 2]) -> Result<Vec<Measurement>> {
    let mut found = Vec::new();
    for (id, nodes) in ids.into_iter().zip([1_000, 5_000]) {
        if nodes > 1_000 && bench.quick {
            continue;
        }
        let part = tokio::time::timeout(PART_WITHIN, binding::bound(bench, id, nodes, shape)).await;
        let one = part
            .with_context(|| format!("{id} took more than {} s", PART_WITHIN.as_secs()))
            .flatten()
            .with_context(|| format!("{} pods on {nodes} nodes", shape.name()))?;
        // At once: should the other cluster fail, this is what there is.
        eprintln!("  {id}: {:.0} /s", one.value);
        found.push(one);
    }
    Ok(found)
}

/// See [`Shape::Constrained`].
pub async fn constrained(bench: &Bench) -> Result<Vec<Measurement>> {
    both(bench, Shape::Constrained, ["bound_constrained_1000", "bound_constrained_5000"]).await
}

/// See [`Shape::AntiAffine`].
pub async fn anti_affine(bench: &Bench) -> Result<Vec<Measurement>> {
    both(bench, Shape::AntiAffine, ["bound_anti_affine_1000", "bound_anti_affine_5000"]).await
}

/// See [`Shape::Preempting`].
pub async fn preempting(bench: &Bench) -> Result<Vec<Measurement>> {
    both(bench, Shape::Preempting, ["bound_preempting_1000", "bound_preempting_5000"]).await
}
