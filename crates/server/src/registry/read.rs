//! Get and list, from the watch cache. A list streams its bytes from an immutable snapshot with constant extra memory.

use super::options::{ListOptions, VersionMatch};
use super::{Registry, key_of, path_of, unreadable};
use crate::http::negotiate::Form;
use crate::http::respond::not_marshalable;
use crate::table;
use crate::watch_cache::{Entry, Selection, Snapshot, WatchCache};
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::{DecodeError, Engine};
use bytes::Bytes;
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::{StatusCause, StatusDetails};
use gantry_api::k8s_openapi::jiff::Timestamp;
use gantry_api::kind::Resource;
use gantry_api::meta::object::split_api_version;
use gantry_api::meta::status::ApiError;
use gantry_schema::protobuf::{self, Message};
use gantry_schema::strict;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Bytes per chunk of a streamed list.
const CHUNK: usize = 64 * 1024;
/// How long a read waits for a version that has not happened yet, as upstream.
const FRESH_WITHIN: Duration = Duration::from_secs(3);

/// What a list came to.
pub enum Listed {
    /// Items to stream.
    Items(Box<ListStream>),
    /// The continue token is too old; a `Status` with a fresh one.
    Expired(Value),
}

/// Items of a list, rendered chunk by chunk.
#[derive(Clone)]
pub struct ListStream {
    resource: &'static dyn Resource,
    form: Form,
    /// `ListMeta` as JSON.
    metadata: String,
    /// The message of an item, where the list is written in protobuf.
    message: Option<&'static Message>,
    now: Timestamp,
    head: Option<Vec<u8>>,
    source: Source,
    /// The cache is read so often that it had better hold these objects as they are sent.
    unpack: bool,
    first: bool,
    done: bool,
}

#[derive(Clone)]
enum Source {
    Snapshot { snapshot: Snapshot, selection: Selection, after: String },
    Page(std::vec::IntoIter<Arc<Entry>>),
}

/// Appends one item in its encoding.
fn append(
    out: &mut Vec<u8>,
    message: Option<&'static Message>,
    separate: bool,
    resource: &dyn Resource,
    entry: &Entry,
    form: Form,
    now: Timestamp,
) -> Result<(), ApiError> {
    if let Some(message) = message {
        // Bare metadata is the message that reads nothing else of the object.
        return protobuf::append_item(out, message, &entry.json()).map_err(not_marshalable);
    }
    if separate {
        out.push(b',');
    }
    table::append_item(out, resource, entry, form, now)
}

impl ListStream {
    /// The apiVersion and kind of the list.
    #[must_use]
    pub fn list_type(&self) -> (String, String) {
        let info = self.resource.info();
        match self.form {
            Form::Object => (info.api_version(), info.list_kind()),
            Form::Metadata(version) => (format!("meta.k8s.io/{version}"), "PartialObjectMetadataList".into()),
            Form::Table(version, _) => (format!("meta.k8s.io/{version}"), "Table".into()),
        }
    }

    /// The same list in protobuf, without what comes before its content in the envelope.
    ///
    /// # Errors
    /// Where the kind has no such form.
    pub fn into_protobuf(mut self) -> Result<Self, ApiError> {
        let (api_version, list_kind) = self.list_type();
        let (group, version) = split_api_version(&api_version);
        let kind = list_kind.strip_suffix("List").unwrap_or_default();
        let messages = protobuf::message(group, version, &list_kind).zip(protobuf::message(group, version, kind));
        let (list, item) =
            messages.ok_or_else(|| not_marshalable(protobuf::ProtobufError::NotMarshalable(list_kind)))?;
        let mut head = Vec::new();
        let json = format!(r#"{{"metadata":{}}}"#, self.metadata);
        protobuf::append(&mut head, list, json.as_bytes()).map_err(not_marshalable)?;
        self.head = Some(head);
        self.message = Some(item);
        Ok(self)
    }

    /// The next bytes; None at the end.
    ///
    /// # Errors
    /// Where an object cannot be decoded for its table row.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, ApiError> {
        if self.done {
            return Ok(None);
        }
        let mut out = Vec::with_capacity(CHUNK + 4096);
        out.append(&mut self.head.take().unwrap_or_default());
        let mut full = false;
        match &mut self.source {
            Source::Page(items) => {
                while out.len() < CHUNK {
                    let Some(entry) = items.next() else { break };
                    let separate = !std::mem::take(&mut self.first);
                    if self.unpack {
                        entry.unpack();
                    }
                    append(&mut out, self.message, separate, self.resource, &entry, self.form, self.now)?;
                }
                full = items.len() > 0;
            }
            Source::Snapshot { snapshot, selection, after } => {
                let mut last = None;
                for entry in snapshot.iter_after(&selection.namespace, after) {
                    if out.len() >= CHUNK {
                        full = true;
                        break;
                    }
                    last = Some(entry);
                    if !selection.matches(entry) {
                        continue;
                    }
                    let separate = !std::mem::take(&mut self.first);
                    if self.unpack {
                        entry.unpack();
                    }
                    append(&mut out, self.message, separate, self.resource, entry, self.form, self.now)?;
                }
                let last = last.map(|e| e.path().to_owned());
                if let Some(last) = last {
                    *after = last;
                }
            }
        }
        if !full {
            out.extend_from_slice(if self.message.is_some() { protobuf::ENVELOPE_END } else { b"]}" });
            self.done = true;
        }
        Ok(Some(out.into()))
    }
}

