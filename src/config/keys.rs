//! The table of all keys. It drives the reading of files and of the environment, the search for
//! unknown keys, and the comparison with the shipped `proxy.toml`.

use std::borrow::Cow;

use Kind::{Bool, File, Integer, Integers, Secret, Table, Text, Texts, Words};

/// One key of the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Section and name: `proxy.listen`, `upstream.tls.ca_file`. Keys of `upstream` also exist in
    /// `upstreams.NAME`.
    pub path: &'static str,
    /// The type of the value.
    pub kind: Kind,
    /// What applies when the key is absent.
    pub presence: Presence,
}

/// The type of a key's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text: also durations, sizes, addresses, and one of several words.
    Text,
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Integer,
    /// A list of texts; comma-separated in the environment.
    Texts,
    /// A list of whole numbers; comma-separated in the environment.
    Integers,
    /// A list of texts and whole numbers; comma-separated in the environment.
    Words,
    /// A path, relative to the configuration file's folder.
    File,
    /// A table with values of any type; in the environment in TOML, `{ name = "value" }`.
    Table,
    /// Text that is never printed. Its twin `…_file` names a file with the text.
    Secret,
}

/// What applies when a key is absent. The texts are TOML, and the same as in the shipped
/// `proxy.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// The key must be given.
    Required {
        /// The value in the shipped file: a usable one, or a placeholder in angle brackets.
        shown: &'static str,
        /// What to write, for the message that the key is missing.
        hint: &'static str,
    },
    /// The key has this value.
    Default(&'static str),
    /// The key has no value, or one that depends on other keys or on the machine. The text is an
    /// example.
    Optional(&'static str),
}

impl Key {
    /// The section: `proxy`, `upstream.tls`.
    pub fn section(&self) -> &'static str {
        self.path
            .rsplit_once('.')
            .map_or("", |(section, _)| section)
    }

    /// The name within the section.
    pub fn name(&self) -> &'static str {
        self.path
            .rsplit_once('.')
            .map_or(self.path, |(_, name)| name)
    }

    /// Whether the key belongs to an array of tables, as `[[route]]`. Environment variables cannot
    /// set such keys.
    pub fn is_in_array(&self) -> bool {
        ARRAYS.iter().any(|list| is_within(self.path, list))
    }

    /// The environment variable that sets this key, unless it [is in an array](Self::is_in_array).
    pub fn variable(&self) -> String {
        variable(self.path)
    }

    /// The value that the shipped file shows, as TOML.
    pub fn shown(&self) -> &'static str {
        match self.presence {
            Presence::Required { shown, .. } => shown,
            Presence::Default(text) | Presence::Optional(text) => text,
        }
    }

    /// The other key of the same secret: `client_secret` and `client_secret_file` are twins.
    pub fn twin(&self) -> Option<&'static Self> {
        KEYS.iter().find(|other| {
            other.kind == Secret && self.path.strip_suffix("_file") == Some(other.path)
                || self.kind == Secret && other.path.strip_suffix("_file") == Some(self.path)
        })
    }
}

/// Every key, in the order of the shipped file.
pub fn keys() -> &'static [Key] {
    KEYS
}

/// The prefix of environment variables that set keys.
pub(super) const PREFIX: &str = "BEARER_PROXY__";

/// The arrays of tables: sections with double square brackets, of which there may be several.
pub(super) const ARRAYS: [&str; 4] = ["listener", "route", "rewrite", "client"];

/// Further upstreams by name. Each has the keys of [`UPSTREAM`].
pub(super) const UPSTREAMS: &str = "upstreams";
pub(super) const UPSTREAM: &str = "upstream";

/// The name of the upstream of [`UPSTREAM`].
pub(super) const DEFAULT: &str = "default";

/// The key at `upstream.host`, `upstreams.NAME.host` or `route[3].host`.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    let path = table_path(path);
    KEYS.iter().find(|key| key.path == path)
}

