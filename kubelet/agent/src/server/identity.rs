//! Who asks: by client certificate, by static token, or nobody.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;

use super::authz::MASTERS;
use super::subject;

/// The most tokens that a file may hold.
const MAX_TOKENS: usize = 10_000;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The user's name.
    pub name: String,
    /// The user's UID; may be empty.
    pub uid: String,
    /// The groups that the user is in.
    pub groups: Vec<String>,
}

impl User {
    /// Somebody without credentials.
    pub fn anonymous() -> Self {
        Self {
            name: "system:anonymous".into(),
            uid: String::new(),
            groups: vec!["system:unauthenticated".into()],
        }
    }

    fn authenticated(name: String, uid: String, mut groups: Vec<String>) -> Self {
        let all = "system:authenticated";
        if !groups.iter().any(|group| group == all) {
            groups.push(all.into());
        }
        Self { name, uid, groups }
    }
}

/// Static tokens.
#[derive(Clone, Default)]
pub struct Tokens(Vec<(String, User)>);

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tokens", self.0.len())
    }
}

/// Why a token file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// It can't be read.
    #[error("failed to read token file `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A line isn't `token,user,uid[,"group1,group2"]`.
    #[error("failed to parse token file `{path}` at line {line}: {message}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        message: &'static str,
    },
}

impl Tokens {
    /// Reads a file of `token,user,uid,"group1,group2"` lines.
    pub fn load(path: &Path) -> Result<Self, TokenFileError> {
        let text = std::fs::read_to_string(path).map_err(|source| TokenFileError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text).map_err(|(line, message)| TokenFileError::Line {
            path: path.to_owned(),
            line,
            message,
        })
    }

    /// Parses such lines; an error has the line, counted from 1, and what is wrong.
    pub fn parse(text: &str) -> Result<Self, (usize, &'static str)> {
        let mut tokens = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let fields = csv_fields(line).map_err(|message| (number, message))?;
            let [token, name, uid, groups @ ..] = fields.as_slice() else {
                return Err((number, "expected at least token, user name and user uid"));
            };
            if token.is_empty() {
                return Err((number, "the token is empty"));
            }
            if tokens.len() == MAX_TOKENS {
                return Err((number, "too many tokens"));
            }
            let groups = groups
                .first()
                .into_iter()
                .flat_map(|groups| groups.split(','))
                .map(|group| group.trim().to_owned())
                .filter(|group| !group.is_empty())
                .collect();
            let user = User::authenticated(name.clone(), uid.clone(), groups);
            tokens.push((token.clone(), user));
        }
        Ok(Self(tokens))
    }

    /// One more token, whose owner may do everything.
    pub(super) fn add_master(&mut self, token: &str, name: &str) {
        let user = User::authenticated(name.to_owned(), String::new(), vec![MASTERS.to_owned()]);
        self.0.push((token.to_owned(), user));
    }

    /// The owner of a token. Takes as long for a wrong one as for a right one.
    pub fn owner(&self, token: &str) -> Option<&User> {
        let mut owner = None;
        for (known, user) in &self.0 {
            if same(known.as_bytes(), token.as_bytes()) {
                owner = owner.or(Some(user));
            }
        }
        owner
    }
}

/// Whether two are equal, in a time that tells nothing but their lengths.
fn same(one: &[u8], other: &[u8]) -> bool {
    let difference = one.iter().zip(other).fold(0, |sum, (a, b)| sum | (a ^ b));
    one.len() == other.len() && std::hint::black_box(difference) == 0
}

fn csv_fields(line: &str) -> Result<Vec<String>, &'static str> {
    let mut fields = vec![String::new()];
    let mut characters = line.chars().peekable();
    let mut quoted = false;
    while let Some(character) = characters.next() {
        let Some(field) = fields.last_mut() else { break };
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if field.trim().is_empty() => {
                field.clear();
                quoted = true;
            }
            ',' if !quoted => fields.push(String::new()),
            other => field.push(other),
        }
    }
    if quoted {
        return Err("a quote isn't closed");
    }
    for field in &mut fields {
        *field = field.trim().to_owned();
    }
    Ok(fields)
}

/// The user of a client certificate: common name, organizations as groups. None without a chain that `verifier` trusts.
pub(super) fn of_certificate(
    verifier: &Arc<dyn ClientCertVerifier>,
    chain: &[CertificateDer<'_>],
) -> Result<Option<User>, rustls::Error> {
    let Some((own, between)) = chain.split_first() else {
        return Ok(None);
    };
    verifier.verify_client_cert(own, between, UnixTime::now())?;
    let Some(subject) = subject::of(own) else {
        return Ok(None);
    };
    if subject.common_name.is_empty() {
        return Ok(None);
    }
    Ok(Some(User::authenticated(
        subject.common_name,
        String::new(),
        subject.organizations,
    )))
}
