//! `/containerLogs/{namespace}/{pod}/{container}`.

use super::request::Query;
use super::{Body, Failure, Server};
use crate::logs::{self, Options};
use crate::pod::names;
use crate::pod::plan::{Observed, recorded_status};
use bytes::Bytes;
use futures::StreamExt;
use gantry_container::runtime::{ContainerFilter, ContainerState, ContainerStatus, RuntimeEvent};
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::io;
use std::sync::Arc;
use tokio::sync::{broadcast, mpsc};

fn bad(message: impl Into<String>) -> Failure {
    Failure::new(StatusCode::BAD_REQUEST, message)
}

/// Reads the query as `PodLogOptions`.
pub(crate) fn options(query: &Query, now: Timestamp) -> Result<Options, Failure> {
    let number = |name: &str, least: i64| match query.get(name) {
        None => Ok(None),
        Some(text) => match text.parse::<i64>() {
            Ok(n) if n >= least => Ok(Some(n)),
            _ => Err(bad(format!("invalid {name}: {text:?}: must be greater than or equal to {least}"))),
        },
    };
    let mut since = match query.get("sinceTime") {
        None => None,
        Some(text) => Some(text.parse::<Timestamp>().map_err(|e| bad(format!("invalid sinceTime {text:?}: {e}")))?),
    };
    if let Some(seconds) = number("sinceSeconds", 1)? {
        if since.is_some() {
            return Err(bad("at most one of `sinceTime` or `sinceSeconds` may be specified"));
        }
        since = now.saturating_sub(SignedDuration::from_secs(seconds)).ok();
    }
    let stream = match query.get("stream") {
        None | Some("All") => None,
        Some("Stdout") => Some("stdout"),
        Some("Stderr") => Some("stderr"),
        Some(other) => return Err(bad(format!("invalid stream {other:?}"))),
    };
    Ok(Options {
        tail: number("tailLines", 0)?.and_then(|n| usize::try_from(n).ok()),
        since,
        timestamps: query.flag("timestamps"),
        follow: query.flag("follow"),
        limit: number("limitBytes", 1)?.and_then(|n| usize::try_from(n).ok()),
        stream,
    })
}

