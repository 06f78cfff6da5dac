//! The JSON object of a response, read leniently: odd bytes around and between the tokens make none
//! of them unreadable.

use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::MAX_TOKEN_LENGTH;

const BYTE_ORDER_MARK: char = '\u{feff}';
/// Parameters by which a form is recognised.
const FORM_FIELDS: [&str; 3] = ["access_token", "refresh_token", "error"];

/// Whether a body contains a whole object that is valid JSON.
pub(super) fn has_object(body: &[u8]) -> bool {
    read_object(body, parse_prefix).is_some()
}

/// The first object in a body, whole, with whatever precedes and follows it: a byte order mark, a
/// warning of the server, a guard against scripts, a list, the call of a function. Invalid UTF-8 is
/// replaced, and invalid values are repaired. An object in a JSON string, and a form
/// (`access_token=…&…`), count too.
pub(in crate::token) fn parse_object(body: &[u8]) -> Option<Value> {
    read_object(body, parse_prefix)
        .or_else(|| read_object(body, |text| parse_prefix(&repaired(text))))
}

fn read_object(body: &[u8], parse: impl Fn(&str) -> Option<Value>) -> Option<Value> {
    let first_object = |text: &str| parse(&text[text.find('{')?..]);
    let text = text_of(body);
    let text = text.trim_start_matches(BYTE_ORDER_MARK).trim();
    if text.starts_with('"')
        && let Ok(inner) = serde_json::from_str(text).map(Zeroizing::<String>::new)
    {
        return first_object(&inner);
    }
    first_object(text).or_else(|| form(text))
}

/// The object that the text begins with.
fn parse_prefix(text: &str) -> Option<Value> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    values.next()?.ok().filter(Value::is_object)
}

/// The text with U+FFFD or `null` in place of what JSON does not allow (RFC 8259): control
/// characters in strings, escapes of no or of half a character, numbers and literals that are none.
/// Commas without a value behind them are dropped.
fn repaired(text: &str) -> Zeroizing<String> {
    const STRUCTURE: [char; 6] = ['{', '}', '[', ']', ':', ','];
    // In one allocation, which is wiped on drop: a character becomes `null` at worst.
    let mut repaired = Zeroizing::new(String::with_capacity(4 * text.len()));
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let behind = &rest[first.len_utf8()..];
        if first == '"' {
            rest = repair_string(behind, &mut repaired);
        } else if first == ',' && behind.trim_start().starts_with(['}', ']']) {
            rest = behind;
        } else if STRUCTURE.contains(&first) || first.is_whitespace() {
            repaired.push(first);
            rest = behind;
        } else {
            let is_end = |c: char| c == '"' || STRUCTURE.contains(&c) || c.is_whitespace();
            let (literal, behind) = rest.split_at(rest.find(is_end).unwrap_or(rest.len()));
            let is_valid = serde_json::from_str::<Value>(literal).is_ok();
            repaired.push_str(if is_valid { literal } else { "null" });
            rest = behind;
        }
    }
    repaired
}

/// Repairs a string, which begins behind its first quote. Returns what follows it.
fn repair_string<'a>(mut rest: &'a str, repaired: &mut String) -> &'a str {
    repaired.push('"');
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' => {
                repaired.push('"');
                return &rest[1..];
            }
            '\\' => escape_length(rest),
            '\0'..='\u{1f}' => None,
            _ => Some(first.len_utf8()),
        };
        match length {
            Some(length) => {
                repaired.push_str(&rest[..length]);
                rest = &rest[length..];
            }
            None => {
                repaired.push(char::REPLACEMENT_CHARACTER);
                // With the character that a backslash escapes.
                let skipped = rest.chars().take(if first == '\\' { 2 } else { 1 });
                rest = &rest[skipped.map(char::len_utf8).sum()..];
            }
        }
    }
    rest
}

