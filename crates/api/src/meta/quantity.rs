//! `resource.Quantity`: fixed-point numbers with decimal, binary or exponent suffixes, and their canonical text.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

/// What a malformed quantity is told.
pub const FORMAT_ERROR: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
const NUMERIC_ERROR: &str = "unable to parse numeric part of quantity";
const SUFFIX_ERROR: &str = "unable to parse quantity's suffix";
const NANO: i128 = 1_000_000_000;

/// How an amount was written, and is written again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `12e6`.
    DecimalExponent,
    /// `12Mi`.
    BinarySI,
    /// `12M`, `500m`.
    #[default]
    DecimalSI,
}

/// A parsed quantity: an exact number of billionths, and its notation.
///
/// Compares and orders by value alone. Amounts beyond 1.7e29 are capped.
#[derive(Clone, Copy, Debug, Default)]
pub struct Amount {
    nano: i128,
    format: Format,
}

impl PartialEq for Amount {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}
impl Eq for Amount {}
impl PartialOrd for Amount {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Amount {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

fn interpret_suffix(suffix: &str) -> Option<(u32, i32, Format)> {
    use Format::{BinarySI, DecimalExponent, DecimalSI};
    Some(match suffix {
        "n" => (10, -9, DecimalSI),
        "u" => (10, -6, DecimalSI),
        "m" => (10, -3, DecimalSI),
        "" => (10, 0, DecimalSI),
        "k" => (10, 3, DecimalSI),
        "M" => (10, 6, DecimalSI),
        "G" => (10, 9, DecimalSI),
        "T" => (10, 12, DecimalSI),
        "P" => (10, 15, DecimalSI),
        "E" => (10, 18, DecimalSI),
        "Ki" => (2, 10, BinarySI),
        "Mi" => (2, 20, BinarySI),
        "Gi" => (2, 30, BinarySI),
        "Ti" => (2, 40, BinarySI),
        "Pi" => (2, 50, BinarySI),
        "Ei" => (2, 60, BinarySI),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            (10, exponent.parse().ok()?, DecimalExponent)
        }
    })
}

/// `digits × 10^power` in whole units of the target scale, capped, rounded away from zero.
fn scaled(digits: &str, power: i32) -> i128 {
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return 0;
    }
    if power < 0 {
        let drop = power.unsigned_abs() as usize;
        if drop >= digits.len() {
            return 1;
        }
        let (kept, dropped) = digits.split_at(digits.len() - drop);
        let round_up = dropped.bytes().any(|b| b != b'0');
        return kept.parse::<i128>().unwrap_or(i128::MAX).saturating_add(i128::from(round_up));
    }
    let Ok(value) = digits.parse::<i128>() else { return i128::MAX };
    10i128.checked_pow(power.unsigned_abs()).and_then(|p| value.checked_mul(p)).unwrap_or(i128::MAX)
}

impl Amount {
    /// Nothing, as `0`.
    pub const ZERO: Amount = Amount { nano: 0, format: Format::DecimalSI };

