//! The model by itself, and the rules against the real kernel in network namespaces of the tests' own.

use std::{
    collections::{HashMap, HashSet},
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    thread,
    time::Duration,
};

use gantry_network::{
    AttachOptions, NodeNetwork, NodeNetworkConfig, Protocol,
    conntrack::Conntrack,
    testing::{Namespace, isolated},
};
use tokio::time::Instant;

use super::*;
use crate::{
    compile::{Frontend, PortRules, Route, Target},
    stale::StaleFlows,
};

const VIP: &str = "10.202.0.80";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn target(text: &str) -> Target {
    let socket: SocketAddr = text.parse().expect("target");
    Target { address: socket.ip(), port: socket.port() }
}

/// A TCP service on [`VIP`]:80 and, if asked, a node port.
fn service(node_port: Option<u16>, affinity: Option<u64>, endpoints: &[&str]) -> ServiceRules {
    let near: Vec<Target> = endpoints.iter().map(|e| target(e)).collect();
    let route = if near.is_empty() { Route::Refuse } else { Route::Near };
    let frontend = |address: Option<IpAddr>, port: u16| Frontend {
        address,
        port,
        is_cluster_ip: address.is_some(),
        route,
        route_inside: None,
        masquerade: address.is_none(),
        allowed: vec![],
    };
    let mut frontends = vec![frontend(Some(ip(VIP)), 80)];
    frontends.extend(node_port.map(|p| frontend(None, p)));
    let affinity = affinity.map(Duration::from_secs);
    ServiceRules { ports: vec![PortRules { protocol: Protocol::Tcp, affinity, local: near.clone(), near, frontends }] }
}

fn change(name: &str, rules: ServiceRules) -> Changes {
    Changes::from([(Arc::from(name), Some(rules))])
}

/// What a table would hold after these differences, and a check that each fits the one before.
#[derive(Default)]
struct Mirror {
    elements: HashMap<(Map, Box<[u8]>), Leads>,
    chains: HashSet<Chain>,
}

impl Mirror {
    fn take(&mut self, difference: &Difference) {
        for chain in &difference.chains_to_add {
            assert!(self.chains.insert(chain.clone()), "{chain} is there already");
        }
        for entry in &difference.remove {
            let had = self.elements.remove(&(entry.map, entry.key.clone()));
            assert_eq!(had.as_ref(), Some(&entry.leads), "{entry:?}");
        }
        for entry in &difference.add {
            let had = self.elements.insert((entry.map, entry.key.clone()), entry.leads.clone());
            assert_eq!(had, None, "{entry:?}");
        }
        for chain in &difference.chains_to_remove {
            assert!(self.chains.remove(chain), "{chain} is not there");
        }
        for leads in self.elements.values() {
            if let Leads::Through(chain @ (Chain::Spread { .. } | Chain::Guard(_))) = leads {
                assert!(self.chains.contains(chain), "nothing leads nowhere");
            }
        }
    }

    fn check(&self, model: &Model) {
        let everything = model.everything();
        assert_eq!(everything.add.len(), self.elements.len());
        assert_eq!(everything.chains_to_add.iter().cloned().collect::<HashSet<_>>(), self.chains);
    }
}

#[test]
fn differences_add_up_to_the_whole() {
    let mut model = Model::default();
    let mut mirror = Mirror::default();
    let steps: Vec<(&str, Option<ServiceRules>)> = vec![
        ("a", Some(service(Some(30_080), None, &["10.1.0.1:80"]))),
        ("a", Some(service(Some(30_080), None, &["10.1.0.1:80", "10.1.0.2:80"]))),
        ("a", Some(service(None, Some(60), &["10.1.0.2:80"]))),
        ("a", Some(service(None, Some(60), &["10.1.0.2:80", "10.1.0.3:80"]))),
        ("a", Some(service(None, None, &[]))),
        ("a", None),
        ("never", None),
    ];
    for (name, rules) in steps {
        let difference = model.update(Changes::from([(Arc::from(name), rules)]));
        mirror.take(&difference);
        mirror.check(&model);
    }
    assert!(mirror.elements.is_empty() && mirror.chains.is_empty());
    assert!(model.numbers.is_empty());
}

