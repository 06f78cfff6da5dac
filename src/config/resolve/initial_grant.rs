//! The sources of first tokens: `[token.jwt]`, and the keys that `login` needs.

use jsonwebtoken::Algorithm;

use super::token::interface_path;
use crate::{
    base::secret::Secret,
    config::{findings::problem, reader::Reader, values},
    token::{
        self, IssuerConfig, code_grant,
        jwt_grant::{self, User},
    },
};

/// `[token.jwt]`, without the path of the interface.
pub(super) struct Jwt {
    key: Secret,
    algorithm: Algorithm,
    user: Option<User>,
    claims: serde_json::Map<String, serde_json::Value>,
    names: jwt_grant::ParameterNames,
}

/// `None` if there is no such section, or after a mistake.
pub(super) fn jwt_section(r: &mut Reader) -> Option<Jwt> {
    const KEY: &str = "token.jwt.key";
    // Read in any case, to report mistakes in them.
    let names = names(r);
    if !r.has_keys("token.jwt") {
        return None;
    }
    if !r.is_secret_given(KEY) {
        let hint =
            "write the JWT key of the developer account, or set key_file to a file with the key";
        let variables = "set BEARER_PROXY__TOKEN__JWT__KEY, or BEARER_PROXY__TOKEN__JWT__KEY_FILE \
            to a file with the key";
        let problem = problem("is missing", hint).or_variable(variables);
        r.missing(r.pos_of_section("token.jwt"), KEY, problem);
    }
    let key = r.key(KEY);
    let algorithm = match r.read("token.jwt.algorithm", values::algorithm) {
        None if r.is_given("token.jwt.algorithm") => None,
        algorithm => Some(algorithm.unwrap_or_default()),
    };
    if let Some((key, algorithm)) = key.as_ref().zip(algorithm)
        && jwt_grant::check_key(algorithm, key).is_err()
    {
        let reason = format!("is not a private key in PEM for {algorithm:?}");
        let hint = "write the key from the cloud's administrator, or its algorithm";
        r.mistake(r.pos_of_secret(KEY), KEY, problem(reason, hint));
    }
    let user = user(r);
    let claims = r
        .read("token.jwt.claims", values::claims)
        .unwrap_or_default();
    Some(Jwt {
        key: key?,
        algorithm: algorithm?,
        user,
        claims,
        names,
    })
}

fn names(r: &mut Reader) -> jwt_grant::ParameterNames {
    let mut name = |path| r.read(path, values::parameter_name).unwrap_or_default();
    jwt_grant::ParameterNames {
        client_id: name("token.jwt.names.client_id"),
        jwt_token: name("token.jwt.names.jwt_token"),
        email: name("token.jwt.names.email"),
        phone: name("token.jwt.names.phone"),
        babel_id: name("token.jwt.names.babel_id"),
        code: name("token.jwt.names.code"),
    }
}

/// The user, by at most one of the three keys.
fn user(r: &mut Reader) -> Option<User> {
    let mut name = |path| {
        r.read(path, |value| values::text(value).map(str::to_owned))
            .map(|name| (path, name))
    };
    let [email, phone, babel_id] =
        ["token.jwt.email", "token.jwt.phone", "token.jwt.babel_id"].map(&mut name);
    let given: Vec<&str> = [&email, &phone, &babel_id]
        .into_iter()
        .flatten()
        .map(|(path, _)| *path)
        .collect();
    for pair in given.windows(2) {
        let reason = format!("names a user, and so does {}", pair[0]);
        r.mistake(
            r.pos(pair[1]),
            pair[1],
            problem(reason, "keep one of email, phone and babel_id"),
        );
    }
    let email = email.map(|(_, name)| User::Email(name));
    let phone = phone.map(|(_, name)| User::Phone(name));
    email
        .or(phone)
        .or(babel_id.map(|(_, name)| User::BabelId(name)))
}

pub(super) fn initial_grant(
    r: &mut Reader,
    issuer: Option<&IssuerConfig>,
    jwt: Option<Jwt>,
) -> Option<token::InitialGrantConfig> {
    let code_fields = r
        .list("token.fields.code", values::json_pointer)
        .into_iter()
        .map(|(field, _)| field)
        .collect();
    let redirect_uri = r.read("token.redirect_uri", values::redirect_uri);
    let keys = ["token.authorize_path", "token.token_path", "token.jwt_path"];
    let [authorize, token, by_jwt] = keys.map(|key| interface_path(r, key));
    let mut authorize_url = issuer?.origins.first()?.clone();
    authorize_url.set_path(&authorize?);
    let code = code_grant::Config {
        authorize_url,
        token_path: token?,
        redirect_uri,
    };
    let path = by_jwt?;
    let jwt = jwt.map(
        |Jwt {
             key,
             algorithm,
             user,
             claims,
             names,
         }| jwt_grant::Config {
            path,
            key,
            algorithm,
            user,
            claims,
            names,
            code_fields,
        },
    );
    Some(token::InitialGrantConfig { code, jwt })
}
