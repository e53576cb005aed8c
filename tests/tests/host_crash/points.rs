//! The process ends at each named point of the store in turn ([`CRASH_POINTS`]), at its first time and at later ones, and the
//! store is opened again on what is left of it:
//!
//! - as the process left it (it was killed, the machine runs on);
//! - as ext4 had it on its device at that moment (the power was cut: what was written and not flushed is gone);
//! - as a device may have it that had written some sectors of what was not flushed and others not (torn writes).
//!
//! Each time everything acknowledged must be there as it was written, each batch must be there whole or not at all, and the
//! store must take more. Then a program of the same kind goes on with it.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;

use berth_scheduler::backup::{backup, restore};
use berth_scheduler::config::Config;
use berth_scheduler::entry::Entry;
use berth_scheduler::store::{CRASH_AT, CRASH_POINTS, History};

use super::*;

const DIR: &str = "BERTH_CRASH_DIR";
const WORK: &str = "BERTH_CRASH_WORK";
/// At which times a point is the end.
const TIMES: [u64; 3] = [1, 4, 17];
const TORN: u64 = 3;
const SECTOR: usize = 512;
const ROUNDS: u64 = 24;
const SIGABRT: i32 = 6;

/// Where the batches of a writer end: it writes 1, 2 or 3 records at once.
fn batch_ends() -> BTreeSet<u64> {
    let mut ends = BTreeSet::from([0]);
    let mut last = 0;
    for round in 0..ROUNDS {
        last += 1 + round % 3;
        ends.insert(last);
    }
    ends
}

async fn write(store: &Sqlite, number: u64) {
    let id = cluster(number);
    let mut next = 1;
    for round in 0..ROUNDS {
        let payloads = (next..=next + round % 3)
            .map(|seq| payload(number, seq))
            .collect();
        next = store.append(&id, next, payloads).await.unwrap();
        say(&format!("acknowledged {number} {}", next - 1));
        if round % 4 == 3 {
            let snapshot = Snapshot {
                seq: next - 1,
                payload: payload(number, next - 1),
            };
            store.snapshot(&id, snapshot).await.unwrap();
        }
    }
}

/// Clusters that come with a snapshot, as those of a restore do, and go again.
async fn come_and_go(store: &Sqlite) {
    for number in 100..100 + ROUNDS {
        let id = cluster(number);
        let snapshot = Snapshot {
            seq: 7,
            payload: payload(number, 7),
        };
        store.begin(&id, snapshot).await.unwrap();
        store.append(&id, 8, vec![payload(number, 8)]).await.unwrap();
        say(&format!("acknowledged {number} 8"));
        if number % 2 == 0 {
            say(&format!("going {number}"));
            store.delete(&id, 9).await.unwrap();
            say(&format!("gone {number}"));
        }
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

#[tokio::test]
#[ignore = "the program that the tests of crash points start"]
async fn works_until_its_point() {
    let (Ok(dir), Ok(work)) = (std::env::var(DIR), std::env::var(WORK)) else {
        return;
    };
    let dir = Path::new(&dir);
    match work.as_str() {
        "store" => {
            let store = Sqlite::open(&dir.join("store.db")).unwrap();
            let writers = futures::future::join_all((0..CLUSTERS).map(|number| write(&store, number)));
            futures::future::join(writers, come_and_go(&store)).await;
        }
        "backup" => drop(
            backup(&Config::new(dir.join("data")), &dir.join("backup"))
                .await
                .unwrap(),
        ),
        "restore" => drop(
            restore(&Config::new(dir.join("restored")), &dir.join("backup"))
                .await
                .unwrap(),
        ),
        other => panic!("{other} is no work"),
    }
}

/// What a process that ended had said.
#[derive(Debug, Default)]
struct Said {
    acknowledged: BTreeMap<u64, u64>,
    going: BTreeSet<u64>,
    gone: BTreeSet<u64>,
}

/// Runs the program until its point; none when it never came there.
fn run_to(dir: &Path, work: &str, point: &str, time: u64) -> Option<Said> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["works_until_its_point", "--ignored", "--nocapture"])
        .env(DIR, dir)
        .env(WORK, work)
        .env(CRASH_AT, format!("{point}:{time}"))
        .output()
        .unwrap();
    if output.status.success() {
        return None;
    }
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(SIGABRT), "{point}: {error}");
    let mut said = Said::default();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["acknowledged", number, seq] => {
                said.acknowledged
                    .insert(number.parse().unwrap(), seq.parse().unwrap());
            }
            ["going", number] => drop(said.going.insert(number.parse().unwrap())),
            ["gone", number] => drop(said.gone.insert(number.parse().unwrap())),
            _ => {}
        }
    }
    Some(said)
}

