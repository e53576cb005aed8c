//! The model of the store: one log, and who may extend it. An owner holds a lease; whoever takes over has a higher fence,
//! and an append names its fence and where it begins, as those of etcd do. With one scheduler it stands for SQLite: the
//! lease has no end, and the lock of the file is the fence.

use std::collections::BTreeMap;

use berth_scheduler::entry::Entry;
use berth_scheduler::world::World;

use super::checkers::Checkers;
use super::{Event, Mutation, Rule, Simulation};

/// How long an owner is kept that is not heard.
pub(super) const LEASE_MS: u64 = 10_000;
/// An owner counts its own lease as shorter, from when it asked.
pub(super) const TENURE_MS: u64 = 8_000;
/// After this an append counts as failed; what became of it is read from the store.
const APPEND_TIMEOUT_MS: u64 = 10_000;
const SNAPSHOT_EVERY: usize = 120;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) scheduler: usize,
    pub(super) fence: u64,
    until: u64,
}

/// What was answered to an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Durable,
    Refused,
    /// There is none; nobody knows.
    TimedOut,
}

/// An append on its way.
#[derive(Debug)]
pub(super) struct Append {
    pub(super) scheduler: usize,
    pub(super) fence: u64,
    /// How many records its writer has read.
    pub(super) after: usize,
    pub(super) entries: Vec<Entry>,
}

#[derive(Debug)]
pub(super) struct Store {
    /// Records as they are stored.
    pub(super) log: Vec<Vec<u8>>,
    snapshot: (usize, Vec<u8>),
    owner: Option<Owner>,
    last_fence: u64,
    is_shared: bool,
    pub(super) appends: BTreeMap<u64, Append>,
}

impl Store {
    pub(super) fn new(created: &Entry, is_shared: bool, checkers: &mut Checkers) -> Self {
        checkers.entry(created, 0);
        let world = World::create(created).expect("a log begins with a creation");
        Self {
            log: vec![created.to_record()],
            snapshot: (1, bytes(&world)),
            owner: None,
            last_fence: 0,
            is_shared,
            appends: BTreeMap::new(),
        }
    }

    /// Whoever owns the cluster now.
    pub(super) fn owner(&self) -> Option<Owner> {
        self.owner
    }

    pub(super) fn is_free(&self, now: u64) -> bool {
        self.owner.is_none_or(|owner| owner.until < now)
    }

    fn until(&self, now: u64) -> u64 {
        if self.is_shared { now + LEASE_MS } else { u64::MAX }
    }

    /// Takes the cluster; the fence of the new owner.
    pub(super) fn claim(&mut self, scheduler: usize, now: u64) -> u64 {
        self.last_fence += 1;
        let (fence, until) = (self.last_fence, self.until(now));
        self.owner = Some(Owner {
            scheduler,
            fence,
            until,
        });
        fence
    }

    /// Whether the owner still is it.
    pub(super) fn prolong(&mut self, fence: u64, now: u64) -> bool {
        let until = self.until(now);
        match &mut self.owner {
            Some(owner) if owner.fence == fence && owner.until >= now => {
                owner.until = until;
                true
            }
            _ => false,
        }
    }

    pub(super) fn release(&mut self, fence: u64) {
        self.owner = self.owner.filter(|owner| owner.fence != fence);
    }

    /// The world of the newest snapshot and what follows; and of the whole log, which must be the same.
    pub(super) fn load(&self) -> Result<World, String> {
        let mut world: World = serde_json::from_slice(&self.snapshot.1)
            .map_err(|error| format!("the snapshot at {}: {error}", self.snapshot.0))?;
        for (number, record) in self.log.iter().enumerate().skip(self.snapshot.0) {
            let entry = Entry::from_record(record).map_err(|error| format!("record {number}: {error}"))?;
            world
                .try_apply(&entry)
                .map_err(|error| format!("record {number}: {error}"))?;
        }
        Ok(world)
    }

    fn replay(&self) -> Result<World, String> {
        let entries: Result<Vec<Entry>, _> =
            self.log.iter().map(|record| Entry::from_record(record)).collect();
        let entries = entries.map_err(|error| format!("a record: {error}"))?;
        World::replay(&entries).map_err(|(number, error)| format!("entry {number}: {error}"))
    }
}

