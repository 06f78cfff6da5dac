//! Reading the token allocates nothing. A binary of its own, since it counts every allocation.

use std::{hint::black_box, time::Duration};

use bearer_proxy::{
    base::{clock, secret::Secret},
    net::tls,
    token::{BasicEncoding, Config, Fields, IssuerConfig, Parameters, Refresher},
};

/// A credential with a usable token, as a restart finds it.
fn config(folder: &std::path::Path) -> Config {
    let state_file = folder.join("token.json");
    let now = clock::system().wall().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis();
    let state = format!(
        r#"{{"format": 1, "access_token": "abc", "refresh_token": "r", "lifetime_ms": 3600000, "obtained_at_ms": {now}}}"#
    );
    std::fs::write(&state_file, state).expect("written");
    #[cfg(unix)]
    std::fs::set_permissions(&state_file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("changed");
    let field = |name: &str| format!("/{name}");
    Config {
        name: "default".to_owned(),
        issuer: IssuerConfig {
            refresh_url: "http://127.0.0.1:1/".parse().expect("a URL"),
            client_id: "id".to_owned(),
            client_secret: Secret::new("secret"),
            parameters: Parameters::Query,
            basic_encoding: BasicEncoding::Raw,
            fields: Fields {
                access_token: field("access_token"),
                refresh_token: field("refresh_token"),
                expires_in: field("expires_in"),
                refresh_expires_in: field("refresh_expires_in"),
            },
            timeout: Duration::from_secs(10),
            default_expires_in: Duration::from_secs(300),
            tls: tls::Config::default(),
        },
        refresh_token: None,
        state_file: Some(state_file),
        refresh_margin: None,
        wait: Duration::from_secs(10),
        cooldown: Duration::from_secs(10),
    }
}

#[test]
fn reading_the_token_allocates_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_refresher, credential) = Refresher::new(config(folder.path()), clock::system()).expect("built");
    let mut reads = 0_u32;
    let mut read = || {
        let token = credential.token();
        let token = token.as_ref().expect("a token");
        assert!(token.usable(credential.clock().now()));
        black_box(token.header());
        token.accepted();
        black_box(credential.rejected(token.version()));
        reads += 1;
    };
    // A thread's first read registers it with the cell, once.
    read();
    let allocations = allocation_counter::measure(|| (0..1000).for_each(|_| read()));
    assert_eq!(allocations.count_total, 0);
    assert_eq!(reads, 1001);
    // The counter counts.
    assert!(allocation_counter::measure(|| drop(black_box(Box::new(1)))).count_total > 0);
}
