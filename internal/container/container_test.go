package container

import (
	"testing"

	"berth.dev/berth/internal/keeper"
)

// Who has seen what a process does finds its container running, even when the
// start has not ended.
func TestSettled(t *testing.T) {
	c := &Container{}
	c.st.Store(&Status{Phase: Created})
	c.mu.Lock() // a start is under way
	got := make(chan Phase)
	go func() { got <- c.settled().Phase }()
	select {
	case p := <-got:
		t.Fatalf("%v in the middle of a start", p)
	default:
	}
	c.st.Store(&Status{Phase: Running})
	c.mu.Unlock()
	if p := <-got; p != Running {
		t.Fatal(p)
	}
}

// A process that ends in the middle of an update is no error of the update.
func TestHasEnded(t *testing.T) {
	for err, want := range map[error]bool{
		&keeper.Failure{Kind: keeper.KindState}:    true,
		&keeper.Failure{Kind: keeper.KindNotFound}: true,
		&keeper.Failure{Msg: "EBUSY"}:              false,
		keeper.ErrLost:                             false,
	} {
		if got := hasEnded(err); got != want {
			t.Errorf("%+v: %v", err, got)
		}
	}
}
