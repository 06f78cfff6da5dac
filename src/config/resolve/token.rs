//! `[token]`: the issuer, the state file and the refresh token.

use std::{collections::HashSet, fs, io, path::Path, sync::Arc, time::Duration};

use http::uri::Scheme;
use url::Url;

use super::{
    outbound_proxy::outbound_proxy,
    store, tls,
    upstream::{warn_if_plain_http, warn_of_unused_tls},
};
use crate::{
    base::{process, secret::Secret},
    config::{findings::problem, keys, reader::Reader, values},
    net::{self, outbound_proxy::OutboundProxy},
    proxy::policy::issuer_path::IssuerPath,
    token::{self, BasicEncoding, IssuerConfig, ParameterLocation, ResponseFields},
    upstream::{self, Endpoint},
};

pub(super) fn token(r: &mut Reader, upstream: &upstream::Config) -> Option<token::Config> {
    let issuer = issuer(r, upstream);
    let state_file = r.path("token.state_file");
    let has_store = store::is_given(r);
    let refresh_token = seed(r, state_file.as_deref(), has_store);
    if let Some(file) = &state_file {
        check_state_file(r, file);
    }
    check_initial_token(r, state_file.as_deref(), has_store);
    let rotates = r.choice("token.rotation", [("rotate", true), ("none", false)]);
    let grace_retry = r.boolean("token.grace_retry");
    let grace_period = grace_period(r, grace_retry, has_store);
    let wait = r.duration("token.wait");
    let cooldown = r.positive_duration("retry.cooldown");
    warn_of_short_wait(r, wait, cooldown);
    let config = token::Config {
        name: "default".to_owned(),
        refresh_token,
        store: store::store(r, rotates),
        state_file,
        checks_state_file_permissions: r.choice(
            "token.state_file_permissions",
            [("check", true), ("ignore", false)],
        ),
        refresh_margin: r.read("token.refresh_margin", values::positive_duration),
        refresh_lifetime: r.positive_duration("token.refresh_lifetime"),
        grace_retry,
        grace_period,
        rotates,
        wait,
        cooldown,
        issuer: issuer?,
    };
    Some(config)
}

/// Between two refreshes that rejections cause, requests with a rejected token wait.
fn warn_of_short_wait(r: &mut Reader, wait: Duration, cooldown: Duration) {
    const KEY: &str = "token.wait";
    // After a mistake, a duration is zero.
    if wait >= cooldown {
        return;
    }
    let (wait, cooldown) = (
        humantime::format_duration(wait),
        humantime::format_duration(cooldown),
    );
    let reason = format!(
        "is {wait}, shorter than retry.cooldown ({cooldown}): a request whose token is rejected soon \
         after a refresh gets the 401 before the next refresh may begin"
    );
    let hint = format!("write wait = \"{cooldown}\" or longer, or shorten retry.cooldown");
    let variable = format!(
        "set {}={cooldown} or longer, or shorten {}",
        keys::variable(KEY),
        keys::variable("retry.cooldown")
    );
    r.warning(r.pos(KEY), KEY, problem(reason, hint).or_variable(variable));
}

/// A claim of a replica that died is seen to be orphaned after three seconds. In a shorter period no
/// other replica can repeat its call.
fn grace_period(r: &mut Reader, grace_retry: bool, has_store: bool) -> Duration {
    const KEY: &str = "token.grace_period";
    const TAKEOVER: Duration = Duration::from_secs(4);
    let period = r.read(KEY, values::grace_period).unwrap_or_default();
    if !grace_retry {
        return Duration::ZERO;
    }
    if has_store && period < TAKEOVER {
        let reason = format!(
            "is {}, shorter than a takeover, which takes 3 to 4 s: if a replica dies during a \
             refresh, no other one repeats it before little of the access token's life is left",
            humantime::format_duration(period)
        );
        let hint = "write how long the issuer accepts a repetition, as in \"5s\"; if it never does, \
            [token.jwt] lets another replica go on at once";
        r.warning(r.pos(KEY), KEY, problem(reason, hint));
    }
    period
}

/// The configured refresh token. It is used once: if tokens are stored, its file may be gone.
fn seed(r: &mut Reader, state_file: Option<&Path>, has_store: bool) -> Option<Secret> {
    const FILE: &str = "token.refresh_token_file";
    let is_gone = |r: &mut Reader| r.path(FILE).is_some_and(|file| !file.exists());
    let is_stored = state_file.is_some_and(|file| file.is_file() && is_not_empty(file));
    if (is_stored || has_store)
        && !r.is_given("token.refresh_token")
        && r.is_given(FILE)
        && is_gone(r)
    {
        let gone = problem(
            "names a file that does not exist; the stored tokens are used",
            "remove the key",
        )
        .or_variable("unset it");
        r.warning(r.pos(FILE), FILE, gone);
        return None;
    }
    r.secret("token.refresh_token")
}

