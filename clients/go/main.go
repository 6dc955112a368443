// Sends messages, retries each until its outcome is known, and reads them back.
//
// Prints one line per event, and a JSON object with the totals as the last line.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/proto"

	msgv1 "example.com/msg-gateway-client/gen/msg/v1"
)

// Only msg/v1/msg.proto is generated: the package of google/rpc/status.proto is genproto's.
//go:generate mkdir -p gen
//go:generate protoc -I proto --go_out=gen --go-grpc_out=gen msg/v1/msg.proto

var dialOptions = []grpc.DialOption{
	// Detects a dead connection, also while there are no calls.
	grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second, PermitWithoutStream: true}),
	// Reconnects within seconds of a gateway's restart. By default the waits between attempts grow to two minutes.
	grpc.WithConnectParams(grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: time.Second, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
		MinConnectTimeout: 5 * time.Second,
	}),
}

// client makes the calls and retries them as their errors require. With a service config, gRPC retries them instead.
type client struct {
	stub    msgv1.MsgGatewayClient
	ownLoop bool
	counts  counts
}

func call[T any](ctx context.Context, c *client, repeatable bool, method func(context.Context) (T, error)) (T, error) {
	if c.ownLoop {
		return untilCertain(ctx, repeatable, &c.counts, method)
	}
	return once(ctx, method)
}

// send returns when every in-sync Kafka replica has the message.
func (c *client) send(ctx context.Context, msg *msgv1.Msg) (*msgv1.Placement, error) {
	answer, err := call(ctx, c, msg.ClientMsgId != "", func(ctx context.Context) (*msgv1.SendMsgResponse, error) {
		return c.stub.SendMsg(ctx, &msgv1.SendMsgRequest{Msg: msg})
	})
	return answer.GetPlacement(), err
}

// waitForInbox waits until `count` messages are stored: OK means that Kafka has a message, not that it can be read yet.
func (c *client) waitForInbox(ctx context.Context, recvID string, count int) error {
	giveUp := time.Now().Add(totalTimeout)
	for {
		answer, err := call(ctx, c, true, func(ctx context.Context) (*msgv1.GetMaxSeqsResponse, error) {
			return c.stub.GetMaxSeqs(ctx, &msgv1.GetMaxSeqsRequest{RecvIds: []string{recvID}})
		})
		if err != nil {
			return err
		}
		if answer.Inboxes[0].MaxSeq >= int64(count) {
			return nil
		}
		if time.Now().After(giveUp) {
			return fmt.Errorf("gave up: %s has fewer than %d messages", recvID, count)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// pullAll reads the whole inbox, page by page.
func (c *client) pullAll(ctx context.Context, recvID string) ([]*msgv1.StoredMsg, error) {
	var msgs []*msgv1.StoredMsg
	request := &msgv1.PullMsgsRequest{RecvId: recvID, PageSize: 30}
	for {
		page, err := call(ctx, c, true, func(ctx context.Context) (*msgv1.PullMsgsResponse, error) {
			return c.stub.PullMsgs(ctx, request)
		})
		if err != nil {
			return nil, err
		}
		msgs = append(msgs, page.Msgs...)
		if page.NextPageToken == "" {
			return msgs, nil
		}
		request.PageToken = page.NextPageToken
	}
}

type options struct {
	address, sendID, recvID, serviceConfig string
	tlsCA, tlsCert, tlsKey, tokenFile      string
	count                                  int
	noClientMsgID                          bool
}

// credentials returns those of plain text, or of TLS if the CA of the gateway is given; with a certificate of our own if the
// gateway needs one.
func (opts options) credentials() (credentials.TransportCredentials, error) {
	if opts.tlsCA == "" {
		return insecure.NewCredentials(), nil
	}
	ca, err := os.ReadFile(opts.tlsCA)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	if !config.RootCAs.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s has no certificate", opts.tlsCA)
	}
	if opts.tlsCert != "" {
		own, err := tls.LoadX509KeyPair(opts.tlsCert, opts.tlsKey)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{own}
	}
	return credentials.NewTLS(config), nil
}

// tokenFile adds our token to each call. The file is read each time, because another program renews the token.
type tokenFile string

func (file tokenFile) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := os.ReadFile(string(file))
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + strings.TrimSpace(string(token))}, nil
}

