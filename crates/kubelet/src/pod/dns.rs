//! Names: the pod's hostname, its `/etc/hosts` and its `resolv.conf`.

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use std::net::IpAddr;

/// Search paths a resolver file may have.
const MAX_SEARCHES: usize = 32;
/// Nameservers a resolver reads.
const MAX_NAMESERVERS: usize = 3;

/// The cluster's side of name resolution.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClusterDns {
    pub servers: Vec<IpAddr>,
    pub domain: String,
}

/// The content of a resolver file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Resolver {
    pub nameservers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

impl Resolver {
    /// Reads the host's file.
    pub(crate) fn parse(text: &str) -> Self {
        let mut out = Resolver::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let first = words.next();
            let rest = words.map(str::to_owned);
            match first {
                Some("nameserver") => out.nameservers.extend(rest.take(1)),
                // The last line wins, as in resolv.conf(5).
                Some("search" | "domain") => out.searches = rest.filter(|s| s != ".").map(|s| trim_dot(&s)).collect(),
                Some("options") => out.options.extend(rest),
                _ => {}
            }
        }
        out
    }

    /// The file.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        if !self.searches.is_empty() {
            out.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        for server in &self.nameservers {
            out.push_str(&format!("nameserver {server}\n"));
        }
        if !self.options.is_empty() {
            out.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        out
    }
}

fn trim_dot(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_owned()
}

fn push_new(list: &mut Vec<String>, items: impl IntoIterator<Item = String>) {
    for item in items {
        if !list.contains(&item) {
            list.push(item);
        }
    }
}

/// The resolver of a pod. `namespace` is the pod's.
pub(crate) fn resolver(spec: &PodSpec, namespace: &str, cluster: &ClusterDns, host: &Resolver) -> Resolver {
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let host_network = spec.host_network == Some(true);
    let cluster_first = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !host_network,
        _ => false,
    } && !cluster.servers.is_empty();
    let mut out = if policy == "None" {
        Resolver::default()
    } else if cluster_first {
        let domain = &cluster.domain;
        let mut searches = Vec::new();
        if !domain.is_empty() {
            searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
        }
        push_new(&mut searches, host.searches.iter().cloned());
        Resolver {
            nameservers: cluster.servers.iter().map(ToString::to_string).collect(),
            searches,
            options: vec!["ndots:5".into()],
        }
    } else {
        host.clone()
    };
    if let Some(config) = &spec.dns_config {
        push_new(&mut out.nameservers, config.nameservers.iter().flatten().cloned());
        push_new(
            &mut out.searches,
            config.searches.iter().flatten().map(|s| if s == "." { s.clone() } else { trim_dot(s) }),
        );
        for option in config.options.iter().flatten() {
            let Some(name) = option.name.clone() else { continue };
            // An option given again replaces the one before.
            out.options.retain(|o| o.split(':').next() != Some(name.as_str()));
            out.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name,
            });
        }
    }
    out.nameservers.truncate(MAX_NAMESERVERS);
    out.searches.truncate(MAX_SEARCHES);
    out
}

/// Hostname and domain of a pod; the domain is empty without a subdomain.
pub(crate) fn hostname_and_domain(pod: &Pod, cluster_domain: &str) -> (String, String) {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let spec = pod.spec.as_ref();
    if let Some(overridden) = spec.and_then(|s| s.hostname_override.as_deref()).filter(|h| !h.is_empty()) {
        return (overridden.to_owned(), String::new());
    }
    let given = spec.and_then(|s| s.hostname.as_deref()).filter(|h| !h.is_empty());
    let hostname = match given {
        Some(h) => h.to_owned(),
        // A host name has at most 63 characters and does not end in punctuation.
        None => name[..name.floor_char_boundary(63)].trim_end_matches(['-', '.']).to_owned(),
    };
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let domain = match spec.and_then(|s| s.subdomain.as_deref()).filter(|s| !s.is_empty()) {
        Some(sub) => format!("{sub}.{namespace}.svc.{cluster_domain}"),
        None => String::new(),
    };
    (hostname, domain)
}

/// The hostname a sandbox gets.
pub(crate) fn sandbox_hostname(pod: &Pod, cluster_domain: &str) -> Result<String, String> {
    let (hostname, domain) = hostname_and_domain(pod, cluster_domain);
    let fqdn = pod.spec.as_ref().and_then(|s| s.set_hostname_as_fqdn) == Some(true);
    if fqdn && !domain.is_empty() {
        let full = format!("{hostname}.{domain}");
        if full.len() > 64 {
            return Err(format!(
                "failed to construct FQDN from pod hostname and cluster domain, FQDN {full} is too long (64 characters is the max, {} characters requested)",
                full.len()
            ));
        }
        return Ok(full);
    }
    Ok(hostname)
}

