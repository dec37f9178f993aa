//! Draws a history as a space-time diagram: machines are lifelines, time runs downwards, one row
//! per event (not to scale: idle time takes no room), arrows are messages, coloured bands
//! generations. Shown is what concerns the transactions that the violation names, elections and
//! disturbances; heartbeats and repeated messages are left out.

use crate::plan::{Fault, Plan, Shape};
use crate::trace::{Moment, What};
use crate::world::{Packet, Verdict};
use mtm_core::Gid;
use mtm_generations::Message;
use mtm_node::{Effect, Input};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

const ROW: usize = 20;
const COLUMN: usize = 300;
const LEFT: usize = 110;
const TOP: usize = 96;
/// Rows from before the first word about the transactions.
const PRELUDE: usize = 14;
/// More than a person reads.
const MOST_ROWS: usize = 220;
const BANDS: [&str; 6] = ["#dbeafe", "#dcfce7", "#fef3c7", "#f3e8ff", "#ffe4e6", "#cffafe"];

/// The diagram of a verdict with its story.
pub fn draw(plan: &Plan, verdict: &Verdict) -> String {
    let mut drawing = Drawing::new(plan, verdict);
    drawing.choose();
    drawing.render()
}

struct Drawing<'a> {
    plan: &'a Plan,
    verdict: &'a Verdict,
    names: Vec<(Gid, String)>,
    /// Moments shown, with their rows.
    shown: Vec<&'a Moment>,
    arrivals: BTreeMap<u64, usize>,
    svg: String,
}

impl<'a> Drawing<'a> {
    fn new(plan: &'a Plan, verdict: &'a Verdict) -> Self {
        let what = verdict.violation.as_ref().map_or("", |(_, v)| v.what.as_str());
        let words = what.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        let gids: BTreeSet<Gid> = words.filter_map(|w| w.parse().ok()).collect();
        let names = gids.into_iter().zip(1..).map(|(gid, n)| (gid, format!("T{n}"))).collect();
        let (shown, arrivals, svg) = (Vec::new(), BTreeMap::new(), String::new());
        Self { plan, verdict, names, shown, arrivals, svg }
    }

    fn concerns(&self, what: &What) -> bool {
        what.gid().is_some_and(|g| self.names.is_empty() || self.names.iter().any(|(n, _)| *n == g))
    }

    fn is_shown(&self, what: &What) -> bool {
        match what {
            What::Sent { packet, .. } => match packet {
                Packet::Generation(message) => !matches!(message, Message::Status { .. }),
                Packet::Peer(_) => self.concerns(what),
                Packet::AskReferee(_) | Packet::Referee(..) | Packet::Closed(_) => true,
                Packet::CleanReferee(_) | Packet::Alive { .. } | Packet::Lend { .. } => false,
            },
            What::Input(_, input) => {
                let told = matches!(
                    input,
                    Input::Cancel(_)
                        | Input::AnnouncementDurable(_)
                        | Input::PrepareDurable(_)
                        | Input::CommitDurable(_)
                        | Input::AbortDurable(_)
                        | Input::Visible(_)
                        | Input::Finished(_)
                        | Input::ApplyFailed(_)
                        | Input::Replay { .. }
                        | Input::DonorHolds { .. }
                        | Input::RecoveryDone(_)
                        | Input::Found { .. }
                );
                told && self.concerns(what)
            }
            What::Effect(_, effect) => match effect {
                Effect::WriteParallelSafe(_) | Effect::StartRecovery { .. } => true,
                Effect::Answer(..)
                | Effect::GiveUp(_)
                | Effect::Discard(_)
                | Effect::DropPrepared(_)
                | Effect::Install(..) => self.concerns(what),
                _ => false,
            },
            What::Delivered(..) => self.concerns(what),
            What::Fault(_) | What::Healing | What::Generation(..) => true,
            What::Arrived(_) | What::Note(..) => false,
        }
    }

