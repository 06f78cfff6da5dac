//! From what was written to what is meant: one function a section, and the checks that need several keys.

use std::{fs, io, num::NonZero, path::Path, thread};

use http::{HeaderValue, uri::Scheme};
use jsonwebtoken::Algorithm;
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{Error as PemError, PemObject},
};
use tracing::level_filters::LevelFilter;
use url::Url;

use super::{
    Config,
    findings::{Fault, Place, fault},
    raw::Value,
    reader::Reader,
    values,
};
use crate::{
    admin,
    base::{log, process, secret::Secret},
    net::{socket::Address, tls},
    proxy::{self, AccessLog, Exhausted, ForwardedHeaders, Guard, Listener, Retry},
    token::{
        self, BasicEncoding, Fields, IssuerConfig, Parameters, exchange,
        jwt::{self, User},
    },
    upstream::{self, Endpoint, Host},
};

/// Reads every key. `None` only after a mistake.
pub(super) fn config(r: &mut Reader) -> Option<Config> {
    let mut addresses = r.some_of("proxy.listen", values::address);
    for (address, place) in &mut addresses {
        r.anchor_socket(address, place);
    }
    refuse_strangers(r, &addresses);
    let proxy = proxy(r, &addresses);
    let upstream = upstream(r);
    let jwt = jwt_section(r);
    let token = token(r, &upstream);
    let first = first_tokens(r, &upstream, jwt);
    let guard = proxy.listeners.first().map(|listener| listener.guard.clone()).unwrap_or_default();
    let admin = admin(r, guard);
    refuse_overlaps(r, &addresses, admin.as_ref());
    let log = log(r);
    Some(Config { proxy, upstreams: vec![upstream], token: token?, first: first?, admin, log })
}

fn proxy(r: &mut Reader, addresses: &[(Address, Place)]) -> proxy::Config {
    let guard = Guard {
        allowed_hosts: r.list("proxy.allowed_hosts", values::host_name).into_iter().map(|(host, _)| host).collect(),
        allowed_origins: r
            .list("proxy.allowed_origins", values::web_origin)
            .into_iter()
            .map(|(origin, _)| origin)
            .collect(),
    };
    let listeners = addresses
        .iter()
        .map(|(address, _)| Listener { address: address.clone(), guard: guard.clone(), tls: None })
        .collect();
    let cores = || thread::available_parallelism().map_or(1, NonZero::get);
    proxy::Config {
        listeners,
        workers: r.count("proxy.workers", 1024).unwrap_or_else(cores),
        max_connections: r.count("proxy.max_connections", 10_000_000).unwrap_or_default(),
        forwarded_headers: r.choice(
            "proxy.forwarded_headers",
            [
                ("x-forwarded", ForwardedHeaders::XForwarded),
                ("forwarded", ForwardedHeaders::Forwarded),
                ("off", ForwardedHeaders::Off),
            ],
        ),
        first_byte_timeout: r.positive_duration("proxy.first_byte_timeout"),
        head_timeout: r.positive_duration("proxy.head_timeout"),
        body_idle_timeout: r.positive_duration("proxy.body_idle_timeout"),
        idle_timeout: r.positive_duration("proxy.idle_timeout"),
        tunnel_idle_timeout: r.positive_duration("proxy.tunnel_idle_timeout"),
        drain_delay: r.duration("proxy.drain_delay"),
        drain_timeout: r.duration("proxy.drain_timeout"),
        retry: retry(r),
        routes: Vec::new(),
        rewrites: Vec::new(),
        access_log: r
            .choice("log.access", [("off", AccessLog::Off), ("sampled", AccessLog::Sampled), ("all", AccessLog::All)]),
    }
}

