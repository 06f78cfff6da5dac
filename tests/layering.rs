//! The house keeps its order: imports point down, platform calls stay in their places, one TLS stack.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Floors, the lowest first. A module may name modules of its own floor or of lower ones.
const FLOORS: &[&[&str]] = &[
    &["base"],
    &["net", "cloud"],
    &["token", "upstream"],
    &["proxy"],
    &["admin"],
    &["config"],
    &["app"],
    &["cli"],
    &["main"],
];

/// Neighbours that must not know each other.
const APART: &[(&str, &str)] = &[
    ("token", "upstream"),
    ("upstream", "token"),
    ("cloud", "net"),
    ("net", "cloud"),
];

/// The only files that may speak to a platform by name.
const PLATFORM_FILES: &[&str] = &[
    "src/base/clock.rs",
    "src/base/signals.rs",
    "src/base/process.rs",
    "src/token/store/file.rs",
    "src/net/socket.rs",
];

const PLATFORM_WORDS: &[&str] = &[
    "std::os::",
    "rustix::",
    "tokio::signal::unix",
    "UnixListener",
    "UnixStream",
    "procfs::",
    "os::unix",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<(String, String)> {
    fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    collect(&root().join("src"), &mut found);
    assert!(found.len() > 30, "only {} files were seen", found.len());
    let name = |path: &Path| {
        path.strip_prefix(root())
            .unwrap()
            .to_str()
            .unwrap()
            .replace('\\', "/")
    };
    found
        .into_iter()
        .map(|path| (name(&path), fs::read_to_string(&path).unwrap()))
        .collect()
}

fn module(file: &str) -> &str {
    let inner = file.strip_prefix("src/").unwrap();
    inner.split('/').next().unwrap().trim_end_matches(".rs")
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

/// The first segments of all `crate::` paths, grouped imports included, without comments and tests.
fn imports(text: &str) -> Vec<String> {
    let code: String = text
        .split("#[cfg(test)]\nmod tests")
        .next()
        .unwrap()
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut segment = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => found.push(std::mem::take(&mut segment)),
                    _ if depth == 0 => segment.push(c),
                    _ => {}
                }
            }
            found.push(segment);
        } else {
            found.push(
                rest.chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect(),
            );
        }
    }
    let first = |path: String| path.trim().split("::").next().unwrap().trim().to_owned();
    found
        .into_iter()
        .map(first)
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn imports_point_down() {
    let mut seen = 0;
    for (file, text) in sources() {
        let here = module(&file);
        for there in imports(&text) {
            let Some(height) = floor(&there) else {
                continue;
            };
            seen += 1;
            let own = if here == "lib" {
                continue;
            } else {
                floor(here).unwrap_or_else(|| panic!("{file} stands nowhere"))
            };
            assert!(height <= own, "{file} names {there}, which stands above it");
            assert!(
                !APART.contains(&(here, there.as_str())),
                "{file} names {there}, which stands apart from it"
            );
            assert!(
                here != "cloud" || ["cloud", "base"].contains(&there.as_str()),
                "{file} names {there}"
            );
        }
    }
    assert!(seen > 60, "only {seen} imports were seen");
}

#[test]
fn grouped_imports_are_understood() {
    let text = "use crate::{\n    base::{clock, secret::Secret},\n    net::socket,\n};\nuse crate::token::Token;\n// crate::cli\n";
    assert_eq!(imports(text), ["base", "net", "token"]);
}

#[test]
fn platform_calls_stay_in_their_places() {
    let mut seen = 0;
    for (file, text) in sources() {
        let allowed = PLATFORM_FILES.contains(&file.as_str());
        for (number, line) in text
            .split("#[cfg(test)]\nmod tests")
            .next()
            .unwrap()
            .lines()
            .enumerate()
        {
            if line.trim_start().starts_with("//") {
                continue;
            }
            for word in PLATFORM_WORDS.iter().filter(|word| line.contains(**word)) {
                seen += 1;
                assert!(
                    allowed,
                    "{file}:{}: {word} belongs into one of {PLATFORM_FILES:?}",
                    number + 1
                );
            }
        }
    }
    assert!(seen > 5, "only {seen} platform calls were seen");
}

fn cargo_tree(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--locked",
            "--prefix",
            "none",
            "--edges",
            "normal,build",
        ])
        .args(arguments)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn no_openssl_and_one_provider_of_cryptography() {
    let tree = cargo_tree(&[]);
    let crates: Vec<_> = tree
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    for expected in ["rustls", "aws-lc-rs", "hyper", "reqwest"] {
        assert!(crates.contains(&expected), "{expected} was not seen");
    }
    for unwanted in [
        "openssl",
        "openssl-sys",
        "native-tls",
        "hyper-tls",
        "ring",
        "rustls-openssl",
        "boring",
    ] {
        assert!(!crates.contains(&unwanted), "{unwanted} came in");
    }
    let versions = tree.lines().filter(|line| line.starts_with("rustls v"));
    let versions: std::collections::BTreeSet<_> =
        versions.map(|line| line.trim_end_matches(" (*)")).collect();
    assert_eq!(
        versions.len(),
        1,
        "several versions of rustls: {versions:?}"
    );
}
