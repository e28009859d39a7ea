//! Text to tokens.

use crate::issue::{Issues, Phase};

/// A piece of text that the grammar knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: Tok,
    pub(crate) text: String,
    /// Where it starts, in code points.
    pub(crate) offset: u32,
    /// Where it ends, in code points.
    pub(crate) end: u32,
}

/// Kinds of tokens, in the order in which error messages list them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tok {
    Eof,
    Equals,
    NotEquals,
    In,
    Less,
    LessEquals,
    GreaterEquals,
    Greater,
    And,
    Or,
    LBracket,
    RBracket,
    LBrace,
    RBrace,
    LParen,
    RParen,
    Dot,
    Comma,
    Minus,
    Exclam,
    Question,
    Colon,
    Plus,
    Star,
    Slash,
    Percent,
    True,
    False,
    Null,
    Float,
    Int,
    Uint,
    String,
    Bytes,
    Ident,
    EscIdent,
}

impl Tok {
    /// As the grammar names it in `expecting` lists.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Tok::Eof => "<EOF>",
            Tok::Equals => "'=='",
            Tok::NotEquals => "'!='",
            Tok::In => "'in'",
            Tok::Less => "'<'",
            Tok::LessEquals => "'<='",
            Tok::GreaterEquals => "'>='",
            Tok::Greater => "'>'",
            Tok::And => "'&&'",
            Tok::Or => "'||'",
            Tok::LBracket => "'['",
            Tok::RBracket => "']'",
            Tok::LBrace => "'{'",
            Tok::RBrace => "'}'",
            Tok::LParen => "'('",
            Tok::RParen => "')'",
            Tok::Dot => "'.'",
            Tok::Comma => "','",
            Tok::Minus => "'-'",
            Tok::Exclam => "'!'",
            Tok::Question => "'?'",
            Tok::Colon => "':'",
            Tok::Plus => "'+'",
            Tok::Star => "'*'",
            Tok::Slash => "'/'",
            Tok::Percent => "'%'",
            Tok::True => "'true'",
            Tok::False => "'false'",
            Tok::Null => "'null'",
            Tok::Float => "NUM_FLOAT",
            Tok::Int => "NUM_INT",
            Tok::Uint => "NUM_UINT",
            Tok::String => "STRING",
            Tok::Bytes => "BYTES",
            Tok::Ident => "IDENTIFIER",
            Tok::EscIdent => "ESC_IDENTIFIER",
        }
    }
}

struct Lexer<'a> {
    chars: &'a [char],
    at: usize,
}

/// How an attempt to read a string literal ended.
enum Literal {
    /// It ends before this index.
    Complete(usize),
    /// The character at this index, or the end of the text, does not belong into it.
    Broken(usize),
}

/// All tokens of the text, the last of which is `Eof`. Characters that start no token are reported and skipped.
pub(crate) fn tokens(chars: &[char], issues: &mut Issues) -> Vec<Token> {
    let mut lexer = Lexer { chars, at: 0 };
    let mut list = Vec::new();
    loop {
        lexer.skip_blank();
        let start = lexer.at;
        if start >= chars.len() {
            let offset = offset(chars.len());
            list.push(Token { kind: Tok::Eof, text: "<EOF>".into(), offset, end: offset });
            return list;
        }
        match lexer.next() {
            Ok((kind, end)) => {
                lexer.at = end;
                let text = chars[start..end].iter().collect();
                list.push(Token { kind, text, offset: offset(start), end: offset(end) });
            }
            Err(failed) => {
                let end = (failed + 1).min(chars.len());
                let text: String = chars[start..end].iter().flat_map(|c| escape(*c)).collect();
                issues.report(
                    Phase::Parse,
                    Some(offset(start)),
                    format!("Syntax error: token recognition error at: '{text}'"),
                );
                lexer.at = end;
            }
        }
    }
}

