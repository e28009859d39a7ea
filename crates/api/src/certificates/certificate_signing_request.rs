//! CertificateSigningRequest: asks a signer for a certificate; approved or denied by a third party.

use crate::kind::{Column, Context, Kind, ResourceInfo, STATUS, Subresource, Verb};
use crate::meta::field::{ErrorList, Path};
use crate::meta::{names, table};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition as Condition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use x509_parser::prelude::{FromDer, X509CertificationRequest};

/// Signs client certificates for anybody; never approved automatically.
pub const SIGNER_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Signs the client certificates of kubelets.
pub const SIGNER_CLIENT_KUBELET: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signs the serving certificates of kubelets.
pub const SIGNER_KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
/// A signer that only `v1beta1` knew.
const SIGNER_LEGACY: &str = "kubernetes.io/legacy-unknown";

const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// Conditions that only the approval subresource may add.
const APPROVAL: [&str; 2] = ["Approved", "Denied"];

impl Kind for CertificateSigningRequest {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["csr"],
        subresources: &[
            Subresource { name: "approval", gvk: None, verbs: &[Verb::Get, Verb::Patch, Verb::Update] },
            STATUS,
        ],
        ..ResourceInfo::new(
            "certificates.k8s.io",
            "v1",
            "CertificateSigningRequest",
            "certificatesigningrequests",
            "certificatesigningrequest",
            false,
        )
    };
    const COLUMNS: &'static [Column] = &[
        Column { name: "Name", r#type: "string", format: "name", description: "Name of the request.", priority: 0 },
        Column {
            name: "Age",
            r#type: "string",
            format: "",
            description: "Time since the request was made.",
            priority: 0,
        },
        Column { name: "SignerName", r#type: "string", format: "", description: "The signer asked.", priority: 0 },
        Column { name: "Requestor", r#type: "string", format: "", description: "The user who asks.", priority: 0 },
        Column {
            name: "RequestedDuration",
            r#type: "string",
            format: "",
            description: "Validity asked for.",
            priority: 0,
        },
        Column { name: "Condition", r#type: "string", format: "", description: "What became of it.", priority: 0 },
    ];
    crate::kind_codec!();

    fn set_defaults(&mut self) {
        for c in self.status.iter_mut().flat_map(|s| s.conditions.iter_mut().flatten()) {
            if c.status.is_empty() {
                c.status = "True".into();
            }
        }
    }

    fn prepare_for_create(&mut self, cx: &Context<'_>) {
        self.spec.username = Some(cx.username.to_owned());
        self.status = Some(Default::default());
    }

    fn validate(&self) -> ErrorList {
        let mut e = self.validate_stored();
        let at = Path::new("spec");
        if let Err(why) = parse_request(&self.spec.request.0) {
            e.invalid(&at.child("request"), serde_json::to_value(&self.spec.request).unwrap_or_default(), &why);
        }
        let usages = self.spec.usages.as_deref().unwrap_or_default();
        if usages.is_empty() {
            e.required(&at.child("usages"), "");
        }
        for (i, usage) in usages.iter().enumerate() {
            let at = at.child("usages").index(i);
            if !USAGES.contains(&usage.as_str()) {
                e.not_supported(&at, usage, USAGES);
            }
            if usages[..i].contains(usage) {
                e.duplicate(&at, usage.as_str());
            }
        }
        if self.spec.signer_name == SIGNER_LEGACY {
            let detail = "the legacy signerName is not allowed via this API version";
            e.invalid(&at.child("signerName"), SIGNER_LEGACY, detail);
        } else {
            validate_signer_name(&self.spec.signer_name, &at.child("signerName"), &mut e);
        }
        if let Some(seconds) = self.spec.expiration_seconds
            && seconds < 600
        {
            let detail = "may not specify a duration less than 600 seconds (10 minutes)";
            e.invalid(&at.child("expirationSeconds"), seconds, detail);
        }
        e
    }

    fn prepare_for_update(&mut self, old: &Self, _cx: &Context<'_>) {
        // The whole request is immutable: an update can only change metadata.
        self.spec = old.spec.clone();
        self.status = old.status.clone();
    }

    fn validate_update(&self, _old: &Self) -> ErrorList {
        self.validate_stored()
    }

    fn prepare_for_status_update(&mut self, old: &Self, cx: &Context<'_>) {
        self.spec = old.spec.clone();
        stamp_conditions(self, old, cx.now);
    }

    fn validate_status_update(&self, old: &Self) -> ErrorList {
        let mut e = self.validate_stored();
        changed_conditions(self, old, false, &mut e);
        let (new_cert, old_cert) = (certificate(self), certificate(old));
        let at = Path::new("status").child("certificate");
        if !old_cert.is_empty() && new_cert != old_cert {
            e.forbidden(&at, "updates may not modify existing certificate content");
        }
        if new_cert != old_cert && !new_cert.is_empty() {
            for why in certificate_errors(new_cert) {
                e.invalid(&at, serde_json::to_value(ByteString(new_cert.to_vec())).unwrap_or_default(), &why);
            }
        }
        e
    }

    fn prepare_for_subresource_update(&mut self, subresource: &str, old: &Self, cx: &Context<'_>) {
        match subresource {
            "approval" => prepare_for_approval(self, old, cx.now),
            _ => self.prepare_for_status_update(old, cx),
        }
    }

    fn validate_subresource_update(&self, subresource: &str, old: &Self) -> ErrorList {
        match subresource {
            "approval" => validate_approval(self, old),
            _ => self.validate_status_update(old),
        }
    }

    fn selectable_fields(&self) -> Vec<(&'static str, String)> {
        vec![("spec.signerName", self.spec.signer_name.clone())]
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let duration = self.spec.expiration_seconds.map_or_else(
            || "<none>".to_owned(),
            |s| {
                let end = now.checked_add(SignedDuration::from_secs(i64::from(s))).unwrap_or(now);
                table::human_duration(now, end)
            },
        );
        vec![
            self.metadata.name.clone().unwrap_or_default().into(),
            table::age(&self.metadata, now).into(),
            self.spec.signer_name.clone().into(),
            self.spec.username.clone().unwrap_or_default().into(),
            duration.into(),
            condition_text(self).into(),
        ]
    }

    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["spec"]])
    }
}

