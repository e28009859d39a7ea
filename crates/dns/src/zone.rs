//! What the cluster's names mean.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use hickory_proto::rr::{
    Name, RData, Record, RecordType,
    rdata::{CNAME, NS, PTR, SOA, SRV, TXT},
};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};

/// How long answers may be kept, in seconds; negative ones, too.
pub const TTL: u32 = 5;
/// The version of the specification, as `dns-version` tells it.
const SPECIFICATION: &str = "1.1.0";
/// The Service that leads to the cluster's DNS servers.
const DNS_SERVICE: &str = "kube-system/kube-dns";

/// What the zone says to a question.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// These records; the others may be useful beside them.
    Records {
        /// What was asked for.
        answers: Vec<Record>,
        /// Addresses of the names in it.
        additionals: Vec<Record>,
    },
    /// The name is another's: this record says so, and the question goes on with the target.
    Alias {
        /// The CNAME record.
        record: Box<Record>,
        /// Where it leads.
        target: Name,
    },
    /// The name exists, but has nothing of this type.
    NoData,
    /// There is no such name.
    NoSuchName,
    /// The name is not of this zone: ask elsewhere.
    NotOurs,
}

/// A port of a service or endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Port {
    name: String,
    protocol: String,
    number: u16,
}

/// An endpoint that is ready.
#[derive(Debug, Clone)]
struct Endpoint {
    /// Its hostname, or its address with dashes.
    label: String,
    address: IpAddr,
    ports: Vec<Port>,
}

#[derive(Debug, Clone, Default)]
struct ServiceNames {
    cluster_ips: Vec<IpAddr>,
    headless: bool,
    external: Option<String>,
    ports: Vec<Port>,
    endpoints: Vec<Endpoint>,
}

/// The zone of a cluster.
#[derive(Debug)]
pub struct Zone {
    domain: Name,
    services: HashMap<String, ServiceNames>,
    namespaces: HashSet<String>,
    /// Which services an address belongs to.
    reverse: HashMap<IpAddr, BTreeSet<String>>,
    serial: u32,
}

impl Zone {
    /// An empty zone for a cluster domain such as `cluster.local`.
    ///
    /// # Errors
    /// When the domain is no domain name.
    pub fn new(domain: &str) -> Result<Zone, hickory_proto::ProtoError> {
        let mut domain = Name::from_ascii(domain.to_ascii_lowercase())?;
        domain.set_fqdn(true);
        Ok(Zone { domain, services: HashMap::new(), namespaces: HashSet::new(), reverse: HashMap::new(), serial: 1 })
    }

    /// Notes that a namespace exists, or no longer does.
    pub fn set_namespace(&mut self, name: &str, exists: bool) {
        self.serial = self.serial.wrapping_add(1);
        if exists {
            self.namespaces.insert(name.to_owned());
        } else {
            self.namespaces.remove(name);
        }
    }

    /// Notes a Service (`namespace/name`) with all its EndpointSlices, or that it is gone.
    pub fn set_service(&mut self, key: &str, service: Option<&Service>, slices: &[&EndpointSlice]) {
        self.serial = self.serial.wrapping_add(1);
        if let Some(old) = self.services.remove(key) {
            for address in old.reverse_addresses() {
                if let Some(keys) = self.reverse.get_mut(&address) {
                    keys.remove(key);
                    if keys.is_empty() {
                        self.reverse.remove(&address);
                    }
                }
            }
        }
        if let Some(service) = service {
            let names = ServiceNames::new(service, slices);
            for address in names.reverse_addresses() {
                self.reverse.entry(address).or_default().insert(key.to_owned());
            }
            self.services.insert(key.to_owned(), names);
        }
    }

    /// Answers a question.
    pub fn answer(&self, name: &Name, kind: RecordType) -> Answer {
        if self.domain.zone_of(name) {
            return self.forward_answer(name, kind);
        }
        match address_of(name).and_then(|address| self.reverse.get(&address).map(|keys| (address, keys))) {
            Some((address, keys)) => self.reverse_answer(name, kind, address, keys),
            None => Answer::NotOurs,
        }
    }

