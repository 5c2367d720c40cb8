//! Answers that no target should give: each fails its own scrape with its own words, within bounds, and no other target notices.

use std::time::Duration;

use collector::scrape::Health;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::bench::*;

/// What is sent after the head of the answer.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    /// The connection is closed.
    Close,
    /// Nothing more; it stays open.
    Hang,
    /// The same to the next request.
    Again,
    /// This again and again, as fast as it is taken, until the peer closes.
    Endless(&'static [u8]),
    /// This again and again, slowly.
    Drip(&'static [u8]),
    /// The connection is reset.
    Reset,
}

struct Case {
    name: &'static str,
    answer: Vec<u8>,
    then: Then,
    /// The word in the metric, and how the status begins; empty: the scrape is good.
    reason: &'static str,
    error: &'static str,
}

fn case(name: &'static str, answer: impl Into<Vec<u8>>, then: Then, reason: &'static str, error: &'static str) -> Case {
    Case { name, answer: answer.into(), then, reason, error }
}

/// A head and a body of 200 that ends with the connection.
fn closing(headers: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n{headers}\r\n").into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

fn cases() -> Vec<Case> {
    let zipped = gzip(PAGE.as_bytes());
    let bomb = gzip(&vec![b'#'; 4 << 20]);
    let gzipped = |body: &[u8]| closing(&format!("Content-Encoding: gzip\r\nContent-Length: {}\r\n", body.len()), body);
    let chunked = |body: &str| closing("Transfer-Encoding: chunked\r\n", body.as_bytes());
    let chunk = [b"1000\r\n".as_slice(), &b"#".repeat(4095), b"\n\r\n"].concat();
    const NOT_HTTP: &str = "cannot read the answer: ";
    const LATE: &str = "no complete answer within ";
    const LARGE: &str = "the page is larger than 1048576 bytes";
    vec![
        case("garbage for a status line", "\x00\x01garbage\r\n\r\n", Then::Close, "transfer", NOT_HTTP),
        case("a status of four digits", "HTTP/1.1 2000 OK\r\n\r\n", Then::Close, "transfer", NOT_HTTP),
        case("HTTP/0.9", PAGE, Then::Close, "transfer", NOT_HTTP),
        case("HTTP/3.0", "HTTP/3.0 200 OK\r\n\r\n", Then::Close, "transfer", NOT_HTTP),
        case("TLS on a plain port", b"\x15\x03\x03\x00\x02\x02\x46".to_vec(), Then::Close, "transfer", NOT_HTTP),
        case("nothing, then the end", "", Then::Close, "transfer", NOT_HTTP),
        case("a reset", "", Then::Reset, "transfer", NOT_HTTP),
        case("nothing, for ever", "", Then::Hang, "timeout", LATE),
        case("half a status line", "HTTP/1.1 20", Then::Hang, "timeout", LATE),
        case("headers without end", "HTTP/1.1 200 OK\r\n", Then::Endless(b"X-Filler: aaaaaaaaaaaaaaaa\r\n"), "transfer", NOT_HTTP),
        case(
            "one header without end",
            "HTTP/1.1 200 OK\r\nX-Filler: ",
            Then::Endless(b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
            "transfer",
            NOT_HTTP,
        ),
        case("a header with a line break", "HTTP/1.1 200 OK\r\nX\n y\r\n\r\n", Then::Close, "transfer", NOT_HTTP),
        case("a header without a name", "HTTP/1.1 200 OK\r\n: x\r\n\r\n", Then::Close, "transfer", NOT_HTTP),
        case("headers that drip", "HTTP/1.1 200 OK\r\nX: ", Then::Drip(b"a"), "timeout", LATE),
        case("two lengths", closing("Content-Length: 3\r\nContent-Length: 5\r\n", b"a 1\n\n"), Then::Close, "transfer", NOT_HTTP),
        case("a negative length", closing("Content-Length: -5\r\n", b"a 1\n"), Then::Close, "transfer", NOT_HTTP),
        case(
            "a length beyond any number",
            closing("Content-Length: 99999999999999999999999\r\n", b"a 1\n"),
            Then::Close,
            "transfer",
            NOT_HTTP,
        ),
        case("too little for its length", closing("Content-Length: 400\r\n", b"a 1\n"), Then::Close, "transfer", NOT_HTTP),
        case("10 GB announced", closing("Content-Length: 10000000000\r\n", b"a 1\n"), Then::Hang, "body_too_large", LARGE),
        case("a body without end", closing("", b""), Then::Endless(b"# nothing but comments, again and again\n"), "body_too_large", LARGE),
        case("a body that drips", closing("Content-Length: 4000\r\n", b"a 1\n"), Then::Drip(b"#"), "timeout", LATE),
        case("a chunk without a size", chunked("zz\r\na 1\n\r\n0\r\n\r\n"), Then::Close, "transfer", NOT_HTTP),
        case("a chunk cut short", chunked("ff\r\na 1\n"), Then::Close, "transfer", NOT_HTTP),
        case("a chunk larger than all memory", chunked("fffffffffffffffff\r\na 1\n"), Then::Close, "transfer", NOT_HTTP),
        case("no last chunk", chunked("4\r\na 1\n\r\n"), Then::Close, "transfer", NOT_HTTP),
        case("chunks without end", chunked(""), Then::Endless(chunk.leak()), "body_too_large", LARGE),
        case("gzip cut short", gzipped(&zipped[..zipped.len() - 12]), Then::Close, "encoding", "cannot decompress the page: "),
        case("gzip that is none", gzipped(b"a 1\n"), Then::Close, "encoding", "cannot decompress the page: "),
        case(
            "gzip with a wrong checksum",
            {
                let mut broken = zipped.clone();
                let at = broken.len() - 6;
                broken[at] ^= 0xff;
                gzipped(&broken)
            },
            Then::Close,
            "encoding",
            "cannot decompress the page: ",
        ),
        case("a gzip bomb", gzipped(&bomb), Then::Close, "body_too_large", LARGE),
        case(
            "an encoding nobody asked for",
            closing("Content-Encoding: br\r\n", b"x"),
            Then::Close,
            "encoding",
            "cannot decompress the page: encoding 'br' was not asked for",
        ),
        case(
            "a redirect to itself",
            "HTTP/1.1 302 Found\r\nLocation: /metrics\r\nContent-Length: 0\r\n\r\n",
            Then::Again,
            "redirect",
            "cannot follow the redirect to '",
        ),
        case(
            "a redirect to nowhere",
            "HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
            Then::Close,
            "http_status",
            "the target answered 302 Found",
        ),
        case(
            "a redirect to a file",
            "HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
            Then::Again,
            "redirect",
            "cannot follow the redirect to '",
        ),
        case("204", "HTTP/1.1 204 No Content\r\n\r\n", Then::Close, "http_status", "the target answered 204 No Content"),
        case(
            "206 with a page",
            "HTTP/1.1 206 Partial Content\r\n\r\na 1\n",
            Then::Close,
            "http_status",
            "the target answered 206 Partial Content",
        ),
        case("100 for ever", "", Then::Endless(b"HTTP/1.1 100 Continue\r\n\r\n"), "timeout", LATE),
        case("invalid UTF-8", closing("", b"a{x=\"\xff\xfe\"} 1\n"), Then::Close, "parse", "line 1"),
        case("a zero byte", closing("", b"a\x001 1\n"), Then::Close, "parse", "line 1"),
        case("an HTML page", closing("", b"<html><body>Not the exporter</body></html>\n"), Then::Close, "parse", "line 1"),
        case("a line of 2 MiB", closing("", &b"a".repeat(2 << 20)), Then::Close, "body_too_large", LARGE),
        case("no newline at the end", closing("", b"a 1\nb"), Then::Close, "parse", "line 2"),
        case("an empty page", closing("Content-Length: 0\r\n", b""), Then::Again, "", ""),
        case("another type that reads as text", PAGE_AS_HTML, Then::Close, "", ""),
    ]
}

/// Enough time for what takes little, on a busy machine too.
const MORE: &str = ", \"body_size_limit\": \"1MiB\", \"scrape_interval\": \"2s\", \"scrape_timeout\": \"2s\"";
const PAGE_AS_HTML: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\na 1\n";

async fn serve(mut stream: TcpStream, answer: Vec<u8>, then: Then) {
    let mut request = Vec::new();
    loop {
        match stream.read_u8().await {
            Ok(byte) => request.push(byte),
            Err(_) => return,
        }
        if !request.ends_with(b"\r\n\r\n") {
            continue;
        }
        request.clear();
        // The client may leave at any point; that is what most cases are about.
        if stream.write_all(&answer).await.is_err() {
            return;
        }
        if then != Then::Again {
            break;
        }
    }
    match then {
        Then::Close => drop(stream.shutdown().await),
        Then::Again => {}
        Then::Hang => drop(stream.read_u8().await),
        Then::Endless(more) => {
            let block = more.repeat(64);
            while stream.write_all(&block).await.is_ok() {}
        }
        Then::Drip(more) => {
            while stream.write_all(more).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Then::Reset => drop(stream.set_zero_linger()),
    }
}

async fn start(answer: Vec<u8>, then: Then) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, answer.clone(), then));
        }
    });
    address
}

