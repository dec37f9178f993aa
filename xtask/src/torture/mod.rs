//! Torture: real servers under load while everything goes wrong, and proof afterwards that nothing
//! acknowledged was lost. `docs/torture.md` says what is checked and why just that.

pub mod check;
pub mod clients;
pub mod dice;
pub mod faults;
pub mod history;
pub mod net;
mod prepared;
pub mod servers;
pub mod state;
pub mod summary;

use crate::artefacts::Profile;
use crate::cluster::Cluster;
use crate::host::default_directory;
use crate::wait::{step, until};
use anyhow::{Context, Result, ensure};
use clients::{Client, Orders};
use dice::Dice;
use faults::{Bag, Fault, Kind};
use history::{Record, Recorder};
use servers::{Servers, Wanted};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Between the end of one fault and the next.
const CALM_MS: (u64, u64) = (300, 1500);
/// Without `--allow-outages`: a write outage longer than this is a violation when a majority was
/// left. The default heartbeat timeout is 2 s; the rest is for a machine that is shared.
const SURVIVAL: Duration = Duration::from_secs(4);

/// Options of `cargo xtask torture`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How long clients and faults go on.
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// What faults and clients are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=7))]
    nodes: u8,
    /// How many clients, in turn on node 1, 2, ...
    #[arg(long, default_value_t = 6)]
    clients: u32,
    /// Faults between two quiet points, at which everything is checked.
    #[arg(long, default_value_t = 10)]
    quiet_every: u32,
    /// Only these kinds of faults; may be given several times.
    #[arg(long, value_parser = Kind::parse)]
    fault: Vec<Kind>,
    /// No changes of the schema.
    #[arg(long)]
    no_schema: bool,
    /// Seconds after the end of a fault until every node must be online and write by itself.
    #[arg(long, default_value_t = 60)]
    rejoin_limit: u64,
    /// It is no violation when writes stop although a majority of the nodes is left.
    #[arg(long)]
    allow_outages: bool,
    /// Only check this history again, without servers.
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
    #[command(flatten)]
    servers: crate::cli::Servers,
}

/// Runs it.
///
/// # Errors
/// When something is not as it must be.
pub fn run(options: &Options) -> Result<()> {
    if let Some(file) = &options.check {
        return check_again(file);
    }
    ensure!(options.minutes > 0.0 && options.minutes < 1e5, "--minutes must be a positive number");
    ensure!(options.clients > 0 && options.quiet_every > 0, "a number must not be 0");
    let dir = match &options.servers.dir {
        Some(dir) => std::path::absolute(dir)?,
        None => default_directory("torture")?,
    };
    Cluster::clear(&dir)?;
    let mut settings = vec![("deadlock_timeout".to_owned(), "300ms".to_owned())];
    settings.extend(options.servers.set.clone());
    let mut servers = Servers::create(&Wanted {
        dir: &dir,
        nodes: usize::from(options.nodes),
        port: options.servers.port,
        set: &settings,
        profile: Profile::choose(options.servers.profile)?,
        seed: options.seed,
    })?;
    let violations = torture(&servers, options);
    finish(&mut servers, options, &violations)?;
    let violations = violations?;
    ensure!(
        violations.is_empty(),
        "{} violation(s):\n  {}",
        violations.len(),
        violations.join("\n  ")
    );
    println!("\nNo violation.");
    Ok(())
}

/// Keeps or removes what is there, and says how to go on.
fn finish(servers: &mut Servers, options: &Options, result: &Result<Vec<String>>) -> Result<()> {
    let dir = servers.cluster.dir.clone();
    let fine = result.as_ref().is_ok_and(Vec::is_empty);
    if options.servers.keep {
        servers.net.heal();
        servers.connect_directly()?;
        servers.cluster.complete = true;
        servers.cluster.save()?;
        println!("\nThe cluster keeps running in {}.", dir.display());
    } else if fine {
        servers.cluster.clone().destroy()?;
    } else {
        // As they are: what they hold may be what is looked for.
        for node in &servers.cluster.nodes {
            node.kill()?;
        }
    }
    if !fine {
        let only = options.fault.iter().map(|kind| format!(" --fault {}", kind.name()));
        println!(
            "\nLogs, data and history are kept in {dir}\n\
             Check the history again:  cargo xtask torture --check {dir}/history.jsonl\n\
             The same faults again:    cargo xtask torture --minutes {} --seed {} --nodes {} --clients {}{}{}",
            options.minutes,
            options.seed,
            options.nodes,
            options.clients,
            only.collect::<String>(),
            if options.no_schema { " --no-schema" } else { "" },
            dir = dir.display(),
        );
    }
    Ok(())
}

