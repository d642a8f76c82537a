//! PostgreSQL's programs: where they are, and as whom they run.

use std::{
    env, fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

/// Where Debian puts them, below the major version.
const VERSIONS: &str = "/usr/lib/postgresql";
/// The user that Debian's package makes.
const USER: &str = "postgres";

/// The programs of one installation.
#[derive(Debug)]
pub(crate) struct Programs {
    dir: PathBuf,
    /// The user id of [`USER`], when we are root: the server refuses to run as root.
    other_user: Option<u32>,
}

impl Programs {
    /// Those in `PATH`, else those of Debian's newest version.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        let dir = env::split_paths(&path).find(|dir| complete(dir)).or_else(newest).with_context(|| {
            format!(
                "initdb, postgres and psql are neither in a directory of PATH nor in {VERSIONS}/*/bin. \
                 Run: scripts/setup test, or: apt-get install postgresql"
            )
        })?;
        let other_user = if rustix::process::geteuid().is_root() { Some(user_id()?) } else { None };
        Ok(Self { dir, other_user })
    }

    /// A program that works on the server's files. It is killed when the calling *thread* ends (prctl(2),
    /// `PR_SET_PDEATHSIG`).
    pub(crate) fn server_side(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        if self.other_user.is_some() {
            command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]);
        }
        command.args(["--pdeathsig", "KILL"]).arg(self.dir.join(program));
        // That user may not be able to enter ours, and messages are compared in English.
        without_settings(&mut command).current_dir("/").env("LC_ALL", "C");
        command
    }

    /// A program that talks to the server.
    pub(crate) fn client_side(&self, program: &str) -> Command {
        let mut command = Command::new(self.dir.join(program));
        without_settings(&mut command);
        command
    }

    /// Makes a file or directory the server's own.
    pub(crate) fn give(&self, path: &Path) -> anyhow::Result<()> {
        let Some(user) = self.other_user else { return Ok(()) };
        chown(path, Some(user), None).with_context(|| path.display().to_string())
    }
}

/// Runs a command to its end, and returns what it printed.
pub(crate) fn text_of(command: &mut Command) -> anyhow::Result<String> {
    let name = Path::new(command.get_program()).display().to_string();
    let output = command.output().with_context(|| name.clone())?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("{name}: {}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(text.trim_end_matches('\n').to_owned())
}

fn complete(dir: &Path) -> bool {
    ["initdb", "postgres", "psql"].iter().all(|program| dir.join(program).is_file())
}

fn newest() -> Option<PathBuf> {
    let versions = fs::read_dir(VERSIONS).ok()?.filter_map(|entry| {
        let entry = entry.ok()?;
        let version: u32 = entry.file_name().to_str()?.parse().ok()?;
        Some((version, entry.path().join("bin")))
    });
    versions.filter(|(_, dir)| complete(dir)).max().map(|(_, dir)| dir)
}

fn user_id() -> anyhow::Result<u32> {
    let wanted = "PostgreSQL does not run as root; its Debian package makes the user postgres";
    Ok(text_of(Command::new("id").args(["-u", USER])).context(wanted)?.parse()?)
}

/// Whoever runs the tests may have set a server of their own (libpq's `PGHOST`, the server's `PGDATA`).
fn without_settings(command: &mut Command) -> &mut Command {
    for (name, _) in env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"PG") {
            command.env_remove(name);
        }
    }
    command
}
