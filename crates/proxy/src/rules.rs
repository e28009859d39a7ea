//! The chains: the fixed ones that every packet to a service takes, and those that spread connections.

use std::time::Duration;

use gantry_network::{
    IpNet, Protocol,
    nft::{
        ADDRESS_TYPE_LOCAL, BaseChain, Batch, CT_STATE_NEW, CT_STATUS_DNAT, ChainKind, Compare, Ct, Family, FibAddress,
        Field, Hook, Meta, PRIORITY_DNAT, PRIORITY_FILTER, PRIORITY_SNAT, Register, Reject, Rule, Set, SetUpdate,
        Table, Value, Verdict, network_ranges,
    },
};

use crate::lower::{
    BY_SOURCE, Chain, MAPS, Map, NODE_PORT_BY_SOURCE, REFUSE, STICKY, endpoints_map, numbers_map, sticky_set,
};

/// Where the cluster's pods are.
const CLUSTER: &str = "cluster";
/// The protocol number of TCP.
const TCP: u8 = Protocol::Tcp.number();
/// Leads connections to services.
const SERVICES: &str = "to-services";
/// Answers for services without endpoints.
const UNSERVED: &str = "to-unserved";
/// Keeps clients away that a load balancer's source ranges exclude.
const GUARDS: &str = "to-guards";

