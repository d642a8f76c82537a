//! Replicas whose clocks are as far apart as they may be: one five seconds ahead of the store's, one behind it.

use futures::executor::block_on;
use kms_core::{
    fakes::administrator,
    time::SignedDuration,
    verbs::{ChangeVersion, Encoding, Request, ToSign, Verify},
};

use crate::fleet::{Fleet, id, reason};

const AHEAD: usize = 0;
const BEHIND: usize = 1;

fn apart() -> Fleet {
    let fleet = Fleet::of(2);
    fleet.worlds[AHEAD].clock.advance(SignedDuration::from_secs(5));
    fleet.worlds[BEHIND].clock.advance(SignedDuration::from_secs(-5));
    fleet.beat();
    fleet.run(fleet.create(AHEAD, "k", None)).expect("created");
    fleet
}

#[test]
fn a_new_key_signs_and_is_published_at_once_also_where_the_clock_is_behind() {
    let fleet = apart();
    let sets = [AHEAD, BEHIND]
        .map(|replica| fleet.replicas[replica].published_keys(None).expect("fresh").expect("a set"));
    assert_eq!(sets[AHEAD], sets[BEHIND]);
    assert!(sets[BEHIND].body.len() > 100);
    fleet.sign(BEHIND).expect("signs");
}

#[test]
fn what_one_has_signed_verifies_everywhere_while_versions_change() {
    let fleet = apart();
    fleet.run(fleet.rotate(AHEAD, None)).expect("rotates");
    fleet.advance(SignedDuration::from_secs(3_600 - 5));
    let mut versions = vec![];
    for _ in 0..25 {
        fleet.advance(SignedDuration::from_secs(1));
        for replica in [AHEAD, BEHIND] {
            let signed = fleet.sign(replica).expect("there is always one that signs");
            versions.push((replica, signed.version));
            for other in [AHEAD, BEHIND] {
                let verify = Verify {
                    id: id("k"),
                    version: Some(signed.version),
                    input: ToSign::Message(b"hello".to_vec()),
                    signature: signed.signature.clone(),
                    encoding: Encoding::Jose,
                };
                let verified = block_on(fleet.replicas[other].verify(&administrator(), verify));
                assert!(verified.expect("it may verify").valid, "by {replica}, at {other}");
            }
        }
    }
    let switched =
        |of: usize| versions.iter().filter(|(replica, version)| *replica == of && *version == 2).count();
    assert_eq!(switched(AHEAD), switched(BEHIND) + 10, "they did differ, by ten seconds");
}

#[test]
fn a_destruction_that_one_may_have_begun_is_not_called_off_by_another() {
    let fleet = apart();
    fleet.run(fleet.disable(AHEAD)).expect("disabled");
    let change = || ChangeVersion { id: id("k"), number: 1, request: Request::default() };
    let admin = administrator();
    fleet.destroy(AHEAD, 1);
    fleet.advance(SignedDuration::from_hours(30 * 24));
    // By its own clock the one that is behind has ten seconds left.
    let restored = fleet.run(fleet.replicas[BEHIND].restore_key_version(&admin, change()));
    assert_eq!(reason(restored), Err("DESTRUCTION_DUE"));
    assert_eq!(block_on(fleet.replicas[AHEAD].run_due(fleet.deadline(AHEAD))), 1);
}
