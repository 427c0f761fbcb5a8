//! Where a request comes from: the other end of its connection or, behind proxies that are trusted, the address that they
//! tell of.
//!
//! Each proxy adds at the right whom it was called by. So the address is the right-most that is none of the proxies' own:
//! what stands left of it may be the client's invention. A header from anybody else is ignored.

use std::{
    convert::Infallible,
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderName, header::FORWARDED, request::Parts},
};
use ipnet::IpNet;

/// The header that most proxies write.
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The other end of a connection; one of IPv4 as IPv6 maps it, since ten thousand connections have one each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(Ipv6Addr);

impl Peer {
    /// Whoever called from there.
    pub(super) fn at(socket: SocketAddr) -> Self {
        Self(match socket.ip() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        })
    }
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address(IpAddr);

impl Address {
    /// Where a request of this peer with these headers comes from.
    pub(super) fn of(Peer(peer): Peer, headers: &HeaderMap, trusted: &[IpNet]) -> Self {
        let peer = IpAddr::V6(peer).to_canonical();
        let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(&address));
        if !is_trusted(peer) {
            return Self(peer);
        }
        let said = |name, hop: fn(&str) -> Option<IpAddr>| nearest(peer, hops(headers, name).map(hop), is_trusted);
        match (headers.contains_key(&X_FORWARDED_FOR), headers.contains_key(FORWARDED)) {
            (false, false) => Self(peer),
            (true, false) => Self(said(&X_FORWARDED_FOR, address)),
            (false, true) => Self(said(&FORWARDED, forwarded_for)),
            (true, true) => {
                let said = [said(&X_FORWARDED_FOR, address), said(&FORWARDED, forwarded_for)];
                // Where they disagree one of them is the client's, and nobody can tell which.
                Self(if said[0] == said[1] { said[0] } else { peer })
            }
        }
    }

    /// What is counted as one: of IPv6 a /64, as that is what a single customer has at least.
    pub(super) fn network(self) -> IpAddr {
        match self.0 {
            IpAddr::V4(_) => self.0,
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<S: Sync> FromRequestParts<S> for Address {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(*parts.extensions.get().expect("every request was watched"))
    }
}

/// The address of whoever called the outermost proxy that is ours; `hops` are the callers, the nearest first.
fn nearest(peer: IpAddr, hops: impl Iterator<Item = Option<IpAddr>>, is_trusted: impl Fn(IpAddr) -> bool) -> IpAddr {
    let mut nearest = peer;
    for hop in hops {
        let Some(hop) = hop else { return nearest };
        nearest = hop;
        if !is_trusted(hop) {
            return nearest;
        }
    }
    nearest
}

/// The items of a list, the last first. What is no text is an item that cannot be read.
///
/// Quotes are not heeded: a client that opens one must not swallow what a proxy adds.
fn hops<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().rev();
    let items = values.flat_map(|value| value.to_str().unwrap_or("?").rsplit(','));
    items.map(str::trim).filter(|item| !item.is_empty())
}

/// An address, also with a port or in brackets.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    bare.parse().ok().or_else(with_port).map(|address| address.to_canonical())
}

