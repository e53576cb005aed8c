//! Which images are taken off the machine, so that the disk stays free and nothing that is needed goes.
//!
//! [`choose`] (P). An image that a replica needs is never chosen. Of the others go
//! - what was not used for [`CollectConfig::keep`];
//! - the least recently used while all images together exceed [`CollectConfig::budget`], but none that was used within
//!   [`CollectConfig::grace`]: a rollout that is undone starts without its registry;
//! - the least recently used while bytes are wanted: a pull does not fit, or less than a tenth of the disk is free.
//!
//! What two images share counts once, and is only freed with the last of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use berth_api::time::Timestamp;
use berth_api::units::Bytes;

/// When images that nobody needs are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CollectConfig {
    /// Bytes that all images together may take, downloads and unpacked layers; none: as much as there is.
    pub budget: Option<Bytes>,
    /// How long an image is kept after its last use.
    pub keep: Duration,
    /// How long it is kept after its last use though the budget is exceeded.
    pub grace: Duration,
    /// How long it is kept after its last use whatever is short: a replica that the last sweep did not know may need it, and
    /// sweeps are a minute apart.
    pub settle: Duration,
}

impl Default for CollectConfig {
    fn default() -> Self {
        Self {
            budget: None,
            keep: Duration::from_secs(7 * 24 * 3600),
            grace: Duration::from_secs(3600),
            settle: Duration::from_secs(120),
        }
    }
}

/// An image as it lies in containerd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) name: String,
    pub(super) last_used: Timestamp,
    /// Its blobs and unpacked layers by name, with their sizes in bytes.
    pub(super) parts: BTreeMap<String, u64>,
}

