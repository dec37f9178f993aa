//! What goes wrong, drawn from the seed.

use super::dice::Dice;
use super::net::Way;
use super::servers::Servers;
use crate::process;
use crate::server::Server;
use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;

/// Kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// kill -9 of one node and all its processes.
    Kill,
    /// kill -9 of all nodes at once.
    KillAll,
    /// kill -9 again while the node comes back, or of another one.
    KillAgain,
    /// Links silent first, then kill -9: nobody gets a reset, as when a machine loses power.
    Vanish,
    /// An orderly restart under load.
    Restart,
    /// SIGSTOP of all processes of a node.
    Freeze,
    /// One pair of nodes cut in both directions.
    Cut,
    /// One pair of nodes cut in one direction.
    CutOneWay,
    /// One node cut from all others.
    Isolate,
    /// Connections of one pair reset.
    Reset,
    /// Links of one node slow.
    Slow,
    /// Links lossy.
    Lossy,
    /// One of a node's own background workers told to end.
    Worker,
}

/// All of them.
pub const ALL: [Kind; 13] = [
    Kind::Kill,
    Kind::KillAll,
    Kind::KillAgain,
    Kind::Vanish,
    Kind::Restart,
    Kind::Freeze,
    Kind::Cut,
    Kind::CutOneWay,
    Kind::Isolate,
    Kind::Reset,
    Kind::Slow,
    Kind::Lossy,
    Kind::Worker,
];

impl Kind {
    /// Its name in summaries and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::KillAll => "kill-all",
            Self::KillAgain => "kill-again",
            Self::Vanish => "vanish",
            Self::Restart => "restart",
            Self::Freeze => "freeze",
            Self::Cut => "cut",
            Self::CutOneWay => "cut-one-way",
            Self::Isolate => "isolate",
            Self::Reset => "reset",
            Self::Slow => "slow",
            Self::Lossy => "lossy",
            Self::Worker => "worker",
        }
    }

    /// The kind of that name.
    ///
    /// # Errors
    /// When there is none, with all names.
    pub fn parse(name: &str) -> Result<Self, String> {
        let all = ALL.iter().map(|kind| kind.name()).collect::<Vec<_>>();
        ALL.into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| format!("the kinds are {}", all.join(", ")))
    }

    /// Whether a majority of nodes, each connected to each other, is left.
    #[must_use]
    pub const fn leaves_majority(self) -> bool {
        !matches!(self, Self::KillAll | Self::KillAgain)
    }
}

/// Draws kinds so that each comes once before any comes again.
#[derive(Debug)]
pub struct Bag {
    kinds: Vec<Kind>,
    left: Vec<Kind>,
}

impl Bag {
    /// Draws from `kinds`; from all if there are none.
    #[must_use]
    pub fn new(kinds: &[Kind]) -> Self {
        let kinds = if kinds.is_empty() { &ALL } else { kinds };
        Self { kinds: kinds.to_vec(), left: Vec::new() }
    }

    /// The next.
    pub fn draw(&mut self, dice: &mut Dice) -> Kind {
        if self.left.is_empty() {
            self.left = self.kinds.clone();
            dice.shuffle(&mut self.left);
        }
        self.left.pop().expect("there are kinds")
    }
}

/// A fault that has been drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What happens.
    pub kind: Kind,
    /// Nodes in the order of the draw; how many of them count depends on the kind.
    pub nodes: Vec<usize>,
    /// How long it lasts.
    pub hold_ms: u64,
    /// What the links do, if it is about links.
    pub way: Way,
    /// Stalled connections end with a reset and do not go on with what they hold.
    pub reset_after: bool,
}

impl Fault {
    /// Draws where and how long; short ones are as interesting as long ones.
    #[must_use]
    pub fn draw(kind: Kind, nodes: usize, dice: &mut Dice) -> Self {
        let mut order: Vec<usize> = (1..=nodes).collect();
        dice.shuffle(&mut order);
        let hold_ms = match dice.below(3) {
            0 => dice.between(50, 500),
            1 => dice.between(500, 2500),
            _ => dice.between(2500, 5500),
        };
        let mut way = Way::default();
        match kind {
            Kind::Slow => {
                way.delay_ms = dice.between(5, 120);
                way.jitter_ms = dice.below(50);
            }
            Kind::Lossy => {
                way.loss_permille = dice.between(5, 60);
                way.jitter_ms = dice.below(5);
            }
            _ => way.stalled = true,
        }
        Self { kind, nodes: order, hold_ms, way, reset_after: dice.once_in(2) }
    }

    /// For people.
    #[must_use]
    pub fn detail(&self) -> String {
        let Self { nodes, hold_ms, way, .. } = self;
        let then = if self.reset_after { ", then reset" } else { "" };
        match self.kind {
            Kind::Kill | Kind::Vanish | Kind::Restart | Kind::Freeze => {
                format!("node {} for {hold_ms} ms", nodes[0])
            }
            Kind::KillAll => format!("all for {hold_ms} ms"),
            Kind::KillAgain => format!("node {}, then node {}", nodes[0], self.second()),
            Kind::Cut => format!("{} <-> {} for {hold_ms} ms{then}", nodes[0], nodes[1]),
            Kind::CutOneWay => format!("{} -> {} for {hold_ms} ms{then}", nodes[0], nodes[1]),
            Kind::Isolate => format!("node {} for {hold_ms} ms{then}", nodes[0]),
            Kind::Reset => format!("{} <-> {}", nodes[0], nodes[1]),
            Kind::Slow => format!(
                "node {} by {} to {} ms for {hold_ms} ms",
                nodes[0],
                way.delay_ms,
                way.delay_ms + way.jitter_ms
            ),
            Kind::Lossy => format!("{} of 1000 for {hold_ms} ms", way.loss_permille),
            Kind::Worker => format!("one of node {}", nodes[0]),
        }
    }

