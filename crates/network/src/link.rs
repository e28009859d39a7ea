//! Links, addresses, neighbours and routes, on the host and inside a pod, all over rtnetlink.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, FromRawFd, IntoRawFd, RawFd},
};

use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::{
    Handle, IpVersion, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressFlags},
        link::{InfoData, InfoVeth, LinkAttribute},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope},
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
    sys::{Socket, TokioSocket, protocols::NETLINK_ROUTE},
};

use crate::{NetworkError, namespace::in_network_namespace};

/// The next hop pods send everything to. It exists nowhere: the host's end of the veth pair answers for it.
pub(crate) const NEXT_HOP_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The same for IPv6.
pub(crate) const NEXT_HOP_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The hardware address of every host end. Each is alone on its wire, so one address serves all.
const HOST_MAC: [u8; 6] = [0xee; 6];
/// The name of a pod's interface.
pub(crate) const POD_INTERFACE: &str = "eth0";
/// Marks the routes made here (`ip route` shows `proto 103`), so that teardown can tell them from others.
pub(crate) const ROUTE_PROTOCOL: RouteProtocol = RouteProtocol::Other(103);
/// Marks the routes to other nodes' pods: what leads out of the machine is no pod of another instance.
const NODE_ROUTE_PROTOCOL: RouteProtocol = RouteProtocol::Other(104);

/// The next hop for pods' traffic in the family of `ip`.
fn next_hop(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => NEXT_HOP_V4.into(),
        IpAddr::V6(_) => NEXT_HOP_V6.into(),
    }
}

/// A locally administered hardware address that follows from the pod's primary address.
fn pod_mac(ip: IpAddr) -> [u8; 6] {
    let tail = match ip {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => {
            let o = v6.octets();
            [o[12], o[13], o[14], o[15]]
        }
    };
    [0x0a, 0x67, tail[0], tail[1], tail[2], tail[3]]
}

