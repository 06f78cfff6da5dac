//! Files: those that load, those that do not and their mistakes, and where a file is looked for.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use bearer_proxy::config;
use tempfile::TempDir;

use super::{INVALID, VALID, assert_no_secret, load, load_environment, load_text, without_folder};

fn toml_files(folder: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.retain(|file| {
        file.extension()
            .is_some_and(|extension| extension == "toml")
    });
    files.sort();
    files
}

fn expected(file: &Path, extension: &str) -> String {
    fs::read_to_string(file.with_extension(extension))
        .unwrap_or_default()
        .replace("\r\n", "\n")
        .trim_end()
        .to_owned()
}

#[test]
fn every_mistake_in_an_invalid_file_is_reported() {
    let files = toml_files(INVALID);
    assert!(files.len() >= 25, "only {} files seen", files.len());
    let mut differences = String::new();
    for file in files {
        let shown = match load(&file, &[]) {
            Ok(_) => "no mistake found".to_owned(),
            Err(mistakes) => without_folder(&mistakes, Path::new(INVALID)),
        };
        assert_no_secret(&shown);
        if shown != expected(&file, "stderr") {
            differences.push_str(&format!("--- {}\n{shown}\n", file.display()));
        }
    }
    assert!(differences.is_empty(), "not as expected:\n{differences}");
}

#[test]
fn valid_files_load_and_warn() {
    let files = toml_files(VALID);
    assert!(files.len() >= 4, "only {} files seen", files.len());
    for file in files {
        let loaded =
            load(&file, &[]).unwrap_or_else(|mistakes| panic!("{}:\n{mistakes}", file.display()));
        assert_no_secret(&format!("{loaded:?}"));
        let shown: Vec<String> = loaded
            .warnings
            .iter()
            .map(|warning| without_folder(warning, Path::new(VALID)))
            .collect();
        assert_eq!(
            shown.join("\n"),
            expected(&file, "warnings"),
            "{}",
            file.display()
        );
    }
}

#[test]
fn byte_order_mark_and_windows_line_ends() {
    let folder = TempDir::new().unwrap();
    let text = fs::read_to_string(Path::new(INVALID).join("all_at_once.toml"))
        .unwrap()
        .replace('\n', "\r\n");
    fs::write(
        folder.path().join("all_at_once.toml"),
        format!("\u{feff}{text}"),
    )
    .unwrap();
    let mistakes = load(folder.path().join("all_at_once.toml"), &[]).unwrap_err();
    let expected = expected(&Path::new(INVALID).join("all_at_once.toml"), "stderr");
    assert_eq!(without_folder(&mistakes, folder.path()), expected);

    let mistakes = load_text("\u{feff}proxi = 1").unwrap_err();
    assert!(
        mistakes.starts_with("proxy.toml:1:1: proxi: unknown key (did you mean [proxy]?)"),
        "{mistakes}"
    );
}

#[test]
fn columns_count_characters() {
    let mistakes = load_text("[log]\nlevel = \"ä\" \n format = 'ö'; x").unwrap_err();
    assert!(
        mistakes.contains("proxy.toml:3:14: this is not TOML"),
        "{mistakes}"
    );
}

#[test]
fn files_that_cannot_be_read_are_one_line() {
    let missing = load("no/such/proxy.toml", &[]).unwrap_err().to_string();
    assert_eq!(
        missing,
        "no/such/proxy.toml: cannot be read: No such file or directory (os error 2) \
         (check the path, or create a file with `bearer-proxy init`)"
    );
    assert_eq!(load(VALID, &[]).unwrap_err().iter().count(), 1);
    assert_eq!(
        load_text(b"[proxy]\n\xff\xfe").unwrap_err(),
        "proxy.toml: is not UTF-8 text, line 2 (save it as UTF-8 in the editor)"
    );
    let huge = load_text("#".repeat(2 << 20)).unwrap_err();
    assert_eq!(
        huge,
        "proxy.toml: is larger than 1 MiB (name a configuration file)"
    );
}

#[test]
fn without_a_configuration_the_message_names_init() {
    let mistakes = load_environment(&[("PATH", "/usr/bin")])
        .unwrap_err()
        .to_string();
    assert!(
        mistakes.starts_with("no configuration: this folder has no proxy.toml"),
        "{mistakes}"
    );
    assert!(mistakes.contains("bearer-proxy init"), "{mistakes}");
    assert_eq!(mistakes.lines().count(), 1);
}

#[test]
fn the_file_is_located_by_flag_then_variable_then_name() {
    let folder = TempDir::new().unwrap();
    let locate = |flag: Option<&str>, variable: Option<&str>| {
        config::locate(
            flag.map(PathBuf::from),
            variable.map(OsString::from),
            folder.path(),
        )
    };
    assert_eq!(locate(None, None), None);
    assert_eq!(locate(None, Some("")), None);
    fs::write(folder.path().join("proxy.toml"), "").unwrap();
    assert_eq!(locate(None, None), Some(folder.path().join("proxy.toml")));
    assert_eq!(locate(None, Some("b.toml")), Some("b.toml".into()));
    assert_eq!(
        locate(Some("a.toml"), Some("b.toml")),
        Some("a.toml".into())
    );
}

#[test]
fn a_state_file_replaces_the_first_refresh_token() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("proxy.toml");
    let text = fs::read_to_string(Path::new(INVALID).join("no_state_yet.toml")).unwrap();
    fs::write(&file, text).unwrap();
    assert!(load(&file, &[]).is_err());
    assert!(
        !folder.path().join("no").exists(),
        "reading a configuration creates nothing"
    );
    fs::create_dir_all(folder.path().join("no/such")).unwrap();
    fs::write(folder.path().join("no/such/state.json"), "{}").unwrap();
    let loaded = load(&file, &[]).unwrap();
    assert!(loaded.config.token.refresh_token.is_none() && loaded.warnings.is_empty());
}

#[test]
fn a_state_file_needs_a_folder_that_can_be_written_to() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("proxy.toml");
    let locked = folder.path().join("locked");
    let starter =
        config::starter(Some("https://cloud.example.com"), Some("app")).replace(['<', '>'], "");
    fs::write(
        &file,
        starter.replace("state/token.json", "locked/state/token.json"),
    )
    .unwrap();
    fs::create_dir(&locked).unwrap();
    assert!(load(&file, &[]).is_ok());
    let writable = fs::metadata(&locked).unwrap().permissions();
    let mut read_only = writable.clone();
    read_only.set_readonly(true);
    fs::set_permissions(&locked, read_only).unwrap();
    let mistakes = load(&file, &[]).unwrap_err().to_string();
    fs::set_permissions(&locked, writable).unwrap();
    assert!(
        mistakes.contains("token.state_file: the folder ")
            && mistakes.contains("locked is read-only"),
        "{mistakes}"
    );
}

#[cfg(unix)]
#[test]
fn relative_unix_sockets_are_below_the_files_folder() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("proxy.toml");
    let starter =
        config::starter(Some("https://cloud.example.com"), Some("app")).replace(['<', '>'], "");
    let text = starter
        .replace("127.0.0.1:8080", "unix:run/data.sock")
        .replace("127.0.0.1:9180", "unix:admin.sock");
    fs::write(&file, text).unwrap();
    let config = load(&file, &[]).unwrap().config;
    let expected = |path: &str| bearer_proxy::net::socket::Address::Unix(folder.path().join(path));
    assert_eq!(config.proxy.listeners[0].address, expected("run/data.sock"));
    assert_eq!(
        config.admin.unwrap().listener.address,
        expected("admin.sock")
    );
}
