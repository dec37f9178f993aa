//! Makes a failing history small: leaves out faults, clients, nodes and time as long as the same
//! invariant fails.

use crate::plan::{Change, Fault, Plan, Shape, Slowness};
use crate::world::{Verdict, run};

/// A small history in which the same invariant fails.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shrunk {
    /// Its plan.
    pub plan: Plan,
    /// With its story.
    pub verdict: Verdict,
    /// Histories tried on the way.
    pub tried: u64,
}

struct Shrinker {
    best: Plan,
    invariant: &'static str,
    tried: u64,
    limit: u64,
}

/// What is left out changes what chance does to the rest: each smaller plan gets a few tries.
const CHANCES: u64 = 4;

/// Shrinks a plan whose history violates something, in at most `limit` histories. `None` when its
/// history violates nothing.
pub fn shrink(plan: &Plan, limit: u64) -> Option<Shrunk> {
    let (_, violation) = run(plan, false).violation?;
    let mut s = Shrinker { best: plan.clone(), invariant: violation.invariant, tried: 0, limit };
    s.end_early();
    loop {
        let before = s.weight();
        s.drop_nodes();
        s.drop_faults();
        s.drop_transactions();
        s.calm_down();
        s.end_early();
        if s.weight() == before || s.tried >= s.limit {
            break;
        }
    }
    let verdict = run(&s.best, true);
    Some(Shrunk { plan: s.best, verdict, tried: s.tried })
}

impl Shrinker {
    fn weight(&self) -> (usize, usize, usize, u64) {
        let p = &self.best;
        let faults = p.faults.len() + p.changes.len();
        (p.shape.nodes(), faults, p.transactions.len(), p.heal_at_us)
    }

    /// Takes the candidate if it still fails in the same way.
    fn attempt(&mut self, candidate: &Plan) -> bool {
        for chance in 0..CHANCES {
            if self.tried >= self.limit {
                return false;
            }
            self.tried += 1;
            let seed = self.best.seed.wrapping_add(chance.wrapping_mul(0x9E37_79B9));
            let plan = Plan { seed, ..candidate.clone() };
            let failed =
                run(&plan, false).violation.is_some_and(|(_, v)| v.invariant == self.invariant);
            if failed {
                self.best = plan;
                return true;
            }
        }
        false
    }

    /// Ends disturbances right after the violation, or leaves out what comes after it.
    fn end_early(&mut self) {
        let Some((at, _)) = run(&self.best, false).violation else { return };
        for end in [at + 1_000, self.best.heal_at_us / 2, self.best.heal_at_us * 3 / 4] {
            if end >= self.best.heal_at_us {
                continue;
            }
            let mut plan = self.best.clone();
            plan.heal_at_us = end;
            plan.faults.retain(|(at, _)| *at < end);
            plan.transactions.retain(|t| t.at_us < end);
            self.attempt(&plan);
        }
    }

    /// The last node leaves, if the cluster stays one.
    fn drop_nodes(&mut self) {
        while let Shape::Nodes(n @ 4..) = self.best.shape {
            let last = n - 1;
            let mut plan = self.best.clone();
            plan.shape = Shape::Nodes(last);
            plan.initial = plan.initial.min(last);
            plan.changes.retain(|(_, Change::Add(n) | Change::Drop(n))| *n < last);
            let stays = |fault: &Fault| {
                let (a, b) = fault.nodes();
                a.is_none_or(|a| a < last) && b.is_none_or(|b| b < last)
            };
            plan.faults.retain(|(_, fault)| stays(fault));
            plan.transactions.retain(|t| t.node < last);
            if !self.attempt(&plan) {
                return;
            }
        }
    }

    /// Leaves out a fault with what ends it, or a change.
    fn drop_faults(&mut self) {
        for at in (0..self.best.changes.len()).rev() {
            let mut plan = self.best.clone();
            plan.changes.remove(at);
            self.attempt(&plan);
        }
        let mut at = 0;
        while at < self.best.faults.len() && self.tried < self.limit {
            let begun = self.best.faults[at].1;
            let ends = |&i: &usize| self.best.faults[i].1.ends(begun);
            let end = (at + 1..self.best.faults.len()).find(ends);
            let mut plan = self.best.clone();
            if let Some(end) = end {
                plan.faults.remove(end);
            }
            plan.faults.remove(at);
            if !self.attempt(&plan) {
                at += 1;
            }
        }
    }

    /// Leaves out half of the clients, a quarter, ..., one.
    fn drop_transactions(&mut self) {
        let mut chunk = self.best.transactions.len().div_ceil(2).max(1);
        loop {
            let mut at = 0;
            while at < self.best.transactions.len() && self.tried < self.limit {
                let mut plan = self.best.clone();
                let end = (at + chunk).min(plan.transactions.len());
                plan.transactions.drain(at..end);
                if !self.attempt(&plan) {
                    at += chunk;
                }
            }
            if chunk == 1 {
                return;
            }
            chunk = chunk.div_ceil(2);
        }
    }

    /// Makes things quick and messages certain where that is not the point.
    fn calm_down(&mut self) {
        const QUICK: Slowness = Slowness { percent: 0, max_us: 0 };
        let calm: [fn(&mut Plan); 4] =
            [|p| p.latency = QUICK, |p| p.disk = QUICK, |p| p.write = QUICK, |p| p.refusals = 0];
        for change in calm {
            let mut plan = self.best.clone();
            change(&mut plan);
            if plan != self.best {
                self.attempt(&plan);
            }
        }
        for at in 0..self.best.transactions.len() {
            let mut plan = self.best.clone();
            plan.transactions[at].keys.truncate(1);
            if plan != self.best {
                self.attempt(&plan);
            }
        }
    }
}
