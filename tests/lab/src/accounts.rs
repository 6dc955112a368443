//! Owns the users as which the services log in to Kafka and PostgreSQL, with exactly the rights that `docs/rights.md`
//! lists, and the files that contain their passwords.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use msg_stack::kafka::rights;
use msg_stack::{Kafka, Operation, Postgres, Resource, Right, ServiceSpec};
use tokio_postgres::Client;

use super::error::LabError;
use super::topology::{GROUP, TOPIC};

pub(crate) const GATEWAY: &str = "gateway";
pub(crate) const TRANSFER: &str = "transfer";
pub(crate) const USERS: [&str; 2] = [GATEWAY, TRANSFER];
/// The settings that name a file, each with the setting whose value the file contains.
const FILES: [(&str, &str); 2] = [("DATABASE_URL_FILE", "DATABASE_URL"), ("KAFKA_PROPERTIES_FILE", "KAFKA_PROPERTIES")];

/// The users in Kafka and in the database.
pub(crate) struct Accounts {
    folder: PathBuf,
    /// The file with the CA of the servers, if the users log in over TLS.
    ca: Option<PathBuf>,
    /// For each file: its name, its user, and the part of the URL behind the password.
    urls: Vec<(String, &'static str, String)>,
    /// How many times each password was changed.
    database: AtomicU32,
    kafka: AtomicU32,
}

impl Accounts {
    /// Creates `folder` for the password files. With the file of a CA, the users log in over TLS.
    pub(crate) fn new(folder: PathBuf, ca: Option<PathBuf>) -> Result<Accounts, LabError> {
        fs::create_dir_all(&folder).map_err(LabError::io("create", &folder))?;
        let accounts =
            Accounts { folder, ca, urls: Vec::new(), database: AtomicU32::default(), kafka: AtomicU32::default() };
        accounts.write_kafka()?;
        Ok(accounts)
    }

    /// Creates both roles. Only they need a password. The transfers' role creates the tables.
    pub(crate) async fn create_roles(&self, server: &Postgres, database: &Client) -> Result<(), LabError> {
        let rules = server
            .data()
            .ok_or_else(|| LabError::Setting("the lab must run its own server".into()))?
            .join("pg_hba.conf");
        let old = fs::read_to_string(&rules).map_err(LabError::io("read", &rules))?;
        let (connections, others) = match self.ca {
            None => ("host", String::new()),
            Some(_) => ("hostssl", format!("hostnossl all {GATEWAY},{TRANSFER} all reject\n")),
        };
        let new = format!("{connections} all {GATEWAY},{TRANSFER} all scram-sha-256\n{others}{old}");
        fs::write(&rules, new).map_err(LabError::io("write", &rules))?;
        database.batch_execute("SELECT pg_reload_conf()").await?;
        for user in USERS {
            let password = password(user, 0);
            database.batch_execute(&format!("CREATE ROLE {user} LOGIN PASSWORD '{password}'")).await?;
        }
        let grant =
            format!("GRANT USAGE, CREATE ON SCHEMA public TO {TRANSFER}; GRANT USAGE ON SCHEMA public TO {GATEWAY}");
        Ok(database.batch_execute(&grant).await?)
    }

    /// Grants the gateways' rights on the tables, which must exist.
    pub(crate) async fn grant_tables(database: &Client) -> Result<(), LabError> {
        let grant = format!("GRANT SELECT ON messages, dead_letters, progress TO {GATEWAY}");
        Ok(database.batch_execute(&grant).await?)
    }

    /// Adds the settings with which a service logs in as `user`; `url` is the database's URL without a user.
    pub(crate) fn configure(
        &mut self,
        mut spec: ServiceSpec,
        user: &'static str,
        network: &str,
        url: &str,
    ) -> Result<ServiceSpec, LabError> {
        let name = format!("{network}.url");
        if !self.urls.iter().any(|(known, _, _)| *known == name) {
            self.urls.push((name.clone(), user, url.to_owned()));
            self.write_urls()?;
        }
        spec.env.retain(|(name, _)| name != "DATABASE_URL");
        let spec = spec.env("DATABASE_URL_FILE", self.folder.join(name).display());
        let file = self.kafka_file(user);
        let Some(ca) = &self.ca else { return Ok(spec.env("KAFKA_PROPERTIES_FILE", file.display())) };
        Ok(spec
            .env("KAFKA_SECURITY_PROTOCOL", "sasl_ssl")
            .env("KAFKA_SASL_MECHANISM", "SCRAM-SHA-512")
            .env("KAFKA_SASL_USERNAME", user)
            .env("KAFKA_SASL_PASSWORD_FILE", file.display())
            .env("KAFKA_SSL_CA_FILE", ca.display()))
    }

    /// Changes the passwords of both roles in the server, and ends their sessions. The files keep the old passwords.
    pub(crate) async fn change_database_passwords(&self, database: &Client) -> Result<(), LabError> {
        let round = self.database.fetch_add(1, Ordering::Relaxed) + 1;
        for user in USERS {
            let password = password(user, round);
            database.batch_execute(&format!("ALTER ROLE {user} PASSWORD '{password}'")).await?;
        }
        self.end_sessions(database).await
    }

    /// Ends all sessions of both roles.
    pub(crate) async fn end_sessions(&self, database: &Client) -> Result<(), LabError> {
        let end = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename IN ('{GATEWAY}', '{TRANSFER}')"
        );
        Ok(database.batch_execute(&end).await?)
    }

