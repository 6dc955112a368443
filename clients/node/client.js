// Sends messages, retries each until its outcome is known, and reads them back.
//
// Prints one line per event, and a JSON object with the totals as the last line.

import { readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { isDeepStrictEqual, parseArgs } from 'node:util';
import * as grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { DEADLINE_MS, TOTAL_TIMEOUT_MS, GaveUp, untilCertain } from './retry.js';

const CHANNEL_OPTIONS = {
  // Detects a dead connection, also while there are no calls.
  'grpc.keepalive_time_ms': 30_000,
  'grpc.keepalive_timeout_ms': 10_000,
  'grpc.keepalive_permit_without_calls': 1,
  // Reconnects within seconds of a gateway's restart. By default the waits between attempts grow to two minutes.
  'grpc.max_reconnect_backoff_ms': 5_000,
};

/** Makes the calls and retries them as their errors require. With a service config, gRPC retries them instead. */
class Client {
  counts = { not_sent: 0, unknown: 0 };

  constructor(address, credentials, proto, serviceConfig) {
    // int64 as text: a number in JavaScript is exact only up to 2^53.
    const options = { includeDirs: [proto], longs: String, enums: String, defaults: true };
    const { MsgGateway } = grpc.loadPackageDefinition(loadSync('msg/v1/msg.proto', options)).msg.v1;
    const channelOptions = serviceConfig ? { ...CHANNEL_OPTIONS, 'grpc.service_config': serviceConfig } : CHANNEL_OPTIONS;
    this.stub = new MsgGateway(address, credentials, channelOptions);
    this.ownLoop = !serviceConfig;
    // grpc-js does not read waitForReady from the service config.
    this.metadata = new grpc.Metadata({ waitForReady: !this.ownLoop });
  }

  #call(method, request, repeatable) {
    const once = (deadline) =>
      new Promise((resolve, reject) => {
        this.stub[method](request, this.metadata, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
      });
    return this.ownLoop ? untilCertain(once, repeatable, this.counts) : once(Date.now() + DEADLINE_MS);
  }

  /** Resolves when every in-sync Kafka replica has the message. */
  async send(msg) {
    return (await this.#call('sendMsg', { msg }, msg.clientMsgId !== '')).placement;
  }

  /** Waits until `count` messages are stored: OK means that Kafka has a message, not that it can be read yet. */
  async waitForInbox(recvId, count) {
    const giveUp = Date.now() + TOTAL_TIMEOUT_MS;
    const stored = async () => BigInt((await this.#call('getMaxSeqs', { recvIds: [recvId] }, true)).inboxes[0].maxSeq);
    while ((await stored()) < count) {
      if (Date.now() > giveUp) throw new GaveUp(`${recvId} has fewer than ${count} messages`);
      await sleep(50);
    }
  }

  /** The whole inbox, page by page. */
  async *pullAll(recvId) {
    let pageToken = '';
    do {
      const page = await this.#call('pullMsgs', { recvId, pageSize: 30, pageToken }, true);
      yield* page.msgs;
      pageToken = page.nextPageToken;
    } while (pageToken);
  }

  close() {
    this.stub.close();
  }
}

/** Adds our token to each call, over TLS only. The file is read each time, because another program renews the token. */
function withToken(credentials, file) {
  const token = grpc.credentials.createFromMetadataGenerator(async (_, callback) => {
    const metadata = new grpc.Metadata();
    try {
      metadata.set('authorization', `Bearer ${(await readFile(file, 'utf8')).trim()}`);
    } catch (error) {
      callback(error);
      return;
    }
    callback(null, metadata);
  });
  return grpc.credentials.combineChannelCredentials(credentials, token);
}

async function run(client, args) {
  const count = Number(args.count);
  const sent = [];
  for (let i = 0; i < count; i++) {
    const msg = {
      attributes: { lang: 'de' },
      recvId: args['recv-id'],
      sendId: args['send-id'],
      // Created once per message and kept with it: a retry must have the same ID.
      clientMsgId: args['no-client-msg-id'] ? '' : `msg-${i}`,
      sessionType: 'SESSION_TYPE_SINGLE',
      contentType: 'text/plain; charset=utf-8',
      content: Buffer.from(`Grüße ${i} 👋`),
    };
    // Send the next message only when the outcome of this one is known: that keeps their order.
    sent.push({ msgId: (await client.send(msg)).msgId, msg });
    console.log(`sent ${sent.length}`);
  }
  await client.waitForInbox(args['recv-id'], count);
  const pulled = [];
  for await (const stored of client.pullAll(args['recv-id'])) pulled.push(stored);
  return {
    sent: sent.length,
    pulled: pulled.length,
    same: isDeepStrictEqual(pulled.map(({ msgId, msg }) => ({ msgId, msg })), sent),
    seq_from_1: pulled.every(({ seq }, i) => seq === String(i + 1)),
    ...client.counts,
  };
}

const { values: args } = parseArgs({
  options: {
    address: { type: 'string', default: '127.0.0.1:50051' },
    // The folder proto/ of the contract.
    proto: { type: 'string', default: 'proto' },
    'send-id': { type: 'string', default: 'alice' },
    // An inbox with no other sender.
    'recv-id': { type: 'string', default: 'bob' },
    count: { type: 'string', default: '100' },
    // Fail if a retry could store a second message.
    'no-client-msg-id': { type: 'boolean', default: false },
    // The file with the service config with which gRPC retries instead of the loop.
    'service-config': { type: 'string' },
    // Connect over TLS, and verify the gateway with these CAs.
    'tls-ca': { type: 'string' },
    // Our own certificate and its key, if the gateway needs one.
    'tls-cert': { type: 'string' },
    'tls-key': { type: 'string' },
    // Our own token, over TLS.
    'token-file': { type: 'string' },
  },
});
const serviceConfig = args['service-config'] && readFileSync(args['service-config'], 'utf8');
const [ca, cert, key] = ['tls-ca', 'tls-cert', 'tls-key'].map((name) => (args[name] ? readFileSync(args[name]) : null));
let credentials = ca ? grpc.credentials.createSsl(ca, key, cert) : grpc.credentials.createInsecure();
if (args['token-file']) credentials = withToken(credentials, args['token-file']);
const client = new Client(args.address, credentials, args.proto, serviceConfig);
try {
  const totals = await run(client, args);
  console.log(JSON.stringify(totals));
  process.exitCode = totals.same && totals.seq_from_1 ? 0 : 1;
} catch (error) {
  console.error(error instanceof GaveUp ? `gave up: ${error.message}` : error);
  process.exitCode = 1;
} finally {
  client.close();
}
