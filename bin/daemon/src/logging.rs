//! Logs on standard error: text for people, JSON for collectors. The level can be changed while running.

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{Registry, fmt, reload};

/// How to log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogConfig {
    /// The least severe level that is written.
    pub level: Level,
    /// How a line looks.
    pub format: Format,
}

/// How severe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Level {
    /// Something failed that nobody else reports.
    Error,
    /// Something is odd, but work goes on.
    Warn,
    /// What a node's administrator wants to know.
    #[default]
    Info,
    /// Every call.
    Debug,
    /// Everything.
    Trace,
}

impl From<Level> for LevelFilter {
    fn from(level: Level) -> Self {
        match level {
            Level::Error => Self::ERROR,
            Level::Warn => Self::WARN,
            Level::Info => Self::INFO,
            Level::Debug => Self::DEBUG,
            Level::Trace => Self::TRACE,
        }
    }
}

/// How a line looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// Time, level, message and `key=value` fields.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// Changes the level later.
#[derive(Debug, Clone)]
pub struct Logging {
    level: reload::Handle<LevelFilter, Registry>,
}

impl Logging {
    /// Writes from this level on, from now on.
    pub fn set_level(&self, level: Level) {
        if let Err(error) = self.level.reload(LevelFilter::from(level)) {
            tracing::warn!(%error, "failed to change the log level");
        }
    }
}

/// Starts logging; a second call changes nothing.
pub fn init(config: LogConfig) -> Logging {
    let (filter, level) = reload::Layer::new(LevelFilter::from(config.level));
    let registry = tracing_subscriber::registry().with(filter);
    let writer = std::io::stderr;
    let started = match config.format {
        Format::Text => registry
            .with(fmt::layer().with_writer(writer).with_ansi(false))
            .try_init(),
        Format::Json => registry
            .with(fmt::layer().json().flatten_event(true).with_writer(writer))
            .try_init(),
    };
    if let Err(error) = started {
        tracing::debug!(%error, "logging was started before");
    }
    Logging { level }
}
