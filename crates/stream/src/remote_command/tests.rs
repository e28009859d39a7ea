use super::*;
use crate::process::Control;
use crate::spdy::Headers;
use async_trait::async_trait;
use futures::{SinkExt, StreamExt};
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role as WsRole;

/// A process that copies stdin to stdout, writes `err` to stderr and exits with 3 at the end of its stdin.
struct Echo {
    ended: Mutex<Option<tokio::task::JoinHandle<()>>>,
    sizes: mpsc::UnboundedSender<TerminalSize>,
}

#[async_trait]
impl Control for Echo {
    async fn resize(&self, size: TerminalSize) {
        self.sizes.send(size).unwrap();
    }
    async fn wait(&self) -> Result<i32, String> {
        let task = self.ended.lock().await.take().unwrap();
        task.await.unwrap();
        Ok(3)
    }
}

fn echo() -> (Process, mpsc::UnboundedReceiver<TerminalSize>) {
    let (stdin, mut from) = tokio::io::duplex(1024);
    let (mut to, stdout) = tokio::io::duplex(1024);
    let (mut err, stderr) = tokio::io::duplex(1024);
    let task = tokio::spawn(async move {
        tokio::io::copy(&mut from, &mut to).await.unwrap();
        err.write_all(b"err").await.unwrap();
    });
    let (sizes, reported) = mpsc::unbounded_channel();
    let control = Arc::new(Echo { ended: Mutex::new(Some(task)), sizes });
    let process = Process {
        stdin: Some(Box::new(stdin)),
        stdout: Some(Box::new(stdout)),
        stderr: Some(Box::new(stderr)),
        control,
    };
    (process, reported)
}

const ALL: Streams = Streams { stdin: true, stdout: true, stderr: true, tty: false };

fn spdy_upgrade(protocol: &str, streams: Streams) -> Upgrade {
    let request = http::Request::post("/exec")
        .header("Connection", "Upgrade")
        .header("Upgrade", "SPDY/3.1")
        .header("X-Stream-Protocol-Version", protocol)
        .body(())
        .unwrap();
    negotiate(&request.into_parts().0, streams).unwrap()
}

fn websocket_upgrade(protocol: &str, streams: Streams) -> Upgrade {
    let request = http::Request::get("/exec")
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("Sec-WebSocket-Protocol", protocol)
        .body(())
        .unwrap();
    negotiate(&request.into_parts().0, streams).unwrap()
}

async fn open(client: &mut Connection, kind: &str) -> crate::spdy::Stream {
    client.open(Headers(vec![("streamType".into(), kind.into())])).await.unwrap()
}

async fn all(mut reader: BoxRead) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn spdy_runs_a_command_to_its_exit_code() {
    for (protocol, expected) in [
        (V4, r#"{"reason":"ExitCode","message":"3"}"#),
        (V2, "command terminated with non-zero exit code: exit code 3"),
    ] {
        let (a, b) = tokio::io::duplex(8192);
        let server = tokio::spawn(async move {
            let command = spdy_upgrade(protocol, ALL).accept(a).await.unwrap();
            command.run(echo().0).await;
        });
        let mut client = Connection::start(b, Role::Client).unwrap();
        let error = open(&mut client, "error").await;
        let mut stdin = open(&mut client, "stdin").await;
        let stdout = open(&mut client, "stdout").await;
        let stderr = open(&mut client, "stderr").await;
        stdin.writer.write_all(b"hello").await.unwrap();
        stdin.writer.shutdown().await.unwrap();
        assert_eq!(all(stdout.reader).await, "hello");
        assert_eq!(all(stderr.reader).await, "err");
        let status = all(error.reader).await;
        let sorted = |s: &str| serde_json::from_str::<serde_json::Value>(s).ok();
        match sorted(&status) {
            Some(json) => assert_eq!(json["details"]["causes"][0], sorted(expected).unwrap()),
            None => assert_eq!(status, expected),
        }
        client.close().await;
        server.await.unwrap();
    }
}

#[tokio::test]
async fn spdy_reports_terminal_sizes() {
    let (a, b) = tokio::io::duplex(8192);
    let (process, mut sizes) = echo();
    let streams = Streams { stdin: true, stdout: true, stderr: true, tty: true };
    let server = tokio::spawn(async move {
        let command = spdy_upgrade(V4, streams).accept(a).await.unwrap();
        assert!(command.stderr.is_none(), "a terminal has one output");
        command.run(process).await;
    });
    let mut client = Connection::start(b, Role::Client).unwrap();
    let _error = open(&mut client, "error").await;
    let mut stdin = open(&mut client, "stdin").await;
    let _stdout = open(&mut client, "stdout").await;
    let mut resize = open(&mut client, "resize").await;
    resize.writer.write_all(b"{\"Width\":80,\"Height\":24}\nnonsense}{\"Width\":100,\"Height\":30}\n").await.unwrap();
    assert_eq!(sizes.recv().await, Some(TerminalSize { width: 80, height: 24 }));
    assert_eq!(sizes.recv().await, Some(TerminalSize { width: 100, height: 30 }));
    stdin.writer.shutdown().await.unwrap();
    client.close().await;
    server.await.unwrap();
}

#[tokio::test]
async fn websocket_v5_closes_stdin_and_ends_with_status_and_1000() {
    let (a, b) = tokio::io::duplex(8192);
    let server = tokio::spawn(async move {
        let command = websocket_upgrade("v5.channel.k8s.io,v4.channel.k8s.io", ALL).accept(a).await.unwrap();
        command.run(echo().0).await;
    });
    let mut client = WebSocketStream::from_raw_socket(b, WsRole::Client, None).await;
    assert_eq!(client.next().await.unwrap().unwrap(), Message::binary(vec![1]), "the greeting");
    client.send(Message::binary(b"\0hello".to_vec())).await.unwrap();
    client.send(Message::binary(vec![255, 0])).await.unwrap();
    let (mut out, mut err, mut status, mut code) = (Vec::new(), Vec::new(), Vec::new(), None);
    while let Some(Ok(message)) = client.next().await {
        match message {
            Message::Binary(data) => match data[0] {
                1 => out.extend_from_slice(&data[1..]),
                2 => err.extend_from_slice(&data[1..]),
                3 => status.extend_from_slice(&data[1..]),
                other => panic!("channel {other}"),
            },
            Message::Close(frame) => code = frame.map(|f| u16::from(f.code)),
            _ => {}
        }
    }
    assert_eq!((out.as_slice(), err.as_slice(), code), (&b"hello"[..], &b"err"[..], Some(1000)));
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
    assert_eq!(status["reason"], "NonZeroExitCode");
    server.await.unwrap();
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_run() {
    let (a, b) = tokio::io::duplex(8192);
    let server = tokio::spawn(async move {
        let command = websocket_upgrade(V4, ALL).accept(a).await.unwrap();
        command.run(echo().0).await;
    });
    drop(b);
    server.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_opens_nothing_times_out() {
    let (a, _b) = tokio::io::duplex(8192);
    let result = spdy_upgrade(V4, ALL).accept(a).await;
    assert!(matches!(result, Err(StreamError::CreationTimeout)));
}

#[test]
fn no_stream_at_all_is_refused() {
    let rejection = Streams { stderr: true, tty: true, ..Streams::default() }.checked().unwrap_err();
    assert_eq!(rejection.message, "you must specify at least 1 of stdin, stdout, stderr");
}
