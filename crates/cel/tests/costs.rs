//! What expressions are estimated to cost, what they do cost, and what happens at the limit.

use std::sync::Arc;

use gantry_cel::{
    Activation, Authorizer, CostRange, Decision, Environment, EvalError, Expected, Limits, Node, Schema,
    SchemaProvider, SizeHints, SizeRange, Subject, Type, Unhinted, Value,
};
use serde_json::json;

/// Strings have up to twelve characters.
struct Short;

impl SizeHints for Short {
    fn size(&self, node: &Node<'_>) -> Option<SizeRange> {
        matches!(node.of, Type::String).then_some(SizeRange { min: 0, max: 12 })
    }
}

struct Allow;

impl Authorizer for Allow {
    fn check(&self, subject: &Subject, verb: &str) -> Decision {
        Decision { allowed: true, reason: format!("{verb} {subject:?}"), error: None }
    }

    fn service_account(&self, _: &str, _: &str) -> Arc<dyn Authorizer> {
        Arc::new(Allow)
    }
}

#[test]
fn estimates_and_costs_are_the_references() {
    let env = Environment::kubernetes()
        .variable("authorizer", Type::authorizer())
        .variable("list", Type::list(Type::Int))
        .variable("map", Type::map(Type::String, Type::String))
        .build();
    let activation = Activation::new()
        .with("authorizer", Value::authorizer(Arc::new(Allow)))
        .with("list", Value::list((0..5).map(Value::Int).collect()))
        .with("map", [("a".to_owned(), Value::from("b"))].into_iter().collect::<Value>());
    // The estimate does not know that literals of constants are worked out beforehand.
    let mut wrong = Vec::new();
    for (text, estimate, cost) in [
        ("true", (0, 0), 0),
        ("map.a", (2, 2), 2),
        ("has(map.a)", (1, 1), 1),
        ("map['a']", (2, 2), 2),
        ("map[map.a == 'b' ? 'a' : 'c']", (5, 5), 4),
        ("list[0] + list[1]", (5, 5), 5),
        ("list == list", (3, 1_844_674_407_370_955_266), 3),
        ("true || list[0] == 1", (0, 3), 0),
        ("1 in [1, 2, 3]", (13, 13), 0),
        ("'abc'.contains('b')", (1, 1), 1),
        ("[1, 2, 3, 4, 5].sum()", (15, 15), 5),
        ("[1, 2].all(i, i > 0)", (17, 21), 11),
        ("[1, 2].map(i, i)", (47, 47), 27),
        ("'ABCDEFGHIJ abcdefghij'.lowerAscii()", (3, 3), 3),
        ("authorizer.path('/healthz').check('get').allowed()", (350_003, 350_003), 350_003),
        ("cidr('192.168.0.0/24').containsIP(ip('192.168.0.1'))", (5, 8), 5),
    ] {
        let program = env.compile(text, Expected::Any).unwrap_or_else(|issues| panic!("{text}\n{}", issues[0]));
        let CostRange { min, max } = program.estimate(&Short);
        let outcome = program.run(&activation, Limits::default());
        assert!(outcome.result.is_ok(), "{text}: {:?}", outcome.result);
        if ((min, max), outcome.cost) != (estimate, cost) {
            wrong.push(format!("{text}: estimated {min}..{max}, cost {}", outcome.cost));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn limits_stop_an_evaluation() {
    let env = Environment::kubernetes().variable("list", Type::list(Type::Int)).build();
    let activation = Activation::new().with("list", Value::list((0..1000).map(Value::Int).collect()));
    let program = env.compile("list.all(i, list.all(j, i + j >= 0)) || true", Type::Bool).ok().unwrap();
    let outcome = program.run(&activation, Limits::PER_CALL);
    let error = outcome.result.unwrap_err();
    assert_eq!(error, EvalError::CostLimit);
    assert_eq!(error.to_string(), "operation cancelled: actual cost limit exceeded");
    assert_eq!(outcome.cost, gantry_cel::PER_CALL_LIMIT + 1);
    assert!(program.estimate(&Unhinted).max > gantry_cel::STATIC_COST_LIMIT);
}

#[test]
fn what_would_exhaust_memory_is_stopped() {
    let env = Environment::kubernetes().variable("s", Type::String).build();
    let activation = Activation::new().with("s", "x".repeat(1 << 20));
    for text in ["lists.range(9000000000)", "s.replace('', s)", "lists.range(1000).map(i, s).join()"] {
        let program = env.compile(text, Expected::Any).ok().unwrap();
        assert_eq!(program.eval(&activation, Limits::default()).unwrap_err(), EvalError::CostLimit, "{text}");
    }
    assert!(env.compile("s == 'a'", Type::Bool).ok().unwrap().mentions("s"));
    assert!(!env.compile("'s' == 'a'", Type::Bool).ok().unwrap().mentions("s"));
}

#[test]
fn growing_lists_is_cheap() {
    let env = Environment::kubernetes().build();
    let program = env.compile("lists.range(20000).map(i, i + 1).filter(i, i > 0).size()", Type::Int).ok().unwrap();
    let (value, _) = program.eval(&Activation::new(), Limits::default()).unwrap();
    assert!(value.equals(&Value::Int(20_000)).unwrap());
}

#[test]
fn schemas_bound_estimates() {
    let schema = json!({
        "type": "object",
        "properties": {
            "names": {"type": "array", "maxItems": 10, "items": {"type": "string", "maxLength": 5}},
            "free": {"type": "array", "items": {"type": "string"}}
        }
    });
    let schema = Arc::new(Schema::from_openapi(&schema, "selfType", false).unwrap());
    let provider = Arc::new(SchemaProvider::new().with("self", &schema));
    let env = Environment::kubernetes().variable("self", schema.cel_type()).provider(provider.clone()).build();
    let max = |text: &str| {
        let program = env.compile(text, Expected::Any).unwrap_or_else(|issues| panic!("{text}\n{}", issues[0]));
        program.estimate(&*provider).max
    };
    // Ten elements with up to twenty octets each.
    assert_eq!(max("self.names.all(n, n.startsWith('a'))"), 2 + 10 * (2 + 2 + 1) + 1);
    assert_eq!(max("self.names.all(n, n == 'abc')"), 2 + 10 * (2 + 2 + 1) + 1);
    assert!(max("self.free.all(n, self.free.all(m, m != n))") > gantry_cel::STATIC_COST_LIMIT);
}