#[test]
fn one_more_endpoint_is_a_few_elements() {
    let mut model = Model::default();
    model.update(change("a", service(None, None, &["10.1.0.1:80", "10.1.0.2:80"])));
    let difference = model.update(change("a", service(None, None, &["10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80"])));
    assert_eq!((difference.remove.len(), difference.add.len()), (1, 2), "{difference:?}");
    assert_eq!(
        model.update(change("a", service(None, None, &["10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80"]))),
        Difference::default()
    );
}

#[test]
fn a_frontend_has_one_owner_and_passes_on() {
    let mut model = Model::default();
    let mut mirror = Mirror::default();
    let mut step = |changes: Changes| {
        let difference = model.update(changes);
        mirror.take(&difference);
        mirror.check(&model);
        let key = [10, 202, 0, 80, 6, 0, 0, 0, 0, 80, 0, 0, 0, 0, 0, 0];
        match mirror.elements.get(&(Map::Endpoints, key.into())) {
            Some(Leads::To(bytes)) => Some(bytes[3]),
            _ => None,
        }
    };
    assert_eq!(step(change("a", service(None, None, &["10.1.0.1:80"]))), Some(1));
    assert_eq!(step(change("b", service(None, None, &["10.1.0.2:80"]))), Some(1), "the first keeps it");
    assert_eq!(step(change("b", service(None, None, &["10.1.0.3:80"]))), Some(1));
    assert_eq!(step(Changes::from([("a".into(), None)])), Some(3), "then the next has it");
    let swap = Changes::from([("a".into(), Some(service(None, None, &["10.1.0.1:80"]))), ("b".into(), None)]);
    assert_eq!(step(swap), Some(1), "within one set of changes, too");
}

/// A pod whose servers answer with its name.
pub(crate) struct Pod(Namespace);

impl Pod {
    pub(crate) async fn new(network: &NodeNetwork, name: &str) -> Pod {
        let namespace = Namespace::held();
        network.attach(name, namespace.path(), AttachOptions::default()).await.expect("attach");
        Pod(namespace)
    }

    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.0.run(work)
    }

    /// Serves on port 80: answers with the name and the address the client was seen as.
    pub(crate) fn serve(&self, name: &'static str) {
        let listener = self.run(|| TcpListener::bind("0.0.0.0:80").expect("bind"));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("accept");
                let from = stream.peer_addr().expect("peer").ip();
                let _ = stream.write_all(format!("{name} {from}").as_bytes());
            }
        });
    }
}

/// Connects: `(name, seen as)` of the server, or the kind of failure.
pub(crate) fn ask(to: &str) -> Result<(String, String), ErrorKind> {
    let to: SocketAddr = to.parse().expect("address");
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2)).map_err(|e| e.kind())?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|e| e.kind())?;
    let (name, from) = text.split_once(' ').expect("answer");
    Ok((name.into(), from.into()))
}

