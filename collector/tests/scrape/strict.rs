//! `strict`: what is tolerated otherwise fails the scrape, with its place.

use collector::scrape::Health;

use crate::bench::*;

const TOLERATED: &str = "# TYPE a counter\na_total{b=\"c\",} 1\na_total{b=\"d\"} -1\n# EOF\n";
const OPEN_METRICS: &str = "200 OK\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8";

#[tokio::test]
async fn strict_refuses_what_is_tolerated_otherwise() {
    let tolerated = Server::new(|_, _| Answer::Bytes(response(OPEN_METRICS, TOLERATED.as_bytes()))).await;
    let mute = Server::new(|_, _| Answer::Bytes(response("200 OK", b"a 1\n"))).await;
    let good = Server::new(|_, _| Answer::Bytes(response(OPEN_METRICS, b"a 1\n# EOF\n"))).await;
    let strict = ", \"strict\": true";
    let jobs = [
        job("tolerant", &tolerated.address, ""),
        job("strict", &tolerated.address, strict),
        job("mute", &mute.address, strict),
        job("good", &good.address, strict),
    ];
    let bench = Bench::new(configuration(&jobs.join(",")));
    wait("every target was scraped", || bench.collector.targets().iter().all(|target| target.health != Health::Unknown)).await;
    let health = |job: &str| (bench.target(job).health, bench.target(job).last_error);
    assert_eq!(health("tolerant"), (Health::Up, None));
    assert_eq!(health("good"), (Health::Up, None));
    let near = r#"cannot take the page under `strict`: line 2, column 14, at ",} 1": no comma follows the last label (trailing_comma)"#;
    assert_eq!(health("strict"), (Health::Down, Some(near.to_owned())));
    let mute = "cannot take the page under `strict`: an answer says which of the formats it is in (content_type)";
    assert_eq!(health("mute"), (Health::Down, Some(mute.to_owned())));
    assert!(bench.failed("strict") >= 2);
    let arrived = |job: &str| bench.rows().get(&(job.to_owned(), "up{}".to_owned())).is_some_and(|rows| rows.len() >= 3);
    wait("more scrapes", || arrived("tolerant") && arrived("strict")).await;
    let rows = bench.rows();
    let value = |job: &str, series: &str| rows.get(&(job.to_owned(), series.to_owned())).map(|rows| f64::from_bits(rows[0].value));
    assert_eq!(value("strict", "up{}"), Some(0.0));
    assert_eq!(value("strict", "scrape_samples_scraped{}"), Some(0.0));
    assert_eq!(value("strict", "a_total{b=c}"), None);
    assert_eq!((value("tolerant", "up{}"), value("tolerant", "a_total{b=d}")), (Some(1.0), Some(-1.0)));
    let counted = |defect: &str| bench.telemetry.defects_tolerated.with_label_values(&[defect]).get();
    assert_eq!((counted("trailing_comma"), counted("counter_value")), (1, 1), "the first page is looked through, steady ones are not");
}
