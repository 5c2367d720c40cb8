use super::*;

fn frame(target: u64, part: u16, kind: FrameKind, slot_ms: i64, bytes: usize) -> Frame {
    Frame { target: TargetId(target), part, kind, samples: 10, slot_ms, bytes: vec![0; bytes].into() }
}

fn queue(capacity: usize) -> (Queue, Telemetry) {
    let telemetry = Telemetry::new(&prometheus::Registry::new()).expect("a registry of its own");
    (Queue::new(capacity, telemetry.clone()), telemetry)
}

fn waiting(queue: &Queue) -> Vec<(u64, u16, i64)> {
    queue.state().frames.iter().map(|(_, f)| (f.target.0, f.part, f.slot_ms)).collect()
}

fn balanced(telemetry: &Telemetry, published: u64) {
    let dropped: u64 = ["buffer_full", "no_base", "too_large", "stopped", "stopped_unknown"]
        .iter()
        .map(|reason| telemetry.dropped_samples.with_label_values(&["publish", reason]).get())
        .sum();
    let queued = telemetry.queue_samples.get().unsigned_abs();
    assert_eq!(telemetry.scraped_samples.get(), published + dropped + queued);
}

#[test]
fn the_oldest_never_sent_gives_way() {
    use FrameKind::{Delta, Key};
    let (queue, telemetry) = queue(400);
    queue.push([frame(1, 0, Key, 1, 100)]);
    queue.push([frame(2, 0, Key, 1, 100)]);
    let flying = queue.take(|f| f.target.0 == 1);
    queue.push([frame(1, 0, Delta, 2, 100)]);
    queue.push([frame(2, 0, Delta, 2, 100)]);
    queue.push([frame(3, 0, Key, 3, 50)]);
    // Target 2's key was the oldest that waited; its delta hung on it.
    assert_eq!(waiting(&queue), [(1, 0, 2), (3, 0, 3)]);
    assert_eq!(queue.take_tally(), Tally::from([((TargetId(2), Dropped::BufferFull), Loss { samples: 20, frames: 2, slots: (1, 2) })]));
    queue.landed(&flying);
    balanced(&telemetry, 10);
}

#[test]
fn what_hangs_on_a_dropped_base_is_refused_until_the_next_key() {
    use FrameKind::{Delta, Key, Patch};
    let (queue, telemetry) = queue(200);
    queue.push([frame(1, 0, Key, 1, 150)]);
    queue.push([frame(2, 0, Key, 1, 100)]);
    assert!(queue.is_broken(TargetId(1), 1));
    assert!(!queue.is_broken(TargetId(2), 1));
    queue.push([frame(1, 0, Delta, 2, 10)]);
    queue.push([frame(1, 0, Patch, 3, 10)]);
    assert_eq!(waiting(&queue), [(2, 0, 1)]);
    queue.push([frame(1, 0, Key, 4, 10)]);
    queue.push([frame(1, 0, Delta, 5, 10)]);
    assert_eq!(waiting(&queue), [(2, 0, 1), (1, 0, 4), (1, 0, 5)]);
    assert!(!queue.is_broken(TargetId(1), 1));
    balanced(&telemetry, 0);
}

#[test]
fn a_later_key_in_the_queue_saves_what_hangs_on_it() {
    use FrameKind::{Delta, Key};
    let (queue, _) = queue(100);
    for (slot, kind) in [(1, Key), (2, Delta), (3, Key), (4, Delta)] {
        queue.push([frame(1, 0, kind, slot, 25)]);
    }
    queue.push([frame(2, 0, Key, 5, 25)]);
    assert_eq!(waiting(&queue), [(1, 0, 3), (1, 0, 4), (2, 0, 5)]);
    assert!(!queue.is_broken(TargetId(1), 1));
}

#[test]
fn a_scrape_is_dropped_with_all_its_parts() {
    use FrameKind::{Delta, Key};
    let (queue, telemetry) = queue(100);
    queue.push([frame(1, 0, Key, 1, 20), frame(1, 1, Key, 1, 20)]);
    let flying = queue.take(|_| true);
    queue.landed(&flying);
    queue.push([frame(1, 0, Delta, 2, 20), frame(1, 1, Key, 2, 20)]);
    queue.push([frame(1, 0, Delta, 3, 20), frame(1, 1, Delta, 3, 20)]);
    queue.push([frame(1, 0, Delta, 4, 20), frame(1, 1, Key, 4, 20)]);
    // Slot 2 went for space, with it the base of part 1, so slot 3 as a whole; slot 4 stands on its own.
    assert_eq!(waiting(&queue), [(1, 0, 4), (1, 1, 4)]);
    assert!(!queue.is_broken(TargetId(1), 2));
    balanced(&telemetry, 20);
}

#[test]
fn frames_given_up_in_flight_break_their_dependents() {
    use FrameKind::{Delta, Key};
    let (queue, telemetry) = queue(1000);
    queue.push([frame(1, 0, Key, 1, 20)]);
    let flying = queue.take(|_| true);
    queue.push([frame(1, 0, Delta, 2, 20)]);
    queue.give_up_with_dependents(&flying, Dropped::TooLarge);
    assert_eq!(waiting(&queue), []);
    assert!(queue.is_broken(TargetId(1), 1));
    assert_eq!(queue.depth().bytes, 0);
    balanced(&telemetry, 0);
}

#[test]
fn frames_put_back_keep_their_order() {
    use FrameKind::Key;
    let (queue, telemetry) = queue(1000);
    for target in 1..=3 {
        queue.push([frame(target, 0, Key, 1, 20)]);
    }
    let flying = queue.take(|f| f.target.0 < 3);
    queue.put_back(flying);
    assert_eq!(waiting(&queue), [(1, 0, 1), (2, 0, 1), (3, 0, 1)]);
    balanced(&telemetry, 0);
}
