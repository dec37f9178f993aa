//! Who may read and write on this node, and when: clients of a node that is not online are
//! refused, since what they would read may be old and what they would write may be lost.
//!
//! Readers are as careful as writers here: a node that was cut off from the majority, or has just
//! gone on after standing still, may not know yet that the others went on without it. So a look at
//! the machine is good only as long as a majority has lent this node its word not to do that
//! (specs/adr/0118), and never for long; while it is good a statement costs a clock reading. From
//! then on statements wait until the word is given again, or it is clear that it is not.

use crate::pg::{access, proc, shmem, sqlrun, xact};
use crate::{cluster, guc, machine, report};
use core::cell::Cell;
use core::sync::atomic::Ordering;
use mtm_core::{Instant, NodeSet};
use mtm_generations::{NodeStatus, Reason};
use mtm_node::Node;
use pgrx::PgSqlErrorCode;

/// How long a look at the machine is good for at most, in microseconds.
const GOOD_US: u64 = 100_000;
/// How often to look again while waiting, in microseconds.
const LOOK_US: u64 = 10_000;
/// Names under which nodes connect to each other.
const PEERS: [&str; 2] = ["mtm_dmq", "mtm_receiver"];
const HINT: &str = "Connect to another node. Here mtm.status() can be read, and a session with \
                    application_name = mtm_admin reads and writes without supervision.";

thread_local! {
    /// The transaction that got a snapshot while the node was not online.
    static OLD_SNAPSHOT: Cell<u32> = const { Cell::new(0) };
}

/// What a node is to clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standing {
    /// It serves them until then.
    Serves(Instant),
    /// It will in a moment, and misses nothing meanwhile.
    Moves {
        /// Unless something that it holds may be committed elsewhere.
        unsettled: bool,
    },
    /// It does not.
    Away,
}

/// Looks at the machine, and remembers for all processes what is good news.
fn look() -> Standing {
    let look = machine::look(|node| {
        let (now, serving_until) = (proc::now(), &shmem::header().serving_until_us);
        let good = serving_until.load(Ordering::Acquire);
        if now.0 < good {
            // Another process has looked while this one waited for the lock.
            return Standing::Serves(Instant(good));
        }
        let heard = hears_majority(node);
        let reads = node.reads_until(now);
        let serves = node.serves();
        let unsettled = node.may_lack_commits();
        let membership = node.membership();
        let is_donor = membership.current().donors.contains(membership.node());
        let standing = match reads {
            Some(until) if heard => Standing::Serves(until),
            // Something is not settled, or answers are late: the others may go on without this
            // node, or have done so.
            _ if heard && serves => Standing::Moves { unsettled },
            // A donor has everything that was committed before. Another member has not yet.
            _ if heard && is_donor && !membership.is_fenced() => Standing::Moves { unsettled },
            _ => Standing::Away,
        };
        let good = match standing {
            Standing::Serves(until) => until.0.min(now.0 + GOOD_US),
            Standing::Moves { .. } | Standing::Away => 0,
        };
        serving_until.store(good, Ordering::Release);
        standing
    });
    look.unwrap_or(Standing::Away)
}

/// Whether this node hears a majority of the configured nodes that hear each other, or needs none.
fn hears_majority(node: &Node<'_>) -> bool {
    let membership = node.membership();
    let generation = &membership.current().generation;
    let (me, clique) = (membership.node(), membership.clique());
    if generation.members == NodeSet::only(me) && node.serves() {
        return true;
    }
    let heard = clique.without(me).iter().filter(|peer| cluster::heard_until(*peer).is_some());
    clique.contains(me) && generation.configured.has_majority(heard.collect::<NodeSet>().with(me))
}

/// Whether the last look at the machine is still good.
fn serves_for_sure() -> bool {
    let header = shmem::header();
    header.configured.load(Ordering::Acquire) == 0
        || proc::now().0 < header.serving_until_us.load(Ordering::Acquire)
}

/// Whether this session is a client's of the replicated database.
fn is_supervised() -> bool {
    let header = shmem::header();
    if header.me().is_none()
        || xact::my_database() != header.database.load(Ordering::Relaxed)
        || !access::serves_client()
    {
        return false;
    }
    !is_exempt(&xact::application_name())
}

fn is_exempt(application: &str) -> bool {
    application == cluster::ADMIN || PEERS.contains(&application)
}

