//! `extenders` of the configuration.

use crate::extender::{Extender, ExtenderConfig, Tls};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gantry_api::core::pod::validate::resources::is_extended;
use gantry_api::meta::names;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::time::Duration;

/// How long a request may take unless the configuration says so.
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Document {
    url_prefix: String,
    #[serde(default)]
    filter_verb: String,
    #[serde(default)]
    preempt_verb: String,
    #[serde(default)]
    prioritize_verb: String,
    #[serde(default)]
    weight: i64,
    #[serde(default)]
    bind_verb: String,
    #[serde(default, rename = "enableHTTPS")]
    enable_https: bool,
    #[serde(default)]
    tls_config: TlsDocument,
    http_timeout: Option<String>,
    #[serde(default)]
    node_cache_capable: bool,
    #[serde(default)]
    managed_resources: Vec<Managed>,
    #[serde(default)]
    ignorable: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TlsDocument {
    #[serde(default)]
    insecure: bool,
    server_name: Option<String>,
    cert_file: Option<String>,
    key_file: Option<String>,
    ca_file: Option<String>,
    cert_data: Option<String>,
    key_data: Option<String>,
    ca_data: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Managed {
    name: String,
    #[serde(default)]
    ignored_by_scheduler: bool,
}

/// PEM given in the configuration, which goes first, or in a file.
fn pem(data: Option<String>, file: Option<String>, at: &str) -> Result<Option<Vec<u8>>, String> {
    if let Some(data) = data.filter(|d| !d.is_empty()) {
        return STANDARD.decode(data.trim()).map(Some).map_err(|e| format!("{at}Data: {e}"));
    }
    let Some(file) = file.filter(|f| !f.is_empty()) else { return Ok(None) };
    std::fs::read(&file).map(Some).map_err(|e| format!("{at}File: {file}: {e}"))
}

/// Reads the list; with it come the resources that the scheduler leaves to extenders.
///
/// # Errors
/// What is wrong, by field.
pub(super) fn read(documents: Vec<Document>) -> Result<(Vec<ExtenderConfig>, BTreeSet<String>), String> {
    let (mut out, mut managed, mut ignored) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for (i, document) in documents.into_iter().enumerate() {
        let at = format!("extenders[{i}]");
        if !document.prioritize_verb.is_empty() && document.weight <= 0 {
            let why = "must have a positive weight applied to it";
            return Err(format!("{at}.weight: Invalid value: {}: {why}", document.weight));
        }
        let mut own = BTreeSet::new();
        for (j, resource) in document.managed_resources.into_iter().enumerate() {
            let (at, name) = (format!("{at}.managedResources[{j}].name"), resource.name);
            let invalid = |why: &str| Err(format!("{at}: Invalid value: {name:?}: {why}"));
            if let Some(why) = names::qualified_name(&name).first() {
                return invalid(why);
            }
            if !is_extended(&name) {
                return invalid("is an invalid extended resource name");
            }
            if !managed.insert(name.clone()) {
                return invalid("duplicate extender managed resource name");
            }
            if resource.ignored_by_scheduler {
                ignored.insert(name.clone());
            }
            own.insert(name);
        }
        let tls = document.tls_config;
        let at_tls = format!("{at}.tlsConfig.");
        let certificate = pem(tls.cert_data, tls.cert_file, &format!("{at_tls}cert"))?;
        let key = pem(tls.key_data, tls.key_file, &format!("{at_tls}key"))?;
        let client = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(format!("{at}.tlsConfig: certificate and key go together")),
        };
        let ca_pem = pem(tls.ca_data, tls.ca_file, &format!("{at_tls}ca"))?.unwrap_or_default();
        if document.enable_https && tls.insecure && !ca_pem.is_empty() {
            // Go's client refuses the combination in these words.
            return Err(format!(
                "{at}.tlsConfig: specifying a root certificates file with the insecure flag is not allowed"
            ));
        }
        let timeout = match &document.http_timeout {
            None => TIMEOUT,
            Some(text) => super::args::duration(text, "httpTimeout").map_err(|e| format!("{at}{e}"))?,
        };
        let config = ExtenderConfig {
            url_prefix: document.url_prefix,
            filter_verb: document.filter_verb,
            preempt_verb: document.preempt_verb,
            prioritize_verb: document.prioritize_verb,
            weight: document.weight,
            bind_verb: document.bind_verb,
            tls: Tls { insecure: tls.insecure, server_name: tls.server_name, ca_pem, client },
            timeout: if timeout.is_zero() { TIMEOUT } else { timeout },
            node_cache_capable: document.node_cache_capable,
            managed_resources: own,
            ignorable: document.ignorable,
        };
        Extender::new(config.clone()).map_err(|e| format!("{at}: {e}"))?;
        out.push(config);
    }
    let binders = out.iter().filter(|e| !e.bind_verb.is_empty()).count();
    if binders > 1 {
        let why = "only one extender can implement bind";
        return Err(format!("extenders: Invalid value: \"found {binders} extenders implementing bind\": {why}"));
    }
    Ok((out, ignored))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read_list(list: Value) -> Result<(Vec<ExtenderConfig>, BTreeSet<String>), String> {
        read(serde_json::from_value(list).map_err(|e| e.to_string())?)
    }

    #[test]
    fn fields() {
        let (found, ignored) = read_list(json!([{
            "urlPrefix": "http://127.0.0.1:8888/x", "filterVerb": "filter", "prioritizeVerb": "score", "weight": 3,
            "enableHTTPS": false, "httpTimeout": "300ms", "nodeCacheCapable": true, "ignorable": true,
            "managedResources": [{"name": "example.com/gpu", "ignoredByScheduler": true}, {"name": "example.com/nic"}],
        }]))
        .unwrap();
        let e = &found[0];
        assert_eq!(
            (e.weight, e.timeout, e.node_cache_capable, e.ignorable),
            (3, Duration::from_millis(300), true, true)
        );
        assert_eq!(e.managed_resources.len(), 2);
        assert_eq!(ignored, BTreeSet::from(["example.com/gpu".to_owned()]));
    }

    #[test]
    fn faults_have_upstreams_words() {
        let url = "http://127.0.0.1";
        for (list, want) in [
            (
                json!([{"urlPrefix": url, "prioritizeVerb": "p"}]),
                "extenders[0].weight: Invalid value: 0: must have a positive weight applied to it",
            ),
            (
                json!([{"urlPrefix": url, "bindVerb": "b"}, {"urlPrefix": url, "bindVerb": "b"}]),
                "extenders: Invalid value: \"found 2 extenders implementing bind\": only one extender can implement bind",
            ),
            (
                json!([{"urlPrefix": url, "managedResources": [{"name": "cpu"}]}]),
                "extenders[0].managedResources[0].name: Invalid value: \"cpu\": is an invalid extended resource name",
            ),
            (
                json!([{"urlPrefix": url, "managedResources": [{"name": "e.com/a"}, {"name": "e.com/a"}]}]),
                "extenders[0].managedResources[1].name: Invalid value: \"e.com/a\": duplicate extender managed \
                 resource name",
            ),
            (
                json!([{"urlPrefix": "ftp://x"}]),
                "extenders[0]: server \"ftp://x\": must begin with https:// or http://",
            ),
        ] {
            assert_eq!(read_list(list).unwrap_err(), want);
        }
        assert!(read_list(json!([{"urlPrefix": url, "verbs": []}])).unwrap_err().contains("unknown field `verbs`"));
    }
}