/// The path of the same secret's other key, in the same section.
pub(super) fn twin(path: &str) -> Option<String> {
    let twin = find(path)?.twin()?;
    let (section, _) = path.rsplit_once('.')?;
    Some(format!("{section}.{}", twin.name()))
}

/// Whether this is the path of a section.
pub(super) fn is_section(path: &str) -> bool {
    let path = table_path(path);
    KEYS.iter().any(|key| is_within(key.path, &path))
}

/// The paths of the keys in a section, which may be `upstreams.NAME` or `route[3]`; without its
/// subsections.
pub(super) fn keys_in(section: &str) -> impl Iterator<Item = String> {
    let table_path = table_path(section).into_owned();
    KEYS.iter()
        .filter(move |key| key.section() == table_path)
        .map(move |key| format!("{section}.{}", key.name()))
}

/// The paths of all keys of a section and of its subsections.
pub(super) fn below(section: &str) -> impl Iterator<Item = (String, &'static Key)> {
    let table_path = table_path(section).into_owned();
    KEYS.iter().filter_map(move |key| {
        let rest = key
            .path
            .strip_prefix(table_path.as_str())
            .filter(|rest| rest.starts_with('.'))?;
        Some((format!("{section}{rest}"), key))
    })
}

/// The path in the table of keys.
pub(super) fn table_path(path: &str) -> Cow<'_, str> {
    match path
        .strip_prefix(UPSTREAMS)
        .and_then(|rest| rest.strip_prefix('.'))
    {
        Some(named) => match named.split_once('.') {
            Some((_, rest)) => Cow::Owned(format!("{UPSTREAM}.{rest}")),
            None => Cow::Borrowed(UPSTREAM),
        },
        None => without_index(path),
    }
}

/// A path for messages, without the index: the position in the file tells the tables apart.
pub(super) fn without_index(path: &str) -> Cow<'_, str> {
    match split_index(path) {
        Some((list, _, rest)) => Cow::Owned(format!("{list}{rest}")),
        None => Cow::Borrowed(path),
    }
}

/// Splits `route[3].host` into `route`, 3 and `.host`.
pub(super) fn split_index(path: &str) -> Option<(&'static str, usize, &str)> {
    let (name, rest) = path.split_once('[')?;
    let (index, rest) = rest.split_once(']')?;
    let list = ARRAYS.into_iter().find(|list| *list == name)?;
    Some((list, index.parse().ok()?, rest))
}

/// The header line of a section.
pub(super) fn header(section: &str) -> String {
    if ARRAYS.contains(&section) {
        format!("[[{section}]]")
    } else {
        format!("[{section}]")
    }
}

pub(super) fn is_within(path: &str, section: &str) -> bool {
    path.strip_prefix(section)
        .is_some_and(|rest| rest.starts_with('.'))
}

pub(super) fn variable(path: &str) -> String {
    format!(
        "{PREFIX}{}",
        path.to_ascii_uppercase()
            .replace('.', "__")
            .replace('-', "_")
    )
}

const fn required(path: &'static str, kind: Kind, shown: &'static str, hint: &'static str) -> Key {
    Key {
        path,
        kind,
        presence: Presence::Required { shown, hint },
    }
}

const fn default(path: &'static str, kind: Kind, value: &'static str) -> Key {
    Key {
        path,
        kind,
        presence: Presence::Default(value),
    }
}

const fn optional(path: &'static str, kind: Kind, example: &'static str) -> Key {
    Key {
        path,
        kind,
        presence: Presence::Optional(example),
    }
}

