//! Listening and connected sockets, TCP and (on Unix) local ones. The only place that knows their platform.

use std::{
    fmt,
    io::{self, IoSlice},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use socket2::{Domain, SockRef, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};

use crate::base::host;

/// Where a listener listens: `127.0.0.1:8080`, `[::1]:8080` or `unix:/run/bearer-proxy.sock`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// An IP address and a port; port 0 takes a free one.
    Tcp(SocketAddr),
    /// A local socket, created with mode 0600.
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
    /// Whether only this machine can reach it.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => host::is_loopback(address.ip()),
            Self::Unix(_) => true,
        }
    }
}

/// A bound address, before any worker accepts from it.
///
/// Binding is exclusive, so that a second instance on the same port is refused although both would share it with their own
/// workers: on Linux a second `SO_REUSEPORT` bind succeeds silently and would steal half of the connections.
#[derive(Debug)]
pub struct Bound {
    address: Address,
    socket: Socket,
}

/// Connections that wait in the kernel until a worker takes them.
const BACKLOG: i32 = 1024;

impl Bound {
    /// Binds `address` for this process alone. A local socket left behind by an instance that is gone is replaced.
    ///
    /// # Errors
    /// `AddrInUse` when another process serves there; `PermissionDenied` for ports below 1024 without the right to them.
    pub fn new(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => {
                let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
                // Else a restart fails while connections of the last run are in TIME_WAIT. Windows means something else
                // by this option: there it would let two instances share the port.
                #[cfg(not(windows))]
                socket.set_reuse_address(true)?;
                if address.is_ipv6() {
                    socket.set_only_v6(!address.ip().is_unspecified())?;
                }
                socket.bind(&(*address).into())?;
                // Two sockets may be bound side by side while neither listens; this is where the second one fails.
                socket.listen(BACKLOG)?;
                // From here on further sockets of ours may join; another instance tries without this option first.
                #[cfg(target_os = "linux")]
                socket.set_reuse_port(true)?;
                let bound = socket.local_addr()?.as_socket().unwrap_or(*address);
                Ok(Self {
                    address: Address::Tcp(bound),
                    socket,
                })
            }
            #[cfg(unix)]
            Address::Unix(path) => local::bind(path).map(|socket| Self {
                address: address.clone(),
                socket,
            }),
            #[cfg(not(unix))]
            Address::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The address, with the port that the system chose in place of 0.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Turns into one listener for each worker.
    ///
    /// On Linux each TCP listener has a queue of its own (`SO_REUSEPORT`) and the kernel spreads connections; elsewhere,
    /// and for local sockets, all of them share one queue and whichever worker wakes first takes the connection.
    ///
    /// # Errors
    /// Whatever the system says.
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

/// A listening socket on its way to the worker that will accept from it.
#[derive(Debug)]
pub struct UnregisteredListener {
    socket: Socket,
    local: bool,
}

impl UnregisteredListener {
    /// Registers the socket with the runtime of the calling task.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn register(self) -> io::Result<Listener> {
        #[cfg(unix)]
        if self.local {
            return tokio::net::UnixListener::from_std(self.socket.into()).map(Listener::Unix);
        }
        debug_assert!(!self.local, "local sockets are bound on Unix only");
        TcpListener::from_std(self.socket.into()).map(Listener::Tcp)
    }
}

/// Accepts connections.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A local socket.
    #[cfg(unix)]
    Unix(tokio::net::UnixListener),
}

impl Listener {
    /// The next connection and, for TCP, the address it comes from.
    ///
    /// # Errors
    /// Those of `accept(2)`; the listener stays usable. See [`is_exhaustion`].
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

/// What the kernel may hold of what was written and not sent. With the default, a few megabytes, a slow peer's progress
/// comes in lumps of as much, which looks like silence.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 128 * 1024;

/// Bytes go out when they are written, and in small lumps. A socket that refuses these settings is dead or works without.
fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    #[cfg(target_os = "linux")]
    let _ = SockRef::from(stream).set_tcp_notsent_lowat(UNSENT);
}

/// Whether `accept` failed because the machine or this process ran out of something: try again later, not at once.
pub fn is_exhaustion(error: &io::Error) -> bool {
    !matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

/// Connects to a name or an address, trying each address that it resolves to, all within `limit`.
///
/// # Errors
/// `TimedOut` after `limit`; else what the last address answered.
pub async fn connect(host: &str, port: u16, limit: Duration) -> io::Result<Stream> {
    let connecting = async {
        let stream = match host.parse::<IpAddr>() {
            Ok(ip) => TcpStream::connect((ip, port)).await?,
            Err(_) => TcpStream::connect((host, port)).await?,
        };
        tune(&stream);
        Ok(Stream::Tcp(stream))
    };
    tokio::time::timeout(limit, connecting)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Connects to where a listener of this machine listens: an unspecified address is reached by loopback.
///
/// # Errors
/// As [`connect`].
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
    /// A local socket.
    #[cfg(unix)]
    Unix(tokio::net::UnixStream),
}

impl Stream {
    /// Makes the coming close a reset, so that the peer cannot take a cut answer for a complete one.
    pub fn reset_on_close(&self) {
        if let Self::Tcp(stream) = self {
            // If this fails the connection is gone already.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }

    /// Whether the peer has broken the connection off, which is more than closing its side. Wakes the task when that may have
    /// changed.
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

    /// Sends last words on a connection that will not be served, as far as they fit at once.
    pub fn reject(&self, words: &[u8]) {
        let socket = match self {
            Self::Tcp(stream) => SockRef::from(stream),
            #[cfg(unix)]
            Self::Unix(stream) => SockRef::from(stream),
        };
        // Nobody is left to tell if this fails.
        let _ = socket
            .send(words)
            .and_then(|_| socket.shutdown(std::net::Shutdown::Write));
    }
}

macro_rules! each {
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
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

#[cfg(unix)]
mod local {
    use std::{
        fs, io,
        os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
        os::unix::net::UnixStream,
        path::Path,
    };

    use socket2::{Domain, SockAddr, Socket, Type};

    /// Binds a local socket that only this user can reach.
    pub(super) fn bind(path: &Path) -> io::Result<Socket> {
        remove_stale(path)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(path)?)?;
        // Nobody can connect before listen(2), so there is no moment at which others could.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        socket.listen(super::BACKLOG)?;
        Ok(socket)
    }

    fn remove_stale(path: &Path) -> io::Result<()> {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(metadata) if !metadata.file_type().is_socket() => Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "there is a file that is not a socket",
            )),
            Ok(_) => match UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path)
                }
                Err(error) => Err(error),
                Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_instance_is_refused_whatever_the_first_one_shares() {
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
                    tokio::select! { one = listeners[0].accept() => { one.unwrap(); 0 }, one = listeners[1].accept() => { one.unwrap(); 1 } }
                }
            );
            connected.unwrap();
            taken[index] += 1;
        }
        assert!(taken[0] > 0 && taken[1] > 0, "{taken:?}");
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_local_socket_is_private_and_replaces_only_a_dead_one() {
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
