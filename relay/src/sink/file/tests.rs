//! What a sink promises of its file: nothing doubled or lost, whatever stops it; only whole files under their names.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::sink::tests;

/// Batches of these texts; each call is a message of its own.
fn batch(texts: &[&str], framing: crate::encode::Framing) -> Batch {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    Batch { key: format!("p:1:{}/0/abc", NEXT.fetch_add(1, Ordering::SeqCst)), ..tests::batch(texts, framing) }
}

fn lines(texts: &[&str]) -> Batch {
    batch(texts, crate::encode::Framing { open: b"", separator: b"\n", close: b"\n", form: crate::encode::Form::Whole })
}

fn built(path: &Path) -> Lines {
    sink(&json!({"path": path}), &Files::default()).expect("options it takes")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).expect("readable")
}

#[tokio::test]
async fn appends_whole_batches() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out.ndjson");
    let mut sink = built(&path);
    assert_eq!(sink.send(&lines(&["a", "b", "c"]), 0..3).await, Answer::Delivered);
    assert_eq!(sink.send(&lines(&["d", "e"]), 1..2).await, Answer::Delivered);
    assert_eq!(read(&path), "a\nb\nc\ne\n");
}

#[tokio::test]
async fn a_body_without_a_line_end_gets_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out.json");
    let mut sink = built(&path);
    let list = crate::encode::Framing { open: b"[", separator: b",", close: b"]", form: crate::encode::Form::Whole };
    assert_eq!(sink.send(&batch(&["1", "2"], list), 0..2).await, Answer::Delivered);
    assert_eq!(read(&path), "[1,2]\n");
}

#[tokio::test]
async fn a_torn_tail_is_cut_at_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let long = "x".repeat(3 * 64 * 1024);
    for (before, after) in [("a\nb\ntor", "a\nb\n"), ("tor", ""), ("a\n", "a\n"), (&format!("a\n{long}"), "a\n"), (&long, "")] {
        let path = folder.path().join("out.ndjson");
        std::fs::write(&path, before).expect("written");
        assert_eq!(built(&path).send(&lines(&["new"]), 0..1).await, Answer::Delivered);
        assert_eq!(read(&path), format!("{after}new\n"));
    }
}

#[tokio::test]
async fn one_process_writes_a_file_for_several_sinks() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out.ndjson");
    let files = Files::default();
    let [mut live, mut replay] = [(); 2].map(|()| sink(&json!({"path": path}), &files).expect("options it takes"));
    for text in ["a", "b"] {
        assert_eq!(live.send(&lines(&[text]), 0..1).await, Answer::Delivered);
        assert_eq!(replay.send(&lines(&[text]), 0..1).await, Answer::Delivered);
    }
    assert_eq!(read(&path), "a\na\nb\nb\n");
    drop((live, replay));
    assert_eq!(built(&path).send(&lines(&["d"]), 0..1).await, Answer::Delivered, "the lock goes with the last of them");
}

#[tokio::test]
async fn a_moved_file_is_begun_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out.ndjson");
    let mut sink = built(&path);
    assert_eq!(sink.send(&lines(&["a"]), 0..1).await, Answer::Delivered);
    std::fs::rename(&path, folder.path().join("old")).expect("renamed");
    assert_eq!(sink.send(&lines(&["b"]), 0..1).await, Answer::Delivered);
    assert_eq!(read(&path), "b\n");
}

#[tokio::test]
async fn what_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let answer = built(&folder.path().join("missing/out")).send(&lines(&["a"]), 0..1).await;
    assert!(matches!(&answer, Answer::Fatal { reason } if reason.starts_with("cannot open '")), "{answer:?}");
    let path = folder.path().join("out");
    let mut first = built(&path);
    assert_eq!(first.send(&lines(&["a"]), 0..1).await, Answer::Delivered);
    let answer = built(&path).send(&lines(&["b"]), 0..1).await;
    assert!(matches!(&answer, Answer::Fatal { reason } if reason.ends_with("another process writes to it")), "{answer:?}");
    let answer = built(Path::new("/dev/full")).send(&lines(&["a"]), 0..1).await;
    assert!(matches!(&answer, Answer::Retry { reason, .. } if reason.starts_with("cannot write to '/dev/full'")), "{answer:?}");
    assert_eq!(built(Path::new("/dev/null")).send(&lines(&["a"]), 0..1).await, Answer::Delivered);
}

