//! Services by name (RFC 2782): where DNS says that the monitors are, if nothing else does.
//!
//! The system's resolver looks up addresses only, so the question is asked here, of the name servers that
//! `/etc/resolv.conf` names: over UDP, and over TCP where the answer is too long for that.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// How long a name server may take, and how often each is asked.
const PATIENCE: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 2;

/// How many name servers are asked, as many as the system's resolver asks (`MAXNS`).
const SERVERS: usize = 3;

/// The longest answer over UDP without extensions, in bytes.
const UDP_BYTES: usize = 512;

/// The longest name, in bytes.
const NAME_BYTES: usize = 255;

const TYPE_SRV: u16 = 33;
const CLASS_IN: u16 = 1;

/// One host of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Host {
    /// Hosts of the lowest value are preferred.
    pub(super) priority: u16,
    /// How likely it is chosen among those of its priority.
    pub(super) weight: u16,
    pub(super) name: String,
    pub(super) port: u16,
}

/// The hosts of a service such as `_ceph-mon._tcp`. The name is tried as it is, then in each
/// domain that is searched.
pub(super) async fn hosts(service: &str) -> io::Result<Vec<Host>> {
    let resolver = Resolver::of_system();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no name server answers");
    let domains = resolver.domains.iter().map(|domain| format!("{service}.{domain}"));
    for name in std::iter::once(service.to_owned()).chain(domains) {
        match resolver.ask(&name).await {
            Ok(hosts) if !hosts.is_empty() => {
                return Ok(hosts);
            }
            Ok(_) => last = io::Error::new(io::ErrorKind::NotFound, format!("no {name} in DNS")),
            Err(error) => last = error,
        }
    }
    Err(last)
}

struct Resolver {
    servers: Vec<SocketAddr>,
    domains: Vec<String>,
}

impl Resolver {
    fn of_system() -> Self {
        let conf = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self::parse(&conf, host.trim())
    }

    /// Without a word about domains, the host's own is searched.
    fn parse(conf: &str, host: &str) -> Self {
        let mut servers = Vec::new();
        let mut domains: Vec<String> =
            host.split_once('.').map(|(_, domain)| domain.to_owned()).into_iter().collect();
        for line in conf.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    servers.extend(words.next().and_then(|ip| ip.parse::<IpAddr>().ok()));
                }
                Some("search" | "domain") => domains = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        if servers.is_empty() {
            servers.push(Ipv4Addr::LOCALHOST.into());
        }
        servers.truncate(SERVERS);
        domains.retain(|domain| domain != ".");
        Self { servers: servers.into_iter().map(|ip| SocketAddr::new(ip, 53)).collect(), domains }
    }

    async fn ask(&self, name: &str) -> io::Result<Vec<Host>> {
        let mut id = [0; 2];
        getrandom::fill(&mut id).map_err(io::Error::other)?;
        let question = question(u16::from_be_bytes(id), name).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is no name"))
        })?;
        let mut last = None;
        for _ in 0..ATTEMPTS {
            for server in &self.servers {
                let answer = timeout(PATIENCE, exchange(*server, &question)).await;
                match answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                    Ok(answer) => {
                        return hosts_of(&answer, &question).map_err(|why| {
                            io::Error::new(
                                io::ErrorKind::InvalidData,
                                format!("{name}: {server} {why}"),
                            )
                        });
                    }
                    Err(error) => {
                        last = Some(io::Error::new(error.kind(), format!("{server}: {error}")))
                    }
                }
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
    }
}

/// One question and its answer, which has its id.
async fn exchange(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any = match server {
        SocketAddr::V4(_) => "0.0.0.0:0",
        SocketAddr::V6(_) => "[::]:0",
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut answer = vec![0; UDP_BYTES];
    loop {
        let length = socket.recv(&mut answer).await?;
        if length >= 3 && answer[..2] == question[..2] {
            answer.truncate(length);
            break;
        }
    }
    const TRUNCATED: u8 = 2;
    if answer[2] & TRUNCATED == 0 {
        return Ok(answer);
    }
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), question].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// A question for hosts of a service; `None` if that is no name that DNS could have.
fn question(id: u16, name: &str) -> Option<Vec<u8>> {
    const RECURSE: u16 = 0x100;
    let mut bytes = Vec::new();
    for word in [id, RECURSE, 1, 0, 0, 0] {
        bytes.extend(word.to_be_bytes());
    }
    let begin = bytes.len();
    for label in name.trim_end_matches('.').split('.') {
        bytes.push(u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length))?);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    if bytes.len() - begin > NAME_BYTES {
        return None;
    }
    bytes.extend(TYPE_SRV.to_be_bytes());
    bytes.extend(CLASS_IN.to_be_bytes());
    Some(bytes)
}

/// What an answer says, which may be that there is nothing. An answer to another question is none.
fn hosts_of(answer: &[u8], question: &[u8]) -> Result<Vec<Host>, String> {
    const NO_SUCH_NAME: u8 = 3;
    let mut at = Cursor { bytes: answer, at: 0 };
    let mut read = || {
        let header = [(); 6].map(|()| at.u16());
        let [id, flags, questions, answers, ..] = header;
        (id? == u16::from_be_bytes([question[0], question[1]])).then_some(())?;
        for _ in 0..questions? {
            at.name()?;
            at.skip(4)?;
        }
        let mut hosts = Vec::new();
        for _ in 0..answers? {
            at.name()?;
            let (kind, class) = (at.u16()?, at.u16()?);
            at.skip(4)?; // how long it may be kept
            let length = usize::from(at.u16()?);
            let end = at.at + length;
            if (kind, class) == (TYPE_SRV, CLASS_IN) {
                let (priority, weight, port) = (at.u16()?, at.u16()?, at.u16()?);
                hosts.push(Host { priority, weight, name: at.name()?, port });
            }
            at.at = end;
        }
        Some((flags? as u8 & 15, hosts))
    };
    match read() {
        Some((0 | NO_SUCH_NAME, hosts)) => Ok(hosts),
        Some((code, _)) => Err(format!("fails with code {code}")),
        None => Err("answers what makes no sense".to_owned()),
    }
}

