//! The command line: parsing and dispatch. Each command is a file.

mod check;
mod config_file;
mod demo;
mod exit_code;
mod init;
mod login;
mod output;
mod run;
mod runtime;
mod status;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::{config_file::ConfigFile, exit_code::USAGE, output::print_error};
use crate::{base::process, cloud};

#[derive(Debug, Parser)]
#[command(name = "bearer-proxy", version, about, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    config: ConfigFile,
    #[command(subcommand)]
    command: Option<Command>,
}

const EXAMPLES: &str = "\
Without a command, `run` is the default.

Examples:
  bearer-proxy demo                          try it without a configuration
  bearer-proxy init --cloud https://cloud.example.com
  bearer-proxy check                         validate proxy.toml
  bearer-proxy login                         get the first tokens, once
  bearer-proxy                               run it

Exit codes: 0 fine, 1 failed while running, 64 bad command line, 78 bad configuration
(status: 0 ready, 1 not ready, 2 unreachable).";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy in the foreground
    #[command(after_help = "Example:\n  bearer-proxy run --config /etc/bearer-proxy/proxy.toml")]
    Run,
    /// Write a minimal proxy.toml for a real cloud; does not overwrite a file
    #[command(
        after_help = "Example:\n  bearer-proxy init --cloud https://cloud.example.com --client-id my-app"
    )]
    Init(init::InitArgs),
    /// Validate the configuration without network access: prints all mistakes at once
    #[command(after_help = "Example:\n  bearer-proxy check --config proxy.toml")]
    Check,
    /// Log in with a browser and store the first tokens: once, or when the refresh token is no
    /// longer valid
    #[command(
        after_help = "Examples:\n  bearer-proxy login\n  bearer-proxy login --code CODE    if the browser is on another machine\n\n\
                      A running proxy reads the new tokens by itself."
    )]
    Login(login::LoginArgs),
    /// Show the status of a running proxy: exit code 0 ready, 1 not ready, 2 unreachable
    #[command(
        after_help = "Examples:\n  bearer-proxy status\n  bearer-proxy status --live    for health checks: exit code 0 alive, 1 not"
    )]
    Status(status::StatusArgs),
    /// Run a simulated cloud and the proxy in front of it, with tokens that expire after seconds
    #[command(after_help = "Example:\n  bearer-proxy demo")]
    Demo,
    /// Run the simulated cloud alone, to try apps offline
    #[command(after_help = "Example:\n  bearer-proxy simulate --listen 127.0.0.1:8400")]
    Simulate(Box<cloud::SimulateArgs>),
}

/// Parses the command line and runs the command.
pub fn main() -> ExitCode {
    // First of all: even the arguments may contain a secret.
    if let Err(error) = process::forbid_dumps() {
        print_error(format_args!(
            "cannot disable core dumps, which may contain secrets: {error}"
        ));
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Also for --help and --version. If printing fails, there is no other place for a
            // message.
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
            print_error(format_args!("--config: this command has no configuration"));
            ExitCode::from(USAGE)
        }
        Command::Demo => demo::demo(),
        Command::Simulate(args) => demo::simulate(*args),
    }
}
