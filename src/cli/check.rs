//! `check`: validates the configuration without network access.

use std::process::ExitCode;

use super::{
    config_file::ConfigFile,
    output::{print_error, print_line},
};

pub(super) fn check(config: &ConfigFile) -> ExitCode {
    let loaded = match config.check() {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    for warning in loaded.warnings.iter().chain(&loaded.exposed_files) {
        print_error(format_args!("warning: {warning}"));
    }
    match &loaded.file {
        Some(file) => print_line(format_args!("{}: no mistakes", file.display())),
        None => print_line(format_args!("environment: no mistakes")),
    }
    ExitCode::SUCCESS
}
