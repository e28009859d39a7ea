use super::*;
use crate::spdy::Headers;
use futures::{SinkExt, StreamExt};
use tokio::io::AsyncReadExt;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role as WsRole;

/// Port 80 answers with what it got in upper case; others refuse.
struct Shout;

#[async_trait]
impl Dialer for Shout {
    async fn forward(&self, port: u16, mut from: BoxRead, mut to: BoxWrite) -> Result<(), String> {
        if port != 80 {
            return Err(format!("nothing listens on {port}"));
        }
        let mut buffer = [0; 1024];
        loop {
            let n = from.read(&mut buffer).await.map_err(|e| e.to_string())?;
            if n == 0 {
                break;
            }
            to.write_all(&buffer[..n].to_ascii_uppercase()).await.map_err(|e| e.to_string())?;
        }
        to.shutdown().await.map_err(|e| e.to_string())
    }
}

fn spdy() -> Upgrade {
    Upgrade { agreement: Agreement { carrier: Carrier::Spdy, protocol: V1.into() }, ports: Vec::new() }
}

async fn open(client: &mut Connection, kind: &str, port: &str, request: Option<&str>) -> Stream {
    let mut headers = vec![("streamType".to_owned(), kind.to_owned()), ("port".into(), port.into())];
    headers.extend(request.map(|r| ("requestID".to_owned(), r.to_owned())));
    client.open(Headers(headers)).await.unwrap()
}

async fn all(mut reader: BoxRead) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).await.unwrap();
    text
}

async fn exercise(mut client: Connection) {
    // Two requests interleaved, one of them without an id.
    let error0 = open(&mut client, "error", "80", Some("a")).await;
    let error1 = open(&mut client, "error", "81", None).await;
    let data1 = open(&mut client, "data", "81", None).await;
    let mut data0 = open(&mut client, "data", "80", Some("a")).await;
    assert_eq!(all(error1.reader).await, "nothing listens on 81");
    drop(data1);
    data0.writer.write_all(b"hello").await.unwrap();
    data0.writer.shutdown().await.unwrap();
    assert_eq!(all(data0.reader).await, "HELLO");
    assert_eq!(all(error0.reader).await, "");
    client.close().await;
}

#[tokio::test]
async fn spdy_pairs_are_forwarded_or_refused_each_on_its_own() {
    let (a, b) = tokio::io::duplex(8192);
    let server = tokio::spawn(spdy().serve(a, Arc::new(Shout)));
    exercise(Connection::start(b, Role::Client).unwrap()).await;
    server.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_same_through_a_websocket_tunnel() {
    let (a, b) = tokio::io::duplex(8192);
    let request = http::Request::get("/portForward")
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("Sec-WebSocket-Protocol", "SPDY/3.1+portforward.k8s.io")
        .body(())
        .unwrap();
    let upgrade = negotiate(&request.into_parts().0, Vec::new()).unwrap();
    assert_eq!(upgrade.response().headers()["sec-websocket-protocol"], "SPDY/3.1+portforward.k8s.io");
    let server = tokio::spawn(upgrade.serve(a, Arc::new(Shout)));
    let (mut sink, mut source) = WebSocketStream::from_raw_socket(b, WsRole::Client, None).await.split();
    let (inner, outer) = tokio::io::duplex(8192);
    let (mut read, mut write) = tokio::io::split(outer);
    tokio::spawn(async move {
        while let Some(Ok(Message::Binary(data))) = source.next().await {
            write.write_all(&data).await.unwrap();
        }
        write.shutdown().await.unwrap();
    });
    tokio::spawn(async move {
        let mut buffer = [0; 100];
        while let Ok(n @ 1..) = read.read(&mut buffer).await {
            sink.send(Message::binary(buffer[..n].to_vec())).await.unwrap();
        }
        sink.close().await.unwrap();
    });
    exercise(Connection::start(inner, Role::Client).unwrap()).await;
    server.await.unwrap().unwrap();
}

#[tokio::test]
async fn websocket_channels_begin_with_their_port() {
    let (a, b) = tokio::io::duplex(8192);
    let carrier = Carrier::WebSocket { accept: String::new(), encoding: Encoding::Binary };
    let upgrade = Upgrade { agreement: Agreement { carrier, protocol: String::new() }, ports: vec![80, 81] };
    let server = tokio::spawn(upgrade.serve(a, Arc::new(Shout)));
    let mut client = WebSocketStream::from_raw_socket(b, WsRole::Client, None).await;
    for (channel, port) in [(0, 80), (1, 80), (2, 81), (3, 81)] {
        assert_eq!(client.next().await.unwrap().unwrap(), Message::binary(vec![channel, port, 0]));
    }
    // The refusal waits for nothing from the client.
    assert_eq!(client.next().await.unwrap().unwrap(), Message::binary(b"\x03nothing listens on 81".to_vec()));
    client.send(Message::binary(b"\0hi".to_vec())).await.unwrap();
    let mut got = Vec::new();
    while got.len() < 2 {
        let Message::Binary(data) = client.next().await.unwrap().unwrap() else { panic!("closed") };
        assert_eq!(data[0], 0);
        got.extend_from_slice(&data[1..]);
    }
    assert_eq!(got, b"HI");
    client.close(None).await.unwrap();
    while client.next().await.is_some() {}
    server.await.unwrap().unwrap();
}

#[tokio::test]
async fn streams_without_a_valid_port_or_type_are_reset() {
    let (a, b) = tokio::io::duplex(8192);
    let server = tokio::spawn(spdy().serve(a, Arc::new(Shout)));
    let mut client = Connection::start(b, Role::Client).unwrap();
    for (kind, port) in [("data", "0"), ("data", "http"), ("data", "70000"), ("video", "80"), ("", "80")] {
        let mut stream = open(&mut client, kind, port, None).await;
        assert_eq!(stream.reader.read(&mut [0; 1]).await.unwrap(), 0, "{kind} {port}");
        assert!(stream.writer.write_all(b"x").await.is_err(), "{kind} {port} was not reset");
    }
    client.close().await;
    server.await.unwrap().unwrap();
}
