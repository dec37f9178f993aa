//! The Debian packages needed to build the extension and to run servers.
//!
//! Only root installs, and says so first; anybody else is told the exact command.

use crate::host::{MAJOR, bindir, is_root};
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::{Command, Stdio};

/// What is needed, with a file that shows it is there.
const NEEDED: &[(&str, &str)] = &[
    ("postgresql-15", "/usr/lib/postgresql/15/bin/postgres"),
    ("postgresql-client-15", "/usr/lib/postgresql/15/bin/psql"),
    ("postgresql-server-dev-15", "/usr/lib/postgresql/15/bin/pg_config"),
    ("postgresql-contrib", "/usr/share/postgresql/15/extension/hstore.control"),
    ("libpq-dev", "/usr/include/postgresql/libpq-fe.h"),
    ("libkrb5-dev", "/usr/include/gssapi/gssapi.h"),
    ("clang", "/usr/bin/clang"),
    ("libclang-dev", ""),
    ("pkg-config", "/usr/bin/pkg-config"),
];

/// Debian's switch against creating (and starting) a default cluster at installation.
const CREATE_CLUSTER: &str = "/etc/postgresql-common/createcluster.conf";

/// What the model checker needs.
const FOR_MODELS: &[(&str, &str)] =
    &[("default-jre-headless", "/usr/bin/java"), ("python3-pip", "/usr/bin/pip")];

fn missing(needed: &[(&'static str, &'static str)]) -> Vec<&'static str> {
    needed
        .iter()
        .filter(|(package, file)| {
            if !file.is_empty() && Path::new(file).exists() {
                return false;
            }
            !is_installed(package)
        })
        .map(|(package, _)| *package)
        .collect()
}

fn is_installed(package: &str) -> bool {
    let query = Command::new("dpkg-query").args(["-W", "-f=${db:Status-Status}", package]).output();
    query.is_ok_and(|out| out.stdout == b"installed")
}

/// Makes sure that everything needed to build the extension and to run servers is there.
///
/// # Errors
/// With the command to run, when we may not install; or when installing failed.
pub fn ensure() -> Result<()> {
    install(NEEDED)
}

/// Makes sure that the model checker can run.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_for_models() -> Result<()> {
    install(FOR_MODELS)
}

fn install(needed: &[(&'static str, &'static str)]) -> Result<()> {
    let missing = missing(needed);
    if missing.is_empty() {
        return Ok(());
    }
    // All of them, not only the missing ones: libpq and the headers must match the server's minor
    // version, and the archive offers only the newest.
    let all: Vec<&str> = needed.iter().map(|(package, _)| *package).collect();
    let command = format!("apt-get install -y {}", all.join(" "));
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!(
            "missing: {}; PostgreSQL {MAJOR} is expected in {}",
            missing.join(", "),
            bindir().display()
        );
    }
    if !is_root() {
        bail!(
            "missing packages: {}\nrun: sudo apt-get update && sudo {command}",
            missing.join(", ")
        );
    }
    eprintln!("Missing Debian packages: {}. Installing as root:", missing.join(", "));
    apt(&["update"])?;
    let mut arguments = vec!["install", "-y", "--no-install-recommends"];
    arguments.extend(&all);
    if all.iter().any(|package| package.starts_with("postgresql")) {
        without_default_cluster(|| apt(&arguments))
    } else {
        apt(&arguments)
    }
}

fn apt(arguments: &[&str]) -> Result<()> {
    eprintln!("  apt-get {}", arguments.join(" "));
    let status = Command::new("apt-get")
        .args(["-qq", "-o", "Dpkg::Use-Pty=0"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .context("cannot run apt-get")?;
    if !status.success() {
        bail!("apt-get {} failed ({status})", arguments.join(" "));
    }
    Ok(())
}

/// Installs with Debian's automatic default cluster switched off: nobody asked for a server on
/// port 5432. The switch is put back afterwards.
fn without_default_cluster(install: impl FnOnce() -> Result<()>) -> Result<()> {
    if !Path::new(CREATE_CLUSTER).exists() {
        apt(&["install", "-y", "--no-install-recommends", "postgresql-common"])?;
    }
    let before = std::fs::read_to_string(CREATE_CLUSTER).unwrap_or_default();
    let kept: String = before
        .lines()
        .filter(|line| !line.trim_start().starts_with("create_main_cluster"))
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(CREATE_CLUSTER, format!("{kept}create_main_cluster = false\n"))
        .with_context(|| format!("cannot write {CREATE_CLUSTER}"))?;
    let result = install();
    std::fs::write(CREATE_CLUSTER, before)
        .with_context(|| format!("cannot restore {CREATE_CLUSTER}"))?;
    result
}
