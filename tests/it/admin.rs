//! Access control of the admin endpoint, over real sockets.

use crate::common::{LIMIT, Proxy, eventually, issuer, proxy, raw};

/// Starts a proxy whose admin endpoint listens on `at`, with the configuration keys `more`.
async fn listening(at: &str, more: &[(&str, &str)]) -> Proxy {
    let issuer = issuer().await;
    let mut all = vec![("admin.listen", at)];
    all.extend_from_slice(more);
    let mut proxy = proxy(&issuer, &all);
    // The test reaches an unspecified address through loopback.
    proxy.admin.set_ip([127, 0, 0, 1].into());
    proxy.ready().await;
    proxy
}

/// Sends a request. Returns the status and whether the response has a `Bearer` challenge.
async fn ask(proxy: &Proxy, request: &str, fields: &str) -> (u16, bool) {
    let request =
        format!("{request} HTTP/1.1\r\nHost: localhost\r\n{fields}Connection: close\r\n\r\n");
    let answer = raw(proxy.admin, request.as_bytes(), LIMIT).await;
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    (
        status.unwrap_or_else(|| panic!("{answer}")),
        answer
            .to_ascii_lowercase()
            .contains("\r\nwww-authenticate: bearer\r\n"),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_in_a_file_is_exchanged_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "first").unwrap();
    let proxy = listening(
        "127.0.0.1:0",
        &[("admin.token_file", file.to_str().unwrap())],
    )
    .await;
    let shows = async |token: &str| {
        ask(
            &proxy,
            "GET /status",
            &format!("Authorization: Bearer {token}\r\n"),
        )
        .await
        .0
    };
    assert_eq!(shows("first").await, 200);
    std::fs::write(&file, "second\n").unwrap();
    eventually("the proxy accepts the new token", async || {
        shows("second").await == 200
    })
    .await;
    assert_eq!(shows("first").await, 401);
}

const OPEN: [&str; 3] = ["GET /healthz", "GET /readyz", "GET /metrics"];
const CLOSED: [&str; 5] = [
    "GET /status",
    "GET /",
    "POST /token/refresh",
    "GET /token/refresh",
    "GET /other",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_this_machine_nothing_but_health_and_metrics_is_shown_without_a_token() {
    let proxy = listening("0.0.0.0:0", &[]).await;
    for request in OPEN {
        assert_eq!(ask(&proxy, request, "").await, (200, false), "{request}");
    }
    for request in CLOSED {
        assert_eq!(
            ask(&proxy, request, "Authorization: Bearer any\r\n").await,
            (403, false),
            "{request}"
        );
    }
    let on_loopback = listening("127.0.0.1:0", &[]).await;
    assert_eq!(ask(&on_loopback, "GET /status", "").await, (200, false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_there_is_a_token_it_has_to_be_shown_on_loopback_too() {
    for at in ["0.0.0.0:0", "127.0.0.1:0"] {
        let proxy = listening(at, &[("admin.token", "the-token")]).await;
        for request in OPEN {
            assert_eq!(
                ask(&proxy, request, "").await,
                (200, false),
                "{at} {request}"
            );
        }
        for request in CLOSED {
            assert_eq!(
                ask(&proxy, request, "").await,
                (401, true),
                "{at} {request}"
            );
        }
        for (shown, expected) in [
            ("Bearer the-token", 200),
            ("bearer the-token", 200),
            ("Bearer the-toke", 401),
            ("Bearer the-tokens", 401),
            ("Bearer the-tokeN", 401),
            ("Bearer ", 401),
            ("Bearerthe-token", 401),
            ("Basic the-token", 401),
            ("the-token", 401),
        ] {
            let (status, _) = ask(
                &proxy,
                "GET /status",
                &format!("Authorization: {shown}\r\n"),
            )
            .await;
            assert_eq!(status, expected, "{at} {shown}");
        }
        // A valid token does not permit cross-origin requests of web pages.
        let page = "Authorization: Bearer the-token\r\nOrigin: https://evil.example\r\n";
        assert_eq!(
            ask(&proxy, "POST /token/refresh", page).await.0,
            403,
            "{at}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_that_is_dropped_stops_its_parts() {
    let Proxy {
        app,
        address,
        admin,
        ..
    } = listening("127.0.0.1:0", &[]).await;
    drop(app);
    for address in [address, admin] {
        eventually("the listener is closed", async || {
            tokio::net::TcpStream::connect(address).await.is_err()
        })
        .await;
    }
}
