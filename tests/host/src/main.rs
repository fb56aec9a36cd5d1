//! The program inside the test images: one static executable that is a server, a client, a glutton or a sleeper.
//!
//! Pods in tests need something to run whose behaviour is known to the byte. The images hold this one program under
//! several names. As `test-host` the first argument says what to be; as `nginx`, `httpd`, `nonewprivs` or `pause` it
//! stands in for the program of that name, as far as the CRI suite looks at it (see `stand_in`).
//!
//! Nothing here is resolved through libc's loader or name service, so that the executable runs in an empty root.

mod http;
mod net;
mod process;
mod stand_in;

use std::process::ExitCode;

/// What went wrong, as one line for standard error.
pub(crate) type Failure = String;

const USAGE: &str = "usage: test-host COMMAND
  serve [PORT]                     HTTP: /healthz /hostname /echo?text= /exit?code= /delay?ms= /eat?mib= /write?path=&text= /env /client
  eat MIB                          take that much memory, touch it, say so, keep it
  signals                          print the name of each signal received; SIGTERM also ends it, with status 0
  write PATH TEXT [COUNT [MS]]     append a line COUNT times, MS apart
  lines COUNT [WIDTH [MS]]         print COUNT numbered lines of WIDTH characters
  exit STATUS [MS]                 end with that status after MS
  pause                            do nothing until SIGTERM or SIGINT
  dns NAME SERVER:PORT [A|AAAA]    ask, print the addresses
  dns-serve ADDR:PORT NAME=IP...   answer those names over UDP, refuse the rest
  tcp-serve ADDR:PORT              echo; prints the peer's address
  tcp ADDR:PORT TEXT               send a line, print the answer
  udp-serve ADDR:PORT              echo; prints the peer's address
  udp ADDR:PORT TEXT               send a datagram, print the answer";

fn main() -> ExitCode {
    let mut args = std::env::args();
    let name = args.next().unwrap_or_default();
    let args: Vec<String> = args.collect();
    let outcome = match stand_in::role(&name) {
        Some(role) => stand_in::run(role, &name, &args),
        None => run(&args),
    };
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(why) => {
            eprintln!("test-host: {why}");
            ExitCode::from(1)
        }
    }
}

fn run(args: &[String]) -> Result<u8, Failure> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["serve"] => http::serve(8080, http::Site::TestHost),
        ["serve", port] => http::serve(number(port)?, http::Site::TestHost),
        ["eat", mib] => process::eat(number(mib)?),
        ["signals"] => process::signals(),
        ["write", path, text, rest @ ..] => {
            process::write(path, text, optional(rest, 0, 1)?, optional(rest, 1, 0)?)
        }
        ["lines", count, rest @ ..] => {
            process::lines(number(count)?, optional(rest, 0, 0)?, optional(rest, 1, 0)?)
        }
        ["exit", status, rest @ ..] => process::exit(number(status)?, optional(rest, 0, 0)?),
        ["pause"] => process::pause(),
        ["dns", name, server] => net::dns(name, server, "A"),
        ["dns", name, server, kind] => net::dns(name, server, kind),
        ["dns-serve", listen, names @ ..] => net::dns_serve(listen, names),
        ["tcp-serve", listen] => net::tcp_serve(listen),
        ["tcp", to, text] => net::tcp(to, text),
        ["udp-serve", listen] => net::udp_serve(listen),
        ["udp", to, text] => net::udp(to, text),
        _ => {
            eprintln!("{USAGE}");
            Ok(64)
        }
    }
}

/// A number from the command line.
fn number<N: std::str::FromStr>(text: &str) -> Result<N, Failure> {
    text.parse()
        .map_err(|_| format!("`{text}` isn't a number that fits here"))
}

fn optional(rest: &[&str], index: usize, default: u64) -> Result<u64, Failure> {
    rest.get(index).map_or(Ok(default), |text| number(text))
}
