//! Rules of the tree that no compiler checks. Each is a test; a failure lists every place with file and line.

use crate::repository;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

/// Most lines of a Rust file: one idea per file.
const LINES_MAX: usize = 900;
/// Most characters of a line of Rust, what stands inside string literals not counted: messages and documents are kept whole.
const COLUMNS_MAX: usize = 140;
/// Most characters of a line with its literals.
const COLUMNS_WITH_LITERALS_MAX: usize = 320;
/// Crates that must run under virtual time from one seed.
const CONTROL_PLANE: &[&str] =
    &["api", "cel", "store", "server", "client", "reconcile", "controllers", "scheduler", "proxy", "dns"];
/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["utils", "util", "common", "helpers", "helper", "misc"];

/// Words that this file must not trip over itself are put together here.
fn unfinished() -> [String; 4] {
    [["todo", "!("], ["unimplemented", "!("], ["dbg", "!("], ["#[", "ignore"]].map(|parts| parts.concat())
}

/// Places and names of where the project was written, which mean nothing to its readers.
fn foreign() -> [String; 4] {
    [["/wo", "rk/"], ["/.lib", "rary"], ["helper ", "session"], [".mir", "ror/"]].map(|parts| parts.concat())
}

/// One file of the working tree, by its path from the root.
struct Source {
    path: String,
    text: String,
}

/// Files that git tracks or would track, as far as they are text.
fn sources() -> Vec<Source> {
    let list = repository::git(&["ls-files", "--cached", "--others", "--exclude-standard", "-z"]).unwrap();
    let paths: BTreeSet<&str> = list.split_terminator('\0').collect();
    let mut sources = Vec::new();
    for path in paths {
        let full = repository::root().join(path);
        let Ok(kind) = fs::symlink_metadata(&full) else { continue };
        if !kind.is_file() {
            continue;
        }
        if let Ok(text) = fs::read_to_string(&full) {
            sources.push(Source { path: path.to_owned(), text });
        }
    }
    assert!(sources.len() > 10, "git lists no files in {}", repository::root().display());
    sources
}

fn rust() -> Vec<Source> {
    sources().into_iter().filter(|s| s.path.ends_with(".rs")).collect()
}

/// Fails with all findings.
fn none(what: &str, findings: Vec<String>) {
    assert!(findings.is_empty(), "{what}:\n  {}", findings.join("\n  "));
}

fn everywhere(sources: &[Source], rule: impl Fn(&Source) -> Vec<String>) -> Vec<String> {
    sources.iter().flat_map(rule).collect()
}

/// Lines (numbered from 1) that `is` finds.
fn lines(source: &Source, is: impl Fn(&str) -> bool) -> Vec<String> {
    let found = source.text.lines().enumerate().filter(|(_, line)| is(line));
    found.map(|(at, line)| format!("{}:{}: {}", source.path, at + 1, line.trim())).collect()
}

fn too_long(source: &Source) -> Vec<String> {
    let count = source.text.lines().count();
    if count > LINES_MAX { vec![format!("{}: {count} lines", source.path)] } else { Vec::new() }
}

fn too_wide(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_document = false;
    for (at, line) in source.text.lines().enumerate() {
        let count = line.chars().count();
        let counted = if in_document { 0 } else { count - inside_literals(line) };
        if count > COLUMNS_WITH_LITERALS_MAX || count > COLUMNS_MAX && counted > COLUMNS_MAX {
            found.push(format!("{}:{}: {}", source.path, at + 1, line.trim()));
        }
        // A raw string of several lines: YAML and JSON of tests.
        match in_document {
            true => in_document = !line.contains("\"#"),
            false => in_document = line.rfind("r#\"").is_some_and(|from| !line[from + 3..].contains("\"#")),
        }
    }
    found
}

/// How many characters of a line stand inside string literals. A line that only continues one has no quote before its end.
fn inside_literals(line: &str) -> usize {
    let raw = line.find("r#\"").zip(line.rfind("\"#")).filter(|(from, to)| from + 3 < *to);
    if let Some((from, to)) = raw {
        return line[from + 3..to].chars().count();
    }
    let (mut inside, mut count, mut escaped) = (false, 0, false);
    for c in line.chars() {
        match c {
            '"' if !escaped => inside = !inside,
            _ if inside => count += 1,
            _ => {}
        }
        escaped = c == '\\' && !escaped;
    }
    count
}

