//! One real server: what it stores, refuses and survives.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use redis::Value as Response;

use super::super::{
    super::register::{Register as _, RegisterError, Replaced, Revision},
    LOOK_INTERVAL,
    testing::{
        KEY, Reply, Server, address, config, eventually, register, scripted, until, usual, value,
    },
};
use crate::{
    base::{
        clock::{self, Clock as _, SharedClock, Simulated},
        log::capture::Log,
        secret::Secret,
    },
    token::fleet::{
        info::{Finding, Persistence, Role},
        redis::RedisRegister,
    },
};

/// Creates the user with the rights that the documentation grants, and takes those in `but` away.
fn grant(server: &Server, but: &[&str]) {
    let page = include_str!("../../../../../docs/gateway.md");
    let line = page
        .lines()
        .find(|line| line.starts_with("ACL SETUSER bearer-proxy on >PASSWORD "));
    let line = line.expect("the line").replace("PASSWORD", "s3cret");
    let taken: Vec<_> = but.iter().map(|command| format!("-{command}")).collect();
    let words = line.split(' ').chain(taken.iter().map(String::as_str));
    server.command(&["ACL", "DELUSER", "bearer-proxy"]);
    server.command(&words.collect::<Vec<_>>());
}

fn as_user(server: &Server) -> RedisRegister {
    let mut config = server.config();
    config.user = Some("bearer-proxy".to_owned());
    config.password = Some(Secret::new("s3cret"));
    register(&config)
}

#[tokio::test]
async fn a_value_is_replaced_only_if_it_is_the_one_that_was_read() {
    let server = Server::start(&[]).await;
    let register = server.register();
    assert!(register.read().await.expect("read").value.is_none());
    let odd = b"\0\r\n$-1\r\n\xff\xfe";
    let revision = |number| Some(Revision(number));
    for (seen, new, data, expected) in [
        (revision(1), 2, &b"a"[..], Replaced::Moved),
        (None, u64::MAX, odd, Replaced::Done),
        (None, 3, b"b", Replaced::Moved),
        (revision(3), 4, b"b", Replaced::Moved),
        (revision(u64::MAX), 0, b"", Replaced::Done),
        (None, 5, b"c", Replaced::Moved),
        (revision(0), 5, b"c", Replaced::Done),
        // Repeated after a lost response.
        (revision(0), 5, b"c", Replaced::Moved),
    ] {
        let replaced = register.replace(seen, value(new, data)).await;
        assert_eq!(replaced.expect("replaced"), expected, "{seen:?} by {new}");
        if expected == Replaced::Done {
            let stored = register.read().await.expect("read").value.expect("a value");
            assert_eq!(stored.revision, Revision(new));
            assert_eq!(&stored.bytes[..], data);
        }
    }
    assert_eq!(server.command(&["TTL", KEY]), Response::Int(-1));
    let reading = register.read().await.expect("read");
    assert_eq!(reading.connection, 1);
    let ours = clock::system().wall();
    let skew = ours.duration_since(reading.time).unwrap_or_default();
    assert!(skew < Duration::from_secs(20), "{skew:?}");
}

#[tokio::test]
async fn of_concurrent_writers_exactly_one_wins() {
    let server = Server::start(&[]).await;
    let registers: Vec<_> = (0..8).map(|_| server.register()).collect();
    let mut seen = None;
    for round in 1..=5 {
        let writes = registers
            .iter()
            .zip(1..)
            .map(|(register, writer)| register.replace(seen, value(round * 100 + writer, b"x")));
        let replaced = futures_util::future::join_all(writes).await;
        let done: Vec<_> = (1..)
            .zip(replaced)
            .filter(|(_, result)| matches!(result, Ok(Replaced::Done)))
            .map(|(writer, _)| Revision(round * 100 + writer))
            .collect();
        assert_eq!(done.len(), 1, "{done:?}");
        let stored = registers[0].read().await.expect("read").value;
        assert_eq!(stored.map(|value| value.revision), Some(done[0]));
        seen = Some(done[0]);
    }
}

