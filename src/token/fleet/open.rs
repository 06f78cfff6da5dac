//! From the configuration to a member of the fleet.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};

use super::{
    Config,
    member::{Fleet, Identity},
    redis::{self, RedisRegister},
    register::Register,
    seal::{KeyError, Seal},
};
use crate::{
    base::{clock::SharedClock, process},
    net::reload::Reload,
    token::{self, InitialGrantConfig, jwt_grant::User, store::Owner},
};

/// Why a shared store cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `token.store.key`.
    #[error("token.store.key: {0}")]
    Key(#[from] KeyError),
    /// The connection's settings.
    #[error("token.store: {0}")]
    Connection(String),
}

/// The bytes of the hash in a key's name: enough to tell clients apart.
const NAME_HASH: usize = 8;

/// What belongs to one credential.
struct Credential<'a> {
    name: &'a str,
    client_id: &'a str,
    /// The user of `[token.jwt]`.
    user: Option<&'a User>,
    owner: Owner,
}

/// The member, and what reloads its TLS settings.
pub(in crate::token) type Opened = (Arc<Fleet>, Option<Arc<dyn Reload>>);

/// The store of this credential, if one is configured. Connects to nothing yet.
pub(in crate::token) fn configured(
    config: &token::Config,
    initial_grant: Option<&InitialGrantConfig>,
    clock: &SharedClock,
) -> Result<Option<Opened>, Error> {
    let Some(store) = &config.store else {
        return Ok(None);
    };
    let credential = Credential {
        name: &config.name,
        client_id: &config.issuer.client_id,
        user: initial_grant.and_then(|grant| grant.jwt.as_ref()?.user.as_ref()),
        owner: Owner::new(&config.issuer),
    };
    open(store, credential, SharedClock::clone(clock)).map(Some)
}

fn open(config: &Config, credential: Credential<'_>, clock: SharedClock) -> Result<Opened, Error> {
    let seal = Seal::new(config.key.as_ref())?;
    let key = key_name(&config.key_prefix, &credential);
    let register = RedisRegister::new(&config.redis, key.clone(), SharedClock::clone(&clock))
        .map_err(|error: redis::Error| Error::Connection(error.to_string()))?;
    let reloadable = register.reloadable();
    let identity = Identity {
        owner: credential.owner,
        replica: format!("{}:{}", process::host_name(), std::process::id()),
        key,
    };
    let register = Box::new(register) as Box<dyn Register>;
    Ok((Fleet::new(register, seal, identity, clock), reloadable))
}

/// Two credentials with one prefix have different keys.
fn key_name(prefix: &str, credential: &Credential<'_>) -> String {
    let user = match credential.user {
        None => String::new(),
        Some(User::Email(user)) => format!("email:{user}"),
        Some(User::Phone(user)) => format!("phone:{user}"),
        Some(User::BabelId(user)) => format!("id:{user}"),
    };
    // The length separates the two.
    let text = format!(
        "{}:{}{user}",
        credential.client_id.len(),
        credential.client_id
    );
    let hash = digest(&SHA256, text.as_bytes());
    let hash = hex::encode(&hash.as_ref()[..NAME_HASH]);
    format!("{prefix}:{}:{hash}", credential.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::testing;

    #[test]
    fn each_client_and_each_user_has_a_key_of_its_own() {
        let name = |client_id, user| {
            let owner = Owner::new(&testing::config(None).issuer);
            let credential = Credential {
                name: "default",
                client_id,
                user,
                owner,
            };
            key_name("bearer-proxy", &credential)
        };
        let (mail, phone) = (User::Email("1".to_owned()), User::Phone("1".to_owned()));
        let names = [
            name("a", None),
            name("b", None),
            name("a", Some(&mail)),
            name("a", Some(&phone)),
            name("aemail:1", None),
        ];
        for (n, one) in names.iter().enumerate() {
            assert!(one.starts_with("bearer-proxy:default:"), "{one}");
            assert!(!names[n + 1..].contains(one), "{names:?}");
        }
    }
}
