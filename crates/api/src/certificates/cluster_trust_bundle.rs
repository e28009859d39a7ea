//! ClusterTrustBundle: certificates to trust, of a signer or of nobody in particular (KEP-3257).

use crate::certificates::certificate_signing_request::validate_signer_name;
use crate::certificates::pem::{self, CERTIFICATE};
use crate::kind::{Column, Kind, ResourceInfo};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::{IMMUTABLE, Meta};
use crate::meta::{names, table, text};
use k8s_openapi::api::certificates::v1::ClusterTrustBundle;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Signer of the certificate that the API server shows; its bundle is published by a controller.
pub const SIGNER_SERVING: &str = "kubernetes.io/kube-apiserver-serving";

/// Bytes of a bundle.
const MAX_SIZE: usize = 1024 * 1024;

/// What the names of a signer's bundles begin with.
#[must_use]
pub fn name_prefix(signer: &str) -> String {
    format!("{}:", signer.replace('/', ":"))
}

/// What is wrong with the name of a bundle of this signer, or of none where that is empty.
#[must_use]
pub fn name_errors(signer: &str, name: &str, prefix: bool) -> Vec<String> {
    if signer.is_empty() {
        if name.contains(':') {
            return vec!["ClusterTrustBundle without signer name must not have \":\" in its name".into()];
        }
        return names::dns1123_subdomain(name, prefix);
    }
    let required = name_prefix(signer);
    match name.strip_prefix(&required) {
        Some(own) => names::dns1123_subdomain(own, prefix),
        None => {
            vec![format!("ClusterTrustBundle for signerName {signer} must be named with prefix {required}")]
        }
    }
}

fn validate_bundle(bundle: &str, at: &Path, errors: &mut ErrorList) {
    const UNSHOWN: &str = "<value omitted>";
    if bundle.len() > MAX_SIZE {
        return errors.too_long(at, MAX_SIZE);
    }
    let before = errors.0.len();
    let blocks = pem::blocks(bundle);
    for (i, block) in blocks.iter().enumerate() {
        let wrong = if block.label != CERTIFICATE {
            format!("entry {i} has bad block type: {}", block.label)
        } else if block.has_headers {
            format!("entry {i} has PEM block headers")
        } else {
            match X509Certificate::from_der(&block.der) {
                Ok(([], certificate)) if certificate.is_ca() => continue,
                Ok(([], _)) => format!("entry {i} does not have the CA bit set"),
                _ => format!("entry {i} does not parse as X.509"),
            }
        };
        errors.invalid(at, UNSHOWN, &wrong);
    }
    if errors.0.len() > before {
        return;
    }
    if blocks.is_empty() {
        errors.invalid(at, UNSHOWN, "at least one trust anchor must be provided");
    }
    for (i, block) in blocks.iter().enumerate() {
        if blocks[..i].iter().any(|b| b.der == block.der) {
            continue;
        }
        let same: Vec<String> =
            (i..blocks.len()).filter(|j| blocks[*j].der == block.der).map(|j| j.to_string()).collect();
        if same.len() > 1 {
            errors.invalid(at, UNSHOWN, &format!("duplicate trust anchor (indices [{}])", same.join(" ")));
        }
    }
}

fn validate(bundle: &ClusterTrustBundle, old: Option<&ClusterTrustBundle>) -> ErrorList {
    let mut e = ErrorList::default();
    let signer = text(&bundle.spec.signer_name);
    let meta = Path::new("metadata");
    if let Some(prefix) = bundle.metadata.generate_name.as_deref().filter(|p| !p.is_empty()) {
        names::push_invalid(&mut e, &meta.child("generateName"), prefix, &name_errors(signer, prefix, true));
    }
    // That there is none the registry tells.
    let name = bundle.metadata.name();
    if !name.is_empty() {
        names::push_invalid(&mut e, &meta.child("name"), name, &name_errors(signer, name, false));
    }
    let spec = Path::new("spec");
    if !signer.is_empty() {
        validate_signer_name(signer, &spec.child("signerName"), &mut e);
    }
    // What is there already may have been accepted by another reading of PEM.
    if old.is_none_or(|o| o.spec.trust_bundle != bundle.spec.trust_bundle) {
        validate_bundle(&bundle.spec.trust_bundle, &spec.child("trustBundle"), &mut e);
    }
    if old.is_some_and(|o| text(&o.spec.signer_name) != signer) {
        e.invalid(&spec.child("signerName"), signer, IMMUTABLE);
    }
    e
}

