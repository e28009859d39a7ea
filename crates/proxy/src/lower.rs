//! A Service's rules as elements of the proxy's maps.

use std::{collections::HashMap, fmt, net::IpAddr, sync::Arc, time::Duration};

use gantry_network::{
    IpNet, Protocol,
    nft::{Element, Family, Field, Set, Value, Verdict},
};

use crate::compile::{Frontend, PortRules, Route, ServiceRules, Target};

/// The most sticky clients remembered.
const STICKY_CLIENTS: u32 = 1 << 18;

/// The proxy's maps and sets. A "frontend" key is (address . protocol . port), or (protocol . port) for node ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Map {
    /// Frontend → chain.
    Services,
    /// Frontend → chain, for sources inside the cluster, where they differ.
    ServicesInside,
    /// Frontend → chain, for all other sources, where they differ.
    ServicesOutside,
    NodePorts,
    NodePortsInside,
    NodePortsOutside,
    /// (frontend . index) → (address . port).
    Endpoints,
    LocalEndpoints,
    NodePortEndpoints,
    NodePortLocalEndpoints,
    /// (frontend . index) → number of the endpoint, for services with session affinity.
    Numbers,
    LocalNumbers,
    NodePortNumbers,
    NodePortLocalNumbers,
    /// Number of an endpoint → (address . port).
    Numbered,
    /// Frontend → what to answer in place of endpoints.
    Unserved,
    NodePortsUnserved,
    /// Frontends whose clients are limited → chain that drops the others.
    Guarded,
    /// Cluster IPs.
    ClusterIps,
    /// Frontends whose clients' addresses are hidden.
    Hidden,
    NodePortsHidden,
}

/// Every map.
pub const MAPS: [Map; 21] = [
    Map::Services,
    Map::ServicesInside,
    Map::ServicesOutside,
    Map::NodePorts,
    Map::NodePortsInside,
    Map::NodePortsOutside,
    Map::Endpoints,
    Map::LocalEndpoints,
    Map::NodePortEndpoints,
    Map::NodePortLocalEndpoints,
    Map::Numbers,
    Map::LocalNumbers,
    Map::NodePortNumbers,
    Map::NodePortLocalNumbers,
    Map::Numbered,
    Map::Unserved,
    Map::NodePortsUnserved,
    Map::Guarded,
    Map::ClusterIps,
    Map::Hidden,
    Map::NodePortsHidden,
];

impl Map {
    /// Its name in the kernel.
    pub fn name(self) -> &'static str {
        match self {
            Map::Services => "services",
            Map::ServicesInside => "services-inside",
            Map::ServicesOutside => "services-outside",
            Map::NodePorts => "node-ports",
            Map::NodePortsInside => "node-ports-inside",
            Map::NodePortsOutside => "node-ports-outside",
            Map::Endpoints => "endpoints",
            Map::LocalEndpoints => "endpoints-local",
            Map::NodePortEndpoints => "node-port-endpoints",
            Map::NodePortLocalEndpoints => "node-port-endpoints-local",
            Map::Numbers => "numbers",
            Map::LocalNumbers => "numbers-local",
            Map::NodePortNumbers => "node-port-numbers",
            Map::NodePortLocalNumbers => "node-port-numbers-local",
            Map::Numbered => "endpoints-by-number",
            Map::Unserved => "unserved",
            Map::NodePortsUnserved => "node-ports-unserved",
            Map::Guarded => "guarded",
            Map::ClusterIps => "cluster-ips",
            Map::Hidden => "hidden",
            Map::NodePortsHidden => "node-ports-hidden",
        }
    }

    /// Its declaration in a table of a family.
    pub fn set(self, family: Family) -> Set {
        let address = Field::Address(family);
        let frontend = [address, Field::Protocol, Field::Port];
        let node_port = [Field::Protocol, Field::Port];
        let indexed = [address, Field::Protocol, Field::Port, Field::Number];
        let indexed_node_port = [Field::Protocol, Field::Port, Field::Number];
        let target = [address, Field::Port];
        let name = self.name();
        match self {
            Map::Services | Map::ServicesInside | Map::ServicesOutside | Map::Unserved | Map::Guarded => {
                Set::new(name, &frontend).to_verdicts()
            }
            Map::NodePorts | Map::NodePortsInside | Map::NodePortsOutside | Map::NodePortsUnserved => {
                Set::new(name, &node_port).to_verdicts()
            }
            Map::Endpoints | Map::LocalEndpoints => Set::new(name, &indexed).to_fields(&target),
            Map::NodePortEndpoints | Map::NodePortLocalEndpoints => {
                Set::new(name, &indexed_node_port).to_fields(&target)
            }
            Map::Numbers | Map::LocalNumbers => Set::new(name, &indexed).to_fields(&[Field::Number]),
            Map::NodePortNumbers | Map::NodePortLocalNumbers => {
                Set::new(name, &indexed_node_port).to_fields(&[Field::Number])
            }
            Map::Numbered => Set::new(name, &[Field::Number]).to_fields(&target),
            Map::ClusterIps => Set::new(name, &[address]),
            Map::Hidden => Set::new(name, &frontend),
            Map::NodePortsHidden => Set::new(name, &node_port),
        }
    }
}

