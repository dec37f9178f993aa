------------------------------- MODULE State -------------------------------
(***************************************************************************)
(* What the nodes of the cluster remember, and the words the other modules *)
(* use to speak about it.  Nothing happens in this module.                 *)
(*                                                                         *)
(* A transaction is announced by its origin while it is still an ordinary  *)
(* running transaction there, and prepared by the other members.  The      *)
(* members of a generation are a write quorum: a durable PREPARE by a      *)
(* member that is ONLINE in generation g is its acceptance of "commit" in  *)
(* ballot g.  Messages are not modelled one by one: a fact that a node has *)
(* made known stays in the state, and whoever needs it may read it now,    *)
(* later, or never.  That is every loss, delay, reordering and duplication *)
(* at once.                                                                *)
(***************************************************************************)
EXTENDS Naturals, Sequences, FiniteSets, TLC

CONSTANTS
  Nodes,        \* the configured data nodes
  Txs,          \* the transactions that may be started
  MaxGen,       \* generations are numbered 1..MaxGen; 1 is the first, all nodes ONLINE
  Conflict,     \* set of {t, u}: transactions that touch the same row
  Restorable,   \* transactions that their origin can re-read from its WAL after a crash
  Homes,        \* [Txs -> SUBSET Nodes]: where a transaction may be started
  Crashes,      \* BOOLEAN: may a node lose what only its running backends know?
  Refusals,     \* BOOLEAN: may a member refuse a transaction by itself?
  Retention,    \* BOOLEAN: may nodes forget finished transactions?
  Referee,      \* BOOLEAN: two data nodes and a referee that grants solo generations
  FineVotes,    \* BOOLEAN: votes one by one (TRUE) or an election in one step (FALSE)
  Plan,         \* set of <<g, members, voters>> that may be elected; {} means all
  Broken        \* names of the rules that are broken on purpose; {} is the protocol

VARIABLES
  cur,      \* cur[n]: the generation n has switched to                   (durable)
  vote,     \* vote[n]: the highest number n voted for                    (durable)
  last,     \* last[n]: the last generation n was ONLINE in               (durable)
  gens,     \* gens[g]: the generation's status, members, donors
  ballots,  \* ballots[g]: the votes for g one by one, <<n, the last_online_in it carried>>
  snap,     \* snap[g][d]: {what donor d's WAL says before its ParallelSafe record for g}, or {}
  st,       \* st[n][t]: what n has of t, see States                      (durable, but "open")
  hist,     \* hist[n]: commits in the order of n's WAL
  soft,     \* transactions whose commit record their origin has written, not yet flushed
  phase,    \* phase[t]: what the origin's backend is doing
  orig,     \* orig[t]: the origin, or None
  tgen,     \* tgen[t]: the generation stamped on t, 0 before it is announced
  tally,    \* tally[t]: members that voted PREPARED, or in the abort round those that accepted
  book,     \* book[g][t]: the settlement of t inside g
  comAt,    \* comAt[t]: lowest generation in which commit of t was decided, 0 if in none
  abDec,    \* transactions whose abort was decided
  told,     \* told[t]: what the client was told
  checked,  \* checks made outside the generation lock (only when the barrier is broken)
  forgot,   \* forgot[n]: finished transactions n no longer remembers
  grant,    \* the referee's row: [node, gen], or NoGrant
  replies,  \* <<n, g>>: the referee told n that it may be alone in g
  cleans    \* numbers of clean(g) calls that are under way, for ever

memVars   == <<cur, vote, last>>
genVars   == <<gens, ballots, snap>>
dataVars  == <<st, hist, soft>>
coordVars == <<phase, orig, tgen, tally>>
outVars   == <<comAt, abDec, told>>
refVars   == <<grant, replies, cleans>>
vars == <<memVars, genVars, dataVars, coordVars, book, outVars, checked, forgot, refVars>>

(* States of a transaction on one node.                                    *)
(*   none      nothing here                                                *)
(*   open      the origin's announced, running transaction; flushed        *)
(*   prepared  really prepared                                             *)
(*   accabort  held, but abort was durably accepted                        *)
(*   refused   not here, and never will be in its own generation           *)
(*   lost      the origin restarted: t is only in the WAL, undecided       *)
(*   committed, aborted                                                    *)
States == {"none", "open", "prepared", "accabort", "refused", "lost", "committed", "aborted"}
None    == "nobody"
NoGrant == [node |-> None, gen |-> 0]
Gens    == 1..MaxGen

Breaks(rule) == rule \in Broken
Majority(S)  == 2 * Cardinality(S) > Cardinality(Nodes)
Max(a, b)    == IF a > b THEN a ELSE b
Range(s)     == {s[i] : i \in 1..Len(s)}
Before(s, t, u) == \E i, j \in 1..Len(s) : i < j /\ s[i] = t /\ s[j] = u

Elected(g) == gens[g].st = "elected"
Members(g) == gens[g].members
Donors(g)  == gens[g].donors

Own(n)       == {t \in Txs : orig[t] = n}
(* A restarted node does nothing until every announced, unfinished transaction in its WAL *)
(* is restored or refused.                                                                 *)
Fenced(n)    == ~Breaks("Fence") /\ \E t \in Own(n) : st[n][t] = "lost"
Online(n)    == last[n] = cur[n] /\ ~Fenced(n)
(* ONLINE in g, so that n may speak and promise in the name of g. *)
OnlineIn(n, g) == cur[n] = g /\ Online(n)

Undecided(s) == s \in {"open", "prepared", "accabort"}
Holds(s)     == s \in {"open", "prepared", "committed"}
Lacks(s)     == s \in {"none", "refused", "accabort", "aborted"}
ConflictsWith(t) == {u \in Txs : {t, u} \in Conflict /\ u # t}
Blocked(n, t) == \E u \in ConflictsWith(t) : Undecided(st[n][u])

(* The origin's backend still runs t (waiting, deciding, or about to write its commit record). *)
InBackend(t) == /\ orig[t] # None
                /\ phase[t] \in {"run", "aborting", "deciding"} \/ st[orig[t]][t] = "open"
(* The entry in the shared table is won for commit, the commit record is not written yet: *)
(* a switch, a recovery and answers to others wait.                                       *)
Deciding(n)  == \E t \in Own(n) : phase[t] = "deciding"
(* Whatever n flushes next takes its earlier commit records to disk as well. *)
Flushed(n)   == soft \ Own(n)

Told(t, word) == told' = [told EXCEPT ![t] = IF @ = "waits" THEN word ELSE @]
=============================================================================