/// Whoever reaches a data listener acts with the proxy's token.
fn refuse_strangers(r: &mut Reader, addresses: &[(Address, Place)]) {
    if r.read("proxy.allow_unauthenticated", values::boolean) != Some(false) {
        return;
    }
    for (address, place) in addresses.iter().filter(|(address, _)| !is_local(address)) {
        let reason =
            format!("{address} can be reached from other machines, and whoever reaches it acts with the proxy's token");
        let instead = "listen on 127.0.0.1, or write allow_unauthenticated = true in [proxy] if the network around \
                       it lets only the right clients through";
        r.missing(place.clone(), "proxy.listen", fault(reason, instead));
    }
}

fn refuse_overlaps(r: &mut Reader, addresses: &[(Address, Place)], admin: Option<&admin::Config>) {
    let admin = admin.map(|admin| ("admin.listen", &admin.listener.address, r.place("admin.listen")));
    let data = addresses.iter().map(|(address, place)| ("proxy.listen", address, place.clone()));
    for (index, (key, address, place)) in data.chain(admin).enumerate() {
        if let Some((earlier, _)) = addresses.iter().take(index).find(|(earlier, _)| overlap(earlier, address)) {
            let fault = fault(format!("{address} is taken already, by {earlier} in proxy.listen"), "use another port");
            r.mistake(place, key, fault);
        }
    }
}

fn overlap(a: &Address, b: &Address) -> bool {
    match (a, b) {
        (Address::Tcp(a), Address::Tcp(b)) => {
            let same_ip =
                a.ip() == b.ip() || a.is_ipv4() == b.is_ipv4() && (a.ip().is_unspecified() || b.ip().is_unspecified());
            // Port 0 is another port every time.
            a.port() == b.port() && a.port() != 0 && same_ip
        }
        (a, b) => a == b,
    }
}

fn is_local(address: &Address) -> bool {
    match address {
        Address::Tcp(address) => address.ip().to_canonical().is_loopback(),
        Address::Unix(_) => true,
    }
}

fn retry(r: &mut Reader) -> Retry {
    let mut statuses: Vec<_> =
        r.list("retry.statuses", values::error_status).into_iter().map(|(status, _)| status).collect();
    statuses.sort_unstable();
    statuses.dedup();
    let body_limit = r.read("retry.body_limit", values::size);
    let total_limit = r.read("retry.total_limit", values::size);
    if total_limit.zip(body_limit).is_some_and(|(total, body)| total < body) {
        let reason = "is smaller than retry.body_limit, so that no body could be kept up to that limit";
        r.missing(r.place("retry.total_limit"), "retry.total_limit", fault(reason, "write at least as much"));
    }
    Retry {
        statuses,
        json: None,
        any_method: r.boolean("retry.any_method"),
        body_limit: body_limit.unwrap_or_default(),
        total_limit: total_limit.unwrap_or_default(),
        exhausted: r.choice("retry.exhausted", [("relay", Exhausted::Relay), ("bad_gateway", Exhausted::BadGateway)]),
    }
}

fn upstream(r: &mut Reader) -> upstream::Config {
    let endpoints = r.some_of("upstream.endpoints", values::endpoint);
    let tls = tls(r, "upstream.tls");
    for (endpoint, place) in &endpoints {
        warn_if_clear(r, endpoint, place, "upstream.endpoints");
    }
    let endpoints: Vec<Endpoint> = endpoints.into_iter().map(|(endpoint, _)| endpoint).collect();
    let all_plain = endpoints.iter().all(|endpoint| endpoint.scheme == Scheme::HTTP);
    if tls != tls::Config::default() && all_plain && !endpoints.is_empty() {
        warn_of_unused_tls(r, "upstream.tls", "no endpoint begins with https://");
    }
    upstream::Config {
        name: "default".to_owned(),
        endpoints,
        host: r.read("upstream.host", host).unwrap_or(Host::Endpoint),
        connect_to: r.read("upstream.connect_to", values::socket_address),
        connect_timeout: r.positive_duration("upstream.connect_timeout"),
        response_timeout: r.positive_duration("upstream.response_timeout"),
        body_idle_timeout: r.positive_duration("upstream.body_idle_timeout"),
        idle_timeout: r.positive_duration("upstream.idle_timeout"),
        max_connections: r.count("upstream.max_connections", 10_000_000).unwrap_or_default(),
        http2: upstream::Http2::default(),
        tls,
    }
}

