//! The scopes of a token: what its caller may do in addition to sending as itself and reading its own inbox.

use serde_json::{Map, Value};

use crate::auth::Rejection;

/// What the scopes of a caller allow.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Scopes {
    send: Grant,
    read: Grant,
}

/// The IDs that one kind of scope is for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Grant {
    any: bool,
    patterns: Vec<Pattern>,
}

#[derive(Debug, PartialEq, Eq)]
enum Pattern {
    /// This ID.
    Exact(String),
    /// Every ID that starts with this.
    Prefix(String),
}

impl Scopes {
    /// Reads the claim `scope` (RFC 8693: words separated by spaces) or, without it, `scp` (a list, or such words).
    /// Scopes of other services are ignored.
    pub(crate) fn of_claims(claims: &Map<String, Value>) -> Result<Self, Rejection> {
        let Some(value) = claims.get("scope").or_else(|| claims.get("scp")) else { return Ok(Scopes::default()) };
        let mut scopes = Scopes::default();
        match value {
            Value::String(words) => words.split(' ').for_each(|word| scopes.add(word)),
            Value::Array(words) => {
                for word in words {
                    scopes.add(word.as_str().ok_or(Rejection::Claims)?);
                }
            }
            _ => return Err(Rejection::Claims),
        }
        Ok(scopes)
    }

    /// Returns whether the caller may send with this `send_id`.
    pub(crate) fn may_send(&self, send_id: &str) -> bool {
        self.send.allows(send_id)
    }

    /// Returns whether the caller may read this inbox.
    pub(crate) fn may_read(&self, recv_id: &str) -> bool {
        self.read.allows(recv_id)
    }

    fn add(&mut self, scope: &str) {
        match scope {
            "msg.send.any" => self.send.any = true,
            "msg.read.any" => self.read.any = true,
            _ => {
                if let Some(pattern) = scope.strip_prefix("msg.send:") {
                    self.send.patterns.extend(Pattern::of(pattern));
                } else if let Some(pattern) = scope.strip_prefix("msg.read:") {
                    self.read.patterns.extend(Pattern::of(pattern));
                }
            }
        }
    }
}

impl Grant {
    fn allows(&self, id: &str) -> bool {
        self.any
            || self.patterns.iter().any(|pattern| match pattern {
                Pattern::Exact(allowed) => id == allowed,
                Pattern::Prefix(prefix) => id.starts_with(prefix.as_str()),
            })
    }
}

impl Pattern {
    /// Reads an ID, or a prefix with `*` at its end; `None` if `*` is elsewhere, or if there is nothing before it: such
    /// a scope has a name of its own, `msg.read.any`, so that an issuer does not grant everything by a mistake.
    fn of(text: &str) -> Option<Self> {
        let (id, is_prefix) = text.strip_suffix('*').map_or((text, false), |prefix| (prefix, true));
        if id.is_empty() || id.contains('*') {
            return None;
        }
        Some(if is_prefix { Pattern::Prefix(id.to_owned()) } else { Pattern::Exact(id.to_owned()) })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn scopes(claims: &Value) -> Result<Scopes, Rejection> {
        Scopes::of_claims(claims.as_object().expect("an object"))
    }

    #[test]
    fn scopes_are_read_from_both_claims() {
        for claims in [
            json!({ "scope": "openid msg.read:group-* msg.send.any" }),
            json!({ "scp": "openid msg.read:group-* msg.send.any" }),
            json!({ "scp": ["openid", "msg.read:group-*", "msg.send.any"] }),
        ] {
            let scopes = scopes(&claims).expect("they are good");
            assert!(scopes.may_send("anyone") && scopes.may_read("group-7") && scopes.may_read("group-"), "{claims}");
            assert!(!scopes.may_read("group") && !scopes.may_read("Group-7") && !scopes.may_read("a-group-7"));
        }
        for claims in [json!({ "scope": 1 }), json!({ "scp": [1] }), json!({ "scope": {} }), json!({ "scope": null })] {
            assert_eq!(scopes(&claims), Err(Rejection::Claims), "{claims}");
        }
    }

    #[test]
    fn scope_that_is_not_understood_allows_nothing() {
        for scope in [
            "",
            " ",
            "msg.read",
            "msg.read.anything",
            "msg.read:",
            "msg.read:*",
            "msg.read:**",
            "msg.read:*-x",
            "msg.read:a*b",
            "MSG.READ.ANY",
            "msg.read.any,",
            "msg.send:*",
            "xmsg.read.any",
        ] {
            assert_eq!(scopes(&json!({ "scope": scope })), Ok(Scopes::default()), "{scope}");
        }
    }

    #[test]
    fn a_right_to_read_is_no_right_to_send() {
        let read = scopes(&json!({ "scope": "msg.read.any msg.read:bob" })).expect("they are good");
        assert!(read.may_read("bob") && read.may_read("carol") && !read.may_send("bob"));
        let send = scopes(&json!({ "scope": "msg.send:system-* msg.send:bot" })).expect("they are good");
        assert!(send.may_send("system-1") && send.may_send("bot") && !send.may_send("bots"));
        assert!(!send.may_read("bot") && !send.may_send("alice"));
    }
}
