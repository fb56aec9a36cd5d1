//! One-use tokens: what turns a gRPC answer into a URL.
//!
//! A caller of the gRPC service has proven who it is; the URL that it gets carries a random token, so that whoever
//! presents it is the one that got it. It is good once, for a minute, and the table of those waiting is bounded: when
//! it is full, expired ones are dropped first, and then new ones are refused rather than old ones lost.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::api::{AttachRequest, ExecRequest, PortForwardRequest};

/// What a token stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pending {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward(PortForwardRequest),
}

impl Pending {
    /// The first part of the URL's path.
    pub(crate) fn verb(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward(_) => "portforward",
        }
    }
}

/// Why no token was given out.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Too many wait to be used.
    #[error("{waiting} streaming requests already wait for their client; retry later")]
    Full {
        /// How many.
        waiting: usize,
    },
    /// The kernel gave no random bytes.
    #[error("failed to draw a random token")]
    Random(#[source] std::io::Error),
}

/// The tokens that wait to be used.
#[derive(Debug)]
pub(crate) struct Tokens {
    life: Duration,
    max: usize,
    waiting: Mutex<BTreeMap<String, (Instant, Pending)>>,
}

impl Tokens {
    pub(crate) fn new(life: Duration, max: usize) -> Self {
        Self {
            life,
            max,
            waiting: Mutex::new(BTreeMap::new()),
        }
    }

    /// A token for `pending`, at the time `now`.
    pub(crate) fn insert(&self, pending: Pending, now: Instant) -> Result<String, TokenError> {
        let token = random_token().map_err(TokenError::Random)?;
        let mut waiting = self.lock();
        if waiting.len() >= self.max {
            waiting.retain(|_, (born, _)| now.duration_since(*born) < self.life);
        }
        if waiting.len() >= self.max {
            return Err(TokenError::Full {
                waiting: waiting.len(),
            });
        }
        waiting.insert(token.clone(), (now, pending));
        Ok(token)
    }

    /// Uses a token up: what it stood for, if it is known, for this verb, and not too old.
    pub(crate) fn take(&self, verb: &str, token: &str, now: Instant) -> Option<Pending> {
        let mut waiting = self.lock();
        if waiting.get(token)?.1.verb() != verb {
            return None;
        }
        let (born, pending) = waiting.remove(token)?;
        (now.duration_since(born) < self.life).then_some(pending)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, (Instant, Pending)>> {
        // Nothing in here panics halfway through a change, so a poisoned lock still guards a whole table.
        self.waiting
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// 16 random bytes as text that fits in a URL.
fn random_token() -> std::io::Result<String> {
    use std::io::Read as _;
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(60);

    fn forward(target: &str) -> Pending {
        Pending::PortForward(PortForwardRequest {
            target: target.to_owned(),
            ports: vec![],
        })
    }

    #[test]
    fn a_token_is_good_once() {
        let tokens = Tokens::new(LIFE, 10);
        let now = Instant::now();
        let token = tokens.insert(forward("a"), now).unwrap();
        assert_eq!(
            tokens.take("exec", &token, now),
            None,
            "the wrong verb does not use it up"
        );
        assert_eq!(tokens.take("portforward", &token, now), Some(forward("a")));
        assert_eq!(tokens.take("portforward", &token, now), None);
    }

    #[test]
    fn a_token_dies_of_old_age() {
        let tokens = Tokens::new(LIFE, 10);
        let now = Instant::now();
        let token = tokens.insert(forward("a"), now).unwrap();
        assert_eq!(tokens.take("portforward", &token, now + LIFE), None);
    }

    #[test]
    fn the_table_is_bounded_and_forgets_the_expired() {
        let tokens = Tokens::new(LIFE, 2);
        let now = Instant::now();
        tokens.insert(forward("a"), now).unwrap();
        let young = tokens.insert(forward("b"), now + LIFE / 2).unwrap();
        let error = tokens.insert(forward("c"), now + LIFE / 2).unwrap_err();
        assert!(matches!(error, TokenError::Full { waiting: 2 }));
        tokens.insert(forward("d"), now + LIFE).unwrap();
        assert_eq!(tokens.take("portforward", &young, now + LIFE), Some(forward("b")));
    }
}
