//! What TLS and tokens cost the gateway: single calls, batches and streams to a gateway without them and to one with them,
//! in turns, until Kafka has every message.

use std::sync::Arc;

use msg_common::proto::WaitFor;
use msg_identities::certificates::{Ca, Files, LOCAL, caller, channel};
use msg_identities::issuer::{AUDIENCE, ISSUER, SigningKey, jwks};
use msg_stack::{Service, ServiceSpec, Stack};

use super::callers::{self, CONNECTIONS, Token};
use super::cost::Watched;
use super::figure::Output;
use super::rounds::{self, Side};
use super::send::Target;
use super::{Error, Load, TOPIC, settings, start};

/// A way to send.
#[derive(Clone, Copy)]
enum Way {
    Single,
    Batch,
    Stream,
}

pub(crate) async fn run(stack: &Stack, load: &Load, output: &mut Output) -> Result<(), Error> {
    let services = start(stack, "secure", load.partitions, &load.set()).await?;
    // The row of a message is not measured.
    services.transfer.stop().await;
    let (ca, key) = (Ca::new("bench"), SigningKey::new("bench"));
    let pair = ca.sign(&LOCAL);
    let files = Files::new(&[("tls.crt", &pair.certificate), ("tls.key", &pair.key), ("keys.json", &jwks(&[&key]))]);
    let pipe = stack.pipe(TOPIC, load.partitions, &stack.postgres().url("secure"));
    let plan = pipe.gateway("msg-gateway-secure", msg_stack::pipe::free_port()?)?;
    let set = load.set();
    let spec = settings(&set)?.iter().fold(plan.spec, |spec: ServiceSpec, (name, value)| spec.env(name, value));
    let spec = spec
        .env("TLS_CERT_FILE", files.text("tls.crt"))
        .env("TLS_KEY_FILE", files.text("tls.key"))
        .env("AUTH_MODE", "jwt")
        .env("AUTH_JWKS_FILE", files.text("keys.json"))
        .env("AUTH_JWT_ISSUER", ISSUER)
        .env("AUTH_JWT_AUDIENCE", AUDIENCE);
    let secure = Service::new(spec, stack.logs())?;
    secure.start().await?;

    let token = key.token("bench", "msg.send.any");
    let tls = caller(&ca.pem(), None);
    let channels = (0..CONNECTIONS).map(|_| channel(&plan.grpc.to_string(), &tls)).collect();
    let target = |gateway, clients| Target { clients, watched: Watched::new(stack, &[gateway]) };
    let clients = callers::clients(callers::connect(&services.grpc).await?, &Token::default());
    let plain = target(&services.gateway, clients);
    let token = Token(Some(format!("Bearer {token}").parse()?));
    let with = target(&secure, callers::clients(channels, &token));

    println!("{} messages of {} bytes in each round", load.messages, load.body);
    for (what, way, messages) in [
        (format!("SendMsg, {} callers", load.callers), Way::Single, load.messages / 10),
        ("BatchSendMsg".to_owned(), Way::Batch, load.messages),
        ("StreamSendMsg".to_owned(), Way::Stream, load.messages),
    ] {
        let load = Arc::new(Load { messages, ..load.clone() });
        let sides = [Side::limit("without TLS and tokens", &plain), Side::system("with TLS and a token", &with)];
        let series = rounds::measure(load.rounds, &sides, async |target| match way {
            Way::Single => target.unary(&load, messages, load.callers, WaitFor::Accepted).await,
            Way::Batch => target.batches(&load).await,
            Way::Stream => target.streams(&load).await,
        });
        output.add(&format!("{what}, security"), None, &series.await?);
    }
    secure.stop().await;
    services.gateway.stop().await;
    Ok(())
}
