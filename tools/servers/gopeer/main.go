// A gRPC server of grpc-go that echoes any method, for the tests: a peer that ends connections by age and
// bounds streams as servers outside of Python do.
//
// It prints its port. Each line of standard input, a JSON object, changes it: "latency_s" (each answer takes
// 0.75 to 1.25 times that), "failing" (the share of calls that end UNAVAILABLE), "restart" ("graceful" or
// "hard": a new server on the same port follows). The line that it prints in return says how many calls it
// has had and has. It ends with its standard input, or gracefully on SIGTERM.
//
// A method's name says its kind: ...UnaryStream, ...StreamUnary, ...StreamStream; any other one is unary.
// A request with the header "answer-code" (a number) gets that status, with "answer-words" as its message.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const copies = 3

// raw leaves messages as the bytes that they are.
type raw struct{}

func (raw) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

func (raw) Name() string { return "proto" }

var _ encoding.CodecV2 = raw{}

// wishes is one line of standard input.
type wishes struct {
	LatencyS *float64 `json:"latency_s"`
	Failing  *float64 `json:"failing"`
	Restart  string   `json:"restart"`
}

type peer struct {
	mutex    sync.Mutex
	latencyS float64
	failing  float64
	calls    atomic.Int64
	running  atomic.Int64
}

func (p *peer) work() error {
	p.mutex.Lock()
	latencyS, failing := p.latencyS, p.failing
	p.mutex.Unlock()
	if latencyS > 0 {
		time.Sleep(time.Duration(latencyS * (0.75 + rand.Float64()/2) * float64(time.Second)))
	}
	if failing > 0 && rand.Float64() < failing {
		return status.Error(codes.Unavailable, "told to fail")
	}
	return nil
}

func told(stream grpc.ServerStream) error {
	headers, _ := metadata.FromIncomingContext(stream.Context())
	given := headers.Get("answer-code")
	if len(given) == 0 {
		return nil
	}
	code, err := strconv.Atoi(given[0])
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "answer-code is %q; expected a number", given[0])
	}
	return status.Error(codes.Code(code), strings.Join(headers.Get("answer-words"), ""))
}

func (p *peer) handle(_ any, stream grpc.ServerStream) error {
	p.calls.Add(1)
	p.running.Add(1)
	defer p.running.Add(-1)
	if err := told(stream); err != nil {
		return err
	}
	method, _ := grpc.MethodFromServerStream(stream)
	streams := strings.HasSuffix(method, "StreamStream")
	joins := strings.HasSuffix(method, "StreamUnary")
	var all []byte
	for {
		var message []byte
		if err := stream.RecvMsg(&message); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		if streams {
			if err := p.work(); err != nil {
				return err
			}
			if err := stream.SendMsg(&message); err != nil {
				return err
			}
			continue
		}
		all = append(all, message...)
		if !joins {
			break
		}
	}
	if streams {
		return nil
	}
	answers := 1
	if strings.HasSuffix(method, "UnaryStream") {
		answers = copies
	}
	for range answers {
		if err := p.work(); err != nil {
			return err
		}
		if err := stream.SendMsg(&all); err != nil {
			return err
		}
	}
	return nil
}

func main() {
	port := flag.Int("port", 0, "0: a free one")
	latencyS := flag.Float64("latency", 0, "seconds that each answer takes")
	maxAge := flag.Duration("max-age", 0, "of a connection, which then gets a GOAWAY; 0: none")
	maxAgeGrace := flag.Duration("max-age-grace", 5*time.Second, "after which its calls are cut off")
	maxStreams := flag.Uint("max-streams", 0, "at once on a connection; 0: any number")
	flag.Parse()
	if err := run(*port, *latencyS, *maxAge, *maxAgeGrace, *maxStreams); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(port int, latencyS float64, maxAge, maxAgeGrace time.Duration, maxStreams uint) error {
	p := &peer{latencyS: latencyS}
	options := []grpc.ServerOption{grpc.ForceServerCodecV2(raw{}), grpc.UnknownServiceHandler(p.handle)}
	if maxAge > 0 {
		options = append(options, grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionAge: maxAge, MaxConnectionAgeGrace: maxAgeGrace,
		}))
	}
	if maxStreams > 0 {
		options = append(options, grpc.MaxConcurrentStreams(uint32(maxStreams)))
	}
	start := func() (*grpc.Server, error) {
		listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return nil, err
		}
		port = listener.Addr().(*net.TCPAddr).Port
		server := grpc.NewServer(options...)
		go server.Serve(listener) //nolint:errcheck // it returns when the server is stopped
		return server, nil
	}
	server, err := start()
	if err != nil {
		return err
	}
	fmt.Println(port)

	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	lines := make(chan string)
	go func() {
		defer close(lines)
		for input := bufio.NewScanner(os.Stdin); input.Scan(); {
			lines <- input.Text()
		}
	}()
	for {
		select {
		case <-terminated:
			server.GracefulStop()
			return nil
		case line, more := <-lines:
			if !more {
				server.Stop()
				return nil
			}
			var wanted wishes
			if err := json.Unmarshal([]byte(line), &wanted); err != nil {
				return fmt.Errorf("a line of standard input is %q; expected a JSON object: %w", line, err)
			}
			p.mutex.Lock()
			if wanted.LatencyS != nil {
				p.latencyS = *wanted.LatencyS
			}
			if wanted.Failing != nil {
				p.failing = *wanted.Failing
			}
			p.mutex.Unlock()
			switch wanted.Restart {
			case "":
			case "graceful":
				server.GracefulStop()
			case "hard":
				server.Stop()
			default:
				return fmt.Errorf("restart is %q; expected graceful or hard", wanted.Restart)
			}
			if wanted.Restart != "" {
				if server, err = start(); err != nil {
					return err
				}
			}
			fmt.Printf("{\"calls\": %d, \"running\": %d}\n", p.calls.Load(), p.running.Load())
		}
	}
}
