//! Where a request says it comes from.

use http::HeaderMap;
use http::header::USER_AGENT;
use std::net::{IpAddr, SocketAddr};

/// Longest user agent in bytes; a longer one is cut.
const USER_AGENT_BYTES_MAX: usize = 1024;

/// The client and the proxies on the way, as far as they tell: `X-Forwarded-For`, `X-Real-Ip`, the connection. A request
/// of this process comes from loopback.
#[must_use]
pub fn source_ips(headers: &HeaderMap, peer: Option<SocketAddr>) -> Vec<String> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let parsed = |text: &str| text.trim().parse::<IpAddr>().ok();
    let mut out: Vec<IpAddr> = text("x-forwarded-for").split(',').filter_map(parsed).collect();
    if let Some(real) = parsed(text("x-real-ip")).filter(|ip| !out.contains(ip)) {
        out.push(real);
    }
    let remote = peer.map_or(IpAddr::from([127, 0, 0, 1]), |p| p.ip().to_canonical());
    if out.last() != Some(&remote) {
        out.push(remote);
    }
    out.iter().map(ToString::to_string).collect()
}

/// What the client says it is.
#[must_use]
pub fn user_agent(headers: &HeaderMap) -> String {
    let mut agent =
        headers.get(USER_AGENT).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).unwrap_or_default();
    if agent.len() > USER_AGENT_BYTES_MAX {
        agent.truncate(agent.floor_char_boundary(USER_AGENT_BYTES_MAX));
        agent.push_str("...TRUNCATED");
    }
    agent
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (http::HeaderName::from_static(k), v.parse().unwrap())).collect()
    }

    #[test]
    fn addresses_in_order() {
        let peer = |text: &str| Some(text.parse::<SocketAddr>().unwrap());
        assert_eq!(source_ips(&headers(&[]), peer("10.0.0.9:1")), ["10.0.0.9"]);
        assert_eq!(source_ips(&headers(&[]), peer("[::ffff:10.0.0.9]:1")), ["10.0.0.9"]);
        assert_eq!(source_ips(&headers(&[]), None), ["127.0.0.1"]);
        let all = headers(&[("x-forwarded-for", "1.1.1.1, nonsense, 2.2.2.2"), ("x-real-ip", "3.3.3.3")]);
        assert_eq!(source_ips(&all, peer("4.4.4.4:1")), ["1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"]);
        let same = headers(&[("x-forwarded-for", "1.1.1.1"), ("x-real-ip", "1.1.1.1")]);
        assert_eq!(source_ips(&same, peer("1.1.1.1:1")), ["1.1.1.1"]);
    }

    #[test]
    fn long_agents_are_cut() {
        assert_eq!(user_agent(&headers(&[("user-agent", "curl/8")])), "curl/8");
        let long = user_agent(&headers(&[("user-agent", &"x".repeat(2000))]));
        assert_eq!(long.len(), 1024 + "...TRUNCATED".len());
    }
}
