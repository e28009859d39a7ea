//! Which protocol a streaming request asks for, and the answers to it.

use crate::websocket::Encoding;
use http::header::{
    CONNECTION, CONTENT_TYPE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, Response, StatusCode};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

const STREAM_PROTOCOL: &str = "X-Stream-Protocol-Version";
const ACCEPTED_PROTOCOLS: &str = "X-Accepted-Stream-Protocol-Versions";
const SPDY: &str = "SPDY/3.1";

/// A request that cannot be upgraded: the plain-text answer to give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// 400 or 403.
    pub status: StatusCode,
    /// The sentence in the body.
    pub message: String,
    /// Protocols the server would have spoken, for the header that says so.
    pub accepted: &'static [&'static str],
}

impl Rejection {
    fn bad_request(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into(), accepted: &[] }
    }

    /// The whole answer.
    #[must_use]
    pub fn response(&self) -> Response<String> {
        let mut response = Response::new(format!("{}\n", self.message));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert("X-Content-Type-Options", http::HeaderValue::from_static("nosniff"));
        for protocol in self.accepted {
            headers.append(ACCEPTED_PROTOCOLS, http::HeaderValue::from_static(protocol));
        }
        response
    }
}

/// What carries the streams once the connection is upgraded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// SPDY/3.1 on the connection itself.
    Spdy,
    /// SPDY/3.1 inside WebSocket messages.
    Tunnel {
        /// Value of `Sec-WebSocket-Accept`.
        accept: String,
    },
    /// WebSocket channels.
    WebSocket {
        /// Value of `Sec-WebSocket-Accept`.
        accept: String,
        /// How messages are written.
        encoding: Encoding,
    },
}

/// A carrier and the subprotocol spoken on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Agreement {
    pub carrier: Carrier,
    /// As negotiated; empty for a WebSocket client that asked for none.
    pub protocol: String,
}

impl Agreement {
    /// The `101 Switching Protocols` answer.
    pub(crate) fn response(&self) -> Response<()> {
        let mut builder = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS).header(CONNECTION, "Upgrade");
        match &self.carrier {
            Carrier::Spdy => builder = builder.header(UPGRADE, SPDY).header(STREAM_PROTOCOL, &self.protocol),
            Carrier::Tunnel { accept } | Carrier::WebSocket { accept, .. } => {
                builder = builder.header(UPGRADE, "websocket").header(SEC_WEBSOCKET_ACCEPT, accept);
                if !self.protocol.is_empty() {
                    builder = builder.header(SEC_WEBSOCKET_PROTOCOL, &self.protocol);
                }
            }
        }
        builder.body(()).expect("protocol names and accept keys are header values")
    }
}

/// All values of a header that is a comma-separated list, in order.
fn list(headers: &HeaderMap, name: impl http::header::AsHeaderName) -> Vec<String> {
    let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).map(|p| p.trim().to_owned()).filter(|p| !p.is_empty()).collect()
}

fn has_token(headers: &HeaderMap, name: http::HeaderName, token: &str) -> bool {
    list(headers, name).iter().any(|t| t.eq_ignore_ascii_case(token))
}

/// True where the request asks for a WebSocket.
pub(crate) fn is_websocket(parts: &Parts) -> bool {
    has_token(&parts.headers, CONNECTION, "upgrade") && has_token(&parts.headers, UPGRADE, "websocket")
}

/// A protocol a server speaks over WebSocket.
pub(crate) struct WebSocketProtocol {
    pub name: &'static str,
    pub encoding: Encoding,
    /// SPDY inside.
    pub tunnel: bool,
}

/// Agrees on a WebSocket subprotocol: the first of the client's that the server speaks.
pub(crate) fn websocket(parts: &Parts, spoken: &[WebSocketProtocol]) -> Result<Agreement, Rejection> {
    let key = parts.headers.get(SEC_WEBSOCKET_KEY).filter(|k| !k.is_empty());
    let key = key.ok_or_else(|| Rejection::bad_request("unable to upgrade: Sec-WebSocket-Key is required"))?;
    if parts.headers.get("Sec-WebSocket-Version").is_none_or(|v| v != "13") {
        return Err(Rejection::bad_request("unable to upgrade: missing or bad WebSocket Version"));
    }
    let accept = derive_accept_key(key.as_bytes());
    let wanted = list(&parts.headers, SEC_WEBSOCKET_PROTOCOL);
    if wanted.is_empty() {
        let carrier = Carrier::WebSocket { accept, encoding: Encoding::Binary };
        return Ok(Agreement { carrier, protocol: String::new() });
    }
    let found = wanted.iter().find_map(|w| spoken.iter().find(|s| s.name == w));
    let Some(protocol) = found else {
        let names: Vec<&str> = spoken.iter().map(|s| s.name).collect();
        let message =
            format!("requested protocol(s) are not supported: [{}]; supports [{}]", wanted.join(" "), names.join(" "));
        return Err(Rejection { status: StatusCode::FORBIDDEN, message, accepted: &[] });
    };
    let carrier = match protocol.tunnel {
        true => Carrier::Tunnel { accept },
        false => Carrier::WebSocket { accept, encoding: protocol.encoding },
    };
    Ok(Agreement { carrier, protocol: protocol.name.to_owned() })
}