/// `tests.rs` beside a module is documented by its name and place.
fn undocumented(source: &Source) -> Vec<String> {
    if source.path.ends_with("/tests.rs") {
        return Vec::new();
    }
    let first = source.text.lines().find(|l| !l.trim().is_empty() && !l.starts_with("#!"));
    if first.is_some_and(|l| l.starts_with("//!")) { Vec::new() } else { vec![format!("{}:1", source.path)] }
}

fn emptily_named(source: &Source) -> Vec<String> {
    let path = Path::new(&source.path);
    let mut parts = path.components().filter_map(|c| Path::new(c.as_os_str()).file_stem()?.to_str());
    let mut found = Vec::new();
    if parts.any(|part| EMPTY_NAMES.contains(&part)) {
        found.push(source.path.clone());
    }
    found.extend(lines(source, |line| module(line).is_some_and(|(name, _)| EMPTY_NAMES.contains(&name))));
    found
}

fn unfinished_code(source: &Source) -> Vec<String> {
    let words = unfinished();
    lines(source, |line| words.iter().any(|w| line.contains(w.as_str())))
}

fn foreign_words(source: &Source) -> Vec<String> {
    let words = foreign();
    lines(source, |line| words.iter().any(|w| line.contains(w.as_str())))
}

/// Name of the module that a line declares, and whether its body follows in the same file.
fn module(line: &str) -> Option<(&str, bool)> {
    let mut rest = line.trim_start();
    if let Some(public) = rest.strip_prefix("pub") {
        rest = public.trim_start();
        if let Some(scope) = rest.strip_prefix('(') {
            rest = scope.split_once(')')?.1.trim_start();
        }
    }
    let rest = rest.strip_prefix("mod ")?.trim_start();
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    let (name, after) = rest.split_at(end);
    match after.trim_start().chars().next()? {
        ';' => Some((name, false)),
        '{' => Some((name, true)),
        _ => None,
    }
}

/// The text without its test module, which ends the file by convention, and without comments.
fn production(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut test_only = false;
    for (at, line) in text.lines().enumerate() {
        if test_only && module(line).is_some_and(|(_, inline)| inline) {
            break;
        }
        if line == "#[cfg(test)]" {
            test_only = true;
        } else if !line.starts_with("#[") {
            test_only = false;
        }
        if !line.trim_start().starts_with("//") {
            found.push((at + 1, line));
        }
    }
    found
}

fn is_test(path: &str) -> bool {
    let path = Path::new(path);
    path.components().any(|c| c.as_os_str() == "tests" || c.as_os_str() == "benches") || path.ends_with("tests.rs")
}

fn is_control_plane(path: &str) -> bool {
    CONTROL_PLANE.iter().any(|name| path.starts_with(&format!("crates/{name}/src/")))
}

/// Time and chance taken directly. The second check beside clippy's, which needs a link in every crate.
fn direct_time_or_chance(source: &Source) -> Vec<String> {
    if !is_control_plane(&source.path) || is_test(&source.path) {
        return Vec::new();
    }
    let code = production(&source.text);
    // An import may span lines; a brace group of tokio::time ends with the first semicolon.
    let imports_tokios = source.text.split("use tokio::time::").skip(1).any(|rest| {
        let names = rest.split(';').next().unwrap_or_default();
        names.split(|c: char| !c.is_alphanumeric()).any(|name| name == "Instant")
    }) || source.text.contains("use tokio::time;") && source.text.contains("time::Instant::now");
    let mut found = Vec::new();
    for (at, line) in code {
        let outside = ["SystemTime::now", "Timestamp::now", "Zoned::now", "rand::rng(", "thread_rng", "thread::sleep"];
        let instant = line.contains("Instant::now")
            && !line.contains("tokio::time::Instant::now")
            && (!imports_tokios || line.contains("std::time::Instant::now"));
        if instant || outside.iter().any(|word| line.contains(word)) {
            found.push(format!("{}:{at}: {}", source.path, line.trim()));
        }
    }
    found
}

/// `a/b/../c` → `a/c`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(normal.pop()),
            Component::CurDir => {}
            other => normal.push(other),
        }
    }
    normal
}

