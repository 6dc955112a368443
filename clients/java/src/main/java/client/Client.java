package client;

import com.google.gson.Gson;
import com.google.protobuf.ByteString;
import io.grpc.CallCredentials;
import io.grpc.ChannelCredentials;
import io.grpc.CompositeChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.TlsChannelCredentials;
import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Executor;
import java.util.concurrent.TimeUnit;
import java.util.function.Function;
import java.util.function.Supplier;
import msg.v1.GetMaxSeqsRequest;
import msg.v1.Msg;
import msg.v1.MsgGatewayGrpc;
import msg.v1.MsgGatewayGrpc.MsgGatewayBlockingStub;
import msg.v1.Placement;
import msg.v1.PullMsgsRequest;
import msg.v1.PullMsgsResponse;
import msg.v1.SendMsgRequest;
import msg.v1.SessionType;
import msg.v1.StoredMsg;

/**
 * Sends messages, retries each until its outcome is known, and reads them back.
 *
 * <p>Prints one line per event, and a JSON object with the totals as the last line.
 */
public final class Client implements AutoCloseable {
  private final ManagedChannel channel;
  private final MsgGatewayBlockingStub stub;
  private final boolean ownLoop;
  private final Retry retry = new Retry();

  /** With a service config (JSON), gRPC retries the calls; without it, our own loop does. */
  private Client(String address, ChannelCredentials credentials, String serviceConfig) {
    ManagedChannelBuilder<?> builder =
        Grpc.newChannelBuilder(address, credentials)
            // Detects a dead connection, also while there are no calls.
            .keepAliveTime(30, TimeUnit.SECONDS)
            .keepAliveTimeout(10, TimeUnit.SECONDS)
            .keepAliveWithoutCalls(true);
    if (serviceConfig != null) {
      @SuppressWarnings("unchecked")
      Map<String, ?> config = new Gson().fromJson(serviceConfig, Map.class);
      builder.defaultServiceConfig(config).enableRetry();
    }
    channel = builder.build();
    stub = MsgGatewayGrpc.newBlockingStub(channel);
    ownLoop = serviceConfig == null;
  }

  private <T> T call(boolean repeatable, Function<MsgGatewayBlockingStub, T> method) throws InterruptedException {
    // A deadline counts from its creation, so each call gets its own.
    Supplier<T> once = () -> method.apply(stub.withDeadlineAfter(Retry.DEADLINE_SECONDS, TimeUnit.SECONDS));
    // By default the waits between attempts to connect grow to two minutes; our backoff replaces them.
    return ownLoop ? retry.untilCertain(repeatable, channel::resetConnectBackoff, once) : once.get();
  }

  /** Returns when every in-sync Kafka replica has the message. */
  private Placement send(Msg msg) throws InterruptedException {
    SendMsgRequest request = SendMsgRequest.newBuilder().setMsg(msg).build();
    return call(!msg.getClientMsgId().isEmpty(), stub -> stub.sendMsg(request)).getPlacement();
  }

  /** Waits until `count` messages are stored: OK means that Kafka has a message, not that it can be read yet. */
  private void waitForInbox(String recvId, int count) throws InterruptedException {
    long giveUp = System.nanoTime() / 1_000_000 + Retry.TOTAL_TIMEOUT_MS;
    GetMaxSeqsRequest request = GetMaxSeqsRequest.newBuilder().addRecvIds(recvId).build();
    while (call(true, stub -> stub.getMaxSeqs(request)).getInboxes(0).getMaxSeq() < count) {
      if (System.nanoTime() / 1_000_000 > giveUp) {
        throw new Retry.GaveUp(recvId + " has fewer than " + count + " messages", false, null);
      }
      Thread.sleep(50);
    }
  }

  /** The whole inbox, page by page. */
  private List<StoredMsg> pullAll(String recvId) throws InterruptedException {
    List<StoredMsg> msgs = new ArrayList<>();
    String pageToken = "";
    do {
      PullMsgsRequest request =
          PullMsgsRequest.newBuilder().setRecvId(recvId).setPageSize(30).setPageToken(pageToken).build();
      PullMsgsResponse page = call(true, stub -> stub.pullMsgs(request));
      msgs.addAll(page.getMsgsList());
      pageToken = page.getNextPageToken();
    } while (!pageToken.isEmpty());
    return msgs;
  }

  @Override
  public void close() {
    channel.shutdownNow();
  }

