use http::Request;

use super::*;

fn verdict(guard: &Guard, version: Version, target: &str, headers: &[(&str, &str)]) -> u16 {
    verdict_over(&Scheme::HTTP, guard, version, target, headers)
}

fn verdict_over(
    scheme: &Scheme,
    guard: &Guard,
    version: Version,
    target: &str,
    headers: &[(&str, &str)],
) -> u16 {
    let mut request = Request::builder().version(version).uri(target);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (parts, ()) = request.body(()).unwrap().into_parts();
    guard
        .check(&parts, &KnownHost::default(), scheme)
        .map_or_else(|error| error.status().as_u16(), |()| 200)
}

fn guard(exposure: Exposure) -> Guard {
    let config = GuardConfig {
        allowed_hosts: ["files.example.com".to_owned()].into(),
        allowed_origins: ["https://app.example.com".to_owned()].into(),
        ..GuardConfig::default()
    };
    Guard::new(config, exposure)
}

#[test]
fn exposure_of_an_address() {
    for (address, expected) in [
        ("127.0.0.2:80", Exposure::Loopback),
        ("[::1]:80", Exposure::Loopback),
        ("[::ffff:127.0.0.1]:80", Exposure::Loopback),
        ("0.0.0.0:80", Exposure::Network),
        ("[::]:80", Exposure::Network),
        ("192.0.2.1:80", Exposure::Network),
    ] {
        assert_eq!(
            exposure(&Address::Tcp(address.parse().unwrap())),
            expected,
            "{address}"
        );
    }
    assert_eq!(exposure(&Address::Unix("socket".into())), Exposure::File);
}

#[test]
fn hosts() {
    let table = [
        // host, on loopback, on the network, on a local socket
        ("localhost", 200, 200, 200),
        ("LOCALHOST:8080", 200, 200, 200),
        ("localhost.", 200, 200, 200),
        ("app.localhost:1", 200, 200, 200),
        ("127.0.0.1:8080", 200, 200, 200),
        ("127.9.9.9", 200, 200, 200),
        ("[::1]:8080", 200, 200, 200),
        ("[::1]", 200, 200, 200),
        ("files.example.com", 200, 200, 200),
        ("Files.Example.Com:80", 200, 200, 200),
        ("192.168.1.5:8080", 421, 200, 200),
        ("[2001:db8::1]", 421, 200, 200),
        ("0.0.0.0:8080", 421, 421, 200),
        ("[::]", 421, 421, 200),
        ("[::ffff:0.0.0.0]", 421, 421, 200),
        ("evil.example", 421, 421, 200),
        ("notlocalhost", 421, 421, 200),
        ("localhost.evil.example", 421, 421, 200),
        ("2130706433", 421, 421, 200),
        ("127.1", 421, 421, 200),
        ("0x7f.1", 421, 421, 200),
        ("", 400, 400, 400),
        (&"a".repeat(256), 400, 400, 400),
        ("a/b@c", 400, 400, 400),
        ("localhost:80a", 400, 400, 400),
        ("localhost:99999", 400, 400, 400),
        ("[::1", 400, 400, 400),
        ("[::1]x", 400, 400, 400),
        ("localhost, evil.example", 400, 400, 400),
    ];
    for (host, loopback, network, file) in table {
        let actual = [Exposure::Loopback, Exposure::Network, Exposure::File]
            .map(|exposure| verdict(&guard(exposure), Version::HTTP_11, "/", &[("host", host)]));
        assert_eq!(actual, [loopback, network, file], "{host}");
    }
}

#[test]
fn several_hosts_no_host_and_hosts_that_differ() {
    let guard = guard(Exposure::Loopback);
    let host = ("host", "localhost");
    assert_eq!(verdict(&guard, Version::HTTP_11, "/", &[host, host]), 400);
    assert_eq!(verdict(&guard, Version::HTTP_11, "/", &[]), 400);
    assert_eq!(verdict(&guard, Version::HTTP_10, "/", &[]), 200);
    assert_eq!(
        verdict(
            &guard,
            Version::HTTP_10,
            "/",
            &[("origin", "http://localhost")]
        ),
        421
    );
    assert_eq!(
        verdict(&guard, Version::HTTP_10, "/", &[("sec-fetch-site", "none")]),
        421
    );
    assert_eq!(
        verdict(&guard, Version::HTTP_10, "http://evil.example/", &[]),
        421
    );
    assert_eq!(
        verdict(&guard, Version::HTTP_10, "http://localhost/", &[]),
        200
    );
    assert_eq!(
        verdict(&guard, Version::HTTP_11, "http://localhost/x", &[host]),
        200
    );
    assert_eq!(
        verdict(&guard, Version::HTTP_11, "http://evil.example/x", &[host]),
        400
    );
    assert_eq!(
        verdict(
            &guard,
            Version::HTTP_11,
            "http://u@localhost/",
            &[("host", "u@localhost")]
        ),
        400
    );
    assert_eq!(
        verdict(&guard, Version::HTTP_11, "ftp://localhost/", &[host]),
        400
    );
}

