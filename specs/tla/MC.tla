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
=============================================================================
