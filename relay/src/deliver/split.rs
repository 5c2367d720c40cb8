//! How a part is taken apart before anything of it is sent: by route, and by series over the lanes.
//!
//! *In*: a batch, what one request may carry, how many lanes there are. *Out*: queues of ranges; all samples of a series are in one queue, in
//! their order. *Bound*: one range per request. *When full*: does not apply.
//!
//! The same batch is always taken apart in the same way, so that the same items come under the same keys after a restart.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;
use xxhash_rust::xxh3::Xxh3;

use super::lanes::FILL;
use crate::sink::{Batch, Limits};
use crate::template::Route;

/// Some items: a range of [`Split::order`], and the part of the key that names it; empty: by its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    pub from: usize,
    pub to: usize,
    pub key: String,
}

/// How a part is taken apart before anything is sent.
pub(super) struct Split {
    /// Items, those of one queue together; there they keep their order, and so do the samples of a series.
    pub order: Vec<usize>,
    /// Ranges that go one after the other, the first on top; queues may go at the same time.
    pub queues: VecDeque<Vec<Range>>,
    /// Items without a route, and why.
    pub unrouted: Vec<(usize, Arc<str>)>,
}

impl Range {
    /// Both halves, the first on top.
    pub fn halves(self) -> [Self; 2] {
        let middle = self.from + (self.to - self.from) / 2;
        [self.part(middle, self.to), self.part(self.from, middle)]
    }

    /// A range inside it.
    fn part(&self, from: usize, to: usize) -> Self {
        let key = match self.key.split_once('.') {
            _ if self.key.is_empty() => String::new(),
            Some((name, range)) => {
                let start = range.split('-').next().and_then(|start| start.parse::<usize>().ok()).unwrap_or(0);
                format!("{name}.{}-{}", start + from - self.from, start + to - self.from)
            }
            None => format!("{}.{}-{}", self.key, from - self.from, to - self.from),
        };
        Self { from, to, key }
    }
}

impl Split {
    /// Takes a batch apart. `apart`: its routes must not share a request.
    pub fn of(batch: &Batch, apart: bool, request: Limits, lanes: usize) -> Self {
        let mut order: Vec<usize> = (0..batch.items.len()).collect();
        let (groups, unrouted) = if apart && !batch.routes.is_empty() {
            routes(batch, &mut order)
        } else {
            (vec![Range { from: 0, to: order.len(), key: String::new() }], Vec::new())
        };
        let mut queues = VecDeque::new();
        for group in groups {
            spread(batch, group, request, lanes, &mut order, &mut queues);
        }
        Self { order, queues, unrouted }
    }
}

/// Puts items of one route together, each route a range; gives those without one apart.
fn routes(batch: &Batch, order: &mut Vec<usize>) -> (Vec<Range>, Vec<(usize, Arc<str>)>) {
    let why: Vec<Option<Arc<str>>> = batch
        .routes
        .iter()
        .map(|route| route.iter().find_map(|text| text.as_ref().err()).map(|error| Arc::from(error.to_string())))
        .collect();
    let reason = |item: usize| why.get(batch.items[item].route as usize).and_then(Clone::clone);
    let unrouted: Vec<_> = order.iter().filter_map(|item| reason(*item).map(|why| (*item, why))).collect();
    order.retain(|item| reason(*item).is_none());
    // Stable: the samples of a series stay in order.
    order.sort_by_key(|item| batch.items[*item].route);
    let (mut ranges, mut from) = (Vec::new(), 0);
    for group in order.chunk_by(|a, b| batch.items[*a].route == batch.items[*b].route) {
        let to = from + group.len();
        let key = batch.route(group[0]).map_or(0, |route| name(route));
        ranges.push(Range { from, to, key: format!("r{key:016x}") });
        from = to;
    }
    (ranges, unrouted)
}

/// Spreads what is more than one request over lanes by series; what fits one stays one.
fn spread(batch: &Batch, group: Range, request: Limits, lanes: usize, order: &mut [usize], queues: &mut VecDeque<Vec<Range>>) {
    let items = &order[group.from..group.to];
    let bytes: usize = items.iter().map(|item| batch.item_bytes(*item)).sum();
    if lanes == 1 || (items.len() <= request.items_max && bytes <= request.bytes_max) {
        return queues.push_back(vec![group]);
    }
    let requests = |size: usize, most: usize| (size.saturating_mul(FILL.1)).div_ceil(most.saturating_mul(FILL.0).max(1));
    let (by_items, by_bytes) = (requests(items.len(), request.items_max), requests(bytes, request.bytes_max));
    let weight = |item: usize| if by_items >= by_bytes { 1 } else { batch.item_bytes(item) };
    let mut from = group.from;
    for (lane, share) in shares(batch, items, by_items.max(by_bytes).min(lanes), weight).into_iter().enumerate() {
        let whole = Range { from, to: from + share.len(), key: format!("{}l{lane}", group.key) };
        order[whole.from..whole.to].copy_from_slice(&share);
        from = whole.to;
        if !share.is_empty() {
            queues.push_back(cut(batch, &share, whole, request));
        }
    }
}

