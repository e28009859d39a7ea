//! Tokens to the syntax tree, with the error messages and the recovery of the reference's generated parser.

use crate::ast::{Element, Entry, Expr, Field, Id, Kind, op};
use crate::issue::{Issues, Phase};
use crate::lexer::{Tok, Token, tokens};
use crate::macros::{self, Macro};
use crate::value::Value;
use gantry_api::meta::expression::RESERVED_IDENTIFIERS;

/// The longest expression, in code points.
const MAX_LENGTH: usize = 100_000;
/// How deep operators and brackets may nest.
const MAX_DEPTH: u32 = 250;
/// After so many syntax errors parsing ends.
const MAX_RECOVERIES: u32 = 30;

const EXPR_START: [Tok; 15] = [
    Tok::LBracket,
    Tok::LBrace,
    Tok::LParen,
    Tok::Dot,
    Tok::Minus,
    Tok::Exclam,
    Tok::True,
    Tok::False,
    Tok::Null,
    Tok::Float,
    Tok::Int,
    Tok::Uint,
    Tok::String,
    Tok::Bytes,
    Tok::Ident,
];

/// Tokens that may follow a complete operand anywhere.
const OPERATORS: [Tok; 16] = [
    Tok::Equals,
    Tok::NotEquals,
    Tok::In,
    Tok::Less,
    Tok::LessEquals,
    Tok::Greater,
    Tok::GreaterEquals,
    Tok::And,
    Tok::Or,
    Tok::Question,
    Tok::Plus,
    Tok::Minus,
    Tok::Star,
    Tok::Slash,
    Tok::Percent,
    Tok::Eof,
];

/// A tree with the position of each node, by id.
pub(crate) struct Parsed {
    pub(crate) root: Expr,
    pub(crate) offsets: Vec<u32>,
}

/// A node and how deep the operators in it nest.
struct Deep {
    expr: Expr,
    depth: u32,
}

/// The parser cannot go on where it is; what was expected has been reported.
struct Unwind;

/// Nesting is too deep, or there are too many errors; this has been reported.
struct Abort;

enum Stop {
    Unwind,
    Abort,
}

impl From<Unwind> for Stop {
    fn from(_: Unwind) -> Stop {
        Stop::Unwind
    }
}

impl From<Abort> for Stop {
    fn from(_: Abort) -> Stop {
        Stop::Abort
    }
}

type Parse<T> = Result<T, Stop>;

/// Hands out ids and remembers where their nodes are.
pub(crate) struct Nodes {
    pub(crate) offsets: Vec<u32>,
}

impl Nodes {
    pub(crate) fn id(&mut self, offset: u32) -> Id {
        self.offsets.push(offset);
        Id::try_from(self.offsets.len() - 1).unwrap_or(Id::MAX)
    }

    pub(crate) fn expr(&mut self, offset: u32, kind: Kind) -> Expr {
        Expr { id: self.id(offset), kind }
    }

    pub(crate) fn offset(&self, id: Id) -> u32 {
        self.offsets.get(id as usize).copied().unwrap_or(0)
    }
}

struct Parser<'a> {
    tokens: Vec<Token>,
    at: usize,
    nodes: Nodes,
    issues: &'a mut Issues,
    macros: &'a [Macro],
    optional_syntax: bool,
    /// Whether an error was reported since the last token that fitted; further ones would be consequences of it.
    recovering: bool,
    recoveries: u32,
    /// Where the last recovery started, so that the same token is not stumbled over twice.
    last_recovery: Option<usize>,
    /// What may follow the brackets around the current place.
    follow: Vec<&'static [Tok]>,
    depth: u32,
    text: &'a [char],
}