/// Files that the modules of `source` may be in.
fn modules_of(source: &Source, is_root: bool) -> Vec<PathBuf> {
    let path = Path::new(&source.path);
    let directory = path.parent().unwrap_or(Path::new(""));
    let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    let inside = if is_root || stem == "mod" { directory.to_owned() } else { directory.join(stem) };
    let mut found = Vec::new();
    let mut explicit = None;
    for line in source.text.lines() {
        let line = line.trim();
        if let Some(rest) = line.split("#[path = \"").nth(1) {
            explicit = rest.split('"').next();
        }
        for rest in line.split("include!(\"").skip(1) {
            found.extend(rest.split('"').next().map(|file| normal(&directory.join(file))));
        }
        let declaration = line.rsplit("] ").next().unwrap_or(line);
        if let Some((name, false)) = module(declaration) {
            match explicit.take() {
                Some(file) => found.push(normal(&directory.join(file))),
                None => {
                    found.push(inside.join(format!("{name}.rs")));
                    found.push(inside.join(name).join("mod.rs"));
                }
            }
        }
    }
    found
}

/// Rust files that no target reaches. `roots` are the targets' files, from the root.
fn unreachable(sources: &[Source], roots: &BTreeSet<PathBuf>) -> Vec<String> {
    let mut seen: BTreeSet<PathBuf> = roots.clone();
    let mut todo: Vec<PathBuf> = seen.iter().cloned().collect();
    while let Some(path) = todo.pop() {
        let Some(source) = sources.iter().find(|s| Path::new(&s.path) == path) else { continue };
        for module in modules_of(source, roots.contains(&path)) {
            if seen.insert(module.clone()) {
                todo.push(module);
            }
        }
    }
    sources.iter().filter(|s| !seen.contains(Path::new(&s.path))).map(|s| s.path.clone()).collect()
}

/// Files of all Cargo targets, also those of packages outside the workspace (fuzz targets), from the root.
fn targets(all: &[Source]) -> BTreeSet<PathBuf> {
    let mut roots = BTreeSet::new();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // The root's lists all members of the workspace.
    let member =
        |path: &str| path.starts_with("xtask/") || path.starts_with("crates/") && path.matches('/').count() == 2;
    for manifest in all.iter().filter(|s| s.path.ends_with("Cargo.toml") && !member(&s.path)) {
        let output = Command::new(&cargo)
            .args(["metadata", "--format-version", "1", "--no-deps", "--offline", "--manifest-path"])
            .arg(repository::root().join(&manifest.path))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}: {}", manifest.path, String::from_utf8_lossy(&output.stderr));
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        for package in metadata["packages"].as_array().unwrap() {
            for target in package["targets"].as_array().unwrap() {
                let file = Path::new(target["src_path"].as_str().unwrap());
                roots.extend(file.strip_prefix(repository::root()).map(Path::to_owned));
            }
        }
    }
    roots
}

/// Targets of a Markdown file's links to files, with their lines.
fn links(source: &Source) -> Vec<(usize, PathBuf)> {
    let directory = Path::new(&source.path).parent().unwrap_or(Path::new(""));
    let mut found = Vec::new();
    let mut in_code = false;
    for (at, line) in source.text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for rest in line.split("](").skip(1) {
            let target = rest.split([')', ' ']).next().unwrap_or_default();
            let file = target.split('#').next().unwrap_or_default();
            if !file.is_empty() && !file.contains("://") && !file.starts_with("mailto:") {
                found.push((at + 1, normal(&directory.join(file))));
            }
        }
    }
    found
}

fn broken_links(source: &Source) -> Vec<String> {
    let broken = links(source).into_iter().filter(|(_, file)| !repository::root().join(file).exists());
    broken.map(|(at, file)| format!("{}:{at}: {}", source.path, file.display())).collect()
}

/// Where packages come from is each builder's own setting.
fn registries(source: &Source) -> Vec<String> {
    let name = Path::new(&source.path).file_name().and_then(|n| n.to_str()).unwrap_or_default();
    match name {
        "Cargo.lock" => lines(source, |line| {
            line.starts_with("source = ")
                && line != "source = \"registry+https://github.com/rust-lang/crates.io-index\""
        }),
        ".npmrc" | "pip.conf" | ".netrc" | "credentials.toml" => vec![source.path.clone()],
        "Cargo.toml" | "config.toml" => {
            let words =
                ["[source.", "[registries", "replace-with", "registry = ", "registry-index = ", "index = \"http"];
            lines(source, |line| {
                words.iter().any(|word| line.trim_start().starts_with(word) || line.contains(", registry = "))
            })
        }
        "package-lock.json" => {
            lines(source, |line| line.contains("\"resolved\"") && !line.contains("https://registry.npmjs.org/"))
        }
        _ => Vec::new(),
    }
}

