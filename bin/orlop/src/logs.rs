//! `orlop logs`.

use http_body_util::BodyExt as _;
use tokio::io::AsyncWriteExt as _;

use crate::args::LogsArguments;
use crate::client::{Client, escape};
use crate::failure::{Failure, written};
use crate::select::{self, name, namespace};

/// Copies a log to standard output.
pub(crate) async fn run(client: &Client, options: &LogsArguments) -> Result<(), Failure> {
    let query = query(options)?;
    let pod = select::pod(client, &options.pod).await?;
    let (container, note) = select::container(&pod, options.container.as_deref())?;
    if let Some(note) = note {
        eprintln!("{note}");
    }
    let path = format!(
        "/containerLogs/{}/{}/{}{query}",
        escape(namespace(&pod)),
        escape(name(&pod)),
        escape(&container)
    );
    let mut body = client.get(&path).await?.into_body();
    let mut out = tokio::io::stdout();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::new(format!("the log broke off: {error}")))?;
        if let Ok(bytes) = frame.into_data() {
            let sent = async {
                out.write_all(&bytes).await?;
                out.flush().await
            };
            match sent.await {
                Ok(()) => {}
                failed => return written(failed),
            }
        }
    }
    Ok(())
}

fn query(options: &LogsArguments) -> Result<String, Failure> {
    let mut parameters = Vec::new();
    let flags = [
        ("follow", options.follow),
        ("previous", options.previous),
        ("timestamps", options.timestamps),
    ];
    for (name, set) in flags {
        if set {
            parameters.push(format!("{name}=true"));
        }
    }
    if let Some(lines) = options.tail.filter(|lines| *lines >= 0) {
        parameters.push(format!("tailLines={lines}"));
    }
    if let Some(since) = &options.since {
        parameters.push(format!("sinceSeconds={}", seconds(since)?));
    }
    if let Some(time) = &options.since_time {
        parameters.push(format!("sinceTime={}", escape(time)));
    }
    if let Some(limit) = options.limit_bytes {
        parameters.push(format!("limitBytes={limit}"));
    }
    Ok(if parameters.is_empty() {
        String::new()
    } else {
        format!("?{}", parameters.join("&"))
    })
}

/// `1h30m` in seconds, rounded up.
fn seconds(text: &str) -> Result<u64, Failure> {
    let wrong = || Failure::helped(format!("{text:?} is no duration"), "--since 5s, 2m, 3h or 1h30m");
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit_end = rest[digits..]
            .find(|c: char| c.is_ascii_digit())
            .map_or(rest.len(), |length| digits + length);
        total += number
            * match &rest[digits..unit_end] {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(wrong()),
            };
        rest = &rest[unit_end..];
    }
    if total > 0.0 && total < 1e12 {
        Ok(total.ceil() as u64)
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, expected) in [("5s", 5), ("2m", 120), ("1h30m", 5400), ("1.5s", 2), ("500ms", 1)] {
            assert_eq!(seconds(text).unwrap(), expected, "{text}");
        }
        for text in ["", "5", "x", "5d", "-1s", "0s", "1..2s", "s"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
