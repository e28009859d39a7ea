//! Against the real kernel, in network namespaces of the tests' own.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use super::*;
use crate::testing::{Namespace, isolated};

pub(super) fn config(dir: &Path) -> NodeNetworkConfig {
    NodeNetworkConfig {
        data_dir: dir.to_owned(),
        node_name: "n".into(),
        instance: "t1".into(),
        pod_cidrs: vec!["10.201.0.0/24".parse().expect("cidr")],
        cluster_cidrs: vec!["10.201.0.0/16".parse().expect("cidr")],
        service_cidrs: vec!["10.202.0.0/16".parse().expect("cidr")],
        node_ips: vec![],
        mtu: None,
    }
}

fn greet(listener: TcpListener) -> thread::JoinHandle<SocketAddr> {
    thread::spawn(move || {
        let (mut stream, from) = listener.accept().expect("accept");
        stream.write_all(b"hello").expect("write");
        from
    })
}

fn ask(to: &str) -> String {
    let mut stream =
        TcpStream::connect_timeout(&to.parse().expect("address"), Duration::from_secs(3)).expect("connect");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("read");
    text
}

#[test]
fn pods_reach_each_other_and_the_node() {
    isolated(async {
        let dir = tempfile::tempdir().expect("directory");
        let network = NodeNetwork::open(config(dir.path())).await.expect("open");
        let (a, b) = (Namespace::held(), Namespace::held());
        let pa = network.attach("ns/a", a.path(), AttachOptions::default()).await.expect("attach a");
        let pb = network.attach("ns/b", b.path(), AttachOptions::default()).await.expect("attach b");
        assert_eq!(pa.ips[0].to_string(), "10.201.0.2");
        assert_eq!(pb.ips[0].to_string(), "10.201.0.3");
        assert_eq!(network.gateway_ip().to_string(), "10.201.0.1");

        let rules = std::process::Command::new("ip").args(["rule"]).output().expect("ip");
        assert!(String::from_utf8_lossy(&rules.stdout).contains("to 10.202.0.0/16"), "{rules:?}");
        // pod to pod: the server sees the client's own address
        let server = greet(b.run(|| TcpListener::bind("10.201.0.3:80").expect("bind")));
        assert_eq!(a.run(|| ask("10.201.0.3:80")), "hello");
        assert_eq!(server.join().expect("server").ip(), pa.ips[0]);
        // pod to node
        let server = greet(TcpListener::bind("10.201.0.1:81").expect("bind"));
        assert_eq!(a.run(|| ask("10.201.0.1:81")), "hello");
        assert_eq!(server.join().expect("server").ip(), pa.ips[0]);
        // node to pod: from the gateway address
        let server = greet(a.run(|| TcpListener::bind("10.201.0.2:82").expect("bind")));
        assert_eq!(ask("10.201.0.2:82"), "hello");
        assert_eq!(server.join().expect("server").ip(), network.gateway_ip());
        // a pod talks to itself over its own loopback
        let server = greet(a.run(|| TcpListener::bind("127.0.0.1:83").expect("bind")));
        assert_eq!(a.run(|| ask("127.0.0.1:83")), "hello");
        server.join().expect("server");
    });
}

