//! Runs the language's public conformance vectors from a directory (`tests/simple/testdata` of the specification), prints
//! what passed per file, and panics with those that fail. The vectors are third-party files and no part of this repository.
//! Those about protocol buffer messages are skipped: this crate has none.

mod textproto;

use std::collections::BTreeMap;
use std::path::Path;

use gantry_cel::{Activation, Environment, Expected, Key, Library, Limits, Type, Value};
use textproto::Message;

/// Why a vector is not run.
fn skipped(file: &str, section: &str, test: &Message) -> Option<&'static str> {
    let text = test.source();
    let name = test.string("name").unwrap_or_default();
    let messages =
        ["TestAllTypes", "NestedTestAllTypes", "google.protobuf.", "type.googleapis", "Any{", "object_value"];
    if matches!(file, "proto2" | "proto3" | "proto2_ext" | "enums" | "wrappers" | "dynamic")
        || messages.iter().any(|word| text.contains(word))
    {
        return Some("protobuf messages or enums");
    }
    if file == "block_ext" || text.contains("cel.@block") || text.contains("cel.block") {
        return Some("cel.@block, which only optimizers of other implementations emit");
    }
    if file == "network_ext" {
        return Some("the language's own network library, which Kubernetes does not have");
    }
    if file == "unknowns" || test.has("unknown") || test.has("any_unknowns") {
        return Some("partial evaluation");
    }
    // The reference skips these as well.
    let deviations = [
        ("fields", "map_key_float"),
        ("fields", "map_key_null"),
        ("fields", "map_value_repeat_key"),
        ("fields", "map_value_repeat_key_heterogeneous"),
        ("timestamps", "get_milliseconds"),
        ("optionals", "map_optional_select_has"),
        // It passes these with an option that Kubernetes leaves off.
        ("optionals", "map_null_entry_no_such_key"),
        ("optionals", "map_present_key_invalid_field"),
        ("string_ext", "indexof_out_of_range"),
        ("string_ext", "lastindexof_out_of_range"),
        ("type_deduction", "wrapper_promotion_2"),
        ("type_deduction", "null_assignable_to_message_parameter_candidate"),
        ("type_deduction", "null_assignable_to_duration_parameter_candidate"),
        ("type_deduction", "null_assignable_to_timestamp_parameter_candidate"),
        ("type_deduction", "null_assignable_to_abstract_parameter_candidate"),
    ];
    if deviations.contains(&(file, name.as_str())) && section != "duration_accessors" {
        return Some("cel-go, which Kubernetes uses, does not pass it either");
    }
    // Others are run although they ask for no check, as long as it lets them pass.
    let unchecked = test.bool("disable_check")
        && environment(test).compile(&test.string("expr").unwrap_or_default(), Expected::Any).is_err();
    unchecked.then_some("expressions that do not check; Kubernetes checks all")
}

fn value(message: &Message) -> Value {
    let Some((kind, _)) = message.entries().next() else { return Value::Null };
    match kind {
        "null_value" => Value::Null,
        "bool_value" => Value::Bool(message.bool(kind)),
        "int64_value" => Value::Int(message.scalar(kind).unwrap().parse().unwrap()),
        "uint64_value" => Value::Uint(message.scalar(kind).unwrap().parse().unwrap()),
        "double_value" => Value::Double(match message.scalar(kind).unwrap().to_lowercase().as_str() {
            "inf" | "infinity" => f64::INFINITY,
            "-inf" | "-infinity" => f64::NEG_INFINITY,
            "nan" => f64::NAN,
            number => number.parse().unwrap(),
        }),
        "string_value" => Value::from(message.string(kind).unwrap()),
        "bytes_value" => Value::Bytes(message.bytes(kind).unwrap().into()),
        "type_value" => {
            let name = message.string(kind).unwrap();
            Value::Type(if name == "optional_type" { Type::optional(Type::Dyn) } else { Type::object(&name) })
        }
        "list_value" => {
            let list = message.message(kind).unwrap();
            Value::list(list.messages("values").iter().map(value).collect())
        }
        "map_value" => {
            let map = message.message(kind).unwrap();
            let mut entries = BTreeMap::new();
            for entry in map.messages("entries") {
                let key = value(&entry.message("key").unwrap());
                entries.insert(Key::from_value(&key).unwrap(), value(&entry.message("value").unwrap()));
            }
            Value::map(entries)
        }
        other => panic!("no such kind of value: {other}"),
    }
}

fn declared(message: &Message) -> Type {
    let Some((kind, _)) = message.entries().next() else { return Type::Dyn };
    let primitive = |name: &str| match name {
        "BOOL" => Type::Bool,
        "INT64" => Type::Int,
        "UINT64" => Type::Uint,
        "DOUBLE" => Type::Double,
        "STRING" => Type::String,
        "BYTES" => Type::Bytes,
        other => panic!("no such primitive: {other}"),
    };
    match kind {
        "dyn" => Type::Dyn,
        "null" => Type::Null,
        "primitive" => primitive(&message.scalar(kind).unwrap()),
        "wrapper" => Type::wrapper(primitive(&message.scalar(kind).unwrap())),
        "well_known" => match message.scalar(kind).unwrap().as_str() {
            "DURATION" => Type::Duration,
            "TIMESTAMP" => Type::Timestamp,
            _ => Type::Any,
        },
        "list_type" => {
            Type::list(message.message(kind).unwrap().message("elem_type").map_or(Type::Dyn, |t| declared(&t)))
        }
        "map_type" => {
            let map = message.message(kind).unwrap();
            let part = |name: &str| map.message(name).map_or(Type::Dyn, |t| declared(&t));
            Type::map(part("key_type"), part("value_type"))
        }
        "type" => Type::type_of(declared(&message.message(kind).unwrap())),
        "type_param" => Type::param(&message.string(kind).unwrap()),
        "message_type" => Type::object(&message.string(kind).unwrap()),
        "abstract_type" => {
            let of = message.message(kind).unwrap();
            let parameters: Vec<Type> = of.messages("parameter_types").iter().map(declared).collect();
            Type::Opaque(of.string("name").unwrap().as_str().into(), parameters.into())
        }
        other => panic!("no such kind of type: {other}"),
    }
}

