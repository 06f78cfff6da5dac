//! The JSON object of a response, read leniently: odd bytes around and between the tokens make none
//! of them unreadable.

use std::borrow::Cow;

use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::MAX_TOKEN_LENGTH;

const BYTE_ORDER_MARK: char = '\u{feff}';
/// Parameters by which a form is recognised.
const FORM_FIELDS: [&str; 3] = ["access_token", "refresh_token", "error"];

/// Whether a body contains a whole object.
pub(super) fn has_object(body: &[u8]) -> bool {
    parse_object(body).is_some()
}

/// The first object in a body, whole, with whatever precedes and follows it: a byte order mark, a
/// warning of the server, a guard against scripts, a list, the call of a function. Invalid UTF-8 is
/// replaced. An object in a JSON string, and a form (`access_token=…&…`), count too.
pub(in crate::token) fn parse_object(body: &[u8]) -> Option<Value> {
    let text = text_of(body);
    let text = text.trim_start_matches(BYTE_ORDER_MARK).trim();
    if text.starts_with('"')
        && let Ok(inner) = serde_json::from_str(text).map(Zeroizing::<String>::new)
    {
        return first_object(&inner);
    }
    first_object(text).or_else(|| form(text))
}

fn first_object(text: &str) -> Option<Value> {
    let start = text.find('{')?;
    let mut values = serde_json::Deserializer::from_str(&text[start..]).into_iter::<Value>();
    values.next()?.ok().filter(Value::is_object)
}

fn form(text: &str) -> Option<Value> {
    if text.contains(['{', '<', '"']) {
        return None;
    }
    let fields: Map<_, _> = url::form_urlencoded::parse(text.as_bytes())
        .map(|(name, value)| (name.into_owned(), Value::from(value)))
        .collect();
    FORM_FIELDS
        .iter()
        .any(|name| fields.contains_key(*name))
        .then_some(Value::Object(fields))
}

/// The text of a body: UTF-8, or UTF-16 if its byte order mark or the zero byte beside a
/// brace shows that (RFC 4627 §3).
fn text_of(body: &[u8]) -> Zeroizing<String> {
    let utf16 = |unit: fn([u8; 2]) -> u16| {
        let units = body.as_chunks().0.iter().map(|pair| unit(*pair));
        char::decode_utf16(units)
            .map(|decoded| decoded.unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect()
    };
    Zeroizing::new(match body {
        [0xff, 0xfe, ..] | [b'{', 0, ..] => utf16(u16::from_le_bytes),
        [0xfe, 0xff, ..] | [0, b'{', ..] => utf16(u16::from_be_bytes),
        _ => String::from_utf8_lossy(body).into_owned(),
    })
}

/// The text under the name that a pointer ends in, wherever it is in a body that contains no usable
/// object: cut off, invalid, or wrapped. `None` unless there is exactly one value, which is whole.
pub(super) fn find_token(body: &[u8], pointer: &str) -> Option<Zeroizing<String>> {
    let name = pointer.rsplit('/').next()?;
    let name: Cow<'_, str> = name.replace("~1", "/").replace("~0", "~").into();
    let quoted = Value::from(name).to_string();
    let text = text_of(body);
    let mut found: Option<Zeroizing<String>> = None;
    for (position, _) in text.match_indices(&quoted) {
        let behind = text[position + quoted.len()..].trim_start();
        let Some(value) = behind.strip_prefix(':') else {
            continue;
        };
        let mut values = serde_json::Deserializer::from_str(value).into_iter::<String>();
        let Some(Ok(value)) = values.next().map(|value| value.map(Zeroizing::new)) else {
            continue;
        };
        if value.is_empty() {
            continue;
        }
        if value.contains(char::REPLACEMENT_CHARACTER)
            || value.len() > MAX_TOKEN_LENGTH
            || found.as_ref().is_some_and(|found| *found != value)
        {
            return None;
        }
        found = Some(value);
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn utf16(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(bytes).collect()
    }

    #[test]
    fn field_a1_the_object_is_found_in_any_wrapping() {
        let object = r#"{"access_token":"a"}"#;
        for (before, behind) in [
            ("", ""),
            ("\u{feff}", ""),
            ("\u{feff}\u{feff}", ""),
            (" \r\n\t", "\n"),
            ("", "garbage"),
            ("", "\0\0"),
            ("", "{\"second\":1}"),
            ("<br />\n<b>Warning</b>: x in y.php on line 1<br />\n", ""),
            (")]}',\n", ""),
            ("while(1);", ""),
            ("/**/callback(", ");"),
            ("[", "]"),
            ("[[", ""),
            ("\u{1}", ""),
        ] {
            let body = format!("{before}{object}{behind}");
            assert_eq!(
                parse_object(body.as_bytes()),
                Some(json!({"access_token":"a"})),
                "{body:?}"
            );
        }
        let quoted = Value::from(object).to_string();
        assert!(has_object(quoted.as_bytes()));
        assert!(has_object(
            b"access_token=a&expires_in=3600&refresh_token=b%20c"
        ));
        assert!(has_object(&utf16(object, u16::to_le_bytes)));
        assert!(has_object(&utf16(object, u16::to_be_bytes)));
        assert!(has_object(&utf16(
            &format!("\u{feff}{object}"),
            u16::to_le_bytes
        )));
        assert!(has_object(&utf16(
            &format!("\u{feff}{object}"),
            u16::to_be_bytes
        )));
    }

    #[test]
    fn what_is_no_whole_object_is_none() {
        for body in [
            "",
            "{",
            r#"{"access_token":"a""#,
            r#"{"access_token":"a","#,
            r#"{"access_token":"a",}"#,
            "[1]",
            "null",
            "\"text\"",
            "\"{\"",
            "<html>access_token=a</html>",
            "access=a",
            "\0",
        ] {
            assert!(!has_object(body.as_bytes()), "{body}");
        }
        assert!(!has_object(&[b'{'; 60_000]));
        assert!(!has_object(&b"{\"a\":".repeat(10_000)), "too deep");
    }

    #[test]
    fn field_a1_a_token_is_found_in_what_is_no_object() {
        let find = |body: &str| {
            find_token(body.as_bytes(), "/refresh_token").map(|token| token.to_string())
        };
        for body in [
            r#"{"refresh_token":"b"#,
            r#"{"refresh_token":"#,
            r#"{"refresh_token":5}"#,
            r#"{"refresh_token":""}"#,
            r#"{"refresh_token":"b","x":{"refresh_token":"c"}"#,
            "{\"refresh_token\":\"b\u{fffd}\"",
            r#"{"my_refresh_token":"b""#,
            "\"refresh_token\"",
        ] {
            assert_eq!(find(body), None, "{body}");
        }
        for body in [
            r#"{"refresh_token":"b""#,
            r#"{"refresh_token" : "b","expires_in":36"#,
            r#"{"refresh_token":"b","expires_in":NaN}"#,
            r#"{"data":{"refresh_token":"b"}}"#,
            r#"{"refresh_token":"b","refresh_token":"b",}"#,
            r#"{"refresh_token":"","data":{"refresh_token":"b"}"#,
            "{\"x\":\"a\nb\",\"refresh_token\":\"\\u0062\"}",
        ] {
            assert_eq!(find(body).as_deref(), Some("b"), "{body}");
        }
        assert_eq!(
            find_token(br#"{"a/b":"c""#, "/x/a~1b")
                .as_deref()
                .map(|token| &**token),
            Some("c")
        );
    }
}
