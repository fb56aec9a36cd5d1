use std::path::Path;

use jiff::Timestamp;
use proptest::prelude::*;

use super::file::{LogFile, Progress};
use super::line::{Formatter, parse};
use super::options::{BadOptions, LogOptions, Wanted};

fn options(query: &str) -> Result<LogOptions, BadOptions> {
    let query = crate::server::route::query(Some(query));
    LogOptions::parse(&query, Timestamp::from_second(1000).unwrap())
}

fn read_all(path: &Path, options: &LogOptions) -> Vec<u8> {
    let mut file = LogFile::open(path, options).unwrap();
    let mut out = Vec::new();
    while file.read(&mut out).unwrap() == Progress::More {}
    file.finish(&mut out);
    out
}

#[test]
fn parameters_are_upstreams() {
    let all = options("follow=true&previous=1&timestamps&tailLines=5&limitBytes=9&sinceSeconds=10").unwrap();
    assert_eq!(
        all,
        LogOptions {
            follow: true,
            previous: true,
            timestamps: true,
            tail_lines: Some(5),
            limit_bytes: Some(9),
            since: Some(Timestamp::from_second(990).unwrap()),
            stream: Wanted::All,
        }
    );
    assert_eq!(options("follow=false&tail=all").unwrap(), LogOptions::default());
    assert_eq!(
        options("sinceTime=1970-01-01T00:00:05Z&sinceSeconds=5"),
        Err(BadOptions::Invalid)
    );
    assert_eq!(options("sinceTime=yesterday"), Err(BadOptions::Undecodable));
    assert_eq!(options("sinceSeconds=9223372036854775807").unwrap().since, None);
}

#[test]
fn lines_are_cris() {
    let line = parse(b"2016-10-06T00:17:09.669794202Z stdout F hello world \n").unwrap();
    assert_eq!(
        (line.stderr, line.partial, line.text),
        (false, false, &b"hello world \n"[..])
    );
    let line = parse(b"2016-10-06T00:17:09Z stderr P:x part\n").unwrap();
    assert_eq!((line.stderr, line.partial, line.text), (true, true, &b"part"[..]));
    assert_eq!(parse(b"2016-10-06T00:17:09Z stdout F \n").unwrap().text, b"\n");
    for wrong in [
        "",
        "\n",
        "a b c d\n",
        "2016-10-06T00:17:09Z stdout\n",
        "2016-10-06T00:17:09Z neither F x\n",
    ] {
        assert_eq!(parse(wrong.as_bytes()), None, "{wrong}");
    }
}

#[test]
fn parts_are_one_line_with_one_timestamp() {
    let mut formatter = Formatter::new(&options("timestamps=true").unwrap());
    let mut out = Vec::new();
    for line in [
        "2026-01-01T00:00:00+02:00 stdout P a\n",
        "2026-01-01T00:00:01Z stdout F b\n",
        "2026-01-01T00:00:02.123Z stdout F c\n",
    ] {
        formatter.add(line.as_bytes(), &mut out);
    }
    let text = String::from_utf8(out).unwrap();
    assert_eq!(
        text,
        "2026-01-01T00:00:00.000000000+02:00 ab\n2026-01-01T00:00:02.123000000Z c\n"
    );
}

#[test]
fn endless_lines_cost_no_memory_and_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.log");
    let head = "2026-01-01T00:00:00Z stdout F ";
    let long = "x".repeat(3 << 20);
    std::fs::write(&path, format!("{head}a\n{head}{long}\n{head}b\n{head}cut")).unwrap();
    assert_eq!(read_all(&path, &LogOptions::default()), b"a\nb\ncut");
}

#[test]
fn a_truncated_log_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.log");
    let head = "2026-01-01T00:00:00Z stdout F ";
    std::fs::write(&path, format!("{head}a longer line\n")).unwrap();
    let mut file = LogFile::open(&path, &LogOptions::default()).unwrap();
    let mut out = Vec::new();
    while file.read(&mut out).unwrap() == Progress::More {}
    std::fs::write(&path, format!("{head}b\n")).unwrap();
    while file.read(&mut out).unwrap() == Progress::More {}
    assert_eq!(out, b"a longer line\nb\n");
}

proptest! {
    #[test]
    fn the_tail_is_the_last_lines(lines in proptest::collection::vec("[a-z]{0,40}", 0..50), wanted in 0u64..60, wide: bool) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        // Wide enough for several blocks.
        let fill = if wide { "y".repeat(9000) } else { String::new() };
        let text: String = lines.iter().map(|line| format!("2026-01-01T00:00:00Z stdout F {line}{fill}\n")).collect();
        std::fs::write(&path, text).unwrap();
        let options = LogOptions { tail_lines: Some(wanted), ..LogOptions::default() };
        let skip = lines.len().saturating_sub(wanted as usize);
        let expected: String = lines[skip..].iter().map(|line| format!("{line}{fill}\n")).collect();
        let same = read_all(&path, &options) == expected.as_bytes();
        prop_assert!(same);
    }

    #[test]
    fn never_more_bytes_than_asked_for(lines in proptest::collection::vec("[a-z]{0,40}", 0..20), limit in 1u64..300) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let text: String = lines.iter().map(|line| format!("2026-01-01T00:00:00Z stdout F {line}\n")).collect();
        std::fs::write(&path, text).unwrap();
        let all: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let cut = &all.as_bytes()[..all.len().min(limit as usize)];
        let options = LogOptions { limit_bytes: Some(limit), ..LogOptions::default() };
        prop_assert_eq!(read_all(&path, &options), cut);
    }

    #[test]
    fn no_log_panics(bytes: Vec<u8>, tail in proptest::option::of(0u64..5)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        std::fs::write(&path, &bytes).unwrap();
        let _ = read_all(&path, &LogOptions { tail_lines: tail, timestamps: true, ..LogOptions::default() });
    }
}