#[test]
fn attaching_and_detaching_repeat_and_survive_restarts() {
    isolated(async {
        let dir = tempfile::tempdir().expect("directory");
        let network = NodeNetwork::open(config(dir.path())).await.expect("open");
        let (a, b) = (Namespace::held(), Namespace::held());
        let first = network.attach("ns/a", a.path(), AttachOptions::default()).await.expect("attach");
        network.attach("ns/b", b.path(), AttachOptions::default()).await.expect("attach");
        // again, into a new namespace, as after a lost sandbox: same address
        let again = Namespace::held();
        assert_eq!(network.attach("ns/a", again.path(), AttachOptions::default()).await.expect("attach"), first);
        let none = network.reconcile(&HashSet::new()).await.expect("reconcile");
        assert!(none.is_empty(), "what this run attached is no leftover");
        drop(network);

        let network = NodeNetwork::open(config(dir.path())).await.expect("reopen");
        assert_eq!(network.addresses().await.len(), 2);
        assert!(network.is_connected("ns/a").await.expect("ask"));
        let gone = network.reconcile(&HashSet::from(["ns/b".to_owned()])).await.expect("reconcile");
        assert_eq!(gone, ["ns/a"]);
        network.detach("ns/a").await.expect("detach again");
        let c = Namespace::held();
        let pc = network.attach("ns/c", c.path(), AttachOptions::default()).await.expect("attach");
        assert_eq!(pc.ips[0].to_string(), "10.201.0.4", "a freed address waits its turn");

        let state = network.state_path.clone();
        network.teardown().await.expect("teardown");
        let links = RouteSocket::open().expect("socket").links().await.expect("links");
        let tables = crate::nft::Nft::open().expect("nft").tables_blocking(crate::nft::Family::Ipv4);
        assert!(tables.expect("tables").is_empty());
        assert_eq!(sysctl::read("net/ipv4/ip_forward").expect("sysctl"), "0");
        assert!(!NodeNetwork::teardown_leftovers(dir.path()).await.expect("again"), "nothing is left");
        assert_eq!(links.iter().map(|l| l.0.as_str()).collect::<Vec<_>>(), ["lo"]);
        assert!(!state.exists());
        let rules = std::process::Command::new("ip").args(["rule"]).output().expect("ip");
        assert!(!String::from_utf8_lossy(&rules.stdout).contains("10.202"), "{rules:?}");
        assert!(TcpListener::bind("10.201.0.1:80").is_err(), "the node's own address is gone");
    });
}

#[test]
fn a_failed_attachment_leaves_nothing() {
    isolated(async {
        let dir = tempfile::tempdir().expect("directory");
        let network = NodeNetwork::open(config(dir.path())).await.expect("open");
        let error = network
            .attach("ns/a", Path::new("/nowhere/net"), AttachOptions::default())
            .await
            .expect_err("no namespace");
        assert!(error.to_string().contains("/nowhere/net"), "{error}");
        // a file that is no namespace gets as far as the kernel
        let file = dir.path().join("plain");
        fs::write(&file, b"").expect("write");
        network.attach("ns/a", &file, AttachOptions::default()).await.expect_err("no namespace");
        assert!(network.addresses().await.is_empty());
        assert_eq!(network.routes.links().await.expect("links").len(), 1);
    });
}

#[test]
fn bad_configurations_are_named() {
    let dir = Path::new("/nowhere");
    type Change = fn(&mut NodeNetworkConfig);
    let cases: [(Change, &str); 5] = [
        (|c| c.pod_cidrs.clear(), "no pod CIDR"),
        (|c| c.service_cidrs = vec!["10.201.0.0/28".parse().expect("cidr")], "overlaps"),
        (|c| c.node_ips = vec!["10.201.0.9".parse().expect("ip")], "inside pod CIDR"),
        (|c| c.instance = "a b".into(), "instance id"),
        (|c| c.pod_cidrs.push("10.9.0.0/24".parse().expect("cidr")), "more than one pod CIDR"),
    ];
    for (change, want) in cases {
        let mut config = config(dir);
        change(&mut config);
        let error = check(&config).expect_err(want).to_string();
        assert!(error.contains(want), "{error}");
    }
}

#[test]
fn names_fit_the_kernel() {
    let state = State::new("x");
    for instance in ["a", "ab12", "a-much-longer-name"] {
        let name = free_name(instance, "kube-system/coredns-0", &state);
        assert!(name.len() <= 15 && name.starts_with(&interface_prefix(instance)), "{name}");
    }
}

