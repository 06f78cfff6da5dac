//! Servers that send what no Redis server sends.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use futures_util::{StreamExt as _, stream};
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use super::super::{
    super::register::{Register as _, RegisterError, Replaced, VALUE_LIMIT},
    bounded::OVERHEAD,
    fault::Fault,
    link::Link,
    testing::{PATIENCE, Reply, address, config, eventually, register, scripted, usual, value},
};
use crate::base::log::capture::Log;

const SECRET: &str = "s3cret";

/// What a hostile server sends, and whether the value is reported as unusable.
fn hostile() -> Vec<(&'static str, Reply, bool)> {
    let endless = |text: &str| Reply::Endless("", text.repeat(1000).into_bytes());
    let value = |text: &str| Reply::Bytes(format!("*2\r\n$1\r\n1\r\n{text}").into_bytes());
    vec![
        ("nothing", "".into(), false),
        ("the end", Reply::Close, false),
        (
            "HTTP",
            "HTTP/1.1 400 Bad Request\r\n\r\ns3cret".into(),
            false,
        ),
        ("endless text", endless("s3cret"), false),
        ("an endless line", endless("+s3cret"), true),
        ("an endless error", endless("-s3cret "), true),
        ("an endless array", endless("*999999999\r\n"), false),
        (
            "endless elements",
            Reply::Endless("*9999999\r\n", b"*0\r\n".repeat(999)),
            true,
        ),
        (
            "a deep array",
            Reply::Bytes(b"*1\r\n".repeat(100_000)),
            false,
        ),
        (
            "a long bulk string",
            Reply::Bytes(format!("*2\r\n$1\r\n1\r\n$3000000\r\n{}", "s".repeat(3_000_000)).into()),
            true,
        ),
        (
            "a size beyond memory",
            value("$9223372036854775807\r\ns3cret"),
            false,
        ),
        (
            "a size beyond numbers",
            value("$99999999999999999999\r\ns3cret"),
            false,
        ),
        ("a negative size", value("$-5\r\ns3cret\r\n"), true),
        (
            "an array beyond memory",
            "*9223372036854775807\r\n".into(),
            false,
        ),
        (
            "a map beyond memory",
            "%9223372036854775807\r\n".into(),
            false,
        ),
        (
            "an attribute",
            "|1\r\n+s3cret\r\n+x\r\n+OK\r\n".into(),
            false,
        ),
        ("a negative attribute", "|-1\r\n+s3cret\r\n".into(), false),
        ("a push", ">2\r\n+s3cret\r\n+x\r\n".into(), false),
        (
            "a subscription",
            ">3\r\n+subscribe\r\n+s3cret\r\n:1\r\n".into(),
            false,
        ),
        ("an error with a token", "-ERR s3cret\r\n".into(), false),
        ("an error that is a token", "-s3cret\r\n".into(), false),
        ("no error at all", "-\r\n".into(), false),
        ("another type", ":1\r\n".into(), false),
        ("one field", "*1\r\n$1\r\n1\r\n".into(), false),
        (
            "three fields",
            "*3\r\n$1\r\n1\r\n$1\r\n1\r\n$6\r\ns3cret\r\n".into(),
            false,
        ),
        ("numbers as fields", "*2\r\n:1\r\n:1\r\n".into(), false),
        (
            "an error as a field",
            "*2\r\n-ERR s3cret\r\n$1\r\n1\r\n".into(),
            false,
        ),
        ("no text", Reply::Bytes(b"+\xff\xfe\r\n".to_vec()), false),
        (
            "more than was asked",
            Reply::Bytes(b"*2\r\n$-1\r\n$-1\r\n+s3cret\r\n".repeat(9)),
            false,
        ),
        (
            "a node elsewhere",
            "-MOVED 1 s3cret.invalid.:1\r\n".into(),
            false,
        ),
        ("a bad node", "-MOVED 1 s3cret s3cret\r\n".into(), false),
    ]
}

#[tokio::test]
async fn hostile_responses_are_cut_and_nothing_of_them_is_printed() {
    for commands in [
        &["HMGET", "EVAL"][..],
        &["HGET"],
        &["PING"],
        &["INFO", "ROLE"],
        &["TIME"],
    ] {
        let log = Log::capture();
        // Several at a time: many of them are silent.
        let cases = stream::iter(0..hostile().len()).map(|index| try_hostile(commands, index));
        cases.buffer_unordered(6).collect::<Vec<_>>().await;
        assert_clean(&log.text());
    }
}

