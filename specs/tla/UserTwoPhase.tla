---------------------------- MODULE UserTwoPhase ----------------------------
(***************************************************************************)
(* A user's own PREPARE TRANSACTION, later finished by COMMIT PREPARED or  *)
(* ROLLBACK PREPARED, possibly from another node and by two users at once. *)
(* Each statement is an operation of its own that the cluster decides as   *)
(* it decides a transaction: every member holds it or it is aborted.  How  *)
(* that is decided is the business of the other modules; here a decision   *)
(* is one step, and learning it is another.                                *)
(***************************************************************************)
EXTENDS Naturals, FiniteSets

CONSTANTS Nodes, Broken

Ops == {"prepare", "commit", "rollback"}
Seconds == {"commit", "rollback"}
Rival(o) == CASE o = "commit" -> "rollback" [] o = "rollback" -> "commit" [] OTHER -> "none"

VARIABLES
  user,   \* user[n]: "none", "prepared" (the user may come back in a year), "committed", "rolledback"
  op,     \* op[n][o]: "none", "held", "done", "undone"
  origin, \* origin[o]: the node the user spoke to, or "nobody"
  fate,   \* fate[o]: "open", "yes", "no": what the cluster decided about operation o
  told    \* told[o]: "waits", "ok", "error", "unknown"

vars == <<user, op, origin, fate, told>>
Breaks(rule) == rule \in Broken

Init ==
  /\ user = [n \in Nodes |-> "none"]
  /\ op = [n \in Nodes |-> [o \in Ops |-> "none"]]
  /\ origin = [o \in Ops |-> "nobody"]
  /\ fate = [o \in Ops |-> "open"]
  /\ told = [o \in Ops |-> "waits"]

(* Node n can do o now: the user's transaction is in the right state and no rival operation holds it. *)
Possible(n, o) == IF o = "prepare" THEN user[n] = "none"
                  ELSE user[n] = "prepared" /\ op[n][Rival(o)] # "held"

(* PREPARE TRANSACTION is refused by the server itself for temporary objects, exported snapshots, a gid in use,  *)
(* no free slot.  The server looks after our callback has run, so we look first.                                  *)
Announce(n, o) ==
  /\ origin[o] = "nobody" /\ Possible(n, o)
  /\ origin' = [origin EXCEPT ![o] = n]
  /\ op' = [op EXCEPT ![n][o] = "held"]
  /\ UNCHANGED <<user, fate, told>>
Hold(n, o) ==
  /\ origin[o] # "nobody" /\ fate[o] = "open" /\ op[n][o] = "none" /\ Possible(n, o)
  /\ op' = [op EXCEPT ![n][o] = "held"]
  /\ UNCHANGED <<user, origin, fate, told>>

(* The other modules guarantee: "yes" only if all hold it; a "no" only with everybody's acceptance. *)
Decide(o) ==
  /\ origin[o] # "nobody" /\ fate[o] = "open"
  /\ \/ (\A n \in Nodes : op[n][o] = "held") /\ fate' = [fate EXCEPT ![o] = "yes"]
     \/ fate' = [fate EXCEPT ![o] = "no"]
  /\ UNCHANGED <<user, op, origin, told>>

Outcome(o) == CASE o = "prepare" -> "prepared" [] o = "commit" -> "committed" [] OTHER -> "rolledback"
Learn(n, o) ==
  /\ fate[o] # "open" /\ (op[n][o] = "held" \/ (fate[o] = "no" /\ op[n][o] = "none"))
  /\ op' = [op EXCEPT ![n][o] = IF fate[o] = "yes" THEN "done" ELSE "undone"]
  /\ user' = IF fate[o] = "yes" THEN [user EXCEPT ![n] = Outcome(o)] ELSE user
  /\ told' = IF origin[o] = n /\ told[o] = "waits"
             THEN [told EXCEPT ![o] = IF fate[o] = "yes" THEN "ok" ELSE "error"] ELSE told
  /\ UNCHANGED <<origin, fate>>
Lose(o) ==  \* the connection of the user breaks
  /\ origin[o] # "nobody" /\ told[o] = "waits"
  /\ told' = [told EXCEPT ![o] = "unknown"]
  /\ UNCHANGED <<user, op, origin, fate>>

(* Broken: the server's own refusal comes after the decision. *)
LateRefusal(o) ==
  /\ Breaks("CheckFirst") /\ o = "prepare" /\ fate[o] = "yes" /\ origin[o] # "nobody" /\ op[origin[o]][o] = "held"
  /\ op' = [op EXCEPT ![origin[o]][o] = "undone"]
  /\ told' = [told EXCEPT ![o] = IF @ = "waits" THEN "error" ELSE @]
  /\ UNCHANGED <<user, origin, fate>>
(* Broken: COMMIT PREPARED and ROLLBACK PREPARED take effect at once where they are given. *)
FinishHere(n, o) ==
  /\ Breaks("SecondIsDecided") /\ o \in Seconds /\ origin[o] = "nobody" /\ user[n] = "prepared"
  /\ origin' = [origin EXCEPT ![o] = n]
  /\ fate'   = [fate EXCEPT ![o] = "yes"]
  /\ op'     = [m \in Nodes |-> [op[m] EXCEPT ![o] = IF m = n THEN "done" ELSE "held"]]
  /\ user'   = [user EXCEPT ![n] = Outcome(o)]
  /\ told'   = [told EXCEPT ![o] = "ok"]
(* Broken: a resolver takes a user's prepared transaction for one that was left behind, and ends it. *)
Resolve(n) ==
  /\ Breaks("NobodyResolves") /\ user[n] = "prepared"
  /\ user' = [user EXCEPT ![n] = "rolledback"]
  /\ UNCHANGED <<op, origin, fate, told>>

Next == \/ \E o \in Ops : Decide(o) \/ Lose(o) \/ LateRefusal(o)
        \/ \E n \in Nodes : Resolve(n) \/ \E o \in Ops : Announce(n, o) \/ Hold(n, o) \/ Learn(n, o) \/ FinishHere(n, o)
Spec == Init /\ [][Next]_vars

(* The user's transaction is not committed here and rolled back there. *)
UserAgreement == \A n, m \in Nodes : ~(user[n] = "committed" /\ user[m] = "rolledback")
OneSecond     == ~(fate["commit"] = "yes" /\ fate["rollback"] = "yes")
(* A node that was told "prepared" keeps it until a second operation was decided. *)
UserKept == \A n \in Nodes : op[n]["prepare"] = "done" =>
              user[n] = "prepared" \/ \E o \in Seconds : fate[o] = "yes" /\ user[n] = Outcome(o)
(* An error means it did not happen, an ok that it did. *)
ToldRight == \A o \in Ops : (told[o] = "error" => fate[o] = "no") /\ (told[o] = "ok" => fate[o] = "yes")
=============================================================================
