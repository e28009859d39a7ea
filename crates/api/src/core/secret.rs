//! Secret: confidential data for pods and components.

use crate::core::config_map::{FROZEN, MAX_BYTES};
use crate::kind::{Column, Context, Kind, ResourceInfo};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::{self, Meta};
use crate::meta::{json_fault, names, table, text};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use x509_parser::pem::Pem;

/// Type of a Secret that holds a ServiceAccount's token.
pub const SERVICE_ACCOUNT_TOKEN: &str = "kubernetes.io/service-account-token";
/// Annotation naming the ServiceAccount of a token Secret.
pub const SERVICE_ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";

impl Kind for Secret {
    const INFO: ResourceInfo = ResourceInfo::new("", "v1", "Secret", "secrets", "secret", true);
    const COLUMNS: &'static [Column] = &[
        table::NAME,
        table::text_column("Type", "Used to facilitate programmatic handling of secret data.", 0),
        table::text_column("Data", "How many keys the secret has.", 0),
        table::AGE,
    ];
    crate::kind_codec!();

    fn set_defaults(&mut self) {
        if text(&self.type_).is_empty() {
            self.type_ = Some("Opaque".to_owned());
        }
        // stringData is for writing only: it becomes data and wins over it.
        if let Some(strings) = self.string_data.take() {
            let data = self.data.get_or_insert_default();
            data.extend(strings.into_iter().map(|(k, v)| (k, ByteString(v.into_bytes()))));
        }
    }

    fn prepare_for_update(&mut self, old: &Self, _cx: &Context<'_>) {
        if text(&self.type_).is_empty() {
            self.type_ = old.type_.clone();
        }
    }

    fn validate(&self) -> ErrorList {
        let mut errors = ErrorList::default();
        let data_path = Path::new("data");
        let mut total = 0;
        for (key, value) in self.data.iter().flatten() {
            names::push_invalid(&mut errors, &data_path.key(key), key, &names::config_map_key(key));
            total += value.0.len();
        }
        if total > MAX_BYTES {
            errors.too_long(&data_path, MAX_BYTES);
        }
        self.validate_type(&data_path, &mut errors);
        errors
    }

    fn warnings(&self, _: Option<&Self>) -> Vec<String> {
        if text(&self.type_) != "kubernetes.io/tls" {
            return Vec::new();
        }
        let value = |key: &str| self.data.as_ref().and_then(|d| d.get(key)).map_or(&[][..], |v| v.0.as_slice());
        tls_fault(value("tls.crt"), value("tls.key")).into_iter().collect()
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut errors = ErrorList::default();
        object::immutable(&mut errors, &Path::new("type"), &json!(text(&self.type_)), &json!(text(&old.type_)));
        if old.immutable == Some(true) {
            if self.immutable != Some(true) {
                errors.forbidden(&Path::new("immutable"), FROZEN);
            }
            if self.data.clone().unwrap_or_default() != old.data.clone().unwrap_or_default() {
                errors.forbidden(&Path::new("data"), FROZEN);
            }
        }
        errors.extend(self.validate());
        errors
    }

    fn selectable_fields(&self) -> Vec<(&'static str, String)> {
        vec![("type", text(&self.type_).to_owned())]
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let keys = self.data.as_ref().map_or(0, |d| d.len());
        vec![self.metadata.name().into(), text(&self.type_).into(), keys.into(), table::age(&self.metadata, now).into()]
    }
}

/// What a type's rules look into.
trait TypeRules {
    fn validate_type(&self, path: &Path, errors: &mut ErrorList);
}

impl TypeRules for Secret {
    fn validate_type(&self, path: &Path, errors: &mut ErrorList) {
        let value = |key: &str| self.data.as_ref().and_then(|d| d.get(key));
        let need = |key: &str, errors: &mut ErrorList| {
            if value(key).is_none() {
                errors.required(&path.key(key), "");
            }
        };
        match text(&self.type_) {
            SERVICE_ACCOUNT_TOKEN if self.metadata.annotation(SERVICE_ACCOUNT_NAME).unwrap_or_default().is_empty() => {
                errors.required(&Path::new("metadata").child("annotations").key(SERVICE_ACCOUNT_NAME), "");
            }
            "kubernetes.io/dockercfg" => {
                need(".dockercfg", errors);
                validate_json(value(".dockercfg"), &path.key(".dockercfg"), errors);
            }
            "kubernetes.io/dockerconfigjson" => {
                need(".dockerconfigjson", errors);
                validate_json(value(".dockerconfigjson"), &path.key(".dockerconfigjson"), errors);
            }
            "kubernetes.io/basic-auth" if value("username").is_none() && value("password").is_none() => {
                need("username", errors);
                need("password", errors);
            }
            "kubernetes.io/ssh-auth" if value("ssh-privatekey").is_none_or(|v| v.0.is_empty()) => {
                errors.required(&path.key("ssh-privatekey"), "");
            }
            "kubernetes.io/tls" => {
                need("tls.crt", errors);
                need("tls.key", errors);
            }
            _ => {}
        }
    }
}

