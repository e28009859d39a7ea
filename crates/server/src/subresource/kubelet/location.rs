//! Which container, pod, node or endpoint a request is for.

use gantry_api::k8s_openapi::api::core::v1::Pod;
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use std::net::IpAddr;

/// The container to use: the one named, or the only one there is.
///
/// # Errors
/// 400 with the names to choose from, or that the name is none of them.
pub(super) fn container(pod: &Pod, wanted: &str) -> Result<String, ApiError> {
    let name = pod.metadata.name();
    let Some(spec) = &pod.spec else {
        return Err(ApiError::bad_request(format!("a container name must be specified for pod {name}")));
    };
    let init = spec.init_containers.iter().flatten().map(|c| c.name.as_str());
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| c.name.as_str());
    let all: Vec<&str> = init.chain(spec.containers.iter().map(|c| c.name.as_str())).chain(ephemeral).collect();
    if !wanted.is_empty() {
        if all.contains(&wanted) {
            return Ok(wanted.to_owned());
        }
        return Err(ApiError::bad_request(format!("container {wanted} is not valid for pod {name}")));
    }
    match spec.containers.as_slice() {
        [only] => Ok(only.name.clone()),
        [] => Err(ApiError::bad_request(format!("a container name must be specified for pod {name}"))),
        _ => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {name}, choose one of: [{}]",
            all.join(" ")
        ))),
    }
}

/// `[scheme:]name[:port]` as `(scheme, name, port)`; None where it is nothing of the kind.
pub(super) fn split_scheme_name_port(id: &str) -> Option<(&str, &str, &str)> {
    let parts: Vec<&str> = id.split(':').collect();
    let (scheme, name, port) = match parts.as_slice() {
        [name] => ("", *name, ""),
        [name, port] => ("", *name, *port),
        [scheme, name, port] => (*scheme, *name, *port),
        _ => return None,
    };
    (matches!(scheme, "" | "http" | "https") && !name.is_empty()).then_some((scheme, name, port))
}

/// Whether the server may be made to connect to this address for others: not to itself and its neighbours.
pub(super) fn may_proxy_to(ip: &str) -> bool {
    let Ok(ip) = ip.parse::<IpAddr>() else { return false };
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || link_local)
}

/// What of the raw path follows the proxy subresource, with its leading slash; empty where nothing does.
pub(super) fn after_proxy(path: &str, namespaced: bool) -> &str {
    // /api/v1/namespaces/NS/RESOURCE/NAME/proxy… or /api/v1/nodes/NAME/proxy…
    let segments = if namespaced { 7 } else { 5 };
    let mut rest = path;
    for _ in 0..segments {
        let Some(at) = rest.strip_prefix('/').and_then(|r| r.find('/')) else { return "" };
        rest = &rest[at + 1..];
    }
    rest
}

/// A query string of these pairs.
pub(super) fn query_string<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut out = String::new();
    for (k, v) in pairs {
        if !out.is_empty() {
            out.push('&');
        }
        escape(k, &mut out);
        out.push('=');
        escape(v, &mut out);
    }
    out
}

/// Percent-encodes all but unreserved characters.
pub(super) fn escape(text: &str, out: &mut String) {
    for b in text.bytes() {
        if b.is_ascii_alphanumeric() || b"-_.~".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::{Value, json};

    fn pod(containers: &[&str], init: &[&str]) -> Pod {
        let list = |names: &[&str]| names.iter().map(|n| json!({"name": n, "image": "i"})).collect::<Vec<Value>>();
        let spec = json!({"containers": list(containers), "initContainers": list(init)});
        Pod::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    #[test]
    fn the_container_is_chosen_or_asked_for() {
        let (one, two) = (pod(&["a"], &["i"]), pod(&["a", "b"], &["i"]));
        assert_eq!(container(&one, "").unwrap(), "a");
        assert_eq!(container(&two, "i").unwrap(), "i");
        assert_eq!(
            container(&two, "").unwrap_err().message,
            "a container name must be specified for pod p, choose one of: [i a b]"
        );
        assert_eq!(container(&one, "x").unwrap_err().message, "container x is not valid for pod p");
    }

    #[test]
    fn proxied_names_have_three_forms() {
        assert_eq!(split_scheme_name_port("web"), Some(("", "web", "")));
        assert_eq!(split_scheme_name_port("web:80"), Some(("", "web", "80")));
        assert_eq!(split_scheme_name_port("https:web:tls"), Some(("https", "web", "tls")));
        assert_eq!(split_scheme_name_port("https:web:"), Some(("https", "web", "")));
        assert_eq!(split_scheme_name_port("ftp:web:1"), None);
        assert_eq!(split_scheme_name_port(":80"), None);
    }

    #[test]
    fn the_rest_of_the_path_is_kept_as_sent() {
        let cases = [
            ("/api/v1/namespaces/a/pods/p:80/proxy/x%2Fy/", true, "/x%2Fy/"),
            ("/api/v1/namespaces/a/services/s/proxy", true, ""),
            ("/api/v1/namespaces/a/services/s/proxy/", true, "/"),
            ("/api/v1/nodes/n/proxy/stats/summary", false, "/stats/summary"),
            ("/api/v1/nodes/n:10250/proxy", false, ""),
            ("/api/v1/namespaces/a/pods/p/proxy/proxy/q", true, "/proxy/q"),
        ];
        for (path, namespaced, want) in cases {
            assert_eq!(after_proxy(path, namespaced), want, "{path}");
        }
    }

    #[test]
    fn the_server_does_not_proxy_to_itself() {
        for (ip, fine) in
            [("10.0.0.1", true), ("127.0.0.1", false), ("169.254.1.1", false), ("::1", false), ("", false)]
        {
            assert_eq!(may_proxy_to(ip), fine, "{ip}");
        }
    }
}
