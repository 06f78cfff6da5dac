//! The program with a hosts file and nameservers of its own, in a mount namespace of its own.
//!
//! ```text
//! let names = Names::new();
//! names.hosts("127.0.0.2 cloud.test\n127.0.0.3 cloud.test\n");
//! let program = Program::new("http://cloud.test:8000", "");
//! let running = program.start_as(names.command(&program));
//! ```

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::{self, Command},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, AtomicUsize, Ordering::SeqCst},
    },
};

use tokio::{net::UdpSocket, task::JoinHandle};

use super::process::{Program, command};

/// The size of both files. They are padded, and written at once and in place: the program never
/// reads half of a file, and the mount stays the same file.
const FILE_SIZE: usize = 32 * 1024;

/// Runs its other arguments with the files in the folder `$1`.
const MOUNT: &str = r#"
set -e
mount --bind "$1/hosts" /etc/hosts
mount --bind "$1/resolv.conf" /etc/resolv.conf
if [ -e /etc/nsswitch.conf ]; then mount --bind "$1/nsswitch.conf" /etc/nsswitch.conf; fi
shift
exec "$@"
"#;

/// The files by which a program resolves names.
pub struct Names {
    folder: tempfile::TempDir,
}

impl Names {
    /// No names and no nameserver. Panics with an explanation where namespaces are forbidden.
    pub fn new() -> Self {
        let this = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        this.write("nsswitch.conf", "hosts: files dns\n");
        this.hosts("");
        // Without any line the resolver asks 127.0.0.1.
        this.nameservers(&[Ipv4Addr::new(127, 255, 255, 254).into()], "");
        let output = this.command_of("true").output().unwrap();
        assert!(
            output.status.success(),
            "this test needs a mount namespace: run it as root with CAP_SYS_ADMIN (in a container: \
             --privileged), or where users may create namespaces: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        this
    }

    /// Replaces `/etc/hosts`.
    pub fn hosts(&self, text: &str) {
        self.write("hosts", text);
    }

    /// Replaces `/etc/hosts` by these addresses of one name.
    pub fn host(&self, name: &str, addresses: &[&str]) {
        let lines = addresses
            .iter()
            .map(|address| format!("{address} {name}\n"));
        self.hosts(&lines.collect::<String>());
    }

    /// Replaces `/etc/resolv.conf`. The options are those of resolv.conf(5).
    pub fn nameservers(&self, addresses: &[IpAddr], options: &str) {
        let lines = addresses
            .iter()
            .map(|address| format!("nameserver {address}\n"));
        let lines: String = lines.collect();
        self.write("resolv.conf", &format!("{lines}options {options}\n"));
    }

    fn write(&self, name: &str, text: &str) {
        assert!(text.len() <= FILE_SIZE, "{name} is too long");
        let padded = format!("{text:\n<FILE_SIZE$}");
        let path = self.folder.path().join(name);
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .unwrap();
        assert_eq!(file.write(padded.as_bytes()).unwrap(), FILE_SIZE);
    }

    /// The proxy in the folder of this program.
    pub fn command(&self, program: &Program) -> Command {
        let mut command = self.command_of(env!("CARGO_BIN_EXE_bearer-proxy"));
        command.current_dir(program.folder.path());
        command
    }

    /// Any other program, with an empty environment.
    pub fn command_of(&self, program: &str) -> Command {
        let mut command = command("unshare", self.folder.path());
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["--mount", "sh", "-c", MOUNT, "sh"]);
        command.arg(self.folder.path()).arg(program);
        command
    }
}

/// How a nameserver treats queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// Responds with the addresses of the name, each time in another order.
    Serves,
    /// Responds SERVFAIL.
    Fails,
    /// Responds REFUSED.
    Refuses,
    /// Responds without an address, but not that the name does not exist.
    Empty,
    /// Keeps queries until the mode changes.
    Hangs,
}

impl Mode {
    const ALL: [Self; 5] = [
        Self::Serves,
        Self::Fails,
        Self::Refuses,
        Self::Empty,
        Self::Hangs,
    ];
}

/// A nameserver on port 53 of a loopback address of its own.
pub struct Nameserver {
    pub address: IpAddr,
    state: Arc<State>,
    socket: Arc<UdpSocket>,
    task: JoinHandle<()>,
}

struct State {
    mode: AtomicU8,
    addresses: Mutex<BTreeMap<String, Vec<IpAddr>>>,
    queries: AtomicUsize,
    kept: Mutex<Vec<(Vec<u8>, SocketAddr)>>,
}