#[test]
fn files_are_short() {
    none(&format!("files of over {LINES_MAX} lines"), everywhere(&rust(), too_long));
}

#[test]
fn lines_are_short() {
    none(&format!("lines of over {COLUMNS_MAX} characters"), everywhere(&rust(), too_wide));
}

#[test]
fn files_say_what_they_are() {
    none("files that do not begin with a //! comment", everywhere(&rust(), undocumented));
}

#[test]
fn names_say_something() {
    none("modules whose name says nothing", everywhere(&rust(), emptily_named));
}

#[test]
fn code_is_finished() {
    none("unfinished code", everywhere(&rust(), unfinished_code));
}

#[test]
fn every_file_belongs_to_a_target() {
    let all = sources();
    let roots = targets(&all);
    let rust: Vec<Source> = all.into_iter().filter(|s| s.path.ends_with(".rs")).collect();
    none("files that no target reaches", unreachable(&rust, &roots));
}

#[test]
fn time_and_chance_come_from_outside() {
    none("direct time or chance in the control plane", everywhere(&rust(), direct_time_or_chance));
}

#[test]
fn control_plane_crates_have_the_lints() {
    let shared = fs::canonicalize(repository::root().join("control-plane.clippy.toml")).unwrap();
    let missing = CONTROL_PLANE.iter().map(|name| format!("crates/{name}/clippy.toml")).filter(|link| {
        let there = fs::canonicalize(repository::root().join(link));
        there.is_ok_and(|target| target != shared) || fs::canonicalize(repository::root().join(link)).is_err()
    });
    none("control-plane crates without a link to control-plane.clippy.toml", missing.collect());
}

#[test]
fn the_project_speaks_only_of_itself() {
    none("places of where it was written", everywhere(&sources(), foreign_words));
}

#[test]
fn no_registry_is_configured() {
    none("registries in committed files", everywhere(&sources(), registries));
}

#[test]
fn links_lead_somewhere() {
    let pages: Vec<Source> = sources().into_iter().filter(|s| s.path.ends_with(".md")).collect();
    assert!(pages.iter().any(|s| s.path == "README.md"), "there is no README.md");
    none("broken links", everywhere(&pages, broken_links));
}

#[test]
fn every_page_is_linked() {
    let all = sources();
    let entries = all.iter().filter(|s| s.path == "README.md" || s.path == "ARCHITECTURE.md");
    let linked: BTreeSet<PathBuf> = entries.flat_map(links).map(|(_, file)| file).collect();
    let pages = all.iter().filter(|s| s.path.starts_with("docs/") && s.path.ends_with(".md"));
    let missing = pages.filter(|s| !linked.contains(Path::new(&s.path))).map(|s| s.path.clone());
    none("pages that neither README.md nor ARCHITECTURE.md links", missing.collect());
}

/// What the rules themselves find and let pass.
mod rules {
    use super::*;

    fn source(path: &str, text: impl Into<String>) -> Source {
        Source { path: path.into(), text: text.into() }
    }

    #[test]
    fn of_form() {
        assert!(too_long(&source("a.rs", "x\n".repeat(LINES_MAX))).is_empty());
        assert_eq!(too_long(&source("a.rs", "x\n".repeat(LINES_MAX + 1))), ["a.rs: 901 lines"]);
        for (text, findings) in [
            ("ä".repeat(COLUMNS_MAX), 0),
            (format!("x\n{}", "y".repeat(COLUMNS_MAX + 1)), 1),
            (format!("f(\"{}\\\"b\");", "y".repeat(COLUMNS_MAX)), 0),
            (format!("f(r#\"{}\"b\"#);", "y".repeat(COLUMNS_MAX)), 0),
            (format!("f(\"a\", {}, \"b\");", "y".repeat(COLUMNS_MAX)), 1),
            (format!("f(\"{}\");", "y".repeat(COLUMNS_WITH_LITERALS_MAX)), 1),
            (format!("f(r#\"\n{}\n\"#);", "y".repeat(COLUMNS_MAX + 1)), 0),
            (format!("f(r#\"\n\"#);\n{}", "y".repeat(COLUMNS_MAX + 1)), 1),
        ] {
            assert_eq!(too_wide(&source("a.rs", text.as_str())).len(), findings, "{text}");
        }
        assert!(undocumented(&source("a.rs", "#![allow(x)]\n\n//! What.\n")).is_empty());
        assert!(undocumented(&source("a/tests.rs", "use super::*;")).is_empty());
        assert_eq!(undocumented(&source("a.rs", "use x;\n//! Late.\n")), ["a.rs:1"]);
    }