#[tokio::test]
async fn the_documented_rights_are_enough_and_each_missing_one_is_named() {
    let server = Server::start(&[]).await;
    for but in [
        &[][..],
        &["info"],
        &["role"],
        &["info", "role"],
        &["wait"],
        &["ping"],
    ] {
        grant(&server, but);
        server.command(&["DEL", KEY]);
        let register = as_user(&server);
        let replaced = register.replace(None, value(1, b"x")).await;
        assert_eq!(replaced.expect("replaced"), Replaced::Done, "{but:?}");
        assert!(
            register.read().await.expect("read").value.is_some(),
            "{but:?}"
        );
        let is_known = register.info().role == Role::Primary;
        assert_eq!(is_known, but != ["info", "role"], "{but:?}");
    }
    for but in ["eval", "hmget", "hset"] {
        grant(&server, &[but]);
        server.command(&["DEL", KEY]);
        let replaced = as_user(&server).replace(None, value(1, b"x")).await;
        match replaced {
            Err(RegisterError::Refused(text)) => {
                assert!(text.contains("ACL SETUSER") && text.contains(but), "{text}");
            }
            other => panic!("without {but}: {other:?}"),
        }
        assert_eq!(server.command(&["EXISTS", KEY]), Response::Int(0));
    }
    grant(&server, &[]);
    let mut config = server.config();
    config.user = Some("bearer-proxy".to_owned());
    config.password = Some(Secret::new("s3cret"));
    let other_key = RedisRegister::new(&config, "other:key".to_owned(), clock::system());
    let read = other_key.expect("a register").read().await;
    assert!(matches!(read, Err(RegisterError::Refused(_))));
}

#[tokio::test]
async fn a_restart_leads_to_a_new_connection_and_shows_what_was_lost() {
    let mut server = Server::start(&[]).await;
    let register = server.register();
    register
        .replace(None, value(1, b"x"))
        .await
        .expect("replaced");
    let since = register.info().connected_since;
    assert!(since.is_some());
    server.kill();
    let error = register.read().await.err();
    assert!(
        matches!(error, Some(RegisterError::Unreachable(_))),
        "{error:?}"
    );
    assert_eq!(register.info().connected_since, None);
    server.restart().await;
    let read = || register.read();
    let reading = eventually("it reads again", read, Result::is_ok).await;
    let reading = reading.expect("read");
    assert!(reading.value.is_none());
    assert_eq!(reading.connection, 2);
    let info = register.info();
    assert!(info.connected_since >= since);
    assert!(info.last_error.is_some());
    assert_eq!(info.server, format!("redis://127.0.0.1:{}", server.port));
    assert_eq!(info.persistence, Persistence::None);
    let version = info.version.clone().unwrap_or_default();
    assert!(
        version.starts_with("Redis ") || version.starts_with("Valkey "),
        "{version}"
    );
}

#[tokio::test]
async fn two_silent_commands_lead_to_a_new_connection_and_one_does_not() {
    let server = Server::start(&[]).await;
    let register = server.register();
    register.read().await.expect("read");
    for (silent, connection) in [(1, 1), (2, 2)] {
        server.signal("STOP");
        for _ in 0..silent {
            let read = register.read().await;
            let Err(RegisterError::Unreachable(text)) = read else {
                panic!("a stopped server responds");
            };
            assert!(text.contains("no response within 500ms"), "{text}");
        }
        server.signal("CONT");
        let read = || register.read();
        let reading = eventually("it reads again", read, Result::is_ok).await;
        assert_eq!(reading.expect("read").connection, connection);
    }
    // The server itself does not respond for a while.
    server.command(&["CLIENT", "PAUSE", "1000", "ALL"]);
    let replaced = register.replace(None, value(1, b"x")).await;
    assert!(matches!(replaced, Err(RegisterError::Unreachable(_))));
    // A write of unknown outcome is carried out later.
    let read = || register.read();
    let is_stored = |read: &Result<super::super::Reading, RegisterError>| {
        read.as_ref().is_ok_and(|reading| reading.value.is_some())
    };
    eventually("the write is carried out", read, is_stored)
        .await
        .expect("read");
}

