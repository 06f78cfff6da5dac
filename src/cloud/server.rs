//! The two listeners of a simulated cloud, and what a test may change or count.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    net::TcpListener,
    sync::broadcast,
    task::{JoinHandle, JoinSet},
};

use super::{
    config::Config,
    faults::Faults,
    router::{self, Host},
    state::{Event, Received, State},
    tokens::{Issuer, random_token},
};
use crate::base::clock::SharedClock;

/// A running simulated cloud. Dropping it stops it.
pub struct Cloud {
    state: Arc<State>,
    origin: String,
    seed: String,
    servers: Mutex<Vec<JoinHandle<()>>>,
}

impl Cloud {
    /// Binds both listeners and serves them on the current runtime.
    ///
    /// # Errors
    /// When an address cannot be bound, the folder cannot be created, or the system has no random
    /// bytes.
    pub async fn start(mut config: Config, clock: SharedClock) -> io::Result<Self> {
        if config.seeds.is_empty() {
            config.seeds.push(random_token()?);
        }
        let seed = config.seeds[0].clone();
        let cloud = bind(config.listen).await?;
        let document = bind(config.document_listen).await?;
        let document_origin = match &config.document_origin {
            Some(origin) => origin.clone(),
            None => origin(document.local_addr()?),
        };
        let origin = origin(cloud.local_addr()?);
        let state = Arc::new(State::new(config, clock, document_origin)?);
        let servers = [(cloud, Host::Cloud), (document, Host::Document)]
            .map(|(listener, host)| tokio::spawn(serve(listener, host, Arc::clone(&state))));
        Ok(Self {
            state,
            origin,
            seed,
            servers: Mutex::new(servers.into()),
        })
    }

    /// The cloud's origin: `http://127.0.0.1:port`.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The document host's origin.
    pub fn document_origin(&self) -> &str {
        &self.state.document_origin
    }

    /// A refresh token that was valid at the start.
    pub fn seed(&self) -> &str {
        &self.seed
    }

    /// The faults, to read and to change. Do not hold the guard across an await.
    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        self.state.faults.lock()
    }

    /// Makes every access token invalid; refresh tokens stay valid.
    pub fn revoke_access_tokens(&self) {
        // Only a state file can fail. Tests, which alone call this, have none.
        let _ = self.state.issuer.change(Issuer::revoke_access_tokens);
    }

    /// Makes every token invalid, as an administrator who withdraws all grants.
    pub fn revoke_families(&self) {
        let families = self.state.issuer.change(Issuer::revoke_families);
        for _ in 0..families.unwrap_or(0) {
            self.state.family_revoked();
        }
    }

    /// Calls of the two token interfaces.
    pub fn issuer_calls(&self) -> u64 {
        self.state.issuer_calls.load(Relaxed)
    }

    /// Calls of the two token interfaces that were granted tokens.
    pub fn issuer_successes(&self) -> u64 {
        self.state.issuer_successes.load(Relaxed)
    }

    /// Families revoked so far.
    pub fn families_revoked(&self) -> u64 {
        self.state.families_revoked.load(Relaxed)
    }

    /// Requests to the interfaces behind the bearer check, rejected ones included.
    pub fn file_requests(&self) -> u64 {
        self.state.file_requests.load(Relaxed)
    }

    /// The last 1,000 requests that got a response, at both listeners, oldest first.
    pub fn received(&self) -> Vec<Received> {
        self.state.received.lock().iter().cloned().collect()
    }

    /// The events from now on. A receiver that falls 1,000 events behind loses the oldest.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.state.events.subscribe()
    }

    /// Closes both listeners and every connection at once.
    pub async fn shut_down(&self) {
        let servers = std::mem::take(&mut *self.servers.lock());
        for server in servers {
            server.abort();
            // The only error is the abort itself.
            let _ = server.await;
        }
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.servers.lock().iter().for_each(JoinHandle::abort);
    }
}

async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|error| {
        io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
    })
}

/// The origin by which this machine reaches the address.
fn origin(mut address: SocketAddr) -> String {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    format!("http://{address}")
}

/// Accepts until dropped. The connections end with this future.
async fn serve(listener: TcpListener, host: Host, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((stream, _)) = accepted else {
            // Without a pause, a process that is out of descriptors would retry in a busy loop.
            state
                .clock
                .sleep_until(state.clock.now() + Duration::from_millis(10))
                .await;
            continue;
        };
        // A socket that refuses the option still works, with more latency.
        let _ = stream.set_nodelay(true);
        let state = Arc::clone(&state);
        let service = service_fn(move |request| {
            let state = Arc::clone(&state);
            async move { Ok::<_, Infallible>(router::respond(&state, host, request).await) }
        });
        connections.spawn(async move {
            // An error concerns this client alone, which sees its connection end.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}
