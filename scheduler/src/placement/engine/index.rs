//! A max tournament tree over the keys of one class of requests in one cell, 64 children to a node.
//!
//! Key 0 means that the machine cannot take the request; a higher key is a better machine; among equal keys the lowest slot
//! wins. The best is read at the root in O(1); a changed key costs one pass over 64 neighbours on each level whose maximum
//! it changes, two or three levels at a million machines.

/// Children of a node: two cache lines of keys.
const FAN: usize = 64;

#[derive(Debug, Clone)]
pub(super) struct Tree {
    /// Level 0 holds a key for each slot, padded with zeros to whole nodes; each further level the maxima of the nodes
    /// below. The last level is one node.
    levels: Vec<Vec<u16>>,
}

impl Tree {
    /// A tree for so many slots in which nothing fits.
    pub(super) fn new(slots: usize) -> Self {
        let mut levels = vec![];
        let mut len = slots.max(1);
        loop {
            let padded = len.next_multiple_of(FAN);
            levels.push(vec![0; padded]);
            if padded == FAN {
                break;
            }
            len = padded / FAN;
        }
        Self { levels }
    }

    /// Whether there is room for so many slots.
    pub(super) fn holds(&self, slots: usize) -> bool {
        self.levels[0].len() >= slots
    }

    pub(super) fn bytes(&self) -> usize {
        self.levels
            .iter()
            .map(|level| level.len() * size_of::<u16>())
            .sum()
    }

    /// Sets every key and then all maxima; cheaper than setting one by one.
    pub(super) fn fill(&mut self, mut key: impl FnMut(usize) -> u16, slots: usize) {
        for slot in 0..slots {
            self.levels[0][slot] = key(slot);
        }
        for level in 1..self.levels.len() {
            let (below, above) = self.levels.split_at_mut(level);
            let below = &below[level - 1];
            for (node, maximum) in above[0].iter_mut().take(below.len() / FAN).enumerate() {
                *maximum = max_of(&below[node * FAN..(node + 1) * FAN]);
            }
        }
    }

    pub(super) fn set(&mut self, slot: usize, key: u16) {
        let before = std::mem::replace(&mut self.levels[0][slot], key);
        if before == key {
            return;
        }
        let (mut position, mut before, mut now) = (slot, before, key);
        for level in 1..self.levels.len() {
            let node = position / FAN;
            let known = self.levels[level][node];
            // What was not the maximum and does not become it changes nothing above.
            let maximum = if now >= known {
                now
            } else if before < known {
                return;
            } else {
                max_of(&self.levels[level - 1][node * FAN..(node + 1) * FAN])
            };
            if maximum == known {
                return;
            }
            self.levels[level][node] = maximum;
            (position, before, now) = (node, known, maximum);
        }
    }

    /// The highest key; zero when nothing fits.
    pub(super) fn best_key(&self) -> u16 {
        max_of(self.levels.last().expect("a tree has a level"))
    }

    /// The highest key and the lowest slot that has it; none when nothing fits.
    pub(super) fn best(&self) -> Option<(u16, usize)> {
        let key = self.best_key();
        if key == 0 {
            return None;
        }
        let mut position = 0;
        for level in self.levels.iter().rev() {
            let node = &level[position * FAN..(position + 1) * FAN];
            position = position * FAN + first_of(node, key);
        }
        Some((key, position))
    }
}

/// Invariant: the slice is one node, so that the compiler makes it a few vector operations.
fn max_of(node: &[u16]) -> u16 {
    let node: &[u16; FAN] = node.try_into().expect("a node has 64 keys");
    let mut lanes = [0u16; 16];
    for chunk in node.chunks_exact(16) {
        for (lane, key) in lanes.iter_mut().zip(chunk) {
            *lane = (*lane).max(*key);
        }
    }
    lanes.into_iter().fold(0, u16::max)
}

/// The first place of a key that the node holds.
fn first_of(node: &[u16], key: u16) -> usize {
    for (number, chunk) in node.chunks_exact(16).enumerate() {
        // One comparison of a vector; only the chunk that has it is looked at key by key.
        let is_here = chunk.iter().fold(false, |found, other| found | (*other == key));
        if is_here {
            let place = chunk.iter().position(|other| *other == key);
            return number * 16 + place.expect("the chunk holds the key");
        }
    }
    panic!("the node holds the key of its parent")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_fits_in_a_new_tree() {
        for slots in [0, 1, 63, 64, 65, 4096, 4097, 300_000] {
            let tree = Tree::new(slots);
            assert_eq!(tree.best(), None);
            assert!(tree.holds(slots));
        }
    }

    proptest! {
        #[test]
        fn the_best_is_what_a_scan_finds(
            slots in 1usize..9000,
            writes in proptest::collection::vec((any::<prop::sample::Index>(), 0u16..6), 0..400),
        ) {
            let mut tree = Tree::new(slots);
            let mut keys = vec![0u16; slots];
            for (step, (slot, key)) in writes.into_iter().enumerate() {
                let slot = slot.index(slots);
                keys[slot] = key;
                if step % 50 == 49 {
                    tree.fill(|slot| keys[slot], slots);
                } else {
                    tree.set(slot, key);
                }
                let most = keys.iter().copied().max().unwrap_or(0);
                let first = keys.iter().position(|key| *key == most).filter(|_| most > 0);
                prop_assert_eq!(tree.best(), first.map(|slot| (most, slot)));
            }
        }
    }
}
