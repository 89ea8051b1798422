package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

const (
	afterFailure = 20 * time.Millisecond
	tick         = 10 * time.Millisecond
	together     = time.Millisecond
	rampUp       = 500 * time.Millisecond
	warmUpCall   = 10 * time.Second
	ok           = "OK"
)

// job is what bench/pressure.py asks for. Times are in seconds; begin is a time of the monotonic clock.
type job struct {
	Addresses []string `json:"addresses"`
	Echo      string   `json:"echo"`
	Begin     float64  `json:"begin"`
	Seed      int64    `json:"seed"`
	Phases    []phase  `json:"phases"`
}

// phase is a part of a job: calls at a rate (open), or so many callers (closed).
type phase struct {
	Seconds  float64   `json:"s"`
	Rate     float64   `json:"rate"`
	Callers  int       `json:"callers"`
	Poisson  bool      `json:"poisson"`
	TimeoutS float64   `json:"timeout_s"`
	Kinds    []kind    `json:"kinds"`
	Weights  []float64 `json:"weights"`
}

// kind is a method and the metadata of its calls.
type kind struct {
	method   string
	metadata metadata.MD
}

func (k *kind) UnmarshalJSON(data []byte) error {
	var pairs [][2]string
	if err := json.Unmarshal(data, &[]any{&k.method, &pairs}); err != nil {
		return err
	}
	k.metadata = metadata.MD{}
	for _, pair := range pairs {
		k.metadata.Append(pair[0], pair[1])
	}
	return nil
}

// made is a call that ended: its phase, its kind, when it should have been sent, how long it took, its status.
type made struct {
	phase, kind int
	at, took    float64
	code        string
}

func (m made) MarshalJSON() ([]byte, error) {
	return json.Marshal([]any{m.phase, m.kind, m.at, m.took, m.code, nil, 1})
}

