//! Recognising requests for a node's certificates, and what each signer signs.

use super::{API_CLIENT_SIGNER, CLIENT_SIGNER, LEGACY_SIGNER, SERVING_SIGNER};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509CertificationRequest};

const NODE_PREFIX: &str = "system:node:";
const NODES: &str = "system:nodes";

/// A request these signers know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recognised {
    /// A client certificate for a node.
    NodeClient {
        /// Whether the node itself asks (to renew), rather than a machine that joins.
        own: bool,
    },
    /// A serving certificate, asked for by the node itself.
    NodeServing {
        /// The node.
        node: String,
        /// DNS names and addresses asked for.
        names: Vec<String>,
    },
}

/// What a request says of whom it is for.
#[derive(Debug, Default)]
struct Subject {
    organizations: Vec<String>,
    common_name: String,
    dns: Vec<String>,
    addresses: Vec<String>,
    emails: usize,
    uris: usize,
    /// Names of other sorts.
    others: usize,
}

impl Subject {
    fn of(csr: &CertificateSigningRequest) -> Option<Self> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(&csr.spec.request.0).ok()?;
        let (_, request) = X509CertificationRequest::from_der(&pem.contents).ok()?;
        let subject = &request.certification_request_info.subject;
        let own = |texts: Vec<&str>| texts.into_iter().map(str::to_owned).collect();
        let mut out = Self {
            organizations: own(subject.iter_organization().filter_map(|o| o.as_str().ok()).collect()),
            common_name: subject.iter_common_name().next().and_then(|n| n.as_str().ok()).unwrap_or_default().to_owned(),
            ..Self::default()
        };
        for extension in request.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(san) = extension else { continue };
            for general in &san.general_names {
                match general {
                    GeneralName::DNSName(name) => out.dns.push((*name).to_owned()),
                    GeneralName::IPAddress(bytes) => match address(bytes) {
                        Some(address) => out.addresses.push(address),
                        None => out.others += 1,
                    },
                    GeneralName::RFC822Name(_) => out.emails += 1,
                    GeneralName::URI(_) => out.uris += 1,
                    _ => out.others += 1,
                }
            }
        }
        Some(out)
    }

    fn node(&self) -> Option<&str> {
        self.common_name.strip_prefix(NODE_PREFIX).filter(|n| !n.is_empty())
    }
}

fn usages(csr: &CertificateSigningRequest) -> Vec<&str> {
    csr.spec.usages.iter().flatten().map(String::as_str).collect()
}

/// What the request is, by its signer, usages and subject; `None` for anything else than a node's.
#[must_use]
pub fn recognise(csr: &CertificateSigningRequest) -> Option<Recognised> {
    let subject = Subject::of(csr)?;
    let node = subject.node()?.to_owned();
    let own = csr.spec.username.as_deref() == Some(subject.common_name.as_str());
    let signer = csr.spec.signer_name.as_str();
    if subject.others > 0 || !matches!(signer, CLIENT_SIGNER | SERVING_SIGNER) || verify(csr)?.is_err() {
        return None;
    }
    if signer == CLIENT_SIGNER {
        return Some(Recognised::NodeClient { own });
    }
    let names = subject.dns.into_iter().chain(subject.addresses).collect();
    own.then_some(Recognised::NodeServing { node, names })
}

/// Whether the signer signs such a request, once it is approved; `None` where the signer is none of the cluster's own, or the
/// request cannot be read.
///
/// # Errors
/// Why it does not, as the condition `Failed` says it.
#[must_use]
pub fn verify(csr: &CertificateSigningRequest) -> Option<Result<(), String>> {
    let subject = Subject::of(csr)?;
    let usages = usages(csr);
    Some(match csr.spec.signer_name.as_str() {
        CLIENT_SIGNER => of_node_client(&subject, &usages),
        SERVING_SIGNER => of_node_serving(&subject, &usages),
        API_CLIENT_SIGNER => of_client(&usages),
        LEGACY_SIGNER => Ok(()),
        _ => return None,
    })
}

fn refuse(wrong: bool, why: &str) -> Result<(), String> {
    if wrong { Err(why.to_owned()) } else { Ok(()) }
}

fn of_node_client(subject: &Subject, usages: &[&str]) -> Result<(), String> {
    refuse(subject.organizations != [NODES], "subject organization is not system:nodes")?;
    refuse(!subject.dns.is_empty(), "DNS subjectAltNames are not allowed")?;
    refuse(subject.emails > 0, "Email subjectAltNames are not allowed")?;
    refuse(!subject.addresses.is_empty(), "IP subjectAltNames are not allowed")?;
    refuse(subject.uris > 0, "URI subjectAltNames are not allowed")?;
    refuse(!subject.common_name.starts_with(NODE_PREFIX), "subject common name does not begin with system:node:")?;
    refuse(!are(usages, "client auth"), "usages did not match [client auth digital signature key encipherment]")
}

fn of_node_serving(subject: &Subject, usages: &[&str]) -> Result<(), String> {
    refuse(subject.organizations != [NODES], "subject organization is not system:nodes")?;
    let nameless = subject.dns.is_empty() && subject.addresses.is_empty();
    refuse(nameless, "DNS or IP subjectAltName is required")?;
    refuse(subject.emails > 0, "Email subjectAltNames are not allowed")?;
    refuse(subject.uris > 0, "URI subjectAltNames are not allowed")?;
    refuse(!are(usages, "server auth"), "usages did not match [digital signature key encipherment server auth]")?;
    refuse(!subject.common_name.starts_with(NODE_PREFIX), "subject common name does not begin with system:node:")
}

fn of_client(usages: &[&str]) -> Result<(), String> {
    let allowed = |u: &&str| matches!(*u, "digital signature" | "key encipherment" | "client auth");
    if let Some(other) = usages.iter().find(|u| !allowed(u)) {
        return Err(format!("invalid usage for client certificate: {other}"));
    }
    refuse(!usages.contains(&"client auth"), "missing required usage for client certificate: client auth")
}

/// `digital signature` and `purpose`, with or without `key encipherment`.
fn are(usages: &[&str], purpose: &str) -> bool {
    usages.contains(&"digital signature")
        && usages.contains(&purpose)
        && usages.iter().all(|u| *u == purpose || matches!(*u, "digital signature" | "key encipherment"))
}

fn address(bytes: &[u8]) -> Option<String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(std::net::Ipv4Addr::from(v4).to_string());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| std::net::Ipv6Addr::from(v6).to_string())
}
