//! The hosts of a URL, and the servers that they may lead to.

use rand::seq::SliceRandom;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, LoadBalanceHosts};

use super::server::{Comparison, Identity};

/// A host of the URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// The name and port in the URL, for messages.
    pub(super) name: String,
    pub(super) host: Host,
    pub(super) port: u16,
    /// The name that the server's certificate must have.
    pub(super) certified: String,
}

/// The servers of one name of the URL, as far as they are known during one attempt to connect.
#[derive(Debug)]
pub(super) struct Servers {
    /// The number of names in the URL.
    names: usize,
    /// The number of addresses of this name whose server is not known.
    unknown: usize,
    known: Vec<Identity>,
}

impl Servers {
    pub(super) fn new(names: usize, addresses: usize) -> Self {
        Servers { names, unknown: addresses, known: Vec::new() }
    }

    /// Adds the server of the next address. Several addresses may lead to one server, such as those of `localhost`.
    pub(super) fn found(&mut self, identity: &Identity) {
        self.unknown = self.unknown.saturating_sub(1);
        if self.known.iter().all(|known| known.compare(identity) != Comparison::Same) {
            self.known.push(identity.clone());
        }
    }

    /// Returns the number of servers that the URL may lead to.
    pub(super) fn count(&self) -> usize {
        self.names.max(self.unknown + self.known.len())
    }
}

/// Returns the names and ports of a URL's hosts, for messages.
pub(super) fn names(config: &Config) -> String {
    let names = targets(config).unwrap_or_default().into_iter().map(|target| target.name);
    names.collect::<Vec<_>>().join(", ")
}

/// Returns the hosts of a URL, in its order or, if the URL says so, in a random order. An error is the problem with them.
pub(super) fn targets(config: &Config) -> Result<Vec<Target>, String> {
    let (hosts, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    let count = hosts.len().max(addresses.len());
    if count == 0 {
        return Err("it names no host".to_owned());
    }
    if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
        return Err(format!("{} hosts, and {} in hostaddr", hosts.len(), addresses.len()));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(format!("{count} hosts, and {} ports", ports.len()));
    }
    let target = |i: usize| {
        let port = ports.get(i).or(ports.first()).copied().unwrap_or(5432);
        // Connections use the address; messages use the name.
        let host = addresses.get(i).map_or_else(|| hosts[i].clone(), |address| Host::Tcp(address.to_string()));
        let name = match hosts.get(i).unwrap_or(&host) {
            Host::Tcp(name) if name.contains(':') => format!("[{name}]:{port}"),
            Host::Tcp(name) => format!("{name}:{port}"),
            Host::Unix(folder) => folder.join(format!(".s.PGSQL.{port}")).display().to_string(),
        };
        let certified = match hosts.get(i).unwrap_or(&host) {
            Host::Tcp(name) => name.clone(),
            Host::Unix(_) => String::new(),
        };
        Target { name, host, port, certified }
    };
    let mut targets: Vec<Target> = (0..count).map(target).collect();
    if config.get_load_balance_hosts() == LoadBalanceHosts::Random {
        targets.shuffle(&mut rand::rng());
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(url: &str) -> Option<Vec<String>> {
        let config: Config = url.parse().expect("a valid URL");
        Some(targets(&config).ok()?.into_iter().map(|target| target.name).collect())
    }

    #[test]
    fn hosts_and_ports_of_a_url_are_paired() {
        assert_eq!(names("postgres://u@a,b:6/x").as_deref(), Some(&["a:5432".to_owned(), "b:6".to_owned()][..]));
        assert_eq!(names("host=a,b port=7 user=u").as_deref(), Some(&["a:7".to_owned(), "b:7".to_owned()][..]));
        assert_eq!(names("postgres://u@[::1]:5/x").as_deref(), Some(&["[::1]:5".to_owned()][..]));
        assert_eq!(names("host=/run/x user=u").as_deref(), Some(&["/run/x/.s.PGSQL.5432".to_owned()][..]));
        assert!(names("user=u").is_none(), "no host");
        assert!(names("host=a,b,c port=1,2 user=u").is_none(), "too few ports");
    }

    fn identity(system: Option<&str>, started: &str) -> Identity {
        Identity { system: system.map(str::to_owned), timeline: None, started: Some(started.to_owned()) }
    }

    #[test]
    fn addresses_count_until_they_lead_to_the_same_server() {
        let mut one_address = Servers::new(1, 1);
        one_address.found(&identity(Some("7"), "1"));
        assert_eq!(one_address.count(), 1);
        let mut two_servers = Servers::new(1, 2);
        assert_eq!(two_servers.count(), 2);
        two_servers.found(&identity(Some("7"), "1"));
        assert_eq!(two_servers.count(), 2, "the second server is not known");
        two_servers.found(&identity(Some("7"), "2"));
        assert_eq!(two_servers.count(), 2);
        let mut one_server = Servers::new(1, 2);
        one_server.found(&identity(Some("7"), "1"));
        one_server.found(&identity(None, "1"));
        assert_eq!(one_server.count(), 1, "such as the addresses of localhost");
        let mut two_names = Servers::new(2, 1);
        two_names.found(&identity(Some("7"), "1"));
        assert_eq!(two_names.count(), 2);
    }
}
