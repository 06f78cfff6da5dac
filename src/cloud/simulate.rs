//! `bearer-proxy simulate`: the simulated cloud alone.

use std::{
    fmt::Write as _, future::Future, io::Write, net::SocketAddr, path::PathBuf, time::Duration,
};

use clap::Args;
use humantime::parse_duration;
use tokio::sync::broadcast::error::RecvError;

use super::{config::Config, faults::IssuerResponse, server::Cloud, state::Event};
use crate::base::{clock::SharedClock, host};

/// How the simulated cloud is set up.
#[derive(Debug, Clone, Args)]
pub struct SimulateArgs {
    /// Address of the cloud
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8400")]
    pub listen: SocketAddr,
    /// Address of the document host, for uploads and downloads
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8401")]
    pub document_listen: SocketAddr,
    /// The document host's origin as apps reach it [default: its address]
    #[arg(long, value_name = "ORIGIN")]
    pub document_origin: Option<String>,
    /// Allow addresses that other machines can reach
    #[arg(long)]
    pub allow_remote: bool,
    /// Lifetime of an access token
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_duration)]
    pub token_lifetime: Duration,
    /// Lifetime of a refresh token
    #[arg(long, value_name = "DURATION", default_value = "30d", value_parser = parse_duration)]
    pub refresh_lifetime: Duration,
    /// Do not replace the refresh token when it is used
    #[arg(long)]
    pub no_rotation: bool,
    /// How long a replaced refresh token may be used again; after that, its use revokes all tokens
    /// of its family
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
    pub reuse_grace: Duration,
    /// Keep the issuer's tokens in this file, across restarts of the cloud; several nodes of one
    /// cloud may share it
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
    /// A refresh token that is valid at the first start [default: a random one]
    #[arg(long, value_name = "TOKEN")]
    pub refresh_token: Option<String>,
    /// The client's id
    #[arg(long, value_name = "ID", default_value = "demo")]
    pub client_id: String,
    /// The client's secret
    #[arg(long, value_name = "SECRET", default_value = "secret")]
    pub client_secret: String,
    /// Keep files in this folder instead of in memory
    #[arg(long, value_name = "DIR")]
    pub folder: Option<PathBuf>,
    /// Delay of each call of the issuer
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
    pub issuer_latency: Duration,
    /// Delay of each call of a file interface
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
    pub files_latency: Duration,
    /// Respond 500 to the first N calls of the issuer
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub issuer_errors: u32,
    /// Reject every access token for this long after the start
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
    pub reject_for: Duration,
    /// Reject access tokens with a 200 whose JSON body states the failure
    #[arg(long)]
    pub in_body_failures: bool,
}

/// Runs a simulated cloud until `stop`. Writes its addresses and examples, then a line for each
/// event.
///
/// # Errors
/// When an address is not a loopback one and that is not allowed, or the cloud cannot start: the
/// message for the user.
pub async fn simulate(
    args: SimulateArgs,
    clock: SharedClock,
    stop: impl Future<Output = ()>,
    out: &mut impl Write,
) -> Result<(), String> {
    check_addresses(&args)?;
    let reject_until = clock.now() + args.reject_for;
    let cloud = Cloud::start(args.config(), clock)
        .await
        .map_err(|error| format!("the simulated cloud: {error}"))?;
    {
        let mut faults = cloud.faults();
        faults.issuer_latency = args.issuer_latency;
        faults.files_latency = args.files_latency;
        faults.in_body_failures = args.in_body_failures;
        faults.reject_until = Some(reject_until);
        faults.script(
            &IssuerResponse::Status(500, None),
            args.issuer_errors as usize,
        );
    }
    let mut events = cloud.events();
    print(out, &introduction(&args, &cloud))?;
    tokio::pin!(stop);
    loop {
        let event = tokio::select! {
            () = &mut stop => break,
            event = events.recv() => event,
        };
        match event {
            Ok(event) => print(out, &format!("{}\n", describe(&event)))?,
            Err(RecvError::Lagged(missed)) => print(out, &format!("({missed} more)\n"))?,
            Err(RecvError::Closed) => break,
        }
    }
    cloud.shut_down().await;
    Ok(())
}

impl SimulateArgs {
    fn config(&self) -> Config {
        Config {
            listen: self.listen,
            document_listen: self.document_listen,
            document_origin: self
                .document_origin
                .as_ref()
                .map(|origin| origin.trim_end_matches('/').to_owned()),
            token_lifetime: self.token_lifetime,
            refresh_lifetime: self.refresh_lifetime,
            rotate: !self.no_rotation,
            reuse_grace: self.reuse_grace,
            state_file: self.state.clone(),
            seeds: self.refresh_token.iter().cloned().collect(),
            folder: self.folder.clone(),
            ..Config::new(self.client_id.as_str(), self.client_secret.as_str())
        }
    }
}

fn check_addresses(args: &SimulateArgs) -> Result<(), String> {
    for (flag, address) in [
        ("--listen", args.listen),
        ("--document-listen", args.document_listen),
    ] {
        if !args.allow_remote && !host::is_loopback(address.ip()) {
            return Err(format!(
                "{flag} {address}: other machines could reach this cloud, whose secrets are public. \
                 Use 127.0.0.1, or add --allow-remote."
            ));
        }
    }
    Ok(())
}

/// The addresses and some examples. Double quotes only: the lines also work in PowerShell (as
/// `curl.exe`).
fn introduction(args: &SimulateArgs, cloud: &Cloud) -> String {
    let SimulateArgs {
        client_id,
        client_secret,
        ..
    } = args;
    let (origin, seed) = (cloud.origin(), cloud.seed());
    let mut text = format!(
        "A simulated cloud is running. Stop it with Ctrl-C.\n\n\
         cloud          {origin}\n\
         document host  {}\n\
         client         {client_id}, secret {client_secret}\n\
         refresh token  {seed}\n\n\
         Get an access token (in PowerShell, write curl.exe):\n",
        cloud.document_origin()
    );
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "  curl -X POST -u \"{client_id}:{client_secret}\" \
         \"{origin}/api/refreshToken.do?grant_type=refresh_token&refresh_token={seed}\"\n\
         Then, with that token in place of TOKEN:\n  \
           curl -H \"Authorization: Bearer TOKEN\" \"{origin}/api/file/list.do\"\n  \
           curl -H \"Authorization: Bearer TOKEN\" \"{origin}/api/echo.do?hello=world\"\n  \
           curl -H \"Authorization: Bearer TOKEN\" \"{origin}/api/file/preUploadFile.do?parent_id=0&name=hello.txt\"\n\n",
    );
    text
}

fn describe(event: &Event) -> String {
    match event {
        Event::Refreshed { serial, lifetime } => {
            format!(
                "issued token #{serial}, valid for {}",
                humantime::format_duration(*lifetime)
            )
        }
        Event::RefreshRefused { error } => format!("refused a refresh: {error}"),
        Event::FamilyRevoked => "revoked a family: a spent refresh token was used again".to_owned(),
        Event::Rejected { path } => format!("401 for {path}"),
    }
}

fn print(out: &mut impl Write, text: &str) -> Result<(), String> {
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| format!("cannot write: {error}"))
}
