//! What shall happen in a history: drawn from the seed beforehand, so that a failing one can be
//! shrunk by leaving parts out.

use crate::planted::Planted;
use crate::rng::Rng;

/// A disturbance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The machine stops at once; what was not synced is lost.
    Crash(usize),
    /// It starts again.
    Restart(usize),
    /// Nothing from the first node reaches the second one.
    Cut(usize, usize),
    /// It does again.
    Mend(usize, usize),
    /// So many percent of the messages are lost from now on.
    Loss(u64),
    /// The disk of this node needs so many times as long.
    SlowDisk(usize, u64),
    /// No process of the node runs; what arrives waits.
    Freeze(usize),
    /// They go on.
    Thaw(usize),
    /// The node's clock jumps by so many microseconds.
    ClockStep(usize, i64),
}

impl Fault {
    /// Whether this fault ends what `other` has begun.
    pub(crate) fn ends(self, other: Self) -> bool {
        match (other, self) {
            (Self::Crash(a), Self::Restart(b)) | (Self::Freeze(a), Self::Thaw(b)) => a == b,
            (Self::Cut(a, b), Self::Mend(c, d)) => (a, b) == (c, d),
            (Self::Loss(a), Self::Loss(b)) => a > 0 && b == 0,
            (Self::SlowDisk(a, slow), Self::SlowDisk(b, 1)) => a == b && slow > 1,
            _ => false,
        }
    }

    /// The nodes it is about.
    pub(crate) const fn nodes(self) -> (Option<usize>, Option<usize>) {
        match self {
            Self::Crash(a)
            | Self::Restart(a)
            | Self::SlowDisk(a, _)
            | Self::Freeze(a)
            | Self::Thaw(a)
            | Self::ClockStep(a, _) => (Some(a), None),
            Self::Cut(a, b) | Self::Mend(a, b) => (Some(a), Some(b)),
            Self::Loss(_) => (None, None),
        }
    }
}

/// A change of the configuration, wanted until it is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// This node is added, as a clone of another one.
    Add(usize),
    /// This node is dropped, whether it works or not, for ever.
    Drop(usize),
}

/// What a client says instead of COMMIT, with the number of a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UserWord {
    /// PREPARE TRANSACTION.
    Prepare(u8),
    /// COMMIT PREPARED.
    Commit(u8),
    /// ROLLBACK PREPARED.
    Rollback(u8),
}

/// One client's transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transaction {
    /// When it begins.
    pub at_us: u64,
    /// Where.
    pub node: usize,
    /// The rows it writes, ascending.
    pub keys: Vec<u8>,
    /// How long it works before it commits.
    pub think_us: u64,
    /// When the client loses patience with the commit.
    pub patience_us: u64,
    /// It is one of the two operations of a user's two-phase transaction.
    pub user: Option<UserWord>,
}

/// The kind of cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// So many data nodes.
    Nodes(usize),
    /// Two data nodes and a referee.
    Referee,
}

impl Shape {
    /// Number of data nodes.
    pub const fn nodes(self) -> usize {
        match self {
            Self::Nodes(n) => n,
            Self::Referee => 2,
        }
    }

    /// Number of machines: the referee is the last one.
    pub const fn machines(self) -> usize {
        match self {
            Self::Nodes(n) => n,
            Self::Referee => 3,
        }
    }
}

/// How slow things are: mostly quick, and with this many percent chance up to so slow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slowness {
    /// Chance of being slow.
    pub percent: u64,
    /// Then at most this.
    pub max_us: u64,
}

impl Slowness {
    fn new(rng: &mut Rng, max_us: u64) -> Self {
        let max_us = match rng.below(3) {
            0 => 1_000,
            1 => max_us / 10,
            _ => max_us,
        };
        Self { percent: rng.below(25), max_us }
    }

    pub(crate) fn draw(self, rng: &mut Rng, low: u64, high: u64) -> u64 {
        if rng.chance(self.percent) {
            rng.between(high, high.max(self.max_us))
        } else {
            rng.between(low, high)
        }
    }
}