/// Opens what is left, and looks.
async fn check_store(dir: &Path, said: &Said, what: &str) {
    let store = Sqlite::open(&dir.join("store.db")).unwrap_or_else(|error| panic!("{what}: {error}"));
    let ends = batch_ends();
    for (number, last) in &said.acknowledged {
        let history = store.load(&cluster(*number)).await.unwrap();
        let is_gone = history == History::empty();
        if said.gone.contains(number) || (is_gone && said.going.contains(number)) {
            assert!(is_gone, "{what}: cluster {number} was deleted and is there");
            continue;
        }
        assert!(
            history.next_seq > *last,
            "{what}: cluster {number}: record {last} was acknowledged, {} is next",
            history.next_seq
        );
        let is_whole = *number >= CLUSTERS || ends.contains(&(history.next_seq - 1));
        assert!(
            is_whole,
            "{what}: cluster {number} has half a batch: {}",
            history.next_seq
        );
        for record in &history.records {
            assert_eq!(
                record.payload,
                payload(*number, record.seq),
                "{what}: record {}",
                record.seq
            );
        }
        if let Some(snapshot) = &history.snapshot {
            assert_eq!(snapshot.payload, payload(*number, snapshot.seq), "{what}");
        }
    }
    for id in store.clusters().await.unwrap() {
        let before = store.load(&id).await.unwrap();
        let next = store
            .append(&id, before.next_seq, vec![b"more".to_vec()])
            .await
            .unwrap();
        let after = store.load(&id).await.unwrap();
        assert_eq!((next, after.next_seq), (before.next_seq + 1, next), "{what}");
        assert_eq!(after.records.last().unwrap().payload, b"more", "{what}");
    }
}

/// A device that had written some sectors of what was not flushed: `cut` is what it had flushed, `live` what was written.
fn tear(cut: &Path, live: &Path, to: &Path, mut seed: u64) {
    let mut coin = || {
        // xorshift64: any even coin does.
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.is_multiple_of(2)
    };
    std::fs::create_dir_all(to).unwrap();
    let names: BTreeSet<_> = [cut, live]
        .iter()
        .flat_map(|dir| std::fs::read_dir(dir).unwrap())
        .map(|entry| entry.unwrap().file_name())
        .collect();
    for name in names {
        let flushed = std::fs::read(cut.join(&name)).ok();
        let written = std::fs::read(live.join(&name)).ok();
        let mut content = match (flushed, &written) {
            // Made and not flushed: its name may be there or not.
            (None, _) if coin() => continue,
            (None, _) => vec![],
            // Removed, and that not flushed.
            (Some(_), None) if coin() => continue,
            (Some(flushed), _) => flushed,
        };
        let written = written.unwrap_or_default();
        if written.len() > content.len() && coin() {
            content.resize(written.len(), 0);
        }
        let sectors = content.chunks_mut(SECTOR).zip(written.chunks(SECTOR));
        for (sector, written) in sectors {
            let len = sector.len().min(written.len());
            if sector[..len] != written[..len] && coin() {
                sector[..len].copy_from_slice(&written[..len]);
            }
        }
        std::fs::write(to.join(name), content).unwrap();
    }
}

/// An ext4 on a loop device, whose bytes can be had as they are without a flush.
struct Disk {
    mounted: Mounted,
    image: PathBuf,
    dir: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::File::create(&image)
            .unwrap()
            .set_len(IMAGE_BYTES)
            .unwrap();
        must("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]);
        let mounted = Mounted::image(&image, dir.path().join("disk"));
        Self { mounted, image, dir }
    }

    /// A new directory, flushed with all else.
    fn make(&self, name: &str) -> PathBuf {
        let dir = self.mounted.dir.join(name);
        std::fs::create_dir(&dir).unwrap();
        self.flush();
        dir
    }

    fn flush(&self) {
        must("sync", &["-f", self.mounted.dir.to_str().unwrap()]);
    }

    /// The file system as it is after a power cut now; unmounted when dropped.
    fn cut(&self) -> Mounted {
        let copy = self.dir.path().join("copy");
        loop {
            let before = self.mounted.written();
            std::fs::copy(&self.image, &copy).unwrap();
            if before.is_some() && self.mounted.written() == before {
                break;
            }
        }
        Mounted::image(&copy, self.dir.path().join("after"))
    }
}

fn of_store(point: &&&str) -> bool {
    !point.starts_with("backup.") && !point.starts_with("restore.")
}

