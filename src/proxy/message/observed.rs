//! What answers tell about the cloud that the configuration does not handle: codes of failure within a 200, and addresses
//! that lead past us. For `/status`, so that whoever sets the proxy up need not guess.
//!
//! A few JSON answers a second are observed_rate into while they pass; none waits for it.

use std::{collections::BTreeSet, time::SystemTime};

use http::{HeaderMap, header, response};
use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;
use url::Url;

use crate::proxy::message::{
    judge::RetryJson,
    urls::{self as rewrite, UrlMap},
};

/// Answers that one worker looks into in a second.
pub(crate) const EACH_SECOND: u32 = 4;

/// The largest answer that is observed_rate into.
const MAX_ANSWER: usize = 16 * 1024;

/// What is remembered of each kind; the oldest gives way.
const MAX_NOTES: usize = 16;

/// Where clouds of this kind put their code, unless `retry.json` says otherwise.
const CODE: &str = "/code";

/// One worker's notes. Written a few times a second at most, so that a lock does no harm.
#[derive(Debug, Default)]
pub struct Observed {
    notes: Mutex<Notes>,
}

/// What was seen lately.
#[derive(Debug, Default)]
pub struct Notes {
    /// Codes other than zero at `retry.json.pointer`, that `retry.json` does not take for a refused token.
    pub codes: Vec<Note>,
    /// Origins of absolute addresses that no `[[rewrite]]` brings home.
    pub origins: Vec<Note>,
}

/// Something that was seen.
#[derive(Debug, Clone)]
pub struct Note {
    /// The code, or the origin.
    pub words: String,
    /// In how many of the answers that were observed_rate into.
    pub answers: u64,
    /// When it was seen last.
    pub last: SystemTime,
}

impl Observed {
    /// What was seen so far.
    pub fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock()
    }
}

/// Adds to the notes of one kind.
pub fn add(notes: &mut Vec<Note>, words: &str, answers: u64, last: SystemTime) {
    if let Some(known) = notes.iter_mut().find(|note| note.words == words) {
        known.answers += answers;
        known.last = known.last.max(last);
        return;
    }
    if notes.len() == MAX_NOTES
        && let Some(oldest) = (0..notes.len()).min_by_key(|at| notes[*at].last)
    {
        notes.swap_remove(oldest);
    }
    notes.push(Note {
        words: words.to_owned(),
        answers,
        last,
    });
}

/// Where the code stands.
pub fn pointer(retry: Option<&RetryJson>) -> &str {
    retry.map_or(CODE, |retry| retry.pointer.as_str())
}

/// An answer on its way that is observed_rate into when it has passed.
#[derive(Debug, Default)]
pub(crate) struct Observer {
    kept: Vec<u8>,
    is_too_large: bool,
}

impl Observer {
    /// Whether there may be something to see.
    pub(crate) fn is_worth_it(head: &response::Parts) -> bool {
        head.status.is_success()
            && rewrite::is_json(&head.headers)
            && !rewrite::is_coded(&head.headers)
            && fits(&head.headers)
    }

    pub(crate) fn push(&mut self, data: &[u8]) {
        if self.kept.len() + data.len() > MAX_ANSWER {
            self.is_too_large = true;
            self.kept = Vec::new();
        }
        if !self.is_too_large {
            self.kept.extend_from_slice(data);
        }
    }

    /// Takes down what is worth it.
    pub(crate) fn note(
        &self,
        seen: &Observed,
        retry: Option<&RetryJson>,
        rewrites: &UrlMap,
        now: SystemTime,
    ) {
        let Ok(answer) = serde_json::from_slice::<Value>(&self.kept) else {
            return;
        };
        let code = answer.pointer(pointer(retry)).and_then(code);
        let is_handled = |code: &str| {
            let values = retry.into_iter().flat_map(|retry| &retry.values);
            values.into_iter().any(|value| {
                value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned)
                    == code
            })
        };
        let mut origins = BTreeSet::new();
        collect_origins(&answer, rewrites, &mut origins);
        let code = code.filter(|code| !is_handled(code));
        if code.is_none() && origins.is_empty() {
            return;
        }
        let mut notes = seen.notes();
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
    length.is_none_or(|length: usize| length <= MAX_ANSWER)
}

