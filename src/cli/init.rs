//! `init`: writes a minimal configuration for a real cloud.

use std::{
    fs::OpenOptions,
    io::{ErrorKind, Write as _},
    path::Path,
    process::ExitCode,
};

use clap::Args;

use super::{
    config_file::ConfigFile,
    exit_code::{FAILED, USAGE},
    output::{print_error, print_line},
};
use crate::config;

#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// The cloud's address
    #[arg(long, value_name = "URL")]
    cloud: Option<String>,
    /// The client id from the cloud's administrator
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
}

pub(super) fn init(given: &ConfigFile, args: &InitArgs) -> ExitCode {
    let cloud = match args.cloud.as_deref().map(config::cloud_origin).transpose() {
        Ok(cloud) => cloud,
        Err(reason) => {
            print_error(format_args!("--cloud: {reason}"));
            return ExitCode::from(USAGE);
        }
    };
    let file = &given.named().unwrap_or_else(|| config::FILE_NAME.into());
    if let Err(error) = write_new(
        file,
        &config::starter(cloud.as_deref(), args.client_id.as_deref()),
    ) {
        match error.kind() {
            ErrorKind::AlreadyExists => {
                print_error(format_args!(
                    "{} exists already; it was not changed",
                    file.display()
                ));
            }
            _ => print_error(format_args!("cannot write {}: {error}", file.display())),
        }
        return ExitCode::from(FAILED);
    }
    print_line(format_args!("wrote {}\n", file.display()));
    print_line(format_args!(
        "{}",
        config::administrator_request(cloud.as_deref(), args.client_id.as_deref())
    ));
    print_line(format_args!("Then: bearer-proxy check && bearer-proxy"));
    ExitCode::SUCCESS
}

fn write_new(file: &Path, text: &str) -> std::io::Result<()> {
    let mut created = OpenOptions::new().write(true).create_new(true).open(file)?;
    crate::base::process::make_private(&created)?;
    created.write_all(text.as_bytes())
}
