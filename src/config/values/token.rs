//! Values of `[token]` and `[retry]`: algorithms, keys, claims, JSON pointers.

use jsonwebtoken::Algorithm;
use serde_json::{Map, Value as Json};

use super::{Read, text, text_with_hint};
use crate::{
    config::{
        findings::problem,
        raw::{Entry, Value},
    },
    token::jwt_grant::RESERVED_CLAIMS,
};

/// A signature algorithm of JWTs (RFC 7518 §3.1).
pub(in crate::config) fn algorithm(value: &Value) -> Read<Algorithm> {
    const KNOWN: [&str; 12] = [
        "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256",
        "ES384", "EdDSA",
    ];
    let hint = format!("write one of {}", KNOWN.join(", "));
    let text = text_with_hint(value, &hint)?;
    text.parse()
        .map_err(|_| problem("is not a supported algorithm", hint))
}

/// A key: one line, or PEM with several.
pub(in crate::config) fn key_material(value: &Value) -> Read<&str> {
    match value {
        Value::Text(key) if is_pem(key) => Ok(key),
        _ => text(value),
    }
}

/// Whether the text is PEM (RFC 7468), without control characters other than line ends.
pub(in crate::config) fn is_pem(key: &str) -> bool {
    key.trim_start().starts_with("-----BEGIN ")
        && !key.contains(|c: char| c.is_control() && !matches!(c, '\r' | '\n'))
}

/// Additional claims of a JWT.
pub(in crate::config) fn claims(value: &Value) -> Read<Map<String, Json>> {
    const INSTEAD: &str = r#"write a table, as in { scope = "files" }"#;
    let Value::Table(elements) = value else {
        // In a variable the syntax is the same, with the quotes.
        return Err(
            problem(format!("is {}, not a table", value.kind_name()), INSTEAD).or_variable(INSTEAD),
        );
    };
    for (name, _) in elements {
        if let Some(own) = RESERVED_CLAIMS.iter().find(|own| *own == name) {
            return Err(problem(
                format!("sets {own}, which the proxy sets itself"),
                "remove it",
            ));
        }
    }
    match json(value) {
        Ok(Json::Object(claims)) => Ok(claims),
        Ok(_) => Err(problem("is not a table", INSTEAD)),
        Err(kind_name) => Err(problem(
            format!("contains {kind_name}"),
            "write texts, whole numbers, true, false, lists and tables of them",
        )),
    }
}

fn json(value: &Value) -> Result<Json, &'static str> {
    Ok(match value {
        Value::Text(text) => Json::String(text.to_string()),
        Value::Integer(number) => (*number).into(),
        Value::Bool(value) => (*value).into(),
        Value::List(elements) => Json::Array(
            elements
                .iter()
                .map(|element| json(&element.value))
                .collect::<Result<_, _>>()?,
        ),
        Value::Table(elements) => {
            let member = |(name, element): &(String, Entry)| {
                json(&element.value).map(|value| (name.clone(), value))
            };
            Json::Object(elements.iter().map(member).collect::<Result<_, _>>()?)
        }
        Value::Other(kind_name) => return Err(*kind_name),
    })
}

/// A JSON pointer (RFC 6901), other than the one to the whole document.
pub(in crate::config) fn json_pointer(value: &Value) -> Read<String> {
    let text = text(value)?;
    let escapes_hold = text
        .split('~')
        .skip(1)
        .all(|rest| rest.starts_with(['0', '1']));
    match text.strip_prefix('/') {
        Some(_) if escapes_hold => Ok(text.to_owned()),
        Some(_) => Err(problem(
            "has a ~ that is not an escape",
            "write ~0 for ~ and ~1 for / within a name",
        )),
        None => Err(problem(
            "is not a JSON pointer",
            r#"begin it with /, as in "/access_token" or "/data/access_token""#,
        )),
    }
}

/// The name of a URL parameter.
pub(in crate::config) fn parameter_name(value: &Value) -> Read<String> {
    match text(value)? {
        name if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Ok(name.to_owned())
        }
        _ => Err(problem(
            "is not a parameter name",
            "write the name of a URL parameter, without spaces",
        )),
    }
}

/// A code as in JSON responses.
pub(in crate::config) fn code(value: &Value) -> Read<Json> {
    match value {
        Value::Integer(number) => Ok((*number).into()),
        Value::Text(_) => text(value).map(Json::from),
        Value::Bool(_) | Value::List(_) | Value::Table(_) | Value::Other(_) => Err(problem(
            format!("is {}", value.kind_name()),
            r#"write a number or a text, as in 401 or "TOKEN_EXPIRED""#,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::values::tests::words;

    #[test]
    fn pointers_and_codes() {
        assert!(json_pointer(&words("/data/access_token")).is_ok());
        assert!(json_pointer(&words("/a~1b~0")).is_ok());
        assert!(json_pointer(&words("access_token")).is_err());
        assert!(json_pointer(&words("/a~2")).is_err());
        assert_eq!(code(&Value::Integer(-1)), Ok(Json::from(-1)));
        assert_eq!(code(&words("E401")), Ok(Json::from("E401")));
        assert!(code(&Value::Bool(true)).is_err() && code(&words("")).is_err());
    }
}
