----------------------------- MODULE Settlement -----------------------------
(***************************************************************************)
(* After a generation change: what was left undecided in generation h is   *)
(* settled inside a later one, g, from the reports of all members ONLINE   *)
(* in g.  All hold it: commit.  One lacks it or has accepted abort: abort, *)
(* once all members have durably accepted it.                              *)
(*                                                                         *)
(* The design lets one node, P(g), count.  Here anyone may, at once: the   *)
(* two outcomes exclude each other already by what the members have, so    *)
(* who counts, and how late, is a matter of traffic.  Whatever P(g) can do *)
(* this can do, so what holds here holds there.  (P(g) needs no memory of  *)
(* its own for the same reason: after a crash it may simply ask again.)    *)
(***************************************************************************)
EXTENDS Commit

Old(t, g)  == Announced(t) /\ tgen[t] < g
InDoubt(t) == \E n \in Nodes : Undecided(st[n][t]) \/ st[n][t] = "lost"

(* Node n becomes ONLINE in g, with these states: from now on it counts as having reported that it   *)
(* holds a transaction.  A report sent later can do nothing more, and cannot say anything else:       *)
(* in g nothing older is prepared.                                                                     *)
ReportOnline(n, g, mine) ==
  LET held   == {t \in Txs : Old(t, g) /\ Holds(mine[t]) /\ t \notin forgot[n] /\ book[g][t].ph = "asks"
                             /\ ~(0 < comAt[t] /\ comAt[t] <= g)}
      who(t) == book[g][t].who \cup {n}
      enough == {t \in held : IF Breaks("AllReport") THEN Majority(who(t)) ELSE who(t) = Members(g)}
  IN
  /\ book'  = [book EXCEPT ![g] = TLCEval([t \in Txs |-> IF t \in enough THEN [ph |-> "done", who |-> {}]
                                                 ELSE IF t \in held THEN [ph |-> "asks", who |-> who(t)]
                                                 ELSE @[t]])]
  /\ comAt' = [t \in Txs |-> IF t \in enough THEN g ELSE comAt[t]]

(* A member reports that it lacks t: abort is proposed.  A gid that was forgotten is "unknown", not "lacks". *)
ProposeAbort(n, t, g) ==
  /\ Elected(g) /\ Old(t, g) /\ InDoubt(t) /\ n \in Members(g) /\ OnlineIn(n, g)
  /\ book[g][t].ph = "asks"
  /\ Lacks(st[n][t]) \/ (t \in forgot[n] /\ Breaks("Watermark"))
  /\ book' = [book EXCEPT ![g][t] = [ph |-> "aborts", who |-> {}]]
  /\ UNCHANGED <<memVars, genVars, dataVars, coordVars, outVars, checked, forgot, refVars>>

(* Members accept the abort; with the last one it is decided. *)
AcceptSettle(n, t, g) ==
  LET who == book[g][t].who \cup {n} IN
  /\ book[g][t].ph = "aborts" /\ n \in Members(g) /\ OnlineIn(n, g) /\ n \notin book[g][t].who
  /\ st' = [st EXCEPT ![n][t] = IF @ \in {"prepared", "open"} THEN "accabort"
                                ELSE IF @ = "none" THEN "refused" ELSE @]
  /\ soft' = Flushed(n)
  /\ IF who = Members(g) \/ (Breaks("AllAcceptSettle") /\ Majority(who))
     THEN /\ book'  = [book EXCEPT ![g][t] = [ph |-> "done", who |-> {}]]
          /\ abDec' = abDec \cup {t}
     ELSE /\ book'  = [book EXCEPT ![g][t].who = who]
          /\ UNCHANGED abDec
  /\ UNCHANGED <<memVars, genVars, hist, coordVars, comAt, told, checked, forgot, refVars>>
=============================================================================
