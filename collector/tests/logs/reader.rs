//! The reader on what the real keeper stored: order, since, tail, follow, resume, long lines, gaps.

use std::io::Write;

use crate::harness::{Keeper, Open, texts, wait_until, wait_written};
use berth_collector::logs::reader::LINE_BYTES_MAX;
use berth_collector::logs::{KeeperClient, LineStream, LogLine, Mode, ReadOptions, Reader, RunKey, Stream};

/// Writes one line and waits until it is stored, so that the next one has a later or equal time.
fn say(client: &mut KeeperClient, open: &Open, key: &RunKey, stream: Stream, text: &str) {
    let before = client.stat(Some(key.clone())).unwrap().written_bytes;
    open.write(stream, text.as_bytes());
    wait_written(client, key, before + text.len() as u64);
}

fn next_millisecond() {
    let now = berth_api::time::Timestamp::now();
    wait_until("the next millisecond", || berth_api::time::Timestamp::now() > now);
}

/// Three runs with lines on both streams by turns: `r{run} {n}`.
fn three_runs(keeper: &Keeper, lines: u32) -> Vec<String> {
    let mut client = keeper.client();
    let mut expected = Vec::new();
    for run in 1..=3 {
        let key = RunKey::new("a", run);
        let open = Open::new(&mut client, "a", run);
        for n in 0..lines {
            let stream = if n % 3 == 1 {
                Stream::Stderr
            } else {
                Stream::Stdout
            };
            say(&mut client, &open, &key, stream, &format!("r{run} {n}\n"));
            next_millisecond();
            expected.push(format!("r{run} {n}"));
        }
        if run < 3 {
            client.close(key).unwrap();
        }
    }
    expected
}

#[test]
fn gives_all_runs_and_both_streams_in_order_of_time() {
    let keeper = Keeper::start(&[]);
    let expected = three_runs(&keeper, 8);
    let lines = keeper.lines("a");
    assert_eq!(texts(&lines), expected);
    assert!(lines.is_sorted_by_key(|line| line.time_ms));
    assert_eq!(lines[1].stream, LineStream::Stderr);
    assert_eq!(lines.iter().map(|line| line.run).max(), Some(3));
}

#[test]
fn since_gives_the_lines_of_that_time_and_later() {
    let keeper = Keeper::start(&[]);
    three_runs(&keeper, 6);
    let all = keeper.lines("a");
    for (place, line) in all.iter().enumerate() {
        let options = ReadOptions {
            since_ms: line.time_ms,
            ..ReadOptions::all(Mode::Snapshot)
        };
        assert_eq!(keeper.read("a", options), all[place..], "since line {place}");
    }
    let options = ReadOptions {
        since_ms: all.last().unwrap().time_ms + 1,
        ..ReadOptions::all(Mode::Snapshot)
    };
    assert!(keeper.read("a", options).is_empty());
}

#[test]
fn tail_gives_exactly_the_last_lines_over_runs_and_streams() {
    let keeper = Keeper::start(&[]);
    three_runs(&keeper, 6);
    let all = keeper.lines("a");
    for count in 0..all.len() + 3 {
        let options = ReadOptions {
            tail_lines: Some(count as u64),
            ..ReadOptions::all(Mode::Snapshot)
        };
        let expected = &all[all.len().saturating_sub(count)..];
        assert_eq!(keeper.read("a", options), expected, "tail {count}");
        let late = ReadOptions {
            since_ms: all[14].time_ms,
            ..options
        };
        let expected = &all[all.len().saturating_sub(count).max(14)..];
        assert_eq!(keeper.read("a", late), expected, "tail {count} since line 14");
    }
}

/// Proves: since and tail find line starts also where lines cross the edges of segments.
#[test]
fn since_and_tail_hold_across_segments() {
    let keeper = Keeper::start(&["--segment-bytes", "16384"]);
    let mut client = keeper.client();
    let key = RunKey::new("a", 1);
    let open = Open::new(&mut client, "a", 1);
    for n in 0..200 {
        say(
            &mut client,
            &open,
            &key,
            Stream::Stdout,
            &format!("{n:04} {}\n", "y".repeat(701)),
        );
    }
    assert!(client.stat(Some(key)).unwrap().segments > 5);
    let all = keeper.lines("a");
    assert_eq!(all.len(), 200);
    for count in [0, 1, 20, 23, 24, 46, 199, 200] {
        let options = ReadOptions {
            tail_lines: Some(count),
            ..ReadOptions::all(Mode::Snapshot)
        };
        let expected = &all[all.len() - usize::try_from(count).unwrap()..];
        assert_eq!(texts(&keeper.read("a", options)), texts(expected), "tail {count}");
    }
    for line in all.iter().step_by(7) {
        let options = ReadOptions {
            since_ms: line.time_ms,
            ..ReadOptions::all(Mode::Snapshot)
        };
        let expected: Vec<_> = all
            .iter()
            .filter(|other| other.time_ms >= line.time_ms)
            .cloned()
            .collect();
        assert_eq!(texts(&keeper.read("a", options)), texts(&expected));
    }
}

fn follow(reader: &mut Reader, count: usize) -> Vec<LogLine> {
    let mut lines = Vec::new();
    wait_until("followed lines", || {
        while let Some(line) = reader.next_line().unwrap() {
            lines.push(line);
        }
        lines.len() >= count
    });
    assert_eq!(lines.len(), count);
    lines
}

