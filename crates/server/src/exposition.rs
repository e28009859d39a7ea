//! The Prometheus text format, version 0.0.4, which is what every scraper of Kubernetes expects on `/metrics`.

use std::collections::HashSet;

/// Content type of the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Counters that upstream calls without `_total` though their names do not end in `_count`.
const BARE: [&str; 2] = ["endpoint_slice_controller_changes", "endpoint_slice_controller_syncs"];

/// Turns OpenMetrics text into it: there, counters are described under their name without `_total`, and a mark ends the
/// text. Counters that upstream calls `…_count`, and [`BARE`] ones, lose the `_total` that OpenMetrics gives them.
#[must_use]
pub fn from_open_metrics(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut counts = HashSet::new();
    let mut help = None;
    for line in text.lines() {
        if let Some(told) = line.strip_prefix("# HELP ") {
            help = Some(told);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|t| t.split_once(' ')) {
            let is_count = kind == "counter" && (name.ends_with("_count") || BARE.contains(&name));
            if is_count {
                counts.insert(name);
            }
            let shown = if kind == "counter" && !is_count && !name.ends_with("_total") { "_total" } else { "" };
            if let Some((_, told)) = help.take().and_then(|h| h.split_once(' ')) {
                push(&mut out, &["# HELP ", name, shown, " ", told]);
            }
            push(&mut out, &["# TYPE ", name, shown, " ", kind]);
        } else if !line.starts_with('#') && !line.is_empty() {
            let end = line.find(['{', ' ']).unwrap_or(line.len());
            let (name, rest) = line.split_at(end);
            let name = name.strip_suffix("_total").filter(|n| counts.contains(n)).unwrap_or(name);
            push(&mut out, &[name, rest]);
        }
    }
    out
}

fn push(out: &mut String, parts: &[&str]) {
    parts.iter().for_each(|part| out.push_str(part));
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_described_as_they_are_called() {
        let open = "# HELP a A.\n# TYPE a counter\na_total{x=\"# TYPE\"} 1\n# HELP b_count B.\n# TYPE b_count counter\n\
                    b_count_total 2\n# HELP c C.\n# TYPE c gauge\n# UNIT c seconds\nc 3\n# HELP d D.\n# TYPE d histogram\n\
                    d_sum 1\nd_count 1\nd_bucket{le=\"+Inf\"} 1\n# EOF\n";
        let wanted = "# HELP a_total A.\n# TYPE a_total counter\na_total{x=\"# TYPE\"} 1\n# HELP b_count B.\n\
                      # TYPE b_count counter\nb_count 2\n# HELP c C.\n# TYPE c gauge\nc 3\n# HELP d D.\n\
                      # TYPE d histogram\nd_sum 1\nd_count 1\nd_bucket{le=\"+Inf\"} 1\n";
        assert_eq!(from_open_metrics(open), wanted);
    }
}