/// The dynamic map (source . destination . protocol . port) → number of the endpoint the client sticks to.
pub(crate) const STICKY: &str = "sticky";

/// Its declaration.
pub(crate) fn sticky_set(family: Family) -> Set {
    let address = Field::Address(family);
    Set::new(STICKY, &[address, address, Field::Protocol, Field::Port])
        .to_fields(&[Field::Number])
        .dynamic(STICKY_CLIENTS)
}

/// A chain that exists because elements lead to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Chain {
    /// Spreads connections over endpoints.
    Spread {
        /// Whether it is for node ports.
        node_port: bool,
        /// Whether it is for the endpoints on this node.
        local: bool,
        /// How many endpoints.
        size: u32,
        /// How long clients stick to one, in seconds.
        sticky: Option<u64>,
    },
    /// Drops what does not come from these networks.
    Guard(Arc<[IpNet]>),
    /// A chain that is always there.
    Fixed(&'static str),
}

/// The fixed chain for frontends where sources inside the cluster are treated differently.
pub(crate) const BY_SOURCE: &str = "by-source";
/// The same for node ports.
pub(crate) const NODE_PORT_BY_SOURCE: &str = "node-port-by-source";
/// The fixed chain that refuses.
pub(crate) const REFUSE: &str = "refuse";

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Chain::Spread { node_port, local, size, sticky } => {
                f.write_str(if *node_port { "node-port-spread" } else { "spread" })?;
                f.write_str(if *local { "-local" } else { "" })?;
                write!(f, "-{size}")?;
                sticky.map_or(Ok(()), |seconds| write!(f, "-sticky-{seconds}s"))
            }
            Chain::Guard(networks) => {
                // FNV-1a over the text: the same networks share a chain.
                let hash = networks
                    .iter()
                    .flat_map(|n| format!("{n},").into_bytes())
                    .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
                write!(f, "guard-{hash:016x}")
            }
            Chain::Fixed(name) => f.write_str(name),
        }
    }
}

/// What an entry leads to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leads {
    /// Nothing: a set's element.
    Nowhere,
    /// A value.
    To(Box<[u8]>),
    /// A chain.
    Through(Chain),
    /// The end.
    Drop,
}

/// An element of one of the maps, kept small: there are many.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The map.
    pub map: Map,
    /// The key.
    pub key: Box<[u8]>,
    /// What it leads to.
    pub leads: Leads,
}

impl Entry {
    fn new(map: Map, key: Value, leads: Leads) -> Entry {
        Entry { map, key: key.as_bytes().into(), leads }
    }

    /// The element for the kernel.
    pub fn element(&self) -> Element {
        let value = |bytes: &[u8]| Value::from_bytes(bytes).unwrap_or_default();
        let key = value(&self.key);
        match &self.leads {
            Leads::Nowhere => Element::of(key),
            Leads::To(bytes) => Element::value(key, value(bytes)),
            Leads::Through(chain) => Element::verdict(key, Verdict::Goto(chain.to_string())),
            Leads::Drop => Element::verdict(key, Verdict::Drop),
        }
    }
}

/// Numbers of endpoints that clients may stick to. A number is never used twice, so that a client that stuck to an
/// endpoint which is gone cannot be led to another one by accident.
#[derive(Debug, Default)]
pub struct Numbers {
    last: u32,
    by_endpoint: HashMap<(Arc<str>, Protocol, Target), u32>,
}

impl Numbers {
    fn of(&mut self, service: &Arc<str>, protocol: Protocol, target: Target) -> u32 {
        *self.by_endpoint.entry((service.clone(), protocol, target)).or_insert_with(|| {
            self.last += 1;
            self.last
        })
    }

    /// Forgets the numbers of a service's endpoints that it no longer has.
    pub(crate) fn retain(&mut self, service: &Arc<str>, rules: &ServiceRules) {
        self.by_endpoint.retain(|(owner, protocol, target), _| {
            owner != service
                || rules
                    .ports
                    .iter()
                    .any(|p| p.protocol == *protocol && (p.near.contains(target) || p.local.contains(target)))
        });
    }

    /// Whether any number was given out.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_endpoint.is_empty()
    }
}

/// The identity of a frontend: no two services can have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontendKey {
    /// The address; `None` for a node port.
    pub address: Option<IpAddr>,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

impl FrontendKey {
    /// Of a frontend of a port.
    pub fn new(port: &PortRules, frontend: &Frontend) -> FrontendKey {
        FrontendKey { address: frontend.address, protocol: port.protocol, port: frontend.port }
    }

    fn value(&self) -> Value {
        let start = match self.address {
            Some(address) => Value::new().address(address),
            None => Value::new(),
        };
        start.byte(self.protocol.number()).port(self.port)
    }
}

