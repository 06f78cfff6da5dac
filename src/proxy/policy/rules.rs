//! Which paths may be asked for: judged is the path that is sent. Pure.
//!
//! Servers disagree on what a path means: some decode it twice, some take `\` for `/`, cut parameters at `;`, drop what stands
//! behind a decoded `?`, ignore case or trailing dots. A rule that holds for one reading alone can be walked around, so a path
//! is judged in every reading.

use std::borrow::Cow;

use http::Method;

use crate::proxy::error::Error;

/// Decodings after which a path that still changes is no honest one.
const MAX_ROUNDS: usize = 3;

/// What an operator allows or denies: everything below a path, by any method or by one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The only method that it is about; `GET` includes `HEAD`.
    pub method: Option<Method>,
    /// This path and everything below it, as [`normal`] writes it.
    path: String,
}

impl Rule {
    /// A rule on everything below `path`.
    pub fn new(method: Option<Method>, path: &str) -> Self {
        Self {
            method,
            path: normal(&folded(path.into())),
        }
    }

    fn covers(&self, method: &Method, path: &str) -> bool {
        let below = path.strip_prefix(self.path.as_str());
        let is_below =
            below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || self.path == "/");
        // HEAD is GET without the content: RFC 9110 §9.3.2.
        let method = if *method == Method::HEAD && self.method != Some(Method::HEAD) {
            &Method::GET
        } else {
            method
        };
        is_below && self.method.as_ref().is_none_or(|only| only == method)
    }
}

/// What holds on one route.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// If there are any, only these may be asked for.
    pub allow: Vec<Rule>,
    /// These may not.
    pub deny: Vec<Rule>,
}

impl Rules {
    /// Whether nothing is allowed or denied in particular.
    pub(crate) fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    /// Judges the path of a request as it is sent. `issuer` holds the last segments of the issuer's own paths, in lower
    /// case: no client may spend or mint our tokens.
    pub(crate) fn judge(
        &self,
        method: &Method,
        path: &str,
        issuer: &[String],
    ) -> Result<(), Error> {
        let has_own = !self.is_empty();
        if !has_own && is_plain(path) {
            return if names_issuer(path, issuer) {
                Err(Error::IssuerPath)
            } else {
                Ok(())
            };
        }
        if path.contains('\\') {
            return Err(Error::BadRequest(
                "a path is written with slashes, not with backslashes",
            ));
        }
        let mut reading = path.as_bytes().to_vec();
        for round in 0.. {
            // Bytes that are no text belong to no name that a rule can hold.
            let text = folded(String::from_utf8_lossy(&reading));
            let cut = before_query(&text);
            if names_issuer(&text, issuer) || names_issuer(cut, issuer) {
                return Err(Error::IssuerPath);
            }
            if climbs(&text) {
                return Err(Error::BadRequest("the path leads above its root"));
            }
            if has_own && (has_dot_segments(&text) || round > 0 && hides_a_border(&text, path)) {
                return Err(Error::BadRequest(
                    "where rules hold, a path has no dot segments and no encoded borders",
                ));
            }
            for read in [&text, cut] {
                let read = normal(read);
                if self.deny.iter().any(|rule| rule.covers(method, &read)) {
                    return Err(Error::PathDenied);
                }
            }
            let decoded = match decode(&reading, round == 0)? {
                Some(decoded) => decoded,
                None => break,
            };
            if has_own && round == 1 {
                return Err(Error::BadRequest(
                    "where rules hold, a path is encoded once at most",
                ));
            }
            if round == MAX_ROUNDS {
                return Err(Error::BadRequest("the path is encoded over and over"));
            }
            reading = decoded;
        }
        let read = normal(&folded(String::from_utf8_lossy(&reading)));
        if !self.allow.is_empty() && !self.allow.iter().any(|rule| rule.covers(method, &read)) {
            return Err(Error::PathDenied);
        }
        Ok(())
    }
}

