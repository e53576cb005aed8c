//! An instance of the ROADEF/EURO challenge 2012, and the exact check and cost of an assignment, straight from the rules.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, ensure};

#[derive(Debug)]
pub(super) struct Machine {
    pub(super) neighborhood: usize,
    pub(super) location: usize,
    pub(super) capacity: Vec<i64>,
    /// What is used above it costs.
    pub(super) safety: Vec<i64>,
    /// Of moving a process from here to each machine.
    pub(super) move_cost: Vec<i64>,
}

#[derive(Debug)]
pub(super) struct Service {
    /// Its processes are in at least so many locations.
    pub(super) spread: usize,
    /// Each neighborhood with one of its processes has one of each of these services.
    pub(super) needs: Vec<usize>,
}

#[derive(Debug)]
pub(super) struct Process {
    pub(super) service: usize,
    pub(super) needs: Vec<i64>,
    pub(super) move_cost: i64,
}

/// What is free of the second resource should be at least `target` times what is free of the first.
#[derive(Debug)]
pub(super) struct Balance {
    pub(super) first: usize,
    pub(super) second: usize,
    pub(super) target: i64,
    pub(super) weight: i64,
}

#[derive(Debug)]
pub(super) struct Instance {
    /// Resources that a process holds at its first machine even after it left it.
    pub(super) is_transient: Vec<bool>,
    pub(super) load_weight: Vec<i64>,
    pub(super) machines: Vec<Machine>,
    pub(super) services: Vec<Service>,
    pub(super) processes: Vec<Process>,
    pub(super) balances: Vec<Balance>,
    pub(super) process_move_weight: i64,
    pub(super) service_move_weight: i64,
    pub(super) machine_move_weight: i64,
    pub(super) first: Vec<usize>,
}

struct Numbers(std::vec::IntoIter<i64>);

impl Numbers {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let numbers: Result<Vec<i64>, _> = text.split_ascii_whitespace().map(str::parse).collect();
        let numbers = numbers.with_context(|| format!("numbers of {}", path.display()))?;
        Ok(Self(numbers.into_iter()))
    }

    fn next(&mut self) -> anyhow::Result<i64> {
        self.0.next().context("the file ends early")
    }

    fn count(&mut self) -> anyhow::Result<usize> {
        Ok(usize::try_from(self.next()?)?)
    }

    fn many(&mut self, count: usize) -> anyhow::Result<Vec<i64>> {
        (0..count).map(|_| self.next()).collect()
    }

    fn indexes(&mut self, count: usize) -> anyhow::Result<Vec<usize>> {
        (0..count).map(|_| self.count()).collect()
    }

    fn end(mut self) -> anyhow::Result<()> {
        ensure!(self.0.next().is_none(), "the file goes on after its end");
        Ok(())
    }
}

impl Instance {
    pub(super) fn read(folder: &Path, name: &str) -> anyhow::Result<Self> {
        let mut file = Numbers::read(&folder.join(format!("model_{name}.txt")))?;
        let resources = file.count()?;
        let (mut is_transient, mut load_weight) = (vec![], vec![]);
        for _ in 0..resources {
            is_transient.push(file.next()? != 0);
            load_weight.push(file.next()?);
        }
        let count = file.count()?;
        let mut machines = vec![];
        for _ in 0..count {
            machines.push(Machine {
                neighborhood: file.count()?,
                location: file.count()?,
                capacity: file.many(resources)?,
                safety: file.many(resources)?,
                move_cost: file.many(count)?,
            });
        }
        let mut services = vec![];
        for _ in 0..file.count()? {
            let (spread, needs) = (file.count()?, file.count()?);
            let needs = file.indexes(needs)?;
            services.push(Service { spread, needs });
        }
        let mut processes = vec![];
        for _ in 0..file.count()? {
            processes.push(Process {
                service: file.count()?,
                needs: file.many(resources)?,
                move_cost: file.next()?,
            });
        }
        let mut balances = vec![];
        for _ in 0..file.count()? {
            balances.push(Balance {
                first: file.count()?,
                second: file.count()?,
                target: file.next()?,
                weight: file.next()?,
            });
        }
        let weights = file.many(3)?;
        file.end()?;
        let mut assignment = Numbers::read(&folder.join(format!("assignment_{name}.txt")))?;
        let first = assignment.indexes(processes.len())?;
        assignment.end()?;
        Ok(Self {
            is_transient,
            load_weight,
            machines,
            services,
            processes,
            balances,
            process_move_weight: weights[0],
            service_move_weight: weights[1],
            machine_move_weight: weights[2],
            first,
        })
    }

    fn used(&self, at: &[usize]) -> Vec<Vec<i64>> {
        let mut used = vec![vec![0; self.is_transient.len()]; self.machines.len()];
        for (process, machine) in self.processes.iter().zip(at) {
            for (used, need) in used[*machine].iter_mut().zip(&process.needs) {
                *used += need;
            }
        }
        used
    }

    /// The rules that an assignment breaks.
    pub(super) fn broken(&self, at: &[usize]) -> Vec<&'static str> {
        let mut broken = BTreeSet::new();
        let mut held = self.used(at);
        for ((process, machine), first) in self.processes.iter().zip(at).zip(&self.first) {
            for (resource, need) in process.needs.iter().enumerate() {
                if machine != first && self.is_transient[resource] {
                    held[*first][resource] += need;
                }
            }
        }
        for (machine, held) in self.machines.iter().zip(&held) {
            if held
                .iter()
                .zip(&machine.capacity)
                .any(|(held, capacity)| held > capacity)
            {
                broken.insert("capacity");
            }
        }
        let mut pairs = BTreeSet::new();
        let mut locations = vec![BTreeSet::new(); self.services.len()];
        let mut neighborhoods = vec![BTreeSet::new(); self.services.len()];
        for (process, machine) in self.processes.iter().zip(at) {
            if !pairs.insert((process.service, *machine)) {
                broken.insert("conflict");
            }
            locations[process.service].insert(self.machines[*machine].location);
            neighborhoods[process.service].insert(self.machines[*machine].neighborhood);
        }
        for (service, facts) in self.services.iter().enumerate() {
            if locations[service].len() < facts.spread {
                broken.insert("spread");
            }
            if facts
                .needs
                .iter()
                .any(|other| !neighborhoods[service].is_subset(&neighborhoods[*other]))
            {
                broken.insert("dependency");
            }
        }
        broken.into_iter().collect()
    }

    pub(super) fn cost(&self, at: &[usize]) -> i64 {
        let mut cost = 0;
        for (machine, used) in self.machines.iter().zip(self.used(at)) {
            cost += self.machine_cost(machine, &used);
        }
        let mut moved = vec![0; self.services.len()];
        for ((process, machine), first) in self.processes.iter().zip(at).zip(&self.first) {
            cost += self.machine_move_weight * self.machines[*first].move_cost[*machine];
            if machine != first {
                cost += self.process_move_weight * process.move_cost;
                moved[process.service] += 1;
            }
        }
        cost + self.service_move_weight * moved.into_iter().max().unwrap_or(0)
    }

    /// Load and balance.
    pub(super) fn machine_cost(&self, machine: &Machine, used: &[i64]) -> i64 {
        let mut cost = 0;
        for ((used, safety), weight) in used.iter().zip(&machine.safety).zip(&self.load_weight) {
            cost += weight * (used - safety).max(0);
        }
        for balance in &self.balances {
            let free = |resource: usize| machine.capacity[resource] - used[resource];
            cost += balance.weight * (balance.target * free(balance.first) - free(balance.second)).max(0);
        }
        cost
    }
}
