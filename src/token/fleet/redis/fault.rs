//! Why a command failed: what the register reports, and what becomes of the connection.
//!
//! The text of a server's error is never printed: it may quote what was sent. Its code is.

use std::{io, time::Duration};

use redis::ServerError;

use crate::{
    net::tls,
    token::fleet::{
        config::RedisServer,
        register::{RegisterError, VALUE_LIMIT},
    },
};

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// No response within this time.
    Silent(Duration),
    /// The connection ended, or was not made. Contains the cause, without any input.
    Lost(String),
    /// The server sent more than a value of [`VALUE_LIMIT`].
    TooLarge,
    /// The response does not fit the command.
    NotRedis,
    /// The server is a replica.
    Replica,
    /// The key belongs to another node of the cluster.
    Moved(RedisServer),
    /// The server responded with another error.
    Server(ServerFault),
    /// The key holds something else than a register.
    Garbled(&'static str),
}

/// An error of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServerFault {
    code: String,
    known: Option<&'static Known>,
}

/// What an error means for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// It may end by itself.
    Unreachable,
    /// A setting must be changed.
    Refused,
    /// The key holds something else than a register.
    Garbled,
}
use Class::{Garbled, Refused, Unreachable};

/// What becomes of the connection on which an error was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Connection {
    Keep,
    /// Another server may be in charge now, or the user must authenticate again.
    Replace,
}
use Connection::{Keep, Replace};

/// An error that servers are known to respond with.
#[derive(Debug, PartialEq, Eq)]
struct Known {
    code: &'static str,
    /// Parts of the text of an `ERR` that mean the same: older servers wrap the errors of commands
    /// in scripts, and some errors have no code of their own.
    texts: &'static [&'static str],
    class: Class,
    connection: Connection,
    /// What it means, and what to change.
    advice: &'static str,
}

const fn known(
    code: &'static str,
    texts: &'static [&'static str],
    class: Class,
    connection: Connection,
    advice: &'static str,
) -> Known {
    Known {
        code,
        texts,
        class,
        connection,
        advice,
    }
}

const KNOWN: &[Known] = &[
    known(
        "NOAUTH",
        &["NOAUTH"],
        Refused,
        Replace,
        "it requires a password: set token.store.password_file, and token.store.user for an ACL user",
    ),
    known(
        "WRONGPASS",
        &["WRONGPASS", "invalid password", "invalid username-password"],
        Refused,
        Replace,
        "it refuses the user or the password: correct token.store.user or token.store.password_file",
    ),
    known(
        "AUTH",
        &["without any password configured"],
        Refused,
        Replace,
        "it has no password for this user: remove token.store.password_file, or set requirepass there",
    ),
    known(
        "NOPERM",
        &[
            "NOPERM",
            "ACL failure",
            "can't run this command",
            "no permissions",
        ],
        Refused,
        Keep,
        "the user has no right to a command or to the key: give it the commands hget, hmget, hset, \
         eval, time, wait, info, role, ping, select and the keys of token.store.key_prefix (ACL \
         SETUSER, see docs/gateway.md)",
    ),
    known(
        "READONLY",
        &["READONLY"],
        Refused,
        Replace,
        "it is a replica, which cannot be written: token.store.url must lead to the primary, or set \
         token.store.sentinel",
    ),
    known(
        "OOM",
        &["OOM command not allowed"],
        Refused,
        Keep,
        "its memory is full: raise maxmemory there",
    ),
    known(
        "MISCONF",
        &["MISCONF"],
        Refused,
        Keep,
        "it cannot save to its disk and refuses writes: see its log and its disk",
    ),
    known(
        "NOREPLICAS",
        &["NOREPLICAS"],
        Refused,
        Keep,
        "it has fewer replicas than its min-replicas-to-write: start them, or lower the number",
    ),
    known(
        "NOSCRIPT",
        &["NOSCRIPT"],
        Refused,
        Keep,
        "it does not run scripts: allow EVAL there",
    ),
    known(
        "NOPROTO",
        &["unknown command"],
        Refused,
        Keep,
        "it does not know a command: it must be Redis 5 or later, or Valkey, with EVAL",
    ),
    known(
        "DB",
        &["DB index", "SELECT is not allowed"],
        Refused,
        Replace,
        "it has no database of this number: correct the path of token.store.url",
    ),
    known(
        "DENIED",
        &[],
        Refused,
        Replace,
        "it is in protected mode and serves its own machine only: give it a password",
    ),
    known(
        "CROSSSLOT",
        &[],
        Refused,
        Keep,
        "it is a proxy for a cluster that does not run the script: name a node of the cluster",
    ),
    known(
        "LOADING",
        &["LOADING"],
        Unreachable,
        Replace,
        "it loads its data after a start",
    ),
    known(
        "MASTERDOWN",
        &["MASTERDOWN"],
        Unreachable,
        Replace,
        "it is a replica that has lost its primary",
    ),
    known(
        "CLUSTERDOWN",
        &["CLUSTERDOWN"],
        Unreachable,
        Replace,
        "its cluster is down: see CLUSTER INFO there",
    ),
    // A response to `WAIT`: the write before it may be lost with the former primary.
    known(
        "UNBLOCKED",
        &["UNBLOCKED"],
        Unreachable,
        Replace,
        "it has become a replica",
    ),
    known(
        "MAXCLIENTS",
        &["max number of clients"],
        Unreachable,
        Replace,
        "it has too many clients: raise maxclients there",
    ),
    known(
        "BUSY",
        &[],
        Unreachable,
        Keep,
        "it runs a script of another client",
    ),
    known(
        "TRYAGAIN",
        &[],
        Unreachable,
        Keep,
        "the key moves to another node of the cluster",
    ),
    known(
        "ASK",
        &[],
        Unreachable,
        Keep,
        "the key moves to another node of the cluster",
    ),
    known("WRONGTYPE", &["WRONGTYPE"], Garbled, Keep, "is not a hash"),
];

