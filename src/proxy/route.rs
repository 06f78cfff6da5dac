//! Routes: which upstream a request is sent to, and how.

use std::{rc::Rc, time::Duration};

use http::{
    Uri, header, request,
    uri::{InvalidUri, PathAndQuery},
};

use crate::{
    base::{host, ticker::Ticks},
    proxy::{
        message::urls::{Rewrite, UrlMap},
        policy::{paths, rules::Rules},
    },
    upstream,
};

/// A `[[route]]`: requests that go to one upstream. Chosen by host first, then by the longest
/// prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteConfig {
    /// The only host that it applies to, in lower case, without a port; `None`: every host.
    pub host: Option<String>,
    /// It applies to this path and everything below it. Begins with `/`, does not end with one; `""`
    /// is every path.
    pub prefix: String,
    /// Position of its upstream in the configuration; 0 is the plain `[upstream]`.
    pub upstream: usize,
    /// Whether the prefix is removed from paths that are sent on.
    pub strip_prefix: bool,
    /// Position of the credential whose token requests carry; `None`: they carry none, and a response
    /// says nothing about a token.
    pub credential: Option<usize>,
    /// Which paths are allowed, as the upstream receives them.
    pub rules: Rules,
    /// Instead of the upstream's `response_timeout`.
    pub response_timeout: Option<Duration>,
    /// Instead of the upstream's `body_idle_timeout`.
    pub body_idle_timeout: Option<Duration>,
}

/// All routes, the most specific first, and the default route.
#[derive(Debug)]
pub(crate) struct Routes {
    routes: Vec<Route>,
    default: Route,
    has_rules: bool,
}

/// A route, prepared for requests.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    host: Option<String>,
    prefix: String,
    /// The prefix in the normal form of rules.
    normal_prefix: String,
    strip_prefix: bool,
    /// Position in the configuration, from 1; 0 is the default route.
    pub(crate) position: usize,
    /// Position of its upstream.
    pub(crate) upstream: usize,
    /// Position of the credential whose token requests carry. Without one, responses are not judged.
    pub(crate) credential: Option<usize>,
    pub(crate) rules: Rules,
    /// Whether URLs in JSON responses are mapped. Not on the routes that mapped URLs lead to: a
    /// downloaded document arrives unchanged, JSON included.
    pub(crate) is_rewritten: bool,
    /// The origins whose URLs in `Location` are mapped to this proxy: the route's own upstream,
    /// `[[rewrite]]`, and all other upstreams that a path leads to.
    pub(crate) origins: Rc<UrlMap>,
    pub(crate) timeouts: RouteTimeouts,
}

/// The timeouts of an upstream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RouteTimeouts {
    pub(crate) response: Ticks,
    pub(crate) body_idle: Ticks,
}

