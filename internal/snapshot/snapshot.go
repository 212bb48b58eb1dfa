// Package snapshot keeps the file trees of images and containers as stacks of
// layers.
//
// # Words
//
// A snapshot is a tree. An active one is written to and has a key: a
// container's id, or the name of a layer being unpacked. A committed one has a
// name, a layer's chain id, and never changes again. Both may stand on a committed
// parent, whose whole tree they start from.
//
//	Prepare(key, parent) ──▶ active ──Commit(name, key)──▶ committed ──▶ parent of others
//	                            └──────── Remove ◀────────────┘
//
// A driver keeps snapshots in its own way: overlay stacks the directories of
// the layers at mount time; copy gives each snapshot a tree of its own. A Mount says
// how a snapshot becomes a root, and Attach makes it one: a detached mount, of
// which the host's mount table shows nothing.
//
// A driver has no database: what exists is what its directories say, each step
// is one rename or mkdir, and a crash leaves at most an active snapshot that its owner finds
// by Walk, or a tree under trash/ that the next Open removes.
package snapshot

import (
	"context"
	"fmt"
	"strings"

	"berth.dev/berth/internal/errs"
)

// Driver keeps snapshots. Its methods may be called from several goroutines, but
// not for one key at a time.
type Driver interface {
	// Prepare makes an active snapshot with the tree of the committed snapshot
	// parent, or an empty one when parent is "". A key in use is a Conflict,
	// a missing parent NotFound.
	Prepare(ctx context.Context, key, parent string) error

	// Commit turns the active snapshot key into the committed snapshot name. A name in
	// use is a Conflict, and key stays.
	Commit(ctx context.Context, name, key string) error

	// Remove deletes a snapshot of either kind; an unknown one is no error.
	// The caller knows that no other stands on it and nothing has it mounted.
	Remove(ctx context.Context, key string) error

	// Mounts tells how to get the root of a snapshot. An active one is
	// writable, a committed one is not. An unknown one is NotFound.
	Mounts(ctx context.Context, key string) (Mount, error)

	// Usage returns the bytes that a snapshot has beyond its parent.
	Usage(ctx context.Context, key string) (int64, error)

	// Walk calls fn for every snapshot, in no order.
	Walk(ctx context.Context, fn func(Info) error) error
}

// Info describes a snapshot in a walk.
type Info struct {
	Key       string
	Parent    string
	Committed bool
}

// Mount describes how to get a root: by overlayfs over Lower, top first, with
// Upper and Work unless it is read-only; or, when Path is set, by a bind of that
// directory.
type Mount struct {
	Lower       []string
	Upper, Work string
	Path        string
}

// ReadOnly is the same tree without a way to change it.
func (m Mount) ReadOnly() Mount {
	if m.Path != "" || m.Upper == "" {
		return m
	}
	return Mount{Lower: append([]string{m.Upper}, m.Lower...)}
}

// Layers are the directories that hold the tree, top first.
func (m Mount) Layers() []string {
	if m.Path != "" {
		return []string{m.Path}
	}
	return m.ReadOnly().Lower
}

// Describer is a driver that can say where it keeps a snapshot, in the terms of the
// API's GraphDriver.Data.
type Describer interface {
	Describe(ctx context.Context, key string) (map[string]string, error)
}

// Applier is a driver that tells how a layer's tar is unpacked into an active
// snapshot: into which directory, and whether deletions are done there or marked.
type Applier interface {
	// ApplyTarget returns the directory to unpack into. With marks, deletions
	// are to be kept in overlayfs's form, and lower are the directories of the
	// layers below, top first.
	ApplyTarget(ctx context.Context, key string) (dir string, lower []string, marks bool, err error)
}

// Store is a chosen driver with its name, as the API reports it.
type Store struct {
	Driver
	Name string
}

// Candidate is a driver that Choose may open. Names are what a user may call it, the
// first being the one reported.
type Candidate struct {
	Names []string
	Open  func(root string) (Driver, error)
}

// Choose opens the driver called name, or the first candidate that works
// below root when name is "".
func Choose(name, root string, candidates ...Candidate) (*Store, error) {
	var all []string
	var why []string
	for _, c := range candidates {
		all = append(all, c.Names[0])
		if name != "" && !contains(c.Names, name) {
			continue
		}
		d, err := c.Open(root)
		if err == nil {
			return &Store{Driver: d, Name: c.Names[0]}, nil
		}
		if name != "" {
			return nil, fmt.Errorf("storage driver %q cannot be used in %s: %w", name, root, err)
		}
		why = append(why, fmt.Sprintf("%s: %v", c.Names[0], err))
	}
	if name != "" {
		return nil, errs.New(errs.Invalid, "unknown storage driver %q: it is one of %s", name, strings.Join(all, ", "))
	}
	return nil, errs.New(errs.Unavailable, "no storage driver works in %s: %s", root, strings.Join(why, "; "))
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}

// DirName is the name of a snapshot's directory: its key, where a digest gives
// its hexadecimal part. Keys come from the engine; one that could lead elsewhere is Invalid.
func DirName(key string) (string, error) {
	n := strings.TrimPrefix(key, "sha256:")
	if n == "" || len(n) > 128 || n[0] == '.' {
		return "", errs.New(errs.Invalid, "invalid snapshot key %q", key)
	}
	for i := range len(n) {
		c := n[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return "", errs.New(errs.Invalid, "invalid snapshot key %q", key)
		}
	}
	return n, nil
}

// KeyOf is the key of a committed snapshot by the name of its directory: 64
// digits are those of a chain id.
func KeyOf(dir string) string {
	if len(dir) == 64 {
		return "sha256:" + dir
	}
	return dir
}