impl Fault {
    /// The other side has closed the connection.
    pub(super) fn closed() -> Self {
        Self::Lost("it closed the connection".to_owned())
    }

    /// A connection that was not made, or failed.
    pub(super) fn of_stream(error: &io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, UnexpectedEof};
        match error.kind() {
            BrokenPipe | UnexpectedEof => Self::closed(),
            _ => {
                let advice = tls::cause(error).map_or("", tls::server_advice);
                Self::Lost(format!("{error}{advice}"))
            }
        }
    }

    /// The same after the first command to `server`, to which it has never responded.
    pub(super) fn at_first(self, server: &RedisServer) -> Self {
        match self {
            Self::Lost(cause) if !server.is_tls => {
                Self::Lost(format!("{cause} (with TLS it needs rediss://)"))
            }
            other => other,
        }
    }

    /// What the server at `from` responded with.
    pub(super) fn of_server(error: &ServerError, from: &RedisServer) -> Self {
        let (code, text) = (error.code(), error.details().unwrap_or_default());
        if code == "MOVED" {
            return match moved(text, from) {
                Some(server) => Self::Moved(server),
                None => Self::NotRedis,
            };
        }
        let is_known = |known: &&Known| match code {
            "ERR" => known.texts.iter().any(|part| text.contains(part)),
            code => known.code == code,
        };
        let is_printable = code.len() <= 16 && code.bytes().all(|byte| byte.is_ascii_uppercase());
        Self::Server(ServerFault {
            code: if is_printable { code } else { "unknown" }.to_owned(),
            known: KNOWN.iter().find(is_known),
        })
    }

    /// Whether the next command needs another connection.
    pub(super) fn ends_connection(&self) -> bool {
        match self {
            // The link counts them.
            Self::Silent(_) | Self::Garbled(_) => false,
            Self::Lost(_) | Self::TooLarge | Self::NotRedis | Self::Replica | Self::Moved(_) => {
                true
            }
            Self::Server(fault) => fault.known.is_some_and(|known| known.connection == Replace),
        }
    }

    /// For the caller: what happened at `server`, and what to do.
    pub(super) fn at(&self, server: &RedisServer, key: &str) -> RegisterError {
        match self {
            Self::Silent(limit) => {
                RegisterError::Unreachable(format!("{server}: no response within {limit:?}"))
            }
            Self::Lost(cause) => RegisterError::Unreachable(format!("{server}: {cause}")),
            Self::NotRedis => RegisterError::Unreachable(format!(
                "{server}: what it sends is no response of a Redis server: correct token.store.url \
                 (rediss:// for TLS)"
            )),
            Self::TooLarge => garbled(server, key, &format!("exceeds {} MiB", VALUE_LIMIT >> 20)),
            Self::Garbled(what) => garbled(server, key, what),
            Self::Replica => RegisterError::Refused(format!(
                "{server}: it is a replica, which cannot be written: token.store.url must lead to \
                 the primary, or set token.store.sentinel"
            )),
            Self::Moved(to) => RegisterError::Unreachable(format!(
                "{server}: the key has moved to another node of the cluster ({to})"
            )),
            Self::Server(fault) => fault.at(server, key),
        }
    }
}

