package httpapi

import (
	"context"

	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/go-digest"

	enginecontainer "berth.dev/berth/internal/container"
	engineimage "berth.dev/berth/internal/image"
)

// The container service's types.
type (
	CreateRequest    = enginecontainer.CreateRequest
	StopOptions      = enginecontainer.StopOptions
	RemoveOptions    = enginecontainer.RemoveOptions
	ListOptions      = enginecontainer.ListOptions
	Conn             = enginecontainer.Conn
	AttachOptions    = enginecontainer.AttachOptions
	LogsOptions      = enginecontainer.LogsOptions
	ExecStartOptions = enginecontainer.ExecStartOptions

	StatsOptions      = enginecontainer.StatsOptions
	CommitOptions     = enginecontainer.CommitOptions
	ArchivePutOptions = enginecontainer.ArchivePutOptions
)

// Waiter is a wait that was accepted; Result blocks until the condition holds.
type Waiter interface {
	Result(ctx context.Context) (container.WaitResponse, error)
}

// WaitFunc accepts a wait, or fails at once when it never could succeed.
type WaitFunc func(ctx context.Context, ref string, cond container.WaitCondition) (Waiter, error)

// WaitWith makes a WaitFunc of a service's method, which returns its own type
// of waiter.
func WaitWith[W Waiter](wait func(context.Context, string, container.WaitCondition) (W, error)) WaitFunc {
	return func(ctx context.Context, ref string, cond container.WaitCondition) (Waiter, error) {
		w, err := wait(ctx, ref, cond)
		if err != nil {
			return nil, err
		}
		return w, nil
	}
}

// The image service's types, by names that do not clash with the container's.
type (
	ImageListOptions   = engineimage.ListOptions
	ImageRemoveOptions = engineimage.RemoveOptions
	ImagePruneReport   = engineimage.PruneReport
	ImageLoadOptions   = engineimage.LoadOptions
	ImageImportOptions = engineimage.ImportOptions
	ImageID            = digest.Digest
)
