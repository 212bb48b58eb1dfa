package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// series is what one subject gave in one measurement.
type series struct {
	Measure string    `json:"measure"`
	Subject string    `json:"subject"`
	Unit    string    `json:"unit"` // "ms", "MB/s", "MiB"
	Values  []float64 `json:"-"`
	N       int       `json:"n"`
	Min     float64   `json:"min"`
	Median  float64   `json:"median"`
	P95     float64   `json:"p95"`
	Note    string    `json:"note,omitempty"`
}

func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	at := q * float64(len(s)-1)
	low := int(at)
	high := min(low+1, len(s)-1)
	return s[low] + (at-float64(low))*(s[high]-s[low])
}

func (s *series) sum() {
	s.N, s.Min, s.Median, s.P95 = len(s.Values), quantile(s.Values, 0), quantile(s.Values, 0.5), quantile(s.Values, 0.95)
}

// results holds every series in the order of measuring.
type results struct {
	all     []*series
	targets []target
	notes   []string
	live    io.Writer // progress, may be nil
}

func (r *results) get(measure, subject string) *series {
	for _, s := range r.all {
		if s.Measure == measure && s.Subject == subject {
			return s
		}
	}
	return nil
}

func (r *results) add(measure, subject, unit string, v float64) {
	s := r.get(measure, subject)
	if s == nil {
		s = &series{Measure: measure, Subject: subject, Unit: unit}
		r.all = append(r.all, s)
	}
	s.Values = append(s.Values, v)
}

func (r *results) time(measure, subject string, d time.Duration) {
	r.add(measure, subject, "ms", float64(d)/1e6)
}

func (r *results) note(format string, args ...any) {
	n := fmt.Sprintf(format, args...)
	if !slices.Contains(r.notes, n) {
		r.notes = append(r.notes, n)
	}
}

// target is a figure of the plan, judged within this run.
type target struct {
	What    string  `json:"what"`
	Value   float64 `json:"value"`
	Limit   float64 `json:"limit"`
	AtLeast bool    `json:"at_least"` // else at most
	Unit    string  `json:"unit"`
	Reached bool    `json:"reached"`
}

func (r *results) target(what string, value float64, atLeast bool, limit float64, unit string) {
	r.targets = append(r.targets, target{what, value, limit, atLeast, unit, value <= limit != atLeast || value == limit})
}

// ratio judges a.x/b.x, when both were measured.
func (r *results) ratio(what, measure, a, b string, q float64, atLeast bool, limit float64) {
	x, y := r.get(measure, a), r.get(measure, b)
	if x == nil || y == nil {
		return
	}
	d := quantile(y.Values, q)
	if d > 0 {
		r.target(what, quantile(x.Values, q)/d, atLeast, limit, "×")
	}
}

// limit judges one figure of berth.
func (r *results) limit(what, measure string, limit float64, unit string) {
	if s := r.get(measure, "berth"); s != nil {
		r.target(what, quantile(s.Values, 0.5), false, limit, unit)
	}
}

