//! The subject of an X.509 certificate: just enough DER for common name and organizations. Pure.

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;
const VERSION: u8 = 0xa0;
/// id-at-commonName.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// id-at-organizationName.
const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];

/// Whom a certificate is for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Subject {
    /// The last common name.
    pub(super) common_name: String,
    /// All organizations.
    pub(super) organizations: Vec<String>,
}

/// One value: its tag and what it holds; the second part is what follows it.
fn value(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            let length = bytes
                .iter()
                .fold(0usize, |sum, byte| (sum << 8) | usize::from(*byte));
            (length, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// A value of this tag; the second part is what follows it.
fn expect(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = value(der)?;
    (found == tag).then_some((content, rest))
}

/// The subject of a certificate; none when it can't be read.
pub(super) fn of(certificate: &[u8]) -> Option<Subject> {
    let (certificate, _) = expect(certificate, SEQUENCE)?;
    let (to_be_signed, _) = expect(certificate, SEQUENCE)?;
    let (tag, _, after_first) = value(to_be_signed)?;
    let mut rest = if tag == VERSION {
        value(after_first)?.2
    } else {
        after_first
    };
    // Signature algorithm, issuer, validity.
    for _ in 0..3 {
        rest = expect(rest, SEQUENCE)?.1;
    }
    let (mut names, _) = expect(rest, SEQUENCE)?;
    let mut subject = Subject::default();
    while !names.is_empty() {
        let (mut attributes, after) = expect(names, SET)?;
        names = after;
        while !attributes.is_empty() {
            let (attribute, after) = expect(attributes, SEQUENCE)?;
            attributes = after;
            let (kind, text) = expect(attribute, OBJECT_IDENTIFIER)?;
            let (_, text, _) = value(text)?;
            let text = std::str::from_utf8(text).ok()?.to_owned();
            match kind {
                COMMON_NAME => subject.common_name = text,
                ORGANIZATION => subject.organizations.push(text),
                _ => {}
            }
        }
    }
    Some(subject)
}