/// A whole history's script.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Everything not in the script (delays, losses) is drawn from it.
    pub seed: u64,
    /// The cluster, with the nodes that may be added.
    pub shape: Shape,
    /// So many of them are configured from the beginning.
    pub initial: usize,
    /// What the administrator does, by time.
    pub changes: Vec<(u64, Change)>,
    /// A rule broken on purpose.
    pub planted: Option<Planted>,
    /// Messages and streams.
    pub latency: Slowness,
    /// Syncs.
    pub disk: Slowness,
    /// Between "may be written" and "written".
    pub write: Slowness,
    /// Percent of transactions that a member cannot apply.
    pub refusals: u64,
    /// How long a starting node waits for members that it has not met yet.
    pub patience_us: u64,
    /// Disturbances, by time.
    pub faults: Vec<(u64, Fault)>,
    /// Clients, by time.
    pub transactions: Vec<Transaction>,
    /// When disturbances end and healing begins.
    pub heal_at_us: u64,
}

/// What kind of trouble a history is biased to; plain chance reaches some rules too rarely.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flavour {
    /// Everything, by chance.
    Wild,
    /// One node stops hearing the others while its impatient clients abort, and its disk is so
    /// slow that it moves to the next generation late.
    Deaf,
    /// Generations follow one another quickly, each without another node, and messages get lost.
    Churn,
    /// Two nodes with a referee that cannot hear each other while the referee comes and goes and
    /// what it is told comes late.
    Split,
    /// Users prepare transactions and end them later, some of them twice and on different nodes.
    Users,
    /// Nodes are added and dropped.
    Changes,
    /// Two nodes cannot hear each other, and the third one, on whom both rely, crashes and is soon
    /// back. Only looked at on demand: that is rare.
    Lender,
}

impl Plan {
    /// The script of this seed: half of them are wild.
    pub fn new(seed: u64, shape: Shape) -> Self {
        match seed % 8 {
            0 if shape == Shape::Referee => Self::flavoured(seed, shape, Flavour::Split),
            1 if shape != Shape::Referee => Self::flavoured(seed, shape, Flavour::Changes),
            3 => Self::flavoured(seed, shape, Flavour::Deaf),
            5 => Self::flavoured(seed, shape, Flavour::Users),
            6 => Self::flavoured(seed, shape, Flavour::Churn),
            _ => Self::flavoured(seed, shape, Flavour::Wild),
        }
    }

    /// The script of this seed with this bias.
    pub fn flavoured(seed: u64, shape: Shape, flavour: Flavour) -> Self {
        let mut plan = Self::wild(seed, shape);
        let mut rng = Rng::new(seed ^ 0xF1A_0000);
        match flavour {
            Flavour::Wild => {}
            Flavour::Deaf => deaf(&mut rng, &mut plan),
            Flavour::Churn => churn(&mut rng, &mut plan),
            Flavour::Split => split(&mut rng, &mut plan),
            Flavour::Users => users(&mut rng, &mut plan),
            Flavour::Changes => changes(&mut rng, &mut plan),
            Flavour::Lender => lender(&mut rng, &mut plan),
        }
        plan
    }

    fn wild(seed: u64, shape: Shape) -> Self {
        let mut rng = Rng::new(seed);
        let heal_at_us = rng.between(1_000_000, 4_000_000);
        let faults = faults(&mut rng, shape, heal_at_us);
        let transactions = transactions(&mut rng, shape.nodes(), heal_at_us, &faults);
        Self {
            seed,
            shape,
            initial: shape.nodes(),
            changes: Vec::new(),
            planted: None,
            latency: Slowness::new(&mut rng, 500_000),
            disk: Slowness::new(&mut rng, 100_000),
            write: Slowness::new(&mut rng, 100_000),
            refusals: if rng.chance(30) { rng.below(20) } else { 0 },
            patience_us: patience(seed),
            faults,
            transactions,
            heal_at_us,
        }
    }
}

/// Nothing that must be true may rest on patience, and without it generations follow one another
/// more quickly: most histories have none.
fn patience(seed: u64) -> u64 {
    let mut rng = Rng::new(seed ^ 0xFA_71E7);
    if rng.chance(25) { rng.between(1_000, 300_000) } else { 0 }
}

fn faults(rng: &mut Rng, shape: Shape, end: u64) -> Vec<(u64, Fault)> {
    let mut faults = Vec::new();
    // Some histories are quiet, most are not.
    let episodes = if rng.chance(10) { 0 } else { rng.between(1, 5) };
    for _ in 0..episodes {
        let start = rng.between(50_000, end);
        for _ in 0..rng.between(1, 4) {
            let at = start + rng.below(400_000);
            let lasts = match rng.below(3) {
                0 => rng.between(1_000, 50_000),
                1 => rng.between(50_000, 500_000),
                _ => rng.between(500_000, 2_000_000),
            };
            fault(rng, shape, at, at + lasts, &mut faults);
        }
    }
    faults.sort_by_key(|(at, _)| *at);
    faults
}

