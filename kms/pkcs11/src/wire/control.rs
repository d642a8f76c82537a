//! Pool and supervisor over the control socket, and the order that a worker finds on its standard input.

use std::{
    ffi::OsString,
    fmt,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use zeroize::Zeroize;

use super::codec::{Body, Malformed, Put};

/// 32 random bytes that prove that a connecting worker is the one that was just spawned.
#[derive(Clone)]
pub struct Secret([u8; 32]);

/// What a worker must know to start. Comes from the supervisor, so that a front gone astray cannot choose the module
/// that a process with access to the PIN loads. Written to standard input: nothing of it stands in argv or env.
#[derive(Debug)]
pub struct Order {
    /// The pool's socket.
    pub socket: PathBuf,
    /// For the hello.
    pub secret: Secret,
    /// Which worker it is, counting from 1.
    pub number: u16,
    /// The token, as a `pkcs11:` URI.
    pub uri: String,
    /// PKCS#11 sessions, each on a thread of its own.
    pub sessions: u16,
    /// Directory of the locks between processes that use this token.
    pub lock_dir: PathBuf,
    /// A profile instead of the built-in one.
    pub profile_file: Option<PathBuf>,
}

/// What the pool asks of the supervisor.
#[derive(Debug, PartialEq, Eq)]
pub enum ToSupervisor {
    /// Start worker `number`.
    Spawn {
        /// Which one.
        number: u16,
    },
    /// Worker `pid` is READY: it may be killed from now on.
    IsReady {
        /// Its process.
        pid: u32,
    },
    /// Kill worker `pid`.
    Kill {
        /// Its process; ignored unless a living child.
        pid: u32,
    },
}

/// What the supervisor tells the pool.
#[derive(Debug)]
pub enum FromSupervisor {
    /// Worker `number` runs.
    Spawned {
        /// Which one.
        number: u16,
        /// Its process.
        pid: u32,
        /// What it will say in its hello.
        secret: Secret,
    },
    /// Worker `number` could not be started.
    SpawnFailed {
        /// Which one.
        number: u16,
        /// Why, for the operator.
        text: String,
    },
    /// A worker is gone and reaped.
    Exited(Exit),
}

/// The end of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Which worker.
    pub number: u16,
    /// Its process.
    pub pid: u32,
    /// How it ended, as `std::process::ExitStatus` prints it.
    pub status: String,
}

impl Secret {
    /// From its bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, to be sent.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Compares in constant time.
    pub fn matches(&self, other: &Self) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Order {
    /// Appends the body of the order.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_bytes(super::BUILD_ID.as_bytes());
        out.put_bytes(self.socket.as_os_str().as_bytes());
        out.put_raw(self.secret.expose());
        out.put_u16(self.number);
        out.put_bytes(self.uri.as_bytes());
        out.put_u16(self.sessions);
        out.put_bytes(self.lock_dir.as_os_str().as_bytes());
        // No path is empty.
        out.put_bytes(self.profile_file.as_deref().unwrap_or(Path::new("")).as_os_str().as_bytes());
    }

    /// Reads a body. An order of another build is malformed too.
    pub fn decode(body: &[u8]) -> Result<Self, Malformed> {
        Body::read(body, |body| {
            if body.bytes()? != super::BUILD_ID.as_bytes() {
                return Err(Malformed);
            }
            Ok(Self {
                socket: path(body.bytes()?),
                secret: Secret(body.array()?),
                number: body.u16()?,
                uri: body.text()?,
                sessions: body.u16()?,
                lock_dir: path(body.bytes()?),
                profile_file: Some(path(body.bytes()?)).filter(|path| !path.as_os_str().is_empty()),
            })
        })
    }
}

impl ToSupervisor {
    /// Appends the body of the message.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Spawn { number } => {
                out.put_u8(0);
                out.put_u16(*number);
            }
            Self::IsReady { pid } => {
                out.put_u8(1);
                out.put_u32(*pid);
            }
            Self::Kill { pid } => {
                out.put_u8(2);
                out.put_u32(*pid);
            }
        }
    }

    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self, Malformed> {
        Body::read(body, |body| match body.u8()? {
            0 => Ok(Self::Spawn { number: body.u16()? }),
            1 => Ok(Self::IsReady { pid: body.u32()? }),
            2 => Ok(Self::Kill { pid: body.u32()? }),
            _ => Err(Malformed),
        })
    }
}

impl FromSupervisor {
    /// Appends the body of the message.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Spawned { number, pid, secret } => {
                out.put_u8(0);
                out.put_u16(*number);
                out.put_u32(*pid);
                out.put_raw(secret.expose());
            }
            Self::SpawnFailed { number, text } => {
                out.put_u8(1);
                out.put_u16(*number);
                out.put_bytes(text.as_bytes());
            }
            Self::Exited(exit) => {
                out.put_u8(2);
                out.put_u16(exit.number);
                out.put_u32(exit.pid);
                out.put_bytes(exit.status.as_bytes());
            }
        }
    }

    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self, Malformed> {
        Body::read(body, |body| match body.u8()? {
            0 => Ok(Self::Spawned { number: body.u16()?, pid: body.u32()?, secret: Secret(body.array()?) }),
            1 => Ok(Self::SpawnFailed { number: body.u16()?, text: body.text()? }),
            2 => Ok(Self::Exited(Exit { number: body.u16()?, pid: body.u32()?, status: body.text()? })),
            _ => Err(Malformed),
        })
    }
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> Vec<u8> {
        let mut out = Vec::new();
        Order {
            socket: "/run/kms/hsm.sock".into(),
            secret: Secret([1; 32]),
            number: 2,
            uri: "pkcs11:token=a?module-path=/m.so".to_owned(),
            sessions: 1,
            lock_dir: "/run/lock".into(),
            profile_file: Some("/etc/kms/profile.toml".into()),
        }
        .encode(&mut out);
        out
    }

    #[test]
    fn an_order_of_another_build_is_refused() {
        let mut bytes = order();
        bytes[5] ^= 1;
        assert!(Order::decode(&bytes).is_err());
    }

    #[test]
    fn truncated_control_messages_are_refused() {
        let whole = order();
        assert!((0..whole.len()).all(|cut| Order::decode(&whole[..cut]).is_err()));
        assert!(ToSupervisor::decode(&[2, 0, 0]).is_err());
        assert!(FromSupervisor::decode(&[0, 1]).is_err());
    }

    #[test]
    fn control_messages_read_back_as_they_were_written() {
        let bytes = order();
        let mut again = Vec::new();
        Order::decode(&bytes).unwrap().encode(&mut again);
        assert_eq!(again, bytes);
        for message in [
            ToSupervisor::Spawn { number: 1 },
            ToSupervisor::IsReady { pid: 7 },
            ToSupervisor::Kill { pid: 8 },
        ] {
            let mut out = Vec::new();
            message.encode(&mut out);
            assert_eq!(ToSupervisor::decode(&out), Ok(message));
        }
    }

    #[test]
    fn only_the_same_secret_matches() {
        assert!(Secret([1; 32]).matches(&Secret([1; 32])));
        assert!(!Secret([1; 32]).matches(&Secret([2; 32])));
    }
}
