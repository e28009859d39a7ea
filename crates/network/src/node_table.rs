//! The node's own packet rules: host ports, masquerading of pods' traffic to the outside, loopback protection.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use crate::{
    NetworkError, NodeNetworkConfig,
    nft::{
        ADDRESS_TYPE_LOCAL, BaseChain, Batch, CT_STATUS_DNAT, ChainKind, Compare, Ct, Element, Family, FibAddress,
        Field, Hook, Meta, Nft, PRIORITY_DNAT, PRIORITY_FILTER, PRIORITY_SNAT, Register, Rule, Set, Table, Value,
        Verdict, network_ranges,
    },
    state::Attachment,
};

/// (address . protocol . port) → (address . port), for ports bound to one address.
const BOUND_PORTS: &str = "host-ports-bound";
/// (protocol . port) → (address . port), for ports on every local address.
const PORTS: &str = "host-ports";
/// (address . address) of each pod: a connection that was led back to where it came from.
const HAIRPIN: &str = "hairpin";
/// This node's pods.
const PODS: &str = "pods";
/// Where pods' own addresses are known.
const CLUSTER: &str = "cluster";

/// What the names of all instances' tables start with.
const TABLE_PREFIX: &str = "gantry-node-";

/// The tables, one per address family of the node's pods.
pub(crate) struct NodeTable {
    nft: Nft,
    tables: Vec<Table>,
}

impl NodeTable {
    /// Replaces whatever an earlier run left, in one transaction, so that host ports of running pods never falter.
    pub(crate) async fn open(
        config: &NodeNetworkConfig,
        attachments: &BTreeMap<String, Attachment>,
    ) -> Result<NodeTable, NetworkError> {
        let nft = Nft::open()?;
        let tables: Vec<Table> = config
            .pod_cidrs
            .iter()
            .map(|cidr| Table { family: family_of(cidr.addr()), name: table_name(&config.instance) })
            .collect();
        let mut batch = Batch::new();
        for table in &tables {
            batch.remove_table(table);
            write_table(&mut batch, table, config);
            for attachment in attachments.values() {
                for (set, element) in elements(table, attachment) {
                    batch.add_elements(table, set, [&element]);
                }
            }
        }
        nft.commit(batch).await?;
        Ok(NodeTable { nft, tables })
    }

    /// Opens a pod's host ports.
    pub(crate) async fn open_ports(&mut self, attachment: &Attachment) -> Result<(), NetworkError> {
        let mut batch = Batch::new();
        for table in &self.tables {
            for (set, element) in elements(table, attachment) {
                batch.add_elements(table, set, [&element]);
            }
        }
        Ok(self.nft.commit(batch).await?)
    }

    /// Closes a pod's host ports, those that are open.
    pub(crate) async fn close_ports(&mut self, attachment: &Attachment) -> Result<(), NetworkError> {
        let mut batch = Batch::new();
        for table in &self.tables {
            for (set, element) in elements(table, attachment) {
                // Deleting an absent element would fail the transaction; adding a present one does nothing.
                batch.add_elements(table, set, [&element]);
                batch.delete_elements(table, set, [&element]);
            }
        }
        Ok(self.nft.commit(batch).await?)
    }
}

/// The name of an instance's tables.
fn table_name(instance: &str) -> String {
    format!("{TABLE_PREFIX}{instance}")
}

/// Removes the tables of an instance, if there are any. Answers whether another instance has some on this machine.
pub(crate) async fn remove_tables(instance: &str) -> Result<bool, NetworkError> {
    let nft = Nft::open()?;
    let mut batch = Batch::new();
    let mut others = false;
    for family in [Family::Ipv4, Family::Ipv6] {
        for name in nft.tables_blocking(family)? {
            if name == table_name(instance) {
                batch.remove_table(&Table { family, name });
            } else {
                others |= name.starts_with(TABLE_PREFIX);
            }
        }
    }
    nft.commit(batch).await?;
    Ok(others)
}

/// The instances that have tables on this machine.
pub(crate) fn instances() -> Result<BTreeSet<String>, NetworkError> {
    let nft = Nft::open()?;
    let mut found = BTreeSet::new();
    for family in [Family::Ipv4, Family::Ipv6] {
        let names = nft.tables_blocking(family)?;
        found.extend(names.iter().filter_map(|name| name.strip_prefix(TABLE_PREFIX)).map(str::to_owned));
    }
    Ok(found)
}

fn family_of(ip: IpAddr) -> Family {
    if ip.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
}

/// What one pod adds to the sets of a table.
fn elements(table: &Table, attachment: &Attachment) -> Vec<(&'static str, Element)> {
    let Some(pod) = attachment.ips.iter().copied().find(|ip| family_of(*ip) == table.family) else {
        return Vec::new();
    };
    let mut elements = vec![(HAIRPIN, Element::of(Value::new().address(pod).address(pod)))];
    for port in &attachment.host_ports {
        let to = Value::new().address(pod).port(port.container_port);
        match port.bound_address() {
            Some(bound) if family_of(bound) == table.family => {
                let key = Value::new().address(bound).byte(port.protocol.number()).port(port.host_port);
                elements.push((BOUND_PORTS, Element::value(key, to)));
            }
            Some(_) => {}
            None => {
                let key = Value::new().byte(port.protocol.number()).port(port.host_port);
                elements.push((PORTS, Element::value(key, to)));
            }
        }
    }
    elements
}