#[test]
fn origins_and_sites() {
    let table: &[(&[(&str, &str)], u16)] = &[
        (&[("origin", "http://localhost:8080")], 200),
        (&[("origin", "http://LOCALHOST:8080")], 200),
        (&[("origin", "http://localhost:3000")], 403),
        (&[("origin", "https://localhost:8080")], 403),
        (&[("origin", "null")], 403),
        (&[("origin", "https://app.example.com")], 200),
        (&[("origin", "https://evil.example")], 403),
        (
            &[
                ("origin", "http://localhost:8080"),
                ("origin", "https://evil.example"),
            ],
            403,
        ),
        (&[("sec-fetch-site", "none")], 200),
        (&[("sec-fetch-site", "same-origin")], 200),
        (&[("sec-fetch-site", "same-site")], 403),
        (&[("sec-fetch-site", "cross-site")], 403),
        (&[("sec-fetch-site", "")], 403),
        (
            &[
                ("sec-fetch-site", "cross-site"),
                ("origin", "https://app.example.com"),
            ],
            200,
        ),
    ];
    for (headers, status) in table {
        for exposure in [Exposure::Loopback, Exposure::File] {
            let mut all = vec![("host", "localhost:8080")];
            all.extend_from_slice(headers);
            assert_eq!(
                verdict(&guard(exposure), Version::HTTP_11, "/", &all),
                *status,
                "{headers:?} {exposure:?}"
            );
        }
    }
}

#[test]
fn field_b5_origins_behind_a_tls_load_balancer() {
    let (https, http) = ("https://files.example.com", "http://files.example.com");
    for (scheme, host, origin, expected) in [
        (Scheme::HTTP, "files.example.com", https, 200),
        (Scheme::HTTP, "Files.Example.com:443", https, 200),
        (
            Scheme::HTTP,
            "files.example.com",
            "https://files.example.com:8443",
            403,
        ),
        (
            Scheme::HTTP,
            "files.example.com:8443",
            "https://files.example.com:8443",
            200,
        ),
        (Scheme::HTTP, "files.example.com:8080", https, 403),
        (
            Scheme::HTTP,
            "files.example.com",
            "https://app.files.example.com",
            403,
        ),
        (
            Scheme::HTTP,
            "files.example.com",
            "ftp://files.example.com",
            403,
        ),
        (Scheme::HTTP, "localhost", https, 403),
        (Scheme::HTTP, "localhost", "https://localhost", 403),
        (
            Scheme::HTTP,
            "127.0.0.1:8080",
            "https://127.0.0.1:8080",
            403,
        ),
        (Scheme::HTTP, "localhost:80", "http://localhost", 200),
        (Scheme::HTTP, "localhost:443", "http://localhost", 403),
        (Scheme::HTTPS, "files.example.com:443", https, 200),
        (Scheme::HTTPS, "files.example.com", http, 403),
    ] {
        let guard = guard(Exposure::Loopback);
        let fields = [
            ("host", host),
            ("origin", origin),
            ("sec-fetch-site", "same-origin"),
        ];
        let status = verdict_over(&scheme, &guard, Version::HTTP_11, "/", &fields);
        assert_eq!(status, expected, "{scheme} {host} {origin}");
    }
}

