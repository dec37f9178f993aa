//! Users' two-phase transactions: what the driver does beside what it does for all others
//! (specs/adr/0111), and what must be true of them (TLA+ `UserTwoPhase`).

use super::{Then, World};
use crate::database::{Body, Record};
use crate::plan::UserWord;
use crate::planted::Driver;
use mtm_core::Gid;
use mtm_node::Input;
use mtm_node::user::{Name, Obstacle, Operation, Stage};
use mtm_paxos::commit::Decree;

fn name(number: u8) -> Name {
    Name::new(&[b'a' + number % 26]).expect("it is short")
}

impl World {
    /// The user says PREPARE TRANSACTION, COMMIT PREPARED or ROLLBACK PREPARED. What the server
    /// would refuse it refuses now, before anything is announced.
    pub(super) fn says_its_word(&mut self, i: usize, id: u64) -> bool {
        let Some(word) = self.hosts[i].backends[&id].word else { return true };
        let prepared = |w: &mut Self, number| match w.hosts[i].users().by_name(&name(number)) {
            Some((first, user)) if user.stage == Stage::Prepared => Some(first),
            _ => None,
        };
        let operation = match word {
            UserWord::Prepare(number) => Some(Operation::Prepare(name(number))),
            UserWord::Commit(number) => {
                let finish = |first| Operation::Finish { first, decree: Decree::Commit };
                prepared(self, number).map(finish)
            }
            UserWord::Rollback(number) => {
                let finish = |first| Operation::Finish { first, decree: Decree::Abort };
                prepared(self, number).map(finish)
            }
        };
        let Some(operation) = operation else {
            self.end_unannounced(i, id);
            return false;
        };
        if let Operation::Finish { first, decree } = operation
            && self.neglects(Driver::SecondAtOnce)
        {
            self.append_end(i, first, decree, Then::Nothing);
            self.end_backend(i, id);
            return false;
        }
        if let Some(backend) = self.hosts[i].backends.get_mut(&id) {
            backend.body.user = Some(operation);
        }
        true
    }

    /// Takes the name in the step in which the transaction gets its gid.
    pub(super) fn hold_announced(&mut self, i: usize, gid: Gid) -> bool {
        let local = self.hosts[i].local(&gid);
        let Some(backend) = self.hosts[i].backends.get(&local.0) else { return true };
        let Some(operation) = backend.body.user else {
            // A crash may have lost all trace of another one with this name.
            self.oracle.operations.remove(&gid);
            return true;
        };
        self.oracle.operations.insert(gid, operation);
        self.hold_name(i, gid, &operation).is_ok()
    }

    fn hold_name(&mut self, i: usize, gid: Gid, operation: &Operation) -> Result<(), Obstacle> {
        if self.neglects(Driver::NameUnchecked) && matches!(operation, Operation::Prepare(_)) {
            return Ok(());
        }
        self.hosts[i].users().hold(gid, operation)?;
        self.hosts[i].operations.insert(gid, *operation);
        Ok(())
    }

    /// An apply worker takes the name when it has all rows.
    pub(super) fn hold_applied(&mut self, i: usize, gid: Gid) -> bool {
        let operation = self.hosts[i].appliers.get(&gid).and_then(|a| a.body.user);
        let Some(operation) = operation else { return true };
        match self.hold_name(i, gid, &operation) {
            Ok(()) => true,
            Err(Obstacle::Busy(holder)) => {
                self.waits_for(i, gid, holder);
                false
            }
            Err(Obstacle::InUse | Obstacle::NotPrepared | Obstacle::TableFull) => {
                self.discard(i, gid);
                self.feed(i, Input::ApplyFailed(gid));
                false
            }
        }
    }

    /// Recovery takes the name, away from an undecided operation if need be.
    pub(super) fn hold_for_task(&mut self, i: usize, gid: Gid, body: &Body) -> bool {
        let Some(operation) = body.user else { return true };
        match self.hold_name(i, gid, &operation) {
            Ok(()) => return true,
            Err(Obstacle::Busy(other)) => self.in_the_way(i, gid, other),
            Err(obstacle) => {
                let what = format!("n{} recovers {gid}: {obstacle}", i + 1);
                self.oracle.violated("UserKept", what);
            }
        }
        false
    }

    /// The operation has ended here.
    pub(super) fn end_operation(&mut self, i: usize, gid: Gid, outcome: Decree) {
        let host = &mut self.hosts[i];
        if let Some(operation) = host.operations.remove(&gid) {
            host.users().end(gid, &operation, outcome);
            host.locks_changed = true;
        }
    }

    /// A second operation is committed: the user's transaction ends, then the rest follows.
    pub(super) fn user_ends(&mut self, i: usize, record: &Record, then: Then) -> bool {
        let (Record::Commit(_, body) | Record::CommitPrepared(_, body)) = record else {
            return false;
        };
        let Some(Operation::Finish { first, decree }) = body.user else { return false };
        if !self.hosts[i].db.users.contains_key(&first) {
            return false;
        }
        self.append_end(i, first, decree, then);
        true
    }

    fn end_record(&self, i: usize, first: Gid, decree: Decree) -> Record {
        let keys = self.hosts[i].db.users.get(&first).map(|user| user.keys.clone());
        Record::UserEnd(first, decree, keys.unwrap_or_default())
    }

