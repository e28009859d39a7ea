//! Objects as they were just written. Whoever watches from this process gets them as they are, and need not decode what
//! was encoded a moment before.
//!
//! Who changes an object that was just written is given a copy of it, too. Either is exactly what reading the stored text
//! would give, for watchers without managed fields; an object of which that is not certain is read. Only a cache's last
//! events hold objects.

use super::{Event, Shown, WatchCache};
use bytes::Bytes;
use gantry_api::Time;
use gantry_api::core::pod::canonicalize_pod_spec;
use gantry_api::k8s_openapi::api::core::v1::{ContainerState, Pod, PodStatus};
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use gantry_api::kind::{Kind, Object, downcast, downcast_mut};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Events of a cache that hold their objects: more than a watcher in this process lags behind, unless it is overrun.
pub(super) const FRESH_MAX: usize = 128;

fn times_of_state(state: &ContainerState) -> impl Iterator<Item = &Time> {
    let running = state.running.iter().flat_map(|s| &s.started_at);
    running.chain(state.terminated.iter().flat_map(|s| s.started_at.iter().chain(&s.finished_at)))
}

fn times_of_status(status: &PodStatus) -> impl Iterator<Item = &Time> {
    let containers =
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    let states = containers.into_iter().flatten().flatten().flat_map(|c| c.state.iter().chain(&c.last_state));
    let conditions = status.conditions.iter().flatten();
    let of_conditions = conditions.flat_map(|c| c.last_probe_time.iter().chain(&c.last_transition_time));
    let of_volumes = status.volume_health.iter().flatten().flat_map(|v| &v.last_transition_time);
    status.start_time.iter().chain(of_conditions).chain(states.flat_map(times_of_state)).chain(of_volumes)
}

/// All times in a pod.
fn times(pod: &Pod) -> impl Iterator<Item = &Time> {
    let meta = &pod.metadata;
    let of_meta = meta.creation_timestamp.iter().chain(&meta.deletion_timestamp);
    let of_managers = meta.managed_fields.iter().flatten().flat_map(|m| &m.time);
    of_meta.chain(of_managers).chain(pod.status.iter().flat_map(times_of_status))
}

/// An object that was just written, or is about to be.
#[derive(Clone, Debug)]
pub struct Fresh {
    /// The object without managed fields, which watchers in this process have no use for.
    object: Arc<dyn Object>,
    /// For the next writer; there is seldom more than one of the same version.
    managed: Arc<Mutex<Managed>>,
}

#[derive(Debug)]
enum Managed {
    There(Option<Vec<ManagedFieldsEntry>>),
    Taken,
}

/// The object as it is read when it has been stored. None where it may be read differently, and for kinds of which there
/// are not so many writes that it would matter.
#[must_use]
pub fn as_read(object: &mut dyn Object) -> Option<Fresh> {
    let pod = downcast_mut::<Pod>(object)?;
    // Stored are whole seconds.
    if times(pod).any(|t| t.0.subsec_nanosecond() != 0) {
        return None;
    }
    let managed = pod.metadata.managed_fields.take();
    let mut copy = pod.clone();
    pod.metadata.managed_fields = managed;
    // As decoding does, for what admission has filled in.
    copy.spec.as_mut().map_or(Ok(()), canonicalize_pod_spec).ok()?;
    let managed = Managed::There(pod.metadata.managed_fields.clone());
    Some(Fresh { object: Arc::new(copy), managed: Arc::new(Mutex::new(managed)) })
}

impl Fresh {
    /// The same, written with this version. None where somebody has it already.
    pub(super) fn at(mut self, version: u64) -> Option<Self> {
        Arc::get_mut(&mut self.object)?.meta_mut().resource_version = Some(version.to_string());
        Some(self)
    }

    /// The object without managed fields.
    pub(super) fn slim(&self) -> Arc<dyn Object> {
        self.object.clone()
    }

    /// All of the object, for the first who asks: copying managed fields takes as long as copying a pod.
    fn whole(&self) -> Option<Box<dyn Object>> {
        let Managed::There(managed) = std::mem::replace(&mut *self.managed.lock(), Managed::Taken) else {
            return None;
        };
        let mut object = self.object.boxed_clone();
        object.meta_mut().managed_fields = managed;
        Some(object)
    }
}

/// Whether an object is what its stored text says.
pub(crate) fn is_read_from(object: &dyn Object, json: &[u8]) -> bool {
    downcast::<Pod>(object).is_some_and(|pod| {
        Pod::from_json(json).is_ok_and(|mut read| {
            read.metadata.resource_version.clone_from(&pod.metadata.resource_version);
            read == *pod
        })
    })
}

/// Where a watch of this process leaves the object of the event that it sent last.
#[derive(Debug, Default)]
pub struct Handover(Mutex<Option<(Bytes, Arc<dyn Object>)>>);

impl Handover {
    /// Leaves an object beside the frame that tells of it.
    fn leave(&self, frame: &Bytes, object: Arc<dyn Object>) {
        *self.0.lock() = Some((frame.clone(), object));
    }

    /// The object that `frame` tells of, where that very memory was sent last.
    #[must_use]
    pub fn take(&self, frame: &[u8]) -> Option<Arc<dyn Object>> {
        // The frame was kept, so that no other can be where it is.
        self.0.lock().take().filter(|(sent, _)| sent.as_ptr() == frame.as_ptr()).map(|(_, object)| object)
    }
}

/// A watch that hands objects over; while there is one, writers keep them for it.
pub(crate) struct Receiver {
    cache: Arc<WatchCache>,
    handover: Arc<Handover>,
}