/// The images to remove, in the order in which they go, and the bytes that frees.
pub(super) fn choose<'a>(
    images: &'a [Stored],
    needed: &BTreeSet<String>,
    config: &CollectConfig,
    wanted: u64,
    now: Timestamp,
) -> (Vec<&'a Stored>, u64) {
    let mut holders: BTreeMap<&str, (u32, u64)> = BTreeMap::new();
    for (part, bytes) in images.iter().flat_map(|image| &image.parts) {
        holders.entry(part).or_insert((0, *bytes)).0 += 1;
    }
    let mut total: u64 = holders.values().map(|(_, bytes)| bytes).sum();
    let budget = config.budget.map_or(u64::MAX, Bytes::get);
    let unused = |image: &Stored| now.since(image.last_used);
    let unneeded = |image: &&Stored| !needed.contains(&image.name) && unused(image) >= config.settle;
    let mut candidates: Vec<&Stored> = images.iter().filter(unneeded).collect();
    candidates.sort_by_key(|image| (image.last_used, &image.name));
    let (mut chosen, mut freed) = (Vec::new(), 0);
    let gain = |holders: &BTreeMap<&str, (u32, u64)>, image: &Stored| -> u64 {
        let alone = image.parts.keys().filter_map(|part| {
            let (count, bytes) = holders.get(part.as_str())?;
            (*count == 1).then_some(*bytes)
        });
        alone.sum()
    };
    // From the front each time: what shared everything may free something once its twin is gone.
    while let Some(place) = candidates.iter().position(|image| {
        let is_in_the_way = freed < wanted || (total > budget && unused(image) >= config.grace);
        unused(image) >= config.keep || (is_in_the_way && gain(&holders, image) > 0)
    }) {
        let image = candidates.remove(place);
        let bytes = gain(&holders, image);
        for part in image.parts.keys() {
            if let Some((count, _)) = holders.get_mut(part.as_str()) {
                *count -= 1;
            }
        }
        total -= bytes;
        freed += bytes;
        chosen.push(image);
    }
    (chosen, freed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: u64 = 3_600_000;
    const NOW: Timestamp = Timestamp::from_millis(1000 * HOUR);

    fn image(name: &str, hours_ago: u64, parts: &[(&str, u64)]) -> Stored {
        Stored {
            name: name.into(),
            last_used: Timestamp::from_millis(NOW.millis() - hours_ago * HOUR),
            parts: parts
                .iter()
                .map(|(part, bytes)| ((*part).to_owned(), *bytes))
                .collect(),
        }
    }

    fn names(images: &[Stored], needed: &[&str], config: &CollectConfig, wanted: u64) -> Vec<String> {
        let needed = needed.iter().map(|&name| name.to_owned()).collect();
        let (chosen, _) = choose(images, &needed, config, wanted, NOW);
        chosen.into_iter().map(|image| image.name.clone()).collect()
    }

    #[test]
    fn what_is_old_goes_and_what_is_needed_stays_however_old() {
        let images = [
            image("old", 200, &[("a", 10)]),
            image("needed", 300, &[("b", 10)]),
            image("new", 2, &[("c", 10)]),
        ];
        let config = CollectConfig::default();
        assert_eq!(names(&images, &["needed"], &config, 0), ["old"]);
    }

    #[test]
    fn over_the_budget_the_least_recently_used_goes_first_and_no_more_than_need_be() {
        let images = [
            image("a", 5, &[("base", 50), ("a", 30)]),
            image("b", 9, &[("base", 50), ("b", 30)]),
            image("c", 7, &[("base", 50), ("c", 30)]),
            image("young", 0, &[("y", 30)]),
        ];
        // 170 bytes in all.
        let config = |budget| CollectConfig {
            budget: Some(Bytes::new(budget)),
            ..CollectConfig::default()
        };
        assert!(names(&images, &[], &config(170), 0).is_empty());
        assert_eq!(names(&images, &[], &config(169), 0), ["b"]);
        assert_eq!(names(&images, &[], &config(120), 0), ["b", "c"]);
        // The base goes with the last that has it; the young one stays over any budget.
        assert_eq!(names(&images, &[], &config(1), 0), ["b", "c", "a"]);
        assert_eq!(names(&images, &["a"], &config(1), 0), ["b", "c"]);
    }

    #[test]
    fn wanted_bytes_are_freed_by_what_frees_any() {
        let images = [
            image("twin", 9, &[("x", 40)]),
            image("other twin", 8, &[("x", 40)]),
            image("needed", 7, &[("z", 10)]),
            image("alone", 6, &[("w", 20)]),
        ];
        let config = CollectConfig::default();
        assert!(names(&images, &["needed"], &config, 0).is_empty());
        // Neither twin frees anything while the other one is there.
        assert_eq!(names(&images, &["needed"], &config, 5), ["alone"]);
    }

    proptest! {
        #[test]
        fn nothing_needed_or_young_goes_and_the_sum_is_right(
            rows in prop::collection::vec((0..400_u64, prop::collection::btree_map(0..8_u8, Just(()), 0..5), any::<bool>()), 0..12),
            budget in prop::option::of(0..400_u64),
            wanted in 0..200_u64,
        ) {
            let size = |part: u8| u64::from(part) * 7 + 1;
            let images: Vec<Stored> = rows.iter().enumerate().map(|(number, (hours, parts, _))| Stored {
                name: format!("i{number}"),
                last_used: Timestamp::from_millis(NOW.millis() - hours * HOUR),
                parts: parts.keys().map(|part| (part.to_string(), size(*part))).collect(),
            }).collect();
            let needed: BTreeSet<String> = rows.iter().enumerate()
                .filter(|(_, (_, _, needed))| *needed).map(|(number, _)| format!("i{number}")).collect();
            let config = CollectConfig { budget: budget.map(Bytes::new), ..CollectConfig::default() };
            let (chosen, freed) = choose(&images, &needed, &config, wanted, NOW);
            let gone: BTreeSet<&str> = chosen.iter().map(|image| image.name.as_str()).collect();
            let bytes = |kept: &dyn Fn(&Stored) -> bool| -> u64 {
                let parts: BTreeMap<&String, u64> = images.iter().filter(|image| kept(image))
                    .flat_map(|image| image.parts.iter().map(|(part, bytes)| (part, *bytes))).collect();
                parts.values().sum()
            };
            let left = bytes(&|image| !gone.contains(image.name.as_str()));
            prop_assert_eq!(freed, bytes(&|_| true) - left);
            for image in &chosen {
                prop_assert!(!needed.contains(&image.name));
                prop_assert!(NOW.since(image.last_used) >= config.settle);
            }
            // Whatever could still help has been taken.
            let is_short = left > budget.unwrap_or(u64::MAX) || freed < wanted;
            for image in &images {
                let is_free = !needed.contains(&image.name) && NOW.since(image.last_used) >= config.grace
                    && !gone.contains(image.name.as_str());
                let alone = left - bytes(&|other| !gone.contains(other.name.as_str()) && other.name != image.name);
                prop_assert!(!(is_free && NOW.since(image.last_used) >= config.keep), "{} is old", image.name);
                prop_assert!(!(is_short && is_free && alone > 0), "{} would free {alone}", image.name);
            }
        }
    }
}