impl ServerFault {
    fn at(&self, server: &RedisServer, key: &str) -> RegisterError {
        let code = &self.code;
        let Some(known) = self.known else {
            // A proxy before the server has errors of its own, also after the server has written.
            return RegisterError::Unreachable(format!(
                "{server}: it responded with the error {code}: see its documentation"
            ));
        };
        let text = format!("{server}: {} ({code})", known.advice);
        match known.class {
            Unreachable => RegisterError::Unreachable(text),
            Refused => RegisterError::Refused(text),
            Garbled => garbled(server, key, known.advice),
        }
    }
}

fn garbled(server: &RedisServer, key: &str, what: &str) -> RegisterError {
    RegisterError::Garbled(format!(
        "{server}: the value of the key {key} {what}, and is left as it is: set another \
         token.store.key_prefix, or delete the key if nothing needs it"
    ))
}

/// The node that an error `MOVED <slot> <host>:<port>` names. Without a host it is that of `from`.
fn moved(text: &str, from: &RedisServer) -> Option<RedisServer> {
    let (_, address) = text.split_once(' ')?;
    let (host, port) = address.rsplit_once(':')?;
    let host = match host {
        "" | "?" => &from.host,
        host => host,
    };
    server(host, port, from)
}

/// A server that another one names, reached as `from` is. `None` if it cannot be one.
pub(super) fn server(host: &str, port: &str, from: &RedisServer) -> Option<RedisServer> {
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".:-_%".contains(&byte);
    let port = port.parse().ok().filter(|port| *port > 0)?;
    let is_valid = !host.is_empty() && host.len() <= 253 && host.bytes().all(is_host);
    is_valid.then(|| RedisServer {
        host: host.to_owned(),
        port,
        is_tls: from.is_tls,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> RedisServer {
        RedisServer {
            host: "10.0.0.1".to_owned(),
            port: 6379,
            is_tls: false,
        }
    }

    fn fault(line: &str) -> Fault {
        let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes());
        let Ok(redis::Value::ServerError(error)) = value else {
            panic!("{value:?}");
        };
        Fault::of_server(&error, &here())
    }

    #[test]
    fn every_error_has_a_class_and_says_what_to_change() {
        for (line, class, replaces, advice) in [
            (
                "NOAUTH Authentication required.",
                Refused,
                true,
                "password_file",
            ),
            (
                "WRONGPASS invalid username-password pair",
                Refused,
                true,
                "token.store.user",
            ),
            ("ERR invalid password", Refused, true, "token.store.user"),
            (
                "ERR AUTH <password> called without any password configured for the default user",
                Refused,
                true,
                "remove token.store.password_file",
            ),
            (
                "NOPERM this user has no permissions",
                Refused,
                false,
                "ACL SETUSER",
            ),
            (
                "ERR ACL failure in script: User x has no",
                Refused,
                false,
                "ACL SETUSER",
            ),
            (
                "READONLY You can't write against a read only replica.",
                Refused,
                true,
                "primary",
            ),
            (
                "ERR Error running script (call to f_1): @user_script:1: -READONLY You can't",
                Refused,
                true,
                "primary",
            ),
            (
                "OOM command not allowed when used memory >",
                Refused,
                false,
                "maxmemory",
            ),
            (
                "MISCONF Redis is configured to save RDB",
                Refused,
                false,
                "disk",
            ),
            (
                "NOREPLICAS Not enough good replicas",
                Refused,
                false,
                "min-replicas-to-write",
            ),
            ("NOSCRIPT No matching script", Refused, false, "EVAL"),
            ("ERR unknown command 'EVAL'", Refused, false, "EVAL"),
            (
                "ERR DB index is out of range",
                Refused,
                true,
                "token.store.url",
            ),
            (
                "DENIED Redis is running in protected mode",
                Refused,
                true,
                "protected mode",
            ),
            (
                "LOADING Redis is loading the dataset",
                Unreachable,
                true,
                "loads",
            ),
            (
                "MASTERDOWN Link with MASTER is down",
                Unreachable,
                true,
                "primary",
            ),
            (
                "CLUSTERDOWN The cluster is down",
                Unreachable,
                true,
                "CLUSTER INFO",
            ),
            (
                "UNBLOCKED force unblock from blocking",
                Unreachable,
                true,
                "replica",
            ),
            (
                "ERR max number of clients reached",
                Unreachable,
                true,
                "maxclients",
            ),
            ("TRYAGAIN Multiple keys", Unreachable, false, "cluster"),
            ("ASK 3999 10.0.0.2:6379", Unreachable, false, "cluster"),
            (
                "BUSY Redis is busy running a script",
                Unreachable,
                false,
                "script",
            ),
            (
                "WRONGTYPE Operation against a key",
                Garbled,
                false,
                "not a hash",
            ),
            ("ERR something else", Unreachable, false, "the error ERR"),
            ("SOMETHING else", Unreachable, false, "the error SOMETHING"),
        ] {
            let fault = fault(line);
            assert_eq!(fault.ends_connection(), replaces, "{line}");
            let error = fault.at(&here(), "the:key");
            let found = match error {
                RegisterError::Unreachable(_) => Unreachable,
                RegisterError::Refused(_) => Refused,
                RegisterError::Garbled(_) => Garbled,
            };
            assert_eq!(found, class, "{line}");
            let text = error.to_string();
            assert!(text.starts_with("redis://10.0.0.1:6379: "), "{text}");
            assert!(text.contains(advice), "{advice} in {text}");
        }
    }

    #[test]
    fn nothing_of_an_error_is_printed_but_its_code() {
        for line in [
            "ERR the token s3cret",
            "NOPERM s3cret",
            "s3cret",
            "S3CRET",
            "WRONGTYPE s3cret",
            "THISISMUCHTOOLONGTOBEACODE s3cret",
            "",
            "\u{1b}[31mS s3cret",
        ] {
            let fault = fault(line);
            let text = format!("{fault:?} {}", fault.at(&here(), "k")).to_lowercase();
            for secret in ["s3cret", "muchtoolong", "\u{1b}"] {
                assert!(!text.contains(secret), "{line}: {text}");
            }
        }
    }

    #[test]
    fn a_cluster_names_another_node_or_nothing_usable() {
        let node = |host: &str, port| {
            Fault::Moved(RedisServer {
                host: host.to_owned(),
                port,
                is_tls: false,
            })
        };
        for (line, expected) in [
            ("MOVED 3999 10.0.0.2:6380", node("10.0.0.2", 6380)),
            (
                "MOVED 3999 node-2.example:6380",
                node("node-2.example", 6380),
            ),
            ("MOVED 3999 :6380", node("10.0.0.1", 6380)),
            ("MOVED 3999 ?:6380", node("10.0.0.1", 6380)),
            ("MOVED 3999 fd00::2:6380", node("fd00::2", 6380)),
            ("MOVED 3999 10.0.0.2:0", Fault::NotRedis),
            ("MOVED 3999 10.0.0.2:65536", Fault::NotRedis),
            ("MOVED 3999 10.0.0.2", Fault::NotRedis),
            ("MOVED 3999 a b:1", Fault::NotRedis),
            ("MOVED 3999 \u{1b}[1m:6380", Fault::NotRedis),
            ("MOVED", Fault::NotRedis),
        ] {
            assert_eq!(fault(line), expected, "{line}");
        }
    }
}
