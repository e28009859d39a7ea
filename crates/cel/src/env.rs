//! Environments: what an expression may refer to. An environment compiles texts to programs.

use std::collections::HashMap;
use std::sync::Arc;

use crate::checker;
use crate::decls::{Function, TypeProvider};
use crate::issue::{Issue, Issues, Phase};
use crate::library::{self, Library};
use crate::macros::{self, Macro};
use crate::parser;
use crate::plan;
use crate::program::Program;
use crate::stack;
use crate::types::Type;
use crate::validate;
use crate::value::Value;

/// What expressions may refer to. Cheap to clone and to extend.
#[derive(Clone)]
pub struct Environment {
    pub(crate) container: String,
    variables: HashMap<Arc<str>, Type>,
    constants: HashMap<Arc<str>, Value>,
    functions: Arc<HashMap<Arc<str>, Function>>,
    providers: Vec<Arc<dyn TypeProvider>>,
    macros: Vec<Macro>,
    optional_syntax: bool,
    use_macros: bool,
    pub(crate) homogeneous_literals: bool,
    pub(crate) validate_literals: bool,
}

/// Which types an expression may result in.
#[derive(Clone, Debug)]
pub enum Expected {
    /// Any type.
    Any,
    /// One of these types, exactly.
    OneOf(Vec<Type>),
}

impl From<Type> for Expected {
    fn from(t: Type) -> Expected {
        Expected::OneOf(vec![t])
    }
}

/// Makes an environment.
pub struct Builder {
    env: Environment,
}

impl Environment {
    /// An environment with the standard library, to which more is added.
    #[must_use]
    pub fn builder() -> Builder {
        let mut env = Environment {
            container: String::new(),
            variables: HashMap::new(),
            constants: HashMap::new(),
            functions: Arc::default(),
            providers: Vec::new(),
            macros: macros::STANDARD.to_vec(),
            optional_syntax: false,
            use_macros: true,
            homogeneous_literals: false,
            validate_literals: false,
        };
        for t in [
            Type::Bool,
            Type::Bytes,
            Type::Double,
            Type::Duration,
            Type::Int,
            Type::list(Type::Dyn),
            Type::map(Type::Dyn, Type::Dyn),
            Type::Null,
            Type::String,
            Type::Timestamp,
            Type::Type(None),
            Type::Uint,
        ] {
            env.constants.insert(t.name().into(), Value::Type(t));
        }
        let mut builder = Builder { env };
        builder.add(library::standard());
        builder
    }

    /// The environment of Kubernetes' own expressions, without variables: its libraries, list and map literals of one
    /// type, and literals that are looked at when the expression is written.
    #[must_use]
    pub fn kubernetes() -> Builder {
        let mut builder = Environment::builder().homogeneous_literals(true).validate_literals(true);
        for library in Library::KUBERNETES {
            builder = builder.library(library);
        }
        builder
    }

    /// A builder that starts with everything this environment has.
    #[must_use]
    pub fn extend(&self) -> Builder {
        Builder { env: self.clone() }
    }

    /// The names that `name` may mean in the environment's container, most specific first.
    pub(crate) fn candidates(&self, name: &str) -> Vec<String> {
        if let Some(absolute) = name.strip_prefix('.') {
            return vec![absolute.to_owned()];
        }
        let mut container = self.container.as_str();
        let mut names = Vec::new();
        while !container.is_empty() {
            names.push(format!("{container}.{name}"));
            container = container.rsplit_once('.').map_or("", |(outer, _)| outer);
        }
        names.push(name.to_owned());
        names
    }

    /// The type, and for constants the value, of a fully qualified name.
    pub(crate) fn global(&self, name: &str) -> Option<(Type, Option<Value>)> {
        if let Some(t) = self.variables.get(name) {
            return Some((t.clone(), None));
        }
        if let Some(value) = self.constants.get(name) {
            return Some((type_of_constant(value), Some(value.clone())));
        }
        if let Some(t) = self.find_type(name) {
            return Some((Type::type_of(t.clone()), Some(Value::Type(t))));
        }
        let value = self.providers.iter().find_map(|provider| provider.find_constant(name))?;
        Some((type_of_constant(&value), Some(value)))
    }

    pub(crate) fn find_type(&self, name: &str) -> Option<Type> {
        self.providers.iter().find_map(|provider| provider.find_type(name))
    }

    pub(crate) fn find_field(&self, type_name: &str, field: &str) -> Option<Type> {
        self.providers.iter().find_map(|provider| provider.find_field(type_name, field))
    }

    /// The provider that makes messages of a type.
    pub(crate) fn provider_of(&self, type_name: &str) -> Option<Arc<dyn TypeProvider>> {
        self.providers.iter().find(|provider| provider.find_type(type_name).is_some()).cloned()
    }

