package events

import (
	"slices"
	"strings"

	"github.com/moby/moby/api/types/events"

	"berth.dev/berth/internal/filter"
)

// matcher decides which messages a subscription sees, as Docker does:
//
//	type, scope        equal to one of the values
//	event              the action equals a value; "exec_create", "exec_start" and
//	                   "health_status" stand for all actions that begin so
//	container, volume, network, plugin, daemon, node, service, secret, config
//	                   the actor's id, or its name attribute, begins with a value
//	image              the id or the name (with or without its tag) equals a value
//	label              every value holds among the attributes
type matcher struct {
	args  filter.Args
	fuzzy bool // the event filter has an action that is a prefix
}

// named are the filters on an actor's id or name.
var named = [...]string{"container", "daemon", "plugin", "volume", "network", "node", "service", "secret", "config"}

func newMatcher(args filter.Args) matcher {
	prefixes := []string{string(events.ActionHealthStatus), string(events.ActionExecCreate), string(events.ActionExecStart)}
	return matcher{args: args, fuzzy: slices.ContainsFunc(args["event"], func(v string) bool { return slices.Contains(prefixes, v) })}
}

func (f matcher) match(m *Message) bool {
	a := f.args
	if len(a) == 0 {
		return true
	}
	if f.fuzzy && !a.Fuzzy("event", string(m.Action)) || !f.fuzzy && !a.Exact("event", string(m.Action)) {
		return false
	}
	if !a.Exact("type", string(m.Type)) || !a.Exact("scope", m.Scope) {
		return false
	}
	for _, key := range named {
		if !a.Fuzzy(key, m.Actor.ID) && !a.Fuzzy(key, m.Actor.Attributes["name"]) {
			return false
		}
	}
	return f.image(m) && a.Labels("label", m.Actor.Attributes)
}

func (f matcher) image(m *Message) bool {
	if !f.args.Has("image") {
		return true
	}
	name := m.Actor.Attributes["image"]
	if m.Type == events.ImageEventType {
		name = m.Actor.Attributes["name"]
	}
	for _, v := range f.args["image"] {
		if v == m.Actor.ID || v == name || v == untagged(m.Actor.ID) || v == untagged(name) {
			return true
		}
	}
	return false
}

// untagged cuts the digest and the tag off an image name.
func untagged(name string) string {
	name, _, _ = strings.Cut(name, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		return name[:i]
	}
	return name
}
