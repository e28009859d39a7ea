//! The way of every request, in reading order.

use super::time_limit::{self, REQUEST_WITHIN};
use super::{dispatch, negotiate, nonresource, respond, route};
use crate::aggregate::{self, PeerAddress};
use crate::audit::{self, Arrival, Part};
use crate::authn::{Peer, UserInfo, impersonation};
use crate::authz::{Attributes, Decision};
use crate::flow::turns::Spawner;
use crate::flow::{self, Seats};
use crate::request::{FromThisProcess, RequestContext, Response};
use crate::server::Server;
use bytes::Bytes;
use futures::future::BoxFuture;
use gantry_api::meta::status::ApiError;
use gantry_schema::protobuf::{self, ProtobufError};
use gantry_schema::strict;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// How long a connection's client certificate is taken for valid before it is looked at again.
const CERTIFICATE_TRUSTED_FOR: Duration = Duration::from_secs(10);

/// A connection, with whom its client certificate was found to speak for.
pub struct Connection {
    peer: Peer,
    spawner: Spawner,
    known: Mutex<Option<(tokio::time::Instant, UserInfo)>>,
}

impl Connection {
    /// A connection of which nothing is known yet.
    #[must_use]
    pub fn new(peer: Peer, spawner: Spawner) -> Self {
        Self { peer, spawner, known: Mutex::new(None) }
    }
}

/// Who sent a request.
pub enum Caller {
    /// Someone over the network, yet to be authenticated.
    Remote(Arc<Connection>),
    /// A component in this process, under its identity.
    Component(UserInfo),
}

/// A body of up to this many times the limit is read to its end before it is refused.
const DISCARD_FACTOR: usize = 8;

/// A request body before it is read.
pub enum Incoming {
    /// From the network.
    Wire(hyper::body::Incoming),
    /// From this process.
    Memory(Bytes),
}

impl Incoming {
    /// The whole body.
    ///
    /// # Errors
    /// 413 beyond `limit` bytes, 400 where it breaks off.
    pub async fn read(self, limit: usize) -> Result<Bytes, ApiError> {
        let too_large =
            || ApiError::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"));
        match self {
            Incoming::Memory(bytes) if bytes.len() > limit => Err(too_large()),
            Incoming::Memory(bytes) => Ok(bytes),
            Incoming::Wire(mut body) => {
                let (mut kept, mut seen) = (Vec::new(), 0usize);
                while let Some(frame) = body.frame().await {
                    let frame =
                        frame.map_err(|e| ApiError::bad_request(format!("the request body could not be read: {e}")))?;
                    let Ok(data) = frame.into_data() else { continue };
                    seen += data.len();
                    if seen <= limit {
                        kept.push(data);
                        continue;
                    }
                    // Many clients read the answer only after they have sent everything, so somewhat too large a body is
                    // taken to its end and thrown away.
                    kept.clear();
                    if seen > limit.saturating_mul(DISCARD_FACTOR) {
                        break;
                    }
                }
                if seen > limit {
                    return Err(too_large());
                }
                Ok(match kept.len() {
                    1 => kept.swap_remove(0),
                    _ => kept.concat().into(),
                })
            }
        }
    }
}

/// Answers a request.
// Boxed, so that there is one copy of the whole way and not one for each kind of connection.
pub fn handle(server: &Arc<Server>, parts: Parts, body: Incoming, caller: Caller) -> BoxFuture<'_, Response> {
    Box::pin(answer(server, parts, body, caller))
}

