//! Parsers for every type of value. Each returns what is wrong and what to write instead, and
//! quotes the given text only where it cannot be a secret.

mod client;
mod store;
mod token;
mod web;

use std::{path::PathBuf, time::Duration};

use super::{
    findings::{Problem, problem},
    raw::Value,
    syntax::BACKSLASH_HINT,
};
pub(super) use client::{custom_header, key_header, network, rate, trusted_peer, user_name};
pub(super) use store::{RedisUrl, grace_period, is_in_lines, key_prefix, keys_in_lines, redis_url};
pub(super) use token::{
    algorithm, claims, code, is_pem, json_pointer, key_material, parameter_name,
};
pub(super) use web::{
    address, endpoint, error_status, host_header, host_name, outbound_proxy, path_rule, prefix,
    redirect_uri, served_host, server_error_status, server_name, socket_address, statuses,
    url_path, web_origin,
};

type Read<T> = Result<T, Problem>;

/// Text of at least one character, without control characters.
pub(super) fn text(value: &Value) -> Read<&str> {
    match value {
        Value::Text(text) if text.is_empty() => {
            Err(problem("is empty", "write a value, or remove the key")
                .or_variable("give it a value, or unset it"))
        }
        Value::Text(text) if text.contains(char::is_control) => Err(problem(
            "contains a line end, a tab or another control character",
            "write one line of plain text",
        )),
        Value::Text(text) => Ok(text),
        Value::Integer(_) | Value::Bool(_) => Err(problem(
            format!("is {}, not text", value.kind_name()),
            "put it in quotes",
        )),
        Value::List(_) | Value::Table(_) | Value::Other(_) => Err(problem(
            format!("is {}, not text", value.kind_name()),
            r#"write a text, as in key = "text""#,
        )),
    }
}

/// Text with a format, of which an example says more than "put it in quotes".
fn text_with_hint<'a>(value: &'a Value, example: &str) -> Read<&'a str> {
    text(value).map_err(|problem| Problem {
        hint: example.to_owned(),
        ..problem
    })
}

/// Whether the value is a placeholder, as the shipped file has them.
pub(super) fn is_placeholder(value: &Value) -> bool {
    match value {
        Value::Text(text) => {
            let text = text.trim();
            text.len() > 2 && text.starts_with('<') && text.ends_with('>')
                || text == "…"
                || text == "..."
        }
        Value::List(elements) => elements
            .iter()
            .any(|element| is_placeholder(&element.value)),
        Value::Table(elements) => elements
            .iter()
            .any(|(_, element)| is_placeholder(&element.value)),
        Value::Integer(_) | Value::Bool(_) | Value::Other(_) => false,
    }
}

/// A path, as written.
pub(super) fn path(value: &Value) -> Read<PathBuf> {
    if let Value::Text(text) = value
        && text.contains(char::is_control)
    {
        return Err(problem("contains a control character", BACKSLASH_HINT)
            .or_variable("set it to a path without one"));
    }
    text(value).map(PathBuf::from)
}

pub(super) fn boolean(value: &Value) -> Read<bool> {
    match value {
        Value::Bool(value) => Ok(*value),
        Value::Text(_) | Value::Integer(_) | Value::List(_) | Value::Table(_) | Value::Other(_) => {
            Err(problem(
                format!("is {}", value.kind_name()),
                "write true or false, without quotes",
            )
            .or_variable("write true or false"))
        }
    }
}

/// A whole number from `least` to `most`.
pub(super) fn integer(value: &Value, least: u32, most: u32) -> Read<u32> {
    match value {
        Value::Integer(number) => u32::try_from(*number)
            .ok()
            .filter(|number| (least..=most).contains(number))
            .ok_or_else(|| {
                problem(
                    "is out of range",
                    format!("write a number from {least} to {most}"),
                )
            }),
        Value::Text(_) | Value::Bool(_) | Value::List(_) | Value::Table(_) | Value::Other(_) => {
            let hint = format!("write a number from {least} to {most}");
            Err(problem(
                format!("is {}", value.kind_name()),
                format!("{hint}, without quotes"),
            )
            .or_variable(hint))
        }
    }
}

/// `"90s"`, `"1h 30m"`: at most a year.
pub(super) fn duration(value: &Value) -> Read<Duration> {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    const EXAMPLE: &str = r#"write a number and a unit (ms, s, m, h, d), as in "90s""#;
    if let Some(number) = value.bare_number() {
        return Err(problem(
            "has no unit",
            format!(r#"write "{number}s" for seconds"#),
        ));
    }
    let text = text_with_hint(value, EXAMPLE)?;
    // In humantime the sum of the parts can overflow. That takes more characters than a sensible
    // duration has.
    let parsed = if text.len() <= 24 {
        humantime::parse_duration(text.trim()).ok()
    } else {
        None
    };
    match parsed {
        None => Err(problem("is not a duration", EXAMPLE)),
        Some(duration) if duration > YEAR => Err(problem("is longer than a year", EXAMPLE)),
        Some(duration) => Ok(duration),
    }
}

/// A duration above zero.
pub(super) fn positive_duration(value: &Value) -> Read<Duration> {
    match duration(value)? {
        Duration::ZERO => Err(problem(
            "must be longer than zero",
            r#"write for example "10s""#,
        )),
        duration => Ok(duration),
    }
}

/// `"64MiB"`, `"1MB"`, `"500B"`, in bytes.
pub(super) fn size(value: &Value) -> Read<usize> {
    const EXAMPLE: &str =
        r#"write a whole number and a unit (B, KB, KiB, MB, MiB, GB, GiB), as in "64MiB""#;
    const UNITS: [(&str, usize); 7] = [
        ("b", 1),
        ("kb", 1000),
        ("kib", 1 << 10),
        ("mb", 1_000_000),
        ("mib", 1 << 20),
        ("gb", 1_000_000_000),
        ("gib", 1 << 30),
    ];
    if let Some(number) = value.bare_number() {
        return Err(problem(
            "has no unit",
            format!(r#"write "{number}B" for bytes, or for example "1MiB""#),
        ));
    }
    let text = text_with_hint(value, EXAMPLE)?.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start().to_ascii_lowercase();
    let factor = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, factor)| *factor);
    let bytes = number
        .parse::<usize>()
        .ok()
        .zip(factor)
        .and_then(|(number, factor)| number.checked_mul(factor));
    bytes.ok_or_else(|| problem("is not a size", EXAMPLE))
}