#[tokio::test]
async fn a_batch_that_comes_again_is_not_written_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out.ndjson");
    let (a, b) = (lines(&["a", "b"]), lines(&["c"]));
    for _ in 0..3 {
        let mut sink = built(&path);
        for batch in [&a, &b] {
            assert_eq!(sink.send(batch, 0..batch.items.len()).await, Answer::Delivered);
        }
    }
    assert_eq!(read(&path), "a\nb\nc\n");
    // Written, but its position was not: it is cut off and comes again.
    std::fs::write(&path, "a\nb\nc\nd\n").expect("written");
    assert_eq!(built(&path).send(&lines(&["d"]), 0..1).await, Answer::Delivered);
    assert_eq!(read(&path), "a\nb\nc\nd\n");
}

#[tokio::test]
async fn another_file_under_the_name_is_not_cut() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out.ndjson");
    assert_eq!(built(&path).send(&lines(&["a"]), 0..1).await, Answer::Delivered);
    for other in ["b\nc\n", "a\nc\n"] {
        std::fs::write(folder.path().join("new"), other).expect("written");
        std::fs::rename(folder.path().join("new"), &path).expect("renamed");
        assert_eq!(built(&path).send(&lines(&["d"]), 0..1).await, Answer::Delivered);
        assert_eq!(read(&path), format!("{other}d\n"));
    }
}

fn rotating(folder: &Path, more: &Value) -> Plan {
    let mut options = json!({"path": folder.join("out.ndjson"), "fsync": false});
    options.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
    plan(config::options(&options).expect("options")).expect("a plan")
}

/// The finished files by number, decoded.
fn finished(plan: &Plan) -> BTreeMap<u64, String> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(&plan.names.folder).expect("a folder") {
        let name = entry.expect("an entry").file_name().into_string().expect("text");
        let Some(number) = plan.names.number(&name) else { continue };
        let bytes = std::fs::read(plan.names.folder.join(&name)).expect("readable");
        let mut text = String::new();
        match Compression::of(&name) {
            Compression::None => text = String::from_utf8(bytes).expect("text"),
            Compression::Gzip => drop(flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_string(&mut text).expect("gzip")),
            Compression::Zstd => text = String::from_utf8(zstd::decode_all(&bytes[..]).expect("zstd")).expect("text"),
        }
        assert!(files.insert(number, text).is_none(), "{name}: the number twice");
    }
    files
}

fn hidden(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name().into_string().expect("text"));
    names.filter(|name| name.ends_with(".part")).collect()
}

const T: i64 = 1_767_323_045_000;

#[test]
fn files_are_finished_by_size_and_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let plan = rotating(folder.path(), &json!({"rotate": {"max_bytes": "64KiB", "every": "1h"}, "mode": "0600"}));
    let mut writer = Writer::new(plan.clone());
    let line = |letter: char| format!("{}\n", String::from(letter).repeat(40_000 - 1));
    for (i, (letter, at)) in [('a', T), ('b', T), ('c', T), ('d', T + 3_600_000), ('e', T + 3_600_000 + 300_000)].into_iter().enumerate() {
        writer.append(i as u128 + 1, line(letter).into_bytes(), at).expect("written");
    }
    assert_eq!(finished(&plan).into_values().collect::<Vec<_>>(), [line('a'), line('b'), line('c'), line('d')]);
    writer.tick(T + 3_600_000 + 400_000);
    assert_eq!(finished(&plan).len(), 4, "its hour is not over");
    writer.tick(T + 7_200_000);
    assert_eq!((finished(&plan).len(), hidden(folder.path())), (5, Vec::new()));
    writer.append(9, line('f').into_bytes(), T).expect("written");
    assert_eq!(hidden(folder.path()), [".out-20260102T030000Z-000006.ndjson.part"]);
    writer.close(T).expect("finished");
    let path = folder.path().join("out-20260102T030000Z-000006.ndjson");
    assert_eq!(std::fs::metadata(path).expect("there").permissions().mode() & 0o777, 0o600);
}

#[test]
fn what_is_too_much_or_too_old_goes() {
    let folder = tempfile::tempdir().expect("a folder");
    let keep = folder.path().join("out-20260102T030405Z-x.ndjson");
    std::fs::write(&keep, "not ours").expect("written");
    let plan = rotating(folder.path(), &json!({"rotate": {"every": "1s"}, "retain": {"max_files": 3, "max_age": "1h"}}));
    let mut writer = Writer::new(plan.clone());
    let now = now_ms();
    for i in 0..10 {
        writer.append(i as u128 + 1, format!("{i}\n").into_bytes(), now + i * 1000).expect("written");
    }
    assert_eq!(finished(&plan).into_keys().collect::<Vec<_>>(), [7, 8, 9]);
    writer.tick(now + 3_700_000);
    assert_eq!(finished(&plan).into_keys().collect::<Vec<_>>(), [10; 0]);
    writer.append(11, b"z\n".to_vec(), now + 3_700_000).expect("written");
    writer.close(now).expect("finished");
    assert_eq!(finished(&plan).into_keys().collect::<Vec<_>>(), [11], "numbers go on");
    assert!(keep.exists());
}

