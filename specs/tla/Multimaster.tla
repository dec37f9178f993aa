---------------------------- MODULE Multimaster ----------------------------
(***************************************************************************)
(* The whole protocol: initial state, next-state relation, invariants.     *)
(* State says what is remembered; Commit, Generations, Recovery and        *)
(* Settlement say what happens.                                            *)
(***************************************************************************)
EXTENDS Recovery

(* Everybody is ONLINE in generation 1, and nothing has happened but what the five arguments say. *)
StartWith(st0, phase0, orig0, tgen0, tally0) ==
  /\ st = st0 /\ phase = phase0 /\ orig = orig0 /\ tgen = tgen0 /\ tally = tally0
  /\ cur  = [n \in Nodes |-> 1]
  /\ vote = [n \in Nodes |-> 1]
  /\ last = [n \in Nodes |-> 1]
  /\ gens = [g \in Gens |-> IF g = 1 THEN [st |-> "elected", members |-> Nodes, donors |-> Nodes] ELSE NoGen]
  /\ ballots = [g \in Gens |-> {}]
  /\ snap = [g \in Gens |-> [n \in Nodes |-> {}]]
  /\ hist = [n \in Nodes |-> <<>>]
  /\ soft = {}
  /\ book  = [g \in Gens |-> [t \in Txs |-> [ph |-> "asks", who |-> {}]]]
  /\ comAt = [t \in Txs |-> 0]
  /\ abDec = {}
  /\ told  = [t \in Txs |-> "waits"]
  /\ checked = {}
  /\ forgot  = [n \in Nodes |-> {}]
  /\ grant   = NoGrant
  /\ replies = {}
  /\ cleans  = {}

Init == StartWith([n \in Nodes |-> [t \in Txs |-> "none"]], [t \in Txs |-> "idle"],
                  [t \in Txs |-> None], [t \in Txs |-> 0], [t \in Txs |-> {}])

NextCommit ==
  \/ \E t \in Txs : \/ DecideCommit(t) \/ FlushCommit(t) \/ StartAbort(t) \/ DecideAbort(t)
  \/ \E t \in Txs, n \in Nodes :
       \/ Begin(t, n) \/ Check(n, t) \/ Prepare(n, t) \/ Refuse(n, t) \/ AcceptAbort(n, t)
       \/ LearnCommit(n, t) \/ LearnAbort(n, t) \/ BelieveStream(n, t) \/ Forget(n, t)
NextCrash == \E n \in Nodes : Crash(n) \/ \E t \in Txs : Restore(n, t)
NextGeneration ==
  \E g \in 2..MaxGen :
    \/ ~FineVotes /\ ~Referee /\ gens[g].st = "none" /\ \E M, V \in SUBSET Nodes : ElectAtOnce(g, M, V)
    \/ FineVotes /\ \E n \in Nodes : (\E M \in SUBSET Nodes : Propose(n, g, M)) \/ Vote(n, g)
    \/ FineVotes /\ Count(g)
    \/ \E n \in Members(g) : Switch(n, g)
NextReferee ==
  /\ Referee
  /\ \/ \E g \in 2..MaxGen, n \in Nodes : RequestGrant(n, g) \/ ElectAlone(n, g)
     \/ \E g \in 2..MaxGen : ElectFull(g) \/ SendClean(g) \/ DoClean(g)
NextRecovery ==
  \E n \in Nodes :
    /\ last[n] < cur[n]
    /\ \/ \E d \in Sources(n) : Replay(n, d) \/ BecomeOnline(n, d) \/ \E t \in Txs : Reconcile(n, d, t)
       \/ DropFirst(n)
NextSettlement ==
  \E g \in 2..MaxGen : \E n \in Members(g), t \in Txs : ProposeAbort(n, t, g) \/ AcceptSettle(n, t, g)

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
