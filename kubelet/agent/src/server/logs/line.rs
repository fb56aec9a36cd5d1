//! CRI's log lines: `2016-10-06T00:17:09.669794202Z stdout P text`. Pure.

use jiff::Timestamp;

use super::options::{LogOptions, Wanted};

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::server) struct Line<'a> {
    pub(in crate::server) time: &'a str,
    pub(in crate::server) stderr: bool,
    /// The text goes on in the next line of this stream.
    pub(in crate::server) partial: bool,
    /// With its line end, unless it is partial or the file ends here.
    pub(in crate::server) text: &'a [u8],
}

/// Parses a line of a log, its line end included; none when it isn't one.
pub(in crate::server) fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stderr = match parts.next()? {
        b"stdout" => false,
        b"stderr" => true,
        _ => return None,
    };
    let tags = parts.next()?;
    let text = parts.next()?;
    time.contains('T').then_some(())?;
    let partial = tags.split(|byte| *byte == b':').next() == Some(b"P");
    let text = if partial {
        text.strip_suffix(b"\n").unwrap_or(text)
    } else {
        text
    };
    Some(Line {
        time,
        stderr,
        partial,
        text,
    })
}

/// Turns lines into what the client gets.
#[derive(Debug)]
pub(in crate::server) struct Formatter {
    timestamps: bool,
    since: Option<Timestamp>,
    wanted: Wanted,
    /// Bytes that may still be sent.
    left: Option<u64>,
    /// The last text ended with a line end.
    fresh: bool,
}

impl Formatter {
    pub(in crate::server) fn new(options: &LogOptions) -> Self {
        Self {
            timestamps: options.timestamps,
            since: options.since,
            wanted: options.stream,
            left: options.limit_bytes,
            fresh: true,
        }
    }

    /// Appends a line's text to `out`. What isn't a line is left out.
    pub(in crate::server) fn add(&mut self, raw: &[u8], out: &mut Vec<u8>) {
        let Some(line) = parse(raw) else { return };
        let unwanted = match self.wanted {
            Wanted::All => false,
            Wanted::Stdout => line.stderr,
            Wanted::Stderr => !line.stderr,
        };
        let too_old = self
            .since
            .is_some_and(|since| line.time.parse::<Timestamp>().is_ok_and(|time| time < since));
        if unwanted || too_old {
            return;
        }
        if self.timestamps && self.fresh {
            let stamp = fixed_width(line.time) + " ";
            self.push(stamp.as_bytes(), out);
        }
        self.push(line.text, out);
        self.fresh = line.text.is_empty() || line.text.ends_with(b"\n");
    }

    fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let allowed = match &mut self.left {
            None => bytes.len(),
            Some(left) => {
                let allowed = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= allowed as u64;
                allowed
            }
        };
        out.extend_from_slice(&bytes[..allowed]);
    }

    /// No more may be sent.
    pub(in crate::server) fn is_full(&self) -> bool {
        self.left == Some(0)
    }
}

/// A time with nine digits after the point, as upstream shows it.
fn fixed_width(time: &str) -> String {
    let Some(date_end) = time.find('T') else {
        return time.to_owned();
    };
    let zone = time[date_end..]
        .find(['Z', '+', '-'])
        .map_or(time.len(), |offset| date_end + offset);
    let (clock, zone) = time.split_at(zone);
    let (whole, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let digits: String = fraction.chars().take(9).collect();
    format!("{whole}.{digits:0<9}{zone}")
}
