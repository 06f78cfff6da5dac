//! The user's words, turned into the `Config` of each component, every mistake reported at once.
//!
//! Two stages: `raw` collects what the file, the environment and the command line say, by the table in `keys`;
//! `resolve` reads it into [`Config`], in which nothing is optional that the program needs.

mod findings;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod keys;
mod raw;
mod reader;
mod resolve;
mod starter;
mod suggest;
mod syntax;
mod values;

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

pub use self::{
    findings::{Finding, Mistakes, SourcePos},
    keys::{Key, Kind, Presence, keys},
    starter::{administrator_request, cloud_origin, starter},
};
use self::{
    findings::{Problem, problem},
    raw::Raw,
    reader::Reader,
};
use crate::{admin, base::log, proxy, token, upstream};

/// A validated configuration: nothing in it is optional that the program needs.
#[derive(Debug, Clone)]
pub struct Config {
    /// The data path.
    pub proxy: proxy::Config,
    /// Whom requests go to: the plain `[upstream]` first, then the named ones.
    pub upstreams: Vec<upstream::Config>,
    /// The credential.
    pub token: token::Config,
    /// Where the credential's first tokens come from.
    pub initial_grant: token::InitialGrantConfig,
    /// The admin listener, unless there is none.
    pub admin: Option<admin::Config>,
    /// Logging.
    pub log: log::Config,
}

/// Where a configuration comes from. The command line wins over the environment, and that over the file.
#[derive(Debug, Clone, Default)]
pub struct Source<E> {
    /// The file, if there is one: see [`locate`].
    pub file: Option<PathBuf>,
    /// The environment, as `std::env::vars_os` has it.
    pub env: E,
    /// What the command line sets: a key's path and its value, written as in the environment.
    pub overrides: Vec<(String, String)>,
}

/// A configuration without a mistake.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What is allowed and probably not meant.
    pub warnings: Vec<Finding>,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
}

/// The environment variable that names the configuration file.
pub const FILE_VARIABLE: &str = "BEARER_PROXY_CONFIG";

/// The configuration file's usual name.
pub const FILE_NAME: &str = "proxy.toml";

/// Finds the configuration file: the one that `--config` names, else that of [`FILE_VARIABLE`], else `proxy.toml` in
/// this folder if it exists.
pub fn locate(flag: Option<PathBuf>, variable: Option<OsString>, folder: &Path) -> Option<PathBuf> {
    let usual = || Some(folder.join(FILE_NAME)).filter(|file| file.exists());
    flag.or_else(|| variable.filter(|name| !name.is_empty()).map(PathBuf::from))
        .or_else(usual)
}

/// Reads and validates a configuration, without a network and without changing anything.
///
/// # Errors
/// Every mistake at once; none of them shows a secret.
pub fn load<E>(source: Source<E>) -> Result<Loaded, Mistakes>
where
    E: IntoIterator<Item = (OsString, OsString)>,
{
    let file = source.file.clone();
    let mut reader = Reader::new(read(source)?);
    let config = resolve::config(&mut reader);
    let (config, warnings) = reader.finish(config)?;
    Ok(Loaded {
        config,
        warnings,
        file,
    })
}

/// Reads only how the admin endpoint is reached, whatever is wrong elsewhere.
///
/// # Errors
/// The mistakes in `[admin]`, or that there is nothing to read.
pub fn load_admin<E>(source: Source<E>) -> Result<Option<admin::Config>, Mistakes>
where
    E: IntoIterator<Item = (OsString, OsString)>,
{
    let mut reader = Reader::new(read(source)?);
    let admin = resolve::admin(&mut reader, proxy::GuardConfig::default());
    reader.finish_part("admin.", admin)
}

fn read<E>(source: Source<E>) -> Result<Raw, Mistakes>
where
    E: IntoIterator<Item = (OsString, OsString)>,
{
    let mut raw = Raw::new();
    if let Some(file) = &source.file {
        match read_file(file) {
            Ok(text) => raw.add_file(file, &text),
            Err(problem) => {
                return Err(Mistakes::new(vec![
                    problem.at(SourcePos::File(file.as_path().into()), ""),
                ]));
            }
        }
    }
    let any_variable = raw.add_environment(source.env.into_iter());
    if source.file.is_none() && !any_variable && source.overrides.is_empty() {
        let nothing = problem(
            format!(
                "no configuration: this folder has no {FILE_NAME}, and no BEARER_PROXY__… variable is set"
            ),
            "write a first one with `bearer-proxy init`, name one with --config, or try `bearer-proxy demo`",
        );
        let ignored = raw.mistakes.into_iter().chain(raw.warnings);
        return Err(Mistakes::new(
            ignored
                .chain([nothing.at(SourcePos::Nowhere, "")])
                .collect(),
        ));
    }
    for (path, text) in source.overrides {
        raw.add_override(&path, text);
    }
    Ok(raw)
}

fn read_file(file: &Path) -> Result<Zeroizing<String>, Problem> {
    const LIMIT: u64 = 1024 * 1024;
    let mut bytes = Zeroizing::new(Vec::new());
    if let Err(error) =
        File::open(file).and_then(|opened| opened.take(LIMIT + 1).read_to_end(&mut bytes))
    {
        let hint = if error.kind() == io::ErrorKind::NotFound {
            "check the path, or write a first file with `bearer-proxy init`"
        } else {
            "check the path and the permissions"
        };
        return Err(problem(format!("cannot be read: {error}"), hint));
    }
    if bytes.len() as u64 > LIMIT {
        return Err(problem("is larger than 1 MiB", "name a configuration file"));
    }
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let line = bytes
            .iter()
            .take(error.valid_up_to())
            .filter(|byte| **byte == b'\n')
            .count()
            + 1;
        problem(
            format!("is not UTF-8 text, line {line}"),
            "save it as UTF-8 in the editor",
        )
    })?;
    Ok(Zeroizing::new(text.to_owned()))
}