#[tokio::test]
async fn a_crash_at_any_point_of_the_store_loses_nothing() {
    if skip_without_root("a_crash_at_any_point_of_the_store_loses_nothing") {
        return;
    }
    let disk = Disk::new();
    let (mut runs, mut checks) = (0, 0);
    for point in CRASH_POINTS.iter().filter(of_store) {
        for time in TIMES {
            let name = format!("{point}-{time}");
            let dir = disk.make(&name);
            let Some(said) = run_to(&dir, "store", point, time) else {
                assert!(time > 1, "{point} was never come to");
                std::fs::remove_dir_all(&dir).unwrap();
                break;
            };
            runs += 1;
            let cut = disk.cut();
            for seed in 1..=TORN {
                let torn = tempfile::tempdir().unwrap();
                tear(&cut.dir.join(&name), &dir, torn.path(), seed * 7919 + time);
                check_store(torn.path(), &said, &format!("{name}, torn {seed}")).await;
                checks += 1;
            }
            check_store(&cut.dir.join(&name), &said, &format!("{name}, power cut")).await;
            check_store(&dir, &said, &format!("{name}, killed")).await;
            checks += 2;
            drop(cut);
            std::fs::remove_dir_all(&dir).unwrap();
        }
    }
    println!("{runs} runs to their points, {checks} stores opened after them");
}

/// A data directory with a store of real entries.
async fn data(dir: &Path) {
    let config = Config::new(dir.join("data"));
    std::fs::create_dir_all(&config.data_dir).unwrap();
    for name in ["ca.key", "ca.pem", "platform.key", "token-secret"] {
        std::fs::write(config.data_dir.join(name), format!("{name} of the test")).unwrap();
    }
    let store = Sqlite::open(&config.data_dir.join("store.db")).unwrap();
    for number in 0..CLUSTERS {
        let value = serde_json::json!({
            "clusterId": cluster(number).as_str(), "name": "Crash", "containerCidr": "10.244.0.0/16",
            "platform": "local", "capacityGroups": []
        });
        let created = Entry::ClusterCreated {
            spec: berth_api::rest::cluster::read_cluster(&value).unwrap(),
            tokens: BTreeMap::new(),
            at: berth_api::time::Timestamp::from_millis(1),
        };
        let records = vec![created.to_record(); 1];
        store.append(&cluster(number), 1, records).await.unwrap();
    }
}

/// The histories of all clusters, without what a restore adds.
async fn histories(path: &Path) -> Vec<Vec<Vec<u8>>> {
    let store = Sqlite::open(path).unwrap();
    let mut all = vec![];
    for id in store.clusters().await.unwrap() {
        let history = store.load(&id).await.unwrap();
        let records = history.records.into_iter().take(1);
        all.push(records.map(|record| record.payload).collect());
    }
    all
}

#[tokio::test]
async fn a_crash_at_any_point_of_a_backup_or_a_restore_hinders_neither() {
    if skip_without_root("a_crash_at_any_point_of_a_backup_or_a_restore_hinders_neither") {
        return;
    }
    let disk = Disk::new();
    for point in CRASH_POINTS.iter().filter(|point| !of_store(point)) {
        for time in [1, 3] {
            let work = point.split_once('.').unwrap().0;
            let name = format!("{point}-{time}");
            let dir = disk.make(&name);
            data(&dir).await;
            let whole = histories(&dir.join("data/store.db")).await;
            if work == "restore" {
                backup(&Config::new(dir.join("data")), &dir.join("backup"))
                    .await
                    .unwrap();
            }
            disk.flush();
            if run_to(&dir, work, point, time).is_none() {
                assert!(time > 1, "{point} was never come to");
                break;
            }
            let cut = disk.cut();
            for dir in [cut.dir.join(&name), dir.clone()] {
                assert_eq!(
                    histories(&dir.join("data/store.db")).await,
                    whole,
                    "{name}: the source"
                );
                let file = dir.join("backup");
                // Either there is no backup, or a whole one.
                if !file.exists() {
                    backup(&Config::new(dir.join("data")), &file).await.unwrap();
                }
                let target = Config::new(dir.join("restored"));
                if !target.data_dir.join("store.db").exists() {
                    restore(&target, &file)
                        .await
                        .unwrap_or_else(|error| panic!("{name}: {error}"));
                }
                assert_eq!(
                    histories(&target.data_dir.join("store.db")).await,
                    whole,
                    "{name}: restored"
                );
                for key in ["ca.key", "ca.pem", "platform.key", "token-secret"] {
                    let of = |dir: &Path| std::fs::read(dir.join(key)).unwrap();
                    assert_eq!(of(&target.data_dir), of(&dir.join("data")), "{name}: {key}");
                }
            }
            drop(cut);
            std::fs::remove_dir_all(&dir).unwrap();
        }
    }
}
