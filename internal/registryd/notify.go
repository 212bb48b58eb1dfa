package registryd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	eventsMediaType = "application/vnd.docker.distribution.events.v2+json"
	maxQueued       = 10_000 // events that wait for one endpoint; older ones are dropped
	maxEnvelope     = 50
)

type event struct {
	ID        string    `json:"id"`
	Timestamp time.Time `json:"timestamp"`
	Action    string    `json:"action"` // push, pull, mount, delete
	Target    struct {
		MediaType  string        `json:"mediaType,omitempty"`
		Size       int64         `json:"size,omitempty"`
		Digest     digest.Digest `json:"digest,omitempty"`
		Length     int64         `json:"length,omitempty"`
		Repository string        `json:"repository,omitempty"`
		From       string        `json:"fromRepository,omitempty"`
		URL        string        `json:"url,omitempty"`
		Tag        string        `json:"tag,omitempty"`

		References []ocispec.Descriptor `json:"references,omitempty"`
	} `json:"target"`
	Request struct {
		ID        string `json:"id"`
		Addr      string `json:"addr,omitempty"`
		Host      string `json:"host,omitempty"`
		Method    string `json:"method"`
		UserAgent string `json:"useragent"`
	} `json:"request"`
	Actor struct {
		Name string `json:"name,omitempty"`
	} `json:"actor"`
	Source struct {
		Addr       string `json:"addr,omitempty"`
		InstanceID string `json:"instanceID,omitempty"`
	} `json:"source"`
}

// notifier tells endpoints what happens. A nil *notifier tells nobody.
type notifier struct {
	endpoints []*endpoint
	instance  string
	host      string
	scheme    string
	base      string // http.host, when it is configured
	refs      bool   // tell what a pushed manifest names
}

type endpoint struct {
	c    EndpointConfig
	log  *slog.Logger
	m    *metrics
	mu   sync.Mutex
	list []event
	wake chan struct{}
	idle chan struct{} // gets a value when the queue ran empty
}

func newNotifier(c *Config, log *slog.Logger, m *metrics) *notifier {
	n := &notifier{base: c.HTTP.Host, scheme: "http", refs: c.Notifications.Events.IncludeReferences}
	if c.HTTP.TLS.Certificate != "" {
		n.scheme = "https"
	}
	for _, e := range c.Notifications.Endpoints {
		if e.Disabled {
			continue
		}
		if e.Timeout <= 0 {
			e.Timeout = time.Second
		}
		if e.Threshold <= 0 {
			e.Threshold = 10
		}
		if e.Backoff <= 0 {
			e.Backoff = time.Second
		}
		e.Ignore.MediaTypes = append(e.Ignore.MediaTypes, e.IgnoredMediaTypes...)
		n.endpoints = append(n.endpoints, &endpoint{c: e, log: log, m: m, wake: make(chan struct{}, 1), idle: make(chan struct{}, 1)})
	}
	if len(n.endpoints) == 0 {
		return nil
	}
	host, _ := os.Hostname()
	_, port, _ := net.SplitHostPort(c.HTTP.Addr)
	n.host, n.instance = net.JoinHostPort(host, port), newUUID()
	return n
}

func (n *notifier) start(ctx context.Context, wg *sync.WaitGroup) {
	if n == nil {
		return
	}
	for _, e := range n.endpoints {
		wg.Go(func() { e.run(ctx) })
	}
}

// drain waits until everything is sent, at most as long as ctx.
func (n *notifier) drain(ctx context.Context) {
	if n == nil {
		return
	}
	for _, e := range n.endpoints {
		for {
			e.mu.Lock()
			left := len(e.list)
			e.mu.Unlock()
			if left == 0 {
				break
			}
			select {
			case <-e.idle:
			case <-ctx.Done():
				return
			}
		}
	}
}

