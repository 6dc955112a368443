//! Limits that run as processes of their own, so that their cost is counted by itself: a server of the contract that
//! does nothing, and a bare gateway on tonic and librdkafka, without checks, limits and tokens.

use std::env;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use msg_common::proto::msg_gateway_server::{MsgGateway, MsgGatewayServer};
use msg_common::proto::{
    BatchSendMsgRequest, BatchSendMsgResponse, GetMaxSeqsRequest, GetMaxSeqsResponse, GetMsgStatusRequest,
    GetMsgStatusResponse, Placement, PullMsgsRequest, PullMsgsResponse, SendMsgRequest, SendMsgResponse,
    StreamSendMsgRequest, StreamSendMsgResponse, WatchMsgsRequest, WatchMsgsResponse,
};
use msg_stack::pipe::free_port;
use msg_stack::{Port, Service, ServiceSpec, Stack};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use super::callers::{self, Token};
use super::cost::Watched;
use super::librdkafka::Reporting;
use super::send::Target;
use super::{Error, PARTITIONS, until};

const START_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Args)]
pub(crate) struct LimitArgs {
    /// Address at which the contract is served
    #[arg(long)]
    listen: SocketAddr,
    /// Addresses of the brokers that get the messages. Without them, every call has the same response
    #[arg(long)]
    kafka: Option<String>,
    /// Number of partitions of the topic
    #[arg(long, default_value_t = PARTITIONS)]
    partitions: i32,
}

/// Serves until the process is stopped.
pub(crate) async fn serve(args: &LimitArgs) -> Result<(), Error> {
    let producer = args.kafka.as_deref().map(|brokers| Reporting::new(brokers, args.partitions)).transpose()?;
    let server = MsgGatewayServer::new(BareGateway { producer });
    Ok(Server::builder().add_service(server).serve(args.listen).await?)
}

/// The process of a limit.
pub(crate) struct Limit {
    pub(crate) service: Service,
    port: Port,
}

impl Limit {
    /// Starts a server that does nothing.
    pub(crate) async fn nothing(stack: &Stack) -> Result<Limit, Error> {
        Limit::start(stack, "tonic-alone", &[]).await
    }

    /// Starts a bare gateway.
    pub(crate) async fn bare_gateway(stack: &Stack, partitions: i32) -> Result<Limit, Error> {
        let partitions = partitions.to_string();
        let args = ["--kafka", stack.kafka().bootstrap(), "--partitions", &partitions];
        Limit::start(stack, "bare-gateway", &args).await
    }

    async fn start(stack: &Stack, name: &str, args: &[&str]) -> Result<Limit, Error> {
        let port = free_port()?;
        let program = env::current_exe()?.display().to_string();
        let address = port.to_string();
        let args = ["limit", "--listen", &address].into_iter().chain(args.iter().copied());
        let spec = args.fold(ServiceSpec::new(name, program), |spec: ServiceSpec, arg| spec.arg(arg));
        let service = Service::new(spec, stack.logs())?;
        service.launch()?;
        until(name, START_TIMEOUT, async || Ok(callers::connect(&address).await.is_ok())).await?;
        Ok(Limit { service, port })
    }

    /// Returns callers of the limit.
    pub(crate) async fn target(&self, stack: &Stack) -> Result<Target, Error> {
        let channels = callers::connect(&self.port.to_string()).await?;
        let clients = callers::clients(channels, &Token::default());
        Ok(Target { clients, watched: Watched::new(stack, &[&self.service]) })
    }
}

struct BareGateway {
    producer: Option<Reporting>,
}

#[tonic::async_trait]
impl MsgGateway for BareGateway {
    async fn send_msg(&self, request: Request<SendMsgRequest>) -> Result<Response<SendMsgResponse>, Status> {
        let msg = request.into_inner().msg.ok_or_else(|| Status::invalid_argument("no msg"))?;
        let placement = match &self.producer {
            Some(producer) => producer.send(msg).await.map_err(|error| Status::unavailable(error.to_string()))?,
            None => Placement {
                msg_id: "00000000-0000-8000-8000-000000000000".to_owned(),
                partition: 7,
                offset: Some(1_000_000),
                send_time: Some(SystemTime::UNIX_EPOCH.into()),
                stored: None,
            },
        };
        Ok(Response::new(SendMsgResponse { placement: Some(placement) }))
    }

    async fn batch_send_msg(&self, _: Request<BatchSendMsgRequest>) -> Result<Response<BatchSendMsgResponse>, Status> {
        Err(no_method())
    }

    type StreamSendMsgStream = tokio_stream::Empty<Result<StreamSendMsgResponse, Status>>;

    async fn stream_send_msg(
        &self,
        _: Request<Streaming<StreamSendMsgRequest>>,
    ) -> Result<Response<Self::StreamSendMsgStream>, Status> {
        Err(no_method())
    }

    async fn pull_msgs(&self, _: Request<PullMsgsRequest>) -> Result<Response<PullMsgsResponse>, Status> {
        Err(no_method())
    }

    async fn get_max_seqs(&self, _: Request<GetMaxSeqsRequest>) -> Result<Response<GetMaxSeqsResponse>, Status> {
        Err(no_method())
    }

    async fn get_msg_status(&self, _: Request<GetMsgStatusRequest>) -> Result<Response<GetMsgStatusResponse>, Status> {
        Err(no_method())
    }

    type WatchMsgsStream = tokio_stream::Empty<Result<WatchMsgsResponse, Status>>;

    async fn watch_msgs(&self, _: Request<WatchMsgsRequest>) -> Result<Response<Self::WatchMsgsStream>, Status> {
        Err(no_method())
    }
}

fn no_method() -> Status {
    Status::unimplemented("the limit serves SendMsg alone")
}
