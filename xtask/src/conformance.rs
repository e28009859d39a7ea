//! `docs/conformance.md` against the tests: every behaviour it says has a test has one, and every test that claims one is
//! in it.

use crate::repository;
use std::collections::BTreeSet;
use std::fs;

/// What starts a comment that claims a behaviour, where the comment is not the name alone.
const CLAIM: &str = "Conformance: ";

/// A row: the behaviour's name, and file and function of its test; none where the row says what is missing.
type Row = (String, Option<(String, String)>);

/// The rows of the page's tables, and what is wrong with some.
fn rows(page: &str) -> (Vec<Row>, Vec<String>) {
    let (mut rows, mut wrong) = (Vec::new(), Vec::new());
    for line in page.lines().filter(|l| l.starts_with("| ") && *l != "| behaviour | test |") {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [name, test] = cells[..] else {
            wrong.push(format!("not two cells: {line}"));
            continue;
        };
        let words: Vec<&str> = test.split('`').collect();
        match words[..] {
            ["", file, " ", function, ""] => rows.push((name.to_owned(), Some((file.to_owned(), function.to_owned())))),
            [missing] if missing.strip_prefix("not yet: ").is_some_and(|m| !m.is_empty()) => {
                rows.push((name.to_owned(), None));
            }
            _ => wrong.push(format!("neither a test nor what is missing: {line}")),
        }
    }
    (rows, wrong)
}

fn function(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("pub ").unwrap_or(line).strip_prefix("fn ")?;
    rest.split(['(', '<']).next()
}

/// Comments of a file with the function each belongs to: the next one for those before a function, the one around for
/// those inside.
fn comments(source: &str) -> Vec<(&str, &str)> {
    let lines: Vec<&str> = source.lines().collect();
    let (mut found, mut around) = (Vec::new(), None);
    for (at, line) in lines.iter().enumerate() {
        around = function(line).or(around);
        let Some(text) = line.trim_start().strip_prefix("// ") else { continue };
        let of = if line.starts_with('/') { lines[at..].iter().find_map(|l| function(l)) } else { around };
        found.extend(of.map(|of| (text, of)));
    }
    found
}

/// Whether a comment names the behaviour. Where upstream gave several one name, the page tells them apart in parentheses,
/// and a comment without these names them all.
fn names(comment: &str, behaviour: &str) -> bool {
    let name = comment.strip_prefix(CLAIM).unwrap_or(comment).trim_end_matches('.');
    let rest = behaviour.strip_prefix(name).map(|rest| rest.trim_start_matches('.'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(" ("))
}

#[test]
fn the_page_and_the_tests_agree() {
    let page = fs::read_to_string(repository::root().join("docs/conformance.md")).unwrap();
    let (rows, mut wrong) = rows(&page);
    assert!(rows.len() > 300, "{} rows", rows.len());
    let mut seen = BTreeSet::new();
    wrong.extend(rows.iter().filter(|r| !seen.insert(&r.0)).map(|r| format!("twice: {}", r.0)));
    for (name, test) in &rows {
        let Some((file, wanted)) = test else { continue };
        let source = fs::read_to_string(repository::root().join(file)).unwrap_or_default();
        if !comments(&source).iter().any(|(text, of)| of == wanted && names(text, name)) {
            wrong.push(format!("{file} has no function {wanted} with the comment: {name}"));
        }
    }
    let list =
        repository::git(&["ls-files", "--cached", "--others", "--exclude-standard", "--", "tests/*.rs"]).unwrap();
    for file in list.lines() {
        let source = fs::read_to_string(repository::root().join(file)).unwrap_or_default();
        for (text, of) in comments(&source).iter().filter(|(text, _)| text.starts_with(CLAIM)) {
            let here = |test: &(String, String)| test.0 == file && test.1 == *of;
            if !rows.iter().any(|(name, test)| names(text, name) && test.as_ref().is_some_and(here)) {
                wrong.push(format!("{file} {of} is missing in its row: {text}"));
            }
        }
    }
    let (with, all) = (rows.iter().filter(|r| r.1.is_some()).count(), rows.len());
    if !page.contains(&format!("\n{with} of {all} have a test.\n")) {
        wrong.push(format!("the page does not say: {with} of {all} have a test."));
    }
    assert!(wrong.is_empty(), "docs/conformance.md:\n  {}", wrong.join("\n  "));
}

#[test]
fn rows_and_comments_are_read() {
    let (rows, wrong) =
        rows("| behaviour | test |\n|---|---|\n| a | `t.rs` `f` |\n| b | not yet: needs X |\n| c | soon |\n");
    assert_eq!(rows[0], ("a".into(), Some(("t.rs".into(), "f".into()))));
    assert_eq!((rows.len(), &rows[1].1, wrong.len()), (2, &None, 1));
    let source = "// Conformance: one\n// two\nfn f(a: u8) {\n    // three\n}\npub fn g<T>() {\n    // four\n}\n";
    let expected = [("Conformance: one", "f"), ("two", "f"), ("three", "f"), ("four", "g")];
    assert_eq!(comments(source), expected);
    assert!(names("Conformance: one", "one") && names("two.", "two") && names("three.", "three. (of several)"));
    assert!(!names("on", "one"));
}