    #[test]
    fn of_names() {
        for (path, text, findings) in [
            ("crates/api/src/meta/names.rs", "mod quantity;", 0),
            ("crates/api/src/utils.rs", "", 1),
            ("crates/api/src/common/mod.rs", "", 1),
            ("crates/api/src/lib.rs", "pub(crate) mod helpers;", 1),
            ("crates/api/src/lib.rs", "mod misc { }", 1),
            ("crates/api/src/lib.rs", "// mod utils;", 0),
        ] {
            assert_eq!(emptily_named(&source(path, text)).len(), findings, "{path} {text}");
        }
    }

    #[test]
    fn of_words() {
        for word in unfinished() {
            assert_eq!(
                unfinished_code(&source("a.rs", format!("fn f() {{\n    {word}")))[0],
                format!("a.rs:2: {word}")
            );
        }
        for word in foreign() {
            assert_eq!(foreign_words(&source("a.md", format!("see {word}x"))).len(), 1, "{word}");
        }
        assert!(foreign_words(&source("a.rs", "workers.library; let work = 1 / work; mirror")).is_empty());
    }

    #[test]
    fn of_time_and_chance() {
        let file = "crates/scheduler/src/run.rs";
        for (path, text, findings) in [
            (file, "let t = Instant::now();", 1),
            (file, "use tokio::time::{Duration,\n    Instant};\nlet t = Instant::now();", 0),
            (file, "use tokio::time::Instant;\nlet t = std::time::Instant::now();", 1),
            (file, "let t = tokio::time::Instant::now();", 0),
            (file, "// SystemTime::now is banned", 0),
            (file, "let t = SystemTime::now();\nlet r = rand::rng();", 2),
            (file, "let t = jiff::Timestamp::now();", 1),
            (file, "#[cfg(test)]\nmod tests {\n    let t = Timestamp::now();", 0),
            (file, "#[cfg(test)]\nuse x;\nlet t = Timestamp::now();", 1),
            ("crates/scheduler/src/run/tests.rs", "Timestamp::now()", 0),
            ("crates/scheduler/tests/run.rs", "Timestamp::now()", 0),
            ("crates/kubelet/src/lib.rs", "Instant::now()", 0),
        ] {
            assert_eq!(direct_time_or_chance(&source(path, text)).len(), findings, "{path}: {text}");
        }
    }

    #[test]
    fn of_reachability() {
        let files = [
            source("a/src/lib.rs", "mod b;\npub(crate) mod c;\n#[cfg(test)] mod t;\n#[path = \"odd/name.rs\"]\nmod d;"),
            source("a/src/b.rs", "mod inner;"),
            source("a/src/b/inner.rs", ""),
            source("a/src/c/mod.rs", "include!(\"../list.rs\");"),
            source("a/src/list.rs", ""),
            source("a/src/t.rs", ""),
            source("a/src/odd/name.rs", ""),
            source("a/src/d.rs", ""),
            source("a/src/inner.rs", ""),
        ];
        let roots = BTreeSet::from([PathBuf::from("a/src/lib.rs")]);
        assert_eq!(unreachable(&files, &roots), ["a/src/d.rs", "a/src/inner.rs"]);
    }

    #[test]
    fn of_pages() {
        let page =
            source("docs/a.md", "[x](../README.md#top) [y](https://e.org/z)\n```\n[n](o.md)\n```\n[b](b.md \"t\")");
        assert_eq!(links(&page), [(1, PathBuf::from("README.md")), (5, PathBuf::from("docs/b.md"))]);
        assert_eq!(broken_links(&source("x.md", "[x](no/such/file)")), ["x.md:1: no/such/file"]);
    }

    #[test]
    fn of_registries() {
        for (path, text, findings) in [
            ("Cargo.lock", "source = \"registry+https://github.com/rust-lang/crates.io-index\"", 0),
            ("Cargo.lock", "source = \"registry+https://mirror.example/index\"", 1),
            (".cargo/config.toml", "[source.crates-io]\nreplace-with = \"mirror\"", 2),
            (".cargo/config.toml", "[build]\ntarget = \"host-tuple\"", 0),
            ("a/.npmrc", "registry=https://example", 1),
        ] {
            assert_eq!(registries(&source(path, text)).len(), findings, "{path}: {text}");
        }
    }
}
