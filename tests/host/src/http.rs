//! A small HTTP/1.1 server: one request a connection, a thread each, at most [`MOST_CONNECTIONS`] at a time.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::{Failure, process};

const MOST_CONNECTIONS: usize = 256;
const MOST_HEADER_BYTES: u64 = 64 * 1024;
const MOST_BODY_BYTES: u64 = 1024 * 1024;

/// Whose pages are served.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Site {
    /// The test host's own.
    TestHost,
    /// A main page for every path; the name is in it.
    Page(&'static str),
}

/// Serves on every address of the machine until SIGTERM.
pub(crate) fn serve(port: u16, site: Site) -> Result<u8, Failure> {
    // Blocked before the threads start, so that they inherit it and only `pause` sees the signals.
    let mut ends = nix::sys::signal::SigSet::empty();
    ends.add(nix::sys::signal::Signal::SIGTERM);
    ends.add(nix::sys::signal::Signal::SIGINT);
    ends.thread_block()
        .map_err(|e| format!("failed to block signals: {e}"))?;

    let server = Arc::new(Server::new(site));
    // One socket takes both families where the machine has IPv6 (bindv6only is off there by default).
    let listener = TcpListener::bind(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port))
        .or_else(|_| TcpListener::bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)))
        .map_err(|e| format!("failed to listen on port {port}: {e}"))?;
    process::say(&format!("{}: listening on port {port}", server.name()))?;
    thread::spawn(move || accept(&listener, &server));
    process::pause()
}

fn accept(listener: &TcpListener, server: &Arc<Server>) {
    for stream in listener.incoming().flatten() {
        if server.open.fetch_add(1, Ordering::Relaxed) >= MOST_CONNECTIONS {
            server.open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let server = Arc::clone(server);
        thread::spawn(move || {
            // A client that went away is no news.
            let _ = server.answer(stream);
            server.open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

struct Server {
    site: Site,
    open: AtomicUsize,
    sick: AtomicBool,
    eaten: Mutex<Vec<Vec<u8>>>,
}

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Server {
    fn new(site: Site) -> Self {
        Self {
            site,
            open: AtomicUsize::new(0),
            sick: AtomicBool::new(false),
            eaten: Mutex::new(Vec::new()),
        }
    }

    fn name(&self) -> &'static str {
        match self.site {
            Site::TestHost => "test-host",
            Site::Page(name) => name,
        }
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let peer = stream.peer_addr()?;
        let Some(request) = read_request(&stream)? else {
            return respond(&mut stream, 400, b"bad request\n");
        };
        eprintln!("{} {} {}", self.name(), request.method, request.path);
        let (status, body) = match self.site {
            Site::Page(name) => (
                200,
                format!("<html><body><h1>Welcome to {name}!</h1></body></html>\n").into_bytes(),
            ),
            Site::TestHost => self.page(&request, peer),
        };
        respond(&mut stream, status, &body)?;
        if self.site == Site::TestHost && request.path == "/exit" {
            let code = request
                .query
                .get("code")
                .and_then(|c| c.parse().ok())
                .unwrap_or(0);
            std::process::exit(code);
        }
        Ok(())
    }

    fn page(&self, request: &Request, peer: SocketAddr) -> (u16, Vec<u8>) {
        let text = |text: &str| (200, format!("{text}\n").into_bytes());
        let number = |key: &str| request.query.get(key).and_then(|n| n.parse::<u64>().ok());
        match request.path.as_str() {
            "/" | "/healthz" if self.sick.load(Ordering::Relaxed) => (500, b"sick\n".to_vec()),
            "/" | "/healthz" | "/exit" => text("ok"),
            "/sicken" => {
                self.sick.store(true, Ordering::Relaxed);
                text("sick from now on")
            }
            "/hostname" => text(&nix::unistd::gethostname().unwrap_or_default().to_string_lossy()),
            "/client" => text(&peer.ip().to_canonical().to_string()),
            "/env" => text(
                &std::env::vars()
                    .map(|(k, v)| format!("{k}={v}"))
                    .collect::<Vec<_>>()
                    .join("\n"),
            ),
            "/echo" => match request.query.get("text") {
                Some(said) => text(said),
                None => (200, request.body.clone()),
            },
            "/delay" => {
                let ms = number("ms").unwrap_or(1000).min(600_000);
                thread::sleep(Duration::from_millis(ms));
                text(&format!("waited {ms} ms"))
            }
            "/eat" => match process::take(number("mib").unwrap_or(1)) {
                Ok(blocks) => {
                    self.eaten.lock().expect("no holder panics").extend(blocks);
                    text("eaten")
                }
                Err(why) => (400, format!("{why}\n").into_bytes()),
            },
            "/write" => match (request.query.get("path"), request.query.get("text")) {
                (Some(path), Some(line)) => match process::write(path, line, 1, 0) {
                    Ok(_) => text("written"),
                    Err(why) => (500, format!("{why}\n").into_bytes()),
                },
                _ => (400, b"`path` and `text` are needed\n".to_vec()),
            },
            _ => (404, b"no such page\n".to_vec()),
        }
    }
}

fn read_request(stream: &TcpStream) -> std::io::Result<Option<Request>> {
    let mut reader = BufReader::new(stream.take(MOST_HEADER_BYTES + MOST_BODY_BYTES));
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut words = first.split_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Ok(None);
    };
    let mut length = 0;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse::<u64>().unwrap_or(0).min(MOST_BODY_BYTES);
        }
    }
    let mut body = Vec::new();
    reader.take(length).read_to_end(&mut body)?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(k, v)| (k.to_owned(), percent_decoded(v)))
        .collect();
    Ok(Some(Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query,
        body,
    }))
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = text
            .get(i + 1..i + 3)
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        match (bytes[i], hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                i += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn respond(stream: &mut TcpStream, status: u16, body: &[u8]) -> std::io::Result<()> {
    let reason = match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        _ => "Internal Server Error",
    };
    let head = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    stream.flush()
}

#[cfg(test)]
mod tests {
    use super::percent_decoded;

    #[test]
    fn percent_escapes_are_undone_and_broken_ones_kept() {
        assert_eq!(percent_decoded("a%20b+c"), "a b c");
        assert_eq!(percent_decoded("100%"), "100%");
        assert_eq!(percent_decoded("%zz%C3%A9"), "%zzé");
    }
}
