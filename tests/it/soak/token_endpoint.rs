//! The issuer's endpoint for refreshes: the forms of its responses, and its failures.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};

use super::{
    Lane,
    cloud::reset,
    issuer::{DEFAULT_LIFETIME, Granted, Mode, TIMEOUT},
    random::Random,
};
use crate::common::{
    read_head,
    upstream::{Request, read_body},
};

/// The form of a response that grants tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    LifetimeZero,
    LifetimeNegative,
    LifetimeText,
    NoLifetime,
    ByteOrderMark,
    InvalidUtf8,
    BlankInAccessToken,
    NoAccessToken,
    Chunked,
    ChunkedWithoutEnd,
    MoreFields,
    Late,
    InPieces,
    Lost,
    LostBehind502,
}

const ODD: [Form; 13] = [
    Form::LifetimeZero,
    Form::LifetimeNegative,
    Form::LifetimeText,
    Form::NoLifetime,
    Form::ByteOrderMark,
    Form::InvalidUtf8,
    Form::BlankInAccessToken,
    Form::NoAccessToken,
    Form::Chunked,
    Form::ChunkedWithoutEnd,
    Form::MoreFields,
    Form::Late,
    Form::InPieces,
];

/// Serves one connection of the issuer.
async fn serve(lane: Arc<Lane>, connection: usize, stream: TcpStream) -> io::Result<()> {
    let mut random = Random::new(lane.seed, &format!("{} issuer {connection}", lane.name));
    let mut stream = BufReader::new(stream);
    loop {
        let head = read_head(&mut stream).await?;
        if head.is_empty() {
            return Ok(());
        }
        let body = read_body(&mut stream, &head).await?;
        let request = Request {
            connection,
            number: 0,
            arrived: Instant::now(),
            head,
            body,
        };
        if !call(&lane, &mut random, &request, stream.get_mut()).await? {
            return Ok(());
        }
    }
}

/// Responds to one call. False if the connection ends.
async fn call(
    lane: &Lane,
    random: &mut Random,
    request: &Request,
    stream: &mut TcpStream,
) -> io::Result<bool> {
    let (mode, secret, left) = {
        let mut issuer = lane.issuer.lock().unwrap();
        issuer.counts.calls += 1;
        issuer.calls.push(Instant::now());
        (issuer.mode, issuer.secret.clone(), issuer.left())
    };
    let presented = request.refresh_token();
    let failed = |what: &str| {
        let mut issuer = lane.issuer.lock().unwrap();
        issuer.counts.failed += 1;
        issuer.note_fault();
        drop(issuer);
        lane.note(&format!("issuer: {what} for {presented}"));
    };
    match mode {
        Mode::Closed => {
            failed("reset");
            reset(stream);
            return Ok(false);
        }
        Mode::Silent => {
            failed("no response");
            let _ = stream.read_to_end(&mut Vec::new()).await;
            failed("no response, and the proxy gave up");
            return Ok(false);
        }
        Mode::Failing => {
            let (status, fields) = random.pick(&[
                ("500 Internal Server Error", ""),
                ("502 Bad Gateway", ""),
                ("503 Service Unavailable", ""),
                ("503 Service Unavailable", "Retry-After: 1\r\n"),
                ("504 Gateway Timeout", ""),
                ("", ""),
            ]);
            failed(if status.is_empty() { "reset" } else { status });
            if status.is_empty() {
                reset(stream);
                return Ok(false);
            }
            respond(stream, status, fields, b"<html>").await?;
            return Ok(true);
        }
        Mode::Normal | Mode::Odd | Mode::Lossy => {}
    }
    let basic = format!("Basic {}", STANDARD.encode(format!("demo:{secret}")));
    if request.fields("authorization") != [basic] {
        failed("invalid_client");
        lane.issuer.lock().unwrap().is_client_refused = true;
        let body = br#"{"error":"invalid_client"}"#;
        respond(stream, "401 Unauthorized", "", body).await?;
        return Ok(true);
    }
    let form = match mode {
        Mode::Lossy if random.percent(60) => random.pick(&[Form::Lost, Form::LostBehind502]),
        Mode::Odd => random.pick(&ODD),
        _ => Form::Plain,
    };
    // A response that is later than the access token's end is a lost response.
    let delay = Duration::from_millis(1000 * TIMEOUT) + random.millis(200..1500);
    let form = match form {
        Form::Late | Form::InPieces if left < delay + Duration::from_secs(1) => Form::Plain,
        form => form,
    };
    let lifetime = match form {
        Form::LifetimeZero | Form::LifetimeNegative | Form::LifetimeText | Form::NoLifetime => {
            DEFAULT_LIFETIME
        }
        _ => random.within(5..13),
    };
    let granted = lane.issuer.lock().unwrap().grant(&presented, lifetime);
    let granted = match granted {
        Ok(granted) => granted,
        Err(why) => {
            failed(&format!("invalid_grant ({why})"));
            refuse(stream, random).await?;
            return Ok(true);
        }
    };
    lane.note(&format!(
        "issuer: {presented} -> {}, {form:?}, {lifetime} s",
        granted.refresh_token
    ));
    if form != Form::Plain {
        lane.issuer.lock().unwrap().counts.odd += 1;
    }
    let is_stopped = std::mem::take(&mut lane.issuer.lock().unwrap().stop_in_next_call);
    if is_stopped {
        lane.process.pause(lane);
        sleep(Duration::from_millis(50)).await; // until the process has stopped
    }
    let goes_on = deliver(stream, form, &granted, delay).await;
    let mut issuer = lane.issuer.lock().unwrap();
    match form {
        Form::BlankInAccessToken | Form::NoAccessToken | Form::Lost | Form::LostBehind502 => {
            issuer.note_fault();
        }
        _ => issuer.note_delivered(&granted.access_token),
    }
    drop(issuer);
    if is_stopped {
        lane.process.stopped_in_call.notify_one();
    }
    goes_on
}

