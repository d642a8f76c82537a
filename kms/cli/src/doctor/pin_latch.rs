//! The PIN latch in the store: whether the server would try the PIN, and how to clear a latch that holds.

use kms_core::{
    Store,
    pin_latch::{Place, REMEDY, State},
};

use super::Findings;

const CHECK: &str = "PIN latch";

pub(super) async fn check(
    store: &impl Store,
    token_serial: &str,
    pin_generation: u32,
    findings: &mut Findings,
) {
    let place = Place { token_serial: token_serial.to_owned(), pin_generation };
    match store.pin_latch(&place).await {
        Ok(state) => tell(&state, pin_generation, findings),
        Err(fault) => {
            findings.fail(CHECK, fault);
        }
    }
}

fn tell(state: &State, generation: u32, findings: &mut Findings) {
    match state {
        State::Proven { trying: None, .. } => {
            findings.ok(CHECK, format_args!("generation {generation}: the token took this PIN"));
        }
        State::Proven { trying: Some(trying), deaths } => {
            let found = format!(
                "generation {generation}: {trying} to log in, and has not ended; unexplained ends before it: {deaths}"
            );
            findings.warn(CHECK, found).hint(
                "nothing, if a server is starting now; else look at the token, the next start tries once more",
            );
        }
        State::Unproven { trying: None } => {
            findings.ok(CHECK, format_args!("generation {generation}: this PIN was not tried yet"));
        }
        State::Unproven { trying: Some(trying) } => {
            let found = format!(
                "generation {generation}: {trying} to log in for the first time, and has not ended; a server that \
                 starts after it does not try again"
            );
            findings.fail(CHECK, found).hint(format!("wait, if that server is starting now; else {REMEDY}"));
        }
        State::Refused { text, at } => {
            let found = format!("generation {generation}: closed since {at:.0}: {text}");
            findings.fail(CHECK, found).hint(REMEDY);
        }
    }
}

#[cfg(test)]
mod tests {
    use kms_core::pin_latch::{Holder, Try};

    use super::*;
    use crate::doctor::Status;

    #[test]
    fn a_latch_that_holds_fails_and_says_how_to_clear_it() {
        let at = "2027-03-04T05:06:07Z".parse().expect("a time");
        let trying = || Some(Try { by: Holder::new("host/1/ab"), since: at });
        for (state, status, says) in [
            (
                State::Refused { text: "C_Login gave PinIncorrect".to_owned(), at },
                Status::Fail,
                "PinIncorrect",
            ),
            (State::Unproven { trying: trying() }, Status::Fail, "host/1/ab began at 2027-03-04T05:06:07Z"),
            (State::Proven { trying: trying(), deaths: 1 }, Status::Warn, "host/1/ab"),
            (State::UNTRIED, Status::Ok, "not tried yet"),
            (State::PROVEN, Status::Ok, "took this PIN"),
        ] {
            let mut findings = Findings::default();
            tell(&state, 1, &mut findings);
            let [finding] = &findings.0[..] else { panic!("{findings:?}") };
            assert_eq!(finding.status, status, "{state:?}");
            assert!(finding.found.contains(says), "{}", finding.found);
            let hint = finding.hint.as_deref().unwrap_or_default();
            assert_eq!(hint.contains("kms hsm login"), status == Status::Fail, "{state:?}: {hint}");
        }
    }
}
