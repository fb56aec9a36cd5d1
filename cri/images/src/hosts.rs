//! Which servers stand for a registry: `hosts.toml`, in containerd's format.
//!
//! `<hosts_dir>/<host[:port]>/hosts.toml` (also `<host>_<port>_`, and `_default` for all that have none) names mirrors
//! in the order in which they are asked; the registry itself, or what `server` says, comes last. The file is read at
//! every pull: an edit counts at once. An unknown key is an error, as a mistyped `skip_verify` would be a long search.
//!
//! Without a file a registry is asked by HTTPS, and by plain HTTP when its host is this machine (`localhost`,
//! `127.0.0.0/8`, `[::1]`).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

/// The largest `hosts.toml`.
const MAX_FILE: u64 = 1 << 20;
/// The most mirrors in one file.
const MAX_MIRRORS: usize = 32;

/// A `hosts.toml` that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// It can't be read.
    #[error("failed to read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It isn't TOML, or has keys or values that mean nothing.
    #[error("failed to parse `{path}`")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: HostsSyntaxError,
    },
}

/// What is wrong inside a `hosts.toml`.
#[derive(Debug, thiserror::Error)]
pub enum HostsSyntaxError {
    /// Not TOML, or an unknown key; the message has line and column.
    #[error("{0}")]
    Toml(String),
    /// A server that isn't one.
    #[error("`{0}` is not an http:// or https:// URL of a registry")]
    Url(String),
    /// A capability that doesn't exist.
    #[error("host `{url}` has the unknown capability `{capability}`; there are pull, resolve and push")]
    Capability {
        /// Whose.
        url: String,
        /// Which.
        capability: String,
    },
    /// Too many.
    #[error("{0} mirrors are more than {MAX_MIRRORS}")]
    TooMany(usize),
}

/// One server that may be asked for a registry's images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where the API is, without a final slash: `https://mirror:5000/v2`.
    pub base: String,
    /// `host[:port]`.
    pub host: String,
    /// Whether to go without TLS.
    pub plain_http: bool,
    /// Whether this is the registry itself and no mirror.
    pub is_server: bool,
    /// Whether it may say what a tag means.
    pub resolve: bool,
    /// Whether it may give content by digest.
    pub pull: bool,
    /// Whether its certificate goes unchecked.
    pub skip_verify: bool,
    /// Files with more CA certificates.
    pub ca: Vec<PathBuf>,
    /// Files with client certificates and their keys.
    pub client: Vec<(PathBuf, Option<PathBuf>)>,
    /// Headers to send.
    pub headers: Vec<(String, String)>,
}

/// The servers to ask for `host`, in order. Reads `<hosts_dir>/<host>/hosts.toml`.
pub fn endpoints(hosts_dir: Option<&Path>, host: &str) -> Result<Vec<Endpoint>, HostsError> {
    let Some(dir) = hosts_dir else {
        return Ok(vec![default_endpoint(host)]);
    };
    for name in [
        host.to_owned(),
        host.replacen(':', "_", 1) + "_",
        "_default".to_owned(),
    ] {
        let path = dir.join(&name).join("hosts.toml");
        let read = || -> io::Result<String> {
            if std::fs::metadata(&path)?.len() > MAX_FILE {
                return Err(io::Error::new(
                    io::ErrorKind::FileTooLarge,
                    format!("larger than {MAX_FILE} bytes"),
                ));
            }
            std::fs::read_to_string(&path)
        };
        match read() {
            Ok(text) => {
                let at = path.parent().expect("a file in a directory");
                return parse(&text, host, at).map_err(|source| HostsError::Parse { path, source });
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) => {}
            Err(source) => return Err(HostsError::Read { path, source }),
        }
    }
    Ok(vec![default_endpoint(host)])
}

/// Reads the text of a `hosts.toml` for `host`; relative file names are below `dir`.
pub fn parse(text: &str, host: &str, dir: &Path) -> Result<Vec<Endpoint>, HostsSyntaxError> {
    let file: HostsFile = toml::from_str(text).map_err(|error| HostsSyntaxError::Toml(error.to_string()))?;
    let HostsFile {
        server,
        host: mirrors,
        capabilities,
        ca,
        client,
        skip_verify,
        override_path,
        header,
    } = file;
    let fields = HostFields {
        capabilities,
        ca,
        client,
        skip_verify,
        override_path,
        header,
    };
    let mirrors = mirrors.map_or_else(Vec::new, |hosts| hosts.0);
    if mirrors.len() > MAX_MIRRORS {
        return Err(HostsSyntaxError::TooMany(mirrors.len()));
    }
    let mut endpoints = Vec::with_capacity(mirrors.len() + 1);
    for (url, fields) in mirrors {
        endpoints.push(fields.endpoint(&url, dir, false)?);
    }
    let server = match server.as_deref() {
        Some(server) if !server.is_empty() => fields.endpoint(server, dir, true)?,
        _ => fields.endpoint(&default_endpoint(host).base, dir, true)?,
    };
    // The server may be among the mirrors, to say more about it; it isn't asked twice.
    match endpoints.iter_mut().find(|mirror| mirror.base == server.base) {
        Some(mirror) => mirror.is_server = true,
        None => endpoints.push(server),
    }
    Ok(endpoints)
}