/// `invalid_grant`, in the ways that issuers write it.
async fn refuse(stream: &mut TcpStream, random: &mut Random) -> io::Result<()> {
    let plain: &[u8] = br#"{"error":"invalid_grant"}"#;
    let (status, body): (&str, &[u8]) = random.pick(&[
        ("400 Bad Request", plain),
        ("401 Unauthorized", plain),
        ("403 Forbidden", plain),
        ("200 OK", plain),
        (
            "400 Bad Request",
            b"\xef\xbb\xbf{\"error\":\"invalid_grant\"}",
        ),
        (
            "400 Bad Request",
            b"{\"error\":\"invalid_grant\",\"error_description\":\"\xb2\xbb\"}",
        ),
    ]);
    respond(stream, status, "", body).await
}

async fn respond(
    stream: &mut TcpStream,
    status: &str,
    fields: &str,
    body: &[u8],
) -> io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{fields}Content-Length: {length}\r\n\r\n");
    stream.write_all(&[head.as_bytes(), body].concat()).await
}

/// Sends the tokens. False if the connection ends.
async fn deliver(
    stream: &mut TcpStream,
    form: Form,
    granted: &Granted,
    delay: Duration,
) -> io::Result<bool> {
    let body = body(form, granted);
    match form {
        Form::Lost => {
            reset(stream);
            return Ok(false);
        }
        Form::LostBehind502 => respond(stream, "502 Bad Gateway", "", b"").await?,
        Form::Chunked | Form::ChunkedWithoutEnd => {
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            let (first, second) = body.split_at(body.len() / 2);
            let mut bytes = head.as_bytes().to_vec();
            for chunk in [first, second] {
                bytes.extend(format!("{:x}\r\n", chunk.len()).as_bytes());
                bytes.extend(chunk);
                bytes.extend(b"\r\n");
            }
            if form == Form::Chunked {
                bytes.extend(b"0\r\n\r\n");
            }
            stream.write_all(&bytes).await?;
            return Ok(form == Form::Chunked);
        }
        Form::MoreFields => {
            let fields: String = (0..150).map(|n| format!("X-Field-{n}: {n}\r\n")).collect();
            respond(stream, "200 OK", &fields, &body).await?;
        }
        Form::Late => {
            sleep(delay).await; // the issuer's delay
            respond(stream, "200 OK", "", &body).await?;
        }
        Form::InPieces => {
            let length = body.len();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            stream.write_all(head.as_bytes()).await?;
            let pieces = 5;
            for piece in body.chunks(length / pieces + 1) {
                sleep(delay / 5).await; // the issuer's pace
                stream.write_all(piece).await?;
            }
        }
        _ => respond(stream, "200 OK", "", &body).await?,
    }
    Ok(true)
}

fn body(form: Form, granted: &Granted) -> Vec<u8> {
    let Granted {
        access_token,
        refresh_token,
        lifetime,
    } = granted;
    let access = match form {
        Form::NoAccessToken => String::new(),
        Form::BlankInAccessToken => format!("\"access_token\":\"a {access_token}\","),
        _ => format!("\"access_token\":\"{access_token}\","),
    };
    let lifetime = match form {
        Form::LifetimeZero => ",\"expires_in\":0".to_owned(),
        Form::LifetimeNegative => ",\"expires_in\":-1".to_owned(),
        Form::LifetimeText => ",\"expires_in\":\"soon\"".to_owned(),
        Form::NoLifetime => String::new(),
        _ => format!(",\"expires_in\":{lifetime}"),
    };
    let json = format!("{{{access}\"refresh_token\":\"{refresh_token}\"{lifetime}}}");
    match form {
        Form::ByteOrderMark => [b"\xef\xbb\xbf", json.as_bytes()].concat(),
        Form::InvalidUtf8 => {
            let rest = json.trim_start_matches('{').as_bytes();
            [b"{\"name\":\"\xb2\xbb\",", rest].concat()
        }
        _ => json.into_bytes(),
    }
}

/// Listens until the end. Closes the listener while the mode is [`Mode::Closed`].
pub async fn listen(lane: Arc<Lane>, address: SocketAddr) {
    let is_closed = |lane: &Lane| lane.issuer.lock().unwrap().mode == Mode::Closed;
    let pause = Duration::from_millis(20);
    for connection in 0.. {
        while is_closed(&lane) {
            lane.issuer.lock().unwrap().note_fault();
            sleep(pause).await; // polls the mode
        }
        let listener = TcpListener::bind(address).await.unwrap();
        for inner in 0.. {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = async { while !is_closed(&lane) { sleep(pause).await } } => break,
            };
            let stream = accepted.unwrap().0;
            stream.set_nodelay(true).unwrap();
            let number = connection * 1_000_000 + inner;
            tokio::spawn(serve(Arc::clone(&lane), number, stream));
        }
    }
}
