//! `[[route]]` and `[[rewrite]]`: the upstream of a request, and the URLs in responses that are
//! rewritten to the proxy.

use super::{listeners::ListenerEntry, upstream::warn_if_plain_http};
use crate::{
    base::host,
    config::{findings::problem, keys, reader::Reader, suggest, values},
    net::socket::Address,
    proxy::{Rewrite, Route, Rules, policy::rules::Rule},
    upstream,
};

/// The index of the credential whose token requests carry.
const DEFAULT_CREDENTIAL: usize = 0;

/// One entry for each table; `None` after a mistake.
pub(super) fn rewrites(r: &mut Reader) -> Vec<Option<Rewrite>> {
    let mut rewrites: Vec<Option<Rewrite>> = Vec::new();
    for section in r.tables("rewrite") {
        let from_key = format!("{section}.from");
        let from = r
            .read(&from_key, values::endpoint)
            .map(|endpoint| endpoint.origin);
        let to = r.read(&format!("{section}.to"), values::prefix);
        if let Some(from) = &from
            && rewrites
                .iter()
                .flatten()
                .any(|earlier| earlier.from == *from)
        {
            let reason = format!("{from} has a [[rewrite]] already");
            r.mistake(
                r.pos(&from_key),
                &from_key,
                problem(reason, "keep one of the two"),
            );
        }
        rewrites.push(from.zip(to).map(|(from, to)| Rewrite { from, to }));
    }
    rewrites
}

/// One entry for each table; `None` after a mistake.
pub(super) fn routes(
    r: &mut Reader,
    upstreams: &[upstream::Config],
    rewrites: &[Option<Rewrite>],
) -> Vec<Option<Route>> {
    let mut routes: Vec<Option<Route>> = Vec::new();
    for section in r.tables("route") {
        let route = route(r, &section, upstreams, rewrites);
        if let Some(route) = &route
            && routes
                .iter()
                .flatten()
                .any(|earlier| earlier.host == route.host && earlier.prefix == route.prefix)
        {
            let key = [format!("{section}.prefix"), format!("{section}.host")]
                .into_iter()
                .find(|key| r.is_given(key));
            let key = key.unwrap_or_default();
            let hint = "keep one of the two, or give it another prefix or host";
            r.mistake(
                r.pos(&key),
                &key,
                problem(
                    "is the same host and prefix as in an earlier [[route]]",
                    hint,
                ),
            );
        }
        routes.push(route);
    }
    routes
}

fn route(
    r: &mut Reader,
    section: &str,
    upstreams: &[upstream::Config],
    rewrites: &[Option<Rewrite>],
) -> Option<Route> {
    let key = |name: &str| format!("{section}.{name}");
    let (prefix_key, host_key) = (key("prefix"), key("host"));
    if !r.is_given(&prefix_key) && !r.is_given(&host_key) {
        let hint = r#"write a path prefix, as in prefix = "/_document", or a host"#;
        r.missing(r.pos(&prefix_key), &prefix_key, problem("is missing", hint));
    }
    let prefix = r.read(&prefix_key, values::prefix);
    let host = r.read(&host_key, values::host_name);
    let is_good = (!r.is_given(&prefix_key) || prefix.is_some())
        && (!r.is_given(&host_key) || host.is_some());
    let prefix = prefix.unwrap_or_default();
    // The target of a rewrite is another host: it has its own paths, and must not get the token.
    let is_target = !prefix.is_empty()
        && rewrites
            .iter()
            .flatten()
            .any(|rewrite| rewrite.to == prefix);
    let upstream = upstream_of(r, &key("upstream"), upstreams);
    let strip_prefix = r
        .read(&key("strip_prefix"), values::boolean)
        .unwrap_or(is_target);
    let inject = r
        .read(&key("inject"), values::boolean)
        .unwrap_or(!is_target);
    let rules = Rules {
        allow: path_rules(r, &key("allow")),
        deny: path_rules(r, &key("deny")),
    };
    let response_timeout = r.read(&key("response_timeout"), values::positive_duration);
    let body_idle_timeout = r.read(&key("body_idle_timeout"), values::positive_duration);
    if !is_good {
        return None;
    }
    Some(Route {
        host,
        prefix,
        upstream: upstream?,
        strip_prefix,
        credential: inject.then_some(DEFAULT_CREDENTIAL),
        rules,
        response_timeout,
        body_idle_timeout,
    })
}

pub(super) fn path_rules(r: &mut Reader, key: &str) -> Vec<Rule> {
    if !r.is_given(key) {
        return Vec::new();
    }
    r.non_empty_list(key, values::path_rule)
        .into_iter()
        .map(|(rule, _)| rule)
        .collect()
}