async fn answer(server: &Arc<Server>, mut parts: Parts, body: Incoming, caller: Caller) -> Response {
    let started = tokio::time::Instant::now();
    let audit_id = parts.headers.get(&AUDIT_ID).filter(|id| !id.is_empty()).cloned();
    let mut audit_id = audit_id.unwrap_or_else(|| {
        HeaderValue::from_str(&server.registry.entropy.uuid()).unwrap_or(HeaderValue::from_static("unknown"))
    });
    // Never the same twice: HTTP/2 is not to keep the last fifty in its table and to compare each new one with all of them.
    audit_id.set_sensitive(true);
    let query = route::parse_query(parts.uri.query());
    let info = match route::request_info(&parts.method, parts.uri.path(), &query) {
        Ok(info) => info,
        Err(e) => return respond::error(&e, &negotiate::accept_failure(&parts.headers, &query)),
    };
    let failure = negotiate::accept_failure(&parts.headers, &query);
    let resource = server.registry.find(&info.group, &info.version, &info.resource);
    let record = server.metrics.begin(&info, resource, &query);
    let is_head = parts.method == http::Method::HEAD;
    // Whoever the request is passed on to knows it by the same id.
    parts.headers.insert(AUDIT_ID, audit_id.clone());
    let cx = RequestContext { info, user: UserInfo::default(), parts, resource: None, query };
    let mut seats = None;
    let long_running = flow::is_long_running(&cx.info);
    let peer = match &caller {
        Caller::Remote(connection) => connection.peer.address,
        Caller::Component(_) => None,
    };
    let arrival = Arrival { id: audit_id.clone(), received: server.registry.clock.micro_time(), peer };
    let answer = async {
        match steps(server, cx, body, caller, &arrival, &mut seats).await {
            Ok(response) => response,
            Err(e) => {
                if e.code >= 500 && e.code != 504 {
                    tracing::warn!(code = e.code, reason = e.reason, message = %e.message, "request failed");
                }
                respond::error(&e, &failure)
            }
        }
    };
    let mut response = match server.config.audit {
        Some(_) => audit::trailed(long_running, answer).await,
        None => answer.await,
    };
    if let Some(seats) = seats {
        seats.class.mark(response.headers_mut());
        // What is still to be written of a list takes its seats; what a watch sends later does not.
        if !long_running && !response.headers().contains_key(http::header::CONTENT_LENGTH) {
            response = response.map(|body| time_limit::held(body, seats, REQUEST_WITHIN));
        }
    }
    response.headers_mut().insert(AUDIT_ID, audit_id);
    let cache = response.headers_mut().entry(http::header::CACHE_CONTROL);
    cache.or_insert(HeaderValue::from_static("no-cache, private"));
    let response = server.metrics.end(record, response, started.elapsed());
    if is_head { respond::without_body(response) } else { response }
}

async fn steps(
    server: &Arc<Server>,
    mut cx: RequestContext,
    body: Incoming,
    caller: Caller,
    arrival: &Arrival,
    seats: &mut Option<Seats>,
) -> Result<Response, ApiError> {
    // Who asks?
    let connection = match &caller {
        Caller::Remote(connection) => Some(connection.clone()),
        Caller::Component(_) => None,
    };
    cx.user = match caller {
        Caller::Component(user) => {
            if cx.info.verb == "watch" {
                cx.parts.extensions.insert(FromThisProcess);
            }
            user
        }
        Caller::Remote(connection) => {
            if let Some(address) = connection.peer.address {
                cx.parts.extensions.insert(PeerAddress(address));
            }
            let asked = authenticate(server, &cx.parts, &connection);
            match (audit::timed(Part::Authentication, asked).await, &server.config.audit) {
                (Ok(user), _) => user,
                (Err(e), None) => return Err(e),
                (Err(e), Some(audit)) => {
                    audit::turn_away(audit, &cx, arrival);
                    return Err(e);
                }
            }
        }
    };
    if let Some(audit) = &server.config.audit
        && audit::begin(audit, &cx, arrival).await.is_err()
    {
        return Ok(respond::server_error(&cx.parts.uri, "failed to store audit event"));
    }
    if impersonation::is_wished(&cx.parts.headers) {
        let asked = Attributes::of_request(&cx.info, &cx.user, &cx.query);
        let authorizer = server.services.authorizer.as_ref();
        let impersonated = impersonation::impersonate(&cx.parts.headers, &asked, authorizer);
        if let Some(other) = audit::timed(Part::Impersonation, impersonated).await? {
            audit::impersonated(&other.user, &other.constraint);
            cx.user = other.user;
        }
    }

    // Is there room?
    if let Some(connection) = connection {
        let belongs_to = |level| connection.spawner.belongs_to(level);
        let admitted = server.flow.admit(&cx.info, &cx.user, || objects_read(server, &cx), belongs_to);
        match audit::timed(Part::QueueWait, admitted).await {
            Ok(admitted) => *seats = admitted,
            Err(refused) => return Ok(respond::too_many_requests(&refused)),
        }
    }

    // May they?
    let attributes = Attributes::of_request(&cx.info, &cx.user, &cx.query);
    match audit::timed(Part::Authorization, server.services.authorizer.authorize(&attributes)).await {
        Decision::Allow(reason) => audit::authorized(true, &reason),
        Decision::Deny(reason) | Decision::NoOpinion(reason) => {
            audit::authorized(false, &reason);
            return Err(attributes.forbidden(&reason));
        }
        Decision::Failed { why, .. } => {
            audit::authorized(false, &why);
            return Ok(respond::server_error(&cx.parts.uri, &why));
        }
    }

    // What do they send?
    let upgrade = cx.parts.headers.contains_key(http::header::UPGRADE);
    let body = if upgrade || flow::is_long_running(&cx.info) && cx.parts.method == Method::GET {
        Bytes::new()
    } else {
        let read = body.read(server.config.request_body_bytes_max);
        tokio::time::timeout(REQUEST_WITHIN, read).await.map_err(|_| time_limit::timed_out())??
    };

    // What another server serves goes on as it came.
    if let Some(remote) = server.aggregator.route(cx.parts.uri.path()) {
        return aggregate::pass_on(server, &remote, cx, body).await;
    }

    let body = if negotiate::media_type(&cx.parts.headers) == protobuf::MEDIA_TYPE && !body.is_empty() {
        let json = protobuf::decode(&body).map_err(|e| unreadable(&cx, &e, &body))?;
        cx.parts.headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Bytes::from(json)
    } else {
        body
    };

    audit::sent(&cx, &body);

    // Who answers?
    match cx.info.is_resource {
        true => dispatch::resource(server, cx, body).await,
        false => nonresource::answer(server, cx, &body).await,
    }
}

