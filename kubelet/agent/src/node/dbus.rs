//! Messages of D-Bus, as much of the format as calls to logind need: little-endian, texts, numbers and booleans.
//!
//! `oci-runtime/cgroups` has a client of its own for systemd's private socket, which neither takes descriptors nor waits
//! for signals of others; sharing it would make it larger than both.

const CALL: u8 = 1;
const ANSWER: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

/// Arguments and their signature.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Body {
    bytes: Vec<u8>,
    signature: String,
}

fn align(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    align(bytes, 4);
    bytes.extend((text.len() as u32).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes.push(0);
}

fn put_signature(bytes: &mut Vec<u8>, signature: &str) {
    bytes.push(signature.len() as u8);
    bytes.extend(signature.as_bytes());
    bytes.push(0);
}

impl Body {
    /// Adds a text.
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        put_text(&mut self.bytes, text);
        self.signature.push('s');
        self
    }

    /// Adds a number.
    pub(super) fn i32(&mut self, number: i32) -> &mut Self {
        align(&mut self.bytes, 4);
        self.bytes.extend(number.to_le_bytes());
        self.signature.push('i');
        self
    }

    /// Adds yes or no.
    #[cfg(test)]
    pub(super) fn bool(&mut self, value: bool) {
        align(&mut self.bytes, 4);
        self.bytes.extend(u32::from(value).to_le_bytes());
        self.signature.push('b');
    }

    /// Adds a property's value.
    #[cfg(test)]
    pub(super) fn variant_u64(&mut self, number: u64) {
        put_signature(&mut self.bytes, "t");
        align(&mut self.bytes, 8);
        self.bytes.extend(number.to_le_bytes());
        self.signature.push('v');
    }
}