pub(crate) fn offset(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// Line breaks and tabs are visible in messages.
fn escape(c: char) -> Vec<char> {
    match c {
        '\n' => vec!['\\', 'n'],
        '\r' => vec!['\\', 'r'],
        '\t' => vec!['\\', 't'],
        c => vec![c],
    }
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn skip_blank(&mut self) {
        loop {
            match self.peek(0) {
                Some('\t' | ' ' | '\r' | '\n' | '\x0c') => self.at += 1,
                Some('/') if self.peek(1) == Some('/') => {
                    while self.peek(0).is_some_and(|c| c != '\n') {
                        self.at += 1;
                    }
                }
                _ => return,
            }
        }
    }

    /// The kind of the next token and where it ends, or where reading it failed.
    fn next(&self) -> Result<(Tok, usize), usize> {
        let Some(first) = self.peek(0) else { return Err(self.at) };
        let one = |kind| Ok((kind, self.at + 1));
        let pair = |second: char, kind| {
            if self.peek(1) == Some(second) { Ok((kind, self.at + 2)) } else { Err(self.at + 1) }
        };
        let either = |second: char, both, single| {
            if self.peek(1) == Some(second) { Ok((both, self.at + 2)) } else { Ok((single, self.at + 1)) }
        };
        match first {
            '=' => pair('=', Tok::Equals),
            '&' => pair('&', Tok::And),
            '|' => pair('|', Tok::Or),
            '!' => either('=', Tok::NotEquals, Tok::Exclam),
            '<' => either('=', Tok::LessEquals, Tok::Less),
            '>' => either('=', Tok::GreaterEquals, Tok::Greater),
            '[' => one(Tok::LBracket),
            ']' => one(Tok::RBracket),
            '{' => one(Tok::LBrace),
            '}' => one(Tok::RBrace),
            '(' => one(Tok::LParen),
            ')' => one(Tok::RParen),
            '.' if self.peek(1).is_some_and(|c| c.is_ascii_digit()) => Ok(self.number()),
            '.' => one(Tok::Dot),
            ',' => one(Tok::Comma),
            '-' => one(Tok::Minus),
            '?' => one(Tok::Question),
            ':' => one(Tok::Colon),
            '+' => one(Tok::Plus),
            '*' => one(Tok::Star),
            '/' => one(Tok::Slash),
            '%' => one(Tok::Percent),
            '0'..='9' => Ok(self.number()),
            '"' | '\'' => self.string(self.at, false).map(|end| (Tok::String, end)),
            '`' => self.escaped_identifier(),
            'a'..='z' | 'A'..='Z' | '_' => self.word(),
            _ => Err(self.at),
        }
    }

    fn digits(&self, from: usize, hex: bool) -> usize {
        let fits = |c: &&char| if hex { c.is_ascii_hexdigit() } else { c.is_ascii_digit() };
        from + self.chars.get(from..).unwrap_or_default().iter().take_while(fits).count()
    }

    fn number(&self) -> (Tok, usize) {
        let at = |index: usize| self.chars.get(index).copied();
        let unsigned = |end: usize| matches!(at(end), Some('u' | 'U'));
        if self.peek(0) == Some('0') && self.peek(1) == Some('x') {
            let end = self.digits(self.at + 2, true);
            if end > self.at + 2 {
                return if unsigned(end) { (Tok::Uint, end + 1) } else { (Tok::Int, end) };
            }
        }
        let mut end = self.digits(self.at, false);
        let mut float = false;
        if at(end) == Some('.') && at(end + 1).is_some_and(|c| c.is_ascii_digit()) {
            end = self.digits(end + 1, false);
            float = true;
        }
        if matches!(at(end), Some('e' | 'E')) {
            let sign = usize::from(matches!(at(end + 1), Some('+' | '-')));
            let exponent = self.digits(end + 1 + sign, false);
            if exponent > end + 1 + sign {
                end = exponent;
                float = true;
            }
        }
        if float {
            (Tok::Float, end)
        } else if unsigned(end) {
            (Tok::Uint, end + 1)
        } else {
            (Tok::Int, end)
        }
    }

    fn word(&self) -> Result<(Tok, usize), usize> {
        let quote = |index: usize| matches!(self.chars.get(index), Some('"' | '\''));
        let first = self.peek(0).unwrap_or_default();
        let second = self.peek(1).unwrap_or_default();
        let raw = |c: char| matches!(c, 'r' | 'R');
        if raw(first) && quote(self.at + 1) {
            return self.string(self.at + 1, true).map(|end| (Tok::String, end));
        }
        if matches!(first, 'b' | 'B') && quote(self.at + 1) {
            return self.string(self.at + 1, false).map(|end| (Tok::Bytes, end));
        }
        if matches!(first, 'b' | 'B') && raw(second) && quote(self.at + 2) {
            return self.string(self.at + 2, true).map(|end| (Tok::Bytes, end));
        }
        let length = self.chars[self.at..].iter().take_while(|c| c.is_ascii_alphanumeric() || **c == '_').count();
        let end = self.at + length;
        let text: String = self.chars[self.at..end].iter().collect();
        let kind = match text.as_str() {
            "in" => Tok::In,
            "true" => Tok::True,
            "false" => Tok::False,
            "null" => Tok::Null,
            _ => Tok::Ident,
        };
        Ok((kind, end))
    }

    fn escaped_identifier(&self) -> Result<(Tok, usize), usize> {
        let mut end = self.at + 1;
        while self.chars.get(end).is_some_and(|c| c.is_ascii_alphanumeric() || "_.-/ ".contains(*c)) {
            end += 1;
        }
        if self.chars.get(end) == Some(&'`') && end > self.at + 1 { Ok((Tok::EscIdent, end + 1)) } else { Err(end) }
    }

    /// A string whose opening quote is at `open`. A raw one has no escapes.
    fn string(&self, open: usize, raw: bool) -> Result<usize, usize> {
        let quote = self.chars[open];
        if self.chars.get(open + 1) == Some(&quote) && self.chars.get(open + 2) == Some(&quote) {
            // An unfinished triple quote still starts with an empty string.
            return Ok(match self.body(open + 3, quote, raw, true) {
                Literal::Complete(end) => end,
                Literal::Broken(_) => open + 2,
            });
        }
        match self.body(open + 1, quote, raw, false) {
            Literal::Complete(end) => Ok(end),
            Literal::Broken(at) => Err(at),
        }
    }

    fn body(&self, mut at: usize, quote: char, raw: bool, triple: bool) -> Literal {
        loop {
            match self.chars.get(at) {
                None => return Literal::Broken(at),
                Some(c) if *c == quote && !triple => return Literal::Complete(at + 1),
                Some(c) if *c == quote && (1..3).all(|i| self.chars.get(at + i) == Some(&quote)) => {
                    return Literal::Complete(at + 3);
                }
                Some('\n' | '\r') if !triple => return Literal::Broken(at),
                Some('\\') if !raw => match self.escape_sequence(at + 1) {
                    Ok(end) => at = end,
                    Err(failed) => return Literal::Broken(failed),
                },
                Some(_) => at += 1,
            }
        }
    }

    /// Where the escape sequence whose letter is at `at` ends, or which character of it is wrong.
    fn escape_sequence(&self, at: usize) -> Result<usize, usize> {
        let hex = |count: usize| {
            for i in at + 1..=at + count {
                if !self.chars.get(i).is_some_and(char::is_ascii_hexdigit) {
                    return Err(i);
                }
            }
            Ok(at + 1 + count)
        };
        match self.chars.get(at) {
            Some('a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '"' | '\'' | '\\' | '?' | '`') => Ok(at + 1),
            Some('x' | 'X') => hex(2),
            Some('u') => hex(4),
            Some('U') => hex(8),
            Some('0'..='3') => {
                for i in [at + 1, at + 2] {
                    if !matches!(self.chars.get(i), Some('0'..='7')) {
                        return Err(i);
                    }
                }
                Ok(at + 3)
            }
            _ => Err(at),
        }
    }
}
