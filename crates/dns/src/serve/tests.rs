//! Over real sockets on loopback, with a resolver of the tests' own in the host's place.

use std::net::IpAddr;

use hickory_proto::{
    op::Edns,
    rr::{RData, Record},
};
use k8s_openapi::api::core::v1::Service;
use serde_json::json;

use super::*;

fn service(spec: serde_json::Value) -> Service {
    serde_json::from_value(json!({"metadata": {}, "spec": spec})).expect("service")
}

fn zone() -> Zone {
    let mut zone = Zone::new("cluster.local").expect("zone");
    zone.set_namespace("ns", true);
    zone.set_service("ns/web", Some(&service(json!({"clusterIP": "10.96.0.7"}))), &[]);
    let external = |target: &str| service(json!({"type": "ExternalName", "externalName": target}));
    zone.set_service("ns/out", Some(&external("www.example.com")), &[]);
    zone.set_service("ns/in", Some(&external("web.ns.svc.cluster.local")), &[]);
    zone.set_service("ns/round", Some(&external("round.ns.svc.cluster.local")), &[]);
    let endpoints: Vec<_> = (0..200).map(|n| json!({"addresses": [format!("10.244.1.{n}")]})).collect();
    let slice = serde_json::from_value(json!({"metadata": {}, "addressType": "IPv4", "endpoints": endpoints}));
    zone.set_service("ns/many", Some(&service(json!({"clusterIP": "None"}))), &[&slice.expect("slice")]);
    zone
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.id = 4711;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("name"), kind));
    message
}

async fn ask_udp(server: SocketAddr, question: &Message) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    socket.send_to(&question.to_vec().expect("bytes"), server).await.expect("send");
    let mut buffer = vec![0; 65_535];
    let (length, _) =
        timeout(Duration::from_secs(5), socket.recv_from(&mut buffer)).await.expect("in time").expect("answer");
    Message::from_vec(&buffer[..length]).expect("message")
}

async fn ask_tcp(stream: &mut TcpStream, question: &Message) -> Message {
    let bytes = question.to_vec().expect("bytes");
    stream.write_all(&(bytes.len() as u16).to_be_bytes()).await.expect("write");
    stream.write_all(&bytes).await.expect("write");
    let length = stream.read_u16().await.expect("length");
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await.expect("answer");
    Message::from_vec(&answer).expect("message")
}

/// Starts a server; its resolver is the second one's address.
async fn start(forwarder: Forwarder, ready: bool) -> SocketAddr {
    let server = Arc::new(Server::new(Arc::new(RwLock::new(zone())), forwarder));
    if ready {
        server.set_ready();
    }
    let listener = Listener::bind("127.0.0.1:0".parse().expect("address")).await.expect("bind");
    let address = listener.address().expect("address");
    tokio::spawn(server.serve(listener, CancellationToken::new()));
    address
}

/// A resolver that knows one address for everything.
async fn resolver() -> SocketAddr {
    let listener = Listener::bind("127.0.0.1:0".parse().expect("address")).await.expect("bind");
    let address = listener.address().expect("address");
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok((length, from)) = listener.udp.recv_from(&mut buffer).await {
            let mut answer = Message::from_vec(&buffer[..length]).expect("request");
            answer.metadata.message_type = hickory_proto::op::MessageType::Response;
            let name = answer.queries[0].name().clone();
            answer.add_answer(Record::from_rdata(name, 60, RData::from(IpAddr::from([192, 0, 2, 80]))));
            listener.udp.send_to(&answer.to_vec().expect("bytes"), from).await.expect("send");
        }
    });
    address
}

fn nobody() -> Forwarder {
    Forwarder::new(None, Vec::new())
}

fn data(message: &Message) -> Vec<String> {
    message.answers.iter().map(|r| r.data.to_string()).collect()
}

#[tokio::test]
async fn answers_from_the_zone_over_both_transports() {
    let server = start(nobody(), true).await;
    let answer = ask_udp(server, &question("web.ns.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(answer.metadata.id, 4711);
    assert!(answer.metadata.authoritative && answer.metadata.recursion_available && answer.metadata.recursion_desired);
    assert_eq!(data(&answer), ["10.96.0.7"]);
    assert!(answer.edns.is_none(), "none asked, none given");

    let answer = ask_udp(server, &question("no.ns.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
    assert_eq!(answer.authorities[0].ttl, crate::zone::TTL);
    let answer = ask_udp(server, &question("web.ns.svc.cluster.local.", RecordType::AAAA)).await;
    assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
    assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);

    let mut stream = TcpStream::connect(server).await.expect("connect");
    for _ in 0..2 {
        let answer = ask_tcp(&mut stream, &question("web.ns.svc.cluster.local.", RecordType::A)).await;
        assert_eq!(data(&answer), ["10.96.0.7"], "several requests on one connection");
    }
}

#[tokio::test]
async fn long_answers_go_over_tcp_and_take_turns() {
    let server = start(nobody(), true).await;
    let plain = question("many.ns.svc.cluster.local.", RecordType::A);
    let answer = ask_udp(server, &plain).await;
    assert!(answer.metadata.truncation && !answer.answers.is_empty());
    let few = answer.answers.len();
    let mut offering = plain.clone();
    offering.set_edns(Edns::new());
    offering.edns.as_mut().expect("edns").set_max_payload(4096);
    let answer = ask_udp(server, &offering).await;
    assert!(answer.metadata.truncation && answer.answers.len() > few, "more with EDNS");
    assert!(answer.edns.is_some());
    let mut stream = TcpStream::connect(server).await.expect("connect");
    let first = data(&ask_tcp(&mut stream, &plain).await);
    let second = data(&ask_tcp(&mut stream, &plain).await);
    assert_eq!((first.len(), second.len()), (200, 200));
    assert_ne!(first[0], second[0]);
}

#[tokio::test]
async fn aliases_lead_on() {
    let server = start(nobody(), true).await;
    let answer = ask_udp(server, &question("in.ns.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(data(&answer), ["web.ns.svc.cluster.local.", "10.96.0.7"]);
    let answer = ask_udp(server, &question("round.ns.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail, "in a circle");
    let answer = ask_udp(server, &question("out.ns.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail, "nobody to ask");
}

#[tokio::test]
async fn the_rest_is_asked_of_the_resolvers() {
    let upstream = resolver().await;
    let server = start(Forwarder::to(vec![upstream]), true).await;
    let answer = ask_udp(server, &question("www.example.com.", RecordType::A)).await;
    assert_eq!((answer.metadata.id, data(&answer)), (4711, vec!["192.0.2.80".to_owned()]));
    let answer = ask_udp(server, &question("out.ns.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(data(&answer), ["www.example.com.", "192.0.2.80"]);
    let answer = ask_udp(server, &question("1.0.0.127.in-addr.arpa.", RecordType::PTR)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError, "reverse names that are not ours");
}

#[tokio::test]
async fn a_zone_that_is_not_complete_says_so() {
    let server = start(nobody(), false).await;
    let answer = ask_udp(server, &question("web.ns.svc.cluster.local.", RecordType::A)).await;
    assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::ServFail, 0));
    let answer = ask_udp(server, &question("www.example.com.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail, "no resolvers");
}