    /// Parses `text`.
    ///
    /// # Errors
    /// Upstream's sentences for what is no quantity.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (negative, unsigned) = match text.as_bytes().first() {
            None => return Err(FORMAT_ERROR.to_owned()),
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
        };
        let integer_end = unsigned.find(|c: char| !c.is_ascii_digit()).unwrap_or(unsigned.len());
        let (integer, rest) = unsigned.split_at(integer_end);
        let (fraction, suffix) = match rest.strip_prefix('.') {
            Some(after) => after.split_at(after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len())),
            None => ("", rest),
        };
        let letters = suffix.trim_start_matches(|c: char| "eEinumkKMGTP".contains(c));
        let exponent = letters.strip_prefix(['-', '+']).unwrap_or(letters);
        if !exponent.bytes().all(|c| c.is_ascii_digit()) {
            return Err(FORMAT_ERROR.to_owned());
        }
        let (base, power, mut format) = interpret_suffix(suffix).ok_or_else(|| SUFFIX_ERROR.to_owned())?;
        if integer.is_empty() && fraction.is_empty() {
            return Err(if unsigned.is_empty() { FORMAT_ERROR } else { NUMERIC_ERROR }.to_owned());
        }
        let digits = format!("{integer}{fraction}");
        let scale = -i32::try_from(fraction.len()).unwrap_or(i32::MAX);
        let nano = if base == 10 {
            scaled(&digits, scale.saturating_add(power).saturating_add(9))
        } else {
            // 2^p × digits × 10^scale: digits and 2^p multiply exactly before the decimal point moves.
            let value = digits.trim_start_matches('0');
            let value = if value.is_empty() { Ok(0) } else { value.parse::<i128>() };
            let exact = value.ok().and_then(|v| v.checked_mul(1i128 << power)).unwrap_or(i128::MAX);
            scaled(&exact.to_string(), scale.saturating_add(9)).min(i128::from(i64::MAX) * NANO)
        };
        if format == Format::BinarySI && nano > 0 && nano < NANO {
            format = Format::DecimalSI;
        }
        Ok(Self { nano: if negative { -nano } else { nano }, format })
    }

    /// An amount of whole units.
    #[must_use]
    pub fn from_units(units: i64, format: Format) -> Self {
        Self { nano: i128::from(units) * NANO, format }
    }

    /// An amount of thousandths, e.g. of CPU cores.
    #[must_use]
    pub fn from_milli(milli: i64) -> Self {
        Self { nano: i128::from(milli) * (NANO / 1000), format: Format::DecimalSI }
    }

    /// An amount of bytes, written with binary suffixes.
    #[must_use]
    pub fn from_bytes(bytes: i64) -> Self {
        Self::from_units(bytes, Format::BinarySI)
    }

    /// Billionths.
    #[must_use]
    pub fn nano_value(&self) -> i128 {
        self.nano
    }

    /// Whole units, rounded away from zero, capped to an i64.
    #[must_use]
    pub fn value(&self) -> i64 {
        self.divided(NANO)
    }

    /// Thousandths, rounded away from zero, capped to an i64.
    #[must_use]
    pub fn milli_value(&self) -> i64 {
        self.divided(NANO / 1000)
    }

    fn divided(&self, unit: i128) -> i64 {
        let magnitude = self.nano.unsigned_abs().div_ceil(unit.unsigned_abs());
        let magnitude = i64::try_from(magnitude).unwrap_or(i64::MAX);
        if self.nano < 0 { -magnitude } else { magnitude }
    }

    /// Units as a floating-point number, approximately.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn as_f64(&self) -> f64 {
        self.nano as f64 / 1e9
    }

    /// Whether the amount is 0.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.nano == 0
    }

    /// -1, 0 or 1.
    #[must_use]
    pub fn sign(&self) -> i32 {
        match self.nano {
            0 => 0,
            n if n < 0 => -1,
            _ => 1,
        }
    }

    /// Whether the amount is a whole number of units.
    #[must_use]
    pub fn is_integer(&self) -> bool {
        self.nano % NANO == 0
    }

    /// The notation.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// The sum; takes the notation of `other` where this amount is 0, as upstream does.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nano: self.nano.saturating_add(other.nano), format }
    }

    /// The difference.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nano: self.nano.saturating_sub(other.nano), format }
    }

    /// The amount as the wire carries it.
    #[must_use]
    pub fn to_quantity(&self) -> Quantity {
        Quantity(self.to_string())
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return f.write_str("0");
        }
        let small = self.nano.unsigned_abs() < 1024 * NANO.unsigned_abs();
        if self.format == Format::BinarySI && !small && self.is_integer() {
            let (mut units, mut step) = (self.nano / NANO, 0);
            while units % 1024 == 0 && step < 6 {
                units /= 1024;
                step += 1;
            }
            return write!(f, "{units}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][step]);
        }
        let (mut mantissa, mut exponent) = (self.nano, -9);
        let most = if self.format == Format::DecimalExponent { 27 } else { 18 };
        while mantissa % 1000 == 0 && exponent < most {
            mantissa /= 1000;
            exponent += 3;
        }
        if self.format == Format::DecimalExponent {
            return if exponent == 0 { write!(f, "{mantissa}") } else { write!(f, "{mantissa}e{exponent}") };
        }
        let suffixes = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
        write!(f, "{mantissa}{}", suffixes[usize::try_from((exponent + 9) / 3).unwrap_or(0)])
    }
}

/// A list of resources as PodSpecs and NodeStatuses carry it.
pub type ResourceList = BTreeMap<String, Quantity>;

