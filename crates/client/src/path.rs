//! API paths.

use crate::query::escape;

/// The path of a collection (no name), an object or a subresource. `namespace` is None for cluster-scoped kinds and for
/// all namespaces.
#[must_use]
pub fn of(
    group: &str,
    version: &str,
    plural: &str,
    namespace: Option<&str>,
    name: Option<&str>,
    subresource: Option<&str>,
) -> String {
    let mut path = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
    if let Some(ns) = namespace {
        path.push_str("/namespaces/");
        path.push_str(&escape(ns));
    }
    path.push('/');
    path.push_str(plural);
    for part in [name, subresource].into_iter().flatten() {
        path.push('/');
        path.push_str(&escape(part));
    }
    path
}

#[cfg(test)]
mod tests {
    use super::of;

    #[test]
    fn paths_of_collections_objects_and_subresources() {
        assert_eq!(of("", "v1", "pods", None, None, None), "/api/v1/pods");
        assert_eq!(of("", "v1", "pods", Some("a"), Some("b"), Some("log")), "/api/v1/namespaces/a/pods/b/log");
        assert_eq!(
            of("rbac.authorization.k8s.io", "v1", "clusterroles", None, Some("system:node"), None),
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode"
        );
    }
}
