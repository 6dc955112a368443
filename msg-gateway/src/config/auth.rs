//! Settings of who may call, and the rules between them.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use jsonwebtoken::{Algorithm, AlgorithmFamily};
use msg_common::error::chain;
use msg_common::http_client::{HttpUrl, tls_files};

use crate::auth::CertificateName;
use crate::auth::verify::TokenRules;
use crate::auth::verify::endpoint::CA_FILE;
use crate::auth::verify::source::{KeyFile, KeyFileKind};

/// What the gateway asks its callers for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AuthMode {
    /// Nothing: everyone may send and read everything
    None,
    /// A bearer token, which names the caller
    Jwt,
    /// A client certificate, which names the caller
    Mtls,
    /// A client certificate, and a bearer token, which names the caller
    #[value(name = "jwt+mtls")]
    JwtMtls,
}

/// Who may call.
#[derive(Args, Clone, Debug)]
pub struct AuthOptions {
    /// Credentials that every call needs, except health checks. Except for `none`, a caller may only send as itself and
    /// read its own inbox, unless a scope of its token says otherwise
    #[arg(long, env = "AUTH_MODE", value_enum, default_value = "none", value_name = "MODE")]
    pub auth_mode: AuthMode,
    /// File with the public keys of the token issuer in PEM form. Exactly one of the four key sources is given
    #[arg(long, env = "AUTH_JWT_PEM_FILE", value_name = "FILE")]
    pub auth_jwt_pem_file: Option<PathBuf>,
    /// File with the keys of the token issuer as a JWK set
    #[arg(long, env = "AUTH_JWKS_FILE", value_name = "FILE")]
    pub auth_jwks_file: Option<PathBuf>,
    /// HTTPS URL of the JWK set of the token issuer. It is fetched hourly, and for an unknown key at most every 10 s.
    /// While the issuer does not respond, the last keys are used for up to 24 h
    #[arg(long, env = "AUTH_JWKS_URL", value_name = "URL")]
    pub auth_jwks_url: Option<String>,
    /// File with the certificate authorities to trust for --auth-jwks-url, in PEM form, instead of the system's
    #[arg(long, env = "AUTH_JWKS_CA_FILE", value_name = "FILE")]
    pub auth_jwks_ca_file: Option<PathBuf>,
    /// File with the secret of tokens that are signed with HMAC; at least 32 bytes. A process that has the
    /// secret can make tokens: prefer public keys
    #[arg(long, env = "AUTH_JWT_SECRET_FILE", value_name = "FILE")]
    pub auth_jwt_secret_file: Option<PathBuf>,
    /// Accepted algorithms of tokens, separated by commas: RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA;
    /// with a secret HS256, HS384, HS512. A key accepts only the algorithms of its type
    /// [default: RS256,ES256,EdDSA, or HS256 with a secret]
    #[arg(
        long,
        env = "AUTH_JWT_ALGORITHMS",
        value_parser = parse_algorithm,
        value_delimiter = ',',
        value_name = "LIST"
    )]
    pub auth_jwt_algorithms: Vec<Algorithm>,
    /// Issuer of the tokens: their claim `iss` must be this text. Required for tokens
    #[arg(long, env = "AUTH_JWT_ISSUER", value_name = "TEXT")]
    pub auth_jwt_issuer: Option<String>,
    /// Audience of the tokens: their claim `aud` must be or contain this text. Required for tokens
    #[arg(long, env = "AUTH_JWT_AUDIENCE", value_name = "TEXT")]
    pub auth_jwt_audience: Option<String>,
    /// Claim of the tokens that names the caller: `send_id` of its messages, and `recv_id` of its inbox
    #[arg(long, env = "AUTH_SUBJECT_CLAIM", default_value = "sub", value_name = "CLAIM")]
    pub auth_subject_claim: String,
    /// Claim of the tokens that names the caller's tenant, for the quotas of tenants; a text. A token without it has no
    /// tenant, and only the other quotas limit its caller
    #[arg(long, env = "AUTH_TENANT_CLAIM", value_name = "CLAIM")]
    pub auth_tenant_claim: Option<String>,
    /// Name in a client certificate that names the caller. A certificate needs exactly one of this kind
    #[arg(long, env = "AUTH_MTLS_NAME", value_enum, default_value = "uri", value_name = "KIND")]
    pub auth_mtls_name: CertificateName,
}

/// Where the keys come from.
pub(crate) enum KeySource {
    File(KeyFile),
    Url { url: String, ca_file: Option<PathBuf> },
}

impl AuthMode {
    pub(crate) fn needs_token(self) -> bool {
        matches!(self, AuthMode::Jwt | AuthMode::JwtMtls)
    }

    pub(crate) fn needs_certificate(self) -> bool {
        matches!(self, AuthMode::Mtls | AuthMode::JwtMtls)
    }
}