    /// The record that says who answers for the zone, and how long "no" may be kept.
    pub fn authority(&self) -> Record {
        let [server, admin] = ["ns.dns", "hostmaster"].map(|label| self.absolute(label));
        Record::from_rdata(
            self.domain.clone(),
            TTL,
            RData::SOA(SOA::new(server, admin, self.serial, 7200, 1800, 86_400, TTL)),
        )
    }

    /// A name below the cluster domain. Its parts come from object names, which are valid labels; what is not yields
    /// the domain itself rather than a panic.
    fn absolute(&self, relative: &str) -> Name {
        Name::from_ascii(relative)
            .and_then(|name| name.append_domain(&self.domain))
            .unwrap_or_else(|_| self.domain.clone())
    }

    fn forward_answer(&self, name: &Name, kind: RecordType) -> Answer {
        let text = name.to_lowercase().to_ascii();
        let domain = self.domain.to_ascii();
        let relative = text.strip_suffix(&domain).unwrap_or("").trim_end_matches('.');
        let labels: Vec<&str> = relative.split('.').filter(|label| !label.is_empty()).collect();
        match labels[..] {
            [] => self.apex(name, kind),
            ["dns-version"] => of_type(name, kind, [RData::TXT(TXT::new(vec![SPECIFICATION.to_owned()]))]),
            ["dns"] | ["svc"] | ["pod"] => Answer::NoData,
            ["ns", "dns"] => of_type(name, kind, self.dns_addresses().map(RData::from)),
            [namespace, "svc" | "pod"] if self.namespaces.contains(namespace) => Answer::NoData,
            [address, namespace, "pod"] if self.namespaces.contains(namespace) => match dashed(address) {
                Some(address) => of_type(name, kind, [RData::from(address)]),
                None => Answer::NoSuchName,
            },
            [service, namespace, "svc"] => match self.services.get(&format!("{namespace}/{service}")) {
                Some(names) => self.service_answer(name, kind, names),
                None => Answer::NoSuchName,
            },
            [label, service, namespace, "svc"] => match self.services.get(&format!("{namespace}/{service}")) {
                Some(names) => names.below(name, kind, label),
                None => Answer::NoSuchName,
            },
            [port, protocol, service, namespace, "svc"] => {
                let (Some(port), Some(protocol)) = (port.strip_prefix('_'), protocol.strip_prefix('_')) else {
                    return Answer::NoSuchName;
                };
                match self.services.get(&format!("{namespace}/{service}")) {
                    Some(names) => {
                        let base = self.absolute(&format!("{service}.{namespace}.svc"));
                        names.port_answer(name, kind, &base, |p| p.name == port && p.protocol == protocol)
                    }
                    None => Answer::NoSuchName,
                }
            }
            _ => Answer::NoSuchName,
        }
    }

    fn apex(&self, name: &Name, kind: RecordType) -> Answer {
        match kind {
            RecordType::SOA => Answer::Records { answers: vec![self.authority()], additionals: Vec::new() },
            RecordType::NS => {
                let server = self.absolute("ns.dns");
                let glue = self.dns_addresses().map(|ip| Record::from_rdata(server.clone(), TTL, RData::from(ip)));
                Answer::Records {
                    additionals: glue.collect(),
                    answers: vec![Record::from_rdata(name.clone(), TTL, RData::NS(NS(server)))],
                }
            }
            _ => Answer::NoData,
        }
    }

