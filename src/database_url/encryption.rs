//! Decides how the connections of a URL are encrypted. The modes are those of libpq, without the ones that promise nothing.

use std::net::IpAddr;

use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, Host};

use super::options::TlsOptions;
use crate::tls::{CaSource, PairFiles, PemFile, TlsFiles};

/// What to write instead of a mode that is refused.
const WRITE: &str = "write sslmode=verify-full, with sslrootcert=FILE if the server's CA is your own, or sslmode=disable if \
                     everything between here and the server is trusted";

/// How the connections of a URL are encrypted. Connections to a Unix socket never are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Encryption {
    /// Not at all.
    Plain,
    /// With TLS.
    Tls {
        /// What of the server's certificate is verified.
        verify: Verify,
        /// The CAs, and the own certificate if the server requires one.
        files: TlsFiles,
    },
}

/// What of a server's certificate is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verify {
    /// That a CA issued it, to whatever name: `verify-ca`.
    Ca,
    /// That a CA issued it for the name of the host in the URL: `verify-full`.
    Full,
}

impl Encryption {
    /// Returns what the options say, or the problem with them. `config` has the other options of the same URL.
    pub(super) fn of(options: TlsOptions, config: &Config) -> Result<Self, String> {
        if options.negotiation.is_some_and(|negotiation| negotiation != "postgres") {
            return Err("sslnegotiation must be postgres: remove it".to_owned());
        }
        let own_ca = options.root_cert.filter(|root_cert| root_cert != "system");
        let bound = config.get_channel_binding() == ChannelBinding::Require;
        let wants_tls = bound || own_ca.is_some() || options.cert.is_some() || options.key.is_some();
        let verify = match options.mode.as_deref() {
            None if wants_tls || is_remote(config) => Verify::Full,
            None => return Ok(Encryption::Plain),
            Some("disable") if bound => {
                return Err(
                    "channel_binding=require needs TLS, and sslmode=disable turns it off: remove one".to_owned()
                );
            }
            Some("disable") => return Ok(Encryption::Plain),
            Some("verify-full") => Verify::Full,
            // libpq: with a CA, `require` means the same as `verify-ca`.
            Some("verify-ca" | "require") if own_ca.is_some() => Verify::Ca,
            Some("verify-ca") => {
                return Err(format!(
                    "sslmode=verify-ca needs sslrootcert with a CA of your own: the CAs of the system issue certificates to \
                     everyone, so without the name of the host TLS would accept any of them; {WRITE}"
                ));
            }
            Some("require") => {
                return Err(format!(
                    "sslmode=require without sslrootcert would accept every certificate, so TLS would not keep out a server in \
                     the middle; {WRITE}"
                ));
            }
            Some(mode @ ("allow" | "prefer")) => {
                return Err(format!("sslmode={mode} would continue without TLS if the server asks for it; {WRITE}"));
            }
            Some(_) => return Err(format!("sslmode must be verify-full, verify-ca or disable; {WRITE}")),
        };
        let pair = match (options.cert, options.key) {
            (None, None) => None,
            (Some(cert), Some(key)) => {
                Some(PairFiles { certificate: PemFile::new("sslcert", cert), key: PemFile::new("sslkey", key) })
            }
            _ => return Err("sslcert and sslkey belong together: give both or none".to_owned()),
        };
        let ca = own_ca.map_or(CaSource::System, |path| CaSource::File(PemFile::new("sslrootcert", path)));
        Ok(Encryption::Tls { verify, files: TlsFiles { pair, ca: Some(ca) } })
    }
}

