//! Image garbage collection: when the disk fills up, images no container uses go, the longest unused first.

use crate::agent::Agent;
use gantry_api::ObjectMeta;
use gantry_api::k8s_openapi::api::core::v1::Node;
use gantry_reconcile::EventType;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How often the fullness of the disk with the images is looked at.
pub(crate) const PERIOD: Duration = Duration::from_secs(300);

/// Bytes to free: down to the low mark once usage has reached the high one, both in percent.
fn to_free(available: u64, capacity: u64, high: u64, low: u64) -> Option<(u64, u64)> {
    let available = available.min(capacity);
    let percent = 100 - available * 100 / capacity;
    (percent >= high).then(|| (percent, (capacity / 100 * (100 - low.min(100))).saturating_sub(available)))
}

/// Removes unused images while the disk is fuller than the high mark, until it is at the low one.
pub(crate) async fn collect(agent: &Agent) {
    let event = |reason: &str, message: &str| {
        // At the start the node may not have been read yet; its name is enough to tell of it.
        let by_name = || {
            let metadata = ObjectMeta { name: Some(agent.cfg.node_name.clone()), ..Default::default() };
            Arc::new(Node { metadata, ..Default::default() })
        };
        let node = agent.node.get("", &agent.cfg.node_name).unwrap_or_else(by_name);
        agent.recorder.event(&*node, EventType::Warning, reason, message);
    };
    let usage = match agent.images.fs_usage().await {
        Ok(usage) => usage,
        Err(error) => return tracing::warn!(%error, "cannot read the image store's usage"),
    };
    if usage.capacity_bytes == 0 {
        return event("InvalidDiskCapacity", "invalid capacity 0 on image filesystem");
    }
    let cfg = &agent.cfg;
    let (high, low) = (cfg.image_gc_high_percent, cfg.image_gc_low_percent);
    // As upstream: at 100 the collector is off.
    if high >= 100 {
        return;
    }
    let Some((percent, wanted)) = to_free(usage.available_bytes, usage.capacity_bytes, high, low) else { return };
    tracing::info!(percent, high, wanted, "the disk with the images is fuller than the high threshold");
    let freed = free(agent, wanted, cfg.image_minimum_age).await;
    if freed < wanted {
        let message = format!(
            "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only \
             found {freed} bytes eligible to free."
        );
        event("FreeDiskSpaceFailed", &message);
    }
}

/// Removes unused images older than `minimum_age` until `wanted` bytes are freed. Returns how many were.
pub(crate) async fn free(agent: &Agent, wanted: u64, minimum_age: Duration) -> u64 {
    let candidates = match agent.images.garbage_candidates().await {
        Ok(candidates) => candidates,
        Err(error) => {
            tracing::warn!(%error, "cannot list unused images");
            return 0;
        }
    };
    let now = SystemTime::now();
    let mut freed = 0u64;
    for image in candidates {
        if freed >= wanted {
            break;
        }
        // One that has just been pulled will be used right away.
        if now.duration_since(image.pulled_at).unwrap_or_default() < minimum_age {
            continue;
        }
        match agent.images.remove(&image.id).await {
            Ok(()) => {
                tracing::info!(image = image.id, bytes = image.size, "removed an unused image");
                freed += image.size;
            }
            Err(error) => tracing::debug!(image = image.id, %error, "cannot remove an unused image"),
        }
    }
    freed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_go_between_the_marks() {
        assert_eq!(to_free(160, 1000, 85, 80), None);
        assert_eq!(to_free(150, 1000, 85, 80), Some((85, 50)));
        assert_eq!(to_free(1_000, 10_000, 85, 80), Some((90, 1_000)));
        assert_eq!(to_free(20_000, 10_000, 85, 80), None, "more available than there is");
    }
}
