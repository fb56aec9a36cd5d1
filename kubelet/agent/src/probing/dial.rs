//! TCP connections that end with the probe.

use std::io;
use std::net::SocketAddr;

use thiserror::Error;
use tokio::net::{TcpStream, lookup_host};

/// Why there is no connection, in the words that users know.
#[derive(Debug, Error)]
pub enum DialError {
    /// The name has no address.
    #[error("dial tcp: lookup {host}: {reason}")]
    Lookup {
        /// The name.
        host: String,
        /// Why.
        reason: String,
    },
    /// The address doesn't answer.
    #[error("dial tcp {address}: connect: {reason}")]
    Connect {
        /// Address and port.
        address: SocketAddr,
        /// The system's words.
        reason: String,
    },
}

/// Connects to a host, which mostly is a pod's address, trying all addresses of a name.
pub async fn connect(host: &str, port: u16) -> Result<TcpStream, DialError> {
    let addresses: Vec<SocketAddr> = match bare(host).parse() {
        Ok(ip) => vec![SocketAddr::new(ip, port)],
        Err(_) => {
            let lookup = |reason: String| DialError::Lookup {
                host: host.to_owned(),
                reason,
            };
            let found = lookup_host((host, port))
                .await
                .map_err(|error| lookup(error.to_string()))?;
            let found: Vec<SocketAddr> = found.take(8).collect();
            if found.is_empty() {
                return Err(lookup("no such host".to_owned()));
            }
            found
        }
    };
    let mut last = None;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                last = Some(DialError::Connect {
                    address,
                    reason: words(&error),
                })
            }
        }
    }
    Err(last.unwrap_or_else(|| DialError::Lookup {
        host: host.to_owned(),
        reason: "no such host".to_owned(),
    }))
}

/// An address without the brackets that an IPv6 one may have.
fn bare(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

/// Host and port as an address: IPv6 in brackets.
pub(crate) fn join(host: &str, port: u16) -> String {
    let host = bare(host);
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// The system's words for an error: without the number, in lower case.
fn words(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    }
}

/// Lets the connection end without the minute of TIME_WAIT, once both sides have said all that they had to.
pub(crate) fn forget(stream: &TcpStream) {
    // A connection that is gone already has nothing to wait for either.
    let _ = stream.set_zero_linger();
}
