//! Configuration of the API server. Every default carries its reason.

use crate::access::AccessConfig;
use crate::admission::AdmissionConfig;
use crate::audit::Audit;
use crate::encryption::Encryption;
use gantry_api::k8s_openapi::api::rbac::v1::PolicyRule;
use gantry_api::versions::Versions;
use ipnet::{IpNet, Ipv4Net};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// Everything the server needs to know; built by the binary's bootstrap.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Addresses to listen on with TLS.
    pub listen: Vec<SocketAddr>,
    /// Serving certificate chain, PEM.
    pub serving_cert_pem: String,
    /// Serving key, PEM.
    pub serving_key_pem: String,
    /// CA that client certificates are verified against, PEM.
    pub client_ca_pem: String,
    /// CA published in `kube-root-ca.crt` and trusted for kubelet serving certificates, PEM.
    pub cluster_ca_pem: String,
    /// Client certificate the server shows to kubelets (`kube-apiserver-kubelet-client`), PEM chain and key.
    pub kubelet_client_cert_pem: String,
    /// Key of the above, PEM.
    pub kubelet_client_key_pem: String,
    /// Private key that signs ServiceAccount tokens (PKCS#8 PEM, ECDSA P-256, ES256).
    pub service_account_key_pem: String,
    /// Issuer URL of ServiceAccount tokens.
    pub service_account_issuer: String,
    /// Audiences accepted; the first is the default.
    pub api_audiences: Vec<String>,
    /// Static bearer tokens: token, user, uid, groups.
    pub static_tokens: Vec<(String, String, String, Vec<String>)>,
    /// Range for ClusterIPs of the default family.
    pub service_cidr: IpNet,
    /// Range for ClusterIPs of the other family, in a dual-stack cluster.
    pub secondary_service_cidr: Option<IpNet>,
    /// Range for node ports, inclusive.
    pub node_port_range: (u16, u16),
    /// Address and port the `kubernetes` Service's endpoint points at.
    pub advertise: Option<(IpAddr, u16)>,
    /// Largest request body in bytes; upstream's limit is 3 MiB.
    pub request_body_bytes_max: usize,
    /// Requests over the network that run at the same time; upstream's sum is 600.
    pub requests_at_once: u32,
    /// What is recorded of requests, and where; None for nothing.
    pub audit: Option<Arc<Audit>>,
    /// How what is stored is encrypted; None for not at all.
    pub encryption: Option<Encryption>,
    /// Versions that are served though they are off by default.
    pub versions: Versions,
    /// Which admission plugins run and how.
    pub admission: AdmissionConfig,
    /// Extra RBAC: cluster roles of in-process components; each is bound to the ServiceAccount of the same name (without
    /// the `system:controller:` prefix) in kube-system.
    pub component_roles: Vec<ComponentRole>,
    /// Who may ask, and how the server proves itself to others.
    pub access: AccessConfig,
}

impl ServerConfig {
    /// A server that is asked within its process: it listens nowhere, and has one certificate for all who want to see one. All
    /// else is as in a cluster of which nothing was said. Keys and certificates are PEM.
    #[must_use]
    pub fn in_process(ca: &str, certificate: &str, key: &str, signing_key: &str) -> Self {
        let issuer = "https://kubernetes.default.svc.cluster.local";
        Self {
            listen: Vec::new(),
            serving_cert_pem: certificate.to_owned(),
            serving_key_pem: key.to_owned(),
            client_ca_pem: ca.to_owned(),
            cluster_ca_pem: ca.to_owned(),
            kubelet_client_cert_pem: certificate.to_owned(),
            kubelet_client_key_pem: key.to_owned(),
            service_account_key_pem: signing_key.to_owned(),
            service_account_issuer: issuer.to_owned(),
            api_audiences: vec![issuer.to_owned()],
            static_tokens: Vec::new(),
            service_cidr: IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16)),
            secondary_service_cidr: None,
            node_port_range: (30000, 32767),
            advertise: None,
            request_body_bytes_max: 3 << 20,
            requests_at_once: 600,
            audit: None,
            encryption: None,
            versions: Versions::default(),
            admission: AdmissionConfig::default(),
            component_roles: Vec::new(),
            access: AccessConfig::default(),
        }
    }

    /// The ranges for ClusterIPs, the default family's first.
    pub fn service_cidrs(&self) -> impl Iterator<Item = &IpNet> {
        std::iter::once(&self.service_cidr).chain(&self.secondary_service_cidr)
    }
}

/// RBAC that an in-process component needs.
#[derive(Clone, Debug)]
pub struct ComponentRole {
    /// Controller name, e.g. `deployment-controller`.
    pub name: String,
    /// What it may do.
    pub rules: Vec<PolicyRule>,
}
