//! Probes: what is asked of a container, and the tasks that ask.

pub(crate) mod grpc;
pub(crate) mod http;
mod prober;

pub(crate) use prober::{Probers, Subject};

use gantry_container::runtime::Runtime;
use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpStream;

/// The port that a number or the name of a container port means.
pub(crate) fn port(value: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match value {
        IntOrString::Int(n) => i64::from(*n),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
            match named {
                Some(p) => i64::from(p.container_port),
                None => name
                    .parse()
                    .map_err(|_| format!("couldn't find port: {name:?} in container {:?}", container.name))?,
            }
        }
    };
    u16::try_from(number).ok().filter(|p| *p > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

/// How a probe came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It passed.
    Success,
    /// It passed, with something to say about it.
    Warning(String),
    /// It failed; what was seen.
    Failure(String),
    /// It could not be carried out; counts neither way.
    Error(String),
}

/// Carries out a probe once.
pub(crate) async fn ask(
    probe: &Probe,
    container: &Container,
    id: &str,
    address: IpAddr,
    runtime: &dyn Runtime,
) -> Verdict {
    let timeout = Duration::from_secs(u64::try_from(probe.timeout_seconds.unwrap_or(1)).unwrap_or(1).max(1));
    if let Some(exec) = &probe.exec {
        let command = exec.command.clone().unwrap_or_default();
        return match runtime.exec_sync(id, command.clone(), Some(timeout)).await {
            Ok(out) if out.exit_code == 0 => Verdict::Success,
            Ok(out) => {
                let mut text = String::from_utf8_lossy(&out.stdout).into_owned();
                text.push_str(&String::from_utf8_lossy(&out.stderr));
                text.truncate(text.floor_char_boundary(10 * 1024));
                Verdict::Failure(text)
            }
            Err(gantry_container::Error::Timeout { .. }) => Verdict::Failure(format!(
                "command timed out: {:?} timed out after {}",
                command.join(" "),
                crate::pod::backoff::go_duration(timeout)
            )),
            Err(error) => Verdict::Error(format!("rpc error: command error: {error}")),
        };
    }
    if let Some(action) = &probe.http_get {
        let number = match port(&action.port, container) {
            Ok(n) => n,
            Err(e) => return Verdict::Error(e),
        };
        let target = http::Target::new(action, &address.to_string(), number);
        return match http::get(&target, timeout).await {
            Ok(answer) if (200..300).contains(&answer.status) => Verdict::Success,
            Ok(answer) if (300..400).contains(&answer.status) => {
                Verdict::Warning(format!("Probe terminated redirects, Response body: {}", answer.body))
            }
            Ok(answer) => Verdict::Failure(format!("HTTP probe failed with statuscode: {}", answer.status)),
            Err(error) => Verdict::Failure(error),
        };
    }
    if let Some(action) = &probe.tcp_socket {
        let number = match port(&action.port, container) {
            Ok(n) => n,
            Err(e) => return Verdict::Error(e),
        };
        let host = action.host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| address.to_string());
        let authority = if host.contains(':') { format!("[{host}]:{number}") } else { format!("{host}:{number}") };
        return match tokio::time::timeout(timeout, TcpStream::connect((host.as_str(), number))).await {
            Ok(Ok(_)) => Verdict::Success,
            Ok(Err(error)) => Verdict::Failure(http::dial_error(&authority, &error)),
            Err(_) => Verdict::Failure(format!("dial tcp {authority}: i/o timeout")),
        };
    }
    if let Some(action) = &probe.grpc {
        let Ok(number) = u16::try_from(action.port) else {
            return Verdict::Error(format!("invalid port number: {}", action.port));
        };
        let service = action.service.as_deref().unwrap_or_default();
        return match grpc::check(SocketAddr::new(address, number), service, timeout).await {
            Ok(()) => Verdict::Success,
            Err(error) => Verdict::Failure(error),
        };
    }
    Verdict::Error("missing probe handler".into())
}