/// Writes the empty table: maps, fixed chains, hooks.
pub(crate) fn write_table(batch: &mut Batch, table: &Table, cluster_cidrs: &[IpNet]) {
    let family = table.family;
    batch.add_table(table);
    for map in MAPS {
        batch.add_set(table, &map.set(family));
    }
    batch.add_set(table, &sticky_set(family));
    batch.add_set(table, &Set::new(CLUSTER, &[Field::Address(family)]).of_ranges());
    let own: Vec<IpNet> =
        cluster_cidrs.iter().filter(|c| c.addr().is_ipv4() == (family == Family::Ipv4)).copied().collect();
    batch.add_elements(table, CLUSTER, &network_ranges(&own));

    let key = Register(0);
    for chain in [REFUSE, BY_SOURCE, NODE_PORT_BY_SOURCE, SERVICES, UNSERVED, GUARDS] {
        batch.add_chain(table, chain);
    }
    // Both mean "connection refused" to a TCP client; the reset also arrives where an ICMP error would not, as when the
    // node itself has no route of its own towards the services.
    let tcp = Rule::new().load_meta(Meta::Protocol, key).compare(key, Compare::Equal, &Value::new().byte(TCP));
    batch.add_rule(table, REFUSE, &tcp.reject(family, Reject::TcpReset));
    batch.add_rule(table, REFUSE, &Rule::new().reject(family, Reject::PortUnreachable));
    for (chain, node_port) in [(BY_SOURCE, false), (NODE_PORT_BY_SOURCE, true)] {
        let (inside, outside) = if node_port {
            (Map::NodePortsInside, Map::NodePortsOutside)
        } else {
            (Map::ServicesInside, Map::ServicesOutside)
        };
        let from_pods = Rule::new().load_source(family, key).is_in(CLUSTER, key);
        batch.add_rule(table, chain, &frontend(from_pods, family, node_port, key).verdict_map(inside.name(), key));
        let from_node = is_local(Rule::new(), FibAddress::Source, key);
        batch.add_rule(table, chain, &frontend(from_node, family, node_port, key).verdict_map(inside.name(), key));
        let from_elsewhere = frontend(Rule::new(), family, node_port, key);
        batch.add_rule(table, chain, &from_elsewhere.verdict_map(outside.name(), key));
    }
    let to_services = frontend(Rule::new(), family, false, key).verdict_map(Map::Services.name(), key);
    batch.add_rule(table, SERVICES, &to_services);
    let to_node = is_local(Rule::new(), FibAddress::Destination, key);
    let to_node_ports = frontend(to_node, family, true, key).verdict_map(Map::NodePorts.name(), key);
    batch.add_rule(table, SERVICES, &to_node_ports);

    let unserved = frontend(Rule::new(), family, false, key).verdict_map(Map::Unserved.name(), key);
    batch.add_rule(table, UNSERVED, &unserved);
    let to_node = is_local(Rule::new(), FibAddress::Destination, key);
    let unserved = frontend(to_node, family, true, key).verdict_map(Map::NodePortsUnserved.name(), key);
    batch.add_rule(table, UNSERVED, &unserved);
    // A cluster IP is not a machine: what was not led to an endpoint is for a port the service does not have.
    let no_such_port = Rule::new().load_destination(family, key).is_in(Map::ClusterIps.name(), key);
    batch.add_rule(table, UNSERVED, &no_such_port.verdict(&Verdict::Goto(REFUSE.into())));

    let guards = frontend(Rule::new(), family, false, key).verdict_map(Map::Guarded.name(), key);
    batch.add_rule(table, GUARDS, &guards);

    let jump = |rule: Rule, to: &str| rule.verdict(&Verdict::Jump(to.into()));
    // IPv6 has no route over `lo` for what it forwards: without another route to a cluster IP, the client would hear of that
    // in place of a refusal (reject in prerouting: Linux 5.9).
    let early = ("filter-prerouting", ChainKind::Filter, Hook::Prerouting, PRIORITY_DNAT + 10, UNSERVED);
    for (name, kind, hook, priority, to) in [
        ("nat-prerouting", ChainKind::Nat, Hook::Prerouting, PRIORITY_DNAT, SERVICES),
        ("nat-output", ChainKind::Nat, Hook::Output, PRIORITY_DNAT, SERVICES),
        ("guard-prerouting", ChainKind::Filter, Hook::Prerouting, PRIORITY_DNAT - 10, GUARDS),
        ("guard-output", ChainKind::Filter, Hook::Output, PRIORITY_DNAT - 10, GUARDS),
        ("filter-input", ChainKind::Filter, Hook::Input, PRIORITY_FILTER, UNSERVED),
        ("filter-forward", ChainKind::Filter, Hook::Forward, PRIORITY_FILTER, UNSERVED),
        ("filter-output", ChainKind::Filter, Hook::Output, PRIORITY_FILTER, UNSERVED),
    ]
    .into_iter()
    .chain((family == Family::Ipv6).then_some(early))
    {
        batch.add_base_chain(table, name, BaseChain { kind, hook, priority });
        let rule = match kind {
            ChainKind::Nat => Rule::new(),
            ChainKind::Filter => Rule::new().load_ct(Ct::State, key).any_bit(key, CT_STATE_NEW),
        };
        batch.add_rule(table, name, &jump(rule, to));
    }

    let base = BaseChain { kind: ChainKind::Nat, hook: Hook::Postrouting, priority: PRIORITY_SNAT };
    batch.add_base_chain(table, "nat-postrouting", base);
    let rewritten = || Rule::new().load_ct(Ct::Status, key).any_bit(key, CT_STATUS_DNAT);
    let original = |rule: Rule| rule.load_ct(Ct::OriginalDestination(family), key);
    let length = family.address_length();
    // From outside the cluster to a cluster IP: only this node knows what was done to it.
    let rule = original(rewritten()).is_in(Map::ClusterIps.name(), key).load_source(family, key);
    batch.add_rule(table, "nat-postrouting", &rule.is_not_in(CLUSTER, key).masquerade());
    // To an external address or a node port, unless the client's address is to be kept.
    let rule = original(rewritten())
        .load_meta(Meta::Protocol, key.after(length))
        .load_ct(Ct::OriginalPort, key.after(length + 4));
    batch.add_rule(table, "nat-postrouting", &rule.is_in(Map::Hidden.name(), key).masquerade());
    let rule = original(rewritten())
        .is_not_in(Map::ClusterIps.name(), key)
        .load_meta(Meta::Protocol, key)
        .load_ct(Ct::OriginalPort, key.after(4));
    batch.add_rule(table, "nat-postrouting", &rule.is_in(Map::NodePortsHidden.name(), key).masquerade());
}