    fn dns_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.services.get(DNS_SERVICE).into_iter().flat_map(|names| names.cluster_ips.iter().copied())
    }

    fn service_answer(&self, name: &Name, kind: RecordType, names: &ServiceNames) -> Answer {
        if let Some(external) = &names.external {
            // A machine's address is no name, though nothing forbids to write one there.
            let Some(mut target) = Name::from_str(external).ok().filter(|_| external.parse::<IpAddr>().is_err()) else {
                return Answer::NoData;
            };
            target.set_fqdn(true);
            let record = Record::from_rdata(name.clone(), TTL, RData::CNAME(CNAME(target.clone())));
            return if kind == RecordType::CNAME {
                Answer::Records { answers: vec![record], additionals: Vec::new() }
            } else {
                Answer::Alias { record: Box::new(record), target }
            };
        }
        if kind == RecordType::SRV {
            return names.port_answer(name, kind, name, |port| !port.name.is_empty());
        }
        if names.headless {
            if names.endpoints.is_empty() {
                return Answer::NoSuchName;
            }
            return of_type(name, kind, names.endpoints.iter().map(|e| RData::from(e.address)));
        }
        of_type(name, kind, names.cluster_ips.iter().copied().map(RData::from))
    }

    fn reverse_answer(&self, name: &Name, kind: RecordType, address: IpAddr, keys: &BTreeSet<String>) -> Answer {
        let targets =
            keys.iter().filter_map(|key| self.services.get(key).map(|names| (key, names))).flat_map(|(key, names)| {
                let (namespace, service) = key.split_once('/').unwrap_or(("", key));
                let own = names.cluster_ips.contains(&address).then(|| format!("{service}.{namespace}.svc"));
                let endpoints = names
                    .endpoints
                    .iter()
                    .filter(move |e| names.headless && e.address == address)
                    .map(move |e| format!("{}.{service}.{namespace}.svc", e.label));
                own.into_iter().chain(endpoints).map(|target| RData::PTR(PTR(self.absolute(&target))))
            });
        of_type(name, kind, targets)
    }
}

impl ServiceNames {
    fn new(service: &Service, slices: &[&EndpointSlice]) -> ServiceNames {
        let Some(spec) = &service.spec else { return ServiceNames::default() };
        if spec.type_.as_deref() == Some("ExternalName") {
            return ServiceNames { external: spec.external_name.clone(), ..ServiceNames::default() };
        }
        let mut cluster_ips: Vec<IpAddr> = spec.cluster_ips.iter().flatten().filter_map(|ip| ip.parse().ok()).collect();
        if cluster_ips.is_empty() {
            cluster_ips.extend(spec.cluster_ip.iter().filter_map(|ip| ip.parse::<IpAddr>().ok()));
        }
        let ports = spec.ports.iter().flatten().filter_map(|port| {
            Some(Port {
                name: port.name.clone().unwrap_or_default().to_ascii_lowercase(),
                protocol: port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase(),
                number: u16::try_from(port.port).ok()?,
            })
        });
        let mut endpoints: Vec<Endpoint> = slices.iter().flat_map(|slice| ready_endpoints(slice)).collect();
        // One endpoint may stand in two slices while it moves between them.
        let mut seen = HashSet::new();
        endpoints.retain(|e| seen.insert((e.address, e.label.clone())));
        ServiceNames {
            headless: spec.cluster_ip.as_deref() == Some("None"),
            cluster_ips,
            external: None,
            ports: ports.collect(),
            endpoints,
        }
    }

    fn reverse_addresses(&self) -> Vec<IpAddr> {
        let endpoints = self.endpoints.iter().filter(|_| self.headless).map(|e| e.address);
        self.cluster_ips.iter().copied().chain(endpoints).collect()
    }

    /// A name one label below the service: an endpoint, or the protocol part of a port's name.
    fn below(&self, name: &Name, kind: RecordType, label: &str) -> Answer {
        if let Some(protocol) = label.strip_prefix('_') {
            let known = self.ports.iter().any(|p| p.protocol == protocol && !p.name.is_empty());
            return if known { Answer::NoData } else { Answer::NoSuchName };
        }
        let addresses: Vec<IpAddr> = self.endpoints.iter().filter(|e| e.label == label).map(|e| e.address).collect();
        if addresses.is_empty() {
            return Answer::NoSuchName;
        }
        of_type(name, kind, addresses.into_iter().map(RData::from))
    }

