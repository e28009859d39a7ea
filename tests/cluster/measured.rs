//! What `/metrics` tells.

/// A metric: its name, its kind, and the names of its labels in order.
pub type Metric = (&'static str, &'static str, &'static [&'static str]);

/// The names of the labels of a sample, in order, without the bounds of buckets.
fn labels(line: &str) -> Vec<String> {
    let inside = line.split_once('{').map_or("", |(_, rest)| rest.rsplit_once('}').map_or("", |(inside, _)| inside));
    let mut names = Vec::new();
    let mut rest = inside;
    while let Some((name, after)) = rest.split_once("=\"") {
        names.push(name.trim_start_matches(',').to_owned());
        rest = after.split_once('"').map_or("", |(_, rest)| rest);
    }
    names.retain(|n| n != "le");
    names.sort();
    names
}

/// Sees that all of it is told, with these labels.
pub fn tells(text: &str, all: &[Metric]) {
    for (name, kind, wanted) in all {
        assert!(text.lines().any(|l| l == format!("# TYPE {name} {kind}")), "{name} is no {kind}");
        let sample = if *kind == "histogram" { format!("{name}_count") } else { (*name).to_owned() };
        let found = text.lines().find(|l| l.strip_prefix(&sample).is_some_and(|r| r.starts_with(['{', ' '])));
        assert_eq!(labels(found.unwrap_or_else(|| panic!("no sample of {name}"))), *wanted, "{name}");
    }
}

/// The value of a sample, of which this is all that stands before it.
pub fn value(text: &str, sample: &str) -> Option<f64> {
    text.lines().find_map(|l| l.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok())
}
