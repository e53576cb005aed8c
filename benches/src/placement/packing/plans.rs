//! Random clusters of plausible containers against the profile of a group: how often the plan is within one machine of the
//! bound.
//!
//! A cluster has 1 to 20 containers of 1 to 200 replicas. A replica asks for a quarter to 16 vCPU in usual steps and 1 to 8 GiB for
//! each, some for a local disk; a third of the containers may have only a few replicas on one machine. The profile has 8 to 96
//! vCPU with 4 or 8 GiB for each, less a reserve, and one or two disks.

use berth_scheduler::placement::pack::{Budget, Item, Problem, pack};

use super::families::{Random, SEED};

/// What came of all clusters.
#[derive(Debug, Default)]
pub(crate) struct Plans {
    pub(crate) clusters: usize,
    /// By how many machines the plan is above its bound: none, one, more.
    pub(crate) above: [usize; 3],
    pub(crate) worst: u64,
    pub(crate) machines: u64,
    pub(crate) bound: u64,
}

impl Plans {
    pub(crate) fn run(clusters: usize) -> anyhow::Result<Self> {
        let mut random = Random::new(SEED);
        let mut plans = Self {
            clusters,
            ..Self::default()
        };
        for _ in 0..clusters {
            let problem = cluster(&mut random);
            let packing = pack(&problem, Budget::QUICK).map_err(|faults| anyhow::anyhow!("{faults:?}"))?;
            super::check(&problem, &packing)?;
            let above = packing.new_bins - packing.bound;
            plans.above[usize::try_from(above).unwrap_or(usize::MAX).min(2)] += 1;
            plans.worst = plans.worst.max(above);
            plans.machines += packing.new_bins;
            plans.bound += packing.bound;
        }
        Ok(plans)
    }

    /// Of the clusters, in percent.
    pub(crate) fn within_one(&self) -> f64 {
        super::float(self.above[0] + self.above[1]) * 100.0 / super::float(self.clusters)
    }
}

/// In milli-vCPU, MiB and GiB of local disk.
fn cluster(random: &mut Random) -> Problem {
    let vcpu = random.pick(&[8, 16, 32, 48, 64, 96]);
    let memory = vcpu * random.pick(&[4, 8]) * 1_024;
    let capacity = vec![
        vcpu * 1_000 - 200,
        memory - 512 - memory / 50,
        random.pick(&[900, 1_800, 3_600]),
    ];
    let mut group_max = Vec::new();
    let mut items = Vec::new();
    for _ in 0..random.range(1, 20) {
        let cpu = random.pick(&[250, 500, 500, 1_000, 1_000, 2_000, 2_000, 4_000, 8_000, 16_000]);
        let mib = (cpu * random.pick(&[1, 2, 2, 4, 4, 8]) * 1_024 / 1_000).min(capacity[1]);
        let disk = random.pick(&[0, 0, 0, 20, 100, 375]);
        let most = random.pick(&[5, 50, 200]);
        let count = random.range(1, most);
        let group = (random.range(1, 3) == 1).then(|| {
            group_max.push(random.range(1, 4));
            group_max.len() - 1
        });
        items.push(Item {
            amounts: vec![cpu.min(capacity[0]), mib, disk],
            count,
            group,
        });
    }
    Problem {
        capacity,
        items,
        group_max,
        ..Problem::default()
    }
}
