//! A credential's configuration for the tests of this module.

use std::time::Duration;

use super::{BasicEncoding, Config, IssuerConfig, ParameterLocation, ResponseFields};
use crate::base::secret::Secret;

pub(super) fn config(refresh_token: Option<Secret>) -> Config {
    Config {
        name: "default".to_owned(),
        issuer: IssuerConfig {
            origins: vec!["http://127.0.0.1:1".parse().expect("a URL")],
            refresh_path: "/".to_owned(),
            client_id: "id".to_owned(),
            client_secret: Secret::new("client secret"),
            parameters: ParameterLocation::Query,
            basic_encoding: BasicEncoding::Raw,
            fields: ResponseFields::default(),
            timeout: Duration::from_secs(10),
            default_expires_in: Duration::from_secs(300),
            tls: crate::net::tls::Config::default(),
            proxy: None,
        },
        refresh_token,
        store: None,
        state_file: None,
        checks_state_file_permissions: true,
        refresh_margin: None,
        refresh_lifetime: Duration::from_secs(30 * 24 * 3600),
        grace_retry: true,
        grace_period: Duration::from_secs(5),
        rotates: true,
        wait: Duration::from_secs(10),
        cooldown: Duration::from_secs(10),
    }
}