/// The registry itself, as it is asked when nothing is configured.
fn default_endpoint(host: &str) -> Endpoint {
    let host = if host == "docker.io" {
        "registry-1.docker.io"
    } else {
        host
    };
    let plain_http = is_loopback(host);
    Endpoint {
        base: format!("{}://{host}/v2", if plain_http { "http" } else { "https" }),
        host: host.to_owned(),
        plain_http,
        is_server: true,
        resolve: true,
        pull: true,
        skip_verify: false,
        ca: Vec::new(),
        client: Vec::new(),
        headers: Vec::new(),
    }
}

/// Whether `host[:port]` is this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost"
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// The whole file: beside the mirrors, the fields of the server itself. (Flattening would let unknown keys pass.)
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HostsFile {
    server: Option<String>,
    host: Option<Mirrors>,
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany<String>>,
    client: Option<ClientFields>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    header: Option<Headers>,
}

/// One or several of something: the format takes both.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ClientFields {
    Pem(String),
    Pems(Vec<OneOrMany<String>>),
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostFields {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany<String>>,
    client: Option<ClientFields>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    header: Option<Headers>,
}

/// Header names and values, in the order of the file.
type Headers = std::collections::BTreeMap<String, OneOrMany<String>>;

impl HostFields {
    fn endpoint(self, url: &str, dir: &Path, is_server: bool) -> Result<Endpoint, HostsSyntaxError> {
        let (host, path, plain_http) = split_url(url).ok_or_else(|| HostsSyntaxError::Url(url.to_owned()))?;
        let path = path.trim_end_matches('/');
        let api = if self.override_path || path == "/v2" || path.starts_with("/v2/") {
            ""
        } else {
            "/v2"
        };
        let (mut resolve, mut pull) = (self.capabilities.is_none(), self.capabilities.is_none());
        for capability in self.capabilities.unwrap_or_default() {
            match capability.as_str() {
                "resolve" => resolve = true,
                "pull" => pull = true,
                "push" => {}
                _ => {
                    return Err(HostsSyntaxError::Capability {
                        url: url.to_owned(),
                        capability,
                    });
                }
            }
        }
        let client = match self.client {
            None => Vec::new(),
            Some(ClientFields::Pem(pem)) => vec![(dir.join(pem), None)],
            Some(ClientFields::Pems(pems)) => pems
                .into_iter()
                .filter_map(|pem| {
                    let mut files = pem.into_vec().into_iter();
                    Some((
                        dir.join(files.next()?),
                        files
                            .next()
                            .filter(|key| !key.is_empty())
                            .map(|key| dir.join(key)),
                    ))
                })
                .collect(),
        };
        let headers = self.header.unwrap_or_default().into_iter();
        Ok(Endpoint {
            base: format!(
                "{}://{host}{path}{api}",
                if plain_http { "http" } else { "https" }
            ),
            host: host.to_owned(),
            plain_http,
            is_server,
            resolve,
            pull,
            skip_verify: self.skip_verify,
            ca: self
                .ca
                .map_or_else(Vec::new, OneOrMany::into_vec)
                .into_iter()
                .map(|ca| dir.join(ca))
                .collect(),
            client,
            headers: headers
                .flat_map(|(name, values)| {
                    values
                        .into_vec()
                        .into_iter()
                        .map(move |value| (name.clone(), value))
                })
                .collect(),
        })
    }
}

/// Splits a URL into host with port, path and whether it is plain HTTP. Without a scheme it is HTTPS, on this machine
/// plain HTTP.
fn split_url(url: &str) -> Option<(&str, &str, bool)> {
    let (rest, plain_http) = if let Some(rest) = url.strip_prefix("https://") {
        (rest, Some(false))
    } else if let Some(rest) = url.strip_prefix("http://") {
        (rest, Some(true))
    } else {
        (url, None)
    };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let is_path = |c: char| c.is_ascii_graphic() && !matches!(c, '?' | '#' | '"' | '<' | '>' | '\\' | '`');
    // Host names with underscores don't exist in DNS, but in /etc/hosts of test beds.
    if !crate::reference::is_host(&host.replace('_', "-0")) || !path.chars().all(is_path) {
        return None;
    }
    Some((host, path, plain_http.unwrap_or_else(|| is_loopback(host))))
}

/// The `host` tables, in the order of the file: the order in which they are asked.
struct Mirrors(Vec<(String, HostFields)>);

impl<'de> Deserialize<'de> for Mirrors {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Mirrors;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("tables named by the URL of a mirror")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Mirrors, A::Error> {
                let mut mirrors = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    mirrors.push(entry);
                }
                Ok(Mirrors(mirrors))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse_for(host: &str, text: &str) -> Result<Vec<Endpoint>, String> {
        parse(text, host, Path::new("/etc/d")).map_err(|error| error.to_string())
    }

