--------------------------------- MODULE MC ---------------------------------
(* Constants and starting states for TLC.  The configurations are in configs/. *)
EXTENDS Multimaster
CONSTANTS n1, n2, n3, n4, n5, t1, t2, t3

AllConflict == {{t, u} : t, u \in Txs}
NoConflict  == {}
OneConflict == {{t1, t2}}
Anywhere    == [t \in Txs |-> Nodes]
AtFirst     == [t \in Txs |-> {n1}]
SymNodes    == Permutations(Nodes)
SymBoth     == Permutations(Nodes) \cup Permutations(Txs)

(* Starting states for directed searches: every transaction is announced in generation 1 and still     *)
(* undecided, and the members have prepared what `at` says (they may have: nothing else has happened).  *)
Announce(origins, at) ==
  StartWith([n \in Nodes |-> [t \in Txs |-> IF origins[t] = n THEN "open" ELSE IF n \in at[t] THEN "prepared" ELSE "none"]],
            [t \in Txs |-> "run"], origins, [t \in Txs |-> 1], [t \in Txs |-> at[t] \cup {origins[t]}])
OriginsOf == [t \in Txs |-> IF t = t1 THEN n1 ELSE IF t = t2 THEN n2 ELSE n3]
(* t1 and t2 conflict and have met: each is held by its own origin, and the third node has the one or the other. *)
InitCrossed == Announce(OriginsOf, (t1 :> {n3} @@ t2 :> {}))
(* All transactions are independent of each other and prepared everywhere, so all may be decided either way. *)
InitAllPrepared == Announce(OriginsOf, [t \in Txs |-> Nodes \ {OriginsOf[t]}])
(* The same, but one vote is missing: t1 lacks the third node's, t2 the first's, t3 the second's. *)
InitOneMissing == Announce(OriginsOf, (t1 :> {n2} @@ t2 :> {n3} @@ t3 :> {n1}))

(* Election scripts: in which order the members leave and come back. *)
PlanLeaveReturn == {<<2, {n2, n3}, {n2, n3}>>, <<3, {n1, n2}, {n1, n2}>>}
PlanHalfRecovered == {<<2, {n1, n2, n3}, {n2, n3}>>, <<3, {n1, n2}, {n1, n2}>>, <<3, {n1, n3}, {n1, n3}>>}
PlanAwayAndBack == {<<2, {n1, n2}, {n1, n2}>>, <<3, {n1, n2, n3}, {n1, n2}>>}
PlanSettleThenLeave == {<<2, {n1, n2, n3}, {n1, n2, n3}>>, <<3, {n1, n2}, {n2, n3}>>}
PlanEachOut == {<<2, {n2, n3}, {n2, n3}>>, <<3, {n1, n3}, {n1, n3}>>, <<4, {n1, n2}, {n1, n2}>>}
PlanShrinkGrow == {<<2, {n1, n2}, {n1, n2}>>, <<2, {n1, n3}, {n1, n3}>>, <<3, {n1, n2, n3}, {n2, n3}>>}

(* A view: what can make no difference any more is not looked at.  Two states with the same view have   *)
(* the same future and satisfy the same invariants.                                                     *)
(*   - a vote matters only as far as it still forbids a generation that n could otherwise enter         *)
(*     (elections are dense here, so it never forbids a further vote);                                  *)
(*   - a generation nobody is in, nobody may enter, and no backend counts votes for, is history, and so *)
(*     are its donors' snapshots and its settlements;                                                   *)
(*   - a snapshot nobody may recover from any more is history.                                          *)
MayEnter(n, g) == Elected(g) /\ n \in Members(g) /\ last[n] < g /\ cur[n] <= g /\ Keeps(n, g)
Alive(g) == \/ ~Elected(g)
            \/ \E n \in Nodes : MayEnter(n, g) \/ (cur[n] = g /\ last[n] = g)
            \/ \E t \in Txs : tgen[t] = g /\ InBackend(t)
View == <<[n \in Nodes |-> IF last[n] = cur[n] \/ MayEnter(n, cur[n]) THEN cur[n] ELSE 0],
          [n \in Nodes |-> {g \in Gens : MayEnter(n, g)}],
          last, st, hist, soft, phase, orig, tgen, tally, comAt, abDec, told,
          [g \in Gens |-> IF Alive(g) THEN <<gens[g], book[g]>> ELSE <<>>],
          [g \in Gens |-> IF \E n \in Nodes : MayEnter(n, g) THEN snap[g] ELSE {}],
          checked, forgot>>
=============================================================================
