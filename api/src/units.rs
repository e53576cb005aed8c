//! Quantities in exact arithmetic: [`Cpu`] in millionths of a vCPU, [`Bytes`] in bytes.
//!
//! The text form is the wire's: `^\d+(\.\d+)?(Ki|Mi|Gi|Ti)?$`. No floating point is used to read, compare or add;
//! the wire's JSON numbers are turned into text first and read the same way.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not a quantity. Each variant says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidQuantity {
    #[error("{0:?} is not vCPU; write {1}")]
    MilliCpu(String, String),
    #[error("{0:?} is not {1}; write a number such as {2}")]
    NotANumber(String, &'static str, &'static str),
    #[error("{0:?} has no unit; write it with Ki, Mi, Gi or Ti, for example {1:?}")]
    NoSuffix(String, String),
    #[error("{0:?} is finer than {1}")]
    TooFine(String, &'static str),
    #[error("{0:?} is larger than {1} can be")]
    TooLarge(String, &'static str),
}

/// vCPU, in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cpu(u64);

/// Bytes of memory or of storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(u64);

const MICROS_PER_VCPU: u64 = 1_000_000;
const SUFFIXES: [(&str, u64); 4] = [("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];

/// A decimal number as digits and the count of those after the point, with the multiplier of its suffix.
struct Decimal {
    digits: u128,
    fraction_len: u32,
    multiplier: Option<u64>,
}

impl Decimal {
    fn parse(text: &str) -> Option<Self> {
        let (number, multiplier) = SUFFIXES
            .iter()
            .find_map(|(suffix, multiplier)| {
                text.strip_suffix(suffix)
                    .map(|number| (number, Some(*multiplier)))
            })
            .unwrap_or((text, None));
        let (whole, fraction) = match number.split_once('.') {
            Some((whole, fraction)) if !fraction.is_empty() => (whole, fraction.trim_end_matches('0')),
            Some(_) => return None,
            None => (number, ""),
        };
        let all_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) {
            return None;
        }
        let whole = whole.trim_start_matches('0');
        // 38 digits always fit into u128; more are either absurd or too fine and are refused by the caller.
        let digits = format!("0{whole}{fraction}");
        if digits.len() > 38 {
            return Some(Self {
                digits: u128::MAX,
                fraction_len: 0,
                multiplier,
            });
        }
        let fraction_len = u32::try_from(fraction.len()).ok()?;
        Some(Self {
            digits: digits.parse().ok()?,
            fraction_len,
            multiplier,
        })
    }

    /// The value times `scale`, when that is a whole number.
    fn scaled(&self, scale: u64) -> Result<u64, ScaleError> {
        let scale = u128::from(scale) * u128::from(self.multiplier.unwrap_or(1));
        let product = self.digits.checked_mul(scale).ok_or(ScaleError::TooLarge)?;
        let divisor = 10u128.pow(self.fraction_len);
        if product % divisor != 0 {
            return Err(ScaleError::TooFine);
        }
        u64::try_from(product / divisor).map_err(|_| ScaleError::TooLarge)
    }
}

enum ScaleError {
    TooLarge,
    TooFine,
}

impl Cpu {
    pub const ZERO: Self = Self(0);

    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Millionths of a vCPU.
    #[must_use]
    pub const fn micros(self) -> u64 {
        self.0
    }

    /// Reads vCPU, for example `0.5`.
    ///
    /// # Errors
    /// When the text is no decimal number, finer than a millionth or too large.
    pub fn parse(text: &str) -> Result<Self, InvalidQuantity> {
        let Some(decimal) = Decimal::parse(text) else {
            if let Some(Ok(millis)) = text.strip_suffix('m').map(str::parse::<u32>) {
                let vcpu = Self(u64::from(millis) * 1000);
                return Err(InvalidQuantity::MilliCpu(text.into(), vcpu.to_string()));
            }
            return Err(InvalidQuantity::NotANumber(text.into(), "vCPU", "0.5"));
        };
        decimal
            .scaled(MICROS_PER_VCPU)
            .map(Self)
            .map_err(|error| match error {
                ScaleError::TooLarge => InvalidQuantity::TooLarge(text.into(), "vCPU"),
                ScaleError::TooFine => InvalidQuantity::TooFine(text.into(), "0.000001 vCPU"),
            })
    }

    /// Reads a JSON number of the wire, exactly as it was written.
    ///
    /// # Errors
    /// As [`Cpu::parse`].
    pub fn from_number(number: &serde_json::Number) -> Result<Self, InvalidQuantity> {
        let text = number.to_string();
        match number.as_f64() {
            // A few millionths are written in exponent form; they are quantities all the same.
            Some(value) if text.contains('e') => Self::parse(&format!("{value}")),
            _ => Self::parse(&text),
        }
    }

    /// For the wire's `number` members. Exact for every value a machine can have (below 2^33 vCPU).
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "below 2^53 micros for any real machine"
    )]
    pub fn as_f64(self) -> f64 {
        self.0 as f64 / MICROS_PER_VCPU as f64
    }

    #[must_use]
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = (self.0 / MICROS_PER_VCPU, self.0 % MICROS_PER_VCPU);
        if fraction == 0 {
            return write!(f, "{whole}");
        }
        let fraction = format!("{fraction:06}");
        write!(f, "{whole}.{}", fraction.trim_end_matches('0'))
    }
}

