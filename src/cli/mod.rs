//! The command line: what each command does, and what it says when it cannot.

mod check;
mod demo;
mod init;
mod login;
mod run;
mod status;

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};

use crate::{admin, base::process, cloud, config};

/// Ended badly while running.
const FAILED: u8 = 1;
/// `EX_USAGE`: bad command line.
const USAGE: u8 = 64;
/// `EX_CONFIG`: bad configuration.
const CONFIG: u8 = 78;

#[derive(Debug, Parser)]
#[command(name = "bearer-proxy", version, about, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    config: ConfigFile,
    #[command(subcommand)]
    command: Option<Command>,
}

const EXAMPLES: &str = "\
Without a command, `run` is meant.

Examples:
  bearer-proxy demo                          try it, nothing to configure
  bearer-proxy init --cloud https://cloud.example.com
  bearer-proxy check                         is proxy.toml right?
  bearer-proxy login                         get the first tokens, once
  bearer-proxy                               run it

Exit codes: 0 fine, 1 failed while running, 64 bad command line, 78 bad configuration
(status: 0 ready, 1 not ready, 2 unreachable).";

#[derive(Debug, Args)]
struct ConfigFile {
    /// The configuration file [default: $BEARER_PROXY_CONFIG, else proxy.toml in this folder]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy in the foreground
    #[command(after_help = "Example:\n  bearer-proxy run --config /etc/bearer-proxy/proxy.toml")]
    Run,
    /// Write a first proxy.toml for a real cloud; never overwrites
    #[command(
        after_help = "Example:\n  bearer-proxy init --cloud https://cloud.example.com --client-id my-app"
    )]
    Init(init::InitArgs),
    /// Check the configuration, without a network: prints every mistake at once
    #[command(after_help = "Example:\n  bearer-proxy check --config proxy.toml")]
    Check,
    /// Get the first tokens, in a browser, and store them: once, or after the refresh token has died
    #[command(
        after_help = "Examples:\n  bearer-proxy login\n  bearer-proxy login --code CODE    where no browser can come back to this machine\n\n\
                      A running proxy picks the tokens up by itself."
    )]
    Login(login::LoginArgs),
    /// Ask a running proxy how it is: exit 0 ready, 1 not ready, 2 unreachable
    #[command(
        after_help = "Examples:\n  bearer-proxy status\n  bearer-proxy status --live    for health checks: exit 0 alive, 1 not"
    )]
    Status(status::StatusArgs),
    /// A simulated cloud and the proxy in front of it, with tokens that live for seconds
    #[command(after_help = "Example:\n  bearer-proxy demo")]
    Demo,
    /// The simulated cloud alone, for trying apps offline
    #[command(after_help = "Example:\n  bearer-proxy simulate --listen 127.0.0.1:8400")]
    Simulate(Box<cloud::SimulateArgs>),
}

/// Reads the command line and does what it says.
pub fn main() -> ExitCode {
    // Before anything is read: a secret may be among the arguments already.
    if let Err(error) = process::forbid_dumps() {
        complain(format_args!(
            "cannot forbid core dumps, which would hold secrets: {error}"
        ));
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and the version are no mistakes; nobody is left to tell if printing fails.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let config = &cli.config;
    match cli.command.unwrap_or(Command::Run) {
        Command::Run => run::run(config),
        Command::Init(args) => init::init(config, &args),
        Command::Check => check::check(config),
        Command::Login(args) => login::login(config, args),
        Command::Status(args) => status::status(config, &args),
        Command::Demo | Command::Simulate(_) if config.config.is_some() => {
            complain(format_args!("--config: this command has no configuration"));
            ExitCode::from(USAGE)
        }
        Command::Demo => demo::demo(),
        Command::Simulate(args) => demo::simulate(*args),
    }
}

impl ConfigFile {
    /// The file that the command line or the environment names.
    fn named(&self) -> Option<PathBuf> {
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

    /// Loads the configuration, or says on standard error what is wrong with it.
    fn load_or_explain(&self) -> Result<config::Loaded, ExitCode> {
        config::load(self.source()).map_err(explain)
    }

    /// Loads what is said of the admin endpoint, or says on standard error what is wrong with that.
    fn load_admin_or_explain(&self) -> Result<Option<admin::Config>, ExitCode> {
        config::load_admin(self.source()).map_err(explain)
    }
}

fn explain(mistakes: config::Mistakes) -> ExitCode {
    complain(format_args!("{mistakes}"));
    ExitCode::from(CONFIG)
}

/// The runtime of everything but the data path, on this thread.
fn control_runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// Runs on the control runtime; an error is one line and exit code 1.
fn block_on(work: impl Future<Output = Result<(), String>>) -> ExitCode {
    let result = control_runtime()
        .map_err(|error| format!("cannot start: {error}"))
        .and_then(|runtime| {
            let result = runtime.block_on(work);
            // A look-up of a name that takes for ever must not hold up the end.
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("{error}"));
            ExitCode::from(FAILED)
        }
    }
}

/// One line on standard output. That nobody reads it is no reason to fail.
fn say(line: std::fmt::Arguments<'_>) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// One line on standard error.
fn complain(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}
