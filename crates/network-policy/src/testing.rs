//! A node with pods, in network namespaces of the tests' own.

use gantry_network::testing::Namespace;
use gantry_network::{AttachOptions, NodeNetwork, NodeNetworkConfig};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

/// How long a connection that nobody answers is waited for.
const SILENCE: Duration = Duration::from_millis(600);

/// Ranges of this node's pods.
pub(crate) const POD_CIDRS: [&str; 2] = ["10.203.0.0/24", "fd00:203::/64"];

/// The network of a node.
pub(crate) async fn node(dir: &Path) -> NodeNetwork {
    let cidrs: Vec<_> = POD_CIDRS.iter().map(|c| c.parse().expect("cidr")).collect();
    NodeNetwork::open(NodeNetworkConfig {
        data_dir: dir.to_owned(),
        node_name: "n".into(),
        instance: "t2".into(),
        pod_cidrs: cidrs.clone(),
        cluster_cidrs: cidrs,
        service_cidrs: vec!["10.204.0.0/16".parse().expect("cidr")],
        node_ips: vec![],
        mtu: None,
    })
    .await
    .expect("network")
}

/// A pod, as a thread in a network namespace.
pub(crate) struct Pod {
    namespace: Namespace,
    pub addresses: Vec<IpAddr>,
}

impl Pod {
    pub(crate) async fn new(network: &NodeNetwork, key: &str) -> Pod {
        let namespace = Namespace::held();
        let addresses = network.attach(key, namespace.path(), AttachOptions::default()).await.expect("attach").ips;
        Pod { namespace, addresses }
    }

    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.namespace.run(work)
    }

    /// Repeats what it is told on a port, one line at a time.
    pub(crate) fn serve(&self, port: u16) {
        let listener = self.run(|| TcpListener::bind(("::", port)).expect("bind"));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("accept");
                thread::spawn(move || {
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
                });
            }
        });
    }

    /// Whether the pod can open a connection to another's port.
    pub(crate) fn reaches(&self, to: &Pod, port: u16) -> bool {
        let all: Vec<bool> = to.addresses.iter().map(|ip| self.run(|| reaches(*ip, port))).collect();
        assert!(all.iter().all(|one| *one == all[0]), "the address families differ: {:?} {all:?}", to.addresses);
        all[0]
    }
}

/// Whether a port can be reached from where the thread is; what is dropped is not answered.
pub(crate) fn reaches(to: IpAddr, port: u16) -> bool {
    match connect(to, port) {
        Ok(_) => true,
        Err(ErrorKind::TimedOut) => false,
        Err(other) => panic!("{to} {port}: {other}"),
    }
}

/// A connection.
pub(crate) fn connect(to: IpAddr, port: u16) -> Result<TcpStream, ErrorKind> {
    TcpStream::connect_timeout(&SocketAddr::new(to, port), SILENCE).map_err(|e| e.kind())
}

/// Whether the other end of a connection still answers.
pub(crate) fn answers(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
    let mut byte = [0];
    stream.write_all(b"x").is_ok() && stream.read_exact(&mut byte).is_ok() && byte == *b"x"
}
