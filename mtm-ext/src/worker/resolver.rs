//! mtm-resolver: finishes prepared transactions that no apply worker has, and asks for outcomes
//! that were not heard of.

use crate::dmq;
use crate::pg::shmem::{self, Part};
use crate::pg::{bgworker, pipe, proc, sqlrun, twophase, xact};
use core::sync::atomic::Ordering;
use mtm_core::{Gid, Lsn};
use mtm_node::message::Message;
use mtm_paxos::commit::{Participant, ParticipantState, ParticipantStep};
use pgrx::spi::Spi;

/// An outcome that has not been heard of for so long is asked for.
const ASK_US: u64 = 300_000;

/// Runs until the server stops.
pub fn run() {
    let header = shmem::header();
    bgworker::connect_to_database(header.database.load(Ordering::Relaxed));
    xact::set_applying();
    header.resolver.store(proc::my_procno(), Ordering::Release);
    if header.recovered.load(Ordering::Acquire) == 0 {
        collect_prepared();
        header.recovered.store(1, Ordering::Release);
        proc::wake(header.monitor.load(Ordering::Acquire));
    }
    pipe::with_exit_hook(serve, release);
}

fn serve() {
    loop {
        bgworker::handle_signals();
        finish_orphans();
        let undecided = ask();
        proc::wait(None, Some(if undecided { ASK_US } else { 4 * ASK_US }));
    }
}

/// Takes note of transactions of other nodes that were prepared before the server started.
fn collect_prepared() {
    let gids: Vec<String> = sqlrun::in_transaction(|| {
        Spi::connect(|client| {
            let rows = client
                .select(
                    "SELECT gid FROM pg_catalog.pg_prepared_xacts \
                     WHERE database = pg_catalog.current_database()",
                    None,
                    &[],
                )
                .expect("a plain query");
            rows.filter_map(|row| row.get::<String>(1).ok().flatten()).collect()
        })
    });
    let me = shmem::header().me();
    let foreign = |gid: &Gid| Some(gid.origin) != me;
    for gid in gids.iter().filter_map(|text| text.parse::<Gid>().ok()).filter(foreign) {
        shmem::participants(|table| {
            let fresh = || Part {
                participant: Participant::found_prepared(),
                lsn: Lsn(0),
                worker: proc::NO_PROC,
                taken: false,
                asked_us: 0,
                lost_to: None,
            };
            if table.entry(gid, fresh).is_err() {
                pgrx::warning!("no place for prepared transaction {gid}");
            }
        });
    }
}

/// Finishes decided transactions that no worker has.
fn finish_orphans() {
    let decided: Vec<Gid> = shmem::participants(|table| {
        let ours = |(_, part): &(&Gid, &Part)| orphans_decision(part).is_some();
        table.iter().filter(ours).map(|(gid, _)| *gid).collect()
    });
    let me = proc::my_procno();
    for gid in decided {
        // Somebody else may have taken it, and even finished it, meanwhile.
        let commit = shmem::participants(|table| {
            let part = table.get_mut(&gid)?;
            let commit = orphans_decision(part)?;
            part.worker = me;
            part.taken = true;
            Some(commit)
        });
        if let Some(commit) = commit {
            finish(&gid, commit);
        }
    }
}

/// Whether to commit what is decided and nobody carries out; `None` for all else.
fn orphans_decision(part: &Part) -> Option<bool> {
    match part.participant.state() {
        _ if part.worker != proc::NO_PROC || part.taken => None,
        ParticipantState::Committing => Some(true),
        ParticipantState::RollingBack => Some(false),
        _ => None,
    }
}

/// At the resolver's end: what it has not finished is for the next one.
fn release() {
    let me = proc::my_procno();
    shmem::participants(|table| {
        let mine: Vec<Gid> =
            table.iter().filter(|(_, part)| part.worker == me).map(|(gid, _)| *gid).collect();
        for gid in mine {
            if let Some(part) = table.get_mut(&gid) {
                part.worker = proc::NO_PROC;
                part.taken = false;
            }
        }
    });
}

/// COMMIT PREPARED or ROLLBACK PREPARED, and what follows from it.
pub fn finish(gid: &Gid, commit: bool) {
    xact::mark_origin(Lsn(0));
    twophase::finish(&gid.to_string(), commit);
    xact::unmark_commit_record();
    let step = shmem::participants(|table| {
        table.get_mut(gid).map(|part| {
            part.worker = proc::NO_PROC;
            part.taken = false;
            part.participant.finished()
        })
    });
    if step == Some(ParticipantStep::TellCommitted) {
        dmq::send(gid.origin, &Message::Committed(*gid));
    }
}

/// Asks origins for outcomes; `true` if something is undecided.
fn ask() -> bool {
    let now = proc::now().0;
    let mut undecided = false;
    let overdue: Vec<Gid> = shmem::participants(|table| {
        let gids: Vec<Gid> = table
            .iter()
            .filter(|(_, part)| {
                let waits = !part.participant.is_finished()
                    && !matches!(
                        part.participant.state(),
                        ParticipantState::Applying
                            | ParticipantState::Preparing(_)
                            | ParticipantState::Committing
                            | ParticipantState::RollingBack
                    );
                undecided |= waits;
                waits && now.saturating_sub(part.asked_us) >= ASK_US
            })
            .map(|(gid, _)| *gid)
            .collect();
        for gid in &gids {
            if let Some(part) = table.get_mut(gid) {
                part.asked_us = now;
            }
        }
        gids
    });
    for gid in overdue {
        dmq::send(gid.origin, &Message::Query(gid));
    }
    undecided
}
