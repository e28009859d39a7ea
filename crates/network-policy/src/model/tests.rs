//! The model against what policies mean, and differences against the whole.

use super::*;
use crate::compile;
use crate::sets::Member;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};

fn ip(last: u32) -> IpAddr {
    std::net::Ipv4Addr::from(0x0a00_0000 + last).into()
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn policy(namespace: &str, spec: Value) -> Policy {
    let object = json!({"metadata": {"name": "p", "namespace": namespace}, "spec": spec});
    compile::policy(&serde_json::from_value::<NetworkPolicy>(object).expect("policy"))
}

fn pod(namespace: &str, address: u32, of: &[(&str, &str)], ports: &[(&str, u16)]) -> Endpoint {
    Endpoint {
        namespace: namespace.into(),
        labels: labels(of),
        addresses: vec![ip(address)],
        ports: ports.iter().map(|(name, number)| ((*name).into(), Protocol::Tcp, *number)).collect(),
    }
}

/// What a table holds after differences, each checked to fit the one before.
#[derive(Default)]
struct Mirror {
    sets: HashMap<String, (SetKey, HashSet<Member>)>,
    chains: HashMap<String, (Direction, Vec<Line>)>,
    groups: HashMap<String, Vec<String>>,
    fates: HashMap<(Direction, IpAddr), Fate>,
}

impl Mirror {
    fn take(&mut self, difference: Difference) {
        for (name, key) in difference.new_sets {
            assert!(self.sets.insert(name.clone(), (key, HashSet::new())).is_none(), "{name} is there already");
        }
        for change in difference.elements {
            let (_, members) = self.sets.get_mut(&change.name).unwrap_or_else(|| panic!("no set {}", change.name));
            for member in change.remove {
                assert!(members.remove(&member), "{member:?} is not in {}", change.name);
            }
            for member in change.add {
                assert!(members.insert(member), "{member:?} is in {} already", change.name);
            }
        }
        for chain in difference.new_chains {
            let old = self.chains.insert(chain.name, (chain.direction, chain.lines));
            assert!(old.is_none(), "a chain is there already");
        }
        for chain in difference.rewritten_chains {
            assert!(self.chains.insert(chain.name.clone(), (chain.direction, chain.lines)).is_some(), "{}", chain.name);
        }
        for (name, jumps) in difference.new_groups {
            assert!(jumps.iter().all(|to| self.chains.contains_key(to)), "{name} leads nowhere: {jumps:?}");
            assert!(self.groups.insert(name, jumps).is_none(), "a group is there already");
        }
        for key in difference.remove {
            assert!(self.fates.remove(&key).is_some(), "{key:?} is not there");
        }
        for (direction, address, fate) in difference.add {
            if let Fate::Chain(name) = &fate {
                assert!(self.groups.contains_key(name), "{name} is not there");
            }
            assert!(self.fates.insert((direction, address), fate).is_none(), "{address} is there already");
        }
        for name in difference.gone_chains {
            assert!(self.groups.remove(&name).is_some() || self.chains.remove(&name).is_some(), "{name} is not there");
        }
        for name in difference.gone_sets {
            assert!(self.sets.remove(&name).is_some(), "{name} is not there");
        }
        // What is used is there; what is there is used.
        let led_to: HashSet<&String> =
            self.fates.values().filter_map(|f| if let Fate::Chain(name) = f { Some(name) } else { None }).collect();
        assert_eq!(led_to, self.groups.keys().collect::<HashSet<_>>());
        assert_eq!(self.groups.values().flatten().collect::<HashSet<_>>(), self.chains.keys().collect::<HashSet<_>>());
        let lines = || self.chains.values().flat_map(|(_, lines)| lines);
        let ports = lines().filter_map(|l| if let Some(LinePorts::Set(name)) = &l.ports { Some(name) } else { None });
        let used: HashSet<&String> = lines().filter_map(|l| l.peers.as_ref()).chain(ports).collect();
        assert!(used.iter().all(|name| self.sets.contains_key(*name)), "a rule names a set that is not there");
    }

    fn same_as(&self, model: &Model) {
        let mut whole = Mirror::default();
        whole.take(model.everything());
        assert_eq!(self.fates, whole.fates);
        assert_eq!(self.groups, whole.groups);
        assert_eq!(self.chains, whole.chains);
        assert_eq!(self.sets, whole.sets);
    }

    /// What the rules say of a new connection between two addresses.
    fn lets_through(&self, from: IpAddr, to: IpAddr, protocol: Protocol, port: u16) -> bool {
        let local = |address: IpAddr| self.fates.keys().any(|(_, a)| *a == address);
        Direction::BOTH.iter().all(|direction| {
            let (own, peer) = if *direction == Direction::Ingress { (to, from) } else { (from, to) };
            let has = |name: &String, port: Option<(Protocol, u16)>, address: IpAddr| {
                let (key, members) = &self.sets[name];
                match key {
                    SetKey::Ranges(ranges) => ranges.iter().any(|r| r.first <= address && address <= r.last),
                    _ => members.contains(&Member { address, port }),
                }
            };
            match self.fates.get(&(*direction, own)) {
                None => !local(own),
                Some(Fate::Open) => true,
                Some(Fate::Chain(group)) => self.groups[group].iter().flat_map(|c| &self.chains[c].1).any(|line| {
                    line.peers.as_ref().is_none_or(|set| has(set, None, peer))
                        && match &line.ports {
                            None => true,
                            Some(LinePorts::Protocol(p)) => *p == protocol,
                            Some(LinePorts::Range(p, first, last)) => {
                                *p == protocol && (*first..=*last).contains(&port)
                            }
                            Some(LinePorts::Set(set)) => has(set, Some((protocol, port)), to),
                        }
                }),
            }
        })
    }
}

/// A cluster as a list of facts, and what its policies mean by the book.
#[derive(Default)]
struct Book {
    namespaces: BTreeMap<String, Labels>,
    pods: BTreeMap<String, Endpoint>,
    local: BTreeSet<String>,
    policies: BTreeMap<String, Policy>,
}

impl Book {
    fn at(&self, address: IpAddr) -> Option<(&String, &Endpoint)> {
        self.pods.iter().find(|(_, p)| p.addresses.contains(&address))
    }

    fn allows(&self, from: IpAddr, to: IpAddr, protocol: Protocol, port: u16) -> bool {
        Direction::BOTH.iter().all(|direction| {
            let (own, peer) = if *direction == Direction::Ingress { (to, from) } else { (from, to) };
            let Some((name, pod)) = self.at(own) else { return true };
            if !self.local.contains(name) {
                return true;
            }
            let selecting: Vec<&[Allow]> = self
                .policies
                .values()
                .filter(|p| p.namespace == pod.namespace && p.selector.matches(&pod.labels))
                .filter_map(|p| p.allows(*direction))
                .collect();
            let peer_pod = self.at(peer).map(|(_, p)| p);
            let fits = |allow: &Allow| {
                let peers = allow.peers.as_ref().is_none_or(|peers| {
                    peers.iter().any(|set| match set {
                        SetKey::Ranges(ranges) => ranges.iter().any(|r| r.first <= peer && peer <= r.last),
                        SetKey::Named { .. } => false,
                        SetKey::Pods { scope, pods } => peer_pod.is_some_and(|p| {
                            let inside = match scope {
                                compile::Scope::One(namespace) => *namespace == p.namespace,
                                compile::Scope::Selected(selector) => {
                                    self.namespaces.get(&*p.namespace).is_some_and(|l| selector.matches(l))
                                }
                            };
                            inside && pods.matches(&p.labels)
                        }),
                    })
                });
                let ports = allow.ports.as_ref().is_none_or(|ports| {
                    ports.iter().any(|p| match p {
                        Ports::Protocol(p) => *p == protocol,
                        Ports::Range(p, first, last) => *p == protocol && (*first..=*last).contains(&port),
                        Ports::Named(p, name) => self.at(to).is_some_and(|(_, to)| {
                            to.ports
                                .iter()
                                .any(|(n, proto, number)| n == name && proto == p && *p == protocol && *number == port)
                        }),
                    })
                });
                peers && ports
            };
            selecting.is_empty() || selecting.iter().any(|rules| rules.iter().any(fits))
        })
    }
}

/// A sequence of numbers that is the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.roll(from.len() as u64) as usize]
    }
}

