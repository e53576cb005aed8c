//! Which member should own which cluster, and what one member does about it. Pure.
//!
//! Rendezvous hashing: of all members the one with the highest hash of (member, cluster) wins a cluster. Every member
//! computes the same from the same view; a member that joins or leaves moves only the clusters that it wins or won.

use std::collections::{BTreeMap, BTreeSet};

use berth_api::id::ClusterId;
use sha2::{Digest as _, Sha256};

use crate::store::{Member, OwnerChange};

/// What is known of the members and their clusters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// By nonce.
    members: BTreeMap<String, Member>,
    /// Nonce of each cluster's owner.
    owners: BTreeMap<ClusterId, String>,
    /// Every cluster that is there or was a moment ago.
    clusters: BTreeSet<ClusterId>,
    /// What was claimed since the last survey was begun, by nonce: the survey may be older.
    claimed: BTreeMap<ClusterId, String>,
}

/// What a member should do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Duties {
    /// Nobody owns them, and this member wins them.
    pub(crate) claim: Vec<ClusterId>,
    /// Its own, and no actor runs for them.
    pub(crate) start: Vec<ClusterId>,
    /// An actor runs for them, and another member wins them or owns them.
    pub(crate) hand_over: Vec<ClusterId>,
}

impl View {
    pub(crate) fn new(
        members: Vec<Member>,
        owners: Vec<(ClusterId, String)>,
        clusters: Vec<ClusterId>,
    ) -> Self {
        let owners: BTreeMap<_, _> = owners.into_iter().collect();
        let mut clusters: BTreeSet<_> = clusters.into_iter().collect();
        clusters.extend(owners.keys().cloned());
        Self {
            members: members
                .into_iter()
                .map(|member| (member.nonce.clone(), member))
                .collect(),
            owners,
            clusters,
            claimed: BTreeMap::new(),
        }
    }

    /// A survey is about to be made.
    pub(crate) fn survey_begins(&mut self) {
        self.claimed.clear();
    }

    /// Takes what a survey has found. What was claimed while it was made stays claimed: whatever became of that since, the
    /// changes after the survey tell in their order.
    pub(crate) fn survey_ends(&mut self, found: Self) {
        let claimed = std::mem::replace(self, found).claimed;
        for (cluster, nonce) in claimed {
            self.apply(OwnerChange::Owned(cluster, nonce));
        }
    }

    /// A member has claimed a cluster. The changes say so too, later: until then nothing else may follow from the view.
    pub(crate) fn claimed(&mut self, cluster: &ClusterId, nonce: &str) {
        self.claimed.insert(cluster.clone(), nonce.to_owned());
        self.apply(OwnerChange::Owned(cluster.clone(), nonce.to_owned()));
    }

    pub(crate) fn apply(&mut self, change: OwnerChange) {
        match change {
            OwnerChange::Joined(member) => drop(self.members.insert(member.nonce.clone(), member)),
            OwnerChange::Left(nonce) => drop(self.members.remove(&nonce)),
            OwnerChange::Owned(cluster, nonce) => {
                self.clusters.insert(cluster.clone());
                self.owners.insert(cluster, nonce);
            }
            OwnerChange::Free(cluster) => drop(self.owners.remove(&cluster)),
        }
    }

    /// The cluster is no more.
    pub(crate) fn forget(&mut self, cluster: &ClusterId) {
        self.clusters.remove(cluster);
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    pub(crate) fn knows(&self, cluster: &ClusterId) -> bool {
        self.clusters.contains(cluster)
    }

    /// The member that owns a cluster now, while it is known where that is.
    pub(crate) fn owner(&self, cluster: &ClusterId) -> Option<&Member> {
        self.members.get(self.owners.get(cluster)?)
    }

    /// The member that should own a cluster.
    pub(crate) fn winner(&self, cluster: &ClusterId) -> Option<&Member> {
        // A process that was started again stands beside its former self until that one's lease is gone: of equal
        // addresses the nonce decides.
        self.members
            .values()
            .max_by_key(|member| (weight(member, cluster), member.nonce.as_str()))
    }

    /// What member `me` should do when actors run for `running`.
    pub(crate) fn duties(&self, me: &str, running: &BTreeSet<ClusterId>) -> Duties {
        let mut duties = Duties::default();
        for cluster in self.clusters.union(running) {
            let is_winner = self.winner(cluster).is_some_and(|winner| winner.nonce == me);
            let owner = self.owners.get(cluster).map(String::as_str);
            match (owner, running.contains(cluster)) {
                (None, false) if is_winner => duties.claim.push(cluster.clone()),
                (Some(owner), false) if owner == me => duties.start.push(cluster.clone()),
                (Some(owner), true) if owner == me && is_winner => {}
                // Without an owner key nothing can be written: the actor has to end before it is claimed again.
                (_, true) => duties.hand_over.push(cluster.clone()),
                (_, false) => {}
            }
        }
        duties
    }
}

fn weight(member: &Member, cluster: &ClusterId) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(member.rest_url.as_bytes());
    hasher.update([0]);
    hasher.update(cluster.as_str().as_bytes());
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(number: u32) -> Member {
        Member {
            nonce: format!("n{number}"),
            rest_url: format!("http://10.0.0.{number}:7600"),
            link_url: format!("https://10.0.0.{number}:7601"),
        }
    }

