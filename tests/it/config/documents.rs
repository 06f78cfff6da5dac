//! The shipped `proxy.toml`, the examples of the documents, and what `init` writes.

use std::{collections::BTreeMap, fs, path::Path};

use bearer_proxy::{
    config::{self, Presence},
    proxy::Rewrite,
};
use tempfile::TempDir;

use super::{load, load_text};

const SHIPPED: &str = "proxy.toml";

/// The text with `# key = value` uncommented; other comments stay. Sections that are commented out are uncommented as a
/// whole or not at all.
fn uncommented(
    text: &str,
    wanted: impl Fn(&str) -> bool,
    wanted_section: impl Fn(&str) -> bool,
) -> String {
    let (mut section, mut all) = (String::new(), None);
    let lines = text.lines().map(|line| {
        let inner = line.strip_prefix("# ").unwrap_or(line);
        if let Some(name) = inner
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            section = name.trim_matches(['[', ']']).to_owned();
            all = (inner != line).then(|| wanted_section(&section));
            return format!("{}\n", if all == Some(true) { inner } else { line });
        }
        let is_assignment = inner.split_once(" = ").is_some_and(|(key, _)| {
            key.chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '.')
                && all.unwrap_or_else(|| wanted(&format!("{section}.{key}")))
        });
        format!("{}\n", if is_assignment { inner } else { line })
    });
    lines.collect()
}

fn flatten(prefix: &str, table: &toml::Table, into: &mut BTreeMap<String, toml::Value>) {
    for (name, value) in table {
        let path = if prefix.is_empty() {
            name.clone()
        } else {
            format!("{prefix}.{name}")
        };
        match value {
            // Some keys take a table.
            toml::Value::Table(inner) if !config::keys().iter().any(|key| key.path == path) => {
                flatten(&path, inner, into);
            }
            toml::Value::Array(elements) if elements.iter().any(toml::Value::is_table) => {
                assert_eq!(elements.len(), 1, "{path}");
                flatten(&path, elements[0].as_table().unwrap(), into);
            }
            value => assert!(into.insert(path, value.clone()).is_none()),
        }
    }
}

#[test]
fn the_shipped_file_documents_every_key_and_no_other() {
    let text = fs::read_to_string(SHIPPED).unwrap();
    let table: toml::Table = uncommented(&text, |_| true, |_| true).parse().unwrap();
    let mut documented = BTreeMap::new();
    flatten("", &table, &mut documented);
    // A named upstream is an example of its own.
    let mut named = Vec::new();
    documented.retain(|path, _| match path.strip_prefix("upstreams.documents.") {
        Some(rest) => {
            named.push(format!("upstream.{rest}"));
            false
        }
        None => true,
    });
    assert!(
        !named.is_empty() && named.iter().all(|path| documented.contains_key(path)),
        "{named:?}"
    );
    let in_code: BTreeMap<String, toml::Value> = config::keys()
        .iter()
        .map(|key| {
            let table: toml::Table = format!("value = {}", key.shown()).parse().unwrap();
            (key.path.to_owned(), table["value"].clone())
        })
        .collect();
    assert_eq!(documented.len(), 176, "keys seen");
    assert_eq!(documented, in_code);

    // Defaults are commented out, and a comment line precedes every group of keys.
    let active: toml::Table = text.parse().unwrap();
    let mut given = BTreeMap::new();
    flatten("", &active, &mut given);
    for key in config::keys() {
        match key.presence {
            Presence::Default(_) => {
                assert!(!given.contains_key(key.path), "{} is the default", key.path);
            }
            Presence::Required { .. } if key.is_in_array() => {
                assert!(
                    !given.contains_key(key.path),
                    "{} is in a section that is optional",
                    key.path
                );
            }
            Presence::Required { .. } => {
                assert!(given.contains_key(key.path), "{} is required", key.path);
            }
            Presence::Optional(_) => {}
        }
    }
}