impl Routes {
    pub(crate) fn new<'a>(
        routes: &[RouteConfig],
        rewrites: &[Rewrite],
        upstreams: impl Fn(usize) -> &'a upstream::Config,
    ) -> Self {
        let timeouts =
            |upstream: usize, response: Option<Duration>, body_idle: Option<Duration>| {
                let config = upstreams(upstream);
                RouteTimeouts {
                    response: response.unwrap_or(config.response_timeout).into(),
                    body_idle: body_idle.unwrap_or(config.body_idle_timeout).into(),
                }
            };
        let at = |upstream: usize, to: &str| {
            let config = upstreams(upstream);
            let fixed = match (&config.host, config.endpoints.first()) {
                (upstream::Host::Fixed(name), Some(endpoint)) => name
                    .to_str()
                    .ok()
                    .map(|name| format!("{}://{}", endpoint.scheme, name.to_ascii_lowercase())),
                _ => None,
            };
            let origins = config
                .endpoints
                .iter()
                .map(|endpoint| endpoint.origin.to_ascii_lowercase())
                .chain(fixed);
            origins
                .map(|from| Rewrite {
                    from,
                    to: to.to_owned(),
                })
                .collect::<Vec<_>>()
        };
        let by_path = || {
            routes
                .iter()
                .filter(|route| route.host.is_none() && route.strip_prefix)
        };
        let others: Vec<Rewrite> = by_path()
            .flat_map(|route| at(route.upstream, &route.prefix))
            .chain(at(0, ""))
            .collect();
        let origins = |upstream: usize, to: &str, has_host: bool| {
            // On a host of its own, no path leads to the other upstreams.
            let others: &[Rewrite] = if has_host { &[] } else { &others };
            Rc::new(UrlMap::new(&[&at(upstream, to), rewrites, others].concat()))
        };
        let mut ready: Vec<Route> = routes
            .iter()
            .zip(1..)
            .map(|(route, position)| Route {
                position,
                host: route.host.clone(),
                prefix: route.prefix.clone(),
                normal_prefix: normal_prefix(&route.prefix),
                strip_prefix: route.strip_prefix,
                upstream: route.upstream,
                credential: route.credential,
                rules: route.rules.clone(),
                is_rewritten: !rewrites.is_empty() && !is_target(route, rewrites),
                origins: origins(
                    route.upstream,
                    if route.strip_prefix {
                        &route.prefix
                    } else {
                        ""
                    },
                    route.host.is_some(),
                ),
                timeouts: timeouts(
                    route.upstream,
                    route.response_timeout,
                    route.body_idle_timeout,
                ),
            })
            .collect();
        ready.sort_by_key(|route| (route.host.is_none(), std::cmp::Reverse(route.prefix.len())));
        let default = Route {
            position: 0,
            host: None,
            prefix: String::new(),
            normal_prefix: String::new(),
            strip_prefix: false,
            upstream: 0,
            credential: Some(0),
            rules: Rules::default(),
            is_rewritten: !rewrites.is_empty(),
            origins: origins(0, "", false),
            timeouts: timeouts(0, None, None),
        };
        let has_rules = ready.iter().any(|route| !route.rules.is_empty());
        Self {
            routes: ready,
            default,
            has_rules,
        }
    }

    /// The route that serves a request.
    pub(crate) fn choose(&self, request: &request::Parts) -> &Route {
        if self.routes.is_empty() {
            return &self.default;
        }
        let host = request
            .headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok());
        self.find(host, request.uri.path())
    }

    /// `host` may have any letter case and a port.
    fn find(&self, host: Option<&str>, path: &str) -> &Route {
        let host = host.map(without_port);
        self.routes
            .iter()
            .find(|route| route.matches(host, path))
            .unwrap_or(&self.default)
    }

    /// Whether the path can also be interpreted as one of another route than the chosen one, whose
    /// rules the request would escape.
    pub(crate) fn is_ambiguous(
        &self,
        request: &request::Parts,
        path: &str,
        chosen: &Route,
    ) -> bool {
        if !self.has_rules {
            return false;
        }
        let host = request
            .headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok())
            .map(without_port);
        paths::interpretations(path).any(|reading| {
            let other = self
                .routes
                .iter()
                .find(|route| route.is_for(host) && is_below(&reading, &route.normal_prefix));
            other.is_some_and(|other| other.position != chosen.position && !other.rules.is_empty())
        })
    }

    /// All of them, by position.
    pub(crate) fn by_position(&self) -> Vec<&Route> {
        let mut all: Vec<_> = self.routes.iter().chain([&self.default]).collect();
        all.sort_by_key(|route| route.position);
        all
    }

    pub(crate) fn default_timeouts(&self) -> RouteTimeouts {
        self.default.timeouts
    }
}

/// Whether URLs are mapped to this route. URLs mapped to the root lead to `[upstream]`.
fn is_target(route: &RouteConfig, rewrites: &[Rewrite]) -> bool {
    !route.prefix.is_empty() && rewrites.iter().any(|rewrite| rewrite.to == route.prefix)
}

impl Route {
    /// The name in metrics: `default`, or the host and prefix.
    pub(crate) fn label(&self) -> String {
        match self.position {
            0 => "default".to_owned(),
            _ => format!(
                "{}{}",
                self.host.as_deref().unwrap_or_default(),
                self.prefix
            ),
        }
    }

    fn matches(&self, host: Option<&str>, path: &str) -> bool {
        self.is_for(host) && is_below(path, &self.prefix)
    }

    fn is_for(&self, host: Option<&str>) -> bool {
        self.host
            .as_deref()
            .is_none_or(|own| host.is_some_and(|host| host.eq_ignore_ascii_case(own)))
    }

    /// The path prefix with which URLs of the upstream come back on this route.
    pub(crate) fn public_prefix(&self) -> &str {
        if self.strip_prefix { &self.prefix } else { "" }
    }

