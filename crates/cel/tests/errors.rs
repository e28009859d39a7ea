//! What is said about expressions that are wrong, and about evaluations that fail.

use gantry_cel::{Activation, Environment, Expected, Library, Limits, Type, Value};

fn environment() -> Environment {
    Environment::kubernetes().variable("x", Type::Dyn).variable("s", Type::String).build()
}

/// The first problem, with its picture.
fn problem(text: &str) -> String {
    match environment().compile(text, Expected::Any) {
        Ok(_) => panic!("{text} compiles"),
        Err(issues) => issues[0].to_string(),
    }
}

fn failure(text: &str) -> String {
    let program = environment().compile(text, Expected::Any).unwrap_or_else(|issues| panic!("{text}\n{}", issues[0]));
    let activation = Activation::new().with("x", Value::from("text")).with("s", "a");
    match program.eval(&activation, Limits::default()) {
        Ok((value, _)) => panic!("{text}: {value:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn syntax_errors() {
    let operand = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, \
                   BYTES, IDENTIFIER}";
    assert_eq!(
        problem("1 +"),
        format!("ERROR: <input>:1:4: Syntax error: mismatched input '<EOF>' expecting {operand}\n | 1 +\n | ...^")
    );
    for (text, message) in [
        ("s @ s", "1:3: Syntax error: token recognition error at: '@'"),
        ("(s", "1:3: Syntax error: missing ')' at '<EOF>'"),
        ("s s", "1:3: Syntax error: extraneous input 's' expecting <EOF>"),
        ("s s s", "1:3: Syntax error: mismatched input 's' expecting <EOF>"),
        ("s.true", "1:3: Syntax error: mismatched input 'true' expecting IDENTIFIER"),
        ("{s}", "1:3: Syntax error: mismatched input '}' expecting ':'"),
        ("for", "1:1: reserved identifier: for"),
        ("99999999999999999999", "1:1: invalid int literal"),
        ("has(s)", "1:5: invalid argument to has() macro"),
        ("[1].all(1, true)", "1:9: argument must be a simple name"),
        ("[1].map(1, 2)", "1:9: argument is not an identifier"),
        ("[1].all(a, a, true)", "1:12: duplicate variable name: a"),
        ("[1].all(__result__, true)", "1:9: iteration variable overwrites accumulator variable"),
    ] {
        let first = problem(text);
        assert_eq!(first.lines().next(), Some(format!("ERROR: <input>:{message}").as_str()), "{text}");
    }
    let deep = format!("{}1{}", "(".repeat(300), ")".repeat(300));
    assert_eq!(problem(&deep), "ERROR: <input>:-1:0: expression recursion limit exceeded: 250");
    let long = vec!["1"; 300].join(" + ");
    assert_eq!(problem(&long), "ERROR: <input>:-1:0: max recursion depth exceeded");
    // What may nest does not exhaust the stack.
    for (open, close) in [("(", ")"), ("[", "]"), ("size([", "])"), ("[1].map(x, ", ")"), ("{'a': ", "}"), ("!(", ")")]
    {
        let nested = format!("{}true{}", open.repeat(200), close.repeat(200));
        let program = environment().compile(&nested, Expected::Any);
        if let Ok(program) = program {
            let _ = program.run(&Activation::new(), Limits::PER_CALL);
            assert!(program.estimate(&gantry_cel::Unhinted).max < u64::MAX || open.contains("map"));
        }
    }
    assert!(environment().compile(&vec!["true"; 5000].join(" || "), Expected::Any).is_ok());
}

#[test]
fn type_errors() {
    assert_eq!(
        problem("s == 'a' && missing > 1"),
        "ERROR: <input>:1:13: undeclared reference to 'missing' (in container '')\n | s == 'a' && missing > 1\n | \
         ............^"
    );
    for (text, message) in [
        ("1 + 'a'", "1:3: found no matching overload for '_+_' applied to '(int, string)'"),
        ("s.contains(1)", "1:11: found no matching overload for 'contains' applied to 'string.(int)'"),
        ("s.nothing()", "1:10: undeclared reference to 'nothing' (in container '')"),
        ("s.field", "1:2: type 'string' does not support field selection"),
        ("s && true", "1:1: expected type 'bool' but found 'string'"),
        ("[1, 'a']", "1:5: expected type 'int' but found 'string'"),
        (
            "1.all(i, true)",
            "1:1: expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)",
        ),
        ("duration('x') == duration('1s')", "1:10: invalid duration argument"),
        ("timestamp('x') == timestamp(1)", "1:11: invalid timestamp argument"),
        ("s.matches('[')", "1:11: invalid matches argument"),
        (
            "'%d'.format(['a'])",
            "1:14: error during formatting: decimal clause can only be used on integers, was given string",
        ),
        ("'%s'.format([1, 2])", "1:12: too many arguments supplied to string.format (expected 1, got 2)"),
    ] {
        let first = problem(text);
        assert_eq!(first.lines().next(), Some(format!("ERROR: <input>:{message}").as_str()), "{text}");
    }
    let issues = environment().compile("1", Type::Bool).err().unwrap();
    assert_eq!(issues[0].to_string(), "must evaluate to bool");
    let issues = environment().compile("s.find('[') == ''", Expected::Any).err().unwrap();
    assert_eq!(issues[0].to_string(), "error parsing regexp: missing closing ]: `[`");
}

#[test]
fn failures() {
    for (text, message) in [
        ("{'a': 1}['b'] == 1", "no such key: b"),
        ("[1][x.size()]", "index out of bounds: 4"),
        ("x.field", "no such key: field"),
        ("1 / (s.size() - 1)", "division by zero"),
        ("1 % (s.size() - 1)", "modulus by zero"),
        ("9223372036854775807 + s.size()", "integer overflow"),
        ("0u - uint(s.size())", "unsigned integer overflow"),
        ("int(9e30 * double(s.size()))", "integer overflow"),
        ("int(s)", "type conversion error from 'string' to 'int'"),
        ("duration(s)", "type conversion error from 'string' to 'google.protobuf.Duration'"),
        ("x + 1", "no such overload"),
        ("optional.none().value()", "optional.none() dereference"),
        ("[1].slice(0, 5)", "cannot slice(0, 5), list is length 1"),
        ("lists.range(0).max()", "max called on empty list"),
        ("s.charAt(4)", "index out of range: 4"),
        ("s.substring(3, 1)", "invalid substring range. start: 3, end: 1"),
        ("quantity(s)", "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"),
        ("ip(s)", "IP Address \"a\" parse error during conversion from string: ParseAddr(\"a\"): unable to parse IP"),
        ("url('%zz')", "URL parse error during conversion from string: parse \"%zz\": invalid URI for request"),
        (
            "cidr(s)",
            "network address parse error during conversion from string: network address parse error during conversion \
             from string: netip.ParsePrefix(\"a\"): no '/'",
        ),
        ("semver(s)", "No Major.Minor.Patch elements found"),
        ("quantity('0.5').asInteger()", "cannot convert value to integer"),
        ("timestamp('2020-01-01T00:00:00Z').getHours('No/Where')", "unknown time zone No/Where"),
        ("timestamp('9999-12-31T23:59:59Z') + duration('1s')", "timestamp overflow"),
        ("{'a': 1}.transformMapEntry(k, v, {'b': 1}).transformMapEntry(k, v, {'b': 1}).c", "no such key: c"),
        ("[1, 2].transformMapEntry(i, v, {'same': v}).size()", "insert failed: key same already exists"),
        ("s.matches(s + '(')", "error parsing regexp: missing closing ): `a(`"),
    ] {
        assert_eq!(failure(text), message, "{text}");
    }
}

#[test]
fn failures_are_absorbed_by_what_decides() {
    let env = environment();
    for text in ["1 / 0 > 1 || true", "true || 1 / 0 > 1", "!(1 / 0 > 1 && false)", "[0, 1].exists(i, 1 / i > 0)"] {
        let program = env.compile(text, Type::Bool).unwrap_or_else(|issues| panic!("{}", issues[0]));
        assert_eq!(program.eval(&Activation::new(), Limits::default()).unwrap().0.as_bool(), Some(true), "{text}");
    }
}

#[test]
fn optional_syntax_needs_its_library() {
    let env = Environment::builder().library(Library::Strings).variable("x", Type::Dyn).build();
    for (text, message) in [("x.?a", "1:2: unsupported syntax '.?'"), ("x[?0]", "1:2: unsupported syntax '[?'")] {
        let issues = env.compile(text, Expected::Any).err().unwrap();
        assert!(issues[0].to_string().starts_with(&format!("ERROR: <input>:{message}")), "{}", issues[0]);
    }
}
