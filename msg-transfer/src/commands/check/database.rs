//! Checks the database: that it responds and accepts writes, the schema, the rights, and the free connections.

use msg_common::error::chain;
use msg_common::postgres::{Object, Pool, Refusal, describe_pool};

use super::{Findings, Options};
use super::{connections, nodes, settings};
use crate::config::Config;
use crate::db_error;
use crate::schema::{self, SchemaError};

/// The rights on tables that the service or a command needs. Without its rights the service cannot run.
const RIGHTS: &[(&str, &str, Need)] = &[
    ("messages", "SELECT", Need::Service),
    ("messages", "INSERT", Need::Service),
    ("messages", "DELETE", Need::Command("purge")),
    ("dead_letters", "SELECT", Need::Service),
    ("dead_letters", "INSERT", Need::Service),
    ("dead_letters", "UPDATE", Need::Command("dead-letters replay")),
    ("dead_letters", "DELETE", Need::Command("purge --dead-letters")),
    ("progress", "SELECT", Need::Service),
    ("progress", "INSERT", Need::Service),
    ("progress", "UPDATE", Need::Service),
    ("refinery_schema_history", "SELECT", Need::Service),
];

#[derive(Clone, Copy)]
enum Need {
    Service,
    Command(&'static str),
}

/// The result is NULL if the table does not exist.
const HAS_RIGHT: &str = "SELECT has_table_privilege(to_regclass($1)::oid, $2)";

const MAY_CREATE: &str = "SELECT coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)";

/// Checks the database, until it does not respond.
pub(super) async fn check(config: &Config, options: &Options, pool: &Pool, findings: &mut Findings) {
    let client = match pool.get().await {
        Ok(client) => client,
        Err(error) => {
            let error = describe_pool(&error);
            return findings.failed("database", format!("{error}; check --database-url, the network, and the server"));
        }
    };
    findings.ok("database", "it responds");
    if let Err(error) = check_server(config, options, &client, findings).await {
        findings.failed(
            "database",
            format!("it stopped responding: {}; check the server's log", db_error::describe(&error)),
        );
    }
    drop(client);
    check_schema(config, pool, findings).await;
    // Last, because it needs a second connection.
    check_direct(pool, findings).await;
}

/// Checks that no pooler shares server processes: the settings, locks and statements of a session have to stay its own.
async fn check_direct(pool: &Pool, findings: &mut Findings) {
    let Ok(client) = pool.get().await else { return };
    match pool.manager().connector().pooler(&client).await {
        Ok(None) => {
            findings.ok("sessions", "each keeps its server process: no pooler in transaction mode is in between")
        }
        Ok(Some(shown)) => findings.failed("sessions", Refusal::Pooler(shown).to_string()),
        Err(error) => {
            findings.warning("sessions", format!("cannot check whether a pooler is in between: {}", chain(&error)));
        }
    }
}

async fn check_server(
    config: &Config,
    options: &Options,
    client: &Object,
    findings: &mut Findings,
) -> Result<(), tokio_postgres::Error> {
    if settings::check(client, options.allow_unsafe_database, findings).await? {
        nodes::check(config, client, options.allow_unsafe_database, findings).await?;
    }
    check_rights(client, findings).await?;
    connections::check(config, client, findings).await
}

async fn check_rights(client: &Object, findings: &mut Findings) -> Result<(), tokio_postgres::Error> {
    let mut complete = true;
    for (table, right, need) in RIGHTS {
        let has: Option<bool> = client.query_one(HAS_RIGHT, &[table, right]).await?.get(0);
        // A missing table is reported by the check of the schema.
        if has != Some(false) {
            continue;
        }
        complete = false;
        let detail = format!("this role may not {right} on {table}: GRANT {right} ON {table} TO it");
        match need {
            Need::Service => findings.failed("rights", detail),
            Need::Command(command) => findings.warning("rights", format!("{detail}, for `{command}`")),
        }
    }
    if complete {
        findings.ok("rights", "this role has all rights on the existing tables that the service and the commands need");
    }
    Ok(())
}

async fn check_schema(config: &Config, pool: &Pool, findings: &mut Findings) {
    match schema::check(pool).await {
        Ok(found) if found == schema::needed() => {
            findings.ok("schema", format!("at version {found}, as this build needs"));
        }
        Ok(found) => {
            let needed = schema::needed();
            findings
                .ok("schema", format!("at version {found}, newer than this build's {needed} and compatible with it"));
        }
        Err(SchemaError::Behind { found, needed }) => {
            let state = format!("at version {found}, and this build needs {needed}");
            if config.no_migrate {
                return findings.failed("schema", format!("{state}: run `msg-transfer migrate`"));
            }
            if may_create(pool).await == Some(false) {
                let advice =
                    "this role may not create tables: GRANT CREATE ON SCHEMA to it, or migrate as the tables' owner";
                return findings.failed("schema", format!("{state}, and {advice}"));
            }
            findings.warning(
                "schema",
                format!("{state}: the service migrates at its start, or run `msg-transfer migrate`"),
            );
        }
        Err(error) => findings.failed("schema", chain(&error)),
    }
}

/// Reads whether this role may create tables; `None` if that cannot be read.
async fn may_create(pool: &Pool) -> Option<bool> {
    let client = pool.get().await.ok()?;
    client.query_one(MAY_CREATE, &[]).await.ok()?.try_get(0).ok()
}