/// Reads an answer. It is somebody else's: nothing of it is believed.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn u8(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes([self.u8()?, self.u8()?]))
    }

    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.at = self.at.checked_add(bytes).filter(|at| *at <= self.bytes.len())?;
        Some(())
    }

    /// A name, whose rest may stand further ahead: each jump goes back, so that there is an end to it.
    fn name(&mut self) -> Option<String> {
        let mut name = String::new();
        let (mut there, mut after) = (self.at, None);
        loop {
            let length = *self.bytes.get(there)?;
            match length {
                0 => break,
                1..64 => {
                    let label = self.bytes.get(there + 1..there + 1 + usize::from(length))?;
                    let dot = if name.is_empty() { "" } else { "." };
                    name = format!("{name}{dot}{}", std::str::from_utf8(label).ok()?);
                    there += 1 + label.len();
                }
                64..192 => return None,
                192.. => {
                    let low = *self.bytes.get(there + 1)?;
                    let target = usize::from(u16::from_be_bytes([length & 63, low]));
                    after.get_or_insert(there + 2);
                    if target >= there {
                        return None;
                    }
                    there = target;
                }
            }
            if name.len() > NAME_BYTES {
                return None;
            }
        }
        self.at = after.unwrap_or(there + 1);
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "_ceph-mon._tcp.example.test";

    /// The question, and two hosts whose names point back into it.
    fn answer(question: &[u8]) -> Vec<u8> {
        let mut bytes = question.to_vec();
        bytes[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 2]);
        let domain = u8::try_from(12 + "_ceph-mon._tcp.".len()).unwrap();
        for (priority, weight, host, port) in [(20u16, 7u16, "b", 3301u16), (10, 0, "mon-a", 3300)]
        {
            bytes.extend([0xc0, 12, 0, 33, 0, 1, 0, 0, 0, 60]);
            bytes.extend(u16::try_from(6 + 1 + host.len() + 2).unwrap().to_be_bytes());
            bytes.extend([priority, weight, port].iter().flat_map(|word| word.to_be_bytes()));
            bytes.push(u8::try_from(host.len()).unwrap());
            bytes.extend(host.as_bytes());
            bytes.extend([0xc0, domain]);
        }
        bytes
    }

    #[test]
    fn an_answer_is_read() {
        let question = question(7, NAME).unwrap();
        let host = |priority, weight, name: &str, port| Host {
            priority,
            weight,
            name: name.to_owned(),
            port,
        };
        let hosts =
            vec![host(20, 7, "b.example.test", 3301), host(10, 0, "mon-a.example.test", 3300)];
        assert_eq!(hosts_of(&answer(&question), &question), Ok(hosts));
    }

    #[test]
    fn no_answer_does_harm() {
        let question = question(7, NAME).unwrap();
        let whole = answer(&question);
        for length in 0..whole.len() {
            assert!(hosts_of(&whole[..length], &question).is_err(), "{length} bytes");
        }
        for place in 0..whole.len() {
            for byte in 0..=u8::MAX {
                let mut changed = whole.clone();
                changed[place] = byte;
                let _ = hosts_of(&changed, &question);
            }
        }
        // Names that point at themselves.
        let mut looped = whole.clone();
        let last = looped.len() - 2;
        looped[last..].copy_from_slice(&[0xc0, u8::try_from(last).unwrap()]);
        assert!(hosts_of(&looped, &question).is_err());
        // The answer to another question.
        let other = super::question(8, NAME).unwrap();
        assert!(hosts_of(&whole, &other).is_err());
    }

    #[test]
    fn failures_are_told_from_nothing() {
        let question = question(7, NAME).unwrap();
        let mut none = question.clone();
        none[2..4].copy_from_slice(&[0x81, 0x83]);
        assert_eq!(hosts_of(&none, &question), Ok(vec![]));
        none[3] = 0x82;
        assert_eq!(hosts_of(&none, &question), Err("fails with code 2".to_owned()));
    }

    #[test]
    fn the_systems_resolver_is_understood() {
        let conf =
            "# a comment\nnameserver 10.0.0.1\nsearch a.test b.test\nnameserver fd00::1\noptions x";
        let resolver = Resolver::parse(conf, "host.c.test");
        let servers = ["10.0.0.1:53", "[fd00::1]:53"].map(|server| server.parse().unwrap());
        assert_eq!(resolver.servers, servers);
        assert_eq!(resolver.domains, ["a.test", "b.test"]);
        let resolver = Resolver::parse("", "host.c.test");
        assert_eq!(resolver.servers, ["127.0.0.1:53".parse().unwrap()]);
        assert_eq!(resolver.domains, ["c.test"]);
    }

    #[test]
    fn names_that_cannot_be_are_not_asked_for() {
        for name in ["", "a..b", &"x".repeat(64), &"abc.".repeat(70)] {
            assert_eq!(question(7, name), None, "{name}");
        }
    }
}
