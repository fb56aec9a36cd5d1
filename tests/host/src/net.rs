//! TCP, UDP and DNS, from both ends, with addresses only: nothing here asks libc to resolve a name.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::process::say;
use crate::{Failure, number};

const WAIT: Duration = Duration::from_secs(5);

/// Echoes lines; one connection at a time is enough for a test.
pub(crate) fn tcp_serve(listen: &str) -> Result<u8, Failure> {
    let fail = |e: std::io::Error| format!("failed to serve TCP on `{listen}`: {e}");
    let listener = TcpListener::bind(address(listen)?).map_err(fail)?;
    say(&format!("listening on {listen}"))?;
    loop {
        let (stream, peer) = listener.accept().map_err(fail)?;
        say(&format!("from {}", peer.ip().to_canonical()))?;
        // A client that went away is no reason to stop.
        let _ = echo(&stream);
    }
}

fn echo(mut stream: &TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(WAIT))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    stream.write_all(line.as_bytes())
}

/// Sends a line and prints the line that comes back.
pub(crate) fn tcp(to: &str, text: &str) -> Result<u8, Failure> {
    let fail = |e: std::io::Error| format!("failed to talk TCP to `{to}`: {e}");
    let mut stream = TcpStream::connect_timeout(&address(to)?, WAIT).map_err(fail)?;
    stream.set_read_timeout(Some(WAIT)).map_err(fail)?;
    stream.write_all(format!("{text}\n").as_bytes()).map_err(fail)?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).map_err(fail)?;
    say(line.trim_end())?;
    Ok(0)
}

/// Echoes datagrams.
pub(crate) fn udp_serve(listen: &str) -> Result<u8, Failure> {
    let fail = |e: std::io::Error| format!("failed to serve UDP on `{listen}`: {e}");
    let socket = UdpSocket::bind(address(listen)?).map_err(fail)?;
    say(&format!("listening on {listen}"))?;
    let mut buffer = [0; 65536];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer).map_err(fail)?;
        say(&format!("from {}", peer.ip().to_canonical()))?;
        socket.send_to(&buffer[..length], peer).map_err(fail)?;
    }
}

/// Sends a datagram and prints the one that comes back.
pub(crate) fn udp(to: &str, text: &str) -> Result<u8, Failure> {
    let answer = ask(address(to)?, text.as_bytes())?;
    say(&String::from_utf8_lossy(&answer))?;
    Ok(0)
}

fn ask(to: SocketAddr, packet: &[u8]) -> Result<Vec<u8>, Failure> {
    let fail = |e: std::io::Error| format!("failed to talk UDP to `{to}`: {e}");
    let from: SocketAddr = if to.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(from).map_err(fail)?;
    socket.set_read_timeout(Some(WAIT)).map_err(fail)?;
    socket.connect(to).map_err(fail)?;
    socket.send(packet).map_err(fail)?;
    let mut buffer = vec![0; 65536];
    let length = socket.recv(&mut buffer).map_err(fail)?;
    buffer.truncate(length);
    Ok(buffer)
}

/// Asks a server for a name's addresses and prints them, one a line; status 1 when there are none.
pub(crate) fn dns(name: &str, server: &str, kind: &str) -> Result<u8, Failure> {
    let kind = match kind {
        "A" => 1,
        "AAAA" => 28,
        _ => return Err(format!("`{kind}` is neither A nor AAAA")),
    };
    let answer = ask(address(server)?, &query(name, kind)?)?;
    let addresses = addresses(&answer, kind).ok_or("the answer isn't DNS")?;
    for ip in &addresses {
        say(&ip.to_string())?;
    }
    Ok(u8::from(addresses.is_empty()))
}

/// Answers names from the command line.
pub(crate) fn dns_serve(listen: &str, names: &[&str]) -> Result<u8, Failure> {
    let mut table: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for pair in names {
        let (name, ip) = pair
            .split_once('=')
            .ok_or_else(|| format!("`{pair}` isn't NAME=IP"))?;
        table
            .entry(name.to_ascii_lowercase())
            .or_default()
            .push(number(ip)?);
    }
    let fail = |e: std::io::Error| format!("failed to serve DNS on `{listen}`: {e}");
    let socket = UdpSocket::bind(address(listen)?).map_err(fail)?;
    say(&format!("listening on {listen}"))?;
    let mut buffer = [0; 1500];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer).map_err(fail)?;
        if let Some(answer) = reply(&buffer[..length], &table) {
            socket.send_to(&answer, peer).map_err(fail)?;
        }
    }
}