/// A code that is no success. Words with digits in them may be something else of that name, a secret even.
fn code(value: &Value) -> Option<String> {
    let words = match value {
        Value::Number(number) => number.to_string(),
        Value::String(words) => words.clone(),
        _ => return None,
    };
    let is_number = words
        .trim_start_matches('-')
        .bytes()
        .all(|byte| byte.is_ascii_digit());
    let is_word = words
        .bytes()
        .all(|byte| byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'-' | b'.'));
    let is_success = ["", "0", "200", "ok", "success"]
        .iter()
        .any(|success| words.eq_ignore_ascii_case(success));
    ((is_number || is_word) && words.len() <= 32 && !is_success).then_some(words)
}

fn collect_origins(value: &Value, rewrites: &UrlMap, origins: &mut BTreeSet<String>) {
    match value {
        Value::String(words) if origins.len() < MAX_NOTES => {
            origins.extend(foreign_origin(words, rewrites))
        }
        Value::Array(values) => values
            .iter()
            .for_each(|value| collect_origins(value, rewrites, origins)),
        Value::Object(values) => values
            .values()
            .for_each(|value| collect_origins(value, rewrites, origins)),
        _ => {}
    }
}

fn foreign_origin(address: &str, rewrites: &UrlMap) -> Option<String> {
    if !address.get(..4)?.eq_ignore_ascii_case("http")
        || rewrites.home(address.as_bytes(), b"").is_some()
    {
        return None;
    }
    let url = Url::parse(address)
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

    fn noted(answer: &str, retry: Option<&RetryJson>) -> (Vec<String>, Vec<String>) {
        let rewrites = UrlMap::new(&[Rewrite {
            from: "http://document.example.com".into(),
            to: "/_document".into(),
        }]);
        let (seen, mut look) = (Observed::default(), Observer::default());
        for piece in answer.as_bytes().chunks(7) {
            look.push(piece);
        }
        look.note(&seen, retry, &rewrites, SystemTime::UNIX_EPOCH);
        let words = |notes: &[Note]| notes.iter().map(|note| note.words.clone()).collect();
        let notes = seen.notes();
        (words(&notes.codes), words(&notes.origins))
    }

    #[test]
    fn codes_and_origins_that_nothing_handles_are_noted() {
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
                json!([{ "url": "HTTP://Share.example.com:80/s?secret" }, "https://user:pw@b.example.com:8443/"]),
                None,
                &[],
                &["http://share.example.com", "https://b.example.com:8443"],
            ),
            (json!("http"), None, &[], &[]),
            (json!("see http://a.example"), None, &[], &[]),
        ];
        for (answer, retry, codes, origins) in table {
            let (seen_codes, seen_origins) = noted(&answer.to_string(), *retry);
            assert_eq!(
                (&seen_codes[..], &seen_origins[..]),
                (&strings(codes)[..], &strings(origins)[..]),
                "{answer}"
            );
        }
        let large = format!("{{\"code\":7,\"x\":\"{}\"}}", "x".repeat(MAX_ANSWER));
        assert_eq!(noted(&large, None), (vec![], vec![]));
        assert_eq!(noted("{\"code\":7", None), (vec![], vec![]));
    }

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn the_oldest_gives_way() {
        let mut notes = Vec::new();
        let at = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        for n in 0..MAX_NOTES as u64 {
            add(&mut notes, &n.to_string(), 1, at(n));
        }
        add(&mut notes, "0", 2, at(100));
        add(&mut notes, "new", 1, at(101));
        assert_eq!(notes.len(), MAX_NOTES);
        assert!(!notes.iter().any(|note| note.words == "1"));
        assert_eq!(
            notes
                .iter()
                .find(|note| note.words == "0")
                .map(|note| note.answers),
            Some(3)
        );
    }
}
