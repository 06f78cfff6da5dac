//! The issuer client over real sockets: what exactly goes out, and what survives of a hostile answer.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bearer_proxy::{
    base::{clock, secret::Secret},
    net::tls,
    token::{
        BasicEncoding, Config, Failure, FailureClass, IssuerConfig, ParameterLocation, Persistence,
        Refresher, ResponseFields, State, TokenResponse, issuer::TokenEndpoint,
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    sync::oneshot,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

const ID: &str = "client id+é";
const SECRET: &str = "s3c:ret+%&= ü";
const TOKEN: &str = "r3fresh+%&= /?#ü\"<>";
const TOKEN_ENCODED: &str = "r3fresh%2B%25%26%3D%20%2F%3F%23%C3%BC%22%3C%3E";
const GOOD: &str = r#"{"access_token":"abc","refresh_token":"def","expires_in":3600}"#;
const DEADLINE: Duration = Duration::from_secs(20);

fn config(url: &str) -> IssuerConfig {
    IssuerConfig {
        refresh_url: url.parse().expect("a URL"),
        client_id: ID.to_owned(),
        client_secret: Secret::new(SECRET),
        parameters: ParameterLocation::Query,
        basic_encoding: BasicEncoding::Raw,
        fields: ResponseFields::default(),
        timeout: Duration::from_secs(10),
        default_expires_in: Duration::from_secs(300),
        tls: tls::Config::default(),
    }
}

fn ok(body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn status(line: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {line}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// A listener that gives each connection the next of its answers, then closes it. Yields the raw requests.
struct Server {
    url: String,
    task: JoinHandle<Vec<String>>,
}

impl Server {
    async fn answering(answers: Vec<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!(
            "http://{}/api/refreshToken.do",
            listener.local_addr().expect("an address")
        );
        let task = tokio::spawn(async move {
            let mut requests = Vec::new();
            for answer in answers {
                let (mut socket, _) = listener.accept().await.expect("a connection");
                requests.push(read_request(&mut socket).await);
                socket.write_all(&answer).await.expect("written");
            }
            requests
        });
        Self { url, task }
    }

    async fn requests(self) -> Vec<String> {
        tokio::time::timeout(DEADLINE, self.task)
            .await
            .expect("in time")
            .expect("no panic")
    }
}

/// The head, and the body that its length announces.
async fn read_request(socket: &mut (impl AsyncRead + Unpin)) -> String {
    let mut request = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                field(head, "content-length").map_or(0, |length| length.parse().expect("a number"));
            if body.len() >= length {
                return text;
            }
        }
        let mut chunk = [0; 4096];
        let read = socket.read(&mut chunk).await.expect("readable");
        assert_ne!(read, 0, "the client hung up in the middle of {text:?}");
        request.extend_from_slice(&chunk[..read]);
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut values = head
        .lines()
        .filter_map(|line| line.split_once(": "))
        .filter(|(n, _)| n.eq_ignore_ascii_case(name));
    let value = values.next().map(|(_, value)| value);
    assert!(values.next().is_none(), "{name} stands there twice");
    value
}

async fn call(config: &IssuerConfig) -> Result<TokenResponse, Failure> {
    let issuer = TokenEndpoint::new(config, clock::system()).expect("a client");
    let token = Secret::new(TOKEN);
    let result = tokio::time::timeout(DEADLINE, issuer.refresh(&token))
        .await
        .expect("within its timeout");
    if let Err(failure) = &result {
        assert_no_secret(&format!("{failure:?}"));
    }
    assert_no_secret(&format!("{issuer:?} {result:?}"));
    result
}

/// What one scripted answer comes to.
async fn class_of(answer: impl Into<Vec<u8>>) -> FailureClass {
    let server = Server::answering(vec![answer.into()]).await;
    let class = call(&config(&server.url)).await.expect_err("refused").class;
    server.requests().await;
    class
}

fn assert_no_secret(text: &str) {
    let basic = STANDARD.encode(format!("{ID}:{SECRET}"));
    let token_base64 = STANDARD.encode(TOKEN);
    for secret in [
        SECRET,
        "s3c%3Aret",
        "s3c:ret",
        TOKEN,
        TOKEN_ENCODED,
        "r3fresh",
        &basic,
        &token_base64,
    ] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[tokio::test]
async fn the_request_is_what_the_cloud_documents() {
    let server = Server::answering(vec![ok(GOOD)]).await;
    let authority = server.url["http://".len()..]
        .split('/')
        .next()
        .expect("an authority")
        .to_owned();
    let grant = call(&config(&server.url)).await.expect("granted");
    assert_eq!(grant.access_token.expose(), "abc");
    assert_eq!(grant.refresh_token.expect("rotated").expose(), "def");
    assert_eq!(grant.lifetime, Duration::from_secs(3600));

    let requests = server.requests().await;
    let (head, body) = requests[0].split_once("\r\n\r\n").expect("a head");
    let target =
        format!("/api/refreshToken.do?grant_type=refresh_token&refresh_token={TOKEN_ENCODED}");
    assert_eq!(
        head.lines().next(),
        Some(format!("POST {target} HTTP/1.1").as_str())
    );
    assert_eq!(body, "");
    assert_eq!(field(head, "host"), Some(authority.as_str()));
    assert_eq!(field(head, "content-length"), Some("0"));
    assert_eq!(field(head, "accept"), Some("application/json"));
    assert_eq!(
        field(head, "user-agent"),
        Some(concat!("bearer-proxy/", env!("CARGO_PKG_VERSION")))
    );
    let basic = field(head, "authorization")
        .and_then(|value| value.strip_prefix("Basic "))
        .expect("Basic");
    assert_eq!(
        STANDARD.decode(basic).expect("Base64"),
        format!("{ID}:{SECRET}").as_bytes()
    );
    assert_eq!(head.lines().count(), 6, "nothing else: {head}");
    // The other end sees what we meant.
    let url = url::Url::parse(&format!("http://x{target}")).expect("a URL");
    assert_eq!(
        url.query_pairs()
            .find(|(name, _)| name == "refresh_token")
            .expect("there")
            .1,
        TOKEN
    );
}

#[tokio::test]
async fn parameters_in_a_form_and_a_form_encoded_client() {
    let server = Server::answering(vec![ok(GOOD)]).await;
    let form = IssuerConfig {
        parameters: ParameterLocation::Form,
        basic_encoding: BasicEncoding::Form,
        ..config(&server.url)
    };
    call(&form).await.expect("granted");
    let requests = server.requests().await;
    let (head, body) = requests[0].split_once("\r\n\r\n").expect("a head");
    assert_eq!(
        head.lines().next(),
        Some("POST /api/refreshToken.do HTTP/1.1")
    );
    assert_eq!(
        field(head, "content-type"),
        Some("application/x-www-form-urlencoded")
    );
    assert_eq!(
        body,
        format!("grant_type=refresh_token&refresh_token={TOKEN_ENCODED}")
    );
    let basic = field(head, "authorization")
        .and_then(|value| value.strip_prefix("Basic "))
        .expect("Basic");
    let decoded = String::from_utf8(STANDARD.decode(basic).expect("Base64")).expect("UTF-8");
    assert_eq!(decoded, "client+id%2B%C3%A9:s3c%3Aret%2B%25%26%3D+%C3%BC");
}

#[tokio::test]
async fn bad_input_15_redirects_of_the_issuer_are_never_followed() {
    let elsewhere = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    elsewhere.set_nonblocking(true).expect("set");
    let location = elsewhere.local_addr().expect("an address");
    for code in [
        "301 Moved Permanently",
        "302 Found",
        "307 Temporary Redirect",
        "308 Permanent Redirect",
    ] {
        let answer =
            format!("HTTP/1.1 {code}\r\nLocation: http://{location}/\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(class_of(answer).await, FailureClass::Failing);
        // The call has ended: whatever it would have connected to, it has.
        assert_eq!(
            elsewhere.accept().expect_err("nobody comes").kind(),
            io::ErrorKind::WouldBlock
        );
    }
}

#[tokio::test]
async fn an_endless_body_is_cut() {
    for (head, class) in [
        ("200 OK", FailureClass::Garbled),
        ("500 Internal Server Error", FailureClass::Failing),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/", listener.local_addr().expect("an address"));
        let (hung_up, sent) = oneshot::channel();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.expect("a connection");
            read_request(&mut socket).await;
            let head = format!("HTTP/1.1 {head}\r\nTransfer-Encoding: chunked\r\n\r\n");
            socket.write_all(head.as_bytes()).await.expect("written");
            let chunk = format!("1000\r\n{}\r\n", " ".repeat(0x1000));
            let mut sent = 0_usize;
            while socket.write_all(chunk.as_bytes()).await.is_ok() {
                sent += 0x1000;
            }
            hung_up.send(sent).expect("somebody asks");
        });
        assert_eq!(call(&config(&url)).await.expect_err("refused").class, class);
        let sent = tokio::time::timeout(DEADLINE, sent)
            .await
            .expect("it hangs up")
            .expect("told");
        assert!(sent < 64 << 20, "{sent} bytes were taken");
    }
}

#[tokio::test]
async fn a_body_of_just_the_limit_is_read() {
    for (size, is_read) in [(64 * 1024, true), (64 * 1024 + 1, false)] {
        let body = format!("{GOOD}{}", " ".repeat(size - GOOD.len()));
        let server = Server::answering(vec![ok(&body)]).await;
        assert_eq!(call(&config(&server.url)).await.is_ok(), is_read, "{size}");
    }
}

#[tokio::test]
async fn bad_input_13_and_14_bad_answers_never_become_tokens() {
    for garbage in [
        ok(""),
        ok("<html>login</html>"),
        ok("{}"),
        ok(r#"{"access_token":"a\r\nX-Evil: 1","expires_in":3600}"#),
        ok(r#"{"access_token":"a\u0000","expires_in":3600}"#),
        ok(r#"{"access_token":"a\nb","expires_in":3600}"#),
        ok(r#"{"access_token":"a b","expires_in":3600}"#),
        ok(r#"{"access_token":" a","expires_in":3600}"#),
        ok(r#"{"access_token":"\u00e4","expires_in":3600}"#),
        ok(r#"{"access_token":"","expires_in":3600}"#),
        ok(&format!(
            r#"{{"access_token":"{}","expires_in":3600}}"#,
            "a".repeat(100_000)
        )),
        ok(r#"{"access_token":"a","token_type":"Bearerx"}"#),
        ok(r#"{"access_token":"a","token_type":"DPoP"}"#),
        ok(r#"{"access_token":"a","expires_in":0}"#),
        ok(r#"{"access_token":"a","expires_in":-1}"#),
        ok(r#"{"access_token":"a","expires_in":1e18}"#),
        ok(r#"{"access_token":"a","token_type":"mac"}"#),
        b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
    ] {
        assert_eq!(
            class_of(garbage.clone()).await,
            FailureClass::Garbled,
            "{}",
            String::from_utf8_lossy(&garbage)
        );
    }
    for broken in [
        "",
        "SSH-2.0-OpenSSH\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"access",
        "HTTP/1.1 2",
    ] {
        assert_eq!(class_of(broken).await, FailureClass::Ambiguous, "{broken}");
    }
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let echo =
        format!(r#"{{"error":"invalid_grant","error_description":"{SECRET} {TOKEN_ENCODED}"}}"#);
    assert_eq!(
        class_of(status("400 Bad Request", &echo)).await,
        FailureClass::RefreshTokenRefused
    );
    let refused = status("401 Unauthorized", r#"{"error":"invalid_client"}"#);
    assert_eq!(class_of(refused).await, FailureClass::ClientRefused);
    assert_eq!(
        class_of(status("403 Forbidden", "blocked by the firewall")).await,
        FailureClass::Failing
    );
    assert_eq!(
        class_of(status("502 Bad Gateway", "")).await,
        FailureClass::Ambiguous
    );
    let throttled = "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(
        class_of(throttled).await,
        FailureClass::Throttled(Duration::from_secs(7))
    );
}

#[tokio::test]
async fn a_silent_issuer_is_left_at_the_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    let issuer = IssuerConfig {
        timeout: Duration::from_millis(300),
        ..config(&url)
    };
    let failure = call(&issuer).await.expect_err("no answer");
    assert_eq!(failure.class, FailureClass::Ambiguous);
    assert!(failure.detail.contains("in time"), "{}", failure.detail);
}

#[tokio::test]
async fn an_issuer_that_is_not_there_was_told_nothing() {
    let port = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port")
        .local_addr()
        .expect("an address")
        .port();
    let failure = call(&config(&format!("http://127.0.0.1:{port}/")))
        .await
        .expect_err("refused");
    assert_eq!(failure.class, FailureClass::Unreachable);
    assert!(failure.detail.contains("refused"), "{}", failure.detail);
}

#[tokio::test]
async fn nothing_secret_is_logged_at_any_level() {
    static LOG: OnceLock<Arc<Mutex<Vec<u8>>>> = OnceLock::new();
    struct Sink;
    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            LOG.get_or_init(Arc::default)
                .lock()
                .expect("no panic")
                .extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    // For the whole process: it sees what the other tests do, too, and what libraries say through `log`.
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(|| Sink)
        .init();
    for answer in [
        ok(GOOD),
        ok("{}"),
        status("500 Oops", ""),
        b"garbage".to_vec(),
    ] {
        let server = Server::answering(vec![answer]).await;
        let _ = call(&config(&server.url)).await;
    }
    let _ = call(&config("http://127.0.0.1:1/")).await;
    let log = String::from_utf8(
        LOG.get_or_init(Arc::default)
            .lock()
            .expect("no panic")
            .clone(),
    )
    .expect("text");
    assert!(log.contains("TRACE"), "libraries were heard: {log}");
    assert_no_secret(&log);
}

/// A TLS server with a certificate for this name; answers every connection that shakes hands.
async fn tls_server(name: &str, folder: &Path) -> (u16, JoinHandle<Option<String>>) {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
    std::fs::write(folder.join("ca.pem"), cert.pem()).expect("written");
    let key =
        rustls::pki_types::PrivateKeyDer::try_from(signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .expect("a server");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let task = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.expect("a connection");
        let mut socket = tokio_rustls::TlsAcceptor::from(Arc::new(server))
            .accept(socket)
            .await
            .ok()?;
        let request = answer_tls(&mut socket).await;
        Some(request)
    });
    (port, task)
}

async fn answer_tls(socket: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> String {
    let request = read_request(socket).await;
    socket.write_all(&ok(GOOD)).await.expect("written");
    socket.shutdown().await.expect("shut down");
    request
}

#[tokio::test]
async fn tls_by_a_private_ca() {
    let folder = tempfile::tempdir().expect("a folder");
    let (port, server) = tls_server("localhost", folder.path()).await;
    let mut issuer = config(&format!("https://localhost:{port}/"));
    issuer.tls.ca_file = Some(folder.path().join("ca.pem"));
    call(&issuer).await.expect("granted");
    let request = server.await.expect("no panic").expect("shaken hands");
    assert_eq!(
        field(&request, "host"),
        Some(format!("localhost:{port}").as_str())
    );
}

#[tokio::test]
async fn tls_under_another_name_keeps_the_host() {
    let folder = tempfile::tempdir().expect("a folder");
    let (port, server) = tls_server("cloud.example.com", folder.path()).await;
    let mut issuer = config(&format!("https://127.0.0.1:{port}/"));
    issuer.tls.ca_file = Some(folder.path().join("ca.pem"));
    issuer.tls.server_name = Some("cloud.example.com".to_owned());
    call(&issuer).await.expect("granted");
    let request = server.await.expect("no panic").expect("shaken hands");
    assert_eq!(
        field(&request, "host"),
        Some(format!("127.0.0.1:{port}").as_str())
    );
}

#[tokio::test]
async fn tls_that_cannot_be_trusted_is_told_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    // A wrong name, then an unknown authority.
    let (port, server) = tls_server("cloud.example.com", folder.path()).await;
    let mut issuer = config(&format!("https://localhost:{port}/"));
    issuer.tls.ca_file = Some(folder.path().join("ca.pem"));
    let failure = call(&issuer).await.expect_err("the wrong name");
    assert_eq!(failure.class, FailureClass::Unreachable);
    assert!(failure.detail.contains("cert"), "{}", failure.detail);
    assert!(
        server.await.expect("no panic").is_none(),
        "nothing was sent"
    );

    let (port, server) = tls_server("localhost", folder.path()).await;
    let other = tempfile::tempdir().expect("a folder");
    let (_, _unused) = tls_server("localhost", other.path()).await;
    let mut issuer = config(&format!("https://localhost:{port}/"));
    issuer.tls.ca_file = Some(other.path().join("ca.pem"));
    assert_eq!(
        call(&issuer).await.expect_err("unknown").class,
        FailureClass::Unreachable
    );
    assert!(
        server.await.expect("no panic").is_none(),
        "nothing was sent"
    );
}

fn whole(issuer: IssuerConfig, folder: &Path) -> Config {
    Config {
        name: "default".to_owned(),
        issuer,
        refresh_token: Some(Secret::new(TOKEN)),
        state_file: Some(folder.join("state/token.json")),
        refresh_margin: None,
        refresh_lifetime: Duration::from_secs(30 * 24 * 3600),
        grace_retry: true,
        wait: Duration::from_secs(10),
        cooldown: Duration::from_secs(10),
    }
}

#[tokio::test]
async fn a_refresher_on_real_sockets_files_and_clocks() {
    let folder = tempfile::tempdir().expect("a folder");
    let secret_file = folder.path().join("client_secret");
    std::fs::write(&secret_file, "old\n").expect("written");
    let refused = status("401 Unauthorized", r#"{"error":"invalid_client"}"#);
    let server = Server::answering(vec![refused, ok(GOOD)]).await;
    let client_secret = Secret::from_file(secret_file.clone()).expect("readable");
    let issuer = IssuerConfig {
        client_secret,
        ..config(&server.url)
    };
    // The secret is rotated while we hold the old one.
    std::fs::write(&secret_file, "new\n").expect("written");

    let (refresher, credential) =
        Refresher::new(whole(issuer.clone(), folder.path()), None, clock::system()).expect("built");
    let stop = CancellationToken::new();
    let running = tokio::spawn(refresher.run(stop.clone()));
    let token = credential
        .newer_than(None, DEADLINE)
        .await
        .expect("a token");
    assert_eq!(token.header().as_bytes(), b"Bearer abc");
    assert_eq!(credential.snapshot().persistence, Persistence::Stored);
    stop.cancel();
    running.await.expect("no panic");

    let requests = server.requests().await;
    for (request, secret) in requests.iter().zip(["old", "new"]) {
        let basic = field(request, "authorization")
            .and_then(|value| value.strip_prefix("Basic "))
            .expect("Basic");
        assert_eq!(
            STANDARD.decode(basic).expect("Base64"),
            format!("{ID}:{secret}").as_bytes()
        );
    }
    // The next process finds the tokens and calls nobody.
    let (_refresher, credential) =
        Refresher::new(whole(issuer, folder.path()), None, clock::system()).expect("built");
    assert_eq!(credential.snapshot().state, State::Fresh);
    assert_eq!(
        credential.token().as_ref().expect("stored").version(),
        token.version()
    );
}

#[tokio::test]
async fn a_bad_state_file_stops_the_start_with_a_remedy() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = whole(config("http://127.0.0.1:1/"), folder.path());
    let file = config.state_file.clone().expect("there");
    std::fs::create_dir(file.parent().expect("a folder")).expect("created");
    std::fs::write(&file, "{").expect("written");
    #[cfg(unix)]
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("changed");
    let error = Refresher::new(config, None, clock::system())
        .err()
        .expect("refused")
        .to_string();
    assert!(
        error.contains(&file.display().to_string()) && error.contains("move it away"),
        "{error}"
    );
    assert_eq!(std::fs::read_to_string(&file).expect("there"), "{");
}
