//! The documents: their links lead somewhere, and the files that they name exist.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn documents() -> Vec<(PathBuf, String)> {
    let files = [".", "docs"]
        .into_iter()
        .flat_map(|folder| fs::read_dir(folder).unwrap());
    let files = files.map(|entry| entry.unwrap().path());
    let documents =
        files.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    documents
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (path, text)
        })
        .collect()
}

/// The lines outside fenced code blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    lines(text, false)
}

/// The lines inside fenced code blocks, or those outside.
fn lines(text: &str, inside: bool) -> impl Iterator<Item = &str> {
    let mut is_inside = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_inside ^= is_fence;
        !is_fence && is_inside == inside
    })
}

/// The code spans in prose.
fn spans(text: &str) -> impl Iterator<Item = &str> {
    prose(text).flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// The anchors of a document's headings, as renderers of Markdown make them.
fn anchors(text: &str) -> Vec<String> {
    let headings = prose(text).filter_map(|line| line.strip_prefix('#'));
    headings
        .map(|heading| {
            let heading = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = heading
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

#[test]
fn links_lead_to_files_and_headings() {
    let mut links = 0;
    for (path, text) in documents() {
        // A link may be wrapped within its text, never within its target.
        let prose: String = prose(&text).flat_map(|line| [line, "\n"]).collect();
        let targets = prose.split("](").skip(1);
        for target in targets.filter_map(|rest| Some(rest.split_once(')')?.0)) {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = match file {
                "" => path.clone(),
                file => path.parent().unwrap().join(file),
            };
            let linked = fs::read_to_string(&file);
            assert!(linked.is_ok(), "{}: {target}", path.display());
            assert!(
                anchor.is_empty()
                    || anchors(&linked.unwrap())
                        .iter()
                        .any(|known| known == anchor),
                "{}: {target}",
                path.display()
            );
            links += 1;
        }
    }
    assert!(links > 20, "links seen: {links}");
}

#[test]
fn files_that_documents_name_exist() {
    let folders = [
        "src/",
        "tests/",
        "docs/",
        "scripts/",
        "benches/",
        "fuzz/",
        "packaging/",
    ];
    let mut named = 0;
    for (path, text) in documents() {
        for span in spans(&text) {
            let file = span.split(' ').next().unwrap();
            if folders.iter().any(|folder| file.starts_with(folder)) {
                assert!(Path::new(file).exists(), "{}: {file}", path.display());
                named += 1;
            }
        }
    }
    assert!(named > 20, "files seen: {named}");
}

#[test]
fn commands_in_documents_are_understood() {
    let mut commands = 0;
    for (path, text) in documents() {
        for line in lines(&text, true).map(str::trim).chain(spans(&text)) {
            let line = line.trim_start_matches("sudo -u bearer-proxy ");
            let line = line.trim_start_matches("target/release/");
            let Some(arguments) = line.strip_prefix("bearer-proxy ") else {
                continue;
            };
            // With --help, the arguments before it are parsed and nothing is done.
            let arguments = arguments.split(" #").next().unwrap().split_whitespace();
            let output = Command::new(env!("CARGO_BIN_EXE_bearer-proxy"))
                .args(arguments)
                .arg("--help")
                .output()
                .unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success(),
                "{}: {line}: {error}",
                path.display()
            );
            commands += 1;
        }
    }
    assert!(commands > 10, "commands seen: {commands}");
}