/// Why a certificate and key cannot be a pair, as far as their PEM blocks tell: in the words of Go's TLS library.
fn tls_fault(certificate: &[u8], key: &[u8]) -> Option<String> {
    let blocks =
        |bytes: &[u8]| -> Vec<String> { Pem::iter_from_buffer(bytes).filter_map(|p| Some(p.ok()?.label)).collect() };
    let is_key = |label: &str| label.ends_with("PRIVATE KEY");
    let (found, keys) = (blocks(certificate), blocks(key));
    if !found.iter().any(|l| l == "CERTIFICATE") {
        return Some(match &found[..] {
            [] => "tls: failed to find any PEM data in certificate input".to_owned(),
            [one] if is_key(one) => {
                "tls: failed to find certificate PEM data in certificate input, but did find a private \
                                     key; PEM inputs may have been switched"
                    .to_owned()
            }
            _ => format!(
                "tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the \
                 following types: [{}]",
                found.join(" ")
            ),
        });
    }
    if keys.iter().any(|l| is_key(l)) {
        return None;
    }
    Some(match &keys[..] {
        [] => "tls: failed to find any PEM data in key input".to_owned(),
        [one] if one == "CERTIFICATE" => {
            "tls: found a certificate rather than a key in the PEM for the private key".to_owned()
        }
        _ => format!(
            "tls: failed to find PEM block with type ending in \"PRIVATE KEY\" in key input after skipping PEM blocks of the \
             following types: [{}]",
            keys.join(" ")
        ),
    })
}

fn validate_json(value: Option<&ByteString>, path: &Path, errors: &mut ErrorList) {
    let Some(value) = value else { return };
    if let Some(why) = json_fault::of_object(&value.0) {
        errors.invalid(path, "<secret contents redacted>", &why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(value: Value) -> Secret {
        let mut s = <Secret as Kind>::from_value(value).unwrap();
        s.set_defaults();
        s
    }

    fn texts(errors: &ErrorList) -> Vec<String> {
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_pair_that_is_none_is_warned_of() {
        let warn = |certificate: &str, key: &str| {
            let data = json!({"tls.crt": certificate, "tls.key": key});
            secret(json!({"type": "kubernetes.io/tls", "stringData": data})).warnings(None)
        };
        let block = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
        let (certificate, key) = (block("CERTIFICATE"), block("EC PRIVATE KEY"));
        let none: [&str; 0] = [];
        assert_eq!(warn(&certificate, &key), none);
        assert_eq!(warn("", &key), ["tls: failed to find any PEM data in certificate input"]);
        assert_eq!(warn(&certificate, "x"), ["tls: failed to find any PEM data in key input"]);
        assert!(warn(&key, &certificate)[0].ends_with("PEM inputs may have been switched"));
        assert_eq!(
            warn(&certificate, &certificate),
            ["tls: found a certificate rather than a key in the PEM for the private key"]
        );
        assert_eq!(secret(json!({"type": "Opaque"})).warnings(None), none);
    }

    #[test]
    fn string_data_becomes_data() {
        let s = secret(json!({"data": {"a": "eA==", "b": "eA=="}, "stringData": {"a": "new"}}));
        assert_eq!(Kind::to_value(&s)["data"], json!({"a": "bmV3", "b": "eA=="}));
        assert_eq!(Kind::to_value(&s).get("stringData"), None);
        assert_eq!(s.type_.as_deref(), Some("Opaque"));
    }

    #[test]
    fn types_require_their_keys() {
        let cases = [
            (
                json!({"type": "kubernetes.io/tls"}),
                vec!["data[tls.crt]: Required value", "data[tls.key]: Required value"],
            ),
            (
                json!({"type": "kubernetes.io/basic-auth"}),
                vec!["data[username]: Required value", "data[password]: Required value"],
            ),
            (json!({"type": "kubernetes.io/basic-auth", "stringData": {"username": ""}}), vec![]),
            (json!({"type": "kubernetes.io/ssh-auth"}), vec!["data[ssh-privatekey]: Required value"]),
            (json!({"type": "kubernetes.io/dockerconfigjson"}), vec!["data[.dockerconfigjson]: Required value"]),
            (
                json!({"type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": ""}}),
                vec![
                    "data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\": unexpected end of JSON input",
                ],
            ),
            (
                json!({"type": "kubernetes.io/service-account-token"}),
                vec!["metadata.annotations[kubernetes.io/service-account.name]: Required value"],
            ),
            (json!({"type": "example.com/own"}), vec![]),
        ];
        for (value, want) in cases {
            assert_eq!(texts(&secret(value.clone()).validate()), want, "{value}");
        }
    }

    #[test]
    fn the_type_and_frozen_data_stay() {
        let old = secret(json!({"immutable": true, "stringData": {"k": "1"}}));
        let new = secret(json!({"immutable": true, "type": "x", "stringData": {"k": "2"}}));
        assert_eq!(
            texts(&new.validate_update(&old)),
            [
                "type: Invalid value: \"x\": field is immutable",
                "data: Forbidden: field is immutable when `immutable` is set",
            ]
        );
    }
}
