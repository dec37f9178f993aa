------------------------------ MODULE Recovery ------------------------------
(***************************************************************************)
(* A member of g that is not a donor catches up from one: it replays the   *)
(* donor's commits in the donor's order, then takes over the donor's       *)
(* undecided set as of the ParallelSafe record, and only then is ONLINE.   *)
(* Every step is durable and may be the last one before a crash, another   *)
(* generation, or a change of donor.  Its last_online_in is the old one    *)
(* meanwhile and must stay true: whatever was decided in that generation   *)
(* this node still holds.                                                  *)
(***************************************************************************)
EXTENDS Generations

Recovering(n) ==
  LET g == cur[n] IN
  /\ Elected(g) /\ n \in Members(g) /\ last[n] < g /\ Keeps(n, g) /\ ~Fenced(n)
  /\ ~Deciding(n) \/ Breaks("SwitchWaits")

(* A donor of n's generation that has written ParallelSafe; any may serve, also in turns. *)
Sources(n)   == {d \in Donors(cur[n]) : snap[cur[n]][d] # {}}
Snap(n, d)   == CHOOSE s \in snap[cur[n]][d] : TRUE

(* Broken: the donor's undecided set is read from its memory now, not from its WAL then. *)
Says(n, d, t) == IF Breaks("AsOfParallelSafe") THEN st[d][t] ELSE Snap(n, d).st[t]

(* The origin's backend no longer waits for those transactions of n. *)
Detach(n, S) ==
  LET mine == {t \in S \cap Own(n) : InBackend(t)} IN
  /\ phase' = [t \in Txs |-> IF t \in mine THEN "done" ELSE phase[t]]
  /\ tally' = [t \in Txs |-> IF t \in mine THEN {} ELSE tally[t]]
  /\ told'  = [t \in Txs |-> IF t \in mine /\ told[t] = "waits" THEN "unknown" ELSE told[t]]

(* Replay one commit.  Undecided transactions that conflict with it are rolled back, no others. *)
Missing(n, d) == SelectSeq(Snap(n, d).hist, LAMBDA t : t \notin Range(hist[n]))
Replay(n, d) ==
  /\ Recovering(n) /\ d \in Sources(n) /\ Missing(n, d) # <<>>
  /\ \E i \in 1..Len(Missing(n, d)) :
       LET t    == Missing(n, d)[i]
           gone == {u \in ConflictsWith(t) : Undecided(st[n][u])}
       IN /\ i = 1 \/ Breaks("ReplayInOrder")
          /\ st'   = [st EXCEPT ![n] = TLCEval([u \in Txs |-> IF u = t THEN "committed"
                                                      ELSE IF u \in gone THEN "none" ELSE @[u]])]
          /\ hist' = [hist EXCEPT ![n] = Append(@, t)]
          /\ Detach(n, gone \cup {t})
  /\ soft' = Flushed(n)
  /\ UNCHANGED <<memVars, genVars, orig, tgen, book, comAt, abDec, checked, forgot, refVars>>

(* What n must make of t, given what it has and what the donor had.  The donor's word replaces n's own, *)
(* in both directions: an abort n accepted in an older generation no longer counts when the donor holds *)
(* t without it (t may have been committed without n), and the donor's accepted abort is taken over.    *)
Becomes(own, donor) ==
  CASE own \in {"committed", "aborted"} \/ donor = "committed" -> own
    [] donor = "aborted" -> "aborted"
    [] Holds(donor) ->
         IF own \in {"open", "prepared"} \/ (own = "accabort" /\ Breaks("DonorOverridesAccept"))
                                         \/ (own = "refused" /\ Breaks("RefusedIsNotFinal"))
         THEN own ELSE "prepared"
    [] donor = "accabort" -> IF Breaks("TakeAcceptedAborts") THEN "prepared" ELSE "accabort"
    [] OTHER -> IF own \in {"none", "refused"} THEN own
                ELSE "none"

Reconcile(n, d, t) ==
  LET new == Becomes(st[n][t], Says(n, d, t)) IN
  /\ Recovering(n) /\ d \in Sources(n) /\ Missing(n, d) = <<>>
  /\ new # st[n][t]
  /\ st' = [st EXCEPT ![n][t] = new]
  /\ IF new \in {"none", "aborted", "prepared"} THEN Detach(n, {t}) ELSE UNCHANGED <<phase, tally, told>>
  /\ soft' = Flushed(n)
  /\ UNCHANGED <<memVars, genVars, hist, orig, tgen, book, comAt, abDec, checked, forgot, refVars>>

BecomeOnline(n, d) ==
  /\ Recovering(n) /\ d \in Sources(n) /\ Missing(n, d) = <<>>
  /\ \A t \in Txs : Becomes(st[n][t], Says(n, d, t)) = st[n][t]
  /\ last' = [last EXCEPT ![n] = cur[n]]
  /\ soft' = Flushed(n)
  /\ ReportOnline(n, cur[n], st[n])
  /\ UNCHANGED <<cur, vote, genVars, st, hist, coordVars, abDec, told, checked, forgot, refVars>>

(* Broken: everything undecided is thrown away before the first commit is replayed. *)
DropFirst(n) ==
  /\ Breaks("KeepWhileRecovering") /\ Recovering(n)
  /\ \E t \in Txs : Undecided(st[n][t])
  /\ st' = [st EXCEPT ![n] = TLCEval([t \in Txs |-> IF Undecided(@[t]) THEN "none" ELSE @[t]])]
  /\ Detach(n, Txs)
  /\ UNCHANGED <<memVars, genVars, hist, soft, orig, tgen, book, comAt, abDec, checked, forgot, refVars>>
=============================================================================
