--------------------------- MODULE Configuration ---------------------------
(***************************************************************************)
(* Adding and dropping nodes.  What a majority is depends on the set of    *)
(* configured nodes, and that set changes; so it is versioned, and the     *)
(* version is part of every generation.                                    *)
(*                                                                         *)
(* The module looks at nothing else: a "decided" generation stands for all *)
(* commits decided in it (all its members were ONLINE in it and prepared), *)
(* and has[n] is the set of such generations whose commits n holds.        *)
(* Nodes, donors and the switch are as in Generations.                     *)
(***************************************************************************)
EXTENDS Naturals, FiniteSets

CONSTANTS
  Nodes,       \* all nodes there will ever be (a node that is cloned anew is a new node)
  First,       \* the nodes of configuration version 1
  MaxGen, MaxVersion,
  Broken

VARIABLES
  sets,     \* sets[v]: the nodes of configuration version v, {} while unused
  knows,    \* knows[n]: the highest version n has (durable; the change is a transaction of the cluster)
  cur, vote, last,
  gens,     \* gens[g]: [st, version, members, donors]
  has,      \* has[n]: decided generations whose commits n holds
  decided   \* generations in which something was decided

vars == <<sets, knows, cur, vote, last, gens, has, decided>>
Gens == 1..MaxGen
Versions == 1..MaxVersion
Breaks(rule) == rule \in Broken
Max(a, b) == IF a > b THEN a ELSE b
Majority(S, v) == 2 * Cardinality(S \cap sets[v]) > Cardinality(sets[v])
Online(n, g) == cur[n] = g /\ last[n] = g
NoGen == [st |-> "none", version |-> 0, members |-> {}, donors |-> {}]

Init ==
  /\ sets  = [v \in Versions |-> IF v = 1 THEN First ELSE {}]
  /\ knows = [n \in Nodes |-> IF n \in First THEN 1 ELSE 0]
  /\ cur   = [n \in Nodes |-> IF n \in First THEN 1 ELSE 0]
  /\ vote  = [n \in Nodes |-> IF n \in First THEN 1 ELSE 0]
  /\ last  = [n \in Nodes |-> IF n \in First THEN 1 ELSE 0]
  /\ gens  = [g \in Gens |-> IF g = 1 THEN [st |-> "elected", version |-> 1, members |-> First, donors |-> First]
                             ELSE NoGen]
  /\ has   = [n \in Nodes |-> {}]
  /\ decided = {}

(* All members of g are ONLINE in it and prepare: whatever is decided there is held by all of them. *)
Decide(g) ==
  /\ gens[g].st = "elected" /\ g \notin decided
  /\ \A n \in gens[g].members : Online(n, g)
  /\ has' = [n \in Nodes |-> IF n \in gens[g].members THEN has[n] \cup {g} ELSE has[n]]
  /\ decided' = decided \cup {g}
  /\ UNCHANGED <<sets, knows, cur, vote, last, gens>>

(* A change of the configuration is a transaction in a generation g whose members are all ONLINE, and g is a *)
(* generation with the present version.  One node per change.  A dropped node never comes back under its old  *)
(* name, and a new node starts with a state of its own: it does not inherit the state file of the node it was *)
(* cloned from (its votes and its last_online_in would vouch for what the clone has not seen).                 *)
OneNode(old, new) == Cardinality((old \ new) \cup (new \ old)) = 1
EverDropped(n) == \E v, w \in Versions : v < w /\ n \in sets[v] /\ sets[w] # {} /\ n \notin sets[w]
Change(g, v, S) ==
  LET new == S \ sets[v - 1]
      d   == CHOOSE m \in gens[g].members : TRUE
      Inherits(own) == [n \in Nodes |-> IF n \in new /\ Breaks("OwnState") THEN own[d] ELSE own[n]]
  IN
  /\ gens[g].st = "elected" /\ v > 1 /\ sets[v] = {} /\ sets[v - 1] # {} /\ S # {}
  /\ IF Breaks("PresentVersion") THEN gens[g].version <= v - 1 ELSE gens[g].version = v - 1
  /\ \A n \in gens[g].members : Online(n, g)
  /\ OneNode(sets[v - 1], S) \/ Breaks("OneNode")
  /\ \A n \in new : ~EverDropped(n)
  /\ sets'    = [sets EXCEPT ![v] = S]
  /\ knows'   = [n \in Nodes |-> IF n \in gens[g].members THEN Max(knows[n], v) ELSE knows[n]]
  /\ cur'  = Inherits(cur)
  /\ vote' = Inherits(vote)
  /\ last' = Inherits(last)
  /\ has'  = Inherits(has)
  /\ UNCHANGED <<gens, decided>>

