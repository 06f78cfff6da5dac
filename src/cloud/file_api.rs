//! The interfaces of the files, at the cloud and at the document host.

use std::{io, ops::Range};

use aws_lc_rs::digest;
use http_body_util::BodyExt as _;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ACCEPT_RANGES, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, RANGE},
};
use serde_json::{Map, Value, json};

use super::{
    body::ResponseBody,
    files::Name,
    http::{CloudResponse, Parameters, failure, set, success},
    state::State,
};

/// The interfaces at the cloud. The caller has checked the bearer token.
pub(super) async fn cloud(
    state: &State,
    path: &str,
    serial: Option<u64>,
    request: Request<Incoming>,
) -> CloudResponse {
    let parameters = Parameters::of(&request);
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let deletes = matches!(
        *request.method(),
        Method::GET | Method::POST | Method::DELETE
    );
    let response = match path {
        "/api/echo.do" => echo(serial, request).await,
        "/api/bytes.do" if reads => bytes(&parameters),
        "/api/file/list.do" if reads => list(state).await,
        "/api/file/info.do" if reads => info(state, &parameters).await,
        "/api/file/preUploadFile.do" if reads => announce_upload(state, &parameters).await,
        "/api/file/download.do" if reads => announce_download(state, &parameters).await,
        "/api/file/delete.do" if deletes => delete(state, &parameters).await,
        "/api/bytes.do"
        | "/api/file/list.do"
        | "/api/file/info.do"
        | "/api/file/preUploadFile.do"
        | "/api/file/download.do"
        | "/api/file/delete.do" => return method_not_allowed(),
        _ => return not_found(),
    };
    response.unwrap_or_else(|error| failed(&error))
}

/// The document host: `/api/file/<ticket>/uploadFile.do` and `/api/file/<ticket>/downloadFile.do`.
pub(super) async fn document(
    state: &State,
    path: &str,
    request: Request<Incoming>,
) -> CloudResponse {
    let Some((ticket, interface)) = path
        .strip_prefix("/api/file/")
        .and_then(|rest| rest.split_once('/'))
    else {
        return not_found();
    };
    let response = match (interface, request.method()) {
        ("uploadFile.do", &Method::POST | &Method::PUT) => upload(state, ticket, request).await,
        ("downloadFile.do", &Method::GET | &Method::HEAD) => {
            download(state, ticket, &request).await
        }
        ("uploadFile.do" | "downloadFile.do", _) => return method_not_allowed(),
        _ => return not_found(),
    };
    response.unwrap_or_else(|error| failed(&error))
}

async fn echo(serial: Option<u64>, request: Request<Incoming>) -> io::Result<CloudResponse> {
    let (head, mut body) = request.into_parts();
    let mut headers = Map::new();
    for name in head.headers.keys() {
        let shown =
            head.headers
                .get_all(name)
                .iter()
                .map(|value| match (name == AUTHORIZATION, serial) {
                    (true, Some(serial)) => format!("token #{serial}").into(),
                    (true, None) => "token unknown".into(),
                    (false, _) => String::from_utf8_lossy(value.as_bytes()).into(),
                });
        headers.insert(name.to_string(), Value::Array(shown.collect()));
    }
    let mut sha256 = digest::Context::new(&digest::SHA256);
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(io::Error::other)?.into_data() {
            sha256.update(&data);
            length += data.len() as u64;
        }
    }
    let sha256 = hex::encode(sha256.finish());
    Ok(success(json!({
        "method": head.method.as_str(),
        "path": head.uri.path(),
        "query": head.uri.query().unwrap_or_default(),
        "authorization_count": head.headers.get_all(AUTHORIZATION).iter().count(),
        "headers": headers,
        "body_length": length,
        "body_sha256": sha256,
    })))
}

fn bytes(parameters: &Parameters) -> io::Result<CloudResponse> {
    let size = parameters.first("size").and_then(|size| size.parse().ok());
    let size = size.ok_or_else(|| bad_input("size must be a number of bytes"))?;
    let mut response = Response::new(ResponseBody::Pattern(0..size));
    set(&mut response, CONTENT_TYPE, "application/octet-stream");
    Ok(response)
}

async fn list(state: &State) -> io::Result<CloudResponse> {
    let files = state.files.list().await?;
    let files: Vec<Value> = files
        .iter()
        .map(|(name, size)| description(name, *size))
        .collect();
    Ok(success(json!({ "files": files })))
}

async fn info(state: &State, parameters: &Parameters) -> io::Result<CloudResponse> {
    let name = file_id(parameters)?;
    let size = state.files.size(&name).await?;
    Ok(success(description(&name, size)))
}

async fn announce_upload(state: &State, parameters: &Parameters) -> io::Result<CloudResponse> {
    let name = if parameters.first("file_id").is_some() {
        let name = file_id(parameters)?;
        state.files.size(&name).await?;
        name
    } else {
        Name::new(
            parameters
                .first("name")
                .ok_or_else(|| bad_input("name is missing"))?,
        )?
    };
    let (ticket, upload_token) = state.files.announce_upload(name, state.clock.now())?;
    let url = format!("{}/api/file/{ticket}/uploadFile.do", state.document_origin);
    Ok(success(json!({ "upload_token": upload_token, "url": url })))
}

