//! The grammar of faults says the same in both directions, and refuses what means nothing; the controller keeps count
//! over several processes.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test's own steps must succeed")]

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
};

use kms_softhsm::faults::{
    Code, Controller, Event, Fault, Function, GcmUse, PinFlag, Rule, Script, When,
    line::{Answer, Question, RuleId},
};
use proptest::{collection::vec, option, prelude::*, sample::select};

#[test]
fn what_means_nothing_is_no_rule() {
    for bad in [
        "",
        "C_Sign always",
        "C_Sign: hang",
        "C_Sigh always: hang",
        "C_Sign, C_SignFinal always: hang",
        "C_Sign nth 0: hang",
        "C_Sign every 0: hang",
        "C_Sign always times 0: hang",
        "C_Sign nth -1: hang",
        "C_Sign chance 1000001 seed 1: hang",
        "C_Sign chance 5: hang",
        "C_Sign always: return",
        "C_Sign always: return CKR_NO_SUCH_CODE",
        "C_Sign always: return 48",
        "C_Sign always: hang 5",
        "C_Sign always: delay-ms",
        "C_Sign always:  hang",
        "C_GetTokenInfo always: pin-flag low",
        // Faults that the function cannot have.
        "C_Sign always: swap-handles",
        "C_Sign always: session-cap 1",
        "C_OpenSession always: forget-login",
        "C_Sign always: lose-object 0",
        "C_SignInit always: flip-bit 0",
        "C_Sign,C_Login always: shorten",
        "C_GetFunctionList always: no-interface",
        "C_EncryptInit always times 3: record-iv",
    ] {
        assert!(bad.parse::<Rule>().is_err(), "{bad:?}");
    }
    let too_many = "C_Sign always: hang\n".repeat(65);
    assert!(too_many.parse::<Script>().is_err());
}

#[test]
fn a_rule_reads_as_it_is_documented() {
    let rule: Rule = "C_Sign,C_SignFinal nth 3 times 1: return CKR_DEVICE_ERROR".parse().unwrap();
    let written = Rule::new(
        vec![Function::Sign, Function::SignFinal],
        When::Nth(3.try_into().unwrap()),
        Some(1.try_into().unwrap()),
        Fault::Return(Code(0x30)),
    );
    assert_eq!(Ok(rule), written);
}

proptest! {
    #[test]
    fn a_script_is_read_as_it_was_written(script in vec(rule(), 0..8)) {
        let script = Script::new(script).unwrap();
        prop_assert_eq!(script.to_string().parse(), Ok(script));
    }

    #[test]
    fn a_question_is_read_as_it_was_written(question in question()) {
        prop_assert_eq!(question.to_string().parse(), Ok(question));
    }

    #[test]
    fn an_answer_is_read_as_it_was_written(answer in answer()) {
        prop_assert_eq!(answer.to_string().parse(), Ok(answer));
    }

    #[test]
    fn no_text_is_too_odd_to_be_refused(text in "\\PC{0,60}") {
        let _ = text.parse::<Script>();
        let _ = text.parse::<Question>();
        let _ = text.parse::<Answer>();
    }

    #[test]
    fn chance_is_the_same_for_the_same_seed_and_place(seed: u64, ordinal in 0_u64..100, call in 1_u64..1_000_000) {
        let chance = |millionths| When::Chance { millionths, seed };
        prop_assert_eq!(chance(500_000).hits(call, ordinal, 0), chance(500_000).hits(call, ordinal, 0));
        prop_assert!(chance(1_000_000).hits(call, ordinal, 0) && !chance(0).hits(call, ordinal, 0));
    }
}

#[test]
fn chance_is_about_as_likely_as_it_says_and_differs_between_processes() {
    let chance = When::Chance { millionths: 250_000, seed: 7 };
    let hits = |ordinal| (1..=10_000).filter(|call| chance.hits(*call, ordinal, 0)).collect::<Vec<u64>>();
    let (first, second) = (hits(0), hits(1));
    assert!((2_200..2_800).contains(&first.len()), "{}", first.len());
    assert_ne!(first, second);
}