impl Kind for ClusterTrustBundle {
    const INFO: ResourceInfo = ResourceInfo {
        unconditional_update: false,
        ..ResourceInfo::new(
            "certificates.k8s.io",
            "v1",
            "ClusterTrustBundle",
            "clustertrustbundles",
            "clustertrustbundle",
            false,
        )
    };
    const COLUMNS: &'static [Column] = &[table::NAME, table::text_column("SignerName", "Whose bundle it is.", 0)];
    crate::kind_codec!();

    fn validate(&self) -> ErrorList {
        validate(self, None)
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        validate(self, Some(old))
    }

    /// What is right depends on the signer: see [`name_errors`].
    fn validate_name(_name: &str, _prefix: bool) -> Vec<String> {
        Vec::new()
    }

    fn selectable_fields(&self) -> Vec<(&'static str, String)> {
        vec![("spec.signerName", text(&self.spec.signer_name).to_owned())]
    }

    fn cells(&self, _now: Timestamp) -> Vec<Value> {
        let signer = self.spec.signer_name.as_deref().filter(|s| !s.is_empty()).unwrap_or("<none>");
        vec![self.metadata.name().into(), signer.into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
    use serde_json::json;

    fn certificate(ca: bool) -> String {
        let mut params = CertificateParams::default();
        if ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        // As Go writes a time nobody set.
        params.not_before = rcgen::date_time_ymd(1, 1, 1);
        params.not_after = rcgen::date_time_ymd(1, 1, 1);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    }

    fn errors(name: &str, signer: &str, bundle: &str) -> Vec<String> {
        let object = json!({"metadata": {"name": name}, "spec": {"signerName": signer, "trustBundle": bundle}});
        let bundle = ClusterTrustBundle::from_value(object).unwrap();
        Kind::validate(&bundle).0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_carry_the_signer() {
        let ca = certificate(true);
        assert_eq!(errors("plain", "", &ca), Vec::<String>::new());
        assert_eq!(errors("example.com:a:b", "example.com/a", &ca), Vec::<String>::new());
        assert_eq!(
            errors("a:b", "", &ca),
            [
                r#"metadata.name: Invalid value: "a:b": ClusterTrustBundle without signer name must not have ":" in its name"#
            ]
        );
        assert_eq!(
            errors("b", "example.com/a", &ca),
            [
                "metadata.name: Invalid value: \"b\": ClusterTrustBundle for signerName example.com/a must be named with \
              prefix example.com:a:"
            ]
        );
    }

    #[test]
    fn anchors_are_authorities_and_each_is_there_once() {
        let (ca, leaf) = (certificate(true), certificate(false));
        let told = |bundle: &str| errors("n", "", bundle).join("; ");
        let at = |what: &str| format!("spec.trustBundle: Invalid value: \"<value omitted>\": {what}");
        assert_eq!(told(""), at("at least one trust anchor must be provided"));
        assert_eq!(told(&leaf), at("entry 0 does not have the CA bit set"));
        assert_eq!(told(&format!("{ca}text\n{ca}")), at("duplicate trust anchor (indices [0 1])"));
        assert_eq!(told(&pem::encode("PUBLIC KEY", b"x")), at("entry 0 has bad block type: PUBLIC KEY"));
        assert_eq!(told(&pem::encode(CERTIFICATE, b"x")), at("entry 0 does not parse as X.509"));
        assert_eq!(told(&"x".repeat(MAX_SIZE + 1)), "spec.trustBundle: Too long: may not be more than 1048576 bytes");
    }

    #[test]
    fn an_update_reads_the_bundle_only_where_it_changed() {
        let object = |signer: &str, bundle: &str| {
            ClusterTrustBundle::from_value(
                json!({"metadata": {"name": "n"}, "spec": {"signerName": signer, "trustBundle": bundle}}),
            )
            .unwrap()
        };
        assert!(object("", "old rubbish").validate_update(&object("", "old rubbish")).is_empty());
        assert_eq!(object("", "new rubbish").validate_update(&object("", "old rubbish")).0.len(), 1);
        let changed = object("a.b/c", "x").validate_update(&object("", "x"));
        assert_eq!(
            changed.0.last().unwrap().to_string(),
            "spec.signerName: Invalid value: \"a.b/c\": field is immutable"
        );
    }
}