fn node_config(dir: &std::path::Path) -> NodeNetworkConfig {
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

pub(crate) async fn node(dir: &std::path::Path) -> (NodeNetwork, Applier) {
    let network = NodeNetwork::open(node_config(dir)).await.expect("network");
    let cluster = vec!["10.201.0.0/16".parse().expect("cidr")];
    let mut applier = Applier::new(Nft::open().expect("nft"), Family::Ipv4, "t1", cluster);
    applier.apply(Changes::new()).await.expect("apply");
    (network, applier)
}

#[test]
fn connections_reach_endpoints_from_everywhere() {
    isolated(async {
        let dir = tempfile::tempdir().expect("directory");
        let (network, mut applier) = node(dir.path()).await;
        let (a, b) = (Pod::new(&network, "a").await, Pod::new(&network, "b").await);
        a.serve("a");
        b.serve("b");
        let (ea, eb) = ("10.201.0.2:80", "10.201.0.3:80");
        let vip = format!("{VIP}:80");

        applier.apply(change("s", service(Some(30_080), None, &[]))).await.expect("apply");
        for to in [vip.as_str(), "127.0.0.1:30080", "10.201.0.1:30080"] {
            assert_eq!(ask(to), Err(ErrorKind::ConnectionRefused), "no endpoints, from the node to {to}");
        }
        assert_eq!(a.run(|| ask(&vip)), Err(ErrorKind::ConnectionRefused));
        assert_eq!(a.run(|| ask("10.201.0.1:30080")), Err(ErrorKind::ConnectionRefused));

        applier.apply(change("s", service(Some(30_080), None, &[eb]))).await.expect("apply");
        assert_eq!(a.run(|| ask(&vip)), Ok(("b".into(), "10.201.0.2".into())), "pod to service keeps its address");
        assert_eq!(b.run(|| ask(&vip)), Ok(("b".into(), "10.201.0.1".into())), "hairpin");
        assert_eq!(ask(&vip).map(|s| s.0), Ok("b".into()), "node to service");
        for to in ["127.0.0.1:30080", "10.201.0.1:30080"] {
            assert_eq!(ask(to), Ok(("b".into(), "10.201.0.1".into())), "node to {to}");
        }
        assert_eq!(a.run(|| ask("10.201.0.1:30080")).map(|s| s.0), Ok("b".into()), "pod to node port");
        assert_eq!(a.run(|| ask(&format!("{VIP}:81"))), Err(ErrorKind::ConnectionRefused), "no such port");

        applier.apply(change("s", service(None, None, &[ea, eb]))).await.expect("apply");
        let mut seen: HashMap<String, usize> = HashMap::new();
        for _ in 0..100 {
            *seen.entry(ask(&vip).expect("answer").0).or_default() += 1;
        }
        assert!(seen["a"] > 20 && seen["b"] > 20, "{seen:?}");
        assert_eq!(ask("127.0.0.1:30080"), Err(ErrorKind::ConnectionRefused), "the node port is gone");

        applier.apply(change("s", service(None, None, &[ea]))).await.expect("apply");
        for _ in 0..10 {
            assert_eq!(ask(&vip).expect("answer").0, "a", "a removed endpoint gets nothing");
        }
        // A restarted proxy replaces the table; nothing is lost.
        let mut again = Applier::new(Nft::open().expect("nft"), Family::Ipv4, "t1", vec![]);
        again.apply(change("s", service(None, None, &[eb]))).await.expect("apply");
        assert_eq!(ask(&vip).expect("answer").0, "b");
        again.remove().await.expect("remove");
        let left = Command::new("nft").args(["list", "tables"]).output().expect("nft");
        assert_eq!(String::from_utf8_lossy(&left.stdout).trim(), "table ip gantry-node-t1");
    });
}

#[test]
fn clients_stick_to_an_endpoint_while_it_is_there() {
    isolated(async {
        let dir = tempfile::tempdir().expect("directory");
        let (network, mut applier) = node(dir.path()).await;
        let pods = [Pod::new(&network, "a").await, Pod::new(&network, "b").await, Pod::new(&network, "c").await];
        for (pod, name) in pods.iter().zip(["a", "b", "c"]) {
            pod.serve(name);
        }
        let all = ["10.201.0.2:80", "10.201.0.3:80", "10.201.0.4:80"];
        let vip = format!("{VIP}:80");
        applier.apply(change("s", service(Some(30_080), Some(3600), &all))).await.expect("apply");
        let listed = Command::new("nft").args(["list", "ruleset"]).output().expect("nft");
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        let first = ask(&vip).expect("answer").0;
        for _ in 0..20 {
            assert_eq!(ask(&vip).expect("answer").0, first);
        }
        assert_eq!(ask("127.0.0.1:30080").map(|_| ()), Ok(()), "node ports with affinity");
        // Take that endpoint away: the client moves, and stays where it moved to, even when the old one comes back.
        let names = ["a", "b", "c"];
        let left: Vec<&str> = all.iter().zip(names).filter(|(_, n)| *n != first).map(|(e, _)| *e).collect();
        applier.apply(change("s", service(None, Some(3600), &left))).await.expect("apply");
        let second = ask(&vip).expect("answer").0;
        assert_ne!(second, first);
        applier.apply(change("s", service(None, Some(3600), &all))).await.expect("apply");
        for _ in 0..20 {
            assert_eq!(ask(&vip).expect("answer").0, second);
        }
        // And without affinity it spreads again.
        applier.apply(change("s", service(None, None, &all))).await.expect("apply");
        let seen: HashSet<String> = (0..60).map(|_| ask(&vip).expect("answer").0).collect();
        assert_eq!(seen.len(), 3, "{seen:?}");
    });
}

/// Runs a few commands of a machine's administrator.
fn administer(script: &str) {
    let done = Command::new("sh").args(["-ec", script]).output().expect("sh");
    assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn a_node_with_an_uplink() {
    isolated(async {
        let dir = tempfile::tempdir().expect("directory");
        let (network, mut applier) = node(dir.path()).await;
        let (a, outside) = (Pod::new(&network, "a").await, Pod::new(&network, "outside").await);
        a.serve("a");
        // The second pod is moved out of the cluster: it only knows the node's uplink address.
        let tid = outside.0.path().iter().nth(4).expect("thread").to_string_lossy().into_owned();
        administer(&format!(
            "ip link add uplink type veth peer name up1; ip link set up1 netns {tid}; \
             ip addr add 192.0.2.1/24 dev uplink; ip link set uplink up"
        ));
        outside.run(|| {
            administer(
                "ip link del eth0; ip link set up1 up; ip addr add 192.0.2.2/24 dev up1; \
                 ip route add 10.202.0.0/16 via 192.0.2.1",
            );
        });
        administer("ip route add default via 192.0.2.2");

        // A server of the node itself, as the API server is, behind a service.
        let listener = TcpListener::bind("10.201.0.1:6443").expect("bind");
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("accept");
                let from = stream.peer_addr().expect("peer").ip();
                let _ = stream.write_all(format!("api {from}").as_bytes());
            }
        });
        let mut api = service(None, None, &["10.201.0.1:6443"]);
        api.ports[0].frontends[0].address = Some(ip("10.202.0.1"));
        applier.apply(change("api", api)).await.expect("apply");
        assert_eq!(ask("10.202.0.1:80").map(|s| s.0), Ok("api".into()), "from the node");
        assert_eq!(a.run(|| ask("10.202.0.1:80")), Ok(("api".into(), "10.201.0.2".into())), "from a pod");

        applier.apply(change("s", service(Some(30_080), None, &["10.201.0.2:80"]))).await.expect("apply");
        assert_eq!(ask(&format!("{VIP}:80")).map(|s| s.0), Ok("a".into()), "from the node");
        for to in ["192.0.2.1:30080", "127.0.0.1:30080", "10.201.0.1:30080"] {
            assert_eq!(ask(to).map(|s| s.0), Ok("a".into()), "from the node to {to}");
        }
        let node = Ok(("a".to_owned(), "10.201.0.1".to_owned()));
        assert_eq!(outside.run(|| ask("192.0.2.1:30080")), node, "from outside, to a node port: hidden");
        assert_eq!(outside.run(|| ask(&format!("{VIP}:80"))), node, "from outside, to the cluster IP: hidden");

        let mut local = service(Some(30_080), None, &["10.201.0.2:80"]);
        local.ports[0].frontends[1].route = Route::Local;
        local.ports[0].frontends[1].route_inside = Some(Route::Near);
        local.ports[0].frontends[1].masquerade = false;
        applier.apply(change("s", local)).await.expect("apply");
        assert_eq!(
            outside.run(|| ask("192.0.2.1:30080")),
            Ok(("a".into(), "192.0.2.2".into())),
            "with the local policy, clients keep their address"
        );
        assert_eq!(ask("127.0.0.1:30080").map(|s| s.0), Ok("a".into()), "and the node still reaches it");
        applier.apply(change("s", service(Some(30_080), None, &[]))).await.expect("apply");
        assert_eq!(outside.run(|| ask("192.0.2.1:30080")), Err(ErrorKind::ConnectionRefused));
        assert_eq!(ask(&format!("{VIP}:80")), Err(ErrorKind::ConnectionRefused));
    });
}

