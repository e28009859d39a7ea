//! From `facts/protobuf.tsv` (format: `facts/make-protobuf.py`) to the static tables of `src/protobuf/table.rs`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

struct Package<'a> {
    name: &'a str,
    group: &'a str,
    version: &'a str,
    messages: BTreeMap<&'a str, Vec<&'a str>>,
}

/// Rust source of the tables.
pub fn source(facts: &str) -> String {
    let packages = packages(facts);
    // Messages are numbered in the order of packages and of names within one.
    let mut numbers = BTreeMap::new();
    for package in &packages {
        let short: Vec<&str> = package.name.rsplit('.').take(2).collect();
        for name in package.messages.keys() {
            let at = numbers.len();
            numbers.insert(format!("{}.{}.{name}", short[1], short[0]), at);
        }
    }
    let mut out = format!("pub(super) static MESSAGES: [Message; {}] = [\n", numbers.len());
    let mut ranges = String::new();
    let mut start = 0;
    for package in &packages {
        let short: Vec<&str> = package.name.rsplit('.').take(2).collect();
        for (name, columns) in &package.messages {
            let resolve = |reference: &str| {
                let full = match reference.contains('.') {
                    true => reference.to_owned(),
                    false => format!("{}.{}.{reference}", short[1], short[0]),
                };
                *numbers.get(&full).unwrap_or_else(|| panic!("protobuf.tsv: {name} refers to {full}"))
            };
            message(&mut out, name, columns, &resolve);
        }
        let end = start + package.messages.len();
        writeln!(
            ranges,
            "    Package {{ group: {:?}, version: {:?}, first: {start}, end: {end} }},",
            package.group, package.version
        )
        .expect("String");
        start = end;
    }
    let served = packages.len();
    let schema = numbers["apiextensions.v1.JSONSchemaProps"];
    writeln!(out, "];\n\nconst SCHEMA: Kind = Kind::Message({schema});\n").expect("String");
    writeln!(out, "pub(super) static PACKAGES: [Package; {served}] = [\n{ranges}];").expect("String");
    out
}

fn packages(facts: &str) -> Vec<Package<'_>> {
    let mut out: Vec<Package<'_>> = Vec::new();
    for line in facts.lines() {
        let columns: Vec<&str> = line.split('\t').collect();
        match columns[..] {
            ["P", name, group, version] => out.push(Package { name, group, version, messages: BTreeMap::new() }),
            _ => {
                let package = out.last_mut().expect("a package comes first");
                package.messages.insert(columns[0], columns[1..].to_vec());
            }
        }
    }
    out
}

fn message(out: &mut String, name: &str, columns: &[&str], resolve: &dyn Fn(&str) -> usize) {
    let mut fields: Vec<(&str, u32, &str)> = Vec::new();
    for column in columns {
        let (name, rest) = column.split_once('=').expect("name=number:type");
        let (number, kind) = rest.split_once(':').expect("name=number:type");
        fields.push((name, number.parse().expect("a number"), kind));
    }
    fields.sort_unstable();
    write!(out, "    Message {{ name: {name:?}, fields: &[").expect("String");
    for (name, number, kind) in &fields {
        let (inline, name) = match name.strip_prefix('+') {
            Some(name) => (true, name),
            None => (false, *name),
        };
        let (zero_counts, kind) = match kind.strip_suffix('!') {
            Some(kind) => (true, kind),
            None => (false, *kind),
        };
        let (shape, kind) = match kind.split_at(1) {
            ("[", kind) => ("Repeated", kind),
            ("{", kind) => ("Map", kind),
            _ => ("Single", kind),
        };
        let kind = match kind.split_at(1) {
            ("@", reference) => format!("Message({})", resolve(reference)),
            (code, _) => scalar(code).to_owned(),
        };
        write!(
            out,
            "Field {{ name: {name:?}, number: {number}, shape: Shape::{shape}, kind: Kind::{kind}, \
             inline: {inline}, zero_counts: {zero_counts} }}, "
        )
        .expect("String");
    }
    let mut by_number: Vec<usize> = (0..fields.len()).collect();
    by_number.sort_by_key(|at| fields[*at].1);
    writeln!(out, "], by_number: &{by_number:?} }},").expect("String");
}

fn scalar(code: &str) -> &'static str {
    match code {
        "s" => "String",
        "y" => "Bytes",
        "b" => "Bool",
        "i" => "Int",
        "f" => "Double",
        "q" => "Quantity",
        "p" => "IntOrString",
        "t" => "Time",
        "u" => "MicroTime",
        "d" => "Duration",
        "r" => "Raw",
        "l" => "Strings",
        "A" => "SchemaOrArray",
        "B" => "SchemaOrBool",
        "S" => "SchemaOrStrings",
        other => panic!("protobuf.tsv: type {other}"),
    }
}