/// Proves: a follower that starts before the replica sees every line once, over rotation, a keeper's death and a restart
/// of the replica, and holds back an unfinished line.
#[test]
fn follow_goes_over_rotation_restart_and_runs() {
    let mut keeper = Keeper::start(&["--segment-bytes", "16384"]);
    let mut reader = Reader::open(&keeper.store, "a", ReadOptions::all(Mode::Follow)).unwrap();
    assert_eq!(reader.next_line().unwrap(), None);
    let mut client = keeper.client();
    let open = Open::new(&mut client, "a", 1);
    open.write(Stream::Stdout, b"unfinished");
    wait_written(&mut client, &RunKey::new("a", 1), 10);
    assert_eq!(reader.next_line().unwrap(), None);
    open.write(Stream::Stdout, b" finished\n");
    assert_eq!(texts(&follow(&mut reader, 1)), ["unfinished finished"]);
    let mut n = 0;
    for round in 0..5 {
        let text: String = (n..n + 1000).map(|n| format!("line {n}\n")).collect();
        open.write(Stream::Stdout, text.as_bytes());
        let lines = follow(&mut reader, 1000);
        assert_eq!(lines[999].line, format!("line {}", n + 999).into_bytes());
        n += 1000;
        if round == 2 {
            keeper.restart_by_kill();
        }
    }
    open.write(Stream::Stderr, b"no newline at the end");
    client.close(RunKey::new("a", 1)).unwrap();
    let open = Open::new(&mut client, "a", 2);
    open.write(Stream::Stdout, b"again\n");
    let lines = follow(&mut reader, 2);
    assert_eq!(texts(&lines), ["no newline at the end", "again"]);
    assert_eq!((lines[0].partial, lines[1].run), (false, 2));
}

/// Proves: reading in pieces, each with a new reader from the cursor of the one before, gives every line once.
#[test]
fn a_cursor_resumes_without_gap_or_repeat() {
    let keeper = Keeper::start(&["--segment-bytes", "16384"]);
    let mut client = keeper.client();
    for run in 1..=2 {
        let open = Open::new(&mut client, "a", run);
        let out: String = (0..3000).map(|n| format!("out {run} {n}\n")).collect();
        let err: String = (0..500).map(|n| format!("err {run} {n}\n")).collect();
        open.write(Stream::Stdout, out.as_bytes());
        open.write(Stream::Stderr, err.as_bytes());
        client.close(RunKey::new("a", run)).unwrap();
    }
    let all = keeper.lines("a");
    assert_eq!(all.len(), 7000);
    let mut lines = Vec::new();
    let mut options = ReadOptions::all(Mode::Snapshot);
    for count in (1..400).cycle() {
        let mut reader = Reader::open(&keeper.store, "a", options).unwrap();
        let batch = reader.next_batch(count, usize::MAX).unwrap();
        if batch.is_empty() {
            break;
        }
        lines.extend(batch);
        options.from = Some(reader.cursor());
    }
    let of = |lines: &[LogLine], stream| -> Vec<String> {
        let lines: Vec<LogLine> = lines
            .iter()
            .filter(|line| line.stream == stream)
            .cloned()
            .collect();
        texts(&lines)
    };
    for stream in [LineStream::Stdout, LineStream::Stderr] {
        assert!(of(&lines, stream) == of(&all, stream), "{stream:?} differs");
    }
}

/// Proves: a cursor whose segment was removed meanwhile goes on with a gap of exactly the bytes it missed.
#[test]
fn a_cursor_into_removed_segments_tells_the_gap() {
    let keeper = Keeper::start(&["--segment-bytes", "16384", "--run-quota-bytes", "131072"]);
    let mut client = keeper.client();
    let key = RunKey::new("a", 1);
    let open = Open::new(&mut client, "a", 1);
    let mut fifo = open.writer(Stream::Stdout);
    fifo.write_all(b"first\nsecond\n").unwrap();
    wait_written(&mut client, &key, 13);
    let mut reader = Reader::open(&keeper.store, "a", ReadOptions::all(Mode::Snapshot)).unwrap();
    assert_eq!(reader.next_line().unwrap().unwrap().line, b"first");
    let cursor = reader.cursor();
    let text: String = (0..30_000).map(|n| format!("{n:09}\n")).collect();
    fifo.write_all(text.as_bytes()).unwrap();
    let stat = wait_written(&mut client, &key, 13 + text.len() as u64);
    let options = ReadOptions {
        from: Some(cursor),
        ..ReadOptions::all(Mode::Snapshot)
    };
    let lines = keeper.read("a", options);
    let told = format!("{} bytes of stdout were lost here", stat.lost_bytes - 6);
    assert!(
        texts(&lines)[0].starts_with(&told),
        "{:?}: {told}",
        texts(&lines[..1])
    );
    assert_eq!(lines.last().unwrap().line, b"000029999");
}

#[test]
fn long_lines_are_cut_and_marked_and_the_next_line_is_right() {
    let keeper = Keeper::start(&[]);
    let mut client = keeper.client();
    let key = RunKey::new("a", 1);
    let open = Open::new(&mut client, "a", 1);
    let exact = vec![b'e'; LINE_BYTES_MAX];
    let long = vec![b'l'; 2 * LINE_BYTES_MAX + 17];
    let mut text = exact.clone();
    text.extend_from_slice(b"\n");
    text.extend_from_slice(&long);
    text.extend_from_slice(b"\n\nbinary \x00\xff\xfe\r\nunfinished");
    open.write(Stream::Stdout, &text);
    wait_written(&mut client, &key, text.len() as u64);
    let lines = keeper.lines("a");
    let shape: Vec<(usize, bool)> = lines.iter().map(|line| (line.line.len(), line.partial)).collect();
    assert_eq!(
        shape,
        [
            (LINE_BYTES_MAX, false),
            (LINE_BYTES_MAX, true),
            (LINE_BYTES_MAX, true),
            (17, false),
            (0, false),
            (11, false),
            (10, true)
        ]
    );
    assert_eq!(lines[5].line, b"binary \x00\xff\xfe\r");
}