/// Sends the hostile response at `index` to `commands`, and then the usual ones.
async fn try_hostile(commands: &'static [&'static str], index: usize) {
    let (name, _, is_unusable) = hostile().swap_remove(index);
    let is_hostile = Arc::new(AtomicBool::new(true));
    let script = {
        let is_hostile = Arc::clone(&is_hostile);
        move |command: &[String]| match command[0].as_str() {
            name if commands.contains(&name) && is_hostile.load(Relaxed) => {
                hostile().swap_remove(index).1
            }
            _ => usual(command),
        }
    };
    let register = register(&config(vec![address(scripted(script).await)]));
    let calls = async {
        let read = register.read().await.map(drop);
        let replaced = register.replace(None, value(1, b"x")).await.map(drop);
        [read, replaced]
    };
    let results = timeout(PATIENCE, calls).await.expect(name);
    let shown = format!("{results:?} {:?}", register.info());
    assert_clean(&shown);
    if commands.contains(&"HMGET") && name != "more than was asked" {
        assert!(results[0].is_err(), "{name}");
        let is_garbled = matches!(results[0], Err(RegisterError::Garbled(_)));
        // On a busy machine the time may end first.
        let is_late = shown.contains("no response within");
        assert!(is_garbled == is_unusable || is_late, "{name}: {shown}");
    }
    is_hostile.store(false, Relaxed);
    let read = || register.read();
    let reading = eventually(name, read, Result::is_ok).await;
    assert!(reading.expect("read").value.is_none(), "{name}");
    let replace = || register.replace(None, value(1, b"x"));
    let replaced = eventually(name, replace, Result::is_ok).await;
    assert_eq!(replaced.expect("replaced"), Replaced::Done, "{name}");
}

/// Nothing of the hostile responses is in `text`.
fn assert_clean(text: &str) {
    // The name of a node is an address, like those that are configured.
    let text = text.replace("s3cret.invalid.", "");
    for hostile in [SECRET, "HTTP/1.1", "sssss", "\u{fffd}"] {
        assert!(!text.contains(hostile), "{hostile} in {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_is_read_than_a_value_may_have() {
    for (first, then) in [
        (&b"$99999999999\r\n"[..], &b"x"[..]),
        (b"+", b"x"),
        (b"*9999999\r\n", b"*0\r\n"),
        (b"*2\r\n*9999999\r\n", b":1\r\n"),
    ] {
        let (ours, mut theirs) = tokio::io::duplex(16 * 1024);
        let link = Link::new(ours).await.expect("nothing is sent");
        let written = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&written);
        tokio::spawn(async move {
            let mut command = [0; 64];
            let _ = theirs.read(&mut command).await;
            let _ = theirs.write_all(first).await;
            let then = then.repeat(1000);
            while let Ok(count) = theirs.write(&then).await {
                counted.fetch_add(count, Relaxed);
            }
        });
        let mut command = redis::pipe();
        command.cmd("GET").arg("x");
        assert_eq!(link.run(&command).await, Err(Fault::TooLarge));
        assert!(!link.is_usable());
        // A pipe of 16 KiB, and the last read.
        let limit = VALUE_LIMIT + OVERHEAD + 32 * 1024;
        assert!(written.load(Relaxed) < limit, "{written:?}");
    }
}

#[tokio::test]
async fn a_server_that_sends_unasked_loses_the_connection() {
    let port = scripted(|command| match command[0].as_str() {
        "HMGET" => Reply::Endless("", b"*2\r\n$-1\r\n$-1\r\n".repeat(1000)),
        _ => usual(command),
    });
    let register = register(&config(vec![address(port.await)]));
    // What comes first fits the command.
    assert!(register.read().await.is_ok());
    let read = || register.read();
    eventually("another connection", read, |read| {
        read.as_ref().is_ok_and(|reading| reading.connection > 1)
    })
    .await
    .expect("read");
}

#[tokio::test]
async fn nodes_that_name_each_other_are_not_followed_for_ever() {
    let commands = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&commands);
    let port = scripted(move |command| match command[0].as_str() {
        "HGET" => {
            counted.fetch_add(1, Relaxed);
            // The same host, whose port is the one that the client knows.
            "-MOVED 1 ?:1\r\n".into()
        }
        _ => usual(command),
    })
    .await;
    let error = register(&config(vec![address(port)])).read().await.err();
    assert!(
        matches!(error, Some(RegisterError::Unreachable(_))),
        "{error:?}"
    );
    assert_eq!(commands.load(Relaxed), 1);

    let target = Arc::new(AtomicU64::new(0));
    let (counted, itself) = (Arc::clone(&commands), Arc::clone(&target));
    let port = scripted(move |command| match command[0].as_str() {
        "HGET" => {
            counted.fetch_add(1, Relaxed);
            let port = itself.load(Relaxed);
            Reply::Bytes(format!("-MOVED 1 :{port}\r\n").into_bytes())
        }
        _ => usual(command),
    })
    .await;
    target.store(port.into(), Relaxed);
    commands.store(0, Relaxed);
    let error = register(&config(vec![address(port)])).read().await.err();
    let text = error.map(|error| error.to_string()).unwrap_or_default();
    assert!(text.contains("name each other"), "{text}");
    assert_eq!(commands.load(Relaxed), 3);
}

