//! PEM blocks (RFC 7468) as Kubernetes reads them: neither what stands between blocks nor blocks that are broken count.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The label of certificates.
pub const CERTIFICATE: &str = "CERTIFICATE";

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
/// Characters of a line of the body.
const WIDTH: usize = 64;

/// One block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// What it holds, e.g. `CERTIFICATE`.
    pub label: String,
    /// Whether headers (RFC 1421) stand before its body.
    pub has_headers: bool,
    /// Its content, decoded.
    pub der: Vec<u8>,
}

/// The blocks of a text, in its order.
#[must_use]
pub fn blocks(text: &str) -> Vec<Block> {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let mut found = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        // Where a block is broken another may begin within it.
        at += first(&lines[at..]).map_or(1, |(block, lines)| {
            found.push(block);
            lines
        });
    }
    found
}

/// The block that begins with the first of these lines, and how many lines it takes.
fn first(lines: &[&str]) -> Option<(Block, usize)> {
    let label = lines[0].strip_prefix(BEGIN)?.strip_suffix("-----")?;
    let headers = lines[1..].iter().take_while(|l| l.contains(':') && !l.starts_with("-----")).count();
    let body = &lines[1 + headers..];
    let length = body.iter().position(|l| l.starts_with(END) || l.starts_with(BEGIN))?;
    if body[length].strip_prefix(END).and_then(|l| l.strip_suffix("-----")) != Some(label) {
        return None;
    }
    let text: String = body[..length].iter().flat_map(|l| l.chars()).filter(|c| !c.is_whitespace()).collect();
    let der = STANDARD.decode(text).ok()?;
    Some((Block { label: label.to_owned(), has_headers: headers > 0, der }, headers + length + 2))
}

/// One block as text.
#[must_use]
pub fn encode(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut out = format!("{BEGIN}{label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(WIDTH));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out + END + label + "-----\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_between_blocks_and_broken_blocks_do_not_count() {
        let (a, b) = (vec![1; 100], vec![2; 3]);
        let text = format!(
            "first\n{}between\n-----BEGIN X-----\nno base64!\n-----END X-----\n-----BEGIN Y-----\nAAAA\n{}",
            encode(CERTIFICATE, &a),
            encode("Z", &b).replace("Z-----\nA", "Z-----\nProc-Type: 4\n\nA").replace('\n', " \r\n"),
        );
        let found = blocks(&text);
        let told: Vec<_> = found.iter().map(|f| (f.label.as_str(), f.has_headers, f.der.as_slice())).collect();
        assert_eq!(told, [(CERTIFICATE, false, a.as_slice()), ("Z", true, b.as_slice())]);
        assert_eq!(encode(CERTIFICATE, &a).lines().nth(1).map(str::len), Some(64));
        assert_eq!(blocks("-----BEGIN A-----\nAAAA\n-----END B-----\n"), []);
    }
}
