//! The standard gRPC health check (`grpc.health.v1.Health/Check`).

use crate::pod::backoff::go_duration;
use gantry_grpc::{Channel, Code, Target};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::Instant;

/// First and longest wait before connecting again, as gRPC's specification of backoff has it; a probe is too short
/// for the noise that it adds.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(120));

const STATUSES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct Request {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`; what is not said is `UNKNOWN` (0).
#[derive(Clone, PartialEq, prost::Message)]
struct Response {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Connects, over and over where that fails, as gRPC's clients do: only the caller's patience ends it.
async fn connect(channel: &Channel) {
    let (mut wait, longest) = RETRY;
    while channel.connect().await.is_err() {
        tokio::time::sleep(wait).await;
        wait = wait.mul_f64(1.6).min(longest);
    }
}

/// Whether the service is healthy; the error is the sentence for the event.
pub(crate) async fn check(address: SocketAddr, service: &str, timeout: Duration) -> Result<(), String> {
    let deadline = Instant::now() + timeout;
    let (shown, within) = (address.to_string(), go_duration(timeout));
    let channel = Channel::new(Target::Tcp(address)).user_agent("kube-probe/1.37");
    if tokio::time::timeout_at(deadline, connect(&channel)).await.is_err() {
        return Err(format!("timeout: failed to connect service {shown:?} within {within}: context deadline exceeded"));
    }
    let late = || Err(format!("timeout: health rpc did not complete within {within}"));
    let request = Request { service: service.to_owned() };
    // The limit around it comes first.
    let asked = channel.unary::<_, Response>("/grpc.health.v1.Health/Check", &request, timeout.saturating_mul(2));
    match tokio::time::timeout_at(deadline, asked).await {
        Ok(Ok(Response { status: 1 })) => Ok(()),
        Ok(Ok(Response { status })) => {
            let name = usize::try_from(status).ok().and_then(|i| STATUSES.get(i)).map(|s| (*s).to_owned());
            Err(format!("service unhealthy (responded with {:?})", name.unwrap_or_else(|| status.to_string())))
        }
        Ok(Err(status)) if status.code == Code::UNIMPLEMENTED => {
            let what = "this server does not implement the grpc health protocol (grpc.health.v1.Health)";
            Err(format!("error: {what}: {}", status.message))
        }
        Ok(Err(status)) if status.code == Code::DEADLINE_EXCEEDED => late(),
        Ok(Err(status)) => Err(format!("error: health rpc probe failed: {status}")),
        Err(_) => late(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn refused_connections_and_silent_servers_fail() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let slow = check(address, "", Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(slow, "timeout: health rpc did not complete within 50ms");
        // Taken, so that nobody else listens there, and not listened at.
        let taken = tokio::net::TcpSocket::new_v4().unwrap();
        taken.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let nobody = taken.local_addr().unwrap();
        let refused = check(nobody, "", Duration::from_millis(50)).await.unwrap_err();
        let why = "within 50ms: context deadline exceeded";
        assert_eq!(refused, format!("timeout: failed to connect service \"{nobody}\" {why}"));
    }
}
