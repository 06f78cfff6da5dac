//! Connections that are cut, delayed and frozen on demand.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    time::sleep,
};

use crate::common::scripted;

/// How long the issuer's side of a connection outlives a client that was killed: the request arrives
/// and is processed all the same.
const LINGER: Duration = Duration::from_secs(5);

/// What a relay does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    target: SocketAddr,
    /// Open connections are closed, and new ones as soon as they are accepted.
    is_cut: bool,
    /// Counts changes of the target and cuts: each closes the connections of before.
    epoch: u64,
    /// Nothing passes to the server.
    pub(super) freezes_requests: bool,
    /// Nothing passes to the client.
    pub(super) freezes_responses: bool,
    /// The SOCKS server does not open a connection.
    pub(super) holds_handshakes: bool,
    /// The delay of each direction.
    pub(super) delay: Duration,
}

/// A refresh token that was forwarded to the issuer.
#[derive(Debug, Clone)]
pub(super) struct Spent {
    pub(super) replica: usize,
    pub(super) token: String,
}

/// All refresh tokens that reached the issuer.
pub(super) type Log = Arc<Mutex<Vec<Spent>>>;

/// A relay between one replica and one server.
pub(super) struct Relay {
    pub(super) address: SocketAddr,
    rules: watch::Sender<Rules>,
}

/// The way to the issuer.
#[derive(Clone)]
struct ToIssuer {
    replica: usize,
    log: Log,
}

impl Relay {
    pub(super) async fn to_store(target: SocketAddr) -> Self {
        Self::start(target, None).await
    }

    /// A SOCKS5 server that connects to the issuer alone.
    pub(super) async fn to_issuer(target: SocketAddr, replica: usize, log: Log) -> Self {
        Self::start(target, Some(ToIssuer { replica, log })).await
    }

    async fn start(target: SocketAddr, issuer: Option<ToIssuer>) -> Self {
        let rules = watch::Sender::new(Rules {
            target,
            is_cut: false,
            epoch: 0,
            freezes_requests: false,
            freezes_responses: false,
            holds_handshakes: false,
            delay: Duration::ZERO,
        });
        let receiver = rules.subscribe();
        let address = scripted(move |_, client| {
            let (mut cut, rules, issuer) = (receiver.clone(), receiver.clone(), issuer.clone());
            let epoch = rules.borrow().epoch;
            async move {
                tokio::select! {
                    result = serve(client, rules, issuer) => result,
                    _ = cut.wait_for(|rules| rules.is_cut || rules.epoch != epoch) => Ok(()),
                }
            }
        })
        .await;
        Self { address, rules }
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut Rules)) {
        self.rules.send_modify(change);
    }

    pub(super) fn cut(&self, is_cut: bool) {
        self.set(|rules| {
            rules.is_cut = is_cut;
            rules.epoch += 1;
        });
    }

    /// Connects to another server from now on, and closes the connections to this one.
    pub(super) fn retarget(&self, target: SocketAddr) {
        self.set(|rules| {
            rules.target = target;
            rules.epoch += 1;
        });
    }
}

async fn serve(
    mut client: TcpStream,
    rules: watch::Receiver<Rules>,
    issuer: Option<ToIssuer>,
) -> io::Result<()> {
    if issuer.is_some() {
        handshake(&mut client, rules.clone()).await?;
    }
    let target = rules.borrow().target;
    let server = TcpStream::connect(target).await?;
    server.set_nodelay(true)?;
    let (client_in, client_out) = client.into_split();
    let (server_in, server_out) = server.into_split();
    let linger = if issuer.is_some() {
        LINGER
    } else {
        Duration::ZERO
    };
    let requests = async {
        let frozen = |rules: &Rules| rules.freezes_requests;
        let result = carry(client_in, server_out, rules.clone(), frozen, issuer).await;
        sleep(linger).await;
        result
    };
    let frozen = |rules: &Rules| rules.freezes_responses;
    let responses = carry(server_in, client_out, rules.clone(), frozen, None);
    tokio::select! {
        result = requests => result.map(drop),
        result = responses => result.map(drop),
    }
}

/// Serves the handshake of SOCKS5 (RFC 1928) without authentication.
async fn handshake(client: &mut TcpStream, mut rules: watch::Receiver<Rules>) -> io::Result<()> {
    let [_, methods] = read::<2>(client).await?;
    client.read_exact(&mut vec![0; methods.into()]).await?;
    client.write_all(&[5, 0]).await?;
    let [_, _, _, kind] = read::<4>(client).await?;
    let length = match kind {
        1 => 4,
        4 => 16,
        _ => client.read_u8().await?.into(),
    };
    client.read_exact(&mut vec![0; length + 2]).await?;
    let _ = rules.wait_for(|rules| !rules.holds_handshakes).await;
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await
}

async fn read<const N: usize>(client: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    client.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Returns the half that it wrote to, so that the peer sees no end before the relay ends.
async fn carry<W: AsyncWrite + Unpin>(
    mut from: impl AsyncRead + Unpin,
    mut to: W,
    mut rules: watch::Receiver<Rules>,
    is_frozen: impl Fn(&Rules) -> bool,
    issuer: Option<ToIssuer>,
) -> io::Result<W> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return Ok(to);
        }
        let delay = rules.borrow().delay;
        sleep(delay).await; // the relay is slow
        let _ = rules.wait_for(|rules| !is_frozen(rules)).await;
        if let Some(ToIssuer { replica, log }) = &issuer
            && let Some(token) = refresh_token(&buffer[..n])
        {
            log.lock().unwrap().push(Spent {
                replica: *replica,
                token,
            });
        }
        to.write_all(&buffer[..n]).await?;
    }
}

/// The refresh token in the target of a request.
fn refresh_token(request: &[u8]) -> Option<String> {
    let request = String::from_utf8_lossy(request);
    let (_, rest) = request.split_once("refresh_token=")?;
    let end = rest.find(['&', ' ']).unwrap_or(rest.len());
    Some(rest[..end].to_owned())
}
