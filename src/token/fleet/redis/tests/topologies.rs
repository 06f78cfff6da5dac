//! Several servers: replicas, Sentinels, a cluster, TLS.

use std::{fs, path::Path};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use redis::Value as Response;

use super::super::{
    super::register::{Register as _, RegisterError, Replaced, Revision},
    testing::{KEY, Server, address, config, eventually, free_port, register, until, value},
};
use crate::{
    base::{log::capture::Log, secret::Secret},
    token::fleet::{config::RedisServer, info::Role},
};

/// A replica that is in step with `primary`.
async fn replica_of(primary: &Server, arguments: &[&str]) -> Server {
    let replica = Server::start(arguments).await;
    follow(&replica, primary);
    until("the replica is in step", || {
        let info = text(&replica.command(&["INFO", "replication"]));
        info.contains("master_link_status:up")
    })
    .await;
    replica
}

fn follow(replica: &Server, primary: &Server) {
    let port = primary.port.to_string();
    replica.command(&["REPLICAOF", "127.0.0.1", &port]);
}

fn text(response: &Response) -> String {
    match response {
        Response::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        other => format!("{other:?}"),
    }
}

#[tokio::test]
async fn a_write_waits_for_a_replica_and_succeeds_without_it() {
    let log = Log::capture();
    let primary = Server::start(&[]).await;
    let replica = replica_of(&primary, &[]).await;
    let register = primary.register();
    // On a busy machine a replica may take longer than the limit.
    let mut revision = 0;
    let mut write = async || {
        let seen = Some(Revision(revision)).filter(|seen| seen.0 > 0);
        revision += 1;
        let replaced = register.replace(seen, value(revision, b"x")).await;
        assert_eq!(replaced.expect("replaced"), Replaced::Done);
        (revision, register.info().unconfirmed_writes)
    };
    let mut unconfirmed = 0;
    let confirmed = loop {
        let (revision, still) = write().await;
        if still == unconfirmed {
            break revision;
        }
        unconfirmed = still;
    };
    let stored = replica.command(&["HGET", KEY, "rev"]);
    let digits = confirmed.to_string().into_bytes();
    assert_eq!(stored, Response::BulkString(digits), "confirmed");
    assert_eq!(log.lines("min-replicas-to-write 1"), 1, "{}", log.text());

    replica.signal("STOP");
    for more in 1..=2 {
        assert_eq!(write().await.1, unconfirmed + more);
    }
    assert_eq!(register.info().replicas, 1);
    assert_eq!(log.lines("no replica has confirmed"), 1, "{}", log.text());
    replica.signal("CONT");
}

#[tokio::test]
async fn of_several_servers_the_one_that_can_be_written_is_used() {
    let primary = Server::start(&[]).await;
    let replica = replica_of(&primary, &[]).await;
    let dead = address(free_port());
    for servers in [
        vec![dead.clone(), primary.address()],
        vec![replica.address(), primary.address()],
        vec![dead, replica.address(), primary.address()],
    ] {
        let register = register(&config(servers));
        let read = register.read().await;
        assert_eq!(read.map(|reading| reading.connection).ok(), Some(1));
        assert_eq!(register.info().server, primary.address().to_string());
        assert_eq!(register.info().role, Role::Primary);
    }
}

#[tokio::test]
async fn sentinels_name_the_primary_and_a_failover_is_followed() {
    let mut primary = Server::start(&[]).await;
    let replica = replica_of(&primary, &[]).await;
    let sentinel = Server::sentinel(&primary, &["requirepass s3cret"]).await;
    let mut config = config(vec![address(free_port()), sentinel.address()]);
    config.sentinel = Some("mymaster".to_owned());
    let refused = |read: Result<_, RegisterError>, says: &str| match read {
        Err(RegisterError::Refused(text)) => assert!(text.contains(says), "{says}: {text}"),
        Err(error) => panic!("{says}: {error}"),
        Ok(_) => panic!("{says}: connected"),
    };
    let read = register(&config).read().await.map(drop);
    refused(read, "token.store.sentinel_password_file");
    config.sentinel_password = Some(Secret::new("wr0ng"));
    let read = register(&config).read().await.map(drop);
    refused(read, "token.store.sentinel_password_file");
    config.sentinel_password = Some(Secret::new("s3cret"));

    let mut other = config.clone();
    other.sentinel = Some("other".to_owned());
    refused(
        register(&other).read().await.map(drop),
        "token.store.sentinel",
    );
    let mut no_sentinel = config.clone();
    no_sentinel.servers = vec![primary.address()];
    no_sentinel.sentinel_password = None;
    refused(register(&no_sentinel).read().await.map(drop), "26379");

    let register = register(&config);
    register
        .replace(None, value(1, b"x"))
        .await
        .expect("replaced");
    assert_eq!(register.info().server, primary.address().to_string());
    until("the Sentinel knows the replica", || {
        let password = "s3cret";
        let url = format!("redis://:{password}@127.0.0.1:{}", sentinel.port);
        let client = redis::Client::open(url).expect("a URL");
        let mut connection = client.get_connection().expect("connected");
        let mut command = redis::cmd("SENTINEL");
        let found: redis::RedisResult<Vec<Response>> = command
            .arg("replicas")
            .arg("mymaster")
            .query(&mut connection);
        found.is_ok_and(|replicas| !replicas.is_empty())
    })
    .await;
    // On a busy machine the replica may not have confirmed it in time.
    until("the replica has the value", || {
        replica.command(&["EXISTS", KEY]) == Response::Int(1)
    })
    .await;
    primary.kill();
    let read = || register.read();
    let reading = eventually("the replica is promoted", read, Result::is_ok).await;
    assert!(reading.expect("read").value.is_some());
    assert_eq!(register.info().server, replica.address().to_string());
    let seen = Some(Revision(1));
    let replaced = register.replace(seen, value(2, b"y")).await;
    assert_eq!(replaced.expect("replaced"), Replaced::Done);
}

