//! Every packing is checked by counting, in code that shares nothing with the packer: each item once, no bin overfull, no
//! group beyond its limit, no more new bins than allowed, never below the bound. Small problems are packed exactly by
//! enumeration and compared with the bound; random ones come from proptest.

use proptest::prelude::*;

use super::*;

const BUDGET: Budget = Budget { steps: 2_000_000 };

fn item(amounts: &[u64], count: u64) -> Item {
    Item {
        amounts: amounts.to_vec(),
        count,
        group: None,
    }
}

fn problem(capacity: &[u64], items: Vec<Item>) -> Problem {
    Problem {
        capacity: capacity.to_vec(),
        items,
        ..Problem::default()
    }
}

/// What is wrong with a packing.
fn wrong(problem: &Problem, packing: &Packing) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut placed = vec![0; problem.items.len()];
    for part in packing.bins.iter().flatten().chain(&packing.left) {
        placed[part.item] += part.count;
    }
    for (index, item) in problem.items.iter().enumerate() {
        if placed[index] != item.count {
            wrong.push(format!("item {index}: {} of {}", placed[index], item.count));
        }
    }
    for (index, bin) in packing.bins.iter().enumerate() {
        let open = problem.open.get(index);
        if open.is_none() && bin.is_empty() {
            wrong.push(format!("new bin {index} is empty"));
        }
        for dimension in 0..problem.capacity.len() {
            let free = open.map_or(problem.capacity[dimension], |open| open.free[dimension]);
            let used: u128 = bin
                .iter()
                .map(|part| u128::from(problem.items[part.item].amounts[dimension]) * u128::from(part.count))
                .sum();
            if used > u128::from(free) {
                wrong.push(format!("bin {index} is overfull"));
            }
        }
        for (group, max) in problem.group_max.iter().enumerate() {
            let own = bin
                .iter()
                .filter(|part| problem.items[part.item].group == Some(group));
            let own: u64 = own.map(|part| part.count).sum();
            let held = open
                .map_or(&[][..], |open| &open.groups)
                .iter()
                .filter(|held| held.0 == group);
            let held: u64 = held.map(|held| held.1).sum();
            if own > 0 && own + held > *max {
                wrong.push(format!("bin {index} holds too many of group {group}"));
            }
        }
    }
    let new_bins = u64::try_from(packing.bins.len() - problem.open.len()).unwrap();
    if packing.new_bins != new_bins {
        wrong.push("new bins are miscounted".into());
    }
    if packing.left.is_empty() && packing.new_bins < packing.bound {
        wrong.push(format!(
            "{new_bins} bins are below the bound of {}",
            packing.bound
        ));
    }
    if problem.new_max.is_some_and(|max| new_bins > max)
        || (problem.new_max.is_none() && !packing.left.is_empty())
    {
        wrong.push("the limit of new bins is not kept".into());
    }
    wrong
}

fn checked(problem: &Problem, budget: Budget) -> Packing {
    let packing = pack(problem, budget).unwrap();
    assert_eq!(
        wrong(problem, &packing),
        Vec::<String>::new(),
        "{problem:?}\n{packing:?}"
    );
    let quick = lower_bound(problem).unwrap();
    assert!(
        quick <= packing.bound,
        "{quick} is above the better bound {}",
        packing.bound
    );
    packing
}

/// The fewest new bins, by trying each item in each bin. No groups.
fn exact(problem: &Problem) -> u64 {
    /// Places the items into bins of which all but the first `open` are new, and keeps the fewest new ones in `best`.
    fn place(items: &[&[u64]], capacity: &[u64], open: usize, bins: &mut Vec<Vec<u64>>, best: &mut usize) {
        let Some((first, rest)) = items.split_first() else {
            *best = bins.len() - open;
            return;
        };
        for index in 0..=bins.len() {
            let is_new = index == bins.len();
            if is_new {
                if index + 1 - open >= *best {
                    return;
                }
                bins.push(capacity.to_vec());
            }
            let before = bins[index].clone();
            if before.iter().zip(*first).all(|(free, amount)| free >= amount) {
                let free = bins[index].iter_mut().zip(*first);
                free.for_each(|(free, amount)| *free -= amount);
                place(rest, capacity, open, bins, best);
                bins[index] = before;
            }
            if is_new {
                bins.pop();
            }
        }
    }
    let repeated = problem
        .items
        .iter()
        .flat_map(|item| std::iter::repeat_n(&item.amounts[..], usize::try_from(item.count).unwrap()));
    let items: Vec<&[u64]> = repeated.collect();
    let mut bins: Vec<Vec<u64>> = problem.open.iter().map(|open| open.free.clone()).collect();
    let mut best = items.len() + 1;
    place(&items, &problem.capacity, bins.len(), &mut bins, &mut best);
    u64::try_from(best).unwrap()
}

