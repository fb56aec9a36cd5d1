//! D-Bus messages, as much of the format as systemd's manager needs.
//!
//! A message is a fixed header, an array of header fields and a body; everything is aligned to its own size from the
//! message's beginning. Written are method calls only; read are the answers to them and signals, whose bodies begin
//! with what is wanted: an object path, a text, `JobRemoved`'s number, path and two texts, or `UnitRemoved`'s text.

/// What systemd calls a property's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    /// `b`
    Bool(bool),
    /// `t`
    U64(u64),
    /// `s`
    Text(String),
    /// `as`
    Texts(Vec<String>),
    /// `ay`
    Bytes(Vec<u8>),
    /// `au`
    Numbers(Vec<u32>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Bool(_) => "b",
            Self::U64(_) => "t",
            Self::Text(_) => "s",
            Self::Texts(_) => "as",
            Self::Bytes(_) => "ay",
            Self::Numbers(_) => "au",
        }
    }
}

/// A property of a unit.
pub(crate) type Property = (&'static str, Value);

/// Bytes with the format's alignment; little-endian.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    pub(crate) fn u32(&mut self, number: u32) {
        self.align(4);
        self.bytes.extend_from_slice(&number.to_le_bytes());
    }

    fn u64(&mut self, number: u64) {
        self.align(8);
        self.bytes.extend_from_slice(&number.to_le_bytes());
    }

    pub(crate) fn bool(&mut self, value: bool) {
        self.u32(value.into());
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.u32(text.len() as u32);
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
    }

    fn signature(&mut self, signature: &str) {
        // A signature is at most 255 bytes long; ours are constants.
        self.bytes.push(signature.len() as u8);
        self.bytes.extend_from_slice(signature.as_bytes());
        self.bytes.push(0);
    }

    /// An array, whose length doesn't count the padding before its first element.
    fn array(&mut self, element: usize, fill: impl FnOnce(&mut Self)) {
        self.u32(0);
        let length_at = self.bytes.len() - 4;
        self.align(element);
        let begin = self.bytes.len();
        fill(self);
        let length = (self.bytes.len() - begin) as u32;
        self.bytes[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }

    fn value(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Bool(value) => self.bool(*value),
            Value::U64(value) => self.u64(*value),
            Value::Text(text) => self.text(text),
            Value::Texts(texts) => self.array(4, |w| texts.iter().for_each(|text| w.text(text))),
            Value::Bytes(bytes) => self.array(1, |w| w.bytes.extend_from_slice(bytes)),
            Value::Numbers(numbers) => self.array(4, |w| numbers.iter().for_each(|n| w.u32(*n))),
        }
    }

    /// `a(sv)`
    pub(crate) fn properties(&mut self, properties: &[Property]) {
        self.array(8, |w| {
            for (name, value) in properties {
                w.align(8);
                w.text(name);
                w.value(value);
            }
        });
    }

    /// `a(sa(sv))`, without elements.
    pub(crate) fn no_units(&mut self) {
        self.array(8, |_| {});
    }
}

/// Whom a call is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Method {
    pub(crate) destination: &'static str,
    pub(crate) path: &'static str,
    pub(crate) interface: &'static str,
    pub(crate) member: &'static str,
    /// The body's.
    pub(crate) signature: &'static str,
}

/// A method call with its body.
pub(crate) fn call(serial: u32, method: &Method, body: Writer) -> Vec<u8> {
    const METHOD_CALL: u8 = 1;
    let mut message = Writer::default();
    message.bytes.extend_from_slice(&[b'l', METHOD_CALL, 0, 1]);
    message.u32(body.bytes.len() as u32);
    message.u32(serial);
    message.array(8, |w| {
        let mut field = |code: u8, kind: &str, text: &str| {
            w.align(8);
            w.bytes.push(code);
            w.signature(kind);
            if kind == "g" {
                w.signature(text);
            } else {
                w.text(text);
            }
        };
        field(1, "o", method.path);
        field(2, "s", method.interface);
        field(3, "s", method.member);
        field(6, "s", method.destination);
        if !method.signature.is_empty() {
            field(8, "g", method.signature);
        }
    });
    message.align(8);
    message.bytes.extend(body.bytes);
    message.bytes
}