#[test]
fn a_file_of_somebody_else_is_not_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let plan = rotating(folder.path(), &json!({"rotate": {"every": "1h"}}));
    let mut writer = Writer::new(plan.clone());
    writer.append(1, b"a\n".to_vec(), T).expect("written");
    std::fs::write(folder.path().join(plan.names.finished(1, 1_767_322_800_000, "")), "x\n").expect("written");
    writer.close(T).expect("finished");
    assert_eq!(finished(&plan), BTreeMap::from([(1, "x\n".to_owned()), (2, "a\n".to_owned())]));
}

#[test]
fn other_options_finish_what_was_begun() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut wanted = String::new();
    for (i, compression) in ["none", "zstd", "gzip", "gzip", "none"].into_iter().enumerate() {
        let plan = rotating(folder.path(), &json!({"rotate": {"every": "1h"}, "compression": compression}));
        // Each is killed with its file open.
        Writer::new(plan.clone()).append(i as u128 + 1, format!("{i}\n").into_bytes(), T).expect("written");
        wanted.push_str(&format!("{i}\n"));
    }
    let plan = rotating(folder.path(), &json!({"rotate": {"every": "1h"}}));
    let mut writer = Writer::new(plan.clone());
    writer.append(5, b"4\n".to_vec(), T).expect("there already");
    writer.close(T).expect("finished");
    assert_eq!(finished(&plan).into_values().collect::<String>(), wanted);
    let mut writer = Writer::new(plan);
    writer.append(7, b"7\n".to_vec(), T).expect("written");
    assert!(matches!(writer.adopt(&rotating(folder.path(), &json!({})), true, T), Err(Error::Differs { .. })));
}

#[test]
fn without_its_position_nothing_delivered_is_lost() {
    let folder = tempfile::tempdir().expect("a folder");
    for compression in ["none", "zstd", "gzip"] {
        let plan = rotating(folder.path(), &json!({"rotate": {"every": "1h"}, "compression": compression}));
        let before = finished(&plan).len();
        let mut writer = Writer::new(plan.clone());
        writer.append(1, b"a\n".to_vec(), T).expect("written");
        drop(writer);
        std::fs::remove_file(folder.path().join(".out.ndjson.position")).expect("there");
        let part = folder.path().join(&hidden(folder.path())[0]);
        let mut bytes = std::fs::read(&part).expect("readable");
        bytes.extend_from_slice(&bytes.clone()[..bytes.len() - 1]);
        std::fs::write(&part, bytes).expect("written");
        let mut writer = Writer::new(plan.clone());
        writer.append(2, b"b\n".to_vec(), T).expect("written");
        writer.close(T).expect("finished");
        assert_eq!(finished(&plan).into_values().skip(before).collect::<String>(), "a\nb\n", "{compression}");
    }
}

