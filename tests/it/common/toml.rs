//! Configurations as files.

use std::{net::SocketAddr, path::Path};

use bearer_proxy::{
    app::App,
    base::clock,
    config::{self, Loaded, Source},
};

use super::Proxy;

/// A `proxy.toml` that listens on these addresses in front of `cloud`, which is the issuer as well. `more` are further lines:
/// keys with their section (`token.wait = "1s"`), which replace those given here, then tables.
pub fn text(address: SocketAddr, admin: SocketAddr, cloud: &str, more: &str) -> String {
    let usual = [
        ("proxy.listen", format!("[\"{address}\"]")),
        ("upstream.endpoints", format!("[\"{cloud}\"]")),
        ("token.client_id", "\"demo\"".to_owned()),
        ("token.client_secret", "\"secret\"".to_owned()),
        ("token.refresh_token", "\"seed\"".to_owned()),
        ("admin.listen", format!("\"{admin}\"")),
    ];
    let is_given = |key: &str| {
        more.lines().any(|line| {
            let (other, _) = line.split_once('=').unwrap_or((line, ""));
            other.trim().trim_end_matches("_file") == key
        }) || key == "proxy.listen" && more.contains("[[listener]]")
    };
    let kept = usual.iter().filter(|(key, _)| !is_given(key));
    let lines: String = kept
        .map(|(key, value)| format!("{key} = {value}\n"))
        .collect();
    lines + more
}

/// What the program reads from this file; panics on mistakes.
pub fn load(file: &Path) -> Loaded {
    let source = Source {
        file: Some(file.to_owned()),
        env: Vec::new(),
        overrides: Vec::new(),
    };
    config::load(source).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

/// A ready proxy in this process whose file has these lines besides the usual ones. Relative paths are below `folder`.
pub async fn proxy_in(folder: &Path, cloud: &str, more: &str) -> Proxy {
    let (any, file) = (
        SocketAddr::from(([127, 0, 0, 1], 0)),
        folder.join("proxy.toml"),
    );
    std::fs::write(&file, text(any, any, cloud, more)).unwrap();
    let app = App::start(load(&file).config, clock::system()).unwrap();
    let proxy = Proxy::of(app);
    proxy.ready().await;
    proxy
}