trait Stored {
    fn validate_stored(&self) -> ErrorList;
}

impl Stored for CertificateSigningRequest {
    /// Rules that hold for every stored request, after an update of any sort.
    fn validate_stored(&self) -> ErrorList {
        let mut e = ErrorList::default();
        let at = Path::new("status").child("conditions");
        let conditions = conditions(self);
        for (i, c) in conditions.iter().enumerate() {
            let at = at.index(i);
            let decisive = matches!(c.type_.as_str(), "Approved" | "Denied" | "Failed");
            if c.type_.is_empty() {
                e.required(&at.child("type"), "");
            }
            match c.status.as_str() {
                "" => e.required(&at.child("status"), ""),
                "True" => {}
                other if decisive => e.not_supported(&at.child("status"), other, &["True"]),
                "False" | "Unknown" => {}
                other => e.not_supported(&at.child("status"), other, &["False", "True", "Unknown"]),
            }
            if conditions[..i].iter().any(|o| o.type_ == c.type_) {
                e.duplicate(&at.child("type"), c.type_.as_str());
            }
        }
        let decided = |t: &str| conditions.iter().position(|c| c.type_ == t);
        if let (Some(approved), Some(denied)) = (decided("Approved"), decided("Denied")) {
            // The later of the two is the one that is too much.
            let extra = if approved > denied { "Approved" } else { "Denied" };
            e.invalid(&at, extra, "Approved and Denied conditions are mutually exclusive");
        }
        e
    }
}

fn conditions(csr: &CertificateSigningRequest) -> &[Condition] {
    csr.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default()
}

fn certificate(csr: &CertificateSigningRequest) -> &[u8] {
    csr.status.as_ref().and_then(|s| s.certificate.as_ref()).map_or(&[], |c| c.0.as_slice())
}