/// What happens between two batches.
#[derive(Debug, Clone, Copy)]
enum Blow {
    Nothing,
    /// Killed, with so many bytes of rubbish behind the open file and behind the position.
    Kill(usize, usize),
    /// Killed after the batch was written, before its position was.
    KillBefore,
    Stop,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Finished files one after the other are what was delivered, in order, whatever happened in between.
    #[test]
    fn finished_files_are_what_was_delivered(
        compression in prop::sample::select(vec!["none", "gzip", "zstd"]),
        steps in prop::collection::vec((0_usize..3, 1_usize..60_000, 0_i64..3_000_000, prop_oneof![
            4 => Just(Blow::Nothing),
            2 => (0_usize..50, 0_usize..50).prop_map(|(a, b)| Blow::Kill(a, b)),
            1 => Just(Blow::KillBefore),
            1 => Just(Blow::Stop),
        ]), 1..25),
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let plan = rotating(folder.path(), &json!({"rotate": {"max_bytes": "64KiB", "every": "1h"}, "compression": compression}));
        let position = folder.path().join(".out.ndjson.position");
        let mut writer = Writer::new(plan.clone());
        let (mut wanted, mut now) = (Vec::<String>::new(), T);
        for (i, (back, length, later, blow)) in steps.into_iter().enumerate() {
            now += later;
            // The checkpoint is that far behind: these come again.
            for (old, body) in wanted.iter().enumerate().skip(wanted.len().saturating_sub(back)) {
                writer.append(old as u128 + 1, body.clone().into_bytes(), now).expect("there already");
            }
            let body: String = (0..length / 40).map(|k| format!("{i} {k} {}\n", k * 7919 % 1000)).collect::<String>() + "end\n";
            let before = std::fs::read(&position).unwrap_or_default();
            writer.append(wanted.len() as u128 + 1, body.clone().into_bytes(), now).expect("written");
            wanted.push(body.clone());
            match blow {
                Blow::Nothing => {}
                Blow::Stop => writer.close(now).expect("closed"),
                Blow::Kill(behind, torn) => {
                    writer = Writer::new(plan.clone());
                    let append = |path: &Path, bytes: usize| {
                        let mut file = std::fs::File::options().append(true).open(path).expect("there");
                        std::io::Write::write_all(&mut file, &vec![b'a'; bytes]).expect("written");
                    };
                    hidden(folder.path()).iter().for_each(|part| append(&folder.path().join(part), behind));
                    append(&position, torn);
                }
                Blow::KillBefore => {
                    writer = Writer::new(plan.clone());
                    let after = std::fs::read(&position).expect("there");
                    let kept = after.strip_suffix(b"\n").and_then(|line| line.iter().rposition(|byte| *byte == b'\n')).map_or(0, |at| at + 1);
                    // A line that was torn before is not there any more.
                    let whole = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                    prop_assert!(kept >= whole);
                    std::fs::write(&position, &after[..kept]).expect("written");
                    writer.append(wanted.len() as u128, body.into_bytes(), now).expect("written again");
                }
            }
        }
        writer.append(1, wanted[0].clone().into_bytes(), now).expect("there already");
        writer.close(now).expect("closed");
        let files = finished(&plan);
        prop_assert_eq!(files.values().cloned().collect::<String>(), wanted.concat());
        prop_assert!(hidden(folder.path()).is_empty());
        prop_assert!(files.values().all(|text| text.ends_with('\n')));
    }
}

#[test]
fn mistakes_name_their_option() {
    for (options, path, message) in [
        (json!({"path": ""}), "path", "'' names no file"),
        (json!({"path": "/d/%Y.ndjson"}), "path", "'/d/%Y.ndjson' has a time in its name, which needs 'rotate'"),
        (
            json!({"path": "/%Y/a", "rotate": {"every": "1h"}}),
            "path",
            "'/%Y/a' has a time in its folder: only the file's name can have one",
        ),
        (
            json!({"path": "/d/%j", "rotate": {"every": "1h"}}),
            "path",
            "cannot read the name '%j': '%j' is no part of a time: they are %Y %m %d %H %M %S, and %F for %Y-%m-%d; %% is a percent sign",
        ),
        (json!({"path": "/d/a", "compression": "zstd"}), "compression", "compression needs 'rotate': only a finished file can be read"),
        (json!({"path": "/d/a", "retain": {"max_files": 1}}), "retain", "'retain' is about finished files: it needs 'rotate'"),
        (json!({"path": "/d/a", "rotate": {}}), "rotate", "one of 'max_bytes' and 'every' must be given, or both"),
        (json!({"path": "/d/a", "rotate": {"max_bytes": "1KiB"}}), "rotate.max_bytes", "1KiB is below the smallest file, 64KiB"),
        (
            json!({"path": "/d/a", "rotate": {"every": "7h"}}),
            "rotate.every",
            "a day is no multiple of 7h: write 5m, 15m, 1h, 6h, 1d or the like, at least 1s",
        ),
        (json!({"path": "/d/a", "rotate": {"every": "1h"}, "retain": {"max_files": 0}}), "retain.max_files", "at least one file must stay"),
        (json!({"path": "/d/a", "mode": "640x"}), "mode", "'640x' is no permission: three octal digits in quotes, like \"0640\""),
        (
            json!({"path": "/d/a", "mode": "0444"}),
            "mode",
            "with '0444' Strata itself could not read and write the file: its owner's digit is 6 or 7",
        ),
    ] {
        let error = sink(&options, &Files::default()).err().expect("refused");
        assert_eq!((error.path.as_str(), error.message.as_str()), (path, message));
    }
}
