//! How many connections each peer has open, so that one of them cannot take all the places.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

use crate::socket::Origin;

/// The connections that are open, by peer.
#[derive(Clone, Default)]
pub(crate) struct Peers(Arc<Mutex<HashMap<Origin, usize>>>);

/// One connection's place; dropping it gives it back.
pub(crate) struct Place {
    peers: Peers,
    peer: Origin,
}

impl Peers {
    /// A place for one more connection from `origin`, unless its peer has `connections_max` already.
    pub(crate) fn admit(&self, origin: Origin, connections_max: usize) -> Option<Place> {
        let peer = match origin {
            Origin::Host(addr) => Origin::Host(host(addr)),
            user @ Origin::User(_) => user,
        };
        self.change(|open| {
            let count = open.entry(peer).or_default();
            (*count < connections_max).then(|| *count += 1)
        })?;
        Some(Place { peers: self.clone(), peer })
    }

    fn change<T>(&self, change: impl FnOnce(&mut HashMap<Origin, usize>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.peers.change(|open| {
            if let Some(count) = open.get_mut(&self.peer) {
                *count -= 1;
                if *count == 0 {
                    open.remove(&self.peer);
                }
            }
        });
    }
}

/// Who is behind an address: a host of IPv6 has a whole /64 to choose from (RFC 4291 §2.5.4).
fn host(addr: IpAddr) -> IpAddr {
    match addr.to_canonical() {
        IpAddr::V6(addr) => Ipv6Addr::from_bits(addr.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Origin {
        Origin::Host(text.parse().expect("an address"))
    }

    #[test]
    fn a_peer_gets_its_share_and_leaves_the_others_theirs() {
        let peers = Peers::default();
        let first = peers.admit(addr("192.0.2.1"), 2).expect("a place");
        let _second = peers.admit(addr("::ffff:192.0.2.1"), 2).expect("a place");
        assert!(peers.admit(addr("192.0.2.1"), 2).is_none());
        let _other = peers.admit(addr("192.0.2.2"), 2).expect("a place");
        drop(first);
        let _third = peers.admit(addr("192.0.2.1"), 2).expect("the place that was given back");
        assert!(peers.admit(addr("192.0.2.1"), 2).is_none());
    }

    #[test]
    fn a_user_of_this_host_is_one_peer() {
        let peers = Peers::default();
        let _first = peers.admit(Origin::User(0), 1).expect("a place");
        assert!(peers.admit(Origin::User(0), 1).is_none());
        let _other = peers.admit(Origin::User(1), 1).expect("a place");
    }

    #[test]
    fn a_host_of_ipv6_is_one_peer_and_nothing_is_kept_of_who_left() {
        let peers = Peers::default();
        let place = peers.admit(addr("2001:db8::1"), 1).expect("a place");
        assert!(peers.admit(addr("2001:db8::ffff:2"), 1).is_none());
        assert!(peers.admit(addr("2001:db8:0:1::1"), 1).is_some());
        drop(place);
        assert!(peers.change(|open| open.is_empty()));
    }
}
