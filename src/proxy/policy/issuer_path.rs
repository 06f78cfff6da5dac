//! The token issuer's own paths, which no client may request. Pure.

use std::fmt;

use http::Method;

use super::paths::{normalize, trimmed};

/// What identifies one of the issuer's paths on the cloud, in the form in which rules compare paths.
///
/// The cloud can serve the path below a further prefix (a context path, `/index.php`), so that its
/// end has to be compared anywhere in a path. How much of it must be equal depends on how likely a
/// file or folder of the user has that name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IssuerPath {
    /// The last segment of a path such as `/api/token.do`, which names a program.
    Program(String),
    /// The last two segments of a path such as `/oauth2/v1/token`.
    End([String; 2]),
    /// The only segment of a path such as `/token`, which has to be the first of a path, or the last
    /// one of a POST: files and folders of that name can be read and written with other methods.
    Root(String),
}

impl IssuerPath {
    /// The issuer's path that is configured as `path`; `None` for the root.
    pub fn new(path: &str) -> Option<Self> {
        let path = normalize(path);
        let mut segments = path.rsplit('/').filter(|segment| !segment.is_empty());
        let last = segments.next()?.to_owned();
        Some(match segments.next() {
            _ if last.ends_with(".do") => Self::Program(last),
            Some(parent) => Self::End([parent.to_owned(), last]),
            None => Self::Root(last),
        })
    }

    /// Whether it ends with `segment`, which follows `parent`; `None` if there is nothing before it.
    /// `is_posted`: it is the last segment of a POST.
    fn ends_with(&self, parent: Option<&str>, segment: &str, is_posted: bool) -> bool {
        let is = |own: &String, other: &str| own.eq_ignore_ascii_case(other);
        match self {
            Self::Program(name) => is(name, segment),
            Self::End([first, last]) => {
                is(last, segment) && parent.is_some_and(|parent| is(first, parent))
            }
            Self::Root(name) => is(name, segment) && (parent.is_none() || is_posted),
        }
    }
}

impl fmt::Display for IssuerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program(name) => write!(f, "{name}"),
            Self::End([first, last]) => write!(f, "{first}/{last}"),
            Self::Root(name) => write!(f, "/{name}"),
        }
    }
}

/// The path of the issuer that the path of a request contains. Empty and dot segments do not count, nor do
/// parameters and trailing dots.
pub(super) fn find<'a>(
    method: &Method,
    path: &str,
    issuer: &'a [IssuerPath],
) -> Option<&'a IssuerPath> {
    let mut parent = None;
    let segments = path.split(['/', '\\']).map(trimmed);
    let mut segments = segments.filter(|segment| !segment.is_empty()).peekable();
    while let Some(segment) = segments.next() {
        let is_posted = method == Method::POST && segments.peek().is_none();
        let mut own = issuer.iter();
        let found = own.find(|own| own.ends_with(parent, segment, is_posted));
        if found.is_some() {
            return found;
        }
        parent = Some(segment);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_b14_the_issuers_path_is_compared_by_more_than_a_common_word() {
        for (own, path, expected) in [
            (
                "/apps/oauth2/api/v1/token",
                "/apps/oauth2/api/v1/token",
                true,
            ),
            (
                "/apps/oauth2/api/v1/token",
                "/index.php/apps/oauth2/api/V1/Token/",
                true,
            ),
            (
                "/apps/oauth2/api/v1/token",
                "/nc//apps/./oauth2/api/v1/.//token.;x",
                true,
            ),
            ("/apps/oauth2/api/v1/token", "/api/v1/token", true),
            (
                "/apps/oauth2/api/v1/token",
                "/remote.php/dav/files/me/Token/report.docx",
                false,
            ),
            ("/apps/oauth2/api/v1/token", "/files/me/v1/x/token", false),
            ("/apps/oauth2/api/v1/token", "/token", false),
            ("/apps/oauth2/api/v1/token", "/files/v1/tokens", false),
            ("/oauth/token", "/oauth/token", true),
            ("/oauth/token", "/ctx/oauth/token", true),
            ("/oauth/token", "/files/token", false),
            ("/token", "/token", true),
            ("/token", "//./TOKEN;x/y", true),
            ("/token", "/files/token", false),
            ("/api/token.do", "/token.do", true),
            ("/api/token.do", "/nd/Token.DO/x", true),
            ("/token.do", "/files/token.do", true),
            ("/api/token.do", "/files/token", false),
            ("/", "/", false),
        ] {
            let issuer: Vec<_> = IssuerPath::new(own).into_iter().collect();
            let found = find(&Method::GET, path, &issuer);
            assert_eq!(found.is_some(), expected, "{own} {path}");
        }
    }

    #[test]
    fn field_b14_a_post_to_an_issuers_path_of_one_segment_is_denied_at_any_depth() {
        let issuer: Vec<_> = IssuerPath::new("/token").into_iter().collect();
        for (method, path, expected) in [
            (Method::POST, "/token", true),
            (Method::POST, "/ctx/token", true),
            (Method::POST, "/index.php/a//b/./TOKEN.;x/", true),
            (Method::POST, "/ctx\\token", true),
            (Method::POST, "/files/token/upload", false),
            (Method::POST, "/files/tokens", false),
            (Method::GET, "/ctx/token", false),
            (Method::PUT, "/files/token", false),
            (Method::GET, "/token", true),
            (Method::GET, "/token/x", true),
        ] {
            let found = find(&method, path, &issuer);
            assert_eq!(found.is_some(), expected, "{method} {path}");
        }
    }
}