const NAMESPACES: [&str; 3] = ["x", "y", "z"];

fn some_selector(dice: &mut Dice) -> Value {
    match dice.roll(4) {
        0 => json!({}),
        1 => json!({"matchLabels": {"app": dice.pick(&["a", "b"])}}),
        2 => {
            json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": [dice.pick(&["a", "b", "c"])]}]})
        }
        _ => json!({"matchExpressions": [{"key": dice.pick(&["app", "ns"]), "operator": "Exists"}]}),
    }
}

fn some_peer(dice: &mut Dice) -> Value {
    match dice.roll(4) {
        0 => json!({"podSelector": some_selector(dice)}),
        1 => json!({"namespaceSelector": some_selector(dice)}),
        2 => {
            let namespaces = json!({"matchLabels": {"ns": dice.pick(&NAMESPACES)}});
            json!({"namespaceSelector": namespaces, "podSelector": some_selector(dice)})
        }
        _ => json!({"ipBlock": {"cidr": "10.0.0.0/28", "except": [format!("10.0.0.{}/30", dice.roll(4) * 4)]}}),
    }
}

fn some_rules(dice: &mut Dice, peers: &str) -> Value {
    let rules: Vec<Value> = (0..dice.roll(3))
        .map(|_| {
            let mut rule = json!({});
            if dice.roll(3) > 0 {
                rule[peers] = (0..=dice.roll(2)).map(|_| some_peer(dice)).collect();
            }
            if dice.roll(2) > 0 {
                let port = match dice.roll(4) {
                    0 => json!({"port": 80}),
                    1 => json!({"port": 79, "endPort": 81}),
                    2 => json!({"port": "web"}),
                    _ => json!({"protocol": "UDP"}),
                };
                rule["ports"] = json!([port]);
            }
            rule
        })
        .collect();
    rules.into()
}