const KEYS: &[Key] = &[
    required(
        "proxy.listen",
        Texts,
        r#"["127.0.0.1:8080"]"#,
        r#"write listen = ["127.0.0.1:8080"] in [proxy]"#,
    ),
    optional("proxy.workers", Integer, "2"),
    default("proxy.max_connections", Integer, "10000"),
    default("proxy.max_connections_per_address", Integer, "1024"),
    default("proxy.max_requests", Integer, "4096"),
    default("proxy.max_head_size", Text, r#""64KiB""#),
    default("proxy.max_uri_length", Text, r#""8KiB""#),
    default("proxy.max_headers", Integer, "100"),
    default("proxy.max_streams", Integer, "128"),
    default("proxy.max_resets", Integer, "200"),
    default("proxy.max_control_frames", Integer, "1000"),
    default("proxy.forwarded_headers", Text, r#""x-forwarded""#),
    default("proxy.trusted_networks", Texts, "[]"),
    default("proxy.proxy_protocol", Bool, "false"),
    default("proxy.allowed_hosts", Texts, "[]"),
    default("proxy.allowed_origins", Texts, "[]"),
    default("proxy.allow_navigation", Bool, "false"),
    default("proxy.allow_unauthenticated", Bool, "false"),
    optional("proxy.required_header", Text, r#""x-bearer-proxy""#),
    default("proxy.first_byte_timeout", Text, r#""10s""#),
    default("proxy.head_timeout", Text, r#""10s""#),
    default("proxy.body_idle_timeout", Text, r#""60s""#),
    default("proxy.min_body_rate", Text, r#""240B""#),
    default("proxy.idle_timeout", Text, r#""75s""#),
    default("proxy.half_closed_timeout", Text, r#""30s""#),
    default("proxy.tunnel_idle_timeout", Text, r#""1h""#),
    default("proxy.drain_delay", Text, r#""0s""#),
    default("proxy.drain_timeout", Text, r#""30s""#),
    required(
        "listener.address",
        Text,
        r#""0.0.0.0:8443""#,
        r#"write where to listen, as in address = "127.0.0.1:8080""#,
    ),
    optional(
        "listener.tls.cert_file",
        File,
        r#""certificates/proxy.pem""#,
    ),
    optional("listener.tls.key_file", File, r#""certificates/proxy.key""#),
    optional(
        "listener.tls.client_ca_file",
        File,
        r#""certificates/apps.pem""#,
    ),
    optional("listener.tls.min_version", Text, r#""1.3""#),
    optional("listener.proxy_protocol", Bool, "true"),
    optional("listener.allowed_hosts", Texts, r#"["files.example.com"]"#),
    optional(
        "listener.allowed_origins",
        Texts,
        r#"["https://app.example.com"]"#,
    ),
    optional("listener.allow_navigation", Bool, "true"),
    optional("listener.allow_unauthenticated", Bool, "true"),
    required(
        "upstream.endpoints",
        Texts,
        r#"["<https://your-cloud>"]"#,
        r#"write the cloud's address in [upstream], as in endpoints = ["https://cloud.example.com"]"#,
    ),
    optional("upstream.weights", Integers, "[3, 1]"),
    default("upstream.affinity", Text, r#""none""#),
    default("upstream.host", Text, r#""endpoint""#),
    optional("upstream.connect_to", Text, r#""192.0.2.10:443""#),
    default("upstream.dns_refresh", Text, r#""10s""#),
    optional("upstream.proxy", Text, r#""http://proxy.example.com:3128""#),
    optional("upstream.proxy_user", Text, r#""bearer-proxy""#),
    optional("upstream.proxy_password", Secret, r#""<proxy password>""#),
    optional(
        "upstream.proxy_password_file",
        File,
        r#""/run/secrets/proxy_password""#,
    ),
    default("upstream.connect_timeout", Text, r#""5s""#),
    default("upstream.handshake_timeout", Text, r#""10s""#),
    default("upstream.response_timeout", Text, r#""60s""#),
    default("upstream.body_idle_timeout", Text, r#""60s""#),
    default("upstream.idle_timeout", Text, r#""90s""#),
    default("upstream.max_connections", Integer, "4096"),
    default("upstream.max_requests", Integer, "1000000"),
    default("upstream.queue", Integer, "100"),
    default("upstream.queue_timeout", Text, r#""1s""#),
    default("upstream.retry_statuses", Integers, "[502, 503, 504]"),
    default("upstream.slow_start", Text, r#""10s""#),
    default("upstream.max_head_size", Text, r#""64KiB""#),
    default("upstream.http2", Text, r#""auto""#),
    optional("upstream.cookies", Text, r#""drop""#),
    optional("upstream.health.path", Text, r#""/healthz""#),
    optional("upstream.health.interval", Text, r#""5s""#),
    optional("upstream.health.timeout", Text, r#""2s""#),
    optional("upstream.health.fall", Integer, "3"),
    optional("upstream.health.rise", Integer, "2"),
    optional("upstream.health.expect", Words, r#"[200, "3xx"]"#),
    optional("upstream.tls.ca_file", File, r#""certificates/ca.pem""#),
    optional(
        "upstream.tls.client_cert_file",
        File,
        r#""certificates/client.pem""#,
    ),
    optional(
        "upstream.tls.client_key_file",
        File,
        r#""certificates/client.key""#,
    ),
    optional("upstream.tls.server_name", Text, r#""cloud.example.com""#),
    default("upstream.tls.min_version", Text, r#""1.2""#),
    optional("route.prefix", Text, r#""/_document""#),
    optional("route.host", Text, r#""files.example.com""#),
    optional("route.upstream", Text, r#""documents""#),
    optional("route.strip_prefix", Bool, "true"),
    optional("route.inject", Bool, "false"),
    optional("route.allow", Texts, r#"["/api"]"#),
    optional("route.deny", Texts, r#"["/api/admin", "DELETE /"]"#),
    optional("route.response_timeout", Text, r#""5m""#),
    optional("route.body_idle_timeout", Text, r#""2m""#),
    required(
        "rewrite.from",
        Text,
        r#""http://document.example.com""#,
        r#"write the address in the cloud's responses, as in from = "http://document.example.com""#,
    ),
    required(
        "rewrite.to",
        Text,
        r#""/_document""#,
        r#"write the prefix of the route that leads there, as in to = "/_document""#,
    ),
    required(
        "client.name",
        Text,
        r#""backup""#,
        r#"write its name for log and metrics, as in name = "backup""#,
    ),
    optional("client.key", Secret, r#""<key>""#),
    optional("client.key_file", File, r#""/run/secrets/backup_key""#),
    optional("client.header", Text, r#""x-api-key""#),
    optional("client.basic", Text, r#""backup""#),
    optional("client.tls_subject", Text, r#""backup.example.com""#),
    optional("client.networks", Texts, r#"["192.0.2.0/24"]"#),
    optional("client.allow", Texts, r#"["/api/file"]"#),
    optional("client.deny", Texts, r#"["DELETE /"]"#),
    optional("client.rate", Text, r#""100/s""#),
    optional("client.concurrency", Integer, "10"),
    required(
        "token.client_id",
        Text,
        r#""<client id>""#,
        "write the client id from the cloud's administrator in [token]",
    ),
    required(
        "token.client_secret",
        Secret,
        r#""<client secret>""#,
        "write the secret in [token], or set client_secret_file to a file with the secret",
    ),
    optional(
        "token.client_secret_file",
        File,
        r#""/run/secrets/client_secret""#,
    ),
    optional(
        "token.redirect_uri",
        Text,
        r#""<http://127.0.0.1:8765/callback>""#,
    ),
    optional("token.state_file", File, r#""state/token.json""#),
    default("token.state_file_permissions", Text, r#""check""#),
    optional("token.refresh_token", Secret, r#""<refresh token>""#),
    optional(
        "token.refresh_token_file",
        File,
        r#""/run/secrets/refresh_token""#,
    ),
    optional(
        "token.issuer",
        Texts,
        r#"["https://cloud.example.com", "https://cloud2.example.com"]"#,
    ),
    optional("token.proxy", Text, r#""http://proxy.example.com:3128""#),
    optional("token.proxy_user", Text, r#""bearer-proxy""#),
    optional("token.proxy_password", Secret, r#""<proxy password>""#),
    optional(
        "token.proxy_password_file",
        File,
        r#""/run/secrets/proxy_password""#,
    ),
    optional("token.tls.ca_file", File, r#""certificates/ca.pem""#),
    optional(
        "token.tls.client_cert_file",
        File,
        r#""certificates/client.pem""#,
    ),
    optional(
        "token.tls.client_key_file",
        File,
        r#""certificates/client.key""#,
    ),
    optional("token.tls.server_name", Text, r#""cloud.example.com""#),
    optional("token.tls.min_version", Text, r#""1.3""#),
    default("token.refresh_path", Text, r#""/api/refreshToken.do""#),
    default("token.authorize_path", Text, r#""/api/authorize.do""#),
    default("token.token_path", Text, r#""/api/token.do""#),
    default("token.jwt_path", Text, r#""/api/authorizeByJWT.do""#),
    default("token.parameters", Text, r#""query""#),
    default("token.basic_encoding", Text, r#""raw""#),
    default("token.fields.access_token", Text, r#""/access_token""#),
    default("token.fields.refresh_token", Text, r#""/refresh_token""#),
    default("token.fields.expires_in", Text, r#""/expires_in""#),
    default(
        "token.fields.refresh_expires_in",
        Text,
        r#""/refresh_expires_in""#,
    ),
    default(
        "token.fields.code",
        Texts,
        r#"["/data/code", "/result/code", "/code"]"#,
    ),
    optional("token.refresh_margin", Text, r#""5m""#),
    default("token.refresh_lifetime", Text, r#""30d""#),
    default("token.grace_retry", Bool, "true"),
    default("token.grace_period", Text, r#""5s""#),
    default("token.rotation", Text, r#""rotate""#),
    default("token.wait", Text, r#""10s""#),
    default("token.timeout", Text, r#""10s""#),
    default("token.default_expires_in", Text, r#""300s""#),
    optional("token.jwt.key", Secret, r#""<JWT key>""#),
    optional("token.jwt.key_file", File, r#""/run/secrets/jwt_key""#),
    optional("token.jwt.algorithm", Text, r#""HS256""#),
    optional("token.jwt.email", Text, r#""user@example.com""#),
    optional("token.jwt.phone", Text, r#""13800000000""#),
    optional("token.jwt.babel_id", Text, r#""1001""#),
    optional("token.jwt.claims", Table, r#"{ scope = "files" }"#),
    default("token.jwt.names.client_id", Text, r#""client_id""#),
    default("token.jwt.names.jwt_token", Text, r#""jwt_token""#),
    default("token.jwt.names.email", Text, r#""email""#),
    default("token.jwt.names.phone", Text, r#""phone""#),
    default("token.jwt.names.babel_id", Text, r#""babelId""#),
    default("token.jwt.names.code", Text, r#""code""#),
    optional("token.store.kind", Text, r#""redis""#),
    optional(
        "token.store.url",
        Texts,
        r#""rediss://redis.example.com:6379""#,
    ),
    optional("token.store.user", Text, r#""bearer-proxy""#),
    optional("token.store.password", Secret, r#""<store password>""#),
    optional(
        "token.store.password_file",
        File,
        r#""/run/secrets/store_password""#,
    ),
    optional("token.store.sentinel", Text, r#""mymaster""#),
    optional(
        "token.store.sentinel_password",
        Secret,
        r#""<sentinel password>""#,
    ),
    optional(
        "token.store.sentinel_password_file",
        File,
        r#""/run/secrets/sentinel_password""#,
    ),
    optional("token.store.tls.ca_file", File, r#""certificates/ca.pem""#),
    optional(
        "token.store.tls.client_cert_file",
        File,
        r#""certificates/client.pem""#,
    ),
    optional(
        "token.store.tls.client_key_file",
        File,
        r#""certificates/client.key""#,
    ),
    optional(
        "token.store.tls.server_name",
        Text,
        r#""redis.example.com""#,
    ),
    optional("token.store.tls.min_version", Text, r#""1.3""#),
    optional("token.store.key", Secret, r#""<encryption keys>""#),
    optional("token.store.key_file", File, r#""/run/secrets/store_key""#),
    optional("token.store.key_prefix", Text, r#""bearer-proxy""#),
    optional("token.store.on_store_failure", Text, r#""wait""#),
    default("retry.statuses", Integers, "[401]"),
    optional("retry.json.pointer", Text, r#""/code""#),
    optional("retry.json.values", Words, "[401]"),
    default("retry.any_method", Bool, "false"),
    default("retry.body_limit", Text, r#""1MiB""#),
    default("retry.total_limit", Text, r#""64MiB""#),
    default("retry.cooldown", Text, r#""10s""#),
    optional("retry.exhausted", Text, r#""bad_gateway""#),
    optional("admin.listen", Text, r#""127.0.0.1:9180""#),
    optional("admin.token", Secret, r#""<admin token>""#),
    optional("admin.token_file", File, r#""/run/secrets/admin_token""#),
    default("log.level", Text, r#""info""#),
    default("log.format", Text, r#""auto""#),
    default("log.access", Text, r#""off""#),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_secret_and_only_they_have_a_twin() {
        for key in keys() {
            let has_twin = key.twin().is_some();
            let is_secret = key.kind == Secret;
            let is_file_of_secret = key.path.strip_suffix("_file").and_then(find).is_some();
            assert_eq!(has_twin, is_secret || is_file_of_secret, "{}", key.path);
        }
        assert_eq!(
            find("token.client_secret")
                .and_then(Key::twin)
                .map(|key| key.path),
            Some("token.client_secret_file")
        );
        assert_eq!(
            find("token.client_secret_file")
                .and_then(Key::twin)
                .map(|key| key.path),
            Some("token.client_secret")
        );
    }

    #[test]
    fn paths_and_variables_are_unique() {
        let paths: std::collections::BTreeSet<_> = keys().iter().map(|key| key.path).collect();
        let variables: std::collections::BTreeSet<_> = keys().iter().map(Key::variable).collect();
        assert_eq!((paths.len(), variables.len()), (keys().len(), keys().len()));
        assert_eq!(
            variable("upstream.tls.ca_file"),
            "BEARER_PROXY__UPSTREAM__TLS__CA_FILE"
        );
        assert_eq!(
            variable("upstreams.my-docs.host"),
            "BEARER_PROXY__UPSTREAMS__MY_DOCS__HOST"
        );
    }

    #[test]
    fn keys_of_lists_and_of_named_upstreams_are_found() {
        let path = |path: &str| find(path).map(|key| key.path);
        assert_eq!(
            path("upstreams.docs.tls.ca_file"),
            Some("upstream.tls.ca_file")
        );
        assert_eq!(
            path("listener[12].tls.cert_file"),
            Some("listener.tls.cert_file")
        );
        assert_eq!(
            (
                path("upstreams.docs"),
                path("upstreams.host"),
                path("route[x].host")
            ),
            (None, None, None)
        );
        assert!(
            is_section("upstreams.docs")
                && is_section("upstreams.docs.tls")
                && is_section("route[0]")
        );
        assert!(!is_section("upstreams.docs.host") && !is_section("token[0]"));
        assert_eq!(
            (
                without_index("route[3].host"),
                without_index("token[3].host")
            ),
            ("route.host".into(), "token[3].host".into())
        );
        assert_eq!(
            keys_in("rewrite[1]").collect::<Vec<_>>(),
            ["rewrite[1].from", "rewrite[1].to"]
        );
    }
}
