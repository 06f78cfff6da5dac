//! `--config`, and loading the configuration that it names.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::{exit_code::CONFIG, output::print_error};
use crate::{admin, config};

#[derive(Debug, Args)]
pub(super) struct ConfigFile {
    /// The configuration file [default: $BEARER_PROXY_CONFIG, else proxy.toml in this folder]
    #[arg(long, value_name = "FILE", global = true)]
    pub(super) config: Option<PathBuf>,
}

impl ConfigFile {
    /// The file that the command line or the environment names.
    pub(super) fn named(&self) -> Option<PathBuf> {
        let variable = || std::env::var_os(config::FILE_VARIABLE).filter(|name| !name.is_empty());
        self.config
            .clone()
            .or_else(|| variable().map(PathBuf::from))
    }

    fn source(&self) -> config::Source<std::env::VarsOs> {
        let file = config::locate(
            self.config.clone(),
            std::env::var_os(config::FILE_VARIABLE),
            ".".as_ref(),
        );
        config::Source {
            file,
            env: std::env::vars_os(),
            overrides: Vec::new(),
        }
    }

    /// Loads the configuration, or prints its mistakes on standard error.
    pub(super) fn load(&self) -> Result<config::Loaded, ExitCode> {
        config::load(self.source()).map_err(print_mistakes)
    }

    /// The same, with the state file.
    pub(super) fn check(&self) -> Result<config::Loaded, ExitCode> {
        config::check(self.source()).map_err(print_mistakes)
    }

    /// Loads the admin endpoint's configuration, or prints its mistakes on standard error.
    pub(super) fn load_admin(&self) -> Result<Option<admin::Config>, ExitCode> {
        config::load_admin(self.source()).map_err(print_mistakes)
    }
}

fn print_mistakes(mistakes: config::Mistakes) -> ExitCode {
    print_error(format_args!("{mistakes}"));
    ExitCode::from(CONFIG)
}
