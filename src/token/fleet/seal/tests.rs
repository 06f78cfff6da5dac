use proptest::prelude::*;

use super::*;

const NAME: &str = "bearer-proxy:default:0123";

fn key(byte: u8) -> String {
    BASE64.encode([byte; KEY_LEN])
}

fn seal_of(lines: &str) -> Seal {
    Seal::new(Some(&Secret::new(lines))).expect("keys")
}

#[test]
fn without_a_key_records_are_stored_as_they_are() {
    let seal = Seal::new(None).unwrap();
    let stored = seal.seal(b"{}", NAME).unwrap();
    assert_eq!(*stored, b"{}");
    assert_eq!(*seal.open(&stored, NAME).unwrap(), b"{}");
    assert!(seal.read_again().is_none());
}

#[test]
fn a_sealed_record_shows_nothing_and_differs_each_time() {
    let seal = seal_of(&key(1));
    let plain = br#"{"refresh_token": "s3cret-words"}"#;
    let [one, two] = [(); 2].map(|()| seal.seal(plain, NAME).unwrap());
    assert!(one.starts_with(MAGIC) && one.len() == MAGIC.len() + NONCE_LEN + plain.len() + TAG_LEN);
    assert!(!one.windows(6).any(|part| part == b"s3cret"));
    assert_ne!(one, two, "each has a nonce of its own");
}

#[test]
fn a_plain_record_is_read_and_the_next_write_seals_it() {
    let seal = seal_of(&key(1));
    let plain = seal.open(b"{}", NAME).unwrap();
    assert_eq!(*plain, b"{}");
    let sealed = seal.seal(&plain, NAME).unwrap();
    assert_eq!(
        Seal::new(None).unwrap().open(&sealed, NAME),
        Err(OpenError::NoKey)
    );
    assert_eq!(*seal.open(&sealed, NAME).unwrap(), b"{}");
}

#[test]
fn keys_are_replaced_in_steps() {
    let old = seal_of(&key(1));
    let both = seal_of(&format!("{}\n{}", key(1), key(2)));
    let turned = seal_of(&format!("{}\r\n\r\n  {}\r\n", key(2), key(1)));
    let new = seal_of(&key(2));
    let opens = |by: &Seal, sealed: &Seal| by.open(&sealed.seal(b"{}", NAME).unwrap(), NAME);
    for (by, sealed) in [
        (&old, &both),
        (&both, &old),
        (&both, &turned),
        (&turned, &both),
        (&turned, &old),
        (&turned, &new),
        (&new, &turned),
    ] {
        assert_eq!(*opens(by, sealed).unwrap(), b"{}");
    }
    assert_eq!(opens(&new, &both), Err(OpenError::WrongKey));
    assert_eq!(opens(&old, &turned), Err(OpenError::WrongKey));
}

#[test]
fn a_replaced_key_file_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, key(1)).unwrap();
    let seal = Seal::new(Some(&Secret::from_file(file.clone()).unwrap())).unwrap();
    let sealed = seal_of(&key(2)).seal(b"{}", NAME).unwrap();
    assert_eq!(seal.open(&sealed, NAME), Err(OpenError::WrongKey));
    for useless in ["", "no key", &key(1)[1..]] {
        std::fs::write(&file, useless).unwrap();
        assert!(seal.read_again().is_none(), "{useless}");
    }
    std::fs::write(&file, format!("{}\n{}\n", key(2), key(1))).unwrap();
    let replaced = seal.read_again().expect("keys");
    assert_eq!(*replaced.open(&sealed, NAME).unwrap(), b"{}");
    std::fs::write(&file, key(3)).unwrap();
    let again = replaced.read_again().expect("keys");
    assert_eq!(again.open(&sealed, NAME), Err(OpenError::WrongKey));
}

