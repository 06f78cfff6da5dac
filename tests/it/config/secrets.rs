//! Secrets in mistakes, and arbitrary input.

use bearer_proxy::config::{self, Key, Kind};
use proptest::prelude::*;

use super::load_text;

/// No other text here contains it: where it is found, a value was printed.
const MARK: &str = "zqMARKzq";

fn every_secret_key() -> Vec<&'static Key> {
    config::keys()
        .iter()
        .filter(|key| key.kind == Kind::Secret)
        .collect()
}

#[test]
fn a_secret_of_the_wrong_type_or_under_a_wrong_name_is_not_shown() {
    for key in every_secret_key() {
        let name = key.name();
        let section = if key.is_in_array() {
            format!("[{}]", key.section())
        } else {
            key.section().to_owned()
        };
        for line in [
            format!("{name} = ['{MARK}']"),
            format!("{name} = {{ value = '{MARK}' }}"),
            format!("{name} = {MARK}"),
            format!("{name} = \"{MARK}"),
            format!("{name} = \"{MARK}\\n\""),
            format!("{name} = \"{MARK}\\q\""),
            format!("{name} '{MARK}'"),
            format!("{name}: '{MARK}'"),
            format!("{name}t = '{MARK}'"),
            format!("{name}_file = '{MARK}'"),
            format!("{name} = '{MARK}'\n{name} = '{MARK}'"),
            format!("{name} = '{MARK}'\n{name}_file = '{MARK}'"),
            format!("{name} = '''{MARK}\n{MARK}'''"),
        ] {
            let mistakes = load_text(format!("[{section}]\n{line}\n")).unwrap_err();
            assert!(!mistakes.contains(MARK), "{line}\n{mistakes}");
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = load_text(bytes);
    }

    #[test]
    fn no_toml_makes_it_panic_or_lose_a_line(
        lines in prop::collection::vec(
            r#"(\[{0,2}(proxy|upstream|upstreams|upstreams\.a|route|rewrite|listener|client|token|token\.store|retry|log)(\.tls|\.json)?\]{0,2})|((listen|endpoints|client_id|url|kind|sentinel|tls|tls\.ca_file|level|prefix|from|to|address|route|x) = (\[?"[^"\n]{0,12}"?\]?|[0-9]{1,20}|true|\{\}|\{ ca_file = 1 \}))|\PC{0,20}"#,
            0..12,
        ),
    ) {
        // A required key is always missing.
        let mistakes = load_text(lines.join("\n")).unwrap_err();
        for line in mistakes.lines() {
            prop_assert!(line.starts_with("proxy.toml:") && line.ends_with(')'), "{}", line);
        }
    }

    /// A valid file, damaged in one place: its secrets are not printed.
    #[test]
    fn no_damage_brings_a_secret_out(at in 0_usize..1000, length in 0_usize..30, put in "[\"'=\\[\\]{}#\\n\\\\.,a ]{0,3}") {
        let mut text: Vec<char> = format!(
            "[proxy]\nlisten = [\"127.0.0.1:8080\"]\n[upstream]\nendpoints = [\"https://cloud.example.com\"]\n[token]\n\
             client_id = \"app\"\nclient_secret = \"{MARK}\"\nrefresh_token = '{MARK}'\n[admin]\ntoken = \"{MARK}\"\n"
        ).chars().collect();
        let start = at.min(text.len());
        let end = (start + length).min(text.len());
        text.splice(start..end, put.chars());
        match load_text(text.into_iter().collect::<String>()) {
            Ok(loaded) => {
                let debug = format!("{loaded:?}");
                prop_assert!(!debug.contains(MARK), "{}", debug);
            }
            Err(mistakes) => prop_assert!(!mistakes.contains(MARK), "{}", mistakes),
        }
    }
}
