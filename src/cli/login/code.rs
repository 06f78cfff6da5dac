//! What a user passes on from the browser's address bar: the whole address, its query, or the code.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use url::form_urlencoded;

use super::{
    callback::{self, CallbackError},
    pending::Pending,
};
use crate::base::secret::Secret;

/// The code in `text`, decoded. The `data` of an address must be that of a `pending` login, if
/// there is one.
///
/// # Errors
/// Why there is no code to use: the message for the user.
pub(super) fn code(text: &str, pending: &Pending) -> Result<Secret, String> {
    let text = text.trim().trim_matches(['"', '\'', '<', '>']);
    let Some(query) = query(text) else {
        return bare_code(text);
    };
    callback::parse(query, |data| pending.includes(data)).map_err(|error| match error {
        CallbackError::WrongState => "--code: this address does not belong to a login that was \
            started here (its `data` differs): run bearer-proxy login, open the address that it \
            prints, and pass on the whole address of the page that follows, in quotes"
            .to_owned(),
        CallbackError::Denied(words) => format!("the cloud refused the login: {words}"),
        CallbackError::NoCode => {
            "--code: this address has no code: log in first, then pass on the \
            address of the page that follows"
                .to_owned()
        }
    })
}

/// The query of a redirect (RFC 6749 §4.1.2); `None` if `text` is a code.
fn query(text: &str) -> Option<&str> {
    let is_address = text.contains("://");
    let (text, fragment) = text.split_once('#').unwrap_or((text, ""));
    let query = match text.split_once('?') {
        Some((_, query)) => query,
        None if is_address => fragment,
        None => text,
    };
    let has_parameter = || {
        form_urlencoded::parse(query.as_bytes())
            .any(|(name, value)| matches!(&*name, "code" | "error") && !value.is_empty())
    };
    (is_address || has_parameter()).then_some(query)
}

/// The address bar shows a code percent-encoded.
fn bare_code(text: &str) -> Result<Secret, String> {
    let decoded = percent_decode_str(text)
        .decode_utf8()
        .unwrap_or(Cow::Borrowed(text));
    if decoded.is_empty() || decoded.len() > callback::CODE_LIMIT {
        return Err("--code: this is not a code".to_owned());
    }
    Ok(Secret::new(decoded))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, data: &[&str]) -> Result<String, String> {
        code(text, &Pending::of(data)).map(|code| code.expose().to_owned())
    }

    #[test]
    fn field_a10_an_address_a_query_and_a_code_are_the_same() {
        for text in [
            "http://127.0.0.1:8765/callback?code=a%2Fb%2B%3D&data=d",
            "https://app.example.com/back?x=y&data=d&code=a%2Fb%2B%3D",
            "https://app.example.com/back?data=d&code=a/b%2B=",
            "https://app.example.com/back?code=a%2Fb%2B%3D&data=d#top",
            "https://app.example.com/#code=a%2Fb%2B%3D&data=d",
            "127.0.0.1:8765/callback?code=a%2Fb%2B%3D&data=d",
            "app:/callback?code=a%2Fb%2B%3D&data=d",
            "?code=a%2Fb%2B%3D&data=d",
            "code=a%2Fb%2B%3D&data=d",
            " \"http://127.0.0.1:8765/callback?code=a%2Fb%2B%3D&data=d\"\n",
            "a%2Fb%2B%3D",
            "a%2fb%2b%3d",
            "a/b+=",
            " a/b+=\r\n",
        ] {
            assert_eq!(
                read(text, &["other", "d"]).as_deref(),
                Ok("a/b+="),
                "{text}"
            );
        }
        for code in ["-c0de", "a=b", "a&b", "a?b", "100%", "%zz", "encode=1", "ä"] {
            assert_eq!(read(code, &["d"]).as_deref(), Ok(code), "{code}");
        }
    }

    #[test]
    fn field_a10_the_data_of_an_address_is_checked() {
        for text in [
            "http://127.0.0.1/?code=a&data=e",
            "http://127.0.0.1/?code=a&data=",
            "http://127.0.0.1/?code=a",
            "http://127.0.0.1/?code=a&data=d&data=d",
            "code=a&data=e",
            "http://127.0.0.1/?error=access_denied",
        ] {
            let error = read(text, &["d"]).expect_err(text);
            assert!(error.contains("`data` differs"), "{text}: {error}");
        }
        // No login was started here, so nothing is known about it.
        for text in [
            "http://127.0.0.1/?code=a&data=e",
            "http://127.0.0.1/?code=a",
        ] {
            assert_eq!(read(text, &[]).as_deref(), Ok("a"), "{text}");
        }
    }

    #[test]
    fn field_a10_what_has_no_code_is_explained() {
        let refused = "http://127.0.0.1/?error=access_denied&error_description=no&data=d";
        assert_eq!(
            read(refused, &["d"]),
            Err("the cloud refused the login: access_denied (no)".to_owned())
        );
        for text in [
            "https://cloud.example.com/api/authorize.do?client_id=x&data=d",
            "http://127.0.0.1/?code=&data=d",
            "http://127.0.0.1/?code=a&code=b&data=d",
        ] {
            let error = read(text, &["d"]).expect_err(text);
            assert!(error.contains("has no code"), "{text}: {error}");
        }
        let endless = "x".repeat(callback::CODE_LIMIT + 1);
        for text in ["", "\"\"", &endless] {
            assert!(read(text, &["d"]).is_err());
        }
    }
}
