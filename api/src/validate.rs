//! Reading of untrusted JSON: every fault of an input is found in one pass, each with its path and how to mend it.
//!
//! A reader takes a [`Cursor`] and gives `Some(value)`, or `None` after it has recorded at least one fault. It first
//! reads all members and only then asks whether each succeeded, so that one fault never hides another:
//!
//! ```
//! use berth_api::validate::{Cursor, read};
//! fn point(cursor: &Cursor<'_>) -> Option<(u64, u64)> {
//!     let x = cursor.member("x").integer(0..=9);
//!     let y = cursor.member("y").integer(0..=9);
//!     Some((x?, y?))
//! }
//! let faults = read(&serde_json::json!({"x": 10}), point).unwrap_err();
//! assert_eq!(faults.to_string(), "x: 10 is out of range; write a whole number from 0 to 9\ny: is missing; write a whole number from 0 to 9");
//! ```
//!
//! Unknown members are ignored: a newer client may say more than this version knows.

use std::cell::RefCell;
use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// One thing that is wrong with an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Fault {
    /// Where, for example `resources.cpu.min` or `volumes[2].ordinal`; empty for the input as a whole.
    pub path: String,
    /// What is wrong and how to mend it.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.problem)
        } else {
            write!(f, "{}: {}", self.path, self.problem)
        }
    }
}

/// So many faults of an input are listed, and how many there are besides: as many as a batch of heartbeats can have, and far fewer
/// than a body of 1 MiB can.
pub const FAULTS_MAX: usize = 500;

/// What is wrong with an input, in reading order. Invariant: not empty, and at most one more than [`FAULTS_MAX`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// One fault alone.
    #[must_use]
    pub fn one(path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self(vec![Fault {
            path: path.into(),
            problem: problem.into(),
        }])
    }

    /// `Err` when there are any.
    ///
    /// # Errors
    /// When `faults` is not empty.
    pub fn check(mut faults: Vec<Fault>) -> Result<(), Self> {
        if faults.is_empty() {
            return Ok(());
        }
        if let Some(more @ 1..) = faults.len().checked_sub(FAULTS_MAX) {
            faults.truncate(FAULTS_MAX);
            faults.push(Fault {
                path: String::new(),
                problem: format!("{more} more faults are not listed"),
            });
        }
        Err(Self(faults))
    }

    #[must_use]
    pub fn list(&self) -> &[Fault] {
        &self.0
    }

    #[must_use]
    pub fn into_list(self) -> Vec<Fault> {
        self.0
    }
}

/// One fault a line.
impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// Reads a value, with all its faults when there are any.
///
/// # Errors
/// When the reader recorded a fault.
///
/// # Panics
/// When the reader gave nothing without saying why.
pub fn read<T>(value: &Value, reader: impl FnOnce(&Cursor<'_>) -> Option<T>) -> Result<T, Faults> {
    let faults = RefCell::new(Vec::new());
    let result = reader(&Cursor {
        value: Some(value),
        path: String::new(),
        faults: &faults,
    });
    Faults::check(faults.into_inner())?;
    Ok(result.expect("a reader that gives nothing has recorded a fault"))
}

/// Parses JSON. A member that is there twice is a fault: which of the two was meant, nobody knows.
///
/// # Errors
/// With the place of the first syntax fault, or with every repeated member.
pub fn parse_json(text: &[u8]) -> Result<Value, Faults> {
    let repeated = RefCell::new(Vec::new());
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let seed = Strict {
        path: String::new(),
        repeated: &repeated,
    };
    let value = seed
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|error| Faults::one("", format!("is not JSON: {error}")))?;
    Faults::check(repeated.into_inner())?;
    Ok(value)
}

/// Builds a [`Value`] and notes members that are there twice.
struct Strict<'a> {
    path: String,
    repeated: &'a RefCell<Vec<Fault>>,
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = sequence.next_element_seed(Strict {
            path: format!("{}[{}]", self.path, list.len()),
            repeated: self.repeated,
        })? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = serde_json::Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let path = member_path(&self.path, &name);
            let value = map.next_value_seed(Strict {
                path: path.clone(),
                repeated: self.repeated,
            })?;
            if object.insert(name, value).is_some() {
                self.repeated.borrow_mut().push(Fault {
                    path,
                    problem: "is there twice; keep one".to_owned(),
                });
            }
        }
        Ok(Value::Object(object))
    }
}

