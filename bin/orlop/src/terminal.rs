//! The user's terminal: raw while a command runs in it, as it was afterwards.

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// Whether standard input is a terminal.
pub(crate) fn is_one() -> bool {
    isatty(rustix::stdio::stdin())
}

/// A terminal in raw mode, until this is dropped.
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    /// Every key goes through as it is.
    pub(crate) fn enter() -> rustix::io::Result<Self> {
        let before = tcgetattr(rustix::stdio::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is nobody to tell.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Its size as the stream's message; none where it has none.
pub(crate) fn size() -> Option<String> {
    let size = tcgetwinsize(rustix::stdio::stdin()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0)
        .then(|| format!("{{\"Width\":{},\"Height\":{}}}", size.ws_col, size.ws_row))
}