/// The items of each lane, in their order, all of a series in one: as many neighbours to each as make equal shares. What stands together on a page
/// has most of its text in common, and a request with all of it is compressed to a third less than one with series from everywhere.
fn shares(batch: &Batch, items: &[usize], lanes: usize, weight: impl Fn(usize) -> usize) -> Vec<Vec<usize>> {
    let section = |item: usize| batch.items[item].section;
    let (places, mut weights): (Vec<usize>, Vec<usize>) = match items {
        // One slot of one target has one sample of each series.
        [first, ..] if items.iter().all(|item| section(*item) == section(*first)) => {
            ((0..items.len()).collect(), items.iter().map(|item| weight(*item)).collect())
        }
        _ => {
            let (mut places, mut weights) = (HashMap::with_capacity(items.len()), Vec::new());
            let place = |item: &usize| {
                let place = *places.entry(batch.items[*item].series).or_insert(weights.len());
                if place == weights.len() {
                    weights.push(0);
                }
                weights[place] += weight(*item);
                place
            };
            (items.iter().map(place).collect(), weights)
        }
    };
    let total: usize = weights.iter().sum::<usize>().max(1);
    let mut before = 0;
    for weight in &mut weights {
        let share = (before * lanes / total).min(lanes - 1);
        before += std::mem::replace(weight, share);
    }
    let mut shares = vec![Vec::new(); lanes];
    items.iter().zip(places).for_each(|(item, place)| shares[weights[place]].push(*item));
    shares
}

/// Cuts a lane's share where a request is full; the first range on top.
fn cut(batch: &Batch, share: &[usize], whole: Range, request: Limits) -> Vec<Range> {
    let (mut ranges, mut from, mut bytes) = (Vec::new(), whole.from, 0);
    for (at, item) in (whole.from..).zip(share) {
        let length = batch.item_bytes(*item);
        if at > from && (at - from >= request.items_max || bytes + length > request.bytes_max) {
            ranges.push(whole.part(from, at));
            (from, bytes) = (at, 0);
        }
        bytes += length;
    }
    if ranges.is_empty() {
        return vec![whole];
    }
    ranges.push(whole.part(from, whole.to));
    ranges.reverse();
    ranges
}