    /// The path as the upstream receives it.
    pub(crate) fn path<'a>(&self, target: &'a Uri) -> &'a str {
        let path = target.path();
        let rest = if self.strip_prefix {
            path.strip_prefix(self.prefix.as_str()).unwrap_or(path)
        } else {
            path
        };
        if rest.is_empty() { "/" } else { rest }
    }

    /// The target as the upstream receives it: in origin form (RFC 9112 §3.2.1), because the request
    /// does not decide where it is sent, and without the stripped prefix.
    ///
    /// # Errors
    /// The result is no target. It must not be replaced: the rules judged another path.
    pub(crate) fn target(&self, target: &Uri) -> Result<Uri, InvalidUri> {
        if target.authority().is_none() && !self.strip_prefix {
            return Ok(target.clone());
        }
        let path = target.path_and_query().map_or("/", PathAndQuery::as_str);
        let rest = if self.strip_prefix {
            path.strip_prefix(self.prefix.as_str()).unwrap_or(path)
        } else {
            path
        };
        let rooted = if rest.starts_with('/') || rest == "*" {
            rest.to_owned()
        } else {
            format!("/{rest}")
        };
        rooted.parse()
    }
}

fn normal_prefix(prefix: &str) -> String {
    if prefix.is_empty() {
        String::new()
    } else {
        paths::normalize(prefix)
    }
}

/// Whether a path is `prefix` or below it, at a segment boundary.
fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| matches!(rest.bytes().next(), None | Some(b'/')) || prefix.is_empty())
}

