//! `/logs/`: files below a folder, with listings.
//!
//! A path may lead through links (as those of `/var/log/containers` do), but not out of the folder: the file is opened
//! first, without reading it, and shown only when what was opened lies below the folder.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderValue};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use nix::fcntl::OFlag;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::answers::{Answer, Body, not_found, text, typed};

/// How much is read at once.
const BLOCK: usize = 64 << 10;
/// Blocks under way to a client.
const UNDER_WAY: usize = 4;
/// The most entries of a folder that are listed.
const MAX_ENTRIES: usize = 10_000;

/// What a path leads to.
#[derive(Debug)]
enum Found {
    File(File, u64),
    Folder(Vec<String>),
    /// A folder's path needs a slash at its end.
    Slash,
    Nothing,
    Forbidden,
}

/// Answers for the path below `root`, without a slash in front.
pub(super) async fn answer(root: &Path, path: &str) -> Answer {
    let (root, below) = (root.to_owned(), path.to_owned());
    let found = tokio::task::spawn_blocking(move || find(&root, &below)).await;
    match found {
        Ok(Ok(Found::File(file, length))) => send(file, length),
        Ok(Ok(Found::Folder(entries))) => {
            typed(StatusCode::OK, "text/html; charset=utf-8", listing(&entries))
        }
        Ok(Ok(Found::Slash)) => {
            let mut answer = text(StatusCode::MOVED_PERMANENTLY, "");
            let last = path.rsplit('/').next().unwrap_or_default();
            if let Ok(location) = HeaderValue::from_str(&format!("{}/", escape(last))) {
                answer.headers_mut().insert(header::LOCATION, location);
            }
            answer
        }
        Ok(Ok(Found::Forbidden)) => text(StatusCode::FORBIDDEN, "403 Forbidden\n"),
        Ok(Ok(Found::Nothing)) => not_found(),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => not_found(),
        Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            text(StatusCode::FORBIDDEN, "403 Forbidden\n")
        }
        Ok(Err(_)) | Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "500 Internal Server Error\n"),
    }
}

fn find(root: &Path, path: &str) -> io::Result<Found> {
    if path.contains('\0') || path.split('/').any(|part| part == "..") {
        return Ok(Found::Forbidden);
    }
    let root = root.canonicalize()?;
    let handle = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_PATH | OFlag::O_CLOEXEC).bits())
        .open(root.join(path.trim_start_matches('/')))?;
    let own = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()));
    if !std::fs::read_link(&own)?.starts_with(&root) {
        return Ok(Found::Forbidden);
    }
    let data = handle.metadata()?;
    if data.is_dir() {
        if !path.is_empty() && !path.ends_with('/') {
            return Ok(Found::Slash);
        }
        return entries(&own).map(Found::Folder);
    }
    if !data.is_file() {
        return Ok(Found::Forbidden);
    }
    if path.ends_with('/') {
        return Ok(Found::Nothing);
    }
    Ok(Found::File(File::open(&own)?, data.len()))
}

fn entries(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)?.take(MAX_ENTRIES) {
        let entry = entry?;
        let mut name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            name.push('/');
        }
        names.push(name);
    }
    names.sort_unstable();
    Ok(names)
}

fn listing(entries: &[String]) -> String {
    let mut page =
        "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n".to_owned();
    for name in entries {
        let shown = name
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;")
            .replace('"', "&#34;")
            .replace('\'', "&#39;");
        page.push_str(&format!("<a href=\"{}\">{shown}</a>\n", escape(name)));
    }
    page + "</pre>\n"
}

/// As a part of a relative URL.
fn escape(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// Sends what the file held when it was opened; it may grow meanwhile.
fn send(file: File, length: u64) -> Answer {
    let (sender, receiver) = mpsc::channel(UNDER_WAY);
    tokio::spawn(async move {
        let mut source = file.take(length);
        loop {
            let read = tokio::task::spawn_blocking(move || {
                let mut block = vec![0; BLOCK];
                let count = source.read(&mut block);
                (source, block, count)
            });
            let Ok((back, mut block, count)) = read.await else {
                return;
            };
            source = back;
            let part = match count {
                Ok(0) => return,
                Ok(count) => {
                    block.truncate(count);
                    Ok(Frame::data(Bytes::from(block)))
                }
                Err(error) => Err(error),
            };
            let failed = part.is_err();
            if sender.send(part).await.is_err() || failed {
                return;
            }
        }
    });
    let body: Body = StreamBody::new(ReceiverStream::new(receiver)).boxed_unsync();
    let mut answer = Answer::new(body);
    let headers = answer.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    answer
}