/// The index of the route's upstream; by default the first, `[upstream]`.
fn upstream_of(r: &mut Reader, key: &str, upstreams: &[upstream::Config]) -> Option<usize> {
    if !r.is_given(key) {
        return Some(0);
    }
    let name = r.read(key, |value| values::text(value).map(str::to_owned))?;
    let position = upstreams.iter().position(|upstream| upstream.name == name);
    if position.is_none() {
        let names = upstreams.iter().map(|upstream| upstream.name.as_str());
        let hint = match suggest::nearest(&name, names) {
            Some(nearest) => format!("did you mean {nearest:?}?"),
            None => {
                "write a section [upstreams.NAME] with endpoints, and that NAME here".to_owned()
            }
        };
        r.missing(r.pos(key), key, problem("no upstream has this name", hint));
    }
    position
}

/// Unused upstreams, and rewrites without a route.
pub(super) fn check(
    r: &mut Reader,
    upstreams: &[upstream::Config],
    routes: &[Option<Route>],
    rewrites: &[Option<Rewrite>],
) {
    let all_read = routes.iter().all(Option::is_some);
    for (index, upstream) in upstreams.iter().enumerate().skip(1) {
        let section = format!("{}.{}", keys::UPSTREAMS, upstream.name);
        let mut used_by = routes
            .iter()
            .flatten()
            .filter(|route| route.upstream == index)
            .peekable();
        if used_by.peek().is_none() && all_read {
            let hint = format!(
                "write upstream = {:?} in a [[route]], or remove it",
                upstream.name
            );
            r.warning(
                r.pos_of_section(&section),
                &section,
                problem("is used by no route", hint),
            );
        }
        if used_by.any(|route| route.credential.is_some()) {
            let key = format!("{section}.endpoints");
            for (index, endpoint) in upstream.endpoints.iter().enumerate() {
                let pos = r.pos_of_element(&key, index);
                warn_if_plain_http(r, endpoint, upstream.proxy.as_deref(), &pos, &key);
            }
        }
    }
    for (section, rewrite) in r.tables("rewrite").iter().zip(rewrites) {
        let Some(Rewrite { from, to }) = rewrite else {
            continue;
        };
        let is_reached = to.is_empty() || routes.iter().flatten().any(|route| route.prefix == *to);
        if all_read && !is_reached {
            let key = format!("{section}.to");
            let hint = format!("write {}", route_that_leads_to(from, to, upstreams));
            r.missing(
                r.pos(&key),
                &key,
                problem(format!("no route has the prefix {to:?}"), hint),
            );
        }
    }
}

/// The sections that a rewrite needs.
fn route_that_leads_to(from: &str, to: &str, upstreams: &[upstream::Config]) -> String {
    let leads_there = |upstream: &&upstream::Config| {
        upstream
            .endpoints
            .iter()
            .any(|endpoint| endpoint.origin == from)
    };
    if let Some(upstream) = upstreams.iter().find(leads_there) {
        return format!(
            "[[route]] with prefix = {to:?} and upstream = {:?}",
            upstream.name
        );
    }
    let words: String = to
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .collect();
    let is_free =
        |name: &&str| !name.is_empty() && upstreams.iter().all(|upstream| upstream.name != *name);
    let name = Some(words.as_str()).filter(is_free).unwrap_or("NAME");
    format!(
        "[[route]] with prefix = {to:?} and upstream = {name:?}, and [upstreams.{name}] with \
         endpoints = [{from:?}]"
    )
}

/// Warns of routes for hosts that the guard rejects.
pub(super) fn warn_of_unserved_hosts(
    r: &mut Reader,
    routes: &[Option<Route>],
    listeners: &[ListenerEntry],
) {
    for (section, route) in r.tables("route").iter().zip(routes) {
        let Some(host) = route.as_ref().and_then(|route| route.host.as_deref()) else {
            continue;
        };
        let is_allowed = |one: &ListenerEntry| {
            matches!(one.listener.address, Address::Unix(_))
                || one.listener.guard.allowed_hosts.contains(host)
        };
        if host::literal(host).is_none()
            && !host::is_localhost(host)
            && !listeners.is_empty()
            && !listeners.iter().any(is_allowed)
        {
            let key = format!("{section}.host");
            let hint = format!("write allowed_hosts = [{host:?}] in [proxy]");
            r.warning(
                r.pos(&key),
                &key,
                problem(
                    "is not in allowed_hosts: requests for this host get 421",
                    hint,
                ),
            );
        }
    }
}