#[tokio::test]
async fn a_moved_key_is_followed_in_the_same_call() {
    let log = Log::capture();
    let there = scripted(usual).await;
    let has_moved = Arc::new(AtomicBool::new(false));
    let script = {
        let has_moved = Arc::clone(&has_moved);
        move |command: &[String]| match command[0].as_str() {
            "HGET" | "HMGET" | "EVAL" if has_moved.load(Relaxed) => {
                Reply::Bytes(format!("-MOVED 7 127.0.0.1:{there}\r\n").into_bytes())
            }
            _ => usual(command),
        }
    };
    let register = register(&config(vec![address(scripted(script).await)]));
    assert_eq!(register.read().await.expect("read").connection, 1);
    has_moved.store(true, Relaxed);
    let replaced = register.replace(None, value(1, b"x")).await;
    assert_eq!(replaced.expect("replaced"), Replaced::Done);
    assert_eq!(register.info().server, address(there).to_string());
    assert_eq!(register.read().await.expect("read").connection, 2);
    let text = format!("the token store is {} now", address(there));
    assert_eq!(log.lines(&text), 1, "{}", log.text());
}

#[tokio::test]
async fn connections_are_tried_after_a_pause_and_calls_fail_at_once_meanwhile() {
    let connections = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&connections);
    let port = scripted(move |_| {
        counted.fetch_add(1, Relaxed);
        Reply::Close
    });
    let register = register(&config(vec![address(port.await)]));
    let begin = tokio::time::Instant::now();
    let mut calls = 0;
    while connections.load(Relaxed) < 5 {
        assert!(register.read().await.is_err());
        calls += 1;
        tokio::task::yield_now().await;
    }
    // Five attempts have four pauses between them, a second on average.
    let took = begin.elapsed();
    assert!(calls > 20, "{calls} calls in {took:?}");
}

#[tokio::test]
async fn a_server_that_serves_no_further_client_says_why() {
    for (response, says) in [
        ("-ERR max number of clients reached\r\n", "maxclients"),
        (
            "-DENIED Redis is running in protected mode\r\n",
            "protected mode",
        ),
        (
            "-LOADING Redis is loading the dataset in memory\r\n",
            "loads its data",
        ),
    ] {
        let port = scripted(move |_| response.into()).await;
        let error = register(&config(vec![address(port)])).read().await.err();
        let text = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(text.contains(says), "{text}");
    }
}