    /// SRV records for the ports that `wanted` picks; `base` is the service's own name.
    fn port_answer(&self, name: &Name, kind: RecordType, base: &Name, wanted: impl Fn(&Port) -> bool) -> Answer {
        let mut targets: Vec<(u16, Name, IpAddr)> = Vec::new();
        if self.headless {
            for endpoint in &self.endpoints {
                let Ok(target) = base.prepend_label(endpoint.label.as_str()) else { continue };
                for port in endpoint.ports.iter().filter(|p| wanted(p)) {
                    targets.push((port.number, target.clone(), endpoint.address));
                }
            }
        } else {
            for port in self.ports.iter().filter(|p| wanted(p)) {
                targets.extend(self.cluster_ips.iter().map(|ip| (port.number, base.clone(), *ip)));
            }
        }
        if targets.is_empty() {
            return Answer::NoSuchName;
        }
        if !matches!(kind, RecordType::SRV | RecordType::ANY) {
            return Answer::NoData;
        }
        let mut pairs: Vec<(u16, &Name)> = targets.iter().map(|(port, target, _)| (*port, target)).collect();
        pairs.sort();
        pairs.dedup();
        // Equal shares of a hundred, as clients that weigh expect something above zero.
        let weight = (100 / pairs.len()).max(1) as u16;
        let answers = pairs
            .iter()
            .map(|(port, target)| {
                let record = SRV::new(0, weight, *port, (*target).clone());
                Record::from_rdata(name.clone(), TTL, RData::SRV(record))
            })
            .collect();
        let mut addresses: Vec<(Name, IpAddr)> = targets.into_iter().map(|(_, name, ip)| (name, ip)).collect();
        addresses.sort();
        addresses.dedup();
        let additionals =
            addresses.into_iter().map(|(name, ip)| Record::from_rdata(name, TTL, RData::from(ip))).collect();
        Answer::Records { answers, additionals }
    }
}

fn ready_endpoints(slice: &EndpointSlice) -> impl Iterator<Item = Endpoint> {
    let ports: Vec<Port> = slice
        .ports
        .iter()
        .flatten()
        .filter_map(|port| {
            Some(Port {
                name: port.name.clone().unwrap_or_default().to_ascii_lowercase(),
                protocol: port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase(),
                number: port.port.and_then(|p| u16::try_from(p).ok())?,
            })
        })
        .collect();
    slice
        .endpoints
        .iter()
        .flatten()
        .filter(|endpoint| endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true))
        .flat_map(move |endpoint| {
            let ports = ports.clone();
            let addresses = endpoint.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok());
            let hostname = endpoint.hostname.as_ref().filter(|h| !h.is_empty()).map(|h| h.to_ascii_lowercase());
            addresses.map(move |address| Endpoint {
                label: hostname.clone().unwrap_or_else(|| dashes(address)),
                address,
                ports: ports.clone(),
            })
        })
}

/// An answer with those of the records that are of the wanted type.
fn of_type(name: &Name, kind: RecordType, data: impl IntoIterator<Item = RData>) -> Answer {
    let answers: Vec<Record> = data
        .into_iter()
        .filter(|data| kind == RecordType::ANY || data.record_type() == kind)
        .map(|data| Record::from_rdata(name.clone(), TTL, data))
        .collect();
    if answers.is_empty() { Answer::NoData } else { Answer::Records { answers, additionals: Vec::new() } }
}

/// An address as a label: `10-0-0-1`, `fd00--1`.
fn dashes(address: IpAddr) -> String {
    let text = address.to_string().replace(['.', ':'], "-");
    // A label may not begin or end with a dash.
    match (text.starts_with('-'), text.ends_with('-')) {
        (false, false) => text,
        (start, end) => format!("{}{text}{}", if start { "0" } else { "" }, if end { "0" } else { "" }),
    }
}

/// The address such a label stands for.
fn dashed(label: &str) -> Option<IpAddr> {
    label
        .replace('-', ".")
        .parse::<Ipv4Addr>()
        .map(IpAddr::V4)
        .or_else(|_| label.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6))
        .ok()
}

/// The address a reverse name (`1.0.0.10.in-addr.arpa.`, `….ip6.arpa.`) stands for.
fn address_of(name: &Name) -> Option<IpAddr> {
    let text = name.to_lowercase().to_ascii();
    if let Some(octets) = text.strip_suffix(".in-addr.arpa.") {
        let mut parts: Vec<&str> = octets.split('.').collect();
        parts.reverse();
        return parts.join(".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    }
    let nibbles: Vec<u8> = text
        .strip_suffix(".ip6.arpa.")?
        .split('.')
        .map(|nibble| u8::from_str_radix(nibble, 16).ok().filter(|_| nibble.len() == 1))
        .collect::<Option<_>>()?;
    if nibbles.len() != 32 {
        return None;
    }
    let number = nibbles.iter().rev().fold(0u128, |n, nibble| n << 4 | u128::from(*nibble));
    Some(IpAddr::V6(number.into()))
}

#[cfg(test)]
mod tests;
