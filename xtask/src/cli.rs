//! The command line.

use crate::artefacts::Profile;
use crate::cluster::{Cluster, Kind, Order};
use crate::host::{client, default_directory};
use crate::server::DATABASE;
use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// multimaster: build it, start it, look at it, test it, measure it.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Line {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Build, start three nodes and show what they do.
    Demo(crate::demo::Options),
    /// Start, stop and visit clusters.
    Cluster(ClusterLine),
    /// Run the tests: unit, loom, sim, tla, cluster, or all of them.
    Test(crate::layers::Options),
    /// Measure this cluster beside plain `PostgreSQL` and synchronous streaming.
    Bench(crate::bench::Options),
    /// A mixed load with schema changes for minutes or hours, and what is left of it.
    Soak(crate::soak::Options),
    /// Real servers under load while everything goes wrong; is anything lost?
    Torture(crate::torture::Options),
}

#[derive(Debug, Args)]
struct ClusterLine {
    /// The cluster's directory.
    #[arg(long, global = true, value_name = "D")]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    verb: ClusterVerb,
}

#[derive(Debug, Subcommand)]
enum ClusterVerb {
    /// Create and start a cluster; if there is one already, start what is stopped.
    Up(Up),
    /// One line per node.
    Status,
    /// psql on a node; further arguments go to psql.
    Psql {
        /// Which node.
        node: usize,
        /// Arguments for psql.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// kill -9 a node with all its processes.
    Kill {
        /// Which node.
        node: usize,
    },
    /// Stop a node's processes in the middle of whatever they do (SIGSTOP).
    Freeze {
        /// Which node.
        node: usize,
    },
    /// Let a frozen node go on.
    Thaw {
        /// Which node.
        node: usize,
    },
    /// Shut a node down in an orderly way.
    Stop {
        /// Which node.
        node: usize,
    },
    /// Start a stopped or killed node.
    Start {
        /// Which node.
        node: usize,
    },
    /// A node's log.
    Logs {
        /// Which node.
        node: usize,
        /// Keep showing what is added.
        #[arg(short)]
        follow: bool,
    },
    /// Stop all nodes.
    Down {
        /// Remove the data as well.
        #[arg(long)]
        destroy: bool,
    },
}

#[derive(Debug, Args)]
struct Up {
    /// How many nodes.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// The first node's port; the others follow.
    #[arg(long)]
    port: Option<u16>,
    /// A setting for every node's postgresql.conf.
    #[arg(long, value_name = "name=value", value_parser = setting)]
    set: Vec<(String, String)>,
    /// How to compile the extension (default: `MTM_PROFILE`, else release).
    #[arg(long, value_enum)]
    profile: Option<Profile>,
}

/// Reads `name=value`.
pub(crate) fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected name=value")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// Reads the command line, does what it says, and turns an error into a message and exit code 1.
#[must_use]
pub fn main() -> ExitCode {
    let line = Line::parse();
    let result = match line.verb {
        Verb::Demo(options) => crate::demo::run(&options),
        Verb::Cluster(cluster) => visit(cluster),
        Verb::Test(options) => crate::layers::run(&options),
        Verb::Bench(options) => crate::bench::run(&options),
        Verb::Soak(options) => crate::soak::run(&options),
        Verb::Torture(options) => crate::torture::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn visit(line: ClusterLine) -> Result<()> {
    let (mut dir, mut verb) = (line.dir, line.verb);
    // What follows the node's number goes to psql, which knows no --dir: take ours out again.
    if let ClusterVerb::Psql { arguments, .. } = &mut verb
        && let Some(found) = take_dir(arguments)?
    {
        dir = Some(found);
    }
    let dir = match dir {
        Some(dir) => std::path::absolute(dir)?,
        None => default_directory("cluster")?,
    };
    match verb {
        ClusterVerb::Up(up) => start(up, dir),
        ClusterVerb::Psql { node, arguments } => psql(&Cluster::load(&dir)?, node, &arguments),
        ClusterVerb::Logs { node, follow } => logs(&Cluster::load(&dir)?, node, follow),
        ClusterVerb::Status => {
            print_lines(&Cluster::load(&dir)?);
            Ok(())
        }
        ClusterVerb::Down { destroy: true } => Cluster::load(&dir)?.destroy(),
        ClusterVerb::Down { destroy: false } => Cluster::load(&dir)?.stop_all(),
        ClusterVerb::Kill { node } => act(&dir, node, |server| server.kill()),
        ClusterVerb::Stop { node } => act(&dir, node, |server| server.stop()),
        ClusterVerb::Start { node } => act(&dir, node, |server| server.start()),
        ClusterVerb::Freeze { node } => act(&dir, node, |server| {
            server.freeze();
            Ok(())
        }),
        ClusterVerb::Thaw { node } => act(&dir, node, |server| {
            server.thaw();
            Ok(())
        }),
    }
}

fn take_dir(arguments: &mut Vec<String>) -> Result<Option<PathBuf>> {
    let Some(at) = arguments.iter().position(|word| word == "--dir" || word.starts_with("--dir="))
    else {
        return Ok(None);
    };
    let word = arguments.remove(at);
    if let Some(value) = word.strip_prefix("--dir=") {
        return Ok(Some(value.into()));
    }
    if at == arguments.len() {
        bail!("--dir needs a directory");
    }
    Ok(Some(arguments.remove(at).into()))
}

fn start(up: Up, dir: PathBuf) -> Result<()> {
    let profile = Profile::choose(up.profile)?;
    if Cluster::load(&dir).is_ok_and(|cluster| !cluster.complete) {
        eprintln!("Removing a cluster that was not completed in {}.", dir.display());
        Cluster::clear(&dir)?;
    }
    let cluster = if dir.join("cluster.json").exists() {
        let mut cluster = Cluster::load(&dir)?;
        if !up.set.is_empty() || up.port.is_some() || up.nodes != cluster.nodes.len() {
            eprintln!("There is already a cluster in {}; its settings are kept.", dir.display());
        }
        cluster.start_all(profile)?;
        cluster
    } else {
        Cluster::create(&Order {
            kind: Kind::Multimaster,
            nodes: up.nodes,
            dir,
            port: up.port,
            set: up.set,
            profile,
        })?
    };
    print_lines(&cluster);
    Ok(())
}

fn print_lines(cluster: &Cluster) {
    for node in &cluster.nodes {
        println!("{}", cluster.line(node));
    }
}

fn act(
    dir: &std::path::Path,
    node: usize,
    work: impl FnOnce(&crate::server::Server) -> Result<()>,
) -> Result<()> {
    let mut cluster = Cluster::load(dir)?;
    work(cluster.node(node)?)?;
    cluster.save()?;
    println!("{}", cluster.line(cluster.node(node)?));
    Ok(())
}

fn psql(cluster: &Cluster, node: usize, arguments: &[String]) -> Result<()> {
    let server = cluster.node(node)?;
    let mut command = client("psql");
    command.args([
        "-h",
        "127.0.0.1",
        "-p",
        &server.port.to_string(),
        "-U",
        DATABASE,
        "-d",
        DATABASE,
    ]);
    // exec returns only when it fails.
    Err(command.args(arguments).exec()).context("cannot run psql")
}

fn logs(cluster: &Cluster, node: usize, follow: bool) -> Result<()> {
    let server = cluster.node(node)?;
    let mut command = Command::new("tail");
    command.args(if follow { ["-n", "50", "-F"].as_slice() } else { ["-n", "+1"].as_slice() });
    Err(command.arg(&server.log).exec()).context("cannot run tail")
}

/// Where a command's own servers go, and how they are made.
#[derive(Debug, clap::Args)]
pub struct Servers {
    /// Where the cluster goes.
    #[arg(long, value_name = "D")]
    pub dir: Option<PathBuf>,
    /// The first node's port; the others follow.
    #[arg(long)]
    pub port: Option<u16>,
    /// A setting for every node.
    #[arg(long, value_name = "name=value", value_parser = setting)]
    pub set: Vec<(String, String)>,
    /// How to compile the extension (default: `MTM_PROFILE`, else release).
    #[arg(long, value_enum)]
    pub profile: Option<Profile>,
    /// Leave the cluster running.
    #[arg(long)]
    pub keep: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_well_formed() {
        use clap::CommandFactory;
        Line::command().debug_assert();
    }

    #[test]
    fn directory_is_taken_out_of_psql_arguments() {
        let mut words: Vec<String> =
            ["-c", "select 1", "--dir", "/d", "-At"].map(Into::into).into();
        assert_eq!(take_dir(&mut words).unwrap(), Some("/d".into()));
        assert_eq!(words, ["-c", "select 1", "-At"]);
        assert!(take_dir(&mut vec!["--dir".into()]).is_err());
    }

    #[test]
    fn every_verb_takes_a_directory_before_and_after() {
        for words in [
            vec!["x", "cluster", "--dir", "/d", "kill", "1"],
            vec!["x", "cluster", "kill", "1", "--dir", "/d"],
            vec!["x", "cluster", "psql", "--dir", "/d", "1", "-c", "select 1"],
        ] {
            let Verb::Cluster(line) = Line::try_parse_from(words).unwrap().verb else { panic!() };
            assert_eq!(line.dir, Some("/d".into()));
        }
    }
}
