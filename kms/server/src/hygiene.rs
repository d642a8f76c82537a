//! What a process of ours does before anything else: nobody may dump or trace its memory.
//!
//! `PR_SET_DUMPABLE` keeps other processes of the same user from attaching to this one and from reading its
//! `/proc/PID/mem`; with no core limit, a crash writes no memory to disk. The workers, which hold the PIN, do the
//! same by themselves.

use anyhow::{Context as _, anyhow};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// Hardens this process and chooses its cryptographic backend. Call it first, once.
pub fn establish() -> anyhow::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("cannot forbid memory dumps (prctl)")?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .context("cannot forbid core files (setrlimit)")?;
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow!("another TLS backend was installed before ours"))
}

/// Lets this process open as many files as its hard limit allows: the soft one, 1024 on most systems, is fewer
/// than the connections that we accept.
pub(crate) fn raise_open_files() -> anyhow::Result<()> {
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })
        .context("cannot raise the limit of open files (setrlimit)")
}