// RequireTransportSecurity makes gRPC send the token over TLS only.
func (tokenFile) RequireTransportSecurity() bool { return true }

type totals struct {
	Sent     int  `json:"sent"`
	Pulled   int  `json:"pulled"`
	Same     bool `json:"same"`
	SeqFrom1 bool `json:"seq_from_1"`
	counts
}

func run(ctx context.Context, opts options) (*totals, error) {
	transport, err := opts.credentials()
	if err != nil {
		return nil, err
	}
	dial := append(dialOptions, grpc.WithTransportCredentials(transport))
	if opts.tokenFile != "" {
		dial = append(dial, grpc.WithPerRPCCredentials(tokenFile(opts.tokenFile)))
	}
	if opts.serviceConfig != "" {
		config, err := os.ReadFile(opts.serviceConfig)
		if err != nil {
			return nil, err
		}
		dial = append(dial, grpc.WithDefaultServiceConfig(string(config)))
	}
	conn, err := grpc.NewClient(opts.address, dial...)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	c := &client{stub: msgv1.NewMsgGatewayClient(conn), ownLoop: opts.serviceConfig == ""}

	var sent []*msgv1.StoredMsg
	for i := range opts.count {
		msg := &msgv1.Msg{
			RecvId: opts.recvID,
			SendId: opts.sendID,
			// Created once per message and kept with it: a retry must have the same ID.
			ClientMsgId: fmt.Sprintf("msg-%d", i),
			SessionType: msgv1.SessionType_SESSION_TYPE_SINGLE,
			ContentType: "text/plain; charset=utf-8",
			Content:     fmt.Appendf(nil, "Grüße %d 👋", i),
			Attributes:  map[string]string{"lang": "de"},
		}
		if opts.noClientMsgID {
			msg.ClientMsgId = ""
		}
		// Send the next message only when the outcome of this one is known: that keeps their order.
		placement, err := c.send(ctx, msg)
		if err != nil {
			return nil, err
		}
		sent = append(sent, &msgv1.StoredMsg{MsgId: placement.MsgId, Msg: msg})
		fmt.Printf("sent %d\n", len(sent))
	}
	if err := c.waitForInbox(ctx, opts.recvID, opts.count); err != nil {
		return nil, err
	}
	pulled, err := c.pullAll(ctx, opts.recvID)
	if err != nil {
		return nil, err
	}
	result := &totals{Sent: len(sent), Pulled: len(pulled), Same: len(sent) == len(pulled), SeqFrom1: true, counts: c.counts}
	for i, stored := range pulled {
		result.SeqFrom1 = result.SeqFrom1 && stored.Seq == int64(i+1)
		result.Same = result.Same && stored.MsgId == sent[i].MsgId && proto.Equal(stored.Msg, sent[i].Msg)
	}
	return result, nil
}

func main() {
	var opts options
	flag.StringVar(&opts.address, "address", "127.0.0.1:50051", "the gateway's")
	flag.StringVar(&opts.sendID, "send-id", "alice", "who sends")
	flag.StringVar(&opts.recvID, "recv-id", "bob", "an inbox with no other sender")
	flag.IntVar(&opts.count, "count", 100, "how many messages")
	flag.BoolVar(&opts.noClientMsgID, "no-client-msg-id", false, "fail if a retry could store a second message")
	flag.StringVar(&opts.serviceConfig, "service-config", "", "let gRPC retry instead of the loop, with this service config")
	flag.StringVar(&opts.tlsCA, "tls-ca", "", "connect over TLS, and verify the gateway with these CAs")
	flag.StringVar(&opts.tlsCert, "tls-cert", "", "our own certificate")
	flag.StringVar(&opts.tlsKey, "tls-key", "", "the key of our own certificate")
	flag.StringVar(&opts.tokenFile, "token-file", "", "our own token, which is read again for each call; needs -tls-ca")
	flag.Parse()

	result, err := run(context.Background(), opts)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	line, err := json.Marshal(result)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(line))
	if !result.Same || !result.SeqFrom1 {
		os.Exit(1)
	}
}