    fn clusters(count: u32) -> Vec<ClusterId> {
        (0..count)
            .map(|number| ClusterId::new(format!("c{number}")).unwrap())
            .collect()
    }

    fn shares(view: &View, clusters: &[ClusterId]) -> BTreeMap<String, usize> {
        let mut shares = BTreeMap::new();
        for cluster in clusters {
            let winner = view.winner(cluster).unwrap();
            *shares.entry(winner.nonce.clone()).or_insert(0) += 1;
        }
        shares
    }

    #[test]
    fn clusters_are_shared_evenly_and_only_a_lost_members_share_moves() {
        let all = clusters(3000);
        let view = View::new(vec![member(1), member(2), member(3)], Vec::new(), all.clone());
        for (nonce, share) in shares(&view, &all) {
            assert!((850..1150).contains(&share), "{nonce} has {share} of 3000");
        }
        let mut fewer = view.clone();
        fewer.apply(OwnerChange::Left("n2".into()));
        for cluster in &all {
            let before = &view.winner(cluster).unwrap().nonce;
            let after = &fewer.winner(cluster).unwrap().nonce;
            assert!(before == after || before == "n2", "{cluster} moved from {before}");
        }
    }

    #[test]
    fn a_cluster_is_claimed_by_its_winner_alone_and_only_when_it_is_free() {
        let all = clusters(100);
        let mut view = View::new(vec![member(1), member(2)], Vec::new(), all.clone());
        let none = BTreeSet::new();
        let (one, two) = (view.duties("n1", &none), view.duties("n2", &none));
        assert_eq!(one.claim.len() + two.claim.len(), 100);
        for cluster in &all {
            view.apply(OwnerChange::Owned(cluster.clone(), "gone".into()));
        }
        assert_eq!(view.duties("n1", &none), Duties::default());
        view.apply(OwnerChange::Free(one.claim[0].clone()));
        assert_eq!(view.duties("n1", &none).claim, [one.claim[0].clone()]);
        assert_eq!(view.duties("n2", &none), Duties::default());
    }

    #[test]
    fn a_joining_member_is_given_its_share_once_the_owner_has_stopped() {
        let all = clusters(10);
        let owned = all
            .iter()
            .map(|cluster| (cluster.clone(), "n1".to_owned()))
            .collect();
        let mut view = View::new(vec![member(1)], owned, all.clone());
        let running: BTreeSet<_> = all.iter().cloned().collect();
        assert_eq!(view.duties("n1", &running), Duties::default());
        assert_eq!(view.duties("n1", &BTreeSet::new()).start, all);
        view.apply(OwnerChange::Joined(member(2)));
        let handed = view.duties("n1", &running).hand_over;
        assert!(!handed.is_empty() && handed.len() < 10);
        assert_eq!(view.duties("n2", &BTreeSet::new()), Duties::default());
        view.apply(OwnerChange::Free(handed[0].clone()));
        assert_eq!(view.duties("n2", &BTreeSet::new()).claim, [handed[0].clone()]);
    }

    #[test]
    fn a_cluster_that_is_created_during_a_survey_stays_where_it_is() {
        let mut view = View::new(vec![member(1)], Vec::new(), Vec::new());
        view.survey_begins();
        let found = view.clone();
        let created = clusters(1);
        view.claimed(&created[0], "n1");
        view.survey_ends(found.clone());
        let running: BTreeSet<_> = created.iter().cloned().collect();
        assert_eq!(view.duties("n1", &running), Duties::default());
        // It is the changes' word that counts from then on, and that of the next survey.
        view.apply(OwnerChange::Free(created[0].clone()));
        assert_eq!(view.duties("n1", &running).hand_over, created);
        view.claimed(&created[0], "n1");
        view.survey_begins();
        view.survey_ends(found);
        assert_eq!(view.duties("n1", &running).hand_over, created);
    }

    #[test]
    fn an_actor_whose_ownership_is_gone_ends() {
        let all = clusters(1);
        let view = View::new(vec![member(1)], Vec::new(), all.clone());
        let running: BTreeSet<_> = all.iter().cloned().collect();
        assert_eq!(view.duties("n1", &running).hand_over, all);
    }
}
