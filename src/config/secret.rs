//! The value of a setting that contains a password. Its `Debug` shows nothing of it, so neither a log line nor a panic that
//! prints settings contains the password.

use std::fmt;

/// A text that is not printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Returns the text. Do not put it into an error, a log line or a label.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Secret(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Secret(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "Secret(empty)" } else { "Secret(…)" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing_of_a_secret() {
        let secret = Some(Secret::from("hunter2"));
        assert_eq!(format!("{secret:?} {:?}", Secret::default()), "Some(Secret(…)) Secret(empty)");
        assert!(!format!("{secret:#?}").contains("hunter"));
    }
}
