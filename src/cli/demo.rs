//! `demo` and `simulate`: trials without a real cloud.

use std::{process::ExitCode, time::Duration};

use tokio::sync::broadcast::error::RecvError;

use super::{output::print_line, runtime::block_on};
use crate::{
    app::App,
    base::{
        clock::{self, SharedClock},
        log,
        signals::Signals,
    },
    cloud::{self, Cloud, Event, SimulateArgs, simulate as simulate_cloud},
    config::{self, Source},
};

const TOKEN_LIFETIME: Duration = Duration::from_secs(10);

/// Runs the simulated cloud alone.
pub(super) fn simulate(args: SimulateArgs) -> ExitCode {
    block_on(async {
        let mut signals = listen_for_signals()?;
        let stop = async {
            signals.next().await;
        };
        simulate_cloud(args, clock::system(), stop, &mut std::io::stdout()).await
    })
}

/// Runs a cloud with short-lived tokens, and the proxy in front of it.
pub(super) fn demo() -> ExitCode {
    block_on(async {
        let mut signals = listen_for_signals()?;
        let clock = clock::system();
        let cloud = start_cloud(&clock)
            .await
            .map_err(|error| format!("the simulated cloud: {error}"))?;
        let mut events = cloud.events();
        let app = start_proxy(&cloud, &clock)?;
        print_introduction(&cloud, &app);
        loop {
            let event = tokio::select! {
                _ = signals.next() => break,
                event = events.recv() => event,
            };
            match event {
                Ok(event) => print_line(format_args!(
                    "{}  {}",
                    time_of_day(&clock),
                    describe(&event)
                )),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => break,
            }
        }
        app.shut_down().await;
        print_line(format_args!(
            "\nFor a real cloud: bearer-proxy init --cloud https://your-cloud"
        ));
        Ok(())
    })
}

fn listen_for_signals() -> Result<Signals, String> {
    Signals::listen().map_err(|error| format!("cannot listen for signals: {error}"))
}

async fn start_cloud(clock: &SharedClock) -> std::io::Result<Cloud> {
    let config = cloud::Config {
        token_lifetime: TOKEN_LIFETIME,
        ..cloud::Config::new("demo", "secret")
    };
    Cloud::start(config, SharedClock::clone(clock)).await
}

fn start_proxy(cloud: &Cloud, clock: &SharedClock) -> Result<App, String> {
    let settings = [
        ("proxy.listen", "127.0.0.1:0"),
        ("proxy.max_connections", "100"),
        ("upstream.endpoints", cloud.origin()),
        ("token.client_id", "demo"),
        ("token.client_secret", "secret"),
        ("token.refresh_token", cloud.seed()),
        ("admin.listen", "127.0.0.1:0"),
        ("log.level", "warn"),
        ("log.format", "text"),
    ];
    let overrides = settings
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    // No file and no environment: the demo does not depend on them.
    let loaded = config::load(Source {
        file: None,
        env: [],
        overrides,
    })
    .map_err(|mistakes| mistakes.to_string())?;
    let _log = log::init(&loaded.config.log);
    App::start(loaded.config, SharedClock::clone(clock)).map_err(|error| error.to_string())
}

/// Prints the addresses and some examples: double quotes only, and plain GETs, so that the lines
/// also work in PowerShell.
fn print_introduction(cloud: &Cloud, app: &App) {
    let proxy = app
        .addresses()
        .first()
        .map(ToString::to_string)
        .unwrap_or_default();
    let admin = app
        .admin_address()
        .map(ToString::to_string)
        .unwrap_or_default();
    print_line(format_args!(
        "A simulated private cloud, and bearer-proxy in front of it. Stop with Ctrl-C.

  cloud  {cloud}    requires a token with every request; each expires after {lifetime} seconds
  proxy  http://{proxy}    requires none: configure a legacy app with this address
  admin  http://{admin}    the proxy's status, for a browser

Try, while tokens expire and are refreshed:

  curl \"http://{proxy}/api/file/list.do\"
  curl \"http://{proxy}/api/echo.do?hello=world\"
  curl \"http://{admin}/status\"

Without the proxy, the cloud rejects the first one: curl -i \"{cloud}/api/file/list.do\"

For a real cloud: bearer-proxy init --cloud https://your-cloud
",
        cloud = cloud.origin(),
        lifetime = TOKEN_LIFETIME.as_secs(),
    ));
}

fn describe(event: &Event) -> String {
    match event {
        Event::Refreshed { serial, lifetime } => {
            format!(
                "refreshed: token #{serial}, valid for {} seconds",
                lifetime.as_secs()
            )
        }
        Event::RefreshRefused { error } => format!("the cloud refused a refresh: {error}"),
        Event::FamilyRevoked => {
            "the cloud revoked all tokens: a spent refresh token was used again".to_owned()
        }
        Event::Rejected { path } => format!("the cloud responded 401 for {path}"),
    }
}

/// `HH:MM:SS`, UTC.
fn time_of_day(clock: &SharedClock) -> String {
    let date = humantime::format_rfc3339_seconds(clock.wall()).to_string();
    date.get(11..19).unwrap_or_default().to_owned()
}