/// Every way in which a path can be read, each as rules are written.
pub(crate) fn readings(path: &str) -> impl Iterator<Item = String> {
    let decoded = |reading: &Vec<u8>| decode(reading, false).ok().flatten();
    let all = std::iter::successors(Some(path.as_bytes().to_vec()), decoded).take(MAX_ROUNDS + 1);
    all.flat_map(|reading| {
        let text = folded(String::from_utf8_lossy(&reading));
        [normal(&text), normal(before_query(&text))]
    })
}

/// The last segment of an issuer's path, as it is compared.
pub fn issuer_segment(path: &str) -> Option<String> {
    let path = normal(path);
    path.rsplit('/')
        .find(|segment| !segment.is_empty())
        .map(str::to_owned)
}

/// Whether everybody reads a path in the same way, but for case and trailing dots.
fn is_plain(path: &str) -> bool {
    let mut before = b'/';
    !path.bytes().any(|byte| {
        let is_dots = byte == b'.' && before == b'.';
        before = byte;
        is_dots || matches!(byte, b'%' | b'\\' | b';' | b' ')
    })
}

/// Whether a path has more `..` at some point than names before it: servers disagree on where that leads.
fn climbs(path: &str) -> bool {
    let mut depth = 0_i32;
    path.split(['/', '\\']).any(|segment| {
        match segment.split(';').next().unwrap_or_default() {
            ".." => depth -= 1,
            "" | "." => {}
            _ => depth += 1,
        }
        depth < 0
    })
}

fn names_issuer(path: &str, issuer: &[String]) -> bool {
    path.split(['/', '\\'])
        .map(bare)
        .any(|segment| issuer.iter().any(|name| name.eq_ignore_ascii_case(segment)))
}

/// Some servers look for a query, or a fragment, in what they have decoded, and drop it.
fn before_query(decoded: &str) -> &str {
    decoded.split(['?', '#']).next().unwrap_or_default()
}

/// A segment without parameters and what some servers and file systems ignore at its end.
fn bare(segment: &str) -> &str {
    let name = segment.split(';').next().unwrap_or_default();
    name.trim_end_matches(|c: char| c == '.' || c.is_whitespace() || c.is_control())
}

/// Whether there are segments of dots, also of such as are some only without what is ignored at their end.
fn has_dot_segments(path: &str) -> bool {
    path.split(['/', '\\'])
        .any(|segment| segment.starts_with('.') && bare(segment).is_empty())
}