#[test]
fn the_same_over_ipv6() {
    isolated(async {
        let dir = tempfile::tempdir().expect("directory");
        let mut config = node_config(dir.path());
        config.pod_cidrs.push("fd00:201::/64".parse().expect("cidr"));
        config.cluster_cidrs.push("fd00:201::/48".parse().expect("cidr"));
        let network = NodeNetwork::open(config.clone()).await.expect("network");
        let nft = Nft::open().expect("nft");
        let mut applier = Applier::new(nft, Family::Ipv6, "t1", config.cluster_cidrs);
        let (a, b) = (Pod::new(&network, "a").await, Pod::new(&network, "b").await);
        let listener = b.run(|| TcpListener::bind("[::]:80").expect("bind"));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("accept");
                let from = stream.peer_addr().expect("peer").ip();
                let _ = stream.write_all(format!("b {from}").as_bytes());
            }
        });
        let seen_as_a = Ok(("b".to_owned(), "fd00:201::2".to_owned()));
        assert_eq!(a.run(|| ask("[fd00:201::3]:80")), seen_as_a, "pod to pod");
        assert_eq!(ask("[fd00:201::3]:80").map(|s| s.1), Ok("fd00:201::1".into()), "node to pod");
        for affinity in [None, Some(60)] {
            let mut rules = service(None, affinity, &["[fd00:201::3]:80"]);
            rules.ports[0].frontends[0].address = Some(ip("fd00:202::80"));
            applier.apply(change("s", rules)).await.expect("apply");
            for _ in 0..3 {
                assert_eq!(a.run(|| ask("[fd00:202::80]:80")), seen_as_a, "pod to service");
            }
        }
        assert_eq!(b.run(|| ask("[fd00:202::80]:80")), Ok(("b".into(), "fd00:201::1".into())), "hairpin");
        let mut nobody = service(None, None, &[]);
        nobody.ports[0].frontends[0].address = Some(ip("fd00:202::80"));
        applier.apply(change("s", nobody)).await.expect("apply");
        assert_eq!(a.run(|| ask("[fd00:202::80]:80")), Err(ErrorKind::ConnectionRefused), "nobody there");
        let listed = Command::new("nft").args(["list", "ruleset"]).output().expect("nft");
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    });
}