    fn append_end(&mut self, i: usize, first: Gid, decree: Decree, then: Then) {
        let record = self.end_record(i, first, decree);
        self.append_soon(i, record, then);
    }

    /// Broken: the user's transaction ends on the origin of its second operation before the
    /// commit record of that is written.
    pub(super) fn ends_first(&mut self, i: usize, body: &Body) {
        if let Some(Operation::Finish { first, decree }) = body.user
            && self.neglects(Driver::EndsFirst)
        {
            let record = self.end_record(i, first, decree);
            self.append(i, record, Then::Nothing);
        }
    }

    /// What recovery applies. Broken: what a user has prepared is not committed, so it is no
    /// business of a recovery.
    pub(super) fn as_recovered(&self, body: Body) -> Body {
        let prepare = matches!(body.user, Some(Operation::Prepare(_)));
        if prepare && self.neglects(Driver::UsersNotRecovered) { Body::default() } else { body }
    }

    pub(super) fn user_ended(&mut self, i: usize, first: Gid, record: &Record) {
        let Record::UserEnd(_, decree, keys) = record else { return };
        if *decree == Decree::Commit {
            self.written(i, first, keys);
        }
        let word = Operation::Finish { first, decree: *decree };
        if !self.oracle.operations.values().any(|said| *said == word) {
            let what = format!("n{} ends {first} by {decree:?}, which nobody asked for", i + 1);
            self.oracle.violated("UserKept", what);
        }
        let stage = self.hosts[i].users().get(&first).map(|user| user.stage);
        if let Some(Stage::Finishing { second, .. }) = stage {
            self.end_operation(i, second, Decree::Commit);
        }
    }

    /// A record that cannot be carried out.
    pub(super) fn impossible(&mut self, i: usize, gid: Gid) {
        let what = format!("n{} has decided {gid} and cannot do it", i + 1);
        self.oracle.violated("ToldRight", what);
    }

    /// Two second operations of one transaction exclude each other.
    pub(super) fn second_decided(&mut self, gid: Gid) {
        let Some(Operation::Finish { first, .. }) = self.oracle.operations.get(&gid).copied()
        else {
            return;
        };
        let known = *self.oracle.seconds.entry(first).or_insert(gid);
        if known != gid {
            let what = format!("{first} is ended by {known} and by {gid}");
            self.oracle.violated("OneSecond", what);
        }
    }

    /// After a restart: what is prepared holds its names again.
    pub(super) fn restore_users(&mut self, i: usize) {
        let users = self.hosts[i].db.users.clone();
        let mut failed = false;
        for (first, user) in users {
            failed |= self.hosts[i].users().restore(first, user.name).is_err();
            if let Some((second, decree)) = user.ending {
                failed |= self.hold_name(i, second, &Operation::Finish { first, decree }).is_err();
                self.append_end(i, first, decree, Then::Nothing);
            }
        }
        let prepared = &self.hosts[i].db.prepared;
        let mut held: Vec<(Gid, Operation)> =
            prepared.iter().filter_map(|(gid, body)| Some((*gid, body.user?))).collect();
        // First operations first.
        held.sort_by_key(|(gid, operation)| (matches!(operation, Operation::Finish { .. }), *gid));
        for (gid, operation) in held {
            failed |= self.hold_name(i, gid, &operation).is_err();
        }
        if failed {
            let what = format!("n{} has names that are held twice after its restart", i + 1);
            self.oracle.violated("UserKept", what);
        }
    }

    /// What a user has prepared stays until a second operation is decided (TLA+ `UserKept`).
    pub(super) fn check_users(&mut self, i: usize) {
        let db = &self.hosts[i].db;
        let lost = self.oracle.operations.iter().find(|(gid, operation)| {
            matches!(operation, Operation::Prepare(_))
                && db.committed.contains(*gid)
                && !db.users.contains_key(*gid)
                && !db.users_ended.contains_key(*gid)
        });
        if let Some(gid) = lost.map(|(gid, _)| *gid) {
            self.oracle.violated("UserKept", format!("n{} has lost prepared {gid}", i + 1));
        }
    }

    /// In the end all nodes have the same, and what is gone was ended by a decided operation (TLA+
    /// `UserAgreement`).
    pub(super) fn users_agree(&self) -> Result<(), String> {
        let members = self.members();
        let first = &self.hosts[members[0]].db;
        for i in members {
            let host = &self.hosts[i];
            if host.db.users != first.users || host.db.users_ended != first.users_ended {
                return Err(format!("n{} differs in what users have prepared", i + 1));
            }
        }
        let ending = first.users.iter().find(|(_, user)| user.ending.is_some());
        match ending {
            Some((gid, _)) => Err(format!("prepared {gid} is not ended")),
            None => Ok(()),
        }
    }

    /// Whether each user's transaction that ended did so by a committed second operation.
    pub(super) fn users_ended_by_decision(&mut self) {
        let ended = self.hosts[self.members()[0]].db.users_ended.clone();
        for (first, decree) in ended {
            let second = self.oracle.seconds.get(&first);
            let word = second.and_then(|gid| self.oracle.operations.get(gid)).copied();
            if word != Some(Operation::Finish { first, decree }) {
                let what = format!("{first} ended by {decree:?}, but {word:?} was decided");
                self.oracle.violated("UserAgreement", what);
            }
        }
    }
}
