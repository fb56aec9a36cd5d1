//! Who we are to a registry: challenges, credentials and tokens.
//!
//! A registry answers 401 with a challenge. `Basic` wants name and password with each request. `Bearer` names a token
//! server (`realm`), where name and password, a refresh token, or nothing at all is exchanged for a token that lasts a
//! few minutes and is kept for that long. Sources: RFC 9110 section 11, the distribution project's token and OAuth2
//! specifications.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::Credentials;
use crate::digest::Digest;

/// How many tokens are kept.
const MAX_TOKENS: usize = 1024;
/// How long a token is good when the server doesn't say (the token specification's default).
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// The longest that a token is believed to be good.
const MAX_LIFE: Duration = Duration::from_secs(3600);

/// One way of authentication that a server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// `bearer`, `basic`, ..., in lower case.
    pub scheme: String,
    /// Its parameters, names in lower case.
    pub parameters: BTreeMap<String, String>,
}

/// Reads the value of a `WWW-Authenticate` header.
pub fn challenges(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = header.trim_start_matches([' ', '\t', ',']);
    // Every turn takes at least one character.
    while !rest.is_empty() && challenges.len() < 16 {
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let after = after.trim_start_matches([' ', '\t']);
        match (after.strip_prefix('='), challenges.last_mut()) {
            (Some(value), Some(challenge)) if !word.is_empty() => {
                let (value, after) = parameter_value(value.trim_start_matches([' ', '\t']));
                challenge.parameters.insert(word.to_ascii_lowercase(), value);
                rest = after;
            }
            (Some(after), _) => rest = after,
            (None, _) => {
                challenges.push(Challenge {
                    scheme: word.to_ascii_lowercase(),
                    parameters: BTreeMap::new(),
                });
                rest = after;
            }
        }
        rest = rest.trim_start_matches([' ', '\t', ',']);
    }
    challenges
}

/// A quoted string or a word, and what follows.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

/// What a client can prove, out of CRI's AuthConfig.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Identity {
    /// Nobody in particular.
    Anonymous,
    /// By name and password.
    Password {
        /// Name.
        username: String,
        /// Password.
        password: String,
    },
    /// By a refresh token.
    Refresh(String),
    /// By an access token, as it is.
    Token(String),
}

impl Identity {
    /// What `credentials` prove to the server `host` of a registry, which is a mirror or the registry itself.
    ///
    /// Credentials go to the host they name, and when they name none, to the registry itself: a mirror is configured
    /// by whoever runs the node, and the passwords of the node's users are not its business.
    pub(crate) fn for_host(credentials: Option<&Credentials>, host: &str, is_server: bool) -> Self {
        let Some(credentials) = credentials else {
            return Self::Anonymous;
        };
        let named = host_of(&credentials.server_address);
        let is_meant = if named.is_empty() {
            is_server
        } else {
            canonical(named) == canonical(host)
        };
        if !is_meant {
            return Self::Anonymous;
        }
        let Credentials {
            username,
            password,
            auth,
            identity_token,
            registry_token,
            ..
        } = credentials;
        if !registry_token.is_empty() {
            return Self::Token(registry_token.clone());
        }
        if !identity_token.is_empty() {
            return Self::Refresh(identity_token.clone());
        }
        let (username, password) = if username.is_empty() {
            decode_auth(auth).unwrap_or_default()
        } else {
            (username.clone(), password.clone())
        };
        match username.as_str() {
            "" => Self::Anonymous,
            // Docker's way to put a refresh token into name and password.
            "<token>" => Self::Refresh(password),
            _ => Self::Password { username, password },
        }
    }

    /// The header of the Basic scheme.
    pub(crate) fn basic(&self) -> Option<String> {
        match self {
            Self::Password { username, password } => Some(format!(
                "Basic {}",
                STANDARD.encode(format!("{username}:{password}"))
            )),
            _ => None,
        }
    }

    /// A name for the cache that doesn't give the secret away.
    fn fingerprint(&self) -> Digest {
        Digest::of(
            match self {
                Self::Anonymous => String::new(),
                Self::Password { username, password } => format!("p{}:{username}{password}", username.len()),
                Self::Refresh(token) => format!("r{token}"),
                Self::Token(token) => format!("t{token}"),
            }
            .as_bytes(),
        )
    }
}

fn decode_auth(auth: &str) -> Option<(String, String)> {
    let decoded = String::from_utf8(STANDARD.decode(auth.trim()).ok()?).ok()?;
    // Some tools fill up with zero bytes.
    let (username, password) = decoded.trim_end_matches('\0').split_once(':')?;
    Some((username.to_owned(), password.to_owned()))
}

/// The host of a server address, which may be a URL: `https://index.docker.io/v1/`.
fn host_of(address: &str) -> &str {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}

/// One name for the names of Docker Hub.
fn canonical(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    }
}

