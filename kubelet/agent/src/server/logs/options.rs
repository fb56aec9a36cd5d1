//! A log request's parameters, as upstream's `PodLogOptions`. Pure.

use jiff::{SignedDuration, Timestamp};

use crate::server::route::parameter;

/// Which streams are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::server) enum Wanted {
    #[default]
    All,
    Stdout,
    Stderr,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::server) struct LogOptions {
    pub(in crate::server) follow: bool,
    pub(in crate::server) previous: bool,
    pub(in crate::server) timestamps: bool,
    pub(in crate::server) tail_lines: Option<u64>,
    pub(in crate::server) limit_bytes: Option<u64>,
    pub(in crate::server) since: Option<Timestamp>,
    pub(in crate::server) stream: Wanted,
}

/// Why a request isn't one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) enum BadOptions {
    /// A parameter isn't of its type.
    Undecodable,
    /// Parameters contradict each other, or are out of range.
    Invalid,
}

impl LogOptions {
    /// Reads them from a query; relative times count from `now`.
    pub(in crate::server) fn parse(query: &[(String, String)], now: Timestamp) -> Result<Self, BadOptions> {
        let number = |name: &str| {
            let text = parameter(query, name).filter(|text| !text.is_empty());
            text.map(|text| text.parse::<i64>().map_err(|_| BadOptions::Undecodable))
                .transpose()
        };
        let flag = |name: &str| match parameter(query, name) {
            None => false,
            // As upstream's query decoder has it.
            Some(text) => !matches!(text.to_ascii_lowercase().as_str(), "false" | "0"),
        };
        let tail = match parameter(query, "tail") {
            Some("all") => None,
            Some(text) if !text.is_empty() => Some(text.parse::<i64>().map_err(|_| BadOptions::Undecodable)?),
            _ => number("tailLines")?,
        };
        let limit = number("limitBytes")?;
        let seconds = number("sinceSeconds")?;
        let time = parameter(query, "sinceTime")
            .filter(|text| !text.is_empty())
            .map(|text| text.parse::<Timestamp>().map_err(|_| BadOptions::Undecodable))
            .transpose()?;
        let stream = match parameter(query, "stream") {
            None | Some("" | "All") => Wanted::All,
            Some("Stdout") => Wanted::Stdout,
            Some("Stderr") => Wanted::Stderr,
            Some(_) => return Err(BadOptions::Invalid),
        };
        let wrong = tail.is_some_and(|tail| tail < 0)
            || limit.is_some_and(|limit| limit < 1)
            || seconds.is_some_and(|seconds| seconds < 1)
            || (seconds.is_some() && time.is_some())
            || (tail.is_some() && stream != Wanted::All);
        if wrong {
            return Err(BadOptions::Invalid);
        }
        let since = match seconds {
            // Longer ago than time goes back is everything.
            Some(seconds) => now.checked_sub(SignedDuration::from_secs(seconds)).ok(),
            None => time,
        };
        Ok(Self {
            follow: flag("follow"),
            previous: flag("previous"),
            timestamps: flag("timestamps"),
            tail_lines: tail.and_then(|tail| u64::try_from(tail).ok()),
            limit_bytes: limit.and_then(|limit| u64::try_from(limit).ok()),
            since,
            stream,
        })
    }
}
