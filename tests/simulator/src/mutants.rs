//! Tests the simulator: plants one bug at a time in a copy of the machine or of a model, and counts the seeds until a
//! promise breaks.

mod table;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub use self::table::{Expected, MUTANTS, Mutant};

/// The result of a planted bug.
#[derive(Debug)]
pub enum MutantResult {
    /// The number of seeds until a promise broke, and the violation.
    After(u64, String),
    /// No promise broke within the given number of seeds.
    Never,
}

/// A copy of the machine and the simulator, as a workspace in a temporary folder.
#[derive(Debug)]
pub struct Bench {
    folder: PathBuf,
    origin: PathBuf,
}

impl Bench {
    /// Copies the two packages from the workspace at `origin`.
    pub fn new(origin: &Path) -> Result<Self, String> {
        let folder = std::env::temp_dir().join(format!("msg-transfer-mutants-{}", std::process::id()));
        let bench = Bench { folder, origin: origin.to_owned() };
        bench.copy("Cargo.lock")?;
        bench.copy("rust-toolchain.toml")?;
        bench.copy_all("msg-transfer/machine")?;
        bench.copy_all("tests/simulator")?;
        let manifest = read(&origin.join("Cargo.toml"))?;
        write(&bench.folder.join("Cargo.toml"), &workspace_of_two(&manifest))?;
        Ok(bench)
    }

    /// Plants one bug, builds, runs up to `seeds` seeds, and restores the files.
    pub fn try_one(&self, mutant: &Mutant, seeds: u64) -> Result<MutantResult, String> {
        for (file, text) in mutant.plant(&self.folder)? {
            write(&self.folder.join(path(file)), &text)?;
        }
        let found = self.build().and_then(|()| self.run(seeds));
        for edit in mutant.edits {
            self.copy(&path(edit.file))?;
        }
        found.map_err(|error| format!("{}: {error}", mutant.name))
    }

    fn build(&self) -> Result<(), String> {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--offline", "--profile", "sim", "--package", "msg-transfer-simulator"]);
        // Each mutant is built once and runs for seconds: a fast build matters more than a fast program.
        build.envs([
            ("CARGO_PROFILE_SIM_OPT_LEVEL", "1"),
            ("CARGO_PROFILE_SIM_INCREMENTAL", "true"),
            ("CARGO_PROFILE_SIM_DEBUG", "false"),
            ("RUSTFLAGS", "--cap-lints=allow"),
        ]);
        build.env("CARGO_TARGET_DIR", self.folder.join("target")).current_dir(&self.folder);
        let output = build.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }

    fn run(&self, seeds: u64) -> Result<MutantResult, String> {
        let mut run = Command::new(self.folder.join("target/sim/sim"));
        let output = run.args(["run", "--brief", "--seeds", &format!("0..{seeds}")]).stderr(Stdio::null()).output();
        let output = output.map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout);
        let last = text.lines().last().unwrap_or_default();
        if output.status.success() {
            return Ok(MutantResult::Never);
        }
        let (seed, violation) =
            last.strip_prefix("seed ").and_then(|rest| rest.split_once(": ")).ok_or("it ended badly")?;
        Ok(MutantResult::After(seed.parse::<u64>().map_err(|error| error.to_string())? + 1, violation.to_owned()))
    }

    fn copy(&self, name: &str) -> Result<(), String> {
        write(&self.folder.join(name), &read(&self.origin.join(name))?)
    }

    fn copy_all(&self, name: &str) -> Result<(), String> {
        let entries = fs::read_dir(self.origin.join(name)).map_err(|error| format!("{name}: {error}"))?;
        for entry in entries {
            let entry = entry.map_err(|error| error.to_string())?;
            let name = format!("{name}/{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() { self.copy_all(&name)? } else { self.copy(&name)? }
        }
        Ok(())
    }
}

impl Mutant {
    /// Returns the files that the mutant changes, each with its changed text. Fails if a text to be replaced does not
    /// occur exactly once in its file.
    fn plant(&self, workspace: &Path) -> Result<BTreeMap<&'static str, String>, String> {
        let mut files = BTreeMap::new();
        for edit in self.edits {
            let text = match files.remove(edit.file) {
                Some(text) => text,
                None => read(&workspace.join(path(edit.file)))?,
            };
            let count = text.matches(edit.find).count();
            if count != 1 {
                return Err(format!("{}: {:?} is {count} times in {}", self.name, edit.find, edit.file));
            }
            files.insert(edit.file, text.replacen(edit.find, edit.replace, 1));
        }
        Ok(files)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Returns the path in the workspace of a file that the table names.
fn path(file: &str) -> String {
    let folder = if file.starts_with("simulator/") { "tests" } else { "msg-transfer" };
    format!("{folder}/{file}")
}

/// Returns the workspace's manifest with two members, and without a package of its own.
fn workspace_of_two(manifest: &str) -> String {
    let mut text = String::new();
    let mut in_package = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            in_package = !line.starts_with("[workspace") && !line.starts_with("[profile");
        }
        // Those are not copied.
        if in_package || line.starts_with("default-members") {
            continue;
        }
        let members = "members = [\"msg-transfer/machine\", \"tests/simulator\"]";
        text.push_str(if line.starts_with("members") { members } else { line });
        text.push('\n');
    }
    text
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_can_be_planted() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let failed: Vec<String> = MUTANTS.iter().filter_map(|mutant| mutant.plant(&workspace).err()).collect();
        assert!(failed.is_empty(), "{}", failed.join("\n"));
    }
}
