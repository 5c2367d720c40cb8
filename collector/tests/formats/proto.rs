//! Protobuf pages, written by hand.

pub(crate) fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

pub(crate) fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63) as u64
}

pub(crate) fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

pub(crate) fn signed(field: u64, value: i64) -> Vec<u8> {
    number(field, zigzag(value))
}

pub(crate) fn double(field: u64, value: f64) -> Vec<u8> {
    [varint(field << 3 | 1), value.to_le_bytes().to_vec()].concat()
}

pub(crate) fn message(field: u64, body: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(body.len() as u64), body.to_vec()].concat()
}

pub(crate) fn label(name: &str, value: &str) -> Vec<u8> {
    message(1, &[message(1, name.as_bytes()), message(2, value.as_bytes())].concat())
}

/// A delimited family of metrics.
pub(crate) fn family(name: &str, kind: u64, metrics: &[Vec<u8>]) -> Vec<u8> {
    let metrics: Vec<u8> = metrics.iter().flat_map(|metric| message(4, metric)).collect();
    let body = [message(1, name.as_bytes()), message(2, b"Help."), number(3, kind), metrics].concat();
    [varint(body.len() as u64), body].concat()
}

pub(crate) fn time(field: u64, seconds: i64, nanos: u64) -> Vec<u8> {
    message(field, &[number(1, seconds as u64), number(2, nanos)].concat())
}

pub(crate) fn exemplar(field: u64, labels: &[(&str, &str)], value: f64, at: &[u8]) -> Vec<u8> {
    let labels: Vec<u8> = labels.iter().flat_map(|(name, value)| label(name, value)).collect();
    message(field, &[labels, double(2, value), at.to_vec()].concat())
}

pub(crate) fn bucket(bound: f64, count: u64, exemplar: &[u8]) -> Vec<u8> {
    message(3, &[number(1, count), double(2, bound), exemplar.to_vec()].concat())
}

/// `field`: 9 on the negative side, 12 on the positive one.
pub(crate) fn span(field: u64, offset: i64, length: u64) -> Vec<u8> {
    message(field, &[signed(1, offset), number(2, length)].concat())
}

pub(crate) fn deltas(field: u64, deltas: &[i64]) -> Vec<u8> {
    message(field, &deltas.iter().flat_map(|delta| varint(zigzag(*delta))).collect::<Vec<u8>>())
}

pub(crate) fn doubles(field: u64, values: &[f64]) -> Vec<u8> {
    message(field, &values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
}

pub(crate) fn counter(value: f64, more: &[u8]) -> Vec<u8> {
    message(3, &[double(1, value), more.to_vec()].concat())
}

pub(crate) fn gauge(value: f64) -> Vec<u8> {
    message(2, &double(1, value))
}

pub(crate) fn histogram(fields: &[Vec<u8>]) -> Vec<u8> {
    message(7, &fields.concat())
}
