//! A greedy caller: it always has more to send than it gets through. It is a process of its own, so that its callers and
//! the measured ones do not share a runtime, and it runs with the lowest priority: its CPU time would be another machine's.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use clap::ValueEnum;
use futures_util::future::try_join_all;
use msg_common::proto::msg_gateway_client::MsgGatewayClient;
use msg_common::proto::{BatchSendMsgRequest, Msg, StreamSendEntry, StreamSendMsgRequest};
use msg_stack::{Service, ServiceSpec, Stack};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::load::Load;
use super::{Error, callers};

/// Messages of a batch, and of one request on a stream.
const BATCH: usize = 500;
/// Messages without a result on one stream: MAX_STREAM_INFLIGHT_MSGS.
const WINDOW: usize = 1000;
/// The delay before a rejected batch is sent again. The gateway's own delays are 50 to 150 ms.
const RETRY: Duration = Duration::from_millis(100);

/// How the greedy caller sends.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Way {
    Streams,
    Batches,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct GreedyArgs {
    /// Address of the gateway
    #[arg(long)]
    pub(crate) gateway: String,
    #[arg(long)]
    pub(crate) way: Way,
    /// Number of messages that it tries to have in flight
    #[arg(long)]
    pub(crate) wanted: usize,
    /// Number of inboxes that it sends to
    #[arg(long)]
    pub(crate) inboxes: usize,
    /// Bytes of each message body
    #[arg(long)]
    pub(crate) body: usize,
}

impl GreedyArgs {
    /// Starts the greedy caller.
    pub(crate) fn start(&self, stack: &Stack) -> Result<Service, Error> {
        let (program, way) = (std::env::current_exe()?.display().to_string(), self.way.to_possible_value());
        let way = way.as_ref().map_or("", clap::builder::PossibleValue::get_name).to_owned();
        let (wanted, inboxes, body) = (self.wanted.to_string(), self.inboxes.to_string(), self.body.to_string());
        let spec =
            ServiceSpec::new(format!("greedy-{way}"), "/usr/bin/nice").arg("-n").arg("19").arg(program).arg("greedy");
        let args = [("--gateway", &self.gateway), ("--way", &way), ("--wanted", &wanted), ("--inboxes", &inboxes)];
        let args = args.into_iter().chain([("--body", &body)]);
        let spec = args.fold(spec, |spec, (flag, value)| spec.arg(flag).arg(value));
        let service = Service::new(spec, stack.logs())?;
        service.launch()?;
        Ok(service)
    }
}

/// Sends until the process is stopped. All of its callers share a connection.
pub(crate) async fn run(args: &GreedyArgs) -> Result<(), Error> {
    let channel = Channel::from_shared(format!("http://{}", args.gateway))?.connect().await?;
    let client = MsgGatewayClient::new(channel).max_decoding_message_size(8 << 20);
    let each = match args.way {
        Way::Streams => WINDOW,
        Way::Batches => BATCH,
    };
    let load = Load::of(args.inboxes, args.body);
    let body = Bytes::from(load.random_body());
    let callers = (0..args.wanted.div_ceil(each)).map(|number| {
        let caller = Caller {
            client: client.clone(),
            load: load.clone(),
            body: body.clone(),
            sender: format!("greedy {number} {:?}", SystemTime::now()),
        };
        async move {
            match args.way {
                Way::Streams => caller.stream().await,
                Way::Batches => caller.batches().await,
            }
        }
    });
    try_join_all(callers).await?;
    Ok(())
}

struct Caller {
    client: MsgGatewayClient<Channel>,
    load: Load,
    body: Bytes,
    sender: String,
}

impl Caller {
    fn msg(&self, n: usize) -> Msg {
        callers::msg(&self.load, &self.body, &self.sender, n)
    }

    async fn batches(self) -> Result<(), Error> {
        let mut first = 0;
        loop {
            let msgs = (first..first + BATCH).map(|n| self.msg(n)).collect();
            match self.client.clone().batch_send_msg(BatchSendMsgRequest { msgs, wait_for: 0 }).await {
                Ok(_) => first += BATCH,
                Err(status) if status.code() == Code::ResourceExhausted => tokio::time::sleep(RETRY).await,
                Err(status) => return Err(status.into()),
            }
        }
    }

    async fn stream(self) -> Result<(), Error> {
        let (requests, received) = mpsc::channel(1);
        let window = Semaphore::new(WINDOW);
        let send = async {
            for first in (0..).step_by(BATCH) {
                let permits = window.acquire_many(BATCH as u32).await;
                permits.map_err(|_| Status::cancelled("the stream has ended"))?.forget();
                let entry = |n: usize| StreamSendEntry { correlation_id: n as u64, msg: Some(self.msg(n)) };
                let entries = (first..first + BATCH).map(entry).collect();
                let request = StreamSendMsgRequest { entries, wait_for: 0 };
                requests.send(request).await.map_err(|_| "the stream has ended")?;
            }
            Ok::<_, Error>(())
        };
        let receive = async {
            let mut client = self.client.clone();
            let mut responses = client.stream_send_msg(ReceiverStream::new(received)).await?.into_inner();
            while let Some(response) = responses.message().await? {
                window.add_permits(response.results.len());
            }
            Ok::<_, Error>(())
        };
        tokio::try_join!(send, receive)?;
        Ok(())
    }
}
