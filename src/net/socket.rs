//! Listening and connected sockets: TCP, and on Unix also Unix sockets. Platform-specific code for
//! sockets stands in this module alone.

#[cfg(unix)]
mod unix;

use std::{
    fmt,
    io::{self, IoSlice},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};

use super::{dial, resolve::SystemResolver};
use crate::base::host;

/// The address of a listener: `127.0.0.1:8080`, `[::1]:8080` or `unix:/run/bearer-proxy.sock`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// An IP address and a port; port 0 takes a free one.
    Tcp(SocketAddr),
    /// A Unix socket, created with mode 0600.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Address {
    /// Whether it is reachable from this machine only.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => host::is_loopback(address.ip()),
            Self::Unix(_) => true,
        }
    }
}

/// A bound address, before any worker accepts from it.
///
/// The bind is exclusive, although the workers of one instance share the port: on Linux a second
/// instance could otherwise bind it with `SO_REUSEPORT`, too, and would silently receive half of
/// the connections.
#[derive(Debug)]
pub struct Bound {
    address: Address,
    socket: Socket,
}

/// Connections that wait in the kernel until a worker accepts them.
const BACKLOG: i32 = 1024;

impl Bound {
    /// Binds `address` for this process alone. Replaces a Unix socket that a former instance left
    /// behind.
    ///
    /// # Errors
    /// `AddrInUse` when another process listens there; `PermissionDenied` for ports below 1024
    /// without the privilege.
    pub fn new(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => {
                let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
                // Without it a restart fails while connections of the former run are in TIME_WAIT.
                // On Windows the option has another meaning: two instances could share the port.
                #[cfg(not(windows))]
                socket.set_reuse_address(true)?;
                if address.is_ipv6() {
                    socket.set_only_v6(!address.ip().is_unspecified())?;
                }
                socket.bind(&(*address).into())?;
                // Two sockets can be bound to one address while neither listens: the second
                // instance fails here.
                socket.listen(BACKLOG)?;
                // From here on the sockets of our other workers may share the port. Another
                // instance binds without the option first, and fails.
                #[cfg(target_os = "linux")]
                socket.set_reuse_port(true)?;
                let bound = socket.local_addr()?.as_socket().unwrap_or(*address);
                Ok(Self {
                    address: Address::Tcp(bound),
                    socket,
                })
            }
            #[cfg(unix)]
            Address::Unix(path) => unix::bind(path).map(|socket| Self {
                address: address.clone(),
                socket,
            }),
            #[cfg(not(unix))]
            Address::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The address, with the port that the system chose for 0.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Creates one listener for each worker.
    ///
    /// On Linux each TCP listener has its own accept queue (`SO_REUSEPORT`), and the kernel
    /// distributes the connections; elsewhere, and for Unix sockets, the listeners share one queue,
    /// and the worker that wakes first accepts.
    ///
    /// # Errors
    /// When a further socket cannot be created or bound.
    pub fn into_listeners(self, workers: usize) -> io::Result<Vec<UnregisteredListener>> {
        let mut sockets = Vec::with_capacity(workers);
        for _ in 1..workers {
            sockets.push(self.another()?);
        }
        sockets.push(self.socket);
        let local = matches!(self.address, Address::Unix(_));
        for socket in &sockets {
            socket.set_nonblocking(true)?;
        }
        Ok(sockets
            .into_iter()
            .map(|socket| UnregisteredListener { socket, local })
            .collect())
    }

    #[cfg(target_os = "linux")]
    fn another(&self) -> io::Result<Socket> {
        let Address::Tcp(address) = self.address else {
            return self.socket.try_clone();
        };
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket)
    }

    #[cfg(not(target_os = "linux"))]
    fn another(&self) -> io::Result<Socket> {
        self.socket.try_clone()
    }
}

/// A listening socket that is not yet registered with the runtime of its worker.
#[derive(Debug)]
pub struct UnregisteredListener {
    socket: Socket,
    local: bool,
}

impl UnregisteredListener {
    /// Registers the socket with the runtime of the calling task.
    ///
    /// # Errors
    /// When the runtime cannot register it.
    pub fn register(self) -> io::Result<Listener> {
        #[cfg(unix)]
        if self.local {
            return tokio::net::UnixListener::from_std(self.socket.into()).map(Listener::Unix);
        }
        debug_assert!(!self.local, "Unix sockets are bound on Unix only");
        TcpListener::from_std(self.socket.into()).map(Listener::Tcp)
    }
}

/// Accepts connections.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket.
    #[cfg(unix)]
    Unix(tokio::net::UnixListener),
}

impl Listener {
    /// Accepts the next connection and returns it with the peer's address (TCP only).
    ///
    /// # Errors
    /// Those of `accept(2)`; the listener stays usable. See also [`is_exhaustion`].
    pub async fn accept(&self) -> io::Result<(Stream, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                tune(&stream);
                Ok((Stream::Tcp(stream), Some(peer)))
            }
            #[cfg(unix)]
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Stream::Unix(stream), None))
            }
        }
    }
}

/// The limit of written but unsent bytes in the kernel. With the default of a few megabytes, the
/// progress of a slow peer shows only every few megabytes, which looks like a stalled connection.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 128 * 1024;

/// Sends small writes at once (`TCP_NODELAY`) and limits unsent bytes. Errors are ignored: the
/// socket is closed already, or works without.
fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    #[cfg(target_os = "linux")]
    let _ = SockRef::from(stream).set_tcp_notsent_lowat(UNSENT);
}

