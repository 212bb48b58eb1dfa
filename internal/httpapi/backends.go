package httpapi

import (
	"context"
	"io"
	"time"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"

	"berth.dev/berth/internal/events"
	"berth.dev/berth/internal/filter"
	engine "berth.dev/berth/internal/system"
)

// Backends is everything behind the API. The routes of a nil backend do not exist.
type Backends struct {
	System System
	Events Events

	Lifecycle Lifecycle
	Control   Control
	Query     Query
	Wait      WaitFunc // see WaitWith
	Streams   Streams
	Exec      Exec
	Archive   Archive

	// A container's further abilities, one call each.
	Update  Updater
	Prune   Pruner
	Top     Topper
	Changes Differ
	Stats   StatsSource
	Export  Exporter
	Commit  Committer

	Images   Images
	Transfer Transfer
	Puller   Puller
	Registry Registry

	Networks  Networks
	Connector Connector
	Volumes   Volumes

	BuildCache BuildCache
}

// System tells about the engine.
type System interface {
	Info(ctx context.Context) (system.Info, error)
	Version(ctx context.Context) (system.VersionResponse, error)
	DiskUsage(ctx context.Context, o engine.DiskUsageOptions) (system.DiskUsage, error)
}

// Events is the event bus.
type Events interface {
	Subscribe(since, until time.Time, filters filter.Args) *events.Subscription
}

// Lifecycle takes a container from its creation to its end.
type Lifecycle interface {
	Create(ctx context.Context, req CreateRequest) (container.CreateResponse, error)
	Start(ctx context.Context, ref string) error
	Stop(ctx context.Context, ref string, o StopOptions) error
	Restart(ctx context.Context, ref string, o StopOptions) error
	Kill(ctx context.Context, ref, signal string) error
	Remove(ctx context.Context, ref string, o RemoveOptions) error
}

// Control changes a container that exists.
type Control interface {
	Pause(ctx context.Context, ref string) error
	Unpause(ctx context.Context, ref string) error
	Rename(ctx context.Context, ref, name string) error
	Resize(ctx context.Context, ref string, height, width uint) error
}

// Query looks at containers.
type Query interface {
	List(ctx context.Context, o ListOptions) ([]container.Summary, error)
	Inspect(ctx context.Context, ref string, size bool) (container.InspectResponse, error)
}

// Streams connects clients with a container's output and input.
type Streams interface {
	// Attach fails before it calls hijack, or has the connection.
	Attach(ctx context.Context, ref string, o AttachOptions, hijack func(tty bool) (Conn, error)) error
	Logs(ctx context.Context, ref string, o LogsOptions, begin func(tty bool) io.Writer) error
}

// Updater changes a container's limits.
type Updater interface {
	Update(ctx context.Context, ref string, c container.UpdateConfig) (container.UpdateResponse, error)
}

// Pruner removes stopped containers.
type Pruner interface {
	Prune(ctx context.Context, filters filter.Args) (container.PruneReport, error)
}

// Topper lists a container's processes.
type Topper interface {
	Top(ctx context.Context, ref, psArgs string) (container.TopResponse, error)
}

// Differ tells what a container has changed in its image's files.
type Differ interface {
	Changes(ctx context.Context, ref string) ([]container.FilesystemChange, error)
}

// StatsSource measures what a container uses.
type StatsSource interface {
	Stats(ctx context.Context, ref string, o StatsOptions, emit func(container.StatsResponse) error) error
	// StatsNow takes one sample of each running container.
	StatsNow(ctx context.Context, emit func(container.StatsResponse) error) error
}

// Exporter writes a container's files as a tar.
type Exporter interface {
	Export(ctx context.Context, ref string, w io.Writer) error
}

// Committer makes an image of a container.
type Committer interface {
	Commit(ctx context.Context, o CommitOptions) (id string, err error)
}

// Exec runs further processes in a container.
type Exec interface {
	ExecCreate(ctx context.Context, ref string, req container.ExecCreateRequest) (id string, err error)
	ExecStart(ctx context.Context, id string, o ExecStartOptions, hijack func(tty bool) (Conn, error)) error
	ExecInspect(ctx context.Context, id string) (container.ExecInspectResponse, error)
	ExecResize(ctx context.Context, id string, height, width uint) error
}

