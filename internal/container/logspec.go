package container

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strconv"

	"github.com/moby/moby/api/types/container"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/keeper"
	"berth.dev/berth/internal/logs"
	"berth.dev/berth/internal/logs/drivers"
	"berth.dev/berth/internal/logs/ship"
)

// shipping is a view of the service: the logs that go to a remote.
type shipping struct{ *Service }

// logConfig fills what a container leaves open from the engine's defaults, as
// Docker does: options only for the default driver, but those of the local copy
// for each; and checks it.
func (d *Defaults) logConfig(lc *container.LogConfig) error {
	driver := d.LogDriver
	if driver == "" {
		driver = logs.DriverJSONFile
	}
	if lc.Type == "" {
		lc.Type = driver
	}
	opts := map[string]string{}
	for k, v := range d.LogOpts {
		if _, ok := logs.SpoolOption(k); lc.Type == driver || ok {
			opts[k] = v
		}
	}
	maps.Copy(opts, lc.Config)
	lc.Config = opts
	return errs.Wrap(errs.Invalid, drivers.Validate(lc.Type, lc.Config), "")
}

// shipment is an order for a container's log, before its process exists; nil
// for a driver that keeps files.
type shipment struct {
	order ship.Order
}

// drop gives it up.
func (o *shipment) drop() {
	if o.order.Remote != nil {
		_ = o.order.Remote.Close()
	}
}

// logSpec says where the output goes; nil for nowhere. A driver that sends to
// a remote is connected here, so that a start fails when that does.
func (s launcher) logSpec(r *Record) (*keeper.LogSpec, *shipment, error) {
	lc := r.HostConfig.LogConfig
	if lc.Type == logs.DriverNone {
		return nil, nil, nil
	}
	spec, out, err := s.openLog(r)
	if err != nil {
		return nil, nil, &errs.Error{Kind: errs.Internal, Err: errors.New("failed to create task for container: failed to initialize logging driver: " + err.Error())}
	}
	return spec, out, nil
}

func (s launcher) openLog(r *Record) (*keeper.LogSpec, *shipment, error) {
	lc := r.HostConfig.LogConfig
	spec := &keeper.LogSpec{Driver: lc.Type}
	spec.Driver, spec.Path = r.logFile(s.dir(r.ID))
	if len(lc.Config) == 0 && lc.Type == logs.DriverJSONFile { // the default path
		return spec, nil, nil
	}
	var opts logs.Options
	var out *shipment
	var err error
	if drivers.IsRemote(lc.Type) {
		if opts, err = logs.ParseSpool(lc.Config); err != nil {
			return nil, nil, err
		}
		order, err := drivers.Open(lc.Type, logInfo(r), false)
		if err != nil {
			return nil, nil, err
		}
		out = &shipment{order}
	} else if opts, err = logs.ParseOptions(lc.Type, lc.Config); err != nil {
		return nil, nil, err
	}
	spec.MaxSize, spec.MaxFile, spec.Compress, spec.NonBlocking, spec.Buffer = opts.MaxSize, opts.MaxFile, opts.Compress, opts.NonBlocking, opts.Buffer
	if spec.Attrs, err = logAttrs(r); err == nil && lc.Type == logs.DriverLocal {
		err = os.MkdirAll(filepath.Dir(spec.Path), 0o700)
	}
	if err != nil {
		if out != nil {
			out.drop()
		}
		return nil, nil, err
	}
	return spec, out, nil
}

// logAttrs are what the options labels, env and tag tell with each entry.
func logAttrs(r *Record) (map[string]string, error) {
	wanted := false
	for _, k := range logs.Attributes {
		wanted = wanted || r.HostConfig.LogConfig.Config[k] != ""
	}
	if !wanted {
		return nil, nil
	}
	info := logInfo(r)
	attrs, err := info.Attributes(nil)
	if err != nil {
		return nil, err
	}
	tag, err := info.Tag("")
	if err != nil {
		return nil, err
	}
	if tag != "" {
		attrs["tag"] = tag
	}
	if len(attrs) == 0 {
		return nil, nil
	}
	return attrs, nil
}

func logInfo(r *Record) *ship.Info {
	return &ship.Info{
		Config: r.HostConfig.LogConfig.Config, ContainerID: string(r.ID), ContainerName: "/" + r.Name,
		ContainerEntrypoint: r.Path, ContainerArgs: r.Args, ContainerImageID: string(r.Image), ContainerImageName: r.Config.Image,
		ContainerCreated: r.Created, ContainerEnv: r.Config.Env, ContainerLabels: r.Config.Labels, DaemonName: "docker",
	}
}

// logFile tells how, and where in its directory, a container's output is kept.
// The names are Docker's.
func (r *Record) logFile(dir string) (driver, path string) {
	switch r.HostConfig.LogConfig.Type {
	case logs.DriverJSONFile, logs.DriverNone:
		return logs.DriverJSONFile, filepath.Join(dir, string(r.ID)+"-json.log")
	case logs.DriverLocal:
		return logs.DriverLocal, filepath.Join(dir, "local-logs", "container.log")
	}
	return logs.DriverLocal, filepath.Join(dir, "container-cached.log")
}

// readable reports whether a container's output can be read back.
func (r *Record) readable() bool {
	lc := r.HostConfig.LogConfig
	if lc.Type == logs.DriverNone {
		return false
	}
	disabled, _ := strconv.ParseBool(lc.Config["cache-disabled"])
	return !disabled || !drivers.IsRemote(lc.Type)
}

// begin lets a shipment follow the log of a container that runs. c.mu is held.
func (s shipping) begin(c *Container, o *shipment) {
	if o != nil {
		s.follow(c.Record(), o, c.exitChan())
	}
}

// follow sends the log of a container until stopped is closed; nil is that of
// one that does not run.
func (s shipping) follow(r *Record, o *shipment, stopped <-chan struct{}) {
	if stopped == nil {
		ended := make(chan struct{})
		close(ended)
		stopped = ended
	}
	o.order.Stopped, o.order.Cursor = stopped, s.cursor(r.ID)
	_, o.order.Spool = r.logFile(s.dir(r.ID))
	s.ships.Start(o.order)
}

func (s shipping) cursor(id ID) string { return filepath.Join(s.dir(id), "container-cached.cursor") }

// resume goes on with what an engine before this one did not send.
func (s shipping) resume() {
	for _, c := range s.all() {
		r := c.Record()
		if !drivers.IsRemote(r.HostConfig.LogConfig.Type) {
			continue
		}
		c.mu.Lock()
		if !c.isGone() && (c.Status().Phase.Running() || ship.Pending(s.cursor(r.ID))) {
			order, err := drivers.Open(r.HostConfig.LogConfig.Type, logInfo(r), true)
			if err != nil {
				s.o.Log.Warn("cannot send a container's log", "id", r.ID, "error", err)
			} else {
				s.begin(c, &shipment{order})
			}
		}
		c.mu.Unlock()
	}
}

// behind runs f, which removes a container's files, once its log is sent, and
// in any case some seconds later.
func (s shipping) behind(r *Record, f func()) {
	if !drivers.IsRemote(r.HostConfig.LogConfig.Type) {
		s.later(f)
		return
	}
	go func() {
		// One that ended while no engine ran has nobody yet who sends it.
		if id := string(r.ID); !s.ships.Active(id) && ship.Pending(s.cursor(r.ID)) {
			if order, err := drivers.Open(r.HostConfig.LogConfig.Type, logInfo(r), true); err == nil {
				s.follow(r, &shipment{order}, nil)
			}
		}
		s.ships.Finish(string(r.ID), drivers.FinishBefore)
		f()
	}()
}
