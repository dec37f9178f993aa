----------------------------- MODULE Settlement -----------------------------
(***************************************************************************)
(* After a generation change: what was left undecided in generation h is   *)
(* settled inside a later one, g, by g's leader alone, from the reports of *)
(* all members ONLINE in g.  All hold it: commit.  One lacks it or has     *)
(* accepted abort: abort, once all members have accepted it.               *)
(***************************************************************************)
EXTENDS Recovery

Old(t, g)      == Announced(t) /\ tgen[t] < g
InDoubt(t)     == \E n \in Nodes : Undecided(st[n][t]) \/ st[n][t] = "lost"
LeaderStays(g) == cur[Leader(g)] <= g

(* A member ONLINE in g reports that it holds t.  A gid that was forgotten is "unknown", never "lacks". *)
Report(n, t, g) ==
  /\ Elected(g) /\ Old(t, g) /\ InDoubt(t) /\ n \in Members(g) /\ OnlineIn(n, g) /\ LeaderStays(g)
  /\ book[g][t].ph = "asks" /\ n \notin book[g][t].who
  /\ Holds(st[n][t]) /\ t \notin forgot[n]
  /\ book' = [book EXCEPT ![g][t].who = @ \cup {n}]
  /\ UNCHANGED <<memVars, genVars, dataVars, coordVars, outVars, checked, forgot, refVars>>

SettleCommit(t, g) ==
  LET p == Leader(g) IN
  /\ Elected(g) /\ OnlineIn(p, g) /\ book[g][t].ph = "asks" /\ Holds(st[p][t])
  /\ IF Breaks("AllReport") THEN Majority(book[g][t].who) ELSE book[g][t].who = Members(g)
  /\ book' = [book EXCEPT ![g][t] = [ph |-> "done", who |-> {}]]
  /\ Decided(t, g)
  /\ UNCHANGED <<memVars, genVars, dataVars, coordVars, abDec, told, checked, forgot, refVars>>

(* A member reports that it lacks t, and the leader proposes abort: one step, because a proposal that *)
(* comes later can do nothing that this one cannot.                                                     *)
ProposeAbort(n, t, g) ==
  /\ Elected(g) /\ Old(t, g) /\ InDoubt(t) /\ n \in Members(g) /\ OnlineIn(n, g)
  /\ book[g][t].ph = "asks"
  /\ Lacks(st[n][t]) \/ (t \in forgot[n] /\ Breaks("Watermark"))
  /\ book' = [book EXCEPT ![g][t] = [ph |-> "aborts", who |-> {}]]
  /\ UNCHANGED <<memVars, genVars, dataVars, coordVars, outVars, checked, forgot, refVars>>

AcceptSettle(n, t, g) ==
  /\ book[g][t].ph = "aborts" /\ n \in Members(g) /\ OnlineIn(n, g) /\ n \notin book[g][t].who
  /\ LeaderStays(g) \/ st[n][t] \in {"none", "prepared", "open"}
  /\ st'   = [st EXCEPT ![n][t] = IF @ \in {"prepared", "open"} THEN "accabort"
                                  ELSE IF @ = "none" THEN "refused" ELSE @]
  /\ book' = IF LeaderStays(g) THEN [book EXCEPT ![g][t].who = @ \cup {n}] ELSE book
  /\ soft' = Flushed(n)
  /\ UNCHANGED <<memVars, genVars, hist, coordVars, outVars, checked, forgot, refVars>>

SettleAbort(t, g) ==
  /\ book[g][t].ph = "aborts" /\ Members(g) \subseteq book[g][t].who
  /\ book'  = [book EXCEPT ![g][t] = [ph |-> "done", who |-> {}]]
  /\ abDec' = abDec \cup {t}
  /\ UNCHANGED <<memVars, genVars, dataVars, coordVars, comAt, told, checked, forgot, refVars>>
=============================================================================