    pub(crate) fn find_function(&self, name: &str) -> Option<&Function> {
        self.candidates(name).iter().find_map(|candidate| self.functions.get(candidate.as_str()))
    }

    /// Parses, checks and plans an expression.
    ///
    /// # Errors
    /// Every problem found, in the order of their places.
    pub fn compile(&self, text: &str, expected: impl Into<Expected>) -> Result<Program, Vec<Issue>> {
        let expected = expected.into();
        let nesting = stack::nesting(text);
        stack::with_room(nesting, || self.compile_here(text, &expected, nesting))
    }

    fn compile_here(&self, text: &str, expected: &Expected, nesting: usize) -> Result<Program, Vec<Issue>> {
        let mut issues = Issues::new(text);
        let macros = if self.use_macros { self.macros.as_slice() } else { &[] };
        let parsed = parser::parse(text, macros, self.optional_syntax, &mut issues);
        if !issues.is_empty() {
            return Err(issues.into_sorted());
        }
        let checked = checker::check(parsed, self, &mut issues);
        if issues.is_empty() && self.validate_literals {
            validate::validate(&checked, &mut issues);
        }
        if !issues.is_empty() {
            return Err(issues.into_sorted());
        }
        let output = checked.type_of(checked.root.id).clone();
        if let Expected::OneOf(types) = expected
            && !types.contains(&output)
            && !types.contains(&Type::Any)
        {
            let message = match types.as_slice() {
                [single] => format!("must evaluate to {single}"),
                many => {
                    let names: Vec<String> = many.iter().map(ToString::to_string).collect();
                    format!("must evaluate to one of [{}]", names.join(" "))
                }
            };
            issues.report(Phase::Output, None, message);
            return Err(issues.into_sorted());
        }
        match plan::plan(&checked, self) {
            Ok(plan) => Ok(Program { plan, checked, output, nesting }),
            Err(error) => {
                issues.report(Phase::Plan, None, error.to_string());
                Err(issues.into_sorted())
            }
        }
    }
}

fn type_of_constant(value: &Value) -> Type {
    match value {
        Value::Type(t) => Type::type_of(t.clone()),
        other => other.type_of(),
    }
}

impl Builder {
    /// The namespace in which names are looked up first.
    #[must_use]
    pub fn container(mut self, name: &str) -> Builder {
        name.clone_into(&mut self.env.container);
        self
    }

    /// Declares a variable; its name may have dots.
    #[must_use]
    pub fn variable(mut self, name: &str, t: Type) -> Builder {
        self.env.variables.insert(name.into(), t);
        self
    }

    /// Declares a name with a fixed value.
    #[must_use]
    pub fn constant(mut self, name: &str, value: Value) -> Builder {
        self.env.constants.insert(name.into(), value);
        self
    }

    /// Adds message types.
    #[must_use]
    pub fn provider(mut self, provider: Arc<dyn TypeProvider>) -> Builder {
        self.env.providers.push(provider);
        self
    }

    /// Adds a function, or overloads to the function of this name.
    #[must_use]
    pub fn function(mut self, function: Function) -> Builder {
        self.add(vec![function]);
        self
    }

    /// Adds a library.
    #[must_use]
    pub fn library(mut self, library: Library) -> Builder {
        self.add(library.functions());
        self.env.macros.extend_from_slice(library.macros());
        for (name, value) in library.constants() {
            self.env.constants.insert(name.into(), value);
        }
        self.env.providers.extend(library.provider());
        self.env.optional_syntax |= library == Library::Optional;
        self
    }

    /// Whether all elements of a list or map literal must have one type.
    #[must_use]
    pub fn homogeneous_literals(mut self, on: bool) -> Builder {
        self.env.homogeneous_literals = on;
        self
    }

    /// Whether durations, timestamps, regular expressions and formats in literals are looked at when compiling.
    #[must_use]
    pub fn validate_literals(mut self, on: bool) -> Builder {
        self.env.validate_literals = on;
        self
    }

    /// Whether macros are expanded.
    #[must_use]
    pub fn macros(mut self, on: bool) -> Builder {
        self.env.use_macros = on;
        self
    }

    fn add(&mut self, functions: Vec<Function>) {
        if functions.is_empty() {
            return;
        }
        let declared = Arc::make_mut(&mut self.env.functions);
        for function in functions {
            match declared.get_mut(&function.name) {
                Some(existing) => {
                    for overload in function.overloads {
                        existing.overloads.retain(|known| known.id != overload.id);
                        existing.overloads.push(overload);
                    }
                    if existing.func.is_none() {
                        existing.func = function.func;
                    }
                }
                None => {
                    declared.insert(function.name.clone(), function);
                }
            }
        }
    }

    /// The environment.
    #[must_use]
    pub fn build(self) -> Environment {
        self.env
    }
}