/// All containers of a pod.
pub(crate) async fn observe(server: &Server, pod: &Pod) -> Result<Observed, Failure> {
    let all = server
        .agent
        .runtime
        .list_containers(ContainerFilter::default())
        .await
        .map_err(|e| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    let uid = names::uid(pod);
    Ok(Observed::new(all.into_iter().filter(|c| c.labels.get(names::POD_UID).is_some_and(|u| u == uid)).collect()))
}

fn waiting(pod: &Pod, container: &str) -> String {
    let state = recorded_status(pod, container).and_then(|s| s.state.as_ref()).and_then(|s| s.waiting.as_ref());
    let reason = state.and_then(|w| w.reason.clone()).unwrap_or_else(|| "ContainerCreating".into());
    let pod_name = names::name(pod);
    match reason.as_str() {
        "ErrImagePull" | "ImagePullBackOff" => {
            format!("container {container:?} in pod {pod_name:?} is waiting to start: trying and failing to pull image")
        }
        "ErrImageNeverPull" => {
            format!("container {container:?} in pod {pod_name:?} is waiting to start: image can't be pulled")
        }
        other => format!("container {container:?} in pod {pod_name:?} is waiting to start: {other}"),
    }
}

fn choose(pod: &Pod, container: &str, observed: &Observed, previous: bool) -> Result<ContainerStatus, Failure> {
    if previous {
        let missing =
            || bad(format!("previous terminated container {container:?} in pod {:?} not found", names::name(pod)));
        let latest = observed.latest(container).ok_or_else(missing)?;
        // While the next attempt waits, the last one that ended is the "last state" already.
        let crashed =
            recorded_status(pod, container).and_then(|s| s.state.as_ref()).is_some_and(|s| s.waiting.is_some())
                && latest.state == ContainerState::Exited;
        return match crashed {
            true => Ok(latest.clone()),
            false => observed.previous(container).cloned().ok_or_else(missing),
        };
    }
    match observed.latest(container) {
        Some(c) if c.state != ContainerState::Created => Ok(c.clone()),
        _ => Err(bad(waiting(pod, container))),
    }
}

/// Resolves when a container has ended.
async fn ended(server: Arc<Server>, id: String) {
    // Subscribed before the first look, so that no exit is missed.
    let mut events = server.agent.runtime.events();
    loop {
        match server.agent.runtime.container_status(&id).await {
            Ok(c) if c.state == ContainerState::Running => {}
            _ => return,
        }
        loop {
            match events.recv().await {
                Ok(RuntimeEvent::ContainerExited { container_id, .. }) if container_id == id => return,
                Ok(RuntimeEvent::SandboxExited { .. }) | Err(broadcast::error::RecvError::Lagged(_)) => break,
                Ok(_) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }
}

/// The pod of a request; for a mirror pod the static pod it shows.
pub(crate) fn find_pod(server: &Server, namespace: &str, name: &str) -> Result<Arc<Pod>, Failure> {
    let named = |p: &Arc<Pod>| names::namespace(p) == namespace && names::name(p) == name;
    let found = match server.pods.get(namespace, name) {
        Some(mirror) if names::is_mirror(&mirror) => server.manager.static_pods().into_iter().find(named),
        found => found,
    };
    found.ok_or_else(|| Failure::new(StatusCode::NOT_FOUND, format!("pod {name:?} not found")))
}

pub(crate) async fn serve(
    server: &Arc<Server>,
    namespace: &str,
    name: &str,
    container: &str,
    query: &Query,
) -> Result<Response<Body>, Failure> {
    let options = options(query, server.agent.clock.now())?;
    let pod = find_pod(server, namespace, name)?;
    if pod.spec.as_ref().and_then(|s| names::container(s, container)).is_none() {
        let message = format!("container {container:?} not found in pod {name:?}");
        return Err(Failure::new(StatusCode::NOT_FOUND, message));
    }
    let observed = observe(server, &pod).await?;
    let chosen = choose(&pod, container, &observed, query.flag("previous"))?;
    let path = chosen.log_path.clone().ok_or_else(|| bad("the container has no log"))?;
    // The file exists as soon as the container has written; before that the log is empty.
    if !tokio::fs::try_exists(&path).await.unwrap_or(false)
        && let Some(parent) = path.parent()
        && !parent.exists()
    {
        return Err(bad(format!("failed to try resolving symlinks in path {:?}: no such file or directory", path)));
    }
    let (out, parts) = mpsc::channel::<Bytes>(16);
    let done = ended(server.clone(), chosen.id.clone());
    tokio::spawn(async move {
        if let Err(error) = logs::stream(path.clone(), options, out, done).await {
            tracing::debug!(path = %path.display(), %error, "reading a log ended early");
        }
    });
    let frames = tokio_stream_of(parts).map(|bytes| Ok::<_, io::Error>(Frame::data(bytes)));
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
    Ok(response)
}

fn tokio_stream_of(parts: mpsc::Receiver<Bytes>) -> impl futures::Stream<Item = Bytes> + Send + Sync {
    futures::stream::unfold(parts, |mut parts| async move { parts.recv().await.map(|b| (b, parts)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_checked() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let of = |text: &str| options(&Query::parse(text), now);
        let o = of("follow=true&tailLines=5&sinceSeconds=60&limitBytes=10&timestamps=true&stream=Stderr").unwrap();
        assert_eq!(
            o,
            Options {
                tail: Some(5),
                since: "2026-01-01T00:00:00Z".parse().ok(),
                timestamps: true,
                follow: true,
                limit: Some(10),
                stream: Some("stderr")
            }
        );
        for wrong in [
            "tailLines=-1",
            "tailLines=x",
            "limitBytes=0",
            "sinceSeconds=0",
            "sinceTime=yesterday",
            "sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z",
            "stream=Both",
        ] {
            assert_eq!(of(wrong).unwrap_err().status, StatusCode::BAD_REQUEST, "{wrong}");
        }
    }
}