/// Reads an expression. Problems go to `issues`; the tree is useful only when there are none.
pub(crate) fn parse(text: &str, macros: &[Macro], optional_syntax: bool, issues: &mut Issues) -> Parsed {
    let chars: Vec<char> = text.chars().collect();
    if chars.len() > MAX_LENGTH {
        let message = format!("expression code point size exceeds limit: size: {}, limit {MAX_LENGTH}", chars.len());
        issues.report(Phase::Parse, None, message);
        return Parsed { root: Expr { id: 0, kind: Kind::Unspecified }, offsets: vec![0] };
    }
    let tokens = tokens(&chars, issues);
    let mut parser = Parser {
        tokens,
        at: 0,
        // Id 0 is no node's.
        nodes: Nodes { offsets: vec![0] },
        issues,
        macros,
        optional_syntax,
        recovering: false,
        recoveries: 0,
        last_recovery: None,
        follow: Vec::new(),
        depth: 0,
        text: &chars,
    };
    let root = match parser.start() {
        Ok(expr) => expr,
        Err(_) => parser.nodes.expr(0, Kind::Unspecified),
    };
    Parsed { root, offsets: parser.nodes.offsets }
}

fn expecting(set: &[Tok]) -> String {
    if let [single] = set {
        return single.name().to_owned();
    }
    let mut sorted = set.to_vec();
    sorted.sort_unstable();
    let names: Vec<&str> = sorted.into_iter().map(Tok::name).collect();
    format!("{{{}}}", names.join(", "))
}

/// How tightly `||` and `&&` bind.
const OR: u8 = 0;
const AND: u8 = 1;

/// How tightly an operator between two operands binds, and the function it is.
fn binary(kind: Tok) -> Option<(u8, &'static str)> {
    Some(match kind {
        Tok::Or => (OR, op::OR),
        Tok::And => (AND, op::AND),
        Tok::Equals => (2, op::EQUALS),
        Tok::NotEquals => (2, op::NOT_EQUALS),
        Tok::In => (2, op::IN),
        Tok::Less => (2, op::LESS),
        Tok::LessEquals => (2, op::LESS_EQUALS),
        Tok::Greater => (2, op::GREATER),
        Tok::GreaterEquals => (2, op::GREATER_EQUALS),
        Tok::Plus => (3, op::ADD),
        Tok::Minus => (3, op::SUBTRACT),
        Tok::Star => (4, op::MULTIPLY),
        Tok::Slash => (4, op::DIVIDE),
        Tok::Percent => (4, op::MODULO),
        _ => return None,
    })
}