#[test]
fn policies_guards_and_external_addresses() {
    isolated(async {
        let dir = tempfile::tempdir().expect("directory");
        let (network, mut applier) = node(dir.path()).await;
        let (a, b) = (Pod::new(&network, "a").await, Pod::new(&network, "b").await);
        b.serve("b");
        let frontend = |address: &str, route, route_inside, allowed: &[&str]| Frontend {
            address: Some(ip(address)),
            port: 80,
            is_cluster_ip: false,
            route,
            route_inside,
            masquerade: route_inside.is_none(),
            allowed: allowed.iter().map(|c| c.parse().expect("cidr")).collect(),
        };
        let rules = ServiceRules {
            ports: vec![PortRules {
                protocol: Protocol::Tcp,
                affinity: None,
                near: vec![target("10.201.0.3:80")],
                local: vec![],
                frontends: vec![
                    frontend("10.202.9.1", Route::Near, None, &[]),
                    frontend("10.202.9.2", Route::Drop, Some(Route::Near), &[]),
                    frontend("10.202.9.3", Route::Near, None, &["10.201.0.3/32", "10.201.0.1/32"]),
                    frontend("10.202.9.4", Route::Drop, None, &[]),
                ],
            }],
        };
        applier.apply(change("s", rules)).await.expect("apply");
        assert_eq!(a.run(|| ask("10.202.9.1:80")), Ok(("b".into(), "10.201.0.1".into())), "client's address hidden");
        assert_eq!(
            a.run(|| ask("10.202.9.2:80")),
            Ok(("b".into(), "10.201.0.2".into())),
            "inside the cluster: anywhere"
        );
        assert_eq!(ask("10.202.9.2:80").map(|s| s.0), Ok("b".into()), "the node is inside, too");
        assert_eq!(a.run(|| ask("10.202.9.3:80")), Err(ErrorKind::TimedOut), "not among the allowed sources");
        assert_eq!(ask("10.202.9.3:80").map(|s| s.0), Ok("b".into()), "allowed");
        assert_eq!(a.run(|| ask("10.202.9.4:80")), Err(ErrorKind::TimedOut), "dropped, not refused");
        applier.apply(Changes::from([("s".into(), None)])).await.expect("apply");
        let elements = applier.nft.elements_blocking(&applier.table, "guarded").expect("list");
        assert!(elements.is_empty());
    });
}

