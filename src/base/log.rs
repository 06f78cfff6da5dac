//! Logging: one subscriber, no secrets at any level.

#[cfg(test)]
pub(crate) mod capture;

use tracing::level_filters::LevelFilter;

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

/// Starts logging to standard error, for the rest of the process. A second call has no effect.
///
/// Only events of this crate are printed, at any level: libraries log URLs and headers, and with
/// them tokens.
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
    // Fails only if a subscriber is set already.
    let _ = tracing::subscriber::set_global_default(subscriber);
}