// press does one job.
type press struct {
	job     job
	channel *grpc.ClientConn
	zero    time.Time // when the monotonic clock was 0
	calls   sync.WaitGroup

	lock sync.Mutex // guards what follows
	made []made
	lags [][]float64
	rng  *rand.Rand
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// run makes all calls and waits for their ends.
func (p *press) run() error {
	if err := p.warmUp(); err != nil {
		return err
	}
	begin := p.zero.Add(seconds(p.job.Begin))
	if now := time.Now(); now.After(begin) {
		begin = now
	}
	for number, phase := range p.job.Phases {
		end := begin.Add(seconds(phase.Seconds))
		if phase.Rate > 0 {
			p.open(number, begin, end)
		} else {
			p.closed(number, begin, end)
		}
		begin = end
	}
	p.calls.Wait()
	return nil
}

// warmUp waits for a connection to each server.
func (p *press) warmUp() error {
	seen := map[string]bool{}
	for end := time.Now().Add(warmUpCall); len(seen) < len(p.job.Addresses); {
		var from peer.Peer
		ctx, cancel := context.WithDeadline(context.Background(), end)
		request, response := []byte("0"), []byte{}
		err := p.channel.Invoke(ctx, p.job.Echo, &request, &response, grpc.WaitForReady(true), grpc.Peer(&from))
		cancel()
		if status.Code(err) == codes.DeadlineExceeded {
			return err
		}
		if from.Addr != nil { // also of a server that refuses, since it is full
			seen[from.Addr.String()] = true
		}
	}
	return nil
}

// open sends calls at a rate, whatever becomes of them.
func (p *press) open(number int, begin, end time.Time) {
	phase := p.job.Phases[number]
	mean := 1 / phase.Rate
	var woke time.Time
	for at := begin.Add(seconds(p.random() * mean)); at.Before(end); {
		if time.Now().Before(at) {
			// What is due within a millisecond is sent together, as a network card hands it on.
			time.Sleep(max(time.Until(at), time.Until(woke.Add(together))))
			woke = time.Now()
		}
		p.late(number, time.Since(at))
		p.calls.Add(1)
		go func(at time.Time) {
			defer p.calls.Done()
			p.call(number, at)
		}(at)
		pause := mean
		if phase.Poisson {
			pause *= p.exponential()
		}
		at = at.Add(seconds(pause))
	}
}

// closed has callers that each wait for their answer before they call again.
func (p *press) closed(number int, begin, end time.Time) {
	callers := p.job.Phases[number].Callers
	var running sync.WaitGroup
	for index := range callers {
		running.Add(1)
		go func() {
			defer running.Done()
			// They come one after the other, in the first half second.
			time.Sleep(time.Until(begin.Add(rampUp * time.Duration(index) / time.Duration(callers))))
			for now := time.Now(); now.Before(end); now = time.Now() {
				if p.call(number, now) != ok {
					time.Sleep(afterFailure)
				}
			}
		}()
	}
	for due := time.Now().Add(tick); due.Before(end); due = time.Now().Add(tick) {
		time.Sleep(time.Until(due))
		p.late(number, time.Since(due))
	}
	running.Wait()
}

// call makes one call and returns its status.
func (p *press) call(number int, at time.Time) string {
	phase := &p.job.Phases[number]
	which, body := p.choose(phase.Weights)
	ctx, cancel := context.WithTimeout(context.Background(), seconds(phase.TimeoutS))
	defer cancel()
	if md := phase.Kinds[which].metadata; len(md) > 0 {
		ctx = metadata.NewOutgoingContext(ctx, md)
	}
	var response []byte
	err := p.channel.Invoke(ctx, phase.Kinds[which].method, &body, &response)
	ended := made{number, which, at.Sub(p.zero).Seconds(), time.Since(at).Seconds(), name(status.Code(err))}
	p.lock.Lock()
	defer p.lock.Unlock()
	p.made = append(p.made, ended)
	return ended.code
}

func (p *press) late(number int, by time.Duration) {
	p.lock.Lock()
	defer p.lock.Unlock()
	p.lags[number] = append(p.lags[number], by.Seconds()*1000)
}

func (p *press) random() float64 {
	p.lock.Lock()
	defer p.lock.Unlock()
	return p.rng.Float64()
}

func (p *press) exponential() float64 {
	p.lock.Lock()
	defer p.lock.Unlock()
	return p.rng.ExpFloat64()
}

// choose draws a kind by its weight, and a message.
func (p *press) choose(weights []float64) (int, []byte) {
	p.lock.Lock()
	defer p.lock.Unlock()
	var sum float64
	for _, weight := range weights {
		sum += weight
	}
	left, which := p.rng.Float64()*sum, 0
	for which < len(weights)-1 && left >= weights[which] {
		left -= weights[which]
		which++
	}
	return which, strconv.AppendInt(nil, p.rng.Int63n(100), 10)
}

// name spells a status as Python does: DEADLINE_EXCEEDED.
func name(code codes.Code) string {
	if code == codes.OK {
		return ok
	}
	var spelled strings.Builder
	for index, letter := range code.String() {
		if index > 0 && letter >= 'A' && letter <= 'Z' {
			spelled.WriteByte('_')
		}
		spelled.WriteRune(letter)
	}
	return strings.Replace(strings.ToUpper(spelled.String()), "CANCELED", "CANCELLED", 1)
}

// jobs does one job for each line, until the input ends.
func jobs(input io.Reader, output io.Writer) error {
	runtime.GOMAXPROCS(1) // one thread of Go code wakes no others: a third less CPU for each call
	debug.SetGCPercent(-1)
	fmt.Fprintln(output, "{}")
	lines := bufio.NewScanner(input)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var asked job
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			return fmt.Errorf("the job %q: %w", lines.Text(), err)
		}
		p := &press{job: asked, zero: zero(), rng: rand.New(rand.NewSource(asked.Seed)), made: []made{}}
		for range asked.Phases {
			p.lags = append(p.lags, []float64{})
		}
		runtime.GC() // and then not before the job's end: a pause of its own would count as the server's
		var err error
		if p.channel, err = connect(asked.Addresses); err == nil {
			err = p.run()
			p.channel.Close()
		}
		if err != nil {
			return err
		}
		answer := map[string]any{"calls": p.made, "lags_ms": p.lags}
		if err := json.NewEncoder(output).Encode(answer); err != nil {
			return err
		}
	}
	return lines.Err()
}

// zero is when the monotonic clock of the system was 0.
func zero() time.Time {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		panic(err)
	}
	return time.Now().Add(-time.Duration(now.Nano()))
}
