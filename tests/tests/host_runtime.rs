//! Containers and images on a real containerd: a private one per test, with its own root, state and socket.
//!
//! Proves what only the real thing can: that exits arrive however soon, that limits bite, that containerd may be killed
//! under running containers, that pulls check what they get. Needs root, containerd, runc and the static busybox of
//! Debian's busybox-static; says what is missing and skips otherwise.

#[cfg(test)]
mod host_runtime {
    pub(crate) mod collect;
    pub(crate) mod containerd;
    pub(crate) mod exec;
    pub(crate) mod hostile;
    pub(crate) mod images;
    pub(crate) mod lifecycle;
    pub(crate) mod limits;
    pub(crate) mod logins;
    pub(crate) mod outage;
    pub(crate) mod registry;
}
