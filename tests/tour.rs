//! The README's tour does what it says: its commands are run one after the other, and must print what is shown, but for
//! names, addresses, ages and widths.

mod cluster;

use cluster::Cluster;
use std::path::Path;
use std::process::Command;

/// Commands of the tour with the lines shown after each.
fn steps(readme: &str) -> Vec<(String, Vec<String>)> {
    let tour = readme.split("\n## Five-minute tour").nth(1).expect("the README has a tour");
    let tour = tour.split("\n## ").next().unwrap();
    let mut steps: Vec<(String, Vec<String>)> = Vec::new();
    let mut inside = false;
    for line in tour.lines() {
        match line {
            "```console" => inside = true,
            "```" => inside = false,
            _ if !inside => {}
            _ => match line.strip_prefix("$ ") {
                Some(command) => steps.push((command.to_owned(), Vec::new())),
                None => steps.last_mut().expect("output follows a command").1.push(line.to_owned()),
            },
        }
    }
    steps
}

/// A line without what differs from run to run: words with digits in them, and the width of gaps.
fn stable(line: &str) -> String {
    let words = line.split_whitespace().map(|w| if w.contains(|c: char| c.is_ascii_digit()) { "…" } else { w });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn the_tour_of_the_readme() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let steps = steps(&readme);
    assert!(steps.len() > 15, "the tour was found");
    let cluster = Cluster::start();
    let tools = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(cluster::newest_kubectl(), tools.path().join("kubectl")).unwrap();
    let path = format!("{}:{}", tools.path().display(), std::env::var("PATH").unwrap());
    for (command, shown) in steps {
        let mut shell: Command = cluster.inside("sh");
        shell.args(["-c", &command]).env("KUBECONFIG", cluster.kubeconfig()).env("PATH", &path);
        let printed = cluster::run(&mut shell);
        let printed: Vec<String> = printed.lines().map(stable).collect();
        for line in shown {
            assert!(
                printed.contains(&stable(&line)),
                "$ {command}\nshould print {line:?}, prints:\n{}",
                printed.join("\n")
            );
        }
    }
}
