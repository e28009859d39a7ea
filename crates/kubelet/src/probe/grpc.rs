//! The standard gRPC health check (`grpc.health.v1.Health/Check`).

use super::http::dial_error;
use gantry_grpc::{Channel, Code, Target};
use std::net::SocketAddr;
use std::time::Duration;

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

async fn ask(address: SocketAddr, service: &str, timeout: Duration) -> Result<i32, String> {
    let channel = Channel::new(Target::Tcp(address)).user_agent("kube-probe/1.37");
    channel.connect().await.map_err(|e| {
        format!("error: failed to connect service {:?}: {}", address.to_string(), dial_error(&address.to_string(), &e))
    })?;
    let request = Request { service: service.to_owned() };
    // The caller's limit, which includes the connection, comes first.
    let limit = timeout.saturating_mul(2);
    match channel.unary::<_, Response>("/grpc.health.v1.Health/Check", &request, limit).await {
        Ok(response) => Ok(response.status),
        Err(status) if status.code == Code::UNIMPLEMENTED => {
            Err("error: this server does not implement the grpc health protocol (grpc.health.v1.Health)".into())
        }
        Err(status) => Err(format!("error: health rpc failed: {status}")),
    }
}

/// Whether the service is healthy; the error is the sentence for the event.
pub(crate) async fn check(address: SocketAddr, service: &str, timeout: Duration) -> Result<(), String> {
    match tokio::time::timeout(timeout, ask(address, service, timeout)).await {
        Ok(Ok(1)) => Ok(()),
        Ok(Ok(other)) => {
            let name = usize::try_from(other).ok().and_then(|i| STATUSES.get(i)).copied().unwrap_or("UNKNOWN");
            Err(format!("service unhealthy (responded with {name:?})"))
        }
        Ok(Err(error)) => Err(error),
        Err(_) => {
            Err(format!("timeout: health rpc did not complete within {}", crate::pod::backoff::go_duration(timeout)))
        }
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
        let refused = check(taken.local_addr().unwrap(), "", Duration::from_secs(5)).await.unwrap_err();
        assert!(refused.contains("connection refused"), "{refused}");
    }
}
