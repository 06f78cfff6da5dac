//! Reads the configuration into the `Config` of each component, and reports all mistakes at once.
//!
//! Two stages: `raw` collects the values of the file, the environment and the command line, by the
//! table in `keys`; `resolve` converts them into [`Config`], in which nothing that the program
//! needs is optional.

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
    sync::Arc,
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
use crate::{admin, base::log, net::outbound_proxy::OutboundProxy, proxy, token, upstream};

/// A validated configuration. Nothing that the program needs is optional.
#[derive(Debug, Clone)]
pub struct Config {
    /// The data path.
    pub proxy: proxy::Config,
    /// The upstreams: `[upstream]` first, then the named ones.
    pub upstreams: Vec<upstream::Config>,
    /// The credential.
    pub token: token::Config,
    /// Where the credential's first tokens come from.
    pub initial_grant: token::InitialGrantConfig,
    /// The admin listener, if there is one.
    pub admin: Option<admin::Config>,
    /// Logging.
    pub log: log::Config,
}

impl Config {
    /// The outbound proxies of the upstreams and of the issuer, each once.
    pub fn outbound_proxies(&self) -> Vec<Arc<OutboundProxy>> {
        let upstreams = self.upstreams.iter().map(|upstream| &upstream.proxy);
        let all = upstreams.chain([&self.token.issuer.proxy]).flatten();
        let mut proxies: Vec<Arc<OutboundProxy>> = Vec::new();
        for proxy in all {
            if !proxies.iter().any(|known| Arc::ptr_eq(known, proxy)) {
                proxies.push(Arc::clone(proxy));
            }
        }
        proxies
    }
}

/// The sources of a configuration, in ascending order of precedence.
#[derive(Debug, Clone, Default)]
pub struct Source<E> {
    /// The file, if there is one: see [`locate`].
    pub file: Option<PathBuf>,
    /// The environment, as `std::env::vars_os` has it.
    pub env: E,
    /// Values from the command line: a key's path, and its value in the syntax of the environment.
    pub overrides: Vec<(String, String)>,
}

/// A configuration without mistakes.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Warnings: what is valid and probably not intended.
    pub warnings: Vec<Finding>,
    /// Warnings of files with secrets that every user of this machine can read or write.
    pub exposed_files: Vec<Finding>,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
}

/// The environment variable that names the configuration file.
pub const FILE_VARIABLE: &str = "BEARER_PROXY_CONFIG";

/// The default name of the configuration file.
pub const FILE_NAME: &str = "proxy.toml";

/// Finds the configuration file: the one in `--config`, else in [`FILE_VARIABLE`], else
/// `proxy.toml` in `folder` if it exists.
pub fn locate(flag: Option<PathBuf>, variable: Option<OsString>, folder: &Path) -> Option<PathBuf> {
    let usual = || Some(folder.join(FILE_NAME)).filter(|file| file.exists());
    flag.or_else(|| variable.filter(|name| !name.is_empty()).map(PathBuf::from))
        .or_else(usual)
}

/// Reads and validates a configuration, without network access and without changing anything.
///
/// # Errors
/// All mistakes at once; none of them shows a secret.
pub fn load<E>(source: Source<E>) -> Result<Loaded, Mistakes>
where
    E: IntoIterator<Item = (OsString, OsString)>,
{
    load_with(source, |_, _| {})
}

/// Like [`load`], and looks into the state file as well: a mistake is what keeps the proxy from
/// starting, or what exposes its tokens. Also says which parts could be left out.
///
/// # Errors
/// Like [`load`].
pub fn check<E>(source: Source<E>) -> Result<Loaded, Mistakes>
where
    E: IntoIterator<Item = (OsString, OsString)>,
{
    load_with(source, |reader, config| {
        resolve::inspect_state_file(reader, &config.token);
        resolve::inspect_store(reader, &config.token);
    })
}

fn load_with<E>(
    source: Source<E>,
    inspect: impl FnOnce(&mut Reader, &Config),
) -> Result<Loaded, Mistakes>
where
    E: IntoIterator<Item = (OsString, OsString)>,
{
    let file = source.file.clone();
    let mut reader = Reader::new(read(source)?);
    let config = resolve::config(&mut reader);
    if let Some(config) = &config {
        inspect(&mut reader, config);
    }
    let exposed_files = reader.exposed_files();
    let (config, warnings) = reader.finish(config)?;
    Ok(Loaded {
        config,
        warnings,
        exposed_files,
        file,
    })
}

/// Reads the admin endpoint's configuration alone; mistakes in other sections do not matter.
///
/// # Errors
/// The mistakes in `[admin]`, or that there is no configuration.
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
                "no configuration: this folder has no {FILE_NAME}, and no BEARER_PROXY__… variable \
                 is set"
            ),
            "create one with `bearer-proxy init`, name one with --config, or try `bearer-proxy \
             demo`",
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
            "check the path, or create a file with `bearer-proxy init`"
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
