//! `/exec` and `/attach`.

use super::container_logs::{find_pod, observe};
use super::request::Query;
use super::{Body, Failure, Server, answer, full};
use async_trait::async_trait;
use gantry_container::runtime::{ContainerState, ContainerStatus, ExecConfig, Session, SessionControl};
use gantry_stream::Rejection;
use gantry_stream::process::{Control, Process, TerminalSize};
use gantry_stream::remote_command::{self, Streams, Upgrade};
use gantry_stream::status::Outcome;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use std::sync::Arc;

struct Adapter {
    control: Arc<dyn SessionControl>,
    tty: bool,
}

#[async_trait]
impl Control for Adapter {
    async fn resize(&self, size: TerminalSize) {
        if self.tty
            && let Err(error) = self.control.resize(size.width, size.height).await
        {
            tracing::debug!(%error, "cannot resize a terminal");
        }
    }
    async fn wait(&self) -> Result<i32, String> {
        self.control.wait().await.map_err(|e| e.to_string())
    }
}

fn process(session: Session, tty: bool) -> Process {
    Process {
        stdin: session.stdin,
        stdout: session.stdout,
        stderr: session.stderr,
        control: Arc::new(Adapter { control: session.control, tty }),
    }
}

pub(crate) fn rejected(rejection: &Rejection) -> Response<Body> {
    rejection.response().map(full)
}

/// The upgraded connection's `101`, and the work that follows on it.
pub(crate) fn switch<F>(
    request: Request<Incoming>,
    response: Response<()>,
    server: &Server,
    work: impl FnOnce(TokioIo<hyper::upgrade::Upgraded>) -> F + Send + 'static,
) -> Response<Body>
where
    F: Future<Output = ()> + Send,
{
    let shutdown = server.shutdown.clone();
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let all = async {
            match upgrade.await {
                Ok(upgraded) => work(TokioIo::new(upgraded)).await,
                Err(error) => tracing::debug!(%error, "the connection was not upgraded"),
            }
        };
        tokio::select! {
            () = all => {}
            () = shutdown.cancelled() => {}
        }
    });
    response.map(|()| full(""))
}

/// The running container, if there is one.
async fn running(
    server: &Server,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<Option<ContainerStatus>, Failure> {
    let pod = find_pod(server, namespace, pod)?;
    let observed = observe(server, &pod).await?;
    Ok(observed.latest(container).filter(|c| c.state == ContainerState::Running).cloned())
}

fn none_running(message: String) -> Failure {
    Failure::new(StatusCode::INTERNAL_SERVER_ERROR, message)
}

fn streams(query: &Query) -> Streams {
    Streams {
        stdin: query.flag("input") || query.flag("stdin"),
        stdout: query.flag("output") || query.flag("stdout"),
        stderr: query.flag("error") || query.flag("stderr"),
        tty: query.flag("tty"),
    }
}

enum Agreed {
    Upgrade(Box<(Upgrade, Request<Incoming>, Streams)>),
    Answer(Box<Response<Body>>),
}

fn agree(request: Request<Incoming>, wanted: Streams) -> Agreed {
    let (parts, body) = request.into_parts();
    let result = wanted.checked().and_then(|s| remote_command::negotiate(&parts, s).map(|u| (u, s)));
    match result {
        Ok((upgrade, streams)) => Agreed::Upgrade(Box::new((upgrade, Request::from_parts(parts, body), streams))),
        Err(rejection) => Agreed::Answer(Box::new(rejected(&rejection))),
    }
}

pub(crate) async fn exec(
    server: &Arc<Server>,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Response<Body>, Failure> {
    let command: Vec<String> = query.all("command").map(str::to_owned).collect();
    if command.is_empty() {
        return Ok(answer(
            StatusCode::BAD_REQUEST,
            "text/plain; charset=utf-8",
            "you must specify at least 1 command\n",
        ));
    }
    let target = running(server, namespace, pod, container).await?;
    let target = target.ok_or_else(|| none_running(format!("container not found ({container:?})")))?;
    let (upgrade, request, streams) = match agree(request, streams(query)) {
        Agreed::Upgrade(agreed) => *agreed,
        Agreed::Answer(a) => return Ok(*a),
    };
    let runtime = server.agent.runtime.clone();
    let response = upgrade.response();
    Ok(switch(request, response, server, move |io| async move {
        let remote = match upgrade.accept(io).await {
            Ok(remote) => remote,
            Err(error) => return tracing::debug!(%error, "exec was not set up"),
        };
        let config = ExecConfig {
            command,
            tty: streams.tty,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
        };
        match runtime.exec(&target.id, config).await {
            Ok(session) => remote.run(process(session, streams.tty)).await,
            Err(error) => {
                let message = format!("error executing command in container: {error}");
                remote.finish(Outcome::Failed(message)).await;
            }
        }
    }))
}

pub(crate) async fn attach(
    server: &Arc<Server>,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Response<Body>, Failure> {
    let target = running(server, namespace, pod, container).await?;
    let missing = || none_running(format!("container {container} not found in pod {pod}_{namespace}"));
    let target = target.ok_or_else(missing)?;
    // The container's own terminal counts, not what the client thinks it has.
    let wanted = Streams { tty: target.tty, ..streams(query) };
    let (upgrade, request, streams) = match agree(request, wanted) {
        Agreed::Upgrade(agreed) => *agreed,
        Agreed::Answer(a) => return Ok(*a),
    };
    let runtime = server.agent.runtime.clone();
    let response = upgrade.response();
    Ok(switch(request, response, server, move |io| async move {
        let remote = match upgrade.accept(io).await {
            Ok(remote) => remote,
            Err(error) => return tracing::debug!(%error, "attach was not set up"),
        };
        match runtime.attach(&target.id, streams.stdin, streams.stdout, streams.stderr).await {
            Ok(session) => {
                // How the container ends is its own business: an attach that was carried out succeeded.
                let mut attached = process(session, streams.tty);
                attached.control = Arc::new(EndOnly(attached.control));
                remote.run(attached).await;
            }
            Err(error) => {
                let message = format!("error attaching to container: {error}");
                remote.finish(Outcome::Failed(message)).await;
            }
        }
    }))
}

struct EndOnly(Arc<dyn Control>);

#[async_trait]
impl Control for EndOnly {
    async fn resize(&self, size: TerminalSize) {
        self.0.resize(size).await;
    }
    async fn wait(&self) -> Result<i32, String> {
        self.0.wait().await.map(|_| 0)
    }
}
