//! `proxy`, `proxy_user` and `proxy_password` of an upstream and of `[token]`.

use std::sync::Arc;

use crate::{
    config::{findings::problem, keys, reader::Reader, values},
    net::outbound_proxy::OutboundProxy,
};

/// The outbound proxy of a section, if it has one.
pub(super) fn outbound_proxy(r: &mut Reader, section: &str) -> Option<Arc<OutboundProxy>> {
    let [proxy_key, user_key, password_key] =
        ["proxy", "proxy_user", "proxy_password"].map(|name| format!("{section}.{name}"));
    let address = r.read(&proxy_key, values::outbound_proxy);
    let user = r.read(&user_key, values::user_name);
    let password = r.secret(&password_key);
    let (has_user, has_password) = (r.is_given(&user_key), r.is_secret_given(&password_key));
    if !r.is_given(&proxy_key) && (has_user || has_password) {
        let (key, pos) = if has_user {
            (&user_key, r.pos(&user_key))
        } else {
            (&password_key, r.pos_of_secret(&password_key))
        };
        let reason = format!("has no effect without {proxy_key}");
        let hint =
            r#"write the proxy, as in proxy = "http://proxy.example.com:3128", or remove the key"#;
        let variable = format!(
            "set {}=http://proxy.example.com:3128, or unset it",
            keys::variable(&proxy_key)
        );
        r.missing(pos, key, problem(reason, hint).or_variable(variable));
        return None;
    }
    if has_user != has_password {
        let (given, pos, other, instead) = if has_user {
            let instead = "proxy_password_file";
            (&user_key, r.pos(&user_key), &password_key, instead)
        } else {
            let pos = r.pos_of_secret(&password_key);
            (&password_key, pos, &user_key, "proxy_user")
        };
        let variable = keys::variable(&format!("{section}.{instead}"));
        let reason = format!("has no effect without {other}");
        let problem = problem(reason, format!("write {instead} as well"))
            .or_variable(format!("set {variable} as well"));
        r.missing(pos, given, problem);
        return None;
    }
    if has_user && (user.is_none() || password.is_none()) {
        return None;
    }
    match OutboundProxy::new(address?, &proxy_key, user.zip(password)) {
        Ok(proxy) => Some(Arc::new(proxy)),
        Err(error) => {
            let problem = problem(
                error.to_string(),
                "ask the proxy's administrator for others",
            );
            r.mistake(r.pos_of_secret(&password_key), &password_key, problem);
            None
        }
    }
}
