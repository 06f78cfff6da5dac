//! Logging: one subscriber, no secrets at any level.

#[cfg(test)]
pub(crate) mod capture;

use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::OnceLock,
};

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{Layer as _, filter::Targets, fmt, layer::SubscriberExt as _};

/// Lines that wait for a reader of standard error; more are dropped.
const QUEUED_LINES: usize = 8192;

static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// The level and the format of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The least important level that is printed.
    pub level: LevelFilter,
    /// The format of a line.
    pub format: Format,
}

/// The format of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// Text.
    Text,
    /// One JSON object a line.
    Json,
}

/// Writes the queued lines when it is dropped, for at most a second.
#[must_use]
#[derive(Debug)]
pub struct LogGuard {
    writer: NonBlocking,
    _flush_on_drop: WorkerGuard,
}

impl LogGuard {
    /// Writes a line in the queue of the log, without a level or a time.
    pub fn write_line(&self, line: &str) {
        // A full queue counts the line as dropped; there is no other error.
        let _ = writeln!(self.writer.clone(), "{line}");
    }
}

/// Starts logging to standard error, for the rest of the process. A second call has no effect.
///
/// Logging never blocks: a thread of its own writes the lines, and where standard error is a pipe
/// that nothing reads, lines beyond a bounded queue are dropped and counted ([`dropped_lines`]).
///
/// Only events of this crate are printed, at any level: libraries log URLs and headers, and with
/// them tokens.
pub fn init(config: &Config) -> LogGuard {
    let own = Targets::new().with_target("bearer_proxy", config.level);
    let text = match config.format {
        Format::Auto => io::stderr().is_terminal(),
        Format::Text => true,
        Format::Json => false,
    };
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(QUEUED_LINES)
        .thread_name("log")
        .finish(io::stderr());
    let _ = DROPPED.set(writer.error_counter());
    let layer = fmt::layer().with_writer(writer.clone());
    let layer = if text {
        layer.with_ansi(has_colours()).with_target(false).boxed()
    } else {
        layer.json().flatten_event(true).boxed()
    };
    let subscriber = tracing_subscriber::registry().with(layer.with_filter(own));
    // Fails only if a subscriber is set already.
    let _ = tracing::subscriber::set_global_default(subscriber);
    LogGuard {
        writer,
        _flush_on_drop: guard,
    }
}

/// Lines that were dropped because the queue was full.
pub fn dropped_lines() -> u64 {
    let dropped = DROPPED.get().map_or(0, ErrorCounter::dropped_lines);
    u64::try_from(dropped).unwrap_or(u64::MAX)
}

/// Whether standard error is a terminal that shows colours, unless the user does not want any
/// (`NO_COLOR`, set and not empty).
fn has_colours() -> bool {
    let variable = |name| std::env::var_os(name).unwrap_or_default();
    io::stderr().is_terminal() && variable("NO_COLOR").is_empty() && variable("TERM") != "dumb"
}
