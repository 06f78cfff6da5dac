//! A credential that needs no issuer, for what only reads the token.

use std::time::Duration;

use bearer_proxy::{
    base::{clock, secret::Secret},
    net::tls,
    token::{BasicEncoding, Config, IssuerConfig, ParameterLocation, ResponseFields},
};

/// A credential with a usable token, as a restart finds it.
pub(crate) fn config(folder: &std::path::Path) -> Config {
    let state_file = folder.join("token.json");
    let now = clock::system()
        .wall()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970")
        .as_millis();
    let state = format!(
        r#"{{"format": 1, "access_token": "abc", "refresh_token": "r", "lifetime_ms": 3600000, "obtained_at_ms": {now}}}"#
    );
    std::fs::write(&state_file, state).expect("written");
    #[cfg(unix)]
    std::fs::set_permissions(
        &state_file,
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .expect("changed");
    Config {
        name: "default".to_owned(),
        issuer: IssuerConfig {
            origins: vec!["http://127.0.0.1:1".parse().expect("a URL")],
            refresh_path: "/".to_owned(),
            client_id: "id".to_owned(),
            client_secret: Secret::new("secret"),
            parameters: ParameterLocation::Query,
            basic_encoding: BasicEncoding::Raw,
            fields: ResponseFields::default(),
            timeout: Duration::from_secs(10),
            default_expires_in: Duration::from_secs(300),
            tls: tls::Config::default(),
            proxy: None,
        },
        refresh_token: None,
        store: None,
        state_file: Some(state_file),
        refresh_margin: None,
        refresh_lifetime: Duration::from_secs(30 * 24 * 3600),
        grace_retry: true,
        grace_period: Duration::from_secs(5),
        rotates: true,
        checks_state_file_permissions: true,
        wait: Duration::from_secs(10),
        cooldown: Duration::from_secs(10),
    }
}
