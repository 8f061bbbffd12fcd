//! `mon host`: where the monitors are, in each of the forms that Ceph takes.
//!
//! `[v2:a:3300/0,v1:a:6789/0]` names one monitor's addresses for both messengers; `a,b c;d` are monitors at addresses
//! or names whose port tells the messenger: none means 3300 (Ceph tries 6789 with messenger v1 as well), 6789 means v1,
//! any other v2 (`MonMap::_add_ambiguous_addr`).

use std::fmt;
use std::net::{IpAddr, SocketAddr};

const PORT_V2: u16 = 3300;
pub(super) const PORT_V1: u16 = 6789;

/// Where a monitor listens for messenger v2.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MonHost {
    /// An address.
    Addr(SocketAddr),
    /// A name, to be looked up when it is dialled, and a port.
    Name(String, u16),
    /// Wherever DNS says that a service is, such as `_ceph-mon._tcp`.
    Service {
        /// Its name.
        name: String,
        /// Where monitors could have been named instead, for errors.
        place: String,
    },
}

impl fmt::Display for MonHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => write!(f, "v2:{addr}"),
            Self::Name(name, port) => write!(f, "v2:{name}:{port}"),
            Self::Service { name, .. } => f.write_str(name),
        }
    }
}

/// What `mon host` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct MonHosts {
    /// Monitors that speak messenger v2, each once, in order.
    pub(super) v2: Vec<MonHost>,
    /// Those that are given with a messenger v1 address only, as written.
    pub(super) v1_only: Vec<String>,
}

/// One address: which messenger was named, where, and which port, if any.
struct Address {
    messenger: Option<u8>,
    host: MonHost,
    port: Option<u16>,
}

/// Reads the whole value; the error says what is no address.
pub(super) fn parse(text: &str) -> Result<MonHosts, String> {
    let mut hosts = MonHosts::default();
    for entry in split(text, &[',', ';', ' ', '\t', '\n']) {
        let found = match address_vector(entry) {
            Some(addresses) => {
                let addresses = split(addresses, &[',']).map(parse_address);
                addresses.collect::<Result<Vec<_>, _>>()?.into_iter().find_map(|a| v2(a, false))
            }
            None => v2(parse_address(entry)?, true),
        };
        match found {
            Some(host) if !hosts.v2.contains(&host) => hosts.v2.push(host),
            Some(_) => {}
            None => hosts.v1_only.push(entry.to_owned()),
        }
    }
    Ok(hosts)
}

/// Splits at separators outside of brackets, leaving out what is empty.
fn split<'a>(text: &'a str, separators: &'a [char]) -> impl Iterator<Item = &'a str> {
    let mut depth = 0usize;
    text.split(move |c: char| {
        match c {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && separators.contains(&c)
    })
    .filter(|entry| !entry.is_empty())
}

/// The inside of `[v2:…,v1:…]`; `None` for `[::1]` and anything else.
fn address_vector(entry: &str) -> Option<&str> {
    let inner = entry.strip_prefix('[')?.strip_suffix(']')?;
    (inner.parse::<IpAddr>().is_err()).then_some(inner)
}

fn parse_address(text: &str) -> Result<Address, String> {
    let (messenger, rest) = match text.split_once(':') {
        Some(("v1", rest)) => (Some(1), rest),
        Some(("v2", rest)) => (Some(2), rest),
        Some(("any", rest)) => (None, rest),
        _ => (None, text),
    };
    let wrong = || format!("{text:?} is no monitor address");
    // The nonce of a monitor is 0, and of no use to whoever dials it.
    let (rest, nonce) = rest.split_once('/').unwrap_or((rest, "0"));
    nonce.parse::<u32>().map_err(|_| wrong())?;
    let (host, port) = match rest.strip_prefix('[') {
        Some(bracketed) => {
            let (host, tail) = bracketed.split_once(']').ok_or_else(wrong)?;
            (
                host,
                if tail.is_empty() {
                    None
                } else {
                    Some(tail.strip_prefix(':').ok_or_else(wrong)?)
                },
            )
        }
        None if rest.matches(':').count() == 1 => match rest.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (rest, None),
        },
        None => (rest, None),
    };
    let port = match port {
        Some(port) => Some(port.parse::<u16>().map_err(|_| wrong())?).filter(|port| *port != 0),
        None => None,
    };
    let host = match host.parse::<IpAddr>() {
        Ok(ip) => MonHost::Addr(SocketAddr::new(ip, 0)),
        Err(_) if is_name(host) => MonHost::Name(host.to_owned(), 0),
        Err(_) => return Err(wrong()),
    };
    Ok(Address { messenger, host, port })
}

