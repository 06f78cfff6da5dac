use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;
use crate::{
    base::secret::Secret,
    token::{refresh_token::RefreshToken, testing},
};

fn store(path: PathBuf) -> FileStore {
    FileStore::new(path, &testing::config(None))
}

fn opened(store: &FileStore) -> Option<Record> {
    store.open().expect("usable").record
}

fn record(refresh_token: &str) -> Record {
    let mut record = Record::default();
    record.refresh_token = Some(RefreshToken::new(Secret::new(refresh_token)));
    record
}

fn stored(store: &FileStore) -> String {
    opened(store)
        .expect("there")
        .refresh_token
        .expect("there")
        .secret()
        .expose()
        .to_owned()
}

fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder)
        .expect("a folder")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn refusal(path: &Path) -> String {
    let error = store(path.to_owned())
        .open()
        .expect_err("refused")
        .to_string();
    assert!(error.contains(&path.display().to_string()), "{error}");
    error
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("changed");
}

#[tokio::test]
async fn what_is_saved_is_loaded_again_and_private() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("new/state/token.json");
    let store = store(path.clone());
    assert!(opened(&store).is_none());
    for token in ["first", "second"] {
        store.save(Arc::new(record(token))).await.expect("saved");
        assert_eq!(stored(&store), token);
    }
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().expect("a folder")), 0o700);
    let mut names = names(path.parent().expect("a folder"));
    names.sort();
    assert_eq!(
        names,
        ["token.json", "token.json.lock"],
        "nothing else is left"
    );
}

#[tokio::test]
async fn what_another_process_is_writing_is_no_leftover() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = store(folder.path().join("token.json"));
    let writing = folder.path().join(".token.json.0123.tmp");
    fs::write(&writing, "x").expect("written");
    let lock = store.try_lock().await.expect("a lock").expect("free");
    assert!(opened(&store).is_none() && writing.exists());
    drop(lock);
    assert!(opened(&store).is_none() && !writing.exists());
}

#[tokio::test]
async fn a_lock_shuts_others_out_until_it_is_dropped() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("new/token.json");
    let (ours, theirs) = (store(path.clone()), store(path.clone()));
    let lock = ours.try_lock().await.expect("a lock").expect("free");
    assert!(theirs.try_lock().await.expect("a file").is_none());
    drop(lock);
    assert!(theirs.try_lock().await.expect("a file").is_some());
    let mode = fs::metadata(folder.path().join("new/token.json.lock"))
        .expect("there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn reading_again_leaves_alone_what_others_are_writing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("token.json");
    write(&folder.path().join(".token.json.0123.tmp"), "x", 0o600);
    write(&path, r#"{"format": 1, "refresh_token": "r"}"#, 0o600);
    let record = store(path).load().await.expect("readable").expect("there");
    assert_eq!(record.refresh_token.expect("there").secret().expose(), "r");
    assert_eq!(names(folder.path()).len(), 2);
}

#[tokio::test]
async fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("token.json");
    // A folder at the file's path makes the rename fail, also for root.
    fs::create_dir(&path).expect("created");
    fs::write(path.join("x"), "x").expect("written");
    store(path.clone())
        .save(Arc::new(record("r")))
        .await
        .expect_err("it cannot be replaced");
    assert_eq!(names(folder.path()), ["token.json"]);
}

#[test]
fn leftovers_of_a_crash_are_removed_and_nothing_else_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("token.json");
    for name in [
        ".token.json.0123.tmp",
        ".other.json.0123.tmp",
        "token.json.bak",
    ] {
        fs::write(folder.path().join(name), "x").expect("written");
    }
    assert!(opened(&store(path)).is_none());
    let mut names = names(folder.path());
    names.sort();
    assert_eq!(
        names,
        [".other.json.0123.tmp", "token.json.bak", "token.json.lock"]
    );
}

#[test]
fn bad_input_23_symlinks_are_refused_even_dangling_ones() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, link) = (folder.path().join("file"), folder.path().join("link"));
    symlink(&file, &link).expect("linked");
    assert!(refusal(&link).contains("symbolic link"));
    write(&file, r#"{"format": 1}"#, 0o600);
    assert!(refusal(&link).contains("symbolic link"));
    assert!(store(file).open().is_ok());
}

#[test]
fn what_is_not_a_regular_file_is_refused_without_waiting() {
    let folder = tempfile::tempdir().expect("a folder");
    assert!(refusal(folder.path()).contains("not a regular file"));
    let pipe = folder.path().join("pipe");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0)
        .expect("a pipe");
    assert!(refusal(&pipe).contains("not a regular file"));
    let socket = folder.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
    assert!(refusal(&socket).contains("not a regular file"));
}