fn fault(rng: &mut Rng, shape: Shape, at: u64, later: u64, faults: &mut Vec<(u64, Fault)>) {
    let nodes = shape.nodes();
    let node = rng.below(nodes as u64) as usize;
    match rng.below(24) {
        20 | 21 => {
            faults.push((at, Fault::Freeze(node)));
            faults.push((later, Fault::Thaw(node)));
        }
        22 => faults.push((at, Fault::ClockStep(node, rng.below(4_000_000) as i64 - 2_000_000))),
        23 if shape == Shape::Referee => {
            // The referee is down.
            faults.push((at, Fault::Crash(nodes)));
            faults.push((later, Fault::Restart(nodes)));
        }
        0..7 => {
            faults.push((at, Fault::Crash(node)));
            faults.push((later, Fault::Restart(node)));
        }
        7 => {
            for node in 0..nodes {
                faults.push((at + rng.below(30_000), Fault::Crash(node)));
                faults.push((later + rng.below(300_000), Fault::Restart(node)));
            }
        }
        8..15 => {
            // A node is cut off from some or all others, in one direction or both.
            let (out, inward) = match rng.below(4) {
                0 => (true, false),
                1 => (false, true),
                _ => (true, true),
            };
            let some = if rng.chance(50) { 100 } else { 50 };
            for peer in (0..shape.machines()).filter(|&p| p != node) {
                if !rng.chance(some) {
                    continue;
                }
                for (a, b) in [(node, peer)]
                    .iter()
                    .filter(|_| out)
                    .chain([(peer, node)].iter().filter(|_| inward))
                {
                    faults.push((at, Fault::Cut(*a, *b)));
                    faults.push((later, Fault::Mend(*a, *b)));
                }
            }
        }
        15..17 => {
            faults.push((at, Fault::Loss(rng.between(1, 50))));
            faults.push((later, Fault::Loss(0)));
        }
        _ => {
            faults.push((at, Fault::SlowDisk(node, rng.between(5, 100))));
            faults.push((later, Fault::SlowDisk(node, 1)));
        }
    }
}

fn transactions(
    rng: &mut Rng,
    nodes: usize,
    end: u64,
    faults: &[(u64, Fault)],
) -> Vec<Transaction> {
    let count = rng.between(5, 100);
    let rows = if rng.chance(50) { rng.between(2, 10) } else { rng.between(20, 200) };
    let impatient = rng.below(60);
    let mut all: Vec<Transaction> = (0..count)
        .map(|_| {
            let near = if faults.is_empty() || rng.chance(30) {
                rng.below(end)
            } else {
                faults[rng.below(faults.len() as u64) as usize].0
            };
            let at_us = (near + rng.below(60_000)).saturating_sub(30_000);
            let mut keys: Vec<u8> = (0..rng.between(1, 3)).map(|_| rng.below(rows) as u8).collect();
            keys.sort_unstable();
            keys.dedup();
            let patience_us = if rng.chance(impatient) {
                rng.between(100, 100_000)
            } else {
                rng.between(50_000, 2_000_000)
            };
            let node = rng.below(nodes as u64) as usize;
            Transaction { at_us, node, keys, think_us: rng.below(3_000), patience_us, user: None }
        })
        .collect();
    all.sort_by_key(|t| t.at_us);
    all
}

fn deaf(rng: &mut Rng, plan: &mut Plan) {
    let nodes = plan.shape.nodes();
    let victim = rng.below(nodes as u64) as usize;
    plan.faults = vec![(1, Fault::SlowDisk(victim, rng.between(5, 60)))];
    plan.latency = Slowness { percent: rng.between(5, 50), max_us: rng.between(2_000, 60_000) };
    let mut at = rng.between(100_000, 200_000);
    while at < plan.heal_at_us {
        let lasts = rng.between(220_000, 340_000);
        for peer in (0..nodes).filter(|&p| p != victim) {
            plan.faults.push((at, Fault::Cut(peer, victim)));
            plan.faults.push((at + lasts, Fault::Mend(peer, victim)));
        }
        for _ in 0..rng.between(4, 12) {
            let begins = at.saturating_sub(20_000) + rng.below(lasts);
            let key = rng.below(200) as u8;
            plan.transactions.push(Transaction {
                at_us: begins,
                node: victim,
                keys: vec![key],
                think_us: rng.below(1_000),
                patience_us: rng.between(500, 300_000),
                user: None,
            });
        }
        at += lasts + rng.between(300_000, 600_000);
    }
    plan.faults.sort_by_key(|(at, _)| *at);
    plan.transactions.sort_by_key(|t| t.at_us);
}

