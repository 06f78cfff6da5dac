//! Allowed and denied paths. The path that is checked is the one that is sent. Pure.
//!
//! Servers interpret paths differently. A rule that is checked against one interpretation alone can
//! be bypassed, so every interpretation is checked.

use http::Method;

use crate::proxy::{
    error::Error,
    policy::{
        issuer_path::{self, IssuerPath},
        paths::{
            MAX_DECODINGS, before_query, decode, escapes_root, fold_case, has_dot_segments,
            has_encoded_slash, is_unambiguous, normalize,
        },
    },
};

/// A path prefix and a method that the configuration allows or denies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The method; `GET` includes `HEAD`. `None`: all methods.
    pub method: Option<Method>,
    /// The path prefix, in the form of [`normalize`]. It matches whole segments.
    path: String,
}

impl Rule {
    /// A rule for `path` and everything below it.
    pub fn new(method: Option<Method>, path: &str) -> Self {
        Self {
            method,
            path: normalize(path),
        }
    }

    fn covers(&self, method: &Method, path: &str) -> bool {
        let below = path.strip_prefix(self.path.as_str());
        let is_below =
            below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || self.path == "/");
        // HEAD is GET without the content, RFC 9110 §9.3.2.
        let method = if *method == Method::HEAD && self.method != Some(Method::HEAD) {
            &Method::GET
        } else {
            method
        };
        is_below && self.method.as_ref().is_none_or(|only| only == method)
    }
}

/// The rules of a route or of a client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// If there are any, all other paths are denied.
    pub allow: Vec<Rule>,
    /// Denied paths. They take precedence over allowed ones.
    pub deny: Vec<Rule>,
}

impl Rules {
    /// Whether there are no rules.
    pub(crate) fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    /// Checks the path of a request as it is sent. No client may request or revoke tokens through
    /// the proxy, at the paths of the issuer.
    ///
    /// # Errors
    /// When the path is denied, or servers could interpret it differently.
    pub(crate) fn judge(
        &self,
        method: &Method,
        path: &str,
        issuer: &[IssuerPath],
    ) -> Result<(), Error> {
        let has_rules = !self.is_empty();
        if !has_rules && is_unambiguous(path) {
            return check_issuer(method, path, issuer);
        }
        if path.contains('\\') {
            return Err(Error::BadRequest("the path contains a backslash"));
        }
        let mut decoded_path = path.as_bytes().to_vec();
        for round in 0.. {
            // Rules are UTF-8, so that other bytes cannot match one.
            let text = fold_case(String::from_utf8_lossy(&decoded_path));
            let cut = before_query(&text);
            // Also as a server reads it that does not resolve dot segments.
            for read in [&text, cut] {
                check_issuer(method, read, issuer)?;
                check_issuer(method, &normalize(read), issuer)?;
            }
            if escapes_root(&text) {
                return Err(Error::BadRequest("the path leads above its root"));
            }
            if has_rules && (has_dot_segments(&text) || round > 0 && has_encoded_slash(&text, path))
            {
                return Err(Error::BadRequest(
                    "allow and deny rules require a path without dot segments and encoded slashes",
                ));
            }
            for read in [&text, cut] {
                let read = normalize(read);
                if self.deny.iter().any(|rule| rule.covers(method, &read)) {
                    return Err(Error::PathDenied);
                }
            }
            let decoded = match decode(&decoded_path, round == 0)? {
                Some(decoded) => decoded,
                None => break,
            };
            if has_rules && round == 1 {
                return Err(Error::BadRequest(
                    "allow and deny rules require a path that is percent-encoded once at most",
                ));
            }
            if round == MAX_DECODINGS {
                return Err(Error::BadRequest(
                    "the path is percent-encoded too many times",
                ));
            }
            decoded_path = decoded;
        }
        let read = normalize(&String::from_utf8_lossy(&decoded_path));
        if !self.allow.is_empty() && !self.allow.iter().any(|rule| rule.covers(method, &read)) {
            return Err(Error::PathDenied);
        }
        Ok(())
    }
}

