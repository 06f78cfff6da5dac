//! Messages between apps and the cloud: URLs, cookies and rules.

use crate::common::{
    Proxy, toml,
    upstream::{Upstream, ok},
};

/// A proxy whose `proxy.toml` has these lines besides the usual ones.
async fn configured(origin: &str, more: &str) -> Proxy {
    toml::proxy_in(tempfile::tempdir().unwrap().path(), origin, more).await
}

/// An upstream at `/dav` without the prefix.
fn below_dav(origin: &str) -> String {
    format!(
        "[upstreams.dav]\nendpoints = [\"{origin}\"]\n\
         [[route]]\nprefix = \"/dav\"\nupstream = \"dav\"\nstrip_prefix = true\ndeny = [\"/secret\"]\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_b5_request_fields_name_the_cloud_instead_of_the_proxy() {
    let upstream = Upstream::always(ok("")).issuing().start().await;
    let cloud = upstream.origin();
    let proxy = configured(&cloud, &below_dav(&cloud)).await;
    let ours = format!("http://{}", proxy.address);
    let host = format!("Host: {}\r\n", proxy.address);
    let secure = ours.replace("http:", "https:");
    for (request, name, written, sent) in [
        (
            "PUT /f",
            "If",
            format!("<{ours}/f> (<opaquelocktoken:1>)"),
            format!("<{cloud}/f> (<opaquelocktoken:1>)"),
        ),
        (
            "MOVE /f",
            "Destination",
            format!("{secure}/g"),
            format!("{cloud}/g"),
        ),
        (
            "MOVE /dav/f",
            "Destination",
            format!("{ours}/dav/g"),
            format!("{cloud}/g"),
        ),
        (
            "COPY /dav/f",
            "Destination",
            "/dav/g".to_owned(),
            "/g".to_owned(),
        ),
        (
            "LOCK /dav/f",
            "If",
            "</dav/f> (<urn:1>)".to_owned(),
            "</f> (<urn:1>)".to_owned(),
        ),
        (
            "GET /f",
            "Referer",
            format!("{ours}/g?h"),
            format!("{cloud}/g?h"),
        ),
        ("GET /f", "Origin", ours.clone(), cloud.clone()),
        ("GET /dav/f", "Origin", ours.clone(), cloud.clone()),
        (
            "GET /f",
            "Referer",
            "https://other.example/".to_owned(),
            "https://other.example/".to_owned(),
        ),
    ] {
        let fields = format!("{host}{name}: {written}\r\n");
        assert_eq!(
            proxy.status(request, &fields).await,
            200,
            "{request} {fields}"
        );
        let requests = upstream.requests();
        assert_eq!(
            requests.last().unwrap().fields(name),
            [sent],
            "{request} {written}"
        );
    }
    // The rules see the path that is sent.
    for (destination, expected) in [("/dav/secret", 403), ("/secret", 403), ("/dav/x", 200)] {
        let fields = format!("{host}Destination: {ours}{destination}\r\n");
        assert_eq!(
            proxy.status("MOVE /dav/f", &fields).await,
            expected,
            "{destination}"
        );
    }
}