/// The name in a `Host` header, without the port and the dot of the DNS root.
fn without_port(authority: &str) -> &str {
    let name = host::split(authority).map_or(authority, |(name, _)| name);
    name.strip_suffix('.').unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::policy::rules::Rule;

    fn config(host: Option<&str>, prefix: &str, upstream: usize) -> RouteConfig {
        RouteConfig {
            host: host.map(str::to_owned),
            prefix: prefix.to_owned(),
            upstream,
            strip_prefix: true,
            credential: Some(0),
            rules: Rules::default(),
            response_timeout: None,
            body_idle_timeout: None,
        }
    }

    fn routes(routes: &[RouteConfig]) -> Routes {
        with(routes, &[])
    }

    fn with(routes: &[RouteConfig], rewrites: &[Rewrite]) -> Routes {
        let endpoint = |host: String| upstream::Endpoint {
            origin: format!("http://{host}"),
            ..upstream::testing::endpoint(&host, 80)
        };
        let upstream = |n: usize| upstream::Config {
            host: upstream::Host::Fixed(
                http::HeaderValue::try_from(format!("Up{n}.example.com")).unwrap(),
            ),
            ..upstream::testing::config(vec![
                endpoint(format!("up{n}a.example.com")),
                endpoint(format!("up{n}b.example.com")),
            ])
        };
        let upstreams: Vec<_> = (0..5).map(upstream).collect();
        Routes::new(routes, rewrites, |n| &upstreams[n])
    }

    #[test]
    fn urls_of_every_upstream_that_a_path_leads_to_are_mapped() {
        let rewrite = Rewrite {
            from: "http://share.example.com".to_owned(),
            to: "/_share".to_owned(),
        };
        let routes = with(
            &[
                config(None, "/one", 1),
                config(None, "/again", 1),
                config(Some("two.example.org"), "", 2),
            ],
            &[rewrite],
        );
        for (host, path, address, expected) in [
            (
                None,
                "/",
                "http://up0b.example.com/x",
                Some("http://here/x"),
            ),
            (None, "/", "http://up0.example.com/x", Some("http://here/x")),
            (
                None,
                "/",
                "http://up1a.example.com/x",
                Some("http://here/one/x"),
            ),
            (None, "/", "http://up2a.example.com/x", None),
            (
                None,
                "/",
                "http://share.example.com/x",
                Some("http://here/_share/x"),
            ),
            (
                None,
                "/again",
                "http://up1b.example.com/x",
                Some("http://here/again/x"),
            ),
            (
                None,
                "/again",
                "http://up0a.example.com/x",
                Some("http://here/x"),
            ),
            (
                Some("two.example.org"),
                "/",
                "http://up2a.example.com/x",
                Some("http://here/x"),
            ),
            (
                Some("two.example.org"),
                "/",
                "http://up0a.example.com/x",
                None,
            ),
        ] {
            let home = routes
                .find(host, path)
                .origins
                .map(address.as_bytes(), b"http://here");
            assert_eq!(
                home.as_deref(),
                expected.map(str::as_bytes),
                "{host:?} {path} {address}"
            );
        }
    }

    #[test]
    fn host_first_then_the_longest_prefix_at_boundaries() {
        let routes = routes(&[
            config(None, "/a", 1),
            config(None, "/a/b", 2),
            config(Some("files.example.com"), "", 3),
            config(Some("files.example.com"), "/a", 4),
        ]);
        for (host, path, upstream) in [
            (None, "/", 0),
            (None, "/a", 1),
            (None, "/a/", 1),
            (None, "/ab", 0),
            (None, "/a/b", 2),
            (None, "/a/b/c", 2),
            (None, "/a/bc", 1),
            (Some("Files.Example.com:8080"), "/x", 3),
            (Some("files.example.com."), "/a/b", 4),
            (Some("files.example.org"), "/a/b", 2),
            (Some("[::1]:8080"), "/a", 1),
        ] {
            assert_eq!(
                routes.find(host, path).upstream,
                upstream,
                "{host:?} {path}"
            );
        }
    }

    #[test]
    fn a_path_that_could_be_read_as_one_with_rules_is_ambiguous() {
        let ruled = |mut config: RouteConfig| {
            config.rules.deny.push(Rule::new(None, "/secret"));
            config
        };
        let with_rules = routes(&[ruled(config(None, "/API", 1)), config(None, "/open", 2)]);
        let without = routes(&[config(None, "/API", 1), config(None, "/open", 2)]);
        for (target, expected) in [
            ("/API/secret", false),
            ("/API/%73ecret", false),
            ("/api/secret", true),
            ("/%41PI/secret", true),
            ("/%2541PI/secret", true),
            ("//API/secret", true),
            ("/open/../API/secret", true),
            ("/open/%2e%2e%2fAPI/secret", true),
            ("/API;x/secret", true),
            ("/API./secret", true),
            ("/open/API/secret", false),
            ("/APIs", false),
            ("/", false),
            ("*", false),
        ] {
            let (head, ()) = http::Request::get(target).body(()).unwrap().into_parts();
            let is_ambiguous =
                |routes: &Routes| routes.is_ambiguous(&head, target, routes.choose(&head));
            assert_eq!(
                (is_ambiguous(&with_rules), is_ambiguous(&without)),
                (expected, false),
                "{target}"
            );
        }
    }

    #[test]
    fn what_addresses_lead_to_is_not_rewritten() {
        let rewrite = |to: &str| Rewrite {
            from: "http://document.example.com".to_owned(),
            to: to.to_owned(),
        };
        let is_rewritten = |host, prefix, rewrites: &[Rewrite]| {
            with(&[config(host, prefix, 1)], rewrites)
                .find(host, &format!("{prefix}/x"))
                .is_rewritten
        };
        assert!(!is_rewritten(None, "/_document", &[]));
        assert!(!is_rewritten(None, "/_document", &[rewrite("/_document")]));
        assert!(is_rewritten(None, "/other", &[rewrite("/_document")]));
        assert!(is_rewritten(Some("files.example.com"), "", &[rewrite("")]));
        assert!(with(&[], &[rewrite("")]).find(None, "/").is_rewritten);
    }

    #[test]
    fn targets_lose_their_prefix_and_whatever_names_another_place() {
        let routes = routes(&[config(None, "/_document", 1)]);
        for (target, expected) in [
            ("/_document/api/file?x=/_document", "/api/file?x=/_document"),
            ("/_document", "/"),
            ("/_document?x", "/?x"),
            ("/_document//evil", "//evil"),
            ("http://localhost:1/_document/a%2Fb;c?d", "/a%2Fb;c?d"),
            ("http://localhost:1/other?d", "/other?d"),
            ("http://localhost:1", "/"),
            ("/other", "/other"),
            ("*", "*"),
        ] {
            let target: Uri = target.parse().unwrap();
            assert_eq!(
                routes
                    .find(None, target.path())
                    .target(&target)
                    .unwrap()
                    .to_string(),
                expected,
                "{target}"
            );
        }
    }
}
