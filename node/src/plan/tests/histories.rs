//! Random histories of one machine: whatever happens, what runs is what is wanted once the faults end.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Act {
    Offer {
        /// Half of the memory, for those of them that are listed.
        squeezed: u8,
        listed: u8,
        stopped: u8,
        version: u32,
    },
    Confirm,
    Step(u8),
    Exit {
        n: usize,
        status: u32,
    },
    Pass {
        ms: u64,
    },
    Fail {
        verb: usize,
        after: bool,
        user: bool,
    },
    Restart {
        effect: bool,
    },
    LoseLedger,
    Reboot,
    Observe,
    Unreachable(bool),
    Stubborn(usize),
    Mute(usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0..16_u8, 0..16_u8, 0..16_u8, 1..3_u32).prop_map(|(listed, squeezed, stopped, version)| Act::Offer {
            listed,
            squeezed,
            stopped,
            version,
        }),
        1 => Just(Act::Confirm),
        12 => (1..6_u8).prop_map(Act::Step),
        3 => (0..4_usize, prop_oneof![Just(0), Just(1), Just(137)]).prop_map(|(n, status)| Act::Exit { n, status }),
        4 => prop_oneof![0..500_u64, 500..15_000_u64, 300_000..400_000_u64].prop_map(|ms| Act::Pass { ms }),
        3 => (0..Verb::ALL.len(), any::<bool>(), any::<bool>())
            .prop_map(|(verb, after, user)| Act::Fail { verb, after, user }),
        2 => any::<bool>().prop_map(|effect| Act::Restart { effect }),
        1 => Just(Act::LoseLedger),
        1 => Just(Act::Reboot),
        2 => Just(Act::Observe),
        1 => any::<bool>().prop_map(Act::Unreachable),
        1 => (0..4_usize).prop_map(Act::Stubborn),
        1 => (0..4_usize).prop_map(Act::Mute),
    ]
}

fn play(node: &mut Node, act: Act) {
    match act {
        Act::Offer {
            listed,
            squeezed,
            stopped,
            version,
        } => {
            let chosen = |mask: u8| (0..4).filter(move |n| mask & (1 << n) != 0);
            let granted = |n: usize| (squeezed & (1 << n) != 0).then(half);
            let replicas = chosen(listed).map(|n| Assignment {
                granted: granted(n),
                ..assignment(n, version)
            });
            let replicas = replicas.collect();
            node.offer(replicas, chosen(stopped & !listed).map(stop).collect());
        }
        Act::Confirm => {
            let unlisted = node.core.unlisted();
            node.confirmed.extend(unlisted.iter().cloned());
            node.core.confirm_stops(&unlisted);
            node.turn();
        }
        Act::Step(count) => (0..count).for_each(|_| {
            node.step();
        }),
        Act::Exit { n, status } => node.exit(n, status),
        Act::Pass { ms } => node.pass(Duration::from_millis(ms)),
        Act::Fail { verb, after, user } => {
            let when = if after { When::After } else { When::Before };
            let error = if user {
                HostError::user("injected")
            } else {
                HostError::infrastructure("injected")
            };
            node.host.fail_next(Verb::ALL[verb], when, error);
        }
        Act::Restart { effect } => node.restart(effect),
        Act::LoseLedger => {
            node.queue.clear();
            node.rows.clear();
            node.last_run.clear();
            node.boot_core(false);
        }
        Act::Reboot => {
            node.queue.clear();
            node.host.reboot();
            node.boot_core(true);
        }
        Act::Observe => node.observe(),
        Act::Unreachable(unreachable) => node.host.set_unreachable(unreachable),
        Act::Stubborn(n) => node.host.ignore_term(&id(n)),
        Act::Mute(n) => node.mute(n),
    }
    for status in node.core.status() {
        let explained = matches!(status.phase, Phase::Healthy | Phase::Gone) || status.wait.is_some();
        assert!(explained, "{status:?} says not what it waits for");
    }
}

fn heal(node: &mut Node) {
    node.host.set_unreachable(false);
    // Failures that were injected and have not struck yet strike now.
    for _ in 0..80 {
        node.observe();
        node.settle();
        let unlisted = node.core.unlisted();
        node.confirmed.extend(unlisted.iter().cloned());
        node.core.confirm_stops(&unlisted);
        node.pass(Duration::from_secs(400));
        node.settle();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn random_histories_converge(acts in proptest::collection::vec(act(), 1..120)) {
        let mut node = Node::new();
        for act in acts {
            play(&mut node, act);
        }
        heal(&mut node);
        let wanted: BTreeMap<ReplicaId, String> = node.set.as_ref().map(|(set, _)| {
            set.replicas.iter().map(|a| (a.replica_id.clone(), a.digest().to_string())).collect()
        }).unwrap_or_default();
        let have: BTreeMap<ReplicaId, String> =
            node.host.processes().into_keys().map(|id| (id.clone(), node.host.revision(&id).unwrap())).collect();
        prop_assert_eq!(&have, &wanted);
        for assignment in node.set.iter().flat_map(|(set, _)| &set.replicas) {
            prop_assert_eq!(node.host.caps(&assignment.replica_id), Some(assignment.caps()));
        }
        // Without its ledger a node may not know of what has no container; the sweep takes that away.
        let known = node.core.needed().replicas;
        let left: BTreeSet<ReplicaId> =
            node.host.leftovers().into_iter().filter(|id| known.contains(id)).collect();
        prop_assert_eq!(left, wanted.into_keys().collect::<BTreeSet<_>>());
    }
}