/// What names a route in a key: its texts, wherever in the batch it first comes.
fn name(route: &Route) -> u64 {
    let mut hash = Xxh3::new();
    for text in route.iter().flatten() {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hash.digest()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sink::Item;
    use crate::sink::tests::lines;
    use crate::template::RenderError;

    const ROOM: Limits = Limits { bytes_max: 1 << 20, items_max: 1000 };

    /// Items with these routes; 9: a label is missing.
    fn batch(routes: &[u32]) -> Batch {
        let texts: Vec<String> = (0..routes.len()).map(|i| i.to_string()).collect();
        let mut batch = lines(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        batch.routes = (0..10)
            .map(|route| match route {
                9 => Arc::new(vec![Err(RenderError::Missing("ns".to_owned()))].into_boxed_slice()),
                route => Arc::new(vec![Ok(format!("/{route}").into_boxed_str())].into_boxed_slice()),
            })
            .collect();
        Arc::make_mut(&mut batch.items).iter_mut().zip(routes).for_each(|(item, route)| item.route = *route);
        batch
    }

    #[test]
    fn a_group_is_named_by_its_text_and_keeps_its_order() {
        let batch = batch(&[3, 1, 9, 3, 1]);
        let Split { order, queues, unrouted } = Split::of(&batch, true, ROOM, 1);
        assert_eq!(order, [1, 4, 0, 3]);
        assert_eq!(
            unrouted.iter().map(|(item, why)| (*item, &**why)).collect::<Vec<_>>(),
            [(2, "the series has no label 'ns': give the template a default, '{{ns:…}}'")]
        );
        let [first] = &queues[0][..] else { panic!("{queues:?}") };
        assert_eq!((first.from, first.to), (0, 2));
        let share = batch.share(&order[first.from..first.to], &first.key);
        assert_eq!((&share.bytes[..], share.key.as_str()), (&b"14"[..], format!("p:1:1/0.{}/abc", first.key).as_str()));
        assert_eq!(first.key, format!("r{:016x}", name(&batch.routes[1])));
        let [second, half] = first.clone().halves();
        assert_eq!((half.key, second.key), (format!("{}.0-1", first.key), format!("{}.1-2", first.key)));
    }

    #[test]
    fn without_routes_nothing_is_taken_apart() {
        let Split { order, queues, .. } = Split::of(&batch(&[3, 1, 9]), false, ROOM, 1);
        assert_eq!((order, queues.len()), (vec![0, 1, 2], 1));
    }

    #[test]
    fn what_fits_one_request_is_one_however_many_lanes_there_are() {
        let Split { queues, .. } = Split::of(&batch(&[0; 20]), false, Limits { items_max: 20, ..ROOM }, 8);
        assert_eq!(queues, [vec![Range { from: 0, to: 20, key: String::new() }]]);
    }

    #[test]
    fn neighbours_share_a_lane() {
        let mut batch = batch(&[0; 12]);
        // Two slots of six series.
        let series = |(i, item): (usize, &mut Item)| (item.series, item.section) = (100 - i as u64 % 6, i as u32 / 6);
        Arc::make_mut(&mut batch.items).iter_mut().enumerate().for_each(series);
        let Split { order, queues, .. } = Split::of(&batch, false, Limits { items_max: 5, ..ROOM }, 3);
        assert_eq!(order, [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]);
        assert_eq!(queues.iter().map(|queue| queue[0].key.as_str()).collect::<Vec<_>>(), ["l0", "l1", "l2"]);
    }

    #[test]
    fn a_lane_with_more_than_its_share_is_cut_and_named() {
        let mut batch = batch(&[0; 12]);
        Arc::make_mut(&mut batch.items).iter_mut().enumerate().for_each(|(i, item)| (item.series, item.section) = (7, i as u32));
        let Split { queues, .. } = Split::of(&batch, false, Limits { items_max: 5, ..ROOM }, 2);
        let keys: Vec<&str> = queues[0].iter().rev().map(|range| range.key.as_str()).collect();
        assert_eq!((queues.len(), keys), (1, vec!["l0.0-5", "l0.5-10", "l0.10-12"]));
    }

    proptest! {
        #[test]
        fn every_item_is_in_one_group_under_one_key(routes in proptest::collection::vec(0u32..10, 1..40)) {
            let batch = batch(&routes);
            let Split { order, queues, unrouted } = Split::of(&batch, true, ROOM, 1);
            let mut ranges: Vec<Range> = queues.into_iter().rev().flatten().collect();
            let mut all: Vec<usize> = order.iter().copied().chain(unrouted.iter().map(|(item, _)| *item)).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..routes.len()).collect::<Vec<_>>());
            let mut keys = std::collections::HashSet::new();
            let mut next = 0;
            while let Some(range) = ranges.pop() {
                prop_assert!(keys.insert(range.key.clone()), "{}", range.key);
                let group = &order[range.from..range.to];
                prop_assert!(group.iter().all(|item| routes[*item] == routes[group[0]] && routes[*item] != 9));
                prop_assert!(group.is_sorted());
                if group.len() > 1 {
                    ranges.extend(range.halves());
                } else {
                    prop_assert_eq!(range.from, next);
                    next += 1;
                }
            }
        }

        #[test]
        fn every_series_keeps_its_order_in_one_queue_of_full_requests(series in proptest::collection::vec(0u64..9, 1..60), lanes in 1usize..5, items_max in 1usize..30) {
            let mut batch = batch(&vec![0; series.len()]);
            // A slot has each series once.
            let mut slots = HashMap::new();
            for (item, series) in Arc::make_mut(&mut batch.items).iter_mut().zip(&series) {
                let slot = slots.entry(*series).or_insert(0);
                (item.series, item.section) = (*series, *slot);
                *slot += 1;
            }
            let limits = Limits { items_max, ..ROOM };
            let Split { order, queues, .. } = Split::of(&batch, false, limits, lanes);
            let again = Split::of(&batch, false, limits, lanes);
            prop_assert_eq!((&again.order, &again.queues), (&order, &queues));
            prop_assert!(queues.len() <= lanes);
            let (mut seen, mut keys) = (Vec::new(), std::collections::HashSet::new());
            for queue in &queues {
                let items: Vec<usize> = queue.iter().rev().flat_map(|range| order[range.from..range.to].iter().copied()).collect();
                prop_assert!(items.is_sorted(), "{:?}", items);
                prop_assert!(queue.iter().all(|range| lanes == 1 || range.to - range.from <= items_max));
                prop_assert!(queue.iter().all(|range| keys.insert(range.key.clone())));
                for range in queue {
                    let of = &order[range.from..range.to];
                    let share = batch.share(of, &range.key);
                    prop_assert!(of.iter().enumerate().all(|(i, item)| share.said(i) == batch.said(*item)));
                    let known = of.iter().map(|item| (batch.items[*item].series, batch.items[*item].section));
                    prop_assert!(share.items.iter().map(|item| (item.series, item.section)).eq(known));
                }
                let here: std::collections::HashSet<u64> = items.iter().map(|item| series[*item]).collect();
                prop_assert!(seen.iter().all(|other: &std::collections::HashSet<u64>| other.is_disjoint(&here)));
                seen.push(here);
            }
            let mut all = order;
            all.sort_unstable();
            prop_assert_eq!(all, (0..series.len()).collect::<Vec<_>>());
        }
    }
}