func (r *results) judge() {
	for _, m := range []string{"cycle, tight", "cycle, 20 ms between"} {
		for _, f := range []string{"floor", "floor, by tasks"} {
			r.ratio("API "+m+", p50 to "+f, m, "berth", f, 0.5, false, 1.5)
			r.ratio("API "+m+", p95 to "+f, m, "berth", f, 0.95, false, 2.5)
		}
	}
	for _, m := range []string{"bridge cycle, tight", "bridge cycle, 20 ms between"} {
		r.ratio("API "+m+", p50 to floor", m, "berth", "floor", 0.5, false, 1.6)
		r.ratio("API "+m+", p95 to floor", m, "berth", "floor", 0.95, false, 3)
		r.ratio("API "+m+", docker to berth", m, "docker", "berth", 0.5, true, 30)
		if bare, port := r.get(m, "berth"), r.get(m, "berth, a port"); bare != nil && port != nil {
			r.target("API "+m+", a published port", quantile(port.Values, 0.5)-quantile(bare.Values, 0.5), false, 1, "ms")
		}
	}
	r.limit("network create", "network create", 10, "ms")
	r.limit("100 starts a second, the last second's", "100 starts a second, last second", 100, "ms")
	for _, m := range []string{"requests", "stream"} {
		for _, path := range []string{"loopback", "host address", "hairpin", "from outside"} {
			r.ratio(m+", "+path+" to direct", m, "berth, "+path, "berth, direct", 0.5, true, 0.95)
		}
		r.ratio(m+", container to container to bare veth", m, "berth, containers", "bare veth", 0.5, true, 0.95)
	}
	for _, t := range []struct {
		what, measure string
		limit         float64
	}{
		{"200 starts on the bridge, docker to berth", "200 starts on the bridge", 10},
		{"CLI run --rm, docker to berth", "cli run --rm", 18},
		{"exec, docker to berth", "cli exec", 10},
		{"stop -t 0, docker to berth", "cli stop -t 0", 12},
		{"rm -f, docker to berth", "cli rm -f", 12},
		{"ps with 100 running, docker to berth", "cli ps, 100 running", 12},
		{"ps with 100 running (API), docker to berth", "api ps, 100 running", 12},
		{"many starts, 8 at a time, docker to berth", "many starts, each", 12},
		{"load, docker to berth", "load", 4},
		{"import, docker to berth", "import", 1},
	} {
		r.ratio(t.what, t.measure, "docker", "berth", 0.5, true, t.limit)
	}
	r.ratio("import, podman to berth", "import", "podman", "berth", 0.5, true, 1)
	r.ratio("logs written, berth to docker", "logs write", "berth", "docker", 0.5, true, 4)
	r.ratio("logs read, berth to docker", "logs read", "berth", "docker", 0.5, true, 8)
	if one, many := r.get("start, sequential", "berth"), r.get("start, 8 clients", "berth"); one != nil && many != nil {
		r.target("start p95, 8 clients to sequential", quantile(many.Values, 0.95)/quantile(one.Values, 0.95), false, 6, "×")
	}
	r.limit("ps with 1,000 running", "cli ps, 1000 running", 20, "ms")
	r.limit("first answer, idle", "boot, idle", 50, "ms")
	r.limit("first answer, 200 stopped and 100 running, after kill -9", "boot, 200 stopped 100 running", 250, "ms")
	r.limit("PSS per idle container", "pss per container", 0.1, "MiB")
	r.limit("PSS of the idle engine, just started", "pss idle engine, fresh", 30, "MiB")
	r.limit("PSS of the idle engine, after work", "pss idle engine, after work", 30, "MiB")
	r.limit("berth --version", "--version", 5, "ms")
}

func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// print writes the figures, then the targets.
func (r *results) print(w io.Writer) {
	fmt.Fprintf(w, "\n%-32s %-22s %5s %9s %9s %9s %-5s %9s\n", "measurement", "subject", "n", "min", "median", "p95", "", "to berth")
	// Measurements in the order of their first sample, each with its subjects.
	place := map[string]int{}
	for _, s := range r.all {
		if _, ok := place[s.Measure]; !ok {
			place[s.Measure] = len(place)
		}
	}
	slices.SortStableFunc(r.all, func(a, b *series) int { return cmp.Compare(place[a.Measure], place[b.Measure]) })
	last := ""
	for _, s := range r.all {
		s.sum()
		if family, _, _ := strings.Cut(s.Measure, ":"); family != last {
			if last != "" {
				fmt.Fprintln(w)
			}
			last = family
		}
		against := ""
		if b := r.get(s.Measure, "berth"); b != nil && b != s && b.Unit == s.Unit {
			if m := quantile(b.Values, 0.5); m > 0 {
				against = fmt.Sprintf("%.2f×", s.Median/m)
			}
		}
		fmt.Fprintf(w, "%-32s %-22s %5d %9s %9s %9s %-5s %9s\n", s.Measure, s.Subject, s.N, number(s.Min), number(s.Median), number(s.P95), s.Unit, against)
	}
	r.judge()
	if len(r.targets) > 0 {
		fmt.Fprintf(w, "\n%-58s %10s %13s\n", "target", "measured", "wanted")
	}
	for _, t := range r.targets {
		sign, verdict := "≤", "reached"
		if t.AtLeast {
			sign = "≥"
		}
		if !t.Reached {
			verdict = "MISSED"
		}
		fmt.Fprintf(w, "%-58s %10s %13s  %s\n", t.What, number(t.Value)+" "+t.Unit, sign+" "+strings.TrimRight(strings.TrimRight(fmt.Sprintf("%.2f", t.Limit), "0"), ".")+" "+t.Unit, verdict)
	}
	for _, n := range r.notes {
		fmt.Fprintln(w, "note:", n)
	}
}
