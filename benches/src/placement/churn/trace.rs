//! The arrivals of the Azure trace: when, how large, how long, and with which others of the same tenant.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use berth_scheduler::placement::repack::search::Dice;

/// Length of the trace's time bins, in seconds.
pub(super) const SLICE: u64 = 300;

/// What a flavour takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flavour {
    /// Millionths of a vCPU.
    pub(super) cpu: u64,
    /// Bytes.
    pub(super) memory: u64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Vm {
    /// Index in [`Trace::flavours`].
    pub(super) flavour: usize,
    /// Those that one tenant asked for together.
    pub(super) batch: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Index in [`Trace::vms`].
    Arrives(usize),
    Departs(usize),
}

#[derive(Debug)]
pub(super) struct Trace {
    pub(super) flavours: Vec<Flavour>,
    pub(super) vms: Vec<Vm>,
    /// By time in seconds; at one time departures come first.
    pub(super) events: Vec<(u64, Event)>,
    pub(super) begin: u64,
    pub(super) end: u64,
}

fn read(folder: &Path, file: &str) -> anyhow::Result<String> {
    let path = folder.join(file);
    std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// Flavours by their letter: `cpu,memory in GB` with three digits after the point at most.
fn flavours(text: &str) -> anyhow::Result<BTreeMap<String, Flavour>> {
    let thousandths = |number: &str| -> anyhow::Result<u64> {
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        ensure!(part.len() <= 3, "{number} has too many digits");
        Ok(whole.parse::<u64>()? * 1000 + format!("{part:0<3}").parse::<u64>()?)
    };
    let mut flavours = BTreeMap::new();
    for line in text.lines() {
        let (amounts, letter) = line.split_once(' ').context("a flavour line has two fields")?;
        let (cpu, memory) = amounts.split_once(',').context("a flavour is cpu,memory")?;
        let memory = (thousandths(memory)? << 30) / 1000;
        let cpu = thousandths(cpu)? * 1000;
        flavours.insert(letter.to_owned(), Flavour { cpu, memory });
    }
    Ok(flavours)
}

/// First and last duration of each bin, in seconds.
fn bins(text: &str) -> anyhow::Result<BTreeMap<u64, (u64, u64)>> {
    let mut bins: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for line in text.lines() {
        let (duration, bin) = line.split_once(' ').context("a bin line has two fields")?;
        let (duration, bin) = (duration.parse()?, bin.parse()?);
        bins.entry(bin)
            .and_modify(|(_, last)| *last = duration)
            .or_insert((duration, duration));
    }
    Ok(bins)
}

impl Trace {
    /// Durations are drawn evenly within their bin, from `seed`; the censored ones last to the end.
    pub(super) fn read(folder: &Path, seed: u64) -> anyhow::Result<Self> {
        let letters = flavours(&read(folder, "flav_map.txt")?)?;
        let bins = bins(&read(folder, "v1.interval_map.txt")?)?;
        let numbers: BTreeMap<&str, usize> = letters.keys().map(String::as_str).zip(0..).collect();
        let (arrivals, durations) = (
            read(folder, "v1.test.txt")?,
            read(folder, "v1.test.c2591400.txt")?,
        );
        let mut dice = Dice::new(seed);
        let (mut vms, mut events) = (vec![], vec![]);
        let (mut batch, mut begin, mut end) = (0, u64::MAX, 0);
        for (line, bin_line) in arrivals.lines().zip(durations.lines()) {
            let (time, names) = line.split_once(' ').context("an arrival line has two fields")?;
            let (bin_time, bin_names) = bin_line
                .split_once(' ')
                .context("a duration line has two fields")?;
            ensure!(
                time == bin_time,
                "durations of {bin_time} beside arrivals of {time}"
            );
            let time: u64 = time.parse()?;
            (begin, end) = (begin.min(time), end.max(time + SLICE));
            for (name, bin) in names.split(',').zip(bin_names.split(',')) {
                match (name, bin.split_at_checked(1)) {
                    ("|", _) => batch += 1,
                    ("", _) => {}
                    (name, Some((kind, bin))) => {
                        let flavour = *numbers.get(name).with_context(|| format!("flavour {name:?}"))?;
                        let (first, last) = *bins.get(&bin.parse()?).with_context(|| format!("bin {bin}"))?;
                        let vm = vms.len();
                        vms.push(Vm { flavour, batch });
                        events.push((time, Event::Arrives(vm)));
                        let span = usize::try_from(last + SLICE - first)?;
                        let drawn = first + u64::try_from(dice.below(span))?;
                        match kind {
                            "U" => events.push((time + drawn.max(1), Event::Departs(vm))),
                            "C" => {}
                            other => bail!("{other:?} is neither U nor C"),
                        }
                    }
                    (name, None) => bail!("flavour {name:?} without a duration"),
                }
            }
        }
        events.retain(|(time, _)| *time < end);
        events.sort_by_key(|(time, event)| (*time, matches!(event, Event::Arrives(_))));
        let flavours = letters.into_values().collect();
        Ok(Self {
            flavours,
            vms,
            events,
            begin,
            end,
        })
    }
}