#[test]
fn what_is_no_key() {
    let length = |line, bytes| KeyError::Length { line, bytes };
    let (good, unpadded) = (key(7), key(7).trim_end_matches('=').to_owned());
    for (lines, error) in [
        (good.clone(), None),
        (unpadded, None),
        (format!("{good}\n{good}\n"), None),
        (vec![good.as_str(); 16].join("\n"), None),
        (String::new(), Some(KeyError::Empty)),
        (" \n\r\n".to_owned(), Some(KeyError::Empty)),
        (BASE64.encode([7; 31]), Some(length(1, 31))),
        (BASE64.encode([7; 33]), Some(length(1, 33))),
        (
            format!("{good}\n\n{}", BASE64.encode([7; 16])),
            Some(length(3, 16)),
        ),
        // 32 bytes in hexadecimal digits.
        ("0f".repeat(32), Some(length(1, 48))),
        (format!("{good} {good}"), Some(KeyError::NotBase64(1))),
        (
            format!("{good}\n{}", "-_".repeat(22)),
            Some(KeyError::NotBase64(2)),
        ),
        ("ä".repeat(22), Some(KeyError::NotBase64(1))),
        (
            BASE64.encode(vec![7; 48 * 1024]),
            Some(length(1, 48 * 1024)),
        ),
        (vec![good.as_str(); 17].join("\n"), Some(KeyError::TooMany)),
    ] {
        let found = check_key(&Secret::new(lines.as_str())).err();
        assert_eq!(found, error, "{lines}");
    }
}

#[test]
fn no_error_contains_a_part_of_a_key() {
    let given = "c2VjcmV0LXdvcmRz";
    let error = check_key(&Secret::new(given)).unwrap_err().to_string();
    assert_eq!(error, "has 12 bytes in line 1, not 32");
    let error = check_key(&Secret::new("secret words"))
        .unwrap_err()
        .to_string();
    assert_eq!(error, "is not Base64 in line 1");
    let shown = format!("{:?}", seal_of(&key(b's')));
    assert!(
        !shown.contains(&key(b's')) && !shown.contains("ssss"),
        "{shown}"
    );
}

#[test]
fn what_is_cut_short_or_of_another_version_does_not_open() {
    let seal = seal_of(&key(1));
    let sealed = seal.seal(b"{}", NAME).unwrap();
    for length in MAGIC.len()..sealed.len() {
        assert_eq!(
            seal.open(&sealed[..length], NAME),
            Err(OpenError::WrongKey),
            "{length}"
        );
    }
    for other in [&b"sealed-2:abc"[..], b"sealed-", b"sealed-10:"] {
        assert_eq!(seal.open(other, NAME), Err(OpenError::UnknownFormat));
    }
}

proptest! {
    #[test]
    fn what_is_sealed_opens(
        plain in prop::collection::vec(any::<u8>(), 0..2000),
        name in ".{0,40}",
        secret in any::<[u8; KEY_LEN]>(),
    ) {
        let seal = seal_of(&BASE64.encode(secret));
        let sealed = seal.seal(&plain, &name).unwrap();
        prop_assert_eq!(&*seal.open(&sealed, &name).unwrap(), &plain);
    }

    #[test]
    fn a_flipped_bit_another_name_or_another_key_does_not_open(
        plain in prop::collection::vec(any::<u8>(), 0..200),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u32,
        name in ".{0,20}",
        other in 2..=255_u8,
    ) {
        let seal = seal_of(&key(1));
        let sealed = seal.seal(&plain, NAME).unwrap();
        let mut flipped = sealed.to_vec();
        let index = MAGIC.len() + at.index(flipped.len() - MAGIC.len());
        flipped[index] ^= 1_u8 << bit;
        prop_assert_eq!(seal.open(&flipped, NAME), Err(OpenError::WrongKey));
        prop_assume!(name != NAME);
        prop_assert_eq!(seal.open(&sealed, &name), Err(OpenError::WrongKey));
        prop_assert_eq!(seal_of(&key(other)).open(&sealed, NAME), Err(OpenError::WrongKey));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), lines in "\\PC{0,200}") {
        let seal = seal_of(&key(1));
        let _ = (seal.open(&bytes, NAME), seal.open(&[MAGIC, &bytes].concat(), NAME));
        let _ = check_key(&Secret::new(lines));
    }
}
