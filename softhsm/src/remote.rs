//! A token behind a socket: p11-kit's server in front of it, as a stand-in for an HSM behind a network.
//!
//! The server is a process group of its own: one listener, and one `p11-kit-remote` for each connection, which alone
//! loads the token's module. So the far side can be killed, stopped and started again while its clients live, and a
//! client can be killed at any moment without harm to the token. Killing the *server* inside a C_Login harms SoftHSM
//! as killing any process there does (it lost its token within 37 and 116 kills); Kryoptic bears it.
//!
//! p11-kit 0.24.1 passes 37 mechanisms on; AES-GCM and EdDSA are not among them. It answers C_GetAttributeValue of a
//! CKA_ALLOWED_MECHANISMS that is set with CKR_DEVICE_ERROR, though nothing is wrong with the device.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead as _, BufReader, ErrorKind},
    ops::Deref,
    os::unix::{ffi::OsStringExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::{EphemeralToken, Error, Token, install};

/// A token that is reached through `p11-kit-client.so`. Dropping it ends the server, then removes the token.
#[derive(Debug)]
pub struct RemoteToken {
    token: Token,
    socket: PathBuf,
    program: PathBuf,
    /// Gone between [`RemoteToken::kill`] and [`RemoteToken::restart`].
    server: Mutex<Option<Child>>,
    behind: EphemeralToken,
}

/// Seconds without any connection after which the server ends by itself: nothing stays when a test is killed.
const IDLE_SECS_MAX: &str = "600";
/// The last line that the server prints before it accepts.
const LISTENING: &str = "P11_KIT_SERVER_PID=";

impl RemoteToken {
    /// Starts a server in front of `behind`.
    pub fn in_front_of(behind: EphemeralToken) -> Result<Self, Error> {
        let module = install::p11_kit_client()?;
        let program = install::program("p11-kit", "apt-get install p11-kit")?;
        let socket = behind.conf().with_file_name("p11.sock");
        let address = [&b"unix:path="[..], socket.as_os_str().as_encoded_bytes()].concat();
        let token = behind.through(module, ("P11_KIT_SERVER_ADDRESS", OsString::from_vec(address)));
        let remote = Self { token, socket, program, server: Mutex::new(None), behind };
        remote.restart()?;
        Ok(remote)
    }

    /// The token itself, as a process on the far side sees it.
    pub fn behind(&self) -> &EphemeralToken {
        &self.behind
    }

    /// Process id of the server, which is that of its group, unless it was killed.
    pub fn pid(&self) -> Option<u32> {
        self.server().as_ref().map(Child::id)
    }

    /// Kills the server and everything that serves a connection. Clients find their connections closed.
    pub fn kill(&self) -> Result<(), Error> {
        let mut server = self.server();
        let Some(mut child) = server.take() else { return Ok(()) };
        send(&child, Signal::KILL)?;
        child.wait().map_err(Error::io(&self.program))?;
        Ok(())
    }

    /// Stops the whole far side where it is: calls hang until [`RemoteToken::resume`].
    pub fn stop(&self) -> Result<(), Error> {
        self.server().as_ref().map_or(Ok(()), |child| send(child, Signal::STOP))
    }

    /// Lets a stopped server go on.
    pub fn resume(&self) -> Result<(), Error> {
        self.server().as_ref().map_or(Ok(()), |child| send(child, Signal::CONT))
    }

    /// Starts a server at the same address, after killing the one that runs. Returns when it accepts connections.
    pub fn restart(&self) -> Result<(), Error> {
        self.kill()?;
        match fs::remove_file(&self.socket) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io(&self.socket)(error)),
            _ => {}
        }
        let (name, value) = self.behind.env();
        let mut child = Command::new(&self.program)
            .env(name, value)
            .args(["server", "--foreground", "--sh", "--timeout", IDLE_SECS_MAX, "--name"])
            .arg(&self.socket)
            .arg("--provider")
            .arg(self.behind.module())
            .arg("pkcs11:")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(Error::io(&self.program))?;
        let listening = child.stdout.take().is_some_and(|stdout| {
            BufReader::new(stdout).lines().map_while(Result::ok).any(|line| line.starts_with(LISTENING))
        });
        if listening {
            *self.server() = Some(child);
            return Ok(());
        }
        send(&child, Signal::KILL)?;
        let status = child.wait().map_err(Error::io(&self.program))?;
        let output = format!("it does not listen ({status})");
        Err(Error::Program { program: "p11-kit", action: "server", output })
    }

    fn server(&self) -> MutexGuard<'_, Option<Child>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deref for RemoteToken {
    type Target = Token;

    fn deref(&self) -> &Token {
        &self.token
    }
}

impl Drop for RemoteToken {
    fn drop(&mut self) {
        // It can only fail when there is nothing left to end.
        let _ = self.kill();
    }
}

/// Signals the whole group. The child is not reaped yet, so its id is still its own.
fn send(child: &Child, signal: Signal) -> Result<(), Error> {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let sent = group.map_or(Err(rustix::io::Errno::SRCH), |group| kill_process_group(group, signal));
    sent.map_err(|errno| Error::io(Path::new("p11-kit server"))(errno.into()))
}
