//! The pages of docs/ that are rendered from the code, and names of tests and settings on other pages. A test fails
//! if a page is out of date.
//! `make docs` writes the rendered pages.

#![allow(clippy::unwrap_used, missing_docs, reason = "a failing test shows its cause by a panic")]

mod configuration;
mod metrics;

use std::fs;
use std::path::{Path, PathBuf};

/// `make docs` sets this variable, so that the pages are written and not compared.
const UPDATE: &str = "UPDATE_DOCS";

#[test]
fn configuration_page_is_rendered_from_the_code() {
    assert_page("docs/configuration.md", &configuration::page());
}

#[test]
fn metrics_page_is_rendered_from_the_code() {
    assert_page("docs/metrics.md", &metrics::page(&root()));
}

#[test]
fn readme_names_settings_that_exist() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let (_, settings) = readme.split_once("## Settings").expect("README.md has a heading for settings");
    let settings = settings.split("\n## ").next().unwrap_or(settings);
    let variables: Vec<&str> =
        settings.lines().filter(|line| line.starts_with('|')).flat_map(quoted_variables).collect();
    assert!(!variables.is_empty(), "README.md names no variable");
    let known = configuration::variables();
    let unknown: Vec<&&str> = variables.iter().filter(|name| !known.contains(**name)).collect();
    assert!(unknown.is_empty(), "README.md names variables that no service reads: {unknown:?}");
}

#[test]
fn guarantees_name_tests_that_exist() {
    assert_names_tests("docs/guarantees.md");
}

#[test]
fn security_page_names_tests_that_exist() {
    assert_names_tests("docs/security.md");
}

/// Checks that every test in the page exists, which is in backticks with its modules: `gateway::pull::name`.
fn assert_names_tests(path: &str) {
    let page = fs::read_to_string(root().join(path)).unwrap();
    let mut files = Vec::new();
    for folder in ["src", "msg-gateway/src", "msg-transfer", "msg-dev", "tests"] {
        sources(&root().join(folder), &mut files);
    }
    let texts: Vec<(String, String)> =
        files.iter().map(|file| (module(file), fs::read_to_string(file).unwrap())).collect();
    // `::1` is an address.
    let is_path = |name: &&str| name.contains("::") && !name.starts_with("::");
    let named: Vec<&str> = page.split('`').skip(1).step_by(2).filter(is_path).collect();
    assert!(!named.is_empty(), "{path} names no test");
    let exists = |name: &&str| {
        let (path, test) = name.rsplit_once("::").unwrap();
        let function = format!("fn {test}(");
        texts
            .iter()
            .any(|(module, text)| format!("::{module}").ends_with(&format!("::{path}")) && text.contains(&function))
    };
    let missing: Vec<&str> = named.into_iter().filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "{path} names tests that do not exist: {missing:#?}");
}

/// The variables in a row's first column.
fn quoted_variables(row: &str) -> impl Iterator<Item = &str> {
    let is_variable = |name: &&str| name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    row.split('|').nth(1).unwrap_or_default().split('`').skip(1).step_by(2).filter(is_variable)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The path of a source file, as Rust names modules.
fn module(file: &Path) -> String {
    let path = file.with_extension("");
    let path = path.to_str().unwrap().trim_end_matches("/mod").to_owned();
    path.replace('/', "::")
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn assert_page(path: &str, rendered: &str) {
    let file = root().join(path);
    if std::env::var_os(UPDATE).is_some_and(|value| !value.is_empty()) {
        fs::write(&file, rendered).unwrap();
    }
    let written = fs::read_to_string(&file).unwrap_or_default();
    let differs = written.lines().zip(rendered.lines()).find(|(old, new)| old != new);
    assert!(written == rendered, "{path} differs from the code: run `make docs`. First difference: {differs:#?}");
}

/// Text in the form of a table cell: on one line.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|").replace('<', "&lt;")
}
