//! What every [`Hsm`] must do.

mod wraps;

use crate::{
    Action, Algorithm, Grant, Hsm,
    algorithm::KeySpec,
    epoch::{Installation, Mark, Step},
    fakes::entropy,
    hsm::{CkaId, Fault, Half, KeyRef, NewKey, Object, PAGE_OBJECTS_MAX, SignInput},
    signature,
    time::Deadline,
};

/// Runs the suite. `algorithms` are those that the token is declared to support; `deadline` is for each step.
pub async fn run<H: Hsm>(hsm: &H, algorithms: &[Algorithm], deadline: Deadline) {
    let suite = Suite { hsm, deadline, grant: Grant::for_conformance(Action::Sign) };
    suite.a_canary_comes_back().await;
    suite.an_unknown_key_is_not_found().await;
    suite.marks_are_made_once_destroyed_and_told_apart_by_installation().await;
    for &algorithm in algorithms {
        assert!(hsm.supports(algorithm), "{algorithm} is declared and not supported");
        if algorithm.is_key_wrap() {
            wraps::run(&suite, algorithm).await;
            continue;
        }
        let key = suite.a_new_pair_is_found_with_the_right_template(algorithm).await;
        suite.it_is_listed_as_it_is_found(algorithm, &key).await;
        suite.its_signatures_verify_under_its_public_key(algorithm, &key).await;
        suite.input_that_does_not_suit_the_algorithm_is_refused(algorithm, &key).await;
        suite.another_public_key_on_record_is_a_mismatch(algorithm, &key).await;
        suite.expired_work_is_not_done(algorithm, &key).await;
        suite.a_destroyed_pair_is_gone_and_may_be_destroyed_again(algorithm, &key).await;
    }
    // Where there is only RSA it would take too long.
    let is_quick = |algorithm: &&Algorithm| matches!(algorithm.key_spec(), KeySpec::Ec(_) | KeySpec::Ed25519);
    if let Some(quick) = algorithms.iter().find(is_quick) {
        suite.more_objects_than_one_page_are_all_listed(*quick).await;
    }
}

struct Suite<'a, H> {
    hsm: &'a H,
    deadline: Deadline,
    grant: Grant,
}

