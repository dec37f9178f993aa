------------------------------ MODULE Liveness ------------------------------
(***************************************************************************)
(* Faults end; then everything is settled and everybody alive works.       *)
(*                                                                         *)
(* The actions are those of the protocol, taken by live nodes only, with   *)
(* three things added that safety does not need: a minority may die for    *)
(* good, an election is held only when somebody has a reason to campaign   *)
(* (among all live nodes, which is what the clique comes to), and whoever  *)
(* learns a decision must learn it from somebody alive who knows it.       *)
(***************************************************************************)
EXTENDS Recovery

VARIABLES
  down,    \* nodes that died for good
  missed   \* <<n, t>>: the one message that told n the decision about t was lost (only when nobody asks again)

lvars == <<vars, down, missed>>
Up == Nodes \ down
Multi == INSTANCE Multimaster
Latest == CHOOSE g \in Gens : Elected(g) /\ \A h \in Gens : Elected(h) => h <= g

Init == Multi!Init /\ down = {} /\ missed = {}

(* Reasons to campaign: a member is dead, or a live node is not in; or a transaction of the latest generation has *)
(* lost its coordinator (its origin restarted, or gave it up), so nobody would ever finish it there.               *)
Orphaned(t) == /\ tgen[t] = Latest /\ ~InBackend(t)
               /\ \E n \in Up : Undecided(st[n][t])
               /\ \A n \in Up : st[n][t] \notin {"committed", "aborted"}
Needed == \/ Members(Latest) # Up
          \/ ~Breaks("RestartedCampaigns") /\ \E t \in Txs : Orphaned(t)
Campaign == /\ Needed /\ Majority(Up) /\ Latest < MaxGen
            /\ \E V \in SUBSET Up : ElectAtOnce(Latest + 1, Up, V)

(* Who can tell n the outcome: a live node that has finished t; the origin's own backend; or, inside the generation *)
(* n is in, whoever counts there, as long as all members can be asked.                                              *)
Told2(n, t) == \/ \E m \in Up : st[m][t] \in {"committed", "aborted"}
               \/ n = orig[t] /\ InBackend(t) /\ phase[t] = "done"
               \/ /\ Members(cur[n]) \subseteq Up /\ \A m \in Members(cur[n]) : OnlineIn(m, cur[n])
                  /\ Old(t, cur[n])
                  /\ comAt[t] > 0 \/ book[cur[n]][t].ph = "done"
Learn(n, t) == /\ Told2(n, t) /\ <<n, t>> \notin missed
               /\ LearnCommit(n, t) \/ LearnAbort(n, t)

(* A recovering node stays with one donor while that one lives; going to and fro between two would never end. *)
LiveSource(n) == Sources(n) \cap Up
Recover(n) == /\ last[n] < cur[n] /\ LiveSource(n) # {}
              /\ \E d \in LiveSource(n) :
                   /\ d = (CHOOSE e \in LiveSource(n) : TRUE) \/ Breaks("OneDonor")
                   /\ Replay(n, d) \/ BecomeOnline(n, d) \/ \E t \in Txs : Reconcile(n, d, t)

Progress ==
  \/ Campaign
  \/ \E n \in Up : \/ Recover(n) \/ (n \in Members(Latest) /\ Switch(n, Latest))
                   \/ \E t \in Txs : \/ Prepare(n, t) \/ AcceptAbort(n, t) \/ Learn(n, t) \/ Restore(n, t)
                                     \/ n = orig[t] /\ (DecideCommit(t) \/ FlushCommit(t) \/ DecideAbort(t))
                                     \/ \E g \in 2..MaxGen : n \in Members(g)
                                          /\ (ProposeAbort(n, t, g) \/ AcceptSettle(n, t, g))

(* What may happen, and need not. *)
Mishap ==
  \/ \E n \in Up, t \in Txs : Begin(t, n) \/ (n = orig[t] /\ StartAbort(t))
  \/ \E n \in Up : Crash(n)

Die(n) == /\ n \in Up /\ Majority(Up \ {n})
          /\ down' = down \cup {n} /\ UNCHANGED <<vars, missed>>
Miss(n, t) == /\ Breaks("AskAgain") /\ n \in Up /\ <<n, t>> \notin missed /\ Undecided(st[n][t])
              /\ comAt[t] > 0 \/ t \in abDec
              /\ missed' = missed \cup {<<n, t>>} /\ UNCHANGED <<vars, down>>

Next == \/ (Progress \/ Mishap) /\ UNCHANGED <<down, missed>>
        \/ \E n \in Nodes : Die(n) \/ \E t \in Txs : Miss(n, t)
Spec == Init /\ [][Next]_lvars /\ WF_lvars(Progress /\ UNCHANGED <<down, missed>>)

(* Every transaction is settled on every live node in the end ... *)
Settled == \A t \in Txs, n \in Up : ~Undecided(st[n][t]) /\ st[n][t] # "lost"
FinallySettled == <>[]Settled
(* ... and every live node works, in one generation. *)
Works == \E g \in Gens : Members(g) \subseteq Up /\ \A n \in Up : OnlineIn(n, g)
FinallyWorks == <>[]Works
=============================================================================