impl Registry {
    /// The cached object, at least as new as the request demands.
    ///
    /// # Errors
    /// 404, or a version that has not happened.
    pub async fn get(
        &self,
        resource: &'static dyn Resource,
        namespace: &str,
        name: &str,
        version: Option<u64>,
    ) -> Result<Arc<Entry>, ApiError> {
        let info = resource.info();
        let cache = self.cache(resource)?;
        self.fresh(version).await?;
        let path = path_of(resource, namespace, name);
        let entry = cache.get(&path);
        if let Some(why) = cache.unreadable(&path) {
            return Err(unreadable::of_object(&key_of(resource, namespace, name), &why));
        }
        let entry = entry.ok_or_else(|| ApiError::not_found(info.group, info.plural, name))?;
        if !entry.is_foreign() {
            return Ok(entry);
        }
        Ok(self.shown(resource, vec![entry.clone()]).await?.pop().unwrap_or(entry))
    }

    /// Waits until the caches are as fresh as asked: None is linearizable, 0 anything.
    pub(super) async fn fresh(&self, version: Option<u64>) -> Result<(), ApiError> {
        match version {
            None => self.caught_up().await?,
            Some(0) => {}
            Some(version) => {
                let reached = self.dispatcher.applied().reached(version);
                match tokio::time::timeout(FRESH_WITHIN, reached).await {
                    Ok(reached) => reached?,
                    Err(_) => return Err(too_large(version, self.dispatcher.applied().get())),
                }
            }
        }
        Ok(())
    }

    /// Lists objects.
    ///
    /// # Errors
    /// Bad selectors and tokens (400), versions no longer held (410) or not there yet (504).
    pub async fn list(
        &self,
        resource: &'static dyn Resource,
        namespace: &str,
        options: &ListOptions,
        form: Form,
    ) -> Result<Listed, ApiError> {
        let cache = self.cache(resource)?;
        let selection = cache.selection(namespace, options.labels.clone(), &options.fields)?;
        let (snapshot, after) = match self.starting_point(&cache, options).await? {
            Ok(start) => start,
            Err(status) => return Ok(Listed::Expired(status)),
        };
        self.check_readable(resource, namespace)?;
        let stored = snapshot.clone();
        let snapshot = self.shown_snapshot(resource, snapshot).await?;
        let revision = snapshot.revision;
        let mut metadata = json!({ "resourceVersion": revision.to_string() });
        // Other lists read a part, and of the rest only what selectors look at.
        let whole = namespace.is_empty() && selection.selects_all_of_namespace();
        let page = if options.limit == 0 { usize::MAX } else { options.limit };
        let unpack = whole && cache.is_read_often(snapshot.len().min(page));
        let source = if options.limit == 0 {
            Source::Snapshot { snapshot, selection, after }
        } else {
            let mut items = snapshot.iter_after(namespace, &after).filter(|e| selection.matches(e));
            let page: Vec<Arc<Entry>> = items.by_ref().take(options.limit).cloned().collect();
            if items.next().is_some() {
                let last = page.last().map(|e| e.path()).unwrap_or_default();
                metadata["continue"] = token(i64::try_from(revision).unwrap_or(-1), last).into();
                if selection.selects_all_of_namespace() {
                    metadata["remainingItemCount"] = (1 + items.count()).into();
                }
                cache.pin(&stored);
            }
            Source::Page(page.into_iter())
        };
        let info = resource.info();
        let head = match form {
            Form::Object => {
                format!(
                    r#"{{"kind":"{}","apiVersion":"{}","metadata":{metadata},"items":["#,
                    info.list_kind(),
                    info.api_version()
                )
            }
            Form::Metadata(version) => {
                format!(
                    r#"{{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/{version}","metadata":{metadata},"items":["#
                )
            }
            Form::Table(version, _) => format!(
                r#"{{"kind":"Table","apiVersion":"meta.k8s.io/{version}","metadata":{metadata},"columnDefinitions":{},"rows":["#,
                table::column_definitions(resource)
            ),
        };
        Ok(Listed::Items(Box::new(ListStream {
            resource,
            form,
            now: self.clock.now(),
            head: Some(head.into_bytes()),
            metadata: metadata.to_string(),
            message: None,
            source,
            unpack,
            first: true,
            done: false,
        })))
    }