/// The managed `/etc/hosts`. Host-network pods get the host's own file with their aliases appended.
pub(crate) fn hosts_file(pod: &Pod, ips: &[IpAddr], cluster_domain: &str, host_file: Option<&str>) -> String {
    let mut out = match host_file {
        Some(text) => format!(
            "# Kubernetes-managed hosts file (host network).\n{}{}",
            text,
            if text.ends_with('\n') || text.is_empty() { "" } else { "\n" }
        ),
        None => "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                 fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
            .to_owned(),
    };
    if host_file.is_none() {
        let (hostname, domain) = hostname_and_domain(pod, cluster_domain);
        for ip in ips {
            match domain.is_empty() {
                true => out.push_str(&format!("{ip}\t{hostname}\n")),
                false => out.push_str(&format!("{ip}\t{hostname}.{domain}\t{hostname}\n")),
            }
        }
    }
    let aliases = pod.spec.as_ref().and_then(|s| s.host_aliases.as_ref());
    if aliases.is_some_and(|a| !a.is_empty()) {
        out.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases.into_iter().flatten() {
            let names = alias.hostnames.clone().unwrap_or_default();
            out.push_str(&format!("{}\t{}\n", alias.ip, names.join("\t")));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::json;

    fn spec(v: serde_json::Value) -> PodSpec {
        let mut full = json!({"containers": []});
        full.as_object_mut().unwrap().extend(v.as_object().unwrap().clone());
        serde_json::from_value(full).unwrap()
    }

    fn cluster() -> ClusterDns {
        ClusterDns { servers: vec!["10.96.0.10".parse().unwrap()], domain: "cluster.local".into() }
    }

    #[test]
    fn policies() {
        let host = Resolver::parse("# x\nnameserver 1.1.1.1\nsearch example.com. .\noptions edns0\n");
        let of = |v| resolver(&spec(v), "ns", &cluster(), &host).text();
        assert_eq!(
            of(json!({})),
            "search ns.svc.cluster.local svc.cluster.local cluster.local example.com\nnameserver 10.96.0.10\noptions ndots:5\n"
        );
        assert_eq!(of(json!({"hostNetwork": true})), "search example.com\nnameserver 1.1.1.1\noptions edns0\n");
        assert_eq!(of(json!({"dnsPolicy": "Default"})), of(json!({"hostNetwork": true})));
        assert_eq!(of(json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"})), of(json!({})));
        assert_eq!(
            of(json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["9.9.9.9"], "searches": ["a.b."],
                "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}})),
            "search a.b\nnameserver 9.9.9.9\noptions ndots:2 edns0\n"
        );
        assert!(
            of(json!({"dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}})).ends_with("options ndots:1\n")
        );
    }

    #[test]
    fn hostnames_and_hosts() {
        let pod = |name: &str, v| {
            let spec = serde_json::to_value(spec(v)).unwrap();
            Pod::from_value(json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec})).unwrap()
        };
        let long = "a".repeat(62) + "-bbbb";
        assert_eq!(hostname_and_domain(&pod(&long, json!({})), "c.l").0, "a".repeat(62));
        let named = pod(
            "p",
            json!({"hostname": "h", "subdomain": "sub", "setHostnameAsFQDN": true,
            "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["x", "y"]}]}),
        );
        assert_eq!(sandbox_hostname(&named, "c.l").unwrap(), "h.sub.ns.svc.c.l");
        let text = hosts_file(&named, &["10.0.0.9".parse().unwrap()], "c.l", None);
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"), "{text}");
        assert!(text.contains("\n10.0.0.9\th.sub.ns.svc.c.l\th\n"), "{text}");
        assert!(text.ends_with("# Entries added by HostAliases.\n1.2.3.4\tx\ty\n"), "{text}");
        let host = hosts_file(&pod("p", json!({})), &[], "c.l", Some("127.0.0.1 me"));
        assert_eq!(host, "# Kubernetes-managed hosts file (host network).\n127.0.0.1 me\n");
        let too_long = pod("p", json!({"subdomain": "s".repeat(60), "setHostnameAsFQDN": true}));
        assert!(sandbox_hostname(&too_long, "cluster.local").unwrap_err().contains("is too long"));
    }
}