fn host_port(host_ip: Option<&str>, host_port: u16, container_port: u16) -> HostPort {
    HostPort {
        host_ip: host_ip.map(|ip| ip.parse().expect("ip")),
        host_port,
        container_port,
        protocol: crate::Protocol::Tcp,
    }
}

#[test]
fn host_ports_lead_to_the_pod_from_everywhere() {
    isolated(async {
        let dir = tempfile::tempdir().expect("directory");
        let network = NodeNetwork::open(config(dir.path())).await.expect("open");
        let (a, b) = (Namespace::held(), Namespace::held());
        let options =
            AttachOptions { host_ports: vec![host_port(None, 8080, 80), host_port(Some("127.0.0.1"), 8081, 80)] };
        network.attach("ns/a", a.path(), options).await.expect("attach");
        network.attach("ns/b", b.path(), AttachOptions::default()).await.expect("attach");
        let serve = || greet(a.run(|| TcpListener::bind("0.0.0.0:80").expect("bind")));
        let listed = std::process::Command::new("nft").args(["list", "ruleset"]).output().expect("nft");
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        // from the node, on its own address and on loopback
        for to in ["10.201.0.1:8080", "127.0.0.1:8080", "127.0.0.1:8081"] {
            let server = serve();
            assert_eq!(ask(to), "hello", "{to}");
            assert_eq!(server.join().expect("server").ip(), network.gateway_ip());
        }
        // from another pod, which is seen as itself
        let server = serve();
        assert_eq!(b.run(|| ask("10.201.0.1:8080")), "hello");
        assert_eq!(server.join().expect("server").ip().to_string(), "10.201.0.3");
        // from the pod itself
        let server = serve();
        assert_eq!(a.run(|| ask("10.201.0.1:8080")), "hello");
        assert_eq!(server.join().expect("server").ip(), network.gateway_ip());
        // a port bound to loopback is not open elsewhere
        assert!(b.run(|| TcpStream::connect("10.201.0.1:8081")).is_err());

        let taken = AttachOptions { host_ports: vec![host_port(Some("10.201.0.1"), 8080, 1)] };
        let error = network.attach("ns/c", b.path(), taken).await.expect_err("taken").to_string();
        assert_eq!(error, "host port 10.201.0.1:8080/TCP is already in use by pod ns/a");

        // across a restart, and gone after detaching
        drop(network);
        let network = NodeNetwork::open(config(dir.path())).await.expect("reopen");
        let server = serve();
        assert_eq!(ask("127.0.0.1:8080"), "hello");
        server.join().expect("server");
        network.detach("ns/a").await.expect("detach");
        assert!(TcpStream::connect("127.0.0.1:8080").is_err());
    });
}

#[test]
fn pods_do_not_reach_the_loopback_of_the_node() {
    isolated(async {
        let dir = tempfile::tempdir().expect("directory");
        let network = NodeNetwork::open(config(dir.path())).await.expect("open");
        let a = Namespace::held();
        network.attach("ns/a", a.path(), AttachOptions::default()).await.expect("attach");
        let _secret = TcpListener::bind("127.0.0.1:9000").expect("bind");
        // The pod routes 127.0.0.2 to the node on purpose.
        let reached = a.run(|| {
            let script = "ip addr del 127.0.0.1/8 dev lo; ip route del local 127.0.0.0/8 table local; \
                          ip route add 127.0.0.1 via 169.254.1.1 dev eth0 onlink; \
                          echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet";
            std::process::Command::new("sh").args(["-c", script]).output().expect("ip");
            let to: SocketAddr = "127.0.0.1:9000".parse().expect("address");
            TcpStream::connect_timeout(&to, Duration::from_millis(300)).is_ok()
        });
        assert!(!reached);
    });
}

