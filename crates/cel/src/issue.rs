//! What is wrong with an expression's text, with the place and a picture of it.

use std::fmt;
use std::sync::Arc;

/// The most problems that are listed for one expression.
pub(crate) const MAX_ISSUES: usize = 100;

/// A problem of an expression. Displays as `ERROR: <input>:1:5: message` with the line and a caret below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// What is wrong.
    pub message: String,
    /// The line, counted from 1; -1 when the problem is the expression as a whole.
    pub line: i32,
    /// The column in code points, counted from 0; -1 when the problem is the expression as a whole.
    pub column: i32,
    /// Which step found it.
    pub phase: Phase,
    source: Arc<Source>,
}

/// The steps that find problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The text is no expression.
    Parse,
    /// Names or types do not fit.
    Check,
    /// The expression results in something else than what is asked for.
    Output,
    /// The expression is fine, but a constant in it, such as a regular expression, is not.
    Plan,
}

/// The text of an expression with its lines.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Source {
    text: String,
    /// Offsets, in code points, of the first character of each line.
    lines: Vec<u32>,
}

impl Source {
    pub(crate) fn new(text: &str) -> Source {
        let mut lines = vec![0];
        let mut offset = 0;
        for c in text.chars() {
            offset += 1;
            if c == '\n' {
                lines.push(offset);
            }
        }
        Source { text: text.to_owned(), lines }
    }

    /// The line, from 1, and the column, from 0, of an offset in code points.
    pub(crate) fn position(&self, offset: u32) -> (i32, i32) {
        let line = self.lines.partition_point(|start| *start <= offset);
        let column = offset - self.lines[line - 1];
        (i32::try_from(line).unwrap_or(i32::MAX), i32::try_from(column).unwrap_or(i32::MAX))
    }
}

/// Problems found so far.
pub(crate) struct Issues {
    pub(crate) source: Arc<Source>,
    list: Vec<Issue>,
    count: usize,
}

impl Issues {
    pub(crate) fn new(text: &str) -> Issues {
        Issues { source: Arc::new(Source::new(text)), list: Vec::new(), count: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Adds a problem at an offset in code points; `None` is the expression as a whole.
    pub(crate) fn report(&mut self, phase: Phase, offset: Option<u32>, message: impl Into<String>) {
        self.count += 1;
        if self.count > MAX_ISSUES {
            return;
        }
        let (line, column) = offset.map_or((-1, -1), |offset| self.source.position(offset));
        self.list.push(Issue { message: message.into(), line, column, phase, source: self.source.clone() });
    }

    /// All problems in the order of their places.
    pub(crate) fn into_sorted(mut self) -> Vec<Issue> {
        self.list.sort_by_key(|issue| (issue.line, issue.column));
        self.list
    }
}

impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if matches!(self.phase, Phase::Output | Phase::Plan) {
            return f.write_str(&self.message);
        }
        write!(f, "ERROR: <input>:{}:{}: {}", self.line, self.column + 1, self.message)?;
        let Some(line) = usize::try_from(self.line - 1).ok().and_then(|n| self.source.text.split('\n').nth(n)) else {
            return Ok(());
        };
        if line.len() > 16_384 {
            return Ok(());
        }
        let line = line.replace('\t', " ");
        write!(f, "\n | {line}\n | ")?;
        let column = usize::try_from(self.column).unwrap_or(0);
        let mut chars = line.chars();
        for c in chars.by_ref().take(column) {
            f.write_str(if c.len_utf8() > 1 { "\u{ff0e}" } else { "." })?;
        }
        f.write_str(if chars.next().is_some_and(|c| c.len_utf8() > 1) { "\u{ff3e}" } else { "^" })
    }
}

impl std::error::Error for Issue {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carets_point_below_the_character() {
        let mut issues = Issues::new("a &&\n\tb.c");
        issues.report(Phase::Check, Some(7), "undefined field 'c'");
        let issue = issues.into_sorted().remove(0);
        assert_eq!(issue.to_string(), "ERROR: <input>:2:3: undefined field 'c'\n |  b.c\n | ..^");
    }
}
