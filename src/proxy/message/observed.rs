//! What JSON responses contain that the configuration does not handle: error codes in successful
//! responses, and URLs of origins without a `[[rewrite]]`. Shown in `/status` as a help to
//! configure.
//!
//! A sample of responses is parsed after it was forwarded; none is delayed.

use std::{collections::BTreeSet, time::SystemTime};

use http::{HeaderMap, header, response};
use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;
use url::Url;

use crate::proxy::message::{
    json_body::{self, Format},
    judge::RetryJson,
    urls::UrlMap,
};

/// The most responses that one worker observes in a second.
pub(crate) const MAX_PER_SECOND: u32 = 4;

/// The largest body that is observed, in bytes.
const MAX_BODY: usize = 16 * 1024;

/// The most notes of each kind. The oldest is replaced.
const MAX_NOTES: usize = 16;

/// The location of the error code without `retry.json` (JSON pointer, RFC 6901).
const DEFAULT_POINTER: &str = "/code";

/// One worker's notes. They change a few times a second at most, so the lock is not contended.
#[derive(Debug, Default)]
pub struct Observed {
    notes: Mutex<Notes>,
}

/// The notes of each kind.
#[derive(Debug, Default)]
pub struct Notes {
    /// Error codes that `retry.json` does not contain.
    pub codes: Vec<Note>,
    /// Origins of absolute URLs that no `[[rewrite]]` maps.
    pub origins: Vec<Note>,
    /// Origins that differ from a configured one by their scheme alone.
    pub other_schemes: Vec<Note>,
}

/// An observed value.
#[derive(Debug, Clone)]
pub struct Note {
    /// The code, or the origin.
    pub value: String,
    /// The number of observed responses that contain it.
    pub responses: u64,
    /// When it was last observed.
    pub last_seen: SystemTime,
}

impl Observed {
    /// The notes so far.
    pub fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock()
    }

    /// Records an origin that differs from a configured one by its scheme alone.
    pub(crate) fn other_scheme(&self, origin: &str, now: SystemTime) {
        add(&mut self.notes().other_schemes, origin, 1, now);
    }
}

/// Adds `responses` that contain `value` to the notes of one kind.
pub fn add(notes: &mut Vec<Note>, value: &str, responses: u64, last_seen: SystemTime) {
    if let Some(note) = notes.iter_mut().find(|note| note.value == value) {
        note.responses += responses;
        note.last_seen = note.last_seen.max(last_seen);
        return;
    }
    if notes.len() == MAX_NOTES
        && let Some(oldest) = (0..notes.len()).min_by_key(|index| notes[*index].last_seen)
    {
        notes.swap_remove(oldest);
    }
    notes.push(Note {
        value: value.to_owned(),
        responses,
        last_seen,
    });
}

/// The location of the error code (JSON pointer, RFC 6901).
pub fn pointer(retry: Option<&RetryJson>) -> &str {
    retry.map_or(DEFAULT_POINTER, |retry| retry.pointer.as_str())
}

/// A response that is observed: a copy of its body, taken while it is forwarded.
#[derive(Debug, Default)]
pub(crate) struct Observer {
    body: Vec<u8>,
    is_too_large: bool,
}

impl Observer {
    /// Whether a response can be observed.
    pub(crate) fn applies_to(head: &response::Parts) -> bool {
        head.status.is_success()
            && json_body::format(head) != Format::Other
            && !json_body::is_encoded(&head.headers)
            && fits(&head.headers)
    }

    pub(crate) fn push(&mut self, data: &[u8]) {
        if self.body.len() + data.len() > MAX_BODY {
            self.is_too_large = true;
            self.body = Vec::new();
        }
        if !self.is_too_large {
            self.body.extend_from_slice(data);
        }
    }

    /// Parses the body and records what the configuration does not handle.
    pub(crate) fn record(
        &self,
        observed: &Observed,
        retry: Option<&RetryJson>,
        urls: &UrlMap,
        now: SystemTime,
    ) {
        let Some(body) = json_body::parse(&self.body) else {
            return;
        };
        let is_handled = |code: &&Value| retry.is_some_and(|retry| retry.contains(code));
        let code = body
            .pointer(pointer(retry))
            .filter(|code| !is_handled(code))
            .and_then(error_code);
        let mut origins = BTreeSet::new();
        collect_origins(&body, urls, &mut origins);
        if code.is_none() && origins.is_empty() {
            return;
        }
        let mut notes = observed.notes();
        if let Some(code) = code {
            add(&mut notes.codes, &code, 1, now);
        }
        for origin in origins {
            add(&mut notes.origins, &origin, 1, now);
        }
    }
}

fn fits(headers: &HeaderMap) -> bool {
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok());
    length.is_none_or(|length: usize| length <= MAX_BODY)
}

