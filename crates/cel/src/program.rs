//! Programs: compiled expressions.

use crate::activation::Variables;
use crate::checker::Checked;
use crate::cost::{self, CostRange, SizeHints};
use crate::eval;
use crate::plan::Plan;
use crate::stack;
use crate::types::Type;
use crate::value::{EvalError, Value};

/// A compiled expression.
pub struct Program {
    pub(crate) plan: Plan,
    pub(crate) checked: Checked,
    pub(crate) output: Type,
    pub(crate) nesting: usize,
}

/// How much an evaluation may cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// The evaluation stops when it has cost more; `None` is no limit.
    pub cost: Option<u64>,
}

impl Limits {
    /// What Kubernetes allows a single evaluation.
    pub const PER_CALL: Limits = Limits { cost: Some(cost::PER_CALL_LIMIT) };
}

/// What came of an evaluation.
#[derive(Debug)]
pub struct Outcome {
    /// The value, or why there is none.
    pub result: Result<Value, EvalError>,
    /// What it cost, also when it failed.
    pub cost: u64,
}

impl Program {
    /// The type of the result.
    #[must_use]
    pub fn output_type(&self) -> &Type {
        &self.output
    }

    /// What evaluating will cost at least and at most, given what is known about the sizes of variables.
    #[must_use]
    pub fn estimate(&self, hints: &dyn SizeHints) -> CostRange {
        stack::with_room(self.nesting, || cost::estimate::estimate(&self.checked, hints))
    }

    /// Evaluates, and says what that cost.
    ///
    /// # Errors
    /// When the expression fails or costs more than its limit.
    pub fn eval(&self, variables: &dyn Variables, limits: Limits) -> Result<(Value, u64), EvalError> {
        let Outcome { result, cost } = self.run(variables, limits);
        Ok((result?, cost))
    }

    /// Evaluates, and says what that cost even when it failed.
    #[must_use]
    pub fn run(&self, variables: &dyn Variables, limits: Limits) -> Outcome {
        stack::with_room(self.nesting, || eval::run(&self.plan, variables, limits))
    }

    /// Whether the expression, or a part of it, refers to a variable or a field path that starts with one.
    #[must_use]
    pub fn mentions(&self, name: &str) -> bool {
        let mut found = false;
        self.checked.root.walk(&mut |e| {
            found |= matches!(&e.kind, crate::ast::Kind::Ident(ident) if ident.trim_start_matches('.') == name);
        });
        found
    }

    /// Whether a part of the expression selects this field of a variable (`variable.field`, `variable.?field`).
    #[must_use]
    pub fn selects(&self, variable: &str, field: &str) -> bool {
        use crate::ast::{Expr, Kind, op};
        let is_variable = |e: &Expr| matches!(&e.kind, Kind::Ident(i) if i.trim_start_matches('.') == variable);
        let mut found = false;
        self.checked.root.walk(&mut |e| {
            found |= match &e.kind {
                Kind::Select { operand, field: f, .. } => f == field && is_variable(operand),
                Kind::Call { function, args, .. } if function == op::OPT_SELECT => match args.as_slice() {
                    [operand, Expr { kind: Kind::Literal(f), .. }] => is_variable(operand) && f.as_str() == Some(field),
                    _ => false,
                },
                _ => false,
            };
        });
        found
    }
}
