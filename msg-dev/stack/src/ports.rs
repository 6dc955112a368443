//! Owns loopback ports: each is reserved for the whole life of a stack, also while nothing listens on it.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpSocket;

/// A port on 127.0.0.1 that nobody else is given while this value lives.
///
/// The reservation is a socket that is bound but never listens. Linux lets a child bind and listen on the same port
/// (both sides set `SO_REUSEADDR`, as Kafka, PostgreSQL and tokio do), but neither hands it out for a bind to port 0 nor
/// uses it for an outgoing connection. So a broker can be started late, or again, on an address that clients know
/// already, and until then a connection is refused, as it would be for a server that is down.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _held: TcpSocket,
}

impl Port {
    /// Reserves any free port.
    pub fn free() -> io::Result<Port> {
        Port::at(0)
    }

    /// Reserves this port, or fails when somebody listens on it.
    pub fn at(number: u16) -> io::Result<Port> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, number)))?;
        Ok(Port { number: socket.local_addr()?.port(), _held: socket })
    }

    /// Reserves this port if it is free, else any other.
    pub fn prefer(number: u16) -> io::Result<Port> {
        Port::at(number).or_else(|_| Port::free())
    }

    /// The port's number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// The address with the port.
    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.number))
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.addr().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_reserved_port_refuses_until_its_owner_listens_and_is_kept_across_restarts() {
        let port = Port::free().expect("loopback has a free port");
        assert!(TcpStream::connect(port.addr()).is_err(), "nobody listens yet");
        for _ in 0..2 {
            let listener = TcpListener::bind(port.addr()).expect("the child may listen on the reserved port");
            TcpStream::connect(port.addr()).expect("somebody listens");
            drop(listener);
        }
    }

    #[test]
    fn a_reserved_port_is_not_given_to_anybody_else() {
        let mine: Vec<Port> = (0..50).map(|_| Port::free().expect("a free port")).collect();
        let mut seen: HashSet<u16> = mine.iter().map(Port::number).collect();
        assert_eq!(seen.len(), 50);
        let others: Vec<TcpListener> =
            (0..200).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        for other in &others {
            assert!(seen.insert(other.local_addr().expect("bound").port()), "given out twice");
        }
    }

    #[test]
    fn a_port_in_use_is_replaced_by_another() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let number = taken.local_addr().expect("bound").port();
        assert!(Port::at(number).is_err());
        assert_ne!(Port::prefer(number).expect("another port").number(), number);
    }
}