/// A client has proved who it is: it is turned away at once if this node cannot serve it, so that
/// a list of hosts leads it to the next one.
pub fn login(application: &str, database: impl FnOnce() -> u32) {
    if serves_for_sure() || is_exempt(application) {
        return;
    }
    let header = shmem::header();
    if header.me().is_none() || database() != header.database.load(Ordering::Relaxed) {
        return;
    }
    let start = proc::now();
    loop {
        let late = proc::now().since(start) > cluster::patience_us();
        match look() {
            Standing::Serves(_) | Standing::Moves { unsettled: false } => return,
            // Here, where it has no snapshot yet: one that is older than what it waits for would
            // not show it.
            Standing::Moves { unsettled: true } if !late => {
                proc::wait(None, Some(LOOK_US));
                proc::check_interrupts();
            }
            Standing::Moves { .. } | Standing::Away => {
                let (message, reason) = complaint();
                report::fatal(PgSqlErrorCode::ERRCODE_CANNOT_CONNECT_NOW, message, &reason, HINT);
            }
        }
    }
}

/// What a statement or a query is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum About {
    /// The session: transactions, settings.
    Session,
    /// The state of the cluster, or something that reads no data by itself.
    Cluster,
    /// Data.
    Data,
}

/// Before a statement or a query: returns if it may go on.
pub fn statement(about: impl Fn() -> About) {
    let old = OLD_SNAPSHOT.get() != 0;
    if serves_for_sure() && !old {
        return;
    }
    if sqlrun::is_own() || !is_supervised() {
        return;
    }
    match look() {
        Standing::Serves(_) => {}
        Standing::Moves { .. } | Standing::Away if about() != About::Data => {
            if about() == About::Cluster {
                OLD_SNAPSHOT.set(access::transaction());
            }
            return;
        }
        Standing::Moves { unsettled } => {
            // Its snapshot may be older than what it has waited for.
            if wait_until_served(false) || unsettled {
                refuse_became_online();
            }
        }
        // It has become a node just now.
        Standing::Away if machine::look(|_| ()).is_none() => drop(wait_until_served(true)),
        Standing::Away => refuse(),
    }
    if old {
        refuse_old_snapshot(about);
    }
}

/// Whether what this node has just been seen to lack, nobody was told of: no majority had gone on
/// without it. For what a client is told without reading data.
pub fn was_sure() -> bool {
    serves_for_sure() || !is_supervised() || matches!(look(), Standing::Serves(_))
}

/// Returns when this node serves; refuses if it does not.
pub fn await_service() {
    match look() {
        Standing::Serves(_) => {}
        Standing::Moves { .. } => drop(wait_until_served(false)),
        Standing::Away => refuse(),
    }
}

/// A transaction whose one snapshot is of a time when this node missed what others committed.
fn refuse_old_snapshot(about: impl Fn() -> About) {
    if OLD_SNAPSHOT.get() != access::transaction() {
        OLD_SNAPSHOT.set(0);
    } else if access::keeps_its_snapshot() && about() == About::Data {
        refuse_became_online();
    }
}

fn refuse_became_online() -> ! {
    report::error(
        PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
        "could not serialize access: this node became online during the transaction",
        "The transaction's snapshot is older than that.",
        "Try the transaction again.",
    )
}

/// Waits while the node moves into a new generation; if it is `new`, also while it looks for its
/// peers. Tells whether something was not settled meanwhile.
fn wait_until_served(new: bool) -> bool {
    let start = proc::now();
    let mut was_unsettled = false;
    let waits = |waits| shmem::node(|state| state.mine().waits = waits);
    waits(true);
    loop {
        proc::wait(None, Some(LOOK_US));
        if proc::interrupted() {
            waits(false);
            proc::check_interrupts();
        }
        let late = proc::now().since(start) > cluster::patience_us();
        match look() {
            Standing::Serves(_) => {
                waits(false);
                return was_unsettled;
            }
            Standing::Moves { unsettled } if !late => was_unsettled |= unsettled,
            Standing::Away if new && !late => {}
            Standing::Moves { .. } | Standing::Away => {
                waits(false);
                refuse();
            }
        }
    }
}

fn refuse() -> ! {
    let (message, reason) = complaint();
    let detail = if access::in_transaction_block() {
        format!("The transaction was rolled back. {reason}")
    } else {
        reason
    };
    let code = PgSqlErrorCode::ERRCODE_CANNOT_CONNECT_NOW;
    if guc::BREAK_CONNECTION.get() {
        report::fatal(code, message, &detail, HINT);
    }
    report::error(code, message, &detail, HINT);
}

/// The message users know, and why.
fn complaint() -> (String, String) {
    let status = match cluster::status() {
        // The machine has not heard yet what this process can see.
        NodeStatus::Online => NodeStatus::Isolated,
        status => status,
    };
    let mut reason = cluster::status_reason();
    if reason.is_empty() {
        reason = if machine::look(|node| node.may_lack_commits()) == Some(true) {
            "transactions from before it was online are not settled".to_owned()
        } else {
            Reason::NoMajority.to_string()
        };
    }
    (format!("[multimaster] node is not online: current status \"{status}\""), sentence(&reason))
}

/// Words as a sentence.
fn sentence(words: &str) -> String {
    let mut chars = words.chars();
    let first = chars.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(chars).chain(['.']).collect()
}