#[tokio::test]
async fn in_a_cluster_the_node_of_the_key_is_found() {
    let arguments = [
        "--cluster-enabled",
        "yes",
        "--cluster-require-full-coverage",
        "no",
    ];
    let mut nodes = Vec::new();
    for slots in ["0 5460", "5461 10922", "10923 16383"] {
        let node = Server::start(&arguments).await;
        let (first, last) = slots.split_once(' ').expect("two");
        node.command(&["CLUSTER", "ADDSLOTSRANGE", first, last]);
        nodes.push(node);
    }
    for node in &nodes[1..] {
        let port = node.port.to_string();
        nodes[0].command(&["CLUSTER", "MEET", "127.0.0.1", &port]);
    }
    until("the nodes know each other", || {
        nodes.iter().all(|node| {
            let info = text(&node.command(&["CLUSTER", "INFO"]));
            info.contains("cluster_state:ok") && info.contains("cluster_slots_assigned:16384")
        })
    })
    .await;
    let Response::Int(slot) = nodes[0].command(&["CLUSTER", "KEYSLOT", KEY]) else {
        panic!("a slot");
    };
    let owner = match slot {
        0..=5460 => &nodes[0],
        5461..=10922 => &nodes[1],
        _ => &nodes[2],
    };
    for entry in &nodes {
        owner.command(&["DEL", KEY]);
        let register = entry.register();
        let replaced = register.replace(None, value(1, b"x")).await;
        assert_eq!(replaced.expect("replaced"), Replaced::Done);
        assert!(register.read().await.expect("read").value.is_some());
        assert_eq!(register.info().server, owner.address().to_string());
        assert_eq!(owner.command(&["EXISTS", KEY]), Response::Int(1));
    }
}

/// Writes an authority and certificates for 127.0.0.1 and for a client into the folder.
fn certificates(folder: &Path, name: &str) {
    let mut params = CertificateParams::new([]).expect("parameters");
    params
        .distinguished_name
        .push(DnType::CommonName, "authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("signed");
    fs::write(folder.join("ca.pem"), certificate.pem()).expect("written");
    let issuer = Issuer::new(params, key);
    for (file, names) in [("server", vec![name.to_owned()]), ("client", vec![])] {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(names).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, file);
        let certificate = params.signed_by(&key, &issuer).expect("signed");
        fs::write(folder.join(file).with_extension("pem"), certificate.pem()).expect("written");
        fs::write(folder.join(file).with_extension("key"), key.serialize_pem()).expect("written");
    }
}

#[tokio::test]
async fn tls_with_a_client_certificate_whose_files_are_read_again() {
    let folder = tempfile::tempdir().expect("a folder");
    certificates(folder.path(), "store.example");
    let file = |name: &str| folder.path().join(name);
    let path = |name: &str| file(name).to_string_lossy().into_owned();
    let port = free_port();
    let server = Server::start(&[
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &path("server.pem"),
        "--tls-key-file",
        &path("server.key"),
        "--tls-ca-cert-file",
        &path("ca.pem"),
    ])
    .await;
    let tls_address = RedisServer {
        is_tls: true,
        ..address(port)
    };
    let mut config = config(vec![tls_address]);
    config.tls.ca_file = Some(file("ca.pem"));
    for (name, says) in [(None, "tls.server_name"), (Some("store.example"), "")] {
        config.tls.server_name = name.map(str::to_owned);
        let error = register(&config).read().await.err();
        let Some(RegisterError::Unreachable(text)) = error else {
            panic!("no certificate was needed: {error:?}");
        };
        assert!(text.contains(says), "{text}");
        assert!(text.starts_with("rediss://"), "{text}");
    }
    // A certificate of an authority that the server does not know.
    let other = tempfile::tempdir().expect("a folder");
    certificates(other.path(), "x");
    for name in ["client.pem", "client.key"] {
        fs::rename(file(name), file(name).with_extension("right")).expect("renamed");
        let right = file(name).with_extension("right");
        fs::rename(right, file(&format!("{name}.right"))).expect("renamed");
        fs::copy(other.path().join(name), file(name)).expect("copied");
    }
    config.tls.client_cert_file = Some(file("client.pem"));
    config.tls.client_key_file = Some(file("client.key"));
    let register = register(&config);
    assert!(register.read().await.is_err());
    assert!(
        register
            .reloadable()
            .is_some_and(|one| one.certificate().is_some())
    );
    for name in ["client.pem", "client.key"] {
        fs::rename(file(&format!("{name}.right")), file(name)).expect("renamed");
    }
    let replace = || register.replace(None, value(1, b"x"));
    let replaced = eventually("the new files are used", replace, Result::is_ok).await;
    assert_eq!(replaced.expect("replaced"), Replaced::Done);
    assert_eq!(server.command(&["EXISTS", KEY]), Response::Int(1));

    // Without TLS where TLS is needed, and the other way round.
    let mut plain = config.clone();
    plain.servers[0].is_tls = false;
    let mut wrong = config.clone();
    wrong.servers[0].port = server.port;
    for (config, says) in [
        (plain, "it needs rediss://"),
        (wrong, "without it redis://"),
    ] {
        let error = super::super::testing::register(&config).read().await.err();
        let Some(RegisterError::Unreachable(text)) = error else {
            panic!("{error:?}");
        };
        assert!(text.contains(says), "{text}");
    }
}
