//! What the programs print about settings: errors, `--help`, and `Debug` of what they read. Nothing has a secret.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use msg_common::config::read;
use msg_stack::service::find_binary;
use tokio::process::Command;

use super::{DATABASE_PASSWORD, ENCODED_PASSWORD};
use crate::support::leaks::{MARK, Seen};

const PROGRAMS: [&str; 2] = ["msg-gateway", "msg-transfer"];

/// Runs a program with these settings only; returns its exit code and everything that it prints.
async fn run(program: &str, arguments: &[&str], settings: &[(&str, OsString)]) -> (Option<i32>, Vec<u8>) {
    let mut command = Command::new(find_binary(program).unwrap());
    command.args(arguments).env_clear().envs(settings.iter().map(|(name, value)| (*name, value)));
    let output = tokio::time::timeout(crate::support::WAIT_TIMEOUT, command.kill_on_drop(true).output()).await;
    let output = output.expect("it ends").unwrap();
    (output.status.code(), [output.stdout, output.stderr].concat())
}

/// Settings with a secret that the error must not repeat: wrong forms, secrets in place of files, and secrets that are given twice.
fn wrong_settings(file: &str) -> Vec<Vec<(&'static str, OsString)>> {
    let url = |text: &str| text.replace("PASSWORD", ENCODED_PASSWORD);
    let urls = [
        "postgres://app:PASSWORD@127.0.0.1:70000/x",
        "postgres://app:PASSWORD@/x",
        "postgres://app:PASSWORD@h/x?sslmode=prefer",
        "postgres://app:PASSWORD@h/x?sslmode=PASSWORD",
        "postgres://app:PASSWORD@h/x?PASSWORD=1",
        "postgres://app:PASSWORD@h/x?sslcert=PASSWORD&sslkey=PASSWORD",
        "postgres://app:PASSWORD@h/x?sslrootcert=PASSWORD",
        "http://app:PASSWORD@h/x",
        "app:PASSWORD@h/x",
        "PASSWORD",
        "host=h password=PASSWORD other=PASSWORD",
        "'postgres://app:PASSWORD@h/x'",
    ];
    let mut all: Vec<Vec<(&str, OsString)>> = Vec::new();
    for text in urls.map(url) {
        all.push(vec![("DATABASE_URL", text.into())]);
    }
    for text in [
        format!("postgres://app:{DATABASE_PASSWORD}@h/x"),
        format!("postgres://app:{MARK}@{MARK}/{MARK}@h/x"),
        format!("host=h password={DATABASE_PASSWORD}"),
    ] {
        all.push(vec![("DATABASE_URL", text.into())]);
    }
    let no_text = [b"postgres://app:\xff".as_slice(), MARK.as_bytes(), b"@h/x"].concat();
    all.push(vec![("DATABASE_URL", OsString::from_vec(no_text))]);
    let good = || ("DATABASE_URL", OsString::from(format!("postgres://app:{MARK}@127.0.0.1:1/x")));
    all.push(vec![good(), ("DATABASE_URL_FILE", file.into())]);
    all.push(vec![good(), ("DATABASE_PASSWORD_FILE", file.into())]);
    for name in [
        "DATABASE_PASSWORD_FILE",
        "KAFKA_PROPERTIES_FILE",
        "KAFKA_SASL_PASSWORD_FILE",
        "KAFKA_SSL_CA_FILE",
        "KAFKA_SSL_KEY_FILE",
        "KAFKA_SSL_KEY_PASSWORD_FILE",
        "ADMIN_TLS_CERT_FILE",
        "ADMIN_TLS_KEY_FILE",
    ] {
        for value in [MARK.to_owned(), format!("-----BEGIN PRIVATE KEY-----\n{MARK}"), format!("a:{MARK}@h")] {
            let login = ("KAFKA_SECURITY_PROTOCOL", "sasl_ssl".into());
            let pair = [("ADMIN_TLS_CERT_FILE", file.into()), ("ADMIN_TLS_KEY_FILE", file.into())];
            let url = ("DATABASE_URL", OsString::from("postgres://app@127.0.0.1:1/x"));
            let others = pair.into_iter().chain([login, url]).filter(|(other, _)| *other != name);
            all.push(others.chain([(name, value.into())]).collect());
        }
    }
    for properties in [
        "sasl.password=MARK,MARK",
        "sasl.jaas.config=MARK",
        "MARK",
        "sasl.pasword=MARK",
        "ssl.key.pem=MARK,security.protocol=ssl",
    ] {
        all.push(vec![good(), ("KAFKA_PROPERTIES", properties.replace("MARK", MARK).into())]);
    }
    all.push(vec![good(), ("KAFKA_BROKERS", format!("a:{MARK}@h:1").into())]);
    all
}

