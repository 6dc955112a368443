//! Owns loopback ports. Each is reserved for the whole life of a stack, even while no process listens on it.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpSocket;

/// A port on 127.0.0.1 that no other process gets while this value lives.
///
/// The reservation is a socket that is bound but never listens. Linux lets a child bind and listen on the same port
/// (both sides set `SO_REUSEADDR`, as Kafka, PostgreSQL and tokio do), but neither hands it out for a bind to port 0
/// nor uses it for an outgoing connection. So a broker can be started late, or again, on an address that clients know
/// already. Until then a connection is refused, as if the server were down.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _socket: TcpSocket,
}

impl Port {
    pub fn free() -> io::Result<Port> {
        Port::at(0)
    }

    /// Reserves this port, or fails if a process listens on it.
    pub fn at(number: u16) -> io::Result<Port> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, number)))?;
        Ok(Port { number: socket.local_addr()?.port(), _socket: socket })
    }

    pub fn number(&self) -> u16 {
        self.number
    }

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
    fn reserved_port_refuses_connections_until_its_owner_listens() {
        let port = Port::free().expect("loopback has a free port");
        assert!(TcpStream::connect(port.addr()).is_err(), "no process listens yet");
        for _ in 0..2 {
            let listener = TcpListener::bind(port.addr()).expect("the child may listen on the reserved port");
            TcpStream::connect(port.addr()).expect("the child listens");
            drop(listener);
        }
    }

    #[test]
    fn reserved_port_goes_to_no_other_process() {
        let mine: Vec<Port> = (0..50).map(|_| Port::free().expect("a free port")).collect();
        let mut seen: HashSet<u16> = mine.iter().map(Port::number).collect();
        assert_eq!(seen.len(), 50);
        let others: Vec<TcpListener> =
            (0..200).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        for other in &others {
            assert!(seen.insert(other.local_addr().expect("bound").port()), "a port was given to two sockets");
        }
    }

    #[test]
    fn port_in_use_is_not_reserved() {
        let in_use = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let number = in_use.local_addr().expect("bound").port();
        assert!(Port::at(number).is_err());
    }
}