impl Serialize for Cpu {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cpu {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// `#[serde(with = "cpu_number")]`: vCPU as a JSON number, for the members that the wire declares so.
pub mod cpu_number {
    use super::Cpu;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(cpu: &Cpu, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(cpu.as_f64())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Cpu, D::Error> {
        let number = serde_json::Number::deserialize(deserializer)?;
        Cpu::from_number(&number).map_err(serde::de::Error::custom)
    }
}

impl Bytes {
    pub const ZERO: Self = Self(0);

    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    #[must_use]
    pub const fn mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    #[must_use]
    pub const fn gib(gib: u64) -> Self {
        Self(gib << 30)
    }

    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Reads a quantity that carries a unit, for example `4Gi`.
    ///
    /// # Errors
    /// When the text is no decimal number, has no unit, is no whole number of bytes or too large.
    pub fn parse(text: &str) -> Result<Self, InvalidQuantity> {
        let Some(decimal) = Decimal::parse(text) else {
            return Err(InvalidQuantity::NotANumber(
                text.into(),
                "a number of bytes",
                "\"4Gi\"",
            ));
        };
        if decimal.multiplier.is_none() {
            return Err(InvalidQuantity::NoSuffix(text.into(), format!("{text}Mi")));
        }
        decimal.scaled(1).map(Self).map_err(|error| match error {
            ScaleError::TooLarge => InvalidQuantity::TooLarge(text.into(), "a number of bytes"),
            ScaleError::TooFine => InvalidQuantity::TooFine(text.into(), "one byte"),
        })
    }

    #[must_use]
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// Rounded to three digits, for people; [`fmt::Display`] is exact.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "rounded for display")]
    pub fn rounded(self) -> String {
        let Some((suffix, multiplier)) = SUFFIXES.iter().find(|(_, multiplier)| self.0 >= *multiplier) else {
            return format!("{} B", self.0);
        };
        let value = self.0 as f64 / *multiplier as f64;
        let text = if value >= 100.0 {
            format!("{value:.0}")
        } else {
            format!("{value:.1}")
        };
        format!("{} {suffix}B", text.strip_suffix(".0").unwrap_or(&text))
    }
}

/// Exact: the largest unit that divides the value, at least `Ki` with a fraction.
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((suffix, multiplier)) = SUFFIXES
            .iter()
            .find(|(_, multiplier)| self.0 != 0 && self.0.is_multiple_of(*multiplier))
        {
            return write!(f, "{}{suffix}", self.0 / multiplier);
        }
        let (whole, rest) = (self.0 >> 10, self.0 & 1023);
        // A 1024th is 0.0009765625: ten digits say it exactly.
        let fraction = format!("{:010}", rest * 9_765_625);
        let fraction = fraction.trim_end_matches('0');
        let fraction = if fraction.is_empty() { "0" } else { fraction };
        write!(f, "{whole}.{fraction}Ki")
    }
}

/// `#[serde(with = "bytes_text")]`: bytes as the wire's text with a unit.
pub mod bytes_text {
    use super::Bytes;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        Bytes::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// `#[serde(with = "optional_bytes_text")]`: the same for a member that may be absent.
pub mod optional_bytes_text {
    use super::Bytes;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &Option<Bytes>, serializer: S) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => serializer.collect_str(bytes),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bytes>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| Bytes::parse(&text))
            .transpose()
            .map_err(serde::de::Error::custom)
    }
}