    /// Chooses what is shown: of equal messages the first that arrives and the first that is lost.
    fn choose(&mut self) {
        let story = &self.verdict.story;
        let arrived: BTreeSet<u64> = story
            .iter()
            .filter_map(|m| if let What::Arrived(id) = m.what { Some(id) } else { None })
            .collect();
        let (mut known, mut ids) = (BTreeSet::new(), BTreeSet::new());
        for moment in story {
            match &moment.what {
                What::Arrived(id) if ids.remove(id) => {
                    self.arrivals.insert(*id, self.shown.len());
                    self.shown.push(moment);
                }
                What::Sent { from, to, id, packet } if self.is_shown(&moment.what) => {
                    let there = arrived.contains(id);
                    if known.insert((*from, *to, format!("{packet:?}"), there)) {
                        ids.insert(*id);
                        self.shown.push(moment);
                    }
                }
                what if self.is_shown(what) => self.shown.push(moment),
                _ => {}
            }
        }
        let first = self.shown.iter().position(|m| self.concerns(&m.what)).unwrap_or(0);
        let first = first.saturating_sub(PRELUDE).max(self.shown.len().saturating_sub(MOST_ROWS));
        // What was before is shown as the state in which the picture begins.
        self.shown.drain(..first);
        let kept = |row: usize| row.checked_sub(first);
        self.arrivals = self.arrivals.iter().filter_map(|(id, r)| Some((*id, kept(*r)?))).collect();
    }

    fn machine(&self, i: usize) -> String {
        if i == self.plan.shape.nodes() { "referee".to_owned() } else { format!("n{}", i + 1) }
    }

    fn x(i: usize) -> usize {
        LEFT + 40 + i * COLUMN
    }

    fn y(row: usize) -> usize {
        TOP + row * ROW
    }

    fn width(&self) -> usize {
        LEFT + self.plan.shape.machines() * COLUMN + 20
    }

