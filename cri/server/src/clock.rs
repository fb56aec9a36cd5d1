//! Time and chance, handed in so that tests can decide them.

use std::fs::File;
use std::io::{self, Read as _};
use std::time::{SystemTime, UNIX_EPOCH};

/// Tells the time and draws identifiers.
pub trait Clock: Send + Sync {
    /// Nanoseconds since the epoch.
    fn now(&self) -> i64;

    /// 32 bytes that nobody can guess or draw twice.
    ///
    /// # Errors
    /// When the machine has none.
    fn draw(&self) -> io::Result<[u8; 32]>;
}

/// The machine's clock and randomness.
#[derive(Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> i64 {
        // Before 1970 or after 2262 the clock is wrong anyway.
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
    }

    fn draw(&self) -> io::Result<[u8; 32]> {
        let mut bytes = [0; 32];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