#[test]
fn traffic_to_the_outside_takes_the_address_of_the_node() {
    isolated(async {
        let dir = tempfile::tempdir().expect("directory");
        let network = NodeNetwork::open(config(dir.path())).await.expect("open");
        let (a, outside) = (Namespace::held(), Namespace::held());
        network.attach("ns/a", a.path(), AttachOptions::default()).await.expect("attach");
        // An outside that knows the node but no pod.
        let file = link::open_namespace(outside.path()).expect("namespace");
        let node = network
            .routes
            .create_pair("uplink", link::descriptor(&file), "192.0.2.2".parse().expect("ip"), 1500)
            .await
            .expect("pair");
        network.routes.add_address(node, "192.0.2.1".parse().expect("ip")).await.expect("address");
        let script = "ip route add 192.0.2.2 dev uplink";
        std::process::Command::new("sh").args(["-c", script]).output().expect("ip");
        outside.run(|| {
            let script = "ip link set lo up; ip link set eth0 up; ip addr add 192.0.2.2 peer 192.0.2.1 dev eth0";
            std::process::Command::new("sh").args(["-c", script]).output().expect("ip");
        });
        let server = greet(outside.run(|| TcpListener::bind("192.0.2.2:80").expect("bind")));
        assert_eq!(a.run(|| ask("192.0.2.2:80")), "hello");
        assert_eq!(server.join().expect("server").ip().to_string(), "192.0.2.1");
    });
}

#[test]
fn how_long_attaching_takes() {
    isolated(async {
        let dir = tempfile::tempdir().expect("directory");
        let network = NodeNetwork::open(config(dir.path())).await.expect("open");
        let pods: Vec<Namespace> = (0..20).map(|_| Namespace::held()).collect();
        let start = std::time::Instant::now();
        for (n, pod) in pods.iter().enumerate() {
            network.attach(&format!("ns/p{n}"), pod.path(), AttachOptions::default()).await.expect("attach");
        }
        println!("attach: {:?} each", start.elapsed() / 20);
        let start = std::time::Instant::now();
        for n in 0..20 {
            network.detach(&format!("ns/p{n}")).await.expect("detach");
        }
        println!("detach: {:?} each", start.elapsed() / 20);
    });
}

#[test]
fn two_instances_do_not_share_ranges() {
    isolated(async {
        let (dir, other) = (tempfile::tempdir().expect("directory"), tempfile::tempdir().expect("directory"));
        let network = NodeNetwork::open(config(dir.path())).await.expect("open");
        let pod = Namespace::held();
        network.attach("ns/a", pod.path(), AttachOptions::default()).await.expect("attach");
        let second = |pods: &str, services: &str| NodeNetworkConfig {
            instance: "t2".into(),
            pod_cidrs: vec![pods.parse().expect("cidr")],
            cluster_cidrs: vec![],
            service_cidrs: vec![services.parse().expect("cidr")],
            ..config(other.path())
        };
        for (pods, services, says) in [
            ("10.201.0.0/24", "10.204.0.0/16", "pod CIDR 10.201.0.0/24 overlaps 10.201.0.1"),
            ("10.201.0.0/16", "10.204.0.0/16", "pod CIDR 10.201.0.0/16 overlaps 10.201.0.1"),
            ("10.203.0.0/24", "10.202.128.0/17", "service CIDR 10.202.128.0/17 overlaps 10.202.0.0/16"),
            ("10.202.3.0/24", "10.204.0.0/16", "pod CIDR 10.202.3.0/24 overlaps 10.202.0.0/16"),
        ] {
            let error = NodeNetwork::open(second(pods, services)).await.err().expect("overlap").to_string();
            assert!(error.starts_with(says), "{error}");
        }
        let beside = NodeNetwork::open(second("10.203.0.0/24", "10.204.0.0/16")).await.expect("beside");
        // Neither is in its own way.
        drop(NodeNetwork::open(config(dir.path())).await.expect("again"));
        beside.teardown().await.expect("teardown");
        network.detach("ns/a").await.expect("detach");
        network.teardown().await.expect("teardown");
    });
}
