use proptest::prelude::*;

use super::*;

fn lack(has: u64, desired: u64) -> Lack {
    Lack { has, desired }
}

#[test]
fn the_steps_go_from_near_desired_down_to_the_minimum() {
    let mut spec = crate::fixture::stateless("a", 1);
    spec.resources.cpu.desired = Cpu::from_micros(5_000_000);
    let steps = steps(&spec.resources);
    assert_eq!(steps[0].cpu, Cpu::from_micros(4_500_000));
    assert_eq!(steps.last(), Some(&spec.resources.min()));
    assert!(steps.windows(2).all(|pair| pair[1].cpu < pair[0].cpu));
    assert!(is_squeezable(&spec));
    assert!(!is_squeezable(&crate::fixture::stateless("a", 1)));
}

#[test]
fn room_is_shared_in_equal_parts_up_to_what_is_desired() {
    assert_eq!(share(10, 1, &[lack(1, 20), lack(1, 20)]), [6, 6]);
    assert_eq!(share(10, 1, &[lack(8, 10), lack(1, 20)]), [10, 9]);
    assert_eq!(share(100, 1, &[lack(8, 10), lack(1, 20)]), [10, 20]);
    assert_eq!(share(0, 1, &[lack(8, 10)]), [8]);
    assert_eq!(share(7, 1, &[]), [0; 0]);
}

#[test]
fn a_step_is_a_tenth_at_least_or_all_that_lacks() {
    assert_eq!(share(9, 1, &[lack(0, 100)]), [0]);
    assert_eq!(share(10, 1, &[lack(0, 100)]), [10]);
    assert_eq!(share(5, 1, &[lack(95, 100)]), [100]);
    // The larger cannot make its step; its part is enough for the smaller.
    assert_eq!(share(6, 1, &[lack(0, 100), lack(0, 50)]), [0, 6]);
}

#[test]
fn a_grant_is_a_whole_unit_unless_it_is_all() {
    assert_eq!(share(37, 10, &[lack(0, 100)]), [30]);
    assert_eq!(share(37, 10, &[lack(70, 103)]), [103]);
    assert_eq!(share(15, 10, &[lack(7, 100)]), [20]);
}

proptest! {
    #[test]
    fn nobody_loses_nobody_gets_too_much_and_sharing_again_changes_nothing(
        free in 0u64..2_000,
        unit in 1u64..20,
        lacks in proptest::collection::vec((1u64..500, 0u64..500), 0..8),
    ) {
        let lacks: Vec<Lack> = lacks.into_iter().map(|(desired, less)| lack(desired - less.min(desired), desired)).collect();
        let has = share(free, unit, &lacks);
        let mut taken = 0;
        for (before, after) in lacks.iter().zip(&has) {
            prop_assert!(*after >= before.has && *after <= before.desired);
            let step = after - before.has;
            prop_assert!(step == 0 || *after == before.desired || step >= before.desired / STEP_PART);
            taken += step;
        }
        prop_assert!(taken <= free);
        let again: Vec<Lack> = lacks.iter().zip(&has).map(|(before, has)| lack(*has, before.desired)).collect();
        prop_assert_eq!(share(free - taken, unit, &again), has.clone());
        // Who is left with less than it desires could not have made its step with all that is left.
        for (before, has) in lacks.iter().zip(&has) {
            let left = free - taken;
            let lacks = before.desired - has;
            prop_assert!(lacks == 0 || left < lacks.min((before.desired / STEP_PART).max(unit) + unit));
        }
    }
}
