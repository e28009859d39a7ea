//! Content negotiation: what form of answer a client accepts, and how its body is written.

use crate::registry::draft::Encoding;
use gantry_api::kind::Resource;
use gantry_api::meta::field::{ErrorList, Path};
use gantry_api::meta::status::ApiError;
use gantry_schema::protobuf;
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};

/// Media types served, as error messages list them.
const SERVED: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
/// Those of watches.
const STREAMED: &str = "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// Kubernetes' protobuf.
    Protobuf,
}

/// How much of the object a table row carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// Only cells.
    None,
    /// Metadata.
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

/// What shape an answer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The object or list itself.
    Object,
    /// `Table` of this version (`v1` or `v1beta1`).
    Table(&'static str, IncludeObject),
    /// `PartialObjectMetadata` or its list, of this version.
    Metadata(&'static str),
}

/// What the client accepts, decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Encoding.
    pub media: Media,
    /// Shape.
    pub form: Form,
    /// Whether JSON is indented for people.
    pub pretty: bool,
    /// The kind that was asked for by name, where it is one of lists or one of single objects.
    pub kind: Option<&'static str>,
}

/// Metadata of one object, and of a list.
const PARTIAL: &str = "PartialObjectMetadata";
const PARTIAL_LIST: &str = "PartialObjectMetadataList";

impl Accepted {
    /// Plain JSON.
    pub const JSON: Self = Self { media: Media::Json, form: Form::Object, pretty: false, kind: None };

    /// Refuses what asks for a list of one object, or for one object of a list.
    ///
    /// # Errors
    /// 406.
    pub fn check_kind(&self, resource: &dyn Resource, list: bool) -> Result<(), ApiError> {
        let info = resource.info();
        let wrong = match self.kind {
            Some(PARTIAL) => list,
            Some(PARTIAL_LIST) => !list,
            _ => false,
        };
        if !wrong {
            return Ok(());
        }
        let package = info.group.split('.').next().filter(|g| !g.is_empty()).unwrap_or("core");
        let of = match (resource.learned().is_some(), list) {
            (true, true) => "unstructured.UnstructuredList".to_owned(),
            (true, false) => "unstructured.Unstructured".to_owned(),
            (false, true) => format!("{package}.{}", info.list_kind()),
            (false, false) => format!("{package}.{}", info.kind),
        };
        let (asked, is) = if list { (PARTIAL, "a list") } else { (PARTIAL_LIST, "not a list") };
        let message = format!("you requested {asked}, but the requested object is {is} (*{of})");
        Err(ApiError::new(406, "NotAcceptable", message))
    }

    /// The value of `Content-Type`.
    #[must_use]
    pub const fn content_type(&self) -> &'static str {
        match self.media {
            Media::Json => "application/json",
            Media::Yaml => "application/yaml",
            Media::Protobuf => protobuf::MEDIA_TYPE,
        }
    }
}

/// 406 as upstream words it.
#[must_use]
pub fn not_acceptable() -> ApiError {
    ApiError::new(406, "NotAcceptable", format!("only the following media types are accepted: {SERVED}"))
}

/// 406 of a watch, which has no YAML.
#[must_use]
pub fn not_acceptable_stream() -> ApiError {
    ApiError::new(406, "NotAcceptable", format!("only the following media types are accepted: {STREAMED}"))
}

/// One clause of an Accept header.
#[derive(Clone, Debug)]
pub struct Clause {
    /// `type/subtype`, lower case.
    pub media: String,
    /// Parameters without `q`.
    pub params: Vec<(String, String)>,
    quality: f32,
}

impl Clause {
    /// The value of a parameter.
    #[must_use]
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }
}