#[test]
fn nothing_needs_no_bin() {
    let packing = checked(&problem(&[1], vec![]), BUDGET);
    assert_eq!((packing.new_bins, packing.bound), (0, 0));
}

#[test]
fn equal_items_cost_what_one_costs() {
    let packing = checked(
        &problem(&[64_000, 256 << 30], vec![item(&[1_000, 4 << 30], 1_000_000)]),
        BUDGET,
    );
    assert_eq!((packing.new_bins, packing.bound), (15_625, 15_625));
}

#[test]
fn a_byte_more_than_half_is_alone() {
    let half = 1 << 39;
    let packing = checked(
        &problem(&[2 * half], vec![item(&[half + 1], 5), item(&[half], 2)]),
        BUDGET,
    );
    assert_eq!((packing.new_bins, packing.bound), (6, 6));
}

#[test]
fn amounts_of_all_of_u64_do_not_overflow() {
    let packing = checked(
        &problem(
            &[u64::MAX, 1],
            vec![
                item(&[u64::MAX, 0], 3),
                item(&[1, 1], 2),
                item(&[u64::MAX / 3, 0], 7),
            ],
        ),
        BUDGET,
    );
    assert_eq!(packing.bound, packing.new_bins);
}

#[test]
fn a_group_spreads() {
    let mut spread = problem(&[100], vec![item(&[1], 10), item(&[1], 90)]);
    spread.items[0].group = Some(0);
    spread.group_max = vec![3];
    let packing = checked(&spread, BUDGET);
    assert_eq!((packing.new_bins, packing.bound), (4, 4));
}

#[test]
fn open_bins_are_filled_first() {
    let mut with_open = problem(&[10, 10], vec![item(&[4, 1], 4)]);
    with_open.open = vec![
        Open {
            free: vec![9, 3],
            groups: vec![],
        },
        Open {
            free: vec![3, 10],
            groups: vec![],
        },
    ];
    let packing = checked(&with_open, BUDGET);
    assert_eq!((packing.new_bins, packing.bound), (1, 1));
}

#[test]
fn a_fixed_fleet_leaves_what_does_not_fit() {
    let mut fixed = problem(&[10], vec![item(&[6], 3)]);
    fixed.new_max = Some(1);
    let packing = checked(&fixed, BUDGET);
    assert_eq!((packing.new_bins, packing.bound), (1, 3));
    assert_eq!(packing.left, [Part { item: 0, count: 2 }]);
}

#[test]
fn prices_find_triplets_that_greedy_misses() {
    // Each bin is filled exactly by three items; most greedy choices spoil a triplet.
    let mut items = Vec::new();
    for step in 0..20_u64 {
        let (first, second) = (260 + step * 7, 430 - step * 5);
        items.push(item(&[first, 400 - step], 1));
        items.push(item(&[second, 260 + step * 3], 1));
        items.push(item(&[1_000 - first - second, 340 - step * 2], 1));
    }
    let packing = checked(&problem(&[1_000, 1_000], items), Budget { steps: 300_000_000 });
    assert_eq!((packing.new_bins, packing.bound), (20, 20));
}

