//! Recognising requests for a node's certificates.

use super::{CLIENT_SIGNER, SERVING_SIGNER};
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

/// What the request is, by its signer, usages and subject; `None` for anything else.
#[must_use]
pub fn recognise(csr: &CertificateSigningRequest) -> Option<Recognised> {
    let spec = &csr.spec;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&spec.request.0).ok()?;
    let (_, request) = X509CertificationRequest::from_der(&pem.contents).ok()?;
    let subject = &request.certification_request_info.subject;
    let organizations: Vec<&str> = subject.iter_organization().filter_map(|o| o.as_str().ok()).collect();
    let common_name = subject.iter_common_name().next()?.as_str().ok()?;
    let node = common_name.strip_prefix(NODE_PREFIX).filter(|n| !n.is_empty())?;
    if organizations != [NODES] {
        return None;
    }
    let mut names = Vec::new();
    let mut foreign = false;
    for extension in request.requested_extensions().into_iter().flatten() {
        if let ParsedExtension::SubjectAlternativeName(san) = extension {
            for general in &san.general_names {
                match general {
                    GeneralName::DNSName(name) => names.push((*name).to_owned()),
                    GeneralName::IPAddress(bytes) => match address(bytes) {
                        Some(address) => names.push(address),
                        None => foreign = true,
                    },
                    _ => foreign = true,
                }
            }
        }
    }
    let usages: Vec<&str> = spec.usages.iter().flatten().map(String::as_str).collect();
    let own = spec.username.as_deref() == Some(common_name);
    match spec.signer_name.as_str() {
        CLIENT_SIGNER if names.is_empty() && !foreign && are(&usages, "client auth") => {
            Some(Recognised::NodeClient { own })
        }
        SERVING_SIGNER if own && !names.is_empty() && !foreign && are(&usages, "server auth") => {
            Some(Recognised::NodeServing { node: node.to_owned(), names })
        }
        _ => None,
    }
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