fn address(text: &str) -> Result<SocketAddr, Failure> {
    text.parse().map_err(|_| format!("`{text}` isn't ADDRESS:PORT"))
}

fn query(name: &str, kind: u16) -> Result<Vec<u8>, Failure> {
    // Recursion desired, one question.
    let mut packet = vec![0x4f, 0x72, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|n| (1..64).contains(n));
        packet.push(length.ok_or_else(|| format!("`{name}` isn't a domain name"))?);
        packet.extend(label.bytes());
    }
    packet.push(0);
    packet.extend(kind.to_be_bytes());
    packet.extend([0, 1]);
    Ok(packet)
}

/// The question's name, its type and where it ends.
fn question(packet: &[u8]) -> Option<(String, u16, usize)> {
    let mut at = 12;
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*packet.get(at)?);
        if length == 0 {
            break;
        }
        if length > 63 {
            return None;
        }
        labels.push(String::from_utf8_lossy(packet.get(at + 1..at + 1 + length)?).to_ascii_lowercase());
        at += 1 + length;
    }
    let kind = u16::from_be_bytes([*packet.get(at + 1)?, *packet.get(at + 2)?]);
    packet.get(at + 4)?;
    Some((labels.join("."), kind, at + 5))
}

fn reply(packet: &[u8], table: &BTreeMap<String, Vec<IpAddr>>) -> Option<Vec<u8>> {
    let (name, kind, end) = question(packet)?;
    let known = table.get(&name);
    let records: Vec<Vec<u8>> = known
        .into_iter()
        .flatten()
        .filter_map(|ip| match (ip, kind) {
            (IpAddr::V4(ip), 1) => Some(ip.octets().to_vec()),
            (IpAddr::V6(ip), 28) => Some(ip.octets().to_vec()),
            _ => None,
        })
        .collect();
    let mut out = packet[..2].to_vec();
    let code = if known.is_some() { 0 } else { 3 };
    out.extend([
        0x85,
        0x80 | code,
        0,
        1,
        0,
        u8::try_from(records.len()).ok()?,
        0,
        0,
        0,
        0,
    ]);
    out.extend(&packet[12..end]);
    for data in records {
        out.extend([0xc0, 12]);
        out.extend(kind.to_be_bytes());
        out.extend([0, 1, 0, 0, 0, 5, 0, u8::try_from(data.len()).ok()?]);
        out.extend(data);
    }
    Some(out)
}

fn addresses(packet: &[u8], wanted: u16) -> Option<Vec<IpAddr>> {
    let count = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]);
    let (_, _, mut at) = question(packet)?;
    let mut found = Vec::new();
    for _ in 0..count {
        // An owner name: labels, ended by a zero or by a pointer.
        loop {
            let length = *packet.get(at)?;
            match length {
                0 => at += 1,
                0xc0.. => at += 2,
                _ => {
                    at += 1 + usize::from(length);
                    continue;
                }
            }
            break;
        }
        let fixed = packet.get(at..at + 10)?;
        let length = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        let data = packet.get(at + 10..at + 10 + length)?;
        if u16::from_be_bytes([fixed[0], fixed[1]]) == wanted {
            if let Ok(v4) = <[u8; 4]>::try_from(data) {
                found.push(v4.into());
            } else if let Ok(v6) = <[u8; 16]>::try_from(data) {
                found.push(v6.into());
            }
        }
        at += 10 + length;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_answered_and_understood() {
        let table = BTreeMap::from([
            (
                "a.test".to_owned(),
                vec!["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()],
            ),
            ("six.test".to_owned(), vec!["fd00::1".parse().unwrap()]),
        ]);
        let ask =
            |name: &str, kind| addresses(&reply(&query(name, kind).unwrap(), &table).unwrap(), kind).unwrap();
        assert_eq!(ask("A.test.", 1).len(), 2);
        assert_eq!(ask("six.test", 28), ["fd00::1".parse::<IpAddr>().unwrap()]);
        assert!(ask("six.test", 1).is_empty());
        assert!(ask("none.test", 1).is_empty());
    }

    #[test]
    fn broken_packets_are_refused() {
        let whole = query("a.test", 1).unwrap();
        for length in 0..whole.len() {
            assert_eq!(reply(&whole[..length], &BTreeMap::new()), None, "{length}");
        }
        assert!(query("a..b", 1).is_err());
    }
}