impl Parser<'_> {
    fn start(&mut self) -> Parse<Expr> {
        let root = self.expr()?;
        let _ = self.expect(Tok::Eof);
        if root.depth > MAX_DEPTH {
            self.issues.report(Phase::Parse, None, "max recursion depth exceeded");
        }
        Ok(root.expr)
    }

    fn token(&self) -> &Token {
        &self.tokens[self.at]
    }

    fn kind(&self) -> Tok {
        self.token().kind
    }

    fn next_kind(&self) -> Tok {
        self.tokens.get(self.at + 1).map_or(Tok::Eof, |t| t.kind)
    }

    fn offset(&self) -> u32 {
        self.token().offset
    }

    fn advance(&mut self) -> Token {
        let token = self.token().clone();
        if token.kind != Tok::Eof {
            self.at += 1;
        }
        self.recovering = false;
        token
    }

    fn take(&mut self, kind: Tok) -> Option<Token> {
        (self.kind() == kind).then(|| self.advance())
    }

    fn syntax_error(&mut self, message: &str) {
        if !self.recovering {
            self.issues.report(Phase::Parse, Some(self.token().offset), format!("Syntax error: {message}"));
        }
        self.recovering = true;
    }

    fn text_of(token: &Token) -> String {
        token.text.replace('\n', "\\n").replace('\r', "\\r").replace('\t', "\\t")
    }

    /// Reports the current token where one of `set` had to be. Drops it when the one after it fits.
    fn unexpected(&mut self, set: &[Tok]) -> Result<(), Unwind> {
        let text = Self::text_of(self.token());
        if self.kind() != Tok::Eof && set.contains(&self.next_kind()) {
            self.syntax_error(&format!("extraneous input '{text}' expecting {}", expecting(set)));
            self.at += 1;
            return Ok(());
        }
        self.syntax_error(&format!("mismatched input '{text}' expecting {}", expecting(set)));
        Err(Unwind)
    }

    /// The next token, which has to be of this kind.
    fn expect(&mut self, kind: Tok) -> Result<Token, Unwind> {
        if self.kind() != kind {
            // A closing bracket is made up when what follows fits behind it.
            let closes = matches!(kind, Tok::RParen | Tok::RBracket | Tok::RBrace);
            if closes && self.next_kind() != kind && self.may_follow(self.kind()) {
                let text = Self::text_of(self.token());
                self.syntax_error(&format!("missing {} at '{text}'", kind.name()));
                return Ok(Token { kind, text: String::new(), offset: self.offset(), end: self.offset() });
            }
            self.unexpected(&[kind])?;
        }
        Ok(self.advance())
    }

    fn may_follow(&self, kind: Tok) -> bool {
        OPERATORS.contains(&kind) || self.follow.iter().any(|set| set.contains(&kind))
    }

    /// Skips to a token that may follow what could not be parsed, and stands in for it.
    fn recover(&mut self) -> Parse<Deep> {
        self.recoveries += 1;
        if self.recoveries > MAX_RECOVERIES {
            let message = format!("Syntax error: error recovery attempt limit exceeded: {MAX_RECOVERIES}");
            self.issues.report(Phase::Parse, Some(self.token().offset), message);
            return Err(Stop::Abort);
        }
        if self.last_recovery == Some(self.at) && self.kind() != Tok::Eof {
            self.at += 1;
        }
        self.last_recovery = Some(self.at);
        while self.kind() != Tok::Eof && !self.may_follow(self.kind()) {
            self.at += 1;
        }
        let offset = self.offset();
        Ok(Deep { expr: self.nodes.expr(offset, Kind::Unspecified), depth: 0 })
    }

    fn error_at(&mut self, offset: u32, message: &str) -> Expr {
        self.issues.report(Phase::Parse, Some(offset), message);
        self.nodes.expr(offset, Kind::Unspecified)
    }

    fn within<T>(&mut self, follow: &'static [Tok], parse: impl FnOnce(&mut Self) -> Parse<T>) -> Parse<T> {
        self.follow.push(follow);
        let result = parse(self);
        self.follow.pop();
        result
    }

    fn expr(&mut self) -> Parse<Deep> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            self.issues.report(Phase::Parse, None, format!("expression recursion limit exceeded: {MAX_DEPTH}"));
            return Err(Stop::Abort);
        }
        let condition = self.binary(OR)?;
        let result = if self.kind() == Tok::Question {
            let offset = self.advance().offset;
            let id = self.nodes.id(offset);
            let yes = self.within(&[Tok::Colon], |p| p.binary(OR))?;
            match self.expect(Tok::Colon) {
                Ok(_) => {
                    let no = self.expr()?;
                    let depth = 1 + condition.depth.max(yes.depth).max(no.depth);
                    Deep { expr: self.global(id, op::CONDITIONAL, vec![condition.expr, yes.expr, no.expr]), depth }
                }
                Err(Unwind) => self.recover()?,
            }
        } else {
            condition
        };
        self.depth -= 1;
        Ok(result)
    }

    /// Operands joined by operators that bind at least as tightly as `level`. Chains of `||` and `&&` become balanced
    /// trees, so that long ones do not nest deep.
    fn binary(&mut self, level: u8) -> Parse<Deep> {
        let mut left = self.unary()?;
        while let Some((tightness, function)) = binary(self.kind()).filter(|(tightness, _)| *tightness >= level) {
            let kind = self.kind();
            if tightness > AND {
                let offset = self.advance().offset;
                let id = self.nodes.id(offset);
                let right = self.binary(tightness + 1)?;
                let depth = 1 + left.depth.max(right.depth);
                left = Deep { expr: self.global(id, function, vec![left.expr, right.expr]), depth };
                continue;
            }
            let mut depth = left.depth;
            let mut terms = vec![left.expr];
            let mut ids = Vec::new();
            while self.kind() == kind {
                let offset = self.advance().offset;
                let next = self.binary(tightness + 1)?;
                depth = depth.max(next.depth);
                terms.push(next.expr);
                ids.push(self.nodes.id(offset));
            }
            left = Deep { expr: balance(function, &mut terms.into_iter(), &ids), depth };
        }
        Ok(left)
    }

    fn unary(&mut self) -> Parse<Deep> {
        let kind = self.kind();
        let number_next = matches!(self.next_kind(), Tok::Int | Tok::Float);
        if kind == Tok::Exclam || (kind == Tok::Minus && !number_next) {
            let offset = self.offset();
            let mut count = 0;
            // The sign of a number belongs to its literal: `--1` negates -1.
            while self.kind() == kind
                && !(kind == Tok::Minus && count > 0 && matches!(self.next_kind(), Tok::Int | Tok::Float))
            {
                self.advance();
                count += 1;
            }
            if kind == Tok::Minus && !EXPR_START.contains(&self.kind()) {
                let (from, to) = (self.tokens[self.at - 1].offset, self.token().end);
                let seen: String = self.text[from as usize..to as usize].iter().collect();
                self.syntax_error(&format!("no viable alternative at input '{}'", seen.replace('\n', "\\n")));
                self.recovering = false;
            }
            let function = if kind == Tok::Exclam { op::NOT } else { op::NEGATE };
            let id = (count % 2 == 1).then(|| self.nodes.id(offset));
            let operand = self.member()?;
            return Ok(match id {
                Some(id) => Deep { expr: self.global(id, function, vec![operand.expr]), depth: operand.depth },
                None => operand,
            });
        }
        self.member()
    }

    fn member(&mut self) -> Parse<Deep> {
        let mut result = match self.primary() {
            Ok(deep) => deep,
            Err(Stop::Unwind) => return self.recover(),
            Err(Stop::Abort) => return Err(Stop::Abort),
        };
        loop {
            let next = match self.kind() {
                Tok::Dot => self.after_dot(result),
                Tok::LBracket => self.index(result),
                _ => return Ok(result),
            };
            result = match next {
                Ok(deep) => deep,
                Err(Stop::Unwind) => return self.recover(),
                Err(Stop::Abort) => return Err(Stop::Abort),
            };
        }
    }

    fn after_dot(&mut self, operand: Deep) -> Parse<Deep> {
        let dot = self.advance();
        let optional = self.take(Tok::Question).is_some();
        if !matches!(self.kind(), Tok::Ident | Tok::EscIdent) {
            return Err(self.no_selector(&dot, optional).into());
        }
        let name = self.advance();
        let depth = operand.depth + 1;
        if !optional && name.kind == Tok::Ident && self.kind() == Tok::LParen {
            let id = self.nodes.id(self.token().offset);
            let (args, deepest) = self.arguments()?;
            let expr = self.receiver(id, &name.text, operand.expr, args);
            return Ok(Deep { expr, depth: depth.max(deepest + 1) });
        }
        let field = if name.kind == Tok::EscIdent { name.text.trim_matches('`').to_owned() } else { name.text };
        if !optional {
            let kind = Kind::Select { operand: Box::new(operand.expr), field, test: false };
            return Ok(Deep { expr: self.nodes.expr(dot.offset, kind), depth });
        }
        if !self.optional_syntax {
            return Ok(Deep { expr: self.error_at(dot.offset, "unsupported syntax '.?'"), depth });
        }
        let field = self.nodes.expr(name.offset, Kind::Literal(field.into()));
        let kind = Kind::Call { target: None, function: op::OPT_SELECT.into(), args: vec![operand.expr, field] };
        Ok(Deep { expr: self.nodes.expr(dot.offset, kind), depth })
    }

    /// Reports what stands where a field's name had to be.
    fn no_selector(&mut self, dot: &Token, optional: bool) -> Unwind {
        let token = self.token().clone();
        let keyword = matches!(token.kind, Tok::True | Tok::False | Tok::Null);
        if keyword && !optional {
            self.syntax_error(&format!("mismatched input '{}' expecting IDENTIFIER", token.text));
        } else if optional {
            let expected = expecting(&[Tok::Ident, Tok::EscIdent]);
            self.syntax_error(&format!("mismatched input '{}' expecting {expected}", Self::text_of(&token)));
        } else {
            let seen: String = self.text[dot.offset as usize..token.end as usize].iter().collect();
            self.syntax_error(&format!("no viable alternative at input '{}'", seen.replace('\n', "\\n")));
        }
        Unwind
    }

    fn index(&mut self, operand: Deep) -> Parse<Deep> {
        let open = self.advance();
        let optional = self.take(Tok::Question).is_some();
        let id = self.nodes.id(open.offset);
        let index = self.within(&[Tok::RBracket], Self::expr)?;
        self.within(&[Tok::Dot, Tok::LBracket], |p| Ok(p.expect(Tok::RBracket)?))?;
        let depth = 1 + operand.depth.max(index.depth);
        if optional && !self.optional_syntax {
            return Ok(Deep { expr: self.error_at(open.offset, "unsupported syntax '[?'"), depth });
        }
        let function = if optional { op::OPT_INDEX } else { op::INDEX };
        Ok(Deep { expr: self.global(id, function, vec![operand.expr, index.expr]), depth })
    }

    /// `(`, arguments, `)`.
    fn arguments(&mut self) -> Parse<(Vec<Expr>, u32)> {
        self.advance();
        let mut args = Vec::new();
        let mut depth = 0;
        if self.kind() != Tok::RParen {
            loop {
                let arg = self.within(&[Tok::Comma, Tok::RParen], Self::expr)?;
                depth = depth.max(arg.depth);
                args.push(arg.expr);
                if self.take(Tok::Comma).is_none() {
                    break;
                }
            }
        }
        self.within(&[Tok::Dot, Tok::LBracket], |p| Ok(p.expect(Tok::RParen)?))?;
        Ok((args, depth))
    }

    fn primary(&mut self) -> Parse<Deep> {
        if !EXPR_START.contains(&self.kind()) {
            self.unexpected(&EXPR_START)?;
        }
        let token = self.token().clone();
        match token.kind {
            Tok::LParen => {
                self.advance();
                let inner = self.within(&[Tok::RParen], Self::expr)?;
                self.within(&[Tok::Dot, Tok::LBracket], |p| Ok(p.expect(Tok::RParen)?))?;
                Ok(inner)
            }
            Tok::LBracket => self.list(),
            Tok::LBrace => self.map(),
            Tok::Dot | Tok::Ident => self.name(),
            Tok::Exclam => self.unary(),
            Tok::Minus if !matches!(self.next_kind(), Tok::Int | Tok::Float) => self.unary(),
            _ => Ok(Deep { expr: self.literal(), depth: 0 }),
        }
    }

    fn list(&mut self) -> Parse<Deep> {
        let open = self.advance();
        let id = self.nodes.id(open.offset);
        let mut elements = Vec::new();
        let mut depth = 0;
        while self.kind() != Tok::RBracket {
            let question = self.take(Tok::Question);
            let value = self.within(&[Tok::Comma, Tok::RBracket], Self::expr)?;
            depth = depth.max(value.depth);
            if let Some(question) = question.as_ref().filter(|_| !self.optional_syntax) {
                self.error_at(question.offset, "unsupported syntax '?'");
            }
            elements.push(Element { value: value.expr, optional: question.is_some() });
            if self.take(Tok::Comma).is_none() {
                break;
            }
        }
        if self.kind() != Tok::RBracket {
            self.unexpected(&[Tok::RBracket, Tok::Comma])?;
        }
        self.expect(Tok::RBracket)?;
        Ok(Deep { expr: Expr { id, kind: Kind::List { elements } }, depth })
    }

    fn map(&mut self) -> Parse<Deep> {
        let open = self.advance();
        let id = self.nodes.id(open.offset);
        let mut entries = Vec::new();
        let mut depth = 0;
        // `{,}` is an empty map.
        if self.kind() == Tok::Comma {
            self.advance();
        } else if !EXPR_START.contains(&self.kind()) && !matches!(self.kind(), Tok::RBrace | Tok::Question) {
            let mut set = EXPR_START.to_vec();
            set.extend([Tok::RBrace, Tok::Comma, Tok::Question]);
            self.unexpected(&set)?;
        }
        while self.kind() != Tok::RBrace {
            let optional = self.take(Tok::Question);
            let key = self.within(&[Tok::Colon, Tok::RBrace], Self::expr)?;
            let Some(colon) = self.in_braces(Tok::Colon)? else { break };
            let entry_id = self.nodes.id(colon.offset);
            let value = self.within(&[Tok::Comma, Tok::RBrace], Self::expr)?;
            depth = depth.max(key.depth).max(value.depth);
            if let Some(question) = optional.as_ref().filter(|_| !self.optional_syntax) {
                self.error_at(question.offset, "unsupported syntax '?'");
            }
            let optional = optional.is_some();
            entries.push(Entry { id: entry_id, key: key.expr, value: value.expr, optional });
            if self.take(Tok::Comma).is_none() {
                break;
            }
        }
        self.close_brace()?;
        Ok(Deep { expr: Expr { id, kind: Kind::Map { entries } }, depth })
    }

    /// Expects `kind`; when it is missing, skips to the end of the entry.
    fn in_braces(&mut self, kind: Tok) -> Parse<Option<Token>> {
        if let Ok(token) = self.expect(kind) {
            return Ok(Some(token));
        }
        self.within(&[Tok::Comma, Tok::RBrace], |p| p.recover().map(|_| ()))?;
        Ok(None)
    }

    fn close_brace(&mut self) -> Parse<()> {
        if self.kind() != Tok::RBrace {
            self.unexpected(&[Tok::RBrace, Tok::Comma])?;
        }
        self.expect(Tok::RBrace)?;
        Ok(())
    }

    /// An identifier, a call, or a message literal.
    fn name(&mut self) -> Parse<Deep> {
        let dot = self.take(Tok::Dot);
        if self.kind() != Tok::Ident {
            return Err(match &dot {
                Some(dot) => self.no_selector(&dot.clone(), false).into(),
                None => Stop::Unwind,
            });
        }
        let leading = if dot.is_some() { "." } else { "" };
        if let Some(length) = self.message_name() {
            return self.message(leading, length);
        }
        let token = self.advance();
        let start = dot.as_ref().map_or(token.offset, |dot| dot.offset);
        let reserved = RESERVED_IDENTIFIERS.contains(&token.text.as_str());
        let name = format!("{leading}{}", token.text);
        if self.kind() == Tok::LParen {
            let open = self.token().offset;
            let id = self.nodes.id(open);
            let (args, depth) = self.arguments()?;
            if reserved {
                let expr = self.error_at(start, &format!("reserved identifier: {}", token.text));
                return Ok(Deep { expr, depth });
            }
            return Ok(Deep { expr: self.global(id, &name, args), depth });
        }
        if reserved {
            let expr = self.error_at(start, &format!("reserved identifier: {}", token.text));
            return Ok(Deep { expr, depth: 0 });
        }
        Ok(Deep { expr: self.nodes.expr(token.offset, Kind::Ident(name)), depth: 0 })
    }

    /// How many tokens a dotted name has that a `{` follows.
    fn message_name(&self) -> Option<usize> {
        let kind = |i: usize| self.tokens.get(self.at + i).map(|t| t.kind);
        let mut length = 1;
        while kind(length) == Some(Tok::Dot) && kind(length + 1) == Some(Tok::Ident) {
            length += 2;
        }
        (kind(length) == Some(Tok::LBrace)).then_some(length)
    }

    fn message(&mut self, leading: &str, length: usize) -> Parse<Deep> {
        let mut name = leading.to_owned();
        for _ in 0..length {
            name.push_str(&self.advance().text);
        }
        let open = self.advance();
        let id = self.nodes.id(open.offset);
        let mut fields = Vec::new();
        let mut depth = 0;
        let starts = [Tok::RBrace, Tok::Comma, Tok::Question, Tok::Ident, Tok::EscIdent];
        if self.kind() == Tok::Comma {
            self.advance();
        } else if !starts.contains(&self.kind()) {
            self.unexpected(&starts)?;
        }
        while self.kind() != Tok::RBrace {
            let optional = self.take(Tok::Question);
            if !matches!(self.kind(), Tok::Ident | Tok::EscIdent) {
                self.unexpected(&[Tok::Ident, Tok::EscIdent])?;
            }
            let field = self.advance();
            let Some(colon) = self.in_braces(Tok::Colon)? else { break };
            let field_id = self.nodes.id(colon.offset);
            let value = self.within(&[Tok::Comma, Tok::RBrace], Self::expr)?;
            depth = depth.max(value.depth);
            if let Some(question) = optional.as_ref().filter(|_| !self.optional_syntax) {
                self.error_at(question.offset, "unsupported syntax '?'");
            }
            let name = field.text.trim_matches('`').to_owned();
            fields.push(Field { id: field_id, name, value: value.expr, optional: optional.is_some() });
            if self.take(Tok::Comma).is_none() {
                break;
            }
        }
        self.close_brace()?;
        Ok(Deep { expr: Expr { id, kind: Kind::Struct { name, fields } }, depth })
    }

    fn literal(&mut self) -> Expr {
        let start = self.offset();
        let negative = self.take(Tok::Minus).is_some();
        let token = self.advance();
        let value = match token.kind {
            Tok::True => Ok(Value::Bool(true)),
            Tok::False => Ok(Value::Bool(false)),
            Tok::Null => Ok(Value::Null),
            Tok::Int => int(&token.text, negative).ok_or_else(|| "invalid int literal".to_owned()),
            Tok::Uint => {
                let text = &token.text[..token.text.len() - 1];
                let parsed = match text.strip_prefix("0x") {
                    Some(hex) => u64::from_str_radix(hex, 16),
                    None => text.parse(),
                };
                parsed.map(Value::Uint).map_err(|_| "invalid uint literal".to_owned())
            }
            Tok::Float => {
                let text = if negative { format!("-{}", token.text) } else { token.text.clone() };
                crate::number::parse(&text).map(Value::Double).ok_or_else(|| "invalid double literal".to_owned())
            }
            Tok::Bytes => crate::unescape::bytes(&token.text[1..]).map(|b| Value::Bytes(b.into())),
            _ => crate::unescape::string(&token.text).map(Value::from),
        };
        match value {
            Ok(value) => self.nodes.expr(start, Kind::Literal(value)),
            Err(message) => self.error_at(start, &message),
        }
    }

    fn global(&mut self, id: Id, function: &str, args: Vec<Expr>) -> Expr {
        self.call(id, function, None, args)
    }

    fn receiver(&mut self, id: Id, function: &str, target: Expr, args: Vec<Expr>) -> Expr {
        self.call(id, function, Some(target), args)
    }

    /// The call, or what the macro of this name makes of it.
    fn call(&mut self, id: Id, function: &str, target: Option<Expr>, args: Vec<Expr>) -> Expr {
        if let Some(found) = macros::find(self.macros, function, args.len(), target.is_some()) {
            let at = self.nodes.offset(id);
            match (found.expand)(&mut macros::Builder { nodes: &mut self.nodes, at }, target.as_ref(), &args) {
                Ok(Some(expr)) => return expr,
                Ok(None) => {}
                Err(error) => {
                    let offset = self.nodes.offset(error.id);
                    return self.error_at(offset, &error.message);
                }
            }
        }
        Expr { id, kind: Kind::Call { target: target.map(Box::new), function: function.to_owned(), args } }
    }
}

fn int(text: &str, negative: bool) -> Option<Value> {
    let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |hex| (hex, 16));
    let signed = if negative { format!("-{digits}") } else { digits.to_owned() };
    i64::from_str_radix(&signed, radix).ok().map(Value::Int)
}

/// Joins terms with a commutative operator into a balanced tree; there is one id less than terms.
fn balance(function: &str, terms: &mut impl Iterator<Item = Expr>, ids: &[Id]) -> Expr {
    if ids.is_empty() {
        return terms.next().unwrap_or(Expr { id: 0, kind: Kind::Unspecified });
    }
    let middle = ids.len() / 2;
    let left = balance(function, terms, &ids[..middle]);
    let right = balance(function, terms, &ids[middle + 1..]);
    let kind = Kind::Call { target: None, function: function.to_owned(), args: vec![left, right] };
    Expr { id: ids[middle], kind }
}