fn host(value: &Value) -> Result<Host, Fault> {
    match values::text(value)? {
        "endpoint" => Ok(Host::Endpoint),
        "client" => Ok(Host::Client),
        _ => values::host_header(value).map(Host::Fixed),
    }
}

fn warn_if_clear(r: &mut Reader, endpoint: &Endpoint, place: &Place, key: &str) {
    if endpoint.scheme == Scheme::HTTP && !values::is_local(&endpoint.host) {
        let reason = "is plain http to another machine: tokens and secrets can be read on the way";
        r.warning(place.clone(), key, fault(reason, "use https:// if the cloud offers it"));
    }
}

fn warn_of_unused_tls(r: &mut Reader, section: &str, reason: &str) {
    r.warning(
        r.place_of_section(section),
        section,
        fault(format!("has no effect: {reason}"), "remove it, or use https://"),
    );
}

fn tls(r: &mut Reader, section: &str) -> tls::Config {
    let key = |name: &str| format!("{section}.{name}");
    let cert_key = key("client_cert_file");
    let key_key = key("client_key_file");
    for (given, other) in [(&cert_key, &key_key), (&key_key, &cert_key)] {
        if r.is_given(given) && !r.is_given(other) {
            let instead = format!("give {other} as well");
            r.missing(r.place(given), given, fault("is one half of a pair", instead));
        }
    }
    tls::Config {
        ca_file: pem_file::<CertificateDer<'_>>(r, &key("ca_file"), "certificate"),
        client_cert_file: pem_file::<CertificateDer<'_>>(r, &cert_key, "certificate"),
        client_key_file: pem_file::<PrivateKeyDer<'_>>(r, &key_key, "private key"),
        server_name: r.read(&key("server_name"), values::server_name),
    }
}

/// A file that begins to make sense: whether its certificates are any good shows when they are used.
fn pem_file<T: PemObject>(r: &mut Reader, key: &str, what: &str) -> Option<std::path::PathBuf> {
    let file = r.path(key)?;
    let fault = match T::from_pem_file(&file) {
        Ok(_) => return Some(file),
        Err(PemError::Io(error)) => {
            fault(format!("cannot read {}: {error}", file.display()), "check the path and the permissions")
        }
        Err(_) => fault(
            format!("{} holds no {what} in PEM form", file.display()),
            format!("name a file with -----BEGIN … {}-----", what.to_uppercase()),
        ),
    };
    r.mistake(r.place(key), key, fault);
    None
}

fn token(r: &mut Reader, upstream: &upstream::Config) -> Option<token::Config> {
    let issuer = issuer(r, upstream);
    let state_file = r.path("token.state_file");
    let refresh_token = seed(r, state_file.as_deref());
    if let Some(file) = &state_file {
        check_state_file(r, file);
    }
    check_first_token(r, state_file.as_deref());
    let config = token::Config {
        name: "default".to_owned(),
        refresh_token,
        state_file,
        refresh_margin: r.read("token.refresh_margin", values::positive_duration),
        refresh_lifetime: r.positive_duration("token.refresh_lifetime"),
        grace_retry: r.boolean("token.grace_retry"),
        wait: r.duration("token.wait"),
        cooldown: r.positive_duration("retry.cooldown"),
        issuer: issuer?,
    };
    Some(config)
}

