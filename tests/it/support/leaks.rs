//! Secrets and contents that carry a mark, and the search for them in everything that a test has seen.

use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;

/// The mark. Each secret and each content of a test has it in every part that could be printed alone.
pub(crate) const MARK: &str = "zq7xSecret93";

/// Texts that must not contain a mark, each with where it was seen.
#[derive(Default)]
pub(crate) struct Seen {
    texts: Vec<(String, Vec<u8>)>,
    /// Secrets that cannot carry the mark: the parts of keys and tokens.
    others: Vec<(String, String)>,
}

impl Seen {
    pub(crate) fn add(&mut self, source: impl Into<String>, text: impl Into<Vec<u8>>) {
        self.texts.push((source.into(), text.into()));
    }

    pub(crate) fn add_file(&mut self, path: &std::path::Path) {
        let text = std::fs::read(path).unwrap();
        assert!(!text.is_empty(), "{} is empty", path.display());
        self.add(path.display().to_string(), text);
    }

    /// Adds a secret that has no mark: each of its parts of at least 16 characters.
    pub(crate) fn keep_secret(&mut self, name: &str, secret: &str) {
        let parts = secret.split(['.', '\n']).filter(|part| part.len() >= 16 && !part.starts_with("-----"));
        self.others.extend(parts.map(|part| (name.to_owned(), part.to_owned())));
    }

    /// Fails with each source that has a secret or a content, and with the text around it.
    pub(crate) fn assert_without_secrets(&self) {
        let marks = forms(MARK.as_bytes());
        let mut found = Vec::new();
        for (source, text) in &self.texts {
            let text = String::from_utf8_lossy(text);
            let lower = text.to_lowercase();
            // Names of headers and hosts may change their case.
            found.extend(excerpt(&lower, &MARK.to_lowercase()).map(|around| format!("{source}: {around}")));
            for (form, mark) in &marks {
                found.extend(excerpt(&text, mark).map(|around| format!("{source}: as {form}: {around}")));
            }
            for (name, secret) in &self.others {
                if text.contains(secret.as_str()) {
                    found.push(format!("{source}: a part of {name}"));
                }
            }
        }
        assert!(!self.texts.is_empty());
        assert!(found.is_empty(), "{} leaks:\n{}", found.len(), found.join("\n"));
    }
}

/// Returns the text around the first mark.
fn excerpt(text: &str, mark: &str) -> Option<String> {
    let (at, bytes) = (text.find(mark)?, text.as_bytes());
    Some(String::from_utf8_lossy(&bytes[at.saturating_sub(300)..bytes.len().min(at + 100)]).into_owned())
}

/// The forms in which programs print bytes, other than as they are.
fn forms(bytes: &[u8]) -> Vec<(&'static str, String)> {
    let mut forms = Vec::new();
    let hex = bytes.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    });
    forms.push(("hexadecimal", hex.to_uppercase()));
    forms.push(("hexadecimal", hex));
    forms.push(("a list of bytes", bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(", ")));
    for before in 0..3 {
        // The digits that do not depend on the bytes before and after.
        let encoded = BASE64_STANDARD_NO_PAD.encode([&vec![0; before], bytes].concat());
        let (first, last) = ((before * 8).div_ceil(6), (before + bytes.len()) * 8 / 6);
        forms.push(("Base64", encoded[first..last].to_owned()));
    }
    forms
}

#[test]
fn marks_are_found_in_every_form() {
    let content = format!("before {MARK} after");
    let (hex, list) = (forms(content.as_bytes())[0].1.clone(), format!("{:?}", content.as_bytes()));
    let mut texts = vec![content.clone(), content.to_uppercase(), hex, list];
    texts.extend(["", "x", "xy"].map(|before| BASE64_STANDARD_NO_PAD.encode(format!("{before}{content}"))));
    for text in texts {
        let mut seen = Seen::default();
        seen.add("here", format!("line\n{text}\nline"));
        assert!(std::panic::catch_unwind(|| seen.assert_without_secrets()).is_err(), "{text}");
    }
    let mut seen = Seen::default();
    seen.add("here", "nothing of it: zq7x, Secret93, enE3eA");
    seen.keep_secret("token", "abcdefghijklmnopqrst.short");
    seen.assert_without_secrets();
    seen.add("there", "abcdefghijklmnopqrst");
    assert!(std::panic::catch_unwind(|| seen.assert_without_secrets()).is_err());
}
