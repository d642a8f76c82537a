//! Where a development server may listen, and how it is reached.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

/// An address that the certificate can cover: this machine's own, or all interfaces.
pub(super) fn parse(text: &str) -> Result<SocketAddr, &'static str> {
    const HELP: &str =
        "a development server listens on 127.0.0.1:PORT, [::1]:PORT, or 0.0.0.0:PORT or [::]:PORT";
    let addr: SocketAddr = text.parse().map_err(|_| HELP)?;
    let own = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    if own.contains(&reachable(addr).ip()) { Ok(addr) } else { Err(HELP) }
}

/// The same address with a free port when it asks for any.
pub(super) fn with_port(addr: SocketAddr) -> std::io::Result<SocketAddr> {
    if addr.port() == 0 { TcpListener::bind(addr)?.local_addr() } else { Ok(addr) }
}

/// An address that reaches a listener on this machine: one on all interfaces is reached through the loopback,
/// for which the certificate is made.
pub(super) fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, addr.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_the_certificate_cannot_cover_are_refused() {
        for bad in ["192.0.2.1:8443", "127.0.0.2:8443", "localhost:8443", "127.0.0.1", ":8443"] {
            assert!(parse(bad).is_err(), "{bad:?} was taken");
        }
        for good in ["127.0.0.1:0", "[::1]:8443", "0.0.0.0:8443", "[::]:1"] {
            assert!(parse(good).is_ok(), "{good:?} was refused");
        }
    }
}