/// The `for` of an element of `Forwarded` (RFC 7239, section 4).
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let pairs = element.split(';').filter_map(|pair| pair.split_once('='));
    let (_, node) =
        pairs.map(|(name, value)| (name.trim(), value.trim())).find(|(name, _)| name.eq_ignore_ascii_case("for"))?;
    address(node.strip_prefix('"').and_then(|node| node.strip_suffix('"')).unwrap_or(node))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const PROXY: &str = "10.0.0.1";

    /// Where a request of this peer comes from, when 10.0.0.0/8 and fd00::/8 are ours.
    fn address_of(peer: &str, headers: &[(HeaderName, &str)]) -> String {
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().unwrap());
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, HeaderValue::from_str(value).unwrap());
        }
        Address::of(Peer::at((peer.parse::<IpAddr>().unwrap(), 4711).into()), &map, &trusted).to_string()
    }

    #[test]
    fn the_right_most_address_that_is_not_a_proxys_own_counts() {
        for (said, address) in [
            ("203.0.113.9", "203.0.113.9"),
            ("198.51.100.1, 203.0.113.9", "203.0.113.9"),
            ("198.51.100.1, 203.0.113.9, 10.0.0.2,10.9.9.9", "203.0.113.9"),
            ("203.0.113.9:4711", "203.0.113.9"),
            ("2001:db8::7", "2001:db8::7"),
            ("[2001:db8::7]:4711", "2001:db8::7"),
            ("[2001:db8::7]", "2001:db8::7"),
            ("::ffff:203.0.113.9", "203.0.113.9"),
            ("203.0.113.9, fd00::1, ::ffff:10.0.0.3", "203.0.113.9"),
            // All of them are ours: the first one asks for itself.
            ("10.0.0.7, 10.0.0.2", "10.0.0.7"),
            // What cannot be read says nothing, and hides what stands left of it.
            ("203.0.113.9, unknown", PROXY),
            ("203.0.113.9, unknown, 10.0.0.2", "10.0.0.2"),
            ("", PROXY),
            (" , ,", PROXY),
            ("203.0.113.9,,", "203.0.113.9"),
        ] {
            assert_eq!(address_of(PROXY, &[(X_FORWARDED_FOR, said)]), address, "{said}");
        }
        let two = [(X_FORWARDED_FOR, "198.51.100.1"), (X_FORWARDED_FOR, "203.0.113.9")];
        assert_eq!(address_of(PROXY, &two), "203.0.113.9", "two headers are one list");
        assert_eq!(address_of("::ffff:10.0.0.1", &two), "203.0.113.9");
        assert_eq!(address_of(PROXY, &[]), PROXY);
    }

    #[test]
    fn the_standard_header_says_the_same() {
        for (said, address) in [
            ("for=203.0.113.9", "203.0.113.9"),
            (r#"For="203.0.113.9:4711";proto=https;by=10.0.0.1"#, "203.0.113.9"),
            (r#"proto=https ; for="[2001:db8::7]:4711""#, "2001:db8::7"),
            (r#"for=198.51.100.1, for=203.0.113.9, for="10.0.0.2""#, "203.0.113.9"),
            // The client's quote stays open, and swallows nothing.
            (r#"for="198.51.100.1, for=203.0.113.9"#, "203.0.113.9"),
            ("for=unknown", PROXY),
            ("for=_hidden", PROXY),
            ("proto=https", PROXY),
            ("203.0.113.9", PROXY),
        ] {
            assert_eq!(address_of(PROXY, &[(FORWARDED, said)]), address, "{said}");
        }
        let both = |standard| [(X_FORWARDED_FOR, "203.0.113.9"), (FORWARDED, standard)];
        assert_eq!(address_of(PROXY, &both("for=203.0.113.9")), "203.0.113.9");
        assert_eq!(address_of(PROXY, &both("for=198.51.100.1")), PROXY, "one of them is the client's");
    }

    #[test]
    fn of_ipv6_a_network_counts_as_one() {
        let network = |text: &str| Address(text.parse().unwrap()).network().to_string();
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(network("2001:db8:1:2:ffff:ffff:ffff:ffff"), "2001:db8:1:2::");
        assert_ne!(network("2001:db8:1:3::1"), network("2001:db8:1:2::1"));
        assert_eq!(network("203.0.113.9"), "203.0.113.9");
    }

    proptest! {
        #[test]
        fn whoever_is_not_trusted_cannot_choose_an_address(
            invented in r"[ -~]{0,60}|(for=)?([1-9][0-9]?\.){3}[0-9]{1,2}(, [ -~]{0,20})?"
        ) {
            for name in [X_FORWARDED_FOR, FORWARDED] {
                prop_assert_eq!(address_of("203.0.113.9", &[(name, &invented)]), "203.0.113.9");
            }
            // Behind a proxy that adds what it saw, in one of the two ways or in both.
            let (seen, standard) = (format!("{invented}, 203.0.113.9"), format!("{invented}, for=203.0.113.9"));
            prop_assert_eq!(address_of(PROXY, &[(X_FORWARDED_FOR, &seen)]), "203.0.113.9");
            prop_assert_eq!(address_of(PROXY, &[(FORWARDED, &standard)]), "203.0.113.9");
            let chosen = address_of(PROXY, &[(X_FORWARDED_FOR, &seen), (FORWARDED, &invented)]);
            prop_assert!(["203.0.113.9", PROXY].contains(&chosen.as_str()), "{}", chosen);
        }
    }
}
