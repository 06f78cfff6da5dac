//! The simulated private cloud: an issuer of tokens, a small file API behind a bearer check, and
//! faults on demand.
//!
//! It serves two listeners: the cloud itself, and the *document host*, to which uploads and
//! downloads are sent by absolute URL and which requires no bearer token.
//!
//! # The files
//!
//! Imports point down.
//!
//! | file | holds |
//! |---|---|
//! | `simulate` | the command: its flags, its output |
//! | `server` | [`Cloud`]: the two listeners, and what a test may change or count |
//! | `router` | which path goes where, and the bearer check |
//! | `oauth_api`, `file_api` | the interfaces below |
//! | `state` | what all requests share; [`Event`] and [`Received`] |
//! | `shared` | the issuer in memory, or in a file that several nodes share |
//! | `tokens`, `files`, `faults`, `config` | the parts of the state |
//! | `http`, `body` | helpers for requests and responses |
//!
//! # The issuer
//!
//! | interface | response |
//! |---|---|
//! | `GET /api/authorize.do?response_type=code&client_id=&redirect_uri=&data=` | 302 to `redirect_uri?code=…&data=…`; consent is given at once |
//! | `GET /api/authorizeByJWT.do?response_type=code&client_id=&jwt_token=` | `{"code":0,"success":true,"data":{"code":…}}`, or a 302 if so configured. The payload of the JWT must name the client; **its signature is not checked** |
//! | `POST /api/token.do?grant_type=authorization_code&code=&redirect_uri=` | tokens; HTTP Basic with the raw id and secret |
//! | `POST /api/refreshToken.do?grant_type=refresh_token&refresh_token=` | tokens; HTTP Basic with the raw id and secret |
//!
//! Tokens are `{"access_token":…,"refresh_token":…,"expires_in":seconds}`; errors are those of RFC
//! 6749 §5.2. The last two also read parameters from a form body.
//!
//! # The file API
//!
//! Responses are `{"code":0,"success":true,…}`, failures
//! `{"code":status,"success":false,"message":…}`. Each path also works below `/nd`. There is one
//! flat folder; any `parent_id` means it.
//!
//! | interface | response |
//! |---|---|
//! | `GET /api/file/list.do` | `files`: a list of `file_id`, `name`, `size` |
//! | `GET /api/file/info.do?file_id=` | `file_id`, `name`, `size` |
//! | `GET /api/file/preUploadFile.do?parent_id=&name=[&file_id=]` | `upload_token`, `url` on the document host, for one use within an hour |
//! | `POST {url}?upload_token=` on the document host | stores the body: `file_id`, `name`, `size` |
//! | `GET /api/file/download.do?file_id=` | `url` on the document host, for an hour; takes a single `Range` |
//! | `GET`, `POST`, `DELETE /api/file/delete.do?file_id=` | no further fields |
//! | any method, `/api/echo.do` | `method`, `path`, `query`, `headers` (tokens shown as `token #<serial>`), `authorization_count`, `body_length`, `body_sha256` |
//! | `GET /api/bytes.do?size=` | `size` bytes: 0, 1, … 250, 0, 1, … |

mod body;
mod config;
mod faults;
mod file_api;
mod files;
mod http;
mod oauth_api;
mod router;
mod server;
mod shared;
mod simulate;
mod state;
mod tokens;

pub use self::{
    config::Config,
    faults::{Faults, IssuerResponse},
    server::Cloud,
    simulate::{SimulateArgs, simulate},
    state::{Event, Received},
};