fn is_name(host: &str) -> bool {
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    host.chars().all(allowed) && host.chars().any(char::is_alphabetic)
}

/// Where to dial with messenger v2; `None` for an address of messenger v1. With `guess`, a port tells the messenger
/// that is not named.
fn v2(address: Address, guess: bool) -> Option<MonHost> {
    match (address.messenger, address.port) {
        (Some(1), _) | (None, Some(PORT_V1)) => return None,
        (None, _) if !guess => return None,
        _ => {}
    }
    let port = address.port.unwrap_or(PORT_V2);
    Some(match address.host {
        MonHost::Addr(addr) => MonHost::Addr(SocketAddr::new(addr.ip(), port)),
        MonHost::Name(name, _) => MonHost::Name(name, port),
        service @ MonHost::Service { .. } => service,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2_of(text: &str) -> String {
        let hosts = parse(text).unwrap();
        hosts.v2.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn every_form() {
        for (text, expected) in [
            ("[v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0]", "v2:10.0.0.1:3300"),
            (
                "[v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0],[v2:10.0.0.2:4400/0,v1:10.0.0.2:6789/0]",
                "v2:10.0.0.1:3300 v2:10.0.0.2:4400",
            ),
            ("[v1:10.0.0.1:6789,v2:10.0.0.1:3300] 10.0.0.2", "v2:10.0.0.1:3300 v2:10.0.0.2:3300"),
            (
                "10.0.0.1, 10.0.0.2;10.0.0.3 10.0.0.1",
                "v2:10.0.0.1:3300 v2:10.0.0.2:3300 v2:10.0.0.3:3300",
            ),
            ("10.0.0.1:3300,10.0.0.1:6789", "v2:10.0.0.1:3300"),
            ("10.0.0.1:7777", "v2:10.0.0.1:7777"),
            ("v2:10.0.0.1", "v2:10.0.0.1:3300"),
            ("v2:10.0.0.1:6789/0", "v2:10.0.0.1:6789"),
            ("[::1]", "v2:[::1]:3300"),
            ("[::1]:3301,2001:db8::1", "v2:[::1]:3301 v2:[2001:db8::1]:3300"),
            ("[v2:[::1]:3300/0,v1:[::1]:6789/0]", "v2:[::1]:3300"),
            ("v2:[::1]:3300/0", "v2:[::1]:3300"),
            ("mon-a.example.com,mon_b:3301", "v2:mon-a.example.com:3300 v2:mon_b:3301"),
            ("v2:mon.a:3300", "v2:mon.a:3300"),
            ("any:10.0.0.1", "v2:10.0.0.1:3300"),
            ("10.0.0.1:0", "v2:10.0.0.1:3300"),
        ] {
            assert_eq!(v2_of(text), expected, "{text}");
        }
    }

    #[test]
    fn messenger_v1_is_told_apart() {
        for text in ["v1:10.0.0.1:6789/0", "10.0.0.1:6789", "[v1:10.0.0.1:6789/0]", "mon.a:6789"] {
            let hosts = parse(text).unwrap();
            assert_eq!(hosts, MonHosts { v2: vec![], v1_only: vec![text.to_owned()] });
        }
    }

    #[test]
    fn what_is_no_address_is_named() {
        for text in
            ["1.2.3.4:99999", "[::1", "a/b", "v2:", "[v2:1.2.3.4:3300,!]", "1.2.3.4/x", "300.1.1.1"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