/// Agrees on a protocol over SPDY: the first of the client's that the server speaks.
pub(crate) fn spdy(parts: &Parts, spoken: &'static [&'static str]) -> Result<Agreement, Rejection> {
    let upgrade = has_token(&parts.headers, CONNECTION, "upgrade") && has_token(&parts.headers, UPGRADE, SPDY);
    if !upgrade {
        return Err(Rejection::bad_request("unable to upgrade: missing upgrade headers in request"));
    }
    let wanted = list(&parts.headers, STREAM_PROTOCOL);
    if wanted.is_empty() {
        return Err(Rejection::bad_request(format!("unable to upgrade: {STREAM_PROTOCOL} is required")));
    }
    match wanted.iter().find(|w| spoken.contains(&w.as_str())) {
        Some(protocol) => Ok(Agreement { carrier: Carrier::Spdy, protocol: protocol.clone() }),
        None => Err(Rejection {
            status: StatusCode::FORBIDDEN,
            message: format!(
                "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]",
                wanted.join(" "),
                spoken.join(" ")
            ),
            accepted: spoken,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn request(headers: &[(&str, &str)]) -> Parts {
        let mut builder = http::Request::get("/");
        for (n, v) in headers {
            builder = builder.header(*n, *v);
        }
        builder.body(()).unwrap().into_parts().0
    }

    const WS: [(&str, &str); 4] = [
        ("Connection", "keep-alive, Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    const SPOKEN: &[WebSocketProtocol] = &[
        WebSocketProtocol { name: "a", encoding: Encoding::Binary, tunnel: false },
        WebSocketProtocol { name: "b", encoding: Encoding::Base64, tunnel: false },
        WebSocketProtocol { name: "SPDY/3.1+c", encoding: Encoding::Binary, tunnel: true },
    ];

    #[test]
    fn websocket_prefers_the_clients_order() {
        let mut headers = WS.to_vec();
        headers.push(("Sec-WebSocket-Protocol", "x, b, a"));
        let parts = request(&headers);
        assert!(is_websocket(&parts));
        let agreement = websocket(&parts, SPOKEN).unwrap();
        assert_eq!(agreement.protocol, "b");
        let response = agreement.response();
        assert_eq!(response.status(), 101);
        // The example of RFC 6455, section 1.3.
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(response.headers()["sec-websocket-protocol"], "b");
    }

    #[test]
    fn websocket_without_subprotocol_is_binary_and_names_none() {
        let agreement = websocket(&request(&WS), SPOKEN).unwrap();
        assert!(matches!(agreement.carrier, Carrier::WebSocket { encoding: Encoding::Binary, .. }));
        assert!(!agreement.response().headers().contains_key("sec-websocket-protocol"));
    }

    #[test]
    fn websocket_refuses_what_it_does_not_speak() {
        let mut headers = WS.to_vec();
        headers.push(("Sec-WebSocket-Protocol", "x"));
        assert_eq!(websocket(&request(&headers), SPOKEN).unwrap_err().status, 403);
        assert_eq!(websocket(&request(&WS[..3]), SPOKEN).unwrap_err().status, 400);
    }

    #[test]
    fn spdy_negotiation_and_its_failures() {
        let upgrade = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")];
        let with = |extra: &[(&'static str, &'static str)]| request(&[&upgrade[..], extra].concat());
        let ok = spdy(&with(&[(STREAM_PROTOCOL, "v9"), (STREAM_PROTOCOL, "v4")]), &["v4", "v3"]).unwrap();
        assert_eq!(ok.protocol, "v4");
        let response = ok.response();
        assert_eq!(response.headers()["upgrade"], "SPDY/3.1");
        assert_eq!(response.headers()["x-stream-protocol-version"], "v4");

        let none = spdy(&with(&[(STREAM_PROTOCOL, "v9")]), &["v4", "v3"]).unwrap_err();
        assert_eq!(none.status, 403);
        assert_eq!(
            none.message,
            "unable to upgrade: unable to negotiate protocol: client supports [v9], server accepts [v4 v3]"
        );
        assert_eq!(none.response().headers().get_all("x-accepted-stream-protocol-versions").iter().count(), 2);
        assert_eq!(spdy(&with(&[]), &["v4"]).unwrap_err().status, 400);
        assert_eq!(spdy(&request(&[]), &["v4"]).unwrap_err().status, 400);
    }
}