#[tokio::test]
async fn a_primary_that_is_demoted_while_it_waits_for_a_replica_may_have_lost_the_write() {
    for (response, is_done) in [
        (
            "-UNBLOCKED force unblock from blocking operation\r\n",
            false,
        ),
        ("-NOPERM this user has no permissions\r\n", true),
        ("-ERR unknown command\r\n", true),
        (":0\r\n", true),
    ] {
        let port = scripted(move |command| match command[0].as_str() {
            "INFO" => "$18\r\nconnected_slaves:1\r\n".into(),
            "WAIT" => response.into(),
            _ => usual(command),
        });
        let register = register(&config(vec![address(port.await)]));
        let replaced = register.replace(None, value(1, b"x")).await;
        match replaced {
            Ok(Replaced::Done) if is_done => {}
            Err(RegisterError::Unreachable(text)) if !is_done => {
                assert!(text.contains("UNBLOCKED"), "{text}");
                assert_eq!(register.info().connected_since, None);
            }
            other => panic!("{response}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn servers_that_are_silent_do_not_hide_the_one_that_responds() {
    let mut servers = Vec::new();
    for _ in 0..6 {
        servers.push(address(scripted(|_| "".into()).await));
    }
    servers.push(address(scripted(usual).await));
    let register = register(&config(servers));
    // They are tried a fraction of a second apart, and there is a second for all of them.
    let read = || register.read();
    eventually("the last one is used", read, Result::is_ok)
        .await
        .expect("read");
}

#[tokio::test]
async fn a_sentinel_that_names_a_replica_is_not_followed() {
    let script = |command: &[String]| match command[0].as_str() {
        "ROLE" => "*3\r\n$5\r\nslave\r\n:0\r\n*0\r\n".into(),
        _ => usual(command),
    };
    let (replica, primary) = (scripted(script).await, scripted(usual).await);
    let sentinel = |port: u16| {
        scripted(move |command| match command[0].as_str() {
            "SENTINEL" => {
                let digits = port.to_string();
                let size = digits.len();
                Reply::Bytes(
                    format!("*2\r\n$9\r\n127.0.0.1\r\n${size}\r\n{digits}\r\n").into_bytes(),
                )
            }
            _ => usual(command),
        })
    };
    let (late, right) = (sentinel(replica).await, sentinel(primary).await);
    let mut config = config(vec![address(late)]);
    config.sentinel = Some("mymaster".to_owned());
    let error = register(&config).read().await.err();
    let Some(RegisterError::Unreachable(text)) = error else {
        panic!("{error:?}");
    };
    assert!(text.contains("failover"), "{text}");
    config.servers.push(address(right));
    let register = register(&config);
    register
        .read()
        .await
        .expect("the next Sentinel knows better");
    assert_eq!(register.info().server, address(primary).to_string());
}

#[tokio::test(start_paused = true)]
async fn a_response_that_arrived_while_the_process_was_stopped_counts() {
    let (ours, mut theirs) = tokio::io::duplex(1024);
    let link = Link::new(ours).await.expect("nothing is sent");
    let mut command = redis::pipe();
    command.cmd("PING");
    let stopped = async {
        let mut bytes = [0; 64];
        let _ = theirs.read(&mut bytes).await;
        // The time passes before the response can be read.
        tokio::time::advance(std::time::Duration::from_secs(5)).await;
        theirs.write_all(b"+PONG\r\n").await.expect("written");
        theirs
    };
    let (responses, _theirs) = tokio::join!(link.run(&command), stopped);
    assert!(responses.is_ok(), "{responses:?}");
    assert!(link.is_usable());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Nothing that a server sends makes the client of the protocol panic.
    #[test]
    fn no_response_causes_a_panic(parts in proptest::collection::vec(part(), 0..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().start_paused(true).build().expect("a runtime");
        runtime.block_on(async {
            let (ours, mut theirs) = tokio::io::duplex(1 << 20);
            let mut link = Link::new(ours).await.expect("nothing is sent");
            theirs.write_all(&parts.concat()).await.expect("written");
            let mut command = redis::pipe();
            command.cmd("TIME").cmd("INFO");
            let _ = link.run(&command).await;
            drop(theirs);
            let _ = link.run(&command).await;
            prop_assert!(link.ended().await, "the task panicked");
            Ok(())
        })?;
    }
}

fn part() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![
        Just(-1_i64),
        Just(0),
        1..4_i64,
        Just(i64::MAX),
        Just(i64::MIN),
        any::<i64>()
    ];
    let sized = ("[*$%|~>!=:,(#_+-]", number).prop_map(|(kind, n)| format!("{kind}{n}\r\n"));
    let word = "[a-z:]{0,6}(\r\n)?";
    let known = prop_oneof![
        Just(">3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n:1\r\n"),
        Just(">3\r\n+unsubscribe\r\n_\r\n:0\r\n"),
        Just("#t\r\n"),
        Just("+OK\r\n"),
        Just("$3\r\nfoo\r\n"),
        Just("=7\r\ntxt:foo\r\n"),
        Just("-ERR x\r\n"),
    ];
    prop_oneof![
        sized.prop_map(String::into_bytes),
        word.prop_map(String::into_bytes),
        known.prop_map(|text| text.as_bytes().to_vec()),
        proptest::collection::vec(any::<u8>(), 0..8),
    ]
}
