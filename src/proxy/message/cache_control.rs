//! Keeps responses to requests with the injected token out of shared caches. Pure.
//!
//! RFC 9111 §3.5 protects responses to requests with `Authorization`. Clients of the proxy send
//! none, so a cache before the proxy needs `Cache-Control: private`.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::{
    base::{header_map, list_field::quoted_elements},
    proxy::policy::clients::Client,
};

/// When `private` is added to the upstream's `Cache-Control`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CachePolicy {
    /// If the response does not specify whether shared caches may store it.
    IfUnspecified,
    /// Always: clients are distinguished by something that is not part of the cache key.
    Always,
}

impl CachePolicy {
    /// The policy for these clients.
    pub(crate) fn of(clients: &[Client]) -> Self {
        if clients.iter().all(Client::uses_authorization_header) {
            Self::IfUnspecified
        } else {
            Self::Always
        }
    }

    /// Applies the policy to a response.
    pub(crate) fn apply(self, headers: &mut HeaderMap) {
        header_map::remove_where(headers, overrides_cache_control);
        let mut all = headers.get_all(header::CACHE_CONTROL).iter();
        let is_decided = match self {
            Self::IfUnspecified => all.any(controls_sharing),
            Self::Always => {
                let kept: Vec<_> = all.filter_map(without_sharing_directives).collect();
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

/// Whether some caches use a field instead of `Cache-Control`: RFC 9213, the Edge Architecture
/// Specification, and nginx.
fn overrides_cache_control(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "cdn-cache-control"
            | "cloudflare-cdn-cache-control"
            | "surrogate-control"
            | "x-accel-expires"
    )
}

fn controls_sharing(value: &HeaderValue) -> bool {
    quoted_elements(value.as_bytes()).any(|directive| {
        let known = [&b"no-store"[..], b"public", b"s-maxage", b"must-revalidate"];
        // `private` with field names concerns those fields alone, RFC 9111 §5.2.2.7.
        directive.eq_ignore_ascii_case(b"private")
            || known
                .iter()
                .any(|known| name(directive).eq_ignore_ascii_case(known))
    })
}

/// The value without the directives about shared caches; `None` if nothing remains.
fn without_sharing_directives(value: &HeaderValue) -> Option<HeaderValue> {
    let is_about_sharing = |directive: &&[u8]| {
        [&b"private"[..], b"public", b"s-maxage"]
            .iter()
            .any(|known| name(directive).eq_ignore_ascii_case(known))
    };
    let kept: Vec<&[u8]> = quoted_elements(value.as_bytes())
        .filter(|directive| !is_about_sharing(directive))
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

    fn applied(policy: CachePolicy, upstream: &[&'static str]) -> String {
        let mut headers = HeaderMap::new();
        for value in upstream {
            headers.append(header::CACHE_CONTROL, HeaderValue::from_static(value));
        }
        policy.apply(&mut headers);
        let all: Vec<_> = headers
            .get_all(header::CACHE_CONTROL)
            .iter()
            .map(|value| value.to_str().unwrap())
            .collect();
        all.join(" | ")
    }

    #[test]
    fn responses_stay_out_of_shared_caches() {
        // The upstream's value, and the client's with each of the policies.
        for (upstream, if_unspecified, always) in [
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
                applied(CachePolicy::IfUnspecified, upstream),
                if_unspecified,
                "{upstream:?}"
            );
            assert_eq!(
                applied(CachePolicy::Always, upstream),
                always,
                "{upstream:?}"
            );
        }
    }

    #[test]
    fn fields_that_override_cache_control_are_removed() {
        for (cache_control, policy) in [
            ("private", CachePolicy::IfUnspecified),
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
            policy.apply(&mut headers);
            assert_eq!(headers.len(), 1, "{headers:?}");
            assert_eq!(headers[header::CACHE_CONTROL], "private");
        }
    }
}