#[test]
fn whatever_happens_the_rules_say_what_the_policies_mean() {
    for seed in 1..=12u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (mut model, mut mirror, mut book) = (Model::default(), Mirror::default(), Book::default());
        for step in 0..120 {
            // Several changes at once, now and then.
            for _ in 0..=dice.roll(3) {
                change(&mut dice, &mut model, &mut book);
            }
            mirror.take(model.take());
            mirror.same_as(&model);
            assert!(model.take().is_empty(), "nothing is told twice");
            let addresses: Vec<IpAddr> = (1..=16).map(ip).collect();
            for (from, to) in addresses.iter().flat_map(|a| addresses.iter().map(move |b| (*a, *b))) {
                for (protocol, port) in
                    [(Protocol::Tcp, 80), (Protocol::Tcp, 81), (Protocol::Tcp, 90), (Protocol::Udp, 80)]
                {
                    assert_eq!(
                        mirror.lets_through(from, to, protocol, port),
                        book.allows(from, to, protocol, port),
                        "seed {seed}, step {step}: {from} to {to} {protocol} {port}"
                    );
                }
            }
        }
    }
}

fn change(dice: &mut Dice, model: &mut Model, book: &mut Book) {
    match dice.roll(10) {
        0 => {
            let name = dice.pick(&NAMESPACES);
            let new = (dice.roll(4) > 0).then(|| labels(&[("ns", dice.pick(&NAMESPACES))]));
            model.set_namespace(&name.into(), new.clone());
            match new {
                Some(new) => book.namespaces.insert(name.to_owned(), new),
                None => book.namespaces.remove(name),
            };
        }
        1..=5 => {
            let number = dice.roll(12) as u32 + 1;
            let key = format!("pod-{number}");
            // A pod that exists keeps its namespace and address.
            let namespace = NAMESPACES[number as usize % 3];
            if dice.roll(4) == 0 {
                model.set_endpoint(&key.as_str().into(), None);
                model.detach(&key.as_str().into());
                book.pods.remove(&key);
                book.local.remove(&key);
                return;
            }
            let of = [("app", dice.pick(&["a", "b", "c"]))];
            let endpoint = pod(namespace, number, &of, &[("web", 80 + dice.roll(2) as u16)]);
            model.set_endpoint(&key.as_str().into(), Some(endpoint.clone()));
            if number.is_multiple_of(2) {
                let local = Local {
                    namespace: namespace.into(),
                    addresses: endpoint.addresses.clone(),
                    labels: Some(endpoint.labels.clone()),
                };
                model.attach(&key.as_str().into(), local);
                book.local.insert(key.clone());
            }
            book.pods.insert(key, endpoint);
        }
        _ => {
            let key = format!("policy-{}", dice.roll(6));
            let namespace = NAMESPACES[key.len().wrapping_add(key.as_bytes()[key.len() - 1] as usize) % 3];
            let new = (dice.roll(4) > 0).then(|| {
                let types: &[&str] = match dice.roll(3) {
                    0 => &["Ingress"],
                    1 => &["Egress"],
                    _ => &["Ingress", "Egress"],
                };
                let (ingress, egress) = (some_rules(dice, "from"), some_rules(dice, "to"));
                let pods = some_selector(dice);
                policy(
                    namespace,
                    json!({"podSelector": pods, "policyTypes": types, "ingress": ingress, "egress": egress}),
                )
            });
            model.set_policy(&key.as_str().into(), new.clone());
            match new {
                Some(new) => book.policies.insert(key, new),
                None => book.policies.remove(&key),
            };
        }
    }
}