/// The length of the escape at the start; `None` if it stands for no character.
fn escape_length(text: &str) -> Option<usize> {
    // Two halves of a character outside the basic plane are one escape here.
    [2, 6, 12].into_iter().find(|length| {
        let quoted = text.get(..*length).map(|escape| format!("\"{escape}\""));
        quoted.is_some_and(|quoted| serde_json::from_str::<String>(&quoted).is_ok())
    })
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

/// Whether the first object of a body is part of an HTML page. It is none behind a warning of the
/// server, which is markup, too.
pub(super) fn is_page(body: &[u8]) -> bool {
    let text = text_of(body);
    let (before, object) = text.split_at(text.find('{').unwrap_or(text.len()));
    let before = before.to_ascii_lowercase();
    before.contains('<')
        && (["<!doctype", "<html", "<script"]
            .iter()
            .any(|tag| before.contains(tag))
            || object.contains('<'))
}

/// The text at a pointer (RFC 6901) in an object that is cut off or invalid. `None` unless there is
/// exactly one value, which is whole.
pub(super) fn find_token(body: &[u8], pointer: &str) -> Option<Zeroizing<String>> {
    let text = text_of(body);
    let text = repaired(&text[text.find('{')?..]);
    let pointer: Vec<_> = pointer.split('/').skip(1).map(unescape).collect();
    // The name of the current member of each open object. Values in a list have none.
    let mut path: Vec<Option<Zeroizing<String>>> = Vec::new();
    let mut found: Option<Zeroizing<String>> = None;
    let mut rest = text.as_str();
    while let Some(first) = rest.chars().next() {
        if first != '"' {
            rest = &rest[first.len_utf8()..];
            match first {
                '{' | '[' => path.push(None),
                '}' | ']' => {
                    path.pop();
                    if path.is_empty() {
                        break;
                    }
                }
                ',' => path.last_mut().into_iter().for_each(|name| *name = None),
                _ => {}
            }
            continue;
        }
        let mut strings = serde_json::Deserializer::from_str(rest).into_iter::<String>();
        let Some(Ok(string)) = strings.next().map(|next| next.map(Zeroizing::new)) else {
            break;
        };
        rest = rest[strings.byte_offset()..].trim_start();
        let Some(name) = path.last_mut() else { break };
        if rest.starts_with(':') {
            *name = Some(string);
            continue;
        }
        let is_token = !string.is_empty()
            && path.len() == pointer.len()
            && path.iter().zip(&pointer).all(|(name, expected)| {
                name.as_ref()
                    .is_some_and(|name| name.as_str() == expected.as_str())
            });
        if is_token {
            if string.contains(char::REPLACEMENT_CHARACTER)
                || string.len() > MAX_TOKEN_LENGTH
                || found.as_ref().is_some_and(|found| *found != string)
            {
                return None;
            }
            found = Some(string);
        }
    }
    found
}

/// A name in a pointer, unescaped (RFC 6901 §4).
fn unescape(name: &str) -> String {
    name.replace("~1", "/").replace("~0", "~")
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
    fn field_a1_an_object_with_invalid_values_is_repaired() {
        let object = json!({"access_token": "a", "x": null});
        for x in [
            "NaN",
            "-Infinity",
            "1e400",
            "007",
            "+1",
            "undefined",
            "None",
            ".5",
            "0x10",
        ] {
            let body = format!(r#"{{"access_token":"a","x":{x}}}"#);
            assert_eq!(parse_object(body.as_bytes()), Some(object.clone()), "{x}");
        }
        for (x, read) in [
            ("a\nb", "a\u{fffd}b"),
            ("\0\t\u{1f}", "\u{fffd}\u{fffd}\u{fffd}"),
            (r"\ud83d", "\u{fffd}d83d"),
            (r"\ude00\n", "\u{fffd}de00\n"),
            (r"\ud83d\ude00\ud83d", "😀\u{fffd}d83d"),
            (r"it\'s \x41", "it\u{fffd}s \u{fffd}41"),
            (r#"\"\\\u0041"#, "\"\\A"),
            (r"\u00", "\u{fffd}00"),
        ] {
            let body = format!("{{\"x\":\"{x}\",\"access_token\":\"a\",\"bad\":NaN}}");
            let object = json!({"access_token": "a", "x": read, "bad": null});
            assert_eq!(parse_object(body.as_bytes()), Some(object), "{x:?}");
        }
        for body in [
            r#"{"access_token":"a",}"#,
            r#"{"access_token":"a" , }"#,
            r#"{"access_token":"a","x":[1,2,],}"#,
        ] {
            let token = parse_object(body.as_bytes());
            assert_eq!(token.expect(body)["access_token"], "a", "{body}");
        }
    }

    #[test]
    fn field_a1_a_token_is_found_in_what_is_no_object() {
        let find = |body: &str, pointer: &str| {
            find_token(body.as_bytes(), pointer).map(|token| token.to_string())
        };
        for body in [
            r#"{"refresh_token":"b"#,
            r#"{"refresh_token":"#,
            r#"{"refresh_token":5}"#,
            r#"{"refresh_token":""}"#,
            r#"{"refresh_token":"b","refresh_token":"c""#,
            "{\"refresh_token\":\"b\u{fffd}\"",
            r#"{"my_refresh_token":"b""#,
            "\"refresh_token\"",
            // Elsewhere than at the pointer.
            r#"{"data":{"refresh_token":"b"}}"#,
            r#"{"request":{"refresh_token":"b"},"#,
            r#"{"request":[{"refresh_token":"b"}],"#,
            r#"{"request":["refresh_token","b"],"#,
            r#"{"x":"a"},"refresh_token":"b""#,
            r#"{"x":"\"refresh_token\":\"b\"""#,
            r#"{"refresh_token":["b"],"#,
            r#"{"refresh_token":5,"b","#,
        ] {
            assert_eq!(find(body, "/refresh_token"), None, "{body}");
        }
        for body in [
            r#"{"refresh_token":"b""#,
            r#"{"refresh_token" : "b","expires_in":36"#,
            r#"{"refresh_token":"b","expires_in":NaN}"#,
            r#"{"refresh_token":"b","x":{"refresh_token":"c"}"#,
            r#"{"x":[{"y":1},[]],"refresh_token":"b""#,
            r#"{"access_token":"a" "refresh_token":"b"}"#,
            r#"{access_token:"a","refresh_token":"b","#,
            r#"{"refresh_token":"b","refresh_token":"b",}"#,
            "{\"x\":\"a\nb\",\"refresh_token\":\"\\u0062\"}",
            ")]}',\n{\"refresh_token\":\"b\",",
        ] {
            assert_eq!(find(body, "/refresh_token").as_deref(), Some("b"), "{body}");
        }
        let nested = r#"{"refresh_token":"c","data":{"a/b":"b","#;
        assert_eq!(find(nested, "/data/a~1b").as_deref(), Some("b"));
        let deep = "[".repeat(60_000);
        assert_eq!(find(&format!("{{\"x\":{deep}"), "/refresh_token"), None);
    }

    #[test]
    fn an_object_in_a_page_and_one_behind_a_warning_are_distinct() {
        for page in [
            "<!DOCTYPE html><p>{\"a\":1}",
            "\u{feff}\n<HTML><script>var texts = {\"a\":1}",
            "<div data-texts='{\"a\":1}'></div>",
            "Sign in <b>here</b> {\"a\":1} <br>",
        ] {
            assert!(is_page(page.as_bytes()), "{page}");
        }
        for other in [
            "",
            "{\"a\":\"<html>\"}",
            "{\"a\":1}\r\n<html>",
            "<br />\n<b>Warning</b>: x in y.php on line 1<br />\n{\"a\":1}",
        ] {
            assert!(!is_page(other.as_bytes()), "{other}");
        }
    }
}