fn lender(rng: &mut Rng, plan: &mut Plan) {
    plan.patience_us = 0;
    plan.faults.clear();
    let quick = Slowness { percent: 0, max_us: 0 };
    (plan.latency, plan.disk) = (quick, quick);
    let mut at = rng.between(150_000, 250_000);
    while at + 400_000 < plan.heal_at_us {
        let third = rng.below(3) as usize;
        let (one, two) = ((third + 1) % 3, (third + 2) % 3);
        let mended = at + rng.between(300_000, 500_000);
        let crash = at + rng.between(150_000, 260_000);
        let back = crash + rng.between(1_000, 20_000);
        for (from, to) in [(one, two), (two, one)] {
            plan.faults.push((at, Fault::Cut(from, to)));
            plan.faults.push((mended, Fault::Mend(from, to)));
        }
        plan.faults.push((crash, Fault::Crash(third)));
        plan.faults.push((back, Fault::Restart(third)));
        for begins in (crash..mended).step_by(3_000) {
            plan.transactions.push(Transaction {
                at_us: begins,
                node: rng.below(3) as usize,
                keys: vec![rng.below(200) as u8],
                think_us: rng.below(1_000),
                patience_us: 300_000,
                user: None,
            });
        }
        at = mended + rng.between(200_000, 400_000);
    }
    plan.faults.sort_by_key(|(at, _)| *at);
    plan.transactions.sort_by_key(|t| t.at_us);
}

fn churn(rng: &mut Rng, plan: &mut Plan) {
    let nodes = plan.shape.nodes();
    plan.patience_us = 0;
    plan.latency = Slowness { percent: rng.between(5, 25), max_us: rng.between(2_000, 100_000) };
    plan.faults = vec![(1, Fault::Loss(rng.between(10, 45)))];
    let mut at = rng.between(50_000, 200_000);
    let mut gone: Vec<usize> = Vec::new();
    while at < plan.heal_at_us {
        let lasts = rng.between(210_000, 400_000);
        // The largest minority goes, of those who were there before.
        let mut stay: Vec<usize> = (0..nodes).filter(|n| !gone.contains(n)).collect();
        gone = (0..(nodes - 1).div_ceil(2).min(stay.len() - 1).max(1))
            .map(|_| stay.swap_remove(rng.below(stay.len() as u64) as usize))
            .collect();
        for &node in &gone {
            exile(rng, node, nodes, at, at + lasts, &mut plan.faults);
            for _ in 0..rng.between(2, 6) {
                plan.transactions.push(Transaction {
                    at_us: (at + 2_000).saturating_sub(rng.below(10_000)),
                    node,
                    keys: vec![rng.below(200) as u8],
                    think_us: rng.below(1_000),
                    patience_us: if rng.chance(50) { rng.between(500, 8_000) } else { 1_000_000 },
                    user: None,
                });
            }
        }
        // The next ones go when these have just come back, or a little earlier.
        at += lasts + rng.below(60_000);
        at -= rng.below(60_000);
    }
    plan.transactions.sort_by_key(|t| t.at_us);
    plan.refusals = if rng.chance(50) { rng.below(30) } else { 0 };
    plan.faults.sort_by_key(|(at, _)| *at);
    for t in &mut plan.transactions {
        if rng.chance(30) {
            t.patience_us = rng.between(500, 30_000);
        }
    }
}

