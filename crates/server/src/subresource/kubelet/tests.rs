//! Against a backend on loopback: what is streamed, what is tunnelled.

use super::KubeletClient;
use super::backend::{Endpoint, Security};
use super::tunnel::forwarded_request_headers;
use crate::admission::memory_objects::config;
use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A backend that answers one connection with `reply` to the first request and echoes what follows, in capitals.
async fn backend(reply: &'static str) -> (u16, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(reply.as_bytes()).await.unwrap();
        let mut buffer = [0; 64];
        while let Ok(n) = stream.read(&mut buffer).await {
            if n == 0 || stream.write_all(&buffer[..n].to_ascii_uppercase()).await.is_err() {
                break;
            }
        }
        String::from_utf8(head).unwrap()
    });
    (port, task)
}

fn to(port: u16) -> Endpoint {
    Endpoint { host: "127.0.0.1".into(), port, security: Security::Plain }
}

#[tokio::test]
async fn answers_are_streamed_without_hop_headers() {
    let reply = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nKeep-Alive: timeout=5\r\nX-Kept: yes\r\n\r\nhello";
    let (port, task) = backend(reply).await;
    let client = KubeletClient::new(config()).unwrap();
    let head = Request::get("/logs?follow=true").body(()).unwrap();
    let response = client.pass_on(&to(port), head, Bytes::new(), None).await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers().get("keep-alive")), (200, None));
    assert_eq!(response.headers()["x-kept"], "yes");
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
    drop(client);
    let head = task.await.unwrap();
    assert!(head.starts_with("GET /logs?follow=true HTTP/1.1\r\n"), "{head}");
}

#[tokio::test]
async fn upgrades_become_tunnels() {
    let reply = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n";
    let (port, task) = backend(reply).await;
    let client = Arc::new(KubeletClient::new(config()).unwrap());
    let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let front_port = front.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let (stream, _) = front.accept().await.unwrap();
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let client = client.clone();
            async move {
                let (mut parts, _) = request.into_parts();
                let mut head = Request::post("/exec/a/p/c?command=sh").body(()).unwrap();
                *head.headers_mut() = forwarded_request_headers(&parts.headers, true);
                let upgrade = parts.extensions.remove::<OnUpgrade>();
                client.pass_on(&to(port), head, Bytes::new(), upgrade).await
            }
        });
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        connection.with_upgrades().await.unwrap();
    });
    let mut user = TcpStream::connect(("127.0.0.1", front_port)).await.unwrap();
    let request = "POST /x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\nConnection: Upgrade\r\n\
        Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n";
    user.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(user.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap().to_lowercase();
    assert!(answer.starts_with("http/1.1 101") && answer.contains("upgrade: spdy/3.1"), "{answer}");
    user.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    user.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"PING");
    drop(user);
    server.await.unwrap();
    let head = task.await.unwrap().to_lowercase();
    assert!(head.starts_with("post /exec/a/p/c?command=sh "), "{head}");
    assert!(head.contains("upgrade: spdy/3.1") && head.contains("x-stream-protocol-version: v4.channel.k8s.io"));
    assert!(!head.contains("secret"));
}

#[tokio::test]
async fn an_unreachable_backend_is_named() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let client = KubeletClient::new(config()).unwrap();
    let head = Request::get("/").body(()).unwrap();
    let e = client.pass_on(&to(port), head, Bytes::new(), None).await.unwrap_err();
    assert_eq!(e, format!("dial tcp 127.0.0.1:{port}: connect: connection refused"));
}