/// Returns whether a host of the URL may be another machine.
pub(super) fn is_remote(config: &Config) -> bool {
    let (hosts, addresses) = (config.get_hosts(), config.get_hostaddrs());
    let is_loopback = |address: &IpAddr| address.to_canonical().is_loopback();
    let is_local = |i: usize| match (addresses.get(i), hosts.get(i)) {
        // Connections use the address, whatever the name is.
        (Some(address), _) => is_loopback(address),
        (None, Some(Host::Unix(_)) | None) => true,
        (None, Some(Host::Tcp(name))) => {
            name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|address| is_loopback(&address))
        }
    };
    !(0..hosts.len().max(addresses.len())).all(is_local)
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    fn encryption(url: &str) -> Result<Encryption, String> {
        parse("--database-url", url).map(|url| url.encryption).map_err(|error| error.to_string())
    }

    fn tls(verify: Verify, ca: Option<&str>) -> Encryption {
        let ca = ca.map_or(CaSource::System, |path| CaSource::File(PemFile::new("sslrootcert", path)));
        Encryption::Tls { verify, files: TlsFiles { pair: None, ca: Some(ca) } }
    }

    #[test]
    fn default_is_verify_full_beyond_loopback() {
        for url in [
            "postgres://u@127.0.0.1/x",
            "postgres://u@127.8.0.1/x",
            "postgres://u@[::1]/x",
            "postgres://u@Localhost/x",
            "postgres://u@%2Frun%2Fpostgresql/x",
            "host=/run/postgresql user=u",
            "host=db.example hostaddr=127.0.0.1 user=u",
            "host=localhost,127.0.0.1 user=u",
            "postgres://u@h/x?sslmode=disable",
        ] {
            assert_eq!(encryption(url), Ok(Encryption::Plain), "{url}");
        }
        for url in [
            "postgres://u@db/x",
            "postgres://u@10.0.0.1/x",
            "postgres://u@[fe80::1]/x",
            "postgres://u@localhost.example/x",
            "postgres://u@127.0.0.1,db/x",
            "host=localhost hostaddr=10.0.0.1 user=u",
            "hostaddr=10.0.0.1 user=u",
            "host=db user=u sslrootcert=system",
            "postgres://u@127.0.0.1/x?sslmode=verify-full",
            "postgres://u@127.0.0.1/x?channel_binding=require",
        ] {
            assert_eq!(encryption(url), Ok(tls(Verify::Full, None)), "{url}");
        }
    }

    #[test]
    fn files_and_modes_are_read() {
        for (url, verify) in [
            ("postgres://u@db/x?sslrootcert=/ca", Verify::Full),
            ("postgres://u@127.0.0.1/x?sslrootcert=/ca", Verify::Full),
            ("postgres://u@db/x?sslmode=verify-ca&sslrootcert=/ca&sslnegotiation=postgres", Verify::Ca),
            ("host=db user=u sslmode=require sslrootcert=/ca", Verify::Ca),
        ] {
            assert_eq!(encryption(url), Ok(tls(verify, Some("/ca"))), "{url}");
        }
        let Ok(Encryption::Tls { files, .. }) = encryption("postgres://u@db/x?sslcert=/c&sslkey=/k") else {
            panic!("there is no TLS");
        };
        let pair = files.pair.expect("it is given");
        assert_eq!(pair.certificate, PemFile::new("sslcert", "/c"));
        assert_eq!(pair.key, PemFile::new("sslkey", "/k"));
    }

    #[test]
    fn mode_that_promises_nothing_is_refused_with_what_to_write() {
        for host in ["127.0.0.1", "db"] {
            for (options, reason) in [
                ("sslmode=allow", "sslmode=allow would continue without TLS"),
                ("sslmode=prefer&sslrootcert=/ca", "sslmode=prefer would continue without TLS"),
                ("sslmode=require", "sslmode=require without sslrootcert would accept every certificate"),
                ("sslmode=require&sslrootcert=system", "sslmode=require without sslrootcert"),
                ("sslmode=verify-ca", "sslmode=verify-ca needs sslrootcert"),
                ("sslmode=verify-ca&sslrootcert=system", "sslmode=verify-ca needs sslrootcert"),
                ("sslmode=maybe", "sslmode must be verify-full, verify-ca or disable"),
            ] {
                let problem = encryption(&format!("postgres://u@{host}/x?{options}")).expect_err(options);
                assert!(problem.contains(reason) && problem.contains("write sslmode=verify-full"), "{problem}");
                assert!(!problem.contains("maybe"), "{problem}");
            }
        }
    }

    #[test]
    fn contradicting_options_are_refused() {
        for (options, reason) in [
            ("sslcert=/c", "give both or none"),
            ("sslkey=/c", "give both or none"),
            ("sslmode=disable&channel_binding=require", "channel_binding=require needs TLS"),
            ("sslnegotiation=direct", "sslnegotiation must be postgres"),
        ] {
            let problem = encryption(&format!("postgres://u@db/x?{options}")).expect_err(options);
            assert!(problem.contains(reason), "{problem}");
        }
    }
}
