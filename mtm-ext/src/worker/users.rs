//! Users' two-phase transactions in workers: names that are held, and what a restart finds.

use super::conflict;
use crate::pg::shmem;
use crate::pg::{bgworker, proc, xact};
use crate::users::{self, Work};
use mtm_core::Gid;
use mtm_node::restart::FoundUser;
use mtm_node::user::{Obstacle, Operation, Stage};
use mtm_paxos::commit::Decree;

/// How often to look whether a name is free.
const LOOK_US: u64 = 5_000;

/// Takes the name that the running transaction of a worker needs. An ERROR when it is not free, or
/// when it would have to be waited for and `may_wait` is not set.
pub fn hold(gid: &Gid, work: &Work, may_wait: bool) {
    let local = xact::assign_number().short();
    let mut told = None;
    while let Err(obstacle) = users::hold(gid, &work.operation, local) {
        let name = || users::name_of(&work.operation);
        match obstacle {
            Obstacle::Busy(_) if !may_wait => {
                bgworker::raise("55P03", "left to an apply worker", "");
            }
            Obstacle::Busy(holder) => {
                if told != Some(holder) {
                    told = Some(holder);
                    if conflict::loses_name(gid, holder) {
                        users::raise(&work.operation, name(), obstacle);
                    }
                }
                proc::wait(None, Some(LOOK_US));
                proc::check_interrupts();
            }
            Obstacle::InUse | Obstacle::NotPrepared | Obstacle::TableFull => {
                users::raise(&work.operation, name(), obstacle);
            }
        }
    }
}

/// At the server's start, behind the fence: what is prepared holds its names again, and what a
/// committed second operation says is done.
pub fn restore(found: &[FoundUser]) {
    for user in found.iter().filter(|user| user.unnoted) {
        users::note_prepared(&user.first, &Operation::Prepare(user.name), user.local);
    }
    for user in found {
        if let Err(obstacle) = shmem::node(|state| hold_again(state, user)) {
            pgrx::error!("prepared transaction \"{}\" is there, but {obstacle}", user.name);
        }
    }
    for user in found.iter().filter(|user| user.ended) {
        let Stage::Finishing { second, decree } = user.stage else { continue };
        users::end_users(&user.first, decree);
        shmem::node(|state| state.end_operation(&second, Decree::Commit));
    }
    if !found.is_empty() {
        pgrx::log!("multimaster: {} two-phase transactions of users are known", found.len());
    }
}

fn hold_again(state: &mut shmem::NodeState, user: &FoundUser) -> Result<(), Obstacle> {
    let mut users = state.users();
    match user.stage {
        Stage::Preparing => users.hold(user.first, &Operation::Prepare(user.name))?,
        Stage::Prepared | Stage::Finishing { .. } => users.restore(user.first, user.name)?,
    }
    users.known_as(&user.first, user.local);
    if let Stage::Finishing { second, decree } = user.stage {
        users.hold(second, &Operation::Finish { first: user.first, decree })?;
    }
    Ok(())
}
