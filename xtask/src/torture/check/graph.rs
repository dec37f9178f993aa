//! Dependencies between transactions, and cycles among them.

use std::collections::BTreeSet;

/// Why one transaction comes before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// The other overwrote (appended after) what it wrote.
    Overwritten,
    /// The other read what it wrote.
    Read,
}

/// Edges by number of the transaction they come from.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    edges: Vec<BTreeSet<(usize, Why)>>,
}

impl Graph {
    /// No edges between `size` transactions.
    #[must_use]
    pub fn new(size: usize) -> Self {
        Self { edges: vec![BTreeSet::new(); size] }
    }

    /// `from` comes before `to`; a transaction does not depend on itself.
    pub fn add(&mut self, from: usize, to: usize, why: Why) {
        if from != to {
            self.edges[from].insert((to, why));
        }
    }

    /// What comes directly after `from`.
    pub fn after(&self, from: usize) -> impl Iterator<Item = (usize, Why)> + '_ {
        self.edges[from].iter().copied()
    }

    /// Groups of transactions each of which comes before each other, by edges of these kinds.
    #[must_use]
    pub fn cycles(&self, kinds: &[Why]) -> Vec<Vec<usize>> {
        Tarjan::new(self, kinds).run()
    }

    /// Whether there is an edge of this kind inside `group`.
    #[must_use]
    pub fn holds(&self, group: &[usize], why: Why) -> bool {
        let members: BTreeSet<usize> = group.iter().copied().collect();
        group
            .iter()
            .any(|from| self.after(*from).any(|(to, is)| is == why && members.contains(&to)))
    }
}

/// Strongly connected components without recursion: histories are long.
struct Tarjan<'a> {
    graph: &'a Graph,
    kinds: &'a [Why],
    index: Vec<usize>,
    low: Vec<usize>,
    on_stack: Vec<bool>,
    stack: Vec<usize>,
    next: usize,
    found: Vec<Vec<usize>>,
}

const UNSEEN: usize = usize::MAX;

impl<'a> Tarjan<'a> {
    fn new(graph: &'a Graph, kinds: &'a [Why]) -> Self {
        let size = graph.edges.len();
        Self {
            graph,
            kinds,
            index: vec![UNSEEN; size],
            low: vec![0; size],
            on_stack: vec![false; size],
            stack: Vec::new(),
            next: 0,
            found: Vec::new(),
        }
    }

    fn run(mut self) -> Vec<Vec<usize>> {
        for root in 0..self.index.len() {
            if self.index[root] == UNSEEN {
                self.visit(root);
            }
        }
        self.found
    }

    fn enter(&mut self, node: usize) -> (usize, Vec<usize>) {
        self.index[node] = self.next;
        self.low[node] = self.next;
        self.next += 1;
        self.stack.push(node);
        self.on_stack[node] = true;
        let kinds = self.kinds;
        let to = self.graph.after(node).filter(|(_, why)| kinds.contains(why));
        (node, to.map(|(to, _)| to).collect())
    }

    fn visit(&mut self, root: usize) {
        let mut path = vec![self.enter(root)];
        while let Some((node, todo)) = path.last_mut() {
            let node = *node;
            match todo.pop() {
                Some(to) if self.index[to] == UNSEEN => path.push(self.enter(to)),
                Some(to) => {
                    if self.on_stack[to] {
                        self.low[node] = self.low[node].min(self.index[to]);
                    }
                }
                None => {
                    path.pop();
                    if let Some((parent, _)) = path.last() {
                        self.low[*parent] = self.low[*parent].min(self.low[node]);
                    }
                    self.leave(node);
                }
            }
        }
    }

    fn leave(&mut self, node: usize) {
        if self.low[node] != self.index[node] {
            return;
        }
        let mut group = Vec::new();
        while let Some(member) = self.stack.pop() {
            self.on_stack[member] = false;
            group.push(member);
            if member == node {
                break;
            }
        }
        if group.len() > 1 {
            group.sort_unstable();
            self.found.push(group);
        }
    }
}