#[test]
fn a_pod_of_unknown_labels_is_closed_only_where_there_are_policies() {
    let mut model = Model::default();
    let local = |n: &str| Local { namespace: n.into(), addresses: vec![ip(1)], labels: None };
    model.attach(&"a".into(), local("x"));
    let open = model.take();
    assert_eq!(open.add.len(), 2, "{open:?}");
    assert!(open.add.iter().all(|(_, _, fate)| *fate == Fate::Open));

    model.set_policy(&"p".into(), Some(policy("x", json!({"policyTypes": ["Ingress"], "podSelector": {}}))));
    let closed = model.take();
    assert_eq!((closed.remove, closed.add), (vec![(Direction::Ingress, ip(1))], vec![]));

    model.set_labels(&"a".into(), Some(Labels::new()));
    let known = model.take();
    assert!(matches!(known.add.as_slice(), [(Direction::Ingress, _, Fate::Chain(_))]), "{known:?}");
}

/// A cluster of 1,000 pods, 100 of them here, and 1,000 policies.
pub(crate) fn large() -> Model {
    let mut model = Model::default();
    for n in 0..20 {
        let name = format!("ns-{n}");
        model.set_namespace(&name.as_str().into(), Some(labels(&[("ns", &name)])));
    }
    for n in 0..1000u32 {
        let (key, namespace, app) = (format!("pod-{n}"), format!("ns-{}", n % 20), format!("app-{}", n % 50));
        let endpoint = pod(&namespace, n + 1, &[("app", &app)], &[("web", 8080)]);
        if n % 10 == 0 {
            let local = Local {
                namespace: endpoint.namespace.clone(),
                addresses: endpoint.addresses.clone(),
                labels: Some(endpoint.labels.clone()),
            };
            model.attach(&key.as_str().into(), local);
        }
        model.set_endpoint(&key.as_str().into(), Some(endpoint));
    }
    for n in 0..1000 {
        model.set_policy(&format!("policy-{n}").as_str().into(), Some(large_policy(n, 80)));
    }
    model
}

pub(crate) fn large_policy(n: u32, port: u16) -> Policy {
    let spec = json!({
        "podSelector": {"matchLabels": {"app": format!("app-{}", n % 50)}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": format!("app-{}", n % 47)}}},
            {"namespaceSelector": {"matchLabels": {"ns": format!("ns-{}", n % 19)}}}], "ports": [{"port": port}]}]});
    policy(&format!("ns-{}", n % 20), spec)
}

#[test]
fn work_is_proportional_to_the_change() {
    let mut model = large();
    let mut mirror = Mirror::default();
    let started = std::time::Instant::now();
    mirror.take(model.take());
    println!("the first difference: {:?}", started.elapsed());
    mirror.same_as(&model);

    // A policy's rules: its chain, and no set, as the peers are the same.
    model.set_policy(&"policy-10".into(), Some(large_policy(10, 81)));
    let difference = model.take();
    assert_eq!(difference.rewritten_chains.len(), 1);
    assert_eq!(Difference { rewritten_chains: vec![], ..difference.clone() }, Difference::default());
    mirror.take(difference);

    // A pod elsewhere: an element in each set that it is in.
    model.set_endpoint(&"new".into(), Some(pod("ns-3", 5000, &[("app", "app-3")], &[])));
    let difference = model.take();
    assert!(!difference.elements.is_empty() && difference.elements.iter().all(|c| c.add.len() == 1), "{difference:?}");
    assert_eq!((difference.add.len(), difference.new_chains.len(), difference.new_sets.len()), (0, 0, 0));
    mirror.take(difference);
    mirror.same_as(&model);
}