#[tokio::test]
async fn forty_malformed_answers_each_fail_in_their_own_words() {
    let good = Server::new(|_, _| page(PAGE)).await;
    let mut jobs = vec![job("good", &good.address, "")];
    let cases = cases();
    assert!(cases.len() >= 40);
    for (number, case) in cases.iter().enumerate() {
        let address = start(case.answer.clone(), case.then).await;
        jobs.push(job(&number.to_string(), &address, MORE));
    }
    let bench = Bench::new(configuration(&jobs.join(", ")));
    wait("each was scraped, the good one five times", || {
        let rows = bench.rows();
        let ups = |job: &str| rows.get(&(job.to_owned(), "up{}".to_owned())).map_or(0, Vec::len);
        ups("good") >= 5 && (0..cases.len()).all(|number| ups(&number.to_string()) >= 2)
    })
    .await;
    let rows = bench.rows();
    let up = |job: &str| rows[&(job.to_owned(), "up{}".to_owned())].iter().map(|row| f64::from_bits(row.value)).collect::<Vec<_>>();
    assert!(up("good").iter().all(|up| *up == 1.0), "the good one does not notice: {:?}", up("good"));
    let mut wrong = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let (status, ups) = (bench.target(&number.to_string()), up(&number.to_string()));
        let expect = f64::from(u8::from(case.error.is_empty()));
        let error = status.last_error.clone().unwrap_or_default();
        let is_right = ups.iter().all(|up| *up == expect)
            && (status.health == Health::Up) == case.error.is_empty()
            && if case.error.is_empty() { error.is_empty() } else { error.contains(case.error) };
        if !is_right {
            wrong.push(format!("{}: up {ups:?}, {:?} is not {:?}", case.name, error, case.error));
        }
        assert!(error.len() < 400, "{}: {error}", case.name);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for reason in cases.iter().map(|case| case.reason).filter(|reason| !reason.is_empty()) {
        assert!(bench.failed(reason) > 0, "{reason}");
    }
}
