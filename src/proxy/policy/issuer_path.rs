//! The token issuer's own paths, which no client may request. Pure.

use std::fmt;

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
    /// The only segment of a path such as `/token`, which has to be the first of a path.
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
    fn ends_with(&self, parent: Option<&str>, segment: &str) -> bool {
        let is = |own: &String, other: &str| own.eq_ignore_ascii_case(other);
        match self {
            Self::Program(name) => is(name, segment),
            Self::End([first, last]) => {
                is(last, segment) && parent.is_some_and(|parent| is(first, parent))
            }
            Self::Root(name) => is(name, segment) && parent.is_none(),
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

/// The path of the issuer that a path contains. Empty and dot segments do not count, nor do
/// parameters and trailing dots.
pub(super) fn find<'a>(path: &str, issuer: &'a [IssuerPath]) -> Option<&'a IssuerPath> {
    let mut parent = None;
    let segments = path.split(['/', '\\']).map(trimmed);
    segments
        .filter(|segment| !segment.is_empty())
        .find_map(|segment| {
            let found = issuer.iter().find(|own| own.ends_with(parent, segment));
            parent = Some(segment);
            found
        })
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
            assert_eq!(find(path, &issuer).is_some(), expected, "{own} {path}");
        }
    }
}
