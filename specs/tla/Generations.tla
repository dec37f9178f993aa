---------------------------- MODULE Generations ----------------------------
(***************************************************************************)
(* Elections, votes, donors, the switch, and the referee of a cluster of   *)
(* two.  A generation is a ballot; its donors hold everything that was     *)
(* ever decided in lower ones, because they were ONLINE in the highest one *)
(* any voter knows of, and its voters promise to leave the others alone.   *)
(***************************************************************************)
EXTENDS Settlement

NoGen == [st |-> "none", members |-> {}, donors |-> {}]

(* A generation's number is free, and voters have not voted for it or a higher one. *)
MayVote(n, g) == vote[n] < g /\ ~Fenced(n)
Planned(g, M, V) == Plan = {} \/ <<g, M, V>> \in Plan

(* A node may be ONLINE only in a generation whose members are a majority of the configured nodes.   *)
(* (Smaller marker generations may be elected, but nobody is ONLINE in them, so they change nothing  *)
(* here.)  The referee's grant is the one exception.                                                 *)
LargeEnough(M) == Majority(M) \/ (Breaks("MajorityMembers") /\ M # {})

(* Donors: the voters among the members whose vote carries the highest last_online_in of *all* voters. *)
(* If no member carries it, the election has failed.                                                   *)
DonorsOf(M, V, of) ==
  LET among == IF Breaks("HighestOfAllVoters") THEN V \cap M ELSE V
      top   == CHOOSE x \in {of[n] : n \in among} : \A y \in {of[n] : n \in among} : y <= x
  IN  {n \in V \cap M : of[n] = top}

Open(g, M, V, of) ==
  /\ V \cap M # {}
  /\ DonorsOf(M, V, of) # {}
  /\ gens' = [gens EXCEPT ![g] = [st |-> "elected", members |-> M, donors |-> DonorsOf(M, V, of)]]

Vouch(S, g) == vote' = [n \in Nodes |-> IF n \in S THEN g ELSE vote[n]]

(* A whole election in one step.  Up to three generations this loses nothing: a vote reads only        *)
(* last[n], which the promise freezes, so the votes for g commute to the last of them; a vote that      *)
(* elects nothing only forbids later steps; and numbers are taken densely, since only their order       *)
(* counts.  A voter that is no donor and not needed for the majority would be such a vote, too.          *)
(* Longer histories are walked with FineVotes.                                                           *)
Frugal(M, V) == \A n \in V \ DonorsOf(M, V, last) : ~Majority(V \ {n})
ElectAtOnce(g, M, V) ==
  /\ ~FineVotes /\ gens[g].st = "none" /\ \A h \in 1..(g - 1) : Elected(h)
  /\ Planned(g, M, V)
  /\ \A n \in V : MayVote(n, g)
  /\ LargeEnough(M) /\ Majority(V) /\ V \cap M # {} /\ Frugal(M, V)
  /\ Open(g, M, V, last)
  /\ Vouch(V, g)
  /\ UNCHANGED <<cur, last, ballots, snap, dataVars, coordVars, book, outVars, checked, forgot, refVars>>

(* The same, vote by vote: a candidate proposes and votes, others vote, the candidate counts. *)
Propose(n, g, M) ==
  /\ FineVotes /\ gens[g].st = "none" /\ MayVote(n, g) /\ n \in M /\ LargeEnough(M)
  /\ \E V \in SUBSET Nodes : Planned(g, M, V)
  /\ gens'    = [gens EXCEPT ![g] = [NoGen EXCEPT !.st = "proposed", !.members = M]]
  /\ ballots' = [ballots EXCEPT ![g] = @ \cup {<<n, last[n]>>}]
  /\ Vouch({n}, g)
  /\ UNCHANGED <<cur, last, snap, dataVars, coordVars, book, outVars, checked, forgot, refVars>>

Vote(n, g) ==
  /\ gens[g].st = "proposed" /\ MayVote(n, g)
  /\ ballots' = [ballots EXCEPT ![g] = @ \cup {<<n, last[n]>>}]
  /\ Vouch({n}, g)
  /\ UNCHANGED <<cur, last, gens, snap, dataVars, coordVars, book, outVars, checked, forgot, refVars>>

Count(g) ==
  LET V == {b[1] : b \in ballots[g]}
      carried == [n \in V |-> (CHOOSE b \in ballots[g] : b[1] = n)[2]]
  IN
  /\ gens[g].st = "proposed" /\ Majority(V) /\ Planned(g, Members(g), V)
  /\ Open(g, Members(g), V, carried)
  /\ ballots' = [ballots EXCEPT ![g] = {}]
  /\ UNCHANGED <<memVars, snap, dataVars, coordVars, book, outVars, checked, forgot, refVars>>

(* The promise: never ONLINE in a generation below the one voted for. *)
Keeps(n, g) == vote[n] <= g \/ Breaks("Promise")

(* Node n moves to generation g, under the exclusive generation lock: from here on it prepares and     *)
(* announces nothing older (the barrier).  Its own transactions that cannot be restored are given up.   *)
(* A donor writes ParallelSafe and is ONLINE at once; what its WAL says before that record is what      *)
(* others recover from.                                                                                  *)
(* A switch of a non-member, or to a generation that the promise forbids, would only end n's part in    *)
(* the old one; nothing depends on it, so it is left out.                                               *)
GivesUp(n) == {t \in Own(n) \ Restorable : /\ InBackend(t) /\ Undecided(st[n][t])
                                           /\ ~Breaks("GiveUp")}
Switch(n, g) ==
  LET dropped == GivesUp(n)
      st2     == [st EXCEPT ![n] = TLCEval([t \in Txs |-> IF t \in dropped THEN RolledBack ELSE @[t]])]
      donor   == n \in Donors(g)
  IN
  /\ Elected(g) /\ n \in Members(g) /\ cur[n] < g /\ Keeps(n, g) /\ ~Fenced(n)
  /\ ~Deciding(n) \/ Breaks("SwitchWaits")
  /\ cur'   = [cur EXCEPT ![n] = g]
  /\ vote'  = [vote EXCEPT ![n] = Max(@, g)]
  /\ st'    = st2
  /\ soft'  = Flushed(n)
  /\ phase' = [t \in Txs |-> IF t \in dropped /\ phase[t] # "deciding" THEN "done" ELSE phase[t]]
  /\ tally' = [t \in Txs |-> IF t \in dropped THEN {} ELSE tally[t]]
  /\ told'  = [t \in Txs |-> IF t \in dropped /\ told[t] = "waits" THEN "unknown" ELSE told[t]]
  /\ last'  = IF donor THEN [last EXCEPT ![n] = g] ELSE last
  /\ snap'  = IF donor THEN [snap EXCEPT ![g][n] = {[hist |-> hist[n], st |-> st2[n]]}] ELSE snap
  /\ IF donor THEN ReportOnline(n, g, st2[n]) ELSE UNCHANGED <<book, comAt>>
  /\ UNCHANGED <<gens, ballots, hist, orig, tgen, abDec, checked, forgot, refVars>>

-----------------------------------------------------------------------------
(* Referee: a third server without data.  Its one row says who may be alone, and since which number.   *)

(* request_grant(n, g): the row is free, or n's already, and then keeps the highest number. *)
RequestGrant(n, g) ==
  /\ Referee /\ MayVote(n, g) /\ <<n, g>> \notin replies
  /\ grant.node \in {None, n}
  /\ grant' = [node |-> n, gen |-> IF Breaks("GrantTakesNumber") /\ grant.node = n
                                   THEN grant.gen ELSE Max(grant.gen, g)]
  /\ replies' = replies \cup {<<n, g>>}
  /\ UNCHANGED <<memVars, genVars, dataVars, coordVars, book, outVars, checked, forgot, cleans>>

(* With the grant for g node n elects itself alone; the reply may have been long on its way. *)
ElectAlone(n, g) ==
  /\ Referee /\ gens[g].st = "none" /\ MayVote(n, g) /\ <<n, g>> \in replies
  /\ gens' = [gens EXCEPT ![g] = [st |-> "elected", members |-> {n}, donors |-> {n}]]
  /\ Vouch({n}, g)
  /\ UNCHANGED <<cur, last, ballots, snap, dataVars, coordVars, book, outVars, checked, forgot, refVars>>

(* Two data nodes: a full generation of both, by both their votes. *)
ElectFull(g) ==
  /\ Referee /\ gens[g].st = "none" /\ \A n \in Nodes : MayVote(n, g)
  /\ Open(g, Nodes, Nodes, last)
  /\ Vouch(Nodes, g)
  /\ UNCHANGED <<cur, last, ballots, snap, dataVars, coordVars, book, outVars, checked, forgot, refVars>>

(* Both are ONLINE in a full generation: clean(g) is sent, and may arrive at any later time, often. *)
SendClean(g) ==
  /\ Referee /\ Elected(g) /\ Members(g) = Nodes /\ g \notin cleans
  /\ IF Breaks("CleanWhenOnline") THEN \E n \in Nodes : OnlineIn(n, g) ELSE \A n \in Nodes : OnlineIn(n, g)
  /\ cleans' = cleans \cup {g}
  /\ UNCHANGED <<memVars, genVars, dataVars, coordVars, book, outVars, checked, forgot, grant, replies>>

(* clean(g) deletes only a grant with a lower number. *)
DoClean(g) ==
  /\ g \in cleans /\ grant # NoGrant
  /\ grant.gen < g \/ Breaks("CleanIsNumbered")
  /\ grant' = NoGrant
  /\ UNCHANGED <<memVars, genVars, dataVars, coordVars, book, outVars, checked, forgot, replies, cleans>>
=============================================================================