fn split(rng: &mut Rng, plan: &mut Plan) {
    const REFEREE: usize = 2;
    plan.patience_us = 0;
    plan.latency = Slowness { percent: rng.between(2, 30), max_us: rng.between(100_000, 600_000) };
    plan.faults.clear();
    let mut at = rng.between(100_000, 300_000);
    while at < plan.heal_at_us {
        let lasts = rng.between(300_000, 1_200_000);
        for (a, b) in [(0, 1), (1, 0)] {
            plan.faults.push((at, Fault::Cut(a, b)));
            plan.faults.push((at + lasts, Fault::Mend(a, b)));
        }
        let down = at + rng.below(lasts);
        if rng.chance(50) {
            plan.faults.push((down, Fault::Crash(REFEREE)));
            plan.faults.push((down + rng.between(1_000, 200_000), Fault::Restart(REFEREE)));
        }
        if rng.chance(30) {
            let node = rng.below(2) as usize;
            plan.faults.push((down, Fault::Crash(node)));
            plan.faults.push((down + rng.between(1_000, 300_000), Fault::Restart(node)));
        }
        at += lasts + rng.between(100_000, 600_000);
    }
    plan.faults.sort_by_key(|(at, _)| *at);
}

fn users(rng: &mut Rng, plan: &mut Plan) {
    let nodes = plan.shape.nodes() as u64;
    let names = rng.between(1, 4);
    let end = plan.heal_at_us;
    let near = |rng: &mut Rng, faults: &[(u64, Fault)]| {
        let at = match faults.len() as u64 {
            n @ 1.. if rng.chance(60) => faults[rng.below(n) as usize].0,
            _ => rng.below(end),
        };
        (at + rng.below(40_000)).saturating_sub(20_000)
    };
    for _ in 0..rng.between(3, 16) {
        let (name, at_us) = (rng.below(names) as u8, near(rng, &plan.faults));
        let keys = (0..rng.between(1, 2)).map(|_| rng.below(100) as u8).collect();
        let mut word = |at_us, keys, user| {
            plan.transactions.push(Transaction {
                at_us,
                node: rng.below(nodes) as usize,
                keys,
                think_us: rng.below(1_000),
                patience_us: rng.between(500, 2_000_000),
                user: Some(user),
            });
            rng.below(100)
        };
        let mut chance = word(at_us, keys, UserWord::Prepare(name));
        // Most are ended, some by several clients, soon or much later.
        let mut at_us = at_us;
        while chance < 80 {
            at_us += 1 + (chance * 7919) % 60_000 * if chance % 4 == 0 { 10 } else { 1 };
            let commit = chance % 3 > 0;
            let user = if commit { UserWord::Commit(name) } else { UserWord::Rollback(name) };
            chance = word(at_us, Vec::new(), user);
        }
    }
    for t in &mut plan.transactions {
        t.keys.sort_unstable();
        t.keys.dedup();
    }
    plan.transactions.sort_by_key(|t| t.at_us);
}

fn changes(rng: &mut Rng, plan: &mut Plan) {
    let nodes = plan.shape.nodes();
    if rng.chance(40) {
        churn(rng, plan);
    }
    plan.initial = nodes - rng.below((nodes - 1) as u64).min(2) as usize;
    plan.heal_at_us += 1_000_000;
    let mut later: Vec<Change> = (plan.initial..nodes).map(Change::Add).collect();
    let mut dropped: Vec<usize> = (0..nodes).collect();
    for _ in 0..rng.between(u64::from(later.is_empty()), 2) {
        let which = rng.below(dropped.len() as u64) as usize;
        later.push(Change::Drop(dropped.swap_remove(which)));
    }
    for change in later {
        let near = match plan.faults.len() as u64 {
            n @ 1.. if rng.chance(60) => plan.faults[rng.below(n) as usize].0,
            _ => rng.below(plan.heal_at_us),
        };
        plan.changes.push((near / 2 + rng.below(50_000), change));
    }
    plan.changes.sort_by_key(|(at, _)| *at);
}

/// A node crashes, or nobody hears it and it hears nobody.
fn exile(
    rng: &mut Rng,
    node: usize,
    nodes: usize,
    at: u64,
    until: u64,
    faults: &mut Vec<(u64, Fault)>,
) {
    if rng.chance(50) {
        faults.push((at, Fault::Crash(node)));
        faults.push((until, Fault::Restart(node)));
        return;
    }
    for peer in (0..nodes).filter(|&p| p != node) {
        for (a, b) in [(node, peer), (peer, node)] {
            faults.push((at, Fault::Cut(a, b)));
            faults.push((until, Fault::Mend(a, b)));
        }
    }
}
