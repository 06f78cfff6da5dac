//! Who may keep an answer that our token brought. Pure.
//!
//! Without an `Authorization` of the client's own, RFC 9111 §3.5 does not keep such an answer out of shared caches.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::{base::list_field::quoted_elements, proxy::policy::clients::Client};

/// What some caches heed instead of `Cache-Control`: RFC 9213, the Edge Architecture Specification, and nginx.
const OUTDOING: [HeaderName; 4] = [
    HeaderName::from_static("cdn-cache-control"),
    HeaderName::from_static("cloudflare-cdn-cache-control"),
    HeaderName::from_static("surrogate-control"),
    HeaderName::from_static("x-accel-expires"),
];

/// What is added to what the upstream says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CachePolicy {
    /// `private`, if it says nothing about sharing.
    WhereSilent,
    /// `private` in any case: clients differ in something that no cache looks at.
    Always,
}

impl CachePolicy {
    /// What these clients need.
    pub(crate) fn of(clients: &[Client]) -> Self {
        if clients.iter().all(Client::is_known_to_caches) {
            Self::WhereSilent
        } else {
            Self::Always
        }
    }

    /// Writes it into an answer.
    pub(crate) fn impose(self, headers: &mut HeaderMap) {
        for name in OUTDOING {
            headers.remove(name);
        }
        let mut all = headers.get_all(header::CACHE_CONTROL).iter();
        let is_decided = match self {
            Self::WhereSilent => all.any(decides_on_sharing),
            Self::Always => {
                let kept: Vec<_> = all.filter_map(without_sharing).collect();
                headers.remove(header::CACHE_CONTROL);
                for value in kept {
                    headers.append(header::CACHE_CONTROL, value);
                }
                false
            }
        };
        if !is_decided {
            headers.append(header::CACHE_CONTROL, HeaderValue::from_static("private"));
        }
    }
}

fn decides_on_sharing(value: &HeaderValue) -> bool {
    quoted_elements(value.as_bytes()).any(|directive| {
        let known = [&b"no-store"[..], b"public", b"s-maxage", b"must-revalidate"];
        // With fields behind it, `private` is about those alone: RFC 9111 §5.2.2.7.
        directive.eq_ignore_ascii_case(b"private")
            || known
                .iter()
                .any(|known| name(directive).eq_ignore_ascii_case(known))
    })
}

/// The directives that are not about sharing, if there are some.
fn without_sharing(value: &HeaderValue) -> Option<HeaderValue> {
    let about_sharing = |directive: &&[u8]| {
        [&b"private"[..], b"public", b"s-maxage"]
            .iter()
            .any(|known| name(directive).eq_ignore_ascii_case(known))
    };
    let kept: Vec<&[u8]> = quoted_elements(value.as_bytes())
        .filter(|directive| !about_sharing(directive))
        .collect();
    if kept.is_empty() {
        None
    } else {
        HeaderValue::from_bytes(&kept.join(&b", "[..])).ok()
    }
}

fn name(directive: &[u8]) -> &[u8] {
    directive
        .split(|byte| *byte == b'=')
        .next()
        .unwrap_or_default()
        .trim_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imposed(privacy: CachePolicy, theirs: &[&'static str]) -> String {
        let mut headers = HeaderMap::new();
        for value in theirs {
            headers.append(header::CACHE_CONTROL, HeaderValue::from_static(value));
        }
        privacy.impose(&mut headers);
        let all: Vec<_> = headers
            .get_all(header::CACHE_CONTROL)
            .iter()
            .map(|value| value.to_str().unwrap())
            .collect();
        all.join(" | ")
    }

    #[test]
    fn answers_stay_out_of_shared_caches() {
        // What the upstream says, what clients get, and what they get where caches cannot tell them apart.
        for (theirs, where_silent, always) in [
            (&[][..], "private", "private"),
            (
                &["max-age=60"],
                "max-age=60 | private",
                "max-age=60 | private",
            ),
            (&["no-store"], "no-store", "no-store | private"),
            (
                &["Public, max-age=60"],
                "Public, max-age=60",
                "max-age=60 | private",
            ),
            (
                &["max-age=1, s-maxage = 60"],
                "max-age=1, s-maxage = 60",
                "max-age=1 | private",
            ),
            (
                &["max-age=1", "must-revalidate"],
                "max-age=1 | must-revalidate",
                "max-age=1 | must-revalidate | private",
            ),
            (
                &["private=\"a, public\", no-cache=\"b, c\""],
                "private=\"a, public\", no-cache=\"b, c\" | private",
                "no-cache=\"b, c\" | private",
            ),
            (&["PUBLIC", ",private,"], "PUBLIC | ,private,", "private"),
            (&["publicity"], "publicity | private", "publicity | private"),
        ] {
            assert_eq!(
                imposed(CachePolicy::WhereSilent, theirs),
                where_silent,
                "{theirs:?}"
            );
            assert_eq!(imposed(CachePolicy::Always, theirs), always, "{theirs:?}");
        }
    }

    #[test]
    fn nothing_outdoes_cache_control() {
        for (cache_control, privacy) in [
            ("private", CachePolicy::WhereSilent),
            ("public", CachePolicy::Always),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(
                header::CACHE_CONTROL,
                HeaderValue::from_static(cache_control),
            );
            for name in [
                "CDN-Cache-Control",
                "Cloudflare-CDN-Cache-Control",
                "Surrogate-Control",
                "X-Accel-Expires",
            ] {
                let name = HeaderName::try_from(name).unwrap();
                headers.append(name.clone(), HeaderValue::from_static("max-age=600"));
                headers.append(name, HeaderValue::from_static("600"));
            }
            privacy.impose(&mut headers);
            assert_eq!(headers.len(), 1, "{headers:?}");
            assert_eq!(headers[header::CACHE_CONTROL], "private");
        }
    }
}
