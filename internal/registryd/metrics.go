package registryd

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// metrics are counters in Prometheus' text format, under the names that dashboards for
// registries look for.
type metrics struct {
	inFlight atomic.Int64
	hits     [2]atomic.Int64 // of a mirror, by blob and manifest: what the store had
	misses   [2]atomic.Int64 // and what was fetched
	pulled   [2]atomic.Int64 // bytes

	mu       sync.Mutex
	requests map[[3]string]int64     // handler, method, code
	times    map[[2]string]*duration // handler, method
	events   map[[2]string]int64     // endpoint, what became of them
}

const (
	ofBlob = iota
	ofManifest
)

type duration struct {
	buckets [len(bounds)]int64
	n       int64
	sum     float64
}

var bounds = [...]float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60}

func newMetrics() *metrics {
	return &metrics{requests: map[[3]string]int64{}, times: map[[2]string]*duration{}, events: map[[2]string]int64{}}
}

func (m *metrics) request(kind routeKind, method string, status int, took time.Duration) {
	switch method {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE":
		method = strings.ToLower(method)
	default:
		method = "other" // what clients make up would grow without end
	}
	s := took.Seconds()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.requests[[3]string{kind.String(), method, strconv.Itoa(status)}]++
	k := [2]string{kind.String(), method}
	d := m.times[k]
	if d == nil {
		d = &duration{}
		m.times[k] = d
	}
	d.n++
	d.sum += s
	for i, b := range bounds {
		if s <= b {
			d.buckets[i]++
		}
	}
}

func (m *metrics) event(endpoint, what string, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.events[[2]string{endpoint, what}] += n
}

func (m *metrics) write(w io.Writer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	head := func(name, kind, help string) { fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) }
	head("registry_http_in_flight_requests", "gauge", "The in-flight HTTP requests")
	fmt.Fprintf(w, "registry_http_in_flight_requests %d\n", m.inFlight.Load())
	head("registry_http_requests_total", "counter", "Total number of HTTP requests made.")
	for _, k := range slices.SortedFunc(maps.Keys(m.requests), func(a, b [3]string) int { return slices.Compare(a[:], b[:]) }) {
		fmt.Fprintf(w, "registry_http_requests_total{handler=%q,method=%q,code=%q} %d\n", k[0], k[1], k[2], m.requests[k])
	}
	pairs := func(a, b [2]string) int { return slices.Compare(a[:], b[:]) }
	const dur = "registry_http_request_duration_seconds"
	head(dur, "histogram", "The HTTP request latencies in seconds.")
	for _, k := range slices.SortedFunc(maps.Keys(m.times), pairs) {
		d := m.times[k]
		for i, b := range bounds {
			fmt.Fprintf(w, dur+"_bucket{handler=%q,method=%q,le=\"%v\"} %d\n", k[0], k[1], b, d.buckets[i])
		}
		fmt.Fprintf(w, dur+"_bucket{handler=%q,method=%q,le=\"+Inf\"} %d\n", k[0], k[1], d.n)
		fmt.Fprintf(w, dur+"_sum{handler=%q,method=%q} %v\n"+dur+"_count{handler=%q,method=%q} %d\n", k[0], k[1], d.sum, k[0], k[1], d.n)
	}
	head("registry_notifications_events_total", "counter", "The number of events by endpoint and what became of them.")
	for _, k := range slices.SortedFunc(maps.Keys(m.events), pairs) {
		fmt.Fprintf(w, "registry_notifications_events_total{endpoint=%q,type=%q} %d\n", k[0], k[1], m.events[k])
	}
	for _, c := range []struct {
		name, help string
		v          *[2]atomic.Int64
	}{
		{"registry_proxy_hits_total", "The number of requests that a mirror answered from its store.", &m.hits},
		{"registry_proxy_misses_total", "The number of requests that a mirror had to ask upstream for.", &m.misses},
		{"registry_proxy_pulled_bytes_total", "The size of what a mirror fetched.", &m.pulled},
	} {
		head(c.name, "counter", c.help)
		fmt.Fprintf(w, "%s{type=\"blob\"} %d\n%s{type=\"manifest\"} %d\n", c.name, c.v[ofBlob].Load(), c.name, c.v[ofManifest].Load())
	}
}
