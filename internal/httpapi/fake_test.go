package httpapi

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/events"
	"berth.dev/berth/internal/filter"
	"berth.dev/berth/internal/stdmux"
	engine "berth.dev/berth/internal/system"
)

// fake is a backend with one container, one image, and an echo for stdin.
type fake struct {
	bus     *events.Bus
	created CreateRequest
	stop    StopOptions
	gone    chan struct{} // closed when a wait's client went away
}

const fakeID = "4e38e38c8ce0b8d9041a9c4fefe786631d1416225e13b0bfe8cfa2321aec4bba"

func known(ref string) error {
	if ref == "web" || ref == fakeID || ref == fakeID[:12] || ref == "lib/x:1" {
		return nil
	}
	return errs.New(errs.NotFound, "No such container: %s", ref)
}

func (f *fake) Create(_ context.Context, req CreateRequest) (container.CreateResponse, error) {
	f.created = req
	return container.CreateResponse{ID: fakeID}, nil
}
func (f *fake) Start(_ context.Context, ref string) error { return known(ref) }
func (f *fake) Stop(_ context.Context, ref string, o StopOptions) error {
	f.stop = o
	return errs.New(errs.NotModified, "already stopped")
}
func (f *fake) Restart(_ context.Context, ref string, _ StopOptions) error { return known(ref) }
func (f *fake) Kill(_ context.Context, ref, _ string) error                { return known(ref) }
func (f *fake) Remove(_ context.Context, ref string, _ RemoveOptions) error {
	return known(ref)
}

func (f *fake) List(_ context.Context, o ListOptions) ([]container.Summary, error) {
	c := container.Summary{ID: fakeID, Names: []string{"/web"}, Image: "nginx", Command: "nginx", State: "running", Status: "Up 1 second", Created: 1700000000}
	c.HostConfig.NetworkMode = "bridge"
	return []container.Summary{c}, nil
}

func (f *fake) Inspect(_ context.Context, ref string, _ bool) (container.InspectResponse, error) {
	if err := known(ref); err != nil {
		return container.InspectResponse{}, err
	}
	return container.InspectResponse{
		ID: fakeID, Name: "/web", Config: &container.Config{Hostname: "h", Image: "nginx"},
		HostConfig: &container.HostConfig{NetworkMode: "bridge"}, State: &container.State{Status: "running", Running: true},
		ImageManifestDescriptor: &ocispec.Descriptor{},
		NetworkSettings: &container.NetworkSettings{Networks: map[string]*network.EndpointSettings{
			"bridge": {IPAddress: netip.MustParseAddr("172.17.0.2"), Gateway: netip.MustParseAddr("172.17.0.1"), IPPrefixLen: 16, MacAddress: network.HardwareAddr{2, 0x42, 1, 2, 3, 4}},
			"mine":   {Aliases: []string{"a"}},
		}},
	}, nil
}

func (f *fake) Top(context.Context, string, string) (container.TopResponse, error) {
	return container.TopResponse{Titles: []string{"PID"}, Processes: [][]string{{"1"}}}, nil
}

func (f *fake) Changes(context.Context, string) ([]container.FilesystemChange, error) {
	return nil, nil
}

func (f *fake) StatsNow(_ context.Context, emit func(container.StatsResponse) error) error {
	return emit(container.StatsResponse{ID: fakeID, OSType: "linux"})
}

func (f *fake) Stats(ctx context.Context, ref string, o StatsOptions, emit func(container.StatsResponse) error) error {
	if err := known(ref); err != nil {
		return err
	}
	for i := 0; i < 3; i++ {
		if err := emit(container.StatsResponse{ID: fakeID, OSType: "linux"}); err != nil || !o.Stream {
			return err
		}
	}
	return nil
}

func (f *fake) Wait(_ context.Context, ref string, cond container.WaitCondition) (Waiter, error) {
	if err := known(ref); err != nil {
		return nil, err
	}
	return waiterFunc(func(ctx context.Context) (container.WaitResponse, error) {
		if cond == container.WaitConditionRemoved { // never happens
			<-ctx.Done()
			close(f.gone)
			return container.WaitResponse{}, ctx.Err()
		}
		return container.WaitResponse{StatusCode: 3}, nil
	}), nil
}

type waiterFunc func(context.Context) (container.WaitResponse, error)

func (f waiterFunc) Result(ctx context.Context) (container.WaitResponse, error) { return f(ctx) }