impl AuthOptions {
    /// Returns the only key source that is given.
    pub(crate) fn key_source(&self) -> Option<KeySource> {
        let files = [
            (KeyFileKind::Pem, &self.auth_jwt_pem_file),
            (KeyFileKind::Jwks, &self.auth_jwks_file),
            (KeyFileKind::Secret, &self.auth_jwt_secret_file),
        ];
        let file = files.into_iter().find_map(|(kind, path)| Some(KeyFile { kind, path: path.clone()? }));
        let ca_file = self.auth_jwks_ca_file.clone();
        let url = self.auth_jwks_url.clone().map(|url| KeySource::Url { url, ca_file });
        file.map(KeySource::File).or(url)
    }

    /// Returns what a token has to say.
    pub(crate) fn token_rules(&self) -> TokenRules {
        TokenRules {
            algorithms: self.algorithms(),
            issuer: self.auth_jwt_issuer.clone().unwrap_or_default(),
            audience: self.auth_jwt_audience.clone().unwrap_or_default(),
            subject_claim: self.auth_subject_claim.clone(),
            tenant_claim: self.auth_tenant_claim.clone(),
        }
    }

    fn algorithms(&self) -> Vec<Algorithm> {
        match (self.auth_jwt_algorithms.as_slice(), &self.auth_jwt_secret_file) {
            ([], None) => vec![Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA],
            ([], Some(_)) => vec![Algorithm::HS256],
            (given, _) => given.to_vec(),
        }
    }

    /// Returns the flags of the key sources that are given.
    fn sources(&self) -> Vec<&'static str> {
        let all = [
            ("--auth-jwt-pem-file", self.auth_jwt_pem_file.is_some()),
            ("--auth-jwks-file", self.auth_jwks_file.is_some()),
            ("--auth-jwks-url", self.auth_jwks_url.is_some()),
            ("--auth-jwt-secret-file", self.auth_jwt_secret_file.is_some()),
        ];
        all.into_iter().filter(|(_, is_given)| *is_given).map(|(flag, _)| flag).collect()
    }

    /// Returns a line for each problem. `asks_certificates` says whether the listener asks callers for a certificate.
    pub(super) fn problems(&self, asks_certificates: bool) -> Vec<String> {
        let mut problems = Vec::new();
        if self.auth_mode.needs_certificate() && !asks_certificates {
            problems.push("--auth-mode needs client certificates: give --tls-client-ca-file".to_owned());
        }
        let sources = self.sources();
        if !self.auth_mode.needs_token() {
            // An operator who gives keys expects that they protect something.
            let claim = self.auth_tenant_claim.as_ref().map(|_| "--auth-tenant-claim");
            let unused = sources.iter().copied().chain(claim);
            let unused = unused.map(|flag| format!("{flag} has no effect: --auth-mode asks for no token"));
            problems.extend(unused);
            return problems;
        }
        for (flag, value) in
            [("--auth-jwt-issuer", &self.auth_jwt_issuer), ("--auth-jwt-audience", &self.auth_jwt_audience)]
        {
            // A variable may be set and empty. A token without an issuer or audience must not fit it.
            if value.as_ref().is_none_or(String::is_empty) {
                problems.push(format!("{flag} is missing: --auth-mode asks for tokens"));
            }
        }
        if self.auth_subject_claim.is_empty() {
            problems
                .push("--auth-subject-claim is empty: give the claim that names the caller, such as sub".to_owned());
        }
        if self.auth_tenant_claim.as_ref().is_some_and(String::is_empty) {
            problems.push("--auth-tenant-claim is empty: give the claim that names the tenant".to_owned());
        }
        match sources.as_slice() {
            [_] => {}
            [] => problems.push(
                "--auth-mode asks for tokens: give their keys with --auth-jwt-pem-file, --auth-jwks-file, \
                 --auth-jwks-url or --auth-jwt-secret-file"
                    .to_owned(),
            ),
            several => problems.push(format!("{} are given: give one source of keys", several.join(" and "))),
        }
        if self.auth_jwks_ca_file.is_some() && self.auth_jwks_url.is_none() {
            problems.push("--auth-jwks-ca-file is given without --auth-jwks-url".to_owned());
        }
        problems.extend(self.algorithm_problem());
        if problems.is_empty() {
            problems.extend(self.key_problems());
        }
        problems
    }

    fn algorithm_problem(&self) -> Option<String> {
        let hmac = self.auth_jwt_algorithms.iter().filter(|algorithm| algorithm.family() == AlgorithmFamily::Hmac);
        let (hmac, all) = (hmac.count(), self.auth_jwt_algorithms.len());
        if self.auth_jwt_secret_file.is_some() {
            let text = "--auth-jwt-algorithms must be of HS256, HS384, HS512: --auth-jwt-secret-file is given";
            (hmac < all).then(|| text.to_owned())
        } else {
            let text = "--auth-jwt-algorithms has an algorithm with a secret, which needs --auth-jwt-secret-file";
            (hmac > 0).then(|| text.to_owned())
        }
    }

    /// Reads the keys, so that a bad file is found at the start.
    fn key_problems(&self) -> Vec<String> {
        let (Some(flag), Some(source)) = (self.sources().into_iter().next(), self.key_source()) else {
            return Vec::new();
        };
        match source {
            KeySource::File(file) => {
                let problem = file.load(&self.algorithms()).err();
                problem.iter().map(|error| format!("{flag}: {}", chain(error))).collect()
            }
            KeySource::Url { url, ca_file } => match HttpUrl::new(&url) {
                Err(error) => vec![format!("{flag} {}", chain(&error))],
                Ok(url) if url.is_tls() => tls_files(CA_FILE, ca_file).problems(),
                Ok(_) => Vec::new(),
            },
        }
    }
}