#[tokio::test]
async fn the_password_is_read_again_at_each_connection() {
    let server = Server::start(&[]).await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "first\n").expect("written");
    let mut config = server.config();
    config.password = Some(Secret::from_file(file.path().to_owned()).expect("read"));
    // A server without a password for the user refuses one.
    let read = register(&config).read().await;
    let Err(RegisterError::Refused(text)) = read else {
        panic!("authenticated without a password");
    };
    assert!(text.contains("remove token.store.password_file"), "{text}");

    let admin = redis::Client::open(format!("redis://127.0.0.1:{}", server.port)).expect("a URL");
    let mut admin = admin.get_connection().expect("connected");
    let mut command = |parts: &[&str]| {
        let mut command = redis::cmd(parts[0]);
        command.arg(&parts[1..]);
        command.query::<Response>(&mut admin).expect("a response")
    };
    command(&["CONFIG", "SET", "requirepass", "first"]);
    let without = server.register().read().await;
    let Err(RegisterError::Refused(text)) = without else {
        panic!("served without a password");
    };
    assert!(text.contains("it requires a password"), "{text}");
    let register = register(&config);
    assert_eq!(register.read().await.expect("read").connection, 1);

    // Changed while connected: the connection goes on.
    command(&["CONFIG", "SET", "requirepass", "second"]);
    assert_eq!(register.read().await.expect("read").connection, 1);
    command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    let read = || register.read();
    let is_refused = |read: &Result<_, RegisterError>| matches!(read, Err(RegisterError::Refused(text)) if text.contains("WRONGPASS"));
    eventually("the old password is refused", read, is_refused)
        .await
        .err();
    // A file that is being replaced is empty for a moment.
    std::fs::write(file.path(), "").expect("written");
    eventually("the old one is tried", read, is_refused)
        .await
        .err();
    std::fs::write(file.path(), "second").expect("written");
    eventually("the new one is used", read, Result::is_ok)
        .await
        .expect("read");
    let shown = format!("{register:?} {config:?} {:?}", register.info());
    assert!(
        !shown.contains("second") && !shown.contains("first\""),
        "{shown}"
    );
}

#[tokio::test]
async fn what_is_no_register_is_left_as_it_is() {
    let server = Server::start(&[]).await;
    let large = "x".repeat(2 << 20);
    let limit = "x".repeat(1 << 20);
    for (command, mends, says) in [
        (&["SET", KEY, "text"][..], false, "is not a hash"),
        (&["RPUSH", KEY, "text"], false, "is not a hash"),
        (&["HSET", KEY, "rev", "1"], false, "no field data"),
        (&["HSET", KEY, "data", "x"], false, "no field rev"),
        (
            &["HSET", KEY, "rev", "x", "data", "x"],
            false,
            "no revision",
        ),
        (
            &["HSET", KEY, "rev", "+1", "data", "x"],
            false,
            "no revision",
        ),
        (
            &["HSET", KEY, "rev", "01", "data", "x"],
            false,
            "no revision",
        ),
        (
            &["HSET", KEY, "rev", "-1", "data", "x"],
            false,
            "no revision",
        ),
        (
            &["HSET", KEY, "rev", "18446744073709551616", "data", "x"],
            false,
            "no revision",
        ),
        (
            &["HSET", KEY, "rev", "1", "data", &large],
            false,
            "exceeds 1 MiB",
        ),
        (&["HSET", KEY, "rev", "1", "data", &limit], true, ""),
    ] {
        server.command(&["DEL", KEY]);
        server.command(command);
        let dump = server.command(&["DUMP", KEY]);
        let register = server.register();
        let read = register.read().await;
        if mends {
            assert_eq!(
                read.expect("read").value.expect("a value").bytes.len(),
                1 << 20
            );
            continue;
        }
        let Err(RegisterError::Garbled(text)) = read else {
            panic!("{says}");
        };
        assert!(text.contains(says) && text.contains(KEY), "{text}");
        let replaced = register.replace(None, value(5, b"y")).await;
        assert!(!matches!(replaced, Ok(Replaced::Done)), "{says}");
        assert_eq!(server.command(&["DUMP", KEY]), dump, "{says}");
    }
}

#[tokio::test]
async fn a_server_that_refuses_writes_says_why_and_recovers() {
    let server = Server::start(&[]).await;
    let register = server.register();
    register.read().await.expect("read");
    for (refuse, allow, says) in [
        (
            &["CONFIG", "SET", "maxmemory", "1"][..],
            &["CONFIG", "SET", "maxmemory", "0"][..],
            "maxmemory",
        ),
        (
            &["CONFIG", "SET", "min-replicas-to-write", "1"],
            &["CONFIG", "SET", "min-replicas-to-write", "0"],
            "min-replicas-to-write",
        ),
        (
            &["REPLICAOF", "127.0.0.1", "1"],
            &["REPLICAOF", "NO", "ONE"],
            "replica",
        ),
    ] {
        server.command(&["DEL", KEY]);
        server.command(refuse);
        let replace = || register.replace(None, value(1, b"x"));
        match replace().await {
            Err(RegisterError::Refused(text)) => assert!(text.contains(says), "{text}"),
            other => panic!("{refuse:?}: {other:?}"),
        }
        server.command(allow);
        let is_done = |result: &Result<_, _>| matches!(result, Ok(Replaced::Done));
        eventually(says, replace, is_done).await.expect("replaced");
    }
    server.command(&["DEL", KEY]);
    server.break_disk().await;
    match register.replace(None, value(1, b"x")).await {
        Err(RegisterError::Refused(text)) => assert!(text.contains("MISCONF"), "{text}"),
        other => panic!("{other:?}"),
    }
    // Of a replica nothing is read on a new connection.
    server.command(&["REPLICAOF", "127.0.0.1", "1"]);
    let read = server.register().read().await;
    assert!(matches!(read, Err(RegisterError::Refused(_))));
}