/// A code that does not mean success. A string that mixes letters and digits is skipped: it may be
/// something else under that name, such as a secret.
fn error_code(value: &Value) -> Option<String> {
    let code = match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        _ => return None,
    };
    let is_number = code
        .trim_start_matches('-')
        .bytes()
        .all(|byte| byte.is_ascii_digit());
    let is_word = code
        .bytes()
        .all(|byte| byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'-' | b'.'));
    let is_success = ["", "0", "200", "ok", "success"]
        .iter()
        .any(|success| code.eq_ignore_ascii_case(success));
    ((is_number || is_word) && code.len() <= 32 && !is_success).then_some(code)
}

fn collect_origins(value: &Value, urls: &UrlMap, origins: &mut BTreeSet<String>) {
    match value {
        Value::String(text) if origins.len() < MAX_NOTES => {
            origins.extend(unmapped_origin(text, urls));
        }
        Value::Array(values) => values
            .iter()
            .for_each(|value| collect_origins(value, urls, origins)),
        Value::Object(values) => values
            .values()
            .for_each(|value| collect_origins(value, urls, origins)),
        _ => {}
    }
}

/// The origin of an absolute URL that no `[[rewrite]]` maps.
fn unmapped_origin(text: &str, urls: &UrlMap) -> Option<String> {
    if !text.get(..4)?.eq_ignore_ascii_case("http") || urls.map(text.as_bytes(), b"").is_some() {
        return None;
    }
    let url = Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https"))?;
    Some(url.origin().ascii_serialization()).filter(|origin| origin.len() <= 200)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::proxy::message::urls::Rewrite;

    fn recorded(body: &str, retry: Option<&RetryJson>) -> (Vec<String>, Vec<String>) {
        let urls = UrlMap::new(&[Rewrite {
            from: "http://document.example.com".into(),
            to: "/_document".into(),
        }]);
        let (observed, mut observer) = (Observed::default(), Observer::default());
        for piece in body.as_bytes().chunks(7) {
            observer.push(piece);
        }
        observer.record(&observed, retry, &urls, SystemTime::UNIX_EPOCH);
        let values = |notes: &[Note]| notes.iter().map(|note| note.value.clone()).collect();
        let notes = observed.notes();
        (values(&notes.codes), values(&notes.origins))
    }

    #[test]
    fn unhandled_codes_and_origins_are_recorded() {
        let retry = RetryJson {
            pointer: "/error/code".into(),
            values: vec![json!(401), json!("EXPIRED")],
        };
        type Case<'a> = (Value, Option<&'a RetryJson>, &'a [&'a str], &'a [&'a str]);
        let table: &[Case<'_>] = &[
            (json!({ "code": 0, "success": true }), None, &[], &[]),
            (
                json!({ "code": 1201, "success": false }),
                None,
                &["1201"],
                &[],
            ),
            (
                json!({ "code": "TOKEN_EXPIRED" }),
                None,
                &["TOKEN_EXPIRED"],
                &[],
            ),
            (json!({ "code": "a9f1c2d3" }), None, &[], &[]),
            (json!({ "code": { "x": 1 } }), None, &[], &[]),
            (
                json!({ "error": { "code": "401" } }),
                Some(&retry),
                &[],
                &[],
            ),
            (
                json!({ "error": { "code": "EXPIRED" } }),
                Some(&retry),
                &[],
                &[],
            ),
            (
                json!({ "error": { "code": 403 }, "code": 9 }),
                Some(&retry),
                &["403"],
                &[],
            ),
            (
                json!({ "url": "http://document.example.com/x" }),
                None,
                &[],
                &[],
            ),
            (
                json!([
                    { "url": "HTTP://Share.example.com:80/s?secret" },
                    "https://user:pw@b.example.com:8443/",
                ]),
                None,
                &[],
                &["http://share.example.com", "https://b.example.com:8443"],
            ),
            (json!("http"), None, &[], &[]),
            (json!("see http://a.example"), None, &[], &[]),
        ];
        for (body, retry, codes, origins) in table {
            let (seen_codes, seen_origins) = recorded(&body.to_string(), *retry);
            assert_eq!(
                (&seen_codes[..], &seen_origins[..]),
                (&strings(codes)[..], &strings(origins)[..]),
                "{body}"
            );
        }
        let large = format!("{{\"code\":7,\"x\":\"{}\"}}", "x".repeat(MAX_BODY));
        assert_eq!(recorded(&large, None), (vec![], vec![]));
        assert_eq!(recorded("{\"code\":7", None), (vec![], vec![]));
    }

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn the_oldest_note_is_replaced() {
        let mut notes = Vec::new();
        let at = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        for n in 0..MAX_NOTES as u64 {
            add(&mut notes, &n.to_string(), 1, at(n));
        }
        add(&mut notes, "0", 2, at(100));
        add(&mut notes, "new", 1, at(101));
        assert_eq!(notes.len(), MAX_NOTES);
        assert!(!notes.iter().any(|note| note.value == "1"));
        assert_eq!(
            notes
                .iter()
                .find(|note| note.value == "0")
                .map(|note| note.responses),
            Some(3)
        );
    }
}