fn check_again(file: &Path) -> Result<()> {
    let records = history::load(file)?;
    println!("{}\n{}", summary::clients(&records), summary::faults(&records));
    let violations = checked(&records);
    ensure!(
        violations.is_empty(),
        "{} violation(s):\n  {}",
        violations.len(),
        violations.join("\n  ")
    );
    println!("No violation.");
    Ok(())
}

/// Runs the checker and prints its notes.
fn checked(records: &[Record]) -> Vec<String> {
    let report = check::check(records);
    for (name, note) in &report.notes {
        let (count, worst) = (note.count, note.worst / 1000);
        println!("Allowed, but seen: {name}: {count}, the worst by {worst} ms: {}", note.example);
    }
    report.violations.iter().map(ToString::to_string).collect()
}

/// Everything that is wrong.
fn torture(servers: &Servers, options: &Options) -> Result<Vec<String>> {
    let recorder = Recorder::create(&servers.cluster.dir.join("history.jsonl"))?;
    recorder.add(Record::Start(history::Start {
        seed: options.seed,
        nodes: usize::from(options.nodes),
        accounts: clients::ACCOUNTS,
        balance: clients::BALANCE,
    }));
    step("tables for the clients", || tables(servers))?;
    let run = Run { servers, options, recorder, orders: Orders::default() };
    let result = std::thread::scope(|scope| {
        let nodes = &servers.cluster.nodes;
        for number in 0..options.clients {
            let client = Client {
                number: number + 1,
                server: &nodes[number as usize % nodes.len()],
                nodes,
                orders: &run.orders,
                recorder: &run.recorder,
                dice: Dice::new(options.seed).child(1000 + u64::from(number)),
                session: None,
            };
            scope.spawn(move || client.work());
        }
        let result = run.faults();
        // Frozen or cut nodes would hold up clients that are told to end.
        run.servers.net.heal();
        run.servers.cluster.nodes.iter().for_each(crate::server::Server::thaw);
        run.orders.stop();
        result
    });
    let records = run.recorder.records();
    println!("\n{}\n{}", summary::clients(&records), summary::faults(&records));
    let mut violations = checked(&records);
    match result {
        Ok(more) => violations.extend(more),
        Err(error) => violations.push(format!("{error:#}")),
    }
    violations.extend(run.orders.seen_wrong());
    violations.extend(run.survival(&records));
    violations.extend(crashes(servers));
    Ok(violations)
}

fn tables(servers: &Servers) -> Result<()> {
    let session = servers.cluster.session(1)?;
    session.run(clients::TABLES)?;
    session.run(&format!(
        "INSERT INTO accounts SELECT i, {} FROM generate_series(0, {}) i",
        clients::BALANCE,
        clients::ACCOUNTS - 1
    ))?;
    servers.wait_rejoined(Duration::from_secs(30))
}

struct Run<'a> {
    servers: &'a Servers,
    options: &'a Options,
    recorder: Recorder,
    orders: Orders,
}