  private Map<String, Object> run(Options options) throws InterruptedException {
    List<Msg> sent = new ArrayList<>();
    List<String> ids = new ArrayList<>();
    for (int i = 0; i < options.count; i++) {
      Msg msg =
          Msg.newBuilder()
              .setRecvId(options.recvId)
              .setSendId(options.sendId)
              // Created once per message and kept with it: a retry must have the same ID.
              .setClientMsgId(options.noClientMsgId ? "" : "msg-" + i)
              .setSessionType(SessionType.SESSION_TYPE_SINGLE)
              .setContentType("text/plain; charset=utf-8")
              .setContent(ByteString.copyFromUtf8("Grüße " + i + " 👋"))
              .putAttributes("lang", "de")
              .build();
      // Send the next message only when the outcome of this one is known: that keeps their order.
      ids.add(send(msg).getMsgId());
      sent.add(msg);
      System.out.println("sent " + sent.size());
    }
    waitForInbox(options.recvId, options.count);
    List<StoredMsg> pulled = pullAll(options.recvId);
    boolean same = pulled.stream().map(StoredMsg::getMsg).toList().equals(sent)
        && pulled.stream().map(StoredMsg::getMsgId).toList().equals(ids);
    boolean seqFrom1 = true;
    for (int i = 0; i < pulled.size(); i++) {
      seqFrom1 &= pulled.get(i).getSeq() == i + 1;
    }
    Map<String, Object> totals = new LinkedHashMap<>();
    totals.put("sent", sent.size());
    totals.put("pulled", pulled.size());
    totals.put("same", same);
    totals.put("seq_from_1", seqFrom1);
    totals.put("not_sent", retry.notSent);
    totals.put("unknown", retry.unknown);
    return totals;
  }

  /** Adds our token to each call. The file is read each time, because another program renews the token. */
  private static final class TokenFile extends CallCredentials {
    private static final Metadata.Key<String> AUTHORIZATION =
        Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

    private final Path file;

    TokenFile(Path file) {
      this.file = file;
    }

    @Override
    public void applyRequestMetadata(RequestInfo request, Executor executor, MetadataApplier applier) {
      executor.execute(
          () -> {
            Metadata headers = new Metadata();
            try {
              headers.put(AUTHORIZATION, "Bearer " + Files.readString(file).strip());
            } catch (IOException error) {
              applier.fail(Status.UNAVAILABLE.withDescription("cannot read the token").withCause(error));
              return;
            }
            applier.apply(headers);
          });
    }
  }

  private static final class Options {
    String address = "127.0.0.1:50051";
    String sendId = "alice";
    // An inbox with no other sender.
    String recvId = "bob";
    int count = 100;
    // Fail if a retry could store a second message.
    boolean noClientMsgId;
    // The service config with which gRPC retries instead of the loop.
    String serviceConfig;
    // The CAs that the gateway is verified with, over TLS; our own certificate and its key, if the gateway needs one.
    File tlsCa;
    File tlsCert;
    File tlsKey;
    // Our own token.
    Path tokenFile;

    Options(String[] args) throws IOException {
      for (int i = 0; i < args.length; i++) {
        switch (args[i]) {
          case "--address" -> address = args[++i];
          case "--send-id" -> sendId = args[++i];
          case "--recv-id" -> recvId = args[++i];
          case "--count" -> count = Integer.parseInt(args[++i]);
          case "--no-client-msg-id" -> noClientMsgId = true;
          case "--service-config" -> serviceConfig = Files.readString(Path.of(args[++i]));
          case "--tls-ca" -> tlsCa = new File(args[++i]);
          case "--tls-cert" -> tlsCert = new File(args[++i]);
          case "--tls-key" -> tlsKey = new File(args[++i]);
          case "--token-file" -> tokenFile = Path.of(args[++i]);
          default -> throw new IllegalArgumentException("unknown option " + args[i]);
        }
      }
    }

    ChannelCredentials credentials() throws IOException {
      if (tlsCa == null) {
        if (tokenFile != null) {
          throw new IllegalArgumentException("a token is sent over TLS only: give --tls-ca");
        }
        return InsecureChannelCredentials.create();
      }
      TlsChannelCredentials.Builder tls = TlsChannelCredentials.newBuilder().trustManager(tlsCa);
      ChannelCredentials own = (tlsCert == null ? tls : tls.keyManager(tlsCert, tlsKey)).build();
      return tokenFile == null ? own : CompositeChannelCredentials.create(own, new TokenFile(tokenFile));
    }
  }

  public static void main(String[] args) throws Exception {
    Options options = new Options(args);
    Map<String, Object> totals;
    try (Client client = new Client(options.address, options.credentials(), options.serviceConfig)) {
      totals = client.run(options);
    } catch (Retry.GaveUp error) {
      System.err.println("gave up: " + error.getMessage());
      System.exit(1);
      return;
    }
    System.out.println(new Gson().toJson(totals));
    System.exit(totals.get("same").equals(true) && totals.get("seq_from_1").equals(true) ? 0 : 1);
  }
}
