//! The worker: the only process that loads the vendor's module and reads the PIN.
//!
//! It starts, serially over all processes that use the token (the start-up lock), says READY, and then turns requests
//! into C calls until its socket closes. Whatever it cannot cure it answers once and then exits: a fresh process is
//! the cure for a lost HSM link. It is never killed before READY (see [`crate::profile`]); after that, at any moment.

mod epoch;
mod handles;
mod link;
mod listing;
pub(crate) mod locks;
mod objects;
mod session;
mod template;
mod wraps;

use std::{
    io::{self, ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use cryptoki::session::{Session, UserType};
use rustix::{
    io::Errno,
    net::RecvFlags,
    process::{DumpableBehavior, Pid, Resource, Rlimit, Signal},
};

use self::{
    link::{Ended, Link},
    locks::Locks,
    session::{Token, TokenSession},
};
use crate::{
    TokenError, Uri,
    module::{self, Module},
    pin, signals,
    wire::{self, FromWorker, Hello, Inbox, Order, Ready, Refusal, RefusalKind},
};

/// Longest order in bytes.
const ORDER_LEN_MAX: u64 = 64 * 1024;
/// How long the pool may take to read what we write, or to let us log in, before it counts as dead.
const POOL_TIMEOUT: Duration = Duration::from_secs(60);
/// What ps(1) and top(1) show, instead of the name of the link that this program was started through.
const PROCESS_NAME: &str = "kms-hsm-worker";

/// Exit code after a refused start: the pool knows why.
const EXIT_REFUSED: u8 = 2;
/// Exit code after a lost HSM link: start another one.
const EXIT_LINK_LOST: u8 = 3;

/// Why a start ends before READY.
enum Halt {
    /// The pool must know.
    Refused(Refusal),
    /// There is no pool any more.
    PoolGone,
    /// The pool wants no login, and knows why.
    SentAway,
}

/// Runs one worker: `kms hsm-worker`. Takes its order from standard input and returns when the pool hangs up.
pub fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        // The pool ended while this worker was being started.
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::BrokenPipe) => {
            ExitCode::FAILURE
        }
        Err(error) => {
            // Standard error may be closed; there is nobody else to tell.
            let _ = writeln!(io::stderr(), "kms hsm-worker: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<ExitCode> {
    let parent = rustix::process::getppid();
    // Only for show.
    let _ = std::fs::write("/proc/self/comm", PROCESS_NAME);
    harden()?;
    signals::outlive()?;
    let Some(order) = take_order()? else { return Ok(ExitCode::SUCCESS) };
    let mut stream = UnixStream::connect(&order.socket)?;
    stream.set_write_timeout(Some(POOL_TIMEOUT))?;
    let hello =
        Hello { build: wire::BUILD_ID.to_owned(), number: order.number, secret: order.secret.clone() };
    send(&mut stream, &FromWorker::Hello(hello))?;
    let (_logged_in, sessions, ready) = match start(&order, &mut stream) {
        Ok(started) => started,
        Err(Halt::PoolGone) => return Ok(ExitCode::SUCCESS),
        Err(Halt::SentAway) => return Ok(ExitCode::from(EXIT_REFUSED)),
        Err(Halt::Refused(refusal)) => {
            send(&mut stream, &FromWorker::Refused(refusal))?;
            return Ok(ExitCode::from(EXIT_REFUSED));
        }
    };
    die_with(parent)?;
    send(&mut stream, &FromWorker::Ready(ready))?;
    Ok(serve(Link::new(stream)?, sessions))
}

/// One session per thread; this thread serves the first. Ends when the socket closes or the HSM link is lost.
fn serve(link: Link, mut sessions: Vec<TokenSession>) -> ExitCode {
    let Some(first) = sessions.pop() else { return ExitCode::FAILURE };
    let link = Arc::new(link);
    for session in sessions {
        let link = Arc::clone(&link);
        std::thread::spawn(move || {
            // Whichever thread ends first ends the process: a hung C call must not keep it.
            std::process::exit(i32::from(exit_code(link.serve(session))));
        });
    }
    ExitCode::from(exit_code(link.serve(first)))
}

fn exit_code(ended: Ended) -> u8 {
    match ended {
        Ended::Closed => 0,
        Ended::LinkLost => EXIT_LINK_LOST,
        Ended::Broken => 1,
    }
}

/// Loads, logs in, opens the sessions; all of it under the start-up lock. The returned session holds the login.
fn start(order: &Order, stream: &mut UnixStream) -> Result<(Session, Vec<TokenSession>, Ready), Halt> {
    let refuse = |kind, text| Halt::Refused(Refusal { kind, text });
    let uri: Uri =
        order.uri.parse().map_err(|error| refuse(RefusalKind::Configuration, format!("{error}")))?;
    let locks = Locks::new(&order.lock_dir);
    let _starting = locks
        .startup()
        .map_err(|error| TokenError::LockDir { dir: order.lock_dir.clone(), why: error.to_string() })?;
    // The wait may have been long: a worker of a dead server must not touch the token.
    if has_hung_up(stream) {
        return Err(Halt::PoolGone);
    }
    let (login, token, ready) = log_in(&uri, order, stream)?;
    let token = Arc::new(token);
    let sessions = (0..order.sessions.max(1))
        .map(|_| TokenSession::open(Arc::clone(&token), &locks, &order.lock_dir))
        .collect::<Result<Vec<_>, _>>()?;
    // Half open: a link that does not carry a canary is not offered to callers.
    sessions.iter().try_for_each(TokenSession::prove).map_err(|text| refuse(RefusalKind::Passing, text))?;
    Ok((login, sessions, ready))
}

fn log_in(uri: &Uri, order: &Order, stream: &mut UnixStream) -> Result<(Session, Token, Ready), Halt> {
    let module = Module::load(&uri.module_path)?.profiled(order.profile_file.as_deref())?;
    let (slot, info) = module.token(uri)?;
    let cap = module.profile.session_cap(&info);
    if let Some(cap) = cap.filter(|cap| u64::from(order.sessions) >= *cap) {
        return Err(TokenError::TooManySessions { wanted: order.sessions, cap }.into());
    }
    let algorithms = module.algorithms(slot)?;
    module::check_pin_flags(&info)?;
    let pin = pin::read(uri.pin_source.as_deref().ok_or(TokenError::PinSourceMissing)?)?;
    let login = module.pkcs11.open_rw_session(slot).map_err(TokenError::from)?;
    let token_serial = info.serial_number().trim().to_owned();
    if !may_log_in(stream, &token_serial).map_err(|_| Halt::PoolGone)? {
        return Err(Halt::SentAway);
    }
    login.login(UserType::User, Some(&pin)).map_err(module::login_error)?;
    send(stream, &FromWorker::LoggedIn).map_err(|_| Halt::PoolGone)?;
    let ready = Ready {
        token_serial,
        token_label: info.label().trim().to_owned(),
        library: module.library.clone(),
        may_die_starting: module.profile.may_die_starting,
        algorithms,
    };
    let token = Token::new(module, slot, ready.token_serial.clone());
    Ok((login, token, ready))
}

/// Returns once the pool knows that C_Login is next, durably: should this process die in it, nobody may forget the
/// try. False when the pool wants none.
fn may_log_in(stream: &mut UnixStream, token_serial: &str) -> io::Result<bool> {
    send(stream, &FromWorker::LoggingIn(token_serial.to_owned()))?;
    // This worker holds the start-up lock, so a hung pool must not keep it waiting.
    stream.set_read_timeout(Some(POOL_TIMEOUT))?;
    let mut word = wire::LOG_IN;
    stream.read_exact(&mut word)?;
    stream.set_read_timeout(None)?;
    Ok(word == wire::LOG_IN)
}

/// Whether the pool has closed its end. It says nothing before it is asked.
fn has_hung_up(stream: &UnixStream) -> bool {
    let peeked = rustix::net::recv(stream, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
    !matches!(peeked, Err(Errno::AGAIN))
}

/// No core dump and no debugger may show the PIN or what the module keeps in memory.
fn harden() -> io::Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(())
}

/// From READY on the worker dies with its supervisor. Not before: see [`crate::profile`].
fn die_with(parent: Option<Pid>) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid() != parent {
        return Err(io::Error::other("the supervisor is gone"));
    }
    Ok(())
}

/// Reads the order, then lets go of standard input. `None` when the supervisor closed it unwritten, as it does when
/// the pool goes away meanwhile.
fn take_order() -> io::Result<Option<Order>> {
    let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(4096));
    io::stdin().lock().take(ORDER_LEN_MAX).read_to_end(&mut bytes)?;
    let mut inbox = Inbox::default();
    let len = bytes.len().min(inbox.room().len());
    inbox.room()[..len].copy_from_slice(&bytes[..len]);
    inbox.filled(len);
    let order = match inbox.take() {
        Ok(Some(body)) => Order::decode(body).ok(),
        _ => None,
    };
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    match order {
        None if !bytes.is_empty() => Err(io::Error::other(
            "not an order on standard input; only a kms supervisor of the same build starts workers",
        )),
        order => Ok(order),
    }
}

impl From<TokenError> for Halt {
    fn from(error: TokenError) -> Self {
        Self::Refused(error.refusal())
    }
}

fn send(stream: &mut UnixStream, message: &FromWorker) -> io::Result<()> {
    let mut out = Vec::new();
    wire::frame(&mut out, |body| message.encode(body));
    stream.write_all(&out)
}
