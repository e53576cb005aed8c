//! Writes under an idempotency key: done once, and a repeat answered as the first was.
//!
//! The answer is kept in the cluster's log by the same append as the change, so there is no moment in which one is durable
//! and the other is not. Only what was done is kept: a refusal changed nothing, and its repeat is judged anew.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Draft;
use crate::entry::{Entry, TokenDigest, TokenKind};
use crate::refusal::{Class, Refused};
use crate::world::{KeptWrite, World};

/// The key of a write and what it asks for, as digests (see [`KeptWrite`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Once {
    pub key: String,
    pub request: String,
}

/// An answer as it may be kept: tokens are left out and told by their digests.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
    pub tokens: BTreeMap<TokenKind, TokenDigest>,
}

impl Answer {
    /// An answer without tokens.
    #[must_use]
    pub fn plain(status: u16, body: Value) -> Self {
        Self {
            status,
            body,
            tokens: BTreeMap::new(),
        }
    }
}

/// Whether a write was done now or before.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Done(Answer),
    Replayed(Answer),
}

impl Once {
    /// The answer to this write, when it was done before.
    ///
    /// # Errors
    /// When the key was used for another write.
    pub fn answered(
        &self,
        world: &World,
        now: berth_api::time::Timestamp,
    ) -> Result<Option<Answer>, Refused> {
        let Some(kept) = world.kept_writes().find(&self.key, now) else {
            return Ok(None);
        };
        if kept.request != self.request {
            return Err(Refused::new(
                Class::Conflict,
                "idempotency_key_reused",
                format!(
                    "the Idempotency-Key was used at {} for another request; use a new key for each write",
                    kept.at
                ),
            ));
        }
        Ok(Some(Answer {
            status: kept.status,
            body: kept.answer.clone(),
            tokens: kept.tokens.clone(),
        }))
    }

    /// What is to be kept of a write that was just done.
    pub(crate) fn entry(self, answer: &Answer, at: berth_api::time::Timestamp) -> Entry {
        Entry::WriteKept(KeptWrite {
            key: self.key,
            request: self.request,
            status: answer.status,
            answer: answer.body.clone(),
            tokens: answer.tokens.clone(),
            at,
        })
    }
}

impl Draft<'_> {
    /// Does `write`, or answers as it was answered before under the same key.
    ///
    /// # Errors
    /// With the refusal of `write`, or when the key was used for another write.
    pub fn once(
        &mut self,
        once: Option<Once>,
        write: impl FnOnce(&mut Self) -> Result<Answer, Refused>,
    ) -> Result<Outcome, Refused> {
        let Some(once) = once else {
            return write(self).map(Outcome::Done);
        };
        if let Some(answer) = once.answered(self.world(), self.now.wall)? {
            return Ok(Outcome::Replayed(answer));
        }
        let answer = write(self)?;
        self.append(once.entry(&answer, self.now.wall))?;
        Ok(Outcome::Done(answer))
    }
}