/// The fixed part that says how long a message is.
pub(crate) const FIXED: usize = 16;
/// More than systemd ever says at once.
const MOST: usize = 4 << 20;

/// How long the whole message is that begins with these bytes; `None` for what is no message of ours.
pub(crate) fn length(fixed: &[u8; FIXED]) -> Option<usize> {
    let [b'l', _, _, 1, ..] = fixed else {
        return None;
    };
    let mut reader = Reader { bytes: fixed, at: 4 };
    let body = reader.u32()? as usize;
    let _serial = reader.u32()?;
    let fields = reader.u32()? as usize;
    let all = (FIXED + fields).next_multiple_of(8) + body;
    (fields <= MOST && body <= MOST).then_some(all)
}

/// What was heard.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// A call's answer; the object path that its body is, if it is one.
    Answer { to: u32, path: Option<String> },
    /// A call was refused.
    Refusal { to: u32, name: String, text: String },
    /// A job is done, failed or was dropped.
    JobRemoved { path: String, result: String },
    /// A unit was forgotten.
    UnitRemoved { unit: String },
    /// Some other signal.
    Other,
}

/// Reads a whole message; `None` when it is not in the format.
pub(crate) fn read(message: &[u8]) -> Option<Heard> {
    let (kind, fields_end) = (*message.get(1)?, FIXED + number_at(message, 12)? as usize);
    let mut reader = Reader {
        bytes: message.get(..fields_end)?,
        at: FIXED,
    };
    let (mut to, mut member, mut name, mut signature) = (0, "", "", "");
    while reader.at < fields_end {
        reader.align(8);
        let code = reader.byte()?;
        match reader.signature()? {
            "u" => {
                let number = reader.u32()?;
                if code == 5 {
                    to = number;
                }
            }
            "g" => {
                let text = reader.signature()?;
                if code == 8 {
                    signature = text;
                }
            }
            "s" | "o" => match (code, reader.text()?) {
                (3, text) => member = text,
                (4, text) => name = text,
                _ => {}
            },
            _ => return None,
        }
    }
    let mut body = Reader {
        bytes: message.get(fields_end.next_multiple_of(8)..)?,
        at: 0,
    };
    Some(match kind {
        2 => Heard::Answer {
            to,
            path: match signature {
                "o" => Some(body.text()?.to_owned()),
                _ => None,
            },
        },
        3 => Heard::Refusal {
            to,
            name: name.to_owned(),
            text: match signature.starts_with('s') {
                true => body.text()?.to_owned(),
                false => String::new(),
            },
        },
        4 if member == "JobRemoved" && signature == "uoss" => {
            let _id = body.u32()?;
            let path = body.text()?.to_owned();
            let _unit = body.text()?;
            Heard::JobRemoved {
                path,
                result: body.text()?.to_owned(),
            }
        }
        4 if member == "UnitRemoved" && signature == "so" => Heard::UnitRemoved {
            unit: body.text()?.to_owned(),
        },
        _ => Heard::Other,
    })
}