impl Run<'_> {
    /// Lets one fault follow another until the time is up; ends with a quiet point.
    fn faults(&self) -> Result<Vec<String>> {
        let length = Duration::from_secs_f64(self.options.minutes * 60.0);
        let start = Instant::now();
        let mut dice = Dice::new(self.options.seed);
        let mut bag = Bag::new(&self.options.fault);
        let mut wrong = Vec::new();
        let mut since_quiet = 0;
        while start.elapsed() < length {
            // Each fault draws from its own dice: how long one takes does not change the next.
            let fault =
                Fault::draw(bag.draw(&mut dice), self.servers.cluster.nodes.len(), &mut dice);
            let mut inner = dice.child(since_quiet.into());
            std::thread::sleep(Duration::from_millis(inner.between(CALM_MS.0, CALM_MS.1)));
            self.one(&fault, &mut inner)?;
            since_quiet += 1;
            if since_quiet == self.options.quiet_every {
                since_quiet = 0;
                wrong.extend(self.quiet_point()?);
            }
        }
        wrong.extend(self.quiet_point()?);
        Ok(wrong)
    }

    fn one(&self, fault: &Fault, dice: &mut Dice) -> Result<()> {
        let begin = self.recorder.now();
        let schema = !self.options.no_schema && dice.once_in(2);
        let node = &self.servers.cluster.nodes;
        let node = &node[usize::try_from(dice.below(node.len() as u64))?];
        let mut ddl = dice.child(1);
        let title =
            format!("{:7.1} s  {} {}", begin as f64 / 1e6, fault.kind.name(), fault.detail());
        let mut healed = begin;
        let mut rejoined = None;
        let result = step(&title, || {
            std::thread::scope(|scope| -> Result<()> {
                if schema {
                    scope.spawn(|| {
                        let late = ddl.below(fault.hold_ms + 200);
                        std::thread::sleep(Duration::from_millis(late));
                        clients::change_schema(node, &self.recorder, &self.orders, &mut ddl);
                    });
                }
                fault.strike(self.servers, dice)?;
                healed = self.recorder.now();
                let limit = Duration::from_secs(self.options.rejoin_limit);
                self.servers.wait_rejoined(limit)?;
                rejoined = Some(self.recorder.now());
                Ok(())
            })
        });
        self.recorder.add(Record::Fault(history::Fault {
            kind: fault.kind.name().to_owned(),
            detail: fault.detail(),
            begin,
            healed,
            rejoined,
        }));
        result.with_context(|| format!("after {} ({})", fault.kind.name(), fault.detail()))
    }

    /// Stops the load, waits until nothing is under way, and looks at everything.
    fn quiet_point(&self) -> Result<Vec<String>> {
        step("quiet point: all nodes equal, nothing left prepared", || {
            let limit = Duration::from_secs(self.options.rejoin_limit);
            self.orders.rest();
            until("the clients rest", limit, || {
                let all = self.options.clients as usize;
                Ok((self.orders.resting() == all).then_some(()))
            })?;
            self.servers.wait_rejoined(limit)?;
            prepared::clean(self.servers, limit)?;
            self.servers.wait_quiet(limit)?;
            let differences = state::record(self.servers, &self.recorder)?;
            self.orders.run();
            until("the clients work", limit, || Ok((self.orders.resting() == 0).then_some(())))?;
            Ok(differences)
        })
    }

    fn survival(&self, records: &[Record]) -> Vec<String> {
        if self.options.allow_outages {
            return Vec::new();
        }
        let mut wrong = Vec::new();
        for record in records {
            let Record::Fault(fault) = record else {
                continue;
            };
            let outage = summary::outage(records, fault.begin, fault.healed);
            let must = Kind::parse(&fault.kind).is_ok_and(Kind::leaves_majority);
            if must && u128::from(outage) > SURVIVAL.as_micros() {
                wrong.push(format!(
                    "no write for {:.2} s during {} ({})",
                    outage as f64 / 1e6,
                    fault.kind,
                    fault.detail
                ));
            }
        }
        wrong
    }
}

/// Processes that died otherwise than by our hand, and panics.
fn crashes(servers: &Servers) -> Vec<String> {
    let mut found = Vec::new();
    for node in &servers.cluster.nodes {
        let text = std::fs::read(&node.log).unwrap_or_default();
        let wrong = |line: &&str| {
            line.contains(" PANIC:  ")
                || line.contains("panicked at")
                || line.contains("TRAP: ")
                || (line.contains("was terminated by signal") && !line.contains("signal 9"))
        };
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().filter(wrong).collect();
        if let Some(first) = lines.first() {
            found.push(format!("node {} logged {} line(s) like: {first}", node.id, lines.len()));
        }
    }
    found
}