func (f *fake) Attach(_ context.Context, ref string, o AttachOptions, hijack func(bool) (Conn, error)) error {
	if err := known(ref); err != nil {
		return err
	}
	c, err := hijack(false)
	if err != nil {
		return err
	}
	var out, errw io.Writer = c, c
	if !o.Raw {
		out, errw = stdmux.Writer(c, stdmux.Stdout), stdmux.Writer(c, stdmux.Stderr)
	}
	_, _ = io.WriteString(errw, "ready\n")
	if o.Stdin {
		if _, err := io.Copy(out, c); err != nil && !o.Raw {
			return err
		}
	}
	return c.CloseWrite()
}

func (f *fake) Logs(ctx context.Context, ref string, o LogsOptions, begin func(bool) io.Writer) error {
	if err := known(ref); err != nil {
		return err
	}
	w := stdmux.Writer(begin(false), stdmux.Stdout)
	_, _ = io.WriteString(w, "one\n")
	_, _ = io.WriteString(w, "two\n")
	if o.Follow {
		<-ctx.Done()
	}
	return nil
}

func (f *fake) Export(_ context.Context, ref string, w io.Writer) error {
	if err := known(ref); err != nil {
		return err
	}
	_, _ = w.Write(make([]byte, 5000))
	if ref == fakeID[:12] {
		return errs.New(errs.Internal, "read error")
	}
	return nil
}

func (f *fake) Commit(_ context.Context, o CommitOptions) (string, error) {
	return "sha256:" + fakeID, known(o.Ref)
}

func (f *fake) Pause(_ context.Context, ref string) error        { return known(ref) }
func (f *fake) Unpause(_ context.Context, ref string) error      { return known(ref) }
func (f *fake) Rename(context.Context, string, string) error     { return nil }
func (f *fake) Resize(context.Context, string, uint, uint) error { return nil }
func (f *fake) Update(context.Context, string, container.UpdateConfig) (container.UpdateResponse, error) {
	return container.UpdateResponse{}, nil
}

type fakeControl struct{ *fake }

func (fakeControl) Prune(context.Context, filter.Args) (container.PruneReport, error) {
	return container.PruneReport{ContainersDeleted: []string{fakeID}, SpaceReclaimed: 12}, nil
}

func (f *fake) ExecCreate(_ context.Context, ref string, _ container.ExecCreateRequest) (string, error) {
	return "e1", known(ref)
}

func (f *fake) ExecStart(ctx context.Context, id string, o ExecStartOptions, hijack func(bool) (Conn, error)) error {
	if o.Detach {
		return nil
	}
	return f.Attach(ctx, "web", AttachOptions{Stdin: true}, hijack)
}

func (f *fake) ExecInspect(context.Context, string) (container.ExecInspectResponse, error) {
	code := 0
	return container.ExecInspectResponse{ID: "e1", ExitCode: &code, ProcessConfig: &container.ExecProcessConfig{}}, nil
}
func (f *fake) ExecResize(context.Context, string, uint, uint) error { return nil }

func (f *fake) ArchiveStat(_ context.Context, ref, path string) (container.PathStat, error) {
	return container.PathStat{Name: filepath.Base(path), Mode: 0o644, Size: 3}, known(ref)
}

func (f *fake) ArchiveGet(ctx context.Context, ref, path string, w func(container.PathStat) io.Writer) error {
	st, err := f.ArchiveStat(ctx, ref, path)
	if err != nil {
		return err
	}
	_, err = w(st).Write(make([]byte, 1024))
	return err
}

func (f *fake) ArchivePut(_ context.Context, ref, _ string, r io.Reader, _ ArchivePutOptions) error {
	_, _ = io.Copy(io.Discard, r)
	return known(ref)
}

type fakeImages struct{}

func (fakeImages) List(context.Context, ImageListOptions) ([]image.Summary, error) {
	return []image.Summary{{ID: "sha256:" + fakeID, RepoTags: []string{"lib/x:1"}, Size: 42, Created: 1700000000, Containers: 2, Descriptor: &ocispec.Descriptor{}}}, nil
}

func (fakeImages) Inspect(_ context.Context, ref string) (image.InspectResponse, error) {
	if err := known(ref); err != nil {
		return image.InspectResponse{}, errs.New(errs.NotFound, "No such image: %s", ref)
	}
	return image.InspectResponse{ID: "sha256:" + fakeID, Size: 42, Descriptor: &ocispec.Descriptor{}, Config: &dockerspec.DockerOCIImageConfig{
		ImageConfig: ocispec.ImageConfig{Cmd: []string{"sh"}},
	}}, nil
}

func (fakeImages) History(context.Context, string) ([]image.HistoryResponseItem, error) {
	return nil, nil
}
func (fakeImages) Tag(context.Context, string, string, string) error { return nil }
func (fakeImages) Remove(_ context.Context, ref string, _ ImageRemoveOptions) ([]image.DeleteResponse, error) {
	return []image.DeleteResponse{{Untagged: ref}}, nil
}