/// The issuer's paths, which clients may not request.
pub(super) fn issuer_paths(r: &Reader) -> Vec<IssuerPath> {
    let paths = [
        "token.refresh_path",
        "token.authorize_path",
        "token.token_path",
        "token.jwt_path",
    ];
    // Mistakes in them are reported where they are read.
    let paths = paths
        .into_iter()
        .filter_map(|path| values::url_path(r.raw_value(path)?).ok());
    paths.filter_map(|path| IssuerPath::new(&path)).collect()
}

fn issuer(r: &mut Reader, upstream: &upstream::Config) -> Option<IssuerConfig> {
    let proxy = issuer_proxy(r, upstream);
    let (servers, tls) = issuer_servers(r, upstream, proxy.as_deref());
    let path = interface_path(r, "token.refresh_path");
    let basic_encoding = r.choice(
        "token.basic_encoding",
        [("raw", BasicEncoding::Raw), ("form", BasicEncoding::Form)],
    );
    let client_id = client_id(r, basic_encoding);
    let client_secret = r.secret("token.client_secret");
    let parameters = r.choice(
        "token.parameters",
        [
            ("query", ParameterLocation::Query),
            ("form", ParameterLocation::Form),
        ],
    );
    let timeout = r.positive_duration("token.timeout");
    let default_expires_in = r.positive_duration("token.default_expires_in");
    let fields = fields(r);
    let origins = servers.iter().map(|server| Url::parse(&server.origin).ok());
    let origins: Vec<_> = origins.collect::<Option<_>>()?;
    if origins.is_empty() {
        return None;
    }
    Some(IssuerConfig {
        origins,
        refresh_path: path?,
        client_id,
        client_secret: client_secret?,
        parameters,
        basic_encoding,
        fields,
        timeout,
        default_expires_in,
        tls,
        proxy,
    })
}

/// `token.proxy`. The upstream's is the default where the upstream is the issuer.
fn issuer_proxy(r: &mut Reader, upstream: &upstream::Config) -> Option<Arc<OutboundProxy>> {
    let own = outbound_proxy(r, "token");
    let has_default = !r.is_given("token.issuer") && !r.is_given("token.proxy");
    own.or_else(|| upstream.proxy.clone().filter(|_| has_default))
}

/// `token.issuer`, by default the upstream's endpoints, and its TLS. The upstream's TLS is the
/// default only for these: another issuer must not be trusted by the upstream's CA.
fn issuer_servers(
    r: &mut Reader,
    upstream: &upstream::Config,
    proxy: Option<&OutboundProxy>,
) -> (Vec<Endpoint>, net::tls::Config) {
    const KEY: &str = "token.issuer";
    let own_tls = tls::client(r, "token.tls");
    let has_own_tls = own_tls != net::tls::Config::default();
    let own = r.one_or_more(KEY, values::endpoint);
    for (server, pos) in &own {
        warn_if_plain_http(r, server, proxy, pos, KEY);
    }
    let is_given = r.is_given(KEY);
    let mut servers: Vec<Endpoint> = match is_given {
        true => own.into_iter().map(|(server, _)| server).collect(),
        false => upstream.endpoints.clone(),
    };
    // An endpoint may be listed several times.
    let mut seen = HashSet::new();
    servers.retain(|server| seen.insert(server.origin.clone()));
    let all_plain = servers.iter().all(|server| server.scheme == Scheme::HTTP);
    if has_own_tls && all_plain && !servers.is_empty() {
        warn_of_unused_tls(
            r,
            "token.tls",
            "the issuer's address does not begin with https://",
        );
    }
    let tls = if has_own_tls || is_given {
        own_tls
    } else {
        upstream.tls.clone()
    };
    (servers, tls)
}

fn client_id(r: &mut Reader, encoding: BasicEncoding) -> String {
    const KEY: &str = "token.client_id";
    let client_id = r.text(KEY);
    if encoding == BasicEncoding::Raw && client_id.contains(':') {
        let hint = r#"if it is correct, write basic_encoding = "form""#;
        let problem = problem("contains a colon, which HTTP Basic does not allow", hint)
            .or_variable("if it is correct, set BEARER_PROXY__TOKEN__BASIC_ENCODING=form");
        r.missing(r.pos(KEY), KEY, problem);
    }
    client_id
}

