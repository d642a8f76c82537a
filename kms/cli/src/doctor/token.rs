//! The HSM without login: module, token, the flags of its PIN, and which algorithms it has the mechanisms for.

use kms_pkcs11::{
    Uri,
    profile::{EdwardsParams, IvSource, Profile},
    token::{self, PinState, TokenReport},
};
use kms_server::config::Config;

use super::Findings;

/// Returns the serial number of the token, if it is there.
pub(super) fn check(config: &Config, findings: &mut Findings) -> Option<String> {
    // A URI that does not parse is among the configuration's problems.
    let uri = config.hsm.uri.parse::<Uri>().ok()?;
    let lock_dir = config.hsm.lock_dir.as_deref().unwrap_or_else(|| config.state_dir());
    let report = match token::examine(&uri, lock_dir, config.hsm.profile_file.as_deref()) {
        Ok(report) => report,
        Err(error) => {
            findings.fail("module", error);
            return None;
        }
    };
    findings.ok("module", report.library);
    profile(&report.profile, findings);
    let serial = match report.chosen {
        Ok(serial) => serial,
        Err(error) => {
            findings.fail("token", error);
            return None;
        }
    };
    let token = report.tokens.iter().find(|token| token.serial == serial)?;
    findings.ok("token", format_args!("{} (serial number {serial}, {})", token.label, token.model));
    pin(token.user_pin, findings);
    algorithms(token, findings);
    Some(serial)
}

/// What is assumed of the token, or was measured.
fn profile(profile: &Profile, findings: &mut Findings) {
    let edwards = match profile.edwards_params {
        Some(EdwardsParams::Name) => "EdDSA curves by name",
        Some(EdwardsParams::Oid) => "EdDSA curves by OID",
        None => "EdDSA unknown",
    };
    let iv = match profile.iv_source {
        Some(IvSource::Caller) => "AES-GCM under an IV of the caller",
        Some(IvSource::Hsm) => "AES-GCM under an IV of the HSM",
        None => "AES-GCM unknown",
    };
    let hashes: Vec<_> = profile.oaep_hashes.iter().map(|hash| hash.name()).collect();
    let oaep = if hashes.is_empty() { "unknown".to_owned() } else { hashes.join(", ") };
    findings.ok("profile", format_args!("{}: {edwards}; {iv}; OAEP {oaep}", profile.name));
}

/// What the flags tell. They cost no try.
fn pin(state: PinState, findings: &mut Findings) {
    const CHECK: &str = "user PIN";
    match state {
        PinState::Fine => findings.ok(CHECK, "set, and no wrong try since the last login"),
        PinState::CountLow => findings
            .fail(CHECK, "a wrong PIN was tried since the last login; the server does not try again")
            .hint("correct the file at pin-source, then: kms hsm login"),
        PinState::FinalTry => findings
            .fail(CHECK, "one more wrong try locks the token; the server does not try")
            .hint("make sure of the PIN, and log in with the vendor's tool"),
        PinState::Locked => {
            findings
                .fail(CHECK, "locked")
                .hint("the security officer must set a new PIN, with the vendor's tool");
        }
        PinState::Unset => findings.fail(CHECK, "never set").hint("set it with the vendor's tool"),
    }
}

/// Nobody needs all algorithms, so a missing one is no more than a warning.
fn algorithms(token: &TokenReport, findings: &mut Findings) {
    let (usable, lacking): (Vec<_>, Vec<_>) =
        token.algorithms.iter().partition(|(_, mechanisms)| mechanisms.is_empty());
    let names: Vec<String> = usable.iter().map(|(algorithm, _)| algorithm.to_string()).collect();
    if names.is_empty() {
        findings.fail("algorithms", "the token has the mechanisms of none").hint("is it the right module?");
    } else {
        findings.ok("algorithms", names.join(" "));
    }
    for (algorithm, mechanisms) in lacking {
        let found = format_args!("{algorithm} cannot be used: the token lacks {}", mechanisms.join(", "));
        findings.warn("algorithms", found).hint(
            "use another algorithm, or a newer module; what no profile knows, `kms hsm probe` measures",
        );
    }
}
