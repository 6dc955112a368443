//! Takes the options for TLS out of a database URL, because the driver does not know all of them.

use std::borrow::Cow;
use std::iter::Peekable;
use std::str::CharIndices;

use percent_encoding::percent_decode_str;

/// The options for TLS, as libpq names them. An empty value counts as none.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TlsOptions {
    pub(super) mode: Option<String>,
    pub(super) root_cert: Option<String>,
    pub(super) cert: Option<String>,
    pub(super) key: Option<String>,
    pub(super) negotiation: Option<String>,
}

impl TlsOptions {
    /// Stores the value of an option for TLS. Returns `false` for any other option.
    fn set(&mut self, name: &str, value: &str) -> bool {
        let field = match name {
            "sslmode" => &mut self.mode,
            "sslrootcert" => &mut self.root_cert,
            "sslcert" => &mut self.cert,
            "sslkey" => &mut self.key,
            "sslnegotiation" => &mut self.negotiation,
            _ => return false,
        };
        *field = Some(value.to_owned()).filter(|value| !value.is_empty());
        true
    }
}

/// Returns the URL without the options for TLS, and these options. If the URL is malformed, the driver finds that in the text
/// that remains.
pub(super) fn take(url: &str) -> (String, TlsOptions) {
    let mut options = TlsOptions::default();
    let rest = if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        take_from_query(url, &mut options)
    } else {
        take_from_words(url, &mut options)
    };
    (rest.unwrap_or_else(|| url.to_owned()), options)
}

/// Reads `postgres://user:password@host/name?option=value&…` as the driver does: its credentials end at the first `@`.
fn take_from_query(url: &str, options: &mut TlsOptions) -> Option<String> {
    let host = url.find('@').map_or(0, |at| at + 1);
    let start = host + url[host..].find('?')?;
    let mut kept = Vec::new();
    for parameter in url[start + 1..].split('&') {
        let Some((name, value)) = parameter.split_once('=') else {
            kept.push(parameter);
            continue;
        };
        if !options.set(&decoded(name)?, &decoded(value)?) {
            kept.push(parameter);
        }
    }
    let separator = if kept.is_empty() { "" } else { "?" };
    Some(format!("{}{separator}{}", &url[..start], kept.join("&")))
}

fn decoded(text: &str) -> Option<Cow<'_, str>> {
    percent_decode_str(text).decode_utf8().ok()
}

/// Reads `host=a user=b password='c d'`. A backslash escapes the next character.
fn take_from_words(text: &str, options: &mut TlsOptions) -> Option<String> {
    let mut chars = text.char_indices().peekable();
    let mut kept = String::new();
    loop {
        skip_spaces(&mut chars);
        let Some(&(start, _)) = chars.peek() else { return Some(kept) };
        let name = name(text, &mut chars);
        skip_spaces(&mut chars);
        chars.next_if(|&(_, c)| c == '=')?;
        skip_spaces(&mut chars);
        let value = value(&mut chars)?;
        if !options.set(name, &value) {
            let end = chars.peek().map_or(text.len(), |&(at, _)| at);
            kept.push_str(&text[start..end]);
            kept.push(' ');
        }
    }
}

fn skip_spaces(chars: &mut Peekable<CharIndices<'_>>) {
    while chars.next_if(|(_, c)| c.is_whitespace()).is_some() {}
}

fn name<'a>(text: &'a str, chars: &mut Peekable<CharIndices<'_>>) -> &'a str {
    let position = |chars: &mut Peekable<CharIndices<'_>>| chars.peek().map_or(text.len(), |&(at, _)| at);
    let start = position(chars);
    while chars.next_if(|&(_, c)| c != '=' && !c.is_whitespace()).is_some() {}
    &text[start..position(chars)]
}

fn value(chars: &mut Peekable<CharIndices<'_>>) -> Option<String> {
    let quoted = chars.next_if(|&(_, c)| c == '\'').is_some();
    let mut value = String::new();
    loop {
        match chars.next_if(|&(_, c)| quoted || !c.is_whitespace()) {
            Some((_, '\'')) if quoted => return Some(value),
            Some((_, '\\')) => value.extend(chars.next().map(|(_, c)| c)),
            Some((_, c)) => value.push(c),
            None => return (!quoted).then_some(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(mode: &str, root_cert: &str) -> TlsOptions {
        let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        TlsOptions { mode: given(mode), root_cert: given(root_cert), ..TlsOptions::default() }
    }

    #[test]
    fn options_for_tls_are_taken_out_of_both_forms() {
        for (url, rest, expected) in [
            ("postgres://u:p@h/x", "postgres://u:p@h/x", options("", "")),
            ("postgres://u@h/x?sslmode=disable", "postgres://u@h/x", options("disable", "")),
            ("postgres://h?sslmode=a&port=1&sslmode=b", "postgres://h?port=1", options("b", "")),
            ("postgresql://h/x?a=1&sslrootcert=%2Fa%20b&b=2", "postgresql://h/x?a=1&b=2", options("", "/a b")),
            ("postgres://h/x?%73slmode=verify-ca&sslrootcert=", "postgres://h/x", options("verify-ca", "")),
            ("postgres://u:p?sslmode=disable@h/x", "postgres://u:p?sslmode=disable@h/x", options("", "")),
            ("postgres://u:p?@h/x?sslmode=disable", "postgres://u:p?@h/x", options("disable", "")),
            ("postgres://h/x?sslmode", "postgres://h/x?sslmode", options("", "")),
            ("host=h user=u", "host=h user=u ", options("", "")),
            ("host=h sslmode=disable user=u", "host=h user=u ", options("disable", "")),
            ("sslmode = 'verify-full'host=h", "host=h ", options("verify-full", "")),
            ("password='a\\' sslmode=disable' host=h", "password='a\\' sslmode=disable' host=h ", options("", "")),
            ("sslrootcert='/a \\'b' sslmode=x\\ y", "", options("x y", "/a 'b")),
            ("password=\\'a sslmode=c", "password=\\'a ", options("c", "")),
            ("password='open sslmode=disable", "password='open sslmode=disable", options("", "")),
            ("sslmode", "sslmode", options("", "")),
        ] {
            assert_eq!(take(url), (rest.to_owned(), expected), "{url}");
        }
    }
}