fn member_path(parent: &str, name: &str) -> String {
    let plain = !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '/'));
    match (parent.is_empty(), plain) {
        (true, true) => name.to_owned(),
        (false, true) => format!("{parent}.{name}"),
        (_, false) => format!("{parent}[{:?}]", cut(name, SHOWN_CHARS_MAX)),
    }
}

/// A place in the input, present or not. `null` counts as absent, as everywhere in the wire API.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    value: Option<&'a Value>,
    path: String,
    faults: &'a RefCell<Vec<Fault>>,
}

impl<'a> Cursor<'a> {
    /// The place of a member; absent when this place is absent or no object.
    #[must_use]
    pub fn member(&self, name: &str) -> Self {
        let value = self.value.and_then(|value| value.get(name));
        let path = member_path(&self.path, name);
        Self {
            value,
            path,
            faults: self.faults,
        }
    }

    fn element(&self, index: usize, value: &'a Value) -> Self {
        Self {
            value: Some(value),
            path: format!("{}[{index}]", self.path),
            faults: self.faults,
        }
    }

    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The raw value when it is there and not `null`.
    #[must_use]
    pub fn raw(&self) -> Option<&'a Value> {
        self.value.filter(|value| !value.is_null())
    }

    /// Whether the member was written at all, `null` included.
    #[must_use]
    pub fn is_written(&self) -> bool {
        self.value.is_some()
    }

    #[must_use]
    pub fn is_absent(&self) -> bool {
        self.raw().is_none()
    }

    /// Records a fault of this place.
    pub fn fault(&self, problem: impl Into<String>) {
        self.faults.borrow_mut().push(Fault {
            path: self.path.clone(),
            problem: problem.into(),
        });
    }

    /// Records a fault and gives nothing: the tail of a reader that failed.
    pub fn refuse<T>(&self, problem: impl Into<String>) -> Option<T> {
        self.fault(problem);
        None
    }

    /// Takes over faults that another reader found below this place.
    pub fn take(&self, faults: Faults) {
        for fault in faults.0 {
            let path = match (self.path.is_empty(), fault.path.is_empty()) {
                (true, _) => fault.path,
                (false, true) => self.path.clone(),
                (false, false) => format!("{}.{}", self.path, fault.path),
            };
            self.faults.borrow_mut().push(Fault {
                path,
                problem: fault.problem,
            });
        }
    }

    /// `Some(None)` when absent, else what `reader` gives.
    pub fn optional<T>(&self, reader: impl FnOnce(&Self) -> Option<T>) -> Option<Option<T>> {
        if self.is_absent() {
            Some(None)
        } else {
            reader(self).map(Some)
        }
    }

    /// `default` when absent, else what `reader` gives.
    pub fn or<T>(&self, default: T, reader: impl FnOnce(&Self) -> Option<T>) -> Option<T> {
        if self.is_absent() {
            Some(default)
        } else {
            reader(self)
        }
    }

    fn present(&self, wanted: &str) -> Option<&'a Value> {
        match self.raw() {
            Some(value) => Some(value),
            None => self.refuse(format!("is missing; write {wanted}")),
        }
    }

    fn wrong<T>(&self, value: &Value, wanted: &str) -> Option<T> {
        self.refuse(format!("{} is {}; write {wanted}", shown(value), noun(value)))
    }

    /// Records a fault unless this is an object.
    #[must_use]
    pub fn object(&self) -> Option<&'a serde_json::Map<String, Value>> {
        let value = self.present("an object")?;
        match value.as_object() {
            Some(object) => Some(object),
            None => self.wrong(value, "an object"),
        }
    }

    /// The members of an object as places.
    #[must_use]
    pub fn entries(&self) -> Option<Vec<(&'a str, Self)>> {
        let object = self.object()?;
        Some(
            object
                .keys()
                .map(|name| (name.as_str(), self.member(name)))
                .collect(),
        )
    }

    /// The elements of an array as places.
    #[must_use]
    pub fn elements(&self) -> Option<Vec<Self>> {
        let value = self.present("a list")?;
        let Some(list) = value.as_array() else {
            return self.wrong(value, "a list");
        };
        Some(
            list.iter()
                .enumerate()
                .map(|(index, value)| self.element(index, value))
                .collect(),
        )
    }

    /// Every element read by `reader`; all of them are tried.
    pub fn list<T>(&self, mut reader: impl FnMut(&Self) -> Option<T>) -> Option<Vec<T>> {
        let read: Vec<Option<T>> = self.elements()?.iter().map(&mut reader).collect();
        read.into_iter().collect()
    }

    /// A text; `wanted` says what kind.
    #[must_use]
    pub fn text_of(&self, wanted: &str) -> Option<&'a str> {
        let value = self.present(wanted)?;
        match value.as_str() {
            Some(text) => Some(text),
            None => self.wrong(value, wanted),
        }
    }

    /// A text, empty or not.
    #[must_use]
    pub fn text(&self) -> Option<&'a str> {
        self.text_of("a text")
    }

    /// A text of `len` characters.
    #[must_use]
    pub fn text_sized(&self, len: RangeInclusive<usize>) -> Option<&'a str> {
        let wanted = format!("a text of {} to {} characters", len.start(), len.end());
        let text = self.text_of(&wanted)?;
        let count = text.chars().count();
        if len.contains(&count) {
            Some(text)
        } else {
            self.refuse(format!("has {count} characters; write {wanted}"))
        }
    }

    /// A text that `parse` reads; its error says how to mend.
    pub fn parse<T, E: fmt::Display>(
        &self,
        wanted: &str,
        parse: impl FnOnce(&'a str) -> Result<T, E>,
    ) -> Option<T> {
        match parse(self.text_of(wanted)?) {
            Ok(value) => Some(value),
            Err(error) => self.refuse(cut(&error.to_string(), PROBLEM_CHARS_MAX)),
        }
    }

    /// A text that `accepts` holds for; `wanted` describes such a text.
    pub fn matching(&self, wanted: &str, accepts: impl FnOnce(&str) -> bool) -> Option<String> {
        let text = self.text_of(wanted)?;
        if accepts(text) {
            Some(text.to_owned())
        } else {
            self.refuse(format!("{} is not valid; write {wanted}", shown_text(text)))
        }
    }

    /// One of a closed set of words.
    #[must_use]
    pub fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
        let wanted = format!("one of {}", names.join(", "));
        let text = self.text_of(&wanted)?;
        match words.iter().find(|(name, _)| *name == text) {
            Some((_, value)) => Some(*value),
            None => self.refuse(format!("{} is unknown; write {wanted}", shown_text(text))),
        }
    }

    #[must_use]
    pub fn boolean(&self) -> Option<bool> {
        let value = self.present("true or false")?;
        match value.as_bool() {
            Some(value) => Some(value),
            None => self.wrong(value, "true or false"),
        }
    }

    /// A whole number in `range`.
    #[must_use]
    pub fn integer(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let wanted = match (*range.start(), *range.end()) {
            (min, max) if max >= INT32_MAX => format!("a whole number of at least {min}"),
            (min, max) => format!("a whole number from {min} to {max}"),
        };
        let value = self.present(&wanted)?;
        let Some(number) = value.as_number() else {
            return self.wrong(value, &wanted);
        };
        match number.as_u64() {
            Some(whole) if range.contains(&whole) => Some(whole),
            Some(_) => self.refuse(format!("{number} is out of range; write {wanted}")),
            None if number.is_i64() => self.refuse(format!("{number} is out of range; write {wanted}")),
            None => self.refuse(format!("{number} is not a whole number; write {wanted}")),
        }
    }

    /// As [`Cursor::integer`], for counts that travel as int32.
    #[must_use]
    pub fn count(&self, range: RangeInclusive<u32>) -> Option<u32> {
        let max = u64::from(*range.end()).min(INT32_MAX);
        let whole = self.integer(u64::from(*range.start())..=max)?;
        u32::try_from(whole).ok()
    }

    /// A number for which `accepts` holds; `wanted` describes such a number.
    pub fn number(&self, wanted: &str, accepts: impl FnOnce(f64) -> bool) -> Option<f64> {
        let value = self.present(wanted)?;
        let Some(number) = value.as_f64() else {
            return self.wrong(value, wanted);
        };
        if accepts(number) {
            Some(number)
        } else {
            self.refuse(format!("{value} is out of range; write {wanted}"))
        }
    }
}

