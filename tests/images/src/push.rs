//! Sending a layout to a registry over plain HTTP: the distribution API's uploads, one connection each.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::layout::REFERENCE;

const WAIT: Duration = Duration::from_secs(30);

/// Sends every image of the layout to `registry` (`host:port`). The host of each reference is dropped.
pub fn push(registry: &str, layout: &Path) -> Result<usize> {
    let index: Value = read_json(&layout.join("index.json"))?;
    let mut pusher = Pusher {
        registry,
        layout,
        sent: BTreeSet::new(),
        homes: Vec::new(),
    };
    let manifests = index["manifests"]
        .as_array()
        .context("index.json has no manifests")?;
    for entry in manifests {
        let reference = entry["annotations"][REFERENCE]
            .as_str()
            .context("a manifest has no reference")?;
        let (repository, tag) =
            split(reference).with_context(|| format!("`{reference}` isn't host/path:tag"))?;
        pusher
            .manifest(repository, entry, Some(tag))
            .with_context(|| format!("failed to push `{reference}`"))?;
    }
    Ok(manifests.len())
}

/// The path and the tag of a reference, without its host.
pub(crate) fn split(reference: &str) -> Option<(&str, &str)> {
    let (_host, rest) = reference.split_once('/')?;
    rest.rsplit_once(':')
}

struct Pusher<'a> {
    registry: &'a str,
    layout: &'a Path,
    /// Repository and digest of what is there.
    sent: BTreeSet<(String, String)>,
    /// Where each blob was first sent, to be mounted from.
    homes: Vec<(String, String)>,
}

impl Pusher<'_> {
    fn manifest(&mut self, repository: &str, descriptor: &Value, tag: Option<&str>) -> Result<()> {
        let digest = descriptor["digest"]
            .as_str()
            .context("a descriptor has no digest")?;
        let kind = descriptor["mediaType"]
            .as_str()
            .context("a descriptor has no media type")?;
        let bytes = self.blob_bytes(digest)?;
        let manifest: Value = serde_json::from_slice(&bytes)?;
        for child in manifest["manifests"].as_array().into_iter().flatten() {
            self.manifest(repository, child, None)?;
        }
        for blob in manifest["layers"]
            .as_array()
            .into_iter()
            .flatten()
            .chain(manifest.get("config"))
        {
            self.blob(
                repository,
                blob["digest"].as_str().context("a descriptor has no digest")?,
            )?;
        }
        let path = format!("/v2/{repository}/manifests/{}", tag.unwrap_or(digest));
        let answer = self.request("PUT", &path, Some(kind), &bytes)?;
        ensure!(
            answer.status == 201,
            "the registry answered {} to a manifest",
            answer.status
        );
        Ok(())
    }

    fn blob(&mut self, repository: &str, digest: &str) -> Result<()> {
        if !self.sent.insert((repository.to_owned(), digest.to_owned())) {
            return Ok(());
        }
        let home = self
            .homes
            .iter()
            .find(|(d, _)| d == digest)
            .map(|(_, home)| home.clone());
        let query = home
            .as_ref()
            .map_or(String::new(), |home| format!("?mount={digest}&from={home}"));
        let answer = self.request(
            "POST",
            &format!("/v2/{repository}/blobs/uploads/{query}"),
            None,
            &[],
        )?;
        if answer.status == 201 {
            return Ok(());
        }
        ensure!(
            answer.status == 202,
            "the registry answered {} to the begin of an upload",
            answer.status
        );
        let location = answer
            .location
            .context("the registry named no place for the upload")?;
        let path = match location.strip_prefix("http://") {
            Some(rest) => &rest[rest.find('/').context("the place for the upload has no path")?..],
            None => &location,
        };
        let joint = if path.contains('?') { '&' } else { '?' };
        let bytes = self.blob_bytes(digest)?;
        let put = format!("{path}{joint}digest={digest}");
        let answer = self.request("PUT", &put, Some("application/octet-stream"), &bytes)?;
        ensure!(
            answer.status == 201,
            "the registry answered {} to blob `{digest}`",
            answer.status
        );
        if home.is_none() {
            self.homes.push((digest.to_owned(), repository.to_owned()));
        }
        Ok(())
    }

    fn blob_bytes(&self, digest: &str) -> Result<Vec<u8>> {
        let name = digest.strip_prefix("sha256:").context("a digest isn't SHA-256")?;
        let path = self.layout.join("blobs/sha256").join(name);
        fs::read(&path).with_context(|| format!("failed to read `{}`", path.display()))
    }

    fn request(&self, method: &str, path: &str, kind: Option<&str>, body: &[u8]) -> Result<Answer> {
        let mut stream = TcpStream::connect(self.registry)
            .with_context(|| format!("failed to reach the registry at `{}`", self.registry))?;
        stream.set_read_timeout(Some(WAIT))?;
        let kind = kind.map_or(String::new(), |kind| format!("Content-Type: {kind}\r\n"));
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\n{kind}Content-Length: {}\r\nConnection: close\r\n\r\n",
            self.registry,
            body.len()
        )?;
        stream.write_all(body)?;
        read_answer(&stream)
    }
}

struct Answer {
    status: u16,
    location: Option<String>,
}

fn read_answer(stream: impl Read) -> Result<Answer> {
    let mut reader = BufReader::new(stream.take(64 * 1024));
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let Some(status) = line.split_whitespace().nth(1).and_then(|s| s.parse().ok()) else {
        bail!("the registry answered `{}`", line.trim_end());
    };
    let mut location = None;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
            return Ok(Answer { status, location });
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("location")
        {
            location = Some(value.trim().to_owned());
        }
    }
}

pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let bytes = fs::read(path).with_context(|| format!("failed to read `{}`", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("`{}` isn't JSON", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_lose_their_host() {
        assert_eq!(
            split("registry.k8s.io/e2e-test-images/busybox:1.29-2"),
            Some(("e2e-test-images/busybox", "1.29-2"))
        );
        assert_eq!(split("busybox"), None);
    }

    #[test]
    fn an_answer_is_a_status_and_a_place() {
        let answer = read_answer(&b"HTTP/1.1 202 Accepted\r\nlocation: /v2/x?y=z\r\n\r\n"[..]).unwrap();
        assert_eq!(
            (answer.status, answer.location.as_deref()),
            (202, Some("/v2/x?y=z"))
        );
        assert!(read_answer(&b"nonsense\r\n"[..]).is_err());
    }
}