async fn announce_download(state: &State, parameters: &Parameters) -> io::Result<CloudResponse> {
    let name = file_id(parameters)?;
    state.files.size(&name).await?;
    let ticket = state.files.announce_download(name, state.clock.now())?;
    Ok(success(
        json!({ "url": format!("{}/api/file/{ticket}/downloadFile.do", state.document_origin) }),
    ))
}

async fn delete(state: &State, parameters: &Parameters) -> io::Result<CloudResponse> {
    state.files.delete(&file_id(parameters)?).await?;
    Ok(success(json!({})))
}

async fn upload(
    state: &State,
    ticket: &str,
    request: Request<Incoming>,
) -> io::Result<CloudResponse> {
    let parameters = Parameters::of(&request);
    let token = parameters.first("upload_token").unwrap_or_default();
    let Some(name) = state.files.take_upload(ticket, token, state.clock.now()) else {
        return Ok(failure(
            StatusCode::FORBIDDEN,
            "this upload address is unknown, expired or used",
        ));
    };
    let size = state.files.write(name.clone(), request.into_body()).await?;
    Ok(success(description(&name, size)))
}

async fn download(
    state: &State,
    ticket: &str,
    request: &Request<Incoming>,
) -> io::Result<CloudResponse> {
    let Some(name) = state.files.download(ticket, state.clock.now()) else {
        return Ok(failure(
            StatusCode::FORBIDDEN,
            "this download address is unknown or expired",
        ));
    };
    let content = state.files.open(&name).await?;
    let size = content.size();
    let range = request
        .headers()
        .get(RANGE)
        .and_then(|range| range.to_str().ok())
        .map(|range| part_of(range, size));
    let (status, content_range, part) = match range {
        Some(Part::Range(part)) => {
            let shown = format!("bytes {}-{}/{size}", part.start, part.end - 1);
            (StatusCode::PARTIAL_CONTENT, Some(shown), part)
        }
        Some(Part::Unsatisfiable) => (
            StatusCode::RANGE_NOT_SATISFIABLE,
            Some(format!("bytes */{size}")),
            0..0,
        ),
        Some(Part::Whole) | None => (StatusCode::OK, None, 0..size),
    };
    let mut response = Response::new(content.part(part).await?);
    *response.status_mut() = status;
    set(&mut response, CONTENT_TYPE, "application/octet-stream");
    set(&mut response, ACCEPT_RANGES, "bytes");
    if let Some(content_range) = content_range {
        set(&mut response, CONTENT_RANGE, &content_range);
    }
    Ok(response)
}

#[derive(Debug, PartialEq, Eq)]
enum Part {
    Whole,
    Range(Range<u64>),
    Unsatisfiable,
}

/// Parses a `Range` of one part (RFC 9110 §14.1.2). Any other value selects the whole file.
fn part_of(range: &str, size: u64) -> Part {
    let Some((first, last)) = range
        .strip_prefix("bytes=")
        .and_then(|range| range.trim().split_once('-'))
    else {
        return Part::Whole;
    };
    let (first, last) = match (first, first.parse::<u64>(), last, last.parse::<u64>()) {
        ("", _, _, Ok(0)) => return Part::Unsatisfiable,
        ("", _, _, Ok(suffix)) => (size.saturating_sub(suffix), u64::MAX),
        (_, Ok(first), "", _) => (first, u64::MAX),
        (_, Ok(first), _, Ok(last)) if first <= last => (first, last),
        _ => return Part::Whole,
    };
    if first >= size {
        Part::Unsatisfiable
    } else {
        Part::Range(first..last.saturating_add(1).min(size))
    }
}

fn file_id(parameters: &Parameters) -> io::Result<Name> {
    Name::from_id(
        parameters
            .first("file_id")
            .ok_or_else(|| bad_input("file_id is missing"))?,
    )
}

fn description(name: &Name, size: u64) -> Value {
    json!({ "file_id": name.id(), "name": name.as_str(), "size": size })
}

fn bad_input(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message.to_owned())
}

fn method_not_allowed() -> CloudResponse {
    failure(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
}

fn not_found() -> CloudResponse {
    failure(StatusCode::NOT_FOUND, "no such interface")
}

fn failed(error: &io::Error) -> CloudResponse {
    let status = match error.kind() {
        io::ErrorKind::NotFound => StatusCode::NOT_FOUND,
        io::ErrorKind::InvalidInput => StatusCode::BAD_REQUEST,
        io::ErrorKind::FileTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    failure(status, &error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_one_part() {
        for (range, expected) in [
            ("bytes=0-0", Part::Range(0..1)),
            ("bytes=2-", Part::Range(2..10)),
            ("bytes=-3", Part::Range(7..10)),
            ("bytes=-30", Part::Range(0..10)),
            ("bytes=5-99", Part::Range(5..10)),
            ("bytes=5-18446744073709551615", Part::Range(5..10)),
            ("bytes=10-", Part::Unsatisfiable),
            ("bytes=-0", Part::Unsatisfiable),
            ("bytes=3-2", Part::Whole),
            ("bytes=0-1,3-4", Part::Whole),
            ("bytes=-", Part::Whole),
            ("lines=1-2", Part::Whole),
        ] {
            assert_eq!(part_of(range, 10), expected, "{range}");
        }
        assert_eq!(part_of("bytes=-1", 0), Part::Unsatisfiable);
    }
}
