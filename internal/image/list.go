package image

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/filter"
	"berth.dev/berth/internal/ref"
)

// ListOptions says what to list.
type ListOptions struct {
	All        bool // also images that others are built on and that have no name
	SharedSize bool // fill in SharedSize
	Manifests  bool // accepted; this store has no lists of manifests
	Filters    filter.Args
}

// List returns the images, newest first.
func (s *Service) List(_ context.Context, opts ListOptions) ([]image.Summary, error) {
	return s.list(opts, false)
}

func (s *Service) list(opts ListOptions, containers bool) ([]image.Summary, error) {
	f, err := s.parseFilters(opts.Filters)
	if err != nil {
		return nil, err
	}
	children := s.children()
	type row struct {
		sum image.Summary
		at  time.Time
	}
	var rows []row
	for _, im := range s.all() {
		if !f.match(im) {
			continue
		}
		sum := image.Summary{
			ID: string(im.ID), ParentID: string(im.Parent), Size: im.Size, SharedSize: -1, Containers: -1,
			Labels: im.Config.Config.Labels, RepoTags: []string{}, RepoDigests: []string{},
		}
		if !im.Created.IsZero() {
			sum.Created = im.Created.Unix()
		}
		if !s.fillNames(&sum, s.namesOf(im.ID), f, opts.All, children[im.ID] > 0) {
			continue
		}
		if opts.SharedSize {
			sum.SharedSize = s.layers.shared(im.Layers)
		}
		if containers {
			sum.Containers = int64(len(s.holders(im.ID)))
		}
		rows = append(rows, row{sum, im.Created})
	}
	slices.SortFunc(rows, func(a, b row) int {
		if c := b.at.Compare(a.at); c != 0 {
			return c
		}
		return strings.Compare(a.sum.ID, b.sum.ID)
	})
	out := make([]image.Summary, len(rows))
	for i, r := range rows {
		out[i] = r.sum
	}
	return out, nil
}

// fillNames sets the names that the filters let through, and reports whether the
// image is to be listed.
func (s *Service) fillNames(sum *image.Summary, names []ref.Name, f *listFilter, all, hasChildren bool) bool {
	for _, n := range names {
		if !f.matchName(n) {
			continue
		}
		if n.Digest() != "" {
			sum.RepoDigests = append(sum.RepoDigests, n.Familiar())
		} else {
			sum.RepoTags = append(sum.RepoTags, n.Familiar())
		}
	}
	if len(sum.RepoTags)+len(sum.RepoDigests) == 0 {
		if hasChildren && !all {
			return false // a step on the way to another image
		}
		return f.dangling != no && len(f.references) == 0
	}
	return f.dangling != yes || len(sum.RepoTags) == 0
}

// answer is a boolean filter that may not be there.
type answer uint8

const (
	unasked answer = iota
	yes
	no
)

// listFilter is the filters of a list, read once.
type listFilter struct {
	args          filter.Args
	dangling      answer
	before, since time.Time // created strictly before, after
	until         time.Time
	references    []string
}

func (s *Service) parseFilters(a filter.Args) (*listFilter, error) {
	if err := a.Validate("dangling", "label", "label!", "before", "since", "reference", "until"); err != nil {
		return nil, err
	}
	f := &listFilter{args: a, references: a["reference"]}
	if a.Has("dangling") {
		b, err := a.Bool("dangling", false)
		if err != nil {
			return nil, err
		}
		f.dangling = no
		if b {
			f.dangling = yes
		}
	}
	for _, v := range a["before"] {
		im, err := s.find(v)
		if err != nil {
			return nil, err
		}
		if f.before.IsZero() || im.Created.Before(f.before) {
			f.before = im.Created
		}
	}
	for _, v := range a["since"] {
		im, err := s.find(v)
		if err != nil {
			return nil, err
		}
		if im.Created.After(f.since) {
			f.since = im.Created
		}
	}
	for _, v := range a["until"] {
		t, err := parseUntil(v)
		if err != nil {
			return nil, err
		}
		if f.until.IsZero() || t.Before(f.until) {
			f.until = t
		}
	}
	for _, p := range f.references {
		if n, err := ref.Parse("x"); err == nil {
			if _, err := n.Match(p); err != nil {
				return nil, err
			}
		}
	}
	return f, nil
}

func (f *listFilter) match(im *Image) bool {
	if !f.before.IsZero() && !im.Created.Before(f.before) || !f.since.IsZero() && !im.Created.After(f.since) {
		return false
	}
	if !f.until.IsZero() && !im.Created.Before(f.until) {
		return false
	}
	return matchLabels(f.args, im.Config.Config.Labels)
}

func (f *listFilter) matchName(n ref.Name) bool {
	if len(f.references) == 0 {
		return true
	}
	return slices.ContainsFunc(f.references, func(p string) bool { ok, err := n.Match(p); return err == nil && ok })
}

// matchLabels reports whether labels has all of "label" and none of "label!".
func matchLabels(a filter.Args, labels map[string]string) bool {
	if !a.Labels("label", labels) {
		return false
	}
	for _, v := range a["label!"] {
		if (filter.Args{"label!": {v}}).Labels("label!", labels) {
			return false
		}
	}
	return true
}

// parseUntil reads a time: a Unix time, RFC 3339 or a part of it, or how long ago.
func parseUntil(v string) (time.Time, error) {
	if d, err := time.ParseDuration(v); err == nil {
		return time.Now().Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02T15", "2006-01-02Z07:00", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, v, time.Local); err == nil {
			return t, nil
		}
	}
	sec, frac, _ := strings.Cut(v, ".")
	n, err := strconv.ParseInt(sec, 10, 64)
	if err != nil {
		return time.Time{}, errs.New(errs.Invalid, "failed to parse value as time or duration: %q", v)
	}
	nano := int64(0)
	if frac != "" {
		if nano, err = strconv.ParseInt((frac + "000000000")[:9], 10, 64); err != nil {
			return time.Time{}, errs.New(errs.Invalid, "failed to parse value as time or duration: %q", v)
		}
	}
	return time.Unix(n, nano), nil
}

// shared is the bytes in the layers of a chain that other images have as well.
func (l *layerStore) shared(chain []digest.Digest) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var n int64
	for _, id := range chain {
		if l.held[id] > 1 {
			n += l.rows[id].Size
		}
	}
	return n
}

// DiskUsage returns what images take, as "system df" shows it. Items are
// filled only with verbose.
func (s *Service) DiskUsage(_ context.Context, verbose bool) (image.DiskUsage, error) {
	items, err := s.list(ListOptions{All: true, SharedSize: true}, true)
	if err != nil {
		return image.DiskUsage{}, err
	}
	du := image.DiskUsage{TotalCount: int64(len(items)), TotalSize: s.layers.total()}
	used := int64(0)
	for _, i := range items {
		if i.Containers > 0 {
			du.ActiveCount++
			used += i.Size - i.SharedSize
		}
	}
	du.Reclaimable = max(du.TotalSize-used, 0)
	if verbose {
		du.Items = items
	}
	return du, nil
}

func (l *layerStore) total() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var n int64
	for _, r := range l.rows {
		n += r.Size
	}
	return n
}