// Archive copies files into and out of a container.
type Archive interface {
	ArchiveStat(ctx context.Context, ref, path string) (container.PathStat, error)
	ArchiveGet(ctx context.Context, ref, path string, w func(container.PathStat) io.Writer) error
	ArchivePut(ctx context.Context, ref, path string, r io.Reader, o ArchivePutOptions) error
}

// Images is the image store.
type Images interface {
	List(ctx context.Context, o ImageListOptions) ([]image.Summary, error)
	Inspect(ctx context.Context, ref string) (image.InspectResponse, error)
	History(ctx context.Context, ref string) ([]image.HistoryResponseItem, error)
	Tag(ctx context.Context, source, repo, tag string) error
	Remove(ctx context.Context, ref string, o ImageRemoveOptions) ([]image.DeleteResponse, error)
	Prune(ctx context.Context, filters filter.Args) (ImagePruneReport, error)
}

// Transfer moves images through archives.
type Transfer interface {
	Load(ctx context.Context, r io.Reader, o ImageLoadOptions, progress func(jsonstream.Message)) error
	Save(ctx context.Context, refs []string, w io.Writer) error
	Import(ctx context.Context, r io.Reader, o ImageImportOptions, progress func(jsonstream.Message)) (ImageID, error)
}

// Puller brings images from elsewhere.
type Puller interface {
	Pull(ctx context.Context, o PullOptions, progress func(jsonstream.Message)) error
}

// PullOptions says what to pull. Auth is nil for an anonymous pull.
type PullOptions struct {
	Ref      string // with its tag or digest; without one when All
	Platform string // "os/arch[/variant]"; "" is the host's
	All      bool   // every tag
	Auth     *registry.AuthConfig
}

// Registry asks and fills registries.
type Registry interface {
	Push(ctx context.Context, o PushOptions, progress func(jsonstream.Message)) error
	Login(ctx context.Context, c *registry.AuthConfig) (identityToken string, err error)
	Search(ctx context.Context, term string, limit int, filters filter.Args, auth *registry.AuthConfig) ([]registry.SearchResult, error)
	Distribution(ctx context.Context, ref string, auth *registry.AuthConfig) (registry.DistributionInspect, error)
}

// PushOptions says what to push. Auth is nil for an anonymous push.
type PushOptions struct {
	Repo     string    // without a tag
	Tag      string    // "": all that are here
	Platform *Platform // that the image must have; nil: any
	Auth     *registry.AuthConfig
}

// Networks knows the networks.
type Networks interface {
	List(ctx context.Context, filters filter.Args) ([]network.Inspect, error)
	Inspect(ctx context.Context, ref string, o NetworkInspectOptions) (network.Inspect, error)
	Create(ctx context.Context, r network.CreateRequest) (id, warning string, err error)
	Remove(ctx context.Context, ref string) error
	Prune(ctx context.Context, filters filter.Args) (network.PruneReport, error)
}

// Connector puts containers on networks and takes them off.
type Connector interface {
	Connect(ctx context.Context, network string, r network.ConnectRequest) error
	Disconnect(ctx context.Context, network string, r network.DisconnectRequest) error
}

// NetworkInspectOptions selects a network and how much to tell about it.
type NetworkInspectOptions struct {
	Verbose bool
	Scope   string
}

// Volumes knows the volumes.
type Volumes interface {
	List(ctx context.Context, filters filter.Args) (volume.ListResponse, error)
	Create(ctx context.Context, r volume.CreateRequest) (volume.Volume, error)
	Inspect(ctx context.Context, name string) (volume.Volume, error)
	Remove(ctx context.Context, name string, force bool) error
	Prune(ctx context.Context, filters filter.Args) (volume.PruneReport, error)
}

// BuildCache knows what builds have left for the next ones.
type BuildCache interface {
	Prune(ctx context.Context, filters filter.Args) (build.CachePruneReport, error)
}
