//! Label selectors: the query-string syntax (`app=web,tier in (a,b),!legacy`), the typed `LabelSelector`, and the rules
//! for labels.

use crate::meta::field::{ErrorList, Path};
use crate::meta::names;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// How a requirement relates a key to values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    /// `key in (a,b)`.
    In,
    /// `key notin (a,b)`; also true where the key is absent.
    NotIn,
    /// `key=value`.
    Equals,
    /// `key==value`.
    DoubleEquals,
    /// `key!=value`; also true where the key is absent.
    NotEquals,
    /// `key`.
    Exists,
    /// `!key`.
    DoesNotExist,
    /// `key>n`, integers.
    GreaterThan,
    /// `key<n`, integers.
    LessThan,
}

impl Operator {
    const BINARY: &'static str = "in, notin, =, ==, !=, gt, lt";
}

/// One condition on a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// Relation.
    pub operator: Operator,
    /// Values, sorted, without duplicates; one for the comparing operators, none for existence.
    pub values: Vec<String>,
}

impl Requirement {
    /// Whether `labels` satisfy the condition.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.holds(labels.get(&self.key).map(String::as_str))
    }

    /// Whether the condition holds where the label has this value, or is absent.
    #[must_use]
    pub fn holds(&self, found: Option<&str>) -> bool {
        let listed = |v: &str| self.values.iter().any(|w| w == v);
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => found.is_some_and(listed),
            Operator::NotIn | Operator::NotEquals => !found.is_some_and(listed),
            Operator::Exists => found.is_some(),
            Operator::DoesNotExist => found.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                let actual = found.and_then(|v| v.parse::<i64>().ok());
                let bound = self.values.first().and_then(|v| v.parse::<i64>().ok());
                match (actual, bound) {
                    (Some(a), Some(b)) if self.operator == Operator::GreaterThan => a > b,
                    (Some(a), Some(b)) => a < b,
                    _ => false,
                }
            }
        }
    }

    /// Checks and builds a requirement; the error reads as upstream's aggregate of field errors.
    fn new(key: String, operator: Operator, values: BTreeSet<String>) -> Result<Self, String> {
        let mut errors = ErrorList::default();
        push_joined(&mut errors, &Path::new("key"), &key, names::qualified_name(&key));
        let path = Path::new("values");
        if matches!(operator, Operator::GreaterThan | Operator::LessThan) {
            for (i, v) in values.iter().enumerate().filter(|(_, v)| v.parse::<i64>().is_err()) {
                errors.invalid(&path.index(i), v.as_str(), "for 'Gt', 'Lt' operators, the value must be an integer");
            }
        }
        for (i, v) in values.iter().enumerate() {
            push_joined(&mut errors, &path.index(i).key(&key), v, names::label_value(v));
        }
        aggregate(&errors)?;
        Ok(Self { key, operator, values: values.into_iter().collect() })
    }
}

fn push_joined(errors: &mut ErrorList, path: &Path, value: &str, messages: Vec<String>) {
    if !messages.is_empty() {
        errors.invalid(path, value, &messages.join("; "));
    }
}

fn aggregate(errors: &ErrorList) -> Result<(), String> {
    let texts: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
    match texts.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (k, v) = (&self.key, self.values.join(","));
        match self.operator {
            Operator::In => write!(f, "{k} in ({v})"),
            Operator::NotIn => write!(f, "{k} notin ({v})"),
            Operator::Equals => write!(f, "{k}={v}"),
            Operator::DoubleEquals => write!(f, "{k}=={v}"),
            Operator::NotEquals => write!(f, "{k}!={v}"),
            Operator::Exists => write!(f, "{k}"),
            Operator::DoesNotExist => write!(f, "!{k}"),
            Operator::GreaterThan => write!(f, "{k}>{v}"),
            Operator::LessThan => write!(f, "{k}<{v}"),
        }
    }
}