/// The configured refresh token. It is needed once: beside stored tokens, one whose file was taken away is no mistake.
fn seed(r: &mut Reader, state_file: Option<&Path>) -> Option<Secret> {
    const FILE: &str = "token.refresh_token_file";
    let is_gone = |r: &mut Reader| r.path(FILE).is_some_and(|file| !file.exists());
    if state_file.is_some_and(Path::is_file) && !r.is_given("token.refresh_token") && r.is_given(FILE) && is_gone(r) {
        let gone = fault("names a file that is not there; the stored tokens are used", "remove the key");
        r.warning(r.place(FILE), FILE, gone);
        return None;
    }
    r.secret("token.refresh_token")
}

fn issuer(r: &mut Reader, upstream: &upstream::Config) -> Option<IssuerConfig> {
    let own_tls = tls(r, "token.tls");
    let own = r.read("token.issuer", values::endpoint);
    if let Some(endpoint) = &own {
        warn_if_clear(r, endpoint, &r.place("token.issuer"), "token.issuer");
    }
    let tls_given = own_tls != tls::Config::default();
    let tls = if tls_given || r.is_given("token.issuer") { own_tls } else { upstream.tls.clone() };
    let endpoint = own.as_ref().or_else(|| upstream.endpoints.first().filter(|_| !r.is_given("token.issuer")));
    if tls_given && endpoint.is_some_and(|endpoint| endpoint.scheme == Scheme::HTTP) {
        warn_of_unused_tls(r, "token.tls", "the issuer's address does not begin with https://");
    }
    let path = r.read("token.refresh_path", values::url_path);
    let basic_encoding = r.choice("token.basic_encoding", [("raw", BasicEncoding::Raw), ("form", BasicEncoding::Form)]);
    let client_id = r.text("token.client_id");
    if basic_encoding == BasicEncoding::Raw && client_id.contains(':') {
        let instead = r#"if it is right, write basic_encoding = "form""#;
        r.missing(
            r.place("token.client_id"),
            "token.client_id",
            fault("holds a colon, which HTTP Basic cannot carry", instead),
        );
    }
    let client_secret = r.secret("token.client_secret");
    let parameters = r.choice("token.parameters", [("query", Parameters::Query), ("form", Parameters::Form)]);
    let timeout = r.positive_duration("token.timeout");
    let default_expires_in = r.positive_duration("token.default_expires_in");
    let fields = fields(r);
    Some(IssuerConfig {
        refresh_url: interface(endpoint?, &path?)?,
        client_id,
        client_secret: client_secret?,
        parameters,
        basic_encoding,
        fields,
        timeout,
        default_expires_in,
        tls,
    })
}

fn interface(issuer: &Endpoint, path: &str) -> Option<Url> {
    let mut url = Url::parse(&issuer.origin).ok()?;
    url.set_path(path);
    Some(url)
}

fn fields(r: &mut Reader) -> Fields {
    let mut field = |path| r.read(path, values::json_pointer).unwrap_or_default();
    Fields {
        access_token: field("token.fields.access_token"),
        refresh_token: field("token.fields.refresh_token"),
        expires_in: field("token.fields.expires_in"),
        refresh_expires_in: field("token.fields.refresh_expires_in"),
    }
}

/// What stands in `[token.jwt]`, before it is known where the cloud is.
struct Jwt {
    key: Secret,
    algorithm: Algorithm,
    user: Option<User>,
    claims: serde_json::Map<String, serde_json::Value>,
    names: jwt::Names,
}