/// A token server's answer.
#[derive(Deserialize)]
pub(crate) struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl TokenAnswer {
    /// The token and how long it is good.
    pub(crate) fn token(self) -> Option<(String, Duration)> {
        let token = self
            .token
            .or(self.access_token)
            .filter(|token| !token.is_empty())?;
        let life = self.expires_in.map_or(DEFAULT_LIFE, Duration::from_secs);
        Some((token, life.min(MAX_LIFE)))
    }
}

/// Headers that worked, by server, repository and identity.
#[derive(Default)]
pub(crate) struct Tokens(BTreeMap<(String, String, Digest), (String, Instant)>);

impl Tokens {
    /// The `Authorization` header that is still good.
    pub(crate) fn find(
        &self,
        base: &str,
        repository: &str,
        identity: &Identity,
        now: Instant,
    ) -> Option<String> {
        let key = (base.to_owned(), repository.to_owned(), identity.fingerprint());
        self.0
            .get(&key)
            .filter(|(_, until)| *until > now)
            .map(|(header, _)| header.clone())
    }

    /// Keeps a header for most of its life.
    pub(crate) fn keep(
        &mut self,
        base: &str,
        repository: &str,
        identity: &Identity,
        header: String,
        life: Duration,
        now: Instant,
    ) {
        self.0.retain(|_, (_, until)| *until > now);
        if self.0.len() >= MAX_TOKENS {
            self.0.clear();
        }
        let key = (base.to_owned(), repository.to_owned(), identity.fingerprint());
        self.0.insert(key, (header, now + life * 9 / 10));
    }
}

/// A query string or form body.
pub(crate) fn encode(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                text.push(char::from(byte));
            } else {
                text.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn challenges_are_read() {
        let header = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let challenge = &challenges(header)[0];
        assert_eq!(challenge.scheme, "bearer");
        assert_eq!(challenge.parameters["realm"], "https://auth.docker.io/token");
        assert_eq!(challenge.parameters["scope"], "repository:a/b:pull,push");
        let both = challenges(r#"Basic realm="a \"b\"", Bearer realm=x , error="invalid_token""#);
        assert_eq!(
            (both[0].scheme.as_str(), both[0].parameters["realm"].as_str()),
            ("basic", "a \"b\"")
        );
        assert_eq!(
            (both[1].scheme.as_str(), both[1].parameters["error"].as_str()),
            ("bearer", "invalid_token")
        );
        assert_eq!(challenges("Negotiate")[0].scheme, "negotiate");
        assert!(challenges("").is_empty());
    }

    fn credentials(server: &str) -> Credentials {
        Credentials {
            username: "u".into(),
            password: "p".into(),
            server_address: server.into(),
            ..Default::default()
        }
    }

    #[test]
    fn credentials_go_only_where_they_belong() {
        let is_sent = |server: &str, host, is_server| {
            Identity::for_host(Some(&credentials(server)), host, is_server)
                .basic()
                .is_some()
        };
        assert!(is_sent("", "r.example", true));
        assert!(!is_sent("", "mirror.example", false));
        assert!(is_sent("mirror.example", "mirror.example", false));
        assert!(!is_sent("mirror.example", "r.example", true));
        assert!(is_sent(
            "https://index.docker.io/v1/",
            "registry-1.docker.io",
            true
        ));
        assert!(Identity::for_host(None, "a", true).basic().is_none());
    }

    #[test]
    fn all_forms_of_credentials_are_understood() {
        let of = |c: Credentials| Identity::for_host(Some(&c), "a", true);
        let auth = Credentials {
            auth: "dTpwOnE=".into(),
            ..Default::default()
        };
        assert!(
            of(auth)
                == Identity::Password {
                    username: "u".into(),
                    password: "p:q".into()
                }
        );
        assert!(
            of(Credentials {
                identity_token: "i".into(),
                ..credentials("")
            }) == Identity::Refresh("i".into())
        );
        assert!(
            of(Credentials {
                registry_token: "t".into(),
                ..credentials("")
            }) == Identity::Token("t".into())
        );
        assert!(
            of(Credentials {
                auth: "!".into(),
                ..Default::default()
            }) == Identity::Anonymous
        );
        assert!(!format!("{:?}", credentials("")).contains("password"));
    }

    #[test]
    fn tokens_expire_early() {
        let (mut tokens, now) = (Tokens::default(), Instant::now());
        tokens.keep(
            "b",
            "r",
            &Identity::Anonymous,
            "h".into(),
            Duration::from_secs(100),
            now,
        );
        assert!(
            tokens
                .find("b", "r", &Identity::Anonymous, now + Duration::from_secs(89))
                .is_some()
        );
        assert!(
            tokens
                .find("b", "r", &Identity::Anonymous, now + Duration::from_secs(91))
                .is_none()
        );
        assert!(
            tokens
                .find("b", "r", &Identity::Refresh("x".into()), now)
                .is_none()
        );
    }

    proptest! {
        #[test]
        fn any_header_is_read_without_a_panic(header in "\\PC{0,100}") {
            let _ = challenges(&header);
        }
    }
}