fn write_table(batch: &mut Batch, table: &Table, config: &NodeNetworkConfig) {
    let family = table.family;
    let address = Field::Address(family);
    batch.add_table(table);
    batch.add_set(
        table,
        &Set::new(BOUND_PORTS, &[address, Field::Protocol, Field::Port]).to_fields(&[address, Field::Port]),
    );
    batch.add_set(table, &Set::new(PORTS, &[Field::Protocol, Field::Port]).to_fields(&[address, Field::Port]));
    batch.add_set(table, &Set::new(HAIRPIN, &[address, address]));
    batch.add_set(table, &Set::new(PODS, &[address]).of_ranges());
    batch.add_set(table, &Set::new(CLUSTER, &[address]).of_ranges());

    let own =
        |cidrs: &[IpNet]| -> Vec<IpNet> { cidrs.iter().filter(|c| family_of(c.addr()) == family).copied().collect() };
    let pods = own(&config.pod_cidrs);
    let mut inside = own(&config.cluster_cidrs);
    inside.extend(pods.iter().copied());
    inside.extend(own(&config.service_cidrs));
    // Multicast has no translation, and the link-local next hop is inside by definition.
    match family {
        Family::Ipv4 => inside.extend(["224.0.0.0/4", "169.254.1.1/32"].iter().filter_map(|c| c.parse::<IpNet>().ok())),
        Family::Ipv6 => inside.extend(["ff00::/8", "fe80::/10"].iter().filter_map(|c| c.parse::<IpNet>().ok())),
    }
    batch.add_elements(table, PODS, &network_ranges(&pods));
    batch.add_elements(table, CLUSTER, &network_ranges(&inside));

    // Registers: the key from the first on, the new destination behind it.
    let key = Register(0);
    let length = family.address_length();
    let to = Register(12);
    let (to, to_port) = match family {
        Family::Ipv4 => (to, to.after(length)),
        Family::Ipv6 => (Register(8), Register(12)),
    };
    batch.add_chain(table, "to-host-ports");
    batch.add_rule(
        table,
        "to-host-ports",
        &Rule::new()
            .load_destination(family, key)
            .load_meta(Meta::Protocol, key.after(length))
            .load_port(key.after(length + 4))
            .map(BOUND_PORTS, key, to)
            .dnat(family, to, to_port),
    );
    batch.add_rule(
        table,
        "to-host-ports",
        &Rule::new()
            .load_address_type(FibAddress::Destination, key)
            .compare(key, Compare::Equal, &Value::new().number(ADDRESS_TYPE_LOCAL))
            .load_meta(Meta::Protocol, key)
            .load_port(key.after(4))
            .map(PORTS, key, to)
            .dnat(family, to, to_port),
    );
    // Just before the services', so that a host port wins over a node port, as a listening socket would.
    for (chain, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::Output)] {
        let base = BaseChain { kind: ChainKind::Nat, hook, priority: PRIORITY_DNAT - 1 };
        batch.add_base_chain(table, chain, base);
        batch.add_rule(table, chain, &Rule::new().verdict(&Verdict::Jump("to-host-ports".into())));
    }

    let base = BaseChain { kind: ChainKind::Nat, hook: Hook::Postrouting, priority: PRIORITY_SNAT };
    batch.add_base_chain(table, "postrouting", base);
    // A pod that reached itself through a service or host port must see an address that is not its own.
    batch.add_rule(
        table,
        "postrouting",
        &Rule::new()
            .load_source(family, key)
            .load_destination(family, key.after(length))
            .is_in(HAIRPIN, key)
            .masquerade(),
    );
    if family == Family::Ipv4 {
        // A node or host port on 127.0.0.1: the pod could not answer a loopback address.
        batch.add_rule(
            table,
            "postrouting",
            &loopback(Rule::new().load_source(family, key), key)
                .load_meta(Meta::OutputName, key)
                .compare(key, Compare::NotEqual, &Value::new().interface("lo"))
                .masquerade(),
        );
    }
    batch.add_rule(
        table,
        "postrouting",
        &Rule::new()
            .load_source(family, key)
            .is_in(PODS, key)
            .load_destination(family, key)
            .is_not_in(CLUSTER, key)
            .masquerade(),
    );

    if family == Family::Ipv4 {
        // Pods' interfaces accept loopback destinations (`route_localnet`) for answers to the rewritten connections
        // above; whatever else comes in for one is an attempt to reach what listens on the node's loopback only.
        let base = BaseChain { kind: ChainKind::Filter, hook: Hook::Input, priority: PRIORITY_FILTER };
        batch.add_base_chain(table, "input", base);
        batch.add_rule(
            table,
            "input",
            &loopback(Rule::new().load_destination(family, key), key)
                .load_meta(Meta::InputName, key)
                .compare(key, Compare::NotEqual, &Value::new().interface("lo"))
                .load_ct(Ct::Status, key)
                .bitwise(key, &Value::new().number(CT_STATUS_DNAT), &Value::new().number(0))
                .compare(key, Compare::Equal, &Value::new().number(0))
                .verdict(&Verdict::Drop),
        );
    }
}

/// Goes on only when the IPv4 address in a register is in 127.0.0.0/8.
fn loopback(rule: Rule, register: Register) -> Rule {
    rule.bitwise(register, &Value::new().field(&[255, 0, 0, 0]), &Value::new().field(&[0; 4])).compare(
        register,
        Compare::Equal,
        &Value::new().field(&[127, 0, 0, 0]),
    )
}