fn check_issuer(method: &Method, path: &str, issuer: &[IssuerPath]) -> Result<(), Error> {
    match issuer_path::find(method, path, issuer) {
        Some(found) => Err(Error::IssuerPath(found.to_string())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn issuer() -> Vec<IssuerPath> {
        ["/api/token.do", "/api/refreshToken.do"]
            .into_iter()
            .filter_map(IssuerPath::new)
            .collect()
    }

    fn verdict(rules: &Rules, method: &Method, path: &str) -> u16 {
        rules
            .judge(method, path, &issuer())
            .map_or_else(|error| error.status().as_u16(), |()| 200)
    }

    #[test]
    fn paths_above_the_root_are_rejected() {
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
    fn the_issuers_paths_are_denied_in_every_interpretation() {
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
    fn rules_apply_to_every_interpretation() {
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
        let deny_only = Rules {
            deny: vec![Rule::new(None, "/secret")],
            ..Rules::default()
        };
        let read_only = Rules {
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
                verdict(&read_only, &method, path),
                expected,
                "{method} {path}"
            );
        }
        assert_eq!(verdict(&deny_only, &Method::GET, "/x"), 200);
        assert_eq!(verdict(&deny_only, &Method::GET, "/SECRET/x"), 403);
        let nothing = Rules {
            deny: vec![Rule::new(None, "/")],
            ..Rules::default()
        };
        assert_eq!(verdict(&nothing, &Method::GET, "/x"), 403);
    }

    #[test]
    fn field_b14_paths_of_several_segments_are_denied_in_every_interpretation() {
        let issuer: Vec<_> = IssuerPath::new("/apps/oauth2/api/v1/token")
            .into_iter()
            .collect();
        for (path, expected) in [
            ("/apps/oauth2/api/v1/token", 403),
            ("/apps/oauth2/api/v1/%74oken", 403),
            ("/apps/oauth2/api/v1%2Ftoken", 403),
            ("/apps/oauth2/api/v1%252Ftoken", 403),
            ("/apps/oauth2/api/v1/x/../token", 403),
            ("/apps/oauth2/api/v1/x/..;/token", 403),
            ("/apps/oauth2/api/v1/%2e/token", 403),
            ("/apps/oauth2/api/v1;x/token", 403),
            ("/apps/oauth2/api/v1//token", 403),
            ("/apps/oauth2/api/v1/token/../x", 403),
            ("/apps/oauth2/api/v1/to%E2%84%AAen%3fx", 403),
            ("/remote.php/dav/files/me/Token/report.docx", 200),
            ("/remote.php/dav/files/me/my%20token/token", 200),
            ("/remote.php/dav/files/me/v1/x/../../token", 200),
        ] {
            let judged = Rules::default().judge(&Method::GET, path, &issuer);
            let status = judged.map_or_else(|error| error.status().as_u16(), |()| 200);
            assert_eq!(status, expected, "{path}");
        }
        let denied = Rules::default().judge(&Method::GET, "/api/V1/Token", &issuer);
        let why = denied.unwrap_err().to_string();
        assert!(
            why.contains("\"v1/token\"") && why.contains("token.refresh_path"),
            "{why}"
        );
    }

    #[test]
    fn field_b20_letters_that_fold_to_ascii_are_folded() {
        let rules = Rules {
            deny: vec![
                Rule::new(None, "/api/admin/tasks"),
                Rule::new(None, "/İstanbul"),
            ],
            ..Rules::default()
        };
        let issuer = ["/api/authorize.do", "/api/token.do"].into_iter();
        let issuer: Vec<_> = issuer.filter_map(IssuerPath::new).collect();
        for (path, expected) in [
            ("/api/author%C4%B0ze.do", 403),
            ("/api/author%C4%B1ze.do", 403),
            ("/api/authorI%CC%87ze.do", 403),
            ("/api/author\u{130}ze.do", 403),
            ("/api/to\u{212A}en.do", 403),
            ("/api/to%e2%84%aaen.do", 403),
            ("/api/adm%C4%B0n/tasks", 403),
            ("/api/admin/ta%C5%BF%E2%84%AAs", 403),
            ("/api/admin/tas\u{212A}s", 403),
            ("/istanbul", 403),
            ("/%C4%B0STANBUL/x", 403),
            ("/api/authoriize.do", 200),
            ("/api/author%C3%ACze.do", 200),
            ("/api/admin/tasks.json", 200),
        ] {
            let judged = rules.judge(&Method::GET, path, &issuer);
            let status = judged.map_or_else(|error| error.status().as_u16(), |()| 200);
            assert_eq!(status, expected, "{path}");
        }
    }

    proptest! {
        #[test]
        fn spellings_of_the_issuers_path_are_denied(
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
        fn any_path_is_judged_without_a_panic(path in "\\PC*") {
            let rules = Rules {
                allow: vec![Rule::new(None, "/a")],
                deny: vec![Rule::new(None, "/a/b")],
            };
            let _ = rules.judge(&Method::GET, &path, &issuer());
            let _ = Rules::default().judge(&Method::GET, &path, &issuer());
        }
    }
}