#[test]
fn datagrams_follow_the_endpoints() {
    isolated(async {
        let dir = tempfile::tempdir().expect("directory");
        let (network, mut applier) = node(dir.path()).await;
        let (a, b) = (Pod::new(&network, "a").await, Pod::new(&network, "b").await);
        for (pod, name) in [(&a, b"a"), (&b, b"b")] {
            let socket = pod.run(|| UdpSocket::bind("0.0.0.0:53").expect("bind"));
            thread::spawn(move || {
                let mut buffer = [0; 16];
                while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    socket.send_to(name, from).expect("send");
                }
            });
        }
        let mut stale = StaleFlows::default();
        let conntrack = Conntrack::open().expect("conntrack");
        let mut set = async |endpoint: &str| {
            let mut rules = service(None, None, &[endpoint]);
            rules.ports[0].protocol = Protocol::Udp;
            stale.note(&"s".into(), Some(&rules));
            applier.apply(change("s", rules)).await.expect("apply");
            stale.flush(&conntrack, Family::Ipv4, &[]).await.expect("flush")
        };
        let client = UdpSocket::bind("0.0.0.0:0").expect("bind");
        client.set_read_timeout(Some(Duration::from_secs(2))).expect("timeout");
        let ask = || {
            client.send_to(b"?", format!("{VIP}:80")).expect("send");
            let mut buffer = [0; 16];
            let length = client.recv(&mut buffer).expect("answer");
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        };
        set("10.201.0.2:53").await;
        assert_eq!(ask(), "a");
        assert_eq!(set("10.201.0.3:53").await, 1, "one flow led to the old endpoint");
        assert_eq!(ask(), "b", "the same socket reaches the new one");
    });
}

#[test]
fn ten_thousand_services() {
    isolated(async {
        let dir = tempfile::tempdir().expect("directory");
        let (_network, mut applier) = node(dir.path()).await;
        let rules = |n: u32| {
            let endpoints: Vec<String> = (0..3).map(|e| format!("10.201.{}.{}:80", n % 200 + 1, e + 1)).collect();
            let mut rules = service(None, None, &endpoints.iter().map(String::as_str).collect::<Vec<_>>());
            rules.ports[0].frontends[0].address = Some(IpAddr::V4((0x0aca_0000 + n).into()));
            rules
        };
        let all: Changes = (0..10_000).map(|n| (Arc::from(format!("ns/s{n}")), Some(rules(n)))).collect();
        let start = Instant::now();
        applier.apply(all).await.expect("apply");
        println!("10,000 services, {} entries: {:?}", applier.entries(), start.elapsed());
        let start = Instant::now();
        applier.apply(change("ns/more", rules(20_000))).await.expect("apply");
        println!("one more: {:?}", start.elapsed());
        let start = Instant::now();
        applier.in_kernel = false;
        applier.apply(Changes::new()).await.expect("replace");
        println!("replacing the whole table: {:?}", start.elapsed());
        let services = applier.nft.elements(&applier.table, Map::Services.name()).await.expect("list");
        assert_eq!(services.len(), 10_001);
        let endpoints = applier.nft.elements(&applier.table, Map::Endpoints.name()).await.expect("list");
        assert_eq!(endpoints.len(), 30_003);
    });
}
