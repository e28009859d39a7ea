//! The table: what every packet between pods takes, and what a [`Difference`] means in it.

use crate::compile::{Direction, SetKey};
use crate::model::{Difference, Fate, Line, LinePorts};
use crate::sets::Member;
use gantry_network::nft::{
    BaseChain, Batch, CT_STATE_ESTABLISHED, CT_STATE_RELATED, ChainKind, Compare, Ct, Element, Family, Field, Hook,
    Meta, PRIORITY_FILTER, Register, Rule, Set, Table, Value, Verdict, network_ranges,
};
use gantry_network::{IpNet, Protocol};
use std::net::IpAddr;

/// The ranges of this node's pods.
const LOCAL: &str = "local";
/// (address . address) of each of this node's pods: what it sends to itself over a Service.
const ITSELF: &str = "itself";
/// Source or destination, or the key of a lookup.
const KEY: Register = Register(0);

fn is_of(family: Family, address: IpAddr) -> bool {
    address.is_ipv4() == (family == Family::Ipv4)
}

/// Loads the end of a connection that is not the pod a policy of this direction is for.
fn load_peer(rule: Rule, family: Family, direction: Direction) -> Rule {
    match direction {
        Direction::Ingress => rule.load_source(family, KEY),
        Direction::Egress => rule.load_destination(family, KEY),
    }
}

fn load_pod(rule: Rule, family: Family, direction: Direction) -> Rule {
    match direction {
        Direction::Ingress => rule.load_destination(family, KEY),
        Direction::Egress => rule.load_source(family, KEY),
    }
}

/// Writes the table as it is while nothing is known of any pod: connections with this node's pods are dropped.
pub(crate) fn write_table(batch: &mut Batch, table: &Table, pod_cidrs: &[IpNet]) {
    let family = table.family;
    let address = Field::Address(family);
    batch.add_table(table);
    batch.add_set(table, &Set::new(LOCAL, &[address]).of_ranges());
    let own: Vec<IpNet> = pod_cidrs.iter().filter(|c| is_of(family, c.addr())).copied().collect();
    batch.add_elements(table, LOCAL, &network_ranges(&own));
    batch.add_set(table, &Set::new(ITSELF, &[address, address]));
    // Two chains at one hook: what one accepts, the other has yet to see. Destinations are rewritten before it, sources
    // after it, so both ends are those of pods, whatever Service led here.
    for (direction, priority) in [(Direction::Egress, PRIORITY_FILTER), (Direction::Ingress, PRIORITY_FILTER + 1)] {
        let name = direction.name();
        batch.add_set(table, &Set::new(name, &[address]).to_verdicts());
        batch.add_base_chain(table, name, BaseChain { kind: ChainKind::Filter, hook: Hook::Forward, priority });
        let known = Rule::new().load_ct(Ct::State, KEY).any_bit(KEY, CT_STATE_ESTABLISHED | CT_STATE_RELATED);
        batch.add_rule(table, name, &known.verdict(&Verdict::Accept));
        let itself = Rule::new()
            .load_source(family, KEY)
            .load_destination(family, KEY.after(family.address_length()))
            .is_in(ITSELF, KEY);
        batch.add_rule(table, name, &itself.verdict(&Verdict::Accept));
        batch.add_rule(table, name, &load_pod(Rule::new(), family, direction).verdict_map(name, KEY));
        let unknown = load_pod(Rule::new(), family, direction).is_in(LOCAL, KEY);
        batch.add_rule(table, name, &unknown.verdict(&Verdict::Drop));
    }
}

/// Writes what has to change.
pub(crate) fn write_difference(batch: &mut Batch, table: &Table, difference: &Difference) {
    let family = table.family;
    for (name, key) in &difference.new_sets {
        write_set(batch, table, name, key);
    }
    for change in &difference.elements {
        let elements = |members: &[Member]| -> Vec<Element> {
            members.iter().filter(|m| is_of(family, m.address)).map(element).collect()
        };
        batch.delete_elements(table, &change.name, &elements(&change.remove));
        batch.add_elements(table, &change.name, &elements(&change.add));
    }
    for chain in &difference.new_chains {
        batch.add_chain(table, &chain.name);
    }
    for chain in &difference.rewritten_chains {
        batch.flush_chain(table, &chain.name);
    }
    for chain in difference.new_chains.iter().chain(&difference.rewritten_chains) {
        for line in &chain.lines {
            batch.add_rule(table, &chain.name, &rule(family, chain.direction, line));
        }
    }
    for (name, jumps) in &difference.new_groups {
        batch.add_chain(table, name);
        for to in jumps {
            batch.add_rule(table, name, &Rule::new().verdict(&Verdict::Jump(to.clone())));
        }
        batch.add_rule(table, name, &Rule::new().verdict(&Verdict::Drop));
    }
    write_fates(batch, table, difference);
    for name in &difference.gone_chains {
        batch.flush_chain(table, name);
        batch.delete_chain(table, name);
    }
    for name in &difference.gone_sets {
        batch.delete_set(table, name);
    }
}

