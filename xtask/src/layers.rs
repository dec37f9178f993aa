//! `cargo xtask test`: every layer of tests, one after the other, and one sum at the end.
//!
//! A layer that fails does not stop the others. What each command said is kept in a file.

use crate::artefacts::Profile;
use crate::host::repository;
use crate::suite::{Plan, Tally};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// A layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Layer {
    /// Tests of the pure crates and of this program; needs no `PostgreSQL`.
    Unit,
    /// The ring under every interleaving loom can find.
    Loom,
    /// The protocol in a simulated world.
    Sim,
    /// The specification, model-checked.
    Tla,
    /// Three real servers.
    Cluster,
    /// Three real servers, their faults, and clients whose histories are checked.
    Torture,
    /// All of them.
    All,
}

/// The short run of every test; longer ones are for `cargo xtask torture`.
const TORTURE_MINUTES: &str = "1";

/// Options of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Which layer.
    #[arg(value_enum, default_value_t = Layer::All)]
    layer: Layer,
    /// Only cluster checks whose name contains one of these.
    filter: Vec<String>,
    /// Leave the cluster's data behind.
    #[arg(long)]
    keep: bool,
    /// Where the cluster goes.
    #[arg(long, value_name = "D")]
    dir: Option<PathBuf>,
    /// A setting for every node.
    #[arg(long, value_name = "name=value", value_parser = crate::cli::setting)]
    set: Vec<(String, String)>,
    /// How to compile the extension (default: `MTM_PROFILE`, else release).
    #[arg(long, value_enum)]
    profile: Option<Profile>,
    /// Print the names of the cluster checks and do nothing.
    #[arg(long)]
    list: bool,
    /// Run the cluster checks that can be on one plain server: a test of the checks themselves.
    #[arg(long, hide = true)]
    plain: bool,
}

/// Runs the tests.
///
/// # Errors
/// When one of them fails.
pub fn run(options: &Options) -> Result<()> {
    if options.list {
        crate::suite::names().iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    let logs = logs_directory()?;
    let mut sum = Tally::default();
    let layers = [Layer::Unit, Layer::Loom, Layer::Sim, Layer::Tla, Layer::Cluster, Layer::Torture];
    for layer in layers {
        if options.layer != layer && options.layer != Layer::All {
            continue;
        }
        let start = Instant::now();
        let tally = match run_layer(layer, options, &logs) {
            Ok(Some(tally)) => tally,
            Ok(None) => continue,
            Err(error) => {
                println!("{layer:?}: {error:#}");
                failed(format!("{layer:?}: {error:#}"))
            }
        };
        let seconds = start.elapsed().as_secs_f64();
        println!("{layer:?}: {} passed, {} failed ({seconds:.0} s)\n", tally.passed, tally.failed);
        sum.add(tally);
    }
    if !sum.failures.is_empty() {
        println!("What failed:");
        sum.failures.iter().for_each(|what| println!("{}", what.trim_end()));
        println!();
    }
    println!("{} passed, {} failed", sum.passed, sum.failed);
    if sum.failed > 0 {
        bail!("some tests failed");
    }
    if sum.passed == 0 {
        bail!("nothing was tested");
    }
    Ok(())
}

fn failed(what: String) -> Tally {
    let mut tally = Tally::default();
    tally.fail(what);
    tally
}

fn logs_directory() -> Result<PathBuf> {
    let logs = repository().join(".mtm").join("logs");
    std::fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    Ok(logs)
}

/// Nothing when the layer has nothing to run here.
fn run_layer(layer: Layer, options: &Options, logs: &Path) -> Result<Option<Tally>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut command = Command::new(&cargo);
    match layer {
        Layer::Unit => {
            command.args(["test", "--no-fail-fast"]);
            let mut tally = observe(command, logs, "unit")?;
            let mut own = Command::new(&cargo);
            own.args(["test", "--no-fail-fast", "-p", "xtask"]);
            tally.add(observe(own, logs, "unit-xtask")?);
            // Each bench once, as a test: their numbers are for people, that they run is not.
            let mut benches = Command::new(&cargo);
            benches.args(["test", "-q", "-p", "mtm-benches", "--benches"]);
            tally.add(observe(benches, logs, "unit-benches")?);
            let mut docs = Command::new(&cargo);
            docs.args(["doc", "-q", "--no-deps"]).env("RUSTDOCFLAGS", "-Dwarnings");
            tally.add(observe(docs, logs, "unit-docs")?);
            Ok(Some(tally))
        }
        Layer::Loom => {
            if !repository().join("mtm-dmq/tests/loom.rs").exists() {
                return Ok(None);
            }
            // A target directory of its own: other flags would rebuild everything each time.
            let target = std::env::var("CARGO_TARGET_DIR")
                .map_or_else(|_| repository().join("target"), PathBuf::from);
            command.args(["test", "-p", "mtm-dmq", "--release", "--test", "loom"]);
            command.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", target.join("loom"));
            observe(command, logs, "loom").map(Some)
        }
        Layer::Sim => {
            let source = repository().join("specs/sim/src");
            if !source.join("main.rs").exists() && !source.join("bin").exists() {
                return Ok(None);
            }
            let mut tests = Command::new(&cargo);
            tests.args(["test", "--profile", "sim", "-p", "mtm-sim"]);
            let mut tally = observe(tests, logs, "sim-tests")?;
            // So many of each: 3 nodes, 5 nodes, 2 nodes and a referee.
            let sweep = ["--mixed", "--seeds", "667", "--from", "20000"];
            command.args(["run", "--profile", "sim", "-p", "mtm-sim", "--"]).args(sweep);
            tally.add(observe(command, logs, "sim")?);
            Ok(Some(tally))
        }
        Layer::Tla => {
            let script = repository().join("specs/tla/run.sh");
            if !script.exists() {
                return Ok(None);
            }
            crate::packages::ensure_for_models()?;
            let mut command = Command::new("bash");
            command.arg(script);
            observe(command, logs, "tla").map(Some)
        }
        Layer::Torture => {
            let this = std::env::current_exe().context("cannot find this program")?;
            let mut command = Command::new(this);
            command.args(["torture", "--minutes", TORTURE_MINUTES, "--seed", "2026"]);
            let profile = match Profile::choose(options.profile)? {
                Profile::Dev => "dev",
                Profile::Release => "release",
            };
            command.args(["--profile", profile]);
            observe(command, logs, "torture").map(Some)
        }
        Layer::Cluster | Layer::All => crate::suite::run(&Plan {
            filter: options.filter.clone(),
            dir: options.dir.clone(),
            keep: options.keep,
            profile: Profile::choose(options.profile)?,
            set: options.set.clone(),
            plain: options.plain,
        })
        .map(Some),
    }
}