#[test]
fn field_c10_links_of_other_sites_are_followed_if_allowed() {
    let guard_with = |allow_navigation| {
        let config = GuardConfig {
            allow_navigation,
            ..GuardConfig::default()
        };
        Guard::new(config, Exposure::Loopback)
    };
    let check = |guard: &Guard, method: &str, fields: &[(&str, &str)]| {
        let mut request = Request::builder().method(method).uri("/");
        for (name, value) in [("host", "localhost")].iter().chain(fields) {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let outcome = guard.check(&parts, &KnownHost::default(), &Scheme::HTTP);
        outcome.map_or_else(|error| error.reason().label(), |()| "served")
    };
    let (cross, same) = (
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
    );
    let (navigate, user) = (("sec-fetch-mode", "navigate"), ("sec-fetch-user", "?1"));
    let (link, foreign) = ("foreign_navigation", "foreign_site");
    for (method, fields, by_default, if_allowed) in [
        ("GET", &[cross, navigate, user][..], link, "served"),
        ("HEAD", &[same, navigate, user], link, "served"),
        (
            "GET",
            &[cross, navigate, user, ("sec-fetch-dest", "document")],
            link,
            "served",
        ),
        (
            "GET",
            &[cross, navigate, ("sec-fetch-dest", "document")],
            foreign,
            foreign,
        ),
        ("GET", &[cross, navigate], foreign, foreign),
        (
            "GET",
            &[cross, navigate, ("sec-fetch-user", "?0")],
            foreign,
            foreign,
        ),
        ("GET", &[cross, navigate, user, user], foreign, foreign),
        (
            "GET",
            &[cross, navigate, user, ("sec-fetch-dest", "iframe")],
            foreign,
            foreign,
        ),
        (
            "GET",
            &[cross, navigate, user, ("sec-fetch-dest", "object")],
            foreign,
            foreign,
        ),
        ("POST", &[cross, navigate, user], foreign, foreign),
        (
            "GET",
            &[cross, ("sec-fetch-mode", "no-cors")],
            foreign,
            foreign,
        ),
        (
            "GET",
            &[cross, ("sec-fetch-mode", "cors")],
            foreign,
            foreign,
        ),
        ("GET", &[cross, navigate, navigate, user], foreign, foreign),
        ("GET", &[cross], foreign, foreign),
        (
            "GET",
            &[cross, navigate, user, ("origin", "https://evil.example")],
            "foreign_origin",
            "foreign_origin",
        ),
        (
            "GET",
            &[("sec-fetch-site", "none"), navigate],
            "served",
            "served",
        ),
    ] {
        assert_eq!(
            check(&guard_with(false), method, fields),
            by_default,
            "{method} {fields:?}"
        );
        assert_eq!(
            check(&guard_with(true), method, fields),
            if_allowed,
            "{method} {fields:?}"
        );
    }
}

#[test]
fn a_guard_that_is_off_still_rejects_malformed_requests() {
    let off = Guard::new(
        GuardConfig {
            is_off: true,
            ..GuardConfig::default()
        },
        Exposure::Loopback,
    );
    let foreign = [
        ("host", "any.example"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
    ];
    assert_eq!(verdict(&off, Version::HTTP_11, "/", &foreign), 200);
    assert_eq!(verdict(&off, Version::HTTP_10, "/", &foreign[1..]), 200);
    assert_eq!(verdict(&off, Version::HTTP_11, "/", &foreign[1..]), 400);
    assert_eq!(
        verdict(&off, Version::HTTP_11, "/", &[("host", "a/b")]),
        400
    );
}

#[test]
fn an_accepted_host_does_not_admit_another() {
    let guard = guard(Exposure::Loopback);
    let known = KnownHost::default();
    let check = |host: &str| {
        let (parts, ()) = Request::get("/")
            .header("host", host)
            .body(())
            .unwrap()
            .into_parts();
        guard.check(&parts, &known, &Scheme::HTTP).is_ok()
    };
    assert!(check("localhost"));
    assert!(!check("evil.example"));
    assert!(check("localhost"));
}

#[test]
fn over_http2_a_length_is_a_single_one() {
    let guard = guard(Exposure::Loopback);
    for (lengths, expected) in [(&["5"][..], 200), (&[""], 400), (&["5", "5"], 400)] {
        let mut headers = vec![("host", "localhost")];
        headers.extend(lengths.iter().map(|length| ("content-length", *length)));
        assert_eq!(
            verdict(&guard, Version::HTTP_2, "/", &headers),
            expected,
            "{lengths:?}"
        );
    }
}

#[test]
fn forms() {
    let guard = guard(Exposure::Loopback);
    let form = |method: &str, target: &str, headers: &[(&str, &str)]| {
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        guard
            .check(&parts, &KnownHost::default(), &Scheme::HTTP)
            .map_or_else(|error| error.status().as_u16(), |()| 200)
    };
    assert_eq!(form("TRACE", "/", &[]), 405);
    assert_eq!(form("CONNECT", "evil.example:443", &[]), 405);
    assert_eq!(form("CONNECT", "/", &[]), 405);
    assert_eq!(form("get", "/", &[]), 400);
    assert_eq!(form("G3T", "/", &[]), 400);
    assert_eq!(form("VERSION-CONTROL", "/", &[]), 200);
    assert_eq!(form("PRI", "/", &[]), 405);
    assert_eq!(form("OPTIONS", "*", &[]), 400);
    assert_eq!(form("GET", "*", &[]), 400);
    assert_eq!(form("POST", "/", &[("expect", "100-Continue")]), 200);
    assert_eq!(form("POST", "/", &[("expect", "foo")]), 417);
}