impl<H: Hsm> Suite<'_, H> {
    async fn a_canary_comes_back(&self) {
        self.hsm.check(&self.grant, self.deadline).await.expect("the canary");
        assert!(!self.hsm.token_serial().is_empty(), "a token has a serial number");
    }

    async fn an_unknown_key_is_not_found(&self) {
        let id = fresh_id();
        let found = self.hsm.find(&self.grant, id, self.deadline).await.expect("find");
        assert_eq!(
            (found.private.len(), found.public.len(), found.secret.len()),
            (0, 0, 0),
            "a fresh CKA_ID names nothing"
        );
        let key = KeyRef::new(id, b"no such key");
        let signed = self.sign(&key, Algorithm::Es256, SignInput::Digest(vec![0; 32])).await;
        assert_eq!(signed, Err(Fault::KeyNotFound));
    }

    async fn marks_are_made_once_destroyed_and_told_apart_by_installation(&self) {
        let [ours, theirs] = [(); 2].map(|()| Installation(*fresh_id().as_bytes()));
        let mark = |installation, value| Mark { installation, value, nonce: [9; 8] };
        let of_both = |marks: Vec<Mark>| -> Vec<Mark> {
            let mut marks: Vec<_> =
                marks.into_iter().filter(|mark| [ours, theirs].contains(&mark.installation)).collect();
            marks.sort();
            marks
        };
        let sorted = |mut marks: Vec<Mark>| {
            marks.sort();
            marks
        };
        let gone = mark(ours, Mark::VALUE_MAX);
        for step in [Step::Read, Step::Destroy(gone)] {
            assert_eq!(of_both(self.epoch(step).await), [], "{step:?} of none");
        }
        self.epoch(Step::Create(mark(theirs, 1))).await;
        for _ in 0..2 {
            let marks = self.epoch(Step::Create(mark(ours, 1))).await;
            assert_eq!(of_both(marks), sorted(vec![mark(ours, 1), mark(theirs, 1)]), "made once");
        }
        let marks = self.epoch(Step::Create(mark(ours, 0x0102_0304_0506_0708))).await;
        let all = vec![mark(ours, 1), mark(ours, 0x0102_0304_0506_0708), mark(theirs, 1)];
        assert_eq!(of_both(marks), sorted(all), "two of one installation");
        for _ in 0..2 {
            self.epoch(Step::Destroy(mark(ours, 1))).await;
            let marks = self.epoch(Step::Destroy(mark(ours, 0x0102_0304_0506_0708))).await;
            assert_eq!(of_both(marks), [mark(theirs, 1)], "another installation's stays");
        }
        assert_eq!(of_both(self.epoch(Step::Destroy(mark(theirs, 1))).await), []);
        let past = Deadline::at(std::time::Instant::now());
        let late = self.hsm.epoch(&self.grant, Step::Create(gone), past).await;
        assert_eq!(late, Err(Fault::DeadlineExceeded), "expired work is not done");
        assert_eq!(of_both(self.epoch(Step::Read).await), []);
    }

    async fn epoch(&self, step: Step) -> Vec<Mark> {
        self.hsm.epoch(&self.grant, step, self.deadline).await.expect("a step of the epoch")
    }

    async fn a_new_pair_is_found_with_the_right_template(&self, algorithm: Algorithm) -> Pair {
        let id = fresh_id();
        let new = NewKey {
            id,
            label: format!("conformance/{algorithm}"),
            spec: algorithm.key_spec(),
            usage: algorithm.usage(),
        };
        self.hsm.generate(&self.grant, &new, self.deadline).await.expect("generate");
        let found = self.hsm.find(&self.grant, id, self.deadline).await.expect("find");
        let [private] = found.private.as_slice() else {
            panic!("{algorithm}: not one private key: {found:?}")
        };
        let [spki] = found.public.as_slice() else { panic!("{algorithm}: not one public key: {found:?}") };
        assert_eq!(private.deviation(algorithm.usage()), None, "{algorithm}");
        Pair { key: KeyRef::new(id, spki), spki: spki.clone() }
    }

    async fn it_is_listed_as_it_is_found(&self, algorithm: Algorithm, pair: &Pair) {
        let found = self.hsm.find(&self.grant, pair.key.id, self.deadline).await.expect("find");
        let halves = [Half::Private(found.private[0]), Half::Public(Some(pair.spki.clone()))];
        let (cka_id, label) = (pair.key.id.as_bytes().to_vec(), format!("conformance/{algorithm}"));
        let expected = halves.map(|half| Object { cka_id: cka_id.clone(), label: label.clone(), half });
        let listed: Vec<_> =
            self.listed().await.into_iter().filter(|object| object.cka_id == cka_id).collect();
        assert_eq!(listed, expected, "{algorithm}");
    }

    async fn more_objects_than_one_page_are_all_listed(&self, algorithm: Algorithm) {
        let mut ids: Vec<_> = (0..=PAGE_OBJECTS_MAX / 2).map(|_| fresh_id()).collect();
        for &id in &ids {
            let new = NewKey {
                id,
                label: "conformance/many".to_owned(),
                spec: algorithm.key_spec(),
                usage: algorithm.usage(),
            };
            self.hsm.generate(&self.grant, &new, self.deadline).await.expect("generate");
        }
        ids.sort_unstable();
        let twice: Vec<_> =
            ids.iter().flat_map(|id| [id.as_bytes().to_vec(), id.as_bytes().to_vec()]).collect();
        for _ in 0..4 {
            let mut listed: Vec<_> = self.listed().await.into_iter().map(|object| object.cka_id).collect();
            assert!(listed.is_sorted(), "a listing is in the order of CKA_ID");
            listed.retain(|cka_id| twice.binary_search(cka_id).is_ok());
            assert_eq!(listed, twice, "each object is listed exactly once");
        }
        for &id in &ids {
            self.hsm.destroy(&self.grant, id, self.deadline).await.expect("destroy");
        }
    }

    async fn listed(&self) -> Vec<Object> {
        let (mut objects, mut after) = (Vec::new(), None);
        loop {
            let page = self.hsm.list(&self.grant, after, self.deadline).await.expect("list");
            assert!(page.objects.len() <= PAGE_OBJECTS_MAX, "a page of {} objects", page.objects.len());
            objects.extend(page.objects);
            after = page.next;
            if after.is_none() {
                return objects;
            }
        }
    }

    async fn its_signatures_verify_under_its_public_key(&self, algorithm: Algorithm, pair: &Pair) {
        for message in [&b""[..], b"m", &[0x5a; 4096]] {
            let input = signature::input_of(algorithm, message);
            let signature = self.sign(&pair.key, algorithm, input.clone()).await.expect("sign");
            assert_eq!(signature.len(), algorithm.signature_len(), "{algorithm}");
            assert!(signature::verifies(algorithm, &pair.spki, &input, &signature), "{algorithm}");
            let other = signature::input_of(algorithm, b"another message");
            assert!(!signature::verifies(algorithm, &pair.spki, &other, &signature), "{algorithm}");
        }
    }

    async fn input_that_does_not_suit_the_algorithm_is_refused(&self, algorithm: Algorithm, pair: &Pair) {
        let wrong = match algorithm.hash() {
            Some(hash) => vec![
                SignInput::Message(b"m".to_vec()),
                SignInput::Digest(vec![0; hash.digest_len() - 1]),
                SignInput::Digest(vec![0; hash.digest_len() + 1]),
                SignInput::Digest(vec![]),
            ],
            None => vec![SignInput::Digest(vec![0; 64])],
        };
        for input in wrong {
            let signed = self.sign(&pair.key, algorithm, input.clone()).await;
            assert!(matches!(signed, Err(Fault::Failed(_))), "{algorithm}: {input:?} gave {signed:?}");
        }
        let input = signature::input_of(algorithm, b"still well");
        self.sign(&pair.key, algorithm, input).await.expect("bad input must not harm what follows");
    }

    async fn another_public_key_on_record_is_a_mismatch(&self, algorithm: Algorithm, pair: &Pair) {
        let wrong = KeyRef { spki_sha256: [0; 32], ..pair.key.clone() };
        let signed = self.sign(&wrong, algorithm, signature::input_of(algorithm, b"m")).await;
        assert!(matches!(signed, Err(Fault::KeyMismatch(_))), "{algorithm}: {signed:?}");
    }

    async fn expired_work_is_not_done(&self, algorithm: Algorithm, pair: &Pair) {
        let past = Deadline::at(std::time::Instant::now());
        let input = signature::input_of(algorithm, b"m");
        let signed = self.hsm.sign(&self.grant, &pair.key, algorithm, input, past).await;
        assert!(matches!(signed, Err(Fault::DeadlineExceeded)), "{algorithm}: {signed:?}");
    }

    async fn a_destroyed_pair_is_gone_and_may_be_destroyed_again(&self, algorithm: Algorithm, pair: &Pair) {
        for _ in 0..2 {
            self.hsm.destroy(&self.grant, pair.key.id, self.deadline).await.expect("destroy");
        }
        let found = self.hsm.find(&self.grant, pair.key.id, self.deadline).await.expect("find");
        assert_eq!((found.private.len(), found.public.len()), (0, 0), "{algorithm}: still there");
        let listed = self.listed().await.iter().any(|object| object.cka_id == pair.key.id.as_bytes());
        assert!(!listed, "{algorithm}: still listed");
        let signed = self.sign(&pair.key, algorithm, signature::input_of(algorithm, b"m")).await;
        assert_eq!(signed, Err(Fault::KeyNotFound), "{algorithm}: a cached handle outlived its key");
    }

    async fn sign(&self, key: &KeyRef, algorithm: Algorithm, input: SignInput) -> Result<Vec<u8>, Fault> {
        let signed = self.hsm.sign(&self.grant, key, algorithm, input, self.deadline).await;
        signed.map(crate::Unsettled::open_for_conformance)
    }
}

struct Pair {
    key: KeyRef,
    spki: Vec<u8>,
}

fn fresh_id() -> CkaId {
    let mut id = [0; 16];
    entropy(&mut id).expect("entropy");
    CkaId::from_bytes(id)
}
