//! The metrics APIs: what pods use (metrics.k8s.io), what is known of pods and other objects (custom.metrics.k8s.io), and
//! of what is not in the cluster (external.metrics.k8s.io). Errors are in upstream's words.

use super::replicas::{PodMetric, PodMetrics};
use gantry_api::core::pod::resources::amounts;
use gantry_api::meta::quantity::{Amount, ResourceList};
use gantry_client::{Client, Query, ResourceRef, resource_path};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::Value;

const CUSTOM: &str = "custom.metrics.k8s.io";
const EXTERNAL: &str = "external.metrics.k8s.io";
/// The span of a custom metric that does not tell its own, in seconds.
const WINDOW_SECONDS: i64 = 60;

/// Reads measurements.
pub struct Metrics {
    client: Client,
}

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn time(value: &Value) -> Timestamp {
    value.as_str().and_then(|t| t.parse().ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A duration as Go writes it: `1m30s`, `30.5s`.
fn duration(text: &str) -> SignedDuration {
    text.parse().unwrap_or(SignedDuration::ZERO)
}

fn milli(value: &Value) -> i64 {
    value.as_str().and_then(|q| Amount::parse(q).ok()).map_or(0, |a| a.milli_value())
}

fn sum(of: impl Iterator<Item = i64>) -> i64 {
    of.fold(0, i64::saturating_add)
}

impl Metrics {
    /// Reads through `client`.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    async fn get(&self, path: &str, query: &Query, api: &str) -> Result<Value, String> {
        let told = |e: String| format!("unable to fetch metrics from {api} metrics API: {e}");
        let bytes = self.client.call(http::Method::GET, &query.on(path), None, bytes::Bytes::new()).await;
        let bytes = bytes.map_err(|e| told(e.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|e| told(e.to_string()))
    }

    /// What the selected pods, or one container of each, use of a resource.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn of_resource(
        &self,
        resource: &str,
        namespace: &str,
        selector: &str,
        container: &str,
    ) -> Result<PodMetrics, String> {
        let mut query = Query::default();
        query.push_some("labelSelector", Some(selector));
        let path = resource_path("metrics.k8s.io", "v1beta1", "pods", Some(namespace), None, None);
        let list = self.get(&path, &query, "resource").await?;
        if items(&list).is_empty() {
            return Err("no metrics returned from resource metrics API".to_owned());
        }
        let mut found = PodMetrics::new();
        for item in items(&list) {
            let name = item["metadata"]["name"].as_str().unwrap_or_default();
            let containers = item["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
            let mut wanted = containers.iter().filter(|c| container.is_empty() || c["name"] == container).peekable();
            if wanted.peek().is_none() && !container.is_empty() {
                return Err(format!("container {container} not present in metrics for pod {namespace}/{name}"));
            }
            // A pod of which part is not measured is not measured.
            let values: Option<Vec<i64>> = wanted
                .map(|c| {
                    let usage: ResourceList = serde_json::from_value(c["usage"].clone()).ok()?;
                    amounts(Some(&usage)).get(resource).map(Amount::milli_value)
                })
                .collect();
            if let Some(values) = values {
                let window = duration(item["window"].as_str().unwrap_or_default());
                let metric = PodMetric { at: time(&item["timestamp"]), window, value: sum(values.into_iter()) };
                found.insert(name.to_owned(), metric);
            }
        }
        Ok(found)
    }

    /// The version of the custom metrics API that is served.
    async fn custom_version(&self) -> Result<String, String> {
        let path = format!("/apis/{CUSTOM}");
        let group = self.get(&path, &Query::default(), "custom").await;
        let version = group.ok().and_then(|g| g["preferredVersion"]["version"].as_str().map(str::to_owned));
        version.ok_or_else(|| format!("no custom metrics API ({CUSTOM}) registered"))
    }

    async fn custom(
        &self,
        resource: (&str, &str, &str),
        metric: &str,
        selector: &str,
        metric_selector: &str,
    ) -> Result<Value, String> {
        let (plural, namespace, name) = resource;
        let version = self.custom_version().await?;
        let mut query = Query::default();
        query.push_some("labelSelector", Some(selector));
        query.push_some("metricLabelSelector", Some(metric_selector));
        // A namespace's own metrics have a path of their own.
        let (plural, name) = if plural == "namespaces" { ("metrics", metric) } else { (plural, name) };
        let subresource = (plural != "metrics").then_some(metric);
        let path = resource_path(CUSTOM, &version, plural, Some(namespace), Some(name), subresource);
        let list = self.get(&path, &query, "custom").await?;
        if items(&list).is_empty() {
            return Err("no metrics returned from custom metrics API".to_owned());
        }
        Ok(list)
    }

    /// A metric of each of the selected pods.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn of_pods(
        &self,
        metric: &str,
        namespace: &str,
        selector: &str,
        metric_selector: &str,
    ) -> Result<PodMetrics, String> {
        let list = self.custom(("pods", namespace, "*"), metric, selector, metric_selector).await?;
        let one = |item: &Value| {
            let window = SignedDuration::from_secs(item["windowSeconds"].as_i64().unwrap_or(WINDOW_SECONDS));
            let name = item["describedObject"]["name"].as_str().unwrap_or_default().to_owned();
            (name, PodMetric { at: time(&item["timestamp"]), window, value: milli(&item["value"]) })
        };
        Ok(items(&list).iter().map(one).collect())
    }

    /// A metric of one object.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn of_object(
        &self,
        metric: &str,
        namespace: &str,
        resource: &ResourceRef,
        name: &str,
        metric_selector: &str,
    ) -> Result<i64, String> {
        let list = self.custom((&resource.qualified(), namespace, name), metric, "", metric_selector).await?;
        Ok(milli(&items(&list)[0]["value"]))
    }

    /// The sum of an external metric's values.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn external(&self, metric: &str, namespace: &str, selector: &str) -> Result<i64, String> {
        let mut query = Query::default();
        query.push_some("labelSelector", Some(selector));
        let path = resource_path(EXTERNAL, "v1beta1", metric, Some(namespace), None, None);
        let list = self.get(&path, &query, "external").await?;
        if items(&list).is_empty() {
            return Err("no metrics returned from external metrics API".to_owned());
        }
        Ok(sum(items(&list).iter().map(|i| milli(&i["value"]))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_as_go_writes_them() {
        assert_eq!(duration("1m30s"), SignedDuration::from_secs(90));
        assert_eq!(duration("10.5s"), SignedDuration::from_millis(10_500));
        assert_eq!(duration(""), SignedDuration::ZERO);
    }
}