/// `None` if there is no such section, and after a mistake.
fn jwt_section(r: &mut Reader) -> Option<Jwt> {
    const KEY: &str = "token.jwt.key";
    let names = names(r);
    if !r.has_section("token.jwt") {
        return None;
    }
    if !r.is_given(KEY) && !r.is_given("token.jwt.key_file") {
        let instead = "write the JWT key of the developer account, or name a file that holds it with key_file";
        r.missing(r.place_of_section("token.jwt"), KEY, fault("is missing", instead));
    }
    let key = r.key(KEY);
    let algorithm = match r.read("token.jwt.algorithm", values::algorithm) {
        None if r.is_given("token.jwt.algorithm") => None,
        algorithm => Some(algorithm.unwrap_or_default()),
    };
    if let Some((key, algorithm)) = key.as_ref().zip(algorithm)
        && jwt::check_key(algorithm, key).is_err()
    {
        let reason = format!("is no private key in PEM form that fits {algorithm:?}");
        let instead = "write the key that the cloud's administrator gave you, or the algorithm that it is meant for";
        r.mistake(r.place_of_secret(KEY), KEY, fault(reason, instead));
    }
    let user = user(r);
    let claims = r.read("token.jwt.claims", values::claims).unwrap_or_default();
    Some(Jwt { key: key?, algorithm: algorithm?, user, claims, names })
}

fn names(r: &mut Reader) -> jwt::Names {
    let mut name = |path| r.read(path, values::parameter_name).unwrap_or_default();
    jwt::Names {
        client_id: name("token.jwt.names.client_id"),
        jwt_token: name("token.jwt.names.jwt_token"),
        email: name("token.jwt.names.email"),
        phone: name("token.jwt.names.phone"),
        babel_id: name("token.jwt.names.babel_id"),
        code: name("token.jwt.names.code"),
    }
}

/// As whom to act, named in at most one way.
fn user(r: &mut Reader) -> Option<User> {
    let mut name = |path| r.read(path, |value| values::text(value).map(str::to_owned)).map(|name| (path, name));
    let [email, phone, babel_id] = ["token.jwt.email", "token.jwt.phone", "token.jwt.babel_id"].map(&mut name);
    let given: Vec<&str> = [&email, &phone, &babel_id].into_iter().flatten().map(|(path, _)| *path).collect();
    for pair in given.windows(2) {
        let reason = format!("names a user, and so does {}", pair[0]);
        r.mistake(r.place(pair[1]), pair[1], fault(reason, "keep one of email, phone and babel_id"));
    }
    let email = email.map(|(_, name)| User::Email(name));
    let phone = phone.map(|(_, name)| User::Phone(name));
    email.or(phone).or(babel_id.map(|(_, name)| User::BabelId(name)))
}

fn first_tokens(r: &mut Reader, upstream: &upstream::Config, jwt: Option<Jwt>) -> Option<token::FirstConfig> {
    let code_fields = r.list("token.fields.code", values::json_pointer).into_iter().map(|(field, _)| field).collect();
    let redirect_uri = r.read("token.redirect_uri", values::redirect_uri);
    let paths = ["token.authorize_path", "token.token_path", "token.jwt_path"];
    let [authorize, token, by_jwt] = paths.map(|path| r.read(path, values::url_path));
    // A mistake in it is told where the issuer is read.
    let own = r.value_of("token.issuer").and_then(|value| values::endpoint(value).ok());
    let endpoint = own.as_ref().or_else(|| upstream.endpoints.first())?;
    let url = |path: Option<String>| interface(endpoint, &path?);
    let exchange = exchange::Config { authorize_url: url(authorize)?, token_url: url(token)?, redirect_uri };
    let url = url(by_jwt)?;
    let jwt = jwt.map(|Jwt { key, algorithm, user, claims, names }| jwt::Config {
        url,
        key,
        algorithm,
        user,
        claims,
        names,
        code_fields,
    });
    Some(token::FirstConfig { exchange, jwt })
}

