use super::*;
use crate::corpus;

#[test]
fn what_is_rendered_reads_back_as_the_rows() {
    for (name, text) in corpus::fixed() {
        let page = Page::new(&name, &text, 7).expect("a page");
        let mut out = String::new();
        for round in [0, 1, 9, 40] {
            page.render(round, &mut out);
            let read: Vec<Row> = out
                .lines()
                .filter_map(|line| read_line(line).expect("a line"))
                .map(|line| Row {
                    series: read_head(line.head).expect("a head"),
                    value: read_value(line.value).expect("a value"),
                    timestamp_ms: line.timestamp_ms,
                })
                .collect();
            let rows = page.rows(round).expect("rows");
            assert_eq!(read.len(), rows.len(), "{name} round {round}");
            for (a, b) in read.iter().zip(&rows) {
                assert_eq!((&a.series, a.value.to_bits(), a.timestamp_ms), (&b.series, b.value.to_bits(), b.timestamp_ms), "{name}");
            }
        }
    }
}

#[test]
fn counts_are_those_of_the_corpus() {
    for (name, text) in corpus::fixed() {
        let page = Page::new(&name, &text, 7).expect("a page");
        if let Some(samples) = corpus::published_count(&name) {
            assert_eq!(page.len(), samples, "{name}");
        }
    }
}

#[test]
fn a_head_with_escapes_is_read() {
    let line = read_line(r#"a_total{p="x\\y\"}",q="l\n",} 1.5e+03 1700000000000"#).expect("a line").expect("a sample");
    let series = read_head(line.head).expect("a head");
    assert_eq!(series.labels["p"], "x\\y\"}");
    assert_eq!(series.labels["q"], "l\n");
    assert_eq!((line.value, line.timestamp_ms), ("1.5e+03", Some(1_700_000_000_000)));
}