/// A route netlink connection that lives as long as it is held.
pub(crate) struct RouteSocket {
    handle: Handle,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for RouteSocket {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl RouteSocket {
    /// Opens one in the network namespace of the calling thread.
    pub(crate) fn open() -> Result<RouteSocket, NetworkError> {
        let socket = Socket::new(NETLINK_ROUTE).map_err(NetworkError::io("open route netlink socket"))?;
        Ok(Self::from_socket(socket))
    }

    /// Opens one in another network namespace; it is used from here nevertheless.
    pub(crate) fn open_in(namespace: &File, path: &str) -> Result<RouteSocket, NetworkError> {
        let socket = in_network_namespace(namespace, || Socket::new(NETLINK_ROUTE))
            .map_err(NetworkError::io(format!("open route netlink socket in network namespace {path}")))?;
        Ok(Self::from_socket(socket))
    }

    fn from_socket(socket: Socket) -> RouteSocket {
        // SAFETY: the descriptor was just taken out of its owner, so the new one is its only owner.
        let socket = unsafe { TokioSocket::from_raw_fd(socket.into_raw_fd()) };
        let (connection, handle, _messages) = rtnetlink::from_socket(socket);
        let task = tokio::spawn(connection);
        RouteSocket { handle, task }
    }

    /// The index of a link, or `None` when there is none of that name.
    pub(crate) async fn index_of(&self, name: &str) -> Result<Option<u32>, NetworkError> {
        let mut links = self.handle.link().get().match_name(name).execute();
        match links.try_next().await {
            Ok(link) => Ok(link.map(|link| link.header.index)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(NetworkError::netlink(format!("look up interface {name}"))(error)),
        }
    }

    /// Every link's name and index.
    pub(crate) async fn links(&self) -> Result<Vec<(String, u32)>, NetworkError> {
        let mut links = self.handle.link().get().execute();
        let mut found = Vec::new();
        while let Some(link) = links.try_next().await.map_err(NetworkError::netlink("list interfaces"))? {
            let name = link.attributes.iter().find_map(|a| match a {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            });
            if let Some(name) = name {
                found.push((name, link.header.index));
            }
        }
        Ok(found)
    }

    /// Removes a link with everything that hangs on it. Absence is no error.
    pub(crate) async fn delete_link(&self, name: &str) -> Result<(), NetworkError> {
        let Some(index) = self.index_of(name).await? else {
            return Ok(());
        };
        match self.handle.link().del(index).execute().await {
            Err(error) if !is_absent(&error) => Err(NetworkError::netlink(format!("delete interface {name}"))(error)),
            _ => Ok(()),
        }
    }

    /// Makes a veth pair: `host_name` here, [`POD_INTERFACE`] in the other namespace. Answers the index here.
    pub(crate) async fn create_pair(
        &self,
        host_name: &str,
        namespace: RawFd,
        primary: IpAddr,
        mtu: u32,
    ) -> Result<u32, NetworkError> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(POD_INTERFACE)
            .setns_by_fd(namespace)
            .address(pod_mac(primary).to_vec())
            .mtu(mtu)
            .build();
        let pair = LinkMessageBuilder::<LinkVeth>::new(host_name, POD_INTERFACE)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .address(HOST_MAC.to_vec())
            .mtu(mtu)
            .up()
            .build();
        self.handle
            .link()
            .add(pair)
            .execute()
            .await
            .map_err(NetworkError::netlink(format!("create veth pair {host_name}")))?;
        self.index_of(host_name).await?.ok_or_else(|| NetworkError::Io {
            what: format!("create veth pair {host_name}"),
            source: io::Error::other("the interface vanished at once"),
        })
    }

    /// Leads traffic for a pod's address to the host's end of its pair. The hardware address follows from the primary one.
    pub(crate) async fn route_to_pod(
        &self,
        ip: IpAddr,
        primary: IpAddr,
        interface: u32,
        source: Option<IpAddr>,
    ) -> Result<(), NetworkError> {
        self.neighbour(interface, ip, pod_mac(primary)).await?;
        let route = self.route(IpNet::from(ip), interface, source, RouteScope::Link, None)?;
        self.handle
            .route()
            .add(route)
            .replace()
            .execute()
            .await
            .map_err(NetworkError::netlink(format!("add route to pod address {ip}")))
    }

    /// Sets up the pod's side: loopback and `eth0` up, addresses, next hop, default route.
    pub(crate) async fn configure_pod(&self, ips: &[IpAddr]) -> Result<(), NetworkError> {
        self.loopback_up().await?;
        let index = self.index_of(POD_INTERFACE).await?.ok_or_else(|| NetworkError::Io {
            what: format!("look up {POD_INTERFACE} in the pod"),
            source: io::Error::from(io::ErrorKind::NotFound),
        })?;
        self.set_up(index, POD_INTERFACE).await?;
        for ip in ips {
            self.add_address(index, *ip).await?;
            let hop = next_hop(*ip);
            self.neighbour(index, hop, HOST_MAC).await?;
            let all = match ip {
                IpAddr::V4(_) => IpNet::new(Ipv4Addr::UNSPECIFIED.into(), 0),
                IpAddr::V6(_) => IpNet::new(Ipv6Addr::UNSPECIFIED.into(), 0),
            };
            let all = all.map_err(|error| NetworkError::Config(error.to_string()))?;
            let route = self.route(all, index, None, RouteScope::Universe, Some(hop))?;
            self.handle
                .route()
                .add(route)
                .replace()
                .execute()
                .await
                .map_err(NetworkError::netlink(format!("add default route over {hop} in the pod")))?;
        }
        Ok(())
    }

    /// Brings `lo` up.
    pub(crate) async fn loopback_up(&self) -> Result<(), NetworkError> {
        self.set_up(LOOPBACK, "lo").await
    }

    async fn set_up(&self, index: u32, name: &str) -> Result<(), NetworkError> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().index(index).up().build();
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(NetworkError::netlink(format!("set interface {name} up")))
    }

    /// Adds a host address (/32 or /128) to a link; having it already is no error.
    pub(crate) async fn add_address(&self, interface: u32, ip: IpAddr) -> Result<(), NetworkError> {
        let mut request = self.handle.address().add(interface, ip, IpNet::from(ip).prefix_len());
        if ip.is_ipv6() {
            // Nobody else is on this wire: duplicate address detection would only delay the pod by a second.
            request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        match request.execute().await {
            Err(error) if code(&error) != Some(libc::EEXIST) => {
                Err(NetworkError::netlink(format!("add address {ip} to interface {interface}"))(error))
            }
            _ => Ok(()),
        }
    }

    /// Takes an address off a link; absence is no error.
    pub(crate) async fn remove_address(&self, interface: u32, ip: IpAddr) -> Result<(), NetworkError> {
        let mut found = self.handle.address().get().set_link_index_filter(interface).set_address_filter(ip).execute();
        while let Some(message) =
            found.try_next().await.map_err(NetworkError::netlink(format!("list addresses of interface {interface}")))?
        {
            match self.handle.address().del(message).execute().await {
                Err(error) if !is_absent(&error) => {
                    return Err(NetworkError::netlink(format!("remove address {ip}"))(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Adds a route to a network over `lo`, used only where the main table has none: it stands in a table of its own
    /// that is asked last. Connections of the node itself then come from `source`.
    pub(crate) async fn add_fallback_route(
        &self,
        network: IpNet,
        source: IpAddr,
        table: u32,
    ) -> Result<(), NetworkError> {
        let route = self.fallback_route(network, source, table)?;
        self.handle
            .route()
            .add(route)
            .replace()
            .execute()
            .await
            .map_err(NetworkError::netlink(format!("add route to {network}")))?;
        let mut request = self.handle.rule().add();
        *request.message_mut() = fallback_rule(network, table);
        match request.execute().await {
            Err(error) if code(&error) != Some(libc::EEXIST) => {
                Err(NetworkError::netlink(format!("add routing rule for {network}"))(error))
            }
            _ => Ok(()),
        }
    }

    /// Removes what [`add_fallback_route`](Self::add_fallback_route) added; absence is no error.
    pub(crate) async fn remove_fallback_route(
        &self,
        network: IpNet,
        source: IpAddr,
        table: u32,
    ) -> Result<(), NetworkError> {
        let rule = fallback_rule(network, table);
        match self.handle.rule().del(rule).execute().await {
            Err(error) if !is_absent(&error) => {
                return Err(NetworkError::netlink(format!("remove routing rule for {network}"))(error));
            }
            _ => {}
        }
        let route = self.fallback_route(network, source, table)?;
        match self.handle.route().del(route).execute().await {
            Err(error) if !is_absent(&error) => Err(NetworkError::netlink(format!("remove route to {network}"))(error)),
            _ => Ok(()),
        }
    }

    /// The fallback routes of a table: their networks, and the addresses that connections over them come from.
    pub(crate) async fn fallback_routes(&self, table: u32) -> Result<Vec<(IpNet, IpAddr)>, NetworkError> {
        let mut found = Vec::new();
        let dumps = [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()];
        for dump in dumps {
            let mut routes = self.handle.route().get(dump).execute();
            while let Some(route) = routes.try_next().await.map_err(NetworkError::netlink("list routes"))? {
                let (mut of, mut to, mut source) = (u32::from(route.header.table), None, None);
                for attribute in &route.attributes {
                    match attribute {
                        RouteAttribute::Table(t) => of = *t,
                        RouteAttribute::Destination(a) => to = address(a),
                        RouteAttribute::PrefSource(a) => source = address(a),
                        _ => {}
                    }
                }
                let to = to.and_then(|to| IpNet::new(to, route.header.destination_prefix_length).ok());
                found.extend(to.zip(source).filter(|_| of == table));
            }
        }
        Ok(found)
    }

    fn fallback_route(&self, network: IpNet, source: IpAddr, table: u32) -> Result<RouteMessage, NetworkError> {
        let mut route = self.route(network, LOOPBACK, Some(source), RouteScope::Link, None)?;
        route.header.table = 0;
        route.attributes.push(RouteAttribute::Table(table));
        Ok(route)
    }

    /// What other instances hold on this machine, by the routing rules and routes they made: ranges of services, and
    /// addresses of nodes and pods. `tables` are those of all instances' fallback routes, `own` is this instance's;
    /// `prefix` is what its interface names start with.
    pub(crate) async fn foreign(
        &self,
        tables: std::ops::RangeInclusive<u32>,
        own: u32,
        prefix: &str,
    ) -> Result<(Vec<IpNet>, Vec<IpAddr>), NetworkError> {
        let foreign = |table: u32| table != own && tables.contains(&table);
        let mut services = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let mut rules = self.handle.rule().get(version).execute();
            while let Some(rule) = rules.try_next().await.map_err(NetworkError::netlink("list routing rules"))? {
                let table = rule.attributes.iter().find_map(|a| match a {
                    RuleAttribute::Table(table) => Some(*table),
                    _ => None,
                });
                let to = rule.attributes.iter().find_map(|a| match a {
                    RuleAttribute::Destination(to) => IpNet::new(*to, rule.header.dst_len).ok(),
                    _ => None,
                });
                if table.is_some_and(foreign) {
                    services.extend(to);
                }
            }
        }
        let others: Vec<u32> =
            self.links().await?.into_iter().filter(|(name, _)| !name.starts_with(prefix)).map(|(_, i)| i).collect();
        let mut addresses = Vec::new();
        let dumps = [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()];
        for dump in dumps {
            let mut routes = self.handle.route().get(dump).execute();
            while let Some(route) = routes.try_next().await.map_err(NetworkError::netlink("list routes"))? {
                if route.header.protocol != ROUTE_PROTOCOL {
                    continue;
                }
                let (mut table, mut to, mut source, mut through) = (u32::from(route.header.table), None, None, None);
                for attribute in &route.attributes {
                    match attribute {
                        RouteAttribute::Table(t) => table = *t,
                        RouteAttribute::Destination(a) => to = address(a),
                        RouteAttribute::PrefSource(a) => source = address(a),
                        RouteAttribute::Oif(index) => through = Some(*index),
                        _ => {}
                    }
                }
                if foreign(table) {
                    addresses.extend(source);
                } else if !tables.contains(&table) && through.is_some_and(|i| others.contains(&i)) {
                    addresses.extend(to);
                }
            }
        }
        Ok((services, addresses))
    }

    /// Adds a route to another node's pods over that node's address, or changes the one there is.
    pub(crate) async fn add_node_route(&self, network: IpNet, via: IpAddr) -> Result<(), NetworkError> {
        let route = node_route(network, via)?;
        let added = self.handle.route().add(route).replace().execute().await;
        added.map_err(NetworkError::netlink(format!("add route to {network} via {via}")))
    }

    /// Removes what [`add_node_route`](Self::add_node_route) added; absence is no error.
    pub(crate) async fn remove_node_route(&self, network: IpNet, via: IpAddr) -> Result<(), NetworkError> {
        match self.handle.route().del(node_route(network, via)?).execute().await {
            Err(error) if !is_absent(&error) => {
                Err(NetworkError::netlink(format!("remove route to {network} via {via}"))(error))
            }
            _ => Ok(()),
        }
    }

    /// The MTU of the link the default route leads over, if there is one: that of IPv4, else that of IPv6.
    pub(crate) async fn default_route_mtu(&self) -> Result<Option<u32>, NetworkError> {
        let mut out = None;
        let dumps = [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()];
        for dump in dumps {
            let mut routes = self.handle.route().get(dump).execute();
            while let Some(route) = routes.try_next().await.map_err(NetworkError::netlink("list routes"))? {
                if route.header.destination_prefix_length == 0 && out.is_none() {
                    out = route.attributes.iter().find_map(|a| match a {
                        RouteAttribute::Oif(index) => Some(*index),
                        _ => None,
                    });
                }
            }
        }
        let Some(index) = out else { return Ok(None) };
        let mut links = self.handle.link().get().match_index(index).execute();
        let link = links.try_next().await.map_err(NetworkError::netlink(format!("look up interface {index}")))?;
        Ok(link.and_then(|link| {
            link.attributes.iter().find_map(|a| match a {
                LinkAttribute::Mtu(mtu) => Some(*mtu),
                _ => None,
            })
        }))
    }

    async fn neighbour(&self, interface: u32, ip: IpAddr, mac: [u8; 6]) -> Result<(), NetworkError> {
        self.handle
            .neighbours()
            .add(interface, ip)
            .link_layer_address(&mac)
            .replace()
            .execute()
            .await
            .map_err(NetworkError::netlink(format!("add neighbour {ip}")))
    }

    fn route(
        &self,
        to: IpNet,
        interface: u32,
        source: Option<IpAddr>,
        scope: RouteScope,
        gateway: Option<IpAddr>,
    ) -> Result<RouteMessage, NetworkError> {
        let bad = |error: &dyn std::fmt::Display| NetworkError::Config(format!("route to {to}: {error}"));
        let mut builder = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to.addr(), to.prefix_len())
            .map_err(|e| bad(&e))?
            .output_interface(interface)
            .protocol(ROUTE_PROTOCOL)
            .scope(if to.addr().is_ipv6() { RouteScope::Universe } else { scope });
        if let Some(source) = source.filter(|s| s.is_ipv4() == to.addr().is_ipv4()) {
            builder = builder.pref_source(source).map_err(|e| bad(&e))?;
        }
        if let Some(gateway) = gateway {
            builder = builder.gateway(gateway).map_err(|e| bad(&e))?.onlink();
        }
        let mut message = builder.build();
        if to.prefix_len() == 0 {
            // A default route is the absence of a destination.
            message
                .attributes
                .retain(|a| !matches!(a, RouteAttribute::Destination(RouteAddress::Inet(_) | RouteAddress::Inet6(_))));
        }
        Ok(message)
    }
}

/// A route over a neighbour: the kernel finds the interface, and refuses what is none.
fn node_route(network: IpNet, via: IpAddr) -> Result<RouteMessage, NetworkError> {
    let bad = |error: &dyn std::fmt::Display| NetworkError::Config(format!("route to {network}: {error}"));
    Ok(RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(network.network(), network.prefix_len())
        .map_err(|e| bad(&e))?
        .gateway(via)
        .map_err(|e| bad(&e))?
        .protocol(NODE_ROUTE_PROTOCOL)
        .scope(RouteScope::Universe)
        .build())
}

fn address(of_route: &RouteAddress) -> Option<IpAddr> {
    match of_route {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

/// The rule that asks a table of fallback routes after all others.
fn fallback_rule(network: IpNet, table: u32) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = match network {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    rule.header.dst_len = network.prefix_len();
    rule.header.action = RuleAction::ToTable;
    rule.attributes.push(RuleAttribute::Destination(network.network()));
    rule.attributes.push(RuleAttribute::Priority(FALLBACK_RULE_PRIORITY));
    rule.attributes.push(RuleAttribute::Table(table));
    rule
}

/// Just behind the kernel's own rules for the main (32766) and default (32767) tables.
const FALLBACK_RULE_PRIORITY: u32 = 32_800;

/// The index of `lo`, the same in every network namespace.
pub(crate) const LOOPBACK: u32 = 1;

/// Opens a network namespace by its path.
pub(crate) fn open_namespace(path: &std::path::Path) -> Result<File, NetworkError> {
    File::open(path).map_err(NetworkError::io(format!("open network namespace {}", path.display())))
}

/// The descriptor for use in a netlink message; valid while the file is held.
pub(crate) fn descriptor(file: &File) -> RawFd {
    file.as_raw_fd()
}

fn code(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(message.raw_code().abs()),
        _ => None,
    }
}

fn is_absent(error: &rtnetlink::Error) -> bool {
    matches!(code(error), Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL))
}