/// The amount of `resource` in `list`; 0 where absent or malformed (stored objects hold only well-formed quantities).
#[must_use]
pub fn amount_of(list: Option<&ResourceList>, resource: &str) -> Amount {
    list.and_then(|l| l.get(resource)).and_then(|q| Amount::parse(&q.0).ok()).unwrap_or_default()
}

/// Rewrites a quantity in its canonical form, as the API server re-serialises it.
///
/// # Errors
/// The sentence for what is no quantity.
pub fn canonicalize(quantity: &mut Quantity) -> Result<(), String> {
    let text = Amount::parse(&quantity.0)?.to_string();
    if text != quantity.0 {
        quantity.0 = text;
    }
    Ok(())
}

/// [`canonicalize`] for every quantity of a list.
///
/// # Errors
/// The sentence for the first value that is no quantity.
pub fn canonicalize_list(list: Option<&mut ResourceList>) -> Result<(), String> {
    list.into_iter().flat_map(|l| l.values_mut()).try_for_each(canonicalize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms() {
        let cases = [
            ("0", "0"),
            ("-0", "0"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("1500m", "1500m"),
            ("100m", "100m"),
            ("1", "1"),
            ("1000", "1k"),
            ("1e3", "1e3"),
            ("12E6", "12e6"),
            ("1.5", "1500m"),
            ("128974848", "128974848"),
            ("129M", "129M"),
            ("123Mi", "123Mi"),
            ("1Ki", "1Ki"),
            ("512Ki", "512Ki"),
            ("1000Ki", "1000Ki"),
            ("0.1m", "100u"),
            ("0.0000000001", "1n"),
            ("-1.5", "-1500m"),
            ("1025", "1025"),
            ("1.1Ki", "1126400m"),
            ("3E", "3E"),
            ("16Ei", "9223372036854775807"),
            ("5.", "5"),
            (".5", "500m"),
            ("0.5Mi", "512Ki"),
            ("100e-3", "100e-3"),
            ("1e-1", "100e-3"),
        ];
        for (text, want) in cases {
            assert_eq!(Amount::parse(text).unwrap().to_string(), want, "{text}");
        }
    }

    #[test]
    fn malformed() {
        let cases = [
            ("", FORMAT_ERROR),
            ("abc", FORMAT_ERROR),
            ("1 Gi", FORMAT_ERROR),
            ("1.2.3", FORMAT_ERROR),
            ("1Gb", FORMAT_ERROR),
            ("1mm", SUFFIX_ERROR),
            ("1i", SUFFIX_ERROR),
            ("1e", SUFFIX_ERROR),
            ("1K", SUFFIX_ERROR),
            (".", NUMERIC_ERROR),
        ];
        for (text, want) in cases {
            assert_eq!(Amount::parse(text).unwrap_err(), want, "{text}");
        }
    }

    #[test]
    fn values_round_away_from_zero() {
        let a = |t: &str| Amount::parse(t).unwrap();
        assert_eq!(a("1500m").value(), 2);
        assert_eq!(a("-1500m").value(), -2);
        assert_eq!(a("1n").milli_value(), 1);
        assert_eq!(a("2Gi").value(), 2 << 30);
        assert!(a("1Gi") > a("1G"));
        assert_eq!(a("1Gi"), a("1024Mi"));
        assert_eq!(a("100m").plus(&a("0.9")).to_string(), "1");
        assert_eq!(a("1Gi").minus(&a("512Mi")).to_string(), "512Mi");
        assert_eq!(a("9223372036854775807e9").value(), i64::MAX);
    }

    #[test]
    fn arbitrary_text_never_panics_and_amounts_read_back() {
        let entropy = crate::entropy::Entropy::seeded(7);
        let alphabet: Vec<char> = "0123456789.+-eEinumkKMGTP é".chars().collect();
        for _ in 0..20_000 {
            let length = 1 + entropy.below(12);
            let pick = |_| alphabet[usize::try_from(entropy.below(alphabet.len() as u64)).unwrap()];
            let text: String = (0..length).map(pick).collect();
            if let Ok(a) = Amount::parse(&text) {
                let printed = a.to_string();
                let again = Amount::parse(&printed).unwrap_or_else(|e| panic!("{text} printed as {printed}: {e}"));
                assert_eq!(again.to_string(), printed, "{text}");
            }
        }
    }
}