impl Receiver {
    /// A watch of `cache`.
    pub(crate) fn new(cache: Arc<WatchCache>) -> Self {
        cache.receivers.fetch_add(1, Ordering::Relaxed);
        Self { cache, handover: Arc::default() }
    }

    /// Where it leaves them.
    pub(crate) fn handover(&self) -> Arc<Handover> {
        self.handover.clone()
    }

    /// The frame of an event, with the object it tells of left for whoever gets it; None where there is none to leave.
    pub(crate) fn send(&self, event: &Event, shown: Shown) -> Option<Bytes> {
        let fresh = event.fresh().filter(|_| shown != Shown::Deleted)?;
        let frame = event.frame(shown);
        self.handover.leave(&frame, fresh.slim());
        Some(frame)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.cache.receivers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl WatchCache {
    /// Whether somebody takes objects as they were written.
    #[must_use]
    pub fn is_received(&self) -> bool {
        self.receivers.load(Ordering::Relaxed) > 0
    }

    /// The object at a path as it was written with a version, where that was one of the last writes and nobody has been
    /// given it yet.
    #[must_use]
    pub fn fresh(&self, path: &str, version: u64) -> Option<Box<dyn Object>> {
        if !self.is_received() {
            return None;
        }
        let state = self.state.read();
        let first = state.ring.partition_point(|event| event.revision() < version);
        let mut of_version = state.ring.range(first..).take_while(|event| event.revision() == version);
        let fresh = of_version.find(|event| event.entry.path() == path)?.fresh();
        drop(state);
        fresh?.whole()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use serde_json::{Value, json};

    fn written() -> Value {
        const AT: &str = "2026-01-02T03:04:05Z";
        let state = json!({ "running": { "startedAt": AT }, "terminated": {
            "exitCode": 1, "startedAt": AT, "finishedAt": AT,
        } });
        let container = json!([{
            "name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state, "lastState": state,
        }]);
        json!({
            "metadata": {
                "name": "p", "namespace": "n", "labels": { "a": "b" }, "annotations": {}, "ownerReferences": [],
                "creationTimestamp": AT, "deletionTimestamp": AT,
                "managedFields": [{ "manager": "m", "time": AT, "fieldsV1": { "f:metadata": {} } }],
            },
            "spec": {
                "containers": [{ "name": "c", "command": [], "resources": { "limits": { "cpu": "0.5" } } }],
                "tolerations": [{ "key": "k", "tolerationSeconds": 3 }], "nodeSelector": {}, "nodeName": "",
            },
            "status": {
                "startTime": AT, "phase": "",
                "conditions": [{ "type": "T", "status": "True", "lastProbeTime": AT, "lastTransitionTime": AT }],
                "containerStatuses": container, "initContainerStatuses": container, "ephemeralContainerStatuses": container,
                "volumeHealth": [{ "name": "v", "lastTransitionTime": AT }],
            },
        })
    }

    /// As [`as_read`], and what reading the text gives.
    fn both(mut pod: Pod) -> (Option<Pod>, Pod) {
        let before = pod.clone();
        let fresh = as_read(&mut pod);
        assert_eq!(pod, before);
        assert!(fresh.iter().all(|fresh| fresh.slim().meta().managed_fields.is_none()));
        let given = fresh.map(|fresh| {
            let given = downcast::<Pod>(fresh.whole().unwrap().as_ref()).unwrap().clone();
            assert!(fresh.whole().is_none(), "given once");
            given
        });
        (given, Pod::from_json(&Kind::to_json(&pod)).unwrap())
    }

    #[test]
    fn a_pod_is_handed_over_as_it_is_read() {
        let mut pod = Pod::from_value(written()).unwrap();
        // Admission may fill in what no decoding has looked at.
        let limits = pod.spec.as_mut().unwrap().containers[0].resources.as_mut().unwrap().limits.as_mut().unwrap();
        limits.insert("memory".into(), Quantity("1024Ki".into()));
        let (given, read) = both(pod.clone());
        assert_eq!(given, Some(read));
        pod.set_defaults();
        let (given, read) = both(pod);
        assert_eq!(given, Some(read));
    }

    #[test]
    fn what_would_be_read_differently_is_not_handed_over() {
        let text = written().to_string();
        let at = "03:04:05Z";
        let places: Vec<usize> = text.match_indices(at).map(|(place, _)| place).collect();
        assert_eq!(places.len(), 25);
        for place in places {
            let finer = format!("{}03:04:05.5Z{}", &text[..place], &text[place + at.len()..]);
            let (given, read) = both(Pod::from_json(finer.as_bytes()).unwrap());
            assert_eq!(given, None, "{finer}");
            assert_eq!(read, both(Pod::from_json(text.as_bytes()).unwrap()).1);
        }
        let mut other = gantry_api::k8s_openapi::api::core::v1::ConfigMap::default();
        assert!(as_read(&mut other).is_none());
    }

    #[test]
    fn only_the_last_frame_has_its_object() {
        let object: Arc<dyn Object> = Arc::new(Pod::default());
        let (first, second) = (Bytes::copy_from_slice(b"frame"), Bytes::copy_from_slice(b"frame"));
        let handover = Handover::default();
        handover.leave(&first, object.clone());
        assert!(handover.take(&second).is_none() && handover.take(&first).is_none(), "another came");
        handover.leave(&first, object.clone());
        assert!(handover.take(&first).is_some_and(|found| Arc::ptr_eq(&found, &object)));
        assert!(handover.take(&first).is_none());
    }
}