    /// Writes the current passwords to the files with the database's URLs.
    pub(crate) fn write_urls(&self) -> Result<(), LabError> {
        let round = self.database.load(Ordering::Relaxed);
        self.urls.iter().try_for_each(|(name, user, url)| {
            let password = password(user, round);
            replace(&self.folder.join(name), &format!("postgres://{user}:{password}@{url}\n"))
        })
    }

    /// Writes the current passwords to the files with Kafka's settings, or with nothing else.
    pub(crate) fn write_kafka(&self) -> Result<(), LabError> {
        let round = self.kafka.load(Ordering::Relaxed);
        USERS.iter().try_for_each(|user| {
            let password = password(user, round);
            let text = match self.ca {
                None => rights::login_with(user, &password).replace(',', "\n"),
                Some(_) => password,
            };
            replace(&self.kafka_file(user), &text)
        })
    }

    /// Changes the passwords of Kafka's users in the cluster, whose brokers have to run and are restarted: they end all
    /// connections, and read the passwords of PLAIN. The files keep the old passwords.
    pub(crate) async fn change_kafka_passwords(&self, kafka: &Kafka) -> Result<(), LabError> {
        let round = self.kafka.fetch_add(1, Ordering::Relaxed) + 1;
        let new = USERS.map(|user| (user, password(user, round)));
        if self.ca.is_some() {
            for (user, password) in &new {
                kafka.set_scram_password(user, password).await?;
            }
        }
        kafka.stop().await;
        for (user, password) in &new {
            kafka.set_password(user, password)?;
        }
        Ok(kafka.start().await?)
    }

    fn kafka_file(&self, user: &str) -> PathBuf {
        self.folder.join(format!("{user}.properties"))
    }
}

pub(crate) fn kafka_rights(user: &str) -> Vec<Right> {
    let topic = || Resource::Topic(TOPIC.to_owned());
    let hints = || Resource::Topic(format!("{TOPIC}-hints"));
    let group = |name: &str| Resource::Group(name.to_owned());
    let rights = match user {
        GATEWAY => vec![
            (Operation::Write, topic()),
            (Operation::DescribeConfigs, topic()),
            (Operation::Read, hints()),
            (Operation::Read, group("msg-gateway-hints")),
        ],
        _ => vec![
            (Operation::Read, topic()),
            (Operation::DescribeConfigs, topic()),
            (Operation::Read, group(GROUP)),
            (Operation::Write, hints()),
        ],
    };
    rights.into_iter().map(|(operation, resource)| Right::new(user, operation, resource)).collect()
}

/// Replaces each setting that names a file by the setting with the file's content.
pub(crate) fn without_files(mut spec: ServiceSpec) -> ServiceSpec {
    for (name, value) in &mut spec.env {
        if let Some((_, plain)) = FILES.iter().find(|(file, _)| file == name) {
            let text = fs::read_to_string(&*value).unwrap_or_default();
            (*name, *value) = ((*plain).to_owned(), text.trim().replace('\n', ","));
        }
    }
    spec
}

/// Returns the password of a user after `round` changes.
fn password(user: &str, round: u32) -> String {
    match round {
        0 => rights::password(user),
        _ => format!("{}-{round}", rights::password(user)),
    }
}

/// Replaces the file in one step. A reader gets the old or the new text, never a part.
pub(crate) fn replace(path: &Path, text: &str) -> Result<(), LabError> {
    let new = path.with_extension("new");
    fs::write(&new, text).map_err(LabError::io("write", &new))?;
    fs::rename(&new, path).map_err(LabError::io("replace", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_hold_the_passwords_of_the_last_change() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut accounts = Accounts::new(folder.path().to_owned(), None).expect("own folder");
        let spec = ServiceSpec::new("a", "b").env("DATABASE_URL", "x");
        let spec = accounts.configure(spec, TRANSFER, "near", "h:1/msg").expect("own folder");
        let plain = |spec: &ServiceSpec| {
            let spec = without_files(spec.clone());
            let value = |name: &str| spec.env.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
            (value("DATABASE_URL").expect("from its file"), value("KAFKA_PROPERTIES").expect("from its file"))
        };
        let (url, properties) = plain(&spec);
        assert_eq!(url, "postgres://transfer:transfer-secret@h:1/msg");
        assert_eq!(properties, rights::login(TRANSFER));
        accounts.kafka.store(1, Ordering::Relaxed);
        assert_eq!(plain(&spec).1, properties, "the file has the old password");
        accounts.write_kafka().expect("own folder");
        assert_eq!(plain(&spec).1, rights::login_with(TRANSFER, &password(TRANSFER, 1)));
    }

    #[test]
    fn login_over_tls_has_a_password_file_and_the_ca() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut accounts = Accounts::new(folder.path().to_owned(), Some("/ca".into())).expect("own folder");
        let spec = accounts.configure(ServiceSpec::new("a", "b"), GATEWAY, "near", "h:1/msg").expect("own folder");
        let value = |name: &str| spec.env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        assert_eq!((value("KAFKA_SECURITY_PROTOCOL"), value("KAFKA_SSL_CA_FILE")), (Some("sasl_ssl"), Some("/ca")));
        let file = value("KAFKA_SASL_PASSWORD_FILE").expect("the user has a password");
        assert_eq!(fs::read_to_string(file).expect("it was written"), password(GATEWAY, 0));
        assert_eq!(value("KAFKA_PROPERTIES_FILE"), None);
    }
}
