package events

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"berth.dev/berth/internal/filter"
)

func drain(t *testing.T, s *Subscription) (ids []string) {
	t.Helper()
	defer s.Close()
	for {
		m, err := s.Next(t.Context())
		if errors.Is(err, io.EOF) {
			return ids
		}
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, m.Actor.ID)
	}
}

func TestBacklogSinceUntil(t *testing.T) {
	b := New()
	base := time.Unix(1000, 0)
	for i := range 10 {
		b.Publish(Message{Type: "container", Action: "start", Actor: Actor{ID: fmt.Sprint(i)}, TimeNano: base.Add(time.Duration(i) * time.Second).UnixNano()})
	}
	at := func(i int) time.Time { return base.Add(time.Duration(i) * time.Second) }
	for _, tc := range []struct {
		since, until time.Time
		want         string
	}{
		{at(3), at(5), "[3 4 5]"}, {at(8), at(100), "[8 9]"}, {time.Time{}, at(1), "[0 1]"}, {at(50), at(60), "[]"},
	} {
		if got := fmt.Sprint(drain(t, b.Subscribe(tc.since, tc.until, nil))); got != tc.want {
			t.Errorf("%v–%v: %s, want %s", tc.since, tc.until, got, tc.want)
		}
	}
	if b.Listeners() != 0 {
		t.Error("listeners left")
	}
}

func TestNoGap(t *testing.T) {
	b := New()
	const n = 3000
	start := time.Now().Add(-time.Second)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range n {
			b.Log("container", "start", fmt.Sprint(i), nil)
		}
	})
	for range 8 {
		wg.Go(func() {
			s := b.Subscribe(start, time.Time{}, nil)
			defer s.Close()
			for i := range n {
				m, err := s.Next(t.Context())
				if err != nil || m.Actor.ID != fmt.Sprint(i) {
					t.Errorf("message %d is %v, %v", i, m.Actor.ID, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestLiveOnlyAndCancel(t *testing.T) {
	b := New()
	b.Log("container", "start", "old", nil)
	s := b.Subscribe(time.Time{}, time.Time{}, nil)
	defer s.Close()
	go func() { time.Sleep(5 * time.Millisecond); b.Log("container", "die", "new", nil) }()
	m, err := s.Next(t.Context())
	if err != nil || m.Actor.ID != "new" || m.Scope != "local" || m.Time == 0 || m.TimeNano == 0 {
		t.Fatalf("%+v, %v", m, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	if _, err := s.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}

func TestUntilInTheFuture(t *testing.T) {
	b := New()
	s := b.Subscribe(time.Time{}, time.Now().Add(20*time.Millisecond), nil)
	defer s.Close()
	if _, err := s.Next(t.Context()); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
}

func TestSlowSubscriber(t *testing.T) {
	b := New()
	s := b.Subscribe(time.Time{}, time.Time{}, nil)
	defer s.Close()
	for i := range Backlog + 100 {
		b.Log("container", "start", fmt.Sprint(i), nil)
	}
	m, err := s.Next(t.Context())
	if err != nil || m.Actor.ID != "100" || s.Missed() != 100 {
		t.Fatalf("%v %v, missed %d", m.Actor.ID, err, s.Missed())
	}
}

func TestFilters(t *testing.T) {
	ctr := Message{Type: "container", Action: "exec_create: sh -c ls", Scope: "local", Actor: Actor{ID: "0123456789ab", Attributes: map[string]string{
		"name": "web", "image": "nginx:1.2", "tier": "front",
	}}}
	img := Message{Type: "image", Action: "pull", Scope: "local", Actor: Actor{ID: "host:5000/x:1", Attributes: map[string]string{"name": "host:5000/x"}}}
	for _, tc := range []struct {
		f        filter.Args
		ctr, img bool
	}{
		{nil, true, true},
		{filter.Args{"type": {"container"}}, true, false},
		{filter.Args{"container": {"0123"}}, true, false},
		{filter.Args{"container": {"web"}}, true, false},
		{filter.Args{"container": {"db", "we"}}, true, false},
		{filter.Args{"container": {"x"}}, false, false},
		{filter.Args{"image": {"nginx"}}, true, false},
		{filter.Args{"image": {"nginx:1.2"}}, true, false},
		{filter.Args{"image": {"host:5000/x"}}, false, true},
		{filter.Args{"event": {"exec_create"}}, true, false},
		{filter.Args{"event": {"exec_"}}, false, false},
		{filter.Args{"event": {"pull"}}, false, true},
		{filter.Args{"label": {"tier"}}, true, false},
		{filter.Args{"label": {"tier=back"}}, false, false},
		{filter.Args{"scope": {"swarm"}}, false, false},
	} {
		m := newMatcher(tc.f)
		if m.match(&ctr) != tc.ctr || m.match(&img) != tc.img {
			t.Errorf("%v: %v %v", tc.f, m.match(&ctr), m.match(&img))
		}
	}
}

func BenchmarkPublish(b *testing.B) {
	bus := New()
	for b.Loop() {
		bus.Publish(Message{Type: "container", Action: "start"})
	}
}
