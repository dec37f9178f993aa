-------------------------- MODULE MCConfiguration --------------------------
EXTENDS Configuration, TLC
CONSTANTS n1, n2, n3, n4, n5
(* A start from which n3 is already out: a generation without it has come, and it knows only version 1,   *)
(* while version 2 has dropped it.                                                                       *)
InitAway ==
  /\ sets  = [v \in Versions |-> IF v = 1 THEN First ELSE IF v = 2 THEN First \ {n3} ELSE {}]
  /\ knows = [n \in Nodes |-> IF n = n3 THEN 1 ELSE IF n \in First THEN 2 ELSE 0]
  /\ cur   = [n \in Nodes |-> IF n \in First \ {n3} THEN 1 ELSE 0]
  /\ vote = cur /\ last = cur
  /\ gens  = [g \in Gens |-> IF g = 1 THEN [st |-> "elected", version |-> 2, members |-> First \ {n3},
                                           donors |-> First \ {n3}]
                             ELSE NoGen]
  /\ has   = [n \in Nodes |-> {}]
  /\ decided = {}

SymNew == Permutations(First) \cup Permutations(Nodes \ First)
=============================================================================