/// Makes a chain that entries lead to. Fixed ones are there already.
pub(crate) fn write_chain(batch: &mut Batch, table: &Table, chain: &Chain) {
    let name = chain.to_string();
    match chain {
        Chain::Fixed(_) => {}
        Chain::Guard(networks) => {
            batch.add_chain(table, &name);
            for network in networks.iter().filter(|n| n.addr().is_ipv4() == (table.family == Family::Ipv4)) {
                let key = Register(0);
                let zero = vec![0; table.family.address_length()];
                let rule = Rule::new()
                    .load_source(table.family, key)
                    .bitwise(key, &Value::new().address(network.netmask()), &Value::new().field(&zero))
                    .compare(key, Compare::Equal, &Value::new().address(network.network()));
                batch.add_rule(table, &name, &rule.verdict(&Verdict::Return));
            }
            batch.add_rule(table, &name, &Rule::new().verdict(&Verdict::Drop));
        }
        Chain::Spread { node_port, local, size, sticky } => {
            batch.add_chain(table, &name);
            match sticky {
                None => {
                    let rule = spread(table.family, *node_port, endpoints_map(*node_port, *local), *size);
                    batch.add_rule(table, &name, &rule);
                }
                Some(seconds) => {
                    let numbers = numbers_map(*node_port, *local);
                    let timeout = Duration::from_secs(*seconds);
                    for rule in sticky_rules(table.family, *node_port, numbers, *size, timeout) {
                        batch.add_rule(table, &name, &rule);
                    }
                }
            }
        }
    }
}

/// Loads a frontend key.
fn frontend(rule: Rule, family: Family, node_port: bool, key: Register) -> Rule {
    if node_port {
        rule.load_meta(Meta::Protocol, key).load_port(key.after(4))
    } else {
        let length = family.address_length();
        rule.load_destination(family, key).load_meta(Meta::Protocol, key.after(length)).load_port(key.after(length + 4))
    }
}

fn frontend_length(family: Family, node_port: bool) -> usize {
    8 + if node_port { 0 } else { family.address_length() }
}

fn is_local(rule: Rule, which: FibAddress, register: Register) -> Rule {
    rule.load_address_type(which, register).compare(register, Compare::Equal, &Value::new().number(ADDRESS_TYPE_LOCAL))
}

/// `dnat to <frontend> . random map @endpoints`
fn spread(family: Family, node_port: bool, endpoints: Map, size: u32) -> Rule {
    let key = Register(0);
    let index = key.after(frontend_length(family, node_port));
    let to = index.after(4);
    frontend(Rule::new(), family, node_port, key).load_random(size, index).map(endpoints.name(), key, to).dnat(
        family,
        to,
        to.after(family.address_length()),
    )
}

/// A client that is remembered goes where it went before, if that is still an endpoint; any other is given one and
/// remembered. The number of the endpoint travels through the packet mark, which is cleared again: `nft` can then list
/// these rules, which it cannot when values are passed from map to map directly.
fn sticky_rules(family: Family, node_port: bool, numbers: Map, size: u32, timeout: Duration) -> [Rule; 3] {
    let length = family.address_length();
    let key = Register(0);
    let number = key.after(2 * length + 8);
    let to = number.after(4);
    let client = |rule: Rule| {
        rule.load_source(family, key)
            .load_destination(family, key.after(length))
            .load_meta(Meta::Protocol, key.after(2 * length))
            .load_port(key.after(2 * length + 4))
    };
    let go = |rule: Rule| {
        rule.load_value(&Value::new().number(0), number).store_mark(number).dnat(family, to, to.after(length))
    };
    let again = client(Rule::new())
        .map(STICKY, key, number)
        .store_mark(number)
        .load_meta(Meta::Mark, number)
        .map(Map::Numbered.name(), number, to)
        .update_map(SetUpdate::Update, STICKY, key, number, Some(timeout));
    // Only reached when the endpoint is gone, or there was none.
    let forget =
        client(Rule::new()).load_meta(Meta::Mark, number).update_map(SetUpdate::Delete, STICKY, key, number, None);
    let index = key.after(frontend_length(family, node_port));
    let first = frontend(Rule::new(), family, node_port, key)
        .load_random(size, index)
        .map(numbers.name(), key, number)
        .store_mark(number)
        .load_meta(Meta::Mark, number);
    let first = client(first).update_map(SetUpdate::Update, STICKY, key, number, Some(timeout)).map(
        Map::Numbered.name(),
        number,
        to,
    );
    [go(again), forget, go(first)]
}
