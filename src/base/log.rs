//! Logging: one subscriber, no secrets at any level.

#[cfg(test)]
pub(crate) mod capture;

use tracing::level_filters::LevelFilter;

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The least important level that is printed.
    pub level: LevelFilter,
    /// How a line looks.
    pub format: Format,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// Text for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging to standard error, for the rest of the process.
///
/// Only this crate's own events are printed, whatever the level: libraries print URLs and headers, and with them tokens.
/// A second call changes nothing.
pub fn init(config: &Config) {
    use std::io::IsTerminal as _;

    use tracing_subscriber::{Layer as _, filter::Targets, fmt, layer::SubscriberExt as _};

    let own = Targets::new().with_target("bearer_proxy", config.level);
    let text = match config.format {
        Format::Auto => std::io::stderr().is_terminal(),
        Format::Text => true,
        Format::Json => false,
    };
    let layer = fmt::layer().with_writer(std::io::stderr);
    let layer = if text {
        layer
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .boxed()
    } else {
        layer.json().flatten_event(true).boxed()
    };
    let subscriber = tracing_subscriber::registry().with(layer.with_filter(own));
    // Fails only if there is a subscriber already.
    let _ = tracing::subscriber::set_global_default(subscriber);
}
