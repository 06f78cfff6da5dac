//! The settings of the data path as one value, and each worker's view of it.
//!
//! A request takes the worker's view once, when it begins, and keeps it to its end. So replacing the
//! view changes everything for all requests that begin afterwards, at once, and nothing for those
//! under way. A client connection keeps the deadlines and limits with which it began.

use std::{
    rc::Rc,
    sync::{Arc, atomic::AtomicBool},
};

use http::HeaderName;

use crate::{
    base::ticker::Ticks,
    net::socket::Address,
    proxy::{
        config::Config,
        connection::timers::Timeouts,
        message::{cache_control::CachePolicy, urls::UrlMap},
        metrics::{Metrics, StatusCounters},
        policy::{
            clients::{ClientId, Clients},
            guard::{self, Guard},
            issuer_path::IssuerPath,
        },
        route::{Route, Routes},
    },
    upstream,
};

/// What is configured, validated and read from files: the same for all workers.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) config: Config,
    pub(crate) clients: Arc<Clients>,
    /// By their position in the configuration.
    pub(crate) upstreams: Vec<upstream::Config>,
    /// Addresses that are bound for `config.listeners`, in that order.
    pub(crate) addresses: Vec<Address>,
}

/// [`Settings`] as one worker uses them: prepared for requests, with that worker's counters, in
/// memory that no other worker touches.
#[derive(Debug)]
pub(crate) struct View {
    settings: Arc<Settings>,
    pub(crate) routes: Routes,
    /// By the position of the listener.
    guards: Vec<Guard>,
    pub(crate) url_map: Rc<UrlMap>,
    pub(crate) cache_policy: CachePolicy,
    /// All issuers' own paths.
    pub(crate) issuer_paths: Vec<IssuerPath>,
    /// Request fields that are meant for this proxy alone.
    pub(crate) stripped: Rc<[HeaderName]>,
    pub(crate) timeouts: Arc<Timeouts>,
    pub(crate) tunnel_idle: Ticks,
    /// By the position of the route.
    route_counters: Vec<Arc<StatusCounters>>,
    /// By the position of the client.
    client_counters: Vec<Arc<StatusCounters>>,
}

impl View {
    pub(crate) fn new(
        settings: &Arc<Settings>,
        metrics: &Metrics,
        draining: &Arc<AtomicBool>,
    ) -> Self {
        let Config {
            listeners,
            routes,
            rewrites,
            clients,
            credentials,
            ..
        } = &settings.config;
        let routes = Routes::new(routes, rewrites, |upstream| &settings.upstreams[upstream]);
        let route_counters = routes
            .by_position()
            .iter()
            .map(|route| metrics.routes.get(&route.label()))
            .collect();
        let guards = listeners.iter().zip(&settings.addresses);
        let guards = guards.map(|(listener, address)| {
            Guard::new(listener.guard.clone(), guard::exposure(address))
        });
        let issuer_paths = credentials
            .iter()
            .flat_map(|credential| credential.issuer_paths.clone());
        Self {
            routes,
            guards: guards.collect(),
            url_map: Rc::new(UrlMap::new(rewrites)),
            cache_policy: CachePolicy::of(clients),
            issuer_paths: issuer_paths.collect(),
            stripped: stripped(&settings.config),
            timeouts: Arc::new(Timeouts::new(&settings.config, draining)),
            tunnel_idle: settings.config.tunnel_idle_timeout.into(),
            route_counters,
            client_counters: clients
                .iter()
                .map(|client| metrics.clients.get(&client.name))
                .collect(),
            settings: Arc::clone(settings),
        }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.settings.config
    }

    pub(crate) fn clients(&self) -> &Arc<Clients> {
        &self.settings.clients
    }

    pub(crate) fn upstream(&self, route: &Route) -> &upstream::Config {
        &self.settings.upstreams[route.upstream]
    }

    /// The guard of the listener at this position.
    pub(crate) fn guard(&self, listener: usize) -> &Guard {
        &self.guards[listener]
    }

    pub(crate) fn route_counters(&self, route: &Route) -> &StatusCounters {
        &self.route_counters[route.position]
    }

    pub(crate) fn client_counters(&self, client: ClientId) -> &StatusCounters {
        &self.client_counters[client.client]
    }
}

/// The fields in which clients show a key, and those that listeners require, once each.
fn stripped(config: &Config) -> Rc<[HeaderName]> {
    let required = config
        .listeners
        .iter()
        .filter_map(|listener| listener.guard.required_header.clone());
    let keys = config
        .clients
        .iter()
        .filter_map(|client| client.header.clone());
    let mut names: Vec<_> = required.chain(keys).collect();
    names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
    names.into()
}