#[test]
fn a_limit_holds_over_all_processes_and_a_new_script_begins_anew() {
    let (_dir, controller, socket) = start();
    let rule = "C_Sign always times 2: hang";
    controller.set(&rule.parse().unwrap());
    let (mut one, mut other) = (Shim::connect(&socket, 1), Shim::connect(&socket, 2));
    assert_eq!((&*one.script, &*other.script), (rule, rule));
    assert_eq!(one.version, 1);
    let fire = |script| Question::Fire { rule: RuleId { script, rule: 0 }, function: Function::Sign };
    assert_eq!([one.ask(fire(1)), other.ask(fire(1)), one.ask(fire(1))], ["yes", "yes", "no"]);
    assert_eq!(controller.fired(), 2);
    let pids: Vec<u32> = controller.reports().iter().map(|report| report.pid).collect();
    assert_eq!(pids, [1, 2]);

    controller.set(&rule.parse().unwrap());
    // The new script has come before the answer.
    assert_eq!([one.line(), one.line()], ["script 2 1", rule]);
    assert_eq!([one.ask(fire(1)), one.ask(fire(2))], ["no", "yes"], "the old script's rules act no more");
}

#[test]
fn sessions_are_counted_over_all_processes_and_a_dead_one_gives_its_own_back() {
    let (_dir, controller, socket) = start();
    controller.set(&"C_OpenSession always: session-cap 2".parse().unwrap());
    let (mut one, mut other) = (Shim::connect(&socket, 1), Shim::connect(&socket, 2));
    let open = || Question::Open { cap: Some(RuleId { script: 1, rule: 0 }) };
    assert_eq!([one.ask(open()), other.ask(open()), other.ask(open())], ["yes", "yes", "no"]);
    assert_eq!(controller.processes().iter().map(|process| process.sessions).collect::<Vec<_>>(), [1, 1]);
    assert_eq!(other.ask(Question::Closed { sessions: 1 }), "yes");
    assert_eq!([other.ask(open()), other.ask(open())], ["yes", "no"]);
    drop(one);
    // Its end is heard of in its own time.
    while controller.processes().len() > 1 {
        std::thread::yield_now();
    }
    assert_eq!([other.ask(open()), other.ask(open())], ["yes", "no"]);
    assert_eq!(controller.fired(), 3);
}

#[test]
fn logins_and_ivs_are_on_record_when_they_are_answered() {
    let (_dir, controller, socket) = start();
    controller.clear();
    let mut shim = Shim::connect(&socket, 9);
    let gcm = GcmUse { key: 5, cka_id: Some(vec![0xa1]), iv: vec![1, 2, 3] };
    for (question, event) in [
        (Question::Login { user: 1 }, Event::Login { user: 1 }),
        (Question::LoggedIn { code: Code(0xa0) }, Event::LoggedIn { code: Code(0xa0) }),
        (Question::Iv(gcm.clone()), Event::Iv(gcm)),
    ] {
        assert_eq!(shim.ask(question), "yes");
        assert_eq!(controller.reports().pop().map(|report| (report.pid, report.event)), Some((9, event)));
    }
}

#[test]
fn whoever_says_nonsense_is_hung_up_on() {
    let (_dir, controller, socket) = start();
    controller.clear();
    let endless = "x".repeat(10_000);
    for nonsense in ["no hello\n", "hello 1\nhello\n", &*endless] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        let _ = stream.write_all(nonsense.as_bytes());
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    }
    let mut shim = Shim::connect(&socket, 1);
    assert_eq!(shim.ask(Question::Open { cap: None }), "yes", "it serves others");
    drop(controller);
    assert_eq!(shim.line(), "", "it hangs up when it goes");
}

fn start() -> (tempfile::TempDir, Controller, std::path::PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let controller = Controller::start(dir.path()).expect("it listens");
    let env = controller.env(Path::new("/nonexistent"));
    let socket = env.into_iter().find(|(name, _)| name == "KMS_FAULTY_SOCKET").expect("it is there").1;
    (dir, controller, socket.into())
}

