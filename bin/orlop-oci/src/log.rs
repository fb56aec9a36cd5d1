//! Errors and warnings, on standard error and in the file that the caller reads them from.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

/// How serious.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// It was not done.
    Error,
    /// It was done, a little differently.
    Warning,
}

/// Where messages go.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// A file to append to.
    pub(crate) file: Option<PathBuf>,
    /// JSON or text, in that file.
    pub(crate) json: bool,
}

impl Log {
    /// Writes one message. Nothing can be done about a log that can't be written, so nothing is.
    pub(crate) fn write(&self, level: Level, message: &str) {
        let name = match level {
            Level::Error => "error",
            Level::Warning => "warning",
        };
        let time = orlop_time();
        let json = serde_json::json!({ "level": name, "msg": message, "time": time });
        let text = format!("time=\"{time}\" level={name} msg={message:?}");
        let line = if self.json { json.to_string() } else { text.clone() };
        if let Some(path) = &self.file {
            let file = OpenOptions::new().append(true).create(true).open(path);
            let _ = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
        }
        // To a caller without a log file, and to people: text, unless they asked for JSON.
        if self.file.is_none() {
            eprintln!("{line}");
        } else if level == Level::Error {
            eprintln!("{text}");
        }
    }
}

fn orlop_time() -> String {
    oci_runtime_container::rfc3339_now()
}