impl fmt::Display for FrontendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}/{}", self.port, self.protocol),
            Some(ip) => write!(f, "{ip}:{}/{}", self.port, self.protocol),
            None => write!(f, "node port {}/{}", self.port, self.protocol),
        }
    }
}

/// Spells a service out as entries, sorted, each key once. Frontends for which `may_have` says no are left out.
pub fn lower(
    service: &Arc<str>,
    rules: &ServiceRules,
    numbers: &mut Numbers,
    may_have: impl Fn(&FrontendKey) -> bool,
) -> Vec<Entry> {
    let mut entries = Vec::new();
    for port in &rules.ports {
        for frontend in &port.frontends {
            let key = FrontendKey::new(port, frontend);
            if may_have(&key) {
                Lowering { service, port, frontend, key: key.value(), numbers, entries: &mut entries }.run();
            }
        }
    }
    entries.sort();
    entries.dedup();
    entries
}

struct Lowering<'a> {
    service: &'a Arc<str>,
    port: &'a PortRules,
    frontend: &'a Frontend,
    key: Value,
    numbers: &'a mut Numbers,
    entries: &'a mut Vec<Entry>,
}

impl Lowering<'_> {
    fn run(mut self) {
        let node_port = self.frontend.address.is_none();
        let either = |vip: Map, port: Map| if node_port { port } else { vip };
        if let (Some(address), true) = (self.frontend.address, self.frontend.is_cluster_ip) {
            self.entries.push(Entry::new(Map::ClusterIps, Value::new().address(address), Leads::Nowhere));
        }
        if self.frontend.masquerade {
            self.put(either(Map::Hidden, Map::NodePortsHidden), Leads::Nowhere);
        }
        if !self.frontend.allowed.is_empty() {
            let guard = Chain::Guard(self.frontend.allowed.clone().into());
            self.put(Map::Guarded, Leads::Through(guard));
        }
        match self.frontend.route_inside.filter(|inside| *inside != self.frontend.route) {
            None => self.route(self.frontend.route, either(Map::Services, Map::NodePorts)),
            Some(inside) => {
                let split = if node_port { NODE_PORT_BY_SOURCE } else { BY_SOURCE };
                self.put(either(Map::Services, Map::NodePorts), Leads::Through(Chain::Fixed(split)));
                self.route(inside, either(Map::ServicesInside, Map::NodePortsInside));
                self.route(self.frontend.route, either(Map::ServicesOutside, Map::NodePortsOutside));
            }
        }
    }

    fn put(&mut self, map: Map, leads: Leads) {
        self.entries.push(Entry::new(map, self.key, leads));
    }

    /// Leads the frontend, in `map`, to its endpoints; or says what to answer instead.
    fn route(&mut self, route: Route, map: Map) {
        let node_port = self.frontend.address.is_none();
        let unserved = if node_port { Map::NodePortsUnserved } else { Map::Unserved };
        let local = match route {
            Route::Near => false,
            Route::Local => true,
            Route::Refuse => return self.put(unserved, Leads::Through(Chain::Fixed(REFUSE))),
            Route::Drop => return self.put(unserved, Leads::Drop),
        };
        let targets = if local { &self.port.local } else { &self.port.near };
        let sticky = self.port.affinity.as_ref().map(Duration::as_secs);
        let chain = Chain::Spread { node_port, local, size: targets.len() as u32, sticky };
        self.put(map, Leads::Through(chain));
        for (index, target) in targets.iter().enumerate() {
            let key = self.key.number(index as u32);
            let destination = Value::new().address(target.address).port(target.port);
            if sticky.is_none() {
                let map = endpoints_map(node_port, local);
                self.entries.push(Entry::new(map, key, Leads::To(destination.as_bytes().into())));
                continue;
            }
            let number = Value::new().number(self.numbers.of(self.service, self.port.protocol, *target));
            let map = numbers_map(node_port, local);
            self.entries.push(Entry::new(map, key, Leads::To(number.as_bytes().into())));
            self.entries.push(Entry::new(Map::Numbered, number, Leads::To(destination.as_bytes().into())));
        }
    }
}

/// Where a spreading chain without affinity finds endpoints.
pub(crate) fn endpoints_map(node_port: bool, local: bool) -> Map {
    match (node_port, local) {
        (false, false) => Map::Endpoints,
        (false, true) => Map::LocalEndpoints,
        (true, false) => Map::NodePortEndpoints,
        (true, true) => Map::NodePortLocalEndpoints,
    }
}

/// Where a spreading chain with affinity finds numbers of endpoints.
pub(crate) fn numbers_map(node_port: bool, local: bool) -> Map {
    match (node_port, local) {
        (false, false) => Map::Numbers,
        (false, true) => Map::LocalNumbers,
        (true, false) => Map::NodePortNumbers,
        (true, true) => Map::NodePortLocalNumbers,
    }
}