/// The path of an interface of the issuer, as in a URL.
pub(super) fn interface_path(r: &mut Reader, key: &str) -> Option<String> {
    let path = r.read(key, values::url_path)?;
    let mut url = Url::parse("https://issuer").ok()?;
    url.set_path(&path);
    Some(url.path().to_owned())
}

fn fields(r: &mut Reader) -> ResponseFields {
    let mut field = |path| r.read(path, values::json_pointer).unwrap_or_default();
    ResponseFields {
        access_token: field("token.fields.access_token"),
        refresh_token: field("token.fields.refresh_token"),
        expires_in: field("token.fields.expires_in"),
        refresh_expires_in: field("token.fields.refresh_expires_in"),
    }
}

/// Reports that there are no first tokens, and warns that without a state file a rotated refresh
/// token is lost.
fn check_initial_token(r: &mut Reader, state_file: Option<&Path>, has_store: bool) {
    const KEY: &str = "token.refresh_token";
    let configured = r.is_secret_given(KEY);
    let has_state_file = r.is_given("token.state_file");
    if (configured || has_store) && !has_state_file {
        let reason = match has_store {
            true => "is not set: a replica that starts while the store is down has no token",
            false => {
                "is not set: when the cloud replaces the refresh token, the next restart loses it"
            }
        };
        let pos = r.pos("token.state_file");
        r.warning(
            pos,
            "token.state_file",
            problem(reason, r#"write state_file = "state/token.json""#)
                .or_variable("set BEARER_PROXY__TOKEN__STATE_FILE=state/token.json"),
        );
    }
    // After a mistake in the path, it is not known whether the file exists.
    let is_stored = has_state_file && state_file.is_none_or(is_not_empty);
    // What a shared store holds, only a running replica knows.
    if configured || is_stored || has_store || r.has_keys("token.jwt") {
        return;
    }
    let reason = if has_state_file {
        "is missing, and token.state_file does not exist yet"
    } else {
        "is missing"
    };
    let pos = r.pos(KEY);
    if has_state_file && r.is_given("token.redirect_uri") {
        return r.warning(
            pos,
            KEY,
            problem(
                reason,
                "run `bearer-proxy login`, before or after the start",
            ),
        );
    }
    let hint = "write redirect_uri and state_file and run `bearer-proxy login`, or write the first \
        refresh token";
    let variables = "set BEARER_PROXY__TOKEN__REDIRECT_URI and BEARER_PROXY__TOKEN__STATE_FILE and \
        run `bearer-proxy login`, or set this to the first refresh token";
    r.missing(pos, KEY, problem(reason, hint).or_variable(variables));
}

/// An empty file was created to be mounted, and holds no token yet.
fn is_not_empty(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|metadata| metadata.len() > 0)
}

/// For `check`: what the start would refuse or warn of in the state file.
pub(in crate::config) fn inspect_state_file(r: &mut Reader, config: &token::Config) {
    const KEY: &str = "token.state_file";
    let pos = r.pos(KEY);
    match token::inspect_state_file(config) {
        Ok(warnings) => {
            for reason in warnings {
                r.warning(
                    pos.clone(),
                    KEY,
                    problem(reason, "give it mode 600, in a folder of mode 700"),
                );
            }
        }
        Err(error) => {
            let problem = problem(error.to_string(), "the proxy cannot rely on this file");
            r.mistake(pos, KEY, problem);
        }
    }
}

/// Checks that the file, or the nearest existing folder above it, is writable. Creates nothing.
fn check_state_file(r: &mut Reader, file: &Path) {
    let unusable = match fs::symlink_metadata(file) {
        Ok(metadata) if metadata.is_file() => folder_problem(file),
        Ok(_) => Some("is a folder, a link or a device, not a file".to_owned()),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            folder_problem(file)
        }
        Err(error) => Some(format!("cannot be read: {error}")),
    };
    if let Some(reason) = unusable {
        r.mistake(
            r.pos("token.state_file"),
            "token.state_file",
            problem(
                reason,
                "name a file in a folder that the proxy can write to",
            ),
        );
    }
}

fn folder_problem(file: &Path) -> Option<String> {
    let above = file.ancestors().skip(1).map(|folder| {
        if folder == Path::new("") {
            Path::new(".")
        } else {
            folder
        }
    });
    let (folder, metadata) = above
        .filter_map(|folder| Some((folder, fs::metadata(folder).ok()?)))
        .next()?;
    match metadata {
        metadata if !metadata.is_dir() => Some(format!("{} is not a folder", folder.display())),
        metadata if metadata.permissions().readonly() || !process::is_writable(folder) => Some(
            format!("the folder {} is read-only for this user", folder.display()),
        ),
        _ => None,
    }
}