/// Without first tokens nothing ever works; without a state file, a rotated refresh token is lost.
fn check_first_token(r: &mut Reader, state_file: Option<&Path>) {
    const KEY: &str = "token.refresh_token";
    let configured = r.is_given(KEY) || r.is_given("token.refresh_token_file");
    let has_state_file = r.is_given("token.state_file");
    if configured && !has_state_file {
        let reason = "is not set: a refresh token that the cloud replaces is lost with the next restart";
        let place = r.place("token.state_file");
        r.warning(place, "token.state_file", fault(reason, r#"write state_file = "state/token.json""#));
    }
    // After a mistake in the path nothing is known of the file.
    let is_stored = has_state_file && state_file.is_none_or(Path::exists);
    if configured || is_stored || r.has_section("token.jwt") {
        return;
    }
    let reason = if has_state_file { "is missing, and token.state_file does not exist yet" } else { "is missing" };
    let place = r.place(KEY);
    if has_state_file && r.is_given("token.redirect_uri") {
        return r.warning(place, KEY, fault(reason, "run `bearer-proxy login`, before or after the start"));
    }
    let instead = "write redirect_uri and state_file and run `bearer-proxy login`, or write the first refresh token";
    r.missing(place, KEY, fault(reason, instead));
}

/// The file, or the nearest folder above it that exists, must be one that can be written to. Creates nothing.
fn check_state_file(r: &mut Reader, file: &Path) {
    let unusable = match fs::symlink_metadata(file) {
        Ok(metadata) if metadata.is_file() => folder_fault(file),
        Ok(_) => Some("is a folder, a link or a device, not a file".to_owned()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            folder_fault(file)
        }
        Err(error) => Some(format!("cannot be read: {error}")),
    };
    if let Some(reason) = unusable {
        r.mistake(
            r.place("token.state_file"),
            "token.state_file",
            fault(reason, "name a file in a folder that the proxy may write to"),
        );
    }
}

fn folder_fault(file: &Path) -> Option<String> {
    let above = file.ancestors().skip(1).map(|folder| if folder == Path::new("") { Path::new(".") } else { folder });
    let (folder, metadata) = above.filter_map(|folder| Some((folder, fs::metadata(folder).ok()?))).next()?;
    match metadata {
        metadata if !metadata.is_dir() => Some(format!("{} is not a folder", folder.display())),
        metadata if metadata.permissions().readonly() || !process::may_write(folder) => {
            Some(format!("the folder {} is read-only for this user", folder.display()))
        }
        _ => None,
    }
}

/// The admin endpoint, if there is one, with the guard's exceptions of the data listeners.
pub(super) fn admin(r: &mut Reader, guard: Guard) -> Option<admin::Config> {
    let token = r.secret("admin.token");
    if token
        .as_ref()
        .is_some_and(|token| HeaderValue::from_str(token.expose()).is_err() || token.expose().contains(' '))
    {
        let fault = fault("cannot stand in an HTTP header", "use letters, digits and punctuation without spaces");
        r.mistake(r.place_of_secret("admin.token"), "admin.token", fault);
    }
    let Some(mut address) = r.read("admin.listen", values::address) else {
        if token.is_some() && !r.is_given("admin.listen") {
            let fault = fault("has no effect without admin.listen", r#"write listen = "127.0.0.1:9180" in [admin]"#);
            r.warning(r.place_of_secret("admin.token"), "admin.token", fault);
        }
        return None;
    };
    let place = r.place("admin.listen");
    r.anchor_socket(&mut address, &place);
    if !is_local(&address) && token.is_none() {
        let reason = "can be reached from other machines: without admin.token only /healthz, /readyz and /metrics are served there";
        r.warning(place, "admin.listen", fault(reason, "set admin.token or admin.token_file if more is needed"));
    }
    Some(admin::Config { listener: Listener { address, guard, tls: None }, token })
}

fn log(r: &mut Reader) -> log::Config {
    log::Config {
        level: r.choice(
            "log.level",
            [
                ("trace", LevelFilter::TRACE),
                ("debug", LevelFilter::DEBUG),
                ("info", LevelFilter::INFO),
                ("warn", LevelFilter::WARN),
                ("error", LevelFilter::ERROR),
                ("off", LevelFilter::OFF),
            ],
        ),
        format: r.choice(
            "log.format",
            [("auto", log::Format::Auto), ("text", log::Format::Text), ("json", log::Format::Json)],
        ),
    }
}