    /// The snapshot to list from and the path to start after; or the status of an expired token.
    async fn starting_point(
        &self,
        cache: &WatchCache,
        options: &ListOptions,
    ) -> Result<Result<(Snapshot, String), Value>, ApiError> {
        if !options.continue_token.is_empty() {
            if options.resource_version.is_some_and(|v| v != 0) {
                return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
            }
            let (revision, after) = parse_token(&options.continue_token)?;
            let Ok(revision) = u64::try_from(revision) else {
                self.fresh(None).await?;
                return Ok(Ok((cache.snapshot(), after)));
            };
            self.fresh(Some(revision)).await?;
            return Ok(cache.snapshot_at(revision).map(|s| (s, after.clone())).map_err(|_| expired_token(&after)));
        }
        let exact = match (options.version_match, options.resource_version) {
            (Some(VersionMatch::Exact), v) => v,
            // Without a match, a page at a version is of exactly that version.
            (None, Some(v)) if v != 0 && options.limit > 0 => Some(v),
            _ => None,
        };
        if let Some(revision) = exact {
            self.fresh(Some(revision)).await?;
            let snapshot = cache.snapshot_at(revision).map_err(|e| {
                ApiError::expired(format!(
                    "The resourceVersion for the provided list is too old. ({} < {})",
                    e.asked, e.oldest
                ))
            })?;
            return Ok(Ok((snapshot, String::new())));
        }
        self.fresh(options.resource_version).await?;
        Ok(Ok((cache.snapshot(), String::new())))
    }
}

/// 504 for a version from the future.
pub(super) fn too_large(asked: u64, current: u64) -> ApiError {
    let mut e =
        ApiError::new(504, "Timeout", format!("Timeout: Too large resource version: {asked}, current: {current}"));
    e.details = Some(Box::new(StatusDetails {
        causes: Some(vec![StatusCause {
            reason: Some("ResourceVersionTooLarge".into()),
            message: Some("Too large resource version".into()),
            field: None,
        }]),
        retry_after_seconds: Some(1),
        ..Default::default()
    }));
    e
}

/// The token of the page after `last`.
fn token(revision: i64, last: &str) -> String {
    let json = json!({ "v": "meta.k8s.io/v1", "rv": revision, "start": format!("{last}\0") });
    URL_SAFE_NO_PAD.encode(json.to_string())
}

fn parse_token(text: &str) -> Result<(i64, String), ApiError> {
    let bad = |why: &str| ApiError::bad_request(format!("continue key is not valid: {why}"));
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|e| {
        let at = match e {
            DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _) => at,
            DecodeError::InvalidLength(length) => length,
            DecodeError::InvalidPadding => text.len(),
        };
        bad(&format!("illegal base64 data at input byte {at}"))
    })?;
    let value = strict::decode_json(&bytes, None).map_err(|e| bad(&e.to_string()))?.value;
    if value["v"] != "meta.k8s.io/v1" {
        let version = value["v"].as_str().unwrap_or_default();
        return Err(bad(&format!("server does not recognize this encoded version {version}")));
    }
    let revision = value["rv"]
        .as_i64()
        .filter(|r| *r != 0)
        .ok_or_else(|| bad("incorrect encoded start resourceVersion (version meta.k8s.io/v1)"))?;
    let start = value["start"].as_str().unwrap_or_default();
    if start.is_empty() {
        return Err(bad("encoded start key empty (version meta.k8s.io/v1)"));
    }
    // A key is no way out of the resource: upstream takes none that is not the shortest way to say it.
    let mut parts = start.strip_prefix('/').unwrap_or(start).split('/');
    if parts.any(|part| matches!(part, "" | "." | "..")) {
        return Err(bad(start));
    }
    Ok((revision, start.strip_suffix('\0').unwrap_or(start).to_owned()))
}

fn expired_token(after: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410,
        "metadata": { "continue": token(-1, after) },
        "message": "The provided continue parameter is too old to display a consistent list result. You can start a new list without \
            the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing \
            with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time \
            the first chunk was returned and now may show up in the list.",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_bad_ones_are_refused() {
        assert_eq!(parse_token(&token(7, "default/a")).unwrap(), (7, "default/a".to_owned()));
        assert_eq!(parse_token(&token(-1, "n")).unwrap(), (-1, "n".to_owned()));
        for bad in ["%%%", "e30", &URL_SAFE_NO_PAD.encode(r#"{"v":"meta.k8s.io/v1","rv":0,"start":"a"}"#)] {
            assert_eq!(parse_token(bad).unwrap_err().code, 400, "{bad}");
        }
    }
}
