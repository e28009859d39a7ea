//! Conformance: pods reach each other and are reached from the node, over TCP and UDP.

mod cluster;

use cluster::pods::{create, pod};
use cluster::{Cluster, busybox, enter};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

/// Servers that each answer with their own name.
const SERVERS: [&str; 3] = ["netserver-0", "netserver-1", "netserver-2"];
const HTTP: u16 = 8083;
const UDP: u16 = 8081;

#[test]
fn pods_reach_pods() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    let mut all: Vec<Value> = SERVERS.iter().map(|name| server(name)).collect();
    all.push(pod(
        "client",
        &json!({"name": "self", "image": "gantry.local/self", "command": [], "args": ["sleep"]}),
        &json!({}),
    ));
    create(&cluster, &all);
    let ips: Vec<String> = SERVERS
        .iter()
        .map(|name| {
            cluster.ready(name);
            cluster.jsonpath(&["pod", name], "{.status.podIP}")
        })
        .collect();
    cluster.ready("client");
    from_pod_http(&cluster, &ips);
    from_pod_udp(&cluster, &ips);
    from_node_http(&cluster, &ips);
    from_node_udp(&cluster, &ips);
}

/// A pod with a web server for its name and a UDP server that sends back what it gets with its name.
fn server(name: &str) -> Value {
    let web = format!("mkdir /tmp/www; hostname > /tmp/www/hostname; exec httpd -f -p {HTTP} -h /tmp/www");
    let udp = json!({"name": "udp", "image": "gantry.local/self", "args": ["tcp-echo", UDP.to_string()]});
    let mut pod = pod(
        name,
        &json!({"command": ["sh", "-c", web], "readinessProbe": {"httpGet": {"path": "/hostname", "port": HTTP}, "periodSeconds": 1}}),
        &json!({}),
    );
    pod["spec"]["containers"].as_array_mut().unwrap().push(udp);
    pod["spec"]["containers"][1]["readinessProbe"] = json!({"tcpSocket": {"port": UDP}, "periodSeconds": 1});
    pod
}

/// Runs a command of the built-in image in the client.
fn client(cluster: &Cluster, arguments: &[&str]) -> String {
    let mut all = vec!["exec", "client", "-c", "self", "--", "/gantry", "self"];
    all.extend(arguments);
    cluster.kubectl(&all)
}

fn from_pod_http(cluster: &Cluster, ips: &[String]) {
    // Networking, intra pod http
    for (ip, name) in ips.iter().zip(SERVERS) {
        assert_eq!(client(cluster, &["get", &format!("http://{ip}:{HTTP}/hostname")]), format!("{name}\n"));
    }
}

fn from_pod_udp(cluster: &Cluster, ips: &[String]) {
    // Networking, intra pod udp
    for ip in ips {
        let target = format!("{ip}:{UDP}");
        assert_eq!(client(cluster, &["udp", &target, "to", ip]), format!("to {ip}\n"));
    }
}

fn from_node_http(cluster: &Cluster, ips: &[String]) {
    // Networking, intra pod http, from node
    let network = cluster.network();
    let ips = ips.to_vec();
    let answers = std::thread::spawn(move || {
        enter(&network);
        let ask = |ip: &String| {
            let mut stream = TcpStream::connect((ip.as_str(), HTTP)).unwrap();
            write!(stream, "GET /hostname HTTP/1.0\r\nHost: {ip}\r\n\r\n").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text.rsplit("\r\n\r\n").next().unwrap().to_owned()
        };
        ips.iter().map(ask).collect::<String>()
    });
    assert_eq!(answers.join().unwrap(), SERVERS.map(|s| format!("{s}\n")).concat());
}

fn from_node_udp(cluster: &Cluster, ips: &[String]) {
    // Networking, intra pod http, from node
    let network = cluster.network();
    let ips = ips.to_vec();
    let answered = std::thread::spawn(move || {
        enter(&network);
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        ips.iter().all(|ip| {
            (0..30).any(|_| {
                socket.send_to(ip.as_bytes(), (ip.as_str(), UDP)).unwrap();
                let mut buffer = [0; 100];
                socket
                    .recv_from(&mut buffer)
                    .is_ok_and(|(n, from)| from.ip().to_string() == *ip && buffer[..n] == *ip.as_bytes())
            })
        })
    });
    assert!(answered.join().unwrap());
}