/// A size from `least` to `most`, in bytes.
pub(super) fn size_within(value: &Value, least: usize, most: usize) -> Read<usize> {
    let size = size(value)?;
    let range = || {
        problem(
            "is out of range",
            format!(r#"write a size from "{least}B" to "{most}B""#),
        )
    };
    (least..=most)
        .contains(&size)
        .then_some(size)
        .ok_or_else(range)
}

/// One of several words; the value that it stands for.
pub(super) fn choice<T: Copy>(value: &Value, choices: &[(&str, T)]) -> Read<T> {
    let words: Vec<String> = choices
        .iter()
        .map(|(word, _)| format!("{word:?}"))
        .collect();
    let hint = format!("write {}", words.join(" or "));
    let given = text_with_hint(value, &hint)?;
    choices
        .iter()
        .find(|(word, _)| *word == given)
        .map(|(_, meaning)| *meaning)
        .ok_or_else(|| problem("is not one of the allowed values", &hint))
}

impl Value {
    fn kind_name(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Integer(_) => "a number",
            Self::Bool(_) => "true or false",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other(kind_name) => kind_name,
        }
    }

    /// A number without a unit, quoted or not.
    fn bare_number(&self) -> Option<u64> {
        match self {
            Self::Integer(number) => u64::try_from(*number).ok(),
            Self::Text(text) => text.trim().parse().ok(),
            Self::Bool(_) | Self::List(_) | Self::Table(_) | Self::Other(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(super) fn words(text: &str) -> Value {
        Value::Text(text.to_owned().into())
    }

    pub(super) fn hint<T>(read: Read<T>) -> String {
        read.err().map(|problem| problem.hint).unwrap_or_default()
    }

    #[test]
    fn durations() {
        for (text, expected) in [
            ("90s", 90_000),
            ("1h 30m", 5_400_000),
            ("500ms", 500),
            ("1.5s", 1500),
            (" 2m ", 120_000),
            ("0s", 0),
        ] {
            assert_eq!(
                duration(&words(text)),
                Ok(Duration::from_millis(expected)),
                "{text}"
            );
        }
        for text in [
            "",
            "s",
            "-1s",
            "1 fortnight",
            "2y",
            "18446744073709551615s 1000ms",
            "1e3s",
            "\u{661}s",
        ] {
            assert!(duration(&words(text)).is_err(), "{text}");
        }
        assert_eq!(
            hint(duration(&Value::Integer(90))),
            r#"write "90s" for seconds"#
        );
        assert_eq!(hint(duration(&words("90"))), r#"write "90s" for seconds"#);
        assert!(positive_duration(&words("0s")).is_err());
        assert_eq!(
            positive_duration(&words("1ms")),
            Ok(Duration::from_millis(1))
        );
    }

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("1MiB", 1 << 20),
            ("64 MiB", 64 << 20),
            ("1MB", 1_000_000),
            ("2KB", 2000),
            ("1GiB", 1 << 30),
            ("0B", 0),
        ] {
            assert_eq!(size(&words(text)), Ok(expected), "{text}");
        }
        for text in [
            "",
            "MiB",
            "1M",
            "1.5MiB",
            "-1B",
            "99999999999999999999B",
            "18446744073709551615GiB",
        ] {
            assert!(size(&words(text)).is_err(), "{text}");
        }
        assert_eq!(
            hint(size(&Value::Integer(4096))),
            r#"write "4096B" for bytes, or for example "1MiB""#
        );
    }

    #[test]
    fn integers_and_booleans() {
        assert_eq!(integer(&Value::Integer(1), 1, 3), Ok(1));
        assert_eq!(integer(&Value::Integer(3), 1, 3), Ok(3));
        for number in [0, 4, -1, i64::MAX, i64::MIN] {
            assert_eq!(
                hint(integer(&Value::Integer(number), 1, 3)),
                "write a number from 1 to 3",
                "{number}"
            );
        }
        assert!(integer(&words("2"), 1, 3).is_err());
        assert_eq!(boolean(&Value::Bool(true)), Ok(true));
        assert_eq!(
            hint(boolean(&words("yes"))),
            "write true or false, without quotes"
        );
    }

    #[test]
    fn placeholders() {
        for text in ["<client id>", " <x> ", "…", "..."] {
            assert!(is_placeholder(&words(text)), "{text}");
        }
        for text in ["<>", "a<b>", "", "client id", "<x"] {
            assert!(!is_placeholder(&words(text)), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_reader_panic(text in ".{0,40}", scheme in "(https?://|unix:|localhost:|[0-9]{1,20}[a-zA-Z ]{0,3}){0,3}") {
            let value = words(&format!("{scheme}{text}"));
            let _ = (duration(&value), size(&value), address(&value), socket_address(&value), endpoint(&value));
            let _ = (web_origin(&value), host_name(&value), host_header(&value), url_path(&value));
            let _ = (json_pointer(&value), server_name(&value), prefix(&value), path(&value), integer(&value, 0, 9));
        }
    }
}