#[test]
fn the_commented_sections_of_the_shipped_file_load() {
    let shipped = fs::read_to_string(SHIPPED).unwrap();
    let filled = shipped
        .replace("<https://your-cloud>", "https://cloud.example.com")
        .replace(['<', '>'], "");
    let load = |text: String| load_text(text).unwrap_or_else(|mistakes| panic!("{mistakes}"));

    // A client's key is given in one of two ways; certificates are for listeners with TLS.
    let alternatives = |text: String| {
        text.replace("\nkey_file = \"/run/secrets/backup_key", "\n# ")
            .replace("\ntls_subject", "\n# ")
    };
    let config = load(alternatives(uncommented(
        &filled,
        |_| false,
        |section| section != "listener",
    )))
    .config;
    let [client] = &config.proxy.clients[..] else {
        panic!("{:?}", config.proxy.clients)
    };
    assert_eq!(
        (
            client.name.as_str(),
            client.networks.len(),
            client.concurrency
        ),
        ("backup", 1, Some(10))
    );
    assert_eq!(config.upstreams[1].name, "documents");
    assert_eq!(
        config.upstreams[1].endpoints[0].origin,
        "http://document.example.com"
    );
    let rewrite = Rewrite {
        from: "http://document.example.com".to_owned(),
        to: "/_document".to_owned(),
    };
    assert_eq!(config.proxy.rewrites, [rewrite]);
    let [route] = &config.proxy.routes[..] else {
        panic!("{:?}", config.proxy.routes)
    };
    assert_eq!(
        (
            route.prefix.as_str(),
            route.upstream,
            route.strip_prefix,
            route.credential.is_some()
        ),
        ("/_document", 1, true, false)
    );

    let folder = TempDir::new().unwrap();
    add_certificates(folder.path());
    let text = uncommented(&filled, |_| false, |section| section == "listener")
        .replace("\nlisten = [", "\n# listen = [")
        .replace(
            "# trusted_networks = []",
            "trusted_networks = [\"192.0.2.10\"]",
        );
    fs::write(folder.path().join("proxy.toml"), text).unwrap();
    let loaded = self::load(folder.path().join("proxy.toml"), &[])
        .unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let listener = &loaded.config.proxy.listeners[0];
    assert_eq!(listener.address.to_string(), "0.0.0.0:8443");
    assert_eq!(
        listener.tls.as_ref().unwrap().cert_file,
        folder.path().join("certificates/proxy.pem")
    );
}

/// The files that the examples of TLS name.
fn add_certificates(folder: &Path) {
    let folder = folder.join("certificates");
    fs::create_dir(&folder).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(["localhost".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    for (name, text) in [
        ("proxy.pem", certificate.pem()),
        ("proxy.key", key.serialize_pem()),
        ("apps.pem", certificate.pem()),
    ] {
        fs::write(folder.join(name), text).unwrap();
    }
}

#[test]
fn the_documents_examples_load() {
    let documents = ["README.md", "docs/configuration.md", "docs/operations.md"]
        .map(|document| fs::read_to_string(document).unwrap())
        .concat();
    let examples: Vec<&str> = documents
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once("```")?.0))
        .collect();
    let [
        smallest,
        outbound_proxy,
        clients,
        routes,
        listener,
        fields,
        header,
    ] = examples[..]
    else {
        panic!("{} examples seen", examples.len())
    };
    let folder = TempDir::new().unwrap();
    add_certificates(folder.path());
    fs::create_dir(folder.path().join("secrets")).unwrap();
    fs::write(folder.path().join("secrets/client_secret"), "file-secret").unwrap();
    let file = folder.path().join("proxy.toml");
    let load = |text: String| {
        fs::write(&file, text).unwrap();
        load(&file, &[])
            .unwrap_or_else(|mistakes| panic!("{mistakes}"))
            .config
    };
    fs::write(
        folder.path().join("secrets/proxy_password"),
        "file-password",
    )
    .unwrap();
    let upstream = "[upstream]\nendpoints = [\"https://cloud.example.com\"]\n";
    let with_proxy = load(smallest.replace(upstream, outbound_proxy));
    let proxies = with_proxy.outbound_proxies();
    assert_eq!(
        proxies[0].address().to_string(),
        "http://proxy.example.com:3128"
    );
    fs::write(folder.path().join("secrets/backup_key"), "file-key").unwrap();
    assert_eq!(
        load(format!("{smallest}{clients}")).proxy.clients[0]
            .key
            .as_ref()
            .unwrap()
            .expose(),
        "file-key"
    );
    let with_routes = load(format!("{smallest}{routes}"));
    assert_eq!(
        (
            with_routes.proxy.routes.len(),
            with_routes.proxy.rewrites.len()
        ),
        (1, 1)
    );
    let with_tls = load(format!(
        "{}{listener}",
        smallest.replace("listen = [", "# listen = [")
    ));
    assert!(with_tls.proxy.listeners[0].tls.is_some());
    let own_section = "[proxy]\nlisten = [\"127.0.0.1:8080\"]\n";
    assert!(smallest.contains(own_section), "{smallest}");
    let behind = |section: &str| load(smallest.replace(own_section, section)).proxy;
    let balancer = Some([192, 0, 2, 10].into());
    assert!(behind(fields).trusted_networks.contains(balancer));
    let with_header = behind(header);
    assert!(with_header.trusted_networks.contains(balancer));
    assert!(with_header.listeners[0].proxy_protocol && with_header.listeners[0].tls.is_some());
}