#[test]
fn every_fault_is_named() {
    let mut faulty = problem(
        &[10, 0],
        vec![
            item(&[11, 0], 1),
            item(&[1, 1], 0),
            item(&[0, 0], 1),
            item(&[1], 1),
        ],
    );
    faulty.items[0].group = Some(3);
    faulty.group_max = vec![0];
    faulty.open = vec![
        Open {
            free: vec![1, 1],
            groups: vec![(9, 1)],
        },
        Open::default(),
    ];
    let expected = vec![
        Fault::UnknownGroup { group: 3 },
        Fault::TooLarge {
            item: 0,
            dimension: 0,
            amount: 11,
            capacity: 10,
        },
        Fault::NoCount { item: 1 },
        Fault::TooLarge {
            item: 1,
            dimension: 1,
            amount: 1,
            capacity: 0,
        },
        Fault::NoAmount { item: 2 },
        Fault::ItemLength { item: 3, found: 1 },
        Fault::GroupMax { group: 0 },
        Fault::OpenTooFree {
            open: 0,
            dimension: 1,
        },
        Fault::UnknownGroup { group: 9 },
        Fault::OpenLength { open: 1, found: 0 },
    ];
    assert_eq!(pack(&faulty, BUDGET), Err(expected.clone()));
    assert_eq!(lower_bound(&faulty), Err(expected));
    assert_eq!(
        pack(&problem(&[], vec![]), BUDGET),
        Err(vec![Fault::Dimensions { found: 0 }])
    );
    assert_eq!(
        pack(&problem(&[1; 33], vec![]), BUDGET),
        Err(vec![Fault::Dimensions { found: 33 }])
    );
    assert_eq!(
        pack(
            &problem(&[1], vec![item(&[1], u64::MAX), item(&[1], u64::MAX)]),
            BUDGET
        ),
        Err(vec![Fault::TooMany])
    );
}

fn amounts(capacity: Vec<u64>) -> impl Strategy<Value = Vec<u64>> {
    let dimension =
        |capacity: u64| prop_oneof![0..=capacity, 0..=capacity / 3, capacity / 4..=capacity / 2 + 1];
    capacity.into_iter().map(dimension).collect::<Vec<_>>()
}

/// Faultless problems of few items, with groups and open bins.
fn problems() -> impl Strategy<Value = Problem> {
    let capacity = prop::collection::vec(prop_oneof![2_u64..50, Just(1_000_000_007), Just(u64::MAX)], 1..=8);
    let groups = prop::collection::vec(1_u64..4, 0..3);
    (capacity, groups).prop_flat_map(|(capacity, group_max)| {
        let one = (amounts(capacity.clone()), 1_u64..5, prop::option::of(0_usize..3));
        let open = (
            amounts(capacity.clone()),
            prop::collection::vec((0_usize..3, 0_u64..3), 0..2),
        );
        let items = prop::collection::vec(one, 0..25);
        (
            items,
            prop::collection::vec(open, 0..4),
            prop::option::of(0_u64..6),
        )
            .prop_map(move |(items, open, new_max)| {
                let groups = group_max.len();
                let items = items.into_iter().map(|(mut amounts, count, group)| {
                    if amounts.iter().all(|amount| *amount == 0) {
                        amounts[0] = 1;
                    }
                    Item {
                        amounts,
                        count,
                        group: group.filter(|group| *group < groups),
                    }
                });
                let open = open.into_iter().map(|(free, held)| Open {
                    free,
                    groups: held.into_iter().filter(|held| held.0 < groups).collect(),
                });
                Problem {
                    capacity: capacity.clone(),
                    items: items.collect(),
                    group_max: group_max.clone(),
                    open: open.collect(),
                    new_max,
                }
            })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_packing_is_valid_and_repeatable(problem in problems(), steps in 0_u64..3_000_000) {
        let packing = checked(&problem, Budget { steps });
        prop_assert_eq!(pack(&problem, Budget { steps }).unwrap(), packing);
    }

    #[test]
    fn the_order_of_items_changes_no_count(problem in problems(), turn in 0_usize..25) {
        let packing = checked(&problem, BUDGET);
        let mut turned = problem;
        let turn = turn.min(turned.items.len());
        turned.items.rotate_left(turn);
        turned.items.reverse();
        let other = checked(&turned, BUDGET);
        prop_assert_eq!((packing.new_bins, packing.bound), (other.new_bins, other.bound));
    }

    #[test]
    fn the_bound_never_passes_the_optimum(
        items in prop::collection::vec((prop::collection::vec(1_u64..=20, 2), 1_u64..3), 1..6),
        open in prop::collection::vec(prop_oneof![
            Just(vec![20, 20]),
            prop::collection::vec(0_u64..=20, 2)
        ], 0..4),
    ) {
        let items = items.into_iter().map(|(amounts, count)| item(&amounts, count)).collect();
        let mut problem = problem(&[20, 20], items);
        problem.open = open.into_iter().map(|free| Open { free, groups: vec![] }).collect();
        let packing = checked(&problem, BUDGET);
        let exact = exact(&problem);
        prop_assert!(packing.bound <= exact && exact <= packing.new_bins);
        // So few items are packed as well as can be.
        prop_assert!(packing.new_bins <= exact + 1);
    }
}