/// What the shim does on its socket, by hand.
struct Shim {
    stream: BufReader<UnixStream>,
    version: u64,
    script: String,
}

impl Shim {
    fn connect(socket: &Path, pid: u32) -> Self {
        let stream = BufReader::new(UnixStream::connect(socket).expect("it listens"));
        let mut shim = Self { stream, version: 0, script: String::new() };
        shim.say(&Question::Hello { pid });
        assert!(matches!(shim.line().parse(), Ok(Answer::Welcome { .. })));
        if let Ok(Answer::Script { version, rules }) = shim.line().parse() {
            shim.version = version;
            shim.script = (0..rules).map(|_| shim.line()).collect::<Vec<_>>().join("\n");
        }
        assert!(shim.version > 0, "a script was set before it came");
        shim
    }

    fn ask(&mut self, question: Question) -> String {
        self.say(&question);
        self.line()
    }

    fn say(&mut self, question: &Question) {
        writeln!(self.stream.get_mut(), "{question}").expect("it reads");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("it writes");
        line.trim_end().to_owned()
    }
}

fn rule() -> impl Strategy<Value = Rule> {
    (vec(select(Function::ALL), 1..4), when(), option::of(1_u32..), fault()).prop_filter_map(
        "the fault fits",
        |(functions, when, times, fault)| {
            let times = times.map(|times| times.try_into().unwrap());
            Rule::new(functions, when, times, fault).ok()
        },
    )
}

fn when() -> impl Strategy<Value = When> {
    prop_oneof![
        Just(When::Always),
        (1_u32..).prop_map(|n| When::Nth(n.try_into().unwrap())),
        (1_u32..).prop_map(|n| When::Every(n.try_into().unwrap())),
        (0_u32..=1_000_000, any::<u64>()).prop_map(|(millionths, seed)| When::Chance { millionths, seed }),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        any::<u64>().prop_map(|code| Fault::Return(Code(code))),
        (0_u64..0x200).prop_map(|code| Fault::CallThenReturn(Code(code))),
        any::<u32>().prop_map(Fault::DelayMs),
        any::<u32>().prop_map(Fault::SessionCap),
        any::<u32>().prop_map(Fault::LoseObject),
        any::<u32>().prop_map(Fault::FlipBit),
        select(&[PinFlag::CountLow, PinFlag::FinalTry, PinFlag::Locked][..]).prop_map(Fault::PinFlag),
        select(
            &[
                Fault::Hang,
                Fault::Crash,
                Fault::SwapHandles,
                Fault::ForgetLogin,
                Fault::Shorten,
                Fault::EmptySlotList,
                Fault::NoInterface,
                Fault::NullList,
                Fault::NullFunctions,
                Fault::FixedIv,
                Fault::NoAad,
                Fault::RecordIv,
            ][..]
        ),
    ]
}

fn question() -> impl Strategy<Value = Question> {
    let id = || (any::<u64>(), any::<usize>()).prop_map(|(script, rule)| RuleId { script, rule });
    prop_oneof![
        any::<u32>().prop_map(|pid| Question::Hello { pid }),
        (id(), select(Function::ALL)).prop_map(|(rule, function)| Question::Fire { rule, function }),
        option::of(id()).prop_map(|cap| Question::Open { cap }),
        any::<u32>().prop_map(|sessions| Question::Closed { sessions }),
        any::<u64>().prop_map(|user| Question::Login { user }),
        any::<u64>().prop_map(|code| Question::LoggedIn { code: Code(code) }),
        (any::<u64>(), option::of(vec(any::<u8>(), 0..40)), vec(any::<u8>(), 0..40))
            .prop_map(|(key, cka_id, iv)| Question::Iv(GcmUse { key, cka_id, iv })),
    ]
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        Just(Answer::Yes),
        Just(Answer::No),
        any::<u64>().prop_map(|ordinal| Answer::Welcome { ordinal }),
        (any::<u64>(), any::<usize>()).prop_map(|(version, rules)| Answer::Script { version, rules }),
    ]
}