/// Whether `accept` failed for want of a resource, such as descriptors: retry after a pause, not at
/// once.
pub fn is_exhaustion(error: &io::Error) -> bool {
    !matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

/// Connects to a name or an IP address. If the name has several addresses, one that cannot be
/// reached delays the next one by a fraction of a second ([`dial::first_connection`]).
///
/// # Errors
/// `TimedOut` without an OS error after `limit`, which includes the name resolution; otherwise the
/// error of the resolver, or of the address that failed last.
pub async fn connect(host: &str, port: u16, limit: Duration) -> io::Result<Stream> {
    let connecting = async {
        let addresses = match host.parse::<IpAddr>() {
            Ok(ip) => vec![SocketAddr::new(ip, port)],
            Err(_) => {
                let found = SystemResolver::shared().look_up(host).await;
                let found = found.map_err(io::Error::other)?;
                dial::interleaved(found.into_iter().map(|one| SocketAddr::new(one.ip(), port)))
            }
        };
        dial::first_connection(&addresses, limit, connect_to).await
    };
    tokio::time::timeout(limit, connecting)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Connects to an address, within the system's limit.
///
/// # Errors
/// Those of `connect(2)`.
pub async fn connect_to(address: SocketAddr) -> io::Result<Stream> {
    let stream = TcpStream::connect(address).await?;
    tune(&stream);
    Ok(Stream::Tcp(stream))
}

/// Connects to a listener on this machine. An unspecified address is reached through loopback.
///
/// # Errors
/// Like [`connect`].
pub async fn connect_to_listener(address: &Address, limit: Duration) -> io::Result<Stream> {
    match address {
        Address::Tcp(address) => {
            let ip = match address.ip() {
                IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
                ip => ip,
            };
            connect(&ip.to_string(), address.port(), limit).await
        }
        #[cfg(unix)]
        Address::Unix(path) => tokio::net::UnixStream::connect(path)
            .await
            .map(Stream::Unix),
        #[cfg(not(unix))]
        Address::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// A connected socket.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    #[cfg(unix)]
    Unix(tokio::net::UnixStream),
}

impl Stream {
    /// Makes the close of the connection a reset, so that the peer cannot mistake a truncated
    /// response for a complete one.
    pub fn reset_on_close(&self) {
        if let Self::Tcp(stream) = self {
            // If this fails the connection is closed already.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }

    /// Sends a probe after each `interval` without traffic, so that reading fails when the other
    /// side is gone: by default after nine of them.
    pub fn probe_when_idle(&self, interval: Duration) {
        if let Self::Tcp(stream) = self {
            let probes = TcpKeepalive::new()
                .with_time(interval)
                .with_interval(interval);
            // Without them the loss is noticed at a deadline.
            let _ = SockRef::from(stream).set_tcp_keepalive(&probes);
        }
    }

    /// Whether the peer has reset the connection, as opposed to having closed its sending side.
    /// Wakes the task when this may have changed.
    pub fn poll_reset(&self, cx: &mut Context<'_>) -> bool {
        let mut byte = [0];
        match self {
            Self::Tcp(stream) => matches!(
                stream.poll_peek(cx, &mut ReadBuf::new(&mut byte)),
                Poll::Ready(Err(_))
            ),
            #[cfg(unix)]
            Self::Unix(_) => false,
        }
    }

    /// Sends a final response on a connection that is not served, as far as it can be written at
    /// once, and closes the sending side.
    pub fn reject(&self, response: &[u8]) {
        let socket = match self {
            Self::Tcp(stream) => SockRef::from(stream),
            #[cfg(unix)]
            Self::Unix(stream) => SockRef::from(stream),
        };
        // If this fails, the peer has closed the connection.
        let _ = socket
            .send(response)
            .and_then(|_| socket.shutdown(std::net::Shutdown::Write));
    }
}

/// Calls the same method on either kind of stream.
macro_rules! either {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream.get_mut() {
            Stream::Tcp($inner) => $call,
            #[cfg(unix)]
            Stream::Unix($inner) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_instance_is_refused_although_workers_share_the_port() {
        let first = Bound::new(&Address::Tcp("127.0.0.1:0".parse().unwrap())).unwrap();
        let address = first.address().clone();
        let before_listening = Bound::new(&address).unwrap_err();
        assert_eq!(before_listening.kind(), io::ErrorKind::AddrInUse);
        let listeners = first.into_listeners(3).unwrap();
        assert_eq!(listeners.len(), 3);
        assert_eq!(
            Bound::new(&address).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
    }

    #[tokio::test]
    async fn every_worker_gets_connections() {
        let bound = Bound::new(&Address::Tcp("127.0.0.1:0".parse().unwrap())).unwrap();
        let Address::Tcp(address) = *bound.address() else {
            unreachable!()
        };
        let listeners: Vec<_> = bound
            .into_listeners(2)
            .unwrap()
            .into_iter()
            .map(|seed| seed.register().unwrap())
            .collect();
        let mut taken = [0, 0];
        for _ in 0..64 {
            let (connected, index) = tokio::join!(
                connect("127.0.0.1", address.port(), Duration::from_secs(5)),
                async {
                    tokio::select! {
                        accepted = listeners[0].accept() => { accepted.unwrap(); 0 }
                        accepted = listeners[1].accept() => { accepted.unwrap(); 1 }
                    }
                }
            );
            connected.unwrap();
            taken[index] += 1;
        }
        assert!(taken[0] > 0 && taken[1] > 0, "{taken:?}");
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_unix_socket_is_private_and_replaces_only_a_stale_one() {
        use std::os::unix::fs::PermissionsExt as _;

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("proxy.sock");
        let address = Address::Unix(path.clone());
        let listeners = Bound::new(&address).unwrap().into_listeners(1).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(
            Bound::new(&address).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        drop(listeners);
        Bound::new(&address).unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "kept").unwrap();
        assert!(Bound::new(&Address::Unix(file.clone())).is_err());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
    }
}
