//! What TLS and tokens cost the gateway: single calls, batches and streams to a gateway without them and to one with them,
//! in turns, until Kafka has every message.

use std::fmt::Display;
use std::sync::Arc;

use msg_common::proto::WaitFor;
use msg_identities::certificates::{Ca, Files, LOCAL, caller, channel};
use msg_identities::issuer::{AUDIENCE, ISSUER, SigningKey, jwks};
use msg_stack::{Service, ServiceSpec, Stack};

use super::callers::{self, CONNECTIONS, Client, Token};
use super::cost::Watched;
use super::{Error, Load, PARTITIONS, TOPIC, line, send, settings, start};

/// How often each way to send is measured at each gateway.
const ROUNDS: usize = 5;

/// A gateway, its callers, and what was measured with it.
struct Side {
    /// The gateway is the first of them.
    watched: Watched,
    clients: Vec<Client>,
    /// Messages in one second, of each round.
    rates: Vec<f64>,
    /// Microseconds of CPU time that the gateway needed for a message, of each round.
    cpu: Vec<f64>,
}

/// A way to send.
#[derive(Clone, Copy)]
enum Way {
    Single,
    Batch,
    Stream,
}

pub(crate) async fn run(stack: &Stack, load: &Load) -> Result<(), Error> {
    let services = start(stack, "secure", &load.set).await?;
    // The row of a message is not measured.
    services.transfer.stop().await;
    let (ca, key) = (Ca::new("bench"), SigningKey::new("bench"));
    let pair = ca.sign(&LOCAL);
    let files = Files::new(&[("tls.crt", &pair.certificate), ("tls.key", &pair.key), ("keys.json", &jwks(&[&key]))]);
    let pipe = stack.pipe(TOPIC, PARTITIONS, &stack.postgres().url("secure"));
    let plan = pipe.gateway("msg-gateway-secure", msg_stack::pipe::free_port()?)?;
    let spec = settings(&load.set)?.iter().fold(plan.spec, |spec: ServiceSpec, (name, value)| spec.env(name, value));
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
    let side = |gateway, clients| {
        let watched = Watched::new(stack, &[gateway]);
        Side { watched, clients, rates: Vec::new(), cpu: Vec::new() }
    };
    let mut plain = side(&services.gateway, callers::clients(callers::connect(&services).await?, &Token::default()));
    let token = Token(Some(format!("Bearer {token}").parse()?));
    let mut with = side(&secure, callers::clients(channels, &token));

    println!("{} messages of {} bytes in each round, the median of {ROUNDS} rounds", load.messages, load.body);
    for (what, way, messages) in [
        (format!("SendMsg, {} callers", load.callers), Way::Single, load.messages / 5),
        ("BatchSendMsg".to_owned(), Way::Batch, load.messages),
        ("StreamSendMsg".to_owned(), Way::Stream, load.messages),
    ] {
        let load = Arc::new(Load { messages, ..load.clone() });
        // The first round opens the connections, and fills the caches.
        for round in 0..=ROUNDS {
            for side in [&mut plain, &mut with] {
                side.measure(way, &load, round > 0).await?;
            }
        }
        let (rate, cpu) = plain.medians();
        let (secure_rate, secure_cpu) = with.medians();
        line(&format!("{what}, without"), figures(rate, cpu));
        line(&format!("{what}, with TLS and a token"), figures(secure_rate, secure_cpu));
        line("of the throughput without", format!("{:.2}", secure_rate / rate));
    }
    secure.stop().await;
    services.gateway.stop().await;
    Ok(())
}

fn figures(rate: f64, cpu: f64) -> impl Display {
    format!("{rate:.0} messages/s, {cpu:.1} µs of the gateway's CPU for each")
}

impl Side {
    /// Sends the load once. Keeps the figures if `counted`.
    async fn measure(&mut self, way: Way, load: &Arc<Load>, counted: bool) -> Result<(), Error> {
        let meter = self.watched.start();
        let rate = match way {
            Way::Single => send::unary(&self.clients, load, load.messages, load.callers, WaitFor::Accepted).await?.rate,
            Way::Batch => send::batches(&self.clients, load).await?.rate,
            Way::Stream => send::streams(&self.clients, load).await?,
        };
        let costs = meter.stop(load.messages as f64);
        if counted {
            self.rates.push(rate);
            self.cpu.push(costs[0].cpu);
        }
        Ok(())
    }

    /// Returns the medians of the rounds, rate and CPU time, and removes the rounds.
    fn medians(&mut self) -> (f64, f64) {
        (median(&mut self.rates), median(&mut self.cpu))
    }
}

/// Returns the median of an odd number of values, and removes them.
fn median(values: &mut Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let median = values[values.len() / 2];
    values.clear();
    median
}
