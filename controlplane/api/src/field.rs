//! What validation says about a field, in upstream's words: `spec.containers[0].name: Required value`.
//!
//! A [`Path`] leads to the field, a [`FieldError`] tells what is wrong with it, and [`FieldErrors`] gathers them. The
//! wording is that of apimachinery's `field.Error`, since clients show it and tests compare it.

use std::fmt;

use serde::Serialize;

/// The way to a field, as upstream writes it: `spec.containers[0].resources.limits[cpu]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(String);

impl Path {
    /// The path of a field of the object itself.
    pub fn new(name: &str) -> Path {
        Path(name.to_owned())
    }

    /// A field of this one; `name` may be several, joined by dots.
    pub fn child(&self, name: &str) -> Path {
        if self.0.is_empty() {
            Path::new(name)
        } else {
            Path(format!("{}.{name}", self.0))
        }
    }

    /// An entry of this list.
    pub fn index(&self, index: usize) -> Path {
        Path(format!("{}[{index}]", self.0))
    }

    /// A key of this map.
    pub fn key(&self, key: &str) -> Path {
        Path(format!("{}[{key}]", self.0))
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The kinds of complaints; [`ErrorKind::cause`] is what the API's `status.details.causes[].reason` calls them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Something that is referred to doesn't exist.
    NotFound,
    /// The value is missing.
    Required,
    /// The value must be unique.
    Duplicate,
    /// The value is malformed.
    Invalid,
    /// The value is none of a few.
    NotSupported,
    /// The value isn't allowed here.
    Forbidden,
    /// The value is too long.
    TooLong,
    /// The list has too many entries.
    TooMany,
}

impl ErrorKind {
    /// The machine-readable name of the cause.
    pub fn cause(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "FieldValueNotFound",
            ErrorKind::Required => "FieldValueRequired",
            ErrorKind::Duplicate => "FieldValueDuplicate",
            ErrorKind::Invalid => "FieldValueInvalid",
            ErrorKind::NotSupported => "FieldValueNotSupported",
            ErrorKind::Forbidden => "FieldValueForbidden",
            ErrorKind::TooLong => "FieldValueTooLong",
            ErrorKind::TooMany => "FieldValueTooMany",
        }
    }

    fn words(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "Not found",
            ErrorKind::Required => "Required value",
            ErrorKind::Duplicate => "Duplicate value",
            ErrorKind::Invalid => "Invalid value",
            ErrorKind::NotSupported => "Unsupported value",
            ErrorKind::Forbidden => "Forbidden",
            ErrorKind::TooLong => "Too long",
            ErrorKind::TooMany => "Too many",
        }
    }
}

/// A value as a complaint shows it: texts quoted as Go quotes them, numbers and booleans as they are, all else as JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown(String);

impl Shown {
    /// Any value, as JSON.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Shown {
        Shown(serde_json::to_string(value).unwrap_or_else(|error| error.to_string()))
    }
}

impl From<&str> for Shown {
    fn from(text: &str) -> Shown {
        Shown(quoted(text))
    }
}

impl From<&String> for Shown {
    fn from(text: &String) -> Shown {
        Shown(quoted(text))
    }
}

impl From<i32> for Shown {
    fn from(number: i32) -> Shown {
        Shown(number.to_string())
    }
}

impl From<i64> for Shown {
    fn from(number: i64) -> Shown {
        Shown(number.to_string())
    }
}

impl From<bool> for Shown {
    fn from(value: bool) -> Shown {
        Shown(value.to_string())
    }
}

/// A text between double quotes, escaped as Go's `%q`.
pub(crate) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{b}' => quoted.push_str("\\v"),
            c if c.is_ascii_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// One complaint about one field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct FieldError {
    /// Its kind.
    pub kind: ErrorKind,
    /// The field.
    pub path: Path,
    /// The value, where the kind shows it.
    pub value: Option<Shown>,
    /// What more there is to say; may be empty.
    pub detail: String,
}

