//! Links in proxied HTML pages: a path at the backend's root becomes one below the proxy, as upstream rewrites it.

/// Attributes that hold a URL, by element.
const URLS: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// Elements whose content is text until their end tag.
const RAW_TEXT: [&str; 2] = ["script", "style"];

/// A URL of the backend as seen through the proxy at `base`. Other hosts and relative paths stay as they are.
pub(super) fn rewrite_url(url: &str, base: &str, authority: &str) -> Option<String> {
    let own = ["http://", "https://"].iter().find_map(|s| url.strip_prefix(s)?.strip_prefix(authority));
    let path = match own {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => rest,
        Some(_) => return None,
        None if url.starts_with('/') && !url.starts_with("//") => url,
        None => return None,
    };
    Some(format!("{base}{path}"))
}

/// The page with its links rewritten.
pub(super) fn rewrite_page(page: &str, base: &str, authority: &str) -> String {
    let mut out = String::with_capacity(page.len() + 256);
    let mut rest = page;
    while let Some(at) = rest.find('<') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(end) = rest.strip_prefix("<!--").and_then(|r| r.find("-->")) {
            let length = end + 4 + 3;
            out.push_str(&rest[..length]);
            rest = &rest[length..];
            continue;
        }
        let name: String =
            rest[1..].chars().take_while(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
        let Some(length) = tag_length(rest).filter(|_| !name.is_empty()) else {
            out.push('<');
            rest = &rest[1..];
            continue;
        };
        let tag = &rest[..length];
        match URLS.iter().find(|(element, _)| *element == name) {
            Some((_, attributes)) => rewrite_tag(tag, name.len() + 1, attributes, base, authority, &mut out),
            None => out.push_str(tag),
        }
        rest = &rest[length..];
        if RAW_TEXT.contains(&name.as_str())
            && let Some(end) = find_end_tag(rest, &name)
        {
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        }
    }
    out.push_str(rest);
    out
}

fn find_end_tag(text: &str, name: &str) -> Option<usize> {
    let closing = format!("</{name}");
    let bytes = text.as_bytes();
    (0..bytes.len()).find(|i| {
        bytes[*i] == b'<'
            && bytes.get(*i..*i + closing.len()).is_some_and(|t| t.eq_ignore_ascii_case(closing.as_bytes()))
    })
}

/// Length of the tag that `text` begins with, its `>` included; quoted values may contain one.
fn tag_length(text: &str) -> Option<usize> {
    let mut quote = None;
    for (i, b) in text.bytes().enumerate() {
        match (quote, b) {
            (None, b'>') => return Some(i + 1),
            (None, b'"' | b'\'') => quote = Some(b),
            (Some(q), b) if b == q => quote = None,
            _ => {}
        }
    }
    None
}

fn rewrite_tag(tag: &str, name_end: usize, attributes: &[&str], base: &str, authority: &str, out: &mut String) {
    out.push_str(&tag[..name_end]);
    let mut rest = &tag[name_end..];
    loop {
        let start = rest.find(|c: char| !c.is_ascii_whitespace() && c != '/').unwrap_or(rest.len());
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        if rest.is_empty() || rest.starts_with('>') {
            out.push_str(rest);
            return;
        }
        let end = rest.find(|c: char| c.is_ascii_whitespace() || matches!(c, '=' | '>' | '/')).unwrap_or(rest.len());
        // A stray sign that begins no name would otherwise never be passed.
        let end = if end == 0 { rest.chars().next().map_or(1, char::len_utf8) } else { end };
        let name = rest[..end].to_ascii_lowercase();
        out.push_str(&rest[..end]);
        rest = &rest[end..];
        let after = rest.trim_start_matches(|c: char| c.is_ascii_whitespace());
        let Some(value) = after.strip_prefix('=') else { continue };
        let value = value.trim_start_matches(|c: char| c.is_ascii_whitespace());
        out.push_str(&rest[..rest.len() - value.len()]);
        let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''));
        let (content, tail) = match quote {
            Some(q) => match value[1..].find(q) {
                Some(end) => (&value[1..=end], &value[end + 2..]),
                None => (&value[1..], ""),
            },
            None => value.split_at(value.find(|c: char| c.is_ascii_whitespace() || c == '>').unwrap_or(value.len())),
        };
        let rewritten = attributes.contains(&name.as_str()).then(|| rewrite_url(content, base, authority)).flatten();
        let mark = quote.map(String::from).unwrap_or_default();
        out.push_str(&mark);
        out.push_str(rewritten.as_deref().unwrap_or(content));
        out.push_str(&mark);
        rest = tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_within_the_proxy() {
        let cases = [
            (r#"<a href="/rewriteme">test</a>"#, r#"<a href="/base/rewriteme">test</a>"#),
            (r#"<A class=x HREF='/x?a=b#c' >t</A>"#, r#"<A class=x HREF='/base/x?a=b#c' >t</A>"#),
            (r#"<img src=/i.png><img src="i.png"/>"#, r#"<img src=/base/i.png><img src="i.png"/>"#),
            (r#"<a href="//other/x">"#, r#"<a href="//other/x">"#),
            (r#"<a href="http://h:80/x">"#, r#"<a href="/base/x">"#),
            (r#"<a href="http://h:8080/x">"#, r#"<a href="http://h:8080/x">"#),
            (r#"<p title="/x">1 < 2 <!-- <a href="/x"> --></p>"#, r#"<p title="/x">1 < 2 <!-- <a href="/x"> --></p>"#),
            (
                r#"<script src="/s.js">if (a<b) "<a href='/x'>"</script>"#,
                r#"<script src="/base/s.js">if (a<b) "<a href='/x'>"</script>"#,
            ),
            ("<a href=\"/unclosed", "<a href=\"/unclosed"),
            ("<a = href=/x ä>", "<a = href=/base/x ä>"),
        ];
        for (page, want) in cases {
            assert_eq!(rewrite_page(page, "/base", "h:80"), want);
        }
    }
}