/// 400 for a body in protobuf that cannot be read.
fn unreadable(cx: &RequestContext, error: &ProtobufError, body: &[u8]) -> ApiError {
    let info = &cx.info;
    let resource = gantry_api::kinds::find(&info.group, &info.version, &info.resource);
    let wanted = resource.map_or(info.resource.as_str(), |r| r.info().kind);
    ApiError::bad_request(match error {
        ProtobufError::Unknown { kind, api_version } if !kind.is_empty() => {
            let version = gantry_api::meta::object::split_api_version(api_version).1;
            strict::cannot_be_handled(kind, version, wanted, &error.to_string())
        }
        _ => strict::unrecognized(wanted, &error.to_string(), body),
    })
}

/// How many objects a list reads, or a watch that begins with the present ones.
fn objects_read(server: &Server, cx: &RequestContext) -> usize {
    let info = &cx.info;
    let begins_empty = info.verb == "watch" && cx.param("sendInitialEvents") != Some("true");
    if !info.name.is_empty() || begins_empty {
        return 1;
    }
    let resource = gantry_api::kinds::find(&info.group, &info.version, &info.resource);
    let count = resource.and_then(|r| server.registry.cache(r).ok()).map_or(0, |c| c.counts().0);
    let limit = cx.param("limit").and_then(|l| l.parse().ok()).filter(|l| *l > 0);
    limit.unwrap_or(count).min(count)
}

async fn authenticate(server: &Server, parts: &Parts, connection: &Connection) -> Result<UserInfo, ApiError> {
    // A proxy's connection brings many users.
    let by_certificate = connection.peer.is_client
        && !connection.peer.is_proxy
        && !parts.headers.contains_key(http::header::AUTHORIZATION);
    if by_certificate {
        let known = connection.known.lock();
        if let Some((_, user)) = known.as_ref().filter(|(since, _)| since.elapsed() < CERTIFICATE_TRUSTED_FOR) {
            return Ok(user.clone());
        }
    }
    match server.services.authenticator.authenticate(parts, &connection.peer).await {
        Ok(Some(user)) => {
            connection.spawner.speaks_for(&user);
            if by_certificate {
                *connection.known.lock() = Some((tokio::time::Instant::now(), user.clone()));
            }
            Ok(user)
        }
        Ok(None) => Err(ApiError::unauthorized()),
        Err(e) => {
            tracing::debug!(reason = %e.message, "authentication failed");
            Err(ApiError::unauthorized())
        }
    }
}