/// The clauses of the request's Accept headers, best first.
#[must_use]
pub fn clauses(headers: &HeaderMap) -> Vec<Clause> {
    let mut out = Vec::new();
    for value in headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok()) {
        for clause in value.split(',') {
            let mut parts = clause.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default().to_ascii_lowercase();
            if media.is_empty() {
                continue;
            }
            let mut quality = 1.0;
            let mut params = Vec::new();
            for (k, v) in parts.filter_map(|p| p.split_once('=')) {
                if k == "q" {
                    quality = v.parse().unwrap_or(0.0);
                } else {
                    params.push((k.to_owned(), v.to_owned()));
                }
            }
            out.push(Clause { media, params, quality });
        }
    }
    out.retain(|c| c.quality > 0.0);
    out.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    out
}

/// Chooses the answer's form. `shapes` says whether Table and PartialObjectMetadata can be had.
///
/// # Errors
/// 406 where nothing the client accepts is served.
pub fn accept(headers: &HeaderMap, query: &[(String, String)], shapes: bool) -> Result<Accepted, ApiError> {
    accept_of(headers, query, shapes, true)
}

/// How a failure is written: as JSON where nothing the client accepts is served.
#[must_use]
pub fn accept_failure(headers: &HeaderMap, query: &[(String, String)]) -> Accepted {
    accept(headers, query, false).unwrap_or(Accepted { pretty: true, ..Accepted::JSON })
}

/// Like [`accept`]; `protobuf` says whether the object itself has a protobuf form, which custom resources have not.
///
/// # Errors
/// 406 where nothing the client accepts is served.
pub fn accept_of(
    headers: &HeaderMap,
    query: &[(String, String)],
    shapes: bool,
    protobuf: bool,
) -> Result<Accepted, ApiError> {
    let param = |name: &str| query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str());
    let pretty = match param("pretty") {
        Some(v) if !v.is_empty() => matches!(v, "1" | "t" | "T" | "true" | "TRUE" | "True"),
        // Browsers and curl are people.
        _ => headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).is_some_and(|agent| {
            agent.starts_with("curl") || agent.starts_with("Wget") || agent.starts_with("Mozilla/5.0")
        }),
    };
    let include = match param("includeObject").unwrap_or_default() {
        "None" => Ok(IncludeObject::None),
        "Object" => Ok(IncludeObject::Object),
        "" | "Metadata" => Ok(IncludeObject::Metadata),
        other => {
            let mut errors = ErrorList::default();
            errors.invalid(&Path::new("includeObject"), other, "must be 'Metadata', 'Object', 'None', or empty");
            Err(errors.0[0].to_string())
        }
    };
    let plain = Accepted { pretty, ..Accepted::JSON };
    let clauses = clauses(headers);
    if clauses.is_empty() {
        return Ok(plain);
    }
    for clause in &clauses {
        let media = match clause.media.as_str() {
            "application/json" | "*/*" | "application/*" => Media::Json,
            "application/yaml" => Media::Yaml,
            protobuf::MEDIA_TYPE => Media::Protobuf,
            _ => continue,
        };
        // Only watches stream, in no other schema and not in YAML; the server's own version of an object is not had.
        let stream = clause.param("stream").unwrap_or_default();
        if !matches!(stream, "" | "watch") || stream == "watch" && media == Media::Yaml {
            continue;
        }
        if clause.param("sv").is_some_and(|v| !v.is_empty()) {
            continue;
        }
        let mut named = None;
        let form = match clause.param("as") {
            None if media == Media::Protobuf && !protobuf => continue,
            None if clause.param("g").is_some() || clause.param("v").is_some() => continue,
            None => Form::Object,
            Some(_) if !shapes || clause.param("g") != Some("meta.k8s.io") => continue,
            Some(kind) => {
                let version = match clause.param("v") {
                    Some("v1") => "v1",
                    Some("v1beta1") => "v1beta1",
                    _ => continue,
                };
                match kind {
                    // Its cells are any JSON, which protobuf has no form for.
                    "Table" if media == Media::Protobuf => continue,
                    "Table" => {
                        let cannot =
                            |why| ApiError::bad_request(format!("Unable to convert to Table as requested: {why}"));
                        Form::Table(version, include.clone().map_err(cannot)?)
                    }
                    PARTIAL | PARTIAL_LIST => {
                        named = Some(if kind == PARTIAL { PARTIAL } else { PARTIAL_LIST });
                        Form::Metadata(version)
                    }
                    _ => continue,
                }
            }
        };
        let pretty = pretty || clause.param("pretty") == Some("1");
        return Ok(Accepted { media, form, pretty, kind: named });
    }
    Err(not_acceptable())
}

