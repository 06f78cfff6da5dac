//! The structure of the code: imports point to lower layers and form no cycle, platform calls are
//! in a few files, and there is one TLS stack.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "layering/imports.rs"]
mod imports;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use imports::Graph;

/// Layers, from the lowest to the highest. A module imports from its own layer and from lower
/// layers.
const LAYERS: &[&[&str]] = &[
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

/// The modules of `src/proxy`, from the lowest to the highest. Each imports only itself and lower
/// modules.
const PROXY: &[&str] = &[
    "framing",
    "error",
    "policy",
    "message",
    "route",
    "config",
    "metrics",
    "connection",
    "token_source",
    "settings",
    "exchange",
    "worker",
    "forward",
    "handler",
    "server",
    "runtime",
    "mod",
];

/// Modules of one layer that must not import each other.
const APART: &[(&str, &str)] = &[
    ("token", "upstream"),
    ("upstream", "token"),
    ("cloud", "net"),
    ("net", "cloud"),
];

/// The only files that may call platform interfaces.
const PLATFORM_FILES: &[&str] = &[
    "src/base/clock.rs",
    "src/base/signals.rs",
    "src/base/process.rs",
    "src/token/store/platform.rs",
    "src/net/socket.rs",
    "src/net/socket/unix.rs",
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

fn graph() -> Graph {
    let graph = imports::graph(root());
    assert!(graph.len() > 100, "only {} files were read", graph.len());
    graph
}

/// The top-level module of a file.
fn module(file: &str) -> &str {
    let inner = file.strip_prefix("src/").unwrap();
    inner.split('/').next().unwrap().trim_end_matches(".rs")
}

fn layer(module: &str) -> usize {
    LAYERS
        .iter()
        .position(|layer| layer.contains(&module))
        .unwrap_or_else(|| panic!("{module} is not in LAYERS"))
}

#[test]
fn imports_point_down() {
    let mut seen = 0;
    for (file, imports) in &graph() {
        let here = module(file);
        for (target, line) in imports {
            let there = module(target);
            if here == "lib" || here == there {
                continue;
            }
            seen += 1;
            assert!(
                layer(there) <= layer(here),
                "{file}:{line} imports {target}, which is in a higher layer"
            );
            assert!(
                !APART.contains(&(here, there)),
                "{file}:{line} imports {target}: {here} and {there} must not import each other"
            );
            assert!(
                here != "cloud" || there == "base",
                "{file}:{line} imports {target}: the simulated cloud is independent of the proxy"
            );
        }
    }
    assert!(seen > 200, "only {seen} imports were seen");
}

#[test]
fn no_circle_of_files() {
    let graph = graph();
    let Some(circle) = imports::circle(&graph) else {
        return;
    };
    let targets = circle.iter().cycle().skip(1);
    let imports = circle.iter().zip(targets).map(|(file, target)| {
        let line = graph[file][target];
        format!("\n{file}:{line} imports {target}")
    });
    panic!(
        "files import each other in a cycle:{}",
        imports.collect::<String>()
    );
}

#[test]
fn imports_point_down_in_the_proxy() {
    let height = |file: &str| {
        let inner = file.strip_prefix("src/proxy/")?;
        let name = inner.split('/').next().unwrap().trim_end_matches(".rs");
        let height = PROXY.iter().position(|module| *module == name);
        Some(height.unwrap_or_else(|| panic!("{file} is not in PROXY")))
    };
    let mut seen = 0;
    for (file, imports) in &graph() {
        for (target, line) in imports {
            if let (Some(here), Some(there)) = (height(file), height(target)) {
                seen += usize::from(here != there);
                assert!(
                    there <= here,
                    "{file}:{line} imports {target}, which is higher in {PROXY:?}"
                );
            }
        }
    }
    assert!(seen > 50, "only {seen} imports were seen");
}

/// A crate with these files.
fn written(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (file, text) in files {
        let path = folder.path().join("src").join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

#[test]
fn imports_are_found_however_they_are_written() {
    let folder = written(&[
        (
            "lib.rs",
            "mod a; mod b;\nmod inline { use super::a::Item; }",
        ),
        (
            "a.rs",
            "pub mod deep;\npub use self::deep::Deep as Exported;\npub struct Item;",
        ),
        ("a/deep.rs", "pub struct Deep; pub fn call() {}"),
        (
            "b/mod.rs",
            "mod grouped; mod module; mod glob; mod by_path; mod exported; mod nothing;\n\
             #[cfg(test)] mod tests;",
        ),
        (
            "b/grouped.rs",
            "use crate::{\n    a::{deep::{self, call}, Item},\n};",
        ),
        ("b/module.rs", "use crate::a;\nfn f() { a::deep::call() }"),
        ("b/glob.rs", "use super::super::a::*;\nfn f(_: Item) {}"),
        (
            "b/by_path.rs",
            "fn f<'a>(_: &'a crate::a::Item, _: char) -> Vec<crate::a::deep::Deep> { g('\"') }",
        ),
        ("b/exported.rs", "use crate::a::Exported;"),
        (
            "b/nothing.rs",
            "use std::fmt; // crate::a::Item\nconst A: &str = \"crate::a::Item\"; /* crate::a::Item */\n\
             const B: &str = r#\"\" crate::a::Item\"#;\n#[cfg(test)]\nmod tests { use crate::a::Item; }",
        ),
    ]);
    let graph = imports::graph(folder.path());
    let of = |file: &str| -> Vec<String> { graph[file].keys().cloned().collect() };
    let (a, deep) = ("src/a.rs", "src/a/deep.rs");
    assert_eq!(of("src/lib.rs"), [a]);
    assert_eq!(of("src/b/grouped.rs"), [a, deep]);
    assert_eq!(of("src/b/module.rs"), [deep]);
    assert_eq!(of("src/b/glob.rs"), [a]);
    assert_eq!(of("src/b/by_path.rs"), [a, deep]);
    assert_eq!(of("src/b/exported.rs"), [deep]);
    for file in ["src/b/nothing.rs", "src/b/mod.rs", a, deep] {
        assert_eq!(of(file), [""; 0], "{file}");
    }
    assert!(!graph.contains_key("src/b/tests.rs"));
}

#[test]
fn circles_are_found() {
    let circle = |child: &str, sibling: &str| {
        let folder = written(&[
            ("lib.rs", "mod parent;"),
            (
                "parent.rs",
                "mod child; mod sibling;\nuse self::child::Child;\npub struct Parent;",
            ),
            ("parent/child.rs", &format!("{child} pub struct Child;")),
            (
                "parent/sibling.rs",
                &format!("{sibling} pub struct Sibling;"),
            ),
        ]);
        imports::circle(&imports::graph(folder.path()))
    };
    let (parent, child, sibling) = (
        "src/parent.rs",
        "src/parent/child.rs",
        "src/parent/sibling.rs",
    );
    assert_eq!(
        circle("use super::Parent;", "use super::{Parent, child::Child};"),
        None
    );
    assert_eq!(
        circle("use super::sibling::Sibling;", "use super::child::Child;").unwrap(),
        [child, sibling]
    );
    assert_eq!(
        circle("use super::sibling::Sibling;", "use super::Parent;").unwrap(),
        [parent, child, sibling]
    );
}

#[test]
fn platform_calls_stay_in_their_places() {
    let mut seen = 0;
    for (file, text) in sources() {
        let allowed = PLATFORM_FILES.contains(&file.as_str()) || file.ends_with("/tests.rs");
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
                    "{file}:{}: {word} may be used only in {PLATFORM_FILES:?}",
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
    for expected in ["rustls", "aws-lc-rs", "hyper"] {
        assert!(crates.contains(&expected), "{expected} is not in the tree");
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
        assert!(!crates.contains(&unwanted), "{unwanted} is a dependency");
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