#[tokio::test]
async fn another_database_is_selected_and_must_exist() {
    let server = Server::start(&["--databases", "4"]).await;
    let mut config = server.config();
    config.database = 3;
    let register_3 = register(&config);
    register_3
        .replace(None, value(1, b"x"))
        .await
        .expect("replaced");
    assert!(register_3.read().await.expect("read").value.is_some());
    assert!(
        server
            .register()
            .read()
            .await
            .expect("read")
            .value
            .is_none()
    );
    config.database = 4;
    let Err(RegisterError::Refused(text)) = register(&config).read().await else {
        panic!("there are four");
    };
    assert!(text.contains("token.store.url"), "{text}");
}

#[tokio::test]
async fn what_endangers_the_record_is_logged_once() {
    let log = Log::capture();
    let server =
        Server::start(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]).await;
    let clock = Arc::new(Simulated::new());
    let skew = clock
        .wall()
        .duration_since(clock::system().wall())
        .unwrap_or_default();
    let is_skewed = skew > Duration::from_secs(60)
        || clock.wall() + Duration::from_secs(60) < clock::system().wall();
    assert!(is_skewed, "the simulated clock is another one");
    let register =
        RedisRegister::new(&server.config(), KEY.to_owned(), clock as SharedClock).expect("one");
    for _ in 0..3 {
        let read = || register.read();
        eventually("it reads", read, Result::is_ok)
            .await
            .expect("read");
        server.command(&["CLIENT", "KILL", "TYPE", "normal"]);
    }
    for (words, count) in [
        ("noeviction", 1),
        ("appendonly", 1),
        ("more than 30 s", 1),
        ("WARN", 3),
    ] {
        assert_eq!(log.lines(words), count, "{words}:\n{}", log.text());
    }
    let findings = register.info().findings.clone();
    assert_eq!(
        findings,
        [Finding::Eviction, Finding::NoPersistence, Finding::Skew]
    );

    // Nothing to warn of.
    let log = Log::capture();
    let server = Server::start(&["--appendonly", "yes"]).await;
    let register = server.register();
    register.read().await.expect("read");
    assert_eq!(log.lines("WARN"), 0, "{}", log.text());
    assert_eq!(register.info().persistence, Persistence::AppendOnlyFile);
}

#[tokio::test]
async fn a_call_that_is_given_up_leaves_the_register_usable() {
    let server = Server::start(&[]).await;
    let register = server.register();
    for _ in 0..50 {
        let read = tokio::time::timeout(Duration::from_micros(300), register.read());
        let _ = read.await;
    }
    let read = || register.read();
    eventually("it reads", read, Result::is_ok)
        .await
        .expect("read");
    until("the connection stands", || {
        register.info().connected_since.is_some()
    })
    .await;
}

#[tokio::test]
async fn the_server_is_asked_about_itself_again_after_a_while() {
    let role = Arc::new(Mutex::new("master"));
    let script = {
        let role = Arc::clone(&role);
        move |command: &[String]| match command[0].as_str() {
            "ROLE" => {
                let role = *role.lock();
                let text = format!("*3\r\n${}\r\n{role}\r\n:0\r\n*0\r\n", role.len());
                Reply::Bytes(text.into_bytes())
            }
            "INFO" => "$22\r\nconnected_slaves:1\r\n\r\n\r\n".into(),
            "WAIT" => ":1\r\n".into(),
            _ => usual(command),
        }
    };
    let register = register(&config(vec![address(scripted(script).await)]));
    register.read().await.expect("read");
    assert_eq!(register.info().replicas, 1);
    *role.lock() = "slave";
    register.read().await.expect("not asked again yet");
    tokio::time::pause();
    tokio::time::advance(LOOK_INTERVAL).await;
    tokio::time::resume();
    let read = register.read().await;
    assert!(matches!(read, Err(RegisterError::Refused(_))), "a replica");
    assert_eq!(register.info().role, Role::Replica);
    assert_eq!(register.info().connected_since, None);
    *role.lock() = "master";
    let read = || register.read();
    let reading = eventually("it is promoted", read, Result::is_ok).await;
    assert_eq!(reading.expect("read").connection, 2);
}
