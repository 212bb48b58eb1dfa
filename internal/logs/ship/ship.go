// Package ship sends the entries of a container's log to a remote: a syslog
// server, a journal, Graylog, Fluentd.
//
// # Words
//
// The spool is the container's local log, which the keeper writes as for the
// driver local. A remote is one connection of one driver. A shipment is the
// goroutine of the engine that follows one spool and gives each entry to a
// remote. The cursor is a small file beside the spool that holds the position
// up to which everything was sent.
//
//	container ─▶ keeper ─▶ spool ─▶ shipment ─▶ remote
//	                         │          └─▶ cursor
//	                         └─▶ docker logs
//
// # What survives what
//
// The keeper never waits for a network, so a remote that is down costs the
// container nothing. A shipment tries again, at longer and longer intervals,
// from the cursor on; an engine that comes back does the same. What is lost is
// what the spool lost by rotation meanwhile. What may come twice is what was
// sent after the cursor was written last: each entry arrives at least once, over
// connections that tell when they break (tcp, tls, unix). Datagrams to a port
// where nobody listens are gone, as with Docker.
//
// The drivers are packages below this one. None of it is linked into the keeper.
package ship

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"text/template"
	"time"

	"berth.dev/berth/internal/logs"
)

// Info is what is told of a container. Its fields and methods are the names
// that Docker's templates know.
type Info struct {
	Config              map[string]string // the log options
	ContainerID         string
	ContainerName       string // with a slash
	ContainerEntrypoint string
	ContainerArgs       []string
	ContainerImageID    string
	ContainerImageName  string
	ContainerCreated    time.Time
	ContainerEnv        []string
	ContainerLabels     map[string]string
	LogPath             string
	DaemonName          string
}

// ID is the short id of the container.
func (i *Info) ID() string { return short(i.ContainerID) }

// FullID is the id of the container.
func (i *Info) FullID() string { return i.ContainerID }

// Name is the name of the container, without the slash.
func (i *Info) Name() string { return strings.TrimPrefix(i.ContainerName, "/") }

// ImageID is the image's id, cut as Docker cuts it.
func (i *Info) ImageID() string { return short(i.ContainerImageID) }

// ImageFullID is the image's id.
func (i *Info) ImageFullID() string { return i.ContainerImageID }

// ImageName is the image as it was asked for.
func (i *Info) ImageName() string { return i.ContainerImageName }

// Command is the container's command line.
func (i *Info) Command() string {
	return strings.Join(append([]string{i.ContainerEntrypoint}, i.ContainerArgs...), " ")
}

// Hostname is the host's name.
func (i *Info) Hostname() (string, error) {
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("logger: can not resolve hostname: %w", err)
	}
	return name, nil
}

func short(id string) string { return id[:min(12, len(id))] }

// DefaultTag is the tag where none is asked for.
const DefaultTag = "{{.ID}}"

// Tag executes the template of the option tag, or fallback.
func (i *Info) Tag(fallback string) (string, error) {
	text := i.Config["tag"]
	if text == "" {
		text = fallback
	}
	if text == "" {
		return "", nil
	}
	t, err := template.New("log-tag").Funcs(functions()).Parse(text)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, i); err != nil {
		return "", err
	}
	return b.String(), nil
}

func functions() template.FuncMap {
	return template.FuncMap{
		"json": func(v any) string {
			var b bytes.Buffer
			e := json.NewEncoder(&b)
			e.SetEscapeHTML(false)
			_ = e.Encode(v)
			return strings.TrimSpace(b.String())
		},
		"split": strings.Split,
		"join":  strings.Join,
		"lower": strings.ToLower,
		"upper": strings.ToUpper,
		"title": func(s string) string {
			words := strings.Fields(s)
			for i, w := range words {
				words[i] = strings.ToUpper(w[:1]) + w[1:]
			}
			return strings.Join(words, " ")
		},
		"pad": func(s string, before, after int) string {
			if s == "" {
				return s
			}
			return strings.Repeat(" ", before) + s + strings.Repeat(" ", after)
		},
		"truncate": func(s string, n int) string { return s[:min(max(n, 0), len(s))] },
		"println":  fmt.Sprintln,
	}
}

// Attributes returns the labels and variables that the options name, under
// names that rename makes (nil: as they are).
func (i *Info) Attributes(rename func(string) string) (map[string]string, error) {
	if rename == nil {
		rename = func(s string) string { return s }
	}
	out := map[string]string{}
	env := map[string]string{}
	for _, e := range i.ContainerEnv {
		if k, v, ok := strings.Cut(e, "="); ok {
			env[k] = v
		}
	}
	for _, from := range []struct {
		option string
		all    map[string]string
	}{{"labels", i.ContainerLabels}, {"env", env}} {
		if list := i.Config[from.option]; list != "" {
			for _, k := range strings.Split(list, ",") {
				if v, ok := from.all[k]; ok {
					out[rename(k)] = v
				}
			}
		}
		if text := i.Config[from.option+"-regex"]; text != "" {
			re, err := regexp.Compile(text)
			if err != nil {
				return nil, err
			}
			for k, v := range from.all {
				if re.MatchString(k) {
					out[rename(k)] = v
				}
			}
		}
	}
	return out, nil
}

// Entry is one line, or part of one, without its newline. It is valid during
// Send only.
type Entry struct {
	Stream  byte
	Time    time.Time
	Line    []byte
	Partial logs.Partial
}

// Source is "stdout" or "stderr".
func (e *Entry) Source() string {
	if e.Stream == logs.Stderr {
		return "stderr"
	}
	return "stdout"
}

// Remote is a driver's connection. Send may keep entries until Flush; after an
// error of either the remote is closed, and all since the last Flush is sent
// to the next one. Close may be called while Send runs, and ends it.
type Remote interface {
	Send(e *Entry) error
	Flush() error
	Close() error
}
