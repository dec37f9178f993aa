----------------------------- MODULE MCLiveness -----------------------------
EXTENDS Liveness
CONSTANTS n1, n2, n3, t1, t2
AllConflict == {{t, u} : t, u \in Txs}
Fixed == [t \in Txs |-> IF t = t1 THEN {n1} ELSE {n2}]
=============================================================================
