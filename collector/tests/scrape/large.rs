//! Pages too large for one piece of a body: read while they come, aside, in blocks.

use std::time::Duration;

use collector::client::PIECE_BYTES;
use collector::scrape::Health;

use crate::bench::*;

/// A page of so many series, each with the number of the scrape; no two of its lines compress well.
fn wide(series: u64, number: usize) -> Vec<u8> {
    let line = |index: u64| format!("wide{{i=\"{index}\",id=\"{:016x}{:016x}\"}} {number}\n", mixed(index), mixed(!index));
    (0..series).flat_map(|index| line(index).into_bytes()).collect()
}

const fn mixed(index: u64) -> u64 {
    index.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

fn of_series(index: u64) -> String {
    format!("wide{{i={index},id={:016x}{:016x}}}", mixed(index), mixed(!index))
}

const SLOWER: &str = ", \"scrape_interval\": \"5s\", \"scrape_timeout\": \"5s\"";

#[tokio::test]
async fn large_pages_are_read_aside_and_arrive_whole() {
    let mut text = String::new();
    for index in 0..20_000 {
        text.push_str(&format!("wide{{i=\"{index}\"}} {index}\n"));
    }
    let body = gzip(text.as_bytes());
    let server = Server::new(move |_, _| Answer::Bytes(response("200 OK\r\nContent-Encoding: gzip", &body))).await;
    let slower = ", \"scrape_interval\": \"500ms\", \"scrape_timeout\": \"500ms\"";
    let bench = Bench::new(configuration(&job("wide", &server.address, slower)));
    wait("three scrapes", || bench.telemetry.published_samples.get() >= 3 * 20_005).await;
    let rows = bench.rows();
    for index in [0, 9_999, 19_999] {
        let series = &rows[&("wide".into(), format!("wide{{i={index}}}"))];
        assert!(series.len() >= 3 && series.iter().all(|row| f64::from_bits(row.value) == f64::from(index)));
    }
    let Bench { twin, telemetry, collector } = bench;
    collector.stop(Duration::from_secs(10)).await;
    let total: usize = crate::rows(&twin).values().map(Vec::len).sum();
    assert_eq!((telemetry.scraped_samples.get(), telemetry.published_samples.get()), (total as u64, total as u64));
}

#[tokio::test]
async fn pages_in_pieces_arrive_whole() {
    const SERIES: u64 = 20_000;
    let pages = [wide(SERIES, 0), wide(SERIES, 1)];
    let zipped = pages.each_ref().map(|page| response("200 OK\r\nContent-Encoding: gzip", &gzip(page)));
    assert!(zipped[0].len() > PIECE_BYTES && pages[0].len() > 4 * PIECE_BYTES, "several pieces");
    let pages = pages.each_ref().map(|page| response("200 OK", page));
    let plain = Server::new(move |number, _| Answer::Bytes(pages[number % 2].clone())).await;
    let zipped = Server::new(move |number, _| Answer::Bytes(zipped[number % 2].clone())).await;
    let jobs = [job("plain", &plain.address, SLOWER), job("zipped", &zipped.address, SLOWER)];
    let bench = Bench::new(configuration(&jobs.join(",")));
    let come = |job: &str| bench.rows().get(&(job.to_owned(), "up{}".to_owned())).is_some_and(|rows| rows.len() >= 2);
    wait("two scrapes", || come("plain") && come("zipped")).await;
    let rows = bench.rows();
    for job in ["plain", "zipped"] {
        let value =
            |series: &str, scrape: usize| rows.get(&(job.to_owned(), series.to_owned())).map(|rows| f64::from_bits(rows[scrape].value));
        let of_page = [value("scrape_samples_scraped{}", 0), value("scrape_series_added{}", 0), value("scrape_series_added{}", 1)];
        assert_eq!(of_page, [Some(SERIES as f64), Some(SERIES as f64), Some(0.0)], "{job}: {:?}", bench.target(job));
        let first = value(&of_series(0), 0).expect("it is there");
        for index in [0, 1, SERIES / 2, SERIES - 1] {
            let values = [value(&of_series(index), 0), value(&of_series(index), 1)];
            assert_eq!(values, [Some(first), Some(1.0 - first)], "{job}, series {index}");
        }
    }
}

#[tokio::test]
async fn a_page_in_pieces_fails_as_one_that_came_whole() {
    let page = wide(20_000, 1);
    let broken = [&page[..], b"  no sample\n", &page[..]].concat();
    let zipped = gzip(&page);
    let bomb = gzip(&[&page[..], &vec![b'\n'; 64 << 20][..]].concat());
    let gzipped = |body: Vec<u8>| Server::new(move |_, _| Answer::Bytes(response("200 OK\r\nContent-Encoding: gzip", &body)));
    let length = page.len();
    let (cut, cut_page) = (length - 7, page.clone());
    let torn = gzipped(zipped[..zipped.len() - 9].to_vec()).await;
    let bombing = gzipped(bomb).await;
    let bad = Server::new(move |_, _| Answer::Bytes(response("200 OK", &broken))).await;
    let truncating = Server::new(move |_, _| {
        Answer::Close([format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes(), &cut_page[..cut]].concat())
    })
    .await;
    let stuck = page.clone();
    let hanging = Server::new(move |_, _| {
        Answer::Bytes([format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes(), &stuck[..cut]].concat())
    })
    .await;
    let counted = page.clone();
    let many = Server::new(move |_, _| Answer::Bytes(response("200 OK", &counted))).await;
    let jobs = [
        job("torn", &torn.address, SLOWER),
        job("bombing", &bombing.address, &format!("{SLOWER}, \"body_size_limit\": \"4MiB\"")),
        job("bad", &bad.address, SLOWER),
        job("truncating", &truncating.address, SLOWER),
        job("hanging", &hanging.address, ", \"scrape_interval\": \"2s\", \"scrape_timeout\": \"1s\""),
        job("many", &many.address, &format!("{SLOWER}, \"sample_limit\": 1000")),
    ];
    let bench = Bench::new(configuration(&jobs.join(",")));
    wait("every target was scraped", || bench.collector.targets().iter().all(|target| target.health == Health::Down)).await;
    let error = |job: &str| bench.target(job).last_error.unwrap_or_default();
    assert!(error("torn").starts_with("cannot decompress the page: "), "{}", error("torn"));
    assert_eq!(error("bombing"), "the page is larger than 4194304 bytes; raise body_size_limit if that is right");
    assert_eq!(error("bad"), "cannot read line 20001, column 6, at \"sample\": a value is a decimal number, +Inf, -Inf or NaN");
    assert!(error("truncating").starts_with("cannot read the answer: "), "{}", error("truncating"));
    assert_eq!(error("hanging"), "no complete answer within 1s; raise scrape_timeout if the target needs longer");
    assert_eq!(error("many"), "cannot take more than 1000 samples (`sample_limit`)");
    let come = |job: &&str| bench.rows().contains_key(&((*job).to_owned(), "scrape_samples_scraped{}".to_owned()));
    wait("all arrived", || ["torn", "bad", "many"].iter().all(come)).await;
    let rows = bench.rows();
    let scraped = |job: &str| f64::from_bits(rows[&(job.to_owned(), "scrape_samples_scraped{}".to_owned())][0].value);
    assert_eq!(["torn", "bad", "many"].map(scraped), [0.0, 20_000.0, 20_000.0], "a refused page is counted, one that broke off is not");
}

#[tokio::test]
async fn a_page_in_pieces_is_looked_through_unless_it_is_large() {
    let with_defect = |series: u64| [&b"# TYPE c counter\n# TYPE c counter\nc 1\n"[..], &wide(series, 1)].concat();
    let (page, large) = (with_defect(20_000), with_defect(80_000));
    assert!(page.len() < 4 << 20 && large.len() > 4 << 20);
    let looked_through = Server::new(move |_, _| Answer::Bytes(response("200 OK", &page))).await;
    let not = Server::new(move |_, _| Answer::Bytes(response("200 OK", &large))).await;
    for (server, expect) in [(&looked_through, 1), (&not, 0)] {
        let bench = Bench::new(configuration(&job("wide", &server.address, SLOWER)));
        wait("a scrape", || bench.target("wide").health != Health::Unknown).await;
        assert_eq!((bench.target("wide").health, bench.target("wide").last_error), (Health::Up, None));
        assert_eq!(bench.telemetry.defects_tolerated.with_label_values(&["type_twice"]).get(), expect);
    }
}

#[tokio::test]
async fn strict_looks_through_a_page_of_any_size() {
    let page = [&wide(20_000, 1)[..], b"# TYPE c counter\n# TYPE c counter\nc 1\n"].concat();
    let server = Server::new(move |_, _| Answer::Bytes(response("200 OK\r\nContent-Type: text/plain", &page))).await;
    let bench = Bench::new(configuration(&job("wide", &server.address, &format!("{SLOWER}, \"strict\": true"))));
    wait("it was refused", || bench.target("wide").health == Health::Down).await;
    let error = bench.target("wide").last_error.unwrap_or_default();
    assert!(error.starts_with("cannot take the page under `strict`: line 20002, column 1"), "{error}");
}
