//! What a server says of itself (`ROLE`, `INFO`), and what of it endangers the record.

use std::time::{Duration, SystemTime};

use redis::Value;

use super::fault::Fault;
use crate::token::fleet::info::{Finding, Persistence, Role};

/// Clocks further apart give a warning.
const MAX_SKEW: Duration = Duration::from_secs(30);

/// What a server says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// Name and number, such as `Redis 7.2.4`.
    pub(super) version: Option<String>,
    pub(super) role: Role,
    pub(super) replicas: u64,
    pub(super) persistence: Persistence,
    pub(super) findings: Vec<Finding>,
    is_cluster: bool,
}

impl Look {
    /// Of the responses to `ROLE` and `INFO`. What the user has no right to ask is unknown.
    pub(super) fn new(role: &Value, info: &Value) -> Self {
        let text = match info {
            Value::BulkString(text) => String::from_utf8_lossy(text),
            _ => "".into(),
        };
        let info = Info(&text);
        let listed = replicas_of(role);
        let role = role_of(role).or_else(|| info.value("role").and_then(role_named));
        Self {
            version: info.version(),
            role: role.unwrap_or_default(),
            replicas: info.number("connected_slaves").unwrap_or(listed),
            persistence: info.persistence(),
            findings: info.findings().collect(),
            is_cluster: info.value("redis_mode") == Some("cluster"),
        }
    }

    /// A replica that does not lead to its primary. Those of a cluster do.
    pub(super) fn is_useless(&self) -> bool {
        self.role == Role::Replica && !self.is_cluster
    }
}

/// The response to `TIME`.
///
/// # Errors
/// If it is another one.
pub(super) fn time(value: &Value) -> Result<SystemTime, Fault> {
    let part = |value: &Value| match value {
        Value::BulkString(digits) => std::str::from_utf8(digits).ok()?.parse::<u64>().ok(),
        _ => None,
    };
    let time = match value {
        Value::Array(parts) => match &parts[..] {
            [seconds, micros] => part(seconds).zip(part(micros)),
            _ => None,
        },
        _ => None,
    };
    time.filter(|(_, micros)| *micros < 1_000_000)
        .and_then(|(seconds, micros)| {
            let since = Duration::from_secs(seconds) + Duration::from_micros(micros);
            SystemTime::UNIX_EPOCH.checked_add(since)
        })
        .ok_or(Fault::NotRedis)
}

/// Whether the store's clock and ours differ by too much.
pub(super) fn is_skewed(store: SystemTime, ours: SystemTime) -> bool {
    let skew = store
        .duration_since(ours)
        .or_else(|_| ours.duration_since(store));
    skew.unwrap_or_default() > MAX_SKEW
}

fn role_of(value: &Value) -> Option<Role> {
    let Value::Array(parts) = value else {
        return None;
    };
    match parts.first()? {
        Value::BulkString(name) => role_named(std::str::from_utf8(name).ok()?),
        _ => None,
    }
}

/// A primary lists its replicas last.
fn replicas_of(value: &Value) -> u64 {
    match value {
        Value::Array(parts) => match parts.get(2) {
            Some(Value::Array(replicas)) => replicas.len() as u64,
            _ => 0,
        },
        _ => 0,
    }
}

fn role_named(name: &str) -> Option<Role> {
    match name {
        "master" => Some(Role::Primary),
        "slave" => Some(Role::Replica),
        _ => None,
    }
}

/// The response to `INFO`: lines `name:value`.
struct Info<'a>(&'a str);