    fn text(&mut self, x: usize, y: usize, style: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let _ = writeln!(self.svg, r#"<text x="{x}" y="{y}" {style}>{text}</text>"#);
    }

    fn named(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (gid, name) in &self.names {
            text = text.replace(&gid.to_string(), name);
        }
        text
    }

    fn render(mut self) -> String {
        let (width, rows) = (self.width(), self.shown.len());
        let height = Self::y(rows) + 90;
        let _ = writeln!(
            self.svg,
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">
<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" fill="context-stroke"/></marker></defs>
<rect width="{width}" height="{height}" fill="white"/>"#
        );
        self.title();
        self.bands(rows);
        self.lifelines(rows);
        for row in 0..rows {
            self.moment(row);
        }
        self.violation(rows);
        self.svg.push_str("</svg>\n");
        self.svg
    }

    fn title(&mut self) {
        let cluster = match self.plan.shape {
            Shape::Nodes(n) => format!("{n} nodes"),
            Shape::Referee => "2 nodes and a referee".to_owned(),
        };
        let planted =
            self.plan.planted.map_or(String::new(), |p| format!(", planted bug {}", p.name()));
        let title = format!("Seed {} with {cluster}{planted}", self.plan.seed);
        self.text(16, 24, r#"font-size="16" font-weight="bold""#, &title);
        let names: Vec<String> = self.names.iter().map(|(g, n)| format!("{n} = {g}")).collect();
        let legend = format!(
            "{}   (MTM-origin-number-generation). One row per event, time runs downwards. Bands: generations, pale while not ONLINE.",
            names.join(", ")
        );
        self.text(16, 44, "", &legend);
        let legend = "Arrows: blue votes, green commit, red abort, violet elections, grey others; a cross: lost.";
        self.text(16, 60, "", legend);
    }

    /// A band per generation and node.
    fn bands(&mut self, rows: usize) {
        let first = self.shown.first().map_or(0, |m| m.at);
        for i in 0..self.plan.shape.nodes() {
            let mut changes: Vec<(usize, u64, String, bool)> = Vec::new();
            let before = self.verdict.story.iter().take_while(|m| m.at < first);
            for m in before {
                if let What::Generation(n, num, members, online) = &m.what
                    && *n == i
                {
                    changes = vec![(0, num.0, members.to_string(), *online)];
                }
            }
            for (row, m) in self.shown.iter().enumerate() {
                if let What::Generation(n, num, members, online) = &m.what
                    && *n == i
                {
                    changes.push((row, num.0, members.to_string(), *online));
                }
            }
            for (at, (row, num, members, online)) in changes.iter().enumerate() {
                let end = changes.get(at + 1).map_or(rows, |next| next.0);
                let (x, y, h) = (Self::x(i) - 34, Self::y(*row) - 8, (end - row) * ROW);
                let fill = BANDS[*num as usize % BANDS.len()];
                let opacity = if *online { "1" } else { "0.35" };
                let _ = writeln!(
                    self.svg,
                    r#"<rect x="{x}" y="{y}" width="{}" height="{h}" fill="{fill}" fill-opacity="{opacity}"/>"#,
                    COLUMN - 14
                );
                let how = if *online { "ONLINE" } else { "not online" };
                let label = format!("generation {num} {members} {how}");
                self.text(x + 3, y + 11, r##"fill="#555" font-style="italic""##, &label);
            }
        }
    }

    fn lifelines(&mut self, rows: usize) {
        for i in 0..self.plan.shape.machines() {
            let x = Self::x(i);
            let name = self.machine(i);
            self.text(x - 8, TOP - 14, r#"font-weight="bold" font-size="14""#, &name);
            let mut from = 0;
            let mut how = "stroke=\"#333\"";
            for row in 0..=rows {
                let new = match self.shown.get(row).map(|m| &m.what) {
                    Some(What::Fault(Fault::Crash(n))) if *n == i => {
                        "stroke=\"#dc2626\" stroke-dasharray=\"2 5\""
                    }
                    Some(What::Fault(Fault::Freeze(n))) if *n == i => {
                        "stroke=\"#94a3b8\" stroke-dasharray=\"6 4\""
                    }
                    Some(What::Fault(Fault::Restart(n) | Fault::Thaw(n))) if *n == i => {
                        "stroke=\"#333\""
                    }
                    Some(What::Healing) => "stroke=\"#333\"",
                    None => "",
                    Some(_) => continue,
                };
                let (a, b) = (Self::y(from), Self::y(row));
                let _ = writeln!(
                    self.svg,
                    r#"<line x1="{x}" y1="{a}" x2="{x}" y2="{b}" stroke-width="2" {how}/>"#
                );
                (from, how) = (row, new);
            }
        }
    }

    fn moment(&mut self, row: usize) {
        let moment = self.shown[row];
        let y = Self::y(row);
        if row == 0 || self.shown[row - 1].at != moment.at {
            let at = format!("{:.3} ms", moment.at as f64 / 1000.0);
            self.text(16, y + 4, r##"fill="#888""##, &at);
        }
        match &moment.what {
            What::Sent { from, to, id, packet } => self.message(row, *from, *to, *id, packet),
            What::Input(i, input) => self.event(row, *i, "#111", &format!("{input:?}")),
            What::Effect(i, effect) => {
                let told = matches!(effect, Effect::Answer(..) | Effect::GiveUp(_));
                let colour = if told { "#b45309" } else { "#111" };
                self.event(row, *i, colour, &format!("{effect:?}"));
            }
            What::Delivered(_, to, gid) => self.event(row, *to, "#111", &format!("rows of {gid}")),
            What::Fault(fault) => {
                let colour = "#dc2626";
                match fault.nodes() {
                    (Some(a), None) => self.event(row, a, colour, &format!("{fault:?}")),
                    (Some(a), Some(b)) => {
                        let cut = matches!(fault, Fault::Cut(..));
                        let how = if cut { "nothing reaches" } else { "reaches again" };
                        let text = format!("{how} {}", self.machine(b));
                        self.event(row, a, colour, &text);
                    }
                    _ => self.text(LEFT, y + 4, r##"fill="#dc2626""##, &format!("{fault:?}")),
                }
            }
            What::Healing => {
                self.text(LEFT, y + 4, r##"fill="#16a34a""##, "disturbances end");
            }
            What::Generation(..) | What::Arrived(_) | What::Note(..) => {}
        }
    }

    /// Something on one lifeline.
    fn event(&mut self, row: usize, i: usize, colour: &str, text: &str) {
        let (x, y) = (Self::x(i), Self::y(row));
        let text = self.named(text);
        let _ = writeln!(self.svg, r#"<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>"#);
        self.text(x + 8, y + 4, &format!(r#"fill="{colour}""#), &text);
    }

    fn message(&mut self, row: usize, from: usize, to: usize, id: u64, packet: &Packet) {
        let (x1, y1) = (Self::x(from), Self::y(row));
        let (text, colour) = self.label(packet);
        let target = Self::x(to);
        let right = target > x1;
        let style = format!(r#"stroke="{colour}" stroke-width="1.3""#);
        if let Some(&at) = self.arrivals.get(&id) {
            let (x2, y2) = (target, Self::y(at));
            let _ = writeln!(
                self.svg,
                r#"<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" {style} marker-end="url(#tip)"/>"#
            );
        } else {
            let x2 = if right { x1 + 60 } else { x1 - 30 };
            let _ = writeln!(
                self.svg,
                r#"<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y1}" {style} stroke-dasharray="3 2"/>"#
            );
            self.text(x2 - 4, y1 + 4, &format!(r#"fill="{colour}""#), "✕");
        }
        let text = format!("{text} to {}", self.machine(to));
        let style =
            format!(r#"fill="{colour}" paint-order="stroke" stroke="white" stroke-width="2""#);
        let x = if right || to == 0 { x1 + 8 } else { x1.saturating_sub(30) };
        self.text(x, y1 - 3, &style, &text);
    }

    fn label(&self, packet: &Packet) -> (String, &'static str) {
        use mtm_node::PeerMessage as M;
        let text = match packet {
            Packet::Generation(Message::VoteRequest(g)) => {
                format!("vote for {} {}?", g.num.0, g.members)
            }
            Packet::Generation(Message::Vote { num, last_online_in }) => {
                format!("vote for {}, last online in {}", num.0, last_online_in.0)
            }
            Packet::Generation(Message::Elected(e)) => {
                let g = e.generation;
                format!("elected {} {}, donors {}", g.num.0, g.members, e.donors)
            }
            Packet::Generation(message) => format!("{message:?}"),
            Packet::Alive { .. } => "alive".to_owned(),
            Packet::Lend { num, .. } => format!("may rely on this, in {}", num.0),
            Packet::Closed(_) => "closed".to_owned(),
            Packet::Peer(message) => self.named(&format!("{message:?}")),
            Packet::AskReferee(num) => format!("grant for {}?", num.0),
            Packet::Referee(num, granted) => format!("grant for {}: {granted}", num.0),
            Packet::CleanReferee(num) => format!("clean {}", num.0),
        };
        let colour = match packet {
            Packet::Peer(M::Prepared(_) | M::AskVote(_) | M::Refused(_)) => "#2563eb",
            Packet::Peer(M::Decided(_, mtm_paxos::commit::Decree::Commit) | M::Committed(_)) => {
                "#15803d"
            }
            Packet::Peer(
                M::Decided(..)
                | M::AskAbort(_)
                | M::AskAbortIn(..)
                | M::AbortAccepted(_)
                | M::AbortAcceptedIn(..),
            ) => "#dc2626",
            Packet::Peer(_) => "#6b7280",
            _ => "#7c3aed",
        };
        (text, colour)
    }

    fn violation(&mut self, rows: usize) {
        let Some((at, v)) = &self.verdict.violation else { return };
        let y = Self::y(rows) + 6;
        let width = self.width() - 20;
        let _ = writeln!(
            self.svg,
            r##"<rect x="10" y="{y}" width="{width}" height="44" fill="#fee2e2" stroke="#dc2626" stroke-width="2"/>"##
        );
        let text = format!("{:.3} ms: {} violated", *at as f64 / 1000.0, v.invariant);
        self.text(20, y + 18, r##"fill="#991b1b" font-weight="bold" font-size="13""##, &text);
        let what = v.what.clone();
        let named: Vec<String> = self.names.iter().map(|(g, n)| format!("{n} = {g}")).collect();
        let text = format!("{what}   ({})", named.join(", "));
        self.text(20, y + 36, r##"fill="#991b1b""##, &text);
    }
}
