//! UDP "connections" that still lead to endpoints which are gone.
//!
//! The kernel remembers where it led a client's first packet for as long as the client keeps sending. TCP connections to
//! a pod that is gone die by themselves; UDP has nobody to notice.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use gantry_network::{
    Protocol,
    conntrack::{Conntrack, Flow},
    nft::{Family, NftError},
};

use crate::{
    compile::{Frontend, PortRules, Route, ServiceRules, Target},
    lower::FrontendKey,
};

type Destinations = BTreeMap<FrontendKey, BTreeSet<Target>>;

/// Watches which endpoints each UDP frontend has, and forgets flows to those it had.
#[derive(Default)]
pub(crate) struct StaleFlows {
    known: HashMap<Arc<str>, Destinations>,
    /// What could not be flushed yet.
    pending: Destinations,
}

impl StaleFlows {
    /// Notes a service's rules as they now are.
    pub(crate) fn note(&mut self, service: &Arc<str>, rules: Option<&ServiceRules>) {
        let now: Destinations = rules.map(destinations).unwrap_or_default();
        let before = self.known.remove(service).unwrap_or_default();
        for (frontend, targets) in &before {
            let left = now.get(frontend);
            if left.is_none_or(|left| !targets.is_subset(left)) {
                self.pending.insert(*frontend, left.cloned().unwrap_or_default());
            }
        }
        // The first endpoint: packets sent before were not led anywhere, and the kernel would keep it so.
        for (frontend, targets) in &now {
            if !targets.is_empty() && before.get(frontend).is_none_or(BTreeSet::is_empty) {
                self.pending.insert(*frontend, targets.clone());
            }
        }
        if !now.is_empty() {
            self.known.insert(service.clone(), now);
        }
    }

    /// Forgets the flows that lead where they no longer should. Call after the rules are in place.
    pub(crate) async fn flush(
        &mut self,
        conntrack: &Conntrack,
        family: Family,
        node_ips: &[IpAddr],
    ) -> Result<usize, NftError> {
        if self.pending.is_empty() {
            return Ok(0);
        }
        let frontends = self.pending.clone();
        let node_ips = node_ips.to_vec();
        let count = conntrack.forget(family, Protocol::Udp, move |flow| is_stale(flow, &frontends, &node_ips)).await?;
        self.pending.clear();
        Ok(count)
    }
}

fn destinations(rules: &ServiceRules) -> Destinations {
    let udp = rules.ports.iter().filter(|p| p.protocol == Protocol::Udp);
    udp.flat_map(|port| {
        port.frontends.iter().map(|frontend| (FrontendKey::new(port, frontend), targets(port, frontend)))
    })
    .collect()
}

fn targets(port: &PortRules, frontend: &Frontend) -> BTreeSet<Target> {
    let of = |route: Route| match route {
        Route::Near => &port.near[..],
        Route::Local => &port.local[..],
        Route::Refuse | Route::Drop => &[],
    };
    [Some(frontend.route), frontend.route_inside].into_iter().flatten().flat_map(of).copied().collect()
}

fn is_stale(flow: &Flow, frontends: &Destinations, node_ips: &[IpAddr]) -> bool {
    let asked = |address| FrontendKey { address, protocol: Protocol::Udp, port: flow.original.destination_port };
    let now = Target { address: flow.reply.source, port: flow.reply.source_port };
    if let Some(valid) = frontends.get(&asked(Some(flow.original.destination))) {
        return !valid.contains(&now);
    }
    // A node port number on its own says little: it has to be one of our addresses, too.
    let to_node = flow.original.destination.is_loopback() || node_ips.contains(&flow.original.destination);
    to_node && frontends.get(&asked(None)).is_some_and(|valid| !valid.contains(&now))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn target(last: u8) -> Target {
        Target { address: [10, 1, 0, last].into(), port: 53 }
    }

    fn rules(near: &[u8]) -> ServiceRules {
        let frontend = Frontend {
            address: Some([10, 96, 0, 10].into()),
            port: 53,
            is_cluster_ip: true,
            route: if near.is_empty() { Route::Refuse } else { Route::Near },
            route_inside: None,
            masquerade: false,
            allowed: vec![],
        };
        let port = |protocol| PortRules {
            protocol,
            affinity: Some(Duration::from_secs(1)),
            near: near.iter().map(|n| target(*n)).collect(),
            local: vec![],
            frontends: vec![frontend.clone()],
        };
        ServiceRules { ports: vec![port(Protocol::Udp), port(Protocol::Tcp)] }
    }

    #[test]
    fn only_lost_endpoints_and_first_ones_matter() {
        let service: Arc<str> = "ns/dns".into();
        let mut stale = StaleFlows::default();
        let mut step = |near: Option<&[u8]>| -> Option<Vec<Target>> {
            stale.note(&service, near.map(rules).as_ref());
            let pending = std::mem::take(&mut stale.pending);
            assert!(pending.len() <= 1, "TCP is no concern");
            pending.into_values().next().map(|targets| targets.into_iter().collect())
        };
        assert_eq!(step(Some(&[])), None);
        assert_eq!(step(Some(&[1])), Some(vec![target(1)]), "the first endpoint");
        assert_eq!(step(Some(&[1, 2])), None, "one more disturbs nobody");
        assert_eq!(step(Some(&[2, 3])), Some(vec![target(2), target(3)]));
        assert_eq!(step(None), Some(vec![]), "gone");
        assert_eq!(step(None), None);
    }
}