impl Nameserver {
    /// Knows no name. Panics if this user may not listen on port 53.
    pub async fn start() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let (address, socket) = loop {
            let number = process::id() as usize * 61 + NEXT.fetch_add(1, SeqCst);
            let part = |divisor: usize| u8::try_from(number / divisor % 250 + 2).unwrap();
            let address = IpAddr::from([127, part(62_500), part(250), part(1)]);
            match UdpSocket::bind((address, 53)).await {
                Ok(socket) => break (address, Arc::new(socket)),
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
                Err(error) => panic!("this test listens on port 53, as root: {error}"),
            }
        };
        let state = Arc::new(State {
            mode: AtomicU8::new(Mode::Serves as u8),
            addresses: Mutex::default(),
            queries: AtomicUsize::new(0),
            kept: Mutex::default(),
        });
        let task = tokio::spawn(Arc::clone(&state).serve(Arc::clone(&socket)));
        Self {
            address,
            state,
            socket,
            task,
        }
    }

    /// Replaces the addresses of a name; without any, the name does not exist.
    pub fn set(&self, name: &str, addresses: &[&str]) {
        let addresses: Vec<_> = addresses.iter().map(|one| one.parse().unwrap()).collect();
        let mut zone = self.state.addresses.lock().unwrap();
        if addresses.is_empty() {
            zone.remove(name);
        } else {
            zone.insert(name.to_owned(), addresses);
        }
    }

    /// Changes the mode. Queries that were kept are responded to in the new one.
    pub async fn mode(&self, mode: Mode) {
        self.state.mode.store(mode as u8, SeqCst);
        let kept = std::mem::take(&mut *self.state.kept.lock().unwrap());
        for (query, client) in kept {
            self.state.respond(&self.socket, query, client).await;
        }
    }

    /// The number of queries so far.
    pub fn queries(&self) -> usize {
        self.state.queries.load(SeqCst)
    }

    /// The number of queries that are kept.
    pub fn kept(&self) -> usize {
        self.state.kept.lock().unwrap().len()
    }
}

impl Drop for Nameserver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl State {
    async fn serve(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = [0; 2048];
        // A send to a client that has gone makes the next receive fail.
        loop {
            if let Ok((length, client)) = socket.recv_from(&mut buffer).await {
                self.queries.fetch_add(1, SeqCst);
                self.respond(&socket, buffer[..length].to_vec(), client)
                    .await;
            }
        }
    }

    async fn respond(&self, socket: &UdpSocket, query: Vec<u8>, client: SocketAddr) {
        let mode = Mode::ALL[usize::from(self.mode.load(SeqCst))];
        match self.response(mode, &query) {
            Some(response) => drop(socket.send_to(&response, client).await),
            None => self.kept.lock().unwrap().push((query, client)),
        }
    }

    /// A message of RFC 1035 §4.1 with the question of the query; `None` to keep the query.
    fn response(&self, mode: Mode, query: &[u8]) -> Option<Vec<u8>> {
        const HEADER: usize = 12;
        let (mut name, mut end) = (Vec::new(), HEADER);
        while query[end] != 0 {
            let length = usize::from(query[end]);
            name.push(String::from_utf8_lossy(&query[end + 1..][..length]).to_lowercase());
            end += length + 1;
        }
        let kind = query[end + 2];
        let (code, addresses) = match mode {
            Mode::Hangs => return None,
            Mode::Fails => (2, Vec::new()),
            Mode::Refuses => (5, Vec::new()),
            Mode::Empty => (0, Vec::new()),
            Mode::Serves => match self.addresses.lock().unwrap().get_mut(&name.join(".")) {
                None => (3, Vec::new()),
                Some(addresses) => {
                    addresses.rotate_left(1);
                    (0, addresses.clone())
                }
            },
        };
        let records: Vec<_> = addresses
            .iter()
            .filter_map(|address| match (address, kind) {
                (IpAddr::V4(ip), 1) => Some(ip.octets().to_vec()),
                (IpAddr::V6(ip), 28) => Some(ip.octets().to_vec()),
                _ => None,
            })
            .collect();
        let count = u16::try_from(records.len()).unwrap().to_be_bytes();
        let mut message = query[..2].to_vec();
        message.extend([0x81, 0x80 | code, 0, 1, count[0], count[1], 0, 0, 0, 0]);
        message.extend(&query[HEADER..end + 5]);
        for record in records {
            let length = u8::try_from(record.len()).unwrap();
            // The name of the question; class IN; no time to live.
            message.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 0, 0, length]);
            message.extend(record);
        }
        Some(message)
    }
}

/// An address that connections reach in no time or in vain: its queue is full, so that the kernel
/// drops further SYNs. Until the value is dropped.
pub struct BlackHole {
    _listener: socket2::Socket,
    _callers: Vec<socket2::Socket>,
}

impl BlackHole {
    pub fn at(address: SocketAddr) -> Self {
        use socket2::{Domain, Socket, Type};
        let socket = || Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        let listener = socket();
        listener.set_reuse_address(true).unwrap();
        listener.bind(&address.into()).unwrap();
        listener.listen(0).unwrap();
        let callers = (0..4).map(|_| {
            let caller = socket();
            caller.set_nonblocking(true).unwrap();
            let _ = caller.connect(&address.into()); // in progress
            caller
        });
        Self {
            _callers: callers.collect(),
            _listener: listener,
        }
    }
}
