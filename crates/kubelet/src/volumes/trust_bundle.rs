//! ClusterTrustBundles in projected volumes: watched from when the first pod asks for one.

use gantry_api::certificates::pem::{self, CERTIFICATE};
use gantry_api::meta::labels::Selector;
use gantry_client::Client;
use gantry_reconcile::{Informer, Informers, wait_synced};
use k8s_openapi::api::certificates::v1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::ClusterTrustBundleProjection;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How long a pod waits for the first list.
const FIRST_ANSWER: Duration = Duration::from_secs(20);

/// Those to be told of changes.
type Interested = Arc<Mutex<Vec<Weak<Notify>>>>;

/// The bundles of the cluster.
pub(crate) struct TrustBundles {
    client: Option<Client>,
    stop: CancellationToken,
    watched: Mutex<Option<Informer<ClusterTrustBundle>>>,
    interested: Interested,
    /// The order of anchors: nobody is to rely on it, so it is another in each process.
    order: RandomState,
}

impl TrustBundles {
    /// Watches with `client` until `stop`.
    pub(crate) fn new(client: Client, stop: CancellationToken) -> Self {
        Self { client: Some(client), ..Self::unwatched(stop) }
    }

    /// Without an API server: every request fails.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self::unwatched(CancellationToken::new())
    }

    fn unwatched(stop: CancellationToken) -> Self {
        let (watched, interested, order) = (Mutex::default(), Interested::default(), RandomState::new());
        Self { client: None, stop, watched, interested, order }
    }

    fn informer(&self) -> Result<Informer<ClusterTrustBundle>, String> {
        let mut watched = self.watched.lock();
        if let Some(informer) = &*watched {
            return Ok(informer.clone());
        }
        let informers = Informers::new(self.client.clone().ok_or("no API server")?);
        let informer = informers.get::<ClusterTrustBundle>();
        let interested = self.interested.clone();
        informer.on_change(move |_| {
            for notify in interested.lock().iter().filter_map(Weak::upgrade) {
                notify.notify_one();
            }
        });
        informers.start(&self.stop);
        *watched = Some(informer.clone());
        Ok(informer)
    }

    /// The anchors that a projection selects, as PEM; `wake` is told whenever they may have changed.
    ///
    /// # Errors
    /// Where the server does not answer, or nothing is found that must be there; the text is upstream's.
    pub(crate) async fn get(
        &self,
        source: &ClusterTrustBundleProjection,
        wake: &Arc<Notify>,
    ) -> Result<Vec<u8>, String> {
        let informer = self.informer()?;
        {
            let mut list = self.interested.lock();
            let weak = Arc::downgrade(wake);
            list.retain(|w| w.strong_count() > 0 && !w.ptr_eq(&weak));
            list.push(weak);
        }
        match tokio::time::timeout(FIRST_ANSWER, wait_synced(&[&informer], &self.stop)).await {
            Ok(true) => anchors(source, &informer.list(), &self.order),
            _ => Err("ClusterTrustBundle informer has not yet synced".into()),
        }
    }
}

/// The anchors that a projection selects of all bundles, each once.
fn anchors(
    source: &ClusterTrustBundleProjection,
    all: &[Arc<ClusterTrustBundle>],
    order: &RandomState,
) -> Result<Vec<u8>, String> {
    let optional = source.optional == Some(true);
    let selected: Vec<&Arc<ClusterTrustBundle>> = if let Some(signer) = &source.signer_name {
        // Without a selector nothing is selected, with an empty one everything.
        let selector = Selector::from_label_selector(source.label_selector.as_ref())
            .map_err(|e| format!("while parsing label selector: {e}"))?;
        let found: Vec<_> = all
            .iter()
            .filter(|b| b.spec.signer_name.as_ref() == Some(signer))
            .filter(|b| selector.matches_optional(b.metadata.labels.as_ref()))
            .collect();
        if found.is_empty() && !optional {
            return Err("combination of signerName and labelSelector matched zero ClusterTrustBundles".into());
        }
        found
    } else {
        let name = source.name.as_deref().unwrap_or_default();
        let found: Vec<_> = all.iter().filter(|b| b.metadata.name.as_deref() == Some(name)).collect();
        if found.is_empty() && !optional {
            return Err(format!(
                "while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io {name:?} not found"
            ));
        }
        found
    };
    let blocks = selected.iter().flat_map(|b| pem::blocks(&b.spec.trust_bundle)).map(|b| b.der);
    let mut each: Vec<Vec<u8>> = blocks.collect::<BTreeSet<_>>().into_iter().collect();
    each.sort_by_key(|der| order.hash_one(der));
    Ok(each.iter().map(|der| pem::encode(CERTIFICATE, der)).collect::<String>().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::{Value, json};

    fn bundle(name: &str, signer: Option<&str>, label: &str, anchors: &[&[u8]]) -> Arc<ClusterTrustBundle> {
        let text: String = anchors.iter().map(|a| format!("text\n{}", pem::encode(CERTIFICATE, a))).collect();
        let object = json!({"metadata": {"name": name, "labels": {"l": label}},
            "spec": {"signerName": signer, "trustBundle": text}});
        Arc::new(ClusterTrustBundle::from_value(object).unwrap())
    }

    #[test]
    fn by_name_or_by_signer_and_labels() {
        let all = [
            bundle("plain", None, "a", &[b"1", b"2"]),
            bundle("s.x:n:1", Some("s.x/n"), "a", &[b"3", b"4"]),
            bundle("s.x:n:2", Some("s.x/n"), "b", &[b"4", b"5"]),
            bundle("t.x:n:1", Some("t.x/n"), "b", &[b"6"]),
        ];
        let order = RandomState::new();
        let told = |source: Value| -> Result<Vec<String>, String> {
            let mut source = source;
            source["path"] = json!("p");
            let text = anchors(&serde_json::from_value(source).unwrap(), &all, &order)?;
            let mut out: Vec<String> = pem::blocks(&String::from_utf8(text).unwrap())
                .into_iter()
                .map(|b| String::from_utf8(b.der).unwrap())
                .collect();
            out.sort();
            Ok(out)
        };
        let texts = |list: &[&str]| Ok(list.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>());
        assert_eq!(told(json!({"name": "plain"})), texts(&["1", "2"]));
        assert_eq!(told(json!({"signerName": "s.x/n", "labelSelector": {}})), texts(&["3", "4", "5"]));
        let labelled = json!({"signerName": "s.x/n", "labelSelector": {"matchLabels": {"l": "b"}}});
        assert_eq!(told(labelled), texts(&["4", "5"]));
        let zero = "combination of signerName and labelSelector matched zero ClusterTrustBundles";
        assert_eq!(told(json!({"signerName": "s.x/n"})), Err(zero.to_owned()), "no selector selects nothing");
        assert_eq!(told(json!({"signerName": "s.x/n", "optional": true})), texts(&[]));
        assert_eq!(
            told(json!({"name": "none"})).unwrap_err(),
            "while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io \"none\" not found"
        );
        assert_eq!(told(json!({"name": "none", "optional": true})), texts(&[]));
    }

    #[test]
    fn the_order_holds_within_a_process() {
        let all = [bundle("plain", None, "a", &[b"1", b"2", b"3", b"4"])];
        let source = ClusterTrustBundleProjection { name: Some("plain".into()), ..Default::default() };
        let order = RandomState::new();
        assert_eq!(anchors(&source, &all, &order), anchors(&source, &all, &order));
    }
}