#[test]
fn the_example_of_a_gateway_loads_without_a_warning() {
    let document = fs::read_to_string("docs/gateway.md").unwrap();
    let examples: Vec<&str> = document
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once("```")?.0))
        .collect();
    let [example] = examples[..] else {
        panic!("{} examples seen", examples.len())
    };
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("secrets")).unwrap();
    let key = "c3RvcmUta2V5IG9mIDMyIGJ5dGVzLCBubyBtb3JlISE=\n";
    for (name, text) in [
        ("client_secret", "file-secret"),
        ("apps_key", "file-secret-of-apps"),
        ("store_password", "st0re-words"),
        ("store_key", key),
    ] {
        fs::write(folder.path().join("secrets").join(name), text).unwrap();
    }
    let file = folder.path().join("proxy.toml");
    fs::write(&file, example).unwrap();
    let loaded = load(&file, &[]).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    assert_eq!(loaded.warnings, []);
    let store = loaded.config.token.store.expect("a store");
    let user = store.redis.user.as_deref();
    assert_eq!((user, store.key.is_some()), (Some("bearer-proxy"), true));
    let proxy = loaded.config.proxy;
    let grace = proxy.drain_delay
        + proxy.drain_timeout
        + loaded.config.token.issuer.timeout
        + std::time::Duration::from_secs(5);
    let stated = format!("10 + 30 + 10 + 5 = {} seconds", grace.as_secs());
    assert!(document.contains(&stated), "{stated}");
}

#[test]
fn the_shipped_file_lacks_only_its_placeholders() {
    let mistakes = load(SHIPPED, &[]).unwrap_err();
    let keys: Vec<&str> = mistakes
        .iter()
        .map(|mistake| mistake.key.as_str())
        .collect();
    assert_eq!(
        keys,
        [
            "upstream.endpoints",
            "token.client_id",
            "token.client_secret",
            "token.redirect_uri"
        ]
    );
    for line in mistakes.to_string().lines() {
        assert!(
            line.starts_with("proxy.toml:") && line.contains(": not filled in yet ("),
            "{line}"
        );
    }
}

#[test]
fn documented_defaults_change_nothing() {
    let shipped = fs::read_to_string(SHIPPED).unwrap();
    let filled = shipped
        .replace("<https://your-cloud>", "https://cloud.example.com")
        .replace(['<', '>'], "");
    let folder = TempDir::new().unwrap();
    let debug = |text: String| {
        fs::write(folder.path().join("proxy.toml"), text).unwrap();
        format!(
            "{:?}",
            load(folder.path().join("proxy.toml"), &[]).unwrap().config
        )
    };
    let is_default = |path: &str| {
        config::keys()
            .iter()
            .any(|key| key.path == path && matches!(key.presence, Presence::Default(_)))
    };
    assert_eq!(
        debug(filled.clone()),
        debug(uncommented(&filled, is_default, |_| false))
    );
}

#[test]
fn the_file_of_init_lacks_only_its_placeholders() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("proxy.toml");
    fs::write(&file, config::starter(None, None)).unwrap();
    let mistakes = load(&file, &[]).unwrap_err();
    let keys: Vec<&str> = mistakes
        .iter()
        .map(|mistake| mistake.key.as_str())
        .collect();
    assert_eq!(
        keys,
        [
            "upstream.endpoints",
            "token.client_id",
            "token.client_secret",
            "token.redirect_uri"
        ]
    );

    let starter = config::starter(Some("https://cloud.example.com"), Some("app"));
    fs::write(&file, starter.replace(['<', '>'], "")).unwrap();
    let warnings = load(&file, &[]).unwrap().warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].hint.contains("bearer-proxy login"),
        "{warnings:?}"
    );
}