impl<'a> Info<'a> {
    fn value(&self, name: &str) -> Option<&'a str> {
        let values = self.0.lines().filter_map(|line| line.split_once(':'));
        values
            .into_iter()
            .find(|(found, _)| *found == name)
            .map(|(_, value)| value.trim())
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.value(name)?.parse().ok()
    }

    fn version(&self) -> Option<String> {
        let (name, number) = match self.value("valkey_version") {
            Some(number) => ("Valkey", number),
            None => ("Redis", self.value("redis_version")?),
        };
        let is_number = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-';
        let is_valid = number.len() <= 32 && number.bytes().all(is_number);
        is_valid.then(|| format!("{name} {number}"))
    }

    fn persistence(&self) -> Persistence {
        let has_snapshot = self
            .value("rdb_last_bgsave_time_sec")
            .is_some_and(|time| time != "-1")
            || self.number("rdb_saves").is_some_and(|saves| saves > 0)
            || self
                .number("rdb_last_load_keys_loaded")
                .is_some_and(|keys| keys > 0);
        match self.value("aof_enabled") {
            None => Persistence::Unknown,
            Some("0") if has_snapshot => Persistence::Snapshots,
            Some("0") => Persistence::None,
            Some(_) => Persistence::AppendOnlyFile,
        }
    }

    fn findings(&self) -> impl Iterator<Item = Finding> {
        let may_evict = self.number("maxmemory").is_some_and(|bytes| bytes > 0)
            && self
                .value("maxmemory_policy")
                .is_some_and(|policy| policy.starts_with("allkeys-"));
        // Servers list the good replicas only if they need any.
        let needs_none = self
            .number("connected_slaves")
            .is_some_and(|count| count > 0)
            && self.value("min_slaves_good_slaves").is_none();
        let found = [
            (may_evict, Finding::Eviction),
            (
                self.persistence() == Persistence::None,
                Finding::NoPersistence,
            ),
            (needs_none, Finding::NoMinReplicas),
        ];
        found
            .into_iter()
            .filter_map(|(is_so, finding)| is_so.then_some(finding))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn denied() -> Value {
        redis::parse_redis_value(b"-NOPERM no\r\n").expect("an error")
    }

    #[test]
    fn findings_are_what_may_lose_the_record() {
        for (info, findings) in [
            ("", vec![]),
            ("maxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\n", vec![]),
            (
                "maxmemory:1\r\nmaxmemory_policy:allkeys-lru\r\n",
                vec![Finding::Eviction],
            ),
            ("maxmemory:1\r\nmaxmemory_policy:noeviction\r\n", vec![]),
            ("maxmemory:1\r\nmaxmemory_policy:volatile-ttl\r\n", vec![]),
            (
                "aof_enabled:0\r\nrdb_last_bgsave_time_sec:-1\r\nrdb_saves:0\r\n",
                vec![Finding::NoPersistence],
            ),
            ("aof_enabled:1\r\nrdb_last_bgsave_time_sec:-1\r\n", vec![]),
            ("aof_enabled:0\r\nrdb_last_bgsave_time_sec:0\r\n", vec![]),
            ("connected_slaves:0\r\n", vec![]),
            ("connected_slaves:1\r\n", vec![Finding::NoMinReplicas]),
            ("connected_slaves:1\r\nmin_slaves_good_slaves:0\r\n", vec![]),
        ] {
            let look = Look::new(&denied(), &bulk(info));
            assert_eq!(look.findings, findings, "{info:?}");
        }
    }

    #[test]
    fn what_is_not_known_is_unknown_and_nothing_odd_is_taken() {
        let role = |name| Value::Array(vec![bulk(name), Value::Int(3)]);
        let nothing = Look::new(&denied(), &denied());
        assert_eq!(nothing, Look::default());
        for (value, info, expected) in [
            (role("master"), "", Role::Primary),
            (role("slave"), "role:master", Role::Replica),
            (role("sentinel"), "", Role::Unknown),
            (denied(), "role:slave\r\n", Role::Replica),
            (Value::Array(vec![]), "", Role::Unknown),
            (Value::Array(vec![Value::Nil]), "", Role::Unknown),
        ] {
            assert_eq!(Look::new(&value, &bulk(info)).role, expected, "{value:?}");
        }
        let replica = Value::Array(vec![bulk("10.0.0.2"), bulk("6379"), bulk("3")]);
        let replicas = Value::Array(vec![replica.clone(), replica]);
        let primary = Value::Array(vec![bulk("master"), Value::Int(3), replicas]);
        assert_eq!(Look::new(&primary, &denied()).replicas, 2);
        assert_eq!(Look::new(&primary, &bulk("connected_slaves:1")).replicas, 1);
        assert!(Look::new(&role("slave"), &bulk("")).is_useless());
        let in_cluster = Look::new(&role("slave"), &bulk("redis_mode:cluster"));
        assert!(!in_cluster.is_useless());
        for (info, version) in [
            ("redis_version:7.0.15", Some("Redis 7.0.15")),
            (
                "redis_version:7.2.4\r\nvalkey_version:9.0.0",
                Some("Valkey 9.0.0"),
            ),
            ("redis_version:\u{1b}[31m7", None),
            ("redis_version:7 a token", None),
            ("# Server\r\n", None),
        ] {
            let look = Look::new(&denied(), &bulk(info));
            assert_eq!(look.version.as_deref(), version, "{info:?}");
        }
    }

    #[test]
    fn the_time_is_two_numbers() {
        let second = Duration::from_secs(1);
        let of =
            |seconds: &str, micros: &str| time(&Value::Array(vec![bulk(seconds), bulk(micros)]));
        assert_eq!(of("1", "0"), Ok(SystemTime::UNIX_EPOCH + second));
        for (seconds, micros) in [
            ("1", "1000000"),
            ("-1", "0"),
            ("", "0"),
            ("18446744073709551615", "999999"),
            ("1", "18446744073709551615"),
            ("x", "0"),
        ] {
            assert_eq!(
                of(seconds, micros),
                Err(Fault::NotRedis),
                "{seconds} {micros}"
            );
        }
        for odd in [Value::Nil, Value::Int(1), Value::Array(vec![]), denied()] {
            assert_eq!(time(&odd), Err(Fault::NotRedis), "{odd:?}");
        }
        let now = SystemTime::UNIX_EPOCH + 1000 * second;
        for (store, is_wrong) in [(970, false), (1030, false), (969, true), (1031, true)] {
            let store = SystemTime::UNIX_EPOCH + store * second;
            assert_eq!(is_skewed(store, now), is_wrong, "{store:?}");
        }
    }
}
