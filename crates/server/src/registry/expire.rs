//! Events are kept for an hour after they were last written, as upstream's `--event-ttl`; nobody deletes them otherwise.

use super::Registry;
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use gantry_api::k8s_openapi::jiff::Timestamp;
use gantry_api::kind::Resource;
use gantry_api::meta::object::Meta;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long an event is kept.
const KEPT_SECONDS: i64 = 3600;
/// How often old ones are looked for. An event may live this much longer than it must.
const LOOK_EVERY: Duration = Duration::from_secs(300);

/// Deletes old events until `stop`.
pub async fn run(registry: Arc<Registry>, stop: CancellationToken) {
    let Some(events) = gantry_api::kinds::find("", "v1", "events") else { return };
    loop {
        // In order: an unordered choice draws lots, and two runs from one seed would end differently.
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        remove_old(&registry, events, registry.clock.now()).await;
    }
}

async fn remove_old(registry: &Registry, events: &'static dyn Resource, now: Timestamp) {
    let Ok(cache) = registry.cache(events) else { return };
    let snapshot = cache.snapshot();
    for entry in snapshot.iter_after("", "") {
        let Ok(event) = events.decode(&entry.json()) else { continue };
        if last_written(&event.to_value()).is_none_or(|t| now.as_second() - t.as_second() < KEPT_SECONDS) {
            continue;
        }
        let options = DeleteOptions {
            preconditions: Some(gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Preconditions {
                uid: Some(event.meta().uid().to_owned()),
                // Written again in the meantime, it is no longer old.
                resource_version: Some(entry.revision.to_string()),
            }),
            ..Default::default()
        };
        let deleted = registry.delete(events, entry.namespace(), entry.name(), &options, false, None).await;
        if let Err(e) = deleted.map(drop).or_else(|e| if matches!(e.code, 404 | 409) { Ok(()) } else { Err(e) }) {
            tracing::warn!(event = entry.path(), error = %e, "an old event could not be deleted");
        }
    }
}

/// The latest of the times an event carries.
fn last_written(event: &Value) -> Option<Timestamp> {
    let times = [
        &event["metadata"]["creationTimestamp"],
        &event["lastTimestamp"],
        &event["deprecatedLastTimestamp"],
        &event["eventTime"],
        &event["series"]["lastObservedTime"],
    ];
    times.into_iter().filter_map(|t| t.as_str()?.parse().ok()).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_latest_time_counts() {
        let event = json!({
            "metadata": { "creationTimestamp": "2026-01-01T00:00:00Z" },
            "lastTimestamp": "2026-01-01T00:30:00Z", "eventTime": null,
        });
        assert_eq!(last_written(&event), "2026-01-01T00:30:00Z".parse().ok());
        assert_eq!(last_written(&json!({})), None);
    }
}
