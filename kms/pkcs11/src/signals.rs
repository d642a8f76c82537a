//! Staying alive: a process that dies inside C_Login or C_InitToken can take a SoftHSM token with it.

use std::io;

use tokio::signal::unix::SignalKind;

/// Replaces the deadly default of SIGTERM, SIGINT and SIGHUP for the rest of this process's life. Nobody listens: a
/// worker leaves when its socket closes, an operator's command when it is done.
pub(crate) fn outlive() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _entered = runtime.enter();
    // The handlers stay installed when streams and runtime are gone.
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        drop(tokio::signal::unix::signal(kind)?);
    }
    Ok(())
}

/// Whether SIGHUP is ignored, as nohup(1) has it: then a closed terminal must not end us.
pub(crate) fn hangup_is_ignored() -> io::Result<bool> {
    const SIGHUP_BIT: u64 = 1;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    Ok(mask & SIGHUP_BIT != 0)
}
