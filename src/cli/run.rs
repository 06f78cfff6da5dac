//! `run`: the proxy, in the foreground, until a signal.

use std::{process::ExitCode, time::Duration};

use super::{config_file::ConfigFile, runtime::block_on_reporting};
use crate::{
    app::App,
    base::{
        clock, log, panics, process,
        signals::{Hangup, Signals},
    },
};

pub(super) fn run(config: &ConfigFile) -> ExitCode {
    let loaded = match config.load() {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let log = log::init(&loaded.config.log);
    // What reads the log as JSON could not read anything else.
    let is_json = loaded.config.log.format == log::Format::Json;
    let report = |error: &str| match is_json {
        true => tracing::error!("{error}"),
        false => log.write_line(error),
    };
    panics::install_hook();
    for warning in loaded.warnings.iter().chain(&loaded.exposed_files) {
        tracing::warn!("{warning}");
    }
    if loaded.config.outbound_proxies().is_empty() {
        warn_of_proxy_variables();
    }
    if let Err(error) = process::raise_descriptor_limit() {
        tracing::debug!(%error, "the limit of open files could not be raised");
    }
    let work = async {
        let mut signals =
            Signals::listen().map_err(|error| format!("cannot listen for signals: {error}"))?;
        let mut hangup =
            Hangup::listen().map_err(|error| format!("cannot listen for signals: {error}"))?;
        let mut app =
            App::start(loaded.config, clock::system()).map_err(|error| error.to_string())?;
        for address in app.addresses() {
            tracing::info!(%address, "listening");
        }
        if let Some(address) = app.admin_address() {
            tracing::info!(%address, "admin endpoint");
        }
        let signal = loop {
            tokio::select! {
                signal = signals.next() => break signal,
                // A supervisor restarts the process, which continues from the stored state.
                part = app.failed() => return Err(format!("ended: {part} has failed, see the log")),
                () = hangup.next() => {
                    tracing::info!("SIGHUP: reading secrets, certificates and the state file again");
                    app.reload_files();
                }
            }
        };
        tracing::info!(signal, "shutting down: finishing requests in flight");
        tokio::select! {
            () = app.shut_down() => {
                tracing::info!("ended");
                Ok(())
            }
            signal = async {
                // One request to end may be two signals: to the process, and to its group.
                let first = tokio::time::Instant::now();
                loop {
                    let signal = signals.next().await;
                    if first.elapsed() > Duration::from_secs(1) {
                        break signal;
                    }
                }
            } => {
                Err(format!("{signal} again: ended at once"))
            }
        }
    };
    block_on_reporting(work, report)
}

/// Warns of proxy variables: neither the data path nor the issuer's client uses them. Their values
/// may contain a password.
fn warn_of_proxy_variables() {
    for variable in [
        "HTTPS_PROXY",
        "https_proxy",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ] {
        if std::env::var_os(variable).is_some_and(|value| !value.is_empty()) {
            tracing::warn!(
                variable,
                "is set, but has no effect: the cloud and the issuer are called directly; to call them \
                 through a proxy, write upstream.proxy, as in proxy = \"http://proxy.example.com:3128\""
            );
            return;
        }
    }
}