/// So many of the last lines of a command that failed are shown again at the end.
const LAST_LINES: usize = 12;

/// Runs a command, shows what it says line by line, keeps it in a file and counts tests: those
/// that cargo reports, those of lines ending in `ok` or `FAILED`, or else the command itself.
fn observe(mut command: Command, logs: &Path, name: &str) -> Result<Tally> {
    let file = logs.join(format!("{name}.log"));
    let mut log =
        std::fs::File::create(&file).with_context(|| format!("cannot write {}", file.display()))?;
    println!("{name}: {}", describe(&command));
    command
        .current_dir(repository())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let mut child = command.spawn().with_context(|| format!("cannot run {name}"))?;
    let mut tally = Tally::default();
    let (mut marked, mut last) = (Vec::new(), VecDeque::with_capacity(LAST_LINES));
    let output = child.stdout.take().context("the output is piped")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        writeln!(log, "{line}")?;
        if line.contains("FAILED") || line.contains("panicked at") {
            marked.push(format!("{name}: {line}"));
        }
        if last.len() == LAST_LINES {
            last.pop_front();
        }
        last.push_back(line.clone());
        if let Some(part) = summary(&line) {
            tally.add(part);
        } else if !line.trim_end().ends_with("... ok")
            && !line.is_empty()
            && !line.starts_with("running ")
        {
            println!("  {line}");
        }
    }
    let status = child.wait()?;
    let what = format!("{name} failed ({status}); its output is in {}", file.display());
    if !status.success() && tally.failed == 0 {
        println!("{what}");
        tally.failed = 1;
    } else if tally == Tally::default() {
        tally.passed = 1;
    }
    if tally.failed > 0 {
        tally.failures = marked.into_iter().chain(last).chain([what]).collect();
    }
    Ok(tally)
}

fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let arguments = command.get_args().map(|word| word.to_string_lossy().into_owned());
    std::iter::once(program).chain(arguments).collect::<Vec<_>>().join(" ")
}

/// Reads `test result: ok. 12 passed; 0 failed; ...` and `12 passed, 0 failed`.
fn summary(line: &str) -> Option<Tally> {
    let line = line
        .strip_prefix("test result: ")
        .map_or(line, |rest| rest.split_once(". ").map_or(rest, |pair| pair.1));
    let mut parts = line.split([';', ',']).map(str::trim);
    let passed = parts.next()?.strip_suffix(" passed")?.parse().ok()?;
    let failed = parts.next()?.strip_suffix(" failed")?.parse().ok()?;
    Some(Tally { passed, failed, ..Tally::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(passed: usize, failed: usize) -> Tally {
        Tally { passed, failed, ..Tally::default() }
    }

    #[test]
    fn summaries_are_read() {
        let cargo =
            "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(summary(cargo), Some(counted(12, 3)));
        assert_eq!(summary("7 passed, 0 failed"), Some(counted(7, 0)));
        assert_eq!(summary("test a ... ok"), None);
    }
}
