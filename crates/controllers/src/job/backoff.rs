//! How long to wait before a failed pod is replaced: 10 s, doubled with each failure since the last success, 10 min at
//! most.

use crate::pod_state;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::time::Duration;

const BASE: Duration = Duration::from_secs(10);
const CAP: Duration = Duration::from_secs(600);

/// The failures of one Job since its last success. Kept in memory only: after a restart waiting begins anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// How many.
    pub failures: i32,
    /// When the last one was.
    pub last: Option<Timestamp>,
}

impl Record {
    /// The record after these pods ended.
    #[must_use]
    pub fn after(self, succeeded: &[Arc<Pod>], failed: &[Arc<Pod>]) -> Self {
        let last_success = succeeded.iter().map(|p| finished_at(p)).max();
        let since: Vec<Timestamp> =
            failed.iter().map(|p| finished_at(p)).filter(|t| last_success.is_none_or(|s| *t > s)).collect();
        let before = if last_success.is_some() { Self::default() } else { self };
        let more = i32::try_from(since.len()).unwrap_or(i32::MAX);
        // The latest of what ended now, even where a clock ran behind and it is older than what was known.
        Self { failures: before.failures.saturating_add(more), last: since.into_iter().max().or(before.last) }
    }

    /// How long to wait yet.
    #[must_use]
    pub fn remaining(&self, now: Timestamp) -> Duration {
        self.last.map_or(Duration::ZERO, |last| remaining(self.failures, last, now))
    }
}

/// How long to wait after the `failures`th failure in a row, which was at `last`.
#[must_use]
pub fn remaining(failures: i32, last: Timestamp, now: Timestamp) -> Duration {
    let Some(doublings) = u32::try_from(failures).ok().and_then(|n| n.checked_sub(1)) else { return Duration::ZERO };
    let delay = BASE.saturating_mul(1 << doublings.min(6)).min(CAP);
    let left = SignedDuration::try_from(delay).unwrap_or(SignedDuration::MAX).saturating_sub(now.duration_since(last));
    Duration::try_from(left).unwrap_or(Duration::ZERO)
}

/// When a pod ended: when its last container did, or since when it is not ready, or when it was deleted, or else when
/// it was made.
#[must_use]
pub fn finished_at(pod: &Pod) -> Timestamp {
    let containers = pod.status.as_ref().and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    let ends: Option<Vec<Timestamp>> =
        containers.iter().map(|c| Some(c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0)).collect();
    let unready = || {
        pod_state::condition(pod, "Ready").filter(|c| c.status == "False")?.last_transition_time.as_ref().map(|t| t.0)
    };
    let deleted = || {
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
        pod.metadata.deletion_timestamp.as_ref()?.0.checked_sub(SignedDuration::from_secs(grace)).ok()
    };
    ends.and_then(|e| e.into_iter().max())
        .or_else(unready)
        .or_else(deleted)
        .or_else(|| pod.metadata.creation_timestamp.as_ref().map(|t| t.0))
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn pod(second: i64) -> Arc<Pod> {
        let c = json!({"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": 1, "finishedAt": at(second)}}});
        Arc::new(serde_json::from_value(json!({"status": {"containerStatuses": [c]}})).unwrap())
    }

    #[test]
    fn waits_double_up_to_the_cap_and_begin_anew_after_a_success() {
        let waits: Vec<u64> = (0..9).map(|n| remaining(n, at(100), at(100)).as_secs()).collect();
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 320, 600, 600]);
        assert_eq!(remaining(2, at(100), at(115)).as_secs(), 5);
        assert!(remaining(2, at(100), at(121)).is_zero());
        assert_eq!(remaining(i32::MAX, at(0), at(0)), CAP);

        let one = Record::default().after(&[], &[pod(5), pod(9)]);
        assert_eq!(one, Record { failures: 2, last: Some(at(9)) });
        assert_eq!(one.after(&[], &[]), one);
        assert_eq!(one.after(&[], &[pod(20)]), Record { failures: 3, last: Some(at(20)) });
        assert_eq!(one.after(&[pod(10)], &[]), Record::default());
        assert_eq!(one.after(&[pod(10)], &[pod(10), pod(11)]), Record { failures: 1, last: Some(at(11)) });
        assert!(Record::default().remaining(at(0)).is_zero());
    }

    #[test]
    fn a_pod_ended_when_its_last_container_did_or_as_well_as_can_be_told() {
        let told = |v: serde_json::Value| finished_at(&serde_json::from_value::<Pod>(v).unwrap());
        let running = json!({"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "state": {"running": {}}});
        let unready = json!({"type": "Ready", "status": "False", "lastTransitionTime": at(7)});
        let meta = json!({"creationTimestamp": at(1), "deletionTimestamp": at(40), "deletionGracePeriodSeconds": 30});
        assert_eq!(
            told(json!({"metadata": meta, "status": {"conditions": [unready], "containerStatuses": [running]}})),
            at(7)
        );
        assert_eq!(told(json!({"metadata": meta, "status": {}})), at(10));
        assert_eq!(told(json!({"metadata": {"creationTimestamp": at(1)}})), at(1));
    }
}
