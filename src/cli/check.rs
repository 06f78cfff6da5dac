//! `check`: is the configuration right, as far as that can be told without a network?

use std::process::ExitCode;

use super::{ConfigFile, complain, say};

pub(super) fn check(config: &ConfigFile) -> ExitCode {
    let loaded = match config.load_or_explain() {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    for warning in &loaded.warnings {
        complain(format_args!("warning: {warning}"));
    }
    match &loaded.file {
        Some(file) => say(format_args!("{}: no mistakes", file.display())),
        None => say(format_args!("environment: no mistakes")),
    }
    ExitCode::SUCCESS
}
