//! The configuration: what loads, what does not and with which messages.

mod documents;
mod environment;
mod files;
mod keys;
mod secrets;
mod stores;

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use bearer_proxy::config::{self, Loaded, Mistakes, Source};
use tempfile::TempDir;

const INVALID: &str = "tests/config/invalid";
const VALID: &str = "tests/config/valid";

fn load(file: impl Into<PathBuf>, env: &[(&str, &str)]) -> Result<Loaded, Mistakes> {
    config::load(Source {
        file: Some(file.into()),
        env: variables(env),
        overrides: Vec::new(),
    })
}

fn load_environment(env: &[(&str, &str)]) -> Result<Loaded, Mistakes> {
    config::load(Source {
        file: None,
        env: variables(env),
        overrides: Vec::new(),
    })
}

fn variables(env: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    env.iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

fn valid(name: &str) -> Loaded {
    load(Path::new(VALID).join(name), &[]).unwrap_or_else(|mistakes| panic!("{name}:\n{mistakes}"))
}

/// Loads a text; mistakes are shown without the folder of its file.
fn load_text(text: impl AsRef<[u8]>) -> Result<Loaded, String> {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("proxy.toml");
    fs::write(&file, text).unwrap();
    load(&file, &[]).map_err(|mistakes| without_folder(&mistakes, folder.path()))
}

fn without_folder(text: &impl ToString, folder: &Path) -> String {
    let folder = folder.join("");
    text.to_string().replace(&*folder.to_string_lossy(), "")
}

/// The values of secrets in these files.
const SECRETS: [&str; 10] = [
    "s3cret",
    "r3fresh",
    "4dmin",
    "jwtk3y",
    "pr0xy-words",
    "st0re-words",
    "sent1nel-words",
    "c3RvcmUta2V5",
    "file-secret",
    "file-refresh",
];

fn assert_no_secret(output: &str) {
    for secret in SECRETS {
        assert!(!output.contains(secret), "{secret} in:\n{output}");
    }
}

/// Enough variables that no file is needed.
const ENOUGH: [(&str, &str); 5] = [
    ("BEARER_PROXY__PROXY__LISTEN", "127.0.0.1:8080, [::1]:8080"),
    (
        "BEARER_PROXY__UPSTREAM__ENDPOINTS",
        "https://cloud.example.com",
    ),
    ("BEARER_PROXY__TOKEN__CLIENT_ID", "app"),
    ("BEARER_PROXY__TOKEN__CLIENT_SECRET", "s3cret-words"),
    ("BEARER_PROXY__TOKEN__REFRESH_TOKEN", "r3fresh-words"),
];

fn enough_and(more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    ENOUGH
        .iter()
        .copied()
        .filter(|(name, _)| more.iter().all(|(other, _)| name != other))
        .chain(more.iter().copied())
        .collect()
}