impl FieldError {
    /// The complaint without the field's name.
    pub fn body(&self) -> String {
        let mut body = self.kind.words().to_owned();
        if let Some(Shown(value)) = &self.value {
            body.push_str(": ");
            body.push_str(value);
        }
        if !self.detail.is_empty() {
            body.push_str(": ");
            body.push_str(&self.detail);
        }
        body
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

/// The complaints about an object, in the order of upstream's checks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldErrors(Vec<FieldError>);

impl FieldErrors {
    fn add(&mut self, kind: ErrorKind, path: &Path, value: Option<Shown>, detail: impl Into<String>) {
        self.0.push(FieldError {
            kind,
            path: path.clone(),
            value,
            detail: detail.into(),
        });
    }

    /// The value is missing.
    pub fn required(&mut self, path: &Path, detail: impl Into<String>) {
        self.add(ErrorKind::Required, path, None, detail);
    }

    /// The value is malformed.
    pub fn invalid(&mut self, path: &Path, value: impl Into<Shown>, detail: impl Into<String>) {
        self.add(ErrorKind::Invalid, path, Some(value.into()), detail);
    }

    /// The value breaks several rules: one complaint for each.
    pub fn invalid_for_each(&mut self, path: &Path, value: &str, details: Vec<String>) {
        for detail in details {
            self.invalid(path, value, detail);
        }
    }

    /// The value is none of those there are.
    pub fn not_supported(&mut self, path: &Path, value: impl Into<Shown>, supported: &[&str]) {
        let supported: Vec<_> = supported.iter().map(|text| quoted(text)).collect();
        let detail = format!("supported values: {}", supported.join(", "));
        self.add(ErrorKind::NotSupported, path, Some(value.into()), detail);
    }

    /// The value may not be set here.
    pub fn forbidden(&mut self, path: &Path, detail: impl Into<String>) {
        self.add(ErrorKind::Forbidden, path, None, detail);
    }

    /// The value was there already.
    pub fn duplicate(&mut self, path: &Path, value: impl Into<Shown>) {
        self.add(ErrorKind::Duplicate, path, Some(value.into()), "");
    }

    /// What the value names doesn't exist.
    pub fn not_found(&mut self, path: &Path, value: impl Into<Shown>, detail: impl Into<String>) {
        self.add(ErrorKind::NotFound, path, Some(value.into()), detail);
    }

    /// The value has more than `most` bytes.
    pub fn too_long(&mut self, path: &Path, most: usize) {
        self.add(
            ErrorKind::TooLong,
            path,
            None,
            format!("may not be more than {most} bytes"),
        );
    }

    /// The list has more than `most` entries.
    pub fn too_many(&mut self, path: &Path, actual: usize, most: usize) {
        let value = Shown(actual.to_string());
        self.add(
            ErrorKind::TooMany,
            path,
            Some(value),
            format!("must have at most {most} items"),
        );
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The complaints.
    pub fn iter(&self) -> std::slice::Iter<'_, FieldError> {
        self.0.iter()
    }

    /// Takes over another's complaints.
    pub fn append(&mut self, other: FieldErrors) {
        self.0.extend(other.0);
    }
}

impl IntoIterator for FieldErrors {
    type Item = FieldError;
    type IntoIter = std::vec::IntoIter<FieldError>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a FieldErrors {
    type Item = &'a FieldError;
    type IntoIter = std::slice::Iter<'a, FieldError>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl std::error::Error for FieldErrors {}

impl fmt::Display for FieldErrors {
    /// As upstream's aggregate: one alone, several between brackets, the same text only once.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut texts: Vec<String> = Vec::with_capacity(self.0.len());
        for error in &self.0 {
            let text = error.to_string();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        match texts.as_slice() {
            [only] => f.write_str(only),
            several => write!(f, "[{}]", several.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests;
