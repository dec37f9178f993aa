//! One `PostgreSQL` server: its directory, its life and its death.

use crate::host::{as_server, bindir, give_to_server};
use crate::process::{self, State};
use crate::session::{Session, SqlError};
use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The database and the superuser every server of ours has.
pub const DATABASE: &str = "mtm";

/// A server as it is written to the cluster's state file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Server {
    /// 1, 2, 3 ...
    pub id: usize,
    /// Port on the loopback address.
    pub port: u16,
    /// Its data directory.
    pub data: PathBuf,
    /// Its log file.
    pub log: PathBuf,
    /// The postmaster when the state file was written last.
    pub pid: Option<i32>,
}

/// What a server is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// No process.
    Stopped,
    /// Stopped by a signal in the middle of its work.
    Frozen,
    /// Running.
    Running,
}

impl Server {
    /// Names the server and its files below `home`; nothing is created.
    #[must_use]
    pub fn new(id: usize, home: &Path, port: u16) -> Self {
        Self { id, port, data: home.join("data"), log: home.join("postgres.log"), pid: None }
    }

    fn home(&self) -> &Path {
        self.data.parent().unwrap_or(&self.data)
    }

    /// How clients and the other nodes reach it.
    #[must_use]
    pub fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} dbname={DATABASE} user={DATABASE}", self.port)
    }

    /// Makes the directory above the data directory, owned by the servers' account.
    ///
    /// # Errors
    /// When it cannot be made or reached by that account.
    pub fn make_home(&self) -> Result<()> {
        std::fs::create_dir_all(self.home())
            .with_context(|| format!("cannot create {}", self.home().display()))?;
        give_to_server(self.home())?;
        if !crate::host::server_can_write(self.home())? {
            bail!(
                "the account that runs the servers cannot write {}; choose another --dir",
                self.home().display()
            );
        }
        Ok(())
    }

    /// Runs `initdb`.
    ///
    /// # Errors
    /// With what initdb said.
    pub fn initdb(&self) -> Result<()> {
        self.make_home()?;
        let mut command = as_server("initdb")?;
        command.arg("-D").arg(&self.data).args(["-U", DATABASE, "-E", "UTF8"]);
        command.args(["--locale=C.UTF-8", "--auth=trust", "--no-sync"]);
        succeed(command, "initdb")
    }

    /// Copies `from`, which must be running, as its standby.
    ///
    /// # Errors
    /// With what `pg_basebackup` said.
    pub fn clone_from(&self, from: &Self, name: &str) -> Result<()> {
        self.make_home()?;
        let mut command = as_server("pg_basebackup")?;
        command.arg("-D").arg(&self.data).args(["-R", "-c", "fast", "-X", "stream", "--no-sync"]);
        command.args(["-d", &format!("{} application_name={name}", from.conninfo())]);
        succeed(command, "pg_basebackup")
    }

    /// Appends settings; the last one of a name counts.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure(&self, settings: &[(String, String)]) -> Result<()> {
        let file = self.data.join("postgresql.conf");
        let mut text = std::fs::read_to_string(&file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        for (name, value) in settings {
            text += &format!("{name} = '{}'\n", value.replace('\'', "''"));
        }
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
    }

    /// The value a setting has in the configuration files; nothing if this server does not know it.
    ///
    /// # Errors
    /// When the server's program cannot be run.
    pub fn configured(&self, name: &str) -> Result<Option<String>> {
        let output =
            as_server("postgres")?.arg("-D").arg(&self.data).args(["-C", name]).output()?;
        let value = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Ok(output.status.success().then_some(value))
    }

    /// Starts the server and waits until it takes connections.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn start(&self) -> Result<()> {
        self.start_with(&[])
    }

    /// The same with environment variables.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(&self, environment: &[(&str, &str)]) -> Result<()> {
        if self.life() != Life::Stopped {
            return Ok(());
        }
        let mut command = as_server("pg_ctl")?;
        command.envs(environment.iter().copied());
        command.arg("-D").arg(&self.data).arg("-l").arg(&self.log);
        command.args(["-w", "-t", "120", "start"]);
        succeed(command, "pg_ctl start").with_context(|| {
            format!("node {} does not start; its log ends:\n{}", self.id, self.log_tail(20))
        })
    }

    /// Stops the server in an orderly way; sessions are ended.
    ///
    /// # Errors
    /// When it does not stop in a minute.
    pub fn stop(&self) -> Result<()> {
        if self.life() == Life::Stopped {
            return Ok(());
        }
        self.thaw();
        let mut command = as_server("pg_ctl")?;
        command.arg("-D").arg(&self.data).args(["-m", "fast", "-w", "-t", "60", "stop"]);
        succeed(command, "pg_ctl stop").with_context(|| {
            format!("node {} does not stop; its log ends:\n{}", self.id, self.log_tail(20))
        })
    }

    /// `kill -9` for the postmaster and all its children; returns when they are really gone.
    ///
    /// # Errors
    /// When they do not go away.
    pub fn kill(&self) -> Result<()> {
        let mut pids: Vec<i32> = self.postmaster().into_iter().collect();
        for pid in &pids {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), Signal::SIGKILL);
        }
        pids.extend(process::signal_all(&self.data, Signal::SIGKILL));
        process::wait_gone(&pids, Duration::from_secs(15))?;
        // Where nobody collects dead processes the number in this file would look alive for ever.
        if process::of_server(&self.data).is_empty() {
            let _ = std::fs::remove_file(self.data.join("postmaster.pid"));
        }
        Ok(())
    }

    /// Freezes every process of the server.
    pub fn freeze(&self) {
        let _ = process::signal_all(&self.data, Signal::SIGSTOP);
    }

    /// Lets a frozen server go on.
    pub fn thaw(&self) {
        let _ = process::signal_all(&self.data, Signal::SIGCONT);
    }

    /// The postmaster's process id if it is alive.
    #[must_use]
    pub fn postmaster(&self) -> Option<i32> {
        let text = std::fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        let pid = text.lines().next()?.trim().parse().ok()?;
        process::of_server(&self.data).contains(&pid).then_some(pid)
    }

    /// Whether it runs.
    #[must_use]
    pub fn life(&self) -> Life {
        match self.postmaster().and_then(process::state) {
            None => Life::Stopped,
            Some(State::Frozen) => Life::Frozen,
            Some(State::Alive) => Life::Running,
        }
    }

    /// Opens a session.
    ///
    /// # Errors
    /// The server's refusal.
    pub fn connect(&self) -> Result<Session, SqlError> {
        Session::open(&self.conninfo())
    }

    /// Opens a session in another database, as another application.
    ///
    /// # Errors
    /// The server's refusal.
    pub fn connect_as(&self, database: &str, application: &str) -> Result<Session, SqlError> {
        Session::open_within(
            &format!(
                "host=127.0.0.1 port={} dbname={database} user={DATABASE} application_name={application}",
                self.port
            ),
            Duration::from_secs(3),
        )
        .map(|session| session.patience(Duration::from_secs(10)))
    }

    /// The last `lines` lines of the log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].iter().map(|line| format!("    {line}\n")).collect()
    }
}

/// Runs a command quietly.
///
/// # Errors
/// With what it printed.
pub fn succeed(command: Command, what: &str) -> Result<()> {
    said_by(command, what).map(drop)
}

/// The same; what it said.
///
/// # Errors
/// With what it said when it fails.
pub fn said_by(mut command: Command, what: &str) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {what} (is it in {}?)", bindir().display()))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    if output.status.success() {
        return Ok(said);
    }
    bail!("{what} failed ({}):\n{}", output.status, said.trim_end())
}

/// `count` free ports in a row, from `first` on; if `exact`, exactly those.
///
/// # Errors
/// When they are taken.
pub fn free_ports(first: u16, count: usize, exact: bool) -> Result<u16> {
    let is_free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut base = first;
    loop {
        let range = base..base.saturating_add(u16::try_from(count)?);
        let taken: Vec<String> =
            range.filter(|port| !is_free(*port)).map(|port| port.to_string()).collect();
        if taken.is_empty() {
            return Ok(base);
        }
        if exact {
            bail!("port {} is in use; choose another with --port", taken.join(", "));
        }
        if base > first.saturating_add(900) {
            bail!("no {count} free ports in a row above {first}");
        }
        base += 10;
    }
}
