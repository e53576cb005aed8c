//! What Berth promises to those who use it, held against the real programs: a scheduler, machines, containerd, the
//! kernel, all started by `berth dev` and driven through `berth` and the REST API, as a user would.
//!
//! Each test has an instance of its own and looks, when it ends, that nothing of it is left. Waits are for conditions.
//! Needs root, containerd, runc, nftables, and the static test workload that `make test` builds.

#[cfg(test)]
mod behaviour {
    mod dev;
    mod disks;
    mod escape;
    mod faults;
    mod identity;
    mod input;
    mod inspect;
    mod life;
    mod logs;
    mod loss;
    mod names;
    mod outages;
    mod rollout;
    mod squeeze;
    mod storage;
    mod tunnel;
    mod upgrade;
    mod wedged;
}