/// Settings that only the gateway has.
fn wrong_settings_of_the_gateway(file: &str) -> Vec<Vec<(&'static str, OsString)>> {
    let marked = || OsString::from(MARK);
    let url = || OsString::from(format!("postgres://app:{MARK}@127.0.0.1:1/x"));
    let tokens = |name, value: OsString| {
        let mode = [("AUTH_MODE", "jwt"), ("AUTH_JWT_ISSUER", "i"), ("AUTH_JWT_AUDIENCE", "a")];
        mode.into_iter().map(|(name, value)| (name, value.into())).chain([(name, value)]).collect()
    };
    let mut all = vec![
        vec![("DATABASE_REPLICA_URL", url())],
        vec![("DATABASE_URL", url()), ("DATABASE_REPLICA_URL", format!("postgres://a:{MARK}@h:0/x").into())],
        vec![("DATABASE_URL", url()), ("DATABASE_REPLICA_URL", url()), ("DATABASE_REPLICA_URL_FILE", file.into())],
        vec![("DATABASE_URL", url()), ("DATABASE_REPLICA_URL", url()), ("DATABASE_REPLICA_PASSWORD_FILE", file.into())],
        vec![("TLS_CERT_FILE", marked()), ("TLS_KEY_FILE", marked())],
        tokens("AUTH_JWKS_URL", format!("https://user:{MARK}@issuer/keys").into()),
        tokens("AUTH_JWKS_URL", format!("ftp://issuer/keys?key={MARK}").into()),
        tokens("AUTH_JWKS_URL", format!("{MARK} {MARK}").into()),
    ];
    for name in ["AUTH_JWT_SECRET_FILE", "AUTH_JWKS_FILE", "AUTH_JWT_PEM_FILE"] {
        // In place of the file, and as the content of a file of another kind.
        all.push(tokens(name, marked()));
        all.push(tokens(name, file.into()));
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn setting_errors_repeat_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    std::fs::write(&file, MARK).unwrap();
    let file = file.to_str().unwrap();
    let mut seen = Seen::default();
    let both =
        PROGRAMS.into_iter().flat_map(|program| wrong_settings(file).into_iter().map(move |case| (program, case)));
    let gateway = wrong_settings_of_the_gateway(file).into_iter().map(|case| ("msg-gateway", case));
    for (program, settings) in both.chain(gateway) {
        let (code, text) = run(program, &[], &settings).await;
        assert_eq!(code, Some(64), "{program} {settings:?}: {}", String::from_utf8_lossy(&text));
        seen.add(format!("{program} {:?}", settings.iter().map(|(name, _)| name).collect::<Vec<_>>()), text);
        let Some(flags) = as_flags(&settings) else { continue };
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let (code, text) = run(program, &flags, &[]).await;
        assert_eq!(code, Some(64), "{program} {flags:?}: {}", String::from_utf8_lossy(&text));
        seen.add(format!("{program} {:?} as flags", settings.iter().map(|(name, _)| name).collect::<Vec<_>>()), text);
    }
    seen.assert_without_secrets();
}

/// The same settings as flags, if all are text.
fn as_flags(settings: &[(&str, OsString)]) -> Option<Vec<String>> {
    let flag = |(name, value): &(&str, OsString)| {
        let flag = name.replace("DATABASE_REPLICA", "REPLICA").to_lowercase().replace('_', "-");
        Some(format!("--{flag}={}", value.to_str()?))
    };
    settings.iter().map(flag).collect()
}

/// Each variable of a secret, with a mark.
fn marked_variables() -> Vec<(&'static str, OsString)> {
    [
        "DATABASE_URL",
        "DATABASE_REPLICA_URL",
        "KAFKA_PROPERTIES",
        "AUTH_JWKS_URL",
        "KAFKA_SASL_USERNAME",
        "KAFKA_BROKERS",
    ]
    .into_iter()
    .map(|name| (name, OsString::from(MARK)))
    .collect()
}

#[tokio::test]
async fn help_shows_no_value_of_a_variable() {
    let mut seen = Seen::default();
    for program in PROGRAMS {
        for arguments in [&["--help"][..], &["-h"], &["help"], &["healthcheck", "--help"], &["--version"]] {
            let (code, text) = run(program, arguments, &marked_variables()).await;
            assert_eq!(code, Some(0), "{program} {arguments:?}: {}", String::from_utf8_lossy(&text));
            seen.add(format!("{program} {arguments:?}"), text);
        }
    }
    for arguments in [&["purge", "--help"][..], &["dead-letters", "replay", "--help"], &["check", "-h"]] {
        let (code, text) = run("msg-transfer", arguments, &marked_variables()).await;
        assert_eq!(code, Some(0), "{arguments:?}");
        let shown = String::from_utf8_lossy(&text).into_owned();
        assert!(shown.contains("DATABASE_URL"), "the name of the variable is shown: {shown}");
        seen.add(format!("{arguments:?}"), text);
    }
    seen.assert_without_secrets();
}

/// A panic or a log line that prints settings has no secret either.
#[test]
fn debug_of_settings_has_no_secret() {
    let mut seen = Seen::default();
    let url = format!("postgres://app:{ENCODED_PASSWORD}@127.0.0.1:1/x");
    let words = |program: &str| {
        let flags = ["--database-url", &url, "--kafka-properties"].map(str::to_owned);
        let properties = format!("sasl.password={MARK},sasl.username=me");
        let words = std::iter::once(program.to_owned()).chain(flags).chain([properties]);
        words.map(OsString::from).collect::<Vec<_>>()
    };
    let replica = [OsString::from("--replica-url"), url.as_str().into()];
    let gateway: msg_gateway::config::Config = read(words("msg-gateway").into_iter().chain(replica)).unwrap();
    let transfer: msg_transfer::cli::Cli = read(words("msg-transfer")).unwrap();
    // As clients are created, the options keep what they have read.
    transfer.config.consumer_config();
    seen.add("the gateway's settings", format!("{gateway:?} {gateway:#?}"));
    seen.add("the transfer's settings", format!("{transfer:?} {transfer:#?}"));
    seen.assert_without_secrets();
}