/// Counts travel as int32: a larger one makes a reply unreadable for the generated client.
pub const INT32_MAX: u64 = i32::MAX as u64;
/// Bytes travel as int64.
pub const INT64_MAX: u64 = i64::MAX as u64;

fn noun(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// An input is repeated in messages up to this many characters.
const SHOWN_CHARS_MAX: usize = 80;
/// A message of another reader is kept up to this many characters.
const PROBLEM_CHARS_MAX: usize = 400;

fn cut(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => shown_text(text),
        Value::Array(_) => "[..]".to_owned(),
        Value::Object(_) => "{..}".to_owned(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// A text in quotes, cut when long: a message never grows with its input.
#[must_use]
pub fn shown_text(text: &str) -> String {
    format!("{:?}", cut(text, SHOWN_CHARS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn faults(value: &Value, reader: impl FnOnce(&Cursor<'_>) -> Option<()>) -> Vec<String> {
        match read(value, reader) {
            Ok(()) => vec![],
            Err(faults) => faults.list().iter().map(Fault::to_string).collect(),
        }
    }

    #[test]
    fn every_fault_is_listed_with_its_path() {
        let value = json!({"a": 1.5, "b": [1, "x", 70000], "c": {"d e": true}, "m": null});
        let found = faults(&value, |cursor| {
            let a = cursor.member("a").integer(0..=9);
            let b = cursor
                .member("b")
                .list(|port| port.integer(1..=65535).map(|_| ()));
            let c = cursor.member("c").member("d e").text();
            let missing = cursor.member("m").boolean();
            a?;
            b?;
            c?;
            missing?;
            Some(())
        });
        assert_eq!(
            found,
            [
                "a: 1.5 is not a whole number; write a whole number from 0 to 9",
                "b[1]: \"x\" is a text; write a whole number from 1 to 65535",
                "b[2]: 70000 is out of range; write a whole number from 1 to 65535",
                "c[\"d e\"]: true is a truth value; write a text",
                "m: is missing; write true or false",
            ]
        );
    }

    #[test]
    fn an_absent_optional_is_no_fault_and_a_wrong_one_is() {
        assert!(read(&json!({}), |c| c.member("x").optional(Cursor::boolean)).is_ok());
        assert!(read(&json!({"x": 1}), |c| c.member("x").optional(Cursor::boolean)).is_err());
    }

    #[test]
    fn negative_numbers_are_out_of_range_and_not_wrapped() {
        let found = faults(&json!({"x": -1}), |c| {
            c.member("x").count(0..=u32::MAX).map(|_| ())
        });
        assert_eq!(
            found,
            ["x: -1 is out of range; write a whole number of at least 0"]
        );
    }

    #[test]
    fn repeated_members_are_all_named() {
        let faults = parse_json(br#"{"a": 1, "b": [{"c": 1, "c": 2}], "a": 2}"#).unwrap_err();
        assert_eq!(
            faults.to_string(),
            "b[0].c: is there twice; keep one\na: is there twice; keep one"
        );
        let faults = parse_json(b"{\"a\": }").unwrap_err();
        assert!(faults.to_string().contains("line 1 column 7"), "{faults}");
        let text = r#"{"a": [1, -2, 0.5, "x", null, true]}"#;
        assert_eq!(
            parse_json(text.as_bytes()).unwrap(),
            serde_json::from_str::<Value>(text).unwrap()
        );
    }

    #[test]
    fn long_input_is_cut_in_messages() {
        let found = faults(&json!("y".repeat(10_000)), |c| {
            c.word(&[("a", ())])?;
            Some(())
        });
        assert!(found[0].len() < 200, "{}", found[0]);
    }

    #[test]
    fn faults_of_an_inner_reader_keep_their_place() {
        let found = faults(&json!({"event": {}}), |c| {
            c.member("event").take(Faults::one("reason", "is missing"));
            Some(())
        });
        assert_eq!(found, ["event.reason: is missing"]);
    }
}
