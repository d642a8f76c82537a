//! Tells systemd how we are (sd_notify(3)): one datagram to the socket that `NOTIFY_SOCKET` names, if any.
//!
//! The front tells it and not the unit's main process, so the unit needs `NotifyAccess=all`.

use std::{
    env, io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

/// Everything that must be there is there.
pub(crate) fn ready() {
    tell(b"READY=1");
}

/// We are on our way out.
pub(crate) fn stopping() {
    tell(b"STOPPING=1");
}

fn tell(state: &[u8]) {
    let Some(name) = env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(name.as_bytes(), state) {
        tracing::warn!(%error, "systemd was not told; is NotifyAccess=all set?");
    }
}

/// A name that begins with `@` lies in the abstract namespace (unix(7)).
fn send(name: &[u8], state: &[u8]) -> io::Result<()> {
    let addr = match name.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name))?,
    };
    UnixDatagram::unbound()?.send_to_addr(state, &addr).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_datagram_arrives_at_a_path_and_at_an_abstract_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let abstract_name = format!("kms-notify-test-{}", std::process::id());
        let at_path = UnixDatagram::bind(&path).expect("a socket");
        let abstract_addr = SocketAddr::from_abstract_name(&abstract_name).expect("an address");
        let at_name = UnixDatagram::bind_addr(&abstract_addr).expect("a socket");
        for (socket, name) in [
            (at_path, path.as_os_str().as_bytes().to_vec()),
            (at_name, format!("@{abstract_name}").into_bytes()),
        ] {
            send(&name, b"READY=1").expect("sent");
            let mut buffer = [0; 16];
            let len = socket.recv(&mut buffer).expect("received");
            assert_eq!(&buffer[..len], b"READY=1");
        }
    }
}
