//! What a run did, and an audit of it that shares nothing with any policy.

use super::trace::{Node, Task, gpu_milli};

/// Where a task went: the node by its place in the permuted order, and the mask of its devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) node: usize,
    pub(crate) devices: u8,
}

#[derive(Debug, Clone)]
enum Event {
    Arrived(Task, Option<Placement>),
    /// Tasks by number of arrival that go elsewhere, all at once.
    Moved(Vec<(usize, Placement)>),
}

/// The events of a run in their order, and the allocation that follows.
#[derive(Debug, Clone)]
pub(crate) struct Course {
    nodes: Vec<Node>,
    events: Vec<Event>,
    total: u64,
    asked: u64,
    placed: u64,
    /// Percent of the GPUs that are allocated, by percent that was asked for: the last value of each.
    pub(crate) by_percent: Vec<Option<f64>>,
    pub(crate) moves: usize,
    pub(crate) refused: usize,
}

/// What is free on a node: processors in thousandths, memory in MiB, thousandths of devices.
pub(crate) type Free = (u32, u64, [u16; 8]);

impl Course {
    pub(crate) fn new(nodes: &[Node]) -> Self {
        Self {
            nodes: nodes.to_vec(),
            events: vec![],
            total: gpu_milli(nodes),
            asked: 0,
            placed: 0,
            by_percent: vec![],
            moves: 0,
            refused: 0,
        }
    }

    pub(crate) fn arrived(&mut self, task: &Task, placement: Option<Placement>) {
        self.asked += task.gpu();
        match placement {
            Some(_) => self.placed += task.gpu(),
            None => self.refused += 1,
        }
        let percent =
            usize::try_from((self.asked * 200 + self.total) / (self.total * 2)).expect("a few hundred");
        if self.by_percent.len() <= percent {
            self.by_percent.resize(percent + 1, None);
        }
        self.by_percent[percent] = Some(share(self.placed, self.total));
        self.events.push(Event::Arrived(*task, placement));
    }

    pub(crate) fn moved(&mut self, moves: Vec<(usize, Placement)>) {
        self.moves += moves.len();
        self.events.push(Event::Moved(moves));
    }

    /// Allocation in percent when so many percent had been asked for.
    pub(crate) fn at(&self, percent: usize) -> f64 {
        let known = self.by_percent.iter().take(percent + 1).rev().flatten().next();
        known.copied().unwrap_or(0.0)
    }

    /// A fingerprint of every decision in its order (FNV-1a): two runs are equal byte for byte when it is.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut add = |value: u64| {
            for byte in value.to_le_bytes() {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        };
        let mut place = |placement: Option<Placement>| match placement {
            Some(placement) => {
                add(placement.node as u64);
                add(u64::from(placement.devices));
            }
            None => add(u64::MAX),
        };
        for event in &self.events {
            match event {
                Event::Arrived(_, placement) => place(*placement),
                Event::Moved(moves) => {
                    for (task, placement) in moves {
                        place(Some(Placement {
                            node: *task,
                            devices: 0,
                        }));
                        place(Some(*placement));
                    }
                }
            }
        }
        hash
    }

    /// Replays all events on plain books and refuses whatever does not fit exactly; gives what is free at the end.
    ///
    /// # Panics
    /// At the first event that is wrong.
    pub(crate) fn audit(&self) -> Vec<Free> {
        let mut books = Books::new(&self.nodes);
        let mut placed = 0;
        let mut where_is: Vec<(Task, Option<Placement>)> = vec![];
        for event in &self.events {
            match event {
                Event::Arrived(task, placement) => {
                    if let Some(placement) = placement {
                        books.take(task, placement);
                        placed += task.gpu();
                    }
                    where_is.push((*task, *placement));
                }
                Event::Moved(moves) => {
                    for (number, _) in moves {
                        let (task, placement) = &where_is[*number];
                        books.give(task, placement.as_ref().expect("only what is placed moves"));
                    }
                    for (number, placement) in moves {
                        books.take(&where_is[*number].0, placement);
                        where_is[*number].1 = Some(*placement);
                    }
                }
            }
        }
        assert!(placed == self.placed, "what is counted as placed was placed");
        books.free
    }

    /// Compares the audit's books with those of who decided.
    ///
    /// # Panics
    /// When they differ.
    pub(crate) fn check_rows(&self, row: impl Fn(usize) -> Free) {
        for (node, free) in self.audit().iter().enumerate() {
            assert!(
                *free == row(node),
                "node {node}: {free:?} by the audit, {:?} by the engine",
                row(node)
            );
        }
    }
}

/// Plain books: what is free on each node, and how many tasks it has.
struct Books<'a> {
    nodes: &'a [Node],
    free: Vec<Free>,
    tasks: Vec<u32>,
}

impl<'a> Books<'a> {
    fn new(nodes: &'a [Node]) -> Self {
        let free = nodes.iter().map(|node| {
            let mut devices = [0; 8];
            devices[..usize::from(node.gpus)].fill(1000);
            (node.cpu_milli, u64::from(node.memory_mib), devices)
        });
        Self {
            nodes,
            free: free.collect(),
            tasks: vec![0; nodes.len()],
        }
    }

    fn take(&mut self, task: &Task, placement: &Placement) {
        let node = &self.nodes[placement.node];
        let (cpu, memory, devices) = &mut self.free[placement.node];
        self.tasks[placement.node] += 1;
        assert!(
            self.tasks[placement.node] <= 1001,
            "a node has at most 1001 tasks"
        );
        assert!(
            placement.devices.count_ones() == u32::from(task.count),
            "as many devices as asked for"
        );
        assert!(
            task.models == 0 || task.models >> node.model & 1 == 1 || task.count == 0,
            "a model that will do"
        );
        *cpu = cpu.checked_sub(task.cpu_milli).expect("processors suffice");
        *memory = memory
            .checked_sub(u64::from(task.memory_mib))
            .expect("memory suffices");
        for device in (0..8).filter(|device| placement.devices >> device & 1 == 1) {
            devices[device] = devices[device]
                .checked_sub(task.milli)
                .expect("the device suffices");
        }
    }

    fn give(&mut self, task: &Task, placement: &Placement) {
        let (cpu, memory, devices) = &mut self.free[placement.node];
        self.tasks[placement.node] -= 1;
        *cpu += task.cpu_milli;
        *memory += u64::from(task.memory_mib);
        for device in (0..8).filter(|device| placement.devices >> device & 1 == 1) {
            devices[device] += task.milli;
        }
    }
}

/// Percent.
#[expect(clippy::cast_precision_loss, reason = "amounts of a cluster, for a report")]
fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64 * 100.0
}