/// A conjunction of conditions on labels. The default selects everything; see [`Selector::nothing`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl Selector {
    /// Selects everything.
    #[must_use]
    pub fn everything() -> Self {
        Self::default()
    }

    /// Selects nothing, as an absent `LabelSelector` does.
    #[must_use]
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// Selects objects that have all of these labels (a Service's or ReplicationController's `spec.selector`).
    /// Values are not checked.
    #[must_use]
    pub fn from_set(set: &Labels) -> Self {
        let requirements = set
            .iter()
            .map(|(k, v)| Requirement { key: k.clone(), operator: Operator::Equals, values: vec![v.clone()] })
            .collect();
        Self { requirements, nothing: false }
    }

    /// Parses the value of the `labelSelector` query parameter.
    ///
    /// # Errors
    /// The sentence upstream answers, e.g. `found '!', expected: identifier`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut requirements = Parser { tokens: scan(text), position: 0 }.parse()?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// From the typed selector of workloads. None selects nothing, an empty one everything.
    ///
    /// # Errors
    /// `"X" is not a valid label selector operator`, or upstream's text for a bad key or value.
    pub fn from_label_selector(selector: Option<&LabelSelector>) -> Result<Self, String> {
        let Some(selector) = selector else { return Ok(Self::nothing()) };
        let mut requirements = Vec::new();
        for (k, v) in selector.match_labels.iter().flatten() {
            requirements.push(Requirement::new(k.clone(), Operator::Equals, BTreeSet::from([v.clone()]))?);
        }
        for e in selector.match_expressions.iter().flatten() {
            let operator = match e.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(format!("{other:?} is not a valid label selector operator")),
            };
            let values: BTreeSet<String> = e.values.iter().flatten().cloned().collect();
            match operator {
                Operator::In | Operator::NotIn if values.is_empty() => {
                    return Err(
                        "values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty".into()
                    );
                }
                Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                    return Err("values: Invalid value: values set must be empty for exists and does not exist".into());
                }
                _ => {}
            }
            requirements.push(Requirement::new(e.key.clone(), operator, values)?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// Whether everything is selected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// Whether it is known that nothing is selected.
    #[must_use]
    pub fn selects_nothing(&self) -> bool {
        self.nothing
    }

    /// The conditions, sorted by key.
    #[must_use]
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether `labels` satisfy every condition.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(labels))
    }

    /// As [`Selector::matches`] for the optional labels of object metadata.
    #[must_use]
    pub fn matches_optional(&self, labels: Option<&Labels>) -> bool {
        match labels {
            Some(labels) => self.matches(labels),
            None => self.matches(&Labels::new()),
        }
    }

    /// Adds a condition.
    pub fn add(&mut self, requirement: Requirement) {
        self.requirements.push(requirement);
        self.requirements.sort_by(|a, b| a.key.cmp(&b.key));
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            write!(f, "{}{r}", if i > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

/// A typed selector in the form `kubectl` and status fields show it; `<none>` for none, `<error>` for an invalid one.
#[must_use]
pub fn format_label_selector(selector: Option<&LabelSelector>) -> String {
    match Selector::from_label_selector(selector) {
        Ok(s) if s.to_string().is_empty() => "<none>".to_owned(),
        Ok(s) => s.to_string(),
        Err(_) => "<error>".to_owned(),
    }
}

/// Labels as `kubectl` prints them: `a=1,b=2`, `<none>` for none.
#[must_use]
pub fn format_labels(labels: Option<&Labels>) -> String {
    let parts: Vec<String> = labels.into_iter().flatten().map(|(k, v)| format!("{k}={v}")).collect();
    if parts.is_empty() { "<none>".to_owned() } else { parts.join(",") }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    In,
    NotIn,
    Open,
    Close,
    Comma,
    Not,
    Equals,
    DoubleEquals,
    NotEquals,
    Greater,
    Less,
    Error(String),
    End,
}

impl Token {
    fn symbol(text: &str) -> Option<Self> {
        Some(match text {
            "(" => Token::Open,
            ")" => Token::Close,
            "," => Token::Comma,
            "!" => Token::Not,
            "=" => Token::Equals,
            "==" => Token::DoubleEquals,
            "!=" => Token::NotEquals,
            ">" => Token::Greater,
            "<" => Token::Less,
            _ => return None,
        })
    }

    fn literal(&self) -> &str {
        match self {
            Token::Word(w) | Token::Error(w) => w,
            Token::In => "in",
            Token::NotIn => "notin",
            Token::Open => "(",
            Token::Close => ")",
            Token::Comma => ",",
            Token::Not => "!",
            Token::Equals => "=",
            Token::DoubleEquals => "==",
            Token::NotEquals => "!=",
            Token::Greater => ">",
            Token::Less => "<",
            Token::End => "",
        }
    }

    /// The word this token is where a value or key may stand; `in` and `notin` are words there.
    fn word(&self) -> Option<&str> {
        match self {
            Token::Word(_) | Token::In | Token::NotIn => Some(self.literal()),
            _ => None,
        }
    }
}

fn scan(text: &str) -> Vec<Token> {
    const SPECIAL: &str = "=!(),><";
    let blank = |c: char| matches!(c, ' ' | '\t' | '\r' | '\n');
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches(blank);
        let Some(first) = rest.chars().next().filter(|c| *c != '\0') else { break };
        if SPECIAL.contains(first) {
            // The longest operator wins; every symbol is one or two bytes.
            let two = rest.get(..2).and_then(Token::symbol);
            let one = rest.get(..1).and_then(Token::symbol);
            let (token, length) = match (two, one) {
                (Some(t), _) => (t, 2),
                (None, Some(t)) => (t, 1),
                (None, None) => (Token::Error(format!("error expected: keyword found '{first}'")), 1),
            };
            tokens.push(token);
            rest = &rest[length..];
        } else {
            let end = rest.find(|c| SPECIAL.contains(c) || blank(c) || c == '\0').unwrap_or(rest.len());
            tokens.push(match &rest[..end] {
                "in" => Token::In,
                "notin" => Token::NotIn,
                word => Token::Word(word.to_owned()),
            });
            rest = &rest[end..];
        }
    }
    tokens.push(Token::End);
    tokens
}

struct Parser {
    tokens: Vec<Token>,
    position: usize,
}

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.position).unwrap_or(&Token::End)
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.position += 1;
        token
    }

    fn parse(&mut self) -> Result<Vec<Requirement>, String> {
        let mut found = Vec::new();
        loop {
            let token = self.peek();
            if *token == Token::End {
                return Ok(found);
            }
            if token.word().is_none() && *token != Token::Not {
                return Err(format!("found '{}', expected: !, identifier, or 'end of string'", token.literal()));
            }
            found.push(self.requirement().map_err(|e| format!("unable to parse requirement: {e}"))?);
            match self.next() {
                Token::End => return Ok(found),
                Token::Comma => {
                    let after = self.peek();
                    if after.word().is_none() && *after != Token::Not {
                        return Err(format!("found '{}', expected: identifier after ','", after.literal()));
                    }
                }
                other => return Err(format!("found '{}', expected: ',' or 'end of string'", other.literal())),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let mut token = self.next();
        let negated = token == Token::Not;
        if negated {
            token = self.next();
        }
        let Some(key) = token.word() else {
            return Err(format!("found '{}', expected: identifier", token.literal()));
        };
        let bad = names::qualified_name(key);
        if !bad.is_empty() {
            return Err(format!("<nil>: Invalid value: {key:?}: {}", bad.join("; ")));
        }
        if negated {
            return Requirement::new(key.to_owned(), Operator::DoesNotExist, BTreeSet::new());
        }
        if matches!(self.peek(), Token::End | Token::Comma) {
            return Requirement::new(key.to_owned(), Operator::Exists, BTreeSet::new());
        }
        let operator = match self.next() {
            Token::In => Operator::In,
            Token::NotIn => Operator::NotIn,
            Token::Equals => Operator::Equals,
            Token::DoubleEquals => Operator::DoubleEquals,
            Token::NotEquals => Operator::NotEquals,
            Token::Greater => Operator::GreaterThan,
            Token::Less => Operator::LessThan,
            other => return Err(format!("found '{}', expected: {}", other.literal(), Operator::BINARY)),
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => self.exact_value()?,
        };
        Requirement::new(key.to_owned(), operator, values)
    }

    fn exact_value(&mut self) -> Result<BTreeSet<String>, String> {
        if matches!(self.peek(), Token::End | Token::Comma) {
            return Ok(BTreeSet::from([String::new()]));
        }
        let token = self.next();
        match token.word() {
            Some(word) => Ok(BTreeSet::from([word.to_owned()])),
            None => Err(format!("found '{}', expected: identifier", token.literal())),
        }
    }

    fn values(&mut self) -> Result<BTreeSet<String>, String> {
        let open = self.next();
        if open != Token::Open {
            return Err(format!("found '{}' expected: '('", open.literal()));
        }
        let first = self.peek().clone();
        if first == Token::Close {
            self.next();
            return Ok(BTreeSet::from([String::new()]));
        }
        if first.word().is_none() && first != Token::Comma {
            return Err(format!("found '{}', expected: ',', ')' or identifier", first.literal()));
        }
        let found = self.value_list()?;
        match self.next() {
            Token::Close => Ok(found),
            _ => Err(format!("found '{}', expected: ')'", first.literal())),
        }
    }

    /// The values between the parentheses; empty ones, as in `(a,,b)`, are values too.
    fn value_list(&mut self) -> Result<BTreeSet<String>, String> {
        let mut found = BTreeSet::new();
        loop {
            let token = self.next();
            if let Some(word) = token.word() {
                found.insert(word.to_owned());
                match self.peek() {
                    Token::Comma => {}
                    Token::Close => return Ok(found),
                    other => return Err(format!("found '{}', expected: ',' or ')'", other.literal())),
                }
            } else if token == Token::Comma {
                if found.is_empty() {
                    found.insert(String::new());
                }
                match self.peek() {
                    Token::Close => {
                        found.insert(String::new());
                        return Ok(found);
                    }
                    Token::Comma => {
                        found.insert(String::new());
                    }
                    _ => {}
                }
            } else {
                return Err(format!("found '{}', expected: ',', or identifier", token.literal()));
            }
        }
    }
}

/// Field errors of an object's or template's labels.
#[must_use]
pub fn validate_labels(labels: Option<&Labels>, path: &Path) -> ErrorList {
    let mut errors = ErrorList::default();
    for (k, v) in labels.into_iter().flatten() {
        validate_label_key(k, path, &mut errors);
        names::push_invalid(&mut errors, path, v, &names::label_value(v));
    }
    errors
}

/// Adds the errors of a label key.
pub fn validate_label_key(key: &str, path: &Path, errors: &mut ErrorList) {
    names::push_invalid(errors, path, key, &names::qualified_name(key));
}

/// What [`validate_label_selector`] lets pass.
#[derive(Clone, Copy, Debug, Default)]
pub struct SelectorOptions {
    /// Accept label values that no object can have (what older stored objects may contain).
    pub allow_invalid_values: bool,
}

/// Field errors of a typed label selector.
#[must_use]
pub fn validate_label_selector(selector: Option<&LabelSelector>, options: SelectorOptions, path: &Path) -> ErrorList {
    let mut errors = ErrorList::default();
    let Some(selector) = selector else { return errors };
    errors.extend(validate_labels(selector.match_labels.as_ref(), &path.child("matchLabels")));
    for (i, expression) in selector.match_expressions.iter().flatten().enumerate() {
        validate_requirement(expression, options, &path.child("matchExpressions").index(i), &mut errors);
    }
    errors
}

fn validate_requirement(r: &LabelSelectorRequirement, options: SelectorOptions, path: &Path, errors: &mut ErrorList) {
    let values = r.values.as_deref().unwrap_or_default();
    match r.operator.as_str() {
        "In" | "NotIn" if values.is_empty() => {
            errors.required(&path.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "In" | "NotIn" => {}
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            errors
                .forbidden(&path.child("values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
        }
        "Exists" | "DoesNotExist" => {}
        other => errors.invalid(&path.child("operator"), other, "not a valid selector operator"),
    }
    validate_label_key(&r.key, &path.child("key"), errors);
    if !options.allow_invalid_values {
        for (i, v) in values.iter().enumerate() {
            names::push_invalid(errors, &path.child("values").index(i), v, &names::label_value(v));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn parses_prints_and_matches() {
        let l = labels(&[("app", "web"), ("tier", "a"), ("n", "5"), ("in", "notin")]);
        let cases = [
            ("", "", true),
            ("app=web", "app=web", true),
            ("app == web , tier", "app==web,tier", true),
            ("tier in (b, a)", "tier in (a,b)", true),
            ("tier notin (a)", "tier notin (a)", false),
            ("missing notin (a)", "missing notin (a)", true),
            ("!missing,app!=db", "app!=db,!missing", true),
            ("n>4,n<6", "n>4,n<6", true),
            ("n>5", "n>5", false),
            ("app=", "app=", false),
            ("in in (notin)", "in in (notin)", true),
            ("x in (,)", "x in ()", false),
            ("x in (a,,b)", "x in (,a,b)", false),
        ];
        for (text, printed, want) in cases {
            let s = Selector::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(s.to_string(), printed);
            assert_eq!(s.matches(&l), want, "{text}");
        }
        assert!(!Selector::nothing().matches(&l));
    }

    #[test]
    fn refuses_with_upstreams_words() {
        let cases = [
            ("a,", "found '', expected: identifier after ','"),
            ("=a", "found '=', expected: !, identifier, or 'end of string'"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("a=b c", "found 'c', expected: ',' or 'end of string'"),
            (
                "a>b",
                "unable to parse requirement: values[0]: Invalid value: \"b\": for 'Gt', 'Lt' operators, the value must \
              be an integer",
            ),
            (
                "a=,b=-",
                "unable to parse requirement: values[0][b]: Invalid value: \"-\": a valid label must be an empty \
              string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric \
              character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is \
              '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
            ),
        ];
        for (text, want) in cases {
            assert_eq!(Selector::parse(text).unwrap_err(), want, "{text}");
        }
        assert!(
            Selector::parse("/x").unwrap_err().starts_with(
                "unable to parse requirement: <nil>: Invalid value: \"/x\": prefix part must be non-empty"
            )
        );
    }

    #[test]
    fn typed_selectors() {
        let s = LabelSelector {
            match_labels: Some(labels(&[("a", "1")])),
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: "b".into(),
                operator: "In".into(),
                values: Some(vec!["y".into(), "x".into()]),
            }]),
        };
        assert_eq!(format_label_selector(Some(&s)), "a=1,b in (x,y)");
        assert_eq!(format_label_selector(Some(&LabelSelector::default())), "<none>");
        assert!(Selector::from_label_selector(None).unwrap().selects_nothing());
        let bad = LabelSelector {
            match_labels: None,
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: "b".into(),
                operator: "In".into(),
                values: None,
            }]),
        };
        let errors =
            validate_label_selector(Some(&bad), SelectorOptions::default(), &Path::new("spec").child("selector"));
        assert_eq!(
            errors.0[0].to_string(),
            "spec.selector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'"
        );
    }

    #[test]
    fn arbitrary_text_never_panics_and_selectors_read_back() {
        let entropy = crate::entropy::Entropy::seeded(11);
        let words =
            ["a", "b.c/d", "in", "notin", "(", ")", ",", "!", "=", "==", "!=", ">", "<", "1", " ", "é", "\0", "-"];
        let mut parsed = 0;
        for _ in 0..20_000 {
            let pick = |_| words[usize::try_from(entropy.below(words.len() as u64)).unwrap()];
            let text: String = (0..1 + entropy.below(8)).map(pick).collect();
            if let Ok(s) = Selector::parse(&text) {
                parsed += 1;
                assert_eq!(Selector::parse(&s.to_string()).as_ref(), Ok(&s), "{text:?} printed as {s}");
            }
        }
        assert!(parsed > 100, "only {parsed} of the texts were selectors");
    }
}
