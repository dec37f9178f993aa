--------------------------------- MODULE MC ---------------------------------
(* Constants and starting states for TLC.  The configurations are in configs/. *)
EXTENDS Multimaster
CONSTANTS n1, n2, n3, n4, n5, t1, t2, t3

AllConflict == {{t, u} : t, u \in Txs}
NoConflict  == {}
OneConflict == {{t1, t2}}
Anywhere    == [t \in Txs |-> Nodes]
SymNodes    == Permutations(Nodes)
SymBoth     == Permutations(Nodes) \cup Permutations(Txs)

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
          [g \in Gens |-> IF \E n \in Nodes : MayEnter(n, g) THEN snap[g] ELSE <<>>],
          checked, forgot>>
=============================================================================
