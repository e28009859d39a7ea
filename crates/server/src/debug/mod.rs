//! `/debug/pprof` and `/debug/flags`, which tell how the process fares and change how much it says; and the pages of
//! [`zpages`].
//!
//! Of Go's profiles there is that of the processors' time; those of its run time (goroutine, heap, mutex, trace…) are of
//! nothing there is here, and answer as Go's index does for a profile that it does not know.

mod profile;
pub mod zpages;

use crate::http::respond;
use crate::request::{RequestContext, Response};
use futures::future::BoxFuture;
use http::header::{CONTENT_DISPOSITION, LOCATION, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method};
use std::collections::HashMap;
use std::time::Duration;

/// Where profiles are.
const PPROF: &str = "/debug/pprof";
/// Where flags are.
const FLAGS: &str = "/debug/flags";
/// For how long the process is watched unless told otherwise; Go's.
const SECONDS: u64 = 30;

/// Addresses of one call: the innermost first, of callers that of the call.
pub type Stack = Vec<u64>;

/// Where code is in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The first address.
    pub start: u64,
    /// The one after the last.
    pub end: u64,
    /// Where it begins in the file.
    pub offset: u64,
    /// The file.
    pub file: String,
}

/// Where a process spent its time.
#[derive(Clone, Debug, Default)]
pub struct Sampled {
    /// How often each stack was met.
    pub stacks: HashMap<Stack, u64>,
    /// Processor time between two looks.
    pub period: Duration,
    /// For how long it was looked at.
    pub took: Duration,
    /// When that began, since 1970.
    pub began: Duration,
    /// Code in memory.
    pub mappings: Vec<Mapping>,
}

/// The process that the server is in.
pub trait Process: Send + Sync {
    /// Looks for so long where it spends its time.
    ///
    /// # Errors
    /// Why that cannot be done, as that somebody does already.
    fn sample(&self, wanted: Duration) -> BoxFuture<'static, Result<Sampled, String>>;

    /// Has it say as much as a Kubernetes component of this verbosity.
    ///
    /// # Errors
    /// Why it does not.
    fn set_verbosity(&self, verbosity: i32) -> Result<(), String>;
}

/// Whether a request is answered here, if there is anything to answer it. Such take as long as they were asked to.
#[must_use]
pub fn is_profile(path: &str) -> bool {
    path.starts_with("/debug/pprof/")
}

/// Answers a request for a path below `/debug/pprof` or `/debug/flags`; None for other paths.
pub async fn answer(process: &dyn Process, cx: &RequestContext, body: &[u8]) -> Option<Response> {
    let path = cx.info.path.as_str();
    if path == PPROF {
        let mut found = respond::with_type(302, "text/html; charset=utf-8", "<a href=\"/debug/pprof/\">Found</a>.\n\n");
        found.headers_mut().insert(LOCATION, HeaderValue::from_static("/debug/pprof/"));
        return Some(found);
    }
    if let Some(name) = path.strip_prefix(PPROF).and_then(|p| p.strip_prefix('/')) {
        return Some(match name {
            "" => index(),
            "profile" => cpu(process, cx).await,
            // None: the binary has none, and says so, so that whoever asks looks them up elsewhere.
            "symbol" => nosniff(plain(200, "num_symbols: 0\n".to_owned())),
            _ => refused(404, "Unknown profile"),
        });
    }
    let flag = path.strip_prefix(FLAGS)?;
    Some(match flag {
        "/v" => verbosity(process, cx, body),
        _ if flag.is_empty() || flag.starts_with('/') => respond::with_type(
            200,
            "text/html; charset=utf-8",
            "<html>\n<head>\n<title>/debug/flags/</title>\n</head>\n<body>\n/debug/flags/<br>\n<br>\nflags:<br>\n<table>\n\
             <tr>v<br>\n</table>\n<br>\nfull flags configurable<br>\n</body>\n</html>\n",
        ),
        _ => return None,
    })
}

fn plain(code: u16, text: String) -> Response {
    respond::with_type(code, "text/plain; charset=utf-8", text)
}

fn nosniff(mut response: Response) -> Response {
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A refusal as Go's handlers of profiles word it.
fn refused(code: u16, why: &str) -> Response {
    let mut response = nosniff(plain(code, format!("{why}\n")));
    response.headers_mut().insert("X-Go-Pprof", HeaderValue::from_static("1"));
    response
}

fn index() -> Response {
    let text = "<html>\n<head>\n<title>/debug/pprof/</title>\n</head>\n<body>\n/debug/pprof/\n<p>Types of profiles available:\
                </p>\n<ul>\n<li><a href=\"profile?seconds=30\">profile</a>: where the processors' time goes</li>\n</ul>\n\
                </body>\n</html>\n";
    nosniff(respond::with_type(200, "text/html; charset=utf-8", text))
}

/// Looks at the process for as long as `seconds` says and answers with what `pprof` reads.
async fn cpu(process: &dyn Process, cx: &RequestContext) -> Response {
    let wanted = cx.param("seconds").and_then(|s| s.parse().ok()).filter(|s: &u64| *s > 0).unwrap_or(SECONDS);
    match process.sample(Duration::from_secs(wanted)).await {
        Ok(sampled) => {
            let mut answer = respond::with_type(200, "application/octet-stream", profile::encode(&sampled));
            answer
                .headers_mut()
                .insert(CONTENT_DISPOSITION, HeaderValue::from_static("attachment; filename=\"profile\""));
            nosniff(answer)
        }
        Err(why) => refused(500, &format!("Could not enable CPU profiling: {why}")),
    }
}

fn verbosity(process: &dyn Process, cx: &RequestContext, body: &[u8]) -> Response {
    let answer = |code, text: String| nosniff(respond::with_type(code, "text/plain", text));
    if cx.parts.method != Method::PUT {
        return answer(406, "unsupported http method".to_owned());
    }
    let given = String::from_utf8_lossy(body);
    let set = parse(&given).and_then(|level| process.set_verbosity(level));
    match set {
        Ok(()) => answer(200, format!("successfully set klog.logging.verbosity to {given}")),
        Err(why) => answer(400, format!("failed set klog.logging.verbosity {given}: {why}")),
    }
}

/// A number as Go reads it, with its words for what is none.
fn parse(text: &str) -> Result<i32, String> {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    text.parse().map_err(|e: std::num::ParseIntError| {
        let what = if matches!(e.kind(), PosOverflow | NegOverflow) { "value out of range" } else { "invalid syntax" };
        format!("strconv.ParseInt: parsing {text:?}: {what}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_go_reads_them() {
        assert_eq!(parse("4"), Ok(4));
        assert_eq!(parse("x").unwrap_err(), "strconv.ParseInt: parsing \"x\": invalid syntax");
        assert_eq!(parse("").unwrap_err(), "strconv.ParseInt: parsing \"\": invalid syntax");
        let much = "99999999999";
        assert_eq!(parse(much).unwrap_err(), format!("strconv.ParseInt: parsing \"{much}\": value out of range"));
    }
}