/// Whether the request has a condition of this type.
#[must_use]
pub fn has_condition(csr: &CertificateSigningRequest, r#type: &str) -> bool {
    conditions(csr).iter().any(|c| c.type_ == r#type)
}

/// Times of new and changed conditions.
fn stamp_conditions(new: &mut CertificateSigningRequest, old: &CertificateSigningRequest, now: Timestamp) {
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    let before = conditions(old).to_vec();
    for c in new.status.iter_mut().flat_map(|s| s.conditions.iter_mut().flatten()) {
        if c.last_update_time.is_none() {
            c.last_update_time = Some(now.clone());
        }
        if c.last_transition_time.is_none() {
            let same = before.iter().find(|o| o.type_ == c.type_ && o.status == c.status);
            c.last_transition_time = same.and_then(|o| o.last_transition_time.clone()).or_else(|| Some(now.clone()));
        }
    }
}

fn changed_conditions(
    new: &CertificateSigningRequest,
    old: &CertificateSigningRequest,
    approval: bool,
    e: &mut ErrorList,
) {
    let at = Path::new("status").child("conditions");
    let count = |csr, t: &str| conditions(csr).iter().filter(|c| c.type_ == t).count();
    for t in ["Approved", "Denied", "Failed"] {
        if count(new, t) < count(old, t) {
            e.forbidden(&at, &format!("updates may not remove a condition of type {t:?}"));
        }
    }
    if !approval {
        let of = |csr, t: &str| conditions(csr).iter().filter(|c| c.type_ == t).cloned().collect::<Vec<_>>();
        for t in APPROVAL {
            if count(new, t) > count(old, t) {
                e.forbidden(&at, &format!("updates may not add a condition of type {t:?}"));
            } else if of(new, t) != of(old, t) {
                e.forbidden(&at, &format!("updates may not modify a condition of type {t:?}"));
            }
        }
    }
}

/// Resets all but the conditions, for an update of the `approval` subresource.
fn prepare_for_approval(new: &mut CertificateSigningRequest, old: &CertificateSigningRequest, now: Timestamp) {
    let conditions = new.status.take().and_then(|s| s.conditions);
    new.spec = old.spec.clone();
    new.status.clone_from(&old.status);
    new.status.get_or_insert_default().conditions = conditions;
    stamp_conditions(new, old, now);
}

/// Field errors of an update of the `approval` subresource.
fn validate_approval(new: &CertificateSigningRequest, old: &CertificateSigningRequest) -> ErrorList {
    let mut e = new.validate_stored();
    changed_conditions(new, old, true, &mut e);
    e
}

/// `Pending`, `Approved`, `Denied`, with `,Failed` and `,Issued`.
fn condition_text(csr: &CertificateSigningRequest) -> String {
    let mut text = match (has_condition(csr, "Denied"), has_condition(csr, "Approved")) {
        (true, _) => "Denied",
        (_, true) => "Approved",
        _ => "Pending",
    }
    .to_owned();
    if has_condition(csr, "Failed") {
        text.push_str(",Failed");
    }
    if !certificate(csr).is_empty() {
        text.push_str(",Issued");
    }
    text
}

/// DER of the one PEM block labelled `CERTIFICATE REQUEST`.
///
/// # Errors
/// Where the bytes are not such a block, or the request in it is malformed; the text says which.
pub fn parse_request(pem: &[u8]) -> Result<Vec<u8>, String> {
    let wrong = "PEM block type must be CERTIFICATE REQUEST";
    let (_, block) = x509_parser::pem::parse_x509_pem(pem).map_err(|_| wrong.to_owned())?;
    if block.label != "CERTIFICATE REQUEST" {
        return Err(wrong.to_owned());
    }
    X509CertificationRequest::from_der(&block.contents).map_err(|e| format!("malformed certificate request: {e}"))?;
    Ok(block.contents)
}

fn certificate_errors(pem: &[u8]) -> Vec<String> {
    let mut blocks = 0;
    for block in x509_parser::pem::Pem::iter_from_buffer(pem) {
        let Ok(block) = block else { return vec!["must contain only PEM blocks".into()] };
        if block.label != "CERTIFICATE" {
            return vec![format!("only CERTIFICATE PEM blocks are allowed, found {:?}", block.label)];
        }
        if let Err(e) = block.parse_x509() {
            return vec![format!("malformed certificate: {e}")];
        }
        blocks += 1;
    }
    if blocks == 0 { vec!["must contain at least one CERTIFICATE PEM block".into()] } else { Vec::new() }
}

/// A signer is `domain/path`, the domain fully qualified.
pub(crate) fn validate_signer_name(name: &str, at: &Path, e: &mut ErrorList) {
    if name.is_empty() {
        e.required(at, "");
        return;
    }
    let [domain, path] = name.split('/').collect::<Vec<_>>()[..] else {
        e.invalid(at, name, "must be a fully qualified domain and path of the form 'example.com/signer-name'");
        return;
    };
    if domain.len() > names::DNS_SUBDOMAIN_MAX {
        e.too_long(at, names::DNS_SUBDOMAIN_MAX);
    }
    // Of the labels of each part the first bad one is told.
    let labels = |part: &str, rule: fn(&str, bool) -> Vec<String>, e: &mut ErrorList| {
        let bad = part.split('.').map(|l| (l, rule(l, false))).find(|(_, found)| !found.is_empty());
        for (label, message) in bad.into_iter().flat_map(|(l, found)| found.into_iter().map(move |m| (l, m))) {
            e.invalid(at, part, &format!("validating label {label:?}: {message}"));
        }
    };
    labels(domain, names::dns1123_label, e);
    if !domain.contains('.') {
        e.invalid(at, domain, "should be a domain with at least two segments separated by dots");
    }
    labels(path, names::dns1123_subdomain, e);
    if name.len() > 571 {
        e.too_long(at, 571);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const REQUEST: &str = "-----BEGIN CERTIFICATE REQUEST-----\n\
        MIIBADCBqAIBADBGMRUwEwYDVQQKDAxzeXN0ZW06bm9kZXMxLTArBgNVBAMMJHN5\n\
        -----END CERTIFICATE REQUEST-----\n";

    fn csr(conditions: Value) -> CertificateSigningRequest {
        let spec = json!({"request": "", "signerName": "a.b/c", "usages": ["client auth"]});
        CertificateSigningRequest::from_value(json!({"metadata": {"name": "x"}, "spec": spec,
            "status": {"conditions": conditions}}))
        .unwrap()
    }

    fn condition(t: &str) -> Value {
        json!({"type": t, "status": "True"})
    }

    #[test]
    fn a_truncated_request_is_malformed() {
        assert!(parse_request(REQUEST.as_bytes()).unwrap_err().starts_with("malformed"));
        assert_eq!(parse_request(b"x").unwrap_err(), "PEM block type must be CERTIFICATE REQUEST");
    }

    #[test]
    fn only_the_approval_subresource_approves() {
        let (none, approved) = (csr(json!([])), csr(json!([condition("Approved")])));
        assert!(validate_approval(&approved, &none).is_empty());
        assert_eq!(
            approved.validate_status_update(&none).0[0].to_string(),
            r#"status.conditions: Forbidden: updates may not add a condition of type "Approved""#
        );
        assert_eq!(
            validate_approval(&none, &approved).0[0].to_string(),
            r#"status.conditions: Forbidden: updates may not remove a condition of type "Approved""#
        );
        let both = csr(json!([condition("Approved"), condition("Denied")]));
        assert_eq!(
            validate_approval(&both, &none).0[0].to_string(),
            r#"status.conditions: Invalid value: "Denied": Approved and Denied conditions are mutually exclusive"#
        );
        let mut reworded = approved.clone();
        reworded.status.as_mut().unwrap().conditions.as_mut().unwrap()[0].reason = Some("Other".into());
        assert_eq!(
            reworded.validate_status_update(&approved).0[0].to_string(),
            r#"status.conditions: Forbidden: updates may not modify a condition of type "Approved""#
        );
    }

    #[test]
    fn the_table_tells_what_became_of_it() {
        for (conditions, want) in [
            (json!([]), "Pending"),
            (json!([condition("Approved")]), "Approved"),
            (json!([condition("Denied")]), "Denied"),
            (json!([condition("Approved"), condition("Failed")]), "Approved,Failed"),
        ] {
            assert_eq!(condition_text(&csr(conditions)), want);
        }
    }

    #[test]
    fn the_bad_label_of_a_signer_is_named() {
        let mut e = ErrorList::default();
        validate_signer_name("a.B/c", &Path::new("s"), &mut e);
        assert!(
            e.0[0].to_string().starts_with("s: Invalid value: \"a.B\": validating label \"B\": a lowercase RFC 1123")
        );
        let mut e = ErrorList::default();
        validate_signer_name("a.b/c/d", &Path::new("s"), &mut e);
        assert!(e.0[0].to_string().ends_with("path of the form 'example.com/signer-name'"));
    }

    #[test]
    fn signer_names_have_a_domain() {
        for (name, fine) in [("a.b/c", true), ("", false), ("a/b", false), ("a.b", false), ("a.b/C", false)] {
            let mut e = ErrorList::default();
            validate_signer_name(name, &Path::new("s"), &mut e);
            assert_eq!(e.is_empty(), fine, "{name}");
        }
    }
}
