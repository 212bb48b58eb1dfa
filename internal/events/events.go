// Package events is the engine's event bus: what happened to containers,
// images, networks, volumes and the daemon itself, in the order it happened.
//
// # Words
//
// A message gets its number and its time under one lock, so the bus's order is
// the order of time. The last Backlog messages are kept in a ring. A
// subscription is a position in that ring: it first walks through what is
// there, then waits for what comes, and there is no gap between the two
// because there is no boundary. Publishing never waits: it appends and wakes
// whoever waits. A subscriber that has fallen more than a whole ring behind
// goes on with the oldest message there is; what it missed is counted.
//
//	bus := events.New()
//	sub := bus.Subscribe(time.Time{}, time.Time{}, filter.Args{"type": {"container"}})
//	defer sub.Close()
//	for {
//		m, err := sub.Next(ctx) // io.EOF at "until", ctx.Err() when that ends
//	}
package events

import (
	"context"
	"io"
	"maps"
	"sync"
	"time"

	"github.com/moby/moby/api/types/events"

	"berth.dev/berth/internal/filter"
)

// The wire types, for the services' convenience.
type (
	Message = events.Message
	Actor   = events.Actor
	Type    = events.Type
	Action  = events.Action
)

// Backlog is the number of messages that are kept.
const Backlog = 4096

// Bus is the event bus. Its methods may be called from any goroutine.
type Bus struct {
	mu      sync.Mutex
	ring    []Message     // message n is at n % Backlog; grows up to Backlog
	next    uint64        // the number of the next message
	lastNS  int64         // the time of the last one
	waiting int           // subscriptions that wait on changed
	changed chan struct{} // closed when the next message comes
	subs    int

	now func() time.Time
}

// New returns an empty bus.
func New() *Bus { return &Bus{changed: make(chan struct{}), now: time.Now} }

// Publish appends m. Time, TimeNano and Scope are filled in when they are not
// set; a message that claims an earlier time than the one before it gets that
// one's. m's attributes must not be changed afterwards.
func (b *Bus) Publish(m Message) {
	if m.Scope == "" {
		m.Scope = "local"
	}
	b.mu.Lock()
	if m.TimeNano == 0 {
		m.TimeNano = b.now().UnixNano()
	}
	m.TimeNano = max(m.TimeNano, b.lastNS)
	m.Time = m.TimeNano / int64(time.Second)
	b.lastNS = m.TimeNano
	if i := int(b.next % Backlog); i == len(b.ring) {
		b.ring = append(b.ring, m)
	} else {
		b.ring[i] = m
	}
	b.next++
	if b.waiting > 0 {
		close(b.changed)
		b.changed = make(chan struct{})
		b.waiting = 0
	}
	b.mu.Unlock()
}

// Log publishes a message of typ about the object actorID. attrs is copied.
func (b *Bus) Log(typ Type, action Action, actorID string, attrs map[string]string) {
	attrs = maps.Clone(attrs)
	if attrs == nil {
		attrs = map[string]string{}
	}
	b.Publish(Message{Type: typ, Action: action, Actor: Actor{ID: actorID, Attributes: attrs}})
}

// Listeners returns the number of open subscriptions.
func (b *Bus) Listeners() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.subs
}

// Subscription is one listener's position. It belongs to one goroutine.
type Subscription struct {
	bus     *Bus
	filters matcher
	until   time.Time
	pos     uint64
	missed  uint64
	closed  bool
}

// Subscribe listens for the messages that pass filters: those kept from since
// on, and all to come until the time until. A zero since with a zero until
// means only those to come; a zero since with an until means all that are
// kept. An until in the past ends the subscription after what is kept.
func (b *Bus) Subscribe(since, until time.Time, filters filter.Args) *Subscription {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.subs++
	s := &Subscription{bus: b, filters: newMatcher(filters), until: until, pos: b.next}
	if since.IsZero() && until.IsZero() {
		return s
	}
	for s.pos > b.oldest() {
		if m := &b.ring[(s.pos-1)%Backlog]; !since.IsZero() && m.TimeNano < since.UnixNano() {
			break
		}
		s.pos--
	}
	return s
}

// oldest returns the number of the oldest message that is kept. The caller holds mu.
func (b *Bus) oldest() uint64 { return b.next - uint64(len(b.ring)) }

// Next returns the next message, waiting for it. It returns io.EOF when until
// is reached and ctx's error when that has ended.
func (s *Subscription) Next(ctx context.Context) (Message, error) {
	var timer *time.Timer
	var late <-chan time.Time
	for {
		if err := ctx.Err(); err != nil {
			return Message{}, err
		}
		m, ok, end, changed := s.take()
		switch {
		case ok:
			return m, nil
		case end:
			return Message{}, io.EOF
		}
		if timer == nil && !s.until.IsZero() {
			timer = time.NewTimer(s.until.Sub(s.bus.now()))
			defer timer.Stop()
			late = timer.C
		}
		select {
		case <-changed:
		case <-late:
			return Message{}, io.EOF
		case <-ctx.Done():
		}
	}
}

// take returns the next message that passes. When there is none it says
// whether there will ever be one, and what to wait for.
func (s *Subscription) take() (m Message, ok, end bool, changed <-chan struct{}) {
	b := s.bus
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.closed {
		return m, false, true, nil
	}
	if old := b.oldest(); s.pos < old {
		s.missed += old - s.pos
		s.pos = old
	}
	for ; s.pos < b.next; s.pos++ {
		e := &b.ring[s.pos%Backlog]
		if !s.until.IsZero() && e.TimeNano > s.until.UnixNano() {
			return m, false, true, nil
		}
		if s.filters.match(e) {
			s.pos++
			return *e, true, false, nil
		}
	}
	if !s.until.IsZero() && !b.now().Before(s.until) {
		return m, false, true, nil
	}
	b.waiting++
	return m, false, false, b.changed
}

// Missed returns how many messages went by unseen because the subscriber was
// too slow.
func (s *Subscription) Missed() uint64 { return s.missed }

// Close ends the subscription. It may be called again.
func (s *Subscription) Close() {
	s.bus.mu.Lock()
	defer s.bus.mu.Unlock()
	if !s.closed {
		s.closed = true
		s.bus.subs--
	}
}