fn number_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u32(&mut self) -> Option<u32> {
        self.align(4);
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.u32()? as usize;
        let text = std::str::from_utf8(self.take(length)?).ok()?;
        self.take(1)?;
        Some(text)
    }

    fn signature(&mut self) -> Option<&'a str> {
        let length = self.byte()?.into();
        let text = std::str::from_utf8(self.take(length)?).ok()?;
        self.take(1)?;
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const METHOD: Method = Method {
        destination: "org.freedesktop.systemd1",
        path: "/org/freedesktop/systemd1",
        interface: "org.freedesktop.systemd1.Manager",
        member: "StopUnit",
        signature: "ss",
    };

    #[test]
    fn a_call_says_its_own_length_and_aligns_its_body() {
        let mut body = Writer::default();
        body.text("a.scope");
        body.text("replace");
        let bytes = call(7, &METHOD, body);
        let fixed: [u8; FIXED] = bytes[..FIXED].try_into().unwrap();
        assert_eq!(length(&fixed), Some(bytes.len()));
        assert_eq!(&bytes[8..12], &7u32.to_le_bytes());
        let begin = (FIXED + number_at(&bytes, 12).unwrap() as usize).next_multiple_of(8);
        assert_eq!(&bytes[begin..begin + 12], b"\x07\0\0\0a.scope\0");
    }

    #[test]
    fn properties_have_the_length_of_what_follows_their_padding() {
        let mut writer = Writer::default();
        writer.properties(&[("A", Value::U64(5)), ("B", Value::Bytes(vec![1, 2]))]);
        // The length, padding to 8; then "A", its signature, padding to 8, the number; then the second element.
        assert_eq!(
            &writer.bytes[..4],
            &((writer.bytes.len() - 8) as u32).to_le_bytes()
        );
        assert_eq!(&writer.bytes[8..14], b"\x01\0\0\0A\0");
        assert_eq!(&writer.bytes[14..17], b"\x01t\0");
        assert_eq!(&writer.bytes[24..32], &5u64.to_le_bytes());
        assert_eq!(&writer.bytes[32..38], b"\x01\0\0\0B\0");
        assert_eq!(&writer.bytes[38..42], b"\x02ay\0");
        assert_eq!(&writer.bytes[44..50], b"\x02\0\0\0\x01\x02");
    }

    /// A message of another kind with the given header fields and body.
    fn message(kind: u8, fields: &[(u8, &str, &str)], number: u32, body: Writer) -> Vec<u8> {
        let mut message = Writer::default();
        message.bytes.extend_from_slice(&[b'l', kind, 0, 1]);
        message.u32(body.bytes.len() as u32);
        message.u32(1);
        message.array(8, |w| {
            for (code, kind, text) in fields {
                w.align(8);
                w.bytes.push(*code);
                w.signature(kind);
                match *kind {
                    "u" => w.u32(number),
                    "g" => w.signature(text),
                    _ => w.text(text),
                }
            }
        });
        message.align(8);
        message.bytes.extend(body.bytes);
        message.bytes
    }

    #[test]
    fn answers_refusals_and_removed_jobs_are_told_apart() {
        let mut body = Writer::default();
        body.text("/job/5");
        let answer = message(2, &[(5, "u", ""), (7, "s", ":1.2"), (8, "g", "o")], 9, body);
        let path = Some("/job/5".to_owned());
        assert_eq!(read(&answer), Some(Heard::Answer { to: 9, path }));
        let mut body = Writer::default();
        body.text("no such unit");
        let refusal = message(
            3,
            &[(4, "s", "x.NoSuchUnit"), (5, "u", ""), (8, "g", "s")],
            3,
            body,
        );
        let Some(Heard::Refusal { to: 3, name, text }) = read(&refusal) else {
            panic!("{:?}", read(&refusal));
        };
        assert_eq!((name.as_str(), text.as_str()), ("x.NoSuchUnit", "no such unit"));
        let mut body = Writer::default();
        body.u32(5);
        body.text("/job/5");
        body.text("a.scope");
        body.text("done");
        let removed = message(
            4,
            &[(1, "o", "/x"), (3, "s", "JobRemoved"), (8, "g", "uoss")],
            0,
            body,
        );
        let (path, result) = ("/job/5".to_owned(), "done".to_owned());
        assert_eq!(read(&removed), Some(Heard::JobRemoved { path, result }));
        let mut body = Writer::default();
        body.text("a.scope");
        body.text("/unit/a");
        let removed = message(4, &[(3, "s", "UnitRemoved"), (8, "g", "so")], 0, body);
        let unit = "a.scope".to_owned();
        assert_eq!(read(&removed), Some(Heard::UnitRemoved { unit }));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
            let mut framed = vec![b'l', 2, 0, 1];
            framed.extend(&bytes);
            let _ = read(&framed);
            if let Some(fixed) = framed.first_chunk::<FIXED>() {
                let _ = length(fixed);
            }
        }
    }
}
