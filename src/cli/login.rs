//! `login`: gets the first tokens by an authorization code (RFC 6749 §4.1).

mod callback;
mod code;
mod pending;

use std::{
    env,
    path::{Path, PathBuf},
    pin::pin,
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use clap::Args;
use url::Url;

use self::{callback::Callback, pending::Pending};
use super::{
    config_file::ConfigFile,
    exit_code::{CONFIG, FAILED},
    output::{print_error, print_line},
    runtime::block_on,
};
use crate::{
    base::{clock, secret::Secret},
    config::{Config, Loaded},
    token::{self, code_grant::CodeGrant, login::Login},
};

#[derive(Debug, Args)]
pub(super) struct LoginArgs {
    /// The whole address from the browser's address bar, in quotes, or the code in it: for a browser
    /// on another machine
    // A code may begin with a hyphen.
    #[arg(long, value_name = "CODE", value_parser = parse_code, allow_hyphen_values = true)]
    code: Option<Secret>,
}

/// How long the login in the browser may take.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// A refresh of a running proxy is over sooner, as a rule.
const EXPLAINED_AFTER: Duration = Duration::from_secs(2);

pub(super) fn login(config: &ConfigFile, args: LoginArgs) -> ExitCode {
    let loaded = match config.load() {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let mistakes = missing_keys(&loaded);
    for mistake in &mistakes {
        print_error(format_args!("{mistake}"));
    }
    let config = loaded.config;
    let redirect_uri = config.initial_grant.code.redirect_uri.clone();
    let Some(redirect_uri) = redirect_uri.filter(|_| mistakes.is_empty()) else {
        return ExitCode::from(CONFIG);
    };
    let state_file = config.token.state_file.clone();
    if args.code.is_none() && !callback::can_listen_at(&redirect_uri) {
        print_manual_steps(&config, &redirect_uri, state_file.as_deref());
        // Nothing is stored yet.
        return ExitCode::from(FAILED);
    }
    block_on(log_in(config, redirect_uri, state_file, args.code))
}

/// The keys that a login needs and `run` does not.
fn missing_keys(loaded: &Loaded) -> Vec<String> {
    let place = loaded
        .file
        .as_ref()
        .map(|file| format!("{}: ", file.display()))
        .unwrap_or_default();
    let config = &loaded.config;
    let needed = [
        (
            config.initial_grant.code.redirect_uri.is_none(),
            "token.redirect_uri: is missing (write it exactly as it is registered at the cloud, as \
             in \"http://127.0.0.1:8765/callback\")",
        ),
        (
            config.token.state_file.is_none() && config.token.store.is_none(),
            "token.state_file: is missing, and tokens are stored there (write state_file = \
             \"state/token.json\")",
        ),
    ];
    needed
        .iter()
        .filter(|(is_missing, _)| *is_missing)
        .map(|(_, words)| format!("{place}{words}"))
        .collect()
}

async fn log_in(
    config: Config,
    redirect_uri: String,
    state_file: Option<PathBuf>,
    code: Option<Secret>,
) -> Result<(), String> {
    let clock = clock::system();
    let state_file = state_file.as_deref();
    let place = place(&config.token);
    let begin = || Login::begin(&config.token, Some(&config.initial_grant), clock.clone());
    let code_grant = CodeGrant::new(
        &config.initial_grant.code,
        &config.token.issuer,
        clock.clone(),
    );
    let code_grant = code_grant.map_err(|error| error.to_string())?;
    // Checked before the user logs in.
    begin().await.map_err(|error| error.to_string())?;
    let (code, callback) = match code {
        Some(text) => {
            let code = code::code(text.expose(), &Pending::load(state_file))?;
            (code, None)
        }
        None => {
            let (code, callback) = code_from_browser(&config, &redirect_uri, state_file).await?;
            (code, Some(callback))
        }
    };
    let login = begin().await.map_err(|error| error.to_string())?;
    let result = code_grant.exchange(&code).await;
    if let Some(callback) = callback {
        callback.finish().await;
    }
    let configured = config.token.refresh_token.as_ref();
    let grant = match result {
        Ok(grant) => grant,
        Err(failure) => {
            let stored = login.store_refresh_token(&failure, configured);
            if !explained(stored, &config.token)
                .await
                .map_err(|error| error.to_string())?
            {
                return Err(format!("no tokens: {}", failure.detail));
            }
            print_line(format_args!(
                "Stored the refresh token in {}. The access token is unusable ({}): a proxy \
                 requests another one.",
                place, failure.detail
            ));
            return Ok(());
        }
    };
    if grant.refresh_token.is_none() {
        let field = &config.token.issuer.fields.refresh_token;
        return Err(format!(
            "the cloud returned no refresh token at {field}: check token.fields.refresh_token"
        ));
    }
    let left = explained(login.store(grant, configured), &config.token)
        .await
        .map_err(|error| error.to_string())?;
    Pending::load(state_file).clear();
    let left = humantime::format_duration(Duration::from_secs(left.as_secs()));
    print_line(format_args!(
        "Stored the first tokens in {place}: the access token is valid for {left}."
    ));
    print_line(format_args!(
        "A running proxy reads them by itself. If none is running: bearer-proxy run"
    ));
    Ok(())
}

/// Where the tokens are stored, for the user.
fn place(config: &token::Config) -> String {
    let file = config.state_file.as_ref();
    let file = file.map(|file| file.display().to_string());
    match (&config.store, file) {
        (Some(_), Some(file)) => format!("the shared store and in {file}"),
        (Some(_), None) => "the shared store".to_owned(),
        (None, file) => file.unwrap_or_default(),
    }
}

/// Says what storing the tokens waits for, if it takes long: after an interruption they would be
/// lost, and the code is used.
async fn explained<T>(storing: impl Future<Output = T>, config: &token::Config) -> T {
    let mut storing = pin!(storing);
    let Some(state_file) = config
        .state_file
        .as_ref()
        .filter(|_| config.store.is_none())
    else {
        // The shared store is given a few seconds.
        return storing.await;
    };
    if let Ok(stored) = tokio::time::timeout(EXPLAINED_AFTER, &mut storing).await {
        return stored;
    }
    print_error(format_args!(
        "waiting for another process, which holds the lock {}.lock: the tokens are stored when it \
         ends its refresh; do not interrupt this login, but continue or end that process",
        state_file.display()
    ));
    storing.await
}

/// Shows the authorization URL and waits for the browser's redirect with the code.
async fn code_from_browser(
    config: &Config,
    redirect_uri: &str,
    state_file: Option<&Path>,
) -> Result<(Secret, Callback), String> {
    let data = random_state()?;
    let mut callback = Callback::listen(redirect_uri, data.clone()).await?;
    Pending::load(state_file).add(&data);
    let url = config
        .initial_grant
        .code
        .authorize_url(&config.token.issuer.client_id, &data);
    let opened = if open_browser(&url) {
        " (it should open by itself)"
    } else {
        ""
    };
    print_line(format_args!(
        "Open this address in a browser on this machine, log in and agree{opened}:\n\n{url}\n"
    ));
    print_line(format_args!("Waiting for the redirect to {redirect_uri} …"));
    print_line(format_args!(
        "If the browser is on another machine, run: bearer-proxy login --code CODE\n\
         CODE is the whole address from its address bar, in quotes, or the code in it."
    ));
    let timed_out = "no login within five minutes: run it again, or use --code if the browser is \
        on another machine";
    match tokio::time::timeout(LOGIN_TIMEOUT, callback.code())
        .await
        .unwrap_or_else(|_| Err(timed_out.to_owned()))
    {
        Ok(code) => Ok((code, callback)),
        Err(error) => {
            callback.finish().await;
            Err(error)
        }
    }
}

/// For redirect URIs that are not an http address of this machine: the user passes the code on.
fn print_manual_steps(config: &Config, redirect_uri: &str, state_file: Option<&Path>) {
    let data = match random_state() {
        Ok(data) => data,
        Err(error) => return print_error(format_args!("{error}")),
    };
    Pending::load(state_file).add(&data);
    let client_id = &config.token.issuer.client_id;
    let url = config.initial_grant.code.authorize_url(client_id, &data);
    open_browser(&url);
    print_line(format_args!(
        "Open this address in a browser, log in and agree:\n\n{url}\n"
    ));
    print_line(format_args!(
        "The browser is redirected to {redirect_uri} with ?code=…. That is not an http address of \
         this machine, so pass the code on within five minutes:\n\n  \
         bearer-proxy login --code CODE\n\n\
         CODE is the whole address from the address bar, in quotes, or the code in it."
    ));
}

fn parse_code(text: &str) -> Result<Secret, &'static str> {
    match text.trim() {
        "" => Err("it is empty"),
        code => Ok(Secret::new(code)),
    }
}

/// The `data` parameter, which proves that a callback belongs to this login (`state` of RFC 6749
/// §10.12).
fn random_state() -> Result<String, String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| format!("the system has no random bytes: {error}"))?;
    Ok(hex::encode(bytes))
}

/// Opens the URL in the desktop's browser, if there is a desktop. The URL is not passed to a shell.
fn open_browser(url: &Url) -> bool {
    let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    let (program, arguments): (_, &[&str]) = if cfg!(target_os = "macos") {
        ("open", &[])
    } else if cfg!(windows) {
        // As `start` does, which needs a shell: there the & of the URL is a separator.
        ("rundll32", &["url.dll,FileProtocolHandler"])
    } else if is_set("DISPLAY") || is_set("WAYLAND_DISPLAY") {
        ("xdg-open", &[])
    } else {
        return false;
    };
    let silent = || Stdio::null();
    let command = Command::new(program)
        .args(arguments)
        .arg(url.as_str())
        .stdin(silent())
        .stdout(silent())
        .stderr(silent())
        .spawn();
    command.is_ok()
}