/// Some letters beyond ASCII are small or capital forms of letters within it: to servers that ignore case, they are the same.
fn folded(text: Cow<'_, str>) -> Cow<'_, str> {
    if text.is_ascii() {
        text
    } else {
        Cow::Owned(text.to_uppercase().to_lowercase())
    }
}

/// Whether decoding brought slashes to light.
fn hides_a_border(decoded: &str, path: &str) -> bool {
    let borders = |text: &str| {
        text.bytes()
            .filter(|byte| matches!(byte, b'/' | b'\\'))
            .count()
    };
    borders(decoded) != borders(path)
}

/// A path as the most lenient server reads it: one kind of slash, no empty segments, no parameters, dots resolved, no dots
/// or spaces at the end of a name, lower case.
pub(crate) fn normal(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split(['/', '\\']) {
        match segment.split(';').next().unwrap_or_default() {
            ".." => drop(segments.pop()),
            name if bare(name).is_empty() => {}
            name => segments.push(bare(name)),
        }
    }
    format!("/{}", segments.join("/")).to_ascii_lowercase()
}

/// Decodes once; `None` if there is nothing to decode. What is no triplet is a mistake in what a client wrote, and stays as
/// it is in what came of decoding.
fn decode(path: &[u8], is_written: bool) -> Result<Option<Vec<u8>>, Error> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, behind)) = rest.split_first() {
        let digits = behind
            .get(..2)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let is_hex =
            digits.is_some_and(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match digits
            .filter(|_| *first == b'%' && is_hex)
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
        {
            Some(0) => return Err(Error::BadRequest("the path holds an encoded NUL")),
            Some(byte) => {
                decoded.push(byte);
                rest = &behind[2..];
            }
            None if *first == b'%' && is_written => {
                return Err(Error::BadRequest(
                    "a % in the path is not followed by two hexadecimal digits",
                ));
            }
            None => {
                decoded.push(*first);
                rest = behind;
            }
        }
    }
    Ok((decoded != path).then_some(decoded))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn issuer() -> Vec<String> {
        ["/api/token.do", "/api/refreshToken.do"]
            .into_iter()
            .filter_map(issuer_segment)
            .collect()
    }

    fn verdict(rules: &Rules, method: &Method, path: &str) -> u16 {
        rules
            .judge(method, path, &issuer())
            .map_or_else(|error| error.status().as_u16(), |()| 200)
    }

    #[test]
    fn no_path_leads_above_its_root() {
        for (path, expected) in [
            ("/..", 400),
            ("/../a", 400),
            ("/a/../../b", 400),
            ("/a//../..", 400),
            ("/./../a", 400),
            ("/%2e%2e/a", 400),
            ("/.%2E", 400),
            ("/..%2fa", 400),
            ("/..;x/a", 400),
            ("/a/..", 200),
            ("/a/b/../../c", 200),
            ("/...", 200),
            ("/a..b/..c", 200),
        ] {
            assert_eq!(
                verdict(&Rules::default(), &Method::GET, path),
                expected,
                "{path}"
            );
        }
    }

    #[test]
    fn the_issuer_is_out_of_reach_in_every_reading() {
        for (path, expected) in [
            ("/api/token.do", 403),
            ("/nd/api/token.do", 403),
            ("/API/TOKEN.DO", 403),
            ("/api/refreshtoken.do", 403),
            ("/api/token.do/", 403),
            ("/api/token.do/x", 403),
            ("/api/token.do;jsessionid=1", 403),
            ("/api/token.do.", 403),
            ("/api/token.do%20", 403),
            ("/api/%74oken.do", 403),
            ("/api/%2574oken.do", 403),
            ("/api%2Ftoken.do", 403),
            ("/api%5Ctoken.do", 403),
            ("/api/x/../token.do", 403),
            ("/api/token.do/..", 403),
            ("//token.do", 403),
            ("/api/token.do%3bx", 403),
            ("/api/token.do%09", 403),
            ("/api/to%E2%84%AAen.do", 403),
            ("/api/token.do%3fx", 403),
            ("/api/token.do%23/x", 403),
            ("/api/token.do%253Fx", 403),
            ("/api/%25252574oken.do", 400),
            ("/api\\token.do", 400),
            ("/api/%zz", 400),
            ("/api/%", 400),
            ("/api/%4", 400),
            ("/api/%00", 400),
            ("/api/%2500", 400),
            ("/api/token.dox", 200),
            ("/api/xtoken.do", 200),
            ("/api/token", 200),
            ("/a%2Fb", 200),
            ("/a;jsessionid=1", 200),
            ("/a/../b", 200),
            ("/100%25/a", 200),
            ("/100%25%41", 200),
            ("/%E6%96%87", 200),
            ("/%ff", 200),
            ("/", 200),
            ("*", 200),
        ] {
            assert_eq!(
                verdict(&Rules::default(), &Method::GET, path),
                expected,
                "{path}"
            );
        }
    }

    #[test]
    fn an_operators_rules_hold_in_every_reading() {
        let rules = Rules {
            allow: vec![Rule::new(None, "/api"), Rule::new(None, "/Share/")],
            deny: vec![
                Rule::new(None, "/api/admin"),
                Rule::new(None, "/api/Ädmin"),
                Rule::new(Some(Method::DELETE), "/"),
            ],
        };
        for (method, path, expected) in [
            (Method::GET, "/api", 200),
            (Method::GET, "/api/file", 200),
            (Method::GET, "/API/file;x=1", 200),
            (Method::GET, "/share/1", 200),
            (Method::GET, "/%61pi/file", 200),
            (Method::GET, "/apix", 403),
            (Method::GET, "/other", 403),
            (Method::GET, "/", 403),
            (Method::GET, "/api/admin", 403),
            (Method::GET, "/api/Admin/x", 403),
            (Method::GET, "/api//admin", 403),
            (Method::GET, "/api/%61dmin", 403),
            (Method::GET, "/api/admin%3fx", 403),
            (Method::GET, "/api/admin%23", 403),
            (Method::GET, "/api/C%23%20notes%3f/x", 200),
            (Method::GET, "/api/admin.;x", 403),
            (Method::GET, "/api/administrator", 200),
            (Method::DELETE, "/api/file", 403),
            (Method::GET, "/api/./file", 400),
            (Method::GET, "/api/x/..;/admin", 400),
            (Method::GET, "/api/%2e%2e/x", 400),
            (Method::GET, "/api/x/..%20/admin", 400),
            (Method::GET, "/api/x/.../admin", 400),
            (Method::GET, "/api/x/..%0a/admin", 400),
            (Method::GET, "/api/.hidden", 200),
            (Method::GET, "/api/%C3%84DMIN", 403),
            (Method::GET, "/api/%C3%A4dmin/", 403),
            (Method::GET, "/api/adm%C4%B1n", 403),
            (Method::GET, "/api%2Ffile", 400),
            (Method::GET, "/api%5cfile", 400),
            (Method::GET, "/api/%2541", 400),
            (Method::GET, "/api/../../x", 400),
        ] {
            assert_eq!(verdict(&rules, &method, path), expected, "{method} {path}");
        }
        let all_but = Rules {
            deny: vec![Rule::new(None, "/secret")],
            ..Rules::default()
        };
        let reading = Rules {
            allow: vec![Rule::new(Some(Method::GET), "/x")],
            deny: vec![
                Rule::new(Some(Method::GET), "/x/secret"),
                Rule::new(Some(Method::HEAD), "/x/large"),
            ],
        };
        for (method, path, expected) in [
            (Method::HEAD, "/x", 200),
            (Method::POST, "/x", 403),
            (Method::HEAD, "/x/secret", 403),
            (Method::HEAD, "/x/large", 403),
            (Method::GET, "/x/large", 200),
        ] {
            assert_eq!(
                verdict(&reading, &method, path),
                expected,
                "{method} {path}"
            );
        }
        assert_eq!(verdict(&all_but, &Method::GET, "/x"), 200);
        assert_eq!(verdict(&all_but, &Method::GET, "/SECRET/x"), 403);
        let nothing = Rules {
            deny: vec![Rule::new(None, "/")],
            ..Rules::default()
        };
        assert_eq!(verdict(&nothing, &Method::GET, "/x"), 403);
    }

    proptest! {
        #[test]
        fn no_writing_of_the_issuers_path_gets_through(
            before in "(/|/[a-z]{1,3}/|//)",
            case in any::<u16>(),
            encoded in proptest::collection::vec(0..3_u8, 8),
            behind in "(|/|;x|%20|%2e|/x|%2f)",
        ) {
            let mut path = before;
            for (at, byte) in b"token.do".iter().enumerate() {
                let byte = if case >> at & 1 == 1 { byte.to_ascii_uppercase() } else { *byte };
                match encoded[at] {
                    0 => path.push(char::from(byte)),
                    1 => path += &format!("%{byte:02x}"),
                    _ => path += &format!("%25{byte:02X}"),
                }
            }
            path += &behind;
            prop_assert_eq!(verdict(&Rules::default(), &Method::GET, &path), 403, "{}", path);
        }

        #[test]
        fn no_path_makes_it_panic(path in "\\PC*") {
            let rules = Rules { allow: vec![Rule::new(None, "/a")], deny: vec![Rule::new(None, "/a/b")] };
            let _ = rules.judge(&Method::GET, &path, &issuer());
            let _ = Rules::default().judge(&Method::GET, &path, &issuer());
        }
    }
}
