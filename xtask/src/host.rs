//! What this machine offers: the repository, the `PostgreSQL` binaries and the account that runs
//! the servers (`PostgreSQL` refuses to run as root).

use anyhow::{Context, Result, bail};
use nix::unistd::{Gid, Uid, User, geteuid};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The `PostgreSQL` major version everything here is run with.
pub const MAJOR: u32 = 15;

/// An account other than our own under which servers run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its name, for messages.
    pub name: String,
    /// Its user id.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
}

/// The root of the repository this program was built from.
#[must_use]
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Directory of the server's programs.
#[must_use]
pub fn bindir() -> PathBuf {
    PathBuf::from(format!("/usr/lib/postgresql/{MAJOR}/bin"))
}

/// Whether we are root.
#[must_use]
pub fn is_root() -> bool {
    geteuid().is_root()
}

/// The account servers run under: ours, unless we are root.
///
/// # Errors
/// When we are root and the system has no ordinary account at all.
pub fn server_account() -> Result<Option<Account>> {
    if !is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    let ordinary = users.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid: u32 = fields.nth(1)?.parse().ok()?;
        (1000..60_000).contains(&uid).then(|| name.to_owned())
    });
    let names = std::iter::once("postgres".to_owned()).chain(ordinary).chain(["nobody".to_owned()]);
    for name in names {
        if let Some(user) = User::from_name(&name)? {
            return Ok(Some(Account { name, uid: user.uid.as_raw(), gid: user.gid.as_raw() }));
        }
    }
    bail!("PostgreSQL does not run as root and there is no other account to run it")
}

/// A command of the server's own programs, run as the server's account in a clean environment.
///
/// # Errors
/// As [`server_account`].
pub fn as_server(program: impl AsRef<Path>) -> Result<Command> {
    let program = program.as_ref();
    let path = if program.is_absolute() { program.to_path_buf() } else { bindir().join(program) };
    let mut command = Command::new(path);
    clean_environment(&mut command);
    command.stdin(Stdio::null()).current_dir("/");
    if let Some(account) = server_account()? {
        command.uid(account.uid).gid(account.gid);
        command.env("USER", &account.name).env_remove("HOME");
    }
    Ok(command)
}

/// A client program (psql, pgbench, `pg_dump`), run as ourselves.
#[must_use]
pub fn client(program: &str) -> Command {
    let mut command = Command::new(bindir().join(program));
    clean_environment(&mut command);
    command
}

fn clean_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command.env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
}

/// Gives `path` (not what is below it) to the account that runs the servers.
///
/// # Errors
/// When the owner cannot be changed.
pub fn give_to_server(path: &Path) -> Result<()> {
    if let Some(account) = server_account()? {
        let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
        nix::unistd::chown(path, Some(uid), Some(gid))
            .with_context(|| format!("cannot give {} to {}", path.display(), account.name))?;
    }
    Ok(())
}

/// Whether the account that runs the servers can reach and write `path`.
///
/// # Errors
/// When that cannot be found out.
pub fn server_can_write(path: &Path) -> Result<bool> {
    Ok(as_server("/usr/bin/test")?.arg("-w").arg(path).status()?.success())
}

/// Where a cluster called `name` lives unless the user says otherwise: below the repository, or,
/// when the servers' account cannot reach that (a clone in root's home), below `/var/tmp`.
///
/// # Errors
/// When neither can be used.
pub fn default_directory(name: &str) -> Result<PathBuf> {
    let own = repository().join(".mtm");
    if !is_root() {
        return Ok(own.join(name));
    }
    let probe = as_server("/usr/bin/test")?.arg("-x").arg(repository()).status()?;
    if probe.success() {
        return Ok(own.join(name));
    }
    let mut key: u32 = 2_166_136_261;
    for byte in repository().as_os_str().as_encoded_bytes() {
        key = (key ^ u32::from(*byte)).wrapping_mul(16_777_619);
    }
    Ok(PathBuf::from(format!("/var/tmp/multimaster-{key:08x}")).join(name))
}

/// The version of the installed server, as in `15.20`.
///
/// # Errors
/// When it is not installed.
pub fn server_version() -> Result<String> {
    let output = Command::new(bindir().join("postgres"))
        .arg("--version")
        .output()
        .with_context(|| format!("PostgreSQL {MAJOR} is not installed"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version =
        text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    Ok(version.context("postgres --version says nothing")?.to_owned())
}
