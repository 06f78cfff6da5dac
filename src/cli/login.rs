//! `login`: the first tokens, with a person's help (RFC 6749 §4.1).

mod callback;

use std::{
    env,
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use clap::Args;
use url::Url;

use self::callback::Callback;
use super::{CONFIG, ConfigFile, FAILED, block_on, complain, say};
use crate::{
    base::{clock, secret::Secret},
    config::{Config, Loaded},
    token::{code_grant::CodeGrant, login::Login},
};

#[derive(Debug, Args)]
pub(super) struct LoginArgs {
    /// The code that the browser showed behind the redirect URI: for machines without a browser
    // A code may begin with a hyphen.
    #[arg(long, value_name = "CODE", value_parser = parse_code, allow_hyphen_values = true)]
    code: Option<Secret>,
}

/// How long a person may take to log in.
const PATIENCE: Duration = Duration::from_secs(5 * 60);

pub(super) fn login(config: &ConfigFile, args: LoginArgs) -> ExitCode {
    let loaded = match config.load_or_explain() {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let mistakes = missing(&loaded);
    for mistake in &mistakes {
        complain(format_args!("{mistake}"));
    }
    let config = loaded.config;
    let (Some(redirect_uri), Some(state_file)) = (
        config.initial_grant.code.redirect_uri.clone(),
        config.token.state_file.clone(),
    ) else {
        return ExitCode::from(CONFIG);
    };
    if args.code.is_none() && !callback::can_listen_at(&redirect_uri) {
        explain(&config, &redirect_uri);
        // Nothing is stored yet.
        return ExitCode::from(FAILED);
    }
    block_on(log_in(config, redirect_uri, state_file, args.code))
}

/// What a login needs and a mere start does not.
fn missing(loaded: &Loaded) -> Vec<String> {
    let place = loaded
        .file
        .as_ref()
        .map(|file| format!("{}: ", file.display()))
        .unwrap_or_default();
    let config = &loaded.config;
    let needed = [
        (
            config.initial_grant.code.redirect_uri.is_none(),
            r#"token.redirect_uri: is missing (write it exactly as it is registered at the cloud, as in "http://127.0.0.1:8765/callback")"#,
        ),
        (
            config.token.state_file.is_none(),
            r#"token.state_file: is missing, and the tokens are put there (write state_file = "state/token.json")"#,
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
    state_file: PathBuf,
    code: Option<Secret>,
) -> Result<(), String> {
    let clock = clock::system();
    let code_grant = CodeGrant::new(
        &config.initial_grant.code,
        &config.token.issuer,
        clock.clone(),
    );
    let code_grant = code_grant.map_err(|error| error.to_string())?;
    // Before a person does anything in vain.
    Login::begin(&state_file, clock.clone()).map_err(|error| error.to_string())?;
    let (code, callback) = match code {
        Some(code) => (code, None),
        None => {
            let (code, callback) = ask_in_a_browser(&config, &redirect_uri).await?;
            (code, Some(callback))
        }
    };
    let login = Login::begin(&state_file, clock).map_err(|error| error.to_string())?;
    let result = code_grant.exchange(&code).await;
    if let Some(callback) = callback {
        callback.finish().await;
    }
    let grant = result.map_err(|failure| format!("no tokens: {}", failure.detail))?;
    if grant.refresh_token.is_none() {
        let field = &config.token.issuer.fields.refresh_token;
        return Err(format!(
            "the cloud gave no refresh token at {field}: check token.fields.refresh_token"
        ));
    }
    let left = login
        .store(grant, config.token.refresh_token.as_ref())
        .await
        .map_err(|error| error.to_string())?;
    let left = humantime::format_duration(Duration::from_secs(left.as_secs()));
    say(format_args!(
        "Stored the first tokens in {}: the access token is valid for {left}.",
        state_file.display()
    ));
    say(format_args!(
        "A running proxy picks them up by itself. If none is running: bearer-proxy run"
    ));
    Ok(())
}

/// Sends a person to the cloud and waits for the browser to come back with a code.
async fn ask_in_a_browser(
    config: &Config,
    redirect_uri: &str,
) -> Result<(Secret, Callback), String> {
    let data = random_data()?;
    let mut callback = Callback::listen(redirect_uri, data.clone()).await?;
    let url = config
        .initial_grant
        .code
        .authorize_url(&config.token.issuer.client_id, &data);
    let opened = if open(&url) {
        " (it should open by itself)"
    } else {
        ""
    };
    say(format_args!(
        "Open this address in a browser on this machine, log in and agree{opened}:\n\n{url}\n"
    ));
    say(format_args!(
        "Waiting for the browser to come back to {redirect_uri} …"
    ));
    say(format_args!(
        "If it is on another machine, it cannot: take the code from its address bar, and run bearer-proxy login --code CODE"
    ));
    let too_late = "nobody logged in within five minutes: run it again, or use --code if the browser is elsewhere";
    match tokio::time::timeout(PATIENCE, callback.code())
        .await
        .unwrap_or_else(|_| Err(too_late.to_owned()))
    {
        Ok(code) => Ok((code, callback)),
        Err(error) => {
            callback.finish().await;
            Err(error)
        }
    }
}

/// For redirect URIs that are not an http address of this machine.
fn explain(config: &Config, redirect_uri: &str) {
    let url = match random_data() {
        Ok(data) => config
            .initial_grant
            .code
            .authorize_url(&config.token.issuer.client_id, &data),
        Err(error) => return complain(format_args!("{error}")),
    };
    open(&url);
    say(format_args!(
        "Open this address in a browser, log in and agree:\n\n{url}\n"
    ));
    say(format_args!(
        "The browser ends at {redirect_uri} with ?code=… behind it. That is not an http address of this machine, so the \
         code has to be carried here by hand, within five minutes:\n\n  bearer-proxy login --code CODE"
    ));
}

fn parse_code(text: &str) -> Result<Secret, &'static str> {
    match text.trim() {
        "" => Err("it is empty"),
        code => Ok(Secret::new(code)),
    }
}

/// What proves that a callback belongs to this login.
fn random_data() -> Result<String, String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| format!("the system has no random bytes: {error}"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Opens the address in the desktop's browser, if there is a desktop. No shell reads the address.
fn open(url: &Url) -> bool {
    let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    let (program, arguments): (_, &[&str]) = if cfg!(target_os = "macos") {
        ("open", &[])
    } else if cfg!(windows) {
        // What `start` does, but `start` needs a shell, to which the address's & is not a letter.
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
