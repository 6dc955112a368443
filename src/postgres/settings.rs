//! Reads the settings of a database URL, and the files that it names.

use super::DatabaseOptions;
use super::tls::Tls;
use crate::config::SettingError;
use crate::database_url::DatabaseUrl;
use crate::error::chain;

/// The settings of a URL and the content of its files.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) url: DatabaseUrl,
    pub(super) tls: Option<Tls>,
}

impl Settings {
    /// Reads the URL and its files. It may block.
    pub(super) fn load(options: &DatabaseOptions) -> Result<Self, SettingError> {
        Settings::of_url(options, options.read_url()?)
    }

    /// As `load`, after the first time. A file for TLS may be replaced at this moment, together with its pair or with others:
    /// while the files cannot be used, their previous content is used with the new URL, which may have a new password.
    pub(super) fn load_again(options: &DatabaseOptions, previous: &Settings) -> Result<Self, SettingError> {
        let url = options.read_url()?;
        let same_files = url.encryption == previous.url.encryption;
        match Settings::of_url(options, url.clone()) {
            Err(error) if same_files => {
                tracing::warn!(
                    error = chain(&error),
                    "cannot read the files for TLS to the database, using the previous ones"
                );
                Ok(Settings { url, tls: previous.tls.clone() })
            }
            loaded => loaded,
        }
    }

    fn of_url(options: &DatabaseOptions, url: DatabaseUrl) -> Result<Self, SettingError> {
        let tls = Tls::load(&url.encryption).map_err(|error| options.invalid(chain(&error)))?;
        Ok(Settings { url, tls })
    }
}
