// A client of grpc-go for the benches. Its channel uses round_robin, and retries nothing.
//
//	gocaller 127.0.0.1:50051,127.0.0.1:50052 /package.Service/Method 500
//	gocaller jobs
//
// The first form measures how much CPU a unary call takes in another language, on the same servers. It keeps 64 calls in
// flight, each with a deadline. After a warm-up it prints "{}"; for each line of standard input it makes so many calls
// and prints the CPU time of the process for each, in microseconds.
//
// The second form is a load generator, as bench/generator.py is: it prints "{}", then does a job for each line of
// standard input, and prints what became of the calls.
package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
)

const (
	inFlight = 64
	timeout  = 30 * time.Second
	warmUp   = 2
)

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

func load(channel *grpc.ClientConn, method string, calls int64) error {
	var left atomic.Int64
	left.Store(calls)
	failed := make(chan error, inFlight)
	var workers sync.WaitGroup
	for range inFlight {
		workers.Add(1)
		go func() {
			defer workers.Done()
			request := bytes.Repeat([]byte("x"), 100)
			for left.Add(-1) >= 0 {
				ctx, cancel := context.WithTimeout(context.Background(), timeout)
				var response []byte
				err := channel.Invoke(ctx, method, &request, &response, grpc.WaitForReady(true))
				cancel()
				if err != nil {
					failed <- err
					return
				}
			}
		}()
	}
	workers.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

func cpu() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// connect makes a channel over these addresses. Messages are bytes.
func connect(addresses []string) (*grpc.ClientConn, error) {
	known := manual.NewBuilderWithScheme("known")
	var state resolver.State
	for _, address := range addresses {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: address})
	}
	known.InitialState(state)
	return grpc.NewClient("known:///servers",
		grpc.WithResolvers(known),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(raw{})),
	)
}

func run(addresses []string, method string, calls int64) error {
	channel, err := connect(addresses)
	if err != nil {
		return err
	}
	defer channel.Close()
	for range warmUp {
		if err := load(channel, method, calls); err != nil {
			return err
		}
	}
	fmt.Println("{}")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		before := cpu()
		if err := load(channel, method, calls); err != nil {
			return err
		}
		us := float64((cpu() - before).Nanoseconds()) / 1e3 / float64(calls)
		fmt.Printf("{\"us\": %.3f, \"done\": %d}\n", us, calls)
	}
	return nil
}

func main() {
	var err error
	switch {
	case len(os.Args) == 2 && os.Args[1] == "jobs":
		err = jobs(os.Stdin, os.Stdout)
	case len(os.Args) == 4:
		var calls int64
		if calls, err = strconv.ParseInt(os.Args[3], 10, 64); err == nil {
			err = run(strings.Split(os.Args[1], ","), os.Args[2], calls)
		}
	default:
		fmt.Fprintln(os.Stderr, "gocaller ADDRESSES METHOD CALLS, or gocaller jobs")
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gocaller:", err)
		os.Exit(1)
	}
}
