//! The first configuration file for a real cloud, and what to ask that cloud's administrator for.

use super::{findings::Problem, raw::Value, values};

/// The text of a minimal `proxy.toml`, with placeholders for the values that are not given.
pub fn starter(cloud: Option<&str>, client_id: Option<&str>) -> String {
    let quoted = |given: Option<&str>, placeholder: &str| {
        toml::Value::from(given.unwrap_or(placeholder)).to_string()
    };
    format!(
        r#"# bearer-proxy: apps call the address in `listen` instead of the cloud, and need no token.
# Replace the values in angle brackets, then run `bearer-proxy check`, `bearer-proxy login` and `bearer-proxy run`.
# This file contains secrets: only its owner should be able to read it.

[proxy]
# The address for apps. 127.0.0.1 can be reached from this machine only.
listen = ["127.0.0.1:8080"]

[upstream]
# The cloud's address, without a path.
endpoints = [{cloud}]

[token]
# From the cloud's administrator.
client_id = {client_id}
client_secret = "<client secret>"
# Exactly as it is registered at the cloud. `bearer-proxy login` uses it.
redirect_uri = "<http://127.0.0.1:8765/callback>"
# The file in which `bearer-proxy login` and the proxy store tokens.
state_file = "state/token.json"

[admin]
# Health, metrics and status, for `bearer-proxy status`.
listen = "127.0.0.1:9180"
"#,
        cloud = quoted(cloud, "<https://your-cloud>"),
        client_id = quoted(client_id, "<client id>"),
    )
}

/// All characters except the unreserved ones of RFC 3986 §2.3.
const ENCODED: &percent_encoding::AsciiSet = &percent_encoding::NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// What to request from the cloud's administrator, and how to get the first tokens with it.
pub fn administrator_request(cloud: Option<&str>, client_id: Option<&str>) -> String {
    let cloud = cloud.unwrap_or("https://your-cloud").trim_end_matches('/');
    // In a shell, other characters may have a special meaning.
    let is_plain = |id: &&str| {
        id.chars()
            .all(|c| c.is_alphanumeric() || "-_.@ ".contains(c))
    };
    let id = client_id.filter(is_plain).unwrap_or("CLIENT_ID");
    let ask_for_id = if client_id.is_some() {
        "the client secret of this client id"
    } else {
        "a client id and its client secret"
    };
    format!(
        r#"Ask the administrator of {cloud} for:
  1. {ask_for_id}
  2. the redirect URI that is registered for it; preferably one on this machine, such as http://127.0.0.1:8765/callback
  3. whether a refresh replaces the refresh token (then state_file must survive a restart)

Replace the values in angle brackets, then get the first tokens:
     bearer-proxy login

Without that command: open this URL in a browser, log in and agree. The browser is redirected to the redirect URI with ?code=…:
     {cloud}/api/authorize.do?response_type=code&client_id={encoded_id}&redirect_uri=REDIRECT_URI
  Within five minutes, run this line. It asks for the client secret; the response contains the refresh_token:
     curl -X POST -u "{id}" "{cloud}/api/token.do?grant_type=authorization_code&code=CODE&redirect_uri=REDIRECT_URI"
  (CODE is the value in the browser's address bar. In REDIRECT_URI write %3A for : and %2F for /.)
"#,
        encoded_id = percent_encoding::utf8_percent_encode(id, ENCODED),
    )
}

/// Converts an address from the command line into an origin, as `endpoints` needs it.
///
/// # Errors
/// The reason why it is not one, and what to write instead.
pub fn cloud_origin(text: &str) -> Result<String, String> {
    values::endpoint(&Value::Text(text.to_owned().into()))
        .map(|endpoint| endpoint.origin)
        .map_err(|Problem { reason, hint, .. }| format!("{reason} ({hint})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_filled_in_and_quoted() {
        let text = starter(Some("https://cloud.example.com"), Some(r#"my "id" \ here"#));
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(
            table["upstream"]["endpoints"][0].as_str(),
            Some("https://cloud.example.com")
        );
        assert_eq!(
            table["token"]["client_id"].as_str(),
            Some(r#"my "id" \ here"#)
        );
    }

    #[test]
    fn the_request_fits_what_is_known() {
        let nothing_known = administrator_request(None, None);
        assert!(
            nothing_known.contains("a client id and its client secret"),
            "{nothing_known}"
        );
        let known = administrator_request(Some("https://cloud.example.com/"), Some("my app"));
        assert!(
            known.contains("the client secret of this client id"),
            "{known}"
        );
        assert!(
            known
                .contains(r#"-u "my app" "https://cloud.example.com/api/token.do?grant_type=authorization_code&code="#),
            "{known}"
        );
        let hostile = administrator_request(None, Some("a\"$(id)`x`"));
        assert!(
            !hostile.contains("$(id)") && hostile.contains("-u \"CLIENT_ID\""),
            "{hostile}"
        );
        assert!(
            known.contains(
                "https://cloud.example.com/api/authorize.do?response_type=code&client_id=my%20app&"
            ),
            "{known}"
        );
    }

    #[test]
    fn a_cloud_is_an_origin() {
        assert_eq!(
            cloud_origin("https://Cloud.example.com/"),
            Ok("https://cloud.example.com".to_owned())
        );
        assert_eq!(
            cloud_origin("cloud.example.com").unwrap_err(),
            r#"has no scheme (write "https://cloud.example.com")"#
        );
    }
}