(* An election names the version its candidate knows.  A voter refuses a version older than its own, and     *)
(* takes over a newer one; only nodes of that version vote.                                                   *)
Elect(g, v, M, V) ==
  LET top == CHOOSE x \in {last[n] : n \in V} : \A y \in {last[n] : n \in V} : y <= x
      D   == {n \in V \cap M : last[n] = top}
  IN
  /\ gens[g].st = "none" /\ \A h \in 1..(g - 1) : gens[h].st # "none"
  /\ sets[v] # {} /\ \E n \in V : knows[n] = v
  /\ \A n \in V : vote[n] < g /\ (knows[n] <= v \/ Breaks("RefuseOlder"))
  /\ M \subseteq sets[v] /\ V \subseteq (IF Breaks("DroppedNeverVote") THEN Nodes ELSE sets[v])
  /\ IF Breaks("DroppedNeverVote") THEN 2 * Cardinality(V) > Cardinality(sets[v]) ELSE Majority(V, v)
  /\ Majority(M, v) /\ D # {}
  /\ gens'  = [gens EXCEPT ![g] = [st |-> "elected", version |-> v, members |-> M, donors |-> D]]
  /\ vote'  = [n \in Nodes |-> IF n \in V THEN g ELSE vote[n]]
  /\ knows' = [n \in Nodes |-> IF n \in V THEN Max(knows[n], v) ELSE knows[n]]
  /\ UNCHANGED <<sets, cur, last, has, decided>>

Switch(n, g) ==
  /\ gens[g].st = "elected" /\ n \in gens[g].members /\ cur[n] < g /\ vote[n] <= g
  /\ cur'   = [cur EXCEPT ![n] = g]
  /\ vote'  = [vote EXCEPT ![n] = g]
  /\ knows' = [knows EXCEPT ![n] = Max(@, gens[g].version)]
  /\ last'  = IF n \in gens[g].donors THEN [last EXCEPT ![n] = g] ELSE last
  /\ UNCHANGED <<sets, gens, has, decided>>

(* Recovery in one step: a node takes a donor's commits as they were at the donor's switch (more it cannot     *)
(* miss: nothing is decided in g before n is ONLINE). A new node is filled the same way.                       *)
Recover(n, d) ==
  LET g == cur[n] IN
  /\ g > 0 /\ n \in gens[g].members /\ last[n] < g /\ vote[n] <= g
  /\ d \in gens[g].donors /\ last[d] >= g
  /\ has'  = [has EXCEPT ![n] = @ \cup {h \in has[d] : h < g}]
  /\ last' = [last EXCEPT ![n] = g]
  /\ UNCHANGED <<sets, knows, cur, vote, gens, decided>>

Next ==
  \/ \E g \in Gens : Decide(g)
  \/ \E g \in Gens, v \in Versions, S \in SUBSET Nodes : Change(g, v, S)
  \/ \E g \in Gens : gens[g].st = "none" /\ \E v \in Versions, M, V \in SUBSET Nodes : V # {} /\ Elect(g, v, M, V)
  \/ \E n \in Nodes, g \in Gens : Switch(n, g)
  \/ \E n, d \in Nodes : Recover(n, d)
Spec == Init /\ [][Next]_vars

(* What was decided in g, or in a lower generation, is held by every node ONLINE in g. *)
OnlineHoldsAll == \A h \in decided, n \in Nodes : cur[n] >= h /\ Online(n, cur[n]) /\ cur[n] > 0 => h \in has[n]
(* Each version is made from the one before it, once. *)
OneNodeAtATime == \A v \in Versions : v > 1 /\ sets[v] # {} => sets[v - 1] # {}
=============================================================================