/// How a request body is written.
///
/// # Errors
/// 415 for what cannot be read.
pub fn body_encoding(headers: &HeaderMap) -> Result<Encoding, ApiError> {
    match media_type(headers).as_str() {
        "" | "application/json" | "*/*" => Ok(Encoding::Json),
        "application/yaml" => Ok(Encoding::Yaml),
        _ => Err(unsupported_media_type(SERVED)),
    }
}

/// 415 as upstream words it.
#[must_use]
pub fn unsupported_media_type(accepted: &str) -> ApiError {
    let message =
        format!("the body of the request was in an unknown format - accepted media types include: {accepted}");
    ApiError::new(415, "UnsupportedMediaType", message)
}

/// The content type without parameters, lower case; empty where there is none.
#[must_use]
pub fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(accept: &str) -> HeaderMap {
        let mut h = HeaderMap::new();
        h.insert(ACCEPT, accept.parse().unwrap());
        h
    }

    #[test]
    fn chooses_the_best_form_served() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        let json = Some((Media::Json, Form::Object));
        let cases = [
            (kubectl, true, Some((Media::Json, Form::Table("v1", IncludeObject::Metadata)))),
            (kubectl, false, Some((Media::Json, Form::Object))),
            ("application/vnd.kubernetes.protobuf,application/json", true, Some((Media::Protobuf, Form::Object))),
            ("application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1,application/json", true, json),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
                true,
                Some((Media::Protobuf, Form::Metadata("v1"))),
            ),
            ("application/vnd.kubernetes.protobuf;stream=watch", true, Some((Media::Protobuf, Form::Object))),
            ("application/json;stream=watch", true, json),
            ("application/json;stream=other,application/yaml;stream=watch", true, None),
            ("application/json;q=0,application/cbor", true, None),
            ("application/cbor, application/json;q=0.9", true, json),
            ("application/json;q=0.5, application/yaml", true, Some((Media::Yaml, Form::Object))),
            (
                "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
                true,
                Some((Media::Json, Form::Metadata("v1"))),
            ),
            ("application/vnd.kubernetes.protobuf", true, Some((Media::Protobuf, Form::Object))),
            ("text/html,*/*;q=0.8", true, Some((Media::Json, Form::Object))),
            ("application/json;as=Table;g=other;v=v1", true, None),
        ];
        for (text, shapes, want) in cases {
            let got = accept(&headers(text), &[], shapes).ok().map(|a| (a.media, a.form));
            assert_eq!(got, want, "{text}");
        }
    }

    #[test]
    fn custom_resources_have_no_protobuf_but_for_their_metadata() {
        let choose = |text: &str| accept_of(&headers(text), &[], true, false).ok().map(|a| (a.media, a.form));
        let json = Some((Media::Json, Form::Object));
        assert_eq!(choose("application/vnd.kubernetes.protobuf"), None);
        assert_eq!(choose("application/vnd.kubernetes.protobuf,application/json"), json);
        let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        assert_eq!(choose(metadata), Some((Media::Protobuf, Form::Metadata("v1"))));
        // A failure has every form.
        let failure = accept_failure(&headers("application/vnd.kubernetes.protobuf"), &[]);
        assert_eq!(failure.media, Media::Protobuf);
        assert_eq!(accept_failure(&headers("application/cbor"), &[]).media, Media::Json);
    }
}
