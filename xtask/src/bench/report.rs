//! The table and the JSON file.

use super::Measurement;
use super::budgets::{BUDGETS, Better, Budget};
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// What a run has found.
pub struct Report {
    machine: Value,
    found: Vec<Measurement>,
    failed: Vec<(&'static str, String)>,
}

impl Report {
    /// An empty report of this machine.
    pub fn new(machine: Value) -> Self {
        Self { machine, found: Vec::new(), failed: Vec::new() }
    }

    /// Takes the outcome of a measure.
    pub fn add(&mut self, measure: &'static str, outcome: Result<Vec<Measurement>>) {
        match outcome {
            Ok(found) => {
                for one in &found {
                    let budget = Budget::of(one.id);
                    eprintln!("  {}: {} {}  {}", budget.what, figure(one.value), budget.unit, one.detail);
                }
                self.found.extend(found);
            }
            Err(error) => {
                eprintln!("  could not be measured: {error:#}");
                self.failed.push((measure, format!("{error:#}")));
            }
        }
    }

    /// Whether everything could be measured.
    pub fn complete(&self) -> bool {
        self.failed.is_empty()
    }

    /// Prints the table.
    pub fn print(&self) {
        print!("{}", self.table());
    }

    fn table(&self) -> String {
        let mut rows = vec![["measure", "result", "budget", "ratio", "upstream"].map(str::to_owned)];
        for budget in BUDGETS {
            for one in self.found.iter().filter(|m| m.id == budget.id) {
                let sign = if budget.better == Better::Less { "<" } else { "≥" };
                let ratio = budget.ratio(one.value);
                rows.push([
                    budget.what.to_owned(),
                    format!("{} {}", figure(one.value), budget.unit),
                    format!("{sign} {} {}", figure(budget.limit), budget.unit),
                    format!("{ratio:.2}{}", if ratio > 1.0 { " over" } else { "" }),
                    budget.upstream.to_owned(),
                ]);
            }
        }
        let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or_default();
        let widths = [width(0), width(1), width(2), width(3)];
        let mut text = String::new();
        for [what, result, budget, ratio, upstream] in &rows {
            let line = format!(
                "{what:<0$} | {result:>1$} | {budget:>2$} | {ratio:<3$} | {upstream}\n",
                widths[0], widths[1], widths[2], widths[3]
            );
            text.push_str(&line);
        }
        for (measure, error) in &self.failed {
            text.push_str(&format!("{measure}: could not be measured: {error}\n"));
        }
        text
    }

    /// The report as JSON.
    pub fn json(&self) -> Value {
        let mut results = Map::new();
        for one in &self.found {
            let budget = Budget::of(one.id);
            let value = json!({
                "what": budget.what,
                "value": one.value,
                "unit": budget.unit,
                "budget": budget.limit,
                "better": if budget.better == Better::Less { "less" } else { "more" },
                "ratio": budget.ratio(one.value),
                "upstream": budget.upstream,
                "detail": one.detail,
            });
            results.insert(one.id.to_owned(), value);
        }
        let failed: Map<String, Value> =
            self.failed.iter().map(|(name, error)| ((*name).to_owned(), error.as_str().into())).collect();
        json!({ "machine": self.machine, "results": results, "failed": failed })
    }

    /// Writes the JSON file.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let text = serde_json::to_string_pretty(&self.json())? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Three significant digits; whole numbers with separators from a thousand on.
fn figure(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude < 0.001 {
        return format!("{value}");
    }
    if magnitude < 1.0 {
        return format!("{value:.3}");
    }
    if magnitude < 10.0 {
        return format!("{value:.2}");
    }
    if magnitude < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && digit.is_ascii_digit() && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures() {
        for (value, text) in [
            (0.0, "0"),
            (0.27, "0.270"),
            (1.5, "1.50"),
            (42.0, "42.0"),
            (160.0, "160"),
            (1500.4, "1,500"),
            (1e6, "1,000,000"),
        ] {
            assert_eq!(figure(value), text);
        }
    }

    #[test]
    fn results_failures_and_ratios_are_all_there() {
        let mut report = Report::new(json!({ "cores": 2 }));
        let found = Measurement { id: "creates_1", value: 750.0, detail: json!({ "runs": [750.0] }) };
        report.add("creates", Ok(vec![found]));
        report.add("watch", Err(anyhow::anyhow!("connection refused").context("cannot watch")));
        let table = report.table();
        assert!(table.contains("750 /s") && table.contains("≥ 1,500 /s") && table.contains("2.00 over"), "{table}");
        assert!(table.contains("watch: could not be measured: cannot watch: connection refused"), "{table}");
        let json = report.json();
        assert_eq!(json["results"]["creates_1"]["ratio"], 2.0);
        assert_eq!(json["machine"]["cores"], 2);
        assert!(!report.complete());
    }
}