#[test]
fn field_a6_the_mode_is_mended_where_the_file_is_ours() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("token.json");
    for mode in [0o660, 0o640, 0o604, 0o620, 0o601, 0o644, 0o777] {
        write(&path, r#"{"format": 1, "refresh_token": "r"}"#, mode);
        assert_eq!(stored(&store(path.clone())), "r", "{mode:o}");
        let now = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(now & 0o777, 0o600, "{mode:o}");
    }
}

#[test]
fn field_c6_an_inspection_changes_nothing_and_says_what_the_start_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("token.json");
    let inspect = || store(path.clone()).inspect();
    assert_eq!(inspect().expect("no file yet"), [""; 0]);
    for (text, mode, refused) in [
        (r#"{"format": 1}"#, 0o600, ""),
        ("", 0o600, ""),
        (r#"{"format": 1}"#, 0o644, "chmod 600"),
        (r#"{"format": 1}"#, 0o602, "mode 602"),
        (r#"{"format": 2}"#, 0o600, "format 2"),
        (r#"{"format": 1, "client_id": "x"}"#, 0o600, "client \"x\""),
        ("garbage", 0o600, "line 1"),
    ] {
        write(&path, text, mode);
        match inspect() {
            Ok(warnings) => assert!(refused.is_empty() && warnings.is_empty(), "{text} {mode:o}"),
            Err(error) => assert!(
                !refused.is_empty() && error.to_string().contains(refused),
                "{error}"
            ),
        }
        let now = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(now & 0o777, mode);
        assert_eq!(fs::read_to_string(&path).expect("there"), text);
    }
    write(&path, r#"{"format": 1}"#, 0o660);
    assert!(inspect().expect("usable")[0].contains("mode 660"));
    write(&path, r#"{"format": 1}"#, 0o600);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o1777)).expect("changed");
    assert!(inspect().expect("usable")[0].contains("folder"));
    assert_eq!(names(folder.path()), ["token.json"]);
}

#[test]
fn field_a19_a_file_of_another_user_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("token.json");
    write(&path, r#"{"format": 1}"#, 0o600);
    // Only root can give a file away; `field_a6_a19_modes_and_owners` needs no privilege.
    if std::os::unix::fs::chown(&path, Some(12_345), None).is_err() {
        return;
    }
    assert!(refusal(&path).contains("user 12345"));
    let config = Config {
        checks_state_file_permissions: false,
        ..testing::config(None)
    };
    let careless = FileStore::new(path.clone(), &config);
    assert!(careless.inspect().expect("ignored").is_empty());
    assert!(opened(&careless).is_some());
}

#[test]
fn field_a9_an_empty_file_holds_no_token_yet() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("token.json");
    for empty in ["", "\n", " \r\n"] {
        write(&path, empty, 0o600);
        assert!(opened(&store(path.clone())).is_none());
    }
}

#[tokio::test]
async fn field_a9_the_copy_of_an_unfinished_overwriting_is_recovered() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("token.json");
    let copy = folder.path().join(".token.json.0000000000000000.tmp");
    let store = store(path.clone());
    let complete = |generation| {
        let mut record = record(&format!("r{generation}"));
        record.generation = generation;
        record.to_json(&store.owner).expect("JSON")
    };
    let put = |path: &Path, contents: &[u8]| {
        write(path, std::str::from_utf8(contents).expect("text"), 0o600);
    };
    // Torn at every kind of place, with the new contents longer and shorter than the old ones.
    let (old, new) = (complete(9), complete(10));
    for torn in [0, 1, new.len() / 2, new.len() - 1] {
        let mut contents = new[..torn].to_vec();
        contents.extend_from_slice(&old[torn.min(old.len())..]);
        contents.extend_from_slice(b"}");
        put(&path, &contents);
        put(&copy, &new);
        assert_eq!(stored(&store), "r10", "{torn}");
        assert!(!copy.exists());
    }
    // An older copy, an incomplete one, and another program's file change nothing.
    for contents in [&*old, &new[..new.len() / 2], b"{}"] {
        put(&path, &new);
        put(&copy, contents);
        assert_eq!(stored(&store), "r10");
        assert!(!copy.exists());
    }
    // Without a complete copy, both files are left for a person to look at.
    put(&path, b"garbage");
    put(&copy, &new[..new.len() / 2]);
    assert!(refusal(&path).contains("left as it is"));
    assert!(copy.exists());
}

#[tokio::test]
async fn field_a15_a_record_of_another_format_or_owner_is_never_overwritten() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("token.json");
    let store = store(path.clone());
    for foreign in [
        r#"{"format": 2, "refresh_token": "theirs"}"#,
        r#"{"format": 1, "client_id": "another", "refresh_token": "theirs"}"#,
        r#"{"format": 1, "issuer": "https://another", "refresh_token": "theirs"}"#,
    ] {
        write(&path, foreign, 0o600);
        assert!(refusal(&path).contains("left as it is"));
        let saved = store.save(Arc::new(record("ours"))).await;
        saved.expect_err("refused");
        assert!(matches!(store.load().await, Err(Error::Foreign { .. })));
        assert_eq!(fs::read_to_string(&path).expect("there"), foreign);
    }
    assert_eq!(names(folder.path()), ["token.json"]);
}

#[tokio::test]
async fn field_a15_at_run_time_a_record_is_read_in_spite_of_its_mode() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("token.json");
    let store = store(path.clone());
    for mode in [0o644, 0o666, 0o777] {
        write(&path, r#"{"format": 1, "refresh_token": "r"}"#, mode);
        let record = store.load().await.expect("readable").expect("there");
        assert_eq!(record.refresh_token.expect("there").secret().expose(), "r");
        let now = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(now & 0o777, 0o600);
    }
}

/// Detected at the start, before a refresh token is sent. Not even root can create a file
/// there.
#[cfg(target_os = "linux")]
#[test]
fn a_place_that_cannot_be_written_is_refused() {
    let refused = store("/proc/self/token.json".into()).open().err();
    assert!(
        matches!(refused, Some(Error::Unwritable { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_garbled_file_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("token.json");
    for text in ["{\"format\": 1, \"refresh_token\": \"s3cr", "\0\0\0\0"] {
        write(&path, text, 0o600);
        let error = refusal(&path);
        assert!(
            error.contains("left as it is") && !error.contains("s3cr"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&path).expect("there"), text);
    }
    write(&path, &"x".repeat(2 * 1024 * 1024), 0o600);
    assert!(refusal(&path).contains("too large"));
}

#[test]
fn field_a9_every_limit_of_space_counts_as_a_full_volume() {
    use rustix::io::Errno;
    for errno in [Errno::NOSPC, Errno::DQUOT, Errno::FBIG] {
        assert!(is_full(&errno.into()), "{errno}");
    }
    for errno in [Errno::ACCESS, Errno::ROFS, Errno::BUSY] {
        assert!(!is_full(&errno.into()), "{errno}");
    }
}

/// Records of generation 9 and 10 as they are stored.
fn generations(store: &FileStore) -> [String; 2] {
    [9, 10].map(|generation| {
        let mut record = record(&format!("r{generation}"));
        (record.epoch, record.generation) = (1, generation);
        let json = record.to_json(&store.owner).expect("JSON");
        String::from_utf8(json.to_vec()).expect("text")
    })
}

#[test]
fn field_a7_a9_without_locks_a_crash_is_recovered_from_all_the_same() {
    for (file, expected) in [("garbled", "r10"), ("old", "r10"), ("new", "r10")] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token.json");
        // Neither root can open it for locking.
        fs::create_dir(folder.path().join("token.json.lock")).expect("created");
        let store = store(path.clone());
        let [old, new] = generations(&store);
        let (contents, copy) = match file {
            "garbled" => (&new[..new.len() / 2], &new),
            "old" => (&*old, &new),
            _ => (&*new, &old),
        };
        write(&path, contents, 0o600);
        write(&folder.path().join(".token.json.0.tmp"), copy, 0o600);
        write(&folder.path().join(".token.json.1.tmp"), "{}", 0o600);
        let opened = store.open().expect("usable");
        assert!(opened.lock_problem.is_some());
        assert_eq!(stored(&store), expected, "{file}");
        let mut names = names(folder.path());
        names.sort();
        assert_eq!(names, ["token.json", "token.json.lock"], "{file}");
    }
}

#[tokio::test]
async fn field_a9_while_another_process_holds_the_lock_nothing_is_recovered() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("token.json");
    let store = store(path.clone());
    let [old, new] = generations(&store);
    let copy = folder.path().join(".token.json.0.tmp");
    write(&path, &old, 0o600);
    write(&copy, &new, 0o600);
    let _lock = store.try_lock().await.expect("a lock").expect("free");
    assert_eq!(stored(&store), "r9");
    assert!(copy.exists());
}

#[test]
fn field_a9_a_handwritten_file_wins_over_a_copy() {
    for (by_hand, expected) in [
        (r#"{"format": 1, "refresh_token": "by hand"}"#, "by hand"),
        (r#"{"format": 1}"#, "r10"),
        ("", "r10"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token.json");
        let store = store(path.clone());
        let copy = folder.path().join(".token.json.0000000000000000.tmp");
        write(&path, by_hand, 0o600);
        write(&copy, &generations(&store)[1], 0o600);
        assert_eq!(stored(&store), expected);
        assert!(!copy.exists());
    }
}