    fn bases(endpoints: &[Endpoint]) -> Vec<&str> {
        endpoints.iter().map(|e| e.base.as_str()).collect()
    }

    #[test]
    fn mirrors_come_in_the_order_of_the_file_and_the_server_last() {
        let text = r#"
            server = "https://registry-1.docker.io"
            [host."https://z.example"]
              capabilities = ["pull", "resolve"]
              skip_verify = true
              ca = "z.crt"
            [host."http://10.0.0.1:5000"]
              capabilities = ["pull"]
              ca = ["a.crt", "/b.crt"]
              client = [["c.crt", "c.key"], ["d.pem", ""]]
              [host."http://10.0.0.1:5000".header]
                x-one = "1"
                x-two = ["2", "3"]
            [host."https://a.example/proxy/docker"]
              override_path = true
            [host."https://b.example/sub"]
            [host."c.example/v2/cache"]
        "#;
        let endpoints = parse_for("docker.io", text).unwrap();
        assert_eq!(
            bases(&endpoints),
            [
                "https://z.example/v2",
                "http://10.0.0.1:5000/v2",
                "https://a.example/proxy/docker",
                "https://b.example/sub/v2",
                "https://c.example/v2/cache",
                "https://registry-1.docker.io/v2"
            ]
        );
        assert!(
            endpoints[0].skip_verify && endpoints[0].resolve && endpoints[0].pull && !endpoints[0].is_server
        );
        assert_eq!(endpoints[0].ca, [Path::new("/etc/d/z.crt")]);
        assert!(!endpoints[1].resolve && endpoints[1].pull && endpoints[1].plain_http);
        assert_eq!(endpoints[1].ca, [Path::new("/etc/d/a.crt"), Path::new("/b.crt")]);
        assert_eq!(
            endpoints[1].client[0],
            ("/etc/d/c.crt".into(), Some("/etc/d/c.key".into()))
        );
        assert_eq!(endpoints[1].client[1], ("/etc/d/d.pem".into(), None));
        assert_eq!(endpoints[1].headers.len(), 3);
        assert!(endpoints[5].is_server);
    }

    #[test]
    fn without_a_file_it_is_https_except_on_this_machine() {
        let of = |host| endpoints(None, host).unwrap().remove(0).base;
        assert_eq!(of("docker.io"), "https://registry-1.docker.io/v2");
        assert_eq!(of("quay.io"), "https://quay.io/v2");
        assert_eq!(of("localhost:5000"), "http://localhost:5000/v2");
        assert_eq!(of("127.1.2.3:80"), "http://127.1.2.3:80/v2");
        assert_eq!(of("[::1]:5000"), "http://[::1]:5000/v2");
        assert_eq!(of("10.0.0.1:5000"), "https://10.0.0.1:5000/v2");
        assert_eq!(of("127.example.com"), "https://127.example.com/v2");
    }

    #[test]
    fn the_server_is_not_asked_twice() {
        let endpoints = parse_for("r.example", "[host.\"https://r.example\"]\nskip_verify = true").unwrap();
        assert_eq!(bases(&endpoints), ["https://r.example/v2"]);
        assert!(endpoints[0].is_server && endpoints[0].skip_verify);
    }

    #[test]
    fn directories_are_found_by_host_port_and_default() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, server: &str| {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(
                dir.path().join(name).join("hosts.toml"),
                format!("server = \"{server}\""),
            )
            .unwrap();
        };
        write("a.example:5000", "http://one");
        write("b.example_5000_", "http://two");
        write("_default", "http://three");
        write("broken", "a b");
        let of = |host| endpoints(Some(dir.path()), host).map(|mut e| e.remove(0).base);
        assert_eq!(of("a.example:5000").unwrap(), "http://one/v2");
        assert_eq!(of("b.example:5000").unwrap(), "http://two/v2");
        assert_eq!(of("c.example").unwrap(), "http://three/v2");
        assert!(
            of("broken")
                .unwrap_err()
                .to_string()
                .contains("broken/hosts.toml")
        );
    }

    #[test]
    fn a_wrong_file_is_refused_by_line_and_key() {
        for (text, part) in [
            ("server = 1", "line 1"),
            ("[host.\"https://a\"]\nskip_verfy = true", "skip_verfy"),
            ("[host.\"https://a\"]\ncapabilities = [\"fly\"]", "fly"),
            ("[host.\"ftp://a\"]", "ftp://a"),
            ("[host.\"https://\"]", "https://"),
            ("nonsense = true", "nonsense"),
            ("[host", "line 1"),
        ] {
            let error = parse_for("a", text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_fails_without_a_panic(text in "\\PC{0,200}") {
            let _ = parse_for("a", &text);
        }

        #[test]
        fn any_url_makes_an_endpoint_or_an_error(url in "[ -~]{0,40}") {
            let _ = parse_for("a", &format!("server = '''{}'''", url.replace('\'', "")));
        }
    }
}