    /// Who is killed while the first comes back.
    fn second(&self) -> usize {
        self.nodes[usize::from(self.reset_after)]
    }

    /// The ways it is about.
    fn ways(&self) -> Vec<(usize, usize)> {
        let (one, two) = (self.nodes[0], self.nodes[1]);
        match self.kind {
            Kind::Cut => vec![(one, two), (two, one)],
            Kind::CutOneWay => vec![(one, two)],
            Kind::Isolate | Kind::Vanish | Kind::Slow => {
                self.nodes[1..].iter().flat_map(|other| [(one, *other), (*other, one)]).collect()
            }
            Kind::Lossy => self
                .nodes
                .iter()
                .flat_map(|a| self.nodes.iter().map(|b| (*a, *b)))
                .filter(|(a, b)| a != b)
                .collect(),
            _ => Vec::new(),
        }
    }

    /// Makes it happen, lets it last, and takes its cause away.
    ///
    /// # Errors
    /// When a server does not stop or start as told.
    pub fn strike(&self, servers: &Servers, dice: &mut Dice) -> Result<()> {
        let node = servers.cluster.node(self.nodes[0])?;
        match self.kind {
            Kind::Kill => {
                node.kill()?;
                self.hold();
                servers.start(node)
            }
            Kind::KillAll => self.kill_all(servers),
            Kind::KillAgain => {
                node.kill()?;
                servers.start(node)?;
                std::thread::sleep(Duration::from_millis(self.hold_ms.min(1500)));
                let second = servers.cluster.node(self.second())?;
                second.kill()?;
                servers.start(second)
            }
            Kind::Restart => {
                node.stop()?;
                self.hold();
                servers.start(node)
            }
            Kind::Freeze => {
                node.freeze();
                self.hold();
                node.thaw();
                Ok(())
            }
            Kind::Vanish => {
                self.links(servers);
                std::thread::sleep(Duration::from_millis(dice.below(300)));
                node.kill()?;
                self.hold();
                self.links_again(servers, true);
                servers.start(node)
            }
            Kind::Cut | Kind::CutOneWay | Kind::Isolate => {
                self.links(servers);
                self.hold();
                self.links_again(servers, self.reset_after);
                Ok(())
            }
            Kind::Slow | Kind::Lossy => {
                self.links(servers);
                self.hold();
                self.links_again(servers, false);
                Ok(())
            }
            Kind::Reset => {
                servers.net.reset(self.nodes[0], self.nodes[1]);
                Ok(())
            }
            Kind::Worker => {
                end_worker(node, dice);
                Ok(())
            }
        }
    }

    fn hold(&self) {
        std::thread::sleep(Duration::from_millis(self.hold_ms));
    }

    fn links(&self, servers: &Servers) {
        for (from, to) in self.ways() {
            servers.net.set(from, to, self.way);
        }
    }

    fn links_again(&self, servers: &Servers, reset: bool) {
        for (from, to) in self.ways() {
            if reset {
                servers.net.reset(from, to);
            }
            servers.net.set(from, to, Way::default());
        }
    }

    fn kill_all(&self, servers: &Servers) -> Result<()> {
        std::thread::scope(|scope| {
            let nodes = servers.cluster.nodes.iter();
            let threads: Vec<_> = nodes.map(|node| scope.spawn(|| node.kill())).collect();
            threads.into_iter().try_for_each(|thread| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        self.hold();
        servers.start_all()
    }
}

/// Tells one of the node's `mtm-` processes to end; it is started again by the node.
fn end_worker(node: &Server, dice: &mut Dice) {
    let workers: Vec<i32> = process::of_server(&node.data)
        .into_iter()
        .filter(|pid| {
            let title = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
            title.is_ok_and(|title| title.contains("mtm-"))
        })
        .collect();
    if !workers.is_empty() {
        // It may end by itself in this moment; that is as good.
        let _ = kill(Pid::from_raw(*dice.pick(&workers)), Signal::SIGTERM);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_comes_before_any_comes_again() {
        let mut dice = Dice::new(3);
        let mut bag = Bag::new(&[]);
        let mut drawn: Vec<Kind> = ALL.iter().map(|_| bag.draw(&mut dice)).collect();
        drawn.sort_unstable();
        let mut all = ALL.to_vec();
        all.sort_unstable();
        assert_eq!(drawn, all);
    }

    #[test]
    fn the_same_seed_draws_the_same_faults() {
        let draw = |seed| {
            let mut dice = Dice::new(seed);
            let mut bag = Bag::new(&[]);
            (0..40).map(|_| Fault::draw(bag.draw(&mut dice), 5, &mut dice)).collect::<Vec<_>>()
        };
        assert_eq!(draw(9), draw(9));
        assert_ne!(draw(9), draw(10));
    }

    #[test]
    fn names_lead_back() {
        for kind in ALL {
            assert_eq!(Kind::parse(kind.name()), Ok(kind));
        }
        assert!(Kind::parse("flood").is_err());
    }
}
