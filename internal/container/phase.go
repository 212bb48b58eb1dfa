package container

import "github.com/moby/moby/api/types/container"

// Phase is where a container is in its life.
type Phase string

// The phases, as the API names them.
const (
	Created    Phase = "created"
	Running    Phase = "running"
	Paused     Phase = "paused"
	Restarting Phase = "restarting" // exited, and to be started again by its policy
	Exited     Phase = "exited"
	Removing   Phase = "removing"
	Dead       Phase = "dead"
)

// transitions are all the changes of phase there are.
var transitions = map[Phase][]Phase{
	Created:    {Running, Exited, Removing}, // Exited: a start that failed keeps created; kept for old records
	Running:    {Paused, Exited, Restarting},
	Paused:     {Running, Exited, Restarting},
	Restarting: {Running, Exited, Removing},
	Exited:     {Running, Removing, Restarting},
	Removing:   {Dead},
	Dead:       {Removing},
}

// Can reports whether a container may go from p to next.
func (p Phase) Can(next Phase) bool {
	for _, t := range transitions[p] {
		if t == next {
			return true
		}
	}
	return false
}

// Running reports whether there is a process.
func (p Phase) Running() bool { return p == Running || p == Paused }

func (p Phase) api() container.ContainerState { return container.ContainerState(p) }