/// Schema of a size as text, for the members that the wire declares so.
#[cfg(feature = "openapi")]
#[derive(Debug, Clone, Copy)]
pub struct SizeText;

#[cfg(feature = "openapi")]
fn text_schema(description: &str, pattern: &str) -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
    utoipa::openapi::ObjectBuilder::new()
        .schema_type(utoipa::openapi::schema::Type::String)
        .description(Some(description))
        .pattern(Some(pattern))
        .into()
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for SizeText {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        text_schema("bytes with a unit, above zero", r"^\d+(\.\d+)?(Ki|Mi|Gi|Ti)$")
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for SizeText {}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for Cpu {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        text_schema(
            "vCPU, above zero; six places after the point at most",
            r"^\d+(\.\d{1,6})?$",
        )
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for Cpu {}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for Bytes {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::Integer)
            .format(Some(utoipa::openapi::SchemaFormat::KnownFormat(
                utoipa::openapi::KnownFormat::Int64,
            )))
            .minimum(Some(0))
            .into()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for Bytes {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn milli_cpu_is_refused_with_the_right_form() {
        let error = Cpu::parse("500m").unwrap_err();
        assert_eq!(error.to_string(), "\"500m\" is not vCPU; write 0.5");
    }

    #[test]
    fn reads_exact_values() {
        assert_eq!(Cpu::parse("0.5").unwrap().micros(), 500_000);
        assert_eq!(Cpu::parse("0.1").unwrap().micros(), 100_000);
        assert_eq!(Cpu::parse("016.000000000").unwrap().micros(), 16_000_000);
        assert_eq!(Bytes::parse("1.5Gi").unwrap(), Bytes::mib(1536));
        assert_eq!(Bytes::parse("1Ti").unwrap().get(), 1 << 40);
    }

    #[test]
    fn refuses_what_is_not_a_quantity() {
        for bad in [
            "", ".5", "5.", "-1", "+1", "1e3", "1 ", "1,5", "Gi", "1GiB", "1K", "NaN", "٣",
        ] {
            assert!(Cpu::parse(bad).is_err(), "{bad}");
            assert!(Bytes::parse(bad).is_err(), "{bad}");
        }
        assert!(matches!(Bytes::parse("4"), Err(InvalidQuantity::NoSuffix(..))));
        assert!(matches!(Bytes::parse("0.3Ki"), Err(InvalidQuantity::TooFine(..))));
        assert!(matches!(
            Cpu::parse("0.0000001"),
            Err(InvalidQuantity::TooFine(..))
        ));
        assert!(matches!(
            Cpu::parse(&"9".repeat(60)),
            Err(InvalidQuantity::TooLarge(..))
        ));
        assert!(matches!(
            Bytes::parse("99999999999999Ti"),
            Err(InvalidQuantity::TooLarge(..))
        ));
    }

    #[test]
    fn rounded_is_for_people() {
        assert_eq!(Bytes::mib(3277).rounded(), "3.2 GiB");
        assert_eq!(Bytes::gib(4).rounded(), "4 GiB");
        assert_eq!(Bytes::new(12).rounded(), "12 B");
    }

    proptest! {
        #[test]
        fn cpu_text_round_trips(micros in 0..u64::MAX) {
            let cpu = Cpu::from_micros(micros);
            prop_assert_eq!(Cpu::parse(&cpu.to_string()).unwrap(), cpu);
        }

        /// Up to 2^33 vCPU: above, two neighbouring millionths share one f64.
        #[test]
        fn cpu_numbers_round_trip(micros in prop_oneof![0..100u64, 0..(1u64 << 33) * MICROS_PER_VCPU]) {
            #[derive(Serialize, Deserialize)]
            struct Wire(#[serde(with = "cpu_number")] Cpu);
            let text = serde_json::to_string(&Wire(Cpu::from_micros(micros))).unwrap();
            prop_assert_eq!(serde_json::from_str::<Wire>(&text).unwrap().0.micros(), micros);
        }

        #[test]
        fn bytes_text_round_trips(bytes in 0..u64::MAX) {
            let bytes = Bytes::new(bytes);
            prop_assert_eq!(Bytes::parse(&bytes.to_string()).unwrap(), bytes);
        }
    }
}