func (n *notifier) blob(action string, r *request, d digest.Digest, size int64, from string) {
	if n == nil {
		return
	}
	var e event
	e.Target.MediaType = "application/octet-stream"
	e.Target.Size, e.Target.Length, e.Target.Digest, e.Target.From = size, size, d, from
	if action != "delete" {
		e.Target.URL = n.url(r, blobURL(r.name, d))
	}
	n.send(action, r, e)
}

func (n *notifier) manifest(action string, r *request, d digest.Digest, kind string, size int64, tag string, refs []ocispec.Descriptor) {
	if n == nil {
		return
	}
	var e event
	e.Target.MediaType, e.Target.Size, e.Target.Length, e.Target.Digest, e.Target.Tag = kind, size, size, d, tag
	if n.refs {
		e.Target.References = refs
	}
	if action != "delete" {
		e.Target.URL = n.url(r, "/v2/"+r.name+"/manifests/"+d.String())
	}
	n.send(action, r, e)
}

func (n *notifier) url(r *request, path string) string {
	if n.base != "" {
		return n.base + path
	}
	return n.scheme + "://" + r.Host + path
}

func (n *notifier) send(action string, r *request, e event) {
	e.ID, e.Timestamp, e.Action = newUUID(), time.Now().UTC(), action
	e.Target.Repository = r.name
	e.Request.ID = n.instance + "-" + strconv.FormatUint(r.id, 10)
	e.Request.Addr, e.Request.Host, e.Request.Method, e.Request.UserAgent = r.RemoteAddr, r.Host, r.Method, r.UserAgent()
	e.Actor.Name = r.user
	e.Source.Addr, e.Source.InstanceID = n.host, n.instance
	for _, p := range n.endpoints {
		if slices.Contains(p.c.Ignore.Actions, action) || slices.Contains(p.c.Ignore.MediaTypes, e.Target.MediaType) {
			continue
		}
		p.put(e)
	}
}

func (p *endpoint) put(e event) {
	p.mu.Lock()
	if len(p.list) >= maxQueued {
		p.list = p.list[1:]
		p.m.event(p.c.Name, "dropped", 1)
	}
	p.list = append(p.list, e)
	p.mu.Unlock()
	nudge(p.wake)
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run sends what waits, in order, until ctx ends. After threshold failures on end it
// waits for the back-off between tries.
func (p *endpoint) run(ctx context.Context) {
	// The headers are secrets often; they do not go where somebody redirects to.
	client := &http.Client{Timeout: p.c.Timeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	failures := 0
	for {
		p.mu.Lock()
		batch := slices.Clone(p.list[:min(maxEnvelope, len(p.list))])
		p.mu.Unlock()
		if len(batch) == 0 {
			nudge(p.idle)
			select {
			case <-p.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		err := p.post(ctx, client, batch)
		if err == nil {
			failures = 0
			p.mu.Lock()
			// Those that were dropped meanwhile are gone from the front already.
			for len(p.list) > 0 && slices.ContainsFunc(batch, func(e event) bool { return e.ID == p.list[0].ID }) {
				p.list = p.list[1:]
			}
			p.mu.Unlock()
			p.m.event(p.c.Name, "Successes", int64(len(batch)))
			continue
		}
		if ctx.Err() != nil {
			return
		}
		failures++
		p.m.event(p.c.Name, "Failures", int64(len(batch)))
		p.log.Warn("cannot notify", "endpoint", p.c.Name, "url", p.c.URL, "failures", failures, "err", err)
		wait := 50 * time.Millisecond
		if failures >= p.c.Threshold {
			wait = p.c.Backoff
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

func (p *endpoint) post(ctx context.Context, client *http.Client, batch []event) error {
	b, err := json.Marshal(map[string]any{"events": batch})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.c.URL, bytes.NewReader(b))
	if err != nil {
		return err
	}
	for k, v := range p.c.Headers {
		req.Header[http.CanonicalHeaderKey(k)] = v
	}
	req.Header.Set("Content-Type", eventsMediaType)
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	_ = resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("status %s", resp.Status)
	}
	return nil
}
