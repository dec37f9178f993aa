------------------------------- MODULE Commit -------------------------------
(***************************************************************************)
(* One transaction inside its own generation: announce, prepare, decide,   *)
(* the abort round, and what a crash of the origin leaves behind.          *)
(***************************************************************************)
EXTENDS State

(* PRE_COMMIT on the origin: stamp, announce, flush.  The flushed announcement is the origin's own *)
(* PREPARED vote.  Stamp and announcement happen under the generation lock, so they are one step.  *)
Begin(t, a) ==
  /\ phase[t] = "idle" /\ a \in Homes[t] /\ Online(a)
  /\ st[a][t] = "none" /\ ~Blocked(a, t)
  /\ orig'  = [orig EXCEPT ![t] = a]
  /\ tgen'  = [tgen EXCEPT ![t] = cur[a]]
  /\ phase' = [phase EXCEPT ![t] = "run"]
  /\ tally' = [tally EXCEPT ![t] = {a}]
  /\ st'    = [st EXCEPT ![a][t] = "open"]
  /\ soft'  = Flushed(a)
  /\ UNCHANGED <<memVars, genVars, hist, book, outVars, checked, forgot, refVars>>

Announced(t) == tgen[t] > 0

(* Broken barrier: the member looks at its generation, lets the lock go, and prepares later. *)
Check(b, t) ==
  /\ Breaks("Barrier") /\ Announced(t) /\ b # orig[t] /\ OnlineIn(b, tgen[t])
  /\ checked' = checked \cup {<<b, t>>}
  /\ <<b, t>> \notin checked
  /\ UNCHANGED <<memVars, genVars, dataVars, coordVars, book, outVars, forgot, refVars>>

(* A member applies and prepares t while ONLINE in t's generation, under the generation lock.  *)
(* The vote counts only while the origin still collects votes.  A stream brings everything at   *)
(* least once; what was finished, even if forgotten since, is not prepared again.                *)
Prepare(b, t) ==
  /\ Announced(t) /\ b # orig[t] /\ ~Blocked(b, t)
  /\ st[b][t] = "none" \/ (t \in forgot[b] /\ Breaks("PreparedOnce"))
  /\ IF Breaks("Barrier") THEN <<b, t>> \in checked ELSE OnlineIn(b, tgen[t])
  /\ st' = [st EXCEPT ![b][t] = "prepared"]
  /\ tally' = IF phase[t] = "run" THEN [tally EXCEPT ![t] = @ \cup {b}] ELSE tally
  /\ soft' = Flushed(b)
  /\ UNCHANGED <<memVars, genVars, hist, phase, orig, tgen, book, outVars, checked, forgot, refVars>>

(* A member cannot apply t (deadlock, duplicate key, disk): it promises never to prepare it. *)
Refuse(b, t) ==
  /\ Refusals /\ Announced(t) /\ b # orig[t] /\ st[b][t] = "none" /\ OnlineIn(b, tgen[t])
  /\ st' = [st EXCEPT ![b][t] = "refused"]
  /\ UNCHANGED <<memVars, genVars, hist, soft, coordVars, book, outVars, checked, forgot, refVars>>

(* What cannot be restored from WAL is decided only when its commit record is on disk; so is anything *)
(* that no other node holds.                                                                          *)
FlushFirst(t) == /\ ~Breaks("FlushFirst")
                 /\ t \notin Restorable \/ Cardinality(Members(tgen[t])) = 1

Decided(t, g) == comAt' = [comAt EXCEPT ![t] = IF @ = 0 \/ g < @ THEN g ELSE @]

(* Every member of t's generation has voted: commit is decided.  The origin may learn this late, *)
(* after it has itself moved on: the votes were cast in t's generation, that is what counts.     *)
DecideCommit(t) ==
  LET a == orig[t]
      quorum == IF Breaks("AllMembers") THEN Majority(tally[t]) ELSE tally[t] = Members(tgen[t])
  IN
  /\ phase[t] = "run" /\ st[a][t] = "open" /\ quorum
  /\ tally' = [tally EXCEPT ![t] = {}]
  /\ IF FlushFirst(t)
     THEN /\ phase' = [phase EXCEPT ![t] = "deciding"]
          /\ UNCHANGED outVars
     ELSE /\ phase' = [phase EXCEPT ![t] = "done"]
          /\ Decided(t, tgen[t]) /\ Told(t, "ok")
          /\ UNCHANGED abDec
  /\ UNCHANGED <<memVars, genVars, dataVars, orig, tgen, book, checked, forgot, refVars>>

(* The commit record of a transaction that had to wait for it: now the decision counts. *)
FlushCommit(t) ==
  LET a == orig[t] IN
  /\ phase[t] = "deciding"
  /\ phase' = [phase EXCEPT ![t] = "done"]
  /\ Decided(t, tgen[t]) /\ Told(t, "ok")
  /\ st'   = [st EXCEPT ![a][t] = "committed"]
  /\ hist' = IF t \in Range(hist[a]) THEN hist ELSE [hist EXCEPT ![a] = Append(@, t)]
  /\ soft' = Flushed(a)
  /\ UNCHANGED <<memVars, genVars, orig, tgen, tally, book, abDec, checked, forgot, refVars>>

(* Cancel, a member's refusal, a timeout: the origin stops counting votes and durably accepts abort. *)
StartAbort(t) ==
  LET a == orig[t] IN
  /\ phase[t] = "run" /\ st[a][t] = "open" /\ OnlineIn(a, tgen[t])
  /\ phase' = [phase EXCEPT ![t] = "aborting"]
  /\ tally' = [tally EXCEPT ![t] = {a}]
  /\ st'    = [st EXCEPT ![a][t] = "accabort"]
  /\ soft'  = Flushed(a)
  /\ IF Breaks("AnswerAfterAbort") THEN Told(t, "error") ELSE UNCHANGED told
  /\ UNCHANGED <<memVars, genVars, hist, orig, tgen, book, comAt, abDec, checked, forgot, refVars>>

(* A member still in t's generation accepts the abort; a node in another generation does not answer. *)
AcceptAbort(b, t) ==
  /\ phase[t] = "aborting" /\ b \notin tally[t] /\ Online(b)
  /\ cur[b] = tgen[t] \/ Breaks("SameGeneration")
  /\ st[b][t] \in {"none", "refused", "prepared"}
  /\ st'    = [st EXCEPT ![b][t] = IF @ = "prepared" THEN "accabort" ELSE "refused"]
  /\ tally' = [tally EXCEPT ![t] = @ \cup {b}]
  /\ soft'  = Flushed(b)
  /\ UNCHANGED <<memVars, genVars, hist, phase, orig, tgen, book, outVars, checked, forgot, refVars>>

(* All members accepted: abort is decided.  Only now does anyone roll back, only now is the client told. *)
DecideAbort(t) ==
  LET a == orig[t] IN
  /\ phase[t] = "aborting" /\ st[a][t] = "accabort"
  /\ Breaks("AllAcceptAbort") \/ Members(tgen[t]) \subseteq tally[t]
  /\ phase' = [phase EXCEPT ![t] = "done"]
  /\ tally' = [tally EXCEPT ![t] = {}]
  /\ abDec' = abDec \cup {t}
  /\ Told(t, "error")
  /\ st'    = [st EXCEPT ![a][t] = "aborted"]
  /\ UNCHANGED <<memVars, genVars, hist, soft, orig, tgen, book, comAt, checked, forgot, refVars>>

(* Node n learns a decision, from whoever knows it: told once, or asked for again and again.  At the   *)
(* origin the waiting backend learns it; a restorable transaction's commit record may stay unflushed. *)
LearnCommit(n, t) ==
  /\ comAt[t] > 0 /\ Undecided(st[n][t]) /\ ~(n = orig[t] /\ phase[t] = "deciding")
  /\ st'   = [st EXCEPT ![n][t] = "committed"]
  /\ hist' = [hist EXCEPT ![n] = Append(@, t)]
  /\ IF n = orig[t] /\ InBackend(t)
     THEN /\ phase' = [phase EXCEPT ![t] = "done"]
          /\ tally' = [tally EXCEPT ![t] = {}]
          /\ Told(t, "ok")
          /\ soft'  = IF Crashes /\ ~FlushFirst(t) THEN soft \cup {t} ELSE Flushed(n)
     ELSE /\ soft'  = Flushed(n)
          /\ UNCHANGED <<phase, tally, told>>
  /\ UNCHANGED <<memVars, genVars, orig, tgen, book, comAt, abDec, checked, forgot, refVars>>

LearnAbort(n, t) ==
  /\ t \in abDec /\ Undecided(st[n][t])
  /\ st' = [st EXCEPT ![n][t] = "aborted"]
  /\ IF n = orig[t] /\ InBackend(t)
     THEN /\ phase' = [phase EXCEPT ![t] = "done"]
          /\ tally' = [tally EXCEPT ![t] = {}]
          /\ Told(t, "error")
     ELSE UNCHANGED <<phase, tally, told>>
  /\ UNCHANGED <<memVars, genVars, hist, soft, orig, tgen, book, comAt, abDec, checked, forgot, refVars>>

(* The origin loses its backends: a crash, or (for one backend) a commit that fails locally or a FATAL. *)
(* What was open is only in WAL now; what had journalled an accepted abort is gone for good; a commit   *)
(* record that was not flushed never was.  What was dropped, given up or aborted before stays so: that  *)
(* is journalled too, although its announcement is still in the WAL and nothing there ends it.          *)
Crash(a) ==
  LET mine   == {t \in Own(a) : InBackend(t)}
      undone == soft \cap Own(a)
      gone   == {t \in mine : st[a][t] = "accabort"}
      raised == {t \in Own(a) \cap Restorable : Breaks("DropIsJournalled") /\ st[a][t] = "none"}
      wal    == {t \in mine : st[a][t] = "open"} \cup undone \cup raised
  IN
  /\ Crashes /\ wal \cup gone # {}
  /\ st'    = [st EXCEPT ![a] = TLCEval([t \in Txs |-> IF t \in wal THEN "lost"
                                              ELSE IF t \in gone THEN "refused" ELSE @[t]])]
  /\ hist'  = [hist EXCEPT ![a] = SelectSeq(@, LAMBDA t : t \notin undone)]
  /\ soft'  = soft \ undone
  /\ phase' = [t \in Txs |-> IF t \in mine THEN "done" ELSE phase[t]]
  /\ tally' = [t \in Txs |-> IF t \in mine THEN {} ELSE tally[t]]
  /\ told'  = [t \in Txs |-> IF t \in mine /\ told[t] = "waits" THEN "unknown" ELSE told[t]]
  /\ UNCHANGED <<memVars, genVars, orig, tgen, book, comAt, abDec, checked, forgot, refVars>>

(* What a rollback leaves behind: nothing that anybody may take for a decision. *)
RolledBack == IF Breaks("RollbackIsNoEvidence") THEN "aborted" ELSE "refused"

(* Behind the fence: restore what can be re-read from WAL as a real prepared transaction, refuse the rest. *)
Restore(a, t) ==
  /\ a = orig[t] /\ st[a][t] = "lost"
  /\ st' = [st EXCEPT ![a][t] = IF t \in Restorable /\ ~Breaks("RestoreAll") THEN "prepared" ELSE RolledBack]
  /\ UNCHANGED <<memVars, genVars, hist, soft, coordVars, book, outVars, checked, forgot, refVars>>

(* Broken: "aborted" in the stream of a restarted origin (its old xid looks aborted) is taken as evidence. *)
BelieveStream(b, t) ==
  /\ Breaks("StreamIsNoEvidence") /\ Announced(t) /\ b # orig[t] /\ st[b][t] = "prepared"
  /\ phase[t] = "done" /\ st[orig[t]][t] \in {"prepared", "refused", "aborted"}
  /\ st' = [st EXCEPT ![b][t] = "refused"]
  /\ UNCHANGED <<memVars, genVars, hist, soft, coordVars, book, outVars, checked, forgot, refVars>>

(* A finished transaction is forgotten when every configured node has finished it. *)
Finished(n, t) == st[n][t] \in {"committed", "aborted"} \/ (t \in abDec /\ st[n][t] \in {"none", "refused"})
Forget(n, t) ==
  /\ Retention /\ Announced(t) /\ t \notin forgot[n] /\ st[n][t] \in {"committed", "aborted"}
  /\ Breaks("Watermark") \/ \A m \in Nodes : Finished(m, t)
  /\ forgot' = [forgot EXCEPT ![n] = @ \cup {t}]
  /\ UNCHANGED <<memVars, genVars, dataVars, coordVars, book, outVars, checked, refVars>>
=============================================================================