func (fakeImages) Prune(context.Context, filter.Args) (ImagePruneReport, error) {
	return ImagePruneReport{SpaceReclaimed: 1}, nil
}

func (fakeImages) Load(_ context.Context, r io.Reader, _ ImageLoadOptions, p func(jsonstream.Message)) error {
	n, _ := io.Copy(io.Discard, r)
	p(jsonstream.Message{Stream: fmt.Sprintf("Loaded %d bytes\n", n)})
	if n == 3 {
		return errs.New(errs.Invalid, "archive is too short")
	}
	return nil
}

func (fakeImages) Save(_ context.Context, refs []string, w io.Writer) error {
	_, err := fmt.Fprint(w, refs)
	return err
}

func (fakeImages) Import(_ context.Context, r io.Reader, _ ImageImportOptions, p func(jsonstream.Message)) (ImageID, error) {
	_, err := io.Copy(io.Discard, r)
	p(jsonstream.Message{Status: "sha256:" + fakeID})
	return "sha256:" + fakeID, err
}

func (fakeImages) Pull(_ context.Context, o PullOptions, p func(jsonstream.Message)) error {
	if o.Ref != "lib/x:1" && o.Ref != "docker.io/lib/x:1" {
		return errs.New(errs.NotFound, "pull access denied for %s", o.Ref)
	}
	p(jsonstream.Message{Status: "Status: Image is up to date for lib/x:1"})
	return nil
}

type fakeNetworks struct{}

func (fakeNetworks) List(context.Context, filter.Args) ([]network.Inspect, error) {
	return []network.Inspect{{Network: network.Network{Name: "none", ID: "n1", Driver: "null", Scope: "local"}}}, nil
}

func (fakeNetworks) Inspect(_ context.Context, ref string, _ NetworkInspectOptions) (network.Inspect, error) {
	return network.Inspect{Network: network.Network{Name: ref}}, nil
}

type fakeVolumes struct{}

func (fakeVolumes) List(context.Context, filter.Args) (volume.ListResponse, error) {
	return volume.ListResponse{}, nil
}

type fakeSystem struct{ *engine.Service }

func (s fakeSystem) Info(ctx context.Context) (system.Info, error) { return s.Service.Info(ctx) }

func newFake() (*fake, Backends) {
	f := &fake{bus: events.New(), gone: make(chan struct{})}
	sys := engine.New(engine.Config{Build: engine.Build{Version: "0.1", APIVersion: MaxVersion.String(), MinAPI: MinVersion.String()}}, engine.Sources{
		Containers: func(ctx context.Context) ([]container.Summary, error) { return f.List(ctx, ListOptions{}) },
		Images: func(ctx context.Context, _ bool) (image.DiskUsage, error) {
			l, err := fakeImages{}.List(ctx, ImageListOptions{})
			return image.DiskUsage{Items: l, TotalSize: 42, TotalCount: 1}, err
		},
	})
	return f, Backends{
		System: fakeSystem{sys}, Events: f.bus, Lifecycle: f, Control: f, Query: f, Update: f, Prune: fakeControl{f}, Top: f, Changes: f, Stats: f, Export: f, Commit: f, Wait: WaitWith(f.Wait), Streams: f, Exec: f, Archive: f,
		Images: fakeImages{}, Transfer: fakeImages{}, Puller: fakeImages{}, Networks: fakeNetworks{}, Volumes: fakeVolumes{},
	}
}

// serve runs the API on a unix socket until the test ends.
func serve(t testing.TB) (f *fake, sock string) {
	t.Helper()
	f, b := newFake()
	sock = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	srv := HTTPServer(New(b, Options{ServerVersion: "0.1"}), context.Background())
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = srv.Shutdown(ctx)
		_ = srv.Close()
	})
	return f, sock
}

func (fakeNetworks) Remove(context.Context, string) error { return nil }

func (fakeNetworks) Prune(context.Context, filter.Args) (network.PruneReport, error) {
	return network.PruneReport{}, nil
}

func (fakeVolumes) Create(context.Context, volume.CreateRequest) (volume.Volume, error) {
	return volume.Volume{}, nil
}

func (fakeVolumes) Inspect(context.Context, string) (volume.Volume, error) {
	return volume.Volume{}, nil
}

func (fakeVolumes) Remove(context.Context, string, bool) error { return nil }

func (fakeVolumes) Prune(context.Context, filter.Args) (volume.PruneReport, error) {
	return volume.PruneReport{}, nil
}

func (fakeNetworks) Create(context.Context, network.CreateRequest) (id, warning string, err error) {
	return "n1", "", nil
}