fn write_fates(batch: &mut Batch, table: &Table, difference: &Difference) {
    let family = table.family;
    let itself = |address: IpAddr| Element::of(Value::new().address(address).address(address));
    for direction in Direction::BOTH {
        let remove = difference.remove.iter().filter(|(d, a)| *d == direction && is_of(family, *a));
        let remove: Vec<IpAddr> = remove.map(|(_, address)| *address).collect();
        let keys: Vec<Element> = remove.iter().map(|a| Element::of(Value::new().address(*a))).collect();
        batch.delete_elements(table, direction.name(), &keys);
        let mut add = Vec::new();
        let mut selves = Vec::new();
        for (_, address, fate) in difference.add.iter().filter(|(d, a, _)| *d == direction && is_of(family, *a)) {
            let verdict = match fate {
                Fate::Open => Verdict::Accept,
                Fate::Chain(name) => Verdict::Goto(name.clone()),
            };
            add.push(Element::verdict(Value::new().address(*address), verdict));
            selves.push(itself(*address));
        }
        batch.add_elements(table, direction.name(), &add);
        if direction == Direction::Ingress {
            let gone: Vec<Element> = remove.iter().map(|a| itself(*a)).collect();
            batch.delete_elements(table, ITSELF, &gone);
            batch.add_elements(table, ITSELF, &selves);
        }
    }
}

fn write_set(batch: &mut Batch, table: &Table, name: &str, key: &SetKey) {
    let family = table.family;
    let address = Field::Address(family);
    let name = name.to_owned();
    match key {
        SetKey::Pods { .. } => batch.add_set(table, &Set::new(name, &[address])),
        SetKey::Named { .. } => batch.add_set(table, &Set::new(name, &[address, Field::Protocol, Field::Port])),
        SetKey::Ranges(ranges) => {
            batch.add_set(table, &Set::new(name.clone(), &[address]).of_ranges());
            let own = ranges.iter().filter(|r| is_of(family, r.first));
            let value = |ip: IpAddr| Value::new().address(ip);
            let elements: Vec<Element> = own.flat_map(|r| Element::range(value(r.first), r.end().map(value))).collect();
            batch.add_elements(table, &name, &elements);
        }
    }
}

fn element(member: &Member) -> Element {
    let key = Value::new().address(member.address);
    Element::of(match member.port {
        None => key,
        Some((protocol, number)) => key.byte(protocol.number()).port(number),
    })
}

/// The rule of a line.
fn rule(family: Family, direction: Direction, line: &Line) -> Rule {
    let mut rule = Rule::new();
    if let Some(set) = &line.peers {
        rule = load_peer(rule, family, direction).is_in(set, KEY);
    }
    let is = |rule: Rule, protocol: Protocol| {
        rule.load_meta(Meta::Protocol, KEY).compare(KEY, Compare::Equal, &Value::new().byte(protocol.number()))
    };
    rule = match &line.ports {
        None => rule,
        Some(LinePorts::Protocol(protocol)) => is(rule, *protocol),
        Some(LinePorts::Range(protocol, first, last)) => {
            let port = |number: u16| Value::new().port(number);
            let rule = is(rule, *protocol).load_port(KEY);
            if first == last {
                rule.compare(KEY, Compare::Equal, &port(*first))
            } else {
                rule.compare(KEY, Compare::AtLeast, &port(*first)).compare(KEY, Compare::AtMost, &port(*last))
            }
        }
        Some(LinePorts::Set(set)) => {
            let length = family.address_length();
            rule.load_destination(family, KEY)
                .load_meta(Meta::Protocol, KEY.after(length))
                .load_port(KEY.after(length + 4))
                .is_in(set, KEY)
        }
    };
    rule.verdict(&Verdict::Accept)
}
