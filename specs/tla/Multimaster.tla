---------------------------- MODULE Multimaster ----------------------------
(***************************************************************************)
(* The whole protocol: initial state, next-state relation, invariants.     *)
(* State says what is remembered; Commit, Generations, Recovery and        *)
(* Settlement say what happens.                                            *)
(***************************************************************************)
EXTENDS Recovery

Init ==
  /\ cur  = [n \in Nodes |-> 1]
  /\ vote = [n \in Nodes |-> 1]
  /\ last = [n \in Nodes |-> 1]
  /\ gens = [g \in Gens |-> IF g = 1 THEN [st |-> "elected", members |-> Nodes, donors |-> Nodes] ELSE NoGen]
  /\ ballots = [g \in Gens |-> [n \in Nodes |-> 0]]
  /\ snap = [g \in Gens |-> [n \in Nodes |-> [ok |-> FALSE, hist |-> <<>>, st |-> [t \in Txs |-> "none"]]]]
  /\ st   = [n \in Nodes |-> [t \in Txs |-> "none"]]
  /\ hist = [n \in Nodes |-> <<>>]
  /\ soft = {}
  /\ phase = [t \in Txs |-> "idle"]
  /\ orig  = [t \in Txs |-> None]
  /\ tgen  = [t \in Txs |-> 0]
  /\ tally = [t \in Txs |-> {}]
  /\ book  = [g \in Gens |-> [t \in Txs |-> [ph |-> "asks", who |-> {}]]]
  /\ comAt = [t \in Txs |-> 0]
  /\ abDec = {}
  /\ told  = [t \in Txs |-> "waits"]
  /\ checked = {}
  /\ forgot  = [n \in Nodes |-> {}]
  /\ grant   = NoGrant
  /\ replies = {}
  /\ cleans  = {}

NextCommit ==
  \/ \E t \in Txs : \/ DecideCommit(t) \/ FlushCommit(t) \/ StartAbort(t) \/ DecideAbort(t)
  \/ \E t \in Txs, n \in Nodes :
       \/ Begin(t, n) \/ Check(n, t) \/ Prepare(n, t) \/ Refuse(n, t) \/ AcceptAbort(n, t)
       \/ LearnCommit(n, t) \/ LearnAbort(n, t) \/ BelieveStream(n, t) \/ Forget(n, t)
NextCrash == \E n \in Nodes : Crash(n) \/ \E t \in Txs : Restore(n, t)
NextGeneration ==
  \/ \E g \in 2..MaxGen, M, V \in SUBSET Nodes : ElectAtOnce(g, M, V)
  \/ \E g \in 2..MaxGen, n \in Nodes : (\E M \in SUBSET Nodes : Propose(n, g, M)) \/ Vote(n, g)
  \/ \E g \in 2..MaxGen : Count(g)
  \/ \E g \in 2..MaxGen, n \in Nodes : Switch(n, g)
NextReferee ==
  /\ Referee
  /\ \/ \E g \in 2..MaxGen, n \in Nodes : RequestGrant(n, g) \/ ElectAlone(n, g)
     \/ \E g \in 2..MaxGen : ElectFull(g) \/ SendClean(g) \/ DoClean(g)
NextRecovery ==
  \/ \E n, d \in Nodes : Replay(n, d) \/ BecomeOnline(n, d) \/ \E t \in Txs : Reconcile(n, d, t)
  \/ \E n \in Nodes : DropFirst(n)
NextSettlement ==
  \E t \in Txs, g \in 2..MaxGen, n \in Nodes : ProposeAbort(n, t, g) \/ AcceptSettle(n, t, g)

Next == NextCommit \/ NextCrash \/ NextGeneration \/ NextReferee \/ NextRecovery \/ NextSettlement
Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------
SomeoneCommitted(t) == comAt[t] > 0 \/ \E n \in Nodes : st[n][t] = "committed"
SomeoneAborted(t)   == t \in abDec  \/ \E n \in Nodes : st[n][t] = "aborted"

(* No transaction is both committed and aborted, on any nodes, ever. *)
Agreement == \A t \in Txs : ~(SomeoneCommitted(t) /\ SomeoneAborted(t))

(* Conflicting transactions commit in one order, and none without its predecessor. *)
ConflictOrder ==
  \A n, m \in Nodes : \A t, u \in Txs :
    {t, u} \in Conflict /\ t # u /\ Before(hist[n], t, u) /\ u \in Range(hist[m]) => Before(hist[m], t, u)

(* A decided commit is held by every node ONLINE in the deciding generation or a later one. *)
OnlineHoldsAll ==
  \A t \in Txs : comAt[t] > 0 =>
    \A n \in Nodes : Online(n) /\ cur[n] >= comAt[t] => st[n][t] \in {"open", "prepared", "accabort", "committed"}

(* A commit the client was told of is on so many disks that every majority of disks has it. *)
OnDisk(n, t) == \/ st[n][t] \in {"prepared", "accabort", "committed"}
                \/ t \in Restorable /\ st[n][t] \in {"open", "lost"}
AckedDurable == \A t \in Txs : told[t] = "ok" => ~Majority({n \in Nodes : ~OnDisk(n, t)})

(* An abort that was decided, or that a client was told of, stays an abort. *)
AbortFinal == \A t \in Txs : t \in abDec \/ told[t] = "error" => ~SomeoneCommitted(t)

(* Nobody commits twice. *)
NoDuplicate == \A n \in Nodes : \A i, j \in 1..Len(hist[n]) : i # j => hist[n][i] # hist[n][j]

(* At most one node serves alone. *)
OneGrant == \A n, m \in Nodes : Online(n) /\ Online(m) /\ Members(cur[n]) = {n} /\ Members(cur[m]) = {m} => n = m

TypeOK ==
  /\ \A n \in Nodes : last[n] <= cur[n] /\ cur[n] <= vote[n] /\ \A t \in Txs : st[n][t] \in States
  /\ \A n \in Nodes, t \in Txs : t \in Range(hist[n]) <=> st[n][t] = "committed"
  /\ \A t \in soft : phase[t] = "done" /\ st[orig[t]][t] = "committed"
=============================================================================