fn parse_algorithm(name: &str) -> Result<Algorithm, String> {
    Algorithm::from_str(name.trim()).map_err(|_| "is no algorithm of tokens that is supported".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Settings {
        #[command(flatten)]
        auth: AuthOptions,
    }

    fn problems(words: &str) -> Vec<String> {
        let words = std::iter::once("x").chain(words.split_whitespace());
        Settings::try_parse_from(words).expect("they have the right form").auth.problems(false)
    }

    const TOKENS: &str = "--auth-mode jwt --auth-jwt-issuer i --auth-jwt-audience a";

    #[test]
    fn tokens_need_an_issuer_an_audience_and_one_key_source() {
        let flags = |words: &str| {
            let first = |problem: &String| problem.split(' ').next().map(str::to_owned);
            problems(words).iter().filter_map(first).collect::<Vec<_>>()
        };
        assert!(problems("").is_empty());
        assert_eq!(flags("--auth-mode jwt"), ["--auth-jwt-issuer", "--auth-jwt-audience", "--auth-mode"]);
        assert_eq!(flags(TOKENS), ["--auth-mode"]);
        let empty = "--auth-mode jwt --auth-jwt-issuer= --auth-jwt-audience= --auth-subject-claim=";
        let empty = flags(&format!("{empty} --auth-jwks-url http://127.0.0.1/"));
        assert_eq!(empty, ["--auth-jwt-issuer", "--auth-jwt-audience", "--auth-subject-claim"]);
        assert_eq!(flags(&format!("{TOKENS} --auth-jwks-url http://127.0.0.1/")), Vec::<String>::new());
        let two = problems(&format!("{TOKENS} --auth-jwks-url http://127.0.0.1/ --auth-jwt-secret-file s"));
        assert_eq!(two, ["--auth-jwks-url and --auth-jwt-secret-file are given: give one source of keys"]);
        let plain = problems(&format!("{TOKENS} --auth-jwks-url http://issuer.example.org/"));
        assert!(plain.len() == 1 && plain[0].starts_with("--auth-jwks-url must start with https://"), "{plain:?}");
        let missing = problems(&format!("{TOKENS} --auth-jwks-file /nowhere/at/all"));
        assert!(missing.len() == 1 && missing[0].starts_with("--auth-jwks-file: cannot read"), "{missing:?}");
    }

    #[test]
    fn secrets_and_public_keys_have_algorithms_of_their_own() {
        let words = |rest: &str| problems(&format!("{TOKENS} {rest}"));
        let mixed = words("--auth-jwks-url http://127.0.0.1/ --auth-jwt-algorithms RS256,HS256");
        assert!(mixed.len() == 1 && mixed[0].contains("needs --auth-jwt-secret-file"), "{mixed:?}");
        let mixed = words("--auth-jwt-secret-file s --auth-jwt-algorithms HS256,RS256");
        assert!(mixed.len() == 1 && mixed[0].contains("must be of HS256"), "{mixed:?}");
        assert!(words("--auth-jwks-url http://127.0.0.1/ --auth-jwt-algorithms PS512,EdDSA,ES384").is_empty());
        for unknown in ["none", "ES512", "rs256", ""] {
            let words = ["x", "--auth-jwt-algorithms", unknown];
            assert!(Settings::try_parse_from(words).is_err(), "{unknown}");
        }
    }

    #[test]
    fn keys_without_a_mode_are_a_problem() {
        let unused = problems("--auth-jwks-file x");
        assert_eq!(unused, ["--auth-jwks-file has no effect: --auth-mode asks for no token"]);
        let claim = problems("--auth-tenant-claim org");
        assert_eq!(claim, ["--auth-tenant-claim has no effect: --auth-mode asks for no token"]);
        assert!(problems(&format!("{TOKENS} --auth-tenant-claim=")).iter().any(|one| one.contains("is empty")));
        let certificates = problems("--auth-mode mtls");
        assert!(certificates.len() == 1 && certificates[0].contains("--tls-client-ca-file"), "{certificates:?}");
    }
}