fn bytes(world: &World) -> Vec<u8> {
    serde_json::to_vec(world).expect("a world has text keys")
}

impl Simulation {
    /// The live state is what the snapshot with the rest gives, and what the log alone gives, byte for byte.
    pub(super) fn check_replay(&mut self, live: &World) {
        let verdict = self.store.replay().and_then(|replayed| {
            let loaded = self.store.load()?;
            let live = bytes(live);
            if bytes(&replayed) != live {
                Err("the log gives another world than the live one".into())
            } else if bytes(&loaded) != live {
                Err("snapshot and log give another world than the live one".into())
            } else {
                Ok(())
            }
        });
        if let Err(text) = verdict {
            self.checkers.broke(Rule::Replay, text);
        }
    }

    /// Sends an append on its way to the store.
    pub(super) fn send_append(&mut self, append: Append) -> u64 {
        self.numbered += 1;
        let (number, at) = (self.numbered, append.scheduler);
        let life = self.schedulers[at].life;
        let delay = self.store_delay(at);
        self.store.appends.insert(number, append);
        self.after(delay, Event::StoreArrives { append: number });
        let answer = Answer::TimedOut;
        self.after(
            APPEND_TIMEOUT_MS,
            Event::StoreAnswers {
                scheduler: at,
                life,
                append: number,
                answer,
            },
        );
        number
    }

    fn store_delay(&mut self, at: usize) -> u64 {
        let chance = &mut self.schedulers[at].chance;
        let usual = chance.range(0..=self.weather.store_max_ms());
        if chance.percent(self.weather.stall_percent()) {
            usual + chance.range(200..=12_000)
        } else {
            usual
        }
    }

    /// The store takes an append, or refuses it.
    pub(super) fn store_arrives(&mut self, number: u64) {
        let Some(append) = self.store.appends.get(&number) else {
            return;
        };
        let at = append.scheduler;
        if self.schedulers[at].is_cut_off {
            return self.after(500, Event::StoreArrives { append: number });
        }
        let append = self.store.appends.remove(&number).expect("it was looked at");
        let answer = self.store_takes(&append);
        let life = self.schedulers[at].life;
        let delay = self.schedulers[at].chance.range(0..=self.weather.store_max_ms());
        self.after(
            delay,
            Event::StoreAnswers {
                scheduler: at,
                life,
                append: number,
                answer,
            },
        );
    }

    fn store_takes(&mut self, append: &Append) -> Answer {
        let owner = self.store.owner.filter(|owner| owner.until >= self.now);
        let is_owner = owner.is_some_and(|owner| owner.fence == append.fence);
        let is_next = append.after == self.store.log.len();
        if !(is_owner && is_next) && self.options.mutation != Some(Mutation::NoFence) {
            self.summary.fenced += 1;
            self.note(|| format!("the store refuses an append of s{}", append.scheduler));
            return Answer::Refused;
        }
        self.checkers.appended(append.fence);
        for entry in &append.entries {
            if !matches!(entry, Entry::EventRecorded { .. }) {
                self.note(|| format!("log {}", super::explanations::brief(entry)));
            }
            let seq = self.store.log.len();
            self.checkers.entry(entry, seq);
            self.store.log.push(entry.to_record());
        }
        Answer::Durable
    }

    /// A scheduler that dies takes some of what it had sent with it; the rest is taken all the same.
    pub(super) fn drop_appends(&mut self, at: usize) {
        let sent: Vec<u64> = self
            .store
            .appends
            .iter()
            .filter(|(_, append)| append.scheduler == at)
            .map(|(number, _)| *number)
            .collect();
        for number in sent {
            let is_lost = self.schedulers[at].chance.percent(50);
            if is_lost {
                self.store.appends.remove(&number);
            } else if !self.store.is_shared {
                // The file's lock is free only when the process is gone with all it does.
                let append = self.store.appends.remove(&number).expect("it was listed");
                self.store_takes(&append);
            }
        }
    }

    /// Keeps a snapshot of what is durable, now and then.
    pub(super) fn keep_snapshot(&mut self, world: &World) {
        let len = self.store.log.len();
        let is_whole = usize::try_from(world.applied_count()) == Ok(len);
        if is_whole && len >= self.store.snapshot.0 + SNAPSHOT_EVERY {
            self.store.snapshot = (len, bytes(world));
        }
    }
}