fn environment(test: &Message) -> Environment {
    let mut builder = Environment::builder();
    for library in [
        Library::Optional,
        Library::StringsLatest,
        Library::Math,
        Library::Encoders,
        Library::Bindings,
        Library::TwoVariableMacros,
        Library::ExtendedLists,
        Library::Sets,
    ] {
        builder = builder.library(library);
    }
    builder = builder.macros(!test.bool("disable_macros"));
    if let Some(container) = test.string("container") {
        builder = builder.container(&container);
    }
    for decl in test.messages("type_env") {
        let name = decl.string("name").unwrap();
        if let Some(ident) = decl.message("ident") {
            builder = builder.variable(&name, declared(&ident.message("type").unwrap()));
        } else if let Some(function) = decl.message("function") {
            let overloads = function
                .messages("overloads")
                .iter()
                .map(|overload| {
                    let params: Vec<Type> = overload.messages("params").iter().map(declared).collect();
                    let result = declared(&overload.message("result_type").unwrap());
                    let id = overload.string("overload_id").unwrap();
                    let none = |_: &[Value]| Err(gantry_cel::EvalError::no_such_overload());
                    if overload.bool("is_instance_function") {
                        gantry_cel::Overload::member(&id, params, result, none)
                    } else {
                        gantry_cel::Overload::global(&id, params, result, none)
                    }
                })
                .collect();
            builder = builder.function(gantry_cel::Function::new(&name, overloads));
        }
    }
    builder.build()
}

fn same(expected: &Value, found: &Value) -> bool {
    match (expected, found) {
        (Value::Double(a), Value::Double(b)) if a.is_nan() && b.is_nan() => true,
        _ => {
            expected.type_name() == found.type_name() && expected.equals(found).unwrap_or(false)
                || matches!((expected, found), (Value::Type(a), Value::Type(b)) if a.name() == b.name())
        }
    }
}

/// What is wrong with the outcome of a vector.
fn run(test: &Message) -> Result<(), String> {
    let expression = test.string("expr").unwrap();
    let env = environment(test);
    let fails = test.has("eval_error") || test.has("any_eval_errors");
    let program = match env.compile(&expression, Expected::Any) {
        Ok(program) => program,
        Err(_) if fails => return Ok(()),
        Err(issues) => return Err(issues.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")),
    };
    if let Some(of) = test.message("typed_result").and_then(|typed| typed.message("deduced_type")) {
        let (expected, found) = (declared(&of).to_string(), program.output_type().to_string());
        if expected != found {
            return Err(format!("deduced {found}, expected {expected}"));
        }
    }
    if test.bool("check_only") {
        return Ok(());
    }
    let mut activation = Activation::new();
    for binding in test.messages("bindings") {
        let bound = binding.message("value").unwrap().message("value").unwrap();
        activation.set(&binding.string("key").unwrap(), value(&bound));
    }
    match (program.eval(&activation, Limits::default()), fails) {
        (Err(_), true) => Ok(()),
        (Ok((found, _)), true) => Err(format!("expected a failure, got {found:?}")),
        (Err(error), false) => Err(format!("failed: {error}")),
        (Ok((found, _)), false) => {
            let typed = test.message("typed_result").and_then(|typed| typed.message("result"));
            let expected = match test.message("value").or(typed) {
                Some(expected) => value(&expected),
                None if test.has("typed_result") => return Ok(()),
                None => Value::Bool(true),
            };
            if same(&expected, &found) { Ok(()) } else { Err(format!("got {found:?}, expected {expected:?}")) }
        }
    }
}

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(directory), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: cargo run -p gantry-cel --example vectors -- DIRECTORY");
        std::process::exit(2);
    };
    let mut files: Vec<_> = std::fs::read_dir(Path::new(&directory))
        .expect("the directory of the vectors is readable")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "textproto"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no vectors in {directory:?}");
    let mut failures = Vec::new();
    for path in files {
        let file = path.file_stem().unwrap().to_string_lossy().into_owned();
        let content = std::fs::read_to_string(&path).unwrap();
        let parsed = Message::parse(&content).unwrap_or_else(|error| panic!("{file}: {error}"));
        let (mut passed, mut failed) = (0, 0);
        let mut skips: BTreeMap<&str, usize> = BTreeMap::new();
        for section in parsed.messages("section") {
            let section_name = section.string("name").unwrap_or_default();
            for test in section.messages("test") {
                if let Some(reason) = skipped(&file, &section_name, &test) {
                    *skips.entry(reason).or_default() += 1;
                    continue;
                }
                match run(&test) {
                    Ok(()) => passed += 1,
                    Err(error) => {
                        failed += 1;
                        let expression = test.string("expr").unwrap_or_default();
                        let name = test.string("name").unwrap_or_default();
                        failures.push(format!("{file}/{section_name}/{name}: {expression}\n    {error}"));
                    }
                }
            }
        }
        println!("{file}: {passed} passed, {failed} failed, skipped {skips:?}");
    }
    assert!(failures.is_empty(), "{} vectors fail:\n{}", failures.len(), failures.join("\n"));
}
