//! What the configuration names on this machine's disks: TLS, the store's directory, the audit log's.

use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use kms_server::{
    config::{Config, Severity},
    tls::Pair,
};
use rustix::fs::{Access, access, statvfs};

use super::Findings;
use crate::duration;

/// A certificate that ends sooner than this should be renewed now.
const CERTIFICATE_WARNING: SignedDuration = SignedDuration::from_hours(14 * 24);

pub(super) fn check(config: &Config, now: Timestamp, findings: &mut Findings) {
    for problem in config.check() {
        match problem.severity {
            // The message says what to do.
            Severity::Warning => findings.warn(problem.field, problem.message),
            Severity::Error => findings.fail(problem.field, problem.message),
        };
    }
    certificate("grpc.tls_cert_file", &config.grpc.tls_cert_file, &config.grpc.tls_key_file, now, findings);
    if let Some((certificate_file, key_file)) = config.http.tls_files() {
        certificate("http.tls_cert_file", certificate_file, key_file, now, findings);
    }
    if config.store.sqlite_path().is_some() {
        directory("store.path", config.state_dir(), 0, findings);
    }
    directory("audit.dir", &config.audit.dir, config.audit.free_bytes_min, findings);
}

/// Until when a certificate is good. A pair that does not load is among the configuration's problems already.
fn certificate(check: &'static str, certificate: &Path, key: &Path, now: Timestamp, findings: &mut Findings) {
    let Ok(pair) = Pair::load(certificate, key) else { return };
    let until = pair.expires_at();
    let left = until.duration_since(now);
    let hint = "renew it; the server takes the new files without a restart";
    if left.is_negative() {
        findings.fail(check, format_args!("expired at {until}")).hint(hint);
    } else if left < CERTIFICATE_WARNING {
        findings.warn(check, format_args!("expires at {until}, in {}", duration::format(left))).hint(hint);
    } else {
        findings.ok(check, format_args!("good until {until}"));
    }
}

/// Whether this user may write into a directory, and whether it has room.
fn directory(check: &'static str, dir: &Path, free_bytes_min: u64, findings: &mut Findings) {
    let shown = dir.display();
    if !dir.is_dir() {
        // The server makes its audit directory itself; one that it cannot make is among the problems already.
        return;
    }
    if let Err(errno) = access(dir, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
        let hint = "run this as the server's user; if it fails there too, correct owner, mode or mount";
        return findings.fail(check, format_args!("{shown} cannot be written: {errno}")).hint(hint);
    }
    let free = statvfs(dir).map(|volume| volume.f_bavail.saturating_mul(volume.f_frsize));
    match free {
        Ok(free) if free < free_bytes_min => findings
            .fail(check, format_args!("{shown} has {free} bytes free, and the server needs {free_bytes_min}"))
            .hint("make room: without it no operation is admitted"),
        Ok(free) => findings.ok(check, format_args!("{shown}, {} MiB free", free >> 20)),
        Err(errno) => findings.warn(check, format_args!("{shown}: {errno}")).hint("look at the file system"),
    }
}
