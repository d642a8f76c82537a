//! CPU time of processes, from /proc/PID/stat (proc_pid_stat(5)).

use std::time::Duration;

use rustix::process::Pid;

/// User and system time that these processes have used until now.
pub(crate) fn used(pids: &[Pid]) -> Duration {
    pids.iter().filter_map(|pid| of(*pid)).sum()
}

fn of(pid: Pid) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name stands in parentheses and may hold anything; utime and stime are fields 14 and 15.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    let ticks_per_second = rustix::param::clock_ticks_per_second();
    Some(Duration::from_millis(ticks * 1000 / ticks_per_second))
}
