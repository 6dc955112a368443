//! The audit log: callers that were refused, and commands of operators. A line says who, which method, which inbox and why.
//! It has no content, and an inbox is only in it as a hash (ADR 45).

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;

use sha2::{Digest, Sha256};
use tracing::field::display;

/// The target of the lines.
pub const TARGET: &str = "audit";

/// A call, or one entry of a call, that was refused.
#[derive(Clone, Copy, Debug)]
pub struct Refusal<'a> {
    /// The subject of the caller's credentials, if these were verified.
    pub who: Option<&'a str>,
    /// Where the connection comes from. It may be a proxy.
    pub address: Option<IpAddr>,
    /// The method of the contract, or another name for what was refused.
    pub method: &'a str,
    /// The ID of the inbox that the call is for.
    pub inbox: Option<&'a str>,
    /// The ID that the caller wanted to send as.
    pub sender: Option<&'a str>,
    /// Why, as a name that does not change.
    pub reason: &'a str,
}

impl Refusal<'_> {
    /// Writes the line.
    pub fn record(&self) {
        let Refusal { who, method, reason, .. } = self;
        let address = self.address.map(display);
        let (inbox, sender) = (self.inbox.map(hash), self.sender.map(hash));
        let (inbox, sender) = (inbox.as_deref(), sender.as_deref());
        tracing::info!(target: TARGET, who, address, method, inbox, sender, reason, "refused call");
    }
}

/// A command that an operator runs: it changes something, or shows messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The name, such as `msg-transfer purge`.
    pub method: &'static str,
    /// The ID of the inbox that the command is limited to.
    pub inbox: Option<String>,
    /// The options, without the inbox.
    pub options: String,
}

impl Command {
    /// Writes the line before the first step of the command, so that no way to end it leaves it out.
    pub fn started(&self) {
        let (who, inbox) = (operator(), self.inbox.as_deref().map(hash));
        let (method, options, inbox) = (self.method, self.options.as_str(), inbox.as_deref());
        tracing::info!(target: TARGET, who, method, inbox, options, "started command");
    }

    /// Writes the line at the end of the command.
    pub fn ended(&self, succeeded: bool) {
        let (who, method) = (operator(), self.method);
        let outcome = if succeeded { "completed" } else { "failed" };
        tracing::info!(target: TARGET, who, method, outcome, "ended command");
    }
}

/// Returns the hash that stands for an inbox or a sender: the first 16 digits of the SHA-256 of its ID.
pub fn hash(id: &str) -> String {
    let digest: [u8; 32] = Sha256::digest(id.as_bytes()).into();
    let start = digest.first_chunk().expect("it has 32 bytes");
    format!("{:016x}", u64::from_be_bytes(*start))
}

/// Returns the user and the machine of this process, as the kernel knows them. Variables such as USER can be set by anyone.
fn operator() -> String {
    let uid = fs::metadata("/proc/self").map_or_else(|_| "unknown".to_owned(), |process| process.uid().to_string());
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("uid {uid} on {}", host.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_what_sha256sum_starts_with() {
        // printf %s alice | sha256sum | cut -c1-16
        assert_eq!(hash("alice"), "2bd806c97f0e00af");
        assert_eq!(hash("").len(), 16);
    }

    #[test]
    fn operator_is_the_user_of_the_process() {
        let operator = operator();
        assert!(operator.starts_with("uid ") && operator.contains(" on ") && !operator.contains('\n'), "{operator}");
    }
}
