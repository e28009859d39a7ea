//! Random expressions are refused or evaluated, but never bring anything down.

use gantry_cel::{Activation, Environment, Expected, Library, Limits, Type, Unhinted, Value};

/// A sequence of numbers that is the same in every run.
struct Sequence(u64);

impl Sequence {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % below
    }
}

const PIECES: [&str; 72] = [
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ".",
    ",",
    "?",
    ":",
    "+",
    "-",
    "*",
    "/",
    "%",
    "!",
    "==",
    "!=",
    "<",
    "<=",
    ">",
    ">=",
    "&&",
    "||",
    " in ",
    "1",
    "0",
    "-1",
    "2u",
    "1.5",
    "'a'",
    "'[0-9]'",
    "b'x'",
    "r'\\d'",
    "\"\"\"q\"\"\"",
    "true",
    "null",
    "x",
    "s",
    "l",
    "m",
    "i",
    "int(",
    "string(",
    "size(",
    "type(",
    "has(",
    ".all(i, ",
    ".map(i, ",
    ".filter(i, ",
    ".exists(i, ",
    ".transformMap(k, v, ",
    ".?a",
    "[?0]",
    "optional.of(",
    ".orValue(",
    ".matches(",
    ".find(",
    ".split(",
    ".format([",
    ".substring(",
    "quantity(",
    "ip(",
    "cidr(",
    "url(",
    "semver(",
    "duration('1s')",
    "timestamp(",
    ".sortBy(i, ",
    "math.greatest(",
    "`",
    "😁",
];

#[test]
fn random_expressions_do_no_harm() {
    let env = Environment::kubernetes()
        .library(Library::Math)
        .library(Library::JsonPatch)
        .homogeneous_literals(false)
        .variable("x", Type::Dyn)
        .variable("s", Type::String)
        .variable("l", Type::list(Type::Int))
        .variable("m", Type::map(Type::String, Type::Dyn))
        .build();
    let activation = Activation::new()
        .with("x", Value::from("x"))
        .with("s", "text é")
        .with("l", Value::list(vec![Value::Int(1), Value::Int(i64::MIN)]))
        .with("m", [("a".to_owned(), Value::Double(f64::NAN))].into_iter().collect::<Value>());
    let mut sequence = Sequence(1);
    let mut compiled = 0;
    for _ in 0..60_000 {
        let length = 1 + sequence.next(9);
        let text: String = (0..length).map(|_| PIECES[sequence.next(PIECES.len())]).collect();
        // Half of them get the brackets that they miss.
        let closed = text.clone() + &closing(&text);
        let text = if sequence.next(2) == 0 { text } else { closed };
        match env.compile(&text, Expected::Any) {
            Ok(program) => {
                compiled += 1;
                let estimate = program.estimate(&Unhinted);
                assert!(estimate.min <= estimate.max, "{text}: {estimate:?}");
                let _ = program.run(&activation, Limits::PER_CALL);
            }
            Err(issues) => assert!(!issues.iter().any(|issue| issue.to_string().is_empty()), "{text}"),
        }
    }
    assert!(compiled > 1000, "only {compiled} expressions were any");
}

/// The brackets that close what a text opens.
fn closing(text: &str) -> String {
    let mut open = Vec::new();
    for c in text.chars() {
        match c {
            '(' => open.push(')'),
            '[' => open.push(']'),
            '{' => open.push('}'),
            ')' | ']' | '}' => {
                open.pop();
            }
            _ => {}
        }
    }
    open.into_iter().rev().collect()
}