enum Field<'a> {
    Path(&'a str),
    Interface(&'a str),
    Member(&'a str),
    #[cfg(test)]
    ReplyTo(u32),
    Destination(&'a str),
    Signature(&'a str),
}

fn message(kind: u8, serial: u32, fields: &[Field<'_>], body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![b'l', kind, 0, 1];
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(serial.to_le_bytes());
    bytes.extend([0; 4]);
    let start = bytes.len();
    for field in fields {
        align(&mut bytes, 8);
        let (code, kind) = match field {
            Field::Path(_) => (1, "o"),
            Field::Interface(_) => (2, "s"),
            Field::Member(_) => (3, "s"),
            #[cfg(test)]
            Field::ReplyTo(_) => (5, "u"),
            Field::Destination(_) => (6, "s"),
            Field::Signature(_) => (8, "g"),
        };
        bytes.push(code);
        put_signature(&mut bytes, kind);
        match field {
            Field::Path(text) | Field::Interface(text) | Field::Member(text) | Field::Destination(text) => {
                put_text(&mut bytes, text);
            }
            #[cfg(test)]
            Field::ReplyTo(number) => {
                align(&mut bytes, 4);
                bytes.extend(number.to_le_bytes());
            }
            Field::Signature(signature) => put_signature(&mut bytes, signature),
        }
    }
    let length = (bytes.len() - start) as u32;
    bytes[start - 4..start].copy_from_slice(&length.to_le_bytes());
    align(&mut bytes, 8);
    bytes.extend(body);
    bytes
}

/// A method call.
pub(super) fn call(
    serial: u32,
    (name, path): (&str, &str),
    interface: &str,
    member: &str,
    body: &Body,
) -> Vec<u8> {
    let mut fields = vec![
        Field::Path(path),
        Field::Interface(interface),
        Field::Member(member),
        Field::Destination(name),
    ];
    if !body.signature.is_empty() {
        fields.push(Field::Signature(&body.signature));
    }
    message(CALL, serial, &fields, &body.bytes)
}

/// An answer to a call.
#[cfg(test)]
pub(super) fn answer(to: u32, body: &Body) -> Vec<u8> {
    message(
        ANSWER,
        1,
        &[Field::ReplyTo(to), Field::Signature(&body.signature)],
        &body.bytes,
    )
}

/// A signal.
#[cfg(test)]
pub(super) fn signal(member: &str, body: &Body) -> Vec<u8> {
    let fields = [
        Field::Path("/"),
        Field::Member(member),
        Field::Signature(&body.signature),
    ];
    message(SIGNAL, 2, &fields, &body.bytes)
}

/// What matters of a message that came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Message {
    /// The sender's number of it.
    pub(super) serial: u32,
    /// The call that it answers.
    pub(super) reply_to: Option<u32>,
    /// The error's name, if it is one.
    pub(super) error: Option<String>,
    /// The method or signal.
    pub(super) member: Option<String>,
    signature: String,
    body: Vec<u8>,
}

/// Reads from bytes that need not be a message.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Bytes from which one can tell how long the message is.
    pub(super) const FIXED: usize = 16;

    /// How many bytes follow those.
    pub(super) fn rest(header: &[u8]) -> Option<usize> {
        let number = |at: usize| Some(u32::from_le_bytes(header.get(at..at + 4)?.try_into().ok()?) as usize);
        if header.first() != Some(&b'l') {
            return None;
        }
        let (body, fields) = (number(4)?, number(12)?);
        fields.checked_next_multiple_of(8)?.checked_add(body)
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(length)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn u32(&mut self) -> Option<u32> {
        self.align(4);
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<String> {
        let length = self.u32()? as usize;
        let text = std::str::from_utf8(self.take(length)?).ok()?.to_owned();
        self.take(1)?;
        Some(text)
    }

    fn signature(&mut self) -> Option<String> {
        let length = usize::from(*self.take(1)?.first()?);
        let text = std::str::from_utf8(self.take(length)?).ok()?.to_owned();
        self.take(1)?;
        Some(text)
    }
}

impl Message {
    /// Reads a whole message; `None` when it is none.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader { bytes, at: 4 };
        let kind = *bytes.get(1)?;
        let body = reader.u32()? as usize;
        let mut message = Self {
            serial: reader.u32()?,
            ..Self::default()
        };
        let fields = reader.u32()? as usize;
        let end = reader.at.checked_add(fields)?;
        let mut error = None;
        while reader.at < end {
            reader.align(8);
            let code = *reader.take(1)?.first()?;
            match (code, reader.signature()?.as_str()) {
                (4, "s") => error = Some(reader.text()?),
                (3, "s") => message.member = Some(reader.text()?),
                (5, "u") => message.reply_to = Some(reader.u32()?),
                (8, "g") => message.signature = reader.signature()?,
                (_, "s" | "o") => drop(reader.text()?),
                (_, "u") => drop(reader.u32()?),
                (_, "g") => drop(reader.signature()?),
                _ => return None,
            }
        }
        match kind {
            ERROR => message.error = Some(error.unwrap_or_default()),
            // A signal or call answers nothing, whatever it says.
            SIGNAL | CALL => message.reply_to = None,
            ANSWER => {}
            _ => return None,
        }
        reader.align(8);
        message.body = reader.take(body)?.to_vec();
        Some(message)
    }

    /// The first argument, if it is yes or no.
    pub(super) fn bool(&self) -> Option<bool> {
        let mut reader = Reader {
            bytes: &self.body,
            at: 0,
        };
        self.signature
            .starts_with('b')
            .then(|| reader.u32())?
            .map(|value| value != 0)
    }

    /// The first argument, if it is a variant of a large number.
    pub(super) fn variant_u64(&self) -> Option<u64> {
        let mut reader = Reader {
            bytes: &self.body,
            at: 0,
        };
        if !self.signature.starts_with('v') || reader.signature()? != "t" {
            return None;
        }
        reader.align(8);
        Some(u64::from_le_bytes(reader.take(8)?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let mut body = Body::default();
        body.text("a").i32(-1);
        let bytes = call(7, ("name", "/path"), "inter.face", "Member", &body);
        let header = &bytes[..Reader::FIXED];
        assert_eq!(Reader::rest(header), Some(bytes.len() - Reader::FIXED));
        let message = Message::read(&bytes).unwrap();
        assert_eq!((message.serial, message.member.as_deref()), (7, Some("Member")));
        assert_eq!(message.signature, "si");
        assert_eq!(message.bool(), None);
    }

    proptest! {
        #[test]
        fn no_bytes_bring_the_reader_down(bytes in proptest::collection::vec(any::<u8>(), 0..80), at in 0..200_usize, byte in any::<u8>()) {
            let _ = (Message::read(&bytes), Reader::rest(&bytes));
            let mut body = Body::default();
            body.text("abc");
            let mut whole = call(1, ("n", "/p"), "i", "m", &body);
            let length = whole.len();
            whole[at % length] = byte;
            if let Some(message) = Message::read(&whole) {
                let _ = (message.bool(), message.variant_u64());
            }
        }
    }
}
