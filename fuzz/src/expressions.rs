//! Expressions in the Common Expression Language.

use gantry_cel::{Activation, Environment, Expected, Library, Limits, Type, Unhinted, Value};
use serde_json::json;
use std::cell::OnceCell;
use std::sync::Arc;

pub(crate) const PIECES: &[&str] = &[
    "self",
    "oldSelf",
    "s",
    "l",
    "m",
    ".all(i, ",
    ".exists(i, ",
    ".exists_one(i, ",
    ".map(i, ",
    ".filter(i, ",
    ".all(i, v, ",
    ".transformMap(k, v, ",
    "cel.bind(x, ",
    ".?a",
    "[?0]",
    "optional.of(",
    ".orValue(",
    "has(self.a)",
    ".matches('[a-z]+')",
    ".findAll('(a|b)*')",
    ".format([1])",
    "'%s %d %.3e %x'",
    ".split(',')",
    ".replace('a', 'b')",
    ".substring(1)",
    "quantity('1Gi')",
    ".isGreaterThan(",
    "ip('10.0.0.1')",
    "cidr('10.0.0.0/8')",
    "url('https://a/b?c')",
    "semver('1.2.3')",
    "duration('1s')",
    "timestamp('2026-01-01T00:00:00Z')",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551615u",
    "1e308",
    "b'\\xff'",
    "r'\\d'",
    "\"\"\"",
    "in",
    "&&",
    "||",
    "?",
    ":",
    "==",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "Object{spec: Object.spec{}}",
];

/// An expression: it is refused with a reason, or evaluated within its limit and the same way each time. It may cost more
/// than its estimate, which upstream makes without the fields of what has no known type.
pub(crate) fn expression(data: &[u8]) {
    thread_local! {
        static KEPT: OnceCell<(Environment, Activation)> = const { OnceCell::new() };
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    KEPT.with(|kept| {
        let (environment, variables) = kept.get_or_init(surroundings);
        let program = match environment.compile(text, Expected::Any) {
            Ok(program) => program,
            Err(issues) => {
                assert!(!issues.is_empty() && issues.iter().all(|i| !i.to_string().is_empty()), "{text}");
                return;
            }
        };
        let estimate = program.estimate(&Unhinted);
        assert!(estimate.min <= estimate.max, "{text}: {estimate:?}");
        let once = program.run(variables, Limits::PER_CALL);
        let twice = program.run(variables, Limits::PER_CALL);
        assert_eq!(once.cost, twice.cost, "{text}");
        match (once.result, twice.result) {
            (Ok(one), Ok(other)) => assert_eq!(one.type_name(), other.type_name(), "{text}"),
            (Err(one), Err(other)) => assert_eq!(one.to_string(), other.to_string(), "{text}"),
            (one, other) => panic!("{text}: {one:?}, then {other:?}"),
        }
    });
}

fn surroundings() -> (Environment, Activation) {
    let document = json!({
        "a": 1, "b": [1, 2.5, "x", null, true], "c": {"d": "2026-01-01T00:00:00Z", "e": "1Gi"}, "names": ["a", "b", "a"],
    });
    let environment = Environment::kubernetes()
        .library(Library::Math)
        .library(Library::JsonPatch)
        .variable("self", Type::Dyn)
        .variable("oldSelf", Type::Dyn)
        .variable("s", Type::String)
        .variable("l", Type::list(Type::Int))
        .variable("m", Type::map(Type::String, Type::Dyn))
        .build();
    let variables = Activation::new()
        .with("self", Value::from_json(Arc::new(document.clone())))
        .with("oldSelf", Value::from_json(Arc::new(document)))
        .with("s", "text é")
        .with("l", Value::list(vec![Value::Int(1), Value::Int(i64::MIN)]))
        .with("m", [("a".to_owned(), Value::Double(f64::NAN))].into_iter().collect::<Value>());
    (environment, variables)
}

pub(crate) fn expression_seeds() -> Vec<Vec<u8>> {
    [
        "self.a > 0 && self.names.all(n, n.matches('^[a-z]+$')) || has(self.c.d)",
        "l.map(i, i * 2).filter(i, i > 0).sum() == 2 ? s.upperAscii() : string(size(m))",
        "quantity(self.c.e).isGreaterThan(quantity('1Mi')) && ip('::1').isLoopback() && cidr('10.0.0.0/8').containsIP('10.1.2.3')",
        "optional.of(self).?c.?d.orValue('x').split('-').exists(p, int(p) > 2000)",
        "url('https://example.com:80/p?q=1').getHost() + '%s %d'.format([s, 1])",
        "timestamp(self.c.d).getFullYear() > 2000 && duration('90s').getMinutes() == 1",
        "m.transformMap(k, v, type(v)) != {} && [1, 2, 2].isSorted() && semver('1.2.3').major() == 1",
        "cel.bind(x, s.find('[a-z]+'), x + x) in ['texttext'] && math.greatest(1, 2) == 2",
        "b'abc\\xff' == bytes('x') || '\\u00e9' < \"\"\"q\"\"\" || 0x1F == 31 || 1u + 2u > 2u",
    ]
    .map(|s| s.into())
    .into()
}
