//! Building the extension and laying it out as a package tree that servers load from.
//!
//! Nothing is installed into the system: `extension_destdir` and `dynamic_library_path` point a
//! server at the tree. Files are replaced by renaming, because running servers have the old
//! library mapped and writing into it would crash them.

use crate::host::{MAJOR, repository};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How to compile the extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// Quick to build, with debug assertions.
    Dev,
    /// Optimised; what is measured and shown.
    Release,
}

impl Profile {
    /// What `--profile` said, else `MTM_PROFILE`, else release.
    ///
    /// # Errors
    /// When `MTM_PROFILE` holds another word.
    pub fn choose(argument: Option<Self>) -> Result<Self> {
        if let Some(profile) = argument {
            return Ok(profile);
        }
        match std::env::var("MTM_PROFILE") {
            Ok(word) => Self::from_str(&word, true)
                .map_err(|_| anyhow::anyhow!("MTM_PROFILE is {word:?}; it can be dev or release")),
            Err(_) => Ok(Self::Release),
        }
    }
}

/// Compiles `libmultimaster.so` and returns where it is.
///
/// # Errors
/// When it does not compile.
pub fn build(profile: Profile) -> Result<PathBuf> {
    crate::packages::ensure()?;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(repository()).args([
        "build",
        "--package",
        "mtm-ext",
        "--message-format",
        "json-render-diagnostics",
    ]);
    if profile == Profile::Release {
        command.arg("--release");
    }
    eprintln!("Building the extension ({profile:?})");
    let output = command.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the extension does not compile");
    }
    library_of(&String::from_utf8_lossy(&output.stdout))
        .context("cargo built no libmultimaster.so; is crate-type still cdylib?")
}

fn library_of(messages: &str) -> Option<PathBuf> {
    let artefacts = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == "multimaster").then_some(message)
    });
    artefacts
        .flat_map(|message| message["filenames"].as_array().cloned().unwrap_or_default())
        .filter_map(|name| name.as_str().map(PathBuf::from))
        .find(|name| name.extension().is_some_and(|end| end == "so"))
}

/// Settings that make a server load extensions from `tree`.
#[must_use]
pub fn settings(tree: &Path) -> Vec<(String, String)> {
    let library = tree.join(format!("usr/lib/postgresql/{MAJOR}/lib"));
    vec![
        ("extension_destdir".into(), tree.display().to_string()),
        ("dynamic_library_path".into(), format!("{}:$libdir", library.display())),
    ]
}

/// Copies the library, control and SQL files into `tree`.
///
/// # Errors
/// When one of them is missing or cannot be written.
pub fn stage(library: &Path, tree: &Path) -> Result<()> {
    let lib = tree.join(format!("usr/lib/postgresql/{MAJOR}/lib"));
    let share = tree.join(format!("usr/share/postgresql/{MAJOR}/extension"));
    for directory in [&lib, &share] {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
    }
    replace(library, &lib.join("multimaster.so"))?;
    let source = repository().join("mtm-ext");
    let mut controls = 0;
    for (directory, ending) in [(source.clone(), "control"), (source.join("sql"), "sql")] {
        let Ok(entries) = std::fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|end| end == ending) {
                let name = path.file_name().context("a file has a name")?;
                replace(&path, &share.join(name))?;
                controls += usize::from(ending == "control");
            }
        }
    }
    if controls == 0 {
        bail!("no control file in {}", source.display());
    }
    Ok(())
}

fn replace(from: &Path, to: &Path) -> Result<()> {
    let new = to.with_extension("new");
    let bytes = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&new)?;
        file.write_all(&bytes)?;
        drop(file);
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&new, mode)?;
        std::fs::rename(&new, to)
    };
    write().with_context(|| format!("cannot write {}", to.display()))
}
